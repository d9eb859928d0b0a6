// Package quota counts the bytes of workspaces and users and keeps them under their limits.
//
// A scope is "workspace:SLUG" or "user:LOGIN". Usage is stored in the transaction that changes it; what is being uploaded is reserved in memory, so
// that uploads in parallel cannot overshoot together. Several processes on one database see each other's usage within a second, not each other's
// reservations: they may overshoot by what is in flight.
package quota

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/store"
)

// None is the limit of a scope without one.
const None int64 = -1

// fresh is how long a figure is believed without asking the store.
const fresh = time.Second

// maxScopes bounds how many idle scopes are remembered.
const maxScopes = 10000

// Book keeps the usage of all scopes. Safe for concurrent use.
type Book struct {
	db *store.DB

	mu     sync.Mutex
	scopes map[string]*scope // guarded by mu
}

// scope is the figures of one scope; guarded by Book.mu.
type scope struct {
	used, limit int64
	reserved    int64
	holders     int       // reservations that are not over
	read        time.Time // zero: not read yet
}

// New returns the book of a store.
func New(db *store.DB) *Book { return &Book{db: db, scopes: map[string]*scope{}} }

// Reservation holds room for bytes that are on their way. Its methods are safe for concurrent use.
type Reservation struct {
	book   *Book
	scopes []string
	bytes  int64 // guarded by Book.mu
	over   bool  // guarded by Book.mu
}

// Reserve sets bytes aside in every scope, or in none. It fails with Quota, naming the scope. bytes of unknown length: reserve 0 and Grow.
func (b *Book) Reserve(ctx context.Context, scopes []string, bytes int64) (*Reservation, error) {
	r := &Reservation{book: b, scopes: slices.Compact(slices.Sorted(slices.Values(scopes)))}
	b.mu.Lock()
	for _, name := range r.scopes {
		b.scope(name).holders++
	}
	b.mu.Unlock()
	err := fault.Wrap("policy/quota.Reserve", "", b.refresh(ctx, r.scopes))
	if err == nil {
		err = r.Grow(bytes)
	}
	if err != nil {
		r.Release()
		return nil, err
	}
	return r, nil
}

// Grow sets n bytes more aside. It fails with Quota and changes nothing.
func (r *Reservation) Grow(n int64) error {
	const op = "policy/quota.Grow"
	if n < 0 {
		return fault.New(op, "", fault.Invalid, errors.New("a reservation does not shrink"))
	}
	b := r.book
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.over {
		return fault.New(op, "", fault.Invalid, errors.New("the reservation is over"))
	}
	for _, name := range r.scopes {
		s := b.scope(name)
		if left := s.limit - max(s.used, 0) - s.reserved; s.limit >= 0 && n > max(left, 0) {
			return fault.New(op, "", fault.Quota, fmt.Errorf("%s has %d bytes of %d left", name, max(left, 0), s.limit))
		}
	}
	for _, name := range r.scopes {
		b.scope(name).reserved += n
	}
	r.bytes += n
	return nil
}

// Settle counts delta, which may be negative, as used in the reservation's scopes when the transaction is durable; the reservation is over in that
// moment. When the transaction fails the reservation stays.
func (r *Reservation) Settle(tx *store.Tx, delta int64) {
	tx.Collect(sum{r.book}, entry{r.scopes, delta, r})
}

// Release gives back what is reserved. It may be called more than once, and after Settle.
func (r *Reservation) Release() {
	r.book.mu.Lock()
	defer r.book.mu.Unlock()
	r.release()
}

// release is Release under mu.
func (r *Reservation) release() {
	if r.over {
		return
	}
	for _, name := range r.scopes {
		s := r.book.scope(name)
		s.reserved -= r.bytes
		s.holders--
	}
	r.bytes, r.over = 0, true
}

// Add counts delta bytes in every scope without a reservation, for deletions above all. It does not ask for the limit.
func (b *Book) Add(tx *store.Tx, scopes []string, delta int64) {
	tx.Collect(sum{b}, entry{scopes, delta, nil})
}

// entry is a change of usage: one settled upload or one deletion.
type entry struct {
	scopes []string
	delta  int64
	held   *Reservation // over when the change is durable
}

// sum is the Flusher: one row per scope and transaction.
type sum struct{ b *Book }

var _ store.Flusher = sum{}

// Flush adds up and stores. Scopes are written in one order, so that processes do not wait for each other in a circle.
func (f sum) Flush(tx *store.Tx, items []any) error {
	totals := map[string]int64{}
	for _, it := range items {
		e := it.(entry)
		for _, name := range e.scopes {
			totals[name] += e.delta
		}
	}
	names := make([]string, 0, len(totals))
	for name, n := range totals {
		if n != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	after := make(map[string]scope, len(names))
	for _, name := range names {
		var s scope
		err := tx.QueryRow(`INSERT INTO quotas (scope, used, most) VALUES ($1, $2, -1) ON CONFLICT (scope) DO UPDATE SET used = quotas.used + excluded.used
			RETURNING used, most`, name, totals[name]).Scan(&s.used, &s.limit)
		if err != nil {
			return err
		}
		after[name] = s
	}
	tx.OnCommit(func() { f.b.learn(after, items) })
	return nil
}

// learn takes over figures that are durable now and ends the reservations they settle, in one moment.
func (b *Book) learn(figures map[string]scope, settled []any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for name, is := range figures {
		s := b.scope(name)
		s.used, s.limit, s.read = is.used, is.limit, now
	}
	for _, it := range settled {
		if r := it.(entry).held; r != nil {
			r.release()
		}
	}
}

// scope returns the figures of a scope, unread ones when it is new. The caller holds mu.
func (b *Book) scope(name string) *scope {
	s := b.scopes[name]
	if s == nil {
		if len(b.scopes) >= maxScopes {
			for other, s := range b.scopes {
				if s.holders == 0 {
					delete(b.scopes, other)
				}
			}
		}
		s = &scope{limit: None}
		b.scopes[name] = s
	}
	return s
}

// refresh reads the scopes whose figures are old.
func (b *Book) refresh(ctx context.Context, scopes []string) error {
	for _, name := range scopes {
		b.mu.Lock()
		s := b.scope(name)
		before := s.read
		b.mu.Unlock()
		if time.Since(before) < fresh {
			continue
		}
		is := scope{limit: None}
		err := b.db.QueryRow(ctx, `SELECT used, most FROM quotas WHERE scope = $1`, name).Scan(&is.used, &is.limit)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		b.mu.Lock()
		// A commit in between knows better.
		if s := b.scope(name); s.read.Equal(before) {
			s.used, s.limit, s.read = is.used, is.limit, time.Now()
		}
		b.mu.Unlock()
	}
	return nil
}

// Usage returns what a scope uses and its limit, None without one.
func (b *Book) Usage(ctx context.Context, name string) (used, limit int64, err error) {
	if err := b.refresh(ctx, []string{name}); err != nil {
		return 0, 0, fault.Wrap("policy/quota.Usage", "", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.scope(name)
	return max(s.used, 0), s.limit, nil
}

// SetLimit sets the limit of a scope, None for none. One below what is used keeps new bytes out and touches nothing that is there.
func (b *Book) SetLimit(tx *store.Tx, name string, limit int64) error {
	return b.set(tx, name, 0, max(limit, None), `most = excluded.most`)
}

// SetUsage sets what a scope uses, after a scan.
func (b *Book) SetUsage(tx *store.Tx, name string, used int64) error {
	return b.set(tx, name, used, None, `used = excluded.used`)
}

func (b *Book) set(tx *store.Tx, name string, used, limit int64, update string) error {
	var s scope
	err := tx.QueryRow(`INSERT INTO quotas (scope, used, most) VALUES ($1, $2, $3) ON CONFLICT (scope) DO UPDATE SET `+update+` RETURNING used, most`,
		name, used, limit).Scan(&s.used, &s.limit)
	if err != nil {
		return fault.Wrap("policy/quota.Set", name, err)
	}
	tx.OnCommit(func() { b.learn(map[string]scope{name: s}, nil) })
	return nil
}

// Drop forgets a scope that ceases to exist, so that a namesake begins at nothing.
func (b *Book) Drop(tx *store.Tx, name string) error {
	if _, err := tx.Exec(`DELETE FROM quotas WHERE scope = $1`, name); err != nil {
		return fault.Wrap("policy/quota.Drop", name, err)
	}
	tx.OnCommit(func() { b.learn(map[string]scope{name: {limit: None}}, nil) })
	return nil
}

// Line is the figures of one scope.
type Line struct {
	Scope string `json:"scope"`
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"`
}

// All returns the figures of every scope that was ever counted or limited, the fullest first.
func (b *Book) All(ctx context.Context) ([]Line, error) {
	rows, err := b.db.Query(ctx, `SELECT scope, used, most FROM quotas ORDER BY scope`)
	if err != nil {
		return nil, fault.Wrap("policy/quota.All", "", err)
	}
	defer rows.Close()
	var out []Line
	for rows.Next() {
		var l Line
		if err := rows.Scan(&l.Scope, &l.Used, &l.Limit); err != nil {
			return nil, fault.Wrap("policy/quota.All", "", err)
		}
		l.Used = max(l.Used, 0)
		out = append(out, l)
	}
	slices.SortStableFunc(out, func(a, b Line) int { return cmp.Compare(b.Used, a.Used) })
	return out, fault.Wrap("policy/quota.All", "", rows.Err())
}
