package smb

import (
	"context"
	"sync"
	"time"

	"cellgate/internal/fault"
)

// pool holds sessions, as many as calls need, but no more than most.
type pool struct {
	b    *Backend
	most int

	mu      sync.Mutex
	open    []*session // guarded by mu
	dialing int        // guarded by mu
	next    *news      // of open and dialing, nil while nobody waits for it; guarded by mu
}

// news is what those wait for who find all sessions being dialled.
type news struct {
	told chan none
	err  error // why a session could not be had, which holds for those who waited, too; valid once told is closed
}

const busyAt = 3 // calls and files on each session at which another one is dialled

// get returns a session for a call: the least loaded one whose server answers, or a new one.
func (p *pool) get(ctx context.Context) (*session, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p.mu.Lock()
		best, load := p.best()
		room := len(p.open)+p.dialing < p.most
		if best != nil && (load < busyAt || !room) {
			p.mu.Unlock()
			return best, nil
		}
		if !room { // all are being dialled
			if p.next == nil {
				p.next = &news{told: make(chan none)}
			}
			next := p.next
			p.mu.Unlock()
			select {
			case <-next.told:
				if next.err != nil {
					return nil, next.err
				}
			case <-ctx.Done():
			}
			continue
		}
		p.dialing++
		p.mu.Unlock()
		s, err := p.b.dial(ctx)
		p.mu.Lock()
		p.dialing--
		if err == nil {
			p.open = append(p.open, s)
		}
		why := err
		if ctx.Err() != nil { // which is this caller's own reason
			why = nil
		}
		p.tell(why)
		p.mu.Unlock()
		if err == nil {
			return s, nil
		}
		if best != nil && ctx.Err() == nil { // the server takes no more of them
			return best, nil
		}
		return nil, err
	}
}

// best drops dead sessions and returns the one to use: quiet ones only where no other can be had. The caller holds mu.
func (p *pool) best() (best *session, least int) {
	var silent *session
	alive := p.open[:0]
	for _, s := range p.open {
		ok, quiet, load := s.state()
		if !ok {
			continue
		}
		alive = append(alive, s)
		if quiet {
			silent = s
		} else if best == nil || load < least {
			best, least = s, load
		}
	}
	clear(p.open[len(alive):])
	p.open = alive
	if best == nil && len(p.open)+p.dialing >= p.most {
		best = silent
	}
	return best, least
}

// tell wakes those who wait for a session. The caller holds mu.
func (p *pool) tell(err error) {
	if p.next != nil {
		p.next.err = err
		close(p.next.told)
		p.next = nil
	}
}

// close ends all sessions.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.open {
		s.kill(errClosed)
	}
	p.open = nil
	p.tell(errClosed)
}

// with runs do on a session of p, and once more on another where the first one is gone: always when the server knew it no longer, and when the
// connection broke only if the call is safe to repeat.
func with[T any](ctx context.Context, p *pool, safe bool, do func(*session) (T, error)) (T, error) {
	for again := false; ; again = true {
		s, err := p.get(ctx)
		if err != nil {
			var zero T
			return zero, err
		}
		v, err := do(s)
		if err == nil || again || ctx.Err() != nil || !expired(err) && !(safe && lost(err)) {
			return v, err
		}
		p.b.logger.Debug("smb session lost", "mount", p.b.cfg.name, "err", err)
	}
}

// patient repeats do for a moment while the file is in use: most programs, this one included, have files open for a moment only.
func patient[T any](ctx context.Context, do func() (T, error)) (T, error) {
	wait := 2 * time.Millisecond
	for waited := time.Duration(0); ; waited += wait {
		v, err := do()
		if err == nil || waited > patience || !inUse(err) {
			return v, err
		}
		wait = min(2*wait, 100*time.Millisecond)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

func inUse(err error) bool {
	switch status(err) {
	case statusSharing, statusDeletePending:
		return true
	}
	return kindOf(err) == fault.Busy && err == errInUse
}
