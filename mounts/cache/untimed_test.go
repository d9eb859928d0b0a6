package cache_test

import (
	"context"
	"io"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
)

// timeless is a backend that does not tell when a file was put, as servers that answer a PUT with nothing.
type timeless struct{ mounts.Backend }

func (b timeless) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	i, err := b.Backend.Put(ctx, name, src, opt)
	return mounts.Info{Name: i.Name, Type: i.Type, Size: i.Size}, err
}

// TestUntimed: of a file that was written here, who does not ask for its time learns all the rest without a request; everybody else asks.
func TestUntimed(t *testing.T) {
	f := flaky.New(unwatched{mem.New(mem.Config{})})
	b := open(t, timeless{f}, cache.Config{Age: time.Hour})
	ctx := cache.Untimed(t.Context())
	asked := func(what string, want int, call func()) {
		t.Helper()
		before := f.Calls("Stat") + f.Calls("List")
		if call(); f.Calls("Stat")+f.Calls("List")-before != want {
			t.Errorf("%s: %d requests, want %d", what, f.Calls("Stat")+f.Calls("List")-before, want)
		}
	}
	write(t, b, "f", "12345")
	asked("what was written", 0, func() {
		if i, err := b.Stat(ctx, "f"); err != nil || i.Size != 5 || i.Type != mounts.File {
			t.Errorf("%+v, %v", i, err)
		}
	})
	asked("its time", 1, func() {
		if i, err := b.Stat(t.Context(), "f"); err != nil || i.ModTime.IsZero() {
			t.Errorf("%+v, %v", i, err)
		}
	})
	write(t, b, "f", "1234567")
	b.Invalidate("f")
	asked("what may have changed outside", 1, func() {
		if i, err := b.Stat(ctx, "f"); err != nil || i.Size != 7 {
			t.Errorf("%+v, %v", i, err)
		}
	})
	write(t, b, "f", "1")
	if err := b.Remove(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	asked("what is gone", 0, func() {
		if _, err := b.Stat(ctx, "f"); fault.KindOf(err) != fault.NotExist || err == nil {
			t.Errorf("%v", err)
		}
	})
}
