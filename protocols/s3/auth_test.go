package s3

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/policy/identity"
)

// everything is a request of each kind that would change or show something.
var everything = []call{
	{method: "GET", path: "/"}, {method: "GET", path: "/docs"}, {method: "GET", path: "/docs", query: "versions"}, {method: "HEAD", path: "/docs"},
	{method: "PUT", path: "/newbucket"}, {method: "DELETE", path: "/docs"}, {method: "GET", path: "/docs/seen"}, {method: "HEAD", path: "/docs/seen"},
	{method: "PUT", path: "/docs/new", body: "x"}, {method: "DELETE", path: "/docs/seen"}, {method: "PUT", path: "/docs/new/"},
	{method: "POST", path: "/docs", query: "delete", body: "<Delete><Object><Key>seen</Key></Object></Delete>"},
	{method: "PUT", path: "/docs/new", header: map[string]string{"X-Amz-Copy-Source": "/docs/seen"}}, {method: "POST", path: "/docs/new", query: "uploads"},
	{method: "GET", path: "/docs", query: "uploads"}, {method: "PUT", path: "/docs/seen", query: "tagging", body: "<Tagging><TagSet/></Tagging>"},
	{method: "GET", path: "/docs/seen", query: "attributes"}, {method: "GET", path: "/docs", query: "acl"}, {method: "GET", path: "/docs", query: "inventory"},
	{method: "PATCH", path: "/docs/seen"},
}

// presign moves a signature to the query.
func presign(t testing.TB, r *http.Request, c call, expires string) {
	t.Helper()
	s := signature{credential: credential{c.key.name, c.when.Format("20060102"), "us-east-1"}, stamp: c.when.Format(stampLayout), headers: []string{"host"}}
	r.Header.Del("Authorization")
	r.Header.Del("X-Amz-Date")
	r.Header.Del("X-Amz-Content-Sha256")
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") {
			s.headers = append(s.headers, lower)
		}
	}
	s.headers, _ = parseSigned(strings.Join(s.headers, ";"))
	q := url.Values{"X-Amz-Algorithm": {algorithm}, "X-Amz-Credential": {s.id + "/" + s.scope()}, "X-Amz-Date": {s.stamp}, "X-Amz-Expires": {expires},
		"X-Amz-SignedHeaders": {strings.Join(s.headers, ";")}}
	if r.URL.RawQuery != "" {
		r.URL.RawQuery += "&"
	}
	r.URL.RawQuery += q.Encode()
	all, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		t.Fatal(err)
	}
	as := *r
	as.Host = r.URL.Host
	value := mac(deriveKey(c.key.value, s.credential), s.toSign(canonicalRequest(&as, all, s.headers, unsignedPayload)))
	r.URL.RawQuery += "&X-Amz-Signature=" + hexOf(value)
}

// RELIABILITY I01: whatever is wrong with a signature, of any kind, on any verb, is refused with 403 and changes nothing.
func TestSignatureMatrix(t *testing.T) {
	b := openBox(t, nil)
	b.put("seen", "content")
	if err := b.Identity.DeleteS3Key(t.Context(), "bob", bob.name); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Identity.AddS3Key(t.Context(), "bob", "", identity.S3Pair{ID: "EXPIREDKEY", Secret: secret.New(bob.value)}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	flip := func(r *http.Request) {
		v := r.Header.Get("Authorization")
		r.Header.Set("Authorization", v[:len(v)-1]+string("0123456789abcdef"[(unhex(v[len(v)-1])+1)%16]))
	}
	presigned := func(c call, expires string) func(*http.Request) {
		return func(r *http.Request) { presign(t, r, c, expires) }
	}
	n := 0
	for i, c := range everything {
		// All networks together may be wrong about one key so often only.
		c.key, c.when = pair{fmt.Sprintf("ALICEKEY%d", i), alice.value}, now
		if _, err := b.Identity.AddS3Key(t.Context(), "alice", "", identity.S3Pair{ID: c.key.name, Secret: secret.New(c.key.value)}, time.Time{}); err != nil {
			t.Fatal(err)
		}
		wrong := pair{c.key.name, "not the secret of alice"}
		with := func(edit func(*call)) call {
			d := c
			edit(&d)
			return d
		}
		for what, bad := range map[string]call{
			"anonymous":      with(func(d *call) { d.edit = func(r *http.Request) { r.Header.Del("Authorization") } }),
			"another secret": with(func(d *call) { d.key = wrong }),
			"no such key":    with(func(d *call) { d.key = pair{"NOSUCHKEY", "x"} }),
			"a deleted key":  with(func(d *call) { d.key = bob }),
			"an expired key": with(func(d *call) { d.key = pair{"EXPIREDKEY", bob.value} }),
			"a flipped bit":  with(func(d *call) { d.edit = flip }),
			"an old clock":   with(func(d *call) { d.when = now.Add(-20 * time.Minute) }),
			"a fast clock":   with(func(d *call) { d.when = now.Add(20 * time.Minute) }),
			"another method": with(func(d *call) {
				d.edit = func(r *http.Request) { r.Method = map[bool]string{true: "HEAD", false: "GET"}[r.Method == "GET"] }
			}),
			"another key":        with(func(d *call) { d.edit = func(r *http.Request) { r.URL.Path, r.URL.RawPath = r.URL.Path+"x", "" } }),
			"a version":          with(func(d *call) { d.edit = func(r *http.Request) { r.URL.RawQuery += "&versionId=null" } }),
			"an unsigned header": with(func(d *call) { d.edit = func(r *http.Request) { r.Header.Set("X-Amz-Meta-Evil", "x") } }),
			"another host":       with(func(d *call) { d.edit = func(r *http.Request) { r.Host = "elsewhere" } }),
			"header and query":   with(func(d *call) { d.edit = func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Signature=x" } }),
			"version 2":          with(func(d *call) { d.edit = func(r *http.Request) { r.Header.Set("Authorization", "AWS ALICEKEY:c2ln") } }),
			"version 2 in query": with(func(d *call) {
				d.edit = func(r *http.Request) {
					r.Header.Del("Authorization")
					r.URL.RawQuery += "&AWSAccessKeyId=ALICEKEY&Signature=x&Expires=99999999999"
				}
			}),
			"presigned, expired":    with(func(d *call) { old := c; old.when = now.Add(-2 * time.Hour); d.edit = presigned(old, "3600") }),
			"presigned, not yet":    with(func(d *call) { soon := c; soon.when = now.Add(time.Hour); d.edit = presigned(soon, "3600") }),
			"presigned for 8 days":  with(func(d *call) { d.edit = presigned(c, "691200") }),
			"presigned for nothing": with(func(d *call) { d.edit = presigned(c, "0") }),
			"presigned by nobody":   with(func(d *call) { e := c; e.key = wrong; d.edit = presigned(e, "3600") }),
			"presigned and changed": with(func(d *call) {
				d.edit = func(r *http.Request) {
					presign(t, r, c, "60")
					r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=60", "Expires=61", 1)
				}
			}),
			"presigned, unsigned header": with(func(d *call) {
				d.edit = func(r *http.Request) { presign(t, r, c, "60"); r.Header.Set("X-Amz-Tagging", "a=b") }
			}),
		} {
			n++
			r := b.request(bad)
			r.Header.Set("Test-Address", fmt.Sprintf("10.%d.%d.1", n/250, n%250))
			a := b.send(r)
			if a.status != http.StatusForbidden {
				t.Errorf("%s %s?%s %s: got %v", c.method, c.path, c.query, what, a)
			}
		}
	}
	if got := b.get("seen"); got.body != "content" {
		t.Errorf("something was changed: %v", got)
	}
	if got := b.keys("docs"); len(got) != 1 {
		t.Errorf("keys are %q", got)
	}
}

// Whoever tries secrets is held up, and nobody else.
func TestGuessing(t *testing.T) {
	b := openBox(t, nil)
	c := call{method: "GET", path: "/", key: pair{alice.name, "wrong"}, header: map[string]string{"Test-Address": "10.9.9.9"}}
	for i := 0; ; i++ {
		if a := b.do(c); a.status == http.StatusServiceUnavailable && a.code() == "SlowDown" && a.header.Get("Retry-After") != "" {
			break
		} else if i > 100 {
			t.Fatalf("after %d guesses: %v", i, a)
		}
	}
	if a := b.do(call{method: "GET", path: "/"}); a.status != 200 {
		t.Errorf("from elsewhere: %v", a)
	}
}

func TestPresigned(t *testing.T) {
	b := openBox(t, nil)
	c := call{method: "PUT", path: "/docs/a b+c/ü", body: "hello", key: alice, when: time.Now().UTC()}
	c.edit = func(r *http.Request) { presign(t, r, c, "604800") }
	if a := b.do(c); a.status != 200 {
		t.Fatalf("PUT: %v %s", a, a.body)
	}
	g := call{method: "GET", path: c.path, key: alice, when: time.Now().UTC(), query: "response-content-type=text%2Fhtml&response-content-disposition=inline"}
	g.edit = func(r *http.Request) { presign(t, r, g, "60") }
	a := b.do(g)
	if a.body != "hello" || a.header.Get("Content-Type") != "text/html" || a.header.Get("Content-Disposition") != "inline" {
		t.Errorf("GET: %v %q %v", a, a.body, a.header)
	}
	// RELIABILITY S03: what a browser is shown cannot do anything.
	if !strings.Contains(a.header.Get("Content-Security-Policy"), "sandbox") || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("HTML is not sandboxed: %v", a.header)
	}
}

func TestVirtualHost(t *testing.T) {
	b := openBox(t, func(c *Config) { c.Hosts = []string{"s3.example.org"} })
	b.put("a/b", "hello")
	for host, want := range map[string]string{"docs.s3.example.org": "/a/b", "docs.s3.example.org:9000": "/a/b", "DOCS.S3.example.org": "/a/b", "s3.example.org": "/docs/a/b", "other": "/docs/a/b"} {
		if a := b.do(call{method: "GET", path: want, header: map[string]string{"Host": host}}); a.body != "hello" {
			t.Errorf("%s%s: %v", host, want, a)
		}
	}
	if a := b.do(call{method: "GET", path: "/", query: "list-type=2", header: map[string]string{"Host": "docs.s3.example.org"}}); !strings.Contains(a.body, "<Key>a/b</Key>") {
		t.Errorf("listing: %s", a.body)
	}
	if a := b.do(call{method: "GET", path: "/", header: map[string]string{"Host": "nosuch.s3.example.org"}}); a.code() != "NoSuchBucket" {
		t.Errorf("no such bucket: %v", a)
	}
}

func TestRegion(t *testing.T) {
	b := openBox(t, func(c *Config) { c.Region = "eu-west-1" })
	if a := b.do(call{method: "GET", path: "/docs"}); a.code() != "AuthorizationHeaderMalformed" || !strings.Contains(a.body, "<Region>eu-west-1</Region>") {
		t.Errorf("another region: %v %s", a, a.body)
	}
	if a := b.do(call{method: "GET", path: "/docs", query: "location", region: "eu-west-1"}); !strings.Contains(a.body, ">eu-west-1<") {
		t.Errorf("location: %s", a.body)
	}
}

// posting fills in a form. A nil policy is none.
func (b *box) posting(fields map[string]string, conditions string, file string, key pair, expires time.Time) answered {
	b.t.Helper()
	now := time.Now().UTC()
	cred := credential{key.name, now.Format("20060102"), "us-east-1"}
	policy := base64.StdEncoding.EncodeToString([]byte(`{"expiration": "` + expires.UTC().Format(timeLayout) + `", "conditions": [` + conditions +
		`, {"x-amz-algorithm": "` + algorithm + `"}, {"x-amz-credential": "` + cred.id + "/" + cred.scope() + `"}, ["starts-with", "$x-amz-date", ""]]}`))
	all := map[string]string{"policy": policy, "x-amz-algorithm": algorithm, "x-amz-credential": cred.id + "/" + cred.scope(), "x-amz-date": now.Format(stampLayout),
		"x-amz-signature": hexOf(mac(deriveKey(key.value, cred), []byte(policy)))}
	for k, v := range fields {
		all[k] = v
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for k, v := range all {
		if v != "-" {
			w.WriteField(k, v)
		}
	}
	part, err := w.CreateFormFile("file", `C:\folder\photo.jpg`)
	if err != nil {
		b.t.Fatal(err)
	}
	io.WriteString(part, file)
	w.Close()
	r, err := http.NewRequestWithContext(b.t.Context(), "POST", "http://"+b.addr+"/docs", &body)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", w.FormDataContentType())
	return b.send(r)
}

func TestPostPolicy(t *testing.T) {
	b := openBox(t, nil)
	later := time.Now().Add(time.Hour)
	base := `{"bucket": "docs"}, ["starts-with", "$key", "in/"]`
	for _, c := range []struct {
		name, conditions string
		fields           map[string]string
		key              pair
		expires          time.Time
		want             string
	}{
		{"plain", base, nil, alice, later, "204 "},
		{"status", base + `, {"success_action_status": "201"}`, map[string]string{"success_action_status": "201"}, alice, later, "201 "},
		{"redirect", base + `, {"success_action_redirect": "http://x.example/y?z"}`, map[string]string{"success_action_redirect": "http://x.example/y?z"}, alice, later, "303 "},
		{"metadata", base + `, ["eq", "$x-amz-meta-color", "blue"], ["starts-with", "$Content-Type", "image/"], ["content-length-range", 1, 100]`,
			map[string]string{"x-amz-meta-color": "blue", "content-type": "image/jpeg"}, alice, later, "204 "},
		{"ignored", base, map[string]string{"x-ignore-me": "x"}, alice, later, "204 "},
		{"another bucket", `{"bucket": "homes"}, ["starts-with", "$key", ""]`, nil, alice, later, "403 AccessDenied"},
		{"another key", `{"bucket": "docs"}, ["starts-with", "$key", "out/"]`, nil, alice, later, "403 AccessDenied"},
		{"an extra field", base, map[string]string{"x-amz-meta-evil": "x"}, alice, later, "403 AccessDenied"},
		{"expired", base, nil, alice, time.Now().Add(-time.Minute), "403 AccessDenied"},
		{"too long", base + `, ["content-length-range", 0, 3]`, nil, alice, later, "400 EntityTooLarge"},
		{"too short", base + `, ["content-length-range", 10, 30]`, nil, alice, later, "400 EntityTooSmall"},
		{"malformed", base + `, ["near", "$key", "x"]`, nil, alice, later, "400 InvalidPolicyDocument"},
		{"another secret", base, nil, pair{alice.name, "wrong"}, later, "403 SignatureDoesNotMatch"},
		{"no such key", base, nil, pair{"NOSUCHKEY", "wrong"}, later, "403 InvalidAccessKeyId"},
		{"anonymous", base, map[string]string{"policy": "-", "x-amz-signature": "-"}, alice, later, "403 AccessDenied"},
		{"no signature", base, map[string]string{"x-amz-signature": "-"}, alice, later, "403 AuthorizationQueryParametersError"},
		{"a bad key", base, map[string]string{"key": "in/../x"}, alice, later, "400 InvalidObjectName"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fields := map[string]string{"key": "in/" + strings.ReplaceAll(c.name, " ", "-") + "-${filename}"}
			for k, v := range c.fields {
				fields[k] = v
			}
			a := b.posting(fields, c.conditions, "hello", c.key, c.expires)
			if !strings.HasPrefix(a.String(), c.want) {
				t.Errorf("got %v %s, want %s", a, a.body, c.want)
			}
			got := b.get("in/" + strings.ReplaceAll(c.name, " ", "-") + "-photo.jpg")
			if (got.status == 200) != (a.status < 400) || got.status == 200 && got.body != "hello" {
				t.Errorf("then GET: %v %q", got, got.body)
			}
			if c.name == "redirect" && !strings.HasPrefix(a.header.Get("Location"), "http://x.example/y?z&bucket=docs&key=in%2Fredirect-photo.jpg&etag=%22") {
				t.Errorf("Location: %s", a.header.Get("Location"))
			}
			if c.name == "metadata" && (got.header.Get("X-Amz-Meta-Color") != "blue" || got.header.Get("Content-Type") != "image/jpeg") {
				t.Errorf("metadata: %v", got.header)
			}
		})
	}
}
