package gateway_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/policy"
)

// renames stand between a house and its disks: while on is set, it is run instead of every Rename, with the number of the call.
type renames struct {
	mu sync.Mutex
	n  int
	on func(n int, do func() error) error
}

func (r *renames) set(on func(n int, do func() error) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n, r.on = 0, on
}

func (r *renames) wire(b mounts.Backend) mounts.Backend {
	return mounts.Around(b, mounts.Hooks{Call: func(_ context.Context, op, _ string, do func() error) error {
		if op != "Rename" {
			return do()
		}
		r.mu.Lock()
		r.n++
		n, on := r.n, r.on
		r.mu.Unlock()
		if on == nil {
			return do()
		}
		return on(n, do)
	}})
}

// fail makes every rename fail.
func (r *renames) fail(kind fault.Kind) {
	r.set(func(int, func() error) error { return fault.New("test", "", kind, errors.New("by the test")) })
}

// crash runs do as a process that ends at its rename number at, before it is done.
func (r *renames) crash(at int, do func(ctx context.Context)) {
	r.set(func(n int, rename func() error) error {
		if n == at {
			runtime.Goexit()
		}
		return rename()
	})
	defer r.set(nil)
	done := make(chan struct{})
	go func() { defer close(done); do(context.Background()) }()
	<-done
}

func renaming(t *testing.T) (*gatewaytest.House, *renames) {
	t.Helper()
	r := new(renames)
	disks := map[string]mounts.Backend{"disk": r.wire(mem.New(mem.Config{})), "nas": r.wire(mem.New(mem.Config{}))}
	return gatewaytest.New(t, gatewaytest.Config{Disks: disks}), r
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in ten seconds: ", what)
		}
	}
}

// allUp waits until no datasource is down.
func allUp(t *testing.T, h *gatewaytest.House) {
	t.Helper()
	eventually(t, "every datasource is up", func() bool {
		for _, d := range h.Gateway.Datasources(t.Context()) {
			if d.State != "up" {
				return false
			}
		}
		return true
	})
}

func wantKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestReplayLastingFailure: what a backend will never do is given up at the restart, alone: the datasource works.
func TestReplayLastingFailure(t *testing.T) {
	for _, kind := range []fault.Kind{fault.Unsupported, fault.Denied} {
		h, r := renaming(t)
		h.Tell(t, "alice: put /docs/keep k -> ok\nalice: put /docs/old 1 -> ok")
		r.crash(1, func(ctx context.Context) { _ = put("/docs/old", "other")(ctx, h.As("alice")) })
		r.fail(kind)
		h.Reopen()
		allUp(t, h)
		r.set(nil)
		h.Tell(t, "alice: ls /docs -> keep old\nalice: cat /docs/old -> 1\nalice: put /docs/old 2 -> ok\nalice: cat /docs/old -> 2")
		sound(t, h)
	}
}

// TestMoveAcrossTargetDown: a move between datasources that was interrupted is not finished behind the back of those who have worked on its
// source since, because its target was down. Rights and properties of the source stay as they were.
func TestMoveAcrossTargetDown(t *testing.T) {
	for name, vanished := range map[string]bool{"and the copy lands": false, "and the copy has vanished": true} {
		t.Run(name, func(t *testing.T) {
			h, r := renaming(t)
			h.Tell(t, `
				alice: mkdir /pair/one/d -> ok
				alice: put /pair/one/d/a A -> ok
				alice: put /pair/one/d/b B -> ok
				alice: prop /pair/one/d/b colour red -> ok
				alice: put /pair/one/d/secret S -> ok`)
			h.Grant("user:bob", "pair:/one/d/secret", "deny")
			r.crash(1, func(ctx context.Context) { _ = transfer("mv", "/pair/one/d", "/pair/two/d")(ctx, h.As("alice")) })
			nas := h.Disk("nas")
			h.SetDisk("nas", nil)
			h.Reopen()
			h.Tell(t, `
				bob: ls /pair/one/d -> a b
				bob: cat /pair/one/d/secret -> ! does not exist
				alice: props /pair/one/d/b -> colour=red
				alice: put /pair/one/d/new precious -> ok
				alice: prop /pair/one/d/new colour blue -> ok
				alice: put /pair/one/d/a A2 -> ok`)
			if vanished {
				for i, err := range nas.List(t.Context(), ".cellgate/tmp") {
					if err == nil {
						err = mounts.Purge(t.Context(), nas, ".cellgate/tmp/"+i.Name)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			h.SetDisk("nas", nas)
			allUp(t, h)
			h.Tell(t, `
				alice: ls /pair/one/d -> a b new secret
				alice: cat /pair/one/d/a -> A2
				alice: cat /pair/one/d/new -> precious
				alice: props /pair/one/d/new -> colour=blue
				alice: props /pair/one/d/b -> colour=red
				bob: ls /pair/one/d -> a b new
				bob: cat /pair/one/d/secret -> ! does not exist
				bob: cat /pair/two/d/secret -> ! does not exist`)
			sound(t, h)
		})
	}
}

// TestMoveOverInterrupted: the folder that a move was about to replace is back when the move cannot be finished.
func TestMoveOverInterrupted(t *testing.T) {
	h, r := renaming(t)
	h.Tell(t, "alice: mkdir /docs/src -> ok\nalice: mkdir /docs/dst -> ok\nalice: put /docs/dst/precious p -> ok")
	r.crash(2, func(ctx context.Context) { _ = transfer("mv", "/docs/src", "/docs/dst")(ctx, h.As("alice")) })
	if err := h.Disk("disk").Remove(t.Context(), "docs/src"); err != nil { // from outside
		t.Fatal(err)
	}
	h.Reopen()
	h.Tell(t, "alice: ls /docs -> dst/\nalice: cat /docs/dst/precious -> p")
	h.Reopen()
	h.Tell(t, "alice: cat /docs/dst/precious -> p")
	if err := h.Gateway.Fsck(t.Context(), true, func(gateway.Finding) {}); err != nil { // forgets what vanished
		t.Fatal(err)
	}
	sound(t, h)
}

// TestFailedMoveLeavesGrants: whatever fails, rights at both places are what they were.
func TestFailedMoveLeavesGrants(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		deny     []string
	}{
		{"/docs/a", "/docs/secret", []string{"docs:/a", "docs:/secret"}},
		{"/docs/a", "/docs/secret", []string{"docs:/secret"}},
		{"/docs/d", "/docs/e", []string{"docs:/d", "docs:/d/x", "docs:/e", "docs:/e/x"}},
		{"/pair/one/d", "/pair/two/e", []string{"pair:/one/d/x", "pair:/two/e", "pair:/two/e/x"}},
	} {
		h, r := renaming(t)
		h.Tell(t, `
			alice: put /docs/secret top -> ok
			alice: put /docs/a x -> ok
			alice: mkdir /docs/d -> ok
			alice: put /docs/d/x x -> ok
			alice: mkdir /docs/e -> ok
			alice: put /docs/e/x x -> ok
			alice: mkdir /pair/one/d -> ok
			alice: put /pair/one/d/x x -> ok
			alice: mkdir /pair/two/e -> ok
			alice: put /pair/two/e/x x -> ok`)
		for i, on := range tt.deny {
			h.Grant("user:bob", on, []string{"deny", "read"}[i%2])
		}
		h.Grant("user:guest", tt.deny[0], "read")
		grants := func() []policy.Grant {
			gs, err := h.Policy.Grants(t.Context(), policy.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			return gs
		}
		before, all := grants(), seen(t, h.As("alice"))
		for at := 1; at <= 2; at++ {
			r.set(func(n int, do func() error) error {
				if n == at {
					return fault.New("test", "", fault.NoSpace, nil)
				}
				return do()
			})
			err := transfer("mv", tt.from, tt.to)(t.Context(), h.As("alice"))
			moved := r.n < at
			r.set(nil)
			if moved {
				break // it takes fewer renames
			}
			wantKind(t, "mv", err, fault.NoSpace)
			if diff := cmp.Diff(before, grants()); diff != "" {
				t.Errorf("%s to %s, rename %d: grants changed (-before +after):\n%s", tt.from, tt.to, at, diff)
			}
			if now := seen(t, h.As("alice")); now != all {
				t.Errorf("%s to %s, rename %d: %s, before %s", tt.from, tt.to, at, now, all)
			}
		}
		sound(t, h)
	}
}

// TestLandedThenBack: a rename that took effect without being synced failed, and is not done again at the restart, after it was undone.
func TestLandedThenBack(t *testing.T) {
	disk := flaky.New(mem.New(mem.Config{}))
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	h.Tell(t, "alice: mkdir /docs/a -> ok\nalice: put /docs/a/f p -> ok")
	disk.Set(flaky.Rule{Op: "Rename", Call: 1, Fault: fault.Unavailable, After: true})
	h.Tell(t, "alice: mv /docs/a /docs/b -> ! unavailable\nalice: ls /docs -> b/\nalice: mv /docs/b /docs/a -> ok")
	h.Reopen()
	h.Tell(t, "alice: ls /docs -> a/\nalice: cat /docs/a/f -> p")
	sound(t, h)
}

// TestFailedKeepsLocks: a removal or move that fails takes no lock away.
func TestFailedKeepsLocks(t *testing.T) {
	h, r := renaming(t)
	h.Tell(t, `
		alice: mkdir /docs/d -> ok
		alice: put /docs/d/a x -> ok
		alice: put /docs/b x -> ok
		alice: lock /docs/d/a A -> ok
		alice: lock /docs/b B -> ok`)
	r.fail(fault.NoSpace)
	for _, story := range []string{"rmtree /docs/d", "rm /docs/d/a", "mv /docs/d /docs/e", "mv! /docs/d/a /docs/b", "cp! /docs/d /docs/b"} {
		h.Tell(t, "alice: lock /docs/d/a X -> ! locked\nalice: "+story+" -> ! locked")
	}
	s := h.As("alice")
	locks := func(p string) []string {
		ls, err := s.Locks(t.Context(), gatewaytest.Path(p))
		if err != nil || len(ls) != 1 {
			t.Fatalf("%d locks on %s, %v", len(ls), p, err)
		}
		return []string{ls[0].Token}
	}
	s = s.With(gateway.Client{Protocol: "webdav", Tokens: append(locks("/docs/d/a"), locks("/docs/b")...)})
	for name, do := range map[string]func(context.Context, *gateway.Session) error{
		"remove tree": remove("/docs/d"), "remove": remove("/docs/d/a"), "move": transfer("mv", "/docs/d", "/docs/e"),
		"move over": transfer("mv", "/docs/d/a", "/docs/b"), "move away": transfer("mv", "/docs/d", "/pair/two/d"), "copy over": transfer("cp", "/docs/d", "/docs/b"),
	} {
		wantKind(t, name, do(t.Context(), s), fault.NoSpace)
		locks("/docs/d/a")
		locks("/docs/b")
	}
	r.set(nil)
	h.Reopen()
	s = h.As("alice")
	locks("/docs/d/a")
	locks("/docs/b")
}

// TestHandleStaysBroken: what a failed Sync lost is not forgotten by a later write or Close.
func TestHandleStaysBroken(t *testing.T) {
	h, r := renaming(t)
	h.Tell(t, "alice: put /docs/a 0000000000 -> ok")
	for path, flag := range map[string]int{"/docs/a": os.O_RDWR, "/docs/new": os.O_RDWR | os.O_CREATE, "/docs/excl": os.O_WRONLY | os.O_CREATE | os.O_EXCL} {
		f, err := h.As("alice").OpenFile(t.Context(), gatewaytest.Path(path), gateway.OpenOptions{Flag: flag})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("AAAA"), 0); err != nil {
			t.Fatal(err)
		}
		r.fail(fault.Unavailable)
		wantKind(t, "sync", f.Sync(t.Context()), fault.Unavailable)
		r.set(nil)
		_, err = f.WriteAt([]byte("BB"), 8)
		wantKind(t, "write", err, fault.Unavailable)
		_, err = f.ReadAt(make([]byte, 1), 0)
		wantKind(t, "read", err, fault.Unavailable)
		wantKind(t, "truncate", f.Truncate(1), fault.Unavailable)
		wantKind(t, "sync again", f.Sync(t.Context()), fault.Unavailable)
		wantKind(t, "close", f.Close(t.Context()), fault.Unavailable)
	}
	h.Tell(t, "alice: ls /docs -> a\nalice: cat /docs/a -> 0000000000")
	if st := h.Gateway.Stats(); st.Handles != 0 || st.Staged != 0 {
		t.Errorf("left: %+v", st)
	}
	sound(t, h)
}

// TestFsckSparesUploads: an upload in flight is nobody's leftover, however old.
func TestFsckSparesUploads(t *testing.T) {
	disk, dir := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	u, err := h.As("alice").Create(t.Context(), gatewaytest.Path("/docs/slow"), gateway.CreateOptions{Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.ReadFrom(strings.NewReader("slow")); err != nil {
		t.Fatal(err)
	}
	staged, err := os.ReadDir(dir + "/.cellgate/tmp")
	if err != nil || len(staged) != 1 {
		t.Fatalf("staged %v, %v", staged, err)
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(dir+"/.cellgate/tmp/"+staged[0].Name(), past, past); err != nil {
		t.Fatal(err)
	}
	if err := h.Gateway.Fsck(t.Context(), true, func(f gateway.Finding) { t.Errorf("%+v", f) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	h.Tell(t, "alice: cat /docs/slow -> slow")
}
