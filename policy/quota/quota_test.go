package quota_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy/quota"
	"cellgate/store"
	"cellgate/store/storetest"
)

const ws, user = "workspace:docs", "user:alice"

func update(t *testing.T, db *store.DB, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func wantUsage(t *testing.T, b *quota.Book, scope string, used, limit int64) {
	t.Helper()
	u, l, err := b.Usage(t.Context(), scope)
	if err != nil || u != used || l != limit {
		t.Errorf("Usage(%s) = %d, %d, %v, want %d, %d", scope, u, l, err, used, limit)
	}
}

// TestParallel has many uploads at once, which reserve more than there is: what gets in fits exactly.
func TestParallel(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := quota.New(db)
		update(t, db, func(tx *store.Tx) error { return b.SetLimit(tx, ws, 100) })
		var in, out atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					r, err := b.Reserve(t.Context(), []string{ws, user}, 0)
					if err == nil {
						err = r.Grow(3)
					}
					if err != nil {
						if fault.KindOf(err) != fault.Quota {
							t.Error(err)
						}
						out.Add(1)
						if r != nil {
							r.Release()
						}
						continue
					}
					if err := db.Update(t.Context(), func(tx *store.Tx) error { r.Settle(tx, 3); return nil }); err != nil {
						t.Error(err)
					}
					in.Add(1)
					r.Release()
				}
			})
		}
		wg.Wait()
		if in.Load() != 33 || out.Load() != 47 {
			t.Errorf("%d in, %d out, want 33 and 47", in.Load(), out.Load())
		}
		wantUsage(t, b, ws, 99, 100)
		wantUsage(t, b, user, 99, quota.None)
		wantUsage(t, quota.New(db), ws, 99, 100) // after a restart
	})
}

// TestSettle rolls back, deletes, overwrites smaller, and lowers the limit below what is used.
func TestSettle(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := quota.New(db)
		update(t, db, func(tx *store.Tx) error { return errors.Join(b.SetLimit(tx, ws, 100), b.SetUsage(tx, ws, 60)) })
		r, err := b.Reserve(t.Context(), []string{ws}, 40)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Reserve(t.Context(), []string{user, ws}, 1); fault.KindOf(err) != fault.Quota {
			t.Errorf("a full workspace takes a byte: %v", err)
		}
		_ = db.Update(t.Context(), func(tx *store.Tx) error { r.Settle(tx, 40); return errors.New("no") })
		if _, err := b.Reserve(t.Context(), []string{ws}, 1); err == nil {
			t.Error("a failed transaction ended the reservation")
		}
		r.Release()
		r.Release()
		r, err = b.Reserve(t.Context(), []string{ws}, 40)
		if err != nil {
			t.Fatalf("released room is not free: %v", err)
		}
		update(t, db, func(tx *store.Tx) error { r.Settle(tx, -10); return nil }) // replaced a larger file
		wantUsage(t, b, ws, 50, 100)
		update(t, db, func(tx *store.Tx) error { b.Add(tx, []string{ws, user}, -20); return b.SetLimit(tx, ws, 10) })
		wantUsage(t, b, ws, 30, 10)
		wantUsage(t, b, user, 0, quota.None) // never below nothing
		if _, err := b.Reserve(t.Context(), []string{ws}, 0); err != nil {
			t.Errorf("an empty file over the limit: %v", err)
		}
		if _, err := b.Reserve(t.Context(), []string{ws}, 1); fault.KindOf(err) != fault.Quota {
			t.Errorf("a byte over the limit: %v", err)
		}
		if lines, err := b.All(t.Context()); err != nil || len(lines) != 2 || lines[0] != (quota.Line{Scope: ws, Used: 30, Limit: 10}) {
			t.Errorf("All = %+v, %v", lines, err)
		}
		update(t, db, func(tx *store.Tx) error { return b.Drop(tx, ws) })
		wantUsage(t, b, ws, 0, quota.None)
	})
}

// TestOtherProcess sees the usage another process settled.
func TestOtherProcess(t *testing.T) {
	db := storetest.Open(t)
	here, there := quota.New(db), quota.New(db)
	update(t, db, func(tx *store.Tx) error { return here.SetLimit(tx, ws, 100) })
	wantUsage(t, there, ws, 0, 100)
	update(t, db, func(tx *store.Tx) error { here.Add(tx, []string{ws}, 100); return nil })
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := there.Reserve(t.Context(), []string{ws}, 1); fault.KindOf(err) == fault.Quota {
			return
		} else if time.Now().After(end) {
			t.Fatal("not seen")
		}
	}
}
