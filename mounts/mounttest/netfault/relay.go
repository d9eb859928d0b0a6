package netfault

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	piece    = 128 << 10 // read at once
	small    = 16 << 10  // pieces up to this size are copied, so that few bytes do not hold a large buffer
	leastRun = 1 << 20   // bytes that may be under way in a direction of a connection without a delay
	mostRun  = 64 << 20
	fullRate = 1 << 30 // bytes a second for which there is room under way
	dialTime = 10 * time.Second
)

func (p *Proxy) buffer() *[piece]byte {
	if buf, ok := p.buffers.Get().(*[piece]byte); ok {
		return buf
	}
	return new([piece]byte)
}

// conn is one connection through the link.
type conn struct {
	p      *Proxy
	client *net.TCPConn
	server *net.TCPConn  // set before the lanes run, nil until then
	done   chan struct{} // closed by reset and when both directions have ended
	once   sync.Once
	mu     sync.Mutex
	passed atomic.Int64 // bytes of both directions
}

func (p *Proxy) relay(client *net.TCPConn) {
	c := &conn{p: p, client: client, done: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		client.Close()
		return
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	defer func() {
		c.end(false)
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()

	// Bytes are read from the start, so that they count as sent then. The kernel has told the client that it is connected; on a real link
	// that takes a round trip, and the server hears of it half a round trip later.
	toServer, toClient := newRun(), newRun()
	var both sync.WaitGroup
	defer both.Wait()
	l, _ := p.now()
	narrow(client, l)
	began := time.Now()
	both.Go(func() { c.take(client, toServer) })
	defer toServer.drop()
	defer toClient.drop()
	if !c.wait(began, 3) {
		c.end(true)
		return
	}
	server, err := net.DialTimeout("tcp", p.upstream, dialTime)
	if err != nil {
		c.end(true)
		return
	}
	if !c.connect(server.(*net.TCPConn)) {
		return // reset meanwhile
	}
	narrow(c.server, l)
	both.Go(func() { c.take(c.server, toClient) })
	var lanes sync.WaitGroup
	lanes.Go(func() { c.give(c.server, toServer, up) })
	lanes.Go(func() { c.give(client, toClient, down) })
	lanes.Wait()
}

// narrow keeps the kernel from taking megabytes off a sender that a slow line has yet to carry.
func narrow(conn *net.TCPConn, l line) {
	if l.rate > 0 {
		conn.SetReadBuffer(piece / 2)
		conn.SetWriteBuffer(piece / 2)
	}
}

// connect notes the server's side. It reports whether the connection still is wanted.
func (c *conn) connect(server *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		server.Close()
		return false
	default:
		c.server = server
		return true
	}
}

// reset ends the connection as if a machine had forgotten it.
func (c *conn) reset() { c.end(true) }

func (c *conn) end(reset bool) {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.done)
		for _, side := range []*net.TCPConn{c.client, c.server} {
			if side == nil {
				continue
			}
			if reset {
				side.SetLinger(0)
			}
			side.Close()
		}
	})
}

// take reads what a side sends into the run.
func (c *conn) take(from *net.TCPConn, to *run) {
	for {
		buf := c.p.buffer()
		n, err := from.Read(buf[:])
		part := part{at: time.Now(), data: buf[:n], whole: buf}
		if n <= small {
			part.data, part.whole = append([]byte(nil), part.data...), nil
			c.p.buffers.Put(buf)
		}
		l, _ := c.p.now()
		if n > 0 && !to.add(part, l.room()) {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			to.add(newEnd(orderly), mostRun)
			return
		case err != nil:
			to.add(newEnd(broken), mostRun)
			return
		}
	}
}

// room is how many bytes may be under way: as many as the line carries during its delay, and some more for the sender to run ahead.
func (l line) room() int {
	rate, least := int64(fullRate), leastRun
	if l.rate > 0 {
		rate, least = l.rate, piece/2
	}
	return min(max(int(float64(rate)*l.delay.Seconds()), least), mostRun)
}

// give writes the run to the other side, as the line lets it.
func (c *conn) give(to *net.TCPConn, from *run, way int) {
	for {
		part := from.next()
		switch {
		case !c.wait(part.at, 1):
			return
		case part.end == orderly:
			to.CloseWrite()
			return
		case part.end == broken:
			c.end(true)
			return
		case !c.send(to, part.data, way):
			return
		}
		if part.whole != nil {
			c.p.buffers.Put(part.whole)
		}
	}
}

// wait returns when so many delays have passed since at and the line is not stalled. It reports whether the connection still is there.
func (c *conn) wait(at time.Time, delays int) bool {
	for {
		l, changed := c.p.now()
		left := time.Until(at.Add(l.delay * time.Duration(delays)))
		if !l.stalled && left <= 0 {
			select {
			case <-c.done:
				return false
			default:
				return true
			}
		}
		var due <-chan time.Time
		if !l.stalled {
			due = time.After(left)
		}
		select {
		case <-due:
		case <-changed:
		case <-c.done:
			return false
		}
	}
}

// send writes data at the line's rate and up to the place where the connection is to be cut.
func (c *conn) send(to *net.TCPConn, data []byte, way int) bool {
	for len(data) > 0 {
		l, _ := c.p.now()
		now := data
		if l.rate > 0 {
			now = data[:min(len(data), int(max(l.rate/100, 1)))]
			due := c.p.lanes[way].reserve(len(now), l.rate)
			if !c.wait(due.Add(-l.delay), 1) {
				return false
			}
		}
		now, cut := c.allowed(now, l)
		n, err := to.Write(now)
		c.p.lanes[way].bytes.Add(int64(n))
		switch {
		case err != nil:
			c.end(true)
			return false
		case cut == cutAll:
			settle(to)
			c.p.Reset()
			return false
		case cut == cutOne:
			settle(to)
			c.end(true)
			return false
		}
		data = data[n:]
	}
	return true
}

// reserve returns when the line has room for n bytes.
func (l *lane) reserve(n int, rate int64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if late := time.Now().Add(-10 * time.Millisecond); l.free.Before(late) {
		l.free = late // timers are late by as much, which must not add up
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return l.free
}

type cut int

const (
	cutNone cut = iota
	cutOne
	cutAll
)

// allowed counts data and returns what of it passes before a cut.
func (c *conn) allowed(data []byte, l line) ([]byte, cut) {
	var what cut
	n := int64(len(data))
	if passed := c.passed.Add(n); l.every > 0 && passed >= l.every {
		n, what = max(n-(passed-l.every), 0), cutOne
	}
	for {
		left := c.p.cut.Load()
		if left < 0 {
			return data[:n], what
		}
		rest, hit := left-n, left <= n
		if hit {
			rest = -1 // only one of the connections gets here, and cuts all
		}
		if c.p.cut.CompareAndSwap(left, rest) {
			if hit {
				return data[:left], cutAll
			}
			return data[:n], what
		}
	}
}

// part is what was read at once, or how a side ended.
type part struct {
	at    time.Time
	data  []byte
	whole *[piece]byte // the buffer that data lies in, nil when it has its own
	end   end
}

type end int

const (
	not end = iota
	orderly
	broken
)

func newEnd(how end) part { return part{at: time.Now(), end: how} }

// run is the queue of what is under way in one direction of a connection.
type run struct {
	mu      sync.Mutex
	moved   sync.Cond
	parts   []part // guarded by mu
	size    int    // guarded by mu
	dropped bool   // nobody reads any more, guarded by mu
}

func newRun() *run {
	r := &run{}
	r.moved.L = &r.mu
	return r
}

// add waits for room, which an end needs none of. It reports whether anybody still reads.
func (r *run) add(p part, room int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.size > 0 && r.size+len(p.data) > room && p.end == not && !r.dropped {
		r.moved.Wait()
	}
	r.parts = append(r.parts, p)
	r.size += len(p.data)
	r.moved.Broadcast()
	return !r.dropped
}

// drop ends the waiting of add.
func (r *run) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped = true
	r.moved.Broadcast()
}

// next waits for the next part, of which the last is an end.
func (r *run) next() part {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.parts) == 0 {
		r.moved.Wait()
	}
	p := r.parts[0]
	r.parts = r.parts[1:]
	r.size -= len(p.data)
	r.moved.Broadcast()
	return p
}
