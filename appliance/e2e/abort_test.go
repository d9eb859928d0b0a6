package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"
)

// D01: an upload whose connection dies changes nothing, whenever and however it dies, and leaves nothing behind.
func TestD01AbortedUploads(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	alice := b.as("alice")
	size := 64 << 20
	if testing.Short() {
		size = 8 << 20
	}
	old := strings.Repeat("old bytes ", 1000)
	alice.want("PUT", "/docs/old", old, 201)
	tag := alice.do("HEAD", "/docs/old", "").header.Get("Etag")
	block := []byte(strings.Repeat("NEW!", 16<<10))

	// abort sends a body of size bytes up to cut and lets the connection die.
	abort := func(path string, cut int, chunked, reset bool) {
		t.Helper()
		conn := b.dial().(*net.TCPConn)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		header := []string{fmt.Sprintf("Content-Length: %d", size)}
		if chunked {
			header = []string{"Transfer-Encoding: chunked"}
		}
		io.WriteString(conn, rawRequest(b.http, "alice", "PUT /dav"+path, header, ""))
		for sent := 0; sent < cut; {
			part := block[:min(len(block), cut-sent)]
			if chunked {
				fmt.Fprintf(conn, "%x\r\n", len(part))
			}
			n, err := conn.Write(part)
			if err != nil {
				t.Fatalf("after %d bytes: %v", sent, err)
			}
			sent += n
			if chunked {
				io.WriteString(conn, "\r\n")
			}
		}
		if reset {
			_ = conn.SetLinger(0)
		} else if rand.N(2) == 0 {
			_ = conn.CloseWrite()
			io.Copy(io.Discard, conn) // the refusal, if there is one
		}
	}
	tried := 0
	for _, chunked := range []bool{false, true} {
		for _, reset := range []bool{false, true} {
			for _, cut := range []int{1, size / 100, size / 2, size / 100 * 99, size - 1, size} {
				if cut == size && !chunked {
					continue // that is a whole upload
				}
				for _, path := range []string{"/docs/old", "/docs/new"} {
					abort(path, cut, chunked, reset)
					tried++
				}
				if r := alice.do("GET", "/docs/old", ""); r.body != old || r.header.Get("Etag") != tag {
					t.Fatalf("chunked %t, reset %t, cut at %d of %d: %d bytes with %s, before %d with %s", chunked, reset, cut, size,
						len(r.body), r.header.Get("Etag"), len(old), tag)
				}
			}
		}
	}
	eventually(t, 30*time.Second, "temporary space is free again", func() bool { n, _ := b.staged(); return n == 0 })
	alice.want("GET", "/docs/new", "", 404)
	if read(t, b.disk("old")) != old {
		t.Error("the file on disk has changed")
	}
	if nodes, _, err := alice.list("/docs", 1); err != nil || len(nodes) != 2 {
		t.Errorf("the folder holds %v (%v), want old alone", nodes, err)
	}
	log := b.cellgate("audit", "list", "--json", "--user", "alice", "--action", "create")
	if n := strings.Count(log, `"path":"/docs/new"`) + strings.Count(log, `"path":"/docs/old"`); n != 1 {
		t.Errorf("%d records of uploads, want the one that came through\n%s", n, tail(log, 1000))
	}
	t.Logf("%d uploads of %d MiB aborted, none published", tried, size>>20)
	b.sound()
}

// A body shorter or longer than declared, or chunked wrongly, is refused and publishes nothing.
func TestD01LyingBodies(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	for _, c := range []struct {
		name   string
		header []string
		body   string
	}{
		{"chunk without its end", []string{"Transfer-Encoding: chunked"}, "5\r\nhello\r\n"},
		{"bad chunk size", []string{"Transfer-Encoding: chunked"}, "5\r\nhello\r\nzz\r\n"},
		{"negative chunk size", []string{"Transfer-Encoding: chunked"}, "-5\r\nhello\r\n0\r\n\r\n"},
		{"chunk longer than said", []string{"Transfer-Encoding: chunked"}, "3\r\nhello\r\n0\r\n\r\n"},
		{"two lengths", []string{"Content-Length: 5", "Content-Length: 6"}, "hello"},
		{"negative length", []string{"Content-Length: -1"}, "hello"},
		{"part of a file", []string{"Content-Range: bytes 0-4/10", "Content-Length: 5"}, "hello"},
		{"packed", []string{"Content-Encoding: gzip", "Content-Length: 5"}, "hello"},
		{"other bytes than said", []string{"OC-Checksum: MD5:00000000000000000000000000000000", "Content-Length: 5"}, "hello"},
	} {
		conn := b.dial().(*net.TCPConn)
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(conn, rawRequest(b.http, "alice", "PUT /dav/docs/lie", c.header, c.body))
		_ = conn.CloseWrite()
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if strings.HasPrefix(string(answer), "HTTP/1.1 2") {
			t.Errorf("%s: %.100s", c.name, answer)
		}
		if got := b.as("alice").do("GET", "/docs/lie", "").status; got != 404 {
			t.Errorf("%s: the file is there (%d)", c.name, got)
		}
	}
	eventually(t, 10*time.Second, "temporary space is free again", func() bool { n, _ := b.staged(); return n == 0 })
}
