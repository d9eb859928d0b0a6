package throttle_test

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/throttle"
)

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend {
		return throttle.New(mem.New(mem.Config{}), throttle.Config{Read: 1 << 33, Write: 1 << 33, Calls: 8})
	})
}

func TestConformanceUnlimited(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend {
		return throttle.New(flaky.New(mem.New(mem.Config{})), throttle.Config{})
	})
}

func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend { return throttle.New(b, throttle.Config{Read: 1, Calls: 1}) })
}

// took returns how long do takes, to be compared with want and a tenth of tolerance.
func took(t *testing.T, what string, want time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if d := time.Since(began); d < want*9/10 || d > want*11/10 {
		t.Errorf("%s took %v, want %v", what, d, want)
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := mem.New(mem.Config{})
		b := throttle.New(low, throttle.Config{Read: 100_000, Write: 10_000})
		content := strings.Repeat("x", 200_000)
		put := func(name string, src io.Reader) {
			if _, err := b.Put(t.Context(), name, src, mounts.PutOptions{Size: int64(len(content))}); err != nil {
				t.Error(err)
			}
		}
		read := func() {
			if got, err := mounts.ReadFile(t.Context(), b, "f", 1<<20); err != nil || string(got) != content {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		}
		took(t, "Put", 20*time.Second, func() { put("f", strings.NewReader(content)) })
		took(t, "Put from a pipe", 20*time.Second, func() { put("f", iotest.HalfReader(strings.NewReader(content))) })
		took(t, "reading", 2*time.Second, read)
		took(t, "three readers", 6*time.Second, func() {
			var all sync.WaitGroup
			for range 3 {
				all.Go(read)
			}
			all.Wait()
		})
		c, _ := mounts.As[mounts.RandomAccess](b)
		f, err := c.OpenFile(t.Context(), "f", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		took(t, "ReadAt", 2*time.Second, func() {
			if n, err := f.ReadAt(make([]byte, 200_000), 0); n != 200_000 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
		took(t, "WriteAt", 2*time.Second, func() {
			if n, err := f.WriteAt(make([]byte, 20_000), 0); n != 20_000 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
		go func() {
			time.Sleep(time.Second)
			f.Close()
		}()
		took(t, "a write that is closed", time.Second, func() {
			if _, err := f.WriteAt(make([]byte, 200_000), 0); err == nil {
				t.Error("WriteAt of a file that is closed meanwhile: no error")
			}
		})

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		took(t, "a put whose context ends", time.Second, func() {
			if _, err := b.Put(ctx, "f", strings.NewReader(content), mounts.PutOptions{Size: -1}); fault.KindOf(err) != fault.Timeout {
				t.Errorf("Put: %v, want Timeout", err)
			}
		})
	})
}

func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}))
		b := throttle.New(low, throttle.Config{Calls: 2})
		mounttest.Script(t, b, "put f hello -> ok")
		var open []io.ReadCloser
		for range 2 {
			r, err := b.Open(t.Context(), "f", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Open(ctx, "f", 0, -1); fault.KindOf(err) != fault.Timeout {
			t.Errorf("a third reader: %v, want Timeout", err)
		}
		mounttest.Script(t, b, `
			stat f    -> file "f" 5
			put g 1   -> ok
		`)
		var order []int
		var all sync.WaitGroup
		for i := range 5 { // fair
			all.Go(func() {
				r, err := b.Open(t.Context(), "f", 0, -1)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				time.Sleep(time.Second)
				r.Close()
			})
			synctest.Wait()
		}
		open[0].Close()
		open[0].Close() // gives one place only
		all.Wait()
		for i, got := range order {
			if got != i {
				t.Errorf("served in the order %v", order)
				break
			}
		}
		open[1].Close()

		low.Set(flaky.Rule{Op: "Stat", Stall: true})
		for range 5 {
			all.Go(func() { b.Stat(t.Context(), "f") })
		}
		synctest.Wait()
		if n := low.Calls("Stat"); n != 2 {
			t.Errorf("%d calls at once, want 2", n)
		}
		low.Set()
		low.Resume()
		all.Wait()

		one := throttle.New(low, throttle.Config{Calls: 1})
		for _, err := range one.List(t.Context(), ".") { // the body may call
			if err != nil {
				t.Fatal(err)
			}
			mounttest.Script(t, one, `ls . -> f g`)
		}
	})
}

// TestDescriptor: a reader of a local file stays one for sendfile, unless its bytes are counted.
func TestDescriptor(t *testing.T) {
	for _, limit := range []int64{0, 1 << 30} {
		low, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		defer low.Close()
		b := throttle.New(low, throttle.Config{Calls: 1, Read: limit})
		mounttest.Script(t, b, "put f hello -> ok")
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		_, open := r.(mounts.Descriptor)
		_, stats := r.(mounts.Stater)
		if open != (limit == 0) || !stats {
			t.Errorf("limit %d: Descriptor %v, Stater %v", limit, open, stats)
		}
		r.Close()
	}
}
