package sftp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
	"cellgate/policy/identity"
)

// Config is what a Server is made of.
type Config struct {
	Gateway  *gateway.Gateway  // required
	Identity *identity.Service // required
	HostKeys []ssh.Signer      // required, see HostKeys
	CAs      []ssh.PublicKey   // authorities whose user certificates sign in the principals they name
	Logger   *slog.Logger      // nil discards
	Version  string            // of the software, as clients see it behind "SSH-2.0-"; "cellgate" when empty
	Limits   Limits
}

// Limits bound what clients may hold and how long they may take. A zero field means its default.
type Limits struct {
	Sessions     int           // connections that have signed in, 1024
	UserSessions int           // of one user, 128
	Handshakes   int           // connections that have not, 128; the oldest makes room for a new one
	Channels     int           // of a connection, 8
	Handles      int           // open files and folders of a channel, 512
	Requests     int           // under way in a channel, 128; more wait
	Handshake    time.Duration // until somebody has signed in and said what for, 30 s
	Idle         time.Duration // without a request or keepalive, 30 min
	Stall        time.Duration // without taking anything of an answer, 2 min
}

func (l *Limits) defaults() {
	setDefault(&l.Sessions, 1024)
	setDefault(&l.UserSessions, 128)
	setDefault(&l.Handshakes, 128)
	setDefault(&l.Channels, 8)
	setDefault(&l.Handles, 512)
	setDefault(&l.Requests, 128)
	setDefault(&l.Handshake, 30*time.Second)
	setDefault(&l.Idle, 30*time.Minute)
	setDefault(&l.Stall, 2*time.Minute)
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Server serves SFTP. Safe for concurrent use.
type Server struct {
	cfg    Config
	limits Limits
	log    *slog.Logger

	mu        sync.Mutex
	listeners map[net.Listener]struct{} // guarded by mu
	conns     map[*conn]struct{}        // guarded by mu
	waiting   []*conn                   // those of conns that have not signed in, oldest first; guarded by mu
	users     map[int64]int             // signed in connections by user; guarded by mu
	sessions  map[*session]struct{}     // guarded by mu
	signed    int                       // guarded by mu
	closed    bool                      // guarded by mu
	watching  bool                      // guarded by mu
	over      chan struct{}             // closed with the server
	tasks     sync.WaitGroup
	herd      herd
}

// New returns a server. It fails when something required is missing.
func New(cfg Config) (*Server, error) {
	if cfg.Gateway == nil || cfg.Identity == nil || len(cfg.HostKeys) == 0 {
		return nil, errors.New("sftp: Config needs Gateway, Identity and HostKeys")
	}
	setDefault(&cfg.Version, "cellgate")
	if strings.ContainsFunc(cfg.Version, func(r rune) bool { return r <= ' ' || r > '~' }) || len(cfg.Version) > 100 {
		return nil, errors.New("sftp: Version is up to 100 printable ASCII characters without spaces")
	}
	cfg.HostKeys = slices.Clone(cfg.HostKeys)
	for i, key := range cfg.HostKeys {
		var err error
		if cfg.HostKeys[i], err = withoutSHA1(key); err != nil {
			return nil, fmt.Errorf("sftp: a host key: %w", err)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits.defaults()
	return &Server{
		cfg: cfg, limits: cfg.Limits, log: cfg.Logger, over: make(chan struct{}), herd: herd{poke: make(chan struct{}, 1)},
		listeners: make(map[net.Listener]struct{}), conns: make(map[*conn]struct{}),
		users: make(map[int64]int), sessions: make(map[*session]struct{}),
	}, nil
}

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("sftp: the server is closed")

// Serve accepts connections from l until Shutdown or Close, or until l fails. It closes l.
func (srv *Server) Serve(l net.Listener) error {
	srv.mu.Lock()
	if srv.closed {
		srv.mu.Unlock()
		if l != nil {
			l.Close()
		}
		return ErrServerClosed
	}
	defer l.Close()
	srv.listeners[l] = struct{}{}
	if !srv.watching {
		srv.watching = true
		srv.tasks.Go(srv.watch)
	}
	srv.mu.Unlock()
	defer func() {
		srv.mu.Lock()
		delete(srv.listeners, l)
		srv.mu.Unlock()
	}()
	for pause := 5 * time.Millisecond; ; {
		c, err := l.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			srv.accept(c)
			continue
		}
		select {
		case <-srv.over:
			return ErrServerClosed
		default:
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() && !temporary(err) {
			return err
		}
		srv.log.Warn("sftp accept failed", "err", err)
		select { // out of descriptors, most likely: others will close some
		case <-time.After(pause):
		case <-srv.over:
			return ErrServerClosed
		}
		pause = min(2*pause, time.Second)
	}
}

// accept takes a connection in. The oldest of those that have not signed in makes room for it.
func (srv *Server) accept(nc net.Conn) {
	c := &conn{srv: srv, Conn: nc}
	srv.mu.Lock()
	if srv.closed {
		srv.mu.Unlock()
		nc.Close()
		return
	}
	var out *conn
	if len(srv.waiting) >= srv.limits.Handshakes {
		out = srv.waiting[0]
		srv.waiting = srv.waiting[1:]
	}
	srv.conns[c] = struct{}{}
	srv.waiting = append(srv.waiting, c)
	srv.tasks.Go(c.serve)
	srv.mu.Unlock()
	if out != nil {
		out.Close()
	}
}

// admitted counts a connection that has signed in. It reports false when there are too many.
func (srv *Server) admitted(c *conn, user int64) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.unwait(c)
	if srv.signed >= srv.limits.Sessions || srv.users[user] >= srv.limits.UserSessions {
		return false
	}
	srv.signed++
	srv.users[user]++
	c.user, c.signed = user, true
	return true
}

// unwait takes c from those that have not signed in. The caller holds mu.
func (srv *Server) unwait(c *conn) {
	for i, w := range srv.waiting {
		if w == c {
			srv.waiting = append(srv.waiting[:i], srv.waiting[i+1:]...)
			return
		}
	}
}

func (srv *Server) gone(c *conn) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.unwait(c)
	delete(srv.conns, c)
	if c.signed {
		srv.signed--
		if srv.users[c.user]--; srv.users[c.user] == 0 {
			delete(srv.users, c.user)
		}
	}
}

func (srv *Server) enlist(s *session) {
	srv.herd.once.Do(func() { srv.tasks.Go(srv.herding) })
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.sessions[s] = struct{}{}
}

func (srv *Server) dismiss(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.sessions, s)
}

// watch cuts off who stalls or idles.
func (srv *Server) watch() {
	every := min(max(min(srv.limits.Idle, srv.limits.Stall)/4, 10*time.Millisecond), 10*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-srv.over:
			return
		case <-tick.C:
		}
		srv.mu.Lock()
		at := time.Now()
		var out []*conn
		stuck := make(map[*conn]bool)
		for s := range srv.sessions {
			if s.out.stalled(at.Add(-srv.limits.Stall)) {
				out = append(out, s.conn)
			}
			if !s.idle() {
				stuck[s.conn] = true
			}
		}
		for c := range srv.conns {
			if c.signed && !stuck[c] && c.heard.Load() < at.Add(-srv.limits.Idle).UnixNano() {
				out = append(out, c)
			}
		}
		srv.mu.Unlock()
		for _, c := range out {
			if c != nil {
				srv.log.Info("sftp client cut off: it stalls or idles", "remote", c.RemoteAddr().String())
				c.Close()
			}
		}
	}
}

// Shutdown stops accepting, and waits for the running transfers to end: a connection is closed when nothing of it is under way and no file is
// open. When ctx ends first, what is left is closed as by Close, and the error is that of ctx.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		srv.mu.Lock()
		working := make(map[*conn]bool)
		for s := range srv.sessions {
			if !s.idle() || s.opened.Load() > 0 {
				working[s.conn] = true
			}
		}
		var idle []*conn
		for c := range srv.conns {
			if !working[c] {
				idle = append(idle, c)
			}
		}
		left := len(srv.conns)
		srv.mu.Unlock()
		for _, c := range idle {
			c.Close()
		}
		if left == 0 {
			srv.tasks.Wait()
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			srv.Close()
			return ctx.Err()
		}
	}
}

// Close closes everything at once and returns when nothing runs any more. Files that are being written are given up.
func (srv *Server) Close() error {
	srv.stop()
	srv.mu.Lock()
	for c := range srv.conns {
		c.Close()
	}
	srv.mu.Unlock()
	srv.tasks.Wait()
	return nil
}

// stop stops accepting.
func (srv *Server) stop() {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if !srv.closed {
		srv.closed = true
		close(srv.over)
	}
	for l := range srv.listeners {
		l.Close()
	}
}
