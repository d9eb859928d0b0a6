package policy_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/store"
	"cellgate/store/storetest"
)

// move moves grants, and returns the record as a journal gives it back.
func move(t *testing.T, db *store.DB, e *policy.Engine, from, to string) policy.Moved {
	t.Helper()
	var m, back policy.Moved
	update(t, db, func(tx *store.Tx) (err error) {
		m, err = e.MoveGrants(tx, on(from), on(to))
		return err
	})
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, back); diff != "" {
		t.Errorf("%s does not survive JSON: %s", b, diff)
	}
	return back
}

func restore(t *testing.T, db *store.DB, e *policy.Engine, m policy.Moved) {
	t.Helper()
	update(t, db, func(tx *store.Tx) error { return e.RestoreGrants(tx, m) })
}

func keep(t *testing.T, db *store.DB, e *policy.Engine, m policy.Moved) {
	t.Helper()
	update(t, db, func(tx *store.Tx) error { return e.KeepGrants(tx, m) })
}

func put(t *testing.T, db *store.DB, e *policy.Engine, gs ...policy.Grant) {
	t.Helper()
	update(t, db, func(tx *store.Tx) error {
		for _, g := range gs {
			if err := e.PutGrant(tx, g); err != nil {
				return err
			}
		}
		return nil
	})
}

// rights is everything that is stored.
type rights struct {
	Grants []policy.Grant
	Guards map[string][]policy.Place
}

func stored(t *testing.T, e *policy.Engine) rights {
	t.Helper()
	gs, err := e.Grants(t.Context(), policy.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := e.Policies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := rights{gs, map[string][]policy.Place{}}
	for _, p := range ps {
		if len(p.Guards) > 0 {
			r.Guards[p.Name] = p.Guards
		}
	}
	return r
}

// lines says of each grant and guard where it is and what it gives, without ids.
func (r rights) lines() (out []string) {
	for _, g := range r.Grants {
		line := fmt.Sprintf("%s %s %s%s", g.On, g.To, g.Rights, g.Policy)
		if !g.Expires.IsZero() {
			line += " until " + g.Expires.Format("2006")
		}
		out = append(out, line)
	}
	for name, places := range r.Guards {
		for _, at := range places {
			out = append(out, fmt.Sprintf("%s guard %s", at, name))
		}
	}
	slices.Sort(out)
	return out
}

// agree compares what the engine decides from memory with what a fresh one reads.
func agree(t *testing.T, db *store.DB, e *policy.Engine, places ...string) {
	t.Helper()
	fresh := engine(t, db)
	for _, at := range places {
		for _, act := range []policy.Action{policy.List, policy.Create} {
			if may(e, act, at) != may(fresh, act, at) {
				t.Errorf("memory and store differ about %s on %s", act, at)
			}
		}
	}
}

// policies stores what the tests of moving guard with and grant by.
func policies(t *testing.T, db *store.DB, e *policy.Engine, guards map[string][]policy.Place) {
	t.Helper()
	allow := []guard.Rule{{Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"list"}}}
	update(t, db, func(tx *store.Tx) error {
		for _, name := range []string{"look", "shut", "tight"} {
			p := policy.Policy{Policy: guard.Policy{Name: name, Kind: guard.ACL}, Guards: guards[name]}
			if name == "look" {
				p.Rules = allow
			}
			if _, err := e.PutPolicy(tx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

var (
	soon  = time.Date(2030, 1, 2, 3, 4, 5, 678900001, time.UTC)
	later = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
)

// TestMoveBack moves grants, as a move that fails does, and takes it back: all is exactly as before, and again the second time.
func TestMoveBack(t *testing.T) {
	const a, z, other = "disk:/a", "disk:/z/new", "away:/a"
	type grants = []policy.Grant
	type guards = map[string][]policy.Place
	read := policy.Grant{To: "user:carol", On: on(a), Rights: policy.Read, Source: "s"}
	at := func(place string, r policy.Rights) policy.Grant {
		return policy.Grant{To: "user:carol", On: on(place), Rights: r, Source: "s"}
	}
	tests := []struct {
		name       string
		to         string
		grants     grants
		guards     guards
		moved, had []string // after the move, and after KeepGrants
	}{
		{name: "nothing there", to: z, grants: grants{at("disk:/a-b", policy.Read), at("disk:/ab", policy.Read), at("disk:/z", policy.Deny)},
			moved: []string{"disk:/a-b user:carol read", "disk:/ab user:carol read", "disk:/z user:carol deny"},
			had:   []string{"disk:/a-b user:carol read", "disk:/ab user:carol read", "disk:/z user:carol deny"}},
		{name: "a deny at the target only", to: z, grants: grants{at(z, policy.Deny), at(z+"/x", policy.Deny)},
			moved: []string{"disk:/z/new user:carol deny", "disk:/z/new/x user:carol deny"},
			had:   []string{"disk:/z/new user:carol deny", "disk:/z/new/x user:carol deny"}},
		{name: "a deny wins", to: z, grants: grants{read, at(z, policy.Deny)},
			moved: []string{"disk:/z/new user:carol deny"},
			had:   []string{"disk:/a user:carol read", "disk:/z/new user:carol deny"}},
		{name: "a deny arrives", to: z, grants: grants{at(a, policy.Deny), at(z, policy.Read|policy.Write)},
			moved: []string{"disk:/z/new user:carol deny"},
			had:   []string{"disk:/a user:carol deny", "disk:/z/new user:carol deny"}},
		{name: "a deny of another source", to: z, grants: grants{read, {To: "user:carol", On: on(z), Rights: policy.Deny, Source: "other"}},
			moved: []string{"disk:/z/new user:carol deny", "disk:/z/new user:carol read"},
			had:   []string{"disk:/a user:carol read", "disk:/z/new user:carol deny", "disk:/z/new user:carol read"}},
		{name: "in common", to: z, grants: grants{at(a, policy.Read|policy.Write), at(z, policy.Read)},
			moved: []string{"disk:/z/new user:carol read"},
			had:   []string{"disk:/a user:carol read+write", "disk:/z/new user:carol read"}},
		{name: "nothing in common", to: z, grants: grants{read, at(z, policy.Write)},
			moved: []string{"disk:/z/new user:carol deny"},
			had:   []string{"disk:/a user:carol read", "disk:/z/new user:carol deny"}},
		{name: "expiry", to: z, grants: grants{{To: "user:carol", On: on(a), Rights: policy.Read, Expires: later}, {To: "everyone", On: on(a + "/x"), Rights: policy.Read, Expires: soon},
			{To: "user:carol", On: on(z), Rights: policy.Read, Expires: soon}, {To: "everyone", On: on(z + "/x"), Rights: policy.Read}},
			moved: []string{"disk:/z/new user:carol read until 2030", "disk:/z/new/x everyone read until 2030"},
			had: []string{"disk:/a user:carol read until 2040", "disk:/a/x everyone read until 2030",
				"disk:/z/new user:carol read until 2030", "disk:/z/new/x everyone read until 2030"}},
		{name: "policies", to: z, grants: grants{{To: "everyone", On: on(a), Policy: "look"}, {To: "user:carol", On: on(a + "/x"), Policy: "look", Rights: policy.Write},
			{To: "everyone", On: on(z), Policy: "look", Expires: soon}, {To: "user:carol", On: on(z + "/x"), Policy: "tight"}},
			moved: []string{"disk:/z/new everyone look until 2030", "disk:/z/new/x user:carol deny"},
			had: []string{"disk:/a everyone look", "disk:/a/x user:carol writelook", "disk:/z/new everyone look until 2030",
				"disk:/z/new/x user:carol deny"}},
		{name: "guards", to: z, grants: grants{at("disk:/", policy.Read|policy.Write)},
			guards: guards{"shut": {on(a + "/x"), on(z + "/x"), on("disk:/k")}, "tight": {on(a), on("disk:/ab")}, "look": {on(z)}},
			moved:  []string{"disk:/ user:carol read+write", "disk:/ab guard tight", "disk:/k guard shut", "disk:/z/new guard look", "disk:/z/new guard tight", "disk:/z/new/x guard shut"},
			had: []string{"disk:/ user:carol read+write", "disk:/a guard tight", "disk:/a/x guard shut", "disk:/ab guard tight", "disk:/k guard shut",
				"disk:/z/new guard look", "disk:/z/new guard tight", "disk:/z/new/x guard shut"}},
		{name: "to another datasource", to: other, grants: grants{read, at(a+"/x", policy.Deny), at(other+"/x", policy.Read), at(other+"/y", policy.Deny)},
			guards: guards{"shut": {on(a), on(other)}, "tight": {on(a + "/x")}},
			moved: []string{"away:/a guard shut", "away:/a user:carol read", "away:/a/x guard tight", "away:/a/x user:carol deny",
				"away:/a/y user:carol deny"},
			had: []string{"away:/a guard shut", "away:/a user:carol read", "away:/a/x guard tight", "away:/a/x user:carol deny",
				"away:/a/y user:carol deny", "disk:/a guard shut", "disk:/a user:carol read", "disk:/a/x guard tight", "disk:/a/x user:carol deny"}},
	}
	places := []string{a, a + "/x", z, z + "/x", other, other + "/x", other + "/y", "disk:/k", "disk:/ab"}
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				e := polling(t, db, time.Hour)
				for _, g := range stored(t, e).Grants {
					update(t, db, func(tx *store.Tx) error { return e.DeleteGrant(tx, g.ID) })
				}
				policies(t, db, e, tt.guards)
				put(t, db, e, tt.grants...)
				before := stored(t, e)
				m := move(t, db, e, a, tt.to)
				agree(t, db, e, places...)
				if diff := cmp.Diff(tt.moved, stored(t, e).lines()); diff != "" {
					t.Errorf("after the move: %s", diff)
				}
				if nothing := cmp.Equal(before, stored(t, e)); nothing != m.IsZero() {
					t.Errorf("a move that changes nothing: %v, its record: %+v", nothing, m)
				}
				for _, when := range []string{"once", "twice"} {
					epoch := e.Epoch()
					restore(t, db, e, m)
					if diff := cmp.Diff(before, stored(t, e)); diff != "" {
						t.Errorf("restored %s: %s", when, diff)
					}
					if moved := e.Epoch() != epoch; moved != (when == "once" && !m.IsZero()) {
						t.Errorf("restored %s: the epoch moved: %v", when, moved)
					}
					agree(t, db, e, places...)
				}
				m = move(t, db, e, a, tt.to)
				for _, when := range []string{"once", "twice"} {
					keep(t, db, e, m)
					if diff := cmp.Diff(tt.had, stored(t, e).lines()); diff != "" {
						t.Errorf("kept %s: %s", when, diff)
					}
					agree(t, db, e, places...)
				}
				restore(t, db, e, m)
				if diff := cmp.Diff(before.lines(), stored(t, e).lines()); diff != "" {
					t.Errorf("kept and restored: %s", diff)
				}
			})
		}
	})
}

// TestMoveBackMeanwhile takes a move back after others have changed what it moved: theirs is not taken back.
func TestMoveBackMeanwhile(t *testing.T) {
	const a, z = "disk:/a", "disk:/z"
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := engine(t, db)
		grant := func(to policy.Principal, place string, r policy.Rights) policy.Grant {
			return policy.Grant{To: to, On: on(place), Rights: r, Source: "s"}
		}
		rw := policy.Read | policy.Write
		before := []policy.Grant{grant("user:carol", a, rw), grant("user:bob", a, rw), grant("role:press", a, rw), grant("role:crew", a, rw),
			grant("role:crew", z, policy.Read), grant("role:gone", a, policy.Read), grant("role:gone", z, policy.Write)}
		meanwhile := func(t *testing.T) policy.Moved {
			update(t, db, func(tx *store.Tx) error { _, err := e.ReplaceGrants(tx, "s", before); return err })
			policies(t, db, e, map[string][]policy.Place{"shut": {on(a)}, "tight": {on(a + "/x")}})
			m := move(t, db, e, a, z)
			policies(t, db, e, map[string][]policy.Place{"shut": {on(z), on(z + "/y")}}) // tight is unbound
			update(t, db, func(tx *store.Tx) error { return e.DropPrincipal(tx, "user:bob") })
			update(t, db, func(tx *store.Tx) error { return e.DropPrincipal(tx, "role:gone") })
			put(t, db, e, grant("user:carol", z, policy.Read), grant("role:crew", z, policy.Deny), // narrowed
				grant("role:press", a, policy.Write), grant("role:new", a+"/n", policy.Read), grant("role:new", z+"/n", policy.Read)) // new ones
			return m
		}
		tests := []struct {
			name string
			undo func(*testing.T, *store.DB, *policy.Engine, policy.Moved)
			want []string
		}{
			{"restore", restore, []string{"disk:/a guard shut", "disk:/a role:crew deny", "disk:/a role:press write", "disk:/a user:carol read", "disk:/a/n role:new read",
				"disk:/z role:crew deny", "disk:/z/n role:new read", "disk:/z/y guard shut"}},
			{"keep", keep, []string{"disk:/a guard shut", "disk:/a role:crew deny", "disk:/a role:press write", "disk:/a user:carol read", "disk:/a/n role:new read",
				"disk:/z guard shut", "disk:/z role:crew deny", "disk:/z role:press read+write", "disk:/z user:carol read", "disk:/z/n role:new read", "disk:/z/y guard shut"}},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				m := meanwhile(t)
				for _, when := range []string{"once", "twice"} {
					tt.undo(t, db, e, m)
					if diff := cmp.Diff(tt.want, stored(t, e).lines()); diff != "" {
						t.Errorf("%s: %s", when, diff)
					}
				}
				agree(t, db, e, a, a+"/n", z, z+"/n", z+"/y")
			})
		}
		restore(t, db, e, policy.Moved{})
		keep(t, db, e, policy.Moved{})
	})
}

// TestMoveSees moves a grant that no memory holds yet: of the same transaction, and of another process.
func TestMoveSees(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		here, there := policy.New(policy.Config{DB: db, Poll: time.Hour}), engine(t, db)
		put(t, db, there, policy.Grant{To: "user:carol", On: on("disk:/a"), Rights: policy.Deny})
		update(t, db, func(tx *store.Tx) error {
			if err := here.PutGrant(tx, policy.Grant{To: "user:carol", On: on("disk:/a/x"), Rights: policy.Read}); err != nil {
				return err
			}
			_, err := here.MoveGrants(tx, on("disk:/a"), on("disk:/b"))
			return err
		})
		if diff := cmp.Diff([]string{"disk:/b user:carol deny", "disk:/b/x user:carol read"}, stored(t, here).lines()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestMoveBackRandom moves among a few places that hold anything, and back.
func TestMoveBackRandom(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := engine(t, db)
		places := []string{"d:/a", "d:/a/x", "d:/a/x/y", "d:/b", "d:/b/x", "d:/b/x/y", "e:/a", "e:/a/x"}
		r := rand.New(rand.NewPCG(1, 2))
		one := func(s []string) string { return s[r.IntN(len(s))] }
		for round := range 60 {
			guards := map[string][]policy.Place{}
			var gs []policy.Grant
			for _, at := range places {
				for _, to := range []policy.Principal{"user:carol", "everyone"} {
					g := policy.Grant{To: to, On: on(at), Rights: []policy.Rights{0, policy.Read, policy.Write, 3, policy.Deny}[r.IntN(5)]}
					if g.Rights != policy.Deny {
						g.Policy = one([]string{"", "look", "tight"})
						g.Expires = []time.Time{{}, soon, later}[r.IntN(3)]
					}
					if r.IntN(2) == 0 && (g.Rights != 0 || g.Policy != "") {
						gs = append(gs, g)
					}
				}
				if r.IntN(3) == 0 {
					name := one([]string{"look", "shut", "tight"})
					guards[name] = append(guards[name], on(at))
				}
			}
			policies(t, db, e, guards)
			update(t, db, func(tx *store.Tx) error { _, err := e.ReplaceGrants(tx, "", gs); return err })
			before, from, to := stored(t, e), one(places), one(places)
			if strings.HasPrefix(from, to) || strings.HasPrefix(to, from) {
				err := db.Update(t.Context(), func(tx *store.Tx) error { _, err := e.MoveGrants(tx, on(from), on(to)); return err })
				if fault.KindOf(err) != fault.Invalid {
					t.Errorf("%s to %s, one within the other: %v", from, to, err)
				}
				continue
			}
			m := move(t, db, e, from, to)
			agree(t, db, e, places...)
			left, err := e.Grants(t.Context(), policy.Filter{Datasource: on(from).Datasource, Under: on(from).Path})
			if err != nil || len(left) > 0 {
				t.Fatalf("round %d: left at %s: %v, %v", round, from, left, err)
			}
			restore(t, db, e, m)
			if diff := cmp.Diff(before, stored(t, e)); diff != "" {
				t.Fatalf("round %d, %s to %s and back: %s", round, from, to, diff)
			}
			agree(t, db, e, places...)
		}
	})
}
