// Package audit remembers who did what, in the transaction that did it.
//
// Records are numbered without gaps and chained: the hash of a record is SHA-256 over the hash before it (32 zero bytes before the first) and the
// record's body. The body is the record in a canonical encoding:
//
//	byte 1 (the version) · seq · time in Unix nanoseconds (both 8 bytes, big endian)
//	actor · action · place · path · outcome · protocol · address · request id · detail (each: length as an unsigned varint, then UTF-8)
//
// A head row holds the last number and hash. So a record that was changed, removed, inserted or moved is found by Verify, and so is a tail that
// was cut off. Who can rewrite the whole database can rewrite the whole chain: note Head outside now and then to notice that too.
package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"cellgate/internal/clock"
	"cellgate/store"
)

// Record is one thing that somebody did or was refused.
type Record struct {
	Seq       int64     `json:"seq"` // given by the log
	Time      time.Time `json:"time"`
	Actor     string    `json:"actor"`  // "user:alice", "local", "system"
	Action    string    `json:"action"` // "put", "delete", "login", "grant.put", …
	Place     string    `json:"place"`  // "datasource:/path", or what else it was done to
	Path      string    `json:"path"`   // the virtual path the client named
	Outcome   string    `json:"outcome"`
	Protocol  string    `json:"protocol"`
	Addr      string    `json:"addr"`
	RequestID string    `json:"requestId"`
	Detail    string    `json:"detail"`
}

// maxField bounds what one field takes.
const maxField = 8192

// Log is the audit log of a store. Safe for concurrent use.
type Log struct {
	db    *store.DB
	clock *clock.Clock
}

// New returns the log of a store.
func New(db *store.DB, c *clock.Clock) *Log { return &Log{db: db, clock: c} }

// Append adds a record to the transaction: both become durable together or not at all. Time is set when it is zero. Text that no database takes
// is replaced.
func (l *Log) Append(tx *store.Tx, r Record) {
	if r.Time.IsZero() {
		r.Time = l.clock.Now()
	}
	for _, f := range r.fields() {
		if !plain(*f) {
			*f = clean(*f)
		}
	}
	tx.Collect(chain{l}, &r)
}

// Note adds a record about something that changed nothing, such as a refusal. It is not waited for.
func (l *Log) Note(r Record) {
	if r.Time.IsZero() {
		r.Time = l.clock.Now()
	}
	l.db.Later(func(tx *store.Tx) error {
		l.Append(tx, r)
		return nil
	})
}

func (r *Record) fields() [9]*string {
	return [9]*string{&r.Actor, &r.Action, &r.Place, &r.Path, &r.Outcome, &r.Protocol, &r.Addr, &r.RequestID, &r.Detail}
}

// plain reports whether s needs no cleaning.
func plain(s string) bool {
	return len(s) <= maxField && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	for cut := maxField; len(s) > maxField; cut-- {
		if utf8.RuneStart(s[cut]) {
			s = s[:cut]
		}
	}
	return s
}

// encode appends the body of the record.
func (r *Record) encode(b []byte) []byte {
	b = append(b, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Seq))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	for _, f := range r.fields() {
		b = binary.AppendUvarint(b, uint64(len(*f)))
		b = append(b, *f...)
	}
	return b
}

var errBody = errors.New("the body is not a record")

// decode reads a body. Only what encode made is read: a body has one record and a record one body.
func decode(b []byte) (r Record, err error) {
	if len(b) < 17 || b[0] != 1 {
		return r, errBody
	}
	r.Seq = int64(binary.BigEndian.Uint64(b[1:]))
	r.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[9:]))).UTC()
	b = b[17:]
	for _, f := range r.fields() {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return r, errBody
		}
		*f = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	if len(b) > 0 {
		return r, errBody
	}
	return r, nil
}

// link returns the hash of a body that follows the record with the hash prev.
func link(prev [32]byte, body []byte) [32]byte {
	var buf [1024]byte
	return sha256.Sum256(append(append(buf[:0], prev[:]...), body...))
}

// chain is the Flusher: it numbers and chains the records of a shared transaction and inserts them at once.
type chain struct{ l *Log }

var _ store.Flusher = chain{}

// Flush writes the records. Moving the head first locks it, so that two processes on one database take turns.
func (chain) Flush(tx *store.Tx, items []any) error {
	n := int64(len(items))
	var last int64
	var hash []byte
	err := tx.QueryRow(`INSERT INTO audit_head (id, seq, hash) VALUES (1, $1, $2) ON CONFLICT (id) DO UPDATE SET seq = audit_head.seq + excluded.seq
		RETURNING seq, hash`, n, make([]byte, 32)).Scan(&last, &hash)
	if err != nil {
		return err
	}
	prev, err := hash32(hash)
	if err != nil {
		return err
	}
	values := make([]any, 0, n*7)
	rows := make([][]any, 0, n)
	for i, it := range items {
		r := *it.(*Record)
		r.Seq = last - n + 1 + int64(i)
		body := r.encode(make([]byte, 0, 256))
		prev = link(prev, body)
		sum := prev
		values = append(values, r.Seq, r.Time.UnixNano(), r.Actor, r.Action, r.Place, body, sum[:])
		rows = append(rows, values[len(values)-7:])
	}
	if err := tx.Insert(`INSERT INTO audit (seq, time, actor, action, place, body, hash)`, ``, rows); err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE audit_head SET hash = $1 WHERE id = 1`, prev[:])
	return err
}

func hash32(b []byte) (h [32]byte, err error) {
	if len(b) != len(h) {
		return h, errors.New("a hash is not 32 bytes long")
	}
	return [32]byte(b), nil
}
