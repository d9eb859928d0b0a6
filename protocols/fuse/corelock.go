package fuse

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// coreLock is the lock on the core's table that stands for all write locks of a file on this mount.
type coreLock struct {
	gate  gate
	token string // "" while there is none; guarded by gate
	at    gateway.Path

	easing bool // it is going to be looked at; guarded by node.mu
}

const (
	// lockFor is how long the core's lock lasts: what a mount that was killed leaves behind is gone soon.
	lockFor = 30 * time.Second
	// lockAgain is when it is made to last longer.
	lockAgain = 10 * time.Second
	// lockLinger is how long it stays after the last write lock was given back, for those who lock again and again.
	lockLinger = time.Second
	// lockRetry is when somebody who waits for another user's lock looks again.
	lockRetry = 200 * time.Millisecond
	// lockMark says of a lock that it stands for those of a mount.
	lockMark = "cellgate-fuse"
)

// pause returns what is closed when it is time to look at another user's lock again.
func (f *fsys) pause() <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(lockRetry, func() { close(c) })
	return c
}

func (n *node) coreLock() *coreLock {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.locks.core == nil {
		n.locks.core = &coreLock{gate: newGate()}
	}
	return n.locks.core
}

// takeCore sees to it that the file is locked on the core's table. It returns EAGAIN when another user's lock, or one of another mount, is in
// the way. Where the core cannot lock, or the user may not, the locks of this mount are all there is.
func (f *fsys) takeCore(ctx context.Context, n *node) error {
	c := n.coreLock()
	if err := c.gate.lock(ctx); err != nil {
		return err
	}
	defer c.gate.unlock()
	if c.token != "" || f.isFresh(n) || f.tree.isGone(n) {
		return nil
	}
	p, err := f.tree.path(n)
	if err != nil {
		return nil
	}
	if _, err := f.s.Stat(ctx, p); err != nil {
		return nil // locking would make it
	}
	l, _, err := f.s.Lock(ctx, p, gateway.LockRequest{OwnerXML: lockMark, Timeout: lockFor})
	var taken *gateway.LockedError
	switch {
	case err == nil:
		c.token, c.at = l.Token, p
		time.AfterFunc(lockAgain, func() { f.renew(n) })
		return nil
	case errors.As(err, &taken):
		if taken.Lock.Owner == f.s.Subject().Login && !strings.Contains(taken.Lock.OwnerXML, lockMark) {
			return nil // the user's own, through another door: it does not bind the user
		}
		return syscall.EAGAIN
	case fault.KindOf(err) == fault.Canceled:
		return err
	}
	f.cfg.Logger.Debug("locks of a file are known to this mount only", "path", p.String(), "err", err)
	return nil
}

// renew makes the core's lock last while it is needed.
func (f *fsys) renew(n *node) {
	if f.life.Err() != nil {
		return
	}
	n.mu.Lock()
	needed := n.locks.writes()
	n.mu.Unlock()
	if !needed {
		return // ease gives it back
	}
	c := n.coreLock()
	if c.gate.lock(f.life) != nil {
		return
	}
	defer c.gate.unlock()
	if c.token == "" {
		return
	}
	ctx, cancel := context.WithTimeout(f.life, lockFor)
	defer cancel()
	if _, err := f.s.RefreshLock(ctx, c.at, c.token, lockFor); err != nil {
		f.cfg.Logger.Warn("a lock has ended early", "path", c.at.String(), "err", err)
		c.token = ""
		return
	}
	time.AfterFunc(lockAgain, func() { f.renew(n) })
}

// ease gives the core's lock back soon when no write lock is left.
func (f *fsys) ease(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.locks.core
	if c == nil || c.easing || n.locks.writes() {
		return
	}
	c.easing = true
	time.AfterFunc(lockLinger, func() {
		n.mu.Lock()
		c.easing = false
		n.mu.Unlock()
		f.giveBack(f.life, n, false)
	})
}

// giveBack ends the core's lock of n, with always even if it is needed still.
func (f *fsys) giveBack(ctx context.Context, n *node, always bool) {
	n.mu.Lock()
	c, needed := n.locks.core, n.locks.writes()
	n.mu.Unlock()
	if c == nil || needed && !always || c.gate.lock(ctx) != nil {
		return
	}
	defer c.gate.unlock()
	n.mu.Lock()
	needed = n.locks.writes()
	n.mu.Unlock()
	if c.token == "" || needed && !always {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lockFor)
	defer cancel()
	if err := f.s.Unlock(ctx, c.at, c.token); err != nil {
		f.cfg.Logger.Debug("a lock stays until it runs out", "path", c.at.String(), "err", err)
	}
	c.token = ""
}

// unlockBelow ends the core's locks of n and below it, which do not follow a move, and returns what takes them again.
func (f *fsys) unlockBelow(ctx context.Context, n *node) (again func()) {
	var locked []*node
	for _, n := range f.tree.below(n) {
		n.mu.Lock()
		has := n.locks.core != nil
		n.mu.Unlock()
		if has {
			f.giveBack(ctx, n, true)
			locked = append(locked, n)
		}
	}
	return func() {
		for _, n := range locked {
			n.mu.Lock()
			needed := n.locks.writes()
			n.mu.Unlock()
			if needed {
				_ = f.takeCore(context.WithoutCancel(ctx), n) // without it the locks of this mount remain
			}
		}
	}
}
