package flaky_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend { return flaky.New(mem.New(mem.Config{})) })
}

func TestRules(t *testing.T) {
	b := flaky.New(mem.New(mem.Config{}))
	mounttest.Script(t, b, `
		put f hello  -> ok
		put g world  -> ok
	`)
	b.Set(
		flaky.Rule{Op: "Put", Call: 2, Fault: fault.NoSpace},
		flaky.Rule{Op: "Put", Call: 3, Fault: fault.Timeout, After: true},
		flaky.Rule{Op: "Open", Path: "g", Cut: 2, Fault: fault.Unavailable},
		flaky.Rule{Op: "Open", Path: "f", Cut: 2, Short: true},
		flaky.Rule{Op: "List", Cut: 1, Fault: fault.Unavailable},
		flaky.Rule{Op: "CopyFile", Fault: fault.Corrupt},
		flaky.Rule{Op: "Rename", Path: "g", Fault: fault.Denied},
	)
	mounttest.Script(t, b, `
		put x 1   -> ok
		put x 2   -> ! no space left
		put x 3   -> ! timed out
		put x 4   -> ok
		cat f     -> "he"
		cat g     -> ! unavailable
		ls .      -> ! unavailable
		cp f y    -> ! corrupt data
		mv g h    -> ! permission denied
		mv f h    -> ok
	`)
	if got := b.Calls("Put"); got != 4 {
		t.Errorf("Calls(Put) = %d, want 4", got)
	}
	b.Set()
	mounttest.Script(t, b, `
		cat x     -> "4"
		cat h     -> "hello"
	`)
}

// TestCutUpload: a source that ends early by a rule leaves the old.
func TestCutUpload(t *testing.T) {
	b := flaky.New(mem.New(mem.Config{}))
	mounttest.Script(t, b, "put f old -> ok")
	cause := errors.New("cable")
	b.Set(flaky.Rule{Op: "Put", Call: 1, Cut: 3, Fault: fault.Unavailable, Err: cause}, flaky.Rule{Op: "Put", Call: 2, Cut: 3, Short: true})
	if _, err := b.Put(t.Context(), "f", strings.NewReader("longer"), mounts.PutOptions{Size: 6}); !errors.Is(err, cause) {
		t.Errorf("Put: %v, want the cause", err)
	}
	mounttest.Script(t, b, `
		put f longer -> ! invalid
		cat f        -> "old"
	`)
}

func TestStall(t *testing.T) {
	b := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Stat", Stall: true})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.Stat(ctx, "."); fault.KindOf(err) != fault.Timeout {
		t.Errorf("stalled Stat: %v; want Timeout", err)
	}
	done := make(chan error)
	go func() { _, err := b.Stat(t.Context(), "."); done <- err }()
	for b.Calls("Stat") < 2 {
		time.Sleep(time.Millisecond)
	}
	b.Resume()
	if err := <-done; err != nil {
		t.Errorf("resumed Stat: %v", err)
	}
}

func TestFile(t *testing.T) {
	b := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "WriteAt", Call: 2, Cut: 2, Short: true}, flaky.Rule{Op: "Sync", Fault: fault.Unavailable})
	c, ok := mounts.As[mounts.RandomAccess](b)
	if !ok {
		t.Fatal("no RandomAccess")
	}
	f, err := c.OpenFile(t.Context(), "f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.WriteAt([]byte("hello"), 0); n != 5 || err != nil {
		t.Errorf("WriteAt: %d, %v", n, err)
	}
	if n, err := f.WriteAt([]byte("HELLO"), 0); n != 2 || err != io.ErrShortWrite {
		t.Errorf("WriteAt: %d, %v; want 2, short write", n, err)
	}
	if err := f.Sync(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Sync: %v; want Unavailable", err)
	}
	mounttest.Script(t, b, `cat f -> "HEllo"`)
}

// TestContain: a guard turns panics of the backend and of its capabilities into faults, but passes those of the caller's loop.
func TestContain(t *testing.T) {
	b := mounts.Contain(flaky.New(mem.New(mem.Config{}), flaky.Rule{Panic: true}), nil)
	mounttest.Script(t, b, `
		put f x -> ! internal error
		stat f  -> ! internal error
		ls .    -> ! internal error
		rm f    -> ! internal error
	`)
	c, ok := mounts.As[mounts.Spacer](b)
	if !ok {
		t.Fatal("no Spacer")
	}
	if _, err := c.Space(t.Context()); err == nil || fault.KindOf(err) != fault.Internal {
		t.Errorf("Space: %v; want Internal", err)
	}
	calm := mounts.Contain(mem.New(mem.Config{}), nil)
	mounttest.Script(t, calm, "put f x -> ok")
	defer func() {
		if recover() != "mine" {
			t.Error("the panic of a loop body was swallowed")
		}
	}()
	for range calm.List(t.Context(), ".") {
		panic("mine")
	}
}
