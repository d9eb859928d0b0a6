package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
)

// maxPrepared is how many statements a connection keeps. The box has fewer; a flusher that makes up a new text for each number of rows has
// more, and pays.
const maxPrepared = 192

// preparing is a connector whose connections prepare each text once and keep it, so that the store's callers write plain Exec and Query.
// database/sql's own Stmt would do it for the price of a lock and a list per statement and connection.
type preparing struct{ driver.Connector }

func (p preparing) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(localConn)
	if !ok {
		return nil, errors.Join(errors.New("the driver's connection lacks a method"), c.Close())
	}
	return &prepared{localConn: conn, stmts: make(map[string]*kept)}, nil
}

// localConn is what modernc's connection can do.
type localConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// prepared is used by one goroutine at a time, as database/sql promises.
type prepared struct {
	localConn
	stmts map[string]*kept
	clock uint64
}

type kept struct {
	stmt localStmt
	busy bool   // its rows are being read: the same text needs another statement meanwhile
	used uint64 // clock at the last use
}

type localStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// take returns the statement of q, nil when q is better run unprepared.
func (c *prepared) take(ctx context.Context, q string) (*kept, error) {
	c.clock++
	if k := c.stmts[q]; k != nil {
		if k.busy {
			return nil, nil
		}
		k.used = c.clock
		return k, nil
	}
	if strings.IndexByte(q, ';') >= 0 || !keepable(q) {
		return nil, nil
	}
	s, err := c.localConn.PrepareContext(ctx, positional(q))
	if err != nil {
		return nil, err
	}
	stmt, ok := s.(localStmt)
	if !ok {
		return nil, s.Close()
	}
	if len(c.stmts) >= maxPrepared {
		c.evict()
	}
	k := &kept{stmt: stmt, used: c.clock}
	c.stmts[strings.Clone(q)] = k
	return k, nil
}

// keepable leaves out what runs once: the schema's statements.
func keepable(q string) bool {
	q = strings.TrimLeft(q, " \t\r\n")
	for _, word := range [...]string{"CREATE", "ALTER", "DROP", "PRAGMA", "VACUUM"} {
		if len(q) >= len(word) && strings.EqualFold(q[:len(word)], word) {
			return false
		}
	}
	return q != ""
}

// evict closes the statement that was not used for the longest time.
func (c *prepared) evict() {
	var oldest string
	var age *kept
	for q, k := range c.stmts {
		if !k.busy && (age == nil || k.used < age.used) {
			oldest, age = q, k
		}
	}
	if age != nil {
		delete(c.stmts, oldest)
		_ = age.stmt.Close()
	}
}

func (c *prepared) ExecContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Result, error) {
	k, err := c.take(ctx, q)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return c.localConn.ExecContext(ctx, q, args)
	}
	return k.stmt.ExecContext(ctx, args)
}

func (c *prepared) QueryContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Rows, error) {
	k, err := c.take(ctx, q)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return c.localConn.QueryContext(ctx, q, args)
	}
	rows, err := k.stmt.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	k.busy = true
	return &lentRows{Rows: rows, from: k}, nil
}

func (c *prepared) Close() error {
	for _, k := range c.stmts {
		_ = k.stmt.Close()
	}
	clear(c.stmts)
	return c.localConn.Close()
}

// lentRows gives its statement back when it is closed.
type lentRows struct {
	driver.Rows
	from *kept
}

func (r *lentRows) Close() error {
	r.from.busy = false
	return r.Rows.Close()
}

// positional turns $1, $2, … into ? where they appear once each and in order, and returns q as it is otherwise. A named parameter costs
// SQLite a walk along the list of names for each value bound, so a statement of 1,000 values would cost 500,000 steps.
func positional(q string) string {
	if strings.IndexByte(q, '$') < 0 {
		return q
	}
	var b strings.Builder
	b.Grow(len(q))
	n := 0
	for i := 0; i < len(q); {
		switch c := q[i]; {
		case c == '\'' || c == '"':
			end := strings.IndexByte(q[i+1:], c)
			if end < 0 {
				return q
			}
			b.WriteString(q[i : i+end+2])
			i += end + 2
		case c == '-' && strings.HasPrefix(q[i:], "--"), c == '/' && strings.HasPrefix(q[i:], "/*"), c == '?':
			return q
		case c == '$':
			n++
			i++
			v, digits := 0, 0
			for ; i < len(q) && q[i] >= '0' && q[i] <= '9' && digits < 6; i++ {
				v, digits = v*10+int(q[i]-'0'), digits+1
			}
			if v != n {
				return q
			}
			b.WriteByte('?')
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String()
}
