package prefix_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/prefix"
)

func under(t *testing.T, low mounts.Backend, dir string) mounts.Backend {
	t.Helper()
	if err := mounts.MkdirAll(t.Context(), low, dir); err != nil {
		t.Fatal(err)
	}
	b, err := prefix.New(low, dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	for name, dir := range map[string]string{"root": ".", "folder": "jail", "deep": "a/b c/jail"} {
		t.Run(name, func(t *testing.T) {
			mounttest.Run(t, func(t *testing.T) mounts.Backend { return under(t, flaky.New(mem.New(mem.Config{})), dir) })
		})
	}
	t.Run("local", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T) mounts.Backend {
			low, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
			if err != nil {
				t.Fatal(err)
			}
			return under(t, low, "jail")
		})
	})
}

func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend {
		p, err := prefix.New(b, "jail")
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
}

// TestJail: what lies beside the folder is out of reach, and the root stays.
func TestJail(t *testing.T) {
	low := mem.New(mem.Config{})
	b := under(t, low, "jail")
	mounttest.Script(t, low, `
		put secret 1     -> ok
		mkdir jail2      -> ok
		put jail2/f 1    -> ok
	`)
	mounttest.Script(t, b, `
		put f 1          -> ok
		mkdir d          -> ok
		stat .           -> dir "."
		ls .             -> d/ f
		cat ../secret    -> ! invalid
		cat /secret      -> ! invalid
		cat secret       -> ! does not exist
		mv f ../f        -> ! invalid
		mv ../secret s   -> ! invalid
		cp ../secret s   -> ! invalid
		rm .             -> ! invalid
		mv . d/x         -> ! invalid
		mv d .           -> ! invalid
		put . x          -> ! is a folder
		mkdir .          -> ! already exists
		ls ..            -> ! invalid
	`)
	ctx := t.Context()
	for op, call := range map[string]func() error{
		"Symlink": func() error { c, _ := mounts.As[mounts.Symlinker](b); return c.Symlink(ctx, "f", "../link") },
		"Link":    func() error { c, _ := mounts.As[mounts.Linker](b); return c.Link(ctx, "f", "../link") },
		"Purge":   func() error { return mounts.Purge(ctx, b, ".") },
		"Purge2":  func() error { return mounts.Purge(ctx, b, "../jail2") },
		"Hash": func() error {
			c, _ := mounts.As[mounts.Hasher](b)
			_, err := c.Hash(ctx, "../secret", "md5")
			return err
		},
		"Xattrs": func() error { c, _ := mounts.As[mounts.Xattrer](b); _, err := c.Xattrs(ctx, "../secret"); return err },
		"PutIf": func() error {
			c, _ := mounts.As[mounts.Conditional](b)
			_, err := c.PutIf(ctx, "../secret", "", strings.NewReader(""), mounts.PutOptions{})
			return err
		},
		"OpenFile": func() error {
			c, _ := mounts.As[mounts.RandomAccess](b)
			_, err := c.OpenFile(ctx, "../secret", 0, 0)
			return err
		},
	} {
		if err := call(); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want Invalid", op, err)
		}
	}
	mounttest.Script(t, low, `
		ls .      -> jail/ jail2/ secret
		ls jail   -> d/ f
	`)
	if _, err := prefix.New(low, "../x"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("New: %v, want Invalid", err)
	}
	mounttest.Script(t, low, `
		rm jail/d -> ok
		rm jail/f -> ok
		rm jail   -> ok
	`)
	mounttest.Script(t, b, `
		ls .    -> ! does not exist
		mkdir . -> ! already exists
		mkdir d -> ! does not exist
	`)
}

// TestLinks: a link above the root is out of the datasource.
func TestLinks(t *testing.T) {
	low := mem.New(mem.Config{})
	b := under(t, low, "jail")
	mounttest.Script(t, low, "put secret 1 -> ok")
	c, _ := mounts.As[mounts.Symlinker](b)
	if err := c.Symlink(t.Context(), "../secret", "link"); err != nil {
		t.Fatal(err)
	}
	if name, _, err := mounts.Resolve(t.Context(), b, "link"); fault.KindOf(err) != fault.Denied {
		t.Errorf("Resolve: %q, %v, want Denied", name, err)
	}
}

// TestErrors: no error tells the name of the folder, and marks and causes stay.
func TestErrors(t *testing.T) {
	cause := errors.New("cable")
	low := flaky.New(mem.New(mem.Config{}))
	b := under(t, low, "top/jail")
	mounttest.Script(t, b, "put f hello -> ok")
	low.Set(
		flaky.Rule{Op: "Stat", Fault: fault.Unavailable, Err: mounts.Unsent(fault.New("low", "top/jail/f", fault.Timeout, cause))},
		flaky.Rule{Op: "Open", Cut: 1, Fault: fault.Corrupt, Err: cause},
	)
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	_, errRead := io.ReadAll(r)
	_, errStat := b.Stat(t.Context(), "f")
	_, errList := b.Stat(t.Context(), ".")
	_, errNone := b.Open(t.Context(), "none/f", 0, -1)
	for what, test := range map[string]struct {
		err  error
		kind fault.Kind
		path string
	}{
		"Read": {errRead, fault.Corrupt, "f"}, "Stat": {errStat, fault.Unavailable, "f"}, "Stat of the root": {errList, fault.Unavailable, "."},
		"Open": {errNone, fault.NotExist, "none/f"}, "Rename": {b.Rename(t.Context(), "x", "y/z"), fault.NotExist, "x"},
	} {
		var f *fault.Error
		if !errors.As(test.err, &f) || f.Kind != test.kind || f.Path != test.path || strings.Contains(test.err.Error(), "jail") {
			t.Errorf("%s: %v", what, test.err)
		}
	}
	if !errors.Is(errRead, cause) || !errors.Is(errStat, cause) || !mounts.IsUnsent(errStat) || mounts.IsUnsent(errRead) {
		t.Errorf("causes or marks are lost: %v, %v", errRead, errStat)
	}
}

// parted is a backend with file systems mounted in it.
type parted struct {
	mounts.Backend
	points []string // mount points
}

func (p parted) Area(name string) string {
	dir, _ := mounts.Split(name)
	at := "."
	for _, point := range p.points {
		if mounts.Below(dir, point) {
			at = point
		}
	}
	return mounts.Join(at, mounts.Area)
}

func (p parted) Areas() []string {
	all := []string{mounts.Area}
	for _, point := range p.points {
		all = append(all, mounts.Join(point, mounts.Area))
	}
	return all
}

func TestAreas(t *testing.T) {
	tests := []struct {
		dir    string
		points []string
		want   []string
		area   map[string]string
	}{
		{"jail", nil, []string{".cellgate"}, map[string]string{".": ".cellgate", "f": ".cellgate", "a/b": ".cellgate"}},
		{"jail", []string{"jail/mnt", "other"}, []string{".cellgate", "mnt/.cellgate"},
			map[string]string{"mnt": ".cellgate", "mnt/f": "mnt/.cellgate", "f": ".cellgate", ".": ".cellgate"}},
		{"jail", []string{"jail"}, []string{".cellgate"}, map[string]string{"f": ".cellgate", ".": ".cellgate"}},
		{"mnt/jail", []string{"mnt"}, []string{".cellgate"}, map[string]string{"f": ".cellgate", ".": ".cellgate"}},
		{".", []string{"mnt"}, []string{".cellgate", "mnt/.cellgate"}, map[string]string{"f": ".cellgate", "mnt/f": "mnt/.cellgate"}},
	}
	for _, test := range tests {
		b, err := prefix.New(parted{points: test.points}, test.dir)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := mounts.As[mounts.Partitioned](b)
		if got := p.Areas(); !slices.Equal(got, test.want) {
			t.Errorf("%s with %q: Areas() = %q, want %q", test.dir, test.points, got, test.want)
		}
		for name, want := range test.area {
			if got := p.Area(name); got != want {
				t.Errorf("%s with %q: Area(%s) = %q, want %q", test.dir, test.points, name, got, want)
			}
		}
	}
}

// TestWatch: changes of the folder are told, and those above it as its own; not those beside it.
func TestWatch(t *testing.T) {
	low := mem.New(mem.Config{})
	b := under(t, low, "top/jail")
	c, _ := mounts.As[mounts.Watcher](b)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		for change, err := range c.Watch(ctx) {
			if err != nil {
				t.Error(err)
			}
			seen <- change.Name
		}
	}()
	started := false
	for !started && ctx.Err() == nil {
		mounttest.Script(t, b, "put start x -> ok")
		select {
		case <-seen:
			started = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	mounttest.Script(t, low, `
		put top/jail2 x  -> ok
		put top/f x      -> ok
		put g x          -> ok
		put top/jail/f x -> ok
		mkdir top/jail/d -> ok
		mv top up        -> ok
	`)
	var names []string
	for name := range seen {
		if names = append(names, name); name == "." && slices.Contains(names, "d") {
			break
		}
	}
	for _, name := range names {
		if !slices.Contains([]string{"start", "f", "d", "."}, name) {
			t.Errorf("told of %q, in %q", name, names)
		}
	}
	if !slices.Contains(names, "f") || !slices.Contains(names, "d") {
		t.Errorf("told of %q only", names)
	}
}
