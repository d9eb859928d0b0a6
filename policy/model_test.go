package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cellgate/policy/guard"
)

// The reference model: the rule of the package comment written down as naively as it reads, over plain lists, with policies reduced to what the
// generator makes of them.

type model struct {
	grants   []Grant
	policies []Policy
}

// ways returns the place and all places above it, nearest first.
func ways(at Place) []Place {
	out := []Place{at}
	segs := strings.Split(at.Path, "/")
	for n := len(segs) - 1; n > 0; n-- {
		out = append(out, Place{at.Datasource, strings.Join(segs[:n], "/")})
	}
	if at.Path != "." {
		out = append(out, Place{at.Datasource, "."})
	}
	return out
}

func (m model) alive(g Grant, now time.Time) bool { return g.Expires.IsZero() || now.Before(g.Expires) }

func (m model) decide(sub *Subject, act Action, at Place, now time.Time) Decision {
	may := func(a Action) bool { return m.may(sub, a, at, now) }
	return Decision{Allowed: may(act), Known: may(List) || may(Preview) || may(Download)}
}

func (m model) may(sub *Subject, act Action, at Place, now time.Time) bool {
	for _, p := range ways(at) {
		for _, g := range m.grants {
			if g.On == p && g.Rights&Deny != 0 && slices.Contains(sub.Principals, g.To) && m.alive(g, now) {
				return false
			}
		}
	}
	allowed := false
	for _, p := range ways(at) {
		any := false
		for _, g := range m.grants {
			if g.On != p || !slices.Contains(sub.Principals, g.To) || !m.alive(g, now) {
				continue
			}
			any = true
			read, write := g.Rights&Read != 0, g.Rights&Write != 0
			switch act {
			case List, Preview, Download:
				allowed = allowed || read
			case Create, Modify, Delete:
				allowed = allowed || write
			case Share:
				allowed = allowed || read || write
			}
			if g.Policy != "" {
				allowed = allowed || m.says(g.Policy, sub, act)
			}
		}
		if any {
			break
		}
	}
	if !allowed {
		return false
	}
	for _, pol := range m.policies {
		if len(pol.For) > 0 && !slices.ContainsFunc(pol.For, func(w Principal) bool { return slices.Contains(sub.Principals, w) }) {
			continue
		}
		bound := len(pol.For) > 0 && len(pol.Guards) == 0
		for _, p := range ways(at) {
			bound = bound || slices.Contains(pol.Guards, p)
		}
		if bound && !m.says(pol.Name, sub, act) {
			return false
		}
	}
	return true
}

// says knows rules without conditions.
func (m model) says(name string, sub *Subject, act Action) bool {
	allow := false
	for _, pol := range m.policies {
		if pol.Name != name {
			continue
		}
		for _, r := range pol.Rules {
			who := slices.ContainsFunc(r.Principals, func(w string) bool { return slices.Contains(sub.Principals, Principal(w)) })
			what := slices.ContainsFunc(r.Actions, func(a string) bool {
				switch a {
				case "*":
					return true
				case "read":
					return act <= Download
				case "upload":
					return act == Create || act == Modify
				}
				return a == act.String()
			})
			if who && what && r.Effect == "deny" {
				return false
			}
			allow = allow || who && what
		}
	}
	return allow
}

func (m model) tree(sub *Subject, act Action, at Place, now time.Time, all []Place) bool {
	for _, p := range all {
		if (p == at || slices.Contains(ways(p), at)) && !m.may(sub, act, p, now) {
			return false
		}
	}
	return true
}

var (
	segments = []string{"a", "b", "a-b", "a0", "A", ".a", "a.b", "é", "<.*>", "a\nb"}
	modelNow = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
)

func genPath(t *rapid.T, label string) string {
	segs := rapid.SliceOfN(rapid.SampledFrom(segments), 0, 4).Draw(t, label)
	if len(segs) == 0 {
		return "."
	}
	return strings.Join(segs, "/")
}

func genPlace(t *rapid.T, label string) Place {
	return Place{rapid.SampledFrom([]string{"disk", "nas"}).Draw(t, label+" ds"), genPath(t, label)}
}

var modelSubjects = []*Subject{
	{ID: 1, Login: "alice", Group: "/staff/it", Profile: Admin, Principals: PrincipalsOf("alice", "/staff/it", Admin, []string{"editors"})},
	{ID: 2, Login: "bob", Group: "/staff", Profile: Standard, Principals: PrincipalsOf("bob", "/staff", Standard, nil)},
	{ID: 3, Login: "guest", Group: "/", Profile: External, Principals: PrincipalsOf("guest", "/", External, []string{"editors", "press"})},
}

var modelPrincipals = []Principal{"user:alice", "user:bob", "user:guest", "user:nobody", "group:/", "group:/staff", "group:/staff/it", "role:editors", "role:press",
	"profile:standard", "profile:admin", Everyone}

func genModel(t *rapid.T) model {
	var m model
	who := rapid.SampledFrom(modelPrincipals)
	for i := range rapid.IntRange(0, 3).Draw(t, "policies") {
		p := Policy{Policy: guard.Policy{Name: fmt.Sprintf("p%d", i), Kind: guard.ACL}}
		for range rapid.IntRange(1, 3).Draw(t, "rules") {
			p.Rules = append(p.Rules, guard.Rule{
				Effect:     rapid.SampledFrom([]string{"allow", "allow", "allow", "deny"}).Draw(t, "effect"),
				Principals: guard.List{string(who.Draw(t, "who"))},
				Actions:    rapid.SliceOfN(rapid.SampledFrom([]string{"*", "*", "read", "upload", "list", "delete", "share"}), 1, 2).Draw(t, "actions"),
			})
		}
		if rapid.Bool().Draw(t, "guards") {
			p.Guards = []Place{genPlace(t, "guard")}
		}
		if rapid.IntRange(0, 3).Draw(t, "for") == 0 {
			p.For = []Principal{who.Draw(t, "for whom")}
		}
		m.policies = append(m.policies, p)
	}
	for i := range rapid.IntRange(1, 40).Draw(t, "grants") {
		g := Grant{ID: int64(i + 1), To: who.Draw(t, "to"), On: genPlace(t, "on")}
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0, 1:
			g.Rights = Deny
		case 2:
			g.Policy = fmt.Sprintf("p%d", rapid.IntRange(0, 3).Draw(t, "policy"))
		case 3, 4:
			g.Rights = Write
		case 5, 6:
			g.Rights = Read | Write
		default:
			g.Rights = Read
		}
		switch rapid.IntRange(0, 5).Draw(t, "expires") {
		case 0:
			g.Expires = modelNow.Add(-time.Second)
		case 1:
			g.Expires = modelNow
		case 2:
			g.Expires = modelNow.Add(time.Second)
		}
		m.grants = append(m.grants, g)
	}
	return m
}

func (m model) snapshot() *Snapshot {
	grants, policies := map[int64]Grant{}, map[string]Policy{}
	for _, g := range m.grants {
		grants[g.ID] = g
	}
	for _, p := range m.policies {
		policies[p.Name] = p
	}
	return compile(1, grants, policies, builtin())
}

// TestA01Model compares Decide, DecideTree, Children, Below and Explain with the reference model: 100 states of 250 questions and more each.
func TestA01Model(t *testing.T) {
	tuples, allowed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := genModel(t)
		s := m.snapshot()
		env := &Env{Time: modelNow}
		var places []Place
		for _, g := range m.grants {
			places = append(places, g.On, Place{g.On.Datasource, join(g.On.Path, "a")})
		}
		for _, p := range m.policies {
			places = append(places, p.Guards...)
		}
		for range 10 {
			places = append(places, genPlace(t, "at"))
		}
		for _, sub := range modelSubjects {
			// Half of the grants may come as the subject's own, as template workspaces give them.
			v := s.Bind(sub, nil)
			if cut := len(m.grants) / 2; rapid.Bool().Draw(t, "own") {
				v = model{m.grants[:cut], m.policies}.snapshot().Bind(sub, m.grants[cut:])
			}
			for i, at := range places {
				act := Action((i + int(sub.ID)) % int(actions))
				got, want := v.Decide(act, at, env), m.decide(sub, act, at, modelNow)
				if got != want {
					t.Fatalf("%s: Decide = %+v, model says %+v\n%v", sub.Login, got, want, v.Explain(act, at, env))
				}
				if tr := v.Explain(act, at, env); tr.Allowed != want.Allowed || tr.Known != want.Known || tr.Rule == "" {
					t.Fatalf("%s: Explain = %+v, model says %+v", sub.Login, tr, want)
				}
				tuples++
				if want.Allowed {
					allowed++
				}
				if i%8 > 0 {
					continue
				}
				td, blocked := v.DecideTree(act, at, env)
				if wantTree := m.tree(sub, act, at, modelNow, append([]Place{at}, places...)); td.Allowed != wantTree || td.Known != want.Known {
					t.Fatalf("%s %s %s: DecideTree = %+v blocked by %s, model says %v", sub.Login, act, at, td, blocked, wantTree)
				} else if !wantTree && m.may(sub, act, blocked, modelNow) {
					t.Fatalf("%s %s %s: blocked by %s, which allows it", sub.Login, act, at, blocked)
				}
				kids := v.Children(act, at, env)
				for _, name := range append(slices.Clone(segments), "other") {
					kid := Place{at.Datasource, join(at.Path, name)}
					got, want := kids(name), m.decide(sub, act, kid, modelNow)
					if got != want {
						t.Fatalf("%s %s: Children(%s) of %s = %+v, model says %+v", sub.Login, act, name, at, got, want)
					}
					if got != v.Decide(act, at, env) && !v.Below(at) {
						t.Fatalf("%s: nothing Below %s, yet %s differs", sub.Login, at, name)
					}
					tuples++
				}
			}
		}
	})
	least := 20000
	if testing.Short() {
		least /= 5 // as rapid does
	}
	if tuples < least || allowed < tuples/50 {
		t.Errorf("%d questions, %d allowed: too few to mean anything", tuples, allowed)
	}
	t.Logf("%d questions, %d allowed", tuples, allowed)
}
