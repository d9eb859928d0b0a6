package appliance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// door is a listener with the server behind it.
type door struct {
	name     string // as in the ready line
	listener net.Listener
	server   doorServer
}

// doorServer is an *http.Server, or what serves as one does.
type doorServer interface {
	Serve(l net.Listener) error // until it is shut down, which is http.ErrServerClosed
	Shutdown(ctx context.Context) error
	Close() error
}

// openDoor listens on addr and serves handler there once serve is called. With a nil config it is HTTP in the clear.
func openDoor(ctx context.Context, name, addr string, handler http.Handler, tc *tls.Config, cfg *Config, conns *connections, logger *slog.Logger) (*door, error) {
	l, err := listen(ctx, name, addr)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(tc != nil)
	protocols.SetUnencryptedHTTP2(tc == nil && cfg.H2C)
	d := &door{name: name, listener: l, server: &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		ReadHeaderTimeout: cfg.Limits.HeaderTimeout,
		IdleTimeout:       cfg.Limits.IdleTimeout,
		MaxHeaderBytes:    cfg.Limits.HeaderBytes,
		TLSConfig:         tc,
		ConnState:         conns.note,
		ErrorLog:          log.New(lineLog{logger}, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 128, SendPingTimeout: cfg.Limits.IdleTimeout, PingTimeout: 15 * time.Second,
			WriteByteTimeout: cfg.Limits.StallTimeout, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 8 << 20,
		},
	}}
	return d, nil
}

// listen opens the listener of a door. What goes wrong says which setting is meant.
func listen(ctx context.Context, name, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w; name another address with --%s", err, name)
	}
	return l, nil
}

// address returns host:port as it is listened on, which tells the port that :0 picked.
func (d *door) address() string { return d.listener.Addr().String() }

// serve accepts until the server is shut down; it returns nil then.
func (d *door) serve() error {
	serve := d.server.Serve
	if s, ok := d.server.(*http.Server); ok && s.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
	}
	err := serve(d.listener)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// connections caps how many a box has open, in all and for one address. It counts by the server's hook, not by a wrapped net.Conn,
// so that the connection stays a *net.TCPConn and files go out by sendfile.
type connections struct {
	total, each int
	trusted     []Network // proxies speak for many

	mu     sync.Mutex
	open   map[net.Conn]netip.Prefix
	byAddr map[netip.Prefix]int
}

func newConnections(c *Config) *connections {
	return &connections{
		total: c.Limits.Connections, each: c.Limits.ConnectionsPerAddress, trusted: c.TrustedProxies,
		open: map[net.Conn]netip.Prefix{}, byAddr: map[netip.Prefix]int{},
	}
}

// note follows a connection through its states and closes a new one that is too many.
func (c *connections) note(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !c.enter(conn) {
			conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		c.leave(conn)
	}
}

func (c *connections) enter(conn net.Conn) bool {
	from := clientOf(conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.total || c.byAddr[from] >= c.each && !within(c.trusted, from.Addr()) {
		return false
	}
	c.open[conn] = from
	c.byAddr[from]++
	return true
}

func (c *connections) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, ok := c.open[conn]
	if !ok {
		return
	}
	delete(c.open, conn)
	if c.byAddr[from]--; c.byAddr[from] <= 0 {
		delete(c.byAddr, from)
	}
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// clientOf returns the address that stands for a client: its IPv4 address, or the /64 its IPv6 address is in.
func clientOf(conn net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits)
	return p
}
