// Package dropboxtest is a Dropbox service in memory, for tests and benchmarks of what speaks to Dropbox. It answers the routes that a
// client of files needs as the real one does, as far as its public description and experience tell: names without case, revisions, content
// hashes, write modes with their conflicts, cursors that can be lost, upload sessions, limits, access tokens that end.
//
// What is easily got wrong by a client is demanded: ASCII in the header Dropbox-API-Arg, no token at the notify host, blocks of 4 MiB in
// concurrent sessions. Faults can be injected, every request is counted, and the tree can be changed from outside.
package dropboxtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// Config of a service; the zero value is a Dropbox without a quota and with the limits of the real one.
type Config struct {
	AppKey, AppSecret, RefreshToken string        // made up when empty
	TokenLife                       time.Duration // of access tokens; 4 h when 0
	Quota                           int64         // bytes of all files, 0: none
	UploadLimit                     int64         // bytes of one request; 150 MB when 0
	Page                            int           // most entries of a listing's page; 2000 when 0
	Latency                         time.Duration // before each answer
	Backoff                         int           // seconds that longpoll asks clients to wait
}

// Service is the handler. It is safe for concurrent use.
type Service struct {
	cfg  Config
	tree *tree

	mu       sync.Mutex
	tokens   map[string]time.Time // access tokens and when they end; guarded by mu
	revoked  bool                 // guarded by mu
	counts   map[string]int       // requests by route; guarded by mu
	faults   []*Fault             // guarded by mu
	sessions map[string]*session  // guarded by mu
	stop     chan struct{}        // ends what waits
}

// Server is a Service that listens on this machine.
type Server struct {
	*Service
	URL                             string // for the option api
	AppKey, AppSecret, RefreshToken string
	http                            *httptest.Server
}

// New returns a service.
func New(cfg Config) *Service {
	def := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	def(&cfg.AppKey, "key"+random())
	def(&cfg.AppSecret, "secret"+random())
	def(&cfg.RefreshToken, "refresh"+random())
	if cfg.TokenLife == 0 {
		cfg.TokenLife = 4 * time.Hour
	}
	if cfg.UploadLimit == 0 {
		cfg.UploadLimit = 150 << 20
	}
	if cfg.Page == 0 {
		cfg.Page = 2000
	}
	return &Service{
		cfg: cfg, tree: newTree(cfg.Quota), tokens: map[string]time.Time{}, counts: map[string]int{}, sessions: map[string]*session{},
		stop: make(chan struct{}),
	}
}

func random() string { return strings.ToLower(rand.Text())[:16] }

// Start runs a service on a free port of this machine until the test ends.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	s := New(cfg)
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		h.CloseClientConnections()
		h.Close()
	})
	return &Server{Service: s, URL: h.URL, AppKey: s.cfg.AppKey, AppSecret: s.cfg.AppSecret, RefreshToken: s.cfg.RefreshToken, http: h}
}

// CloseConnections cuts all connections of clients.
func (s *Server) CloseConnections() { s.http.CloseClientConnections() }

// Close ends requests that wait.
func (s *Service) Close() { close(s.stop) }

// AccessToken makes a token as the token route would.
func (s *Service) AccessToken() string {
	token := "sl." + random() + random()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = time.Now().Add(s.cfg.TokenLife)
	return token
}

// ExpireTokens ends all access tokens.
func (s *Service) ExpireTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token := range s.tokens {
		s.tokens[token] = time.Time{}
	}
}

// Revoke disconnects the app: the refresh token and all access tokens are refused.
func (s *Service) Revoke() {
	s.ExpireTokens()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = true
}

// Count returns the number of requests to a route such as "files/upload" since the last Reset.
func (s *Service) Count(route string) int { return s.Counts()[route] }

// Counts returns the number of requests by route.
func (s *Service) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Total returns the number of requests to all routes but longpoll.
func (s *Service) Total() int {
	n := 0
	for route, k := range s.Counts() {
		if route != "files/list_folder/longpoll" {
			n += k
		}
	}
	return n
}

// Reset sets the counters to 0.
func (s *Service) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.counts)
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/2/"), "/")
	s.mu.Lock()
	s.counts[route]++
	fault := s.fault(route)
	s.mu.Unlock()
	if s.cfg.Latency > 0 {
		time.Sleep(s.cfg.Latency)
	}
	if fault != nil {
		fault.serve(s, w, r, func(w http.ResponseWriter) { s.serve(w, r, route) })
		return
	}
	s.serve(w, r, route)
}

// serve answers a request to a route.
func (s *Service) serve(w http.ResponseWriter, r *http.Request, route string) {
	if r.Method != http.MethodPost {
		text(w, http.StatusMethodNotAllowed, "POST only")
		return
	}
	if route == "oauth2/token" {
		s.token(w, r)
		return
	}
	call, ok := routes[route]
	if !ok {
		text(w, http.StatusNotFound, "Unknown API function: "+route)
		return
	}
	if !s.authorized(w, r, route, call) {
		return
	}
	c := &exchange{s: s, w: w, r: r, route: route}
	if !c.readArg(call.style) {
		return
	}
	result, no := call.do(c)
	switch {
	case no != nil:
		no.write(w)
	case result != nil:
		reply(w, http.StatusOK, result)
	}
}

// style is how a route takes its argument.
type style int

const (
	rpc     style = iota // in the body
	content              // in a header
)

// route is one of the calls; do returns nil, nil when it has answered.
type route struct {
	style  style
	noAuth bool
	do     func(c *exchange) (any, *problem)
}

var routes = map[string]route{
	"files/list_folder":                    {do: listFolder},
	"files/list_folder/continue":           {do: listContinue},
	"files/list_folder/get_latest_cursor":  {do: latestCursor},
	"files/list_folder/longpoll":           {do: longpoll, noAuth: true},
	"files/get_metadata":                   {do: getMetadata},
	"files/upload":                         {do: upload, style: content},
	"files/upload_session/start":           {do: sessionStart, style: content},
	"files/upload_session/append_v2":       {do: sessionAppend, style: content},
	"files/upload_session/finish":          {do: sessionFinish, style: content},
	"files/upload_session/finish_batch_v2": {do: sessionFinishBatch},
	"files/download":                       {do: download, style: content},
	"files/create_folder_v2":               {do: createFolder},
	"files/delete_v2":                      {do: deleteNode},
	"files/move_v2":                        {do: move},
	"files/copy_v2":                        {do: copyNode},
	"users/get_current_account":            {do: currentAccount},
	"users/get_space_usage":                {do: spaceUsage},
}

// authorized looks at the token.
func (s *Service) authorized(w http.ResponseWriter, r *http.Request, name string, call route) bool {
	header := r.Header.Get("Authorization")
	if call.noAuth {
		if header != "" {
			text(w, http.StatusBadRequest, fmt.Sprintf("Error in call to API function %q: this function takes no authorization", name))
			return false
		}
		return true
	}
	token, ok := strings.CutPrefix(header, "Bearer ")
	s.mu.Lock()
	until, known := s.tokens[token]
	s.mu.Unlock()
	switch {
	case !ok:
		text(w, http.StatusBadRequest, fmt.Sprintf("Error in call to API function %q: Must provide HTTP header \"Authorization\" or URL parameter \"authorization\".", name))
	case !known:
		refuse(http.StatusUnauthorized, "invalid_access_token").write(w)
	case time.Now().After(until):
		refuse(http.StatusUnauthorized, "expired_access_token").write(w)
	default:
		return true
	}
	return false
}

// token is the route that gives access tokens for the refresh token. RFC 6749 §6.
func (s *Service) token(w http.ResponseWriter, r *http.Request) {
	key, secret, basic := r.BasicAuth()
	if err := r.ParseForm(); err != nil {
		text(w, http.StatusBadRequest, "bad form")
		return
	}
	if !basic {
		key, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	s.mu.Lock()
	revoked := s.revoked
	s.mu.Unlock()
	bad := func(code, description string) {
		reply(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": description})
	}
	switch {
	case key != s.cfg.AppKey || secret != s.cfg.AppSecret:
		bad("invalid_client", "Invalid client_id or client_secret")
	case r.PostForm.Get("grant_type") != "refresh_token":
		bad("unsupported_grant_type", "unsupported grant_type")
	case revoked || r.PostForm.Get("refresh_token") != s.cfg.RefreshToken:
		bad("invalid_grant", "refresh token is invalid or revoked")
	default:
		reply(w, http.StatusOK, map[string]any{"access_token": s.AccessToken(), "token_type": "bearer", "expires_in": int(s.cfg.TokenLife / time.Second)})
	}
}

// exchange is a request with its argument.
type exchange struct {
	s     *Service
	w     http.ResponseWriter
	r     *http.Request
	route string
	arg   []byte
}

// readArg takes the argument from where the style says, and answers when it is no good.
func (c *exchange) readArg(s style) bool {
	bad := func(format string, args ...any) bool {
		text(c.w, http.StatusBadRequest, fmt.Sprintf("Error in call to API function %q: ", c.route)+fmt.Sprintf(format, args...))
		return false
	}
	if s == content {
		arg := c.r.Header.Get("Dropbox-API-Arg")
		if !ascii(arg) {
			return bad("HTTP header \"Dropbox-API-Arg\": could not decode input as JSON")
		}
		if c.route != "files/download" && c.r.Header.Get("Content-Type") != "application/octet-stream" {
			return bad("Bad HTTP \"Content-Type\" header: %q", c.r.Header.Get("Content-Type"))
		}
		c.arg = []byte(arg)
	} else {
		var err error
		if c.arg, err = io.ReadAll(io.LimitReader(c.r.Body, 1<<20)); err != nil {
			return false
		}
		if len(c.arg) > 0 && !strings.HasPrefix(c.r.Header.Get("Content-Type"), "application/json") {
			return bad("Bad HTTP \"Content-Type\" header: %q", c.r.Header.Get("Content-Type"))
		}
	}
	if len(c.arg) > 0 && (!json.Valid(c.arg) || !utf8.Valid(c.arg)) {
		return bad("request body: could not decode input as JSON")
	}
	return true
}

// into decodes the argument.
func (c *exchange) into(v any) *problem {
	if err := json.Unmarshal(c.arg, v); err != nil {
		return malformed(c.route, err.Error())
	}
	return nil
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x7f }) < 0
}

func text(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, message)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// ContentHash returns Dropbox's digest of data in hex: the SHA-256 of the SHA-256 digests of its blocks of 4 MiB.
func ContentHash(data []byte) string {
	outer := sha256.New()
	for len(data) > 0 {
		n := min(len(data), block)
		sum := sha256.Sum256(data[:n])
		outer.Write(sum[:])
		data = data[n:]
	}
	return hex.EncodeToString(outer.Sum(nil))
}

const block = 4 << 20
