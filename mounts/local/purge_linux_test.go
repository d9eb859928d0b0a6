//go:build linux && !portable

package local_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
)

// dig makes a chain of folders in dir, deeper than a path can be, and a file at the end.
func dig(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for i := 0; i < depth && err == nil; i++ {
		if err = unix.Mkdirat(at, "d", 0o755); err == nil {
			var next int
			next, err = unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			unix.Close(at)
			at = next
		}
	}
	if err == nil {
		err = unix.Mknodat(at, "end", unix.S_IFREG|0o600, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(at)
}

// TestPurgeNames: names that nobody can say through the gateway go with their folder, and so does whatever has them.
func TestPurgeNames(t *testing.T) {
	outside, dir := canary(t)
	b := open(t, dir)
	for _, name := range []string{"a\nb", "caf\xe9", "\x1b[2J", "\u2028", " ", "-rf", ".cellgate", strings.Repeat("\xff", 255), "plain"} {
		sub := filepath.Join(dir, "d", name)
		if err := os.MkdirAll(filepath.Join(sub, name), 0o755); err != nil {
			t.Fatal(err)
		}
		err := errors.Join(
			os.WriteFile(filepath.Join(sub, "f"+name[:1]), nil, 0o400), os.Symlink(outside, filepath.Join(sub, "out")), os.Symlink(".", filepath.Join(sub, "loop")),
			unix.Mkfifo(filepath.Join(sub, "fifo"), 0o600), os.Link(filepath.Join(outside, "canary"), filepath.Join(sub, "hard")),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := mounts.Purge(t.Context(), b, "d"); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, "ls . ->")
}

// TestPurgeDeep: chains of folders, one of 10,000, cost few descriptors.
func TestPurgeDeep(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for top, depth := range map[string]int{"d": 10_000, "d/side": 500, "d/side/b": 70} {
		if err := os.MkdirAll(filepath.Join(dir, top), 0o755); err != nil {
			t.Fatal(err)
		}
		dig(t, filepath.Join(dir, top), depth)
	}
	var most, stop atomic.Int64
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for stop.Load() == 0 {
			open, _ := os.ReadDir("/proc/self/fd")
			most.Store(max(most.Load(), int64(len(open))))
			time.Sleep(time.Millisecond)
		}
	})
	err := mounts.Purge(t.Context(), b, "d")
	stop.Store(1)
	watcher.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if most.Load() > 150 {
		t.Errorf("%d descriptors were open", most.Load())
	}
	mounttest.Script(t, b, "ls . ->")
}

// TestPurgeMounts: what is mounted below is Busy and untouched, at every depth; unmounted, the rest goes.
func TestPurgeMounts(t *testing.T) {
	outside, dir := canary(t)
	b := open(t, dir)
	for _, deep := range []string{"mnt", strings.Repeat("x/", 100) + "mnt", "caf\xe9/mnt"} {
		point := filepath.Join(dir, "d", deep)
		if err := os.MkdirAll(point, 0o755); err != nil {
			t.Fatal(err)
		}
		mounttest.Script(t, b, "put d/f 1 -> ok")
		if err := unix.Mount(outside, point, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("mounting needs root and CAP_SYS_ADMIN: %v", err)
		}
		names := []string{"d"}
		if deep == "mnt" {
			names = append(names, "d/mnt")
		}
		for _, name := range names {
			if err := mounts.Purge(t.Context(), b, name); err == nil || fault.KindOf(err) != fault.Busy {
				t.Errorf("Purge(%s) with a mount at %q: %v; want Busy", name, deep, err)
			}
		}
		mounttest.Script(t, b, `cat d/f -> "1"`)
		if err := unix.Unmount(point, 0); err != nil {
			t.Fatal(err)
		}
		if err := mounts.Purge(t.Context(), b, "d"); err != nil {
			t.Errorf("Purge without the mount at %q: %v", deep, err)
		}
		mounttest.Script(t, b, "ls . ->")
	}
}

// TestPurgeSwapped swaps folders for links to the outside while they are purged.
func TestPurgeSwapped(t *testing.T) {
	outside, dir := canary(t)
	b := open(t, dir)
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	inside, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	var stop atomic.Bool
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for !stop.Load() {
			for _, name := range []string{"d/e", "d/e/e"} {
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 300 {
		inside.MkdirAll("d/e/e/sub", 0o755) // what is made here does not go through the link either
		inside.WriteFile("d/e/e/canary", []byte("mine"), 0o600)
		if err := mounts.Purge(t.Context(), b, "d"); err != nil && fault.KindOf(err) != fault.NotEmpty {
			t.Error(err)
		}
	}
	stop.Store(true)
	swapper.Wait()
}

// TestPurgeShut runs as nobody: folders that do not let their owner in are opened, those of others are Denied.
func TestPurgeShut(t *testing.T) {
	if dir := os.Getenv("CELLGATE_PURGE_SHUT"); dir != "" {
		b := open(t, dir)
		for _, name := range []string{"d/shut/in", "d/still", "d/blind/in", "d/empty"} {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		dig(t, filepath.Join(dir, "d", "still"), 0)
		for _, f := range []struct { // the inner ones first
			name string
			mode os.FileMode
		}{{"shut/in", 0}, {"shut", 0}, {"still", 0o500}, {"blind", 0o300}, {"empty", 0}} {
			if err := os.Chmod(filepath.Join(dir, "d", f.name), f.mode); err != nil {
				t.Fatal(err)
			}
		}
		dig(t, filepath.Join(dir, "d"), 200)
		if err := mounts.Purge(t.Context(), b, "d"); err != nil {
			t.Error(err)
		}
		if err := mounts.Purge(t.Context(), b, "foreign"); fault.KindOf(err) != fault.Denied || err == nil {
			t.Errorf("Purge of what belongs to another: %v; want Denied", err)
		}
		mounttest.Script(t, b, "ls . -> foreign/")
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to become nobody")
	}
	top, err := os.MkdirTemp("/tmp", "cellgate-purge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir, exe := filepath.Join(top, "data"), filepath.Join(top, "test")
	program, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = errors.Join(os.WriteFile(exe, program, 0o755), os.MkdirAll(filepath.Join(dir, "foreign/in"), 0o700), os.Chown(dir, 65534, 65534), os.Chmod(top, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestPurgeShut$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CELLGATE_PURGE_SHUT="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPurgeCancelled: it stops in the midst, and another one ends the work.
func TestPurgeCancelled(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for i := range 50 {
		if err := os.MkdirAll(filepath.Join(dir, "d", strings.Repeat("x", i+1), "y"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx := &countdown{Context: t.Context()}
	ctx.left.Store(30)
	if err := mounts.Purge(ctx, b, "d"); fault.KindOf(err) != fault.Canceled {
		t.Errorf("Purge whose context ends: %v; want Canceled", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "d")); err != nil || len(left) == 0 || len(left) == 50 {
		t.Errorf("%d of 50 are left, %v; want some", len(left), err)
	}
	if err := mounts.Purge(t.Context(), b, "d"); err != nil {
		t.Error(err)
	}
}

// countdown is a context that ends when it was asked so many times.
type countdown struct {
	context.Context
	left atomic.Int64
}

func (c *countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}
