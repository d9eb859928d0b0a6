package mounts_test

import (
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/all"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

func TestCopyBetween(t *testing.T) {
	ctx := t.Context()
	src, dst := flaky.New(mem.New(mem.Config{})), mem.New(mem.Config{})
	when := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	if _, err := src.Put(ctx, "f", strings.NewReader("hello"), mounts.PutOptions{Size: 5, ModTime: when, Mode: 0o604}); err != nil {
		t.Fatal(err)
	}
	info, err := mounts.CopyBetween(ctx, src, "f", dst, "g")
	if err != nil || info.Size != 5 || !info.ModTime.Equal(when) || info.Mode != 0o604 {
		t.Errorf("CopyBetween: %+v, %v", info, err)
	}
	src.Set(flaky.Rule{Op: "Open", Cut: 2, Short: true}) // a source that ends early is no source
	if _, err := mounts.CopyBetween(ctx, src, "f", dst, "g"); err == nil || fault.KindOf(err) != fault.Invalid {
		t.Errorf("CopyBetween of a source that shrinks: %v; want Invalid", err)
	}
	mounttest.Script(t, dst, `cat g -> "hello"`)
}

func TestHelpers(t *testing.T) {
	ctx := t.Context()
	b := mem.New(mem.Config{})
	for range 2 {
		if err := mounts.MkdirAll(ctx, b, "a/b/c"); err != nil {
			t.Fatal(err)
		}
	}
	mounttest.Script(t, b, "put a/b/f hello -> ok")
	if err := mounts.MkdirAll(ctx, b, "a/b/f"); fault.KindOf(err) != fault.NotDir {
		t.Errorf("MkdirAll over a file: %v; want NotDir", err)
	}
	if got, err := mounts.ReadFile(ctx, b, "a/b/f", 5); err != nil || string(got) != "hello" {
		t.Errorf("ReadFile: %q, %v", got, err)
	}
	if _, err := mounts.ReadFile(ctx, b, "a/b/f", 4); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("ReadFile of too long a file: %v; want TooLarge", err)
	}
}

// TestDrivers: names are unique and every option says what it is for.
func TestDrivers(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range all.Drivers() {
		if d.Name == "" || seen[d.Name] || d.Open == nil {
			t.Errorf("driver %q is incomplete or there twice", d.Name)
		}
		seen[d.Name] = true
		for _, o := range d.Options {
			if o.Name == "" || o.Help == "" {
				t.Errorf("an option of %s has no name or help", d.Name)
			}
		}
		if _, err := d.Open(t.Context(), mounts.Config{Options: map[string]string{"no such option": "1"}}); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s takes an unknown option: %v; want Invalid", d.Name, err)
		}
	}
}
