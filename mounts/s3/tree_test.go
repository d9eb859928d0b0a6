package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// TestFolders: folders without markers are folders, and stay when their last child goes.
func TestFolders(t *testing.T) {
	f := newFake(t, false)
	f.put("a/b/c", "1")
	f.put("a/b/d", "1")
	f.put("x/only/", "")
	f.put("data/", "a marker with content")
	b := opened(t, remembering(f.config()), "")
	mounttest.Script(t, b, `
		ls .         -> a/ data/ x/
		stat a       -> dir "a"
		stat a/b     -> dir "b"
		mkdir a      -> ! already exists
		mkdir a/b    -> ! already exists
		rm a/b/c     -> ok
		rm a/b/d     -> ok
		ls a/b       -> 
		stat a/b     -> dir "b"
		rm a/b       -> ok
		stat a       -> dir "a"
		mv x/only y  -> ok
		stat x       -> dir "x"
		ls x         -> 
		put x/f 1    -> ok
		mv x/f y/f   -> ok
		ls x         -> 
		rm data      -> ! folder is not empty
		mv data d2   -> ok
	`)
	if got, want := f.keys(), []string{"a/", "d2/", "x/", "y/", "y/f"}; !slices.Equal(got, want) {
		t.Errorf("the keys are %q, want %q", got, want)
	}
	if f.content("d2/") != "a marker with content" {
		t.Errorf("a marker lost its content: %q", f.content("d2/"))
	}
}

// TestBothFileAndFolder: the file has the name, and what is below is neither lost nor out of reach.
func TestBothFileAndFolder(t *testing.T) {
	f := newFake(t, false)
	for _, key := range []string{"a", "a-", "a/b", "z"} {
		f.put(key, key)
	}
	b := opened(t, remembering(f.config()), "")
	mounttest.Script(t, b, `
		ls .        -> a a- z
		stat a      -> file "a" 1
		cat a       -> "a"
		put a new   -> ok
		cat a       -> "new"
		stat a/b    -> file "b" 3
		cat a/b     -> "a/b"
		ls a        -> b
		mkdir a     -> ! already exists
		new a 1     -> ! already exists
		cp z a      -> ok
		mv a c      -> ok
		cat c       -> "z"
		stat a      -> dir "a"
		cat a/b     -> "a/b"
		put a x     -> ! is a folder
	`)
	f.put("a", "again")
	if err := b.Purge(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	f.put("a", "again")
	if err := b.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, b, `cat a/b -> "a/b"`)
}

// TestShadows: a file hides the folder of its name from a listing also when pages lie between them.
func TestShadows(t *testing.T) {
	f := newFake(t, false)
	f.put("n", "")
	f.put("n/x", "")
	f.put("n-0/x", "")
	for i := range 4500 {
		f.put(fmt.Sprintf("n-%04d", i), "")
	}
	f.put("n-0000/x", "")
	b := opened(t, remembering(f.config()), "")
	names, err := listed(t.Context(), b, ".")
	if err != nil || len(names) != 4502 || slices.Contains(names, "n/") || slices.Contains(names, "n-0000/") || !slices.Contains(names, "n-0/") {
		t.Errorf("%d names, %v; want 4502", len(names), err)
	}
}

// TestBadKeys: keys that are no names are left out of listings, go along with their folder and go with it.
func TestBadKeys(t *testing.T) {
	bad := []string{"d//x", "d/../y", "d/./z", "d/a\tb", "d/" + strings.Repeat("n", 300), "d/ctl\x01/x", "d/line\u2028", "/top", "d/.cellgate-tmp"}
	f := newFake(t, false)
	for _, key := range bad {
		f.put(key, key)
	}
	f.put("d/good", "1")
	b := opened(t, remembering(f.config()), "")
	mounttest.Script(t, b, `
		ls .    -> d/
		ls d    -> good
		rm d    -> ! folder is not empty
		mv d e  -> ok
		ls e    -> good
	`)
	for _, key := range bad {
		if at, ok := strings.CutPrefix(key, "d/"); ok && f.content("e/"+at) != key {
			t.Errorf("%q did not move along", key)
		}
	}
	if err := b.Purge(t.Context(), "e"); err != nil {
		t.Error(err)
	}
	if got := f.keys(); !slices.Equal(got, []string{"/top"}) {
		t.Errorf("left are %q", got)
	}
}

// TestP06Names: names that other systems refuse are kept as they are, too long ones are refused in words.
func TestP06Names(t *testing.T) {
	server := servertest.S3(t, servertest.S3Options{})
	ctx := t.Context()
	for which, cfg := range map[string]mounts.Config{"versitygw": servertest.S3Config(server, servertest.S3Options{}), "fake": newFake(t, false).config()} {
		b := opened(t, remembering(cfg), "")
		for _, name := range []string{"CON", "NUL", "a:b", "a:b::$DATA", "dot.", "space ", "PROGRA~1", "it's \"q\" ]]> &amp;", "-rf", "%00", "a+b", strings.Repeat("x", 255), "ä" + strings.Repeat("é", 126)} {
			if _, err := mounts.WriteFile(ctx, b, name, []byte(name)); err != nil {
				t.Errorf("%s: Put(%q): %v", which, name, err)
				continue
			}
			if got, err := mounts.ReadFile(ctx, b, name, 1000); err != nil || string(got) != name {
				t.Errorf("%s: %q holds %q, %v", which, name, got, err)
			}
			names, err := listed(ctx, b, ".")
			if err != nil || !slices.Equal(names, []string{name}) {
				t.Errorf("%s: %q is listed as %q, %v", which, name, names, err)
			}
			if err := b.Remove(ctx, name); err != nil {
				t.Errorf("%s: Remove(%q): %v", which, name, err)
			}
		}
		long := strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 255)+"/", 16), "/")
		for name, word := range map[string]string{strings.Repeat("x", 256): "255", long: "1024 bytes", " ": "spaces"} {
			_, err := mounts.WriteFile(ctx, b, name, nil)
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), word) {
				t.Errorf("%s: Put of a name of %d bytes: %v; want Invalid, saying %s", which, len(name), err, word)
			}
		}
	}
}

// TestResumeRename cuts a Rename of a folder off at every request, and lets it be finished: nothing is lost and nothing left.
func TestResumeRename(t *testing.T) {
	t.Parallel()
	build := func(f *fake) {
		for i := range 12 {
			f.put(fmt.Sprintf("from/%02d", i), fmt.Sprint(i))
		}
		f.put("from/sub/", "")
		f.put("from/sub/x", "x")
		f.put("from//odd", "odd")
	}
	contents := func(f *fake, prefix string) (all []string) {
		for _, key := range f.keys() {
			if rel, ok := strings.CutPrefix(key, prefix); ok && rel != "" {
				all = append(all, rel+"="+f.content(key))
			}
		}
		return all
	}
	for cut := int32(1); ; cut++ {
		f := newFake(t, false)
		build(f)
		want := contents(f, "from/")
		b := opened(t, remembering(f.config()), "")
		var n atomic.Int32
		var dead atomic.Bool
		ctx, cancel := context.WithCancel(t.Context())
		f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
			if n.Add(1) >= cut {
				dead.Store(true)
				cancel() // there is nobody to try again
				panic(http.ErrAbortHandler)
			}
			return false
		})
		err := b.Rename(ctx, "from", "to")
		cancel()
		f.before.Store(nil)
		if !dead.Load() {
			if err != nil {
				t.Errorf("Rename: %v", err)
			}
			if got := contents(f, "to/"); !slices.Equal(got, want) {
				t.Errorf("moved are %q, want %q", got, want)
			}
			return
		}
		for _, rel := range want { // every content is at one end at least
			if !slices.Contains(contents(f, "from/"), rel) && !slices.Contains(contents(f, "to/"), rel) {
				t.Errorf("cut off at request %d: %s is lost", cut, rel)
			}
		}
		b = opened(t, remembering(f.config()), "")
		for range 2 { // twice: it tolerates having been done
			if err := b.ResumeRename(t.Context(), "from", "to"); err != nil {
				t.Errorf("cut off at request %d: ResumeRename: %v", cut, err)
			}
		}
		if got := contents(f, "to/"); !slices.Equal(got, want) || len(contents(f, "from/")) > 0 {
			t.Errorf("cut off at request %d: at the target are %q and at the source %q, want %q", cut, got, contents(f, "from/"), want)
		}
		f.Close()
	}
}

// TestResumeDiffers: what differs at the target is copied again, and files move, too.
func TestResumeDiffers(t *testing.T) {
	f := newFake(t, false)
	f.put("from/a", "new")
	f.put("from/b", "same")
	f.put("to/a", "old")
	f.put("to/b", "same")
	f.put("file", "1")
	f.put("there", "half")
	b := opened(t, remembering(f.config()), "")
	mounttest.Script(t, b, "mv from to -> ! already exists")
	f.requests()
	err := errors.Join(b.ResumeRename(t.Context(), "from", "to"), b.ResumeRename(t.Context(), "file", "there"))
	mounttest.Script(t, b, `
		cat to/a   -> "new"
		cat to/b   -> "same"
		stat from  -> ! does not exist
		cat there  -> "1"
		stat file  -> ! does not exist
	`)
	if err != nil || slices.Contains(f.requests(), "PUT to/b") {
		t.Errorf("ResumeRename: %v, or what was the same was copied", err)
	}
	if err := b.ResumeRename(t.Context(), "none", "nowhere"); fault.KindOf(err) != fault.NotExist {
		t.Errorf("ResumeRename of nothing: %v; want NotExist", err)
	}
}

// TestRenameManyRealServer moves more than a page, which the real server keeps as directories.
func TestRenameManyRealServer(t *testing.T) {
	t.Parallel()
	server := servertest.S3(t, servertest.S3Options{})
	b := opened(t, servertest.S3Config(server, servertest.S3Options{}), "")
	ctx := t.Context()
	if err := mounts.MkdirAll(ctx, b, "d/a/b"); err != nil {
		t.Fatal(err)
	}
	want := []string{"a/"}
	for i := range 1100 {
		name := fmt.Sprintf("%04d", i)
		if _, err := mounts.WriteFile(ctx, b, "d/"+name, []byte(name)); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	if err := b.Rename(ctx, "d", "e"); err != nil {
		t.Fatal(err)
	}
	names, err := listed(ctx, b, "e")
	slices.Sort(names)
	slices.Sort(want)
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%d names moved, %v; want %d", len(names), err, len(want))
	}
	mounttest.Script(t, b, `
		stat d     -> ! does not exist
		stat e/a/b -> dir "b"
		cat e/0042 -> "0042"
	`)
	if err := b.Purge(ctx, "e"); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, b, "ls . -> ")
}

// TestCopyInParts: what is too large for one request is copied in several, on both servers.
func TestCopyInParts(t *testing.T) {
	t.Parallel()
	server := servertest.S3(t, servertest.S3Options{})
	for which, cfg := range map[string]mounts.Config{"versitygw": servertest.S3Config(server, servertest.S3Options{}), "fake": newFake(t, false).config()} {
		b := opened(t, remembering(cfg), "")
		b.copyLimit = 5 << 20
		content := strings.Repeat("0123456789abcdef", 12<<16)
		if _, err := mounts.WriteFile(t.Context(), b, "f", []byte(content)); err != nil {
			t.Fatal(err)
		}
		mounttest.Script(t, b, "put small 1 -> ok")
		if info, err := b.CopyFile(t.Context(), "small", "small2"); err != nil {
			t.Error(err)
		} else if stat, err := b.Stat(t.Context(), "small2"); err != nil || info != stat {
			t.Errorf("%s: CopyFile returned %+v\nStat says %+v, %v", which, info, stat, err)
		}
		info, err := b.CopyFile(t.Context(), "f", "g")
		if err != nil {
			t.Fatalf("%s: %v", which, err)
		}
		stat, err := b.Stat(t.Context(), "g")
		if err != nil || info != stat {
			t.Errorf("%s: CopyFile returned %+v\nStat says %+v, %v", which, info, stat, err)
		}
		if got, err := mounts.ReadFile(t.Context(), b, "g", 1<<30); err != nil || string(got) != content {
			t.Errorf("%s: the copy holds %d bytes, %v", which, len(got), err)
		}
		if err := b.Rename(t.Context(), "g", "h"); err != nil {
			t.Error(err)
		}
		if _, err := b.Hash(t.Context(), "h", "md5"); fault.KindOf(err) != fault.Unsupported {
			t.Errorf("%s: Hash of a file in parts: %v; want Unsupported", which, err)
		}
	}
}
