package webdav

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/clock"
	"cellgate/policy/identity"
)

// Config is what a Handler is made of.
type Config struct {
	Gateway  *gateway.Gateway  // required
	Identity *identity.Service // required
	Prefix   string            // where the tree hangs, "/dav" when empty
	Realm    string            // of the login, "cellgate" when empty
	Logger   *slog.Logger      // nil discards
	Clock    *clock.Clock      // nil is the real one

	ClientAddr func(*http.Request) netip.Addr // who asks, as far as proxies are trusted; nil: the peer of the connection
	Host       func(*http.Request) string     // what clients call this server; nil: the Host header
	RequestID  func(*http.Request) string     // nil: none

	HideMacFiles bool          // neither show nor accept "._*" and ".DS_Store"
	MaxXML       int64         // bytes of an XML body, 1 MiB when 0
	Stall        time.Duration // how long a client may make no progress, 45 s when 0; negative: the server around the handler sees to that
}

// Handler serves WebDAV. Safe for concurrent use.
type Handler struct {
	cfg       Config
	prefix    string // "/dav", "" for the root
	challenge string
	sessions  sessions
}

var _ http.Handler = (*Handler)(nil)

// New returns a handler. It fails when something required is missing.
func New(cfg Config) (*Handler, error) {
	if cfg.Gateway == nil || cfg.Identity == nil {
		return nil, errors.New("webdav: Config needs Gateway and Identity")
	}
	setDefault(&cfg.Prefix, "/dav")
	setDefault(&cfg.Realm, "cellgate")
	setDefault(&cfg.MaxXML, 1<<20)
	setDefault(&cfg.Stall, 45*time.Second)
	if !strings.HasPrefix(cfg.Prefix, "/") || strings.ContainsAny(cfg.Realm, "\"\\\r\n") {
		return nil, errors.New("webdav: Prefix starts with a slash, and Realm has neither quotes nor line breaks")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientAddr == nil {
		cfg.ClientAddr = peer
	}
	if cfg.Host == nil {
		cfg.Host = func(r *http.Request) string { return r.Host }
	}
	if cfg.RequestID == nil {
		cfg.RequestID = func(*http.Request) string { return "" }
	}
	return &Handler{
		cfg:       cfg,
		prefix:    strings.TrimRight(cfg.Prefix, "/"),
		challenge: `Basic realm="` + cfg.Realm + `", charset="UTF-8"`, // RFC 7617 §2.1
	}, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func peer(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr().Unmap()
}

// request is one exchange, from the wire to the core and back.
type request struct {
	h      *Handler
	w      response
	r      *http.Request
	body   body
	client gateway.Client
	s      *gateway.Session
	path   gateway.Path
	ifh    ifHeader
	states map[string]state // by the tags of ifh
}

// verbs is what can be asked. Methods not in it are refused before anything else is looked at.
var verbs = map[string]func(*request) error{
	"OPTIONS": (*request).options, "GET": (*request).get, "HEAD": (*request).get, "PUT": (*request).put, "PATCH": (*request).patch,
	"DELETE": (*request).remove, "MKCOL": (*request).mkcol, "COPY": (*request).copyOrMove, "MOVE": (*request).copyOrMove,
	"PROPFIND": (*request).propfind, "PROPPATCH": (*request).proppatch, "LOCK": (*request).lock, "UNLOCK": (*request).unlock,
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{h: h, r: r}
	q.w.start(w, h.cfg.Stall)
	q.body.start(r.Body, &q.w)
	defer q.w.finish(r)
	if err := q.serve(); err != nil {
		q.fail(err)
	}
}

func (q *request) ctx() context.Context { return q.r.Context() }

// serve does what comes before every verb, in the order that the package comment names.
func (q *request) serve() error {
	verb, ok := verbs[q.r.Method]
	if !ok {
		return q.unknownMethod()
	}
	var err error
	if q.path, err = q.h.target(q.r); err != nil {
		return err
	}
	// Windows, Finder and Office ask what this is before they have a password.
	if q.r.Method == http.MethodOptions && q.r.Header.Get("Authorization") == "" {
		return q.options()
	}
	if v := q.r.Header["If"]; len(v) > 0 {
		if q.ifh, err = parseIf(strings.Join(v, " ")); err != nil {
			return refuse(http.StatusBadRequest, err.Error())
		}
	}
	if err := q.login(); err != nil {
		return err
	}
	if q.h.hides(q.path) {
		return q.refuseHidden()
	}
	if err := q.checkIf(); err != nil {
		return err
	}
	return verb(q)
}

// unknownMethod tells methods of HTTP and DAV that we do not have (405) from words that are none (501, RFC 9110 §9.1).
func (q *request) unknownMethod() error {
	switch q.r.Method {
	case "POST", "TRACE", "CONNECT", "REPORT", "SEARCH", "ACL", "VERSION-CONTROL", "CHECKIN", "CHECKOUT", "UNCHECKOUT", "MKWORKSPACE", "UPDATE",
		"LABEL", "MERGE", "BASELINE-CONTROL", "MKACTIVITY", "ORDERPATCH", "BIND", "UNBIND", "REBIND", "MKCALENDAR", "MKREDIRECTREF", "NOTIFY",
		"SUBSCRIBE", "UNSUBSCRIBE", "POLL", "BMOVE", "BCOPY", "BDELETE", "BPROPFIND", "BPROPPATCH":
		return refuse(http.StatusMethodNotAllowed, "method not allowed")
	}
	return refuse(http.StatusNotImplemented, "unknown method")
}

// hidden reports whether name is one of the files that Finder strews everywhere and the configuration hides.
func (h *Handler) hidden(name string) bool {
	return h.cfg.HideMacFiles && (strings.HasPrefix(name, "._") || name == ".DS_Store")
}

// hides reports whether p is hidden, or lies in something that is.
func (h *Handler) hides(p gateway.Path) bool {
	for ; h.cfg.HideMacFiles && !p.IsRoot(); p = p.Parent() {
		if h.hidden(p.Base()) {
			return true
		}
	}
	return false
}

// refuseHidden makes hidden names absent for readers and forbidden for writers: Finder takes both in good part.
func (q *request) refuseHidden() error {
	switch q.r.Method {
	case "PUT", "MKCOL", "LOCK", "PATCH", "PROPPATCH":
		return refuse(http.StatusForbidden, "files of this name are not kept here")
	}
	return refuse(http.StatusNotFound, "does not exist")
}

// noBody refuses a body where RFC 4918 defines none, so that a client does not believe it meant something (§8.4: 415).
func (q *request) noBody() error {
	if q.r.ContentLength == 0 {
		return nil
	}
	var one [1]byte
	if q.r.ContentLength < 0 {
		if n, _ := q.body.Read(one[:]); n == 0 {
			return nil
		}
	}
	return refuse(http.StatusUnsupportedMediaType, "this method takes no body")
}
