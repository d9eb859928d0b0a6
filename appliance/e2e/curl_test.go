package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// curl runs curl as a user and returns what it printed.
func (b *box) curl(t *testing.T, user string, args ...string) string {
	t.Helper()
	args = append([]string{"-sS", "--max-time", "60", "-u", user + ":" + password(user)}, args...)
	return command{}.run(t, program(t, "curl"), args...)
}

// status makes curl print the status alone.
var status = []string{"-o", "/dev/null", "-w", "%{http_code}"}

func TestCurl(t *testing.T) {
	t.Parallel()
	program(t, "curl")
	b := start(t, common)
	dir := t.TempDir()
	text := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	local := write(t, filepath.Join(dir, "local"), text)
	at := b.url("", "/docs/a file.bin")
	at = strings.ReplaceAll(at, " ", "%20")
	code := func(want string, args ...string) {
		t.Helper()
		if got := b.curl(t, "alice", append(status, args...)...); got != want {
			t.Errorf("curl %s: got %s, want %s", strings.Join(args, " "), got, want)
		}
	}
	code("201", "-T", local, at)
	code("204", "-T", local, at)
	if got := b.curl(t, "alice", at); got != text {
		t.Errorf("got %d bytes back", len(got))
	}
	if got := read(t, b.disk("a file.bin")); got != text {
		t.Errorf("%d bytes lie on the disk", len(got))
	}

	// Ranges: one, the end, several, none.
	if got := b.curl(t, "alice", "-r", "16-19", at); got != "0123" {
		t.Errorf("range: %q", got)
	}
	if got := b.curl(t, "alice", "-r", "-3", at); got != "def" {
		t.Errorf("last three: %q", got)
	}
	if got := b.curl(t, "alice", "-r", "0-1,4-5", at); !strings.Contains(got, "01\r\n--") || !strings.Contains(got, "45\r\n--") {
		t.Errorf("two ranges: %q", got)
	}
	code("416", "-r", "2000000-", at)
	part := filepath.Join(dir, "part")
	write(t, part, text[:1000])
	b.curl(t, "alice", "-C", "-", "-o", part, at)
	if read(t, part) != text {
		t.Error("a download that was resumed is not the file")
	}

	// Conditional.
	etags := filepath.Join(dir, "etag")
	b.curl(t, "alice", "--etag-save", etags, "-o", "/dev/null", at)
	code("304", "--etag-compare", etags, at)
	tag := strings.TrimSpace(read(t, etags))
	code("204", "-T", local, "-H", "If-Match: "+tag, at)
	code("412", "-T", local, "-H", "If-Match: "+tag, at)
	code("412", "-T", local, "-H", "If-None-Match: *", at)
	code("304", "-z", time.Now().Add(time.Hour).UTC().Format(time.RFC1123), at)
	code("200", "-z", "Mon, 02 Jan 2006 15:04:05 GMT", at)

	// A body is not sent in vain: the answer to Expect comes before it.
	big := write(t, filepath.Join(dir, "big"), strings.Repeat("x", 8<<20))
	out := command{}.run(t, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "-u", "carol:"+password("carol"), "-T", big,
		"-H", "Expect: 100-continue", "--expect100-timeout", "20", b.url("", "/docs/no"))
	if out != "403 0" {
		t.Errorf("Expect for what is refused: got status and bytes %s, want 403 0", out)
	}
	code("201", "-T", big, "-H", "Expect: 100-continue", "--expect100-timeout", "20", b.url("", "/docs/yes"))

	// Chunked, empty, aborted.
	code("201", "-T", local, "-H", "Transfer-Encoding: chunked", b.url("", "/docs/chunked"))
	if read(t, b.disk("chunked")) != text {
		t.Error("the chunked upload is not the file")
	}
	code("201", "-T", "/dev/null", b.url("", "/docs/empty"))
	if _, err := (command{}).try(t, "curl", "-sS", "-u", "alice:"+password("alice"), "-T", big, "--limit-rate", "1M", "--max-time", "1", b.url("", "/docs/yes2")); err == nil {
		t.Error("an upload of 8 MiB at 1 MiB/s took less than a second")
	}
	code("404", b.url("", "/docs/yes2"))
	code("404", b.url("", "/docs/none"))
	code("401", "-u", "alice:wrong", at)
	code("204", "-X", "DELETE", at)
	code("404", at)
	b.sound()
}

func TestCurlTLS(t *testing.T) {
	t.Parallel()
	program(t, "curl")
	b := prepare(t)
	b.args = []string{"--tls", "self-signed", "--https", "127.0.0.1:0"}
	b.serve()
	b.apply(common)
	if b.https == "" {
		t.Fatal("no https in the ready line")
	}
	certs, err := filepath.Glob(filepath.Join(b.data, "tls", "*.crt"))
	if err != nil || len(certs) == 0 {
		certs, _ = filepath.Glob(filepath.Join(b.data, "tls", "*cert*"))
	}
	if len(certs) != 1 {
		t.Fatalf("certificates: %v", certs)
	}
	cert := certs[0]
	local := write(t, filepath.Join(t.TempDir(), "local"), strings.Repeat("tls ", 1<<20))
	at := "https://" + b.https + "/dav/docs/f"
	for _, proto := range []struct{ flag, version string }{{"--http2", "2"}, {"--http1.1", "1.1"}} {
		args := []string{"--cacert", cert, proto.flag, "-o", "/dev/null", "-w", "%{http_code} %{http_version}"}
		want := "201 "
		if proto.version == "1.1" {
			want = "204 "
		}
		if got := b.curl(t, "alice", append(args, "-T", local, at)...); got != want+proto.version {
			t.Errorf("PUT by %s: %s", proto.flag, got)
		}
		back := filepath.Join(t.TempDir(), "back")
		b.curl(t, "alice", "--cacert", cert, proto.flag, "-o", back, at)
		if read(t, back) != read(t, local) {
			t.Errorf("GET by %s: other bytes", proto.flag)
		}
		if got := b.curl(t, "alice", "--cacert", cert, proto.flag, "-r", "4-6", at); got != "tls" {
			t.Errorf("range by %s: %q", proto.flag, got)
		}
	}
	if out, err := (command{}).try(t, "curl", "-sS", "-o", "/dev/null", at); err == nil {
		t.Errorf("the certificate is trusted by who was not told to: %s", out)
	}
	for _, old := range []string{"1.0", "1.1"} {
		if _, err := (command{}).try(t, "curl", "-sS", "--cacert", cert, "--tls-max", old, "-o", "/dev/null", at); err == nil {
			t.Errorf("TLS %s is spoken", old)
		}
	}
	before := read(t, cert)
	b.stop()
	b.serve()
	if read(t, cert) != before {
		t.Error("a restart makes another certificate, so that clients have to trust anew")
	}
	if info, err := os.Stat(filepath.Dir(cert)); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the folder of the key: %v %v", info.Mode(), err)
	}
}
