package cache_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

// caseless is a storage that keeps the case of names and ignores it, as SMB servers do.
type caseless struct {
	mounts.Backend
	mu *sync.Mutex
}

func (c caseless) Features() mounts.Features {
	return mounts.Features{AtomicReplace: mounts.Native, Rename: mounts.Native}
}

// real returns the name as it is stored.
func (c caseless) real(ctx context.Context, name string) string {
	at := "."
	for segment := range strings.SplitSeq(name, "/") {
		next := mounts.Join(at, segment)
		for info := range c.Backend.List(ctx, at) {
			if strings.EqualFold(info.Name, segment) {
				next = mounts.Join(at, info.Name)
			}
		}
		at = next
	}
	if name == "." {
		return name
	}
	return at
}

func (c caseless) Stat(ctx context.Context, name string) (mounts.Info, error) {
	info, err := c.Backend.Stat(ctx, c.real(ctx, name))
	if err == nil && name != "." {
		_, info.Name = mounts.Split(name)
	}
	return info, err
}

func (c caseless) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := c.Backend.Put(ctx, c.real(ctx, name), src, opt)
	_, info.Name = mounts.Split(name)
	return info, err
}

func (c caseless) Remove(ctx context.Context, name string) error {
	return c.Backend.Remove(ctx, c.real(ctx, name))
}

func (c caseless) Mkdir(ctx context.Context, name string) error {
	return c.Backend.Mkdir(ctx, c.real(ctx, name))
}

func (c caseless) Rename(ctx context.Context, from, to string) error {
	if strings.EqualFold(from, to) {
		dir, base := mounts.Split(to)
		return c.Backend.Rename(ctx, c.real(ctx, from), mounts.Join(c.real(ctx, dir), base))
	}
	return c.Backend.Rename(ctx, c.real(ctx, from), c.real(ctx, to))
}

func TestCaseless(t *testing.T) {
	below := caseless{mem.New(mem.Config{}), new(sync.Mutex)}
	b := open(t, below, cache.Config{Age: time.Hour})
	defer b.Close()
	mounttest.Script(t, b, `
		mkdir Dir          -> ok
		put Dir/File 1     -> ok
		stat Dir/File      -> file "File" 1
		stat dir/FILE      -> file "FILE" 1
		ls DIR             -> File
		put dir/file 22    -> ok
		stat Dir/File      -> file "File" 2
		ls Dir             -> File
		put DIR/new 1      -> ok
		ls Dir             -> File new
		mv dir/new dir/NEW -> ok
		ls Dir             -> File NEW
		rm DIR/FILE        -> ok
		stat Dir/File      -> ! does not exist
		put Dir/straße 1   -> ok
		stat Dir/STRASSE   -> ! does not exist
		stat Dir/STRAßE    -> file "STRAßE" 1
		ls Dir             -> NEW straße
		put Dir/STRASSE 22 -> ok
		stat Dir/straße    -> file "straße" 1
		stat Dir/STRASSE   -> file "STRASSE" 2
		ls Dir             -> NEW STRASSE straße
		ls Dir             -> NEW STRASSE straße
		rm dir/straße      -> ok
		ls Dir             -> NEW STRASSE
		mv Dir e           -> ok
		stat dir/NEW       -> ! does not exist
		stat E/new         -> file "new" 1
	`)
}

func TestFold(t *testing.T) {
	for _, test := range []struct{ a, b string }{{"a/B", "A/b"}, {"É", "e\u0301"}, {"straße", "STRASSE"}, {"Σ", "ς"}, {"ﬁ", "FI"}} {
		if cache.Fold(test.a) != cache.Fold(test.b) {
			t.Errorf("Fold(%q) = %q, Fold(%q) = %q", test.a, cache.Fold(test.a), test.b, cache.Fold(test.b))
		}
	}
	if cache.Fold("a") == cache.Fold("b") {
		t.Error("all is one")
	}
}
