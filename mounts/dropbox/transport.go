package dropbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf16"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/trust"
	"cellgate/mounts"
)

// transport carries the calls of the Dropbox library: it adds the token where one is due, sends again what may be sent again, waits when told
// to, and turns refusals into *refusal, whose texts are bounded and hold no secret.
type transport struct {
	prefix  string // of the path of every route
	timeout time.Duration
	api     *http.Transport // calls
	upload  *http.Transport
	read    *http.Transport // downloads, which their readers may hold for long
	notify  *http.Transport // watches
	tokens  *tokens
	logger  *slog.Logger
}

const (
	longestAnswer = 16 << 20         // of a call, in bytes; a page of a listing has about one
	longestCall   = 5 * time.Minute  // of a call, even when bytes come all the time
	longpoll      = 30 * time.Second // Dropbox adds up to 90 s
	longpollSlack = 90 * time.Second
)

func newTransport(cfg mounts.Config, s settings, logger *slog.Logger) (*transport, error) {
	tls, err := trust.Config(s.trust)
	if err != nil {
		return nil, err
	}
	to := func(timeout time.Duration, connections int) *http.Transport {
		return &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				host, _, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				d := cfg.Dialer(host)
				d.Timeout = s.timeout
				conn, err := d.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &progress{Conn: conn, timeout: timeout}, nil
			},
			TLSClientConfig: tls.Clone(), TLSHandshakeTimeout: s.timeout, MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections,
			IdleConnTimeout: min(timeout/2, time.Minute), MaxResponseHeaderBytes: 256 << 10, ReadBufferSize: 32 << 10, WriteBufferSize: 64 << 10,
		}
	}
	t := &transport{
		timeout: s.timeout, api: to(s.timeout, s.connections), upload: to(s.timeout, s.connections), read: to(s.timeout, s.connections),
		notify: to(longpoll+longpollSlack+s.timeout, 0), logger: logger,
	}
	if s.base != nil {
		t.prefix = s.base.Path
	}
	t.prefix += "/2/"
	t.read.DisableCompression = true // ranges are of the content as it is
	t.tokens = newTokens(s, &http.Client{Transport: t.api, CheckRedirect: noRedirect})
	return t, nil
}

func (t *transport) close() {
	t.tokens.close()
	for _, h := range []*http.Transport{t.api, t.upload, t.read, t.notify} {
		h.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper for requests that the Dropbox library made.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	route, _ := strings.CutPrefix(req.URL.Path, t.prefix)
	body, err := rewindable(req)
	if err != nil {
		return nil, err
	}
	arg := escape(req.Header.Get("Dropbox-API-Arg"))
	c := call{route: route, repeatable: repeatable(route, arg)}
	var again pause
	for renewed, redialled := false, false; ; {
		resp, token, err := t.once(req, c, arg, body)
		if err != nil && c.repeatable && !redialled && ctx.Err() == nil && brokenOff(err) {
			redialled = true
			continue
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return checked(route, resp)
		}
		no := t.refused(route, resp)
		if no.status == http.StatusUnauthorized && !renewed && no.expired() && t.tokens.drop(token) {
			renewed = true
			continue
		}
		wait, ok := again.next(ctx, no, c, t.timeout)
		if !ok {
			return nil, no
		}
		t.logger.Debug("dropbox asks to wait", "route", route, "status", no.status, "wait", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

// brokenOff reports whether a connection ended before its answer. Where it was an idle one, net/http has tried another already.
func brokenOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// checked returns resp, but not a download without metadata: of that the library would leave the body open.
func checked(route string, resp *http.Response) (*http.Response, error) {
	if route == "files/download" && json.Unmarshal([]byte(resp.Header.Get("Dropbox-API-Result")), new(*files.FileMetadata)) != nil {
		resp.Body.Close()
		return nil, errAnswer
	}
	return resp, nil
}

// call is what is known of a request.
type call struct {
	route      string
	repeatable bool // doing it twice is like doing it once
}

// repeatable says which calls may be sent again when nobody knows whether they were heard. An upload session takes a block at a given place
// once more.
func repeatable(route, arg string) bool {
	switch route {
	case "files/list_folder", "files/list_folder/continue", "files/list_folder/get_latest_cursor", "files/list_folder/longpoll", "files/get_metadata",
		"files/download", "files/upload_session/start", "files/upload_session/append_v2", "users/get_space_usage":
		return true
	case "files/upload":
		return strings.Contains(arg, `"mode":{".tag":"overwrite"}`)
	}
	return false
}

// once sends the request with the token of the moment.
func (t *transport) once(req *http.Request, c call, arg string, body func() io.ReadCloser) (resp *http.Response, token string, err error) {
	ctx, cause := context.WithCancelCause(req.Context())
	cancel := func() { cause(nil) }
	next, limit := t.api, int64(longestAnswer)
	switch {
	case c.route == "files/list_folder/longpoll":
		next = t.notify
	case c.route == "files/download":
		next, limit = t.read, -1
	case strings.HasPrefix(c.route, "files/upload"):
		next = t.upload
	default:
		longest := time.AfterFunc(longestCall, func() { cause(os.ErrDeadlineExceeded) })
		cancel = func() { longest.Stop(); cause(nil) }
	}
	// Waiting for a connection ends too, even where callers keep all of them.
	waiting := time.AfterFunc(2*t.timeout, func() { cause(errConnections) })
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { waiting.Stop() }})
	out := req.Clone(ctx)
	out.Header.Del("Authorization")
	if arg != "" {
		out.Header.Set("Dropbox-API-Arg", arg)
	}
	if next != t.notify { // Dropbox's notify host takes no token
		if token, err = t.tokens.access(ctx); err != nil {
			err = because(ctx, req.Context(), err)
			waiting.Stop()
			cancel()
			return nil, "", err
		}
		out.Header.Set("Authorization", "Bearer "+token)
	}
	var sent sync.WaitGroup // bodies that net/http still reads, maybe after its answer: their buffers are used again
	out.GetBody = func() (io.ReadCloser, error) { return lend(body(), &sent), nil }
	out.Body, _ = out.GetBody()
	if c.repeatable {
		out.Header["Idempotency-Key"] = nil // net/http: may be sent again over a new connection; nothing is sent of it
	}
	resp, err = next.RoundTrip(out)
	waiting.Stop()
	if err != nil {
		err = because(ctx, req.Context(), err)
		cancel()
		sent.Wait()
		return nil, token, err
	}
	resp.Body = &answer{ReadCloser: resp.Body, left: limit, closed: func() { cancel(); sent.Wait() }, resp: resp, why: func(err error) error {
		return because(ctx, req.Context(), err)
	}}
	return resp, token, nil
}

var errConnections = errors.New("all connections are in use; see the option connections")

// because returns why ctx ended where that was our doing and not the caller's, else err.
func because(ctx, caller context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && caller.Err() == nil {
		return cause
	}
	return err
}

// rewindable returns a maker of the request's body: the library gives one only for uploads. What it sends lies in memory anyway.
func rewindable(req *http.Request) (func() io.ReadCloser, error) {
	if req.Body == nil {
		return func() io.ReadCloser { return http.NoBody }, nil
	}
	defer req.Body.Close()
	if req.GetBody != nil {
		return func() io.ReadCloser { b, _ := req.GetBody(); return b }, nil
	}
	all, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	return func() io.ReadCloser { return io.NopCloser(bytes.NewReader(all)) }, nil
}

// escape makes JSON fit for a header: Dropbox demands ASCII there, and the library does not see to it.
func escape(arg string) string {
	plain := strings.IndexFunc(arg, func(r rune) bool { return r >= 0x7f }) < 0
	if plain {
		return arg
	}
	var out strings.Builder
	for _, r := range arg {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		}
	}
	return out.String()
}

// answer is a body of bounded length that remembers what it came with.
type answer struct {
	io.ReadCloser
	left   int64 // -1: not bounded, the reader counts itself
	closed func()
	resp   *http.Response
	why    func(error) error
}

var errLong = errors.New("the answer is too long")

func (a *answer) Read(p []byte) (int, error) {
	if a.left >= 0 && int64(len(p)) > a.left+1 {
		p = p[:a.left+1]
	}
	n, err := a.ReadCloser.Read(p)
	if a.left >= 0 {
		if a.left -= int64(n); a.left < 0 {
			a.left = 0
			return 0, errLong
		}
	}
	if err != nil && err != io.EOF {
		err = a.why(err)
	}
	return n, err
}

func (a *answer) Close() error {
	defer a.closed()
	return a.ReadCloser.Close()
}

// lend returns body, which all waits for until it is closed.
func lend(body io.ReadCloser, all *sync.WaitGroup) io.ReadCloser {
	if body == http.NoBody {
		return body
	}
	all.Add(1)
	return &lent{ReadCloser: body, back: sync.OnceFunc(all.Done)}
}

type lent struct {
	io.ReadCloser
	back func()
}

func (l *lent) Close() error {
	defer l.back()
	return l.ReadCloser.Close()
}

// WriteTo spares a copy of large blocks.
func (l *lent) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, l.ReadCloser) }

// progress is a connection over which nothing may stand still for longer than timeout. A write gives the read that waits for its answer new
// time; a connection that idles is closed before that, see IdleConnTimeout.
type progress struct {
	net.Conn
	timeout time.Duration
}

func (c *progress) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *progress) Write(p []byte) (int, error) {
	const piece = 256 << 10 // so that a long write over a slow line counts as progress
	for done := 0; ; {
		if err := c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(p[done:min(done+piece, len(p))])
		if done += n; err != nil || done >= len(p) {
			return done, err
		}
	}
}

// pause decides how long to wait before a refused call is tried again.
type pause struct {
	tries  int
	waited time.Duration
}

// next returns false when the call has failed for good: it was no passing refusal, or waiting would take longer than patience or ctx.
func (p *pause) next(ctx context.Context, no *refusal, c call, patience time.Duration) (time.Duration, bool) {
	wait := 250 * time.Millisecond << p.tries
	switch {
	case no.status == http.StatusTooManyRequests, no.status == http.StatusServiceUnavailable && no.wait > 0:
		wait = max(wait, no.wait)
	case no.has("too_many_write_operations"), no.has("too_many_requests"):
		wait = max(wait, no.wait)
	case no.status >= 500 && c.repeatable && p.tries < 2:
	default:
		return 0, false
	}
	deadline, bounded := ctx.Deadline()
	if p.tries >= 6 || p.waited+wait > patience || bounded && time.Until(deadline) < wait {
		return 0, false
	}
	p.tries++
	p.waited += wait
	return wait, true
}
