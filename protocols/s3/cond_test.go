package s3

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
)

// RELIABILITY D14: of many who race with one condition, exactly one wins.
func TestRacesWithConditions(t *testing.T) {
	b := openBox(t, nil)
	rounds := 40
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		key := fmt.Sprintf("race/%d", round)
		for _, way := range []string{"If-None-Match", "If-Match"} {
			value := "*"
			if way == "If-Match" {
				value = b.get(key).header.Get("Etag")
			}
			var won, lost atomic.Int32
			var wg sync.WaitGroup
			for i := range 12 {
				body := fmt.Sprintf("%s %d", way, i)
				if i%4 == 0 {
					body += string(many(smallBody))
				}
				r := b.request(call{method: "PUT", path: "/docs/" + key, body: body, header: map[string]string{way: value}})
				wg.Go(func() {
					switch a := b.send(r); a.status {
					case http.StatusOK:
						won.Add(1)
					case http.StatusPreconditionFailed, http.StatusConflict:
						lost.Add(1)
					default:
						t.Errorf("%s: %v %s", way, a, a.body)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 || lost.Load() != 11 {
				t.Fatalf("%s: %d won and %d lost", way, won.Load(), lost.Load())
			}
		}
	}
}

func TestConditions(t *testing.T) {
	b := openBox(t, nil)
	tag := b.put("f", "one").header.Get("Etag")
	past, future := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		method, name, value string
		want                int
	}{
		{"GET", "If-Match", tag, 200}, {"GET", "If-Match", strings.Trim(tag, `"`), 200}, {"GET", "If-Match", `"x"`, 412}, {"GET", "If-Match", "*", 200},
		{"GET", "If-None-Match", tag, 304}, {"HEAD", "If-None-Match", "W/" + tag, 304}, {"GET", "If-None-Match", `"x"`, 200},
		{"GET", "If-Modified-Since", future, 304}, {"GET", "If-Modified-Since", past, 200}, {"GET", "If-Unmodified-Since", past, 412}, {"HEAD", "If-Unmodified-Since", future, 200},
		{"GET", "If-Modified-Since", "nonsense", 200},
		{"PUT", "If-Match", `"x"`, 412}, {"PUT", "If-None-Match", "*", 412}, {"PUT", "If-None-Match", tag, 412}, {"DELETE", "If-Match", `"x"`, 412},
	} {
		a := b.do(call{method: c.method, path: "/docs/f", header: map[string]string{c.name: c.value}})
		if a.status != c.want || a.status == 304 && (a.header.Get("Etag") != tag || a.body != "") {
			t.Errorf("%s %s: %s: got %v, want %d", c.method, c.name, c.value, a, c.want)
		}
		if g := b.get("f"); g.body != "one" {
			t.Fatalf("%s %s: %s: it is %q now", c.method, c.name, c.value, g.body)
		}
	}
	for name, want := range map[string]string{"If-Match": "404 NoSuchKey"} {
		if a := b.do(call{method: "PUT", path: "/docs/none", body: "x", header: map[string]string{name: tag}}); a.String() != want {
			t.Errorf("%s on what is not there: %v", name, a)
		}
	}
	// A write through another door is another content.
	up, err := b.As("alice").Create(t.Context(), gatewaytest.Path("/docs/f"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Abort()
	up.Write([]byte("two"))
	if _, _, err := up.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := b.do(call{method: "PUT", path: "/docs/f", body: "x", header: map[string]string{"If-Match": tag}}); a.status != 412 {
		t.Errorf("after a change by another door: %v", a)
	}
	g := b.get("f")
	if opaque := g.header.Get("Etag"); !strings.HasSuffix(opaque, `-0"`) {
		t.Errorf("the tag of what came by another door is %s", opaque)
	}
	if a := b.do(call{method: "PUT", path: "/docs/f", body: "three", header: map[string]string{"If-Match": g.header.Get("Etag")}}); a.status != 200 {
		t.Errorf("with the opaque tag: %v", a)
	}
}

func TestRanges(t *testing.T) {
	b := openBox(t, nil)
	b.put("f", "0123456789")
	b.put("empty", "")
	for v, want := range map[string]string{
		"bytes=0-3": "206 0123", "bytes=7-": "206 789", "bytes=-2": "206 89", "bytes=8-100": "206 89", "bytes=-100": "206 0123456789", "bytes=0-0": "206 0",
		"bytes=10-": "416 ", "bytes=20-30": "416 ", "bytes=-0": "416 ", "bytes=3-1": "200 0123456789", "bytes=0-1,3-4": "200 0123456789", "chars=0-1": "200 0123456789",
		"bytes=a-b": "200 0123456789", "bytes=": "200 0123456789", "bytes=0-99999999999999999999999": "206 0123456789",
	} {
		a := b.do(call{method: "GET", path: "/docs/f", header: map[string]string{"Range": v}})
		if got := fmt.Sprintf("%d %s", a.status, a.body); got != want && !(a.status == 416 && strings.HasPrefix(want, "416") && a.code() == "InvalidRange") {
			t.Errorf("%s: got %s, want %s", v, got, want)
		}
	}
	if a := b.do(call{method: "GET", path: "/docs/empty", header: map[string]string{"Range": "bytes=0-"}}); a.String() != "416 InvalidRange" {
		t.Errorf("of an empty object: %v", a)
	}
}

func TestCopy(t *testing.T) {
	b := openBox(t, nil)
	meta := map[string]string{"X-Amz-Meta-Color": "blue", "Content-Type": "text/x-test", "X-Amz-Tagging": "k=v", "Cache-Control": "no-store"}
	if a := b.do(call{method: "PUT", path: "/docs/ä b", body: "content", header: meta}); a.status != 200 {
		t.Fatal(a)
	}
	tag := b.get("ä b").header.Get("Etag")
	copied := func(to string, hd map[string]string) answered {
		all := map[string]string{"X-Amz-Copy-Source": "/docs/%C3%A4%20b"}
		for k, v := range hd {
			all[k] = v
		}
		return b.do(call{method: "PUT", path: to, header: all})
	}
	for name, c := range map[string]struct {
		to    string
		hd    map[string]string
		want  string
		color string
		tags  string
	}{
		"plain":              {"/docs/x/1", nil, "200 ", "blue", "1"},
		"to another bucket":  {"/homes/1", nil, "200 ", "blue", "1"},
		"other metadata":     {"/docs/x/2", map[string]string{"X-Amz-Metadata-Directive": "REPLACE", "X-Amz-Meta-Color": "red"}, "200 ", "red", "1"},
		"no metadata":        {"/docs/x/3", map[string]string{"X-Amz-Metadata-Directive": "REPLACE"}, "200 ", "", "1"},
		"other tags":         {"/docs/x/4", map[string]string{"X-Amz-Tagging-Directive": "REPLACE", "X-Amz-Tagging": "a=1&b=2"}, "200 ", "blue", "2"},
		"with a checksum":    {"/docs/x/5", map[string]string{"X-Amz-Checksum-Algorithm": "CRC32C"}, "200 ", "blue", "1"},
		"as it should be":    {"/docs/x/6", map[string]string{"X-Amz-Copy-Source-If-Match": tag}, "200 ", "blue", "1"},
		"not as it should":   {"/docs/x/7", map[string]string{"X-Amz-Copy-Source-If-Match": "x"}, "412 PreconditionFailed", "", ""},
		"as it should not":   {"/docs/x/8", map[string]string{"X-Amz-Copy-Source-If-None-Match": tag}, "412 PreconditionFailed", "", ""},
		"onto something":     {"/docs/x/9", map[string]string{"If-None-Match": "*"}, "200 ", "blue", "1"},
		"to itself":          {"/docs/ä b", nil, "400 InvalidRequest", "blue", "1"},
		"a wrong directive":  {"/docs/x/10", map[string]string{"X-Amz-Metadata-Directive": "MOVE"}, "400 InvalidArgument", "", ""},
		"of nothing":         {"/docs/x/11", map[string]string{"X-Amz-Copy-Source": "/docs/none"}, "404 NoSuchKey", "", ""},
		"of no bucket":       {"/docs/x/12", map[string]string{"X-Amz-Copy-Source": "/nobucket/none"}, "404 NoSuchBucket", "", ""},
		"of no key":          {"/docs/x/13", map[string]string{"X-Amz-Copy-Source": "docs"}, "400 InvalidArgument", "", ""},
		"of another version": {"/docs/x/14", map[string]string{"X-Amz-Copy-Source": "/docs/%C3%A4%20b?versionId=x"}, "404 NoSuchVersion", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if a := copied(c.to, c.hd); a.String() != c.want {
				t.Errorf("got %v %s, want %s", a, a.body, c.want)
			}
			g := b.do(call{method: "GET", path: c.to, header: map[string]string{"X-Amz-Checksum-Mode": "ENABLED"}})
			if strings.HasPrefix(c.want, "200") && (g.body != "content" || g.header.Get("X-Amz-Meta-Color") != c.color || g.header.Get("X-Amz-Tagging-Count") != c.tags || g.header.Get("Etag") != tag) {
				t.Errorf("it is %q %v", g.body, g.header)
			}
			if algo := c.hd["X-Amz-Checksum-Algorithm"]; algo != "" && g.header.Get("X-Amz-Checksum-"+algo) != sumOf(algo, []byte("content")) {
				t.Errorf("checksum: %v", g.header)
			}
		})
	}
	if a := copied("/docs/x/1", map[string]string{"If-None-Match": "*"}); a.String() != "412 PreconditionFailed" {
		t.Errorf("onto what is there: %v", a)
	}
	// Onto itself, as programs change metadata.
	if a := copied("/docs/ä b", map[string]string{"X-Amz-Metadata-Directive": "REPLACE", "X-Amz-Meta-Color": "green"}); a.status != 200 {
		t.Errorf("onto itself: %v %s", a, a.body)
	}
	if g := b.get("ä b"); g.body != "content" || g.header.Get("X-Amz-Meta-Color") != "green" || g.header.Get("X-Amz-Tagging-Count") != "1" || g.header.Get("Etag") != tag {
		t.Errorf("onto itself: %q %v", g.body, g.header)
	}
	// Another door's content has none of the metadata of the former.
	up, err := b.As("alice").Create(t.Context(), gatewaytest.Path("/docs/ä b"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Abort()
	up.Write([]byte("new"))
	if _, _, err := up.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g := b.get("ä b"); g.header.Get("X-Amz-Meta-Color") != "" || g.header.Get("X-Amz-Tagging-Count") != "" {
		t.Errorf("metadata of what was replaced: %v", g.header)
	}
}

func TestTagging(t *testing.T) {
	b := openBox(t, nil)
	b.put("f", "x")
	set := func(tags ...string) string {
		s := "<Tagging><TagSet>"
		for _, tag := range tags {
			s += "<Tag><Key>" + tag + "</Key><Value>v</Value></Tag>"
		}
		return s + "</TagSet></Tagging>"
	}
	var eleven []string
	for i := range 11 {
		eleven = append(eleven, fmt.Sprint("k", i))
	}
	for _, c := range []struct{ body, want string }{
		{set("a", "b"), "200 "}, {set("a", "a"), "400 InvalidTag"}, {set(eleven...), "400 InvalidTag"}, {set(strings.Repeat("k", 129)), "400 InvalidTag"},
		{set(""), "400 InvalidTag"}, {"<Tagging>", "400 MalformedXML"}, {"<Other/>", "400 MalformedXML"},
	} {
		if a := b.do(call{method: "PUT", path: "/docs/f", query: "tagging", body: c.body}); a.String() != c.want {
			t.Errorf("%.60s: %v, want %s", c.body, a, c.want)
		}
	}
	if a := b.do(call{method: "GET", path: "/docs/f", query: "tagging"}); strings.Count(a.body, "<Tag>") != 2 {
		t.Errorf("tags: %s", a.body)
	}
	b.put("f", "x") // the same content, and yet another object
	if a := b.do(call{method: "GET", path: "/docs/f", query: "tagging"}); strings.Contains(a.body, "<Tag>") {
		t.Errorf("tags of what was replaced: %s", a.body)
	}
	b.do(call{method: "PUT", path: "/docs/f", query: "tagging", body: set("a")})
	if a := b.do(call{method: "DELETE", path: "/docs/f", query: "tagging"}); a.status != 204 {
		t.Error(a)
	}
	if a := b.do(call{method: "HEAD", path: "/docs/f"}); a.header.Get("X-Amz-Tagging-Count") != "" {
		t.Errorf("tags are left: %v", a.header)
	}
}

func TestDeleteObjects(t *testing.T) {
	b := openBox(t, nil)
	body := "<Delete>"
	for i := range 40 {
		b.put(fmt.Sprintf("d/%d", i), "x")
		body += fmt.Sprintf("<Object><Key>d/%d</Key></Object>", i)
	}
	b.put("keep", "x")
	body += "<Object><Key>none</Key></Object><Object><Key>a//b</Key></Object><Object><Key>keep</Key><VersionId>old</VersionId></Object></Delete>"
	a := b.do(call{method: "POST", path: "/docs", query: "delete", body: body})
	if a.status != 200 || strings.Count(a.body, "<Deleted>") != 42 || strings.Count(a.body, "<Error>") != 1 {
		t.Errorf("got %v %s", a, a.body)
	}
	if got := b.keys("docs"); !slices.Equal(got, []string{"keep"}) {
		t.Errorf("keys are %q", got)
	}
	quiet := b.do(call{method: "POST", path: "/docs", query: "delete", body: "<Delete><Quiet>true</Quiet><Object><Key>keep</Key></Object></Delete>"})
	if quiet.status != 200 || strings.Contains(quiet.body, "<Deleted>") {
		t.Errorf("quietly: %v %s", quiet, quiet.body)
	}
}

func TestBuckets(t *testing.T) {
	b := openBox(t, nil)
	do := func(method, path string) string { return b.do(call{method: method, path: path}).String() }
	for _, c := range [][3]string{
		{"PUT", "/mine", "200 "}, {"PUT", "/mine", "200 "}, {"HEAD", "/mine", "200 "}, {"PUT", "/mine/x", "200 "}, {"DELETE", "/mine", "409 BucketNotEmpty"},
		{"DELETE", "/mine/x", "204 "}, {"DELETE", "/mine", "204 "}, {"HEAD", "/mine", "404 "}, {"DELETE", "/mine", "404 NoSuchBucket"}, {"PUT", "/x", "400 InvalidBucketName"},
	} {
		if got := do(c[0], c[1]); got != c[2] {
			t.Errorf("%s %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
	if a := b.do(call{method: "PUT", path: "/drop", key: bob}); a.status < 400 {
		t.Errorf("another's bucket: %v", a)
	}
	a := b.do(call{method: "GET", path: "/"})
	for _, name := range []string{"docs", "drop", "homes", "pair"} {
		if !strings.Contains(a.body, "<Name>"+name+"</Name>") {
			t.Errorf("%s is not listed: %s", name, a.body)
		}
	}
	one := b.do(call{method: "GET", path: "/", query: "max-buckets=1&prefix=d"})
	_, rest, _ := strings.Cut(one.body, "<ContinuationToken>")
	next, _, ok := strings.Cut(rest, "<")
	two := b.do(call{method: "GET", path: "/", query: "prefix=d&continuation-token=" + next})
	if !ok || !strings.Contains(one.body, ">docs<") || strings.Contains(one.body, ">drop<") || !strings.Contains(two.body, ">drop<") || strings.Contains(two.body, ">docs<") {
		t.Errorf("pages of buckets: %s %s", one.body, two.body)
	}
	without := openBox(t, func(c *Config) { c.Buckets = nil })
	if a := without.do(call{method: "PUT", path: "/mine"}); a.String() != "403 AccessDenied" {
		t.Errorf("without Buckets: %v", a)
	}
}

func TestCORS(t *testing.T) {
	b := openBox(t, func(c *Config) {
		c.CORS = []CORSRule{{Origins: []string{"https://*.example.org"}, Methods: []string{"GET", "PUT"}, Headers: []string{"x-amz-*", "Authorization"}, Expose: []string{"ETag"}, MaxAge: 60}}
	})
	ask := func(origin, method, headers string) answered {
		r, err := http.NewRequestWithContext(t.Context(), "OPTIONS", "http://"+b.addr+"/docs/f", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", method)
		r.Header.Set("Access-Control-Request-Headers", headers)
		return b.send(r)
	}
	if a := ask("https://app.example.org", "PUT", "X-Amz-Date, authorization"); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "https://app.example.org" || a.header.Get("Access-Control-Max-Age") != "60" {
		t.Errorf("allowed: %v %v", a, a.header)
	}
	for _, c := range [][3]string{{"https://example.com", "PUT", ""}, {"https://app.example.org", "DELETE", ""}, {"https://app.example.org", "PUT", "x-other"}, {"http://app.example.org", "GET", ""}} {
		if a := ask(c[0], c[1], c[2]); a.status != 403 || a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%q: %v %v", c, a, a.header)
		}
	}
	b.put("f", "x")
	a := b.do(call{method: "GET", path: "/docs/f", header: map[string]string{"Origin": "https://app.example.org"}})
	if a.header.Get("Access-Control-Allow-Origin") != "https://app.example.org" || a.header.Get("Access-Control-Expose-Headers") != "ETag" {
		t.Errorf("GET: %v", a.header)
	}
	if a := b.do(call{method: "GET", path: "/docs/f", header: map[string]string{"Origin": "https://evil.example"}}); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin may read: %v", a.header)
	}
}
