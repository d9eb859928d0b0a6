//go:build linux && !portable

package local_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
)

// canary is what lies outside the datasource; nobody may read, list or change it.
func canary(t *testing.T) (outside, dir string) {
	t.Helper()
	top := t.TempDir()
	outside, dir = filepath.Join(top, "outside"), filepath.Join(top, "data")
	for _, d := range []string{outside, dir, filepath.Join(outside, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"canary", "sub/canary"} {
		if err := os.WriteFile(filepath.Join(outside, f), []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{outside, filepath.Join(outside, "sub")} {
			entries, err := os.ReadDir(d)
			content, readErr := os.ReadFile(filepath.Join(d, "canary"))
			if err != nil || readErr != nil || string(content) != "canary" || len(entries) > 2 {
				t.Errorf("the outside was changed: %v, %q, %v, %v", entries, content, err, readErr)
			}
		}
	})
	return outside, dir
}

func TestSymlinksLeadNowhere(t *testing.T) {
	outside, dir := canary(t)
	for name, target := range map[string]string{
		"abs": outside, "rel": "../outside", "file": "../outside/canary", "absfile": outside + "/canary", "self": "../data", "dot": ".", "inside": "real",
		"root": "/", "proc": "/proc/self/cwd", "new": "../outside/new", "chain": "rel",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	b := open(t, dir)
	mounttest.Script(t, b, `
		mkdir real               -> ok
		put real/f x             -> ok
		cat abs/canary           -> ! is not a folder
		cat rel/canary           -> ! is not a folder
		cat rel/sub/canary       -> ! is not a folder
		cat chain/canary         -> ! is not a folder
		cat root/etc/passwd      -> ! is not a folder
		cat proc/canary          -> ! is not a folder
		cat self/real/f          -> ! is not a folder
		cat dot/real/f           -> ! is not a folder
		cat file                 -> ! permission denied
		cat absfile              -> ! permission denied
		cat ../outside/canary    -> ! invalid
		cat real/../../outside/canary -> ! invalid
		ls abs                   -> ! is not a folder
		ls rel/sub               -> ! is not a folder
		stat rel/canary          -> ! is not a folder
		put rel/new x            -> ! is not a folder
		put file x               -> ! permission denied
		put new x                -> ! permission denied
		mkdir abs/new            -> ! is not a folder
		rm rel/canary            -> ! is not a folder
		mv rel/canary stolen     -> ! is not a folder
		mv real/f abs/new        -> ! is not a folder
		cp rel/canary stolen     -> ! is not a folder
		cp file stolen           -> ! permission denied
		rm abs                   -> ok
		rm file                  -> ok
		mv rel renamed           -> ok
		stat renamed             -> link "renamed" ../outside
		cat real/f               -> "x"
	`)
}

// TestAreaIsNoLink: a link in the place of the gateway's own folder is not followed.
func TestAreaIsNoLink(t *testing.T) {
	outside, dir := canary(t)
	b := open(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, mounts.Area)); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, "put f 1 -> ok") // the stage comes back
	if info, err := os.Stat(filepath.Join(dir, mounts.Area, "stage")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the stage: %v, %v; want mode 0700", info, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, mounts.Area)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, mounts.Area)); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, `
		put f 2 -> ! unavailable
		cat f   -> "1"
	`)
}

// TestSwappedFolder swaps a folder for a link to the outside while every call is made below it, thousands of times.
func TestSwappedFolder(t *testing.T) {
	outside, dir := canary(t)
	b := open(t, dir)
	ctx := t.Context()
	mounttest.Script(t, b, `
		mkdir d           -> ok
		put d/canary mine -> ok
		mkdir d/sub       -> ok
	`)
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var swapper sync.WaitGroup
	var swaps atomic.Int64
	swapper.Go(func() {
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "d"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			swaps.Add(1)
		}
	})
	rounds := 3000
	if testing.Short() {
		rounds = 500
	}
	reached := 0
	for i := range rounds {
		if content, err := mounts.ReadFile(ctx, b, "d/canary", 100); err == nil {
			reached++
			if string(content) != "mine" {
				t.Fatalf("round %d: read %q", i, content)
			}
		}
		mounts.WriteFile(ctx, b, "d/canary", []byte("mine"))
		mounts.WriteFile(ctx, b, "d/sub/x", []byte("mine"))
		b.Mkdir(ctx, "d/made")
		b.Rename(ctx, "d/canary", "d/moved")
		b.Rename(ctx, "d/moved", "d/canary")
		b.Remove(ctx, "d/made")
		for info, err := range b.List(ctx, "d") {
			if err == nil && info.Name != "sub" && info.Name != "canary" && info.Name != "made" && info.Name != "moved" {
				t.Fatalf("round %d: listed %q", i, info.Name)
			}
		}
	}
	stop.Store(true)
	swapper.Wait()
	if reached == 0 || reached == rounds || swaps.Load() < 100 {
		t.Errorf("the race was not run: %d of %d reads, %d swaps", reached, rounds, swaps.Load())
	}
	if _, err := os.Stat(filepath.Join(outside, "made")); err == nil {
		t.Error("a folder was made outside")
	}
}

// TestSpecialFiles: pipes and sockets are listed as Other and never hang a call.
func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o666, 0); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	done := make(chan struct{})
	go func() {
		defer close(done)
		mounttest.Script(t, b, `
			ls .         -> fifo socket
			stat fifo    -> other "fifo"
			cat fifo     -> ! permission denied
			cat socket   -> ! permission denied
			put fifo x   -> ! permission denied
			put socket x -> ! permission denied
			cp fifo x    -> ! permission denied
			ls fifo      -> ! is not a folder
		`)
		for _, name := range []string{"fifo", "socket"} {
			ra, _ := mounts.As[mounts.RandomAccess](b)
			for _, flag := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE | os.O_TRUNC} {
				if _, err := ra.OpenFile(t.Context(), name, flag, 0o600); fault.KindOf(err) != fault.Denied {
					t.Errorf("OpenFile(%s, %#x): %v; want Denied", name, flag, err)
				}
			}
			x, _ := mounts.As[mounts.Xattrer](b)
			if err := x.SetXattr(t.Context(), name, "a", nil); fault.KindOf(err) != fault.Denied {
				t.Errorf("SetXattr(%s): %v; want Denied", name, err)
			}
		}
		mounttest.Script(t, b, `
			mv fifo f2   -> ok
			rm f2        -> ok
			rm socket    -> ok
		`)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a call hangs")
	}
}

// TestModes: new nodes have their modes whatever the umask, replaced files keep theirs, and a set-group-ID folder gives its group.
func TestModes(t *testing.T) {
	dir := t.TempDir()
	old := unix.Umask(0o077)
	b := open(t, dir, "fileMode", "0664", "dirMode", "0775")
	mounttest.Script(t, b, `
		put f 1 -> ok
		mkdir d -> ok
	`)
	unix.Umask(old)
	mode := func(name string) os.FileMode {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if mode("f") != 0o664 || mode("d") != os.ModeDir|0o775 {
		t.Errorf("modes %v and %v; want 0664 and 0775", mode("f"), mode("d"))
	}
	if err := os.Chmod(filepath.Join(dir, "f"), 0o604); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, "put f 2 -> ok")
	if mode("f") != 0o604 {
		t.Errorf("mode %v after a replace; want 0604", mode("f"))
	}
	if os.Getuid() != 0 {
		return
	}
	for name, owner := range map[string]int{"f": 1234, "d": 4321} {
		if err := os.Chown(filepath.Join(dir, name), owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "d"), os.ModeSetgid|0o775); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, `
		put f 3   -> ok
		put d/g 1 -> ok
		mkdir d/e -> ok
	`)
	for name, want := range map[string][2]uint32{"f": {1234, 1234}, "d/g": {0, 4321}, "d/e": {0, 4321}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d, %v; want %v", name, st.Uid, st.Gid, err, want)
		}
	}
	if mode("d/e")&os.ModeSetgid == 0 {
		t.Error("a folder below a set-group-ID folder is none itself")
	}
}

// tmpfs mounts a small memory file system on a new folder in dir, or skips the test.
func tmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting a file system needs root and CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestFull fills a disk of 1 MiB with bytes, and one with names: the old stays, nothing is left, and it recovers.
func TestFull(t *testing.T) {
	for name, options := range map[string]string{"bytes": "size=1m", "inodes": "size=8m,nr_inodes=24"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "disk")
			tmpfs(t, dir, options)
			b := open(t, dir)
			ctx := t.Context()
			mounttest.Script(t, b, "put f old -> ok")
			var err error
			made := 0
			for ; err == nil && made < 100; made++ {
				_, err = mounts.WriteFile(ctx, b, "x"+strings.Repeat("x", made), make([]byte, 100<<10))
			}
			if fault.KindOf(err) != fault.NoSpace {
				t.Fatalf("Put on a full disk: %v; want NoSpace", err)
			}
			for range 3 {
				if _, err := b.Put(ctx, "f", bytes.NewReader(make([]byte, 2<<20)), mounts.PutOptions{Size: 2 << 20}); fault.KindOf(err) != fault.NoSpace && name == "bytes" {
					t.Fatalf("Put over the old on a full disk: %v; want NoSpace", err)
				} else if err == nil {
					break
				}
			}
			if name == "bytes" {
				mounttest.Script(t, b, `cat f -> "old"`)
			}
			if left := staged(t, dir); len(left) > 0 {
				t.Errorf("left in the stage: %v", left)
			}
			for i := range made - 1 {
				if err := b.Remove(ctx, "x"+strings.Repeat("x", i)); err != nil {
					t.Fatalf("Remove on a full disk: %v", err)
				}
			}
			mounttest.Script(t, b, `
				put g new -> ok
				cat g     -> "new"
			`)
		})
	}
}

// staged returns the files in the stages of dir.
func staged(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, mounts.Area, "stage", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestNestedMount: below another file system, or the same one bound elsewhere, everything works but moving between the two.
func TestNestedMount(t *testing.T) {
	for _, kind := range []string{"tmpfs", "bind"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			nested := filepath.Join(dir, "a", "nested")
			tmpfs(t, nested, "size=4m")
			if kind == "bind" {
				inner := filepath.Join(dir, "bound")
				if err := os.Mkdir(inner, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount(inner, nested, "", unix.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Unmount(nested, unix.MNT_DETACH) })
			}
			b := open(t, dir)
			mounttest.Script(t, b, `
				put a/nested/f hello     -> ok
				put a/nested/f again     -> ok
				cat a/nested/f           -> "again"
				new a/nested/f x         -> ! already exists
				mkdir a/nested/d         -> ok
				put a/nested/d/f 1       -> ok
				mv a/nested/f a/nested/d/g -> ok
				put f 1                  -> ok
				mv f a/nested/f          -> ! not supported
				mv a/nested/d d          -> ! not supported
				cat f                    -> "1"
				cat a/nested/d/g         -> "again"
				cp f a/nested/f          -> ok
				cat a/nested/f           -> "1"
				rm a/nested              -> ! busy
			`)
			if _, err := os.Stat(filepath.Join(nested, mounts.Area, "stage")); err != nil {
				t.Errorf("no Area of the nested file system: %v", err)
			}
			if _, err := os.Stat(filepath.Join(nested, "d", mounts.Area)); err == nil {
				t.Error("an Area below the top of the nested file system")
			}
			b.Close()
		})
	}
}

// TestDeadStage: what a killed process left in its stage goes when the datasource is opened again; while one lives, nobody else opens it.
func TestDeadStage(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, mounts.Area, "stage", "put-dead")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := open(t, dir)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead stage is still there: %v", err)
	}
	r, w := io.Pipe()
	result := make(chan error)
	go func() { _, err := one.Put(context.Background(), "f", r, mounts.PutOptions{Size: 10}); result <- err }()
	if _, err := w.Write([]byte("01234")); err != nil {
		t.Fatal(err)
	}
	if _, err := openErr(t, dir); fault.KindOf(err) != fault.Busy {
		t.Errorf("a second process opened the datasource: %v", err)
	}
	w.Write([]byte("56789"))
	w.Close()
	if err := <-result; err != nil {
		t.Errorf("Put while another process tried to open the datasource: %v", err)
	}
	mounttest.Script(t, one, `cat f -> "0123456789"`)
	one.Close()
	if left, _ := filepath.Glob(filepath.Join(dir, mounts.Area, "stage", "*")); len(left) > 0 {
		t.Errorf("Close left %v", left)
	}
}

// TestHardLinkOutside: a hard link to a file outside is a file as any; replacing it does not write into the other name.
func TestHardLinkOutside(t *testing.T) {
	outside, dir := canary(t)
	if err := os.Link(filepath.Join(outside, "canary"), filepath.Join(dir, "f")); err != nil {
		t.Skip(err)
	}
	b := open(t, dir)
	mounttest.Script(t, b, "put f mine -> ok")
}

func TestDenied(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	tmpfs(t, dir, "size=1m")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := openErr(t, dir)
	if fault.KindOf(err) != fault.Denied || err == nil {
		t.Errorf("opening a folder that cannot be written: %v; want Denied", err)
	}
}
