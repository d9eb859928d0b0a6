package cache_test

import (
	"testing"
	"testing/synctest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mounttest"
)

// TestReaderTells: what a reader says of its file need not be asked for again, unless the file changed since the reader was opened.
func TestReaderTells(t *testing.T) {
	b, _, below := counted(t, cache.Config{Age: time.Hour})
	ctx := t.Context()
	opened := func(name string) mounts.Stater {
		t.Helper()
		r, err := b.Open(ctx, name, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		s, ok := r.(mounts.Stater)
		if !ok {
			t.Fatalf("a reader of %s that tells nothing", name)
		}
		return s
	}
	stats := func(name string, remembered bool, size int64) {
		t.Helper()
		_, ok := b.Age(name)
		if info, err := b.Stat(ctx, name); err != nil || info.Size != size || ok != remembered {
			t.Errorf("%s: remembered %v, %d bytes, %v; want %v, %d", name, ok, info.Size, err, remembered, size)
		}
	}
	write(t, below, "read", "one")
	opened("read")
	stats("read", false, 3)
	write(t, below, "told", "one")
	s := opened("told")
	if info, err := s.Stat(); err != nil || info.Size != 3 {
		t.Errorf("the reader says %d, %v", info.Size, err)
	}
	stats("told", true, 3)
	write(t, below, "changed", "one")
	s = opened("changed")
	write(t, b, "changed", "longer")
	if info, err := s.Stat(); err != nil || info.Size != 3 {
		t.Errorf("the reader says %d, %v", info.Size, err)
	}
	if info, err := b.Stat(ctx, "changed"); err != nil || info.Size != 6 {
		t.Errorf("Stat of what was replaced after its opening: %d, %v; want 6", info.Size, err)
	}
	write(t, below, "gone", "one")
	s = opened("gone")
	if err := b.Remove(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	s.Stat()
	if _, err := b.Stat(ctx, "gone"); fault.KindOf(err) != fault.NotExist {
		t.Errorf("Stat of what was removed after its opening: %v; want NotExist", err)
	}
}

// TestFolderStays: a folder is known to be one while what changes in it makes its times old, as long as it is itself left alone.
func TestFolderStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, below := counted(t, cache.Config{})
		ctx := t.Context()
		mounttest.Script(t, below, "mkdir d -> ok")
		if b.Folder("d") {
			t.Error("a folder that nobody asked for is known")
		}
		if _, err := b.Stat(ctx, "d"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			write(t, b, "d/f", "x")
			if _, ok := b.Age("d"); ok || !b.Folder("d") {
				t.Errorf("its times are believed: %v; a folder: %v", ok, b.Folder("d"))
			}
		}
		time.Sleep(6 * time.Second)
		if b.Folder("d") {
			t.Error("a folder after its age")
		}
		for name, change := range map[string]func() error{
			"invalidated": func() error { b.Invalidate("d"); return nil },
			"moved":       func() error { return b.Rename(ctx, "d", "e") },
		} {
			if _, err := b.Stat(ctx, "d"); err != nil {
				t.Fatal(err)
			}
			write(t, b, "d/f", "x")
			if !b.Folder("d") {
				t.Errorf("%s: no folder before", name)
			}
			if err := change(); err != nil || b.Folder("d") {
				t.Errorf("%s: %v, still a folder %v", name, err, b.Folder("d"))
			}
			if name == "moved" {
				err := b.Rename(ctx, "e", "d")
				b.Invalidate("d")
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
