package webdav

import (
	"net/http"
	"net/url"
	"testing"

	"cellgate/internal/fault"
)

func testHandler() *Handler {
	return &Handler{prefix: "/dav", cfg: Config{Host: func(r *http.Request) string { return r.Host }}}
}

// RFC 4918 §10.3 and §8.3: what Destination and Resource-Tag may be.
func TestReference(t *testing.T) {
	tests := []struct {
		in, want string // "": refused; "elsewhere": another server
	}{
		{"http://box/dav/docs/a", "/docs/a"},
		{"https://BOX:443/dav/docs/a", "/docs/a"},
		{"/dav/docs/a%20b%2525/", "/docs/a b%25"},
		{"/dav", "/"},
		{"/dav/docs//a", "/docs/a"},
		{"/dav/docs%2Fa", "/docs/a"},
		{"//box/dav/docs", "/docs"},
		{"http://other/dav/docs/a", "elsewhere"},
		{"http://box:8080/dav/docs/a", "elsewhere"},
		{"http://box/davx/docs", "elsewhere"},
		{"http://box/other", "elsewhere"},
		{"/dav/docs/../x", ""},
		{"/dav/docs/%2e%2e/x", ""},
		{"/dav/docs/.", ""},
		{"/dav/a%00", ""},
		{"/dav/a%0Ab", ""},
		{"/dav/a%E2%80%A8", ""},
		{"/dav/%FF", ""},
		{"/dav/a?b", ""},
		{"/dav/a#b", ""},
		{"/dav/%zz", ""},
		{"http://u:p@box/dav/a", ""},
		{"dav/docs", ""},
		{"urn:uuid:1", ""},
		{"http:/dav/a", ""},
		{"", ""},
	}
	h := testHandler()
	for _, tt := range tests {
		p, ok, err := h.reference(&http.Request{Host: "box"}, tt.in)
		got := p.String()
		switch {
		case err != nil && fault.KindOf(err) != fault.Invalid:
			t.Errorf("%q: %v", tt.in, err)
		case err != nil:
			got = ""
		case !ok:
			got = "elsewhere"
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

// CONFORMANCE: names of every kind survive the way out as href and back in.
func TestHrefRoundTrip(t *testing.T) {
	h := testHandler()
	for _, name := range []string{"a", "a b", "100%", "%41", "a#b", "a?b", "a;b=c", "a&b", `"q"`, "'", "<x>", "ü", "日本", "😀", "a+b", "[1]", `back\slash`,
		"~$x", "{}", "^`|", "-x", "]]>", "a:b", "@"} {
		p, ok, err := h.parse("/dav/docs/" + name)
		if err != nil || !ok {
			t.Fatalf("%q: %v", name, err)
		}
		href := string(h.appendHref(nil, p, true))
		u, err := url.Parse(href)
		if err != nil {
			t.Fatalf("%q: %v", href, err)
		}
		back, ok, err := h.parse(u.Path)
		if err != nil || !ok || back != p {
			t.Errorf("%q: %s came back as %v, %v", name, href, back, err)
		}
		if escaped := string(appendText(nil, href)); escaped != href {
			t.Errorf("%q: href %s needs escaping in XML", name, href)
		}
	}
}
