package webdav

import (
	"io"
	"math"
	"net/http"
	"time"
)

// step is how many bytes may pass between two looks at the clock. It has to fit through the slowest link we serve within Config.Stall:
// 512 KiB in 45 s are 12 KB/s.
const step = 512 << 10

// small answers pass without a timer of their own: they fit into the buffers of net/http and the kernel.
const small = 16 << 10

// response is the ResponseWriter of a request. It moves the write deadline along with progress, notes whether an answer has begun, and keeps
// io.ReaderFrom, so that local files go out by sendfile.
type response struct {
	http.ResponseWriter
	rc     http.ResponseController
	stall  time.Duration
	next   time.Time // when the deadline is moved next
	armed  bool      // a deadline of ours is set
	wrote  bool      // the header is out
	n      int       // bytes written through Write
	broken error     // the first failure to write to the client
}

var _ io.ReaderFrom = (*response)(nil)

func (w *response) start(to http.ResponseWriter, stall time.Duration) {
	w.ResponseWriter, w.stall, w.next = to, stall, time.Now().Add(stall/4)
	w.rc = *http.NewResponseController(to)
}

// Unwrap gives http.ResponseController the way to the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// arm moves the deadline unless that was done a moment ago. Writers without deadlines (tests) are left alone.
func (w *response) arm() {
	now := time.Now()
	if w.armed && now.Before(w.next) {
		return
	}
	w.armed, w.next = true, now.Add(w.stall/4)
	w.rc.SetWriteDeadline(now.Add(w.stall))
}

// WriteHeader starts the answer. After a long time of work the deadline that the server set at the start has passed: it is moved.
func (w *response) WriteHeader(status int) {
	w.wrote = true
	if !time.Now().Before(w.next) {
		w.arm()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends p.
func (w *response) Write(p []byte) (int, error) {
	w.wrote = true
	if w.n += len(p); w.n > small {
		w.arm()
	}
	n, err := w.ResponseWriter.Write(p)
	w.note(err)
	return n, err
}

// ReadFrom sends src step by step. A LimitedReader is taken apart, because the kernel's sendfile is reached through one, not through two.
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	w.wrote = true
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(onlyWriter{w}, src)
	}
	left := int64(math.MaxInt64)
	limited, ok := src.(*io.LimitedReader)
	if ok {
		src, left = limited.R, limited.N
	}
	for left > 0 {
		w.arm()
		want := min(left, step)
		m, err := to.ReadFrom(&io.LimitedReader{R: src, N: want})
		n, left = n+m, left-m
		if limited != nil {
			limited.N = left
		}
		if err != nil || m < want {
			w.note(err)
			return n, err
		}
	}
	return n, nil
}

func (w *response) note(err error) {
	if w.broken == nil {
		w.broken = err
	}
}

// flush sends what is buffered below.
func (w *response) flush() {
	w.arm()
	w.rc.Flush()
}

// finish takes our deadline off the connection, on which somebody else's handler may answer next. A server with a WriteTimeout sets its own
// at the next request; then ours stays for the last bytes.
func (w *response) finish(r *http.Request) {
	if !w.armed {
		return
	}
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && srv.WriteTimeout > 0 {
		return
	}
	w.rc.SetWriteDeadline(time.Time{})
}

type onlyWriter struct{ io.Writer }

// body is the body of a request. It moves the read deadline with progress, and the write deadline with it, and remembers whether the client
// broke it off: then nothing that came of it may be published, and nobody is to be told.
type body struct {
	io.Reader
	w      *response
	next   time.Time
	ended  bool
	broken error
}

func (b *body) start(r io.Reader, w *response) {
	if r == nil {
		r = http.NoBody
	}
	b.Reader, b.w = r, w
}

// Read reads from the client, for at most the time a client may stall.
func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if now := time.Now(); !now.Before(b.next) {
		b.next = now.Add(b.w.stall / 4)
		b.w.rc.SetReadDeadline(now.Add(b.w.stall))
		b.w.arm()
	}
	n, err := b.Reader.Read(p)
	switch {
	case err == io.EOF:
		// The server now waits in the background for the client to hang up; our deadline must not look like that.
		b.ended = true
		b.w.rc.SetReadDeadline(time.Time{})
	case err != nil && b.broken == nil:
		b.broken = err
	}
	return n, err
}

// cut returns err, or a refusal where the body and not the core failed.
func (b *body) cut(err error) error {
	if b.broken == nil || err == nil {
		return err
	}
	if status := statusOf(b.broken); status == http.StatusRequestEntityTooLarge {
		return b.broken
	}
	return refuse(http.StatusBadRequest, "the body ended early")
}
