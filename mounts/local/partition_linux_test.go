//go:build linux && !portable

package local

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
)

func TestMountsBelow(t *testing.T) {
	line := func(id, parent int, point string) string {
		return fmt.Sprintf("%d %d 0:44 / %s rw,relatime shared:5 - tmpfs tmpfs rw\n", id, parent, point)
	}
	const root = 20
	top := line(1, 0, "/") + line(root, 1, "/data")
	for _, test := range []struct {
		name, path, info string
		want             []string
	}{
		{"none", "/data", top + line(30, root, "/data2") + line(31, 1, "/dat"), nil},
		{"some", "/data", top + line(30, root, "/data/a") + line(31, 30, "/data/a/b/c") + line(32, root, "/data/ab"), []string{"a/b/c", "ab", "a"}},
		{"escapes", "/data", top + line(30, root, `/data/a\040b\134\011\012`), []string{"a b\\\t\n"}},
		{"twice on one point", "/data", top + line(31, 30, "/data/a") + line(30, root, "/data/a"), []string{"a"}},
		{"hidden by one above", "/data", top + line(30, root, "/data/a/b") + line(31, root, "/data/a") + line(32, 30, "/data/a/b/c"), []string{"a"}},
		{"again below what hides", "/data", top + line(30, root, "/data/a/b") + line(31, root, "/data/a") + line(32, 31, "/data/a/b"), []string{"a/b", "a"}},
		{"the folder itself is covered", "/data", top + line(30, root, "/data") + line(31, 30, "/data/a"), nil},
		{"mount not told", "/data", line(1, 0, "/") + line(30, 1, "/data/a") + line(31, 30, "/data/a/b"), []string{"a/b", "a"}},
		{"whole system", "/", line(root, 0, "/") + line(30, root, "/proc") + line(31, 30, "/proc/x"), []string{"proc/x", "proc"}},
		{"rubbish", "/data", "\n1 2\nx y z w /data/a b\n" + top, nil},
	} {
		if got := mountsBelow(test.info, test.path, root); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestPartitions: each file system mounted within has an Area, which works as that of the root and holds nothing fast.
func TestPartitions(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "data")
	for _, d := range []string{"a/mnt", "a/bound", "source", "docs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("data", filepath.Join(top, "link")); err != nil { // mounts are told by real paths
		t.Fatal(err)
	}
	b, err := open(t.Context(), settings{path: filepath.Join(top, "link"), fileMode: 0o640, dirMode: 0o750, unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mount := func(source, point, kind string, flags uintptr) {
		t.Helper()
		point = filepath.Join(dir, point)
		if err := unix.Mount(source, point, kind, flags, ""); err != nil {
			t.Skipf("mounting needs root and CAP_SYS_ADMIN: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	}
	mount("tmpfs", "a/mnt", "tmpfs", 0)
	mount(filepath.Join(dir, "source"), "a/bound", "", unix.MS_BIND)
	for _, d := range []string{"a/mnt/deep er", "a/mnt/caf\xe9"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		mount("tmpfs", d, "tmpfs", 0)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mount("/proc/version", "file", "", unix.MS_BIND)

	want := []string{".cellgate", "a/mnt/deep er/.cellgate", "a/bound/.cellgate", "a/mnt/.cellgate"}
	if got := b.Areas(); !slices.Equal(got, want) {
		t.Errorf("Areas() = %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		".": ".cellgate", "f": ".cellgate", "a/mnt": ".cellgate", "a/mntx/f": ".cellgate", "a/mnt/f": "a/mnt/.cellgate", "a/mnt/x/y/z": "a/mnt/.cellgate",
		"a/mnt/deep er": "a/mnt/.cellgate", "a/mnt/deep er/f": "a/mnt/deep er/.cellgate", "a/bound/f": "a/bound/.cellgate", "source/f": ".cellgate",
	} {
		if got := b.Area(name); got != want {
			t.Errorf("Area(%s) = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"docs/f", "a/mnt/f", "a/bound/f", "a/mnt/deep er/f"} {
		area := b.Area(name)
		for _, folder := range []string{area, area + "/tmp", area + "/old"} {
			if err := b.Mkdir(t.Context(), folder); err != nil && fault.KindOf(err) != fault.Exist {
				t.Fatal(err)
			}
		}
		f, err := b.OpenFile(t.Context(), area+"/tmp/1", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		area, name = fmt.Sprintf("%q", area+"/tmp/1"), fmt.Sprintf("%q", name)
		old := strings.Replace(area, "tmp/1", "old/1", 1)
		mounttest.Script(t, b, "mv "+area+" "+name+" -> ok\n mv "+name+" "+old+" -> ok\n rm "+old+" -> ok")
	}
	mounttest.Script(t, b, `
		put f 1                    -> ok
		mv f a/mnt/.cellgate/tmp/f -> ! not supported
		mv f a/bound/.cellgate/f   -> ! not supported
	`)
	if len(b.kept) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(b.kept)), func(dir string) bool { return !mounts.Below(dir, mounts.Area) }) {
		t.Errorf("kept descriptors: %v; want those of the root's Area", b.kept)
	}
	for _, d := range []string{"a/mnt/deep er", "a/mnt/caf\xe9", "a/mnt", "a/bound"} {
		if err := unix.Unmount(filepath.Join(dir, d), 0); err != nil {
			t.Errorf("unmounting %s: %v", d, err)
		}
	}
	if got := b.Areas(); !slices.Equal(got, []string{".cellgate"}) {
		t.Errorf("Areas() = %q after all was unmounted", got)
	}
	if got := b.Area("a/mnt/f"); got != ".cellgate" {
		t.Errorf("Area(a/mnt/f) = %q after all was unmounted", got)
	}
	mount("tmpfs", "a/mnt", "tmpfs", 0) // Area notices it without being asked for all
	b.parts.Store(&partitions{read: time.Now().Add(-partitionsLast)})
	if got := b.Area("a/mnt/f"); got != "a/mnt/.cellgate" {
		t.Errorf("Area(a/mnt/f) = %q after another mount", got)
	}
}

// TestMountedArea: of a file system mounted within the Area nothing is kept open, and it is no partition of the users'.
func TestMountedArea(t *testing.T) {
	dir := t.TempDir()
	b, err := open(t.Context(), settings{path: dir, fileMode: 0o640, dirMode: 0o750, unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mounttest.Script(t, b, "mkdir .cellgate/old -> ok")
	point := filepath.Join(dir, mounts.Area, "old")
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, ""); err != nil {
		t.Skipf("mounting needs root and CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	mounttest.Script(t, b, `
		mkdir .cellgate/old/d -> ok
		stat .cellgate/old/d  -> dir "d"
	`)
	if got := b.Areas(); !slices.Equal(got, []string{".cellgate"}) {
		t.Errorf("Areas() = %q", got)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Error(err)
	}
}

func BenchmarkArea(b *testing.B) {
	m, err := open(b.Context(), settings{path: b.TempDir(), fileMode: 0o640, dirMode: 0o750, unsynced: true})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	b.ReportAllocs()
	for b.Loop() {
		m.Area("some/folder/with/a/file")
	}
}
