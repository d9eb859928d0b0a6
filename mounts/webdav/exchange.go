package webdav

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/studio-b12/gowebdav"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/internal/trust"
	"cellgate/mounts"
)

const (
	maxHeader    = 256 << 10
	maxRest      = 64 << 10 // of an answer nobody reads, to keep the connection
	maxRedirects = 4
	patient      = 10 // times the timeout for what a server may work at in silence: copying, deleting and moving trees
	idle         = 60 * time.Second
	lately       = time.Second // no server closes a connection that was used so short a time ago
)

// newTransport returns the one way to the server. Life ends dials that are under way when the backend is closed.
func newTransport(life context.Context, s settings, d *dial.Dialer) (*http.Transport, error) {
	t := &http.Transport{
		TLSHandshakeTimeout: s.timeout, MaxIdleConnsPerHost: 2 * s.connections, IdleConnTimeout: idle, ExpectContinueTimeout: time.Second,
		MaxResponseHeaderBytes: maxHeader, DisableCompression: true, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
	}
	d.Timeout = s.timeout
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		inner, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn{inner}, nil
	}
	var err error
	t.TLSClientConfig, err = trust.Config(s.trust)
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{} // HTTP/1.1: a stalled transfer must not stall others
	return t, err
}

// conn is a connection that takes bodies in large pieces: the transport would copy 32 KiB at a time.
type conn struct{ net.Conn }

var _ io.ReaderFrom = conn{}

var pieces = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

func (c conn) ReadFrom(r io.Reader) (int64, error) {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{c.Conn}, struct{ io.Reader }{r}, *buf)
}

// request is what is asked of the server.
type request struct {
	method, path string // the path decoded
	header       http.Header
	body         *body // nil: none
	again        bool  // harmless when done twice, so that it may be sent again on a new connection
	long         bool  // the server may work at it in silence
	stream       bool  // the answer is read at the caller's leisure
}

// response is an answer whose body is watched. finish or Close must be called.
type response struct {
	*http.Response
	path string // where it was found after redirects
}

// finish takes the rest of the body, if it is short, so that the connection can be used again.
func (r *response) finish() {
	if r.ContentLength <= maxRest {
		r.Body.(*watched).hurry()
		io.CopyN(io.Discard, r.Body, maxRest+1)
	}
	r.Body.Close()
}

// do sends q and returns the answer, whatever its status. It signs, signs anew when the server asks for it, and follows redirects that stay
// on the server.
func (b *Backend) do(ctx context.Context, q request) (*response, error) {
	pool := b.short
	if q.stream {
		pool = b.streams
	}
	if err := pool.take(ctx, b.cfg.timeout); err != nil {
		return nil, b.trouble(ctx, nil, err)
	}
	signed := false
	for hops, lost := 0, 0; ; {
		resp, used, err := b.once(ctx, q, pool)
		// A connection that the server closed while nobody used it costs nothing but another one. The transport sees most of them.
		if errors.Is(err, errLost) && q.again && (q.body == nil || q.body.rewind()) && lost <= b.cfg.connections {
			lost++
			continue
		}
		if err != nil {
			pool.free()
			return nil, err
		}
		resend := q.body == nil || q.body.rewind()
		switch code := resp.StatusCode; {
		case code == http.StatusUnauthorized && !signed && resend && b.login.challenged(resp.Header.Values("Www-Authenticate"), used):
			signed = true
		case code >= 300 && code < 400 && resp.Header.Get("Location") != "": // mod_dir gives none when it is the Destination that lacks a slash
			to, err := b.redirected(q, resp)
			itself := err == nil && strings.TrimSuffix(to, "/") == strings.TrimSuffix(q.path, "/")
			if itself && (q.method == http.MethodGet || !resend) {
				return resp, nil // it is a folder: a page about that is of no use, and a body not for it
			}
			if hops++; err == nil && (!resend || hops > maxRedirects) {
				err = fault.New("mounts/webdav.request", "", fault.Unavailable, errors.New("the server redirects in circles"))
			}
			if err != nil {
				resp.finish()
				return nil, err
			}
			q.path = to
		default:
			return resp, nil
		}
		q.header.Del("Authorization") // it was for another path, or refused
		resp.Body.(*watched).keep()
		resp.finish()
	}
}

// redirected returns where to an answer leads. B01: never to another host, port or scheme.
func (b *Backend) redirected(q request, resp *response) (path string, err error) {
	refuse := func(why string) (string, error) {
		return "", fault.New("mounts/webdav.request", "", fault.Unavailable, errors.New(why))
	}
	to, err := url.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil || to.Path == "":
		return refuse("the server redirects to nowhere")
	case resp.StatusCode == http.StatusSeeOther: // RFC 9110 §15.4.4: to something else than what was asked for
		return refuse("the server redirects to a page: is it WebDAV at this address?")
	case to.Host != "" && !b.same(to):
		return refuse("the server redirects to another address, which is not followed: if that is right, put it into the option url")
	case to.RawQuery != "", q.header.Get("Destination") != "" && strings.TrimSuffix(to.Path, "/") != strings.TrimSuffix(q.path, "/"): // only one of two names
		return refuse("the server redirects to a page: is it WebDAV at this address?")
	}
	if !strings.HasPrefix(to.Path, "/") {
		return refuse("the server redirects to nowhere")
	}
	return to.Path, nil
}

// same reports whether u has the scheme, host and port of the server.
func (b *Backend) same(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	scheme := u.Scheme
	if scheme == "" {
		scheme = b.cfg.scheme
	}
	return scheme == b.cfg.scheme && strings.EqualFold(u.Hostname(), b.cfg.host) && port == b.cfg.port
}

// once sends q a single time. used is the signature it was sent with.
func (b *Backend) once(ctx context.Context, q request, pool slots) (resp *response, used string, err error) {
	own, cancel := context.WithCancelCause(ctx)
	forget := context.AfterFunc(b.life, func() { cancel(errClosed) })
	patience := b.cfg.timeout
	if q.long {
		patience *= patient
	}
	w := &watch{patience: patience, cancel: cancel}
	end := func() {
		w.pause()
		forget()
		cancel(nil)
	}
	req := &http.Request{
		Method: q.method, URL: &url.URL{Scheme: b.cfg.scheme, Host: b.cfg.authority(), Path: q.path, RawPath: gowebdav.PathEscape(q.path)},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: q.header.Clone(), Host: b.cfg.authority(),
	}
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", "cellgate")
	if q.again {
		req.Header["Idempotency-Key"] = []string{} // sends nothing, but tells the transport that it may send this again
	}
	if q.body != nil {
		q.body.attach(req, w)
	}
	if req.Header.Get("Authorization") == "" {
		if err := b.login.Authorize(nil, req, ""); err != nil {
			end()
			return nil, "", fault.New("mounts/webdav.request", "", fault.Unauthenticated, err)
		}
	}
	used = req.Header.Get("Authorization")
	reused := false
	traced := httptrace.WithClientTrace(own, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		reused = c.Reused
		if (!c.Reused || c.IdleTime < lately) && !b.login.undecided() {
			req.Header.Del("Expect")
		}
	}})
	w.resume()
	raw, err := b.transport.RoundTrip(req.WithContext(traced))
	w.pause()
	if err != nil {
		cause := context.Cause(own)
		end()
		if err = b.trouble(ctx, cause, err); reused && cause == nil && fault.KindOf(err) == fault.Unavailable {
			err = fault.New("mounts/webdav.request", "", fault.Unavailable, errors.Join(errLost, err))
		}
		return nil, used, err
	}
	if b.log.Enabled(ctx, slog.LevelDebug) {
		b.log.DebugContext(ctx, "asked webdav server", "mount", b.name, "method", q.method, "status", raw.StatusCode)
	}
	body := &watched{rc: raw.Body, w: w, b: b, ctx: ctx, own: own, end: end, free: pool.free}
	raw.Body = body
	return &response{Response: raw, path: q.path}, used, nil
}

// watch ends a request when nothing moves for too long. Time that is ours, or the client's, does not count.
type watch struct {
	patience time.Duration
	cancel   context.CancelCauseFunc
	mu       sync.Mutex
	timer    *time.Timer // guarded by mu
	running  bool        // guarded by mu
}

// resume starts the clock at its beginning.
func (w *watch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = true
	if w.timer == nil {
		w.timer = time.AfterFunc(w.patience, w.expire)
		return
	}
	w.timer.Reset(w.patience)
}

func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = false
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watch) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running {
		w.cancel(errStalled)
	}
}

// watched is the body of an answer. Its errors are faults.
type watched struct {
	rc   io.ReadCloser
	w    *watch
	b    *Backend
	ctx  context.Context // the caller's
	own  context.Context
	end  func()
	free func() // gives the slot back; nil when it is kept
	once sync.Once
}

func (r *watched) Read(p []byte) (int, error) {
	r.w.resume()
	n, err := r.rc.Read(p)
	r.w.pause()
	if err != nil && err != io.EOF {
		if errors.Is(err, io.ErrUnexpectedEOF) && r.own.Err() == nil {
			err = errCut
		}
		err = r.b.trouble(r.ctx, context.Cause(r.own), err)
	}
	return n, err
}

// keep makes Close keep the slot, for the same call goes on.
func (r *watched) keep() { r.free = nil }

// hurry ends the request soon, whatever comes.
func (r *watched) hurry() {
	timer := time.AfterFunc(min(2*time.Second, r.b.cfg.timeout), r.end)
	end := r.end
	r.end = func() { timer.Stop(); end() }
}

func (r *watched) Close() error {
	r.once.Do(func() {
		r.end()
		r.rc.Close()
		if r.free != nil {
			r.free()
		}
	})
	return nil
}

// standIn is the host the library is told: it would escape the brackets of an IPv6 address.
const standIn = "http://storage"

// library is the transport under one call of gowebdav. It carries the context, and turns every answer but plain success into an error, for
// the library reads some as success, and does more than it was told after others.
type library struct {
	b      *Backend
	ctx    context.Context
	header http.Header
	long   bool
	err    error // of the last request: the library loses some
}

var _ http.RoundTripper = (*library)(nil)

func (l *library) RoundTrip(r *http.Request) (*http.Response, error) {
	q := request{method: r.Method, path: r.URL.Path, header: r.Header, long: l.long}
	if to := r.Header.Get("Destination"); to != "" {
		q.header.Set("Destination", l.b.cfg.scheme+"://"+l.b.cfg.authority()+strings.TrimPrefix(to, standIn))
	}
	for k, v := range l.header {
		q.header[k] = v
	}
	resp, err := l.b.do(l.ctx, q)
	if err != nil {
		l.err = err
		return nil, err
	}
	defer resp.finish()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return &http.Response{StatusCode: resp.StatusCode, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	case http.StatusMultiStatus: // RFC 4918 §9.6.1: of a DELETE and the like it always tells failures
		l.err = l.b.firstFailure(resp)
	default:
		l.err = l.b.status(resp.StatusCode)
	}
	return nil, l.err
}

// tree runs one request of the library.
func (b *Backend) tree(ctx context.Context, long bool, header http.Header, call func(c *gowebdav.Client) error) error {
	l := &library{b: b, ctx: ctx, header: header, long: long}
	c := gowebdav.NewAuthClient(standIn, b.signer)
	c.SetTransport(l)
	if err := call(c); l.err == nil {
		return err
	}
	return l.err
}

func (b *Backend) mkcol(ctx context.Context, name string) error {
	return b.tree(ctx, false, nil, func(c *gowebdav.Client) error { return c.Mkdir(b.path(name), 0) })
}

// remove deletes path with all below it, but with shallow only a file or what the server takes for one.
func (b *Backend) remove(ctx context.Context, path string, shallow bool) error {
	var header http.Header
	if shallow {
		header = http.Header{"Depth": {"0"}}
	}
	call := func() error {
		return b.tree(ctx, !shallow, header, func(c *gowebdav.Client) error { return c.RemoveAll(path) })
	}
	err := call()
	if errors.Is(err, errLost) { // it may be done or not
		if err = call(); statusOf(err) == http.StatusNotFound {
			return nil
		}
	}
	return err
}

func (b *Backend) move(ctx context.Context, from, to string, over bool) error {
	return b.tree(ctx, true, nil, func(c *gowebdav.Client) error { return c.Rename(from, to, over) })
}

// copyFile copies a single file; a folder without what is in it.
func (b *Backend) copyFile(ctx context.Context, from, to string, over bool) error {
	return b.tree(ctx, true, http.Header{"Depth": {"0"}}, func(c *gowebdav.Client) error { return c.Copy(from, to, over) })
}

// parent is the folder that name is in.
func parent(name string) string {
	dir, _ := mounts.Split(name)
	return dir
}
