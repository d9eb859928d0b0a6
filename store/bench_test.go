package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cellgate/store"
	"cellgate/store/storetest"
)

// cpu returns the processor time of the process so far. On a shared machine it says more than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func measure(b *testing.B, op func()) {
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	op()
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// parallel runs work in so many goroutines, until next has said yes b.N times. The context can be cancelled, as a request's.
func parallel(b *testing.B, workers int, work func(ctx context.Context, next func() bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done atomic.Int64
	next := func() bool { return done.Add(1) <= int64(b.N) }
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { work(ctx, next) })
	}
	wg.Wait()
}

// benchTables makes tables of the shape of nodes and audit records.
func benchTables(b *testing.B, db *store.DB) {
	err := db.Update(b.Context(), func(tx *store.Tx) error {
		for _, q := range []string{
			`CREATE TABLE bench_node (id BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, size BIGINT NOT NULL, mtime BIGINT NOT NULL)`,
			`CREATE TABLE bench_usage (scope TEXT NOT NULL PRIMARY KEY, used BIGINT NOT NULL)`,
			`CREATE TABLE bench_log (seq BIGINT NOT NULL PRIMARY KEY, actor TEXT NOT NULL, action TEXT NOT NULL,
				path TEXT NOT NULL, outcome TEXT NOT NULL, at BIGINT NOT NULL)`,
		} {
			if _, err := tx.Exec(q); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// benchLog writes what was collected in one statement.
type benchLog struct{ seq int64 }

func (l *benchLog) Flush(tx *store.Tx, items []any) error {
	rows := make([][]any, len(items))
	for i, it := range items {
		l.seq++
		rows[i] = []any{l.seq, "alice", "write", it, "ok", int64(1)}
	}
	return tx.Insert(`INSERT INTO bench_log (seq, actor, action, path, outcome, at)`, "", rows)
}

func benchmarkUpdate(b *testing.B, db *store.DB, workers int) {
	benchTables(b, db)
	l := &benchLog{}
	var n atomic.Int64
	measure(b, func() {
		parallel(b, workers, func(ctx context.Context, next func() bool) {
			for next() {
				i := n.Add(1)
				err := db.Update(ctx, func(tx *store.Tx) error {
					if _, err := tx.Exec(`INSERT INTO bench_node (id, name, size, mtime) VALUES ($1, $2, $3, $4)
						ON CONFLICT (id) DO UPDATE SET name = excluded.name, size = excluded.size, mtime = excluded.mtime`,
						i%20000, "report.txt", i, i); err != nil {
						return err
					}
					if _, err := tx.Exec(`INSERT INTO bench_usage (scope, used) VALUES ($1, $2)
						ON CONFLICT (scope) DO UPDATE SET used = bench_usage.used + excluded.used`, "user:alice", 4096); err != nil {
						return err
					}
					tx.Collect(l, "/docs/report.txt")
					return nil
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkUpdate(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("sqlite/unsynced/%d", workers), func(b *testing.B) { benchmarkUpdate(b, storetest.Open(b), workers) })
		b.Run(fmt.Sprintf("sqlite/synced/%d", workers), func(b *testing.B) {
			db, err := store.Open(b.Context(), store.Config{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			benchmarkUpdate(b, db, workers)
		})
		b.Run(fmt.Sprintf("postgres/%d", workers), func(b *testing.B) {
			benchmarkUpdate(b, storetest.OpenAt(b, storetest.Postgres(b), nil), workers)
		})
	}
}

func benchmarkQueryRow(b *testing.B, db *store.DB, workers int) {
	benchTables(b, db)
	err := db.Update(b.Context(), func(tx *store.Tx) error {
		rows := make([][]any, 20000)
		for i := range rows {
			rows[i] = []any{i, strings.Repeat("n", 20), i, i}
		}
		return tx.Insert(`INSERT INTO bench_node (id, name, size, mtime)`, "", rows)
	})
	if err != nil {
		b.Fatal(err)
	}
	var n atomic.Int64
	measure(b, func() {
		parallel(b, workers, func(ctx context.Context, next func() bool) {
			for next() {
				var name string
				var size, mtime int64
				err := db.QueryRow(ctx, `SELECT name, size, mtime FROM bench_node WHERE id = $1`, n.Add(7919)%20000).Scan(&name, &size, &mtime)
				if err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkQueryRow(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("sqlite/%d", workers), func(b *testing.B) { benchmarkQueryRow(b, storetest.Open(b), workers) })
		b.Run(fmt.Sprintf("postgres/%d", workers), func(b *testing.B) {
			benchmarkQueryRow(b, storetest.OpenAt(b, storetest.Postgres(b), nil), workers)
		})
	}
}
