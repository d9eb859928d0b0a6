package webdav

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseIf(t *testing.T) {
	tests := []struct {
		in   string
		want ifHeader // nil: refused
	}{
		{`(<urn:a>)`, ifHeader{{"", []ifCond{{token: "urn:a"}}}}},
		{` ( <urn:a> ["e t,(>"] ) `, ifHeader{{"", []ifCond{{token: "urn:a"}, {etag: `"e t,(>"`}}}}},
		{`(Not <urn:a>)(NOT ["x"])`, ifHeader{{"", []ifCond{{not: true, token: "urn:a"}}}, {"", []ifCond{{not: true, etag: `"x"`}}}}},
		{`([W/"x]y"])`, ifHeader{{"", []ifCond{{etag: `W/"x]y"`}}}}},
		{`</a> (<urn:a>) (<urn:b>) <http://h/b> ([""])`,
			ifHeader{{"/a", []ifCond{{token: "urn:a"}}}, {"/a", []ifCond{{token: "urn:b"}}}, {"http://h/b", []ifCond{{etag: `""`}}}}},
		{``, nil},
		{`()`, nil},
		{`(Not)`, nil},
		{`(<urn:a>`, nil},
		{`(<>)`, nil},
		{`([x])`, nil},
		{`(["x")`, nil},
		{`<urn:a>`, nil},
		{`</a>`, nil},
		{`</a> </b> (<urn:a>)`, nil},
		{`(<urn:a>) </a> (<urn:b>)`, nil}, // RFC 4918 §10.4.2: tagged or not, never both
		{`(<urn:a>) x`, nil},
		{`urn:a`, nil},
		{strings.Repeat(`(<urn:a>)`, maxIfConditions+1), nil},
	}
	for _, tt := range tests {
		got, err := parseIf(tt.in)
		if (err == nil) != (tt.want != nil) {
			t.Errorf("parseIf(%q): got error %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(ifList{}, ifCond{})); diff != "" {
			t.Errorf("parseIf(%q): %s", tt.in, diff)
		}
	}
}

// RFC 4918 §10.4.3 to §10.4.9.
func TestIfHolds(t *testing.T) {
	states := map[string]state{
		"":   {etag: `"1"`, tokens: []string{"urn:mine"}},
		"/b": {etag: `"2"`},
	}
	tests := []struct {
		in   string
		want bool
	}{
		{`(<urn:mine>)`, true},
		{`(<urn:mine> ["1"])`, true},
		{`(<urn:mine> ["2"])`, false},
		{`(<urn:other>)`, false},
		{`(Not <urn:other>)`, true},
		{`(Not <urn:mine>)`, false},
		{`(<DAV:no-lock>)`, false},
		{`(Not <DAV:no-lock>)`, true},
		{`(<urn:mine> [W/"1"])`, false},
		{`(<urn:other>) (["1"])`, true},
		{`(<urn:mine> ["bogus"]) (Not <DAV:no-lock> ["bogus"])`, false}, // litmus: fail_complex_cond_put
		{`</b> (["2"])`, true},
		{`</b> (["1"])`, false},
		{`</b> (<urn:mine>)`, false},
		{`</c> (Not ["1"])`, true},
		{`</c> ([""])`, false},
	}
	for _, tt := range tests {
		h, err := parseIf(tt.in)
		if err != nil {
			t.Fatalf("parseIf(%q): %v", tt.in, err)
		}
		if got := h.holds(func(tag string) state { return states[tag] }); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.in, got, tt.want)
		}
	}
}

func FuzzIf(f *testing.F) {
	f.Add(`(<urn:a> ["x"]) (Not <DAV:no-lock>)`)
	f.Add(`</a> (<urn:a>) <http://h/b> ([W/"x"])`)
	f.Add(`(Not`)
	f.Fuzz(func(t *testing.T, in string) {
		h, err := parseIf(in)
		if err != nil {
			return
		}
		if len(h) == 0 {
			t.Fatalf("%q: parsed to nothing, which would hold always", in)
		}
		for _, l := range h {
			if len(l.conds) == 0 {
				t.Fatalf("%q: an empty list", in)
			}
		}
		h.tokens()
		h.holds(func(string) state { return state{etag: `"x"`, tokens: []string{"urn:a"}} })
	})
}
