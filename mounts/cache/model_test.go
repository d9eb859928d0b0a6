package cache_test

import (
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mem"
)

// TestModel lets several clients at once do random things through a cache that believes for an hour. Each has a folder of its own, where at
// every moment it must see exactly what it did, and all have one in common, which must be right once all are done.
func TestModel(t *testing.T) {
	for _, blocks := range []bool{false, true} {
		t.Run(fmt.Sprintf("blocks %v", blocks), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				below := mem.New(mem.Config{})
				cfg := cache.Config{Age: time.Hour, Entries: rapid.SampledFrom([]int{0, 30, 8}).Draw(rt, "entries")}
				if blocks {
					cfg.Dir, cfg.Size, cfg.Block = t.TempDir(), 1<<20, 64<<10
				}
				b, err := cache.New(unwatched{below}, cfg)
				if err != nil {
					rt.Fatal(err)
				}
				defer b.Close()
				const clients = 3
				scripts := make([][]step, clients)
				for i := range scripts {
					scripts[i] = rapid.SliceOfN(rapid.Custom(drawStep), 5, 60).Draw(rt, fmt.Sprint("client ", i))
				}
				if err := below.Mkdir(t.Context(), "shared"); err != nil {
					rt.Fatal(err)
				}
				failures := make([]error, clients)
				var all sync.WaitGroup
				for i, script := range scripts {
					all.Go(func() { failures[i] = play(t, b, below, fmt.Sprintf("c%d", i), script) })
				}
				all.Wait()
				for _, err := range failures {
					if err != nil {
						rt.Fatal(err)
					}
				}
				if err := compare(t, b, below, "shared", true); err != nil {
					rt.Fatal(err)
				}
			})
		})
	}
}

// step is one thing a client does.
type step struct {
	op, from, to int
	shared       bool
	size         int
}

func drawStep(t *rapid.T) step {
	return step{
		op: rapid.IntRange(0, 13).Draw(t, "op"), from: rapid.IntRange(0, len(paths)-1).Draw(t, "from"), to: rapid.IntRange(0, len(paths)-1).Draw(t, "to"),
		shared: rapid.IntRange(0, 3).Draw(t, "where") == 0, size: rapid.IntRange(0, 200).Draw(t, "size"),
	}
}

var paths = []string{"a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b"}

// play does the steps below a folder of its own, and looks after each that the cache says what the backend says.
func play(t *testing.T, b, below mounts.Backend, own string, script []step) error {
	ctx := t.Context()
	if err := b.Mkdir(ctx, own); err != nil {
		return err
	}
	for i, s := range script {
		dir := own
		if s.shared {
			dir = "shared"
		}
		from, to := dir+"/"+paths[s.from], dir+"/"+paths[s.to]
		switch s.op {
		case 0, 1, 2:
			mounts.WriteFile(ctx, b, from, make([]byte, s.size))
		case 3:
			b.Mkdir(ctx, from)
		case 4:
			b.Remove(ctx, from)
		case 5:
			b.Rename(ctx, from, to)
		case 6:
			mounts.Copy(ctx, b, from, to)
		case 7:
			mounts.Purge(ctx, b, from)
		case 8:
			if c, ok := mounts.As[mounts.Truncater](b); ok {
				c.Truncate(ctx, from, int64(s.size))
			}
		case 9:
			if c, ok := mounts.As[mounts.TimeSetter](b); ok {
				c.SetModTime(ctx, from, time.Unix(int64(s.size), 0))
			}
		case 10:
			if c, ok := mounts.As[mounts.RandomAccess](b); ok {
				if f, err := c.OpenFile(ctx, from, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
					f.WriteAt([]byte("x"), int64(s.size))
					b.Stat(ctx, from)
					f.WriteAt([]byte("yy"), int64(s.size))
					f.Close()
				}
			}
		case 11:
			if c, ok := mounts.As[mounts.Linker](b); ok {
				c.Link(ctx, from, to)
			}
		case 12:
			if c, ok := mounts.As[mounts.Symlinker](b); ok {
				c.Symlink(ctx, "a", from)
			}
		case 13:
			for range b.List(ctx, dir+"/d") {
				if s.size > 100 {
					break
				}
			}
		}
		if err := compare(t, b, below, own, i%3 == 0); err != nil {
			return fmt.Errorf("after step %d, %+v of %s: %w", i, s, own, err)
		}
	}
	return nil
}

// compare looks that the cache says of all in dir what the backend says, and holds the same.
func compare(t *testing.T, b, below mounts.Backend, dir string, lists bool) error {
	ctx := t.Context()
	for _, path := range append([]string{"."}, paths...) {
		name := mounts.Join(dir, path)
		if path == "." {
			name = dir
		}
		got, gotErr := b.Stat(ctx, name)
		want, wantErr := below.Stat(ctx, name)
		if (gotErr == nil) != (wantErr == nil) || got != want || gotErr != nil && missing(gotErr) != missing(wantErr) {
			return fmt.Errorf("Stat(%s) = %+v, %v\nwant %+v, %v", name, got, gotErr, want, wantErr)
		}
		if want.Type == mounts.File && wantErr == nil {
			x, err1 := content(t, b, name)
			y, err2 := content(t, below, name)
			if x != y || err1 != nil || err2 != nil {
				return fmt.Errorf("%s holds %q, %v; want %q, %v", name, x, err1, y, err2)
			}
		}
		if !lists || wantErr != nil || !want.IsDir() {
			continue
		}
		have := map[string]mounts.Info{}
		for info, err := range b.List(ctx, name) {
			if err != nil {
				return err
			}
			have[info.Name] = info
		}
		n := 0
		for info := range below.List(ctx, name) {
			if n++; have[info.Name] != info {
				return fmt.Errorf("List(%s) has %+v\nwant %+v", name, have[info.Name], info)
			}
		}
		if n != len(have) {
			return fmt.Errorf("List(%s) has %d names, want %d", name, len(have), n)
		}
	}
	return nil
}

func missing(err error) bool {
	return fault.KindOf(err) == fault.NotExist || fault.KindOf(err) == fault.NotDir
}

func content(t *testing.T, b mounts.Backend, name string) (string, error) {
	r, err := b.Open(t.Context(), name, 0, -1)
	if err != nil {
		return "", err
	}
	defer r.Close()
	p, err := io.ReadAll(r)
	return string(p), err
}
