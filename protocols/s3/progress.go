package s3

import (
	"io"
	"math"
	"net/http"
	"time"
)

// step is how many bytes may pass between two looks at the clock. It has to fit through the slowest link we serve within Config.Stall:
// 512 KiB in 45 s are 12 KB/s.
const step = 512 << 10

// least is how many bytes a client must send within Config.Stall: one that sends a byte now and then is not slow but idle.
const least = 16 << 10

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
	if w.stall < 0 {
		return
	}
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
	lack   int           // bytes that are to come before waited starts anew
	waited time.Duration // for those bytes; time that the handler spends elsewhere is not the client's
	until  time.Time     // the read deadline that is set
	ended  bool
	broken error
}

func (b *body) start(r io.Reader, w *response) {
	if r == nil {
		r = http.NoBody
	}
	b.Reader, b.w, b.lack = r, w, least
}

// Read reads from the client, for at most the time a client may stall: it has to send least bytes in it, or end.
func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if b.w.stall < 0 {
		return b.note(b.Reader.Read(p))
	}
	start := time.Now()
	if until := start.Add(b.w.stall - b.waited); until.Sub(b.until) > b.w.stall/8 {
		b.until = until
		b.w.rc.SetReadDeadline(until)
		b.w.arm()
	}
	n, err := b.Reader.Read(p)
	b.waited += time.Since(start)
	if b.lack -= n; b.lack <= 0 {
		b.lack, b.waited = least, 0
	}
	if err == io.EOF {
		// The server now waits in the background for the client to hang up; our deadline must not look like that.
		b.w.rc.SetReadDeadline(time.Time{})
	}
	return b.note(n, err)
}

// note remembers how the body ended.
func (b *body) note(n int, err error) (int, error) {
	if b.ended = err == io.EOF; !b.ended && err != nil && b.broken == nil {
		b.broken = err
	}
	return n, err
}
