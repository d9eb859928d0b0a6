package ftp

import (
	"context"
	"errors"
	"sync"
	"time"
)

// class says what a connection is taken for. Metadata may use all there are; transfers leave one free so that a few long ones do not stop
// everything; readers and listings, which callers hold while they ask for more, leave another for writers, so that copies cannot block each
// other.
type class int

const (
	meta class = iota
	writing
	reading
)

const (
	idleTime  = 45 * time.Second // then a connection is closed
	crowdTime = time.Minute      // after which more connections are tried again
)

// pool holds the control connections. Waiting ends when ctx does, or when nothing has moved on any of them for the timeout.
type pool struct {
	b     *Backend
	limit int // as configured

	mu       sync.Mutex // guards what follows
	all      map[*conn]bool
	free     []*conn // the latest last
	open     int     // those in all and those being dialled
	using    [3]int  // by class, taken
	waiting  []chan struct{}
	few      int // what the server takes, when it said so; 0 unknown
	fewUntil time.Time
	moved    time.Time // when something last moved
	sweeper  *time.Timer
	closed   bool
}

// move notes progress, for those who wait.
func (p *pool) move() {
	p.mu.Lock()
	p.moved = time.Now()
	p.mu.Unlock()
}

// size is how many connections there may be now. The caller holds mu.
func (p *pool) size() int {
	if p.few > 0 && time.Now().Before(p.fewUntil) {
		return min(p.few, p.limit)
	}
	return p.limit
}

// may reports whether one more of class k may be taken. The caller holds mu.
func (p *pool) may(k class) bool {
	n := p.size()
	transfers := n
	if n > 2 {
		transfers--
	}
	held := max(transfers-1, 1)
	taken := p.using[meta] + p.using[writing] + p.using[reading]
	switch {
	case taken >= n:
		return false
	case k == meta:
		return true
	case p.using[writing]+p.using[reading] >= transfers:
		return false
	}
	return k == writing || p.using[reading] < held
}

// get returns a connection that is logged in, watched by ctx and owes nothing. Fresh asks for one that was not idle.
func (p *pool) get(ctx context.Context, k class, fresh bool) (*conn, error) {
	if err := p.slot(ctx, k); err != nil {
		return nil, err
	}
	start := time.Now()
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		for {
			c := p.take(fresh)
			if c == nil {
				break
			}
			c.class, c.reused, c.heard = k, true, false
			c.watch(ctx)
			if c.settle(settleTime) && alive(c.raw) {
				return c, nil
			}
			c.unwatch()
			p.drop(c)
		}
		if !p.room() { // as many as there may be are open and idle, but fresh was asked for
			fresh = false
			continue
		}
		c, err := p.b.dial(ctx)
		if err == nil {
			c.class = k
			if p.enter(c) {
				return c, nil
			}
			c.unwatch()
			c.close()
			err = &lostError{errClosed}
		}
		var crowd *crowdError
		if !errors.As(err, &crowd) {
			p.leave(k)
			return nil, err
		}
		p.b.cfg.Logger.Debug("ftp server takes no more connections", "datasource", p.b.cfg.Name, "err", err)
		if again := p.crowded(ctx, k, pause, start); again != nil {
			return nil, errors.Join(again, err)
		}
	}
}

// slot waits until a connection of class k may be taken, and counts it.
func (p *pool) slot(ctx context.Context, k class) error {
	p.mu.Lock()
	for !p.closed && !p.may(k) {
		wake := make(chan struct{})
		p.waiting = append(p.waiting, wake)
		wait := p.b.timeout - time.Since(p.moved)
		p.mu.Unlock()
		timer := time.NewTimer(max(wait, time.Millisecond))
		var err error
		select {
		case <-wake:
		case <-ctx.Done():
			err = &lostError{ctx.Err()}
		case <-timer.C:
		}
		timer.Stop()
		p.mu.Lock()
		if err == nil && !p.may(k) && time.Since(p.moved) >= p.b.timeout {
			err = errBusy
		}
		if err != nil {
			p.wake() // whom this one stood before
			p.mu.Unlock()
			return err
		}
	}
	defer p.mu.Unlock()
	if p.closed {
		return &lostError{errClosed}
	}
	if taken := p.using[meta] + p.using[writing] + p.using[reading]; taken == 0 {
		p.moved = time.Now() // who waits from now on waits for this one
	}
	p.using[k]++
	return nil
}

// wake lets all who wait look again. The caller holds mu.
func (p *pool) wake() {
	for _, w := range p.waiting {
		close(w)
	}
	p.waiting = p.waiting[:0]
}

func (p *pool) take(fresh bool) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh || len(p.free) == 0 {
		return nil
	}
	c := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return c
}

// room counts one more open connection, when there may be one; idle ones make room.
func (p *pool) room() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open >= p.size() && len(p.free) > 0 {
		c := p.free[0]
		p.free = p.free[1:]
		p.forget(c)
	}
	if p.open >= p.size() && len(p.free) > 0 {
		return false
	}
	p.open++
	return true
}

// enter makes a dialled connection one of the pool, or reports that the pool was closed.
func (p *pool) enter(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.all[c] = true
	p.moved = time.Now()
	return true
}

// forget closes c. The caller holds mu.
func (p *pool) forget(c *conn) {
	if p.all[c] {
		delete(p.all, c)
		p.open--
	}
	c.close()
}

// drop closes a connection whose slot stays taken.
func (p *pool) drop(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(c)
}

// leave gives a slot back for which no connection could be had.
func (p *pool) leave(k class) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.using[k]--
	p.wake()
}

// crowded is called when the server refused one more connection. It waits for one to come free, or for a pause when there are none of ours:
// then others use them all, and that is borne for the timeout from start.
func (p *pool) crowded(ctx context.Context, k class, pause time.Duration, start time.Time) error {
	p.mu.Lock()
	p.open--
	p.using[k]--
	if p.open > 0 {
		p.few, p.fewUntil = p.open, time.Now().Add(crowdTime)
		p.wake()
		p.mu.Unlock()
		return p.slot(ctx, k)
	}
	stalled := time.Since(start) >= p.b.timeout
	p.mu.Unlock()
	if stalled {
		return errBusy
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return &lostError{ctx.Err()}
	case <-timer.C:
		return p.slot(ctx, k)
	}
}

// put takes a connection back, or closes it when it is of no more use.
func (p *pool) put(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.using[c.class]--
	p.moved = time.Now()
	defer p.wake()
	if c.broken || p.closed || p.open > p.size() {
		p.forget(c)
		return
	}
	c.idle = time.Now()
	p.free = append(p.free, c)
	if p.sweeper == nil {
		p.sweeper = time.AfterFunc(idleTime, p.sweep)
	}
}

// sweep closes connections that were idle for long. It comes again while there are any.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweeper = nil
	old := time.Now().Add(-idleTime)
	for len(p.free) > 0 && !p.free[0].idle.After(old) {
		c := p.free[0]
		p.free = p.free[1:]
		p.forget(c)
	}
	if len(p.free) > 0 && !p.closed {
		p.sweeper = time.AfterFunc(p.free[0].idle.Sub(old)+time.Millisecond, p.sweep)
	}
}

// flush closes what is idle: the server was found to have gone.
func (p *pool) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.free {
		p.forget(c)
	}
	p.free = nil
}

// close closes all connections, also those in use.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
	for c := range p.all {
		c.close()
	}
	clear(p.all)
	p.free, p.open = nil, 0
	p.wake()
}
