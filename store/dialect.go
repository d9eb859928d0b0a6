package store

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"cellgate/internal/fault"
)

// dialect is what differs between the databases.
type dialect interface {
	name() string
	words() []wording                               // of the migrations
	pools() (writers, readers *sql.DB)              // the caller closes them
	local() bool                                    // statements are function calls, not round trips
	begin() string                                  // a write transaction
	beginView() string                              // a read-only snapshot
	timeout() (context.Context, context.CancelFunc) // bounds a batch
	commit(context.Context, *sql.Conn) error        // nil is the promise that the transaction is durable
	repair(context.Context, *sql.Conn) error        // makes a connection fit to write on after the one before it failed
	kind(error) fault.Kind                          // what an error means to the caller
	verdict(error) verdict                          // what it means to the transaction
	own(error) bool                                 // the database said so
	conflict(error) bool                            // a unique key is taken
	tables(*Tx) ([]table, error)                    // the box's own, by name
	unbind(*Tx) (enforce func() error, err error)   // suspends foreign keys within a transaction
}

// verdict says what becomes of a transaction in which something failed.
type verdict uint8

const (
	guilty verdict = iota // the function's own fault: the others go on without it
	again                 // nobody's fault: run the whole batch again
	alone                 // not all of it fits: run each function in a transaction of its own
	fatal                 // the connection is not to be trusted any more: all fail
)

// drop closes the driver's connection instead of giving it back to the pool.
func drop(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // this is how database/sql is told
	_ = conn.Close()
}
