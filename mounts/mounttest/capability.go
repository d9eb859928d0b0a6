package mounttest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// capabilityCalls returns one call of each capability b has.
func capabilityCalls(ctx context.Context, b mounts.Backend) map[string]func() error {
	calls := map[string]func() error{}
	if c, ok := mounts.As[mounts.RandomAccess](b); ok {
		calls["RandomAccess"] = func() error { return openClose(c, ctx, "f", os.O_RDWR) }
	}
	if c, ok := mounts.As[mounts.Copier](b); ok {
		calls["Copier"] = func() error { _, err := c.CopyFile(ctx, "f", "copy"); return err }
	}
	if c, ok := mounts.As[mounts.Linker](b); ok {
		calls["Linker"] = func() error { return c.Link(ctx, "f", "link") }
	}
	if c, ok := mounts.As[mounts.TimeSetter](b); ok {
		calls["TimeSetter"] = func() error { return c.SetModTime(ctx, "f", time.Unix(1e9, 0)) }
	}
	if c, ok := mounts.As[mounts.ModeSetter](b); ok {
		calls["ModeSetter"] = func() error { return c.SetMode(ctx, "f", 0o600) }
	}
	if c, ok := mounts.As[mounts.Truncater](b); ok {
		calls["Truncater"] = func() error { return c.Truncate(ctx, "f", 1) }
	}
	if c, ok := mounts.As[mounts.Symlinker](b); ok {
		calls["Symlinker"] = func() error { return c.Symlink(ctx, "f", "symlink") }
	}
	if c, ok := mounts.As[mounts.Xattrer](b); ok {
		calls["Xattrer"] = func() error { return c.SetXattr(ctx, "f", "a", []byte("1")) }
		calls["Xattrer.Xattrs"] = func() error { _, err := c.Xattrs(ctx, "f"); return err }
	}
	if c, ok := mounts.As[mounts.Spacer](b); ok {
		calls["Spacer"] = func() error { _, err := c.Space(ctx); return err }
	}
	if c, ok := mounts.As[mounts.Hasher](b); ok {
		calls["Hasher"] = func() error { _, err := c.Hash(ctx, "f", "md5"); return err }
	}
	if c, ok := mounts.As[mounts.Conditional](b); ok {
		calls["Conditional"] = func() error { _, err := c.PutIf(ctx, "f", "x", strings.NewReader(""), mounts.PutOptions{}); return err }
	}
	if c, ok := mounts.As[mounts.Purger](b); ok {
		calls["Purger"] = func() error { return c.Purge(ctx, "f") }
	}
	return calls
}

// testFeatures: nothing is claimed without the capability, and what is refused is refused.
func testFeatures(t *testing.T, b mounts.Backend) {
	f := b.Features()
	Script(t, b, "put f hello -> ok")
	claims := map[string]mounts.Support{
		"RandomAccess": f.RandomAccess, "Linker": f.HardLink, "TimeSetter": f.ModTime, "Symlinker": f.Symlink, "Xattrer": f.Xattr, "Spacer": f.Space,
		"Hasher": f.Hash, "Conditional": f.ConditionalWrite,
	}
	calls := capabilityCalls(t.Context(), b)
	for name, support := range claims {
		call, has := calls[name]
		switch {
		case support != mounts.Refused && !has:
			t.Errorf("Features say %s is %s, but the backend has no such capability", name, support)
		case support == mounts.Refused && has:
			if err := call(); err == nil || fault.KindOf(err) != fault.Unsupported {
				t.Errorf("Features refuse %s, but a call of it returns %v; want Unsupported", name, err)
			}
		}
	}
	if w, has := mounts.As[mounts.Watcher](b); f.Watch != mounts.Refused && !has {
		t.Errorf("Features say Watch is %s, but the backend is no Watcher", f.Watch)
	} else if f.Watch == mounts.Refused && has {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for _, err := range w.Watch(ctx) {
			if fault.KindOf(err) != fault.Unsupported {
				t.Errorf("Features refuse Watch, but it yields %v", err)
			}
			break
		}
		if ctx.Err() != nil {
			t.Error("Features refuse Watch, but it watches")
		}
	}
	if f.MaxName < 0 || f.MaxName > mounts.MaxName {
		t.Errorf("MaxName is %d, want 0 to %d", f.MaxName, mounts.MaxName)
	}
	if f.ModTime != mounts.Refused && f.ModTimeGrain <= 0 {
		t.Errorf("ModTime is %s with a grain of %v", f.ModTime, f.ModTimeGrain)
	}
}

// need returns the capability, or ends the test where Features refuse it; testFeatures looks that both agree.
func need[T any](t *testing.T, b mounts.Backend, support mounts.Support) T {
	t.Helper()
	c, ok := mounts.As[T](b)
	if !ok || support == mounts.Refused {
		t.Skip("not a capability of this backend")
	}
	return c
}

func openClose(c mounts.RandomAccess, ctx context.Context, name string, flag int) error {
	f, err := c.OpenFile(ctx, name, flag, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

func testRandomAccess(t *testing.T, b mounts.Backend) {
	c := need[mounts.RandomAccess](t, b, b.Features().RandomAccess)
	f, err := c.OpenFile(t.Context(), "f", os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	step := func(what string, n int, err error, want int) {
		t.Helper()
		if err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", what, n, err, want)
		}
	}
	n, err := f.WriteAt([]byte("hello"), 0)
	step("WriteAt", n, err, 5)
	n, err = f.WriteAt([]byte("world"), 10)
	step("WriteAt beyond the end", n, err, 5)
	n, err = f.WriteAt([]byte("J"), 0)
	step("WriteAt over", n, err, 1)
	Script(t, b, `cat f -> "Jello\x00\x00\x00\x00\x00world"`)
	buf := make([]byte, 4)
	n, err = f.ReadAt(buf, 1)
	step("ReadAt", n, err, 4)
	if n, err = f.ReadAt(buf, 13); n != 2 || err != io.EOF {
		t.Errorf("ReadAt across the end: %d, %v; want 2, EOF", n, err)
	}
	if n, err = f.ReadAt(buf, 100); n != 0 || err != io.EOF {
		t.Errorf("ReadAt beyond the end: %d, %v; want 0, EOF", n, err)
	}
	if info, err := f.Stat(); err != nil || info.Size != 15 || info.Name != "f" || info.Type != mounts.File {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	if err := f.Truncate(3); err != nil {
		t.Error(err)
	}
	if err := f.Truncate(6); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	Script(t, b, `cat f -> "Jel\x00\x00\x00"`)
	if err := b.Remove(t.Context(), "f"); err == nil { // an open file lives on where names and files are two things
		if n, err = f.ReadAt(buf[:3], 0); err == nil && string(buf[:n]) != "Jel" {
			t.Errorf("the open file holds %q after Remove", buf[:n])
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(buf, 0); err == nil {
		t.Error("ReadAt after Close works")
	}
}

func testRandomAccessFlags(t *testing.T, b mounts.Backend) {
	c := need[mounts.RandomAccess](t, b, b.Features().RandomAccess)
	ctx := t.Context()
	Script(t, b, `
		put f hello -> ok
		mkdir d     -> ok
	`)
	for _, test := range []struct {
		name string
		flag int
		want string
	}{
		{"f", os.O_RDONLY, "ok"},
		{"none", os.O_RDWR, "! does not exist"},
		{"x/y", os.O_RDWR | os.O_CREATE, "! does not exist"},
		{"d", os.O_RDWR, "! is a folder"},
		{"d", os.O_RDWR | os.O_CREATE, "! is a folder"},
		{"f", os.O_RDWR | os.O_CREATE | os.O_EXCL, "! already exists"},
		{"f", os.O_RDWR | os.O_APPEND, "! invalid"},
		{"a\nb", os.O_RDWR | os.O_CREATE, "! invalid"},
		{"new", os.O_RDWR | os.O_CREATE | os.O_EXCL, "ok"},
	} {
		if got := outcome(openClose(c, ctx, test.name, test.flag)); got != test.want {
			t.Errorf("OpenFile(%s, %#x) -> %s, want %s", test.name, test.flag, got, test.want)
		}
	}
	Script(t, b, `
		cat f   -> "hello"
		cat new -> ""
	`)
	f, err := c.OpenFile(ctx, "f", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil || fault.KindOf(err) != fault.Denied {
		t.Errorf("WriteAt on a file opened for reading: %v; want Denied", err)
	}
	f.Close()
	if err := openClose(c, ctx, "f", os.O_WRONLY|os.O_TRUNC); err != nil {
		t.Error(err)
	}
	Script(t, b, `cat f -> ""`)
}

func testLink(t *testing.T, b mounts.Backend) {
	c := need[mounts.Linker](t, b, b.Features().HardLink)
	ctx := t.Context()
	Script(t, b, `
		put f hello -> ok
		mkdir d     -> ok
	`)
	for _, test := range []struct{ from, to, want string }{
		{"f", "d/g", "ok"}, {"f", "d/g", "! already exists"}, {"f", "d", "! already exists"}, {"none", "x", "! does not exist"},
		{"f", "x/y", "! does not exist"}, {"d", "e", "! is a folder"}, {"..", "e", "! invalid"}, {"f", "../e", "! invalid"},
	} {
		if got := outcome(c.Link(ctx, test.from, test.to)); got != test.want {
			t.Errorf("Link(%s, %s) -> %s, want %s", test.from, test.to, got, test.want)
		}
	}
	a, _ := b.Stat(ctx, "f")
	g, _ := b.Stat(ctx, "d/g")
	known := a.Links != 0 || g.Links != 0 // some protocols do not tell
	if a.ID != g.ID || known && (a.Links != 2 || g.Links != 2) {
		t.Errorf("two links of a file: %+v\nand %+v", a, g)
	}
	Script(t, b, `
		put f other -> ok
		cat d/g     -> "hello"
	`)
	if err := c.Link(ctx, "d/g", "h"); err != nil {
		t.Fatal(err)
	}
	Script(t, b, `
		mv h d/g    -> ok
		stat h      -> ! does not exist
		cat d/g     -> "hello"
		rm d/g      -> ok
		ls .        -> d/ f
	`)
}

func testSymlink(t *testing.T, b mounts.Backend) {
	c := need[mounts.Symlinker](t, b, b.Features().Symlink)
	ctx := t.Context()
	Script(t, b, `
		mkdir d      -> ok
		put d/f real -> ok
	`)
	for name, target := range map[string]string{"file": "d/f", "dir": "d", "dangling": "nowhere", "up": "../../etc", "abs": "/etc/passwd", "loop": "loop"} {
		if err := c.Symlink(ctx, target, name); err != nil {
			t.Fatalf("Symlink(%s, %s): %v", target, name, err)
		}
	}
	if err := c.Symlink(ctx, "x", "d"); fault.KindOf(err) != fault.Exist {
		t.Errorf("Symlink over a folder: %v; want Exist", err)
	}
	Script(t, b, `
		stat file     -> link "file" d/f
		stat dir      -> link "dir" d
		stat dangling -> link "dangling" nowhere
		stat up       -> link "up" ../../etc
		stat abs      -> link "abs" /etc/passwd
		cat file      -> ! permission denied
		cat abs       -> ! permission denied
		cat up        -> ! permission denied
		cat dangling  -> ! permission denied
		cat loop      -> ! permission denied
		cat dir/f     -> ! is not a folder | does not exist
		stat dir/f    -> ! is not a folder | does not exist
		stat up/x     -> ! is not a folder | does not exist
		ls dir        -> ! is not a folder
		ls up         -> ! is not a folder
		put file x    -> ! permission denied
		put dangling x -> ! permission denied
		put dir/g x   -> ! is not a folder | does not exist
		mkdir dir/g   -> ! is not a folder | does not exist
		mkdir dangling -> ! already exists
		rm dir/f      -> ! is not a folder | does not exist
		mv dir/f g    -> ! is not a folder | does not exist
		mv d/f dir/g  -> ! is not a folder | does not exist
		cp file g     -> ! permission denied
		cp d/f file   -> ! permission denied
		stat nowhere  -> ! does not exist
		cat d/f       -> "real"
		mv dir moved  -> ok
		stat moved    -> link "moved" d
		rm moved      -> ok
		ls d          -> f
	`)
	for _, test := range []struct{ name, want string }{
		{"file", "d/f"}, {"abs", "! permission denied"}, {"up", "! permission denied"}, {"loop", "! permission denied"}, {"dangling", "! does not exist"},
	} {
		got, _, err := mounts.Resolve(ctx, b, test.name)
		if err != nil {
			got = outcome(err)
		}
		if got != test.want {
			t.Errorf("Resolve(%s) -> %s, want %s", test.name, got, test.want)
		}
	}
	for op, err := range map[string]error{
		"OpenFile": attempt(b, func(c mounts.RandomAccess) error { return openClose(c, ctx, "file", os.O_RDWR) }),
		"Create":   attempt(b, func(c mounts.RandomAccess) error { return openClose(c, ctx, "dangling", os.O_RDWR|os.O_CREATE) }),
		"Truncate": attempt(b, func(c mounts.Truncater) error { return c.Truncate(ctx, "file", 0) }),
		"SetMode":  attempt(b, func(c mounts.ModeSetter) error { return c.SetMode(ctx, "file", 0o777) }),
	} {
		if fault.KindOf(err) != fault.Denied {
			t.Errorf("%s through a link: %v; want Denied", op, err)
		}
	}
	Script(t, b, `
		cat d/f      -> "real"
		stat nowhere -> ! does not exist
	`)
}

func testWatch(t *testing.T, b mounts.Backend) {
	c := need[mounts.Watcher](t, b, b.Features().Watch)
	Script(t, b, `
		mkdir d   -> ok
		put f old -> ok
	`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen, ended := make(chan string, 1000), make(chan struct{})
	go func() {
		defer close(ended)
		for change, err := range c.Watch(ctx) {
			if err != nil {
				t.Errorf("Watch: %v", err)
				return
			}
			select {
			case seen <- change.Name:
			case <-ctx.Done():
			}
		}
	}()
	// expect does something until it is seen as one of names: the watch may not yet run at first.
	expect := func(script string, names ...string) {
		t.Helper()
		for tries := 0; ; tries++ {
			if ctx.Err() != nil {
				t.Fatalf("no change of %q was seen after %s", names, script)
			}
			switch {
			case tries == 0:
				Script(t, b, script+" -> ok")
			case script[:3] == "put": // other content, for the same is no change to some
				Script(t, b, script+strconv.Itoa(tries)+" -> ok")
			}
			timeout := time.After(200 * time.Millisecond)
			for waiting := true; waiting; {
				select {
				case name := <-seen:
					if slices.Contains(names, name) {
						return
					}
				case <-timeout:
					waiting = false
				case <-ctx.Done():
				}
				if ctx.Err() != nil {
					break
				}
			}
		}
	}
	expect("put f new", "f", ".")
	expect("put d/g new", "d/g", "d")
	expect("mkdir d/e", "d/e", "d")
	expect("put d/e/h new", "d/e/h", "d/e")
	expect("mv d/g d/e/g", "d/e/g", "d/e")
	if b.Features().Rename == mounts.Native {
		expect("mv d/e k", "k", ".")
		expect("put k/h new", "k/h", "k")
	}
	expect("rm f", "f", ".")
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("Watch goes on after its context ended")
	}
}

func testSpace(t *testing.T, b mounts.Backend) {
	c := need[mounts.Spacer](t, b, b.Features().Space)
	s, err := c.Space(t.Context())
	if err != nil || s.Total < -1 || s.Used < -1 || s.Free < -1 || s.Total >= 0 && s.Free > s.Total {
		t.Errorf("Space: %+v, %v", s, err)
	}
}

func testHash(t *testing.T, b mounts.Backend) {
	c := need[mounts.Hasher](t, b, b.Features().Hash)
	Script(t, b, `
		put f hello -> ok
		mkdir d     -> ok
	`)
	known := 0
	for algo, h := range map[string]hash.Hash{
		"md5": md5.New(), "sha1": sha1.New(), "sha256": sha256.New(), "crc32c": crc32.New(crc32.MakeTable(crc32.Castagnoli)),
	} {
		h.Write([]byte("hello"))
		switch got, err := c.Hash(t.Context(), "f", algo); {
		case err == nil && bytes.Equal(got, h.Sum(nil)):
			known++
		case err == nil || fault.KindOf(err) != fault.Unsupported:
			t.Errorf("Hash(f, %s) = %s, %v; want %x", algo, hex.EncodeToString(got), err, h.Sum(nil))
		}
	}
	if _, err := c.Hash(t.Context(), "none", "md5"); err == nil {
		t.Error("Hash of nothing works")
	}
	if _, err := c.Hash(t.Context(), "f", "no such digest"); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("Hash of an unknown kind: %v; want Unsupported", err)
	}
}

func testConditional(t *testing.T, b mounts.Backend) {
	c := need[mounts.Conditional](t, b, b.Features().ConditionalWrite)
	ctx := t.Context()
	info, err := mounts.WriteFile(ctx, b, "f", []byte("one"))
	if err != nil || info.Tag == "" {
		t.Fatalf("Put: tag %q, %v", info.Tag, err)
	}
	putIf := func(name, tag, content string) (mounts.Info, error) {
		return c.PutIf(ctx, name, tag, strings.NewReader(content), mounts.PutOptions{Size: int64(len(content))})
	}
	next, err := putIf("f", info.Tag, "two")
	if err != nil || next.Tag == info.Tag {
		t.Errorf("PutIf with the right tag: %+v, %v", next, err)
	}
	for _, name := range []string{"f", "none"} {
		if _, err := putIf(name, info.Tag, "three"); fault.KindOf(err) != fault.Precondition || err == nil {
			t.Errorf("PutIf(%s) with a former tag: %v; want Precondition", name, err)
		}
	}
	Script(t, b, `
		cat f     -> "two"
		stat none -> ! does not exist
	`)
	const rivals = 8
	results := make(chan error, rivals)
	for range rivals {
		go func() { _, err := putIf("f", next.Tag, "rival"); results <- err }()
	}
	won := 0
	for range rivals {
		if err := <-results; err == nil {
			won++
		} else if fault.KindOf(err) != fault.Precondition {
			t.Errorf("PutIf against rivals: %v; want Precondition", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d PutIf with one tag won, want 1", won, rivals)
	}
}

func testParts(t *testing.T, b mounts.Backend) {
	c, ok := mounts.As[mounts.PartPutter](b)
	if !ok {
		t.Skip("not a capability of this backend")
	}
	ctx := t.Context()
	const size = 5 << 20 // the least some backends take for a part that is not the last
	part := func(i int) string { return strings.Repeat(string(rune('a'+i)), size) }
	id, err := c.StartParts(ctx, "f", mounts.PutOptions{Size: 3 * size})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{2, 0, 1} {
		if err := c.PutPart(ctx, id, i+1, strings.NewReader(part(i)), size); err != nil {
			t.Fatalf("PutPart(%d): %v", i+1, err)
		}
	}
	Script(t, b, "stat f -> ! does not exist")
	if info, err := c.FinishParts(ctx, id); err != nil || info.Size != 3*size {
		t.Errorf("FinishParts: %+v, %v", info, err)
	}
	if got, err := read(ctx, b, "f", 0, -1); err != nil || got != part(0)+part(1)+part(2) {
		t.Errorf("the parts came together as %d bytes, %v", len(got), err)
	}
	if id, err = c.StartParts(ctx, "g", mounts.PutOptions{Size: -1}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.PutPart(ctx, id, 1, strings.NewReader("x"), 1), c.AbortParts(ctx, id)); err != nil {
		t.Error(err)
	}
	Script(t, b, "stat g -> ! does not exist")
}
