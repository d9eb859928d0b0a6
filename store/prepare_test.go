package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
)

func TestPositional(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`SELECT 1`, `SELECT 1`},
		{`SELECT a FROM t WHERE b = $1 AND c = $2`, `SELECT a FROM t WHERE b = ? AND c = ?`},
		{`INSERT INTO t VALUES ($1, $2), ($3, $4)`, `INSERT INTO t VALUES (?, ?), (?, ?)`},
		{`SELECT $2, $1`, `SELECT $2, $1`},
		{`SELECT $1, $1`, `SELECT $1, $1`},
		{`SELECT '$1 it''s', "$2", $1`, `SELECT '$1 it''s', "$2", ?`},
		{`SELECT $1 -- $2`, `SELECT $1 -- $2`},
		{`SELECT $1, ?`, `SELECT $1, ?`},
		{`SELECT $12`, `SELECT $12`},
		{`SELECT 'open $1`, `SELECT 'open $1`},
		{`SELECT $99999999999999999999`, `SELECT $99999999999999999999`},
	} {
		if got := positional(c.in); got != c.want {
			t.Errorf("%s\ngot  %s\nwant %s", c.in, got, c.want)
		}
	}
}

func openFile(t *testing.T) *sql.DB {
	t.Helper()
	d, err := newSQLite(Config{Dir: t.TempDir(), Unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.w.Close(); d.r.Close() })
	d.w.SetMaxOpenConns(1)
	return d.w
}

// A statement is not used again while its rows are being read, and one connection does not keep statements without end.
func TestPrepared(t *testing.T) {
	db := openFile(t)
	if _, err := db.Exec(`CREATE TABLE t (a INTEGER) STRICT; INSERT INTO t VALUES (1), (2), (3)`); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const q = `SELECT a FROM t ORDER BY a`
	var got []string
	outer, err := conn.QueryContext(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for outer.Next() {
		var o int
		if err := outer.Scan(&o); err != nil {
			t.Fatal(err)
		}
		inner, err := conn.QueryContext(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for inner.Next() {
			var i int
			if err := inner.Scan(&i); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(o, i))
		}
		inner.Close()
	}
	outer.Close()
	if len(got) != 9 {
		t.Errorf("got %q, want each with each", got)
	}
	for i := range 3 * maxPrepared {
		var n int
		if err := conn.QueryRowContext(t.Context(), fmt.Sprint(`SELECT $1 + `, i), 1).Scan(&n); err != nil || n != i+1 {
			t.Fatalf("%d: got %d, %v", i, n, err)
		}
	}
	err = conn.Raw(func(c any) error {
		if n := len(c.(*prepared).stmts); n > maxPrepared {
			t.Errorf("%d statements kept", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The schema changes under a kept statement.
	if _, err := conn.ExecContext(t.Context(), `ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 5`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var a, b int
		if err := conn.QueryRowContext(t.Context(), `SELECT * FROM t WHERE a = $1`, 2).Scan(&a, &b); err != nil || b != 5 {
			t.Errorf("got %d, %d, %v", a, b, err)
		}
	}
}

// A kept statement with * sees a column that comes later.
func TestPreparedStar(t *testing.T) {
	db := openFile(t)
	run := func(q string) {
		t.Helper()
		if _, err := db.ExecContext(context.Background(), q); err != nil {
			t.Fatal(err)
		}
	}
	run(`CREATE TABLE t (a INTEGER) STRICT`)
	run(`INSERT INTO t VALUES (1)`)
	columns := func() int {
		rows, err := db.QueryContext(context.Background(), `SELECT * FROM t`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := columns()
	run(`ALTER TABLE t ADD COLUMN b INTEGER`)
	if after := columns(); before != 1 || after != 2 {
		t.Errorf("%d columns, then %d", before, after)
	}
}

func TestInsertText(t *testing.T) {
	var texts insertTexts
	got := texts.get("INSERT INTO t (a, b)", "ON CONFLICT DO NOTHING", 2, 2)
	if want := "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4) ON CONFLICT DO NOTHING"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if n := strings.Count(texts.get("INSERT INTO t (a)", "", 64, 1), "$"); n != 64 {
		t.Errorf("%d places for 64 values", n)
	}
}

// The words of the migrations are replaced outside of comments only, and goose's own lines stay.
func TestSchemaWords(t *testing.T) {
	for _, words := range [][]wording{sqliteWords, postgresWords} {
		files, err := schema(words)
		if err != nil {
			t.Fatal(err)
		}
		f, err := files.Open("00001_store.sql")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<16)
		n, _ := f.Read(b)
		text := string(b[:n])
		if !strings.Contains(text, "-- +goose Up") || strings.Contains(text, "Written once") {
			t.Errorf("comments: %s", text)
		}
		if words[0].with == "INTEGER" != strings.Contains(text, "STRICT") {
			t.Errorf("STRICT: %s", text)
		}
	}
}
