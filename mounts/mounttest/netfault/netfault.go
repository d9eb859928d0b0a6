// Package netfault is a TCP relay with the faults of a network, for tests of drivers and of the whole box and for figures taken over a slow
// link. It stands between a client and a server of this machine:
//
//	link := netfault.New(t, server.Addr)
//	link.Delay(20 * time.Millisecond) // 40 ms there and back
//	dial(link.Addr)
//	link.CutAfter(1 << 20) // after one more MiB every connection is reset, once
//	link.Heal()
//
// The delay is that of a long cable: bytes are under way side by side, so it does not limit the throughput (up to half a gigabyte a second
// at 100 ms), and opening a connection costs the round trip that it costs on a real link. A rate is that of the line: the connections
// share it, each direction has its own. What is under way when the line stalls arrives after Heal; half-closed connections stay so.
//
// It is a relay of our own, and not toxiproxy: that one closes both directions when one ends, limits each connection instead of the line,
// cannot reset a connection after so many bytes, and opens connections without a delay.
package netfault

import (
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is a link to one server. Its methods are safe for concurrent use and hold for open connections as for new ones.
type Proxy struct {
	Addr string // where it listens, host:port
	Host string
	Port int

	t        testing.TB
	upstream string
	running  sync.WaitGroup
	buffers  sync.Pool // of *[piece]byte

	mu       sync.Mutex
	line     line               // guarded by mu
	changed  chan struct{}      // closed and replaced when line changes, guarded by mu
	listener net.Listener       // nil while refusing, guarded by mu
	conns    map[*conn]struct{} // guarded by mu
	closed   bool               // guarded by mu

	cut      atomic.Int64 // bytes left until all connections are reset, negative: never
	accepted atomic.Int64
	lanes    [2]lane
}

// line is what the link is like now.
type line struct {
	delay   time.Duration
	rate    int64 // bytes per second each way, 0: any
	every   int64 // bytes after which each connection is reset, 0: never
	stalled bool
}

// lane is what the connections share in one direction.
type lane struct {
	bytes atomic.Int64

	mu   sync.Mutex
	free time.Time // when the line has sent what it was given, guarded by mu
}

const (
	up   = 0 // from the client to the server
	down = 1
)

// New returns a link to upstream ("host:port") that is fast and whole until told otherwise. It ends with the test.
func New(t testing.TB, upstream string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().(*net.TCPAddr)
	p := &Proxy{
		Addr: addr.String(), Host: "127.0.0.1", Port: addr.Port,
		t: t, upstream: upstream, changed: make(chan struct{}), conns: map[*conn]struct{}{},
	}
	p.cut.Store(-1)
	p.serve(listener)
	t.Cleanup(p.close)
	return p
}

// Delay lets every byte arrive d later than it was sent, in each direction; a round trip takes 2d. 0 ends it.
func (p *Proxy) Delay(d time.Duration) { p.change(func(l *line) { l.delay = max(d, 0) }) }

// Rate limits the line to so many bytes a second in each direction, all connections together. 0 ends it. The buffers of connections made
// from then on are small, so that the sender notices.
func (p *Proxy) Rate(bytesPerSecond int64) {
	p.change(func(l *line) { l.rate = max(bytesPerSecond, 0) })
}

// Stall lets nothing pass any more, neither bytes nor the ends of connections. New connections are taken, and nothing answers.
func (p *Proxy) Stall() { p.change(func(l *line) { l.stalled = true }) }

// CutAfter resets all connections as soon as n more bytes have passed in both directions together. It happens once: connections made
// after that are whole.
func (p *Proxy) CutAfter(n int64) { p.cut.Store(max(n, 0)) }

// CutEvery resets each connection when n bytes of it, in both directions together, have passed. New connections share the fate, until Heal
// or CutEvery(0).
func (p *Proxy) CutEvery(n int64) { p.change(func(l *line) { l.every = max(n, 0) }) }

// Reset resets all connections there are now, as a firewall does that forgot them. New ones are taken.
func (p *Proxy) Reset() {
	for _, c := range p.open() {
		c.reset()
	}
}

// Refuse lets new connections be refused, as by a machine without the server. Open ones stay.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
}

// Heal ends every fault, Delay and Rate included. What was held by Stall arrives.
func (p *Proxy) Heal() {
	p.cut.Store(-1)
	p.change(func(l *line) { *l = line{} })
	p.mu.Lock()
	refusing := p.listener == nil && !p.closed
	p.mu.Unlock()
	if !refusing {
		return
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(p.Host, strconv.Itoa(p.Port)))
	if err != nil {
		p.t.Errorf("netfault: %v", err)
		return
	}
	p.serve(listener)
}

// Connections returns how many connections were made until now.
func (p *Proxy) Connections() int { return int(p.accepted.Load()) }

// Open returns how many connections are open now.
func (p *Proxy) Open() int { return len(p.open()) }

// Up returns how many bytes have reached the server.
func (p *Proxy) Up() int64 { return p.lanes[up].bytes.Load() }

// Down returns how many bytes have reached clients.
func (p *Proxy) Down() int64 { return p.lanes[down].bytes.Load() }

func (p *Proxy) change(f func(*line)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.line)
	close(p.changed)
	p.changed = make(chan struct{})
}

// now returns what the line is like, and a channel that is closed when that changes.
func (p *Proxy) now() (line, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line, p.changed
}

func (p *Proxy) open() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	return all
}

func (p *Proxy) serve(listener net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		listener.Close()
		return
	}
	p.listener = listener
	p.running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			p.accepted.Add(1)
			p.running.Go(func() { p.relay(client.(*net.TCPConn)) })
		}
	})
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Refuse()
	p.Reset()
	p.running.Wait()
}
