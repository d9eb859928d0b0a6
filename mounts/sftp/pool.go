package sftp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	wiresPerLink = 8                // an OpenSSH server allows 10 sessions in a connection
	busyWire     = 24               // requests without an answer from which another channel is worth its opening
	suspectAfter = 2 * time.Second  // of silence while requests wait
	idleWire     = 30 * time.Second // after which a channel that is not its link's first is closed
	idleLink     = 90 * time.Second
	growAgain    = 5 * time.Second
	bufferSize   = chunk + 1<<10
	chunk        = 128 << 10 // of streams, where the server takes that much
	smallChunk   = 32 << 10  // what every server takes
	linkBuffer   = 64 << 10
)

var errNoLane = errors.New("no channel is free for another stream")

// link is one SSH connection.
type link struct {
	pool    *pool
	nc      *meter
	conn    ssh.Conn
	version string
	ended   chan struct{} // closed when the connection is gone and everybody has been told

	wires   []*wire // guarded by pool.mu
	opening int     // guarded by pool.mu; channels being opened
	limit   int     // guarded by pool.mu; channels it allows
	gone    bool    // guarded by pool.mu
	cause   error   // guarded by pool.mu; why it is gone
}

// meter knows when a connection last brought bytes. It reads more at once than the library, which asks for 4 KiB first.
type meter struct {
	net.Conn
	in   *bufio.Reader
	last atomic.Int64
}

func newMeter(c net.Conn) *meter { return &meter{Conn: c, in: bufio.NewReaderSize(c, linkBuffer)} }

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.in.Read(p)
	m.last.Store(time.Now().UnixNano())
	return n, err
}

// pool keeps the connections of a datasource and their channels. Short calls share the channel with the least to do; long streams get
// channels of their own as far as there are. What falls silent for the timeout while somebody waits is closed, be it one channel or the whole
// connection, so that a stall costs only those who wait for it.
type pool struct {
	set     *settings
	base    context.Context // ends with the pool; dialling hangs on it, as who dials is not the only one who waits
	stop    context.CancelFunc
	wg      sync.WaitGroup
	buffers sync.Pool    // of *[]byte, for the chunks of streams
	tidying atomic.Int32 // clean-ups under way

	mu       sync.Mutex
	links    []*link   // guarded by mu
	dialing  int       // guarded by mu
	growing  *growth   // guarded by mu; what short calls wait for
	closed   bool      // guarded by mu; no new goroutines
	streams  int       // guarded by mu; streams that use lanes
	patience time.Time // guarded by mu; until when no further channel is tried for short calls
}

// growth is a channel being opened.
type growth struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newPool(s *settings) *pool {
	p := &pool{set: s}
	p.base, p.stop = context.WithCancel(context.Background())
	p.wg.Go(p.watch)
	return p
}

// spawn runs do in a goroutine that close waits for, and reports false when the pool is closed.
func (p *pool) spawn(do func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Go(do)
	return true
}

// settle waits until clean-ups are done, but no longer than limit.
func (p *pool) settle(limit time.Duration) {
	for end := time.Now().Add(limit); p.tidying.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// close ends every connection and waits for all goroutines.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	links := append([]*link(nil), p.links...)
	p.mu.Unlock()
	p.stop()
	for _, l := range links {
		l.close(errClosed)
	}
	p.wg.Wait()
}

// buffer returns a slice of at least n bytes.
func (p *pool) buffer(n int) []byte {
	if n <= bufferSize {
		if b, ok := p.buffers.Get().(*[]byte); ok {
			return *b
		}
		return make([]byte, bufferSize)
	}
	return make([]byte, n)
}

func (p *pool) give(b []byte) {
	if cap(b) >= bufferSize {
		b = b[:cap(b)]
		p.buffers.Put(&b)
	}
}

func (p *pool) release(r reply) {
	if r.full != nil {
		p.give(r.full)
	}
}

// cost orders wires by how soon they would answer a short call.
func (w *wire) cost(now time.Time) (cost int, suspect bool) {
	n, _ := w.load()
	suspect = n > 0 && now.Sub(time.Unix(0, w.last.Load())) > suspectAfter
	cost = n + w.users + w.streams*busyWire
	if suspect {
		cost += 1 << 20
	}
	return cost, suspect
}

// get returns the wire for a short call, to be given back by put.
func (p *pool) get(ctx context.Context) (*wire, error) {
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		var best *wire
		lowest, suspect := 0, false
		now := time.Now()
		for _, l := range p.links {
			for _, w := range l.wires {
				if c, s := w.cost(now); best == nil || c < lowest {
					best, lowest, suspect = w, c, s
				}
			}
		}
		var g *growth
		if best == nil || lowest >= busyWire {
			g = p.grow(best != nil, now)
		}
		if best != nil && (!suspect || g == nil || try > 0) {
			best.users++
			p.mu.Unlock()
			return best, nil
		}
		p.mu.Unlock()
		if g == nil { // streams are opening all the channels there can be: one of them will do
			g = &growth{done: make(chan struct{})}
			time.AfterFunc(10*time.Millisecond, func() { close(g.done) })
		}
		select {
		case <-g.done:
			if best == nil && g.err != nil {
				return nil, g.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// put gives a wire back.
func (p *pool) put(w *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.users--
	w.used = time.Now()
}

// grow opens another channel in the background, one at a time, and returns nil where there is no room for one, or where that failed a moment
// ago and there are others. The caller holds mu.
func (p *pool) grow(others bool, now time.Time) *growth {
	if p.growing != nil {
		return p.growing
	}
	if others && now.Before(p.patience) {
		return nil
	}
	l, ok := p.room()
	if !ok {
		return nil
	}
	g := &growth{done: make(chan struct{})}
	p.growing = g
	p.wg.Go(func() {
		_, err := p.open(l)
		p.mu.Lock()
		g.err = err
		p.growing = nil
		if err != nil {
			p.patience = time.Now().Add(growAgain)
		}
		p.mu.Unlock()
		close(g.done)
	})
	return g
}

// room reserves a place for another channel: in the link with the fewest, or in a link to be dialled (nil) when there are none, when each has
// half of what it takes, or when they are silent. The caller holds mu.
func (p *pool) room() (*link, bool) {
	var best *link
	now := time.Now()
	for _, l := range p.links {
		if l.gone || len(l.wires)+l.opening >= l.limit || l.silent(now) {
			continue
		}
		if best == nil || len(l.wires)+l.opening < len(best.wires)+best.opening {
			best = l
		}
	}
	if (best == nil || len(best.wires)+best.opening > wiresPerLink/2) && len(p.links)+p.dialing < p.set.connections {
		p.dialing++
		return nil, true
	}
	if best == nil {
		return nil, false
	}
	best.opening++
	return best, true
}

// silent reports whether requests wait on l while it brings nothing. The caller holds pool.mu.
func (l *link) silent(now time.Time) bool {
	if now.Sub(time.Unix(0, l.nc.last.Load())) < suspectAfter {
		return false
	}
	for _, w := range l.wires {
		if _, suspect := w.cost(now); suspect {
			return true
		}
	}
	return false
}

// open makes the wire that room reserved a place for.
func (p *pool) open(l *link) (*wire, error) {
	first := l == nil
	if first {
		var err error
		l, err = p.dial()
		p.mu.Lock()
		p.dialing--
		if err == nil && p.closed {
			err = errClosed
		}
		if err == nil {
			l.opening++
			p.links = append(p.links, l)
		}
		p.mu.Unlock()
		if err != nil {
			if l != nil {
				l.close(err)
			}
			return nil, err
		}
	}
	w, err := l.session(first)
	p.mu.Lock()
	l.opening--
	if l.gone {
		err = l.cause
	}
	if err == nil {
		w.main, w.used = len(l.wires) == 0, time.Now()
		l.wires = append(l.wires, w)
	} else if !first && len(l.wires) > 0 {
		l.limit = max(1, len(l.wires)+l.opening) // it allows no more than these
	}
	p.mu.Unlock()
	if err == nil && w.dead() {
		p.drop(w)
		err = lost(w.cause(), false)
	} else if err != nil && w != nil {
		w.fail(err)
	}
	if err != nil && first {
		l.close(err)
	}
	return w, err
}

// lane returns a wire for a part of a long stream, to be given back by leave.
func (p *pool) lane() (*wire, error) {
	p.mu.Lock()
	var free, shared *wire
	for _, l := range p.links {
		for _, w := range l.wires {
			if w.main || w.dead() {
				continue
			}
			if n, _ := w.load(); w.streams == 0 && w.users == 0 && n == 0 {
				free = w
			} else if w.streams < 2 && (shared == nil || w.streams < shared.streams) {
				shared = w
			}
		}
	}
	if free != nil {
		free.streams++
		p.mu.Unlock()
		return free, nil
	}
	l, ok := p.room()
	if !ok {
		defer p.mu.Unlock()
		if shared == nil {
			return nil, errNoLane
		}
		shared.streams++
		return shared, nil
	}
	p.mu.Unlock()
	w, err := p.open(l)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	w.streams++
	p.mu.Unlock()
	return w, nil
}

func (p *pool) leave(w *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.streams--
	w.used = time.Now()
}

// drop takes a wire that ended out of its link.
func (p *pool) drop(w *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range w.link.wires {
		if other == w {
			w.link.wires = append(w.link.wires[:i:i], w.link.wires[i+1:]...)
			break
		}
	}
}

// dial connects and logs in.
func (p *pool) dial() (*link, error) {
	ctx, cancel := context.WithTimeout(p.base, p.set.timeout)
	defer cancel()
	var refused error
	for _, order := range p.set.trust.orders() {
		l, err := p.login(ctx, order)
		if err == nil {
			return l, nil
		}
		var key *keyError
		var none *ssh.AlgorithmNegotiationError // it has no key of the kinds in this order
		if refused == nil || errors.As(err, &key) {
			refused = err
		}
		if !errors.As(err, &key) && !errors.As(err, &none) {
			break
		}
	}
	return nil, p.set.dialFailure(refused)
}

func (p *pool) login(ctx context.Context, hostKeys []string) (*link, error) {
	inner, err := p.set.dialer.DialContext(ctx, "tcp", p.set.addr)
	if err != nil {
		return nil, err
	}
	nc := newMeter(inner)
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	conn, channels, requests, err := ssh.NewClientConn(nc, p.set.addr, p.set.clientConfig(hostKeys))
	if !stop() && err == nil {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	l := &link{pool: p, nc: nc, conn: conn, version: string(conn.ServerVersion()), limit: wiresPerLink, ended: make(chan struct{})}
	p.wg.Go(func() { ssh.DiscardRequests(requests) })
	p.wg.Go(func() {
		for c := range channels {
			c.Reject(ssh.Prohibited, "no channels from servers")
		}
	})
	p.wg.Go(func() {
		l.close(&lostError{cause: l.conn.Wait()})
		close(l.ended)
	})
	return l, nil
}

// session opens a channel with the subsystem. With careful, the answer to each step is awaited, for the words of a refusal.
func (l *link) session(careful bool) (*wire, error) {
	timer := time.AfterFunc(l.pool.set.timeout, func() { l.close(&lostError{cause: errSilent, stalled: true}) })
	defer timer.Stop()
	ch, requests, err := l.conn.OpenChannel("session", nil)
	if err != nil {
		return nil, &lostError{cause: err}
	}
	l.pool.wg.Go(func() { ssh.DiscardRequests(requests) })
	l.pool.wg.Go(func() { drain(ch) })
	ok, err := ch.SendRequest("subsystem", careful, ssh.Marshal(struct{ Name string }{"sftp"}))
	if err == nil && careful && !ok {
		err = errors.New("the server has SSH, but no SFTP for this login")
	}
	w := l.newWire(ch)
	if err == nil {
		err = w.start()
	}
	if err != nil {
		w.fail(&lostError{cause: err})
		return nil, &lostError{cause: fmt.Errorf("no SFTP session: %w", err)}
	}
	return w, nil
}

// drain throws away what a server says on standard error, which would fill the window.
func drain(ch ssh.Channel) {
	buf := make([]byte, 512)
	for {
		if _, err := ch.Stderr().Read(buf); err != nil {
			return
		}
	}
}

// close ends the link and all its wires. The first error is what everybody is told.
func (l *link) close(err error) {
	p := l.pool
	p.mu.Lock()
	if !l.gone {
		l.gone, l.cause = true, err
	}
	wires := append([]*wire(nil), l.wires...)
	for i, other := range p.links {
		if other == l {
			p.links = append(p.links[:i:i], p.links[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	for _, w := range wires {
		w.fail(err)
	}
	l.nc.Close()
}

// watch closes what is silent while somebody waits, and what nobody has used for a while.
func (p *pool) watch() {
	tick := time.NewTicker(min(max(p.set.timeout/10, 10*time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-p.base.Done():
			return
		case now := <-tick.C:
			p.look(now)
		}
	}
}

func (p *pool) look(now time.Time) {
	p.mu.Lock()
	var silent, idle []*wire
	var unused []*link
	for _, l := range p.links {
		used := l.opening > 0
		for _, w := range l.wires {
			n, slow := w.load()
			limit := p.set.timeout
			if slow {
				limit *= 4
			}
			quiet := now.Sub(w.used)
			if n > 0 || w.users > 0 || w.streams > 0 {
				quiet = 0
			}
			used = used || quiet < idleLink
			switch {
			case n > 0 && now.Sub(time.Unix(0, w.last.Load())) > limit:
				silent = append(silent, w)
			case quiet > idleWire && !w.main:
				idle = append(idle, w)
			}
		}
		if !used {
			unused = append(unused, l)
		}
	}
	p.mu.Unlock()
	for _, w := range silent {
		err := &lostError{cause: errSilent, stalled: true}
		if now.Sub(time.Unix(0, w.link.nc.last.Load())) > p.set.timeout/2 {
			w.link.close(err)
		} else {
			w.fail(err)
		}
	}
	for _, w := range idle {
		w.fail(&lostError{cause: errors.New("idle")})
	}
	for _, l := range unused {
		l.close(&lostError{cause: errors.New("idle")})
	}
}

// share counts a stream that wants lanes and returns how many it may have. Unshare ends it.
func (p *pool) share() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams++
	return min(maxLanes, max(1, allLanes/p.streams))
}

// ahead is how many bytes a stream with so many lanes may have under way.
func (p *pool) ahead(lanes int) int {
	if lanes == 1 {
		return inLane
	}
	if lanes > 2 { // the first is spared
		lanes--
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(lanes*inLane, max(inLane/2, inAll/max(1, p.streams)))
}

func (p *pool) unshare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams--
}

// mark counts a long stream on a wire that short calls use too, so that these go elsewhere where they can; with -1 it has ended.
func (p *pool) mark(w *wire, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.streams += n
}

// hold keeps a wire from being closed as idle, until put.
func (p *pool) hold(w *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.users++
}
