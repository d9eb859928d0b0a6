package sftp

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// houses are the kinds of datasources the tests of files run on.
func houses(t *testing.T, test func(t *testing.T, b *box)) {
	for name, hc := range map[string]func(t testing.TB) gatewaytest.Config{
		"mem":   func(testing.TB) gatewaytest.Config { return gatewaytest.Config{} },
		"local": onDisk,
		"far": func(testing.TB) gatewaytest.Config {
			return gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)}}
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, hc(t), Config{})) })
	}
}

// TestOpenModes goes through the ways to open a file, as os.OpenFile has them.
func TestOpenModes(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		c := b.client("alice")
		for _, test := range []struct {
			name string
			flag int
			old  string // content before, "-" for no file
			want string // after writing "new", "!" when opening fails
		}{
			{"truncate", os.O_WRONLY | os.O_CREATE | os.O_TRUNC, "old content", "new"},
			{"truncate, none", os.O_WRONLY | os.O_CREATE | os.O_TRUNC, "-", "new"},
			{"create", os.O_WRONLY | os.O_CREATE, "old content", "new content"},
			{"create, none", os.O_WRONLY | os.O_CREATE, "-", "new"},
			{"write", os.O_WRONLY, "old content", "new content"},
			{"write, none", os.O_WRONLY, "-", "!"},
			{"write and truncate", os.O_WRONLY | os.O_TRUNC, "old content", "new"},
			{"exclusive", os.O_WRONLY | os.O_CREATE | os.O_EXCL, "old content", "!"},
			{"exclusive, none", os.O_WRONLY | os.O_CREATE | os.O_EXCL, "-", "new"},
			{"append", os.O_WRONLY | os.O_APPEND, "old content", "old contentnew"},
			{"append, none", os.O_WRONLY | os.O_APPEND | os.O_CREATE, "-", "new"},
			{"both", os.O_RDWR, "old content", "new content"},
			{"both, none", os.O_RDWR | os.O_CREATE, "-", "new"},
			{"both, truncate", os.O_RDWR | os.O_CREATE | os.O_TRUNC, "old content", "new"},
			{"both, exclusive", os.O_RDWR | os.O_CREATE | os.O_EXCL, "-", "new"},
			{"read", os.O_RDONLY, "old content", "! permission"},
		} {
			name := "/docs/" + strings.ReplaceAll(test.name, " ", "_")
			if test.old != "-" {
				b.write("alice", name, test.old)
			}
			f, err := c.OpenFile(name, test.flag)
			if err != nil {
				if test.want != "!" {
					t.Errorf("%s: %v", test.name, err)
				}
				continue
			}
			_, err = f.Write([]byte("new"))
			if strings.HasPrefix(test.want, "!") {
				if err == nil {
					t.Errorf("%s: written", test.name)
				}
				f.Close()
				continue
			}
			i, serr := f.Stat()
			if err = errors.Join(err, serr, f.Close()); err != nil || i.Size() != int64(len(test.want)) {
				t.Errorf("%s: size %d, %v", test.name, i.Size(), err)
			}
			if got := b.content("bob", name); got != test.want {
				t.Errorf("%s: bob reads %q, want %q", test.name, got, test.want)
			}
		}
	})
}

// TestUpload: what is sent is there for others when the close is answered, and not before, whatever its size and however it is cut.
func TestUpload(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		for _, size := range []int{0, 1, 32 << 10, 255 << 10, 1<<20 + 7} {
			for _, opts := range [][]sftp.ClientOption{nil, {sftp.UseConcurrentWrites(true)}, {sftp.MaxPacketUnchecked(255 << 10), sftp.UseConcurrentWrites(true)}} {
				c := b.client("alice", opts...)
				content := random(size)
				f, err := c.Create("/docs/f")
				if err != nil {
					t.Fatal(err)
				}
				if n, err := f.ReadFromWithConcurrency(bytes.NewReader(content), 16); int(n) != size || err != nil {
					t.Fatal(n, err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				if got := b.content("bob", "/docs/f"); got != string(content) {
					t.Fatalf("%d bytes of %d are there", len(got), size)
				}
				r, err := c.Open("/docs/f")
				if err != nil {
					t.Fatal(err)
				}
				var back bytes.Buffer
				if _, err := r.WriteTo(&back); err != nil || !bytes.Equal(back.Bytes(), content) {
					t.Fatalf("read %d bytes of %d, %v", back.Len(), size, err)
				}
				if err := errors.Join(r.Close(), c.Remove("/docs/f"), c.Close()); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestOrder: writes of clients that stream may come out of order, by little and by much.
func TestOrder(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		content := random(2 << 20)
		const chunk = 32 << 10
		for name, order := range map[string]func([]int){
			"pairs": func(o []int) {
				for i := 0; i+1 < len(o); i += 2 {
					o[i], o[i+1] = o[i+1], o[i]
				}
			},
			"eights": func(o []int) {
				for i := 0; i+8 <= len(o); i += 8 {
					slices.Reverse(o[i : i+8])
				}
			},
			"reverse": func(o []int) { slices.Reverse(o) },
		} {
			w := b.wire("alice")
			w.ask(typeExtended, "limits@openssh.com") // one who streams
			h := w.open("/docs/"+name, openWrite|openCreate|openTrunc)
			o := make([]int, len(content)/chunk)
			for i := range o {
				o[i] = i
			}
			order(o)
			for _, i := range o {
				if code := w.write(h, int64(i*chunk), content[i*chunk:(i+1)*chunk]); code != statusOK {
					t.Fatalf("%s: chunk %d: status %d", name, i, code)
				}
			}
			if got := b.content("bob", "/docs/"+name); !strings.HasPrefix(got, "! ") {
				t.Errorf("%s: %d bytes are there before the close", name, len(got))
			}
			if code := w.closeHandle(h); code != statusOK {
				t.Fatalf("%s: close: status %d", name, code)
			}
			if got := b.content("bob", "/docs/"+name); got != string(content) {
				t.Errorf("%s: %d bytes are there, or other ones", name, len(got))
			}
		}
	})
}

// TestBackwards: on a datasource across a network what has been sent there cannot be taken back, and whoever tries hears of it at the latest
// from the close. Nothing is published.
func TestBackwards(t *testing.T) {
	far := gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	b := start(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": far}}, Config{})
	w := b.wire("alice")
	w.ask(typeExtended, "limits@openssh.com")
	h := w.open("/docs/f", openWrite|openCreate|openTrunc)
	for off := range int64(16) {
		if code := w.write(h, off*(64<<10), random(64<<10)); code != statusOK {
			t.Fatal(code)
		}
	}
	if code := w.write(h, 0, []byte("again")); code != statusUnsupported {
		t.Errorf("a write to the start: status %d", code)
	}
	if code := w.closeHandle(h); code == statusOK {
		t.Error("the close says that all is well")
	}
	if got := b.content("bob", "/docs/f"); !strings.HasPrefix(got, "! ") {
		t.Error("it is there")
	}
}

// TestTree: folders, names, renames, links.
func TestTree(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	c := b.client("alice")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	fails := func(err error) {
		t.Helper()
		if err == nil {
			t.Error("it works")
		}
	}
	b.write("alice", "/docs/a", "a")
	b.write("alice", "/docs/b", "b")
	ok(c.Mkdir("/docs/d"))
	fails(c.Mkdir("/docs/d"))
	fails(c.Mkdir("/docs/a"))
	fails(c.Rename("/docs/a", "/docs/b"))
	ok(c.PosixRename("/docs/a", "/docs/b"))
	if got := b.content("bob", "/docs/b"); got != "a" {
		t.Errorf("read %q", got)
	}
	fails(c.PosixRename("/docs/b", "/docs/d"))
	fails(c.PosixRename("/docs/d", "/docs/b"))
	fails(c.Remove("/docs/missing"))
	fails(c.RemoveDirectory("/docs/b"))
	w := b.wire("alice")
	if code := w.status(typeRemove, "/docs/d"); code != statusFailure {
		t.Errorf("remove of a folder: status %d", code)
	}
	ok(c.Mkdir("/docs/e"))
	ok(c.PosixRename("/docs/d", "/docs/e"))
	b.write("alice", "/docs/e/f", "f")
	ok(c.Mkdir("/docs/d"))
	fails(c.PosixRename("/docs/d", "/docs/e"))
	if got := b.content("bob", "/docs/e/f"); got != "f" {
		t.Errorf("a folder that was to be replaced: %q", got)
	}
	fails(c.RemoveDirectory("/docs/e"))
	ok(c.Symlink("/docs/e/f", "/docs/d/link"))
	if target, err := c.ReadLink("/docs/d/link"); err != nil || target != "../e/f" {
		t.Errorf("the link says %q, %v", target, err)
	}
	ok(c.Symlink("/etc/passwd", "/docs/d/out"))
	if target, err := c.ReadLink("/docs/d/out"); err != nil || target != "/etc/passwd" {
		t.Errorf("the link says %q, %v", target, err)
	}
	if f, err := c.Open("/docs/d/out"); err == nil {
		f.Close()
		t.Error("a link leads out")
	}
	ok(c.Symlink("missing", "/docs/d/dangling"))
	if i, err := c.Lstat("/docs/d/dangling"); err != nil || i.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("%v, %v", i, err)
	}
	if _, err := c.Stat("/docs/d/dangling"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of a link that leads nowhere: %v", err)
	}
	if i, err := c.Stat("/docs/d/link"); err != nil || !i.Mode().IsRegular() || i.Size() != 1 {
		t.Errorf("%v, %v", i, err)
	}
	if _, err := c.ReadLink("/docs/e/f"); err == nil {
		t.Error("a file says where it leads")
	}
	ok(c.Link("/docs/e/f", "/docs/hard"))
	ok(c.Chtimes("/docs/hard", time.Unix(1e9, 0), time.Unix(1e9+1, 0)))
	ok(c.Chmod("/docs/hard", 0o640))
	ok(c.Chown("/docs/hard", 5, 6))
	ok(c.Truncate("/docs/b", 3))
	if i, err := c.Stat("/docs/e/f"); err != nil || i.ModTime().Unix() != 1e9+1 || i.Mode() != 0o640 {
		t.Errorf("%v %v, %v", i.ModTime(), i.Mode(), err)
	}
	if got := b.content("bob", "/docs/b"); got != "a\x00\x00" {
		t.Errorf("truncated to %q", got)
	}
	ok(c.Chtimes("/docs/d", time.Unix(1e9, 0), time.Unix(1e9+2, 0)))
	if i, err := c.Stat("/docs/d"); err != nil || i.ModTime().Unix() != 1e9+2 {
		t.Errorf("the folder's time is %v, %v", i.ModTime(), err)
	}
	for _, name := range []string{`back\slash`, "*?[x]", "ünï cödé", "-rf", "%2e%2e", "a;b", strings.Repeat("n", 255)} {
		f, err := c.Create("/docs/e/" + name)
		ok(err)
		ok(f.Close())
		_, err = c.Lstat("/docs/e/" + name)
		ok(err)
	}
	for _, name := range []string{"new\nline", strings.Repeat("n", 256), "\xff", ".cellgate"} {
		f, err := c.Create("/docs/e/" + name)
		if err == nil {
			err = f.Close()
		}
		fails(err)
	}
	if list, err := c.ReadDir("/docs/e"); err != nil || len(list) != 8 {
		t.Errorf("%d entries, %v", len(list), err)
	}
	if s, err := c.StatVFS("/docs"); err != nil || s.Blocks == 0 || s.Namemax != 255 {
		t.Errorf("%+v, %v", s, err)
	}
	for raw, want := range map[string]string{".": "/", "": "/", "docs/../homes": "/homes", "/docs//e/./": "/docs/e", "/../..": "/"} {
		if got, err := c.RealPath(raw); err != nil || got != want {
			t.Errorf("realpath of %q is %q, %v", raw, got, err)
		}
	}
}

// TestListing: a folder of more entries than an answer holds, in memory that does not grow with it.
func TestListing(t *testing.T) {
	disk := mem.New(mem.Config{})
	b := start(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}}, Config{})
	if err := disk.Mkdir(t.Context(), "docs/many"); err != nil {
		t.Fatal(err)
	}
	const n = 10_000
	for i := range n {
		name := path.Join("docs/many", strings.Repeat("x", i%200)+string(rune('a'+i%26))+time.Duration(i).String())
		if _, err := disk.Put(t.Context(), name, strings.NewReader(""), mounts.PutOptions{Size: -1}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := b.client("alice").ReadDir("/docs/many")
	if err != nil || len(list) != n {
		t.Errorf("%d entries, %v", len(list), err)
	}
	w := b.wire("alice")
	h := w.handle(typeOpendir, reply(nil).str("/docs/many"))
	names, most := 0, 0
	for {
		typ, in := w.exchange(typeReaddir, reply(nil).str(h))
		most = max(most, len(in.b))
		if typ != typeName {
			break
		}
		names += int(in.u32())
	}
	if names != n+2 || most > 32<<10 {
		t.Errorf("%d names, in answers of up to %d bytes", names, most)
	}
}

// TestOwnWriter: a file that is being written is there for its writer, whatever is done to it by name.
func TestOwnWriter(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		for _, streams := range []bool{false, true} {
			w := b.wire("alice")
			if streams {
				w.ask(typeExtended, "limits@openssh.com")
			}
			h := w.open("/docs/f", openWrite|openCreate|openTrunc)
			w.must(w.write(h, 0, []byte("hello")))
			typ, in := w.exchange(typeLstat, reply(nil).str("/docs/f"))
			if a := in.attrs(); typ != typeAttrs || a.size != 5 {
				t.Errorf("lstat: %d, %+v", typ, a)
			}
			if typ, _ := b.wire("alice").exchange(typeLstat, reply(nil).str("/docs/f")); typ != typeStatus {
				t.Error("another session sees it")
			}
			if code := w.statusOf(typeOpen, reply(nil).str("/docs/f").u32(openWrite|openCreate|openExcl).u32(0)); code != statusFailure {
				t.Errorf("made exclusively once more: status %d", code)
			}
			w.must(w.statusOf(typeSetstat, reply(nil).str("/docs/f").u32(hasTimes).u32(1e9).u32(1e9)))
			// It is renamed while it is written, and goes on under its new name.
			w.must(w.status(typeRename, "/docs/f", "/docs/g"))
			w.must(w.write(h, 5, []byte(" world")))
			w.must(w.closeHandle(h))
			if got := b.content("bob", "/docs/g"); got != "hello world" {
				t.Errorf("renamed while written: %q", got)
			}
			if got := b.content("bob", "/docs/f"); !strings.HasPrefix(got, "! ") {
				t.Errorf("under its old name: %q", got)
			}
			// It is removed while it is written, and does not come back.
			h = w.open("/docs/g", openWrite|openCreate|openTrunc)
			w.must(w.write(h, 0, []byte("more")))
			w.must(w.status(typeRemove, "/docs/g"))
			w.must(w.write(h, 4, []byte("more")))
			w.must(w.closeHandle(h))
			if got := b.content("bob", "/docs/g"); !strings.HasPrefix(got, "! ") {
				t.Errorf("removed while written: %q", got)
			}
			// A sync publishes, and the handle goes on.
			h = w.open("/docs/h", openWrite|openCreate|openTrunc)
			w.must(w.write(h, 0, []byte("one")))
			w.must(w.statusOf(typeExtended, reply(nil).str("fsync@openssh.com").str(h)))
			if got := b.content("bob", "/docs/h"); got != "one" {
				t.Errorf("after fsync: %q", got)
			}
			w.must(w.write(h, 3, []byte(" two")))
			w.must(w.closeHandle(h))
			if got := b.content("bob", "/docs/h"); got != "one two" {
				t.Errorf("after fsync and more: %q", got)
			}
			w.must(w.status(typeRemove, "/docs/h"))
			// Emptied again, and cut.
			h = w.open("/docs/f", openWrite|openCreate|openTrunc)
			w.must(w.write(h, 0, []byte("hello")))
			w.must(w.statusOf(typeFsetstat, reply(nil).str(h).u32(hasSize).u64(0)))
			w.must(w.write(h, 0, []byte("hi")))
			w.must(w.closeHandle(h))
			if got := b.content("bob", "/docs/f"); got != "hi" {
				t.Errorf("emptied while written: %q", got)
			}
			w.must(w.status(typeRemove, "/docs/f"))
		}
	})
}

// TestCopyData copies between open files, whole and in part.
func TestCopyData(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		content := random(300 << 10)
		b.write("alice", "/docs/a", string(content))
		w := b.wire("alice")
		src, dst := w.open("/docs/a", openRead), w.open("/docs/b", openWrite|openCreate|openTrunc)
		w.must(w.statusOf(typeExtended, reply(nil).str("copy-data").str(src).u64(100).u64(1000).str(dst).u64(0)))
		w.must(w.statusOf(typeExtended, reply(nil).str("copy-data").str(src).u64(200).u64(0).str(dst).u64(1000)))
		if code := w.statusOf(typeExtended, reply(nil).str("copy-data").str(dst).u64(0).u64(0).str(dst).u64(0)); code == statusOK {
			t.Error("a file is copied onto itself")
		}
		w.must(w.closeHandle(dst))
		w.must(w.closeHandle(src))
		if got, want := b.content("bob", "/docs/b"), string(content[100:1100])+string(content[200:]); got != want {
			t.Errorf("%d bytes, want %d, or other ones", len(got), len(want))
		}
	})
}

// TestLocked: somebody else's lock binds; one's own does not, since SFTP cannot show it.
func TestLocked(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	b.write("alice", "/docs/f", "old")
	lock, _, err := b.As("bob").Lock(t.Context(), gatewaytest.Path("/docs/f"), gateway.LockRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w := b.wire("alice")
	if code := w.statusOf(typeOpen, reply(nil).str("/docs/f").u32(openWrite|openTrunc|openCreate).u32(0)); code != statusDenied {
		t.Errorf("writing: status %d", code)
	}
	if code := w.status(typeRemove, "/docs/f"); code != statusDenied {
		t.Errorf("removing: status %d", code)
	}
	if code := w.status(typeRename, "/docs/f", "/docs/g"); code != statusDenied {
		t.Errorf("renaming: status %d", code)
	}
	if code := b.wire("bob").status(typeRename, "/docs/f", "/docs/g"); code != statusOK {
		t.Errorf("its owner's renaming: status %d", code)
	}
	_ = lock
	// One that is locked while it is written is not published.
	b.write("alice", "/docs/x", "old")
	h := w.open("/docs/x", openWrite|openTrunc|openCreate)
	w.must(w.write(h, 0, []byte("new")))
	if _, _, err := b.As("bob").Lock(t.Context(), gatewaytest.Path("/docs/x"), gateway.LockRequest{}); err != nil {
		t.Fatal(err)
	}
	if code := w.closeHandle(h); code != statusDenied {
		t.Errorf("close: status %d", code)
	}
	if got := b.content("bob", "/docs/x"); got != "old" {
		t.Errorf("it is %q", got)
	}
}

// TestRights: who may not is told so, and of what nobody may know it is said that it does not exist (RELIABILITY A05).
func TestRights(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	b.write("alice", "/docs/f", "secret")
	c := b.client("guest")
	for _, name := range []string{"/docs/f", "docs/f", "//docs/f", "/docs/./f", "/docs/f/", "/homes/../docs/f", "/docs/%66", "/docs\\f", "/DOCS/f"} {
		if _, err := c.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of %q: %v", name, err)
		}
		if f, err := c.Open(name); err == nil {
			got, _ := io.ReadAll(f)
			t.Errorf("%q reads %q", name, got)
		}
	}
	if list, err := c.ReadDir("/"); err != nil || len(list) != 1 || list[0].Name() != "homes" {
		t.Errorf("%v, %v", list, err)
	}
	if err := c.Mkdir("/new"); err == nil {
		t.Error("a folder beside the workspaces")
	}
	if err := c.RemoveDirectory("/homes"); err == nil {
		t.Error("a workspace is removed")
	}
	d := b.client("bob")
	if f, err := d.Create("/drop/x"); err != nil {
		t.Error(err)
	} else if _, err := f.Write([]byte("x")); err != nil || f.Close() != nil {
		t.Error("a letter cannot be dropped")
	}
	if _, err := d.Open("/drop/x"); err == nil {
		t.Error("a letter can be read")
	}
}
