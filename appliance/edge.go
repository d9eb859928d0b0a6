package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// edge is the outermost handler: it knows who is really calling, numbers the request, paces it, counts it and logs it.
type edge struct {
	next    http.Handler
	cfg     *Config
	log     *slog.Logger
	metrics *metrics
	door    string // what all requests are for, "" where the path says it
	bufs    sync.Pool
}

func newEdge(next http.Handler, cfg *Config, log *slog.Logger, m *metrics) *edge {
	return &edge{next: next, cfg: cfg, log: log, metrics: m, bufs: sync.Pool{New: func() any { return new([writeStep]byte) }}}
}

const requestIDHeader = "X-Request-Id"

func (e *edge) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := e.identify(r)
	rw.Header().Set(requestIDHeader, id)

	ctl := http.NewResponseController(rw)
	w := &response{ResponseWriter: rw, ctl: ctl, stall: e.cfg.Limits.StallTimeout, direct: r.TLS == nil && r.ProtoMajor == 1, bufs: &e.bufs}
	in := &body{ReadCloser: r.Body, ctl: ctl, stall: e.cfg.Limits.StallTimeout, lack: leastProgress}
	if r.Body != nil && r.Body != http.NoBody {
		// A copy, because net/http looks at the original's body to tell whether a client still waits for "100 Continue".
		r = r.WithContext(r.Context())
		r.Body = in
	}
	door := e.door
	if door == "" {
		door = doorOf(r.URL.Path)
	}
	e.metrics.inFlight.Inc()
	defer func() {
		e.metrics.inFlight.Dec()
		failure := recover()
		if failure != nil && failure != http.ErrAbortHandler {
			e.log.Error("panic", "id", id, "value", failure, "stack", string(debug.Stack()))
			if w.status == 0 {
				http.Error(w, "internal error, see the log of the server at request "+id, http.StatusInternalServerError)
				failure = nil
			}
		}
		// What net/http still has to send, or to read and throw away, gets a last deadline; it sets its own for the next request.
		w.until = time.Time{}
		w.extend()
		if !in.until.IsZero() {
			_ = ctl.SetReadDeadline(time.Now().Add(w.stall))
		}
		e.done(r, w, in, id, door, time.Since(start), failure != nil)
		if failure != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	e.next.ServeHTTP(w, r)
}

// identify sets the request's id and the client's address, which only a trusted proxy may tell.
func (e *edge) identify(r *http.Request) string {
	id := ""
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && within(e.cfg.TrustedProxies, peer.Addr()) {
		id = r.Header.Get(requestIDHeader)
		if addr, ok := forwarded(r.Header.Values("X-Forwarded-For"), e.cfg.TrustedProxies); ok {
			r.RemoteAddr = netip.AddrPortFrom(addr, 0).String()
		}
	}
	if !plainID(id) {
		var b [8]byte
		rand.Read(b[:])
		id = hex.EncodeToString(b[:])
	}
	r.Header.Set(requestIDHeader, id)
	return id
}

// forwarded returns the nearest address in the X-Forwarded-For chain that is not a trusted proxy: what stands before it is hearsay.
func forwarded(headers []string, trusted []Network) (netip.Addr, bool) {
	chain := strings.Split(strings.Join(headers, ","), ",")
	for i := len(chain) - 1; i >= 0; i-- {
		addr, err := netip.ParseAddr(strings.TrimSpace(chain[i]))
		if err != nil {
			return netip.Addr{}, false
		}
		if i == 0 || !within(trusted, addr) {
			return addr.Unmap().WithZone(""), true
		}
	}
	return netip.Addr{}, false
}

func plainID(id string) bool {
	return id != "" && len(id) <= 64 && strings.IndexFunc(id, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	}) < 0
}

func (e *edge) done(r *http.Request, w *response, in *body, id, door string, took time.Duration, aborted bool) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	e.metrics.request(door, r.Method, w.status, in.read, w.sent, took)
	level := slog.LevelInfo
	if w.status >= http.StatusInternalServerError && w.status != http.StatusInsufficientStorage {
		level = slog.LevelWarn
	}
	ctx := context.WithoutCancel(r.Context())
	if (level == slog.LevelInfo && !e.cfg.Log.Access) || !e.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("id", id), slog.String("method", r.Method), slog.String("path", loggedPath(r.URL.Path)), slog.Int("status", w.status),
		slog.Int64("in", in.read), slog.Int64("out", w.sent), slog.Duration("took", took), slog.String("addr", r.RemoteAddr),
		slog.String("agent", r.UserAgent()),
	}
	if w.user != "" {
		attrs = append(attrs, slog.String("user", w.user))
	}
	if aborted {
		attrs = append(attrs, slog.Bool("aborted", true))
	}
	e.log.LogAttrs(ctx, level, requestLine, attrs...)
}

// loggedPath keeps the token of a public link, which is all one needs to use it, out of the log.
func loggedPath(p string) string {
	if rest, ok := strings.CutPrefix(p, "/public/"); ok && rest != "" {
		return "/public/…"
	}
	return p
}

// doorOf names what a request is for, with few values, for the metrics.
func doorOf(path string) string {
	switch {
	case path == "/dav" || strings.HasPrefix(path, "/dav/"):
		return "webdav"
	case path == "/healthz" || path == "/readyz" || path == "/metrics":
		return "health"
	}
	return "web"
}
