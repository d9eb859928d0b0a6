package store_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cellgate/internal/fault"
	"cellgate/store"
	"cellgate/store/storetest"
)

func config(t *testing.T, url string) store.Config {
	cfg := store.Config{URL: url, Unsynced: true}
	if url == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "data")
	}
	return cfg
}

func openConfig(t *testing.T, cfg store.Config) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// fill puts rows of every type and every awkward value into the box's own tables.
func fill(t *testing.T, db *store.DB) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		var rows [][]any
		for i := range 3000 {
			rows = append(rows, []any{fmt.Sprintf("key %d", i), strings.Repeat("é", i%50)})
		}
		rows = append(rows, []any{"", "empty key"}, []any{"quote ' \" ; --", "line\nfeed \x01"}, []any{"long", strings.Repeat("x", 200_000)})
		if err := tx.Insert(`INSERT INTO settings (key, value)`, "", rows); err != nil {
			return err
		}
		leases := [][]any{{"a", "h", int64(math.MaxInt64), int64(math.MinInt64)}, {"b", "", 0, -1}}
		if err := tx.Insert(`INSERT INTO leases (name, holder, fence, expires)`, "", leases); err != nil {
			return err
		}
		// A user with sealed bytes, and a property that refers to a node: a foreign key.
		if _, err := tx.Exec(`INSERT INTO nodes (id, datasource, depth, path, folder, size, mtime, fid, sums, owner, created, changed)
			VALUES (7, 'disk', 1, 'a', 0, 1, 1, 0, '', 'alice', 1, 1)`); err != nil {
			return err
		}
		for name, value := range map[string][]byte{"empty": {}, "all": allBytes()} {
			if _, err := tx.Exec(`INSERT INTO props (node, space, name, value) VALUES (7, 'DAV:', $1, $2)`, name, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func allBytes() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func backup(t *testing.T, db *store.DB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := db.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A backup of either database restored into either gives the same backup again, byte for byte.
func TestBackupRestore(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		fill(t, db)
		first := backup(t, db)
		storetest.EachURL(t, func(t *testing.T, url string) {
			cfg := config(t, url)
			if err := store.Restore(t.Context(), cfg, bytes.NewReader(first)); err != nil {
				t.Fatal(err)
			}
			copied := openConfig(t, cfg)
			if !bytes.Equal(backup(t, copied), first) {
				t.Error("the copy's backup differs")
			}
			if got := setting(t, copied, "quote ' \" ; --"); got != "line\nfeed \x01" {
				t.Errorf("got %q", got)
			}
			if err := copied.Update(t.Context(), set("new", "x")); err != nil {
				t.Errorf("writing after a restore: %v", err)
			}
			err := copied.Update(t.Context(), func(tx *store.Tx) error {
				_, err := tx.Exec(`INSERT INTO props (node, space, name, value) VALUES (99, '', '', $1)`, []byte{})
				return err
			})
			if err == nil {
				t.Error("foreign keys are gone")
			}
			copied.Close()
			if err := store.Restore(t.Context(), cfg, bytes.NewReader(first)); fault.KindOf(err) != fault.Exist {
				t.Errorf("restoring over a store: %v", err)
			}
		})
	})
}

func TestRestoreRefuses(t *testing.T) {
	src := storetest.Open(t)
	fill(t, src)
	good := backup(t, src)
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	newer := append([]byte("cellgate backup 1\n"), binary.AppendUvarint(nil, 9999)...)
	cases := []struct {
		name string
		in   []byte
		want fault.Kind
	}{
		{"empty", nil, fault.Corrupt},
		{"other file", []byte("PK\x03\x04 something that is long enough"), fault.Corrupt},
		{"newer schema", newer, fault.Unsupported},
		{"cut before the end", good[:len(good)-40], fault.Corrupt},
		{"cut in the digest", good[:len(good)-1], fault.Corrupt},
		{"cut in the middle", good[:len(good)/2], fault.Corrupt},
		{"changed text", changed(bytes.Index(good, []byte("xxxxxx")) + 1000), fault.Corrupt},
		{"changed digest", changed(len(good) - 1), fault.Corrupt},
		{"something follows", append(bytes.Clone(good), 0), fault.Corrupt},
		{"twice", append(bytes.Clone(good), good...), fault.Corrupt},
	}
	storetest.EachURL(t, func(t *testing.T, url string) {
		cfg := config(t, url)
		for _, c := range cases {
			if err := store.Restore(t.Context(), cfg, bytes.NewReader(c.in)); fault.KindOf(err) != c.want {
				t.Errorf("%s: got %v, want %v", c.name, err, c.want)
			}
		}
		mine := errors.New("mine")
		if err := store.Restore(t.Context(), cfg, io.MultiReader(bytes.NewReader(good[:len(good)/2]), failing{mine})); !errors.Is(err, mine) {
			t.Errorf("a failing reader: got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		half := len(good) / 2
		in := io.MultiReader(bytes.NewReader(good[:half]), cancelling{cancel}, bytes.NewReader(good[half:]))
		if err := store.Restore(ctx, cfg, in); err == nil {
			t.Error("cancelled, yet no error")
		}
		if cfg.Dir != "" { // nothing is left but the lock
			var names []string
			all, _ := os.ReadDir(cfg.Dir)
			for _, e := range all {
				names = append(names, e.Name())
			}
			if d := cmp.Diff([]string{"lock"}, names); d != "" {
				t.Error("the folder (-want +got)\n", d)
			}
		}
		// After all that the store is still empty enough.
		if err := store.Restore(t.Context(), cfg, bytes.NewReader(good)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(backup(t, openConfig(t, cfg)), good) {
			t.Error("the copy's backup differs")
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type cancelling struct{ cancel func() }

func (c cancelling) Read([]byte) (int, error) { c.cancel(); return 0, io.EOF }

// A backup taken while others write is a moment: both halves of each transaction or neither.
func TestBackupIsOneMoment(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		var wg sync.WaitGroup
		var stop atomic.Bool
		for w := range 4 {
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					err := db.Update(t.Context(), func(tx *store.Tx) error {
						if err := store.SetSetting(tx, fmt.Sprintf("a%d", w), fmt.Sprint(i)); err != nil {
							return err
						}
						_, err := tx.Exec(`INSERT INTO leases (name, holder, fence, expires) VALUES ($1, '', $2, 0)
							ON CONFLICT (name) DO UPDATE SET fence = excluded.fence`, fmt.Sprintf("a%d", w), i)
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 5 {
			b := backup(t, db)
			cfg := config(t, "")
			if err := store.Restore(t.Context(), cfg, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			copied := openConfig(t, cfg)
			var n int
			err := copied.QueryRow(t.Context(), `SELECT count(*) FROM settings s JOIN leases l ON l.name = s.key
				WHERE CAST(s.value AS BIGINT) <> l.fence`).Scan(&n)
			if err != nil || n != 0 {
				t.Errorf("%d torn pairs, %v", n, err)
			}
		}
		stop.Store(true)
		wg.Wait()
	})
}

// Memory does not grow with the store.
func TestBackupStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MiB")
	}
	db := storetest.Open(t)
	value := strings.Repeat("x", 1<<20)
	for i := range 100 {
		if err := db.Update(t.Context(), set(fmt.Sprint(i), value)); err != nil {
			t.Fatal(err)
		}
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(db.Backup(t.Context(), w)) }()
	var peak uint64
	watch := watching{r, func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse)
	}}
	cfg := config(t, "")
	if err := store.Restore(t.Context(), cfg, watch); err != nil {
		t.Fatal(err)
	}
	if peak > 64<<20 {
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
}

type watching struct {
	r  io.Reader
	at func()
}

func (w watching) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.at()
	return n, err
}

// TestSampleBackup restores what the first release wrote.
func TestSampleBackup(t *testing.T) {
	storetest.EachURL(t, func(t *testing.T, url string) {
		f, err := os.Open("testdata/backup-1.bin")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cfg := config(t, url)
		if err := store.Restore(t.Context(), cfg, f); err != nil {
			t.Fatal(err)
		}
		if got := setting(t, openConfig(t, cfg), "sample"); got != "of the first release" {
			t.Errorf("got %q", got)
		}
	})
}
