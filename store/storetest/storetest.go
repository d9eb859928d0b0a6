// Package storetest opens stores for tests, on SQLite and on a real PostgreSQL.
package storetest

import (
	"log/slog"
	"testing"

	"cellgate/internal/clock"
	"cellgate/store"
)

// Open returns an empty SQLite store in a folder of the test, closed with it.
func Open(t testing.TB) *store.DB {
	t.Helper()
	return open(t, store.Config{Dir: t.TempDir()})
}

// OpenAt is Open with a clock, nil for the real one, and on the database that a URL of Postgres names, "" for SQLite.
func OpenAt(t testing.TB, url string, c *clock.Clock) *store.DB {
	t.Helper()
	cfg := store.Config{URL: url, Clock: c}
	if url == "" {
		cfg.Dir = t.TempDir()
	}
	return open(t, cfg)
}

func open(t testing.TB, cfg store.Config) *store.DB {
	t.Helper()
	cfg.Unsynced = true
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// Each runs test on SQLite and on PostgreSQL, each time on an empty store of its own.
func Each(t *testing.T, test func(t *testing.T, db *store.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, Open(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, OpenAt(t, Postgres(t), nil)) })
}

// EachURL runs test with the URL of an empty database of each kind, "" being SQLite, for tests that open the store themselves.
func EachURL(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, "") })
	t.Run("postgres", func(t *testing.T) { test(t, Postgres(t)) })
}
