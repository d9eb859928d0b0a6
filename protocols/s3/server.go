package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/clock"
	"cellgate/policy"
	"cellgate/policy/identity"
)

// Buckets makes and deletes buckets. It decides who may.
type Buckets interface {
	Create(ctx context.Context, sub *policy.Subject, name string) error // Exist when the name is taken, Denied
	Delete(ctx context.Context, sub *policy.Subject, name string) error
}

// Config is what a handler is made of.
type Config struct {
	Gateway  *gateway.Gateway  // required
	Identity *identity.Service // required
	Region   string            // that requests are signed for, "us-east-1" when empty
	Hosts    []string          // base domains under which "bucket.domain" names a bucket; "domain/bucket" always does
	Buckets  Buckets           // nil: nobody may make or delete buckets
	CORS     []CORSRule        // what scripts of other origins may do
	Logger   *slog.Logger      // nil discards
	Clock    *clock.Clock      // nil is the real one

	ClientAddr func(*http.Request) netip.Addr // who asks, as far as proxies are trusted; nil: the peer of the connection
	RequestID  func(*http.Request) string     // nil: a random one

	// QuickTags leaves the MD5 out of a PUT whose client declares another checksum, at half the work: its entity tag is then opaque.
	QuickTags bool
	Limits    Limits
}

// Limits bound what clients can make us hold. A zero field means its default.
type Limits struct {
	Requests int           // at a time, 2048; more are SlowDown
	XML      int64         // bytes of an XML body, 1 MiB; four times as much for lists of keys and parts
	Object   int64         // bytes of one PUT, 5 TiB
	Form     int64         // bytes of the fields of a form before its file, 64 KiB
	Listed   int           // entries of sorted listings that are remembered between pages, 400,000
	Folder   int           // entries of one folder that are, 200,000
	Stall    time.Duration // how long a client may make no progress, 45 s; negative: the server around the handler sees to that
}

// handler serves S3. Safe for concurrent use.
type handler struct {
	cfg      Config
	hosts    []string // lower case
	sessions sessions
	keys     signingKeys
	listings *listings
	folders  folders
	running  chan struct{}
}

// New returns a handler. It fails when something required is missing.
func New(cfg Config) (http.Handler, error) {
	if cfg.Gateway == nil || cfg.Identity == nil {
		return nil, errors.New("s3: Config needs Gateway and Identity")
	}
	setDefault(&cfg.Region, "us-east-1")
	setDefault(&cfg.Limits.Requests, 2048)
	setDefault(&cfg.Limits.XML, 1<<20)
	setDefault(&cfg.Limits.Object, 5<<40)
	setDefault(&cfg.Limits.Form, 64<<10)
	setDefault(&cfg.Limits.Listed, 400_000)
	setDefault(&cfg.Limits.Folder, 200_000)
	setDefault(&cfg.Limits.Stall, 45*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientAddr == nil {
		cfg.ClientAddr = peer
	}
	if cfg.RequestID == nil {
		cfg.RequestID = func(*http.Request) string { return "" }
	}
	h := &handler{cfg: cfg, running: make(chan struct{}, cfg.Limits.Requests)}
	h.listings = newListings(cfg.Gateway.Events(), cfg.Clock, cfg.Limits.Listed)
	for _, host := range cfg.Hosts {
		if host == "" || strings.ContainsAny(host, "/:* ") {
			return nil, errors.New("s3: Hosts are names of domains")
		}
		h.hosts = append(h.hosts, strings.ToLower(strings.Trim(host, ".")))
	}
	for i := range cfg.CORS {
		if err := cfg.CORS[i].check(); err != nil {
			return nil, err
		}
	}
	return h, nil
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
	h      *handler
	w      response
	r      *http.Request
	body   body
	id     string
	query  query
	client gateway.Client
	sub    *policy.Subject
	s      *gateway.Session
	pay    payload // what the body is
	bucket string
	key    string
}

// ServeHTTP answers one request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{h: h, r: r, id: h.cfg.RequestID(r)}
	if q.id == "" {
		q.id = rand.Text()[:16]
	}
	if r.ContentLength == 0 && strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		goOn(w)
	}
	hd := w.Header()
	hd["X-Amz-Request-Id"] = []string{q.id}
	hd["X-Amz-Id-2"] = hdrHostID
	hd["Server"] = hdrServer
	q.w.start(w, h.cfg.Limits.Stall)
	q.body.start(r.Body, &q.w)
	defer q.w.finish(r)
	select {
	case h.running <- struct{}{}:
		defer func() { <-h.running }()
	default:
		q.fail(refuse(errSlowDown))
		return
	}
	if err := q.serve(); err != nil {
		q.fail(err)
	}
}

// goOn sends "100 Continue" to a client that waits for it before it sends nothing. RFC 9110 §10.1.1 lets it be left out, as net/http does, but
// boto3 takes the next answer on the connection apart wrongly then, and waits for a minute.
func goOn(w http.ResponseWriter) {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			w.WriteHeader(http.StatusContinue)
			return
		}
		w = u.Unwrap() // whoever counts statuses need not know
	}
}

// hostID stands where Amazon tells which of its hosts answered.
const hostID = "cellgate"

// Values of headers that are the same in every answer. Shared, so nobody may append to them.
var (
	hdrHostID  = []string{hostID}
	hdrServer  = []string{"cellgate"}
	hdrBytes   = []string{"bytes"}
	hdrNosniff = []string{"nosniff"}
	hdrSandbox = []string{"default-src 'none'; frame-ancestors 'none'; sandbox"}
	hdrXML     = []string{"application/xml"}
)

func (q *request) ctx() context.Context { return q.r.Context() }

// now is the time of the configured clock.
func (h *handler) now() time.Time { return h.cfg.Clock.Now() }

// serve does what comes before every operation.
func (q *request) serve() error {
	q.allowOrigin()
	if q.r.Method == http.MethodOptions {
		return q.preflight()
	}
	var err error
	if q.query, err = parseQuery(q.r.URL.RawQuery); err != nil {
		return err
	}
	q.bucket, q.key = q.h.target(q.r)
	op, err := q.operation()
	if err != nil {
		return err
	}
	if op.form {
		return op.serve(q) // the form brings the signature along
	}
	if err := q.login(); err != nil {
		return err
	}
	return op.serve(q)
}

// target returns which bucket and key the request is about. net/http has decoded the path exactly once.
func (h *handler) target(r *http.Request) (bucket, key string) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if bucket, ok := h.virtual(r.Host); ok {
		return bucket, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

// virtual returns the bucket that a host name names (virtual-host style), if it does.
func (h *handler) virtual(host string) (bucket string, ok bool) {
	if len(h.hosts) == 0 {
		return "", false
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, base := range h.hosts {
		if rest, ok := strings.CutSuffix(host, "."+base); ok && rest != "" && !strings.Contains(rest, ".") {
			return rest, true
		}
	}
	return "", false
}

// bucketPath returns where the bucket lies. A name that no workspace can have is NoSuchBucket.
func (q *request) bucketPath() (gateway.Path, error) {
	p, err := gateway.ParsePath(q.bucket)
	if err != nil || !validBucket(q.bucket) {
		return p, refuse(errNoSuchBucket)
	}
	return p, nil
}

// validBucket reports whether a workspace can be called so.
func validBucket(name string) bool {
	if len(name) < 3 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// reply sends an XML document.
func (q *request) reply(status int, body []byte) error {
	hd := q.w.Header()
	hd["Content-Type"] = hdrXML
	hd["Content-Length"] = []string{itoa(int64(len(body)))}
	q.w.WriteHeader(status)
	_, err := q.w.Write(body)
	return err
}

// done answers without a body.
func (q *request) done(status int) error {
	if status != http.StatusNoContent {
		q.w.Header()["Content-Length"] = []string{"0"}
	}
	q.w.WriteHeader(status)
	return nil
}
