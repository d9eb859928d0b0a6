package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"cellgate/internal/fault"
	"cellgate/store"
)

// Head returns the last number and its hash; 0 and nil for an empty log.
func (l *Log) Head(ctx context.Context) (seq int64, hash []byte, err error) {
	err = l.db.QueryRow(ctx, `SELECT seq, hash FROM audit_head WHERE id = 1`).Scan(&seq, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	return seq, hash, fault.Wrap("policy/audit.Head", "", err)
}

// Report is what Verify found.
type Report struct {
	Records  int64     `json:"records"`
	Head     string    `json:"head"` // the last hash in hex, to note outside
	Problems []Problem `json:"problems,omitempty"`
}

// OK reports whether the log is as it was written.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// Problem is a place where the chain does not hold.
type Problem struct {
	Seq  int64  `json:"seq"`
	What string `json:"what"`
}

// maxProblems ends a Verify that finds nothing but ruins.
const maxProblems = 1000

// Verify recomputes the whole chain over one consistent state. The error says that the log could not be read; what is wrong with it is in the Report.
func (l *Log) Verify(ctx context.Context) (rep Report, err error) {
	err = l.db.View(ctx, func(tx *store.Tx) error {
		rep = Report{}
		var want int64
		var head []byte
		err := tx.QueryRow(`SELECT seq, hash FROM audit_head WHERE id = 1`).Scan(&want, &head)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		rows, err := tx.Query(`SELECT seq, time, actor, action, place, body, hash FROM audit ORDER BY seq`)
		if err != nil {
			return err
		}
		defer rows.Close()
		var prev [32]byte
		next := int64(1)
		for rows.Next() && len(rep.Problems) < maxProblems {
			var seq, at int64
			var actor, action, place string
			var body, hash []byte
			if err := rows.Scan(&seq, &at, &actor, &action, &place, &body, &hash); err != nil {
				return err
			}
			problem := func(format string, args ...any) {
				rep.Problems = append(rep.Problems, Problem{seq, fmt.Sprintf(format, args...)})
			}
			rep.Records++
			if seq != next {
				problem("records %d to %d are missing", next, seq-1)
			}
			next = seq + 1
			r, err := decode(body)
			switch {
			case err != nil:
				problem("%v", err)
			case r.Seq != seq:
				problem("the record was number %d", r.Seq)
			case r.Time.UnixNano() != at || r.Actor != actor || r.Action != action || r.Place != place:
				problem("the columns differ from the body")
			}
			sum := link(prev, body)
			if string(sum[:]) != string(hash) {
				problem("the hash does not follow: this record or the one before it was changed, removed, inserted or moved")
			}
			// Go on from what is stored, so that one change is one finding.
			if prev, err = hash32(hash); err != nil {
				prev = sum
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		switch {
		case len(rep.Problems) >= maxProblems:
		case next-1 != want:
			rep.Problems = append(rep.Problems, Problem{next - 1, fmt.Sprintf("the log ends here, the head says %d", want)})
		case want > 0 && string(prev[:]) != string(head):
			rep.Problems = append(rep.Problems, Problem{want, "the head has another hash"})
		}
		rep.Head = fmt.Sprintf("%x", prev)
		return nil
	})
	return rep, fault.Wrap("policy/audit.Verify", "", err)
}
