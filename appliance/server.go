package appliance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"cellgate/gateway"
	"cellgate/protocols/webdav"

	"golang.org/x/crypto/ssh"
)

// server is a box with its doors.
type server struct {
	*box
	metrics *metrics
	setup   *setup
	health  health
	doors   []*door
	admin   *http.Server
	socket  net.Listener
	cert    *pair // nil without TLS, and with ACME
	acme    *acme // nil without
	conns   *connections

	hostKeys []ssh.Signer  // of SFTP
	stopping chan struct{} // closed when the box begins to stop
	halt     sync.Once
	wg       sync.WaitGroup
	background
}

// background is the life of what runs beside the doors.
type background struct {
	life   context.Context
	cancel context.CancelFunc
}

// newServer makes the handlers and opens the listeners; start begins to accept.
func newServer(ctx context.Context, b *box) (_ *server, err error) {
	s := &server{box: b, metrics: newMetrics(), setup: newSetup(b), conns: newConnections(b.cfg), stopping: make(chan struct{})}
	s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.health.box = b
	s.metrics.watch(s)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	pages, err := s.pages()
	if err != nil {
		return nil, err
	}
	handler := newEdge(pages, b.cfg, b.log, s.metrics)
	tc, err := s.tlsConfig()
	if err != nil {
		return nil, err
	}
	if b.cfg.HTTP != off {
		var clear http.Handler = handler
		if tc != nil {
			clear = newEdge(s.redirect(pages), b.cfg, b.log, s.metrics)
		}
		if err := s.open(ctx, "http", b.cfg.HTTP, clear, nil); err != nil {
			return nil, err
		}
	}
	if tc != nil {
		if err := s.open(ctx, "https", b.cfg.TLS.Address, handler, tc); err != nil {
			return nil, err
		}
	}
	if err := s.openSFTP(ctx); err != nil {
		return nil, err
	}
	if err := s.openS3(ctx, tc); err != nil {
		return nil, err
	}
	if s.socket, err = listenSocket(ctx, filepath.Join(b.cfg.Data, adminSocket)); err != nil {
		return nil, err
	}
	s.admin = &http.Server{Handler: newAdmin(s).handler(), BaseContext: func(net.Listener) context.Context { return s.life }}
	return s, nil
}

func (s *server) open(ctx context.Context, name, addr string, h http.Handler, tc *tls.Config) error {
	d, err := openDoor(ctx, name, addr, h, tc, s.cfg, s.conns, s.log)
	if err != nil {
		return err
	}
	s.doors = append(s.doors, d)
	return nil
}

func (s *server) tlsConfig() (_ *tls.Config, err error) {
	c, dir := &s.cfg.TLS, filepath.Join(s.cfg.Data, "tls")
	switch c.Mode {
	case "self-signed":
		names := c.Domains
		if host, _, err := net.SplitHostPort(c.Address); err == nil && host != "" && !strings.Contains(host, "%") {
			if ip, err := netip.ParseAddr(host); err != nil || !ip.IsUnspecified() {
				names = append(names[:len(names):len(names)], host)
			}
		}
		if s.cert, err = selfSigned(dir, names, s.clock.Now(), s.log); err != nil {
			return nil, err
		}
		return newTLSConfig(s.cert.get), nil
	case "files":
		if s.cert, err = newPair(c.Cert, c.Key, s.log); err != nil {
			return nil, err
		}
		return newTLSConfig(s.cert.get), nil
	case "acme":
		if s.acme, err = newACME(c, dir, s.log); err != nil {
			return nil, err
		}
		return s.acme.tlsConfig(), nil
	}
	return nil, nil
}

// pages is the table of addresses.
func (s *server) pages() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health.live)
	mux.HandleFunc("GET /readyz", s.health.readyz)
	mux.Handle("GET /metrics", s.metrics.handler(&s.cfg.Metrics))
	mux.Handle("/setup", s.setup)
	mux.HandleFunc("/{$}", s.front)
	mux.HandleFunc("/", http.NotFound)
	if !s.cfg.serves("webdav") {
		return mux, nil
	}
	dav, err := webdav.New(webdav.Config{
		Gateway: s.gateway, Identity: s.identity, Logger: s.log, Clock: s.clock, HideMacFiles: s.cfg.HideJunk, Stall: -1,
		RequestID: func(r *http.Request) string { return r.Header.Get(requestIDHeader) },
	})
	if err != nil {
		return nil, err
	}
	// Paths below /dav are the handler's as they came: ServeMux would redirect what it finds unclean, and no DAV client follows.
	other := dav.Discover(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if doorOf(r.URL.Path) == "webdav" {
			dav.ServeHTTP(w, r)
			return
		}
		other.ServeHTTP(w, r)
	}), nil
}

// front says what is here. There are no pages in this build.
func (s *server) front(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD, OPTIONS, PROPFIND")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	io.WriteString(w, "This is cellgate, built without pages.\nYour files are at /dav/ for WebDAV clients; the README says how to map the drive.\n")
}

// redirect is the clear door beside an HTTPS one. It answers the certificate authority, serves this machine, which sends nothing over a
// wire, and sends everybody else to HTTPS, so that no password crosses the network in the clear twice.
func (s *server) redirect(next http.Handler) http.Handler {
	h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && peer.Addr().Unmap().IsLoopback() {
			next.ServeHTTP(w, r)
			return
		}
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		_, port, _ := net.SplitHostPort(s.address("https"))
		if port != "443" {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusPermanentRedirect)
	}))
	if s.acme != nil {
		return s.acme.challenge(h)
	}
	return h
}

// address returns where a door listens, "" for one that is not open.
func (s *server) address(name string) string {
	for _, d := range s.doors {
		if d.name == name {
			return d.address()
		}
	}
	return ""
}

// readyLine is what scripts wait for.
func (s *server) readyLine() string {
	line := "ready"
	for _, d := range s.doors {
		line += " " + d.name + "=" + d.address()
	}
	return line
}

// web returns the door of HTTPS, or of HTTP in the clear, nil when both are off.
func (s *server) web() (web *door) {
	for _, d := range s.doors {
		if d.name == "http" && web == nil || d.name == "https" {
			web = d
		}
	}
	return web
}

// url returns the address of the web for people, "" where there is none.
func (s *server) url() string {
	d := s.web()
	if d == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(d.address())
	if ip, perr := netip.ParseAddr(host); err == nil && perr == nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			host = "localhost"
		}
	}
	return d.name + "://" + net.JoinHostPort(host, port)
}

// s3URL is the endpoint of S3.
func (s *server) s3URL() string {
	if s.cfg.TLS.Mode != off {
		return "https://" + s.address("s3")
	}
	return "http://" + s.address("s3")
}

// announce tells people where the box is, and how to begin.
func (s *server) announce(w io.Writer) {
	if s.web() != nil && s.cfg.serves("webdav") {
		fmt.Fprintf(w, "WebDAV at %s/dav/\n", s.url())
	}
	if at := s.address("sftp"); at != "" {
		host, port, _ := net.SplitHostPort(at)
		fmt.Fprintf(w, "SFTP at %s, port %s, host key %s\n", host, port, ssh.FingerprintSHA256(s.hostKeys[0].PublicKey()))
	}
	if at := s.address("s3"); at != "" {
		fmt.Fprintf(w, "S3 at %s\n", s.s3URL())
	}
	if s.cert != nil && s.cfg.TLS.Mode == "self-signed" {
		fmt.Fprintf(w, "self-signed certificate, SHA-256 fingerprint %s\n", fingerprint(s.cert.current))
	}
	if link := s.setup.link(s.url()); link != "" && s.web() != nil {
		fmt.Fprintf(w, "There are no users yet. Make the first one, an admin, at this link; it works once, for an hour:\n\n  %s\n\n", link)
	}
	for _, ds := range s.gateway.Datasources(s.life) {
		if ds.State != stateUp {
			say(w, "datasource %s is %s: %s\n", ds.Name, ds.State, plain(ds.Err))
		}
	}
	if s.cfg.TLS.Mode == off && !loopback(s.cfg.HTTP) {
		s.log.Warn("passwords cross the network in the clear; switch TLS on, or put a proxy with TLS in front", "http", s.cfg.HTTP)
	}
}

// loopback reports whether an address is reached from this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "localhost" {
		return true // off, or what no listener takes
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// firstState applies the declared state of the configuration, and makes a set-up secret where there still is nobody.
func (s *server) firstState(ctx context.Context) error {
	if s.cfg.State != "" {
		src, err := os.ReadFile(s.cfg.State)
		if err != nil {
			return err
		}
		done, err := s.apply(ctx, s.cfg.State, src)
		if err != nil {
			return err
		}
		for _, w := range done.Warnings {
			s.log.Warn("declared state", "problem", w.String())
		}
		for _, c := range done.Changes {
			s.log.Info("declared state", "change", c.String())
		}
	}
	return s.setup.begin(ctx)
}

// start begins to accept at every door. What it returns yields the failure of a door.
func (s *server) start(ctx context.Context) <-chan error {
	failed := make(chan error, len(s.doors)+1)
	for _, d := range s.doors {
		s.wg.Go(func() {
			if err := d.serve(); err != nil {
				failed <- fmt.Errorf("%s: %w", d.name, err)
			}
		})
	}
	s.wg.Go(func() {
		if err := s.admin.Serve(s.socket); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("admin socket: %w", err)
		}
	})
	if s.acme != nil {
		if err := s.acme.start(s.life, s.address("http"), s.address("https")); err != nil {
			failed <- err
		}
	}
	s.health.ready.Store(true)
	return failed
}

// reload reads the certificate again.
func (s *server) reload() {
	if s.cert != nil {
		s.cert.reload()
	}
}

// stop closes the doors, lets requests in flight finish until ctx ends, and cuts off the rest.
func (s *server) stop(ctx context.Context) {
	s.health.ready.Store(false)
	s.halt.Do(func() { close(s.stopping) })
	var wg sync.WaitGroup
	for _, d := range s.doors {
		wg.Go(func() {
			if err := d.server.Shutdown(ctx); err != nil {
				s.log.Warn("requests cut off", "door", d.name)
				d.server.Close()
			}
		})
	}
	wg.Go(func() {
		if s.admin.Shutdown(ctx) != nil {
			s.admin.Close()
		}
	})
	wg.Wait()
}

// close ends what start began and releases the listeners.
func (s *server) close() {
	s.cancel()
	for _, d := range s.doors {
		d.server.Close()
		d.listener.Close()
	}
	if s.socket != nil {
		s.admin.Close()
		s.socket.Close()
		os.Remove(filepath.Join(s.cfg.Data, adminSocket))
	}
	if s.acme != nil {
		s.acme.stop()
	}
	s.wg.Wait()
}

// health answers whether the box is alive, and whether it can work.
type health struct {
	box   *box
	ready atomic.Bool
}

func (h *health) live(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
}

// readyz says 503 while the box starts or stops and when the store does not take writes. A datasource that is down does not make the box
// unready: the others work. Their names are for this machine and for who may read the metrics; others learn how many there are.
func (h *health) readyz(w http.ResponseWriter, r *http.Request) {
	type status struct {
		Status      string            `json:"status"`
		Store       string            `json:"store"`
		Up          int               `json:"up"`
		Down        int               `json:"down"`
		Datasources map[string]string `json:"datasources,omitempty"`
	}
	st, code := status{Status: "ready", Store: "up"}, http.StatusOK
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && peer.Addr().Unmap().IsLoopback() || h.box.cfg.Metrics.allows(r) {
		st.Datasources = map[string]string{}
	}
	if err := h.box.check(r.Context()); err != nil {
		h.box.log.Error("store", "err", err)
		st.Status, st.Store, code = "unready", "down", http.StatusServiceUnavailable
	}
	if !h.ready.Load() {
		st.Status, code = "unready", http.StatusServiceUnavailable
	}
	for _, ds := range h.box.gateway.Datasources(r.Context()) {
		if st.Datasources != nil {
			st.Datasources[ds.Name] = ds.State
		}
		if ds.State == stateUp {
			st.Up++
			continue
		}
		if ds.State == gateway.Down {
			st.Down++
		} else {
			st.Up++
		}
		if code == http.StatusOK {
			st.Status = "degraded"
		}
	}
	writeJSON(w, code, st)
}
