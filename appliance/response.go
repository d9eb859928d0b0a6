package appliance

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	leastProgress = 16 << 10 // bytes that must move within Limits.StallTimeout
	writeStep     = 64 << 10 // what one deadline of a plain write has to cover
)

// response counts what a request moves and gives each step of it a deadline, so that a client that stops reading or sending is cut off while
// one that merely is slow may go on for days. It passes io.ReaderFrom on, so that files still go out by sendfile.
type response struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	stall  time.Duration
	direct bool // HTTP/1 in the clear: the connection takes files by sendfile
	bufs   *sync.Pool
	status int
	user   string // who it turned out to be, for the log
	sent   int64
	until  time.Time // the write deadline that is set
}

var (
	_ io.ReaderFrom = (*response)(nil)
	_ http.Flusher  = (*response)(nil)
)

// SignedIn is for the doors: it tells the log whose request this is.
func (w *response) SignedIn(login string) { w.user = login }

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the final status.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (written int, err error) {
	w.ok()
	for {
		step := p[:min(len(p), writeStep)]
		w.extend()
		n, err := w.ResponseWriter.Write(step)
		written += n
		w.sent += int64(n)
		if err != nil || n == len(p) {
			return written, err
		}
		p = p[n:]
	}
}

// ReadFrom lets the connection take the bytes of a file itself. A deadline that passes while they move is no failure: sendfile stops
// cleanly and says how far it came, so it goes on from there.
func (w *response) ReadFrom(src io.Reader) (read int64, err error) {
	w.ok()
	from, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok || !w.direct {
		buf := w.bufs.Get().(*[writeStep]byte)
		defer w.bufs.Put(buf)
		return io.CopyBuffer(struct{ io.Writer }{w}, src, buf[:])
	}
	for {
		// Half the time for each attempt: one that moved a little at its start and then nothing does not add to the next one's.
		w.until = time.Now().Add(w.stall / 2)
		_ = w.ctl.SetWriteDeadline(w.until)
		n, err := from.ReadFrom(src)
		read += n
		w.sent += n
		if n < leastProgress || !errors.Is(err, os.ErrDeadlineExceeded) {
			return read, err
		}
	}
}

// Flush sends what is buffered. A failure shows in the next Write.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	w.ok()
	w.extend()
	return w.ctl.Flush()
}

func (w *response) ok() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// extend moves the write deadline, but not more often than it matters.
func (w *response) extend() {
	now := time.Now()
	if w.until.Sub(now) > w.stall-w.stall/8 {
		return
	}
	w.until = now.Add(w.stall)
	_ = w.ctl.SetWriteDeadline(w.until) // what cannot have one (a test's recorder) goes without
}

// body is the reading half: the request's body with a deadline on the wait for it.
type body struct {
	io.ReadCloser
	ctl    *http.ResponseController
	stall  time.Duration
	read   int64
	lack   int64         // bytes that are to come before waited starts anew
	waited time.Duration // for those bytes; the time a handler spends elsewhere does not count against the client
	until  time.Time     // the read deadline that is set
}

func (b *body) Read(p []byte) (int, error) {
	start := time.Now()
	if until := start.Add(b.stall - b.waited); until.Sub(b.until) > b.stall/8 {
		b.until = until
		_ = b.ctl.SetReadDeadline(until)
	}
	n, err := b.ReadCloser.Read(p)
	b.waited += time.Since(start)
	b.read += int64(n)
	if b.lack -= int64(n); b.lack <= 0 {
		b.lack, b.waited = leastProgress, 0
	}
	if err == io.EOF {
		b.until = time.Time{}
		_ = b.ctl.SetReadDeadline(b.until) // net/http now watches the connection for the client going away
	}
	return n, err
}
