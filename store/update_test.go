package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cellgate/internal/fault"
	"cellgate/store"
	"cellgate/store/storetest"
)

func set(key, value string) func(*store.Tx) error {
	return func(tx *store.Tx) error { return store.SetSetting(tx, key, value) }
}

func setting(t *testing.T, db *store.DB, key string) string {
	t.Helper()
	v, err := db.Setting(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestUpdate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		if err := db.Update(t.Context(), set("a", "1")); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, db, "a"); got != "1" {
			t.Errorf("got %q, want 1", got)
		}
		if got := setting(t, db, "none"); got != "" {
			t.Errorf("got %q for a key never set", got)
		}
		mine := errors.New("mine")
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			if err := store.SetSetting(tx, "a", "2"); err != nil {
				return err
			}
			return mine
		})
		if err != mine {
			t.Errorf("got %v, want the function's own error", err)
		}
		if got := setting(t, db, "a"); got != "1" {
			t.Errorf("got %q after a function failed, want 1", got)
		}
	})
}

func TestSwallowedFailureFails(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			if err := store.SetSetting(tx, "a", "1"); err != nil {
				return err
			}
			_, _ = tx.Exec(`INSERT INTO nowhere VALUES (1)`)
			return nil
		})
		if err == nil || setting(t, db, "a") != "" {
			t.Errorf("got %v and %q, want a failure and nothing stored", err, setting(t, db, "a"))
		}
	})
}

func TestConflict(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		insert := func(tx *store.Tx) error {
			_, err := tx.Exec(`INSERT INTO settings (key, value) VALUES ($1, $2)`, "a", "1")
			return err
		}
		if err := db.Update(t.Context(), insert); err != nil {
			t.Fatal(err)
		}
		err := db.Update(t.Context(), insert)
		if !store.IsConflict(err) || fault.KindOf(err) != fault.Exist {
			t.Errorf("got %v, want a conflict", err)
		}
		if err := db.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.Exec(`nonsense`); return err }); store.IsConflict(err) {
			t.Errorf("%v is a conflict", err)
		}
	})
}

func TestPanicIsContained(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			if err := store.SetSetting(tx, "a", "1"); err != nil {
				return err
			}
			panic("oh")
		})
		if fault.KindOf(err) != fault.Internal || setting(t, db, "a") != "" {
			t.Errorf("got %v", err)
		}
		if err := db.Update(t.Context(), set("b", "1")); err != nil {
			t.Errorf("after a panic: %v", err)
		}
	})
}

// Many functions share transactions; each that fails, in each way there is, fails alone.
func TestErrorsAreIsolated(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		mine := errors.New("mine")
		var wg sync.WaitGroup
		const workers, rounds = 16, 40
		for w := range workers {
			wg.Go(func() {
				for i := range rounds {
					key := fmt.Sprintf("%d/%d", w, i)
					var want func(error) bool
					err := db.Update(t.Context(), func(tx *store.Tx) error {
						switch i % 8 {
						case 0: // before anything is written
							want = func(err error) bool { return err == mine }
							return mine
						}
						if err := store.SetSetting(tx, key, "x"); err != nil {
							return err
						}
						switch i % 8 {
						case 1:
							want = func(err error) bool { return err == mine }
							return mine
						case 2:
							want = func(err error) bool { return fault.KindOf(err) == fault.Internal }
							panic("oh")
						case 3:
							want = store.IsConflict
							_, err := tx.Exec(`INSERT INTO settings (key, value) VALUES ($1, 'y')`, key)
							return err
						}
						want = func(err error) bool { return err == nil }
						return nil
					})
					if !want(err) {
						t.Errorf("%s: got %v", key, err)
					}
				}
			})
		}
		wg.Wait()
		var n int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM settings`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if want := workers * rounds / 2; n != want {
			t.Errorf("%d rows, want %d", n, want)
		}
	})
}

// FailNow in a function ends the goroutine that leads; the store goes on.
func TestFunctionEndsItsGoroutine(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_ = db.Update(t.Context(), func(tx *store.Tx) error {
					_ = store.SetSetting(tx, "a", "1")
					runtime.Goexit()
					return nil
				})
			})
		}
		wg.Wait()
		if err := db.Update(t.Context(), set("b", "1")); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, db, "a"); got != "" {
			t.Errorf("got %q, want nothing stored", got)
		}
	})
}

func TestOneTransactionForMany(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		// While one function holds the batch, others queue up.
		hold, held := make(chan struct{}), make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		wg.Go(func() {
			err := db.Update(t.Context(), func(tx *store.Tx) error {
				once.Do(func() { close(held); <-hold; time.Sleep(10 * time.Millisecond) })
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-held
		f := &recorder{}
		for i := range 50 {
			wg.Go(func() {
				if err := db.Update(t.Context(), func(tx *store.Tx) error {
					if i%10 == 3 {
						tx.Collect(f, -1)
						return errors.New("mine")
					}
					tx.Collect(f, i)
					return nil
				}); (err != nil) != (i%10 == 3) {
					t.Error(err)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		close(hold)
		wg.Wait()
		if len(f.flushes) > 3 {
			t.Errorf("%d transactions for 50 functions", len(f.flushes))
		}
		var all []int
		for _, items := range f.flushes {
			all = append(all, items...)
		}
		slices.Sort(all)
		var want []int
		for i := range 50 {
			if i%10 != 3 {
				want = append(want, i)
			}
		}
		if d := cmp.Diff(want, all); d != "" {
			t.Error("flushed items (-want +got)\n", d)
		}
	})
}

// More than a batch takes is served in the order in which it came.
func TestInOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		var got []int
		f := &recorder{}
		for i := range 1000 {
			db.Later(func(tx *store.Tx) error {
				tx.Collect(f, i)
				tx.OnCommit(func() { got = append(got, i) })
				return nil
			})
		}
		if err := db.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1000 || !slices.IsSorted(got) {
			t.Errorf("%d functions, in order: %v", len(got), slices.IsSorted(got))
		}
		if n := len(f.flushes); n < 4 || n > 20 {
			t.Errorf("%d transactions", n)
		}
	})
}

// Callers share the store: nobody starves.
func TestFair(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		var served [8]int
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for w := range served {
			wg.Go(func() {
				for db.Update(ctx, set(fmt.Sprint(w), "x")) == nil {
					served[w]++
				}
			})
		}
		wg.Wait()
		if least, most := slices.Min(served[:]), slices.Max(served[:]); least == 0 || most > 10*least+20 {
			t.Errorf("served %v", served)
		}
	})
}

// recorder is a Flusher that keeps what it saw.
type recorder struct {
	mu      sync.Mutex
	flushes [][]int
	fail    func(items []int) error
	next    store.Flusher
}

func (r *recorder) Flush(tx *store.Tx, items []any) error {
	ints := make([]int, len(items))
	for i, it := range items {
		ints[i] = it.(int)
	}
	if r.fail != nil {
		if err := r.fail(ints); err != nil {
			return err
		}
	}
	if r.next != nil {
		tx.Collect(r.next, len(items))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushes = append(r.flushes, ints)
	return nil
}

func TestFlushers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		last := &recorder{}
		a, b := &recorder{next: last}, &recorder{}
		var order []string
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			tx.Collect(a, 1)
			tx.Collect(b, 2)
			tx.Collect(a, 3)
			tx.OnCommit(func() { order = append(order, "first") })
			tx.OnCommit(func() { order = append(order, "second") })
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got := [][][]int{a.flushes, b.flushes, last.flushes}
		if d := cmp.Diff([][][]int{{{1, 3}}, {{2}}, {{2}}}, got); d != "" {
			t.Error("flushes (-want +got)\n", d)
		}
		if d := cmp.Diff([]string{"first", "second"}, order); d != "" {
			t.Error("after the commit (-want +got)\n", d)
		}
	})
}

// A flusher that cannot take one item fails the function it came from and no other.
func TestFlusherFailureIsIsolated(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		f := &recorder{fail: func(items []int) error {
			if slices.Contains(items, 7) {
				return errors.New("not seven")
			}
			return nil
		}}
		var wg sync.WaitGroup
		var committed atomic.Int32
		for i := range 20 {
			wg.Go(func() {
				err := db.Update(t.Context(), func(tx *store.Tx) error {
					tx.Collect(f, i)
					tx.OnCommit(func() { committed.Add(1) })
					return store.SetSetting(tx, fmt.Sprint(i), "x")
				})
				if (err != nil) != (i == 7) {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if got := setting(t, db, "7"); got != "" || committed.Load() != 19 {
			t.Errorf("stored %q, %d functions told of a commit, want 19", got, committed.Load())
		}
	})
}

func TestLaterAndFlush(t *testing.T) {
	storetest.EachURL(t, func(t *testing.T, url string) {
		cfg := store.Config{URL: url, Unsynced: true}
		if url == "" {
			cfg.Dir = t.TempDir()
		}
		db, err := store.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			db.Later(set(fmt.Sprint(i), "x"))
		}
		db.Later(func(tx *store.Tx) error { return errors.New("logged, nothing else") })
		if err := db.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, db, "99"); got != "x" {
			t.Error("Flush did not wait")
		}
		for i := range 100 {
			db.Later(set(fmt.Sprint("b", i), "x"))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := db.Update(t.Context(), set("c", "x")); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Update after Close: %v", err)
		}
		db.Later(set("c", "x"))
		if db, err = store.Open(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if got := setting(t, db, "b99"); got != "x" {
			t.Error("Close did not wait")
		}
	})
}

// A caller that gives up while it waits leaves no trace; one that was picked learns the outcome.
func TestCancel(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		hold, held := make(chan struct{}), make(chan struct{})
		var once sync.Once
		first := make(chan error)
		go func() {
			first <- db.Update(ctx, func(tx *store.Tx) error {
				once.Do(func() { close(held); <-hold })
				return store.SetSetting(tx, "picked", "x")
			})
		}()
		<-held
		queued := make(chan error)
		go func() { queued <- db.Update(ctx, set("queued", "x")) }()
		time.Sleep(10 * time.Millisecond)
		cancel()
		if err := <-queued; fault.KindOf(err) != fault.Canceled {
			t.Errorf("queued: got %v", err)
		}
		close(hold)
		if err := <-first; err != nil {
			t.Errorf("picked: got %v, want its outcome", err)
		}
		if err := db.Update(ctx, set("late", "x")); fault.KindOf(err) != fault.Canceled {
			t.Errorf("late: got %v", err)
		}
		if a, b := setting(t, db, "picked"), setting(t, db, "queued"); a != "x" || b != "" {
			t.Errorf("picked %q, queued %q", a, b)
		}
	})
}

func TestViewIsOneSnapshot(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		if err := db.Update(t.Context(), set("a", "1")); err != nil {
			t.Fatal(err)
		}
		err := db.View(t.Context(), func(tx *store.Tx) error {
			for i := range 3 {
				var v string
				if err := tx.QueryRow(`SELECT value FROM settings WHERE key = $1`, "a").Scan(&v); err != nil {
					return err
				}
				if v != "1" {
					t.Errorf("read %d: got %q", i, v)
				}
				if err := db.Update(t.Context(), set("a", fmt.Sprint(i+2))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(t.Context(), func(tx *store.Tx) error { return store.SetSetting(tx, "a", "x") })
		if err == nil || setting(t, db, "a") != "4" {
			t.Errorf("a view wrote: %v", err)
		}
	})
}

// A function that forgets to close its rows does not block the ones after it.
func TestForgottenRows(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		forget := func(tx *store.Tx) error {
			rows, err := tx.Query(`SELECT key FROM settings ORDER BY key`)
			if err == nil {
				rows.Next()
			}
			return err
		}
		if err := db.Update(t.Context(), func(tx *store.Tx) error {
			return errors.Join(store.SetSetting(tx, "a", "1"), store.SetSetting(tx, "b", "1"), forget(tx))
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.View(t.Context(), forget); err != nil {
			t.Fatal(err)
		}
		if err := db.Update(t.Context(), set("c", "1")); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBytesOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		want := []string{"B", "Z", "a", "a-b", "a/b", "aa", "b", "é", "日"}
		for _, k := range want {
			if err := db.Update(t.Context(), set(k, "")); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := db.Query(t.Context(), `SELECT key FROM settings WHERE key >= $1 AND key < $2 ORDER BY key`, "A", "\U0010FFFF")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		if got := scan(t, rows); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func scan(t *testing.T, rows *sql.Rows) (got []string) {
	t.Helper()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		got = append(got, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestNewID(t *testing.T) {
	var last int64
	for range 10_000 {
		id := store.NewID()
		if id <= last {
			t.Fatalf("%d after %d", id, last)
		}
		last = id
	}
}
