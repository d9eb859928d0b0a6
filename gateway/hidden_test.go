package gateway_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

// unlisted are names that a local disk holds and no listing shows: Latin-1 bytes, a control character.
var unlisted = []string{"caf\xe9.txt", "ctl\x01name"}

// withUnlisted is a house on a local disk with files of unlisted names in a folder. They hold their own name.
func withUnlisted(t *testing.T, folder, story string) (*gatewaytest.House, string) {
	t.Helper()
	disk, dir := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	h.Tell(t, story)
	for _, name := range unlisted {
		if err := os.WriteFile(filepath.Join(dir, folder, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h, dir
}

// unlistedOn returns where on a disk files of unlisted names are.
func unlistedOn(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // deleted meanwhile
		}
		if err == nil && slices.Contains(unlisted, d.Name()) {
			found = append(found, strings.TrimPrefix(name, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRemoveTreeUnlisted: a tree goes with what its listings do not show, and nothing of it is in the way of the next start.
func TestRemoveTreeUnlisted(t *testing.T) {
	h, dir := withUnlisted(t, "docs/d/e", "alice: mkdir /docs/d -> ok\nalice: mkdir /docs/d/e -> ok\nalice: put /docs/keep k -> ok")
	h.Tell(t, "alice: rmtree /docs/d -> ok")
	h.Reopen()
	allUp(t, h)
	h.Tell(t, "alice: ls /docs -> keep\nalice: cp /docs/keep /docs/more -> ok")
	if left := unlistedOn(t, dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	sound(t, h)
}

// TestRemoveFolderUnlisted: a folder that only looks empty is not.
func TestRemoveFolderUnlisted(t *testing.T) {
	h, dir := withUnlisted(t, "docs/d", "alice: mkdir /docs/d -> ok\nalice: prop /docs/d colour red -> ok")
	want := unlistedOn(t, dir)
	h.Tell(t, "alice: rm /docs/d -> ! folder is not empty\nalice: ls /docs -> d/\nalice: props /docs/d -> colour=red")
	h.Reopen()
	h.Tell(t, "alice: ls /docs -> d/\nalice: props /docs/d -> colour=red")
	if got := unlistedOn(t, dir); !slices.Equal(got, want) {
		t.Errorf("there are %q, were %q", got, want)
	}
	sound(t, h)
}

// TestMoveAcrossUnlisted: what a move to another datasource cannot carry stays where it was.
func TestMoveAcrossUnlisted(t *testing.T) {
	h, dir := withUnlisted(t, "one/d", "alice: mkdir /pair/one/d -> ok\nalice: put /pair/one/d/f x -> ok")
	want := unlistedOn(t, dir)
	h.Tell(t, "alice: mv /pair/one/d /pair/two/d -> ok\nalice: cat /pair/two/d/f -> x")
	eventually(t, "what was not carried is back", func() bool { return slices.Equal(unlistedOn(t, dir), want) })
	h.Tell(t, "alice: ls /pair/one/d -> nothing")
	h.Reopen()
	if got := unlistedOn(t, dir); !slices.Equal(got, want) {
		t.Errorf("there are %q, were %q", got, want)
	}
	sound(t, h)
}

// TestMoveAcrossPipe: a tree with something that cannot be copied does not go to another datasource.
func TestMoveAcrossPipe(t *testing.T) {
	disk, dir := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	h.Tell(t, "alice: mkdir /pair/one/d -> ok\nalice: put /pair/one/d/f x -> ok")
	pipe := filepath.Join(dir, "one/d/pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: mv /pair/one/d /pair/two/d -> ! not supported\nalice: ls /pair/one/d -> f\nalice: ls /pair/two -> nothing")
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the pipe: %v, %v", info, err)
	}
	h.Tell(t, "alice: cp /pair/one/d /pair/two/c -> ok\nalice: ls /pair/two/c -> f")
	eventually(t, "nothing is staged", func() bool {
		left, err := filepath.Glob(dir + "/.cellgate/tmp/*")
		return err == nil && len(left) == 0
	})
	sound(t, h)
}

// TestDeniedChildren: properties and locks of what a user may not know of show nowhere, and no error names it.
func TestDeniedChildren(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, `
		alice: mkdir /docs/d -> ok
		alice: put /docs/d/hidden x -> ok
		alice: put /docs/d/open x -> ok
		alice: prop /docs/d/hidden colour red -> ok
		alice: prop /docs/d/open colour red -> ok
		alice: lock /docs/d/hidden H -> ok
		alice: lock /docs/d/open O -> ok`)
	h.Revoke("user:bob", "docs:/")
	h.Grant("user:bob", "docs:/d", "read", "write")
	h.Grant("user:bob", "docs:/d/hidden", "deny")
	s, dir := h.As("bob"), gatewaytest.Path("/docs/d")
	props, err := s.PropsOf(t.Context(), dir, []string{"hidden", "open", "none"})
	if names := slices.Sorted(maps.Keys(props)); err != nil || !slices.Equal(names, []string{"open"}) {
		t.Errorf("properties of %q, %v", names, err)
	}
	locks, err := s.LocksOf(t.Context(), dir)
	if names := slices.Sorted(maps.Keys(locks)); err != nil || !slices.Equal(names, []string{"open"}) {
		t.Errorf("locks of %q, %v", names, err)
	}
	root := func(err error) string {
		t.Helper()
		wantKind(t, "lock", err, fault.Locked)
		if strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "alice") {
			t.Errorf("it says %q", err)
		}
		locked, ok := asLocked(err)
		if !ok {
			t.Fatalf("no LockedError in %v", err)
		}
		return locked.Root.String()
	}
	h.Tell(t, "alice: rm /docs/d/open -> ! locked")
	if err := s.Unlock(t.Context(), gatewaytest.Path("/docs/d/open"), locks["open"][0].Token); fault.KindOf(err) != fault.Denied {
		t.Errorf("bob ends alice's lock: %v", err)
	}
	unlock(t, h, "/docs/d/open")
	_, _, err = s.Lock(t.Context(), dir, gateway.LockRequest{Infinite: true})
	if got := root(err); got != "/docs/d" {
		t.Errorf("the lock in the way is shown at %s", got)
	}
	// One from above, on a folder that bob has no right on, shows as far as bob's tree goes.
	unlock(t, h, "/docs/d/hidden")
	if _, _, err := h.As("alice").Lock(t.Context(), gatewaytest.Path("/docs"), gateway.LockRequest{Infinite: true}); err != nil {
		t.Fatal(err)
	}
	if got := root(put("/docs/d/open", "x")(t.Context(), s)); got != "/docs" {
		t.Errorf("the lock in the way is shown at %s", got)
	}
}

// unlock ends alice's locks on a path.
func unlock(t *testing.T, h *gatewaytest.House, path string) {
	t.Helper()
	s := h.As("alice")
	locks, err := s.Locks(t.Context(), gatewaytest.Path(path))
	for _, l := range locks {
		if err == nil {
			err = s.Unlock(t.Context(), gatewaytest.Path(path), l.Token)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeignLockPath: a lock that was taken through another workspace is shown where the one it stops sees it.
func TestForeignLockPath(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	alias(t, h, "vault", "disk:/docs")
	h.Grant("user:bob", "docs:/", "read", "write")
	h.Tell(t, "alice: mkdir /docs/d -> ok\nalice: put /docs/d/a x -> ok\nalice: lock+ /vault/d L -> ok")
	err := put("/docs/d/a", "x")(t.Context(), h.As("bob"))
	locked, ok := asLocked(err)
	if !ok || locked.Root.String() != "/docs/d" || strings.Contains(err.Error(), "vault") {
		t.Errorf("bob is told of %s: %v", locked.Root, err)
	}
}
