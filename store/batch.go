package store

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"cellgate/internal/fault"
)

const (
	maxBatch = 256                  // functions in one transaction
	maxWork  = 5 * time.Millisecond // a batch that has run this long takes nobody in any more
	maxRuns  = 10                   // of a batch that lost against another node, or its connection
	minPause = time.Millisecond     // before the second run; doubles
	maxPause = 250 * time.Millisecond
)

var (
	errSpoiled = errors.New("a function of the batch failed after it had written")
	errEnded   = errors.New("a function of the batch ended its goroutine")
)

// writer runs batches on the one writing connection. It belongs to the leader of the moment.
//
// A batch first runs without savepoints, for they cost as much as a statement each. When a function fails after it has written, the whole
// is rolled back and run again with a savepoint round each function, so that only the guilty one fails. When the batch fails as a whole (a
// flusher, COMMIT, a full disk), each function gets a transaction of its own.
type writer struct {
	db      *DB
	conn    *sql.Conn // nil before the first batch
	sick    bool      // conn is to be replaced before it is used
	tx      Tx
	batch   []*call
	decided bool // every call of the batch has its outcome
}

// serve runs one batch and tells its callers.
func (w *writer) serve() {
	defer w.finish()
	w.decided = false
	w.db.gather()
	start := time.Now()
	err := w.attempt(false, func() *call {
		if len(w.batch) >= maxBatch || len(w.batch) > 0 && time.Since(start) > maxWork {
			return nil
		}
		c := w.db.pick()
		if c != nil {
			w.batch = append(w.batch, c)
		}
		return c
	})
	if err == errSpoiled {
		err = w.attempt(true, each(w.batch))
	}
	w.settle(w.batch, err)
	w.decided = true
}

// settle gives the calls of a batch that ended with err their outcome, running them again as err allows.
func (w *writer) settle(batch []*call, err error) {
	for n := 0; err != nil && w.db.dialect.verdict(err) == again && n < maxRuns; n++ {
		pause := min(minPause<<n, maxPause)
		time.Sleep(pause/2 + rand.N(pause))
		err = w.attempt(true, each(batch))
	}
	if err != nil && len(batch) > 1 {
		if v := w.db.dialect.verdict(err); v == guilty || v == alone {
			for i := range batch {
				w.settle(batch[i:i+1], w.attempt(true, each(batch[i:i+1])))
			}
			return
		}
	}
	if err == nil {
		w.db.setBroken(nil)
		return
	}
	if f := (*fault.Error)(nil); !errors.As(err, &f) {
		err = w.db.fault("store.Update", err)
	}
	if w.db.dialect.verdict(err) != guilty {
		w.db.setBroken(err)
	}
	for _, c := range batch {
		c.err = err
	}
}

// finish wakes the callers of the batch.
func (w *writer) finish() {
	w.db.mu.Lock()
	for _, c := range w.batch {
		c.state, c.fn = done, nil
	}
	w.db.mu.Unlock()
	for i, c := range w.batch {
		if !w.decided {
			c.err = fault.New("store.Update", "", fault.Internal, errEnded)
		}
		if c.wake != nil {
			c.wake <- false
		} else if c.err != nil {
			w.db.log.Error("late write failed", "err", c.err)
		}
		w.batch[i] = nil
	}
	w.batch = w.batch[:0]
}

// each returns the calls one after another.
func each(batch []*call) func() *call {
	return func() *call {
		if len(batch) == 0 {
			return nil
		}
		c := batch[0]
		batch = batch[1:]
		return c
	}
}

// attempt runs the calls that next yields in one transaction. A nil error means that each has its outcome: what did not fail by itself is
// durable. After an error nothing has happened, and no outcome counts. With guard, each call has a savepoint.
func (w *writer) attempt(guard bool, next func() *call) error {
	ctx, cancel := w.db.dialect.timeout()
	defer cancel()
	err := w.connect(ctx)
	if err == nil {
		w.tx.begin(ctx, w.conn)
		_, err = w.conn.ExecContext(ctx, w.db.dialect.begin())
	}
	if err != nil {
		w.sick = true
		for next() != nil { // they fail, too
		}
		return err
	}
	open := true
	defer func() {
		if open {
			w.rollback()
		}
		w.tx.end()
	}()
	ran := 0
	for c := next(); c != nil; c = next() {
		if ran++; guard {
			if err := w.savepoint(ctx, "SAVEPOINT call"); err != nil {
				return err
			}
		}
		m := w.tx.mark()
		if c.err = w.tx.run(c.fn); c.err != nil {
			w.tx.forget(m)
			clean := w.tx.failed == nil && !w.tx.wrote
			switch {
			case w.verdictOf(c.err) != guilty:
				return errors.Join(w.tx.failed, c.err)
			case clean:
			case guard:
				w.tx.failed = nil
				if err := w.savepoint(ctx, "ROLLBACK TO SAVEPOINT call"); err != nil {
					return err
				}
			case ran == 1: // alone so far: nobody else is spoiled, whoever is still queued gets the next batch
				return nil
			default:
				return errSpoiled
			}
		}
		if guard {
			if err := w.savepoint(ctx, "RELEASE SAVEPOINT call"); err != nil {
				return err
			}
		}
	}
	if err := w.tx.flush(); err != nil {
		return errors.Join(w.tx.failed, err)
	}
	if err := w.db.dialect.commit(ctx, w.conn); err != nil {
		if w.db.dialect.verdict(err) == fatal {
			w.sick = true
		}
		return err
	}
	open = false
	for _, fn := range w.tx.onCommit {
		w.notify(fn)
	}
	return nil
}

// verdictOf judges the failure of a function. Unless a statement failed, only an error of the database itself is more than the function's
// own affair.
func (w *writer) verdictOf(err error) verdict {
	if w.tx.failed != nil {
		err = w.tx.failed
	} else if !w.db.dialect.own(err) {
		return guilty
	}
	return w.db.dialect.verdict(err)
}

func (w *writer) savepoint(ctx context.Context, q string) error {
	_, err := w.conn.ExecContext(ctx, q)
	return err
}

func (w *writer) notify(fn func()) {
	defer func() {
		if p := recover(); p != nil {
			w.db.log.Error("panic after a commit", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	fn()
}

// rollback ends the transaction. SQLite may have done so by itself; a connection that cannot is replaced.
func (w *writer) rollback() {
	w.tx.closeRows()
	ctx, cancel := w.db.dialect.timeout()
	defer cancel()
	if _, err := w.conn.ExecContext(ctx, "ROLLBACK"); err != nil && w.db.dialect.verdict(err) != guilty {
		w.sick = true
	}
}

// connect makes sure of a connection. A sick one is closed only after the new one is open: while a connection is left, SQLite keeps the
// index of its log, and with it the knowledge that the frames of the failed transaction do not count.
func (w *writer) connect(ctx context.Context) error {
	if w.conn != nil && !w.sick {
		return nil
	}
	conn, err := w.db.writers.Conn(ctx)
	if err != nil {
		return err
	}
	if w.conn != nil {
		drop(w.conn)
		w.conn = nil
	}
	if w.sick {
		if err := w.db.dialect.repair(ctx, conn); err != nil {
			drop(conn)
			return err
		}
	}
	w.conn, w.sick = conn, false
	return nil
}

// discard gives up the connection, when the store closes.
func (w *writer) discard() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

func (db *DB) setBroken(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err != nil && db.broken == nil {
		db.log.Error("the store cannot write", "err", err)
	} else if err == nil && db.broken != nil {
		db.log.Info("the store writes again")
	}
	db.broken = err
}
