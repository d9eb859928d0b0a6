package webdav

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestReadXML(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("<a>", n) + strings.Repeat("</a>", n) }
	tests := []struct {
		name, in string
		want     error
	}{
		{"empty", "", nil},
		{"one", `<?xml version="1.0" encoding="utf-8"?><a/>`, nil},
		{"prefix", `<x:a xmlns:x="u"><x:b y="1"/></x:a>`, nil},
		{"only blanks", " \n", errXMLShape},
		{"only a comment", "<!-- -->", errXMLShape},
		{"not closed", "<a>", errXMLShape},
		{"wrong end", "<a></b>", errXMLShape},
		{"two roots", "<a/><b/>", errXMLShape},
		{"text outside", "<a/>x", errXMLShape},
		{"attribute twice", `<a x="1" x="2"/>`, errXMLShape},
		{"unknown entity", "<a>&bomb;</a>", errXMLShape},
		{"prefix unknown", "<x:a/>", errXMLSpace},
		{"attribute's prefix unknown", `<a x:b="1"/>`, errXMLSpace},
		{"prefix unbound", `<a xmlns:x=""/>`, errXMLSpace}, // litmus: propfind_invalid2
		{"xml rebound", `<a xmlns:xml="u"/>`, errXMLSpace},
		{"xmlns as prefix", `<xmlns:a/>`, errXMLSpace},
		{"document type", `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, errXMLDTD},
		{"external entity", `<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>`, errXMLDTD},
		{"as deep as allowed", deep(maxXMLDepth), nil},
		{"too deep", deep(maxXMLDepth + 1), errXMLBounds},
		{"too many", "<a>" + strings.Repeat("<b/>", maxXMLElements) + "</a>", errXMLBounds},
		{"too many pieces of text", "<a>" + strings.Repeat("x<!---->", maxXMLElements) + "</a>", errXMLBounds},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := readXML(strings.NewReader(tt.in)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// W03: a hostile body of 1 MiB costs milliseconds.
func TestW03XMLIsBounded(t *testing.T) {
	const size = 1 << 20
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	for name, in := range map[string]string{
		"nesting":    fill("<a>"),
		"siblings":   "<a>" + fill("<b/>"),
		"attributes": "<a " + fill(`b="" `) + "/>",
		"namespaces": fill(`<a xmlns:b="c">`),
		"text":       "<a>" + fill("x<!---->"),
		"cdata":      "<a>" + fill("<![CDATA[x]]>"),
		"name":       "<" + fill("a"),
		"comment":    "<!--" + fill("x"),
		"billion":    `<!DOCTYPE a [` + fill(`<!ENTITY b "&b;&b;">`) + `]><a>&b;</a>`,
	} {
		start := time.Now()
		_, err := readXML(strings.NewReader(in))
		if took := time.Since(start); err == nil || took > time.Second {
			t.Errorf("%s: got error %v after %v", name, err, took)
		}
	}
}

// What is written stands by itself: read back under another root, it is the same.
func TestAppendElement(t *testing.T) {
	tests := []struct{ in, want string }{
		{`<D:r xmlns:D="DAV:"><D:a/></D:r>`, `<D:a xmlns:D="DAV:"/>`},
		{`<r xmlns="u"><a><b xmlns=""/></a></r>`, `<a xmlns="u"><b xmlns=""/></a>`},
		{`<r xmlns:x="u" xml:lang="de"><x:a x:y="1 &lt; &quot;2&quot;" z="3">t &amp; <x:b/></x:a></r>`,
			`<x:a xmlns:x="u" x:y="1 &lt; &#34;2&#34;" z="3" xml:lang="de">t &amp; <x:b/></x:a>`},
		{`<r xmlns:x="u"><x:a><x:b xmlns:x="v"/><x:c/></x:a></r>`, `<x:a xmlns:x="u"><x:b xmlns:x="v"/><x:c/></x:a>`},
		{`<r><a><![CDATA[]]]]>&gt;</a></r>`, `<a>]]&gt;</a>`},
	}
	for _, tt := range tests {
		root, err := readXML(strings.NewReader(tt.in))
		if err != nil {
			t.Fatalf("%s: %v", tt.in, err)
		}
		if got := string(appendElement(nil, root.kids[0])); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.in, got, tt.want)
		}
	}
}

func TestAppendText(t *testing.T) {
	for in, want := range map[string]string{
		`a<b>&"c"`:       `a&lt;b&gt;&amp;"c"`,
		"]]>":            "]]&gt;",
		"a\x00b\x1bc":    "a\uFFFDb\uFFFDc",
		"\xff\uFFFE\r\n": "\uFFFD\uFFFD&#13;\n",
		"ünï😀":           "ünï😀",
	} {
		if got := string(appendText(nil, in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// Whatever a client sends: no panic, and what was understood can be written as XML that a strict reader takes, with the same meaning.
func FuzzXML(f *testing.F) {
	f.Add(`<D:propfind xmlns:D="DAV:"><D:prop><D:getetag/><x:y xmlns:x="u" z="1"/></D:prop></D:propfind>`)
	f.Add(`<propfind xmlns="DAV:"><allprop/><include><quota-used-bytes/></include></propfind>`)
	f.Add(`<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:shared/></D:lockscope><D:locktype><D:write/></D:locktype><D:owner>a&amp;<b/></D:owner></D:lockinfo>`)
	f.Add(`<D:propertyupdate xmlns:D="DAV:" xml:lang="de"><D:set><D:prop><a xmlns="">1</a></D:prop></D:set></D:propertyupdate>`)
	f.Fuzz(func(t *testing.T, in string) {
		root, err := readXML(strings.NewReader(in))
		if err != nil || root == nil {
			return
		}
		newPlan(root)
		lockRequest(root)
		out := appendElement(nil, root)
		again, err := readXML(strings.NewReader(string(out)))
		if err != nil {
			t.Fatalf("%q was written as %q: %v", in, out, err)
		}
		if twice := appendElement(nil, again); string(twice) != string(out) {
			t.Fatalf("%q and then %q", out, twice)
		}
		d := xml.NewDecoder(strings.NewReader(string(out)))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%q: %v", out, err)
			}
		}
	})
}
