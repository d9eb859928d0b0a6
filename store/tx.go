package store

import (
	"context"
	"database/sql"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"cellgate/internal/fault"
)

// Tx is a transaction as Update and View hand it to their function. It is not safe for concurrent use and ends with the function.
//
// After a statement has failed the transaction is dead, on both databases: every later statement returns that first error, and so does Update,
// whatever the function returns. Expect a taken key with ON CONFLICT, not by trying. Close a Query's rows before the next statement: PostgreSQL
// talks about one thing at a time.
type Tx struct {
	conn   *sql.Conn
	ctx    context.Context // of the batch or of View: the Tx lives no longer than the call that made it
	kind   func(error) fault.Kind
	wrote  bool  // something was changed since the mark
	failed error // the first failed statement

	texts     insertTexts
	rows      []*sql.Rows // to be closed with the function
	collected []collected
	onCommit  []func()
}

type collected struct {
	by   Flusher
	item any
}

// A Flusher writes what the functions of a shared transaction collected, in one go: one multi-row insert instead of many. It must be comparable.
type Flusher interface {
	// Flush is called just before COMMIT with the items of every function in the batch, in order. It may run again when the transaction is
	// retried. Its failure undoes the functions it flushes for.
	Flush(tx *Tx, items []any) error
}

// Exec runs a statement that returns no rows.
func (tx *Tx) Exec(q string, args ...any) (sql.Result, error) {
	if tx.failed != nil {
		return nil, tx.failed
	}
	tx.wrote = true
	r, err := tx.conn.ExecContext(tx.ctx, q, args...)
	if err != nil {
		return nil, tx.fail("store.Exec", err)
	}
	return r, nil
}

// Query runs a statement that returns rows: a SELECT, or a change with RETURNING. The caller closes the rows before the next statement.
func (tx *Tx) Query(q string, args ...any) (*sql.Rows, error) {
	if tx.failed != nil {
		return nil, tx.failed
	}
	tx.wrote = tx.wrote || !reads(q)
	rows, err := tx.conn.QueryContext(tx.ctx, q, args...)
	if err != nil {
		return nil, tx.fail("store.Query", err)
	}
	tx.rows = append(tx.rows, rows)
	return rows, nil
}

// QueryRow runs a statement that returns at most one row; Scan returns sql.ErrNoRows when there is none.
func (tx *Tx) QueryRow(q string, args ...any) *sql.Row {
	tx.wrote = tx.wrote || !reads(q)
	row := tx.conn.QueryRowContext(tx.ctx, q, args...)
	if err := row.Err(); err != nil && tx.failed == nil {
		tx.fail("store.QueryRow", err)
	}
	return row
}

// Collect hands item to f, which sees the items of the whole batch just before COMMIT. An item of a function that fails is dropped.
func (tx *Tx) Collect(f Flusher, item any) { tx.collected = append(tx.collected, collected{f, item}) }

// OnCommit has fn run once the transaction is durable and before Update returns, in order over all transactions. fn is dropped when the
// transaction is not committed. It must be short and must not call Update or Flush, which wait for it.
func (tx *Tx) OnCommit(fn func()) { tx.onCommit = append(tx.onCommit, fn) }

func (tx *Tx) fail(op string, err error) error {
	tx.failed = fault.New(op, "", tx.kind(err), err)
	return tx.failed
}

// reads reports whether q changes nothing. A wrong "no" costs a replay of the batch, nothing else.
func reads(q string) bool {
	q = strings.TrimLeft(q, " \t\r\n(")
	return len(q) >= 6 && strings.EqualFold(q[:6], "SELECT")
}

// mark is a place in a shared transaction to go back to.
type mark struct{ collected, onCommit int }

func (tx *Tx) mark() mark {
	tx.wrote = false
	return mark{len(tx.collected), len(tx.onCommit)}
}

// forget drops what was collected since m.
func (tx *Tx) forget(m mark) {
	clear(tx.collected[m.collected:])
	clear(tx.onCommit[m.onCommit:])
	tx.collected, tx.onCommit = tx.collected[:m.collected], tx.onCommit[:m.onCommit]
}

// begin makes the Tx ready for a transaction; its slices are used again.
func (tx *Tx) begin(ctx context.Context, conn *sql.Conn) {
	tx.end()
	tx.conn, tx.ctx = conn, ctx
}

// end lets go of what the transaction held.
func (tx *Tx) end() {
	tx.forget(mark{})
	tx.conn, tx.ctx, tx.wrote, tx.failed = nil, nil, false, nil
}

// run calls fn and contains its panic. A failed statement that fn swallowed fails it all the same.
func (tx *Tx) run(fn func(*Tx) error) (err error) {
	defer func() {
		tx.closeRows()
		if p := recover(); p != nil {
			err = fault.New("store.Update", "", fault.Internal, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	if err = fn(tx); err == nil {
		err = tx.failed
	}
	return err
}

// closeRows closes what fn left open: an open cursor would block the connection.
func (tx *Tx) closeRows() {
	for i, rows := range tx.rows {
		rows.Close()
		tx.rows[i] = nil
	}
	tx.rows = tx.rows[:0]
}

// flush hands the collected items to their flushers, in the order in which these first appeared. What a flusher collects itself comes after.
func (tx *Tx) flush() error {
	for done := 0; done < len(tx.collected); {
		round := tx.collected[done:]
		done = len(tx.collected)
		for i, c := range round {
			if slices.ContainsFunc(round[:i], func(o collected) bool { return o.by == c.by }) {
				continue
			}
			items := make([]any, 0, len(round)-i)
			for _, o := range round[i:] {
				if o.by == c.by {
					items = append(items, o.item)
				}
			}
			if err := tx.run(func(tx *Tx) error { return c.by.Flush(tx, items) }); err != nil {
				return err
			}
		}
	}
	return nil
}
