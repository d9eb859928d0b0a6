package store

import (
	"strconv"
	"strings"
)

// maxValues is the most values in one statement: SQLite takes 32,766, PostgreSQL 65,535.
const maxValues = 8192

// Insert inserts rows with as few statements as sensible: head is "INSERT INTO t (a, b)", tail may be "" or "ON CONFLICT …". All rows have
// the same length. The number of rows in a statement is a power of two, so that few texts have to be prepared.
func (tx *Tx) Insert(head, tail string, rows [][]any) error {
	for len(rows) > 0 {
		width := len(rows[0])
		n := 1
		for n*2 <= len(rows) && n*2*width <= maxValues {
			n *= 2
		}
		args := make([]any, 0, n*width)
		for _, row := range rows[:n] {
			args = append(args, row...)
		}
		if _, err := tx.Exec(tx.texts.get(head, tail, n, width), args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// insertText is the text of a multi-row insert.
type insertText struct {
	head, tail string
	rows       int
}

// insertTexts remembers the texts it made: a long one costs more than the insert's look-up.
type insertTexts map[insertText]string

func (m *insertTexts) get(head, tail string, rows, width int) string {
	key := insertText{head, tail, rows}
	if q, ok := (*m)[key]; ok {
		return q
	}
	var b strings.Builder
	b.WriteString(head)
	b.WriteString(" VALUES ")
	for i := range rows * width {
		switch {
		case i == 0:
			b.WriteString("(")
		case i%width == 0:
			b.WriteString("), (")
		default:
			b.WriteString(", ")
		}
		b.WriteString("$")
		b.WriteString(strconv.Itoa(i + 1))
	}
	b.WriteString(") ")
	b.WriteString(tail)
	if *m == nil || len(*m) > maxPrepared {
		*m = make(insertTexts)
	}
	(*m)[key] = b.String()
	return b.String()
}
