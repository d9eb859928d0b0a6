// Package store is what the box remembers: SQLite in the data folder by default, PostgreSQL when one machine is outgrown.
//
// Both databases run the same SQL: $1 placeholders, ON CONFLICT DO UPDATE, RETURNING, times as BIGINT Unix nanoseconds, an explicit ORDER
// BY, prefixes as range scans (name >= $1 AND name < $2), never LIKE, never FOR UPDATE. Text compares by bytes on both. A feature keeps its
// SQL in its own package; only the sequence of migrations is central (folder schema).
//
// Writes go through Update: concurrent Updates share one transaction and one sync (group commit), led by one of the callers, so an
// uncontended Update costs no switch of goroutines and no timer delays it. Transactions are serializable on both databases: SQLite has one
// writer, PostgreSQL runs SERIALIZABLE and a batch that lost against another node is run again. Reads go to connections of their own and
// never wait for a writer.
package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"sync"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
)

// Config says where the state lives.
type Config struct {
	URL      string       // "" is the SQLite file Dir/cellgate.db; else a PostgreSQL "postgres://…" URL
	Dir      string       // the data folder, made when missing; needed for SQLite, locked against a second process when given
	Unsynced bool         // acknowledge before the disk has it: for tests
	Clock    *clock.Clock // for leases; nil is the real one
	Logger   *slog.Logger // nil discards
}

// DB is an open store. It is safe for concurrent use.
type DB struct {
	clock   *clock.Clock
	log     *slog.Logger
	dialect dialect
	readers *sql.DB
	writers *sql.DB  // lends one connection at a time to the batch that runs
	lock    *os.File // the flock on the data folder, nil without one

	mu       sync.Mutex
	idle     sync.Cond // no batch runs and none waits
	queue    []*call   // guarded by mu
	leading  bool      // somebody runs batches; guarded by mu
	reminded bool      // a timer will serve what Later left; guarded by mu
	closed   bool      // guarded by mu
	broken   error     // why the last transaction failed as a whole; guarded by mu

	w writer // belongs to whoever leads
}

// Open opens the store, makes or migrates its tables, and returns it ready. Kinds: Busy when another process holds the data folder,
// Unavailable when PostgreSQL does not answer, Corrupt when the file is no database of ours, Invalid for a URL that makes no sense.
func Open(ctx context.Context, cfg Config) (_ *DB, err error) {
	db := &DB{clock: cfg.Clock, log: cfg.Logger}
	db.idle.L = &db.mu
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			db.release()
		}
	}()
	if cfg.Dir != "" {
		if db.lock, err = lockDir(cfg.Dir); err != nil {
			return nil, err
		}
	}
	if cfg.URL == "" {
		db.dialect, err = newSQLite(cfg)
	} else {
		db.dialect, err = newPostgres(cfg)
	}
	if err != nil {
		return nil, err
	}
	db.writers, db.readers = db.dialect.pools()
	if err := db.writers.PingContext(ctx); err != nil {
		return nil, db.fault("store.Open", err)
	}
	if err := migrate(ctx, db.dialect, db.writers, newest); err != nil {
		return nil, err
	}
	if p, ok := db.dialect.(*postgresDB); ok {
		if err := transact(ctx, p, func(tx *Tx) error {
			if cut, err := p.unfinished(tx); err != nil || !cut {
				return err
			}
			return fault.New("store.Open", "", fault.Unavailable, errUnfinished)
		}); err != nil {
			return nil, err
		}
	}
	db.w = writer{db: db, tx: Tx{kind: db.dialect.kind}}
	return db, nil
}

// Close finishes the queued writes, then closes the store. Updates that come later fail.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	db.serveQueue()
	for db.leading {
		db.idle.Wait()
	}
	db.mu.Unlock()
	db.w.discard()
	return db.release()
}

func (db *DB) release() error {
	var errs []error
	if db.readers != nil {
		errs = append(errs, db.readers.Close())
	}
	if db.writers != nil {
		errs = append(errs, db.writers.Close()) // the last to go, so that SQLite checkpoints and removes its log
	}
	if db.lock != nil {
		errs = append(errs, db.lock.Close())
	}
	return fault.Wrap("store.Close", "", errors.Join(errs...))
}

// Err returns why writing fails at present, nil when the last transaction went through. It is for health checks.
func (db *DB) Err() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.broken
}

// Query reads the committed state. The caller closes the rows, soon: until then they occupy a connection, of which there are some dozens.
func (db *DB) Query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	rows, err := db.readers.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, db.fault("store.Query", err)
	}
	return rows, nil
}

// QueryRow reads one row of the committed state; Scan returns sql.ErrNoRows when there is none. On SQLite ctx is only looked at before the
// query starts: watching it would cost more than a look-up by key. So a long aggregate belongs into Query.
func (db *DB) QueryRow(ctx context.Context, q string, args ...any) *sql.Row {
	if db.dialect.local() && ctx.Err() == nil {
		ctx = context.WithoutCancel(ctx)
	}
	return db.readers.QueryRowContext(ctx, q, args...)
}

// View runs fn on one consistent snapshot. fn must not write.
func (db *DB) View(ctx context.Context, fn func(tx *Tx) error) error {
	const op = "store.View"
	conn, err := db.readers.Conn(ctx)
	if err != nil {
		return db.fault(op, err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, db.dialect.beginView()); err != nil {
		return db.fault(op, err)
	}
	tx := &Tx{conn: conn, ctx: ctx, kind: db.dialect.kind}
	defer func() {
		tx.closeRows()
		if _, err := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); err != nil {
			drop(conn)
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.failed
}

func (db *DB) fault(op string, err error) error {
	return fault.New(op, "", db.dialect.kind(err), err)
}
