package e2e

import (
	"encoding/xml"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// spellings are ways to write a path that mean, or might be taken to mean, /docs/secret/s.
var spellings = []string{
	"/dav/docs/secret/s", "/dav/docs/secret/", "/dav/docs/secret", "/dav//docs/secret/s", "/dav/docs//secret/s", "/dav/docs/secret//s", "/dav/docs/./secret/s",
	"/dav/docs/secret/./s", "/dav/docs/secret/s/.", "/dav/docs/secret/s/", "/dav/docs/secret/s//", "/dav/docs/x/../secret/s", "/dav/docs/../docs/secret/s",
	"/dav/x/../docs/secret/s", "/dav/../dav/docs/secret/s", "/dav/docs/%2e/secret/s", "/dav/docs/%2e%2e/docs/secret/s", "/dav/docs/secret%2Fs", "/dav/docs%2Fsecret%2Fs",
	"/dav%2Fdocs/secret/s", "/dav/docs/%73ecret/s", "/dav/docs/%2573ecret/s", "/dav/docs/secret%252Fs", "/dav/docs/secret%5cs", `/dav/docs/secret\s`,
	"/dav/docs/secret;a=b/s", "/dav/docs;x/secret/s", "/dav/docs/secret/s;v=1", "/dav/docs/secret/s?x", "/dav/docs/secret/s?", "/dav/docs/secret/s%3f", "/dav/docs/secret/s%23",
	"/dav/docs/SECRET/s", "/dav/docs/secret%20/s", "/dav/docs/secret./s", "/dav/docs/secret%00/s", "/dav/docs/secret%00", "/dav/docs/secret/s%00.txt", "/dav/docs/secret%0a/s",
	"/dav/docs/secret%c0%af/s", "/dav/docs/%c0%ae%c0%ae/secret/s", "/dav/docs/secret%e2%80%a8/s", "/dav/docs/ｓecret/s", "/dav/docs/secret::$DATA/s", "/dav/docs/secret/s::$INDEX_ALLOCATION",
	"/DAV/docs/secret/s", "/dav/disk/secret/s", "/dav/disk:/docs/secret/s", "/dav/.cellgate/docs/secret/s", "/dav/docs/secret%u002fs", "/dav/docs/se%63ret/%73",
	"http://HOST/dav/docs/secret/s", "http://HOST/dav//docs/./secret/s", "HTTP://HOST/dav/docs/secret/s", "http://alice@HOST/dav/docs/secret/s", "http://other/dav/docs/secret/s",
}

// A05: a deny holds in every spelling of the path, for every verb, also as the target of a MOVE or COPY; and binds that path alone.
func TestA05Spellings(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	alice := b.as("alice")
	for _, d := range []string{"/docs/secret", "/docs/docs-secret", "/docs/secrets", "/docs/open"} {
		alice.want("MKCOL", d, "", 201)
		alice.want("PUT", d+"/s", "CANARY-"+d, 201)
	}
	b.apply(`grants: [{to: "user:bob", on: "docs:/secret", rights: [deny]}]`)
	before := digestsOf(t, b.disk("secret"))
	bob := b.as("bob")
	for _, d := range []string{"docs-secret", "secrets", "open"} {
		if got := bob.do("GET", "/docs/"+d+"/s", "").body; got != "CANARY-/docs/"+d {
			t.Errorf("the deny of secret hits %s: %q", d, got)
		}
	}
	tried := 0
	for _, s := range spellings {
		s = strings.ReplaceAll(s, "HOST", b.http)
		for _, r := range []struct {
			method string
			header []string
			body   string
		}{
			{"GET", nil, ""}, {"HEAD", nil, ""}, {"PROPFIND", []string{"Depth: 0"}, ""}, {"PROPFIND", []string{"Depth: 1"}, ""}, {"PUT", nil, "overwritten"},
			{"DELETE", nil, ""}, {"MKCOL", nil, ""}, {"PROPPATCH", nil, `<propertyupdate xmlns="DAV:"><set><prop><x/></prop></set></propertyupdate>`},
			{"LOCK", []string{"Timeout: Second-1"}, `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`},
			{"MOVE", []string{"Destination: /dav/docs/open/stolen"}, ""}, {"COPY", []string{"Destination: /dav/docs/open/stolen"}, ""},
		} {
			got, err := b.raw("bob", r.method+" "+s, r.header, r.body)
			tried++
			if err != nil {
				continue // a line that is no HTTP may end the connection
			}
			if strings.Contains(got.body, "CANARY-/docs/secret") && !strings.Contains(got.body, "CANARY-/docs/secrets") {
				t.Errorf("%s %s: %d shows the secret", r.method, s, got.status)
			}
			if got.ok() && strings.Contains(got.body, "docs/secret/") {
				t.Errorf("%s %s: %d lists the secret", r.method, s, got.status)
			}
		}
		// As the target of a MOVE and a COPY.
		for _, method := range []string{"COPY", "MOVE"} {
			bob.do("PUT", "/docs/open/mine", "mine")
			_, _ = b.raw("bob", method+" /dav/docs/open/mine", []string{"Destination: " + s, "Overwrite: T"}, "")
			tried++
		}
		sameTree(t, "the secret after "+s, digestsOf(t, b.disk("secret")), before)
		if t.Failed() {
			t.FailNow()
		}
	}
	for name, text := range textsOf(t, b.disk("open")) {
		if text == "CANARY-/docs/secret" {
			t.Errorf("stolen: %s", name)
		}
	}
	t.Logf("%d requests", tried)
	b.sound()
}

// dots are ways to write "one folder up".
var dots = []string{"..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..%00", "..%20", "..;", "..;x=y", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%u002e%u002e", "...", "....", ".. ", "..%09",
	"..%0a", "..%0d", "..%c2%a0", "․․", "‥", "%ff..", "..\\", "..%5c", "..%255c", "%2e%2e%2f", "..%2f", "..%252f", "..%c0%af", "~", ".", "%2e", "C:", "%00"}

// slashes are ways to write what stands between two folders.
var slashes = []string{"/", "//", "%2f", "%5c", `\`, "%252f", "%c0%af", "/./", "%2F%2F", ";/"}

// P01: no string of a corpus of thousands, in a path, a Destination or an If header, reads, lists or writes anything outside of the
// workspace: canaries lie beside it, above it and in the box's own folders.
func TestP01Traversal(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	n := seed(t)
	rng := rand.New(rand.NewPCG(n, 1))
	alice := b.as("alice")
	alice.want("MKCOL", "/docs/in", "", 201)
	alice.want("PUT", "/docs/in/own", "own", 201)
	const canary = "CANARY-OUTSIDE"
	top := filepath.Dir(b.files)
	outside := []string{filepath.Join(top, "canary"), filepath.Join(b.files, "canary"), filepath.Join(b.files, "other", "canary"), filepath.Join(b.data, "canary"),
		filepath.Join(b.files, ".cellgate", "canary")}
	for _, f := range outside {
		write(t, f, canary)
	}
	if err := os.Symlink(top, b.disk("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../canary", b.disk("linkfile")); err != nil {
		t.Fatal(err)
	}
	targets := []string{"canary", "other/canary", "data/canary", "data/cellgate.db", "data/keys/master.key", ".cellgate/canary", "etc/passwd", "files/canary", "files/docs/in/own"}
	corpus := []string{
		"/dav/docs/link/canary", "/dav/docs/link/files/canary", "/dav/docs/link/data/keys/master.key", "/dav/docs/linkfile", "/dav/docs/link", "/dav/docs/link/",
		"/dav/docs/.cellgate/canary", "/dav/docs/in/.cellgate/canary", "/dav/.cellgate/canary", "/dav/docs/.CELLGATE/canary", "/dav/docs/%2ecellgate/canary", "/dav/docs/.cellgate%2fcanary",
		"/dav" + url.PathEscape(outside[0]), "/dav/docs" + outside[0], "/dav/docs/" + url.PathEscape(outside[0]), "/dav/docs/in/own/../../../canary", "file://" + outside[0],
		"/dav/docs/disk:/canary", "/dav/disk:canary", "/dav/docs/" + strings.Repeat("../", 200) + "etc/passwd", "/dav/docs/" + strings.Repeat("a/../", 500) + "../canary",
	}
	size := 5000
	if testing.Short() {
		size = 1000
	}
	for len(corpus) < size {
		var s strings.Builder
		s.WriteString([]string{"/dav/docs", "/dav/docs/in", "/dav", "/dav/docs/link", "/public", ""}[rng.IntN(6)])
		for range 1 + rng.IntN(4) {
			s.WriteString(slashes[rng.IntN(len(slashes))] + dots[rng.IntN(len(dots))])
		}
		s.WriteString(slashes[rng.IntN(len(slashes))] + targets[rng.IntN(len(targets))])
		corpus = append(corpus, s.String())
	}
	guarded := func() map[string]string {
		all := map[string]string{}
		for _, f := range outside {
			all[f] = read(t, f)
		}
		for _, dir := range []string{top, b.files, filepath.Join(b.files, "other"), filepath.Join(b.data, "keys")} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				all[filepath.Join(dir, e.Name())] += "exists"
			}
		}
		return all
	}
	before := guarded()
	methods := []string{"GET", "PROPFIND", "PUT", "MKCOL", "DELETE", "COPY", "MOVE", "PROPPATCH", "LOCK", "HEAD", "to COPY", "to MOVE", "if"}
	for i, s := range corpus {
		method, path, header, body := methods[(i+rng.IntN(3))%len(methods)], s, []string{"Depth: 0"}, ""
		switch method {
		case "PUT":
			body = "WRITTEN-OUTSIDE"
		case "COPY", "MOVE":
			header = []string{"Destination: /dav/docs/in/got"}
		case "to COPY", "to MOVE":
			method, path, header = strings.TrimPrefix(method, "to "), "/dav/docs/in/own", []string{"Destination: " + s, "Overwrite: T"}
			alice.do("PUT", "/docs/in/own", "own")
		case "if":
			method, path, header = "PUT", "/dav/docs/in/own", []string{"If: <" + s + "> ([\"x\"])"}
		case "PROPPATCH":
			body = `<propertyupdate xmlns="DAV:"><set><prop><x/></prop></set></propertyupdate>`
		case "LOCK":
			header, body = []string{"Timeout: Second-1"}, `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`
		case "PROPFIND":
			header = []string{"Depth: 1"}
		}
		got, err := b.raw("alice", method+" "+path, header, body)
		if err != nil {
			continue
		}
		if strings.Contains(got.body, canary) || strings.Contains(got.body, "root:x:0") || got.ok() && strings.Contains(got.body, "master.key") {
			t.Errorf("%s %s: %d %.300s", method, s, got.status, got.body)
		}
		if got.status == 500 {
			t.Errorf("%s %s: %d %.300s", method, s, got.status, got.body)
		}
		if got.status == 207 {
			if err := xml.Unmarshal([]byte(got.body), new(multistatus)); err != nil {
				t.Errorf("%s %s: %v in %.300s", method, s, err, got.body)
			}
		}
		if i%100 == 0 {
			alice.do("DELETE", "/docs/in/got", "")
		}
	}
	sameTree(t, "outside", guarded(), before)
	for name, text := range textsOf(t, b.disk("in")) {
		if strings.Contains(text, canary) {
			t.Errorf("a copy of the canary lies in %s", name)
		}
	}
	if !b.alive() {
		t.Error("the box is gone")
	}
	t.Logf("%d strings", len(corpus))
}

// textsOf reads all files below dir.
func textsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name := range digestsOf(t, dir) {
		all[name] = read(t, filepath.Join(dir, name))
	}
	return all
}
