package guard

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// ask compiles one policy of two rules and asks it: base lets the request through when the rule under test does not.
func ask(t *testing.T, effect string, w When, fill func(*Request)) bool {
	t.Helper()
	p := Policy{Name: "t", Kind: ACL, Rules: []Rule{{Effect: effect, Principals: List{"everyone"}, Actions: List{"*"}, When: w}}}
	if effect == "deny" {
		p.Rules = append(p.Rules, Rule{Effect: "allow", Principals: List{"everyone"}, Actions: List{"*"}})
	}
	set, problems := Compile(p, Options{Locations: map[string][]netip.Prefix{"office": {netip.MustParsePrefix("192.0.2.0/24")}}})
	if len(problems) > 0 {
		t.Fatalf("%v", problems)
	}
	r := Acquire()
	defer r.Release()
	r.Who, r.Action = NewWho([]string{"user:a", "everyone"}), "download"
	r.At("x/y.txt", "y.txt")
	fill(r)
	return set.Decide(r).Allowed
}

// TestConditions says for each condition when it holds. What is not known makes an allow fail and a deny apply, so both effects are asked.
func TestConditions(t *testing.T) {
	const holds, fails, unknown = "holds", "fails", "unknown"
	at := func(s string) func(*Request) {
		return func(r *Request) { r.Time, _ = time.Parse(time.RFC3339, s) }
	}
	addr := func(s string) func(*Request) { return func(r *Request) { r.Addr = netip.MustParseAddr(s) } }
	path := func(s string) func(*Request) { return func(r *Request) { r.At(s, s[strings.LastIndex(s, "/")+1:]) } }
	none := func(*Request) {}
	office := &Hours{Days: "Mon-Fri", From: "09:00", To: "18:30", Zone: "Europe/Paris"}
	night := &Hours{Days: "Fri", From: "22:00", To: "06:00", Zone: "UTC"}
	for _, c := range []struct {
		name string
		when When
		fill func(*Request)
		want string
	}{
		{"cidr", When{IP: List{"10.0.0.0/8"}}, addr("10.1.2.3"), holds},
		{"cidr other", When{IP: List{"10.0.0.0/8"}}, addr("11.1.2.3"), fails},
		{"cidr mapped", When{IP: List{"10.0.0.0/8"}}, addr("::ffff:10.1.2.3"), holds},
		{"cidr zone", When{IP: List{"fe80::/10"}}, addr("fe80::1%eth0"), holds},
		{"address", When{IP: List{"10.0.0.1", "::1"}}, addr("::1"), holds},
		{"location", When{IP: List{"office"}}, addr("192.0.2.7"), holds},
		{"no address", When{IP: List{"0.0.0.0/0"}}, none, unknown},
		{"office hours", When{Hours: office}, at("2026-12-01T08:00:00Z"), holds},        // 9:00 in Paris
		{"office hours early", When{Hours: office}, at("2026-12-01T07:59:59Z"), fails},  // 8:59:59
		{"office hours end", When{Hours: office}, at("2026-12-01T17:30:00Z"), fails},    // 18:30
		{"office hours summer", When{Hours: office}, at("2026-07-01T07:00:00Z"), holds}, // 9:00
		{"office hours weekend", When{Hours: office}, at("2026-11-28T12:00:00Z"), fails},
		{"night", When{Hours: night}, at("2026-11-27T23:00:00Z"), holds},                // Friday
		{"night after midnight", When{Hours: night}, at("2026-11-28T05:59:00Z"), holds}, // Saturday, of Friday's
		{"night over", When{Hours: night}, at("2026-11-28T06:00:00Z"), fails},
		{"night before", When{Hours: night}, at("2026-11-27T05:00:00Z"), fails}, // Friday morning is Thursday's
		{"days over the week's end", When{Hours: &Hours{Days: "Sat-Mon", Zone: "UTC"}}, at("2026-11-29T05:00:00Z"), holds},
		{"no time", When{Hours: office}, none, unknown},
		{"period", When{Period: &Period{From: "2026-01-01T00:00:00Z", To: "2027-01-01T00:00:00Z"}}, at("2026-12-31T23:59:59Z"), holds},
		{"period over", When{Period: &Period{To: "2027-01-01T00:00:00+01:00"}}, at("2026-12-31T23:00:00Z"), fails},
		{"period no time", When{Period: &Period{To: "2027-01-01T00:00:00Z"}}, none, unknown},
		{"protocol", When{Protocol: List{"webdav", "sftp"}}, func(r *Request) { r.Protocol = "sftp" }, holds},
		{"protocol other", When{Protocol: List{"webdav"}}, func(r *Request) { r.Protocol = "s3" }, fails},
		{"protocol unknown", When{Protocol: List{"webdav"}}, none, unknown},
		{"client", When{Client: List{"*rclone/*"}}, func(r *Request) { r.Client = "RClone/v1.70" }, holds},
		{"client other", When{Client: List{"rclone*"}}, func(r *Request) { r.Client = "curl rclone" }, fails},
		{"client unknown", When{Client: List{"*"}}, none, unknown},
		{"method", When{Method: List{"GET"}}, func(r *Request) { r.Method = "GET" }, holds},
		{"method unknown", When{Method: List{"GET"}}, none, unknown},
		{"credential", When{Credential: List{"app"}}, func(r *Request) { r.Credential = "password" }, fails},
		{"second factor", When{SecondFactor: &SecondFactor{"15m"}}, func(r *Request) {
			r.Time = time.Unix(1e9, 0)
			r.SecondFactor = r.Time.Add(-15 * time.Minute)
		}, holds},
		{"second factor old", When{SecondFactor: &SecondFactor{"15m"}}, func(r *Request) {
			r.Time = time.Unix(1e9, 0)
			r.SecondFactor = r.Time.Add(-16 * time.Minute)
		}, fails},
		{"second factor none", When{SecondFactor: &SecondFactor{"15m"}}, at("2026-12-31T23:00:00Z"), unknown},
		{"second factor of tomorrow", When{SecondFactor: &SecondFactor{"15m"}}, func(r *Request) {
			r.Time = time.Unix(1e9, 0)
			r.SecondFactor = r.Time.Add(time.Hour)
		}, unknown},
		{"extension", When{Extension: List{".EXE", "pdf"}}, path("a/b.exe"), holds},
		{"extension hidden by dots", When{Extension: List{"exe"}}, path("a/b.exe. ."), holds},
		{"extension none", When{Extension: List{"exe"}}, path("a/exe"), fails},
		{"size", When{Size: &Size{Min: 1, Max: 10}}, func(r *Request) { r.Size = 10 }, holds},
		{"size over", When{Size: &Size{Max: 10}}, func(r *Request) { r.Size = 11 }, fails},
		{"size unknown", When{Size: &Size{Max: 10}}, none, unknown},
		{"type", When{Type: List{"image/*"}}, func(r *Request) { r.Type = "image/png" }, holds},
		{"type unknown", When{Type: List{"image/*"}}, none, unknown},
		{"path", When{Path: List{"/x/*.txt"}}, none, holds},
		{"path other", When{Path: List{"/x/*.pdf", "/y/**"}}, none, fails},
		{"two hold", When{Path: List{"**/y.txt"}, Protocol: List{"sftp"}}, func(r *Request) { r.Protocol = "sftp" }, holds},
		{"one of two fails", When{Path: List{"**/y.txt"}, Protocol: List{"sftp"}}, func(r *Request) { r.Protocol = "s3" }, fails},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := ask(t, "allow", c.when, c.fill), c.want == holds; got != want {
				t.Errorf("allow: %v, want %v", got, want)
			}
			if got, want := ask(t, "deny", c.when, c.fill), c.want == fails; got != want {
				t.Errorf("deny: lets through %v, want %v", got, want)
			}
		})
	}
}

// TestA04Names has names with line ends, next-line, U+2028 and the like against allow and deny rules: a rule about a folder is never slipped past,
// neither by a character that a pattern would not match nor by one that ends a line.
func TestA04Names(t *testing.T) {
	bad := []string{"\n", "\r", "\r\n", "\u0085", "\u2028", "\u2029", "\x00", "\x1b", "\x7f", "\xff", "\u009f"}
	for _, glob := range []string{"/secret/*", "/secret/**", "*.key", "/secret/a*", "secret/a*.key"} {
		for _, c := range bad {
			for _, name := range []string{"a" + c + ".key", "a.key" + c, c + "a.key", "a" + c + "b"} {
				fill := func(r *Request) { r.At("secret/"+name, name) }
				if ask(t, "deny", When{Path: List{glob}}, fill) {
					t.Errorf("deny %q lets secret/%q through", glob, name)
				}
				if ask(t, "allow", When{Path: List{glob}}, fill) {
					t.Errorf("allow %q gives secret/%q", glob, name)
				}
				if ask(t, "deny", When{Extension: List{"key"}}, fill) || ask(t, "allow", When{Extension: List{"key"}}, fill) {
					t.Errorf("extension rules are slipped past by %q", name)
				}
			}
		}
	}
	// What looks like a pattern of ladon's is a name.
	for _, name := range []string{"<.*>", "<", ">", "<(a+)+>", "[a-z]", "{a,b}", "a|b", "$", "^", "("} {
		if !ask(t, "allow", When{Path: List{"/x/" + strings.ReplaceAll(name, "*", `\*`)}}, func(r *Request) { r.At("x/"+name, name) }) {
			t.Errorf("the folder %q is not matched by its name", name)
		}
		if ask(t, "allow", When{Path: List{"/x/" + strings.ReplaceAll(name, "*", `\*`)}}, func(r *Request) { r.At("x/aaa", "aaa") }) {
			t.Errorf("%q matches a sibling", name)
		}
	}
}

// TestGlob compares Match with a plain recursion on random patterns and paths.
func TestGlob(t *testing.T) {
	var naiveSeg func(p, s string) bool
	naiveSeg = func(p, s string) bool {
		switch {
		case p == "":
			return s == ""
		case p[0] == '*':
			return naiveSeg(p[1:], s) || s != "" && naiveSeg(p, s[1:])
		default:
			return s != "" && (p[0] == '?' || p[0] == s[0]) && naiveSeg(p[1:], s[1:])
		}
	}
	var naive func(p, s []string) bool
	naive = func(p, s []string) bool {
		switch {
		case len(p) == 0:
			return len(s) == 0
		case p[0] == "**":
			return naive(p[1:], s) || len(s) > 0 && naive(p, s[1:])
		default:
			return len(s) > 0 && naiveSeg(p[0], s[0]) && naive(p[1:], s[1:])
		}
	}
	pattern := rapid.SliceOfN(rapid.SampledFrom([]string{"**", "*", "a", "b", "a*", "*b", "?", "a*b*", "*a?"}), 1, 5)
	path := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "aab", "abab", "c"}), 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		p, s, anchored := pattern.Draw(t, "pattern"), path.Draw(t, "path"), rapid.Bool().Draw(t, "anchored")
		text, np := "/"+strings.Join(p, "/"), p
		if !anchored {
			text, np = text[1:], append([]string{"**"}, p...)
		}
		g, err := ParseGlob(text)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Join(s, "/")
		if len(s) == 0 {
			at = "."
		}
		if got, want := g.Match(at), naive(np, s); got != want {
			t.Fatalf("%q matches %q: %v, want %v", text, at, got, want)
		}
		if key := g.key(); g.Match(at) && key != "" && !strings.Contains("/"+at+"/", "/"+key+"/") {
			t.Fatalf("%q matches %q, which lacks the key %q", text, at, key)
		}
	})
}

// TestRefused has malformed policies: each problem is named, all at once.
func TestRefused(t *testing.T) {
	p := Policy{Name: "Bad Name", Kind: "acls", Rules: []Rule{
		{Effect: "permit", Principals: nil, Actions: List{"*"}},
		{Effect: "allow", Principals: List{"everyone"}, Actions: nil, When: When{IP: List{"10.0.0.0/99", "nowhere"}, Country: List{"FR"}}},
		{Effect: "deny", Principals: List{"everyone"}, Actions: List{"fly"}, When: When{
			Hours:  &Hours{Days: "Mon-Xyz", From: "25:00", To: "9", Zone: "Mars/Olympus"},
			Period: &Period{From: "tomorrow"}, SecondFactor: &SecondFactor{"soon"}, Path: List{"/a/../b", `a\`}, Extension: List{"a.b"}, Size: &Size{Min: 5, Max: 2},
			Client: List{""}, Protocol: List{}}},
	}}
	_, problems := Compile(p, Options{})
	var all strings.Builder
	for _, err := range problems {
		all.WriteString(err.Error() + "\n")
	}
	for _, want := range []string{"Bad Name", "acls", "permit", "no principals", "no actions", "10.0.0.0/99", "nowhere", "country", "fly", "mon-xyz", "25:00", `"9"`,
		"Mars/Olympus", "tomorrow", "soon", `".."`, "backslash", "a.b", "size", "client", "protocol"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no problem names %s in:\n%s", want, &all)
		}
	}
}

// TestShipped compiles everything that comes with the box.
func TestShipped(t *testing.T) {
	locations := map[string][]netip.Prefix{}
	for name, nets := range Locations() {
		for _, n := range nets {
			p, err := ParseNet(n)
			if err != nil {
				t.Fatal(err)
			}
			locations[name] = append(locations[name], p)
		}
	}
	for _, p := range Shipped() {
		if _, problems := Compile(p, Options{Locations: locations}); len(problems) > 0 {
			t.Errorf("%s: %v", p.Name, problems)
		}
	}
}

// FuzzCompile looks for policies and names that break the compiler or the matcher.
func FuzzCompile(f *testing.F) {
	f.Add("/a/**/*.txt", "10.0.0.0/8", "Mon-Fri", "09:00", "Europe/Paris", "a/b/c.txt")
	f.Add(`\`, "::ffff:10.0.0.0/104", "-", "24:00", "UTC", "a\nb")
	f.Fuzz(func(t *testing.T, glob, ip, days, from, zone, path string) {
		p := Policy{Name: "f", Kind: ACL, Rules: []Rule{{Effect: "allow", Principals: List{"everyone"}, Actions: List{"read"},
			When: When{Path: List{glob}, IP: List{ip}, Client: List{glob}, Hours: &Hours{Days: days, From: from, Zone: zone}, Extension: List{glob}}}}}
		set, problems := Compile(p, Options{})
		if len(problems) == 0 == (set == nil) {
			t.Fatal("neither a policy nor a problem")
		}
		if g, err := ParseGlob(glob); err == nil {
			g.Match(path)
		}
		if set != nil {
			r := Acquire()
			defer r.Release()
			r.Who, r.Action, r.Client = NewWho([]string{"everyone"}), "download", path
			r.At(path, path)
			set.Decide(r)
		}
	})
}
