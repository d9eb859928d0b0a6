package store

import (
	"context"
	"errors"
	"runtime"
	"time"

	"cellgate/internal/fault"
)

// call is one function in the queue.
type call struct {
	fn    func(*Tx) error
	wake  chan bool // what its Update waits for: true says lead, false says done; nil for Later
	state state     // guarded by DB.mu
	err   error     // written by the leader before done
}

type state uint8

const (
	waiting state = iota
	picked        // its outcome is decided by the batch, no more by its caller
	left          // its caller has gone
	done
)

// Update runs fn in a write transaction and returns when it is durable, or returns why it is not: fn's own error undoes fn alone, although
// it shares the transaction with other Updates.
//
// fn may run more than once, and not on the caller's goroutine, so it must have no effects but on tx and on variables it sets itself; it
// must be short and must not call Update, Flush or anything slow. ctx counts until a batch picks fn up; from then on Update waits for the
// outcome, which is never in doubt, with one exception: when the connection to PostgreSQL breaks in COMMIT, the answer is Unavailable and
// the transaction may have happened.
//
// Kinds besides fn's own: NoSpace (the disk is full), Unavailable (the disk or the server fails), Canceled or Timeout (ctx, nothing was done).
func (db *DB) Update(ctx context.Context, fn func(tx *Tx) error) error {
	const op = "store.Update"
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, "", err)
	}
	c := &call{fn: fn, wake: make(chan bool, 1)}
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return fault.New(op, "", fault.Unavailable, errClosed)
	}
	db.queue = append(db.queue, c)
	lead := !db.leading
	if lead {
		db.leading, c.state = true, picked
	}
	db.mu.Unlock()
	if !lead {
		select {
		case lead = <-c.wake:
		case <-ctx.Done():
			if db.leave(c) {
				return fault.Wrap(op, "", ctx.Err())
			}
			lead = <-c.wake
		}
	}
	if lead {
		db.lead(c)
	}
	return c.err
}

var errClosed = errors.New("the store is closed")

// linger is how long what Later left waits for an Update to take it along, before it gets a transaction of its own.
const linger = 20 * time.Millisecond

// Later has fn join the next batch and does not wait for it; where no other comes, it gets one a moment later. A failure is logged. A crash
// may lose it; Close and Flush wait for it. After Close it is dropped.
func (db *DB) Later(fn func(tx *Tx) error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		db.log.Warn("late write dropped: the store is closed")
		return
	}
	db.queue = append(db.queue, &call{fn: fn})
	db.remind()
}

// remind sees to it that what is in the queue is served, also when nobody else comes. The caller holds mu.
func (db *DB) remind() {
	if db.leading || db.reminded || len(db.queue) == 0 {
		return
	}
	db.reminded = true
	time.AfterFunc(linger, func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.reminded = false
		db.serveQueue()
	})
}

// serveQueue has a goroutine serve the queue unless somebody does. The caller holds mu; Close waits until nobody leads.
func (db *DB) serveQueue() {
	if !db.leading && len(db.queue) > 0 {
		db.leading = true
		go db.lead(nil)
	}
}

// Flush waits until everything that was queued before it, by Later above all, is durable or has failed.
func (db *DB) Flush(ctx context.Context) error {
	return db.Update(ctx, func(*Tx) error { return nil })
}

// leave takes a waiting call out of the race and reports whether it was still waiting.
func (db *DB) leave(c *call) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if c.state != waiting {
		return false
	}
	c.state, c.fn = left, nil
	return true
}

// lead runs batches until the leader's own call is done (one batch without an own call), then passes the lead on. It does so even when a
// function ends the goroutine by runtime.Goexit, as a test's FailNow does.
func (db *DB) lead(own *call) {
	defer db.passOn()
	for {
		db.w.serve()
		if own == nil || own.state == done {
			return
		}
	}
}

// passOn makes the first caller in the queue the leader. Without one the store is idle, but for what Later left.
func (db *DB) passOn() {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, c := range db.queue {
		if c.state == waiting && c.wake != nil {
			c.state = picked
			c.wake <- true
			return
		}
	}
	db.leading = false
	if db.closed {
		db.serveQueue()
	}
	if !db.leading {
		db.remind()
		db.idle.Broadcast()
	}
}

// gather lets callers who are about to queue up do so: a transaction costs so much more than what one of them adds to it that a few turns of
// the scheduler are well spent. It does not sleep, and a caller who is alone does not wait.
func (db *DB) gather() {
	for last, turns := -1, 0; turns < maxTurns; turns++ {
		db.mu.Lock()
		n := len(db.queue)
		db.mu.Unlock()
		if n == last {
			return
		}
		last = n
		runtime.Gosched()
	}
}

// maxTurns bounds gather.
const maxTurns = 16

// pick takes the next call out of the queue, nil when there is none.
func (db *DB) pick() *call {
	db.mu.Lock()
	defer db.mu.Unlock()
	for len(db.queue) > 0 {
		c := db.queue[0]
		db.queue[0] = nil
		db.queue = db.queue[1:]
		if c.state != left {
			c.state = picked
			return c
		}
	}
	db.queue = nil
	return nil
}
