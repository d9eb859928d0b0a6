package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"

	"cellgate/internal/fault"
)

// IsConflict reports whether err says that a unique key is taken. The transaction it comes from is dead: a function that expects a taken
// key uses ON CONFLICT.
func IsConflict(err error) bool {
	return new(sqliteDB).conflict(err) || new(postgresDB).conflict(err)
}

// lost reports whether database/sql has lost its connection.
func lost(err error) bool {
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
}

// commonKind is the kind of an error that is not one of the database's own.
func commonKind(err error) fault.Kind {
	if lost(err) {
		return fault.Unavailable
	}
	return fault.KindOf(err)
}
