package audit

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"cellgate/internal/fault"
)

// Filter selects records; a zero field selects all.
type Filter struct {
	From, To    time.Time // To exclusive
	Actor       string
	Action      string
	Place       string // this place and all below it
	Before      int64  // with a smaller number: the next page of a list newest first
	Limit       int    // 0: no limit
	OldestFirst bool
}

// page is how many records are read at a time, so that a slow reader holds no transaction.
const page = 500

// List yields the records that match, newest first unless told otherwise. An error is the last pair. Records are taken from the bodies the chain
// covers.
func (l *Log) List(ctx context.Context, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		low, high := int64(0), cmp.Or(f.Before, math.MaxInt64)
		for left := cmp.Or(f.Limit, math.MaxInt); left > 0; {
			rs, err := l.page(ctx, f, low, high, min(left, page))
			if err != nil {
				yield(Record{}, fault.Wrap("policy/audit.List", "", err))
				return
			}
			for _, r := range rs {
				if !yield(r, nil) {
					return
				}
			}
			if len(rs) < min(left, page) {
				return
			}
			left -= len(rs)
			if last := rs[len(rs)-1].Seq; f.OldestFirst {
				low = last
			} else {
				high = last
			}
		}
	}
}

func (l *Log) page(ctx context.Context, f Filter, low, high int64, n int) ([]Record, error) {
	q, args := `SELECT body FROM audit WHERE seq > $1 AND seq < $2`, []any{low, high}
	arg := func(cond string, v any) {
		args = append(args, v)
		q += fmt.Sprintf(cond, len(args))
	}
	if !f.From.IsZero() {
		arg(` AND time >= $%d`, f.From.UnixNano())
	}
	if !f.To.IsZero() {
		arg(` AND time < $%d`, f.To.UnixNano())
	}
	if f.Actor != "" {
		arg(` AND actor = $%d`, f.Actor)
	}
	if f.Action != "" {
		arg(` AND action = $%d`, f.Action)
	}
	if p := strings.TrimSuffix(f.Place, "/"); p != "" {
		arg(` AND (place = $%d`, f.Place)
		arg(` OR place = $%d`, p)
		arg(` OR place >= $%d`, p+"/")
		arg(` AND place < $%d)`, p+"0")
	}
	order := ` DESC`
	if f.OldestFirst {
		order = ``
	}
	rows, err := l.db.Query(ctx, q+` ORDER BY seq`+order+fmt.Sprintf(` LIMIT %d`, n), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		r, err := decode(body)
		if err != nil {
			return nil, fault.New("policy/audit", "", fault.Corrupt, err)
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// Columns are the headings of Cells.
var Columns = []string{"seq", "time", "actor", "action", "place", "path", "outcome", "protocol", "address", "request", "detail"}

// Cells returns the record as cells of a table that stay text in a spreadsheet: what would begin a formula gets an apostrophe before it, control
// characters become visible.
func (r Record) Cells() []string {
	cells := []string{fmt.Sprint(r.Seq), r.Time.UTC().Format(time.RFC3339Nano)}
	for _, f := range r.fields() {
		s := strings.Map(func(c rune) rune {
			switch {
			case c < ' ':
				return 0x2400 + c // the picture of the control character
			case c >= 0x7f && c < 0xa0, c == '\u2028', c == '\u2029':
				return '\uFFFD'
			}
			return c
		}, *f)
		if s != "" && strings.ContainsAny(s[:1], "=+-@\t\r'") {
			s = "'" + s
		}
		cells = append(cells, s)
	}
	return cells
}
