package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/store"
)

// A07: moves need delete on the whole source and create on the target, and a deny goes with its node.
func TestA07Moves(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, `
		alice: mkdir /docs/a -> ok
		alice: put /docs/a/f 1 -> ok
		alice: mkdir /docs/a/secret -> ok
		alice: put /docs/a/secret/s 1 -> ok
		alice: mkdir /docs/ro -> ok
		alice: put /docs/ro/r 1 -> ok
		alice: put /pair/one/p 1 -> ok`)
	h.Grant("user:bob", "docs:/a", "read", "write")
	h.Grant("user:bob", "docs:/a/secret", "deny")
	h.Tell(t, `
		# from where one may only read
		bob: mv /docs/ro/r /docs/a/r -> ! permission denied
		bob: cp /docs/ro/r /docs/a/r -> ok
		# into where one may only read
		bob: mv /docs/a/r /docs/ro/x -> ! permission denied
		bob: cp /docs/a/r /docs/ro/x -> ! permission denied
		bob: mv /pair/one/p /docs/ro/p -> ! permission denied
		bob: mv /pair/one/p /docs/a/p -> ok
		# a tree that holds something denied is not carried off, copied or deleted with the rest
		bob: ls /docs/a -> f p r
		bob: mv /docs/a /pair/one/a -> ! permission denied
		bob: cp /docs/a /pair/one/a -> ! permission denied
		bob: rmtree /docs/a -> ! permission denied
		alice: ls /docs/a -> f p r secret/
		# over something denied
		bob: mv! /docs/a/f /docs/a/secret -> ! does not exist
		bob: cp! /docs/a/f /docs/a/secret/s -> ! does not exist
		bob: put /docs/a/secret/s x -> ! does not exist
		bob: mkdir /docs/a/secret -> ! does not exist
		# the deny follows the node
		alice: mv /docs/a/secret /docs/a/known -> ok
		bob: ls /docs/a -> f p r
		bob: cat /docs/a/known/s -> ! does not exist
		alice: mv /docs/a/known /pair/one/known -> ok
		bob: ls /pair/one -> nothing
		bob: cat /pair/one/known/s -> ! does not exist`)
}

// A09: what one may not see shows in no listing, count or message.
func TestA09Hidden(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, `
		alice: mkdir /docs/open -> ok
		alice: mkdir /docs/open/in -> ok
		alice: put /docs/open/in/x 1 -> ok`)
	h.Grant("user:bob", "docs:/open/in", "deny")
	h.Tell(t, `
		bob: ls /docs/open -> nothing
		bob: stat /docs/open/in -> ! does not exist
		bob: stat /docs/open/none -> ! does not exist
		bob: ls /docs/open/in -> ! does not exist
		bob: cat /docs/open/in/x -> ! does not exist
		bob: props /docs/open/in/x -> ! does not exist
		bob: rm /docs/open/in -> ! does not exist
		bob: put /docs/open/in/y 1 -> ! does not exist
		bob: lock /docs/open/in/x L -> ! does not exist`)
	s := h.As("bob")
	_, hidden := s.Stat(t.Context(), gatewaytest.Path("/docs/open/in"))
	_, absent := s.Stat(t.Context(), gatewaytest.Path("/docs/open/no"))
	if fault.KindOf(hidden) != fault.KindOf(absent) {
		t.Errorf("hidden: %v, absent: %v", hidden, absent)
	}
	before, err := s.Stat(t.Context(), gatewaytest.Path("/docs/open"))
	if err != nil {
		t.Fatal(err)
	}
	if before.ETag != "" || before.Size != 0 {
		t.Errorf("a folder tells of what it holds: %+v", before)
	}
	if _, err := s.PropsOf(t.Context(), gatewaytest.Path("/docs/open/in"), []string{"x"}); fault.KindOf(err) != fault.NotExist {
		t.Errorf("properties of what is hidden: %v", err)
	}
	if _, err := s.LocksOf(t.Context(), gatewaytest.Path("/docs/open/in")); fault.KindOf(err) != fault.NotExist {
		t.Errorf("locks of what is hidden: %v", err)
	}
}

// A11: users who may do one thing only can do exactly that.
func TestA11OneRightOnly(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: mkdir /docs/d -> ok")
	only := func(actions ...string) {
		t.Helper()
		p := policy.Policy{Policy: guard.Policy{Name: "only", Kind: guard.ACL, Rules: []guard.Rule{{Effect: "allow", Principals: guard.List{"everyone"}, Actions: actions}}}}
		err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Policy.PutPolicy(tx, p); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	only("list")
	h.Revoke("user:bob", "docs:/")
	h.Grant("user:bob", "docs:/", "policy:only")
	h.Tell(t, `
		bob: ls /docs -> a d/
		bob: stat /docs/a -> file 1
		bob: cat /docs/a -> ! permission denied
		bob: put /docs/a x -> ! permission denied
		bob: put /docs/b x -> ! permission denied
		bob: mkdir /docs/e -> ! permission denied
		bob: rm /docs/a -> ! permission denied
		bob: lock /docs/a L -> ! permission denied
		bob: lock /docs/new L -> ! permission denied
		bob: cp /docs/a /docs/b -> ! permission denied`)
	only("create")
	h.Tell(t, `
		bob: ls /docs -> ! does not exist
		bob: put /docs/b x -> ok
		bob: mkdir /docs/e -> ok
		bob: put /docs/a x -> ! does not exist
		bob: write /docs/a 0 x -> ! does not exist
		bob: cat /docs/b -> ! does not exist
		bob: rm /docs/b -> ! does not exist
		bob: lock /docs/fresh L -> ok`)
	only("modify", "list")
	h.Tell(t, `
		bob: put /docs/a y -> ok
		bob: write /docs/a 0 z -> ! permission denied
		bob: put /docs/new x -> ! permission denied
		bob: mkdir /docs/f -> ! permission denied
		bob: rm /docs/a -> ! permission denied
		bob: mv /docs/a /docs/c -> ! permission denied
		bob: lock /docs/new L -> ! permission denied
		bob: prop /docs/a colour red -> ok`)
	only("delete", "list")
	h.Tell(t, `
		bob: put /docs/a x -> ! permission denied
		bob: rm /docs/b -> ok
		bob: mv /docs/a /docs/c -> ! permission denied
		bob: rmtree /docs/e -> ok`)
}

// A15: whoever loses a right loses it for what is open, too, and an upload under way is not published.
func TestA15Revocation(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 12345678 -> ok")
	h.Grant("user:bob", "docs:/", "read", "write")
	s := h.As("bob")
	f, err := s.Open(t.Context(), gatewaytest.Path("/docs/a"), gateway.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := s.Create(t.Context(), gatewaytest.Path("/docs/b"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	h.Revoke("user:bob", "docs:/")
	if _, err := f.Read(make([]byte, 2)); fault.KindOf(err) != fault.NotExist {
		t.Errorf("reading on after revocation: %v", err)
	}
	var sent strings.Builder
	if n, err := f.CopyTo(t.Context(), &sent, 0, 8); n != 0 || err == nil {
		t.Errorf("sent %d bytes after revocation (%v)", n, err)
	}
	if _, _, err := u.Commit(t.Context()); fault.KindOf(err) != fault.NotExist {
		t.Errorf("published after revocation: %v", err)
	}
	h.Tell(t, "alice: ls /docs -> a")
	if err := h.Identity.DeleteUser(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), gatewaytest.Path("/")); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("the session of a deleted user: %v", err)
	}
	sound(t, h)
}

// D14: of many who race with one precondition, one wins.
func TestD14Race(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	s := h.As("alice")
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		p := gatewaytest.Path(fmt.Sprint("/docs/r", round))
		race(t, func(i int) error {
			return gatewaytest.Write(t.Context(), s, p, fmt.Appendf(nil, "%d", i), gateway.Cond{NoneMatch: []string{"*"}})
		})
		i, err := s.Stat(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		race(t, func(n int) error {
			return gatewaytest.Write(t.Context(), s, p, fmt.Appendf(nil, "second %d", n), gateway.Cond{Match: []string{i.ETag}})
		})
		now, err := s.Stat(t.Context(), p)
		if err != nil || now.ETag == i.ETag {
			t.Fatalf("the entity tag %s stayed (%v)", now.ETag, err)
		}
	}
}

func race(t *testing.T, do func(i int) error) {
	t.Helper()
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			switch err := do(i); {
			case err == nil:
				won.Add(1)
			case fault.KindOf(err) != fault.Precondition:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d of 50 won", won.Load())
	}
}

// W01: a lock is one on the node, whichever way it is reached, binds everybody, survives a restart, and does not outlive limits.
func TestW01Locks(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{Limits: gateway.Limits{Locks: 20}})
	h.Grant("user:bob", "docs:/", "write")
	err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "alias", Roots: []string{"disk:/docs"}, Quota: -1})
		return err
	})
	if err == nil {
		err = h.Gateway.Reload(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: put /docs/a 1 -> ok")
	alice, bob := h.As("alice"), h.As("bob")
	l, _, err := alice.Lock(t.Context(), gatewaytest.Path("/docs/a"), gateway.LockRequest{OwnerXML: "<D:href>me</D:href>"})
	if err != nil {
		t.Fatal(err)
	}
	stolen := bob.With(gateway.Client{Protocol: "webdav", Tokens: []string{l.Token}})
	try := func(when string) {
		t.Helper()
		for _, path := range []string{"/docs/a", "/alias/a"} {
			err := gatewaytest.Write(t.Context(), stolen, gatewaytest.Path(path), []byte("x"), gateway.Cond{})
			var locked *gateway.LockedError
			if !errors.As(err, &locked) || fault.KindOf(err) != fault.Locked {
				t.Errorf("%s: bob wrote %s with alice's token: %v", when, path, err)
			}
			if err := stolen.Unlock(t.Context(), gatewaytest.Path(path), l.Token); fault.KindOf(err) != fault.Denied {
				t.Errorf("%s: bob ended alice's lock: %v", when, err)
			}
			if _, err := stolen.RefreshLock(t.Context(), gatewaytest.Path(path), l.Token, 0); fault.KindOf(err) != fault.Denied {
				t.Errorf("%s: bob refreshed alice's lock: %v", when, err)
			}
		}
	}
	try("at once")
	h.Reopen()
	alice, bob = h.As("alice"), h.As("bob")
	stolen = bob.With(gateway.Client{Protocol: "webdav", Tokens: []string{l.Token}})
	try("after a restart")
	locks, err := alice.Locks(t.Context(), gatewaytest.Path("/alias/a"))
	if err != nil || len(locks) != 1 || locks[0].OwnerXML != "<D:href>me</D:href>" {
		t.Errorf("locks by the other way: %+v, %v", locks, err)
	}
	for i := range 25 {
		_, _, err = bob.Lock(t.Context(), gatewaytest.Path(fmt.Sprint("/docs/l", i)), gateway.LockRequest{})
		if i < 20 != (err == nil) {
			t.Errorf("lock %d: %v", i, err)
		}
	}
	if fault.KindOf(err) != fault.Busy {
		t.Errorf("over the limit: %v", err)
	}
}

// Policies that look at sizes and types hold for single files, for listings and for every file of a tree.
func TestPoliciesThatLookAtFiles(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, `
		alice: mkdir /docs/d -> ok
		alice: put /docs/d/small.txt 12345 -> ok
		alice: put /docs/d/large.txt 1234567890123 -> ok
		alice: mkdir /docs/e -> ok
		alice: put /docs/e/small.txt 12345 -> ok`)
	h.Grant("user:bob", "docs:/", "read", "write")
	p := policy.Policy{
		Policy: guard.Policy{Name: "small", Kind: guard.ACL, Rules: []guard.Rule{{Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"*"}, When: guard.When{Size: &guard.Size{Max: 10}}}}},
		Guards: []policy.Place{{Datasource: "disk", Path: "docs"}}, For: []policy.Principal{"user:bob"},
	}
	err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Policy.PutPolicy(tx, p); return err })
	if err != nil {
		t.Fatal(err)
	}
	h.Tell(t, `
		bob: ls /docs/d -> small.txt
		bob: cat /docs/d/small.txt -> 12345
		bob: cat /docs/d/large.txt -> ! does not exist
		bob: put /docs/new 123 -> ok
		bob: put /docs/big 12345678901 -> ! does not exist
		bob: rm /docs/d/large.txt -> ! does not exist
		bob: rmtree /docs/d -> ! permission denied
		bob: mv /docs/d /docs/f -> ! permission denied
		bob: cp /docs/d /docs/f -> ! permission denied
		bob: cp /docs/e /docs/f -> ok
		bob: rmtree /docs/e -> ok
		alice: cat /docs/d/large.txt -> 1234567890123`)
}
