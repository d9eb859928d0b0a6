package cache_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

func open(t testing.TB, next mounts.Backend, cfg cache.Config) *cache.Backend {
	t.Helper()
	b, err := cache.New(next, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	plain := cache.Config{Age: time.Hour}
	blocks := cache.Config{Age: time.Hour, Size: 8 << 20, Block: 64 << 10, ReadAhead: 256 << 10}
	for _, test := range []struct {
		name string
		next func() mounts.Backend
		cfg  cache.Config
	}{
		{"watched", func() mounts.Backend { return mem.New(mem.Config{}) }, plain},
		{"unwatched", func() mounts.Backend { return unwatched{mem.New(mem.Config{})} }, plain},
		{"flaky", func() mounts.Backend { return flaky.New(mem.New(mem.Config{})) }, plain},
		{"blocks", func() mounts.Backend { return unwatched{mem.New(mem.Config{})} }, blocks},
	} {
		t.Run(test.name, func(t *testing.T) {
			mounttest.Run(t, func(t *testing.T) mounts.Backend {
				test.cfg.Dir = t.TempDir()
				return open(t, test.next(), test.cfg)
			})
		})
	}
	t.Run("remembering nothing", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T) mounts.Backend { return open(t, mem.New(mem.Config{}), cache.Config{Age: -1}) })
	})
	t.Run("small", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T) mounts.Backend {
			return open(t, unwatched{mem.New(mem.Config{})}, cache.Config{Age: time.Hour, Entries: 20})
		})
	})
}

// unwatched is a mem that tells of no changes, as most remote storages.
type unwatched struct{ *mem.Backend }

func (u unwatched) Features() mounts.Features {
	f := u.Backend.Features()
	f.Watch = mounts.Refused
	return f
}

func (u unwatched) Provide(target any) (known, found bool) {
	_, watcher := target.(*mounts.Watcher)
	return watcher, false
}

// counted is a cache on a mem whose calls are counted.
func counted(t *testing.T, cfg cache.Config) (*cache.Backend, *flaky.Backend, *mem.Backend) {
	below := mem.New(mem.Config{})
	calls := flaky.New(unwatched{below})
	b := open(t, calls, cfg)
	t.Cleanup(func() { b.Close() })
	return b, calls, below
}

func write(t testing.TB, b mounts.Backend, name, content string) {
	t.Helper()
	if _, err := mounts.WriteFile(t.Context(), b, name, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, ctx context.Context, b mounts.Backend, dir string) (names []string) {
	t.Helper()
	for info, err := range b.List(ctx, dir) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	slices.Sort(names)
	return names
}

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, calls, below := counted(t, cache.Config{})
		ctx := t.Context()
		write(t, below, "f", "one")
		if _, ok := b.Age("f"); ok {
			t.Error("Age of what nobody asked for")
		}
		stat := func(ctx context.Context, want int64) {
			t.Helper()
			if info, err := b.Stat(ctx, "f"); err != nil || info.Size != want {
				t.Errorf("Stat: %d, %v; want %d", info.Size, err, want)
			}
		}
		stat(ctx, 3)
		write(t, below, "f", "longer")
		time.Sleep(3 * time.Second)
		stat(ctx, 3)
		if age, ok := b.Age("f"); !ok || age != 3*time.Second {
			t.Errorf("Age: %v, %v; want 3s", age, ok)
		}
		stat(cache.Fresh(ctx), 6)
		if age, ok := b.Age("f"); !ok || age != 0 {
			t.Errorf("Age after a fresh Stat: %v, %v; want 0", age, ok)
		}
		stat(ctx, 6)
		if got := calls.Calls("Stat"); got != 2 {
			t.Errorf("%d calls, want 2", got)
		}
		write(t, below, "f", "x")
		time.Sleep(5 * time.Second)
		if _, ok := b.Age("f"); ok {
			t.Error("Age of what is too old")
		}
		stat(ctx, 1)
		write(t, below, "f", "xx")
		b.Invalidate("f")
		stat(ctx, 2)
	})
}

// TestListing: a listing answers for every name in the folder, also for those that are not there, and shows what is changed here.
func TestListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, calls, below := counted(t, cache.Config{})
		ctx := t.Context()
		mounttest.Script(t, below, `
			mkdir d     -> ok
			put d/f 1   -> ok
		`)
		list(t, ctx, b, "d")
		time.Sleep(time.Second)
		mounttest.Script(t, b, `
			stat d/f       -> file "f" 1
			stat d/none    -> ! does not exist
			stat d/no/no   -> ! does not exist
			put d/g 22     -> ok
			stat d/g       -> file "g" 2
			ls d           -> f g
			rm d/f         -> ok
			stat d/f       -> ! does not exist
			ls d           -> g
		`)
		if got := calls.Calls("Stat") + calls.Calls("List"); got != 1 {
			t.Errorf("%d calls, want 1", got)
		}
		if age, ok := b.Age("d"); !ok || age != time.Second {
			t.Errorf("Age: %v, %v; want 1s", age, ok)
		}
		write(t, below, "d/outside", "1")
		time.Sleep(4 * time.Second)
		mounttest.Script(t, b, `ls d -> g outside`)
		write(t, below, "d/outside2", "1")
		mounttest.Script(t, b, `stat d/outside2 -> ! does not exist`)
		if got := list(t, cache.Fresh(ctx), b, "d"); len(got) != 3 {
			t.Errorf("a fresh listing has %q", got)
		}
		mounttest.Script(t, b, `stat d/outside2 -> file "outside2" 1`)
	})
}

// TestManyNewFiles: asking for a free name before each of 1,000 files costs a few listings, not 1,000 calls.
func TestManyNewFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, calls, below := counted(t, cache.Config{})
		mounttest.Script(t, below, "mkdir d -> ok")
		for i := range 1000 {
			name := fmt.Sprintf("d/%d", i)
			if _, err := b.Stat(t.Context(), name); fault.KindOf(err) != fault.NotExist {
				t.Fatal(err)
			}
			write(t, b, name, "x")
			time.Sleep(20 * time.Millisecond)
		}
		if stats, lists := calls.Calls("Stat"), calls.Calls("List"); stats > 20 || lists > 10 {
			t.Errorf("%d calls of Stat and %d of List", stats, lists)
		}
		if got := len(list(t, t.Context(), b, "d")); got != 1000 {
			t.Errorf("%d files", got)
		}
	})
}

// TestLargeFolder: one that is too large is not listed ahead again and again, nor kept.
func TestLargeFolder(t *testing.T) {
	b, calls, below := counted(t, cache.Config{Entries: 100})
	for i := range 50 {
		write(t, below, fmt.Sprint(i), "x")
	}
	for i := range 50 {
		if _, err := b.Stat(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if stats, lists := calls.Calls("Stat"), calls.Calls("List"); lists != 1 || stats != 50 {
		t.Errorf("%d calls of Stat and %d of List; want 50 and 1", stats, lists)
	}
	for range 2 {
		if got := list(t, t.Context(), b, "."); len(got) != 50 {
			t.Errorf("%d files", len(got))
		}
	}
	if lists := calls.Calls("List"); lists != 3 {
		t.Errorf("%d listings, want 3", lists)
	}
}

func TestShared(t *testing.T) {
	for _, op := range []string{"Stat", "List"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, calls, below := counted(t, cache.Config{Age: time.Hour})
				write(t, below, "f", "1")
				calls.Set(flaky.Rule{Op: op, Stall: true})
				ask := func(ctx context.Context) error {
					if op == "Stat" {
						_, err := b.Stat(ctx, ".")
						return err
					}
					for _, err := range b.List(ctx, ".") {
						if err != nil {
							return err
						}
					}
					return nil
				}
				first, cancelFirst := context.WithCancel(t.Context())
				short, cancelShort := context.WithTimeout(t.Context(), time.Second)
				defer cancelShort()
				results := make(chan error, 12)
				go func() { results <- ask(first) }()
				synctest.Wait()
				go func() { results <- ask(short) }()
				for range 10 {
					go func() { results <- ask(t.Context()) }()
				}
				synctest.Wait()
				if got := calls.Calls(op); got != 1 {
					t.Errorf("%d calls, want 1", got)
				}
				if err := <-results; fault.KindOf(err) != fault.Timeout {
					t.Errorf("he who waits only a second: %v; want Timeout", err)
				}
				cancelFirst() // another takes over
				if err := <-results; fault.KindOf(err) != fault.Canceled {
					t.Errorf("he who went away: %v; want Canceled", err)
				}
				synctest.Wait()
				calls.Resume()
				for range 10 {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
				if got := calls.Calls(op); op == "Stat" && got != 2 {
					t.Errorf("%d calls, want 2", got)
				}
			})
		})
	}
}

// TestSlowClient: a client that reads a listing slowly does not hold up others.
func TestSlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, below := counted(t, cache.Config{Age: time.Hour})
		for i := range 10 {
			write(t, below, fmt.Sprint(i), "x")
		}
		slow := make(chan int)
		go func() {
			n := 0
			for range b.List(t.Context(), ".") {
				n++
				time.Sleep(time.Minute)
			}
			slow <- n
		}()
		synctest.Wait()
		start := time.Now()
		if got := list(t, t.Context(), b, "."); len(got) != 10 || time.Since(start) > time.Second {
			t.Errorf("%d names after %v", len(got), time.Since(start))
		}
		if got := <-slow; got != 10 {
			t.Errorf("the slow client got %d names", got)
		}
	})
}

// TestWriteMeanwhile: an answer that was on its way while its name was changed here is not kept, nor joined by those who ask after the change.
func TestWriteMeanwhile(t *testing.T) {
	for _, op := range []string{"Stat", "List"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				below := mem.New(mem.Config{})
				late := &lateBackend{Backend: unwatched{below}, hold: make(chan struct{})}
				b := open(t, late, cache.Config{Age: time.Hour})
				defer b.Close()
				write(t, below, "f", "one")
				done := make(chan string)
				go func() { // its answer is of before the write and comes after it
					if op == "Stat" {
						info, err := b.Stat(t.Context(), "f")
						done <- fmt.Sprint(info.Size, err)
						return
					}
					done <- fmt.Sprint(list(t, t.Context(), b, "."))
				}()
				synctest.Wait()
				late.quick = true
				write(t, b, "f", "longer")
				if err := b.Rename(t.Context(), "f", "g"); err != nil {
					t.Fatal(err)
				}
				mounttest.Script(t, b, `
					stat f -> ! does not exist
					stat g -> file "g" 6
				`)
				close(late.hold)
				if got := <-done; got != "3 <nil>" && got != "[f]" {
					t.Errorf("he who asked before got %s", got)
				}
				mounttest.Script(t, b, `
					stat f -> ! does not exist
					stat g -> file "g" 6
					ls .   -> g
				`)
			})
		})
	}
}

// lateBackend gets its answers at once and gives them when hold is closed, but for those asked for when quick.
type lateBackend struct {
	mounts.Backend
	hold  chan struct{}
	quick bool
}

func (l *lateBackend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	info, err := l.Backend.Stat(ctx, name)
	if !l.quick {
		<-l.hold
	}
	return info, err
}

func (l *lateBackend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	quick := l.quick
	var infos []mounts.Info
	for info := range l.Backend.List(ctx, dir) {
		infos = append(infos, info)
	}
	return func(yield func(mounts.Info, error) bool) {
		if !quick {
			<-l.hold
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// TestLostAnswers: after a change whose outcome is unknown the backend is asked.
func TestLostAnswers(t *testing.T) {
	b, calls, below := counted(t, cache.Config{Age: time.Hour})
	mounttest.Script(t, below, `
		put f old   -> ok
		put g old   -> ok
		put h old   -> ok
		mkdir d     -> ok
	`)
	list(t, t.Context(), b, ".")
	calls.Set(
		flaky.Rule{Op: "Put", Fault: fault.Timeout, After: true}, flaky.Rule{Op: "Remove", Fault: fault.Unavailable, After: true},
		flaky.Rule{Op: "Rename", Fault: fault.Timeout, After: true}, flaky.Rule{Op: "Mkdir", Fault: fault.Timeout, After: true},
		flaky.Rule{Op: "Truncate", Fault: fault.Timeout, After: true},
	)
	mounttest.Script(t, b, `
		put f longer -> ! timed out
		rm g         -> ! unavailable
		mv h d/h     -> ! timed out
		mkdir e      -> ! timed out
		stat f       -> file "f" 6
		stat g       -> ! does not exist
		stat h       -> ! does not exist
		stat d/h     -> file "h" 3
		stat e       -> dir "e"
		ls .         -> d/ e/ f
	`)
	c, _ := mounts.As[mounts.Truncater](b)
	if err := c.Truncate(t.Context(), "f", 1); fault.KindOf(err) != fault.Timeout {
		t.Error(err)
	}
	mounttest.Script(t, b, `stat f -> file "f" 1`)
}

// TestParentGone: a Put that fails for want of its folder makes the folder be looked for anew.
func TestParentGone(t *testing.T) {
	b, _, below := counted(t, cache.Config{Age: time.Hour})
	mounttest.Script(t, b, `
		mkdir d   -> ok
		stat d    -> dir "d"
		ls .      -> d/
		ls d      -> 
	`)
	mounttest.Script(t, below, `rm d -> ok`)
	mounttest.Script(t, b, `
		stat d    -> dir "d"
		put d/f 1 -> ! does not exist
		stat d    -> ! does not exist
		ls .      -> 
		ls d      -> ! does not exist
	`)
}

func TestWatch(t *testing.T) {
	below := mem.New(mem.Config{})
	b := open(t, below, cache.Config{Age: time.Hour})
	defer b.Close()
	write(t, below, "f", "1")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		write(t, b, "g", "own")
		b.Stat(t.Context(), "f")
		if age, ok := b.Age("f"); !ok || age > 100*time.Millisecond {
			break // it did remember, or was told
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was seen")
		}
		if info, err := b.Stat(t.Context(), "f"); err == nil && info.Size > 1 {
			break
		}
		write(t, below, "f", "22")
	}
	for _, content := range []string{"333", "4444"} {
		b.Stat(t.Context(), "f")
		write(t, below, "f", content)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if info, err := b.Stat(t.Context(), "f"); err == nil && info.Size == int64(len(content)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("an outside change was not seen")
			}
		}
	}
}

// TestOpenFiles: what is written at open files shows at once, also after a Rename.
func TestOpenFiles(t *testing.T) {
	b, _, _ := counted(t, cache.Config{Age: time.Hour})
	write(t, b, "f", "hello")
	c, ok := mounts.As[mounts.RandomAccess](b)
	if !ok {
		t.Fatal("no RandomAccess")
	}
	f, err := c.OpenFile(t.Context(), "f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := func(off int64) {
		t.Helper()
		if _, err := f.WriteAt([]byte("!"), off); err != nil {
			t.Fatal(err)
		}
	}
	mounttest.Script(t, b, `
		stat f -> file "f" 5
		ls .   -> f
	`)
	at(5)
	mounttest.Script(t, b, `
		stat f -> file "f" 6
		mv f g -> ok
		stat g -> file "g" 6
	`)
	at(6)
	mounttest.Script(t, b, `stat g -> file "g" 7`)
	l, _ := mounts.As[mounts.Linker](b)
	if err := l.Link(t.Context(), "g", "h"); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, `stat h -> file "h" 7`)
	at(7)
	mounttest.Script(t, b, `stat h -> file "h" 8`)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, `
		put g x -> ok
		stat h  -> file "h" 8
		stat g  -> file "g" 1
	`)
}

// TestBounded: however many names are asked for, a bounded number is remembered.
func TestBounded(t *testing.T) {
	b, _, _ := counted(t, cache.Config{Age: time.Hour, Entries: 1000})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 200_000 {
		b.Stat(t.Context(), fmt.Sprintf("%0100d", i)) // in one large folder
	}
	for i := range 50_000 {
		b.Stat(t.Context(), fmt.Sprintf("%d/%0100d", i, i)) // and in many
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("memory grew by %d KiB", grown>>10)
	}
}

func TestClosing(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 10 {
		b := open(t, mem.New(mem.Config{}), cache.Config{Dir: t.TempDir(), Size: 1 << 20})
		write(t, b, "f", "x")
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		if _, err := b.Stat(t.Context(), "f"); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Stat after Close: %v", err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) { // one may be just ending
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, were %d", runtime.NumGoroutine(), before)
		}
	}
}

func BenchmarkCache(b *testing.B) {
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return open(b, unwatched{mem.New(mem.Config{})}, cache.Config{Age: time.Hour})
	})
}
