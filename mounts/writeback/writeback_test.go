package writeback_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/writeback"
)

func open(t testing.TB, next mounts.Backend, cfg writeback.Config) *writeback.Backend {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "spool")
	}
	b, err := writeback.New(next, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestConformance lets uploads wait until somebody needs them, so that what the suite compares is either pending or not.
func TestConformance(t *testing.T) {
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		return open(t, mem.New(mem.Config{}), writeback.Config{Delay: time.Hour, Dir: quick(t)})
	})
	t.Run("full", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T) mounts.Backend {
			return open(t, mem.New(mem.Config{}), writeback.Config{Delay: time.Hour, Size: 50_000, MaxFile: 10_000, Dir: quick(t)})
		})
	})
}

// quick returns a folder in memory, where there is one: thousands of syncs take their time on a disk.
func quick(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "writeback-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(t testing.TB, b mounts.Backend, name, content string) mounts.Info {
	t.Helper()
	info, err := mounts.WriteFile(t.Context(), b, name, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// down is a mem whose Put fails until told otherwise.
func down(t *testing.T, kind fault.Kind) (*flaky.Backend, *mem.Backend) {
	below := mem.New(mem.Config{})
	return flaky.New(below, flaky.Rule{Op: "Put", Fault: kind}), below
}

// TestPending: what waits for its upload is seen as if it were there.
func TestPending(t *testing.T) {
	next, below := down(t, fault.Unavailable)
	write(t, below, "old", "before")
	if err := below.Mkdir(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := open(t, next, writeback.Config{Dir: dir})
	defer b.Close()
	mounttest.Script(t, b, `
		put f hello   -> ok
		put old after -> ok
		put d/g 22    -> ok
		stat f        -> file "f" 5
		cat f         -> "hello"
		cat f 1 3     -> "ell"
		cat old       -> "after"
		ls .          -> d/ f old
		ls d          -> g
		put f/x 1     -> ! is not a folder
		mkdir f       -> ! already exists
		new f 1       -> ! already exists
		ls f          -> ! is not a folder
		rm d          -> ! folder is not empty
		rm d/g        -> ok
		ls d          -> 
		rm d          -> ok
		mv f g        -> ! unavailable
		cat f         -> "hello"
		put f again   -> ok
		cat f         -> "again"
	`)
	mounttest.Script(t, below, `
		cat old -> "before"
		ls .    -> old
	`)
	if got := b.Pending(); len(got) != 2 || got[0].Name != "old" || got[1].Name != "f" || got[1].Size != 5 {
		t.Errorf("Pending: %+v", got)
	}
	if err := b.Flush(t.Context()); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Flush: %v", err)
	}
	for _, e := range b.Pending() {
		if e.Tries == 0 || fault.KindOf(e.Err) != fault.Unavailable {
			t.Errorf("%+v", e)
		}
	}
	next.Set()
	if err := b.Flush(t.Context()); err != nil {
		t.Errorf("Flush: %v", err)
	}
	mounttest.Script(t, below, `
		cat old -> "after"
		cat f   -> "again"
		ls .    -> f old
	`)
	if got := b.Pending(); len(got) != 0 {
		t.Errorf("Pending: %+v", got)
	}
	if left := spooled(t, dir); len(left) != 0 {
		t.Errorf("left in the spool: %q", left)
	}
}

// spooled returns the names of the files in a spool.
func spooled(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "lock" {
			names = append(names, f.Name())
		}
	}
	return names
}

// TestRetry: an upload that failed is tried again by itself, and OnChange tells of it.
func TestRetry(t *testing.T) {
	below := mem.New(mem.Config{})
	next := flaky.New(below, flaky.Rule{Op: "Put", Call: 1, Fault: fault.Unavailable}, flaky.Rule{Op: "Put", Call: 2, Panic: true})
	changes := make(chan string, 10)
	b := open(t, next, writeback.Config{OnChange: func(name string) { changes <- name }})
	defer b.Close()
	write(t, b, "f", "hello")
	for range 3 {
		select {
		case name := <-changes:
			if name != "f" {
				t.Errorf("OnChange(%s)", name)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not tried again")
		}
	}
	mounttest.Script(t, below, `cat f -> "hello"`)
}

// TestForGood: a file that the backend does not take stays, is listed with the reason, and goes when there is room.
func TestForGood(t *testing.T) {
	below := mem.New(mem.Config{Capacity: 10})
	dir := t.TempDir()
	b := open(t, below, writeback.Config{Dir: dir})
	write(t, b, "f", "longer than ten")
	if err := b.Flush(t.Context()); fault.KindOf(err) != fault.NoSpace {
		t.Errorf("Flush: %v; want NoSpace", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if left := spooled(t, dir); len(left) != 1 {
		t.Errorf("in the spool: %q", left)
	}
	below = mem.New(mem.Config{Capacity: 10})
	b = open(t, below, writeback.Config{Dir: dir})
	defer b.Close()
	mounttest.Script(t, b, `cat f -> "longer than ten"`)
	b.Flush(t.Context())
	if got := b.Pending(); len(got) != 1 || fault.KindOf(got[0].Err) != fault.NoSpace {
		t.Errorf("Pending: %+v", got)
	}
	below.SetCapacity(0)
	if err := b.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, below, `cat f -> "longer than ten"`)
	if left := spooled(t, dir); len(left) != 0 {
		t.Errorf("left in the spool: %q", left)
	}
}

// TestVersions: of the contents of one name only the last comes, and the backend never sees an older one after a newer.
func TestVersions(t *testing.T) {
	below := mem.New(mem.Config{})
	next := flaky.New(below, flaky.Rule{Op: "Put", Call: 1, Stall: true})
	b := open(t, next, writeback.Config{})
	defer b.Close()
	write(t, b, "f", "0")
	for next.Calls("Put") == 0 {
		time.Sleep(time.Millisecond)
	}
	for i := range 50 {
		write(t, b, "f", fmt.Sprint(i))
	}
	next.Resume()
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, below, `cat f -> "49"`)
	if got := next.Calls("Put"); got != 2 {
		t.Errorf("%d uploads, want 2", got)
	}
}

// TestSuperseded: what goes straight through, or Remove, replaces what is pending, also while an upload is under way.
func TestSuperseded(t *testing.T) {
	below := mem.New(mem.Config{})
	next := flaky.New(below, flaky.Rule{Op: "Put", Call: 1, Stall: true})
	dir := t.TempDir()
	b := open(t, next, writeback.Config{Dir: dir, MaxFile: 10})
	defer b.Close()
	write(t, b, "f", "first")
	for next.Calls("Put") == 0 {
		time.Sleep(time.Millisecond)
	}
	write(t, b, "f", "second")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Remove(ctx, "f"); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Remove during an upload: %v; want Timeout", err)
	}
	done := make(chan error)
	go func() {
		_, err := mounts.WriteFile(t.Context(), b, "f", []byte("larger than ten"))
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	next.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, below, `cat f -> "larger than ten"`)
	if left := spooled(t, dir); len(left) != 0 {
		t.Errorf("left in the spool: %q", left)
	}
	next.Set(flaky.Rule{Op: "Put", Fault: fault.Unavailable})
	write(t, b, "f", "third")
	write(t, b, "new", "x")
	mounttest.Script(t, b, `
		rm f     -> ok
		rm new   -> ok
		rm new   -> ! does not exist
		cat f    -> ! does not exist
		ls .     -> 
	`)
	if left := spooled(t, dir); len(left) != 0 {
		t.Errorf("left in the spool: %q", left)
	}
	write(t, b, "f", "kept")
	next.Set(flaky.Rule{Op: "Remove", Fault: fault.Denied}, flaky.Rule{Op: "Put", Fault: fault.Unavailable})
	mounttest.Script(t, b, `
		rm f     -> ! permission denied
		cat f    -> "kept"
	`)
}

// TestThrough: without room the backend gets the file at once, whole, also when that shows only in the midst of it.
func TestThrough(t *testing.T) {
	below := mem.New(mem.Config{})
	b := open(t, below, writeback.Config{Size: 1 << 20, MaxFile: 300_000, Delay: time.Hour})
	defer b.Close()
	content := strings.Repeat("0123456789", 50_000)
	for i, r := range []io.Reader{strings.NewReader(content), iotest.HalfReader(strings.NewReader(content)), iotest.DataErrReader(strings.NewReader(content))} {
		name := fmt.Sprint("large", i)
		if info, err := b.Put(t.Context(), name, r, mounts.PutOptions{Size: -1}); err != nil || info.Size != 500_000 {
			t.Fatalf("%+v, %v", info, err)
		}
		if got, err := mounts.ReadFile(t.Context(), below, name, 1<<20); err != nil || string(got) != content {
			t.Errorf("%d bytes came, %v", len(got), err)
		}
	}
	for i := range 10 {
		write(t, b, fmt.Sprint(i), content[:200_000])
	}
	if got := len(b.Pending()); got != 5 {
		t.Errorf("%d files are pending in a spool for 5", got)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if got, err := mounts.ReadFile(t.Context(), below, fmt.Sprint(i), 1<<20); err != nil || string(got) != content[:200_000] {
			t.Errorf("%d bytes came, %v", len(got), err)
		}
	}
	write(t, b, "f", content[:200_000])
	if got := len(b.Pending()); got != 1 {
		t.Errorf("%d files are pending when there is room again", got)
	}
}

// TestTorn: what was damaged while nobody looked is set aside, said and not uploaded; what is whole is.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	next, _ := down(t, fault.Unavailable)
	b := open(t, next, writeback.Config{Dir: dir})
	const files = 5
	for i := range files {
		write(t, b, fmt.Sprint("f", i), strings.Repeat(fmt.Sprint(i), 10_000))
	}
	b.Close()
	damage := []func(name string) error{
		func(name string) error { return os.Truncate(name, 9_000) },
		func(name string) error { return os.Truncate(name, 0) },
		func(name string) error { return patch(name, 5_000) },
		func(name string) error { return patch(name, 10_010) },
	}
	for i, name := range spooled(t, dir) {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
		if i < len(damage) {
			if err := damage[i](filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp-1"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	below := mem.New(mem.Config{})
	b = open(t, below, writeback.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err := b.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, below, `ls . -> f4`)
	b.Close()
	if got := spooled(t, dir); len(got) != 4 || !strings.HasPrefix(got[0], "torn-") || !strings.HasPrefix(got[3], "torn-") {
		t.Errorf("in the spool: %q", got)
	}
	if got := strings.Count(log.String(), "a damaged spool file is set aside"); got != 4 {
		t.Errorf("%d log lines, want 4:\n%s", got, log.String())
	}
}

func patch(name string, off int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte{0}, off)
	return err
}

// TestTornLater: a disk that loses bytes while the process runs does not harm the backend.
func TestTornLater(t *testing.T) {
	dir := t.TempDir()
	below := mem.New(mem.Config{})
	write(t, below, "f", "old")
	b := open(t, below, writeback.Config{Dir: dir, Delay: time.Hour})
	defer b.Close()
	write(t, b, "f", "hello")
	if err := patch(filepath.Join(dir, spooled(t, dir)[0]), 2); err != nil {
		t.Fatal(err)
	}
	b.Flush(t.Context())
	mounttest.Script(t, b, `cat f -> "old"`)
	if got := spooled(t, dir); len(got) != 1 || !strings.HasPrefix(got[0], "torn-") {
		t.Errorf("in the spool: %q", got)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	b := open(t, mem.New(mem.Config{}), writeback.Config{Dir: dir})
	if _, err := writeback.New(mem.New(mem.Config{}), writeback.Config{Dir: dir}); fault.KindOf(err) != fault.Busy || err == nil {
		t.Errorf("a second one: %v; want Busy", err)
	}
	b.Close()
	open(t, mem.New(mem.Config{}), writeback.Config{Dir: dir}).Close()
}

// TestTags: the Tag of a pending file is good for PutIf after the upload.
func TestTags(t *testing.T) {
	b := open(t, mem.New(mem.Config{}), writeback.Config{})
	defer b.Close()
	info := write(t, b, "f", "one")
	c, ok := mounts.As[mounts.Conditional](b)
	if !ok {
		t.Fatal("no Conditional")
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutIf(t.Context(), "f", info.Tag, strings.NewReader("two"), mounts.PutOptions{Size: 3}); err != nil {
		t.Error(err)
	}
	if _, err := c.PutIf(t.Context(), "f", info.Tag, strings.NewReader("two"), mounts.PutOptions{Size: 3}); fault.KindOf(err) != fault.Precondition {
		t.Errorf("a second time: %v; want Precondition", err)
	}
}

// caseless says that it ignores case.
type caseless struct{ *flaky.Backend }

func (c caseless) Features() mounts.Features { return mounts.Features{AtomicReplace: mounts.Native} }

func TestCaseless(t *testing.T) {
	next, _ := down(t, fault.Unavailable)
	b := open(t, caseless{next}, writeback.Config{})
	defer b.Close()
	mounttest.Script(t, b, `
		put File one  -> ok
		stat FILE     -> file "FILE" 3
		put FILE next -> ok
		cat file      -> "next"
		ls .          -> FILE
		mkdir file    -> ! already exists
		put fILE/x 1  -> ! is not a folder
		rm fiLE       -> ok
		ls .          -> 
	`)
}

// TestFolderGoes: a Put that is under way when its folder goes fails, and is not acknowledged into nowhere.
func TestFolderGoes(t *testing.T) {
	dir := t.TempDir()
	b := open(t, mem.New(mem.Config{}), writeback.Config{Dir: dir})
	defer b.Close()
	for _, script := range []string{"rm d -> ok", "mv d e -> ok"} {
		mounttest.Script(t, b, "mkdir d -> ok")
		r, w := io.Pipe()
		done := make(chan error)
		go func() {
			_, err := b.Put(t.Context(), "d/f", r, mounts.PutOptions{Size: -1})
			done <- err
		}()
		if _, err := w.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		mounttest.Script(t, b, script)
		w.Close()
		if err := <-done; fault.KindOf(err) != fault.NotExist {
			t.Errorf("Put into a folder that is gone after %s: %v", script, err)
		}
		if left := spooled(t, dir); len(left) != 0 {
			t.Errorf("left in the spool: %q", left)
		}
	}
}

// TestClients lets several clients do many things at once while the backend fails now and then; all that was acknowledged comes.
func TestClients(t *testing.T) {
	below := mem.New(mem.Config{})
	var rules []flaky.Rule
	for i := range 100 {
		rules = append(rules, flaky.Rule{Op: "Put", Call: i*7 + 3, Fault: fault.Unavailable, After: i%2 == 0})
	}
	b := open(t, flaky.New(below, rules...), writeback.Config{Workers: 4})
	defer b.Close()
	var all sync.WaitGroup
	for c := range 6 {
		all.Go(func() {
			dir := fmt.Sprint("c", c)
			if err := b.Mkdir(t.Context(), dir); err != nil {
				t.Error(err)
			}
			for i := range 60 {
				name, content := fmt.Sprintf("%s/%d", dir, i%13), fmt.Sprint(i)
				if _, err := mounts.WriteFile(t.Context(), b, name, []byte(content)); err != nil {
					t.Error(err)
				}
				if got, err := mounts.ReadFile(t.Context(), b, name, 100); err != nil || string(got) != content {
					t.Errorf("%s holds %q, %v; want %q", name, got, err, content)
				}
				if i%5 == 0 {
					if err := b.Remove(t.Context(), name); err != nil {
						t.Error(err)
					}
					if _, err := b.Stat(t.Context(), name); fault.KindOf(err) != fault.NotExist {
						t.Errorf("Stat after Remove: %v", err)
					}
				}
				n := 0
				for _, err := range b.List(t.Context(), dir) {
					if n++; err != nil {
						t.Error(err)
					}
				}
				want := 0
				for k := range min(i+1, 13) {
					if last := i - (i-k)%13; last%5 != 0 {
						want++
					}
				}
				if n != want {
					t.Errorf("List after step %d has %d names, want %d", i, n, want)
				}
			}
		})
	}
	all.Wait()
	for b.Flush(t.Context()) != nil {
	}
	for c := range 6 {
		for k := range 13 {
			last := 59 - (59-k)%13
			got, err := mounts.ReadFile(t.Context(), below, fmt.Sprintf("c%d/%d", c, k), 100)
			if last%5 == 0 && fault.KindOf(err) != fault.NotExist || last%5 != 0 && string(got) != fmt.Sprint(last) {
				t.Errorf("c%d/%d holds %q, %v; last was %d", c, k, got, err, last)
			}
		}
	}
}

func TestClosing(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		next := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Put", Stall: true})
		b := open(t, next, writeback.Config{})
		write(t, b, "f", "x")
		waiting := make(chan error)
		go func() { waiting <- b.Flush(t.Context()) }()
		for next.Calls("Put") == 0 {
			time.Sleep(time.Millisecond)
		}
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		if err := <-waiting; err == nil {
			t.Error("Flush went well")
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, were %d", runtime.NumGoroutine(), before)
		}
	}
}
