# make run     build everything and start the box with a sample workspace
# make test    install what the tests need, run all of them
# make check   what to run before each commit; a few minutes

GO      ?= go
# What the tests run against, on Debian. Tests skip, loudly, what is not there.
PACKAGES = litmus cadaver davfs2 rclone curl postgresql nginx-light libnginx-mod-http-dav-ext apache2 strace fuse3 attr acl \
	vsftpd samba smbclient openssh-server openssh-client sshfs lftp sshpass libmemcachedutil2 libpcre2-posix3 libhiredis0.14 \
	python3-paramiko awscli python3-boto3 s3cmd s3fs git rsync sqlite3
# FTP servers that Debian does not install side by side: unpacked into bin/tools.
UNPACKED = proftpd-core proftpd-mod-crypto pure-ftpd
# An S3 server to test against.
S3SERVER = github.com/versity/versitygw/cmd/versitygw@v1.8.0
FUZZTIME ?= 30s

.PHONY: run build test check lint vuln bench fuzz generate packages tools clean

run: build
	./appliance/sample.sh bin/cellgate

build:
	$(GO) build -trimpath -ldflags "-s -w" -o bin/cellgate ./appliance/cellgate

test: packages tools
	$(GO) test -timeout 40m ./...

check: lint
	$(GO) test -race -short -timeout 15m ./...

lint:
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); test -z "$$files" || { echo "gofmt: $$files"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The list of known flaws is on the network. That it cannot be reached is no flaw; that it names one is.
vuln:
	@if curl -fsS --max-time 20 -o /dev/null https://vuln.go.dev/index/db.json; then \
		$(GO) tool govulncheck ./...; \
	else \
		echo "vuln: vuln.go.dev cannot be reached; nothing checked"; \
	fi

bench:
	$(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./...

# Each fuzz target in turn; go test takes one at a time.
fuzz:
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file func; do \
		target=$${func#func }; echo "== $$target in $${file%/*}"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$${file%/*}" || exit 1; \
	done

generate:
	$(GO) generate ./...

# What is no package of Debian's, or cannot be installed beside another. Tests look for it in bin/tools.
tools: bin/tools/versitygw bin/tools/unpacked

bin/tools/versitygw:
	GOBIN=$(CURDIR)/bin/tools $(GO) install $(S3SERVER) || echo "no S3 server: tests that need it will be skipped"

bin/tools/unpacked:
	@mkdir -p bin/tools/root; command -v apt-get >/dev/null || exit 0; cd bin/tools/root && apt-get download -qq $(UNPACKED) && \
	for p in *.deb; do dpkg-deb -x $$p . && rm $$p; done && touch ../unpacked || echo "not unpacked, some tests will be skipped: $(UNPACKED)"

# Only root on a Debian can install; elsewhere the tests say what they miss.
packages:
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	test -z "$$missing" && exit 0; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then echo "not installed, some tests will be skipped:$$missing"; exit 0; fi; \
	echo "installing:$$missing"; export DEBIAN_FRONTEND=noninteractive; \
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.cellgate; \
	had=; test -e /usr/sbin/policy-rc.d && had=1 || { mv /usr/sbin/policy-rc.d.cellgate /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }; \
	apt-get update -qq </dev/null && apt-get install -qq -y --no-install-recommends $$missing </dev/null >/dev/null; status=$$?; \
	test -n "$$had" && rm -f /usr/sbin/policy-rc.d.cellgate || rm -f /usr/sbin/policy-rc.d; exit $$status

clean:
	rm -rf bin
