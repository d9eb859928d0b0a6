package webdav

import (
	"bytes"
	"io"
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
