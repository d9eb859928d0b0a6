package dropbox_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/mounttest"
)

// TestRequestCounts: no call costs more requests than Dropbox makes necessary.
func TestRequestCounts(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{Page: 100})
	b := open(t, config(s))
	ctx := t.Context()
	s.Mkdir("/d")
	s.Fill("/d", 1000, func(i int) string { return fmt.Sprintf("file-%04d", i) })
	s.Put("/d/f", strings.Repeat("x", 1000))
	large := make([]byte, 20<<20)
	open := func(off, n int64) error {
		r, err := b.Open(ctx, "d/f", off, n)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := r.(mounts.Stater).Stat(); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return err
	}
	put := func(name string, content []byte) error { _, err := mounts.WriteFile(ctx, b, name, content); return err }
	for _, test := range []struct {
		what string
		do   func() error
		want int
	}{
		{"Stat", func() error { _, err := b.Stat(ctx, "d/f"); return err }, 1},
		{"Put into an unknown folder", func() error { s.Mkdir("/other"); return put("other/f", nil) }, 2},
		{"Put into a known folder", func() error { return put("other/g", nil) }, 1},
		{"Put into the root", func() error { return put("f", []byte("hello")) }, 1},
		{"Put of 7 MiB", func() error { return put("f", large[:7<<20]) }, 1},
		{"Put of 20 MiB", func() error { return put("f", large) }, 2 + 5},
		{"listing of 1001", func() error { _, err := names(ctx, b, "d"); return err }, 11},
		{"Open", func() error { return open(0, -1) }, 1},
		{"Open of a range", func() error { return open(10, 20) }, 1},
		{"Open of a tail", func() error { return open(10, -1) }, 1},
		{"Mkdir", func() error { return b.Mkdir(ctx, "new") }, 1},
		{"Put into the new folder", func() error { return put("new/f", nil) }, 1},
		{"Rename", func() error { return b.Rename(ctx, "new/f", "new/g") }, 1},
		{"Rename over a file", func() error { return b.Rename(ctx, "new/g", "f") }, 5},
		{"Remove of a file", func() error { return b.Remove(ctx, "f") }, 1},
		{"Remove of a file that is not known", func() error { s.Put("/u", ""); return b.Remove(ctx, "u") }, 2},
		{"Remove of a folder", func() error { return b.Remove(ctx, "new") }, 2},
		{"Copy", func() error { _, err := mounts.Copy(ctx, b, "d/f", "copy"); return err }, 2},
		{"Purge", func() error { return mounts.Purge(ctx, b, "d") }, 1},
	} {
		s.Reset()
		if err := test.do(); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
		if n := s.Total(); n != test.want {
			t.Errorf("%s took %d requests, want %d: %v", test.what, n, test.want, s.Counts())
		}
	}
}

func names(ctx context.Context, b mounts.Backend, dir string) (all []string, err error) {
	for info, err := range b.List(ctx, dir) {
		if err != nil {
			return all, err
		}
		all = append(all, info.Name)
	}
	slices.Sort(all)
	return all, nil
}

// TestParentGone: a parent that was seen lately and removed by others is made again by Dropbox; one that we removed is known to be gone.
func TestParentGone(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	mounttest.Script(t, b, `
		mkdir d     -> ok
		mkdir d/e   -> ok
		put d/e/f 1 -> ok
		mv d g      -> ok
		put d/e/f 1 -> ! does not exist
		mkdir d/e/h -> ! does not exist
		put g/e/f 2 -> ok
		rm g/e/f    -> ok
		rm g/e      -> ok
		put g/e/f 1 -> ! does not exist
		cp g/e/f x  -> ! does not exist
	`)
	s.Put("/x/y/z", "1")
	mounttest.Script(t, b, `
		put x/y/z 2 -> ok
	`)
	if err := b.(mounts.Purger).Purge(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, `
		put x/y/z 2 -> ! does not exist
		ls .        -> g/
	`)
}

// TestNames: names Dropbox cannot hold are refused with a reason; case is kept and does not tell names apart.
func TestNames(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	ctx := t.Context()
	for name, says := range map[string]string{
		`a\b`: "backslash", "trailing ": "space", "d /f": "space", "desktop.ini": "keeps this name", "~$x.doc": "keeps this name", "Thumbs.db": "keeps this name",
	} {
		_, err := mounts.WriteFile(ctx, b, name, nil)
		wantKind(t, name, err, fault.Invalid)
		if err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: the message %q should say %q", name, err, says)
		}
	}
	taken := []string{"CON", "NUL", "a:b", "trailing dot.", "😀", "日本語", strings.Repeat("n", 255), `quo"te`, "]]>", "-rf", " leading"}
	for _, name := range taken {
		if info, err := mounts.WriteFile(ctx, b, name, []byte(name)); err != nil || info.Name != name {
			t.Errorf("Put(%q): %q, %v", name, info.Name, err)
		}
		if got, err := mounts.ReadFile(ctx, b, name, 1000); err != nil || string(got) != name {
			t.Errorf("%q holds %q, %v", name, got, err)
		}
	}
	deep := strings.Repeat("d/", 2000) + "f" // 4 KiB
	if _, err := b.Stat(ctx, deep); fault.KindOf(err) != fault.NotExist {
		t.Errorf("Stat of a path of 4 KiB: %v", err)
	}
	slices.Sort(taken)
	if got, err := names(ctx, b, "."); err != nil || !slices.Equal(got, taken) {
		t.Errorf("listed %q, %v", got, err)
	}
}

func TestCase(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	mounttest.Script(t, b, `
		mkdir Dir        -> ok
		mkdir DIR        -> ! already exists
		put dir/File 1   -> ok
		put DIR/FILE 22  -> ok
		ls dIr           -> File
		stat dir/file    -> file "File" 2
		new dir/fiLE 3   -> ! already exists
		mv dir/file dir/FILE -> ok
		ls Dir           -> FILE
		cat dir/file     -> "22"
		mv Dir DIR       -> ok
		ls .             -> DIR/
		cat dir/file     -> "22"
		mv dir/none dir/NONE -> ! does not exist
		mv dir DIR/sub   -> ! invalid
		cp dir/FILE DIR/file -> ok
		put other x      -> ok
		mv OTHER dir/fILE -> ok
		cat dir/file     -> "x"
	`)
	if tree := s.Tree(); len(tree) != 2 {
		t.Errorf("left behind: %q", tree)
	}
	// The second half fails: the first is undone.
	s.Inject(dropboxtest.Fault{Route: "files/move_v2", Skip: 1, Status: 409, Tags: "to/no_write_permission"})
	mounttest.Script(t, b, `
		mv DIR dir  -> ! permission denied
		ls .        -> DIR/
	`)
}

// TestRenameOver: replacing a file is undone when it fails half-way, and tidies up when its context ends.
func TestRenameOver(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "1s"))
	mounttest.Script(t, b, `
		put a new -> ok
		put b old -> ok
		mkdir d   -> ok
	`)
	// the move over the file is refused, then the one aside works, the next is refused
	s.Inject(dropboxtest.Fault{Route: "files/move_v2", Skip: 2, Status: 409, Tags: "to/no_write_permission"})
	mounttest.Script(t, b, `
		mv a b -> ! permission denied
		cat a  -> "new"
		cat b  -> "old"
	`)
	ctx, cancel := context.WithCancel(t.Context())
	s.Inject(dropboxtest.Fault{Route: "files/move_v2", Skip: 2, Stall: true})
	time.AfterFunc(200*time.Millisecond, cancel)
	start := time.Now()
	wantKind(t, "Rename", b.Rename(ctx, "a", "b"), fault.Canceled)
	if took := time.Since(start); took > time.Second {
		t.Errorf("Rename took %v", took)
	}
	mounttest.Script(t, b, `
		cat a  -> "new"
		cat b  -> "old"
		mv d b -> ! is not a folder | already exists
		mv a b -> ok
		cat b  -> "new"
	`)
	if tree := s.Tree(); !slices.Equal(tree, []string{"/b", "/d/"}) {
		t.Errorf("left behind: %q", tree)
	}
}

// TestOddNodes: links and documents of others are shown as what they are, impossible names not at all; they keep a folder from being empty.
func TestOddNodes(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	s.Mkdir("/d")
	s.Link("../x", "/d/link")
	s.Document("/d/paper.gdoc")
	s.Odd("/odd/line\nfeed")
	s.Odd("/odd/.cellgate-temporary")
	mounttest.Script(t, b, `
		ls d           -> link paper.gdoc
		stat d/link    -> link "link" ../x
		cat d/link     -> ! permission denied
		stat d/paper.gdoc -> other "paper.gdoc"
		cat d/paper.gdoc -> ! permission denied
		cp d/link x    -> ! permission denied
		ls odd         -> 
		rm odd         -> ! folder is not empty
	`)
	if err := mounts.Purge(t.Context(), b, "odd"); err != nil {
		t.Error(err)
	}
}

func TestCursorReset(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{Page: 10})
	b := open(t, config(s))
	s.Mkdir("/d")
	s.Fill("/d", 55, func(i int) string { return fmt.Sprintf("file-%04d", i) })
	n, seen := 0, map[string]bool{}
	for info, err := range b.List(t.Context(), "d") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 25 {
			s.LoseCursors()
		}
		if seen[info.Name] {
			t.Errorf("%s came twice", info.Name)
		}
		seen[info.Name] = true
	}
	if len(seen) != 55 {
		t.Errorf("listed %d of 55", len(seen))
	}
	// What changes while it is listed comes once too.
	n, seen = 0, map[string]bool{}
	for info, err := range b.List(t.Context(), "d") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 25 {
			for i := range 20 {
				s.Put(fmt.Sprintf("/d/file-%04d", i), "changed")
			}
		}
		if seen[info.Name] {
			t.Errorf("%s came twice", info.Name)
		}
		seen[info.Name] = true
	}
	s.Inject(dropboxtest.Fault{Route: "files/list_folder/continue", Times: -1, Status: 409, Tags: "reset"})
	_, err := names(t.Context(), b, "d")
	wantKind(t, "List whose cursors are lost each time", err, fault.Unavailable)
}

// TestListMemory: a listing does not grow with the number of entries.
func TestListMemory(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	const many = 40_000
	s.Fill("/d", many, func(i int) string { return fmt.Sprintf("file-%06d-with-a-name-of-some-length", i) })
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n, most := 0, uint64(0)
	for _, err := range b.List(t.Context(), "d") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%10_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
		}
	}
	if n != many || most > 12<<20 { // the fake's snapshot of the names is in it
		t.Errorf("listed %d with %d KiB", n, most>>10)
	}
}

func TestWatchOutside(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	s.Mkdir("/Team/Files")
	s.Mkdir("/Other")
	b := open(t, config(s, "path", "/team/files"))
	ctx, cancel := context.WithCancel(t.Context())
	type event struct {
		name string
		err  error
	}
	events, ended := make(chan event, 100), make(chan struct{})
	go func() {
		defer close(ended)
		for c, err := range b.(mounts.Watcher).Watch(ctx) {
			events <- event{c.Name, err}
		}
	}()
	expect := func(want ...string) {
		t.Helper()
		for _, name := range want {
			select {
			case e := <-events:
				if e.err != nil || e.name != name {
					t.Fatalf("seen %q, %v; want %q", e.name, e.err, name)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%q was not seen", name)
			}
		}
	}
	for until := time.Now().Add(5 * time.Second); s.Count("files/list_folder/longpoll") == 0 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	s.Put("/Other/f", "not ours")
	s.Put("/Team/Files/F", "1")
	expect("F")
	s.Put("/Team/Files/New/G", "1")
	expect("New", "New/G")
	s.Remove("/Team/Files/F")
	expect("F")
	s.Move("/Team/Files/New", "/Other/New")
	expect("New/G", "New")
	// The line breaks: nothing is missed, and nothing said.
	s.CloseConnections()
	s.Put("/Team/Files/H", "1")
	expect("H")
	// The cursor is lost: that is said, and the watch goes on.
	s.LoseCursors()
	if e := <-events; fault.KindOf(e.err) != fault.Unavailable || e.err == nil {
		t.Fatalf("after a reset: %+v; want an error", e)
	}
	name := ""
	for until := time.Now().Add(5 * time.Second); name == "" && time.Now().Before(until); {
		s.Put("/Team/Files/H", time.Now().String())
		select {
		case e := <-events:
			name = e.name
		case <-time.After(50 * time.Millisecond):
		}
	}
	if name != "H" {
		t.Errorf("after a reset %q was seen, want H", name)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(time.Second):
		t.Error("Watch goes on after its context ended")
	}
	// Close ends it too.
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for range b.(mounts.Watcher).Watch(t.Context()) {
		}
	}()
	time.Sleep(50 * time.Millisecond)
	b.Close()
	select {
	case <-closed:
	case <-time.After(time.Second):
		t.Error("Watch goes on after Close")
	}
}

// TestWatchRevoked: what needs somebody is said once.
func TestWatchRevoked(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	s.Revoke()
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	n := 0
	for _, err := range b.(mounts.Watcher).Watch(ctx) {
		wantKind(t, "Watch", err, fault.Unauthenticated)
		n++
	}
	if n != 1 {
		t.Errorf("told %d times, want once", n)
	}
}

func TestHash(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	content := bytes.Repeat([]byte("hash"), 3<<20) // three blocks
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	got, err := b.(mounts.Hasher).Hash(t.Context(), "f", "dropbox")
	if want := dropboxtest.ContentHash(content); err != nil || hex.EncodeToString(got) != want {
		t.Errorf("Hash = %x, %v; want %s", got, err, want)
	}
	for name, want := range map[string]fault.Kind{"none": fault.NotExist, ".": fault.IsDir} {
		_, err := b.(mounts.Hasher).Hash(t.Context(), name, "dropbox")
		wantKind(t, "Hash of "+name, err, want)
	}
}

func TestModTime(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	want := time.Date(2001, 2, 3, 4, 5, 6, 987654321, time.FixedZone("x", 3600))
	for _, size := range []int{1, 9 << 20} {
		info, err := b.Put(t.Context(), "f", bytes.NewReader(make([]byte, size)), mounts.PutOptions{Size: -1, ModTime: want})
		if err != nil || !info.ModTime.Equal(want.Truncate(time.Second)) {
			t.Errorf("ModTime %v, %v; want %v", info.ModTime, err, want)
		}
	}
}
