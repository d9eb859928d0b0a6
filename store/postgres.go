package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"cellgate/internal/fault"
)

const (
	postgresReaders = 32
	postgresTimeout = 30 * time.Second // of a batch; a server that stalls longer is taken for down
)

// postgresDB is the store that several nodes share. Writers are SERIALIZABLE, so what holds on SQLite with its one writer holds here; a
// batch that loses against another node's runs again. Views read one snapshot (REPEATABLE READ).
type postgresDB struct{ w, r *sql.DB }

func newPostgres(cfg Config) (*postgresDB, error) {
	c, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fault.New("store.Open", "", fault.Invalid, err) // pgx keeps the password out of it
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	for name, value := range map[string]string{
		"application_name":                    "cellgate",
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": "120s", // a node that vanished does not hold its locks for ever
	} {
		if _, given := c.RuntimeParams[name]; !given {
			c.RuntimeParams[name] = value
		}
	}
	if cfg.Unsynced {
		c.RuntimeParams["synchronous_commit"] = "off"
	}
	d := &postgresDB{w: stdlib.OpenDB(*c), r: stdlib.OpenDB(*c)}
	d.w.SetMaxOpenConns(2)
	d.w.SetMaxIdleConns(1)
	d.r.SetMaxOpenConns(postgresReaders)
	d.r.SetMaxIdleConns(4)
	d.r.SetConnMaxIdleTime(5 * time.Minute)
	return d, nil
}

func (d *postgresDB) name() string          { return "postgres" }
func (d *postgresDB) words() []wording      { return postgresWords }
func (d *postgresDB) pools() (w, r *sql.DB) { return d.w, d.r }
func (d *postgresDB) local() bool           { return false }
func (d *postgresDB) begin() string         { return "BEGIN ISOLATION LEVEL SERIALIZABLE" }
func (d *postgresDB) beginView() string     { return "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" }
func (d *postgresDB) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), postgresTimeout)
}

func (d *postgresDB) repair(context.Context, *sql.Conn) error { return nil }

// doubtful is a COMMIT without an answer: it may have happened.
type doubtful struct{ error }

func (e doubtful) Unwrap() error { return e.error }

// commit looks at the server's answer: for a transaction that has failed before, COMMIT succeeds as "ROLLBACK".
func (d *postgresDB) commit(ctx context.Context, conn *sql.Conn) error {
	return conn.Raw(func(c any) error {
		tag, err := c.(*stdlib.Conn).Conn().Exec(ctx, "COMMIT")
		var e *pgconn.PgError
		switch {
		case err == nil && tag.String() != "COMMIT":
			return fmt.Errorf("the transaction was ended by %s", tag)
		case err == nil, errors.As(err, &e) && e.Severity != "FATAL" && e.Severity != "PANIC", pgconn.SafeToRetry(err):
			return err
		}
		return doubtful{fmt.Errorf("the connection broke in COMMIT, the outcome is unknown: %w", err)}
	})
}

// sqlState returns the five characters of SQLSTATE, "" when err is not from the server.
func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) && len(e.Code) == 5 {
		return e.Code
	}
	return ""
}

func (d *postgresDB) own(err error) bool      { return sqlState(err) != "" }
func (d *postgresDB) conflict(err error) bool { return sqlState(err) == "23505" }

func (d *postgresDB) kind(err error) fault.Kind {
	if errors.As(err, new(doubtful)) {
		return fault.Unavailable
	}
	switch state := sqlState(err); {
	case state == "":
		if broken(err) {
			return fault.Unavailable
		}
		return commonKind(err)
	case state == "23505":
		return fault.Exist
	case state == "53100":
		return fault.NoSpace
	case state == "57014":
		return fault.Timeout
	case state == "40001", state == "40P01", state == "55P03":
		return fault.Busy
	case state[:2] == "08", state[:2] == "53", state[:2] == "57", state[:2] == "58", state == "25006":
		return fault.Unavailable
	case state[:2] == "XX":
		return fault.Corrupt
	}
	return fault.Internal
}

func (d *postgresDB) verdict(err error) verdict {
	if errors.As(err, new(doubtful)) {
		return fatal
	}
	switch state := sqlState(err); {
	case state == "":
		if broken(err) || lost(err) {
			return again
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fatal
		}
		return guilty
	case state == "40001", state == "40P01", state == "55P03", state == "25P03":
		return again // serialization failure, deadlock, lock not available, too long idle
	case state == "53100":
		return alone // disk full
	case state[:2] == "08", state[:2] == "53", state == "57P01", state == "57P02", state == "57P03":
		return again // connection, resources, shutdown
	case state[:2] == "58", state[:2] == "XX", state == "25006":
		return fatal // I/O error, internal error, a server turned read-only
	}
	return guilty
}

// broken reports whether err means that the connection is gone or could not be made.
func broken(err error) bool {
	var ne net.Error
	return pgconn.SafeToRetry(err) || errors.As(err, new(*pgconn.ConnectError)) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &ne) && !errors.Is(err, context.DeadlineExceeded)
}
