package policy_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/store"
	"cellgate/store/storetest"
)

func engine(t *testing.T, db *store.DB) *policy.Engine {
	t.Helper()
	return polling(t, db, 5*time.Millisecond)
}

// polling is engine for tests that count epochs: one that looks at the store on its own may count a change of its own twice.
func polling(t *testing.T, db *store.DB, poll time.Duration) *policy.Engine {
	t.Helper()
	e := policy.New(policy.Config{DB: db, Poll: poll})
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func update(t *testing.T, db *store.DB, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

var carol = &policy.Subject{ID: 3, Login: "carol", Principals: policy.PrincipalsOf("carol", "/staff", policy.Standard, []string{"press"})}

func on(s string) policy.Place {
	ds, path, _ := strings.Cut(s, ":/")
	if path == "" {
		path = "."
	}
	return policy.Place{Datasource: ds, Path: path}
}

func may(e *policy.Engine, act policy.Action, at string) bool {
	return e.Snapshot().Bind(carol, nil).Decide(act, on(at), &policy.Env{Time: time.Now()}).Allowed
}

// within waits until another process's change is noticed.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not noticed: %s", what)
		}
	}
}

// TestEngine changes grants and watches them take effect here at once, in a second engine soon, and after a restart.
func TestEngine(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		here, there := engine(t, db), engine(t, db)
		g := policy.Grant{ID: store.NewID(), To: "user:CAROL", On: on("disk:/docs"), Rights: policy.Read, Source: "apply"}
		before := here.Epoch()
		update(t, db, func(tx *store.Tx) error { return here.PutGrant(tx, g) })
		if !may(here, policy.List, "disk:/docs/a") || here.Epoch() == before {
			t.Fatal("a grant does not hold when Update returns")
		}
		within(t, "a grant", func() bool { return may(there, policy.List, "disk:/docs/a") })

		still := polling(t, db, time.Hour)
		before = still.Epoch()
		update(t, db, func(tx *store.Tx) error { return still.PutGrant(tx, g) })
		if still.Epoch() != before {
			t.Error("the same grant again moves the epoch")
		}
		g.Rights |= policy.Write
		update(t, db, func(tx *store.Tx) error { g := g; g.ID = 0; return there.PutGrant(tx, g) }) // the other process, the same key
		within(t, "a change", func() bool { return may(here, policy.Create, "disk:/docs/a") })
		got, err := here.Grants(t.Context(), policy.Filter{Source: "apply", To: "user:carol", Datasource: "disk", Under: "docs"})
		g.To = "user:carol"
		if diff := cmp.Diff([]policy.Grant{g}, got); diff != "" || err != nil {
			t.Errorf("Grants: %v %s", err, diff)
		}

		err = db.Update(t.Context(), func(tx *store.Tx) error {
			if err := here.DeleteGrant(tx, g.ID); err != nil {
				return err
			}
			return fmt.Errorf("no")
		})
		if err == nil || !may(here, policy.List, "disk:/docs") {
			t.Error("what was rolled back took effect")
		}
		update(t, db, func(tx *store.Tx) error { return here.DeleteGrant(tx, g.ID) })
		if may(here, policy.List, "disk:/docs") {
			t.Error("a revoked grant still holds")
		}
		within(t, "a revocation", func() bool { return !may(there, policy.List, "disk:/docs") })
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return here.DeleteGrant(tx, g.ID) }); fault.KindOf(err) != fault.NotExist {
			t.Errorf("deleted twice: %v", err)
		}
	})
}

// TestEngineTogether has two processes change things at once; both end in what the store says.
func TestEngineTogether(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		engines := []*policy.Engine{engine(t, db), engine(t, db)}
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for j := range 10 {
					e := engines[i%2]
					err := db.Update(t.Context(), func(tx *store.Tx) error {
						return e.PutGrant(tx, policy.Grant{To: "user:carol", On: on(fmt.Sprintf("disk:/%d/%d", i, j)), Rights: policy.Read})
					})
					if err != nil {
						t.Error(err)
					}
					if !may(e, policy.List, fmt.Sprintf("disk:/%d/%d", i, j)) {
						t.Error("an own change is not in force at once")
					}
				}
			})
		}
		wg.Wait()
		for _, e := range engines {
			within(t, "all changes", func() bool {
				for i := range 4 {
					for j := range 10 {
						if !may(e, policy.List, fmt.Sprintf("disk:/%d/%d", i, j)) {
							return false
						}
					}
				}
				return true
			})
		}
	})
}

// TestReplaceAndMove declares the grants of a workspace again and again, and moves a folder under them.
func TestReplaceAndMove(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := engine(t, db)
		gs := []policy.Grant{
			{To: "group:/staff", On: on("disk:/a"), Rights: policy.Read | policy.Write},
			{To: "user:carol", On: on("disk:/a/secret"), Rights: policy.Deny},
			{To: "user:carol", On: on("disk:/a-b"), Rights: policy.Read},
		}
		replace := func(gs ...policy.Grant) (changed bool) {
			update(t, db, func(tx *store.Tx) (err error) {
				changed, err = e.ReplaceGrants(tx, "workspace:docs", gs)
				return err
			})
			return changed
		}
		update(t, db, func(tx *store.Tx) error {
			return e.PutGrant(tx, policy.Grant{To: "everyone", On: on("disk:/keep"), Rights: policy.Read, Source: "apply"})
		})
		if !replace(gs...) || replace(gs...) {
			t.Error("replacing grants by the same ones changes something, or the first time nothing")
		}
		update(t, db, func(tx *store.Tx) error {
			_, err := e.PutPolicy(tx, policy.Policy{Policy: guard.Policy{Name: "shut", Kind: guard.ACL}, Guards: []policy.Place{on("disk:/a/shut")}})
			return err
		})
		move(t, db, e, "disk:/a", "disk:/z/new")
		for at, want := range map[string]bool{"disk:/a": false, "disk:/a/secret": false, "disk:/z/new": true, "disk:/z/new/secret": false, "disk:/z/new/shut": false, "disk:/a-b": true,
			"disk:/keep": true, "disk:/z": false} {
			if got := may(e, policy.List, at); got != want {
				t.Errorf("after the move, list %s = %v", at, got)
			}
		}
		if !replace() || may(e, policy.List, "disk:/z/new") || !may(e, policy.List, "disk:/keep") {
			t.Error("grants of a source are not gone, or others are")
		}
		fresh := engine(t, db)
		for _, at := range []string{"disk:/z/new", "disk:/keep", "disk:/a"} {
			if may(e, policy.List, at) != may(fresh, policy.List, at) {
				t.Errorf("memory and store differ about %s", at)
			}
		}
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			_, err := e.ReplaceGrants(tx, "x", []policy.Grant{{To: "bogus", On: on("disk:/a"), Rights: policy.Read}, {To: "everyone", On: policy.Place{Datasource: "disk", Path: "../x"}, Rights: policy.Read},
				{To: "everyone", On: on("disk:/b")}})
			return err
		})
		for _, want := range []string{"bogus", "../x", "gives nothing"} {
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not name %s", err, want)
			}
		}
	})
}

// TestPolicies saves, refuses, binds and deletes policies and locations.
func TestPolicies(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := engine(t, db)
		put := func(p policy.Policy) (changed bool, err error) {
			err = db.Update(t.Context(), func(tx *store.Tx) (err error) {
				changed, err = e.PutPolicy(tx, p)
				return err
			})
			return changed, err
		}
		look := policy.Policy{Policy: guard.Policy{Name: "look", Kind: guard.ACL, Rules: []guard.Rule{
			{Effect: "allow", Principals: guard.List{"user:carol"}, Actions: guard.List{"list"}, When: guard.When{IP: guard.List{"hq"}}},
			{Effect: "allow", Principals: guard.List{"user:carol", "role:press"}, Actions: guard.List{"download"}}}}}
		if _, err := put(look); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "hq") {
			t.Fatalf("a policy with an unknown location: %v", err)
		}
		update(t, db, func(tx *store.Tx) error {
			_, err := e.PutLocation(tx, "hq", []string{"192.0.2.0/24", "::1"})
			return err
		})
		if changed, err := put(look); !changed || err != nil {
			t.Fatal(changed, err)
		}
		if changed, err := put(look); changed || err != nil {
			t.Error("the same policy again:", changed, err)
		}
		grant := policy.Grant{To: "everyone", On: on("disk:/g"), Policy: "look"}
		update(t, db, func(tx *store.Tx) error { return e.PutGrant(tx, grant) })
		if !may(e, policy.Download, "disk:/g/x") || may(e, policy.List, "disk:/g/x") {
			t.Error("the policy of a grant does not answer")
		}
		for what, fn := range map[string]func(tx *store.Tx) error{
			"a policy in use":   func(tx *store.Tx) error { return e.DeletePolicy(tx, "look") },
			"a location in use": func(tx *store.Tx) error { return e.DeleteLocation(tx, "hq") },
		} {
			if err := db.Update(t.Context(), fn); fault.KindOf(err) != fault.Precondition {
				t.Errorf("deleting %s: %v", what, err)
			}
		}
		grant.Policy = "missing"
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return e.PutGrant(tx, grant) }); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a grant with an unknown policy: %v", err)
		}

		update(t, db, func(tx *store.Tx) error { return e.DropPrincipal(tx, "user:carol") })
		ps, err := e.Policies(t.Context())
		if err != nil || len(ps) != 1 || len(ps[0].Rules) != 1 || ps[0].Rules[0].Principals[0] != "role:press" {
			t.Errorf("after the principal is gone: %+v, %v", ps, err)
		}

		shut := policy.Policy{Policy: guard.Policy{Name: "shut", Kind: guard.ACL}, Guards: []policy.Place{on("disk:/g")}}
		if _, err := put(shut); err != nil || may(e, policy.Download, "disk:/g/x") {
			t.Error("a guard without rules lets something through:", err)
		}
		update(t, db, func(tx *store.Tx) error { return e.DeletePolicy(tx, "shut") })
		if !may(e, policy.Download, "disk:/g/x") {
			t.Error("a deleted guard still narrows")
		}
		for _, p := range guard.Shipped() {
			if _, err := put(policy.Policy{Policy: p}); err != nil {
				t.Errorf("shipped policy %s: %v", p.Name, err)
			}
		}
		if !may(engine(t, db), policy.Download, "disk:/g/x") {
			t.Error("a fresh engine answers otherwise")
		}
	})
}
