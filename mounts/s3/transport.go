package s3

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The most that is read of an answer in XML: a page of 1,000 keys of 1,024 bytes, each written as %XX, with room; and of its tags, each of
// which may cost the decoder much more than its length.
const (
	maxAnswer = 6 << 20
	maxTags   = 40 << 10
)

// transport is the way of all requests: it bounds how many there are, how long nothing moves and how much a server may answer, and never
// follows a redirect (nor does the client above it).
//
// The slots are of three kinds so that one never waits for its own kind: an upload whose source is a download from here, a check on the way
// of an upload.
type transport struct {
	base    http.RoundTripper
	timeout time.Duration
	slots   [kinds]chan struct{}
	ended   context.Context // by shut
	end     context.CancelFunc
}

type kind int

const (
	asking kind = iota // anything with a short answer
	reading
	writing
	kinds
)

// hint tells the transport about a request, by its context.
type hint struct {
	kind     kind
	patience time.Duration // what the server may take longer, for copying or putting together large objects
	pages    *int          // answers in a row that brought a listing nothing
}

type hintKey struct{}

func hinted(ctx context.Context, h hint) context.Context { return context.WithValue(ctx, hintKey{}, h) }

// patience is what a server is given to handle size bytes within itself, beyond the usual.
func patience(size int64) hint { return hint{patience: time.Duration(size/(20<<20)) * time.Second} }

func newTransport(base http.RoundTripper, timeout time.Duration, connections int) *transport {
	t := &transport{base: base, timeout: timeout}
	for i := range t.slots {
		t.slots[i] = make(chan struct{}, connections)
	}
	t.ended, t.end = context.WithCancel(context.Background())
	return t
}

func (t *transport) isShut() bool { return t.ended.Err() != nil }

func (t *transport) shut() {
	t.end()
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	h, _ := req.Context().Value(hintKey{}).(hint)
	if h.pages != nil {
		if *h.pages++; *h.pages > maxEmptyPages {
			return nil, errEndless
		}
	}
	release, err := t.slot(req.Context(), h.kind)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{t: t, ctx: ctx, cancel: cancel, release: release, limit: t.timeout + h.patience}
	w.timer = time.AfterFunc(w.limit, func() { cancel(errStalled) })
	w.unhook = context.AfterFunc(t.ended, func() { cancel(errClosed) })
	req = req.WithContext(ctx)
	var body *sending
	if req.Body != nil && req.Body != http.NoBody {
		body = &sending{ReadCloser: req.Body, w: w}
		req.Body = body
	}
	res, err := t.base.RoundTrip(req)
	if err != nil && body != nil && !body.begun.Load() && ctx.Err() == nil {
		res, err = t.base.RoundTrip(req) // the server had closed the idle connection, and has got nothing of this
	}
	w.pause()
	if err != nil {
		err = w.cause(err)
		w.done()
		return nil, err
	}
	// What the client above would choke on or keep: times of other kinds than LastModified, cookies, tags.
	for _, name := range [...]string{"Expires", "X-Minio-Source-Mtime", "Set-Cookie", "X-Amz-Tagging-Count", "X-Amz-Restore", "X-Amz-Expiration"} {
		res.Header.Del(name)
	}
	room := int64(maxAnswer)
	if h.kind == reading && res.StatusCode < 300 {
		if _, err := http.ParseTime(res.Header.Get("Last-Modified")); err != nil { // the client above would read the whole object before it says so
			w.cancel(nil)
			res.Body.Close()
			w.done()
			return nil, errGarbage
		}
		room = -1
	}
	answer := &receiving{body: res.Body, w: w, room: room}
	res.Body = answer
	if h.pages != nil && res.StatusCode == http.StatusOK {
		if err := answer.expect("<ListBucketResult"); err != nil {
			answer.Close()
			return nil, err
		}
	}
	return res, nil
}

func (t *transport) slot(ctx context.Context, k kind) (release func(), err error) {
	release = func() { <-t.slots[k] }
	select {
	case t.slots[k] <- struct{}{}:
		return release, nil
	default:
	}
	timer := time.NewTimer(t.timeout)
	defer timer.Stop()
	select {
	case t.slots[k] <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.ended.Done():
		return nil, errClosed
	case <-timer.C:
		return nil, errNoSlot
	}
}

// watch gives a request up when nothing moves. It stands still while the source of an upload or the reader of a download are at work.
type watch struct {
	t       *transport
	ctx     context.Context // of this request only
	cancel  context.CancelCauseFunc
	unhook  func() bool
	release func()
	limit   time.Duration
	once    sync.Once

	mu    sync.Mutex
	timer *time.Timer // guarded by mu
	over  bool        // guarded by mu
}

func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

func (w *watch) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.timer.Reset(w.limit)
	}
}

// cause returns why the request was given up when it was, else err.
func (w *watch) cause(err error) error {
	if c := context.Cause(w.ctx); c != nil && err != io.EOF {
		return c
	}
	return err
}

func (w *watch) done() {
	w.once.Do(func() {
		w.mu.Lock()
		w.over = true
		w.timer.Stop()
		w.mu.Unlock()
		w.unhook()
		w.cancel(nil)
		w.release()
	})
}

// wide is a connection over which bodies go in larger pieces than net/http makes of them. Over TLS it makes no difference.
type wide struct{ net.Conn }

var pieces = sync.Pool{New: func() any { buf := make([]byte, 128<<10); return &buf }}

// ReadFrom implements io.ReaderFrom.
func (c wide) ReadFrom(r io.Reader) (int64, error) {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{c.Conn}, r, *buf)
}

// sending is the body of a request.
type sending struct {
	io.ReadCloser
	w     *watch
	begun atomic.Bool
}

func (s *sending) Read(p []byte) (int, error) {
	s.begun.Store(true)
	s.w.pause()
	n, err := s.ReadCloser.Read(p)
	s.w.run()
	return n, err
}

// receiving is the body of an answer.
type receiving struct {
	body io.ReadCloser
	w    *watch
	room int64  // bytes that may still come, -1: any
	tags int    // seen
	head []byte // read already
}

// expect looks for the element that the answer must begin with: the decoder above takes any for an empty one of what it wants.
func (r *receiving) expect(root string) error {
	buf := make([]byte, 1024)
	n := 0
	for n < len(buf) && !bytes.Contains(buf[:n], []byte(root)) {
		more, err := r.Read(buf[n:])
		n += more
		switch {
		case err == io.EOF && bytes.Contains(buf[:n], []byte(root)):
		case err == io.EOF:
			return errGarbage
		case err != nil:
			return err
		}
		if err != nil {
			break
		}
	}
	if !bytes.Contains(buf[:n], []byte(root)) {
		return errGarbage
	}
	r.head = buf[:n]
	return nil
}

func (r *receiving) Read(p []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	if r.room == 0 || r.tags > maxTags {
		return 0, errFlood
	}
	if r.room > 0 {
		p = p[:min(int64(len(p)), r.room)]
	}
	r.w.run()
	n, err := r.body.Read(p)
	r.w.pause()
	if r.room > 0 {
		r.room -= int64(n)
		r.tags += bytes.Count(p[:n], []byte("<"))
	}
	if err != nil {
		err = r.w.cause(err)
		if err == io.EOF {
			r.w.done()
		}
	}
	return n, err
}

func (r *receiving) Close() error {
	r.w.cancel(nil) // or else Close reads on to keep the connection
	err := r.body.Close()
	r.w.done()
	return err
}
