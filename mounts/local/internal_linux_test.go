//go:build linux && !portable

package local

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
)

// TestConformanceWalk is for kernels and sandboxes without openat2.
func TestConformanceWalk(t *testing.T) {
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		b, err := open(t.Context(), settings{path: t.TempDir(), fileMode: 0o640, dirMode: 0o750, watches: 100, unsynced: true})
		if err != nil {
			t.Fatal(err)
		}
		b.walk.Store(true)
		return b
	})
}

// TestWatchBound: with fewer watches than folders there is one error pair, and what is watched goes on being watched.
func TestWatchBound(t *testing.T) {
	b, err := open(t.Context(), settings{path: t.TempDir(), fileMode: 0o640, dirMode: 0o750, watches: 2, unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mounttest.Script(t, b, `
		mkdir a -> ok
		mkdir b -> ok
		mkdir c -> ok
	`)
	missed := 0
	for change, err := range b.Watch(t.Context()) {
		if err != nil {
			missed++
			mounttest.Script(t, b, "put f 1 -> ok")
			continue
		}
		if change.Name == "f" {
			break
		}
	}
	if missed != 1 {
		t.Errorf("%d error pairs, want 1", missed)
	}
}

// TestClosedWatch: closing the datasource ends its watches, which hold its descriptors.
func TestClosedWatch(t *testing.T) {
	b, err := open(t.Context(), settings{path: t.TempDir(), fileMode: 0o640, dirMode: 0o750, watches: 2, unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range b.Watch(t.Context()) {
		}
	}()
	b.Close()
	<-ended
}

// TestPurgeStaysOnMount: were a file system mounted after a purge looked for such, it is not entered all the same.
func TestPurgeStaysOnMount(t *testing.T) {
	dir := t.TempDir()
	b, err := open(t.Context(), settings{path: dir, fileMode: 0o640, dirMode: 0o750, unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	b.real = "" // so that it knows of no mounts
	point := filepath.Join(dir, "d", "mnt")
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, "mode=0"); err != nil {
		t.Skipf("mounting needs root and CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	mounttest.Script(t, b, "put d/mnt/f 1 -> ok")
	if err := b.Purge(t.Context(), "d"); fault.KindOf(err) != fault.Busy || err == nil {
		t.Errorf("Purge: %v; want Busy", err)
	}
	up, err := b.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(up)
	p := purge{ctx: t.Context(), b: b, mount: b.mount}
	if fd, err := p.open(up, "mnt"); fault.KindOf(err) != fault.Busy || err == nil {
		t.Errorf("descending to a mount point: %d, %v; want Busy", fd, err)
	}
	mounttest.Script(t, b, `cat d/mnt/f -> "1"`)
}
