package s3

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"cellgate/internal/fault"
)

// Every kind has a status and a code of its own choosing, and none is a success.
func TestAnswerToEveryKind(t *testing.T) {
	for _, k := range fault.Kinds() {
		a, ok := answers[k]
		if !ok || a.status < 400 || a.status > 599 || a.code == "" || a.words == "" {
			t.Errorf("kind %v: got %+v, %v", k, a, ok)
		}
		if got := answerTo(fault.New("test", "", k, nil)); got.answer != a {
			t.Errorf("answerTo(%v): got %+v, want %+v", k, got.answer, a)
		}
	}
	if got := answerTo(errors.New("anything")); got.status != http.StatusInternalServerError {
		t.Errorf("unclassified error: got %+v", got)
	}
}

// Errors are XML with all that clients look for, whatever is in the key; to HEAD they have no body.
func TestErrors(t *testing.T) {
	b := openBox(t, nil)
	key := "/docs/no <such> & \"key\"]]>"
	a := b.do(call{method: "GET", path: key})
	var e struct {
		XMLName                                    xml.Name `xml:"Error"`
		Code, Message, Resource, RequestId, HostId string
	}
	if err := xml.Unmarshal([]byte(a.body), &e); err != nil {
		t.Fatal(err)
	}
	if a.status != 404 || e.Code != "NoSuchKey" || e.Message == "" || e.Resource != key || e.HostId == "" || e.RequestId == "" || e.RequestId != a.header.Get("X-Amz-Request-Id") {
		t.Errorf("got %v %+v", a, e)
	}
	if a := b.do(call{method: "HEAD", path: key}); a.status != 404 || a.body != "" {
		t.Errorf("HEAD: %v %q", a, a.body)
	}
	for _, c := range []struct {
		call call
		want string
	}{
		{call{method: "GET", path: "/nobucket/key"}, "404 NoSuchBucket"},
		{call{method: "GET", path: "/nobucket"}, "404 NoSuchBucket"},
		{call{method: "PUT", path: "/nobucket/key", body: "x"}, "404 NoSuchBucket"},
		{call{method: "DELETE", path: "/nobucket/key"}, "404 NoSuchBucket"},
		{call{method: "GET", path: "/Bad_Bucket/key"}, "404 NoSuchBucket"},
		{call{method: "PUT", path: "/Bad_Bucket"}, "400 InvalidBucketName"},
		{call{method: "GET", path: "/docs", query: "policy"}, "404 NoSuchBucketPolicy"},
		{call{method: "GET", path: "/docs", query: "inventory"}, "501 NotImplemented"},
		{call{method: "PUT", path: "/docs", query: "versioning"}, "501 NotImplemented"},
		{call{method: "PUT", path: "/docs", query: "cors"}, "501 NotImplemented"},
		{call{method: "GET", path: "/docs/x", query: "torrent"}, "501 NotImplemented"},
		{call{method: "POST", path: "/docs/x", query: "select&select-type=2"}, "501 NotImplemented"},
		{call{method: "PATCH", path: "/docs/x"}, "405 MethodNotAllowed"},
		{call{method: "POST", path: "/docs/x"}, "405 MethodNotAllowed"},
		{call{method: "DELETE", path: "/"}, "405 MethodNotAllowed"},
		{call{method: "GET", path: "/docs/x", query: "versionId=abc"}, "404 NoSuchVersion"},
		{call{method: "PUT", path: "/docs/x", header: map[string]string{"X-Amz-Acl": "public-read"}}, "400 AccessControlListNotSupported"},
		{call{method: "PUT", path: "/docs/x", header: map[string]string{"X-Amz-Server-Side-Encryption": "AES256"}}, "501 NotImplemented"},
		{call{method: "PUT", path: "/docs/x", header: map[string]string{"X-Amz-Storage-Class": "GLACIER"}}, "400 InvalidStorageClass"},
		{call{method: "PUT", path: "/docs/x", header: map[string]string{"X-Amz-Meta-A": strings.Repeat("a", 3000)}}, "400 MetadataTooLarge"},
		{call{method: "PUT", path: "/docs/x", header: map[string]string{"Content-Md5": "nonsense"}}, "400 InvalidDigest"},
		{call{method: "PUT", path: "/docs/x", body: "x", header: map[string]string{"Content-Md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}}, "400 BadDigest"},
		{call{method: "PUT", path: "/docs/x", body: "x", header: map[string]string{"X-Amz-Checksum-Crc32": "AAAAAA=="}}, "400 BadDigest"},
		{call{method: "PUT", path: "/docs/x", body: "x", header: map[string]string{"X-Amz-Checksum-Crc32": "AAAAAA==", "X-Amz-Checksum-Sha1": "x"}}, "400 "},
		{call{method: "PUT", path: "/docs/x", body: "x", payload: emptySum}, "400 XAmzContentSHA256Mismatch"},
		{call{method: "PUT", path: "/docs/x", body: "x", payload: "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}, "400 InvalidArgument"},
		{call{method: "PUT", path: "/drop/x", key: alice, body: "x"}, "200 "},
		{call{method: "GET", path: "/drop/x", key: bob}, "404 NoSuchBucket"},
		{call{method: "GET", path: "/drop", key: bob, query: "list-type=2"}, "404 NoSuchBucket"},
		{call{method: "PUT", path: "/drop/y", key: bob, body: "x"}, "200 "},
		{call{method: "PUT", path: "/docs/.cellgate/x", body: "x"}, "403 AccessDenied"},
		{call{method: "PUT", path: "/docs/a/.cellgate/x", body: "x"}, "403 AccessDenied"},
	} {
		if got := b.do(c.call); !strings.HasPrefix(got.String(), c.want) {
			t.Errorf("%s %s?%s %v: got %v, want %s", c.call.method, c.call.path, c.call.query, c.call.header, got, c.want)
		}
	}
	if got := b.get("x"); got.status != 404 {
		t.Errorf("something was written: %v", got)
	}
}

// What is longer than it may be is refused before it is held.
func TestBounds(t *testing.T) {
	b := openBox(t, func(c *Config) { c.Limits.Object = 1 << 20 })
	if got := b.do(call{method: "PUT", path: "/docs/x", body: strings.Repeat("x", 1<<20+1)}); got.String() != "400 EntityTooLarge" {
		t.Errorf("a large object: %v", got)
	}
	r := b.request(call{method: "PUT", path: "/docs/x", payload: unsignedPayload})
	r.Body, r.ContentLength = io.NopCloser(io.LimitReader(zeros{}, 1<<20+1)), -1
	if got := b.send(r); got.String() != "400 EntityTooLarge" {
		t.Errorf("a large object of unknown length: %v", got)
	}
	var keys strings.Builder
	for range 1001 {
		keys.WriteString("<Object><Key>k</Key></Object>")
	}
	for what, body := range map[string]string{
		"1001 keys":      "<Delete>" + keys.String() + "</Delete>",
		"no key":         "<Delete></Delete>",
		"another root":   "<Remove><Object><Key>k</Key></Object></Remove>",
		"a million keys": "<Delete>" + strings.Repeat("<Object><Key>k</Key></Object>", 1<<20) + "</Delete>",
		"depth":          strings.Repeat("<Delete>", 200_000),
		"entities":       `<!DOCTYPE x [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>`,
		"two documents":  "<Delete><Object><Key>k</Key></Object></Delete><Delete/>",
	} {
		if got := b.do(call{method: "POST", path: "/docs", query: "delete", body: body}); got.String() != "400 MalformedXML" {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := b.get("x"); got.status != 404 {
		t.Errorf("something was written: %v", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
