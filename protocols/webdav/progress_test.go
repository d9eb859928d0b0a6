package webdav

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fileSink notes what its ReadFrom is given, as net/http's own would hand it to the kernel.
type fileSink struct {
	sink
	direct, calls int
	got           bytes.Buffer
}

func (s *fileSink) ReadFrom(r io.Reader) (int64, error) {
	s.calls++
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			s.direct++
		}
	}
	return s.got.ReadFrom(r)
}

// A file reaches net/http as what sendfile needs, *io.LimitedReader over *os.File, whatever step it is sent in.
func TestResponseKeepsSendfile(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 3*step/10)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := &fileSink{sink: sink{header: make(http.Header)}}
	var w response
	w.start(to, time.Minute)
	n, err := io.CopyN(&w, f, int64(len(content)-5))
	if err != nil || n != int64(len(content)-5) || !bytes.Equal(to.got.Bytes(), content[:n]) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if to.direct != to.calls || to.calls != 3 {
		t.Errorf("%d of %d calls could have been sendfile, want 3 of 3", to.direct, to.calls)
	}
}

// A client that sends a byte now and then, for ever, is cut off; one that is slow but gets on is not.
func TestBodyWantsProgress(t *testing.T) {
	for _, c := range []struct {
		name  string
		piece int
		cut   bool
	}{{"a byte at a time", 1, true}, {"slow", least, false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *Config) { c.Stall = 400 * time.Millisecond })
			conn, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			const pieces = 20
			fmt.Fprintf(conn, "PUT /dav/docs/f HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n", basic("alice"), pieces*c.piece)
			began := time.Now()
			var sent error
			for range pieces {
				time.Sleep(100 * time.Millisecond)
				if _, sent = conn.Write(make([]byte, c.piece)); sent != nil {
					break
				}
			}
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if cut := sent != nil || err != nil || res.StatusCode != http.StatusCreated; cut != c.cut {
				t.Errorf("after %v: cut %t, want %t (%v, %v)", time.Since(began), cut, c.cut, sent, err)
			}
		})
	}
}
