package mem_test

import (
	"bytes"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend { return mem.New(mem.Config{}) })
}

func BenchmarkMem(b *testing.B) {
	mounttest.Bench(b, func(*testing.B) mounts.Backend { return mem.New(mem.Config{}) })
}

func TestCapacity(t *testing.T) {
	b := mem.New(mem.Config{Capacity: 1000})
	ctx := t.Context()
	put := func(name string, n int) error { _, err := mounts.WriteFile(ctx, b, name, make([]byte, n)); return err }
	if err := put("a", 600); err != nil {
		t.Fatal(err)
	}
	for range 3 { // what fails gives its room back
		if err := put("b", 401); fault.KindOf(err) != fault.NoSpace || err == nil {
			t.Fatalf("Put over the capacity: %v; want NoSpace", err)
		}
		if _, err := b.CopyFile(ctx, "a", "c"); fault.KindOf(err) != fault.NoSpace || err == nil {
			t.Fatalf("CopyFile over the capacity: %v; want NoSpace", err)
		}
	}
	if err := put("b", 400); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Space(ctx); err != nil || s != (mounts.Space{Total: 1000, Used: 400, Free: 600}) {
		t.Errorf("Space: %+v, %v", s, err)
	}
	b.SetCapacity(0)
	if err := put("a", 5000); err != nil {
		t.Error(err)
	}
}

// TestStamps: every change moves Change forward, even of one nanosecond.
func TestStamps(t *testing.T) {
	b := mem.New(mem.Config{})
	ctx := t.Context()
	last := int64(0)
	for range 1000 {
		info, err := b.Put(ctx, "f", bytes.NewReader(nil), mounts.PutOptions{})
		if err != nil || info.Change <= last {
			t.Fatalf("Change %d after %d, %v", info.Change, last, err)
		}
		last = info.Change
	}
}

func TestOptions(t *testing.T) {
	open := mem.Driver().Open
	for _, options := range []map[string]string{{"size": "1"}, {"capacity": "many"}, {"capacity": "-1"}} {
		if _, err := open(t.Context(), mounts.Config{Options: options}); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%v: %v; want Invalid", options, err)
		}
	}
	b, err := open(t.Context(), mounts.Config{Options: map[string]string{"capacity": "10"}, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Mkdir(t.Context(), "d"); fault.KindOf(err) != fault.Denied || err == nil {
		t.Errorf("Mkdir on a read-only storage: %v; want Denied", err)
	}
}
