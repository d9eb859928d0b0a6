package breaker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/breaker"
	"cellgate/mounts/flaky"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend { return breaker.New(mem.New(mem.Config{}), breaker.Config{}) })
}

func TestConformanceFlaky(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend {
		return breaker.New(flaky.New(mem.New(mem.Config{})), breaker.Config{Calls: 4, Streams: 8})
	})
}

func TestConformanceLocal(t *testing.T) {
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		b, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		return breaker.New(b, breaker.Config{})
	})
}

func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend { return breaker.New(b, breaker.Config{}) })
}

// TestStates: failures in a row open it, calls fail at once, one probe at a time decides, and all that is told.
func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}))
		var told []breaker.State
		b := breaker.New(low, breaker.Config{OnState: func(s breaker.State) { told = append(told, s) }})
		defer b.Close()
		stat := func(want fault.Kind) {
			t.Helper()
			if _, err := b.Stat(t.Context(), "."); want == 0 && err != nil || fault.KindOf(err) != want {
				t.Errorf("Stat: %v, want %v", err, want)
			}
		}
		low.Set(flaky.Rule{Op: "Stat", Call: 5, Fault: fault.NotExist}, flaky.Rule{Op: "Stat", Fault: fault.Unavailable, Err: errors.New("cable")})
		for range 4 {
			stat(fault.Unavailable)
		}
		stat(fault.NotExist) // an answer: the row begins anew
		for range 4 {
			stat(fault.Unavailable)
		}
		if s := b.Stats(); s.State != breaker.Closed || s.Failures != 8 {
			t.Errorf("after 4 failures: %+v", s)
		}
		stat(fault.Unavailable)
		began, calls := time.Now(), low.Calls("Stat")
		for range 100 {
			stat(fault.Unavailable)
		}
		if n := low.Calls("Stat"); n != calls || time.Since(began) > 0 {
			t.Errorf("%d calls reached the backend, in %v", n-calls, time.Since(began))
		}
		_, err := b.Put(t.Context(), "f", strings.NewReader(""), mounts.PutOptions{})
		if err == nil || !strings.Contains(err.Error(), "cable") || !strings.Contains(err.Error(), "since 2000-01-01T00:00:00Z") {
			t.Errorf("the error does not say why and since when: %v", err)
		}
		if s := b.Stats(); s.State != breaker.Open || s.Refused != 101 || s.LastError == nil || !s.Since.Equal(began.UTC()) {
			t.Errorf("open: %+v", s)
		}
		time.Sleep(12 * time.Second) // two probes fail
		if n := low.Calls("Stat"); n != calls+2 {
			t.Errorf("%d probes, want 2", n-calls)
		}
		low.Set(flaky.Rule{Op: "Stat", Stall: true}) // the third hangs
		time.Sleep(4 * time.Second)
		if s := b.State(); s != breaker.HalfOpen {
			t.Errorf("while a probe runs: %v", s)
		}
		stat(fault.Unavailable)
		low.Set()
		low.Resume()
		synctest.Wait()
		stat(0)
		want := []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Open, breaker.HalfOpen, breaker.Open, breaker.HalfOpen, breaker.Closed}
		if !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

// TestNotTheBackend: what the caller's context or source does is no failure of the backend.
func TestNotTheBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Stat", Stall: true})
		b := breaker.New(low, breaker.Config{Threshold: 1})
		defer b.Close()
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := b.Stat(ctx, "."); fault.KindOf(err) != fault.Timeout {
				t.Errorf("Stat: %v, want Timeout", err)
			}
			cancel()
			src := failing{fault.New("other", "", fault.Unavailable, nil)}
			if _, err := b.Put(t.Context(), "f", src, mounts.PutOptions{Size: -1}); fault.KindOf(err) != fault.Unavailable {
				t.Errorf("Put: %v, want Unavailable", err)
			}
		}
		if s := b.Stats(); s.State != breaker.Closed || s.Failures != 0 || s.Calls != 0 || s.Streams != 0 {
			t.Errorf("%+v", s)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// deaf is a backend whose calls hang whatever their context says, while it is stuck.
type deaf struct {
	mounts.Backend
	stuck   atomic.Pointer[chan struct{}]
	hanging atomic.Int64
	closed  atomic.Int64 // readers
	eager   bool         // Put reads all before it hangs
}

func (d *deaf) hang() {
	if c := d.stuck.Load(); c != nil {
		d.hanging.Add(1)
		<-*c
		d.hanging.Add(-1)
	}
}

func (d *deaf) stick() (free func()) {
	c := make(chan struct{})
	d.stuck.Store(&c)
	return func() { d.stuck.Store(nil); close(c) }
}

func (d *deaf) Stat(_ context.Context, name string) (mounts.Info, error) {
	d.hang()
	return d.Backend.Stat(context.Background(), name)
}

func (d *deaf) List(_ context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		for info, err := range d.Backend.List(context.Background(), dir) {
			if !yield(info, err) {
				return
			}
			d.hang()
		}
	}
}

func (d *deaf) Open(_ context.Context, name string, off, n int64) (io.ReadCloser, error) {
	d.hang()
	r, err := d.Backend.Open(context.Background(), name, off, n)
	if err != nil {
		return nil, err
	}
	return deafReader{d, r}, nil
}

type deafReader struct {
	d *deaf
	io.ReadCloser
}

func (r deafReader) Read(p []byte) (int, error) {
	r.d.hang()
	return r.ReadCloser.Read(p)
}

func (r deafReader) Close() error {
	r.d.closed.Add(1)
	return r.ReadCloser.Close()
}

func (d *deaf) Put(_ context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if d.eager {
		all, err := io.ReadAll(src)
		d.hang()
		if err != nil {
			return mounts.Info{}, err
		}
		src = bytes.NewReader(all)
	}
	d.hang()
	return d.Backend.Put(context.Background(), name, src, opt)
}

// TestDeaf: a backend that hangs whatever the context says holds nobody longer than the deadline, and no more calls than the places.
func TestDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := &deaf{Backend: mem.New(mem.Config{})}
		b := breaker.New(low, breaker.Config{Calls: 4, Threshold: 1000, Wait: time.Second})
		defer b.Close()
		mounttest.Script(t, b, `
			put f hello -> ok
			put g x     -> ok
		`)
		free := low.stick()
		var all sync.WaitGroup
		began := time.Now()
		for range 4 {
			all.Go(func() {
				if _, err := b.Stat(t.Context(), "f"); fault.KindOf(err) != fault.Timeout {
					t.Errorf("Stat: %v, want Timeout", err)
				}
			})
		}
		all.Wait()
		if d := time.Since(began); d < 30*time.Second || d > 31*time.Second {
			t.Errorf("hung for %v, want 30 s", d)
		}
		if s := b.Stats(); s.Calls != 4 || s.Abandoned != 4 || s.Timeouts != 4 {
			t.Errorf("%+v", s)
		}
		began = time.Now()
		if _, err := b.Stat(t.Context(), "f"); fault.KindOf(err) != fault.Busy || time.Since(began) != time.Second {
			t.Errorf("without a place: %v after %v, want Busy after 1 s", err, time.Since(began))
		}
		if low.hanging.Load() != 4 {
			t.Errorf("%d calls hang", low.hanging.Load())
		}

		tests := []struct {
			name string
			call func(ctx context.Context) error
			want time.Duration
		}{
			{"Open", func(ctx context.Context) error { _, err := b.Open(ctx, "f", 0, -1); return err }, 30 * time.Second},
			{"Put", func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "f", []byte("new")); return err }, 60 * time.Second},
			{"List", func(ctx context.Context) (last error) {
				n := 0
				for _, err := range b.List(ctx, ".") {
					n, last = n+1, err
				}
				if n != 2 {
					t.Errorf("List yielded %d pairs, want an entry and an error", n)
				}
				return last
			}, 30 * time.Second},
		}
		for _, test := range tests {
			began = time.Now()
			if err := test.call(t.Context()); err == nil || fault.KindOf(err) != fault.Timeout {
				t.Errorf("%s: %v, want Timeout", test.name, err)
			}
			if d := time.Since(began); d < test.want || d > test.want+time.Second {
				t.Errorf("%s hung for %v, want %v", test.name, d, test.want)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(3*time.Second, cancel)
			began = time.Now()
			if err := test.call(ctx); err == nil || fault.KindOf(err) != fault.Canceled {
				t.Errorf("cancelled %s: %v, want Canceled", test.name, err)
			}
			if d := time.Since(began); d < 3*time.Second || d > 4*time.Second {
				t.Errorf("cancelled %s hung for %v, want 3 s", test.name, d)
			}
		}
		free()
		synctest.Wait()
		if s := b.Stats(); s.Calls != 0 || s.Streams != 0 || s.Abandoned != 0 || low.closed.Load() != 2 {
			t.Errorf("when all have ended: %+v, %d late readers closed, want 2", s, low.closed.Load())
		}
		mounttest.Script(t, b, `cat f -> "hello"`) // an abandoned Put has no source any more
	})
}

// TestProgress: the backend's time is measured, and neither that of a slow consumer nor that of a blocking source.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := &deaf{Backend: mem.New(mem.Config{})}
		b := breaker.New(low, breaker.Config{})
		defer b.Close()
		from, to := io.Pipe()
		go func() {
			for range 5 {
				time.Sleep(10 * time.Minute)
				io.WriteString(to, "x")
			}
			to.Close()
		}()
		if _, err := b.Put(t.Context(), "f", from, mounts.PutOptions{Size: -1}); err != nil {
			t.Errorf("Put from a slow source: %v", err)
		}
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			time.Sleep(10 * time.Minute)
			if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Errorf("slow reading: %d, %v", n, err)
			}
		}
		for range b.List(t.Context(), ".") {
			time.Sleep(10 * time.Minute)
		}
		r.Close()

		r, err = b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		free := low.stick()
		began := time.Now()
		if _, err := r.Read(make([]byte, 1)); fault.KindOf(err) != fault.Timeout {
			t.Errorf("hanging Read: %v, want Timeout", err)
		}
		if d := time.Since(began); d < time.Minute || d > 61*time.Second {
			t.Errorf("Read hung for %v, want 1 min", d)
		}
		if _, err := r.Read(make([]byte, 1)); fault.KindOf(err) != fault.Timeout {
			t.Errorf("next Read: %v, want Timeout", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if s := b.Stats(); s.Streams != 1 || s.Abandoned != 1 {
			t.Errorf("with an abandoned Read: %+v", s)
		}
		low.eager = true
		began = time.Now()
		if _, err := b.Put(t.Context(), "f", io.LimitReader(zeros{}, 6<<20), mounts.PutOptions{Size: -1}); fault.KindOf(err) != fault.Timeout {
			t.Errorf("hanging Put: %v, want Timeout", err)
		}
		// 6 MiB may be on a line of 64 KiB/s.
		if d := time.Since(began); d < (60+96)*time.Second || d > (60+97)*time.Second {
			t.Errorf("Put hung for %v, want 156 s", d)
		}
		free()
		synctest.Wait()
		if s := b.Stats(); s.Streams != 0 || s.Abandoned != 0 {
			t.Errorf("at the end: %+v", s)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestSourceIsLeft: after an abandoned Put has returned, nobody reads its source.
func TestSourceIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := &deaf{Backend: mem.New(mem.Config{})}
		b := breaker.New(low, breaker.Config{})
		defer b.Close()
		free := low.stick()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		src := strings.NewReader("hello")
		if _, err := b.Put(ctx, "f", src, mounts.PutOptions{Size: 5}); fault.KindOf(err) != fault.Timeout {
			t.Errorf("Put: %v", err)
		}
		free()
		synctest.Wait()
		if src.Len() != 5 {
			t.Errorf("%d bytes were read after Put returned", 5-src.Len())
		}
		mounttest.Script(t, b, "stat f -> ! does not exist")
	})
}

// TestWaitersHear: those who wait for a place fail when the breaker opens, and do not wait for theirs.
func TestWaitersHear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := &deaf{Backend: mem.New(mem.Config{})}
		b := breaker.New(low, breaker.Config{Calls: 2, Threshold: 2, Wait: time.Hour, Deadline: 10 * time.Second})
		free := low.stick()
		var all sync.WaitGroup
		began := time.Now()
		var kinds [20]fault.Kind
		for i := range kinds {
			all.Go(func() { _, err := b.Stat(t.Context(), "."); kinds[i] = fault.KindOf(err) })
		}
		all.Wait()
		if d := time.Since(began); d > 11*time.Second {
			t.Errorf("waiters waited %v", d)
		}
		timeouts := 0
		for _, k := range kinds {
			if k == fault.Timeout {
				timeouts++
			} else if k != fault.Unavailable {
				t.Errorf("a waiter heard %v", k)
			}
		}
		if timeouts != 2 {
			t.Errorf("%d timeouts, want 2", timeouts)
		}
		time.Sleep(time.Hour)
		if n := low.hanging.Load(); n > 2 {
			t.Errorf("%d calls hang: probes made more", n)
		}
		free()
		time.Sleep(6 * time.Second)
		if s := b.State(); s != breaker.Closed {
			t.Errorf("healed: %v", s)
		}
		b.Close()
	})
}

// TestClose: it ends probing, and calls after it get the backend's own answer.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Stat", Fault: fault.Unavailable})
		b := breaker.New(low, breaker.Config{Threshold: 1})
		b.Stat(t.Context(), ".")
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		calls := low.Calls("Stat")
		time.Sleep(time.Minute)
		if n := low.Calls("Stat"); n != calls {
			t.Error("it probes after Close")
		}
		if _, err := b.Stat(t.Context(), "."); err == nil || low.Calls("Stat") != calls+1 {
			t.Errorf("Stat after Close: %v, not by the backend", err)
		}
	})
}

func TestPanic(t *testing.T) {
	b := breaker.New(flaky.New(mem.New(mem.Config{}), flaky.Rule{Panic: true}), breaker.Config{})
	mounttest.Script(t, b, `
		stat f  -> ! internal error
		ls .    -> ! internal error
		put f x -> ! internal error
	`)
	calm := breaker.New(mem.New(mem.Config{}), breaker.Config{})
	mounttest.Script(t, calm, "put f x -> ok")
	defer func() {
		if recover() != "mine" {
			t.Error("the panic of a loop body was swallowed")
		}
		if s := calm.Stats(); s.Streams != 0 {
			t.Errorf("%+v", s)
		}
	}()
	for range calm.List(t.Context(), ".") {
		panic("mine")
	}
}

// TestFile: the calls of an open file have deadlines too, and fail at once while the breaker is open.
func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}))
		b := breaker.New(low, breaker.Config{Threshold: 2})
		c, _ := mounts.As[mounts.RandomAccess](b)
		ctx, cancel := context.WithCancel(t.Context())
		f, err := c.OpenFile(ctx, "f", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		cancel() // the file lives on
		big := bytes.Repeat([]byte("0123456789"), 100_000)
		if n, err := f.WriteAt(big, 5); n != len(big) || err != nil {
			t.Errorf("WriteAt: %d, %v", n, err)
		}
		got := make([]byte, len(big)+10)
		if n, err := f.ReadAt(got, 5); n != len(big) || err != io.EOF || !bytes.Equal(got[:n], big) {
			t.Errorf("ReadAt: %d, %v", n, err)
		}
		low.Set(flaky.Rule{Op: "ReadAt", Stall: true}, flaky.Rule{Op: "Sync", Stall: true})
		began := time.Now()
		if n, err := f.ReadAt(got, 0); n != 0 || fault.KindOf(err) != fault.Timeout || time.Since(began) > 31*time.Second {
			t.Errorf("stalled ReadAt: %d, %v after %v", n, err, time.Since(began))
		}
		if err := f.Sync(); fault.KindOf(err) != fault.Timeout {
			t.Errorf("stalled Sync: %v", err)
		}
		if err := f.Truncate(0); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Truncate while open: %v", err)
		}
		low.Set()
		low.Resume()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		b.Close()
	})
}

// TestLatency: calls are counted by how long they took.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Stat", Stall: true})
		b := breaker.New(low, breaker.Config{})
		defer b.Close()
		for range 300 {
			go func() { time.Sleep(20 * time.Millisecond); low.Resume() }()
			b.Stat(t.Context(), ".")
		}
		s := b.Stats().Latency
		if i := slices.Index(s.Bounds, 25*time.Millisecond); s.Counts[i] != 300 || s.Sum != 6*time.Second || s.Mean != 20*time.Millisecond {
			t.Errorf("%+v", s)
		}
	})
}

// TestDescriptor: a reader of a local file stays one for sendfile.
func TestDescriptor(t *testing.T) {
	low, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	b := breaker.New(low, breaker.Config{})
	defer b.Close()
	mounttest.Script(t, b, "put f hello -> ok")
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.(mounts.Descriptor); !ok {
		t.Error("not a Descriptor")
	}
	if _, ok := r.(mounts.Stater); !ok {
		t.Error("not a Stater")
	}
	r.Close()
	r.Close()
	if s := b.Stats(); s.Streams != 0 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkBackend(b *testing.B) {
	mounttest.Bench(b, func(*testing.B) mounts.Backend { return breaker.New(mem.New(mem.Config{}), breaker.Config{}) })
}
