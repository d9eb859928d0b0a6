//go:build linux && !portable

package local

import (
	"testing"

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
