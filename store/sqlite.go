package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"cellgate/internal/fault"
)

const (
	sqliteFile    = "cellgate.db"
	sqliteReaders = 64 // so many only to be far from a deadlock of callers who query while they read rows; a statement alone keeps no connection
	sqliteIdle    = 8  // more would not make reading faster: modernc's SQLite does not scale over goroutines
)

// sqliteDB is the embedded database: a write-ahead log, one writing connection, some reading ones. An acknowledged transaction is synced
// (synchronous=FULL). Files are not mapped into memory: an I/O error would be a SIGBUS.
type sqliteDB struct{ w, r *sql.DB }

func newSQLite(cfg Config) (*sqliteDB, error) {
	const op = "store.Open"
	if cfg.Dir == "" {
		return nil, fault.New(op, "", fault.Invalid, errors.New("no data folder given"))
	}
	file, err := filepath.Abs(filepath.Join(cfg.Dir, sqliteFile))
	if err != nil {
		return nil, fault.Wrap(op, sqliteFile, err)
	}
	// SQLite gives its log the mode of the database, so the database is made here, whatever the umask.
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(op, sqliteFile, err)
	}
	err = errors.Join(f.Chmod(0o600), f.Close())
	if err != nil {
		return nil, fault.Wrap(op, sqliteFile, err)
	}
	sync := "FULL"
	if cfg.Unsynced {
		sync = "OFF"
	}
	open := func(lock string, conns int, idle time.Duration, pragmas ...string) (*sql.DB, error) {
		v := url.Values{"_txlock": {lock}, "_pragma": append([]string{
			"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(" + sync + ")", "foreign_keys(1)",
			"trusted_schema(0)", "temp_store(MEMORY)"}, pragmas...)}
		c, err := sqlite.NewConnector("file:" + (&url.URL{Path: file}).EscapedPath() + "?" + v.Encode())
		if err != nil {
			return nil, fault.New(op, sqliteFile, fault.Internal, err)
		}
		db := sql.OpenDB(preparing{c})
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(min(conns, sqliteIdle))
		db.SetConnMaxIdleTime(idle)
		return db, nil
	}
	d := new(sqliteDB)
	// Two, since a sick connection is closed after its successor is open.
	if d.w, err = open("immediate", 2, 0, "cache_size(-2048)", "wal_autocheckpoint(2000)"); err != nil {
		return nil, err
	}
	if d.r, err = open("deferred", sqliteReaders, time.Minute, "cache_size(-512)", "query_only(1)"); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *sqliteDB) name() string          { return "sqlite" }
func (d *sqliteDB) words() []wording      { return sqliteWords }
func (d *sqliteDB) pools() (w, r *sql.DB) { return d.w, d.r }
func (d *sqliteDB) local() bool           { return true }
func (d *sqliteDB) begin() string         { return "BEGIN IMMEDIATE" }
func (d *sqliteDB) beginView() string     { return "BEGIN" }
func (d *sqliteDB) timeout() (context.Context, context.CancelFunc) {
	return context.Background(), func() {}
}

func (d *sqliteDB) commit(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "COMMIT")
	return err
}

// repair starts the log afresh: after a failed sync nobody knows which of its pages the disk has, and pages the kernel took for written
// will not be written again. What is committed goes into the database file, under a sync of that file. A reader with an old snapshot may
// keep the log from being emptied; then it is still safe, since a new transaction writes every frame of the failed one anew or leaves it
// behind a broken checksum.
func (d *sqliteDB) repair(ctx context.Context, conn *sql.Conn) error {
	var busy, log, moved int
	if err := conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &moved); err != nil {
		return fmt.Errorf("starting the log afresh: %w", err)
	}
	return nil
}

// sqliteCode returns the extended result code of err, 0 when it is none of SQLite's.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func (d *sqliteDB) own(err error) bool { return sqliteCode(err) != 0 }

func (d *sqliteDB) conflict(err error) bool {
	switch sqliteCode(err) {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return true
	}
	return false
}

func (d *sqliteDB) kind(err error) fault.Kind {
	if d.conflict(err) {
		return fault.Exist
	}
	code := sqliteCode(err)
	switch code & 0xff {
	case sqlite3.SQLITE_FULL:
		return fault.NoSpace
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE {
			return fault.NoSpace // the index of the log could not grow
		}
		return fault.Unavailable
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fault.Busy
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return fault.Unavailable
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fault.Corrupt
	}
	return commonKind(err)
}

func (d *sqliteDB) verdict(err error) verdict {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_FULL:
		return alone
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return again
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
		sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_MISUSE:
		return fatal
	}
	if lost(err) {
		return fatal
	}
	return guilty
}
