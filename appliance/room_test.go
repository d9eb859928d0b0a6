package appliance

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cellgate/internal/fault"
)

func TestRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small volume needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=20m"); err != nil {
		t.Skip("no tmpfs can be mounted here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := (&room{dir: dir}).left(); err != nil {
		t.Errorf("an empty volume: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 19<<20+512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&room{dir: dir}).left(); fault.KindOf(err) != fault.NoSpace {
		t.Errorf("half a MiB of 20 left: %v", err)
	}
}
