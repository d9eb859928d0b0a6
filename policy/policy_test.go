package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/policy/guard"
)

var (
	alice = &Subject{ID: 1, Login: "alice", Principals: PrincipalsOf("alice", "/staff/it", Admin, []string{"editors"}), Profile: Admin}
	bob   = &Subject{ID: 2, Login: "bob", Principals: PrincipalsOf("bob", "/staff", Standard, nil), Profile: Standard}
)

// state builds a snapshot from lines such as "user:bob disk:/docs read+write".
func build(t testing.TB, policies []Policy, lines ...string) *Snapshot {
	t.Helper()
	m := model{policies: policies}
	for i, line := range lines {
		var to, on, rights string
		if _, err := fmt.Sscan(line, &to, &on, &rights); err != nil {
			t.Fatal(err)
		}
		g := Grant{ID: int64(i + 1), To: Principal(to), On: place(on), Source: "test"}
		var err error
		if g.Rights, g.Policy, err = ParseRights(strings.Split(rights, "+")); err != nil {
			t.Fatal(err)
		}
		m.grants = append(m.grants, g)
	}
	return m.snapshot()
}

func place(s string) Place {
	ds, path, _ := strings.Cut(s, ":/")
	if path == "" {
		path = "."
	}
	return Place{ds, path}
}

// TestRule is the card, line by line.
func TestRule(t *testing.T) {
	s := build(t, nil,
		"group:/staff disk:/docs read",
		"user:bob disk:/docs/own read+write",
		"role:editors disk:/docs/press write",
		"everyone disk:/docs/press read",
		"user:bob disk:/docs/secret deny",
		"user:alice disk:/docs/secret/open read",
		"user:bob disk:/docs/secret/open read+write",
		"user:bob disk:/drop write",
		"everyone nas:/ read",
	)
	for _, c := range []struct {
		who            *Subject
		act            Action
		at             string
		allowed, known bool
	}{
		{alice, List, "disk:/", false, false}, // being admin gives nothing
		{bob, Download, "disk:/docs", true, true},
		{bob, Modify, "disk:/docs", false, true},
		{bob, Download, "disk:/docs/a/b/c", true, true},
		{bob, Create, "disk:/docs/own/x", true, true},
		{alice, Create, "disk:/docs/press/x", true, true}, // two principals, added together
		{alice, Download, "disk:/docs/press/x", true, true},
		{bob, Create, "disk:/docs/press/x", false, true}, // the nearest node decides
		{bob, List, "disk:/docs/secret", false, false},
		{bob, List, "disk:/docs/secret/open", false, false}, // a deny above wins
		{alice, List, "disk:/docs/secret/open", true, true},
		{bob, List, "disk:/docs/secrets", true, true}, // A05: no prefix of a name is a path
		{bob, List, "disk:/docs/secret-x", true, true},
		{bob, Create, "disk:/drop/x", true, false}, // a drop box
		{bob, List, "disk:/drop", false, false},
		{bob, Download, "disk:/drop/x", false, false},
		{bob, Share, "disk:/drop", true, false},
		{bob, Share, "disk:/docs", true, true},
		{bob, Download, "nas:/any", true, true},
		{bob, Delete, "nas:/any", false, true},
		{bob, List, "gone:/", false, false},
	} {
		v := s.Bind(c.who, nil)
		if got, want := v.Decide(c.act, place(c.at), nil), (Decision{c.allowed, c.known}); got != want {
			t.Errorf("%s: %+v, want %+v", v.Explain(c.act, place(c.at), nil), got, want)
		}
	}
	if s.Bind(nil, nil).Decide(List, place("nas:/"), nil).Allowed {
		t.Error("nobody is somebody")
	}
}

// TestExpiry has grants end, and holds denies when the time is not known.
func TestExpiry(t *testing.T) {
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	m := model{grants: []Grant{
		{ID: 1, To: "user:bob", On: place("d:/a"), Rights: Read, Expires: end},
		{ID: 2, To: "user:bob", On: place("d:/"), Rights: Read},
		{ID: 3, To: "user:bob", On: place("d:/b"), Rights: Deny, Expires: end},
		{ID: 4, To: "user:bob", On: place("d:/c"), Rights: Write, Expires: end},
	}}
	v := m.snapshot().Bind(bob, nil)
	before, after := &Env{Time: end.Add(-1)}, &Env{Time: end}
	for _, c := range []struct {
		act  Action
		at   string
		env  *Env
		want bool
	}{
		{Create, "d:/c", before, true}, {Create, "d:/c", after, false}, {Create, "d:/c", nil, false},
		{List, "d:/c", before, false}, {List, "d:/c", after, true}, {List, "d:/c", nil, true},
		{List, "d:/b", before, false}, {List, "d:/b", after, true}, {List, "d:/b", nil, false},
	} {
		if got := v.Decide(c.act, place(c.at), c.env).Allowed; got != c.want {
			t.Errorf("%s %s at %v: %v", c.act, c.at, c.env, got)
		}
	}
}

// TestGuards binds policies to places and subjects, with a look at the node where they ask for one.
func TestGuards(t *testing.T) {
	everyone := guard.List{"everyone"}
	all := guard.List{"*"}
	policies := []Policy{
		{Policy: guard.Policy{Name: "hours", Kind: guard.ACL, Rules: []guard.Rule{
			{Effect: "allow", Principals: everyone, Actions: all, When: guard.When{Hours: &guard.Hours{From: "09:00", To: "17:00", Zone: "UTC"}}}}},
			Guards: []Place{place("d:/office")}},
		{Policy: guard.Policy{Name: "no-exe", Kind: guard.ACL, Rules: []guard.Rule{
			{Effect: "allow", Principals: everyone, Actions: all}, {Effect: "deny", Principals: everyone, Actions: guard.List{"upload"}, When: guard.When{Extension: guard.List{"exe"}}}}},
			Guards: []Place{place("d:/files")}},
		{Policy: guard.Policy{Name: "inside", Kind: guard.ACL, Rules: []guard.Rule{
			{Effect: "allow", Principals: everyone, Actions: all, When: guard.When{IP: guard.List{"private"}}}}}, For: []Principal{"profile:admin"}},
		{Policy: guard.Policy{Name: "look", Kind: guard.ACL, Rules: []guard.Rule{
			{Effect: "allow", Principals: everyone, Actions: guard.List{"list", "preview"}},
			{Effect: "allow", Principals: everyone, Actions: guard.List{"download"}, When: guard.When{Path: guard.List{"/public/**"}}}}}},
	}
	s := build(t, policies, "everyone d:/ read+write", "everyone d:/gallery policy:look", "everyone d:/lost policy:missing")
	day := &Env{Time: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC), Addr: netip.MustParseAddr("10.0.0.1")}
	night := &Env{Time: time.Date(2027, 3, 1, 22, 0, 0, 0, time.UTC), Addr: netip.MustParseAddr("8.8.8.8")}
	for _, c := range []struct {
		who  *Subject
		act  Action
		at   string
		env  *Env
		want Decision
		why  string
	}{
		{bob, Download, "d:/office/x", day, Decision{true, true}, "read+write"},
		{bob, Download, "d:/office/x", night, Decision{false, false}, "policy hours"},
		{bob, Download, "d:/office/x", nil, Decision{false, false}, "policy hours"},
		{bob, Create, "d:/files/a.txt", night, Decision{true, true}, "read+write"},
		{bob, Create, "d:/files/a.exe", day, Decision{false, true}, "denies create by rule 2"},
		{bob, Download, "d:/files/a.exe", day, Decision{true, true}, ""},
		{alice, Download, "d:/x", day, Decision{true, true}, ""},
		{alice, Download, "d:/x", night, Decision{false, false}, "policy inside"},
		{bob, Download, "d:/x", night, Decision{true, true}, ""},
		{bob, List, "d:/gallery/a", day, Decision{true, true}, "policy look allows list by rule 1"},
		{bob, Download, "d:/gallery/a", day, Decision{false, true}, "does not cover"},
		{bob, Download, "d:/gallery/public/a", day, Decision{true, true}, "by rule 2"},
		{bob, List, "d:/lost/a", day, Decision{false, false}, "does not cover"},
	} {
		v := s.Bind(c.who, nil)
		tr := v.Explain(c.act, place(c.at), c.env)
		if got := v.Decide(c.act, place(c.at), c.env); got != c.want || !strings.Contains(tr.Rule, c.why) {
			t.Errorf("%s: %+v, want %+v because of %q", tr, got, c.want, c.why)
		}
		if _, err := json.Marshal(tr); err != nil {
			t.Error(err)
		}
	}
	v := s.Bind(bob, nil)
	for at, want := range map[string]bool{"d:/": true, "d:/office": false, "d:/files": true, "d:/files/a/b": true, "d:/gallery": true, "d:/other": false} {
		if got := v.PerNode(place(at)); got != want {
			t.Errorf("PerNode(%s) = %v", at, got)
		}
	}
	kids := v.Children(Create, place("d:/files"), day)
	if !kids("a.txt").Allowed || kids("a.EXE").Allowed {
		t.Error("the children of a folder whose guard looks at names are not told apart")
	}
}

// TestMemo asks the same guard at other times, from other addresses and by other actions: what is remembered is never the answer to another
// question.
func TestMemo(t *testing.T) {
	all := guard.List{"everyone"}
	s := build(t, []Policy{{Policy: guard.Policy{Name: "p", Kind: guard.ACL, Rules: []guard.Rule{
		{Effect: "allow", Principals: all, Actions: guard.List{"read"}, When: guard.When{IP: guard.List{"10.0.0.0/8"}, Period: &guard.Period{To: "2027-01-01T00:00:00Z"},
			Protocol: guard.List{"webdav"}, Method: guard.List{"GET"}, Client: guard.List{"good*"}, Credential: guard.List{"app"}, SecondFactor: &guard.SecondFactor{MaxAge: "10s"}}}}},
		Guards: []Place{place("d:/")}}}, "everyone d:/ read+write")
	v := s.Bind(bob, nil)
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	good := Env{Protocol: "webdav", Addr: netip.MustParseAddr("10.0.0.1"), Client: "good/1", Method: "GET", Credential: "app", Time: end.Add(-1), SecondFactor: end.Add(-10 * time.Second)}
	for range 3 {
		if !v.Decide(List, place("d:/a"), &good).Allowed || v.Decide(Create, place("d:/a"), &good).Allowed {
			t.Fatal("wrong at the start")
		}
		for what, edit := range map[string]func(*Env){
			"protocol": func(e *Env) { e.Protocol = "s3" }, "address": func(e *Env) { e.Addr = netip.MustParseAddr("11.0.0.1") }, "client": func(e *Env) { e.Client = "bad" },
			"method": func(e *Env) { e.Method = "HEAD" }, "credential": func(e *Env) { e.Credential = "password" }, "time": func(e *Env) { e.Time = end },
			"no time": func(e *Env) { e.Time = time.Time{} }, "second factor": func(e *Env) { e.SecondFactor = end.Add(-12 * time.Second) },
		} {
			env := good
			edit(&env)
			if v.Decide(List, place("d:/b"), &env).Allowed {
				t.Errorf("with another %s the answer is remembered from before", what)
			}
		}
	}
}

// TestCheck asks the policies of other kinds.
func TestCheck(t *testing.T) {
	s := build(t, []Policy{
		{Policy: guard.Policy{Name: "doors", Kind: guard.Protocol, Rules: []guard.Rule{
			{Effect: "allow", Principals: guard.List{"profile:admin"}, Actions: guard.List{"*"}}, {Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"webdav"}}}}},
		{Policy: guard.Policy{Name: "api", Kind: guard.REST, Rules: []guard.Rule{
			{Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"get"}}, {Effect: "deny", Principals: guard.List{"everyone"}, Actions: guard.List{"*"},
				When: guard.When{Path: guard.List{"/api/v1/admin/**"}}}}}, For: []Principal{"profile:standard"}},
	})
	for _, c := range []struct {
		kind, action, path string
		who                *Subject
		want               bool
	}{
		{guard.Protocol, "webdav", "", bob, true}, {guard.Protocol, "sftp", "", bob, false}, {guard.Protocol, "sftp", "", alice, true},
		{guard.Login, "sftp", "", bob, true}, // no policy of the kind
		{guard.REST, "GET", "/api/v1/files/x", bob, true}, {guard.REST, "PUT", "/api/v1/files/x", bob, false},
		{guard.REST, "GET", "/api/v1/admin/users", bob, false}, {guard.REST, "GET", "/api/v1/admin/users", alice, true},
	} {
		if got, by := s.Check(c.kind, c.who, c.action, c.path, nil); got != c.want {
			t.Errorf("%s %s %s for %s = %v by %q", c.kind, c.action, c.path, c.who.Login, got, by)
		}
	}
}

// TestOwn expands a template workspace for one subject.
func TestOwn(t *testing.T) {
	s := build(t, nil, "everyone homes:/ read")
	own := []Grant{{To: "group:/staff", On: place("homes:/bob"), Rights: Read | Write}, {To: "group:/other", On: place("homes:/bob/x"), Rights: Deny}}
	v := s.Bind(bob, own)
	if !v.Decide(Create, place("homes:/bob/x/y"), nil).Allowed || v.Decide(Create, place("homes:/alice"), nil).Allowed {
		t.Error("own grants do not hold, or hold elsewhere")
	}
	if kids := v.Children(Create, place("homes:/"), nil); !kids("bob").Allowed || kids("alice").Allowed {
		t.Error("Children misses own grants")
	}
	if !v.Below(place("homes:/")) || v.Below(place("homes:/bob")) {
		t.Error("Below misses own grants")
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]Principal{"user:Alice": "user:alice", "user: ＢＯＢ ": "user:bob", "group:/Staff/": "group:/Staff", "group:/": "group:/", "everyone": "everyone",
		"profile:admin": "profile:admin", "role:x": "role:x"} {
		if got, err := ParsePrincipal(in); got != want || err != nil {
			t.Errorf("ParsePrincipal(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "alice", "user:", "user:a/b", "user:../x", "user:{login}", "user:.a", "user:a.", "user:a\nb", "group:staff", "group:/a//b", "group:/../a", "group:/{x}",
		"profile:root", "role:", "user:" + strings.Repeat("a", 64), "user:\u202eevil", "everyone:x"} {
		if got, err := ParsePrincipal(in); err == nil {
			t.Errorf("ParsePrincipal(%q) = %q", in, got)
		}
	}
	for _, in := range []string{"", "deny read", "own", "policy:", "policy:a policy:b", "deny policy:a"} {
		if r, p, err := ParseRights(strings.Fields(in)); err == nil {
			t.Errorf("ParseRights(%q) = %v %q", in, r, p)
		}
	}
}

// TestAllocations keeps the promise of Decide and Children: nothing is allocated when warm.
func TestAllocations(t *testing.T) {
	v := big(10000).Bind(bob, nil)
	env := &Env{Time: time.Now()}
	at := place("disk:/dir5/sub3/a/b/c/file.txt")
	if n := testing.AllocsPerRun(100, func() { v.Decide(Modify, at, env) }); n > 0 {
		t.Errorf("Decide allocates %v times", n)
	}
	kids := v.Children(List, place("disk:/dir5"), env)
	if n := testing.AllocsPerRun(100, func() { kids("file.txt") }); n > 0 {
		t.Errorf("Children allocates %v times", n)
	}
}

// big is a snapshot with n grants on two levels, for 1,000 groups and some for bob.
func big(n int) *Snapshot {
	m := model{}
	for i := range n {
		g := Grant{ID: int64(i + 1), To: Principal(fmt.Sprintf("group:/g%d", i%1000)), On: place(fmt.Sprintf("disk:/dir%d/sub%d", i%97, i%1009)), Rights: Read}
		switch i % 10 {
		case 0:
			g.To = "group:/staff"
		case 1:
			g.On, g.To, g.Rights = place(fmt.Sprintf("disk:/dir%d", i%97)), Everyone, Read
		case 2:
			g.Rights = Deny
		}
		m.grants = append(m.grants, g)
	}
	return m.snapshot()
}

// guards is n policies and 1,000 groups: a third bound to the folder asked about, each concerning other groups; the rest all over the tree, some
// with rules about names.
func guarded(n int) *Snapshot {
	m := model{grants: []Grant{{ID: 1, To: Everyone, On: place("disk:/"), Rights: Read | Write}}}
	for i := range n {
		p := Policy{Policy: guard.Policy{Name: fmt.Sprintf("p%d", i), Kind: guard.ACL}, Guards: []Place{place(fmt.Sprintf("disk:/d%d/e%d", i%100, i))}}
		who := guard.List{fmt.Sprintf("group:/g%d", i%1000)}
		p.Rules = []guard.Rule{
			{Effect: "allow", Principals: append(who, "everyone"), Actions: guard.List{"*"}, When: guard.When{IP: guard.List{"10.0.0.0/8"}}},
			{Effect: "deny", Principals: guard.List{"everyone"}, Actions: guard.List{"*"}, When: guard.When{Path: guard.List{fmt.Sprintf("/secret%d/**", i), "*.exe"}}},
		}
		switch {
		case i%3 == 0:
			p.Guards, p.For = []Place{place("disk:/work")}, []Principal{Principal(who[0])}
		case i == 1:
			p.Guards = []Place{place("disk:/work")}
		}
		m.policies = append(m.policies, p)
	}
	// One policy of 10,000 rules, each about other names.
	huge := Policy{Policy: guard.Policy{Name: "huge", Kind: guard.ACL, Rules: []guard.Rule{{Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"*"}}}},
		Guards: []Place{place("disk:/work")}}
	for i := range n {
		huge.Rules = append(huge.Rules, guard.Rule{Effect: "deny", Principals: guard.List{"everyone", fmt.Sprintf("group:/g%d", i%1000)}, Actions: guard.List{"*"},
			When: guard.When{Path: guard.List{fmt.Sprintf("**/private-%d/*", i)}}})
	}
	m.policies = append(m.policies, huge)
	return m.snapshot()
}

// TestR07Policies lists 1,000 children under 10,000 policies and 1,000 groups. Timing is the benchmarks' deed; what makes it fast is counted here:
// how many rules are looked at.
func TestR07Policies(t *testing.T) {
	s := guarded(10000)
	v := s.Bind(bob, nil)
	env := &Env{Time: time.Now(), Addr: netip.MustParseAddr("10.0.0.1")}
	dir := place("disk:/work")
	asked := 0
	for _, b := range []*binding{&s.trees["disk"].nodes["work"].guards.fixed, &s.trees["disk"].nodes["work"].guards.looking} {
		b.every(v.ids, func(*answerer) bool {
			asked++
			return true
		})
	}
	if asked != 2 {
		t.Errorf("%d policies are asked, want the 2 that concern the subject", asked)
	}
	kids := v.Children(List, dir, env)
	for i := range 1000 {
		if name := fmt.Sprintf("f%d.txt", i); !kids(name).Allowed {
			t.Fatalf("%s is not allowed: %s", name, v.Explain(List, Place{"disk", "work/" + name}, env))
		}
	}
	if kids("x.exe").Allowed || v.Decide(List, place("disk:/work/private-77/x"), env).Allowed {
		t.Error("a deny is lost among 10,000 rules")
	}
}

// TestConcurrent shares one view and snapshot among goroutines, for the race detector.
func TestConcurrent(t *testing.T) {
	s := guarded(30)
	v := s.Bind(bob, nil)
	env := &Env{Time: time.Now(), Addr: netip.MustParseAddr("10.0.0.1")}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				at := Place{"disk", fmt.Sprintf("work/a%d", i)}
				if !v.Decide(List, at, env).Allowed || v.Decide(List, at, nil).Allowed {
					t.Error("wrong")
				}
				s.Bind(alice, nil).DecideTree(Delete, place("disk:/"), env)
			}
		})
	}
	wg.Wait()
}

func BenchmarkDecide(b *testing.B) {
	env := &Env{Time: time.Now()}
	for _, n := range []int{10, 1000, 10000} {
		v := big(n).Bind(bob, nil)
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			at := place("disk:/dir5/sub3/a/b/c/file.txt")
			for b.Loop() {
				v.Decide(Modify, at, env)
			}
		})
	}
	v := guarded(10000).Bind(bob, nil)
	env.Addr = netip.MustParseAddr("10.0.0.1")
	b.Run("policies=10000", func(b *testing.B) {
		b.ReportAllocs()
		at := place("disk:/work/a/b/c/file.txt")
		for b.Loop() {
			v.Decide(Modify, at, env)
		}
	})
}

func BenchmarkChildren(b *testing.B) {
	env := &Env{Time: time.Now(), Addr: netip.MustParseAddr("10.0.0.1")}
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("file%d.txt", i)
	}
	for _, c := range []struct {
		name string
		snap *Snapshot
		dir  string
	}{{"grants=10000", big(10000), "disk:/dir5"}, {"policies=10000", guarded(10000), "disk:/work"}} {
		v := c.snap.Bind(bob, nil)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				kids := v.Children(List, place(c.dir), env)
				for _, n := range names {
					kids(n)
				}
			}
		})
	}
}

func BenchmarkDecideTree(b *testing.B) {
	v := big(10000).Bind(bob, nil)
	env := &Env{Time: time.Now()}
	for b.Loop() {
		v.DecideTree(List, place("disk:/dir5"), env)
	}
}

func BenchmarkBind(b *testing.B) {
	s := big(10000)
	for b.Loop() {
		s.Bind(bob, nil)
	}
}

func BenchmarkCompile(b *testing.B) {
	m := map[int64]Grant{}
	for i := range 10000 {
		m[int64(i)] = Grant{ID: int64(i), To: Principal(fmt.Sprintf("group:/g%d", i%1000)), On: place(fmt.Sprintf("disk:/dir%d/sub%d", i%97, i%1009)), Rights: Read}
	}
	for b.Loop() {
		compile(1, m, nil, nil)
	}
}
