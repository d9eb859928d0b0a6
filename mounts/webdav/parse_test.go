package webdav

import (
	"errors"
	"io"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/studio-b12/gowebdav"
)

// all reads a DAV:multistatus to its end.
func all(text string) (list []entry, err error) {
	m := newMultistatus(strings.NewReader(text))
	for {
		e, err := m.next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, e)
	}
}

const sample = `<?xml version="1.0" encoding="utf-8"?><!-- x --><D:multistatus xmlns:D="DAV:" xmlns:x="urn:x">
<D:response><D:href>/dav/d/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/><x:other/></D:resourcetype></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
<D:response><D:href>http://Host:80/dav/d/a%20%2525&amp;b?x#y</D:href>
<D:propstat><D:prop><D:getetag/><D:getcontentlength>9</D:getcontentlength></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>
<D:propstat><D:status>HTTP/1.1 200 OK</D:status><D:prop><D:getcontentlength> 5 </D:getcontentlength><D:getetag>"t"</D:getetag><x:getetag>"no"</x:getetag>
<D:getlastmodified>Sun, 22 Nov 2026 02:20:30 GMT</D:getlastmodified><D:quota-used-bytes>7</D:quota-used-bytes></D:prop></D:propstat></D:response>
<D:response><D:href>/dav/d/locked</D:href><D:status>HTTP/1.1 423 Locked</D:status></D:response>
<D:responsedescription>words</D:responsedescription></D:multistatus>`

func TestMultistatus(t *testing.T) {
	got, err := all(sample)
	want := []entry{
		{path: []string{"dav", "d"}, dir: true, size: -1, used: -1, free: -1},
		{path: []string{"dav", "d", "a %25&b"}, host: "Host", size: 5, tag: "t", tagged: true, used: 7, free: -1, modified: time.Date(2026, 11, 22, 2, 20, 30, 0, time.UTC)},
		{path: []string{"dav", "d", "locked"}, size: -1, used: -1, free: -1, status: 423},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	for i := range len(sample) - len("</D:multistatus>") { // cut off anywhere it is an error
		if _, err := all(sample[:i]); err == nil {
			t.Fatalf("cut off at %d: no error", i)
		}
	}
}

func TestHostileXML(t *testing.T) {
	wrap := func(s string) string { return `<D:multistatus xmlns:D="DAV:">` + s + `</D:multistatus>` }
	long := strings.Repeat("x", 300_000)
	for name, text := range map[string]string{
		"entities":       `<!DOCTYPE a [<!ENTITY x "` + long[:100] + `">]>` + wrap(`<D:response><D:href>&x;</D:href></D:response>`),
		"unknown entity": wrap(`<D:response><D:href>&x;</D:href></D:response>`), "other root": `<html><body/></html>`, "no namespace": `<multistatus></multistatus>`,
		"charset": `<?xml version="1.0" encoding="utf-7"?>` + wrap(""), "deep": wrap(strings.Repeat("<a>", 100)), "endless name": wrap("<" + long),
		"endless attribute": wrap(`<a b="` + long), "endless text": wrap("<D:response><D:href>" + long), "endless comment": wrap("<!--" + long),
		"endless space": "\n" + strings.Repeat(" ", 300_000), "many props": wrap("<D:response>" + strings.Repeat("<x/>", 3000) + "</D:response>"), "nothing": "", "binary": "\x00\xff",
		"long text": wrap("<D:response><D:href>/" + long[:20_000] + "</D:href></D:response>"), "mismatch": wrap("<D:response></D:href>"),
	} {
		if got, err := all(text); !errors.Is(err, errXML) && !errors.Is(err, errTooBig) {
			t.Errorf("%s: %v, %v; want an error", name, got, err)
		}
	}
}

func TestLocation(t *testing.T) {
	for href, want := range map[string][]string{
		"/a/b": {"a", "b"}, "/a//b/": {"a", "b"}, "/": {}, "/a%2Fb": {"a/b"}, "/%": nil, "/a/../b": nil, "/%2e%2E/b": nil, "": nil, "a": nil, "http://h": {}, "http://h/a": {"a"}, "://x": nil,
		"http:///a": nil, "http://[::1]:80/a%20b": {"a b"}, "/http://x/y": {"http:", "x", "y"}, "http://u:p@h/a": {"a"},
	} {
		if _, got := location(href); !reflect.DeepEqual(got, want) {
			t.Errorf("location(%q) = %q, want %q", href, got, want)
		}
	}
}

func TestContentRange(t *testing.T) {
	for v, want := range map[string]bool{
		"bytes 0-0/1": true, "bytes 5-9/100": true, "bytes 5-9/9": false, "bytes 9-5/10": false, "bytes */10": false, "bytes 5-9/*": false, "": false, "bytes -1-5/9": false, "items 0-0/1": false,
		"bytes 0-99999999999999999999/5": false,
	} {
		if _, _, ok := contentRange(v); ok != want {
			t.Errorf("contentRange(%q): %v", v, ok)
		}
	}
}

// TestEncode: names get others and come back, and no two get the same.
func TestEncode(t *testing.T) {
	for _, dots := range []string{"", ".", ".cellgate"} {
		k := kind{dots: dots}
		seen := map[string]string{}
		for _, name := range []string{
			".a", "%2Ea", "%252Ea", "%25252Ea", "%25a", "%2ea", "a", "%", ".cellgate", "%2Ecellgate", "%252Ecellgate", ".cellgate-x", "..", "%2E", "%25", "..a", ".CELLGATE", "%2ECELLGATE", "%25%2Ea",
		} {
			e := k.encode(name)
			if other, ok := seen[e]; ok || k.decode(e) != name || dots != "" && strings.HasPrefix(e, dots) {
				t.Errorf("%q: encode(%q) = %q, decode gives %q; taken by %q", dots, name, e, k.decode(e), other)
			}
			seen[e] = name
		}
	}
}

func TestChallenges(t *testing.T) {
	got := challenges([]string{`Basic realm="a, \"nonce\"", charset=UTF-8, Digest realm=x , nonce="n,1",qop="auth,auth-int",stale=TRUE`, `Negotiate abc==, Bearer`, `,,=;"`})
	if len(got) != 4 && len(got) != 5 {
		t.Fatalf("%+v", got)
	}
	if got[0].scheme != "basic" || got[0].params["realm"] != `a, "nonce"` || got[1].scheme != "digest" || got[1].params["nonce"] != "n,1" {
		t.Errorf("%+v", got)
	}
	d, err := newDigest(got)
	if err != nil || !d.qop || !d.stale || d.realm != "x" {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestDigest is the example of RFC 7616 §3.9.1, but for the client's nonce, which is ours to choose.
func TestDigest(t *testing.T) {
	c := challenges([]string{
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
	})
	d, err := newDigest(c)
	if err != nil || d.algorithm != "SHA-256" {
		t.Fatalf("%+v, %v", d, err)
	}
	first, second := d.sign("Mufasa", "Circle of Life", "GET", "/dir/index.html"), d.sign("Mufasa", "Circle of Life", "GET", "/dir/index.html")
	if !strings.Contains(first, "nc=00000001") || !strings.Contains(second, "nc=00000002") || !strings.Contains(first, "algorithm=SHA-256") {
		t.Errorf("%s\n%s", first, second)
	}
	if q := quoted(`a"b\c`); q != `"a\"b\\c"` {
		t.Error(q)
	}
}

func FuzzMultistatus(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`<D:multistatus xmlns:D="DAV:"><D:response><D:href>/a</D:href>`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newMultistatus(strings.NewReader(string(data)))
		for range len(data) + 1 {
			e, err := m.next()
			if err != nil {
				return
			}
			for _, segment := range e.path {
				if segment == "" || segment == "." || segment == ".." {
					t.Fatalf("a path of %q", e.path)
				}
			}
			if e.size < -1 || e.used < -1 || e.free < -1 || strings.ContainsAny(e.tag, "\" \n") {
				t.Fatalf("%+v", e)
			}
		}
		t.Fatal("there is no end")
	})
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Basic realm="a, \"nonce\"", charset=UTF-8, Digest realm=x , nonce="n,1",qop="auth,auth-int"`)
	f.Add(`Digest nonce`)
	f.Fuzz(func(t *testing.T, header string) {
		got := challenges([]string{header})
		if len(got) > maxChallenges+1 {
			t.Fatalf("%d challenges", len(got))
		}
		d, err := newDigest(got)
		if err != nil {
			return
		}
		if signed := d.sign(`a"b`, "p", "GET", "/"); strings.ContainsAny(signed, "\r\n\x00") {
			t.Fatalf("%q", signed)
		}
	})
}

func FuzzLocation(f *testing.F) {
	f.Add("http://h/a%20b?x")
	f.Fuzz(func(t *testing.T, href string) {
		_, path := location(href)
		if path == nil {
			return
		}
		again := "/" + strings.Join(path, "/")
		for _, s := range path {
			if strings.Contains(s, "/") {
				return
			}
		}
		if _, got := location(gowebdav.PathEscape(again)); !reflect.DeepEqual(got, path) {
			t.Fatalf("%q becomes %q", path, got)
		}
		if _, err := url.Parse("http://h" + gowebdav.PathEscape(again)); err != nil {
			t.Fatal(err)
		}
	})
}
