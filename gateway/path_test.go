package gateway

import (
	"strings"
	"testing"
	"unicode/utf8"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func TestParsePath(t *testing.T) {
	long := strings.Repeat("a", 255)
	for _, tt := range []struct{ in, want string }{
		{"", "/"},
		{"/", "/"},
		{"///", "/"},
		{"docs", "/docs"},
		{"/docs/", "/docs"},
		{"/docs//a///b", "/docs/a/b"},
		{"/docs/a b%2F", "/docs/a b%2F"},
		{"/docs/ü/日本", "/docs/ü/日本"},
		{"/docs/...", "/docs/..."},
		{"/docs/" + long, "/docs/" + long},
	} {
		got, err := ParsePath(tt.in)
		if err != nil || got.String() != tt.want {
			t.Errorf("ParsePath(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{
		"/docs/..", "/docs/.", "../docs", "/docs/../x", "/docs/a\x00b", "/docs/a\nb", "/docs/a\rb", "/docs/\x7f", "/docs/\u0085", "/docs/\u2028",
		"/docs/\u2029", "/docs/\xff", "/docs/" + long + "a", strings.Repeat("/aaaaaaaa", 500), strings.Repeat("/a", 300),
	} {
		if got, err := ParsePath(in); fault.KindOf(err) != fault.Invalid {
			t.Errorf("ParsePath(%q) = %q, %v, want invalid", in, got, err)
		}
	}
}

func TestPath(t *testing.T) {
	p, _ := ParsePath("/docs/a/b")
	if p.Base() != "b" || p.Parent().String() != "/docs/a" || p.Depth() != 3 {
		t.Errorf("base %q, parent %q, depth %d", p.Base(), p.Parent(), p.Depth())
	}
	root := Path{}
	if root.Parent() != root || root.Base() != "" || root.Depth() != 0 || !root.IsRoot() || !root.Contains(p) {
		t.Error("the root is not its own parent, without a name, and above all")
	}
	for q, want := range map[string]bool{"/docs/a/b": true, "/docs/a/b/c": true, "/docs/a/bc": false, "/docs/a": false} {
		if q, _ := ParsePath(q); p.Contains(q) != want {
			t.Errorf("%s contains %s: %t", p, q, !want)
		}
	}
	if c, err := p.Join("c"); err != nil || c.String() != "/docs/a/b/c" {
		t.Errorf("join: %s, %v", c, err)
	}
	for _, name := range []string{"", "a/b", "..", "a\n"} {
		if c, err := p.Join(name); err == nil {
			t.Errorf("join %q: %s", name, c)
		}
	}
}

// FuzzParsePath: what is accepted is canonical, made of valid names, and parses to itself.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/docs/a", "//", "/docs/../x", "/a\x00", "/docs/%2e%2e/x", "/ü/\u2028", "/.cellgate/tmp", "a;b=c/d?e#f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ParsePath(raw)
		if err != nil {
			if fault.KindOf(err) != fault.Invalid {
				t.Fatalf("%q: %v", raw, err)
			}
			return
		}
		s := p.String()
		if !utf8.ValidString(s) || strings.Contains(s, "//") || len(s) > 1 && strings.HasSuffix(s, "/") {
			t.Fatalf("%q became %q", raw, s)
		}
		if again, err := ParsePath(s); err != nil || again != p {
			t.Fatalf("%q is not its own path: %v, %v", s, again, err)
		}
		n := 0
		for name := range strings.SplitSeq(strings.Trim(s, "/"), "/") {
			if name == "" {
				continue
			}
			n++
			if err := mounts.ValidName(name); err != nil {
				t.Fatalf("%q holds %q: %v", s, name, err)
			}
		}
		if n != p.Depth() {
			t.Fatalf("%q: depth %d, %d names", s, p.Depth(), n)
		}
	})
}
