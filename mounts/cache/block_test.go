package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

// meter counts what is read from a backend.
type meter struct {
	unwatched
	opens, bytes atomic.Int64
	delay        time.Duration
}

func (m *meter) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	m.opens.Add(1)
	time.Sleep(m.delay)
	r, err := m.unwatched.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	return &metered{r, m}, nil
}

func (m *meter) reset() { m.opens.Store(0); m.bytes.Store(0) }

type metered struct {
	io.ReadCloser
	m *meter
}

func (r *metered) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.m.bytes.Add(int64(n))
	return n, err
}

func (r *metered) Stat() (mounts.Info, error) { return r.ReadCloser.(mounts.Stater).Stat() }

func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

func read(t testing.TB, b mounts.Backend, name string, off, n int64) []byte {
	t.Helper()
	r, err := b.Open(t.Context(), name, off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func metering(t *testing.T, cfg cache.Config) (*cache.Backend, *meter) {
	m := &meter{unwatched: unwatched{mem.New(mem.Config{})}}
	cfg.Age, cfg.Dir = time.Hour, filepath.Join(t.TempDir(), "blocks")
	b := open(t, m, cfg)
	t.Cleanup(func() { b.Close() })
	return b, m
}

func TestBlocks(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 64 << 20})
	content := random(20<<20 + 12345)
	write(t, b, "f", string(content))
	check := func(off, n, opens, most int64) {
		t.Helper()
		m.reset()
		want := content[min(off, int64(len(content))):]
		if n >= 0 {
			want = want[:min(n, int64(len(want)))]
		}
		if got := read(t, b, "f", off, n); !bytes.Equal(got, want) {
			t.Errorf("Open(%d, %d) reads something else", off, n)
		}
		if m.opens.Load() != opens || m.bytes.Load() > most {
			t.Errorf("Open(%d, %d) cost %d calls and %d bytes, want %d and at most %d", off, n, m.opens.Load(), m.bytes.Load(), opens, most)
		}
	}
	check(5<<20+100, 64<<10, 1, 1<<20)
	check(5<<20+200<<10, 64<<10, 0, 0)
	check(6<<20-1, 2, 1, 1<<20)
	check(0, -1, 1, int64(len(content))) // streams, and fills what is missing
	check(0, -1, 0, 0)
	check(20<<20, -1, 0, 0)
	check(3<<20-5, 10<<20, 0, 0)
	write(t, b, "f", string(content)) // the same content, but who knows
	check(0, 1<<10, 1, 1<<20)
}

// TestScan: who reads more than fits into half of the cache does not push out what is there, and uses it.
func TestScan(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 9 << 20})
	small, large := random(2<<20), random(12<<20+77)
	write(t, b, "small", string(small))
	write(t, b, "large", string(large))
	check := func(name string, content []byte, off, n, opens, most int64) {
		t.Helper()
		m.reset()
		want := content[off:]
		if n >= 0 {
			want = want[:n]
		}
		if got := read(t, b, name, off, n); !bytes.Equal(got, want) {
			t.Errorf("%s from %d reads something else", name, off)
		}
		if m.opens.Load() != opens || m.bytes.Load() > most {
			t.Errorf("%s from %d cost %d calls and %d bytes, want %d and at most %d", name, off, m.opens.Load(), m.bytes.Load(), opens, most)
		}
	}
	check("small", small, 0, -1, 1, 2<<20)
	check("large", large, 0, 1, 1, 1<<20)
	for range 2 {
		check("large", large, 0, -1, 1, 11<<20+77) // all but the first block
		check("large", large, 100, 10<<20, 1, 9<<20+100)
		check("large", large, 1<<20+5, -1, 1, 11<<20+77-5)
	}
	check("small", small, 0, -1, 0, 0)
	check("large", large, 0, 1, 0, 0)
}

// TestBlocksShared: readers of the same at the same time share what is fetched.
func TestBlocksShared(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 64 << 20})
	m.delay = 50 * time.Millisecond
	content := random(16 << 20)
	write(t, b, "f", string(content))
	for _, r := range []struct{ off, n, most int64 }{{100, 64 << 10, 1 << 20}, {0, -1, 48 << 20}} { // streams read over some of what others fetched
		m.reset()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				want := content[r.off:]
				if r.n >= 0 {
					want = want[:r.n]
				}
				if got := read(t, b, "f", r.off, r.n); !bytes.Equal(got, want) {
					t.Error("reads something else")
				}
			})
		}
		all.Wait()
		if m.bytes.Load() > r.most {
			t.Errorf("10 readers of the same cost %d bytes in %d calls", m.bytes.Load(), m.opens.Load())
		}
	}
}

func TestReadAhead(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 64 << 20, ReadAhead: 8 << 20})
	content := random(32 << 20)
	write(t, b, "f", string(content))
	for off := int64(0); off < 32<<20; off += 256 << 10 {
		if got := read(t, b, "f", off, 256<<10); !bytes.Equal(got, content[off:off+256<<10]) {
			t.Fatal("reads something else")
		}
		time.Sleep(100 * time.Microsecond)
	}
	if m.opens.Load() > 16 {
		t.Errorf("%d calls for 32 blocks in a row", m.opens.Load())
	}
	m.reset()
	b.Invalidate("f")
	for _, off := range []int64{20 << 20, 3 << 20, 11 << 20} { // here and there
		read(t, b, "f", off, 4<<10)
	}
	if m.bytes.Load() > 3<<20 {
		t.Errorf("random reads cost %d bytes", m.bytes.Load())
	}
}

// TestOneContent: a reader gives the content it was opened on or fails, wherever its pieces come from and whoever replaces the file.
func TestOneContent(t *testing.T) {
	const size = 10 << 20
	version := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, size) }
	b, m := metering(t, cache.Config{Size: 6 << 20, ReadAhead: 2 << 20}) // smaller than the file
	write(t, b, "f", string(version(0)))
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !stop.Load() {
				off := rand.Int64N(size)
				n := rand.Int64N(size)
				r, err := b.Open(t.Context(), "f", off, n)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(r)
				r.Close()
				if err != nil || int64(len(got)) != min(n, size-off) || len(got) > 0 && bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("%d of %d bytes at %d, %v; or a mixture", len(got), n, off, err)
					return
				}
			}
		})
	}
	for i := range 60 {
		if i%2 == 0 {
			write(t, b, "f", string(version(i)))
		} else {
			write(t, m.Backend, "f", string(version(i))) // outside
			time.Sleep(5 * time.Millisecond)
			b.Invalidate("f")
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	readers.Wait()
}

// TestOutsideChange: blocks are not mixed with those of a content that came from outside, and what is remembered is found to be wrong.
func TestOutsideChange(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 64 << 20})
	write(t, b, "f", string(bytes.Repeat([]byte("a"), 8<<20)))
	read(t, b, "f", 0, 1<<20)
	write(t, m.Backend, "f", string(bytes.Repeat([]byte("b"), 8<<20)))
	if got := read(t, b, "f", 0, -1); bytes.Count(got, []byte("b")) != 8<<20 {
		t.Errorf("read %d bytes, %d of them new", len(got), bytes.Count(got, []byte("b")))
	}
	if err := m.Backend.Remove(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	b.Invalidate("f")
	if _, err := b.Open(t.Context(), "f", 0, -1); fault.KindOf(err) != fault.NotExist {
		t.Errorf("Open of what is gone: %v", err)
	}
}

// young hides what identifies content but for sizes and times.
type young struct{ mounts.Backend }

func (y young) hide(info mounts.Info) mounts.Info {
	info.Tag, info.Change, info.ID = "", 0, 0
	return info
}

func (y young) Stat(ctx context.Context, name string) (mounts.Info, error) {
	info, err := y.Backend.Stat(ctx, name)
	return y.hide(info), err
}

func (y young) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	info, err := y.Backend.Put(ctx, name, src, opt)
	return y.hide(info), err
}

func (y young) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	r, err := y.Backend.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	return struct{ io.ReadCloser }{r}, nil // nor a Stater
}

// TestYoung: with nothing but size and time, content is kept only when it is some seconds old.
func TestYoung(t *testing.T) {
	m := &meter{unwatched: unwatched{mem.New(mem.Config{})}}
	b := open(t, young{m}, cache.Config{Age: time.Hour, Dir: t.TempDir(), Size: 8 << 20})
	defer b.Close()
	put := func(name string, age time.Duration) {
		opt := mounts.PutOptions{Size: 4, ModTime: time.Now().Add(-age)}
		if _, err := b.Put(t.Context(), name, bytes.NewReader([]byte("text")), opt); err != nil {
			t.Fatal(err)
		}
	}
	put("new", 0)
	put("old", time.Minute)
	for _, name := range []string{"new", "old"} {
		for range 5 {
			if got := read(t, b, name, 0, -1); string(got) != "text" {
				t.Errorf("read %q", got)
			}
		}
	}
	if got := m.opens.Load(); got != 6 {
		t.Errorf("%d calls, want 5 for the new and 1 for the old", got)
	}
}

// TestDisk: what lies on disk is bounded, sealed, private and has no name; what a former process left goes.
func TestDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blocks-1"), []byte("left"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &meter{unwatched: unwatched{mem.New(mem.Config{})}}
	b := open(t, m, cache.Config{Age: time.Hour, Dir: dir, Size: 5 << 20})
	defer b.Close()
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("in the folder: %q", left)
	}
	secret := bytes.Repeat([]byte("canary, the secret one. "), 1<<20)
	write(t, b, "f", string(secret))
	read(t, b, "f", 0, -1)
	for i := range 20 {
		name := fmt.Sprint(i)
		write(t, b, name, string(secret[:1<<20]))
		read(t, b, name, 0, -1)
	}
	file := unlinked(t, dir)
	var st syscall.Stat_t
	if err := syscall.Fstat(int(file.Fd()), &st); err != nil || st.Size > 5<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("the file has %d bytes and mode %o, %v", st.Size, st.Mode, err)
	}
	content, err := io.ReadAll(io.NewSectionReader(file, 0, 5<<20))
	if err != nil || len(content) < 4<<20 || bytes.Contains(content, []byte("canary")) {
		t.Errorf("%d bytes on disk, %v; or they are in the clear", len(content), err)
	}
	// A disk that lies: reading goes on, from the backend.
	write(t, b, "g", string(secret))
	read(t, b, "g", 0, 3<<20)
	if _, err := file.WriteAt(make([]byte, 5<<20), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := read(t, b, "g", 0, -1); !bytes.Equal(got, secret) {
			t.Error("reads something else")
		}
	}
}

// unlinked opens the file in dir that this process holds open without a name.
func unlinked(t *testing.T, dir string) *os.File {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	for _, fd := range fds {
		link := filepath.Join("/proc/self/fd", fd.Name())
		if to, err := os.Readlink(link); err == nil && filepath.Dir(to) == dir {
			f, err := os.OpenFile(link, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
	}
	t.Fatal("no open file")
	return nil
}

// TestFullDisk: a disk that is full turns the block cache off; reading goes on.
func TestFullDisk(t *testing.T) {
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Skip(err)
	}
	b, _ := metering(t, cache.Config{Size: 64 << 20})
	content := random(16 << 20)
	write(t, b, "f", string(content))
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4 << 20, Max: old.Max}); err != nil {
		t.Skip(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)
	for range 2 {
		if got := read(t, b, "f", 0, -1); !bytes.Equal(got, content) {
			t.Error("reads something else")
		}
	}
}

// TestFetchFails: who waits for another's fetch that fails fetches himself.
func TestFetchFails(t *testing.T) {
	b, m := metering(t, cache.Config{Size: 64 << 20})
	m.delay = 100 * time.Millisecond
	write(t, b, "f", "hello")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	first := make(chan error, 1)
	go func() {
		r, err := b.Open(ctx, "f", 0, -1)
		if err == nil {
			r.Close()
		}
		first <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if got := read(t, b, "f", 0, -1); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	if err := <-first; fault.KindOf(err) != fault.Timeout {
		t.Errorf("he whose time was up: %v", err)
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("reads after Close")
	}
}

func BenchmarkBlocks(b *testing.B) {
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return open(b, unwatched{mem.New(mem.Config{})}, cache.Config{Age: time.Hour, Dir: b.TempDir(), Size: 64 << 20})
	})
}
