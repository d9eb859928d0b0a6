//go:build linux && !portable

package local_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
)

// TestFailingSync lets the k-th fsync of a child process fail with EIO (strace injects it): the call that needed it fails, nothing is half
// published, nothing is left in the stage, and the next call works.
func TestFailingSync(t *testing.T) {
	if dir := os.Getenv("CELLGATE_FAILING_SYNC"); dir != "" {
		failingSync(t, dir)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed, so no failing disk can be played")
	}
	for k := 1; k <= 2; k++ { // the file's, the folder's
		cmd := exec.CommandContext(t.Context(), strace, "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", fmt.Sprintf("inject=fsync:error=EIO:when=%d", k),
			os.Args[0], "-test.run=^TestFailingSync$", "-test.v")
		cmd.Env = append(os.Environ(), "CELLGATE_FAILING_SYNC="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("fsync %d fails: %v\n%s", k, err, out)
		}
	}
}

func failingSync(t *testing.T, dir string) {
	runtime.LockOSThread() // strace counts the calls of each thread by itself
	defer runtime.UnlockOSThread()
	if err := os.WriteFile(dir+"/f", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": dir}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, err = mounts.WriteFile(t.Context(), b, "f", []byte("new"))
	if err == nil || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Put: %v; want Unavailable", err)
	}
	content, err := mounts.ReadFile(t.Context(), b, "f", 10)
	if err != nil || string(content) != "old" && string(content) != "new" {
		t.Errorf("the file holds %q, %v", content, err)
	}
	if left := staged(t, dir); len(left) > 0 {
		t.Errorf("left in the stage: %v", left)
	}
	if _, err := mounts.WriteFile(t.Context(), b, "f", []byte("next")); err != nil {
		t.Errorf("Put after the disk works again: %v", err)
	}
}
