package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
)

// alias makes a workspace that alice and bob read and write.
func alias(t *testing.T, h *gatewaytest.House, slug string, roots ...string) {
	t.Helper()
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: slug, Label: slug, Roots: roots, Quota: -1})
		return err
	})
}

func asLocked(err error) (gateway.Lock, bool) {
	var locked *gateway.LockedError
	if !errors.As(err, &locked) {
		return gateway.Lock{}, false
	}
	return locked.Lock, true
}

// lower is a disk on which names that differ in case are one. Names are kept in lower case.
type lower struct{ next mounts.Backend }

var _ mounts.RandomAccess = lower{}

func (l lower) Stat(ctx context.Context, name string) (mounts.Info, error) {
	return l.next.Stat(ctx, strings.ToLower(name))
}

func (l lower) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return l.next.List(ctx, strings.ToLower(dir))
}

func (l lower) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	return l.next.Open(ctx, strings.ToLower(name), off, n)
}

func (l lower) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	random, ok := mounts.As[mounts.RandomAccess](l.next)
	if !ok {
		return nil, fault.New("lower", name, fault.Unsupported, nil)
	}
	return random.OpenFile(ctx, strings.ToLower(name), flag, perm)
}

func (l lower) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return l.next.Put(ctx, strings.ToLower(name), src, opt)
}

func (l lower) Mkdir(ctx context.Context, name string) error {
	return l.next.Mkdir(ctx, strings.ToLower(name))
}

func (l lower) Remove(ctx context.Context, name string) error {
	return l.next.Remove(ctx, strings.ToLower(name))
}

func (l lower) Rename(ctx context.Context, from, to string) error {
	return l.next.Rename(ctx, strings.ToLower(from), strings.ToLower(to))
}

func (l lower) Features() mounts.Features {
	f := l.next.Features()
	f.CaseSensitive = false
	return f
}

func (l lower) Close() error { return l.next.Close() }

// TestRaceOfSpellings: of those who make one file under two spellings, on a disk that knows one, one wins.
func TestRaceOfSpellings(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": lower{mem.New(mem.Config{})}}})
	s := h.As("alice")
	for round := range 20 {
		race(t, func(i int) error {
			p := gatewaytest.Path(fmt.Sprintf("/docs/%c%d", "aA"[i%2], round))
			return gatewaytest.Write(t.Context(), s, p, fmt.Append(nil, i), gateway.Cond{NoneMatch: []string{"*"}})
		})
	}
	sound(t, h)
}

// linked is a house on a local disk where /docs/link leads to the folder /docs/real, with the file f, and /docs/up to the root of the disk.
func linked(t *testing.T) *gatewaytest.House {
	t.Helper()
	disk, dir := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	h.Tell(t, "alice: mkdir /docs/real -> ok\nalice: put /docs/real/f x -> ok\nalice: put /pair/one/z 1 -> ok")
	for name, target := range map[string]string{"link": "real", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, "docs", name)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// TestRaceThroughLink: of those who make one file by two ways, one wins, also with bodies so small that they are judged once.
func TestRaceThroughLink(t *testing.T) {
	h := linked(t)
	s := h.As("alice")
	for round := range 20 {
		race(t, func(i int) error {
			p := gatewaytest.Path(fmt.Sprintf("/docs/%s/r%d", []string{"real", "link"}[i%2], round))
			return gatewaytest.Write(t.Context(), s, p, fmt.Append(nil, i), gateway.Cond{NoneMatch: []string{"*"}})
		})
	}
	sound(t, h)
}

// TestLockThroughLink: a lock lies on the node a link leads to, and is renewed and ended by either way.
func TestLockThroughLink(t *testing.T) {
	h := linked(t)
	s := h.As("alice")
	for _, way := range [][2]string{{"/docs/link/f", "/docs/real/f"}, {"/docs/real/f", "/docs/link/f"}, {"/docs/link/f", "/docs/link/f"}} {
		l, _, err := s.Lock(t.Context(), gatewaytest.Path(way[0]), gateway.LockRequest{Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range way {
			if _, err := s.RefreshLock(t.Context(), gatewaytest.Path(p), l.Token, time.Minute); err != nil {
				t.Errorf("refreshing at %s: %v", p, err)
			}
			wantKind(t, "put without the token", put(p, "y")(t.Context(), s), fault.Locked)
			if err := put(p, "y")(t.Context(), s.With(gateway.Client{Tokens: []string{l.Token}})); err != nil {
				t.Errorf("put at %s with the token: %v", p, err)
			}
		}
		if err := s.Unlock(t.Context(), gatewaytest.Path(way[1]), l.Token); err != nil {
			t.Errorf("unlock at %s: %v", way[1], err)
		}
	}
	h.Tell(t, "alice: put /docs/real/f z -> ok")
}

// TestUploadThroughLink: that rights of others change is no reason to refuse what goes through a link.
func TestUploadThroughLink(t *testing.T) {
	h := linked(t)
	body := strings.Repeat("x", 100_000)
	u, err := h.As("alice").Create(t.Context(), gatewaytest.Path("/docs/link/big"), gateway.CreateOptions{Size: int64(len(body))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.ReadFrom(strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	h.Grant("user:guest", "pair:/one", "read")
	if _, _, err := u.Commit(t.Context()); err != nil {
		t.Errorf("after a grant to somebody else: %v", err)
	}
	h.Tell(t, "alice: stat /docs/real/big -> file 100000")
	// The right where the link leads is what counts.
	if u, err = h.As("alice").Create(t.Context(), gatewaytest.Path("/docs/link/big"), gateway.CreateOptions{Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := u.ReadFrom(strings.NewReader(strings.ToUpper(body))); err != nil {
		t.Fatal(err)
	}
	h.Grant("user:alice", "docs:/real", "deny")
	_, _, err = u.Commit(t.Context())
	wantKind(t, "after a deny where the link leads", err, fault.NotExist)
	sound(t, h)
}

// TestWorkspaceRootsStay: the folder of a workspace cannot be removed, moved or replaced through another workspace or a link.
func TestWorkspaceRootsStay(t *testing.T) {
	h := linked(t)
	alias(t, h, "all", "disk:/")
	alias(t, h, "inner", "disk:/docs/real")
	h.Grant("user:alice", "all:/", "read", "write")
	h.Tell(t, "alice: mkdir /all/spare -> ok\nalice: put /all/file 1 -> ok")
	for _, root := range []string{"/all/docs", "/all/one", "/docs/up/one", "/docs/up/docs", "/docs/real", "/all/docs/real"} {
		for _, step := range []string{"rm " + root, "rmtree " + root, "mv " + root + " /all/gone", "mv " + root + " /homes/gone",
			"mv! /all/spare " + root, "cp! /all/spare " + root, "mv! /all/file " + root, "cp! /all/file " + root} {
			h.Tell(t, "alice: "+step+" -> ! permission denied")
		}
	}
	h.Tell(t, `
		alice: ls /all -> docs/ drop/ file one/ spare/
		alice: cat /docs/real/f -> x
		alice: cat /pair/one/z -> 1
		alice: ls /homes -> nothing`)
}

// TestGroupTemplateOfTopmost: the folder of a group is nobody's whose group is the topmost, not everything.
func TestGroupTemplateOfTopmost(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.AddUser(identity.Spec{Login: "rooty", Group: "/", Profile: policy.Standard})
	alias(t, h, "team", "nas:/{group}")
	alias(t, h, "teams", "nas:/teams/{group}/x")
	for _, on := range []string{"team:/", "teams:/"} {
		h.Grant("everyone", on, "read", "write")
	}
	h.Tell(t, `
		alice: put /homes/private mine -> ok
		alice: put /team/x 1 -> ok
		bob: cat /team/x -> 1
		rooty: ls / -> homes/
		rooty: ls /team -> ! does not exist
		rooty: cat /team/home/alice/private -> ! does not exist
		rooty: put /team/y 1 -> ! does not exist
		rooty: put /teams/y 1 -> ! does not exist`)
}
