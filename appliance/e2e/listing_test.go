package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// R06: a folder of 100,000 files is listed at once and in bounded memory; Depth infinity is refused in the words of RFC 4918 §9.1.
func TestR06Listing(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	n := 100_000
	if testing.Short() {
		n = 20_000
	}
	if err := os.Mkdir(b.disk("many"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		f, err := os.Create(b.disk(fmt.Sprintf("many/a file with a rather long name, number %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	alice := b.as("alice")
	alice.want("PROPFIND", "/docs", "", 207, "Depth: 0")
	base := b.forget()
	var first, whole time.Duration
	for range 3 {
		conn := b.dial()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		began := time.Now()
		io.WriteString(conn, rawRequest(b.http, "alice", "PROPFIND /dav/docs/many", []string{"Depth: 1", "Connection: close"}, ""))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		var one [1]byte
		if _, err := io.ReadFull(res.Body, one[:]); err != nil {
			t.Fatal(err)
		}
		first = max(first, time.Since(began))
		rest, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		whole = max(whole, time.Since(began))
		if got := strings.Count(string(rest), "<D:response>"); got != n+1 {
			t.Fatalf("%d of %d are listed", got, n+1)
		}
	}
	t.Logf("%d files: first byte after %v, last after %v", n, first.Round(time.Millisecond), whole.Round(time.Millisecond))
	if first > 2*time.Second {
		t.Errorf("first byte after %v", first)
	}
	b.grew(base, 64<<20)
	for _, header := range [][]string{{"Depth: infinity"}, nil} {
		if r := alice.do("PROPFIND", "/docs", "", header...); r.status != 403 || !strings.Contains(r.body, "propfind-finite-depth") {
			t.Errorf("PROPFIND %v: %d %s", header, r.status, r.body)
		}
	}

	// Deep trees and long names end in a refusal, not in a crash.
	path, status := "/docs", 0
	for range 300 {
		path += "/d"
		if status = alice.do("MKCOL", path, "").status; status != 201 {
			break
		}
	}
	if status != 400 && status != 414 {
		t.Errorf("the deepest folder: %d at %d bytes", status, len(path))
	}
	if got := alice.do("PUT", "/docs/"+strings.Repeat("n", 256), "x").status; got < 400 || got >= 500 {
		t.Errorf("a name of 256 bytes: %d", got)
	}
	if got := alice.do("PUT", "/docs/"+strings.Repeat("n", 200_000), "x").status; got < 400 || got >= 500 {
		t.Errorf("a name of 200,000 bytes: %d", got)
	}
	alice.want("DELETE", "/docs/many", "", 204)
	alice.want("DELETE", "/docs/d", "", 204)
	eventually(t, time.Minute, "the deleted files are gone from the area", func() bool {
		left, err := os.ReadDir(filepath.Join(b.files, ".cellgate", "old"))
		return err == nil && len(left) == 0
	})
	b.sound()
}
