package webdav

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
)

// The cases of RELIABILITY that touch this door.

// D01: a body that is cut off anywhere, by FIN or RST, declared or chunked, leaves the old file.
func TestD01CutBodies(t *testing.T) {
	w := newWorld(t, nil)
	old := bytes.Repeat([]byte("old!"), 1<<18)
	was := w.do(t, "PUT /dav/docs/a", string(old))
	fresh := make([]byte, 4<<20)
	rand.Read(fresh)
	for _, cut := range []int{0, 1, 50, 99, 100} {
		for _, reset := range []bool{false, true} {
			for _, chunked := range []bool{false, true} {
				if cut == 100 && !chunked {
					continue // that is the whole body
				}
				conn, err := net.Dial("tcp", w.addr)
				if err != nil {
					t.Fatal(err)
				}
				length := fmt.Sprintf("Content-Length: %d", len(fresh))
				if chunked {
					length = "Transfer-Encoding: chunked"
				}
				fmt.Fprintf(conn, "PUT /dav/docs/a HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\n%s\r\n\r\n", w.addr, basic("alice"), length)
				part := fresh[:len(fresh)*cut/100]
				if chunked && len(part) > 0 { // all chunks but the last, which is the empty one
					fmt.Fprintf(conn, "%x\r\n%s\r\n", len(part), part)
				} else {
					conn.Write(part)
				}
				tcp := conn.(*net.TCPConn)
				if reset {
					tcp.SetLinger(0)
				} else {
					tcp.CloseWrite()
					tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
					if res, err := http.ReadResponse(bufio.NewReader(tcp), nil); err == nil && res.StatusCode < 400 {
						t.Errorf("cut at %d%%, chunked %v: got %d", cut, chunked, res.StatusCode)
					}
				}
				tcp.Close()
			}
		}
	}
	time.Sleep(100 * time.Millisecond) // for the handlers of the connections that were reset
	now := w.do(t, "GET /dav/docs/a", "")
	if now.body != string(old) || now.header.Get("ETag") != was.header.Get("ETag") {
		t.Errorf("the file changed: %d bytes, ETag %s, was %s", len(now.body), now.header.Get("ETag"), was.header.Get("ETag"))
	}
	if names := w.names(t, "/dav/docs/"); len(names) != 2 {
		t.Errorf("something was left behind: %v", names)
	}
}

// names lists the hrefs of a folder and its children.
func (w *world) names(t *testing.T, path string) []string {
	t.Helper()
	r := w.send(t, "alice", "PROPFIND "+path, []string{"Depth: 1"}, `<propfind xmlns="DAV:"><prop><resourcetype/></prop></propfind>`)
	var names []string
	for _, m := range regexp.MustCompile(`<D:href>([^<]*)</D:href>`).FindAllStringSubmatch(r.body, -1) {
		names = append(names, m[1])
	}
	return names
}

// A chunked body that does end is published.
func TestPutChunked(t *testing.T) {
	w := newWorld(t, nil)
	r := w.send(t, "alice", "PUT /dav/docs/a", []string{"Transfer-Encoding: chunked", "X-Expected-Entity-Length: 8"}, "5\r\nhello\r\n4\r\n you\r\n0\r\n\r\n")
	if r.status != http.StatusCreated {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	if got := w.do(t, "GET /dav/docs/a", "").body; got != "hello you" {
		t.Errorf("got %q", got)
	}
}

// RFC 9110 §10.1.1: who waits for 100 Continue is refused without sending the body.
func TestExpectContinueIsRefusedEarly(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "PUT /dav/docs/a", "old")
	tests := []struct {
		line, header string
		want         string
	}{
		{"PUT /dav/docs/a", "If-None-Match: *", "412"},
		{"PUT /dav/docs/none/a", "X: y", "409"},
		{"PUT /dav/docs", "X: y", "405"},
		{"PUT /dav/docs/a", "If: (<urn:uuid:none>)", "412"},
		{"PUT /dav/docs/a", "Content-Range: bytes 0-1/2", "400"},
		{"PUT /dav/docs/a", "X: y", "100"},
	}
	for _, tt := range tests {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n%s\r\n\r\n", tt.line, basic("alice"), tt.header)
		status, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(status, "HTTP/1.1 "+tt.want) {
			t.Errorf("%s, %s: got %q %v, want %s", tt.line, tt.header, status, err, tt.want)
		}
		conn.Close()
	}
}

// D10: a missing source and a folder into itself leave the target as it is.
func TestD10MissingSourceAndIntoItself(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "PUT /dav/docs/target", "kept")
	w.do(t, "MKCOL /dav/docs/f", "")
	w.do(t, "PUT /dav/docs/f/a", "a")
	for _, verb := range []string{"COPY", "MOVE"} {
		for source, target := range map[string]string{
			"/dav/docs/none":   "/dav/docs/target",
			"/dav/none/x":      "/dav/docs/target",
			"/dav/docs/f":      "/dav/docs/f/g",
			"/dav/docs/f/":     "/dav/docs/f/a",
			"/dav/docs/f/a":    "/dav/docs/f",
			"/dav/docs":        "/dav/docs/f/docs",
			"/dav/docs/target": "/dav/docs/none/target",
		} {
			r := w.send(t, "alice", verb+" "+source, []string{"Destination: " + target}, "")
			if r.status != http.StatusNotFound && r.status != http.StatusConflict && r.status != http.StatusForbidden {
				t.Errorf("%s %s to %s: got %d", verb, source, target, r.status)
			}
		}
	}
	if got := w.do(t, "GET /dav/docs/target", "").body; got != "kept" {
		t.Errorf("the target is %q", got)
	}
	if names := append(w.names(t, "/dav/docs/"), w.names(t, "/dav/docs/f")...); len(names) != 5 {
		t.Errorf("nodes came or went: %v", names)
	}
}

// D14: of 50 who race with one condition, exactly one wins.
func TestD14Race(t *testing.T) {
	w := newWorld(t, nil)
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		name := fmt.Sprintf("/dav/docs/%d", round)
		w.race(t, name, "If-None-Match: *", http.StatusCreated)
		etag := w.do(t, "HEAD "+name, "").header.Get("ETag")
		w.race(t, name, "If-Match: "+etag, http.StatusNoContent)
		etag = w.do(t, "HEAD "+name, "").header.Get("ETag")
		w.race(t, name, "If: (["+etag+"])", http.StatusNoContent)
	}
}

func (w *world) race(t *testing.T, name, cond string, success int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	counts := make(map[int]int)
	for i := range 50 {
		wg.Go(func() {
			r := w.send(t, "alice", "PUT "+name, []string{cond}, fmt.Sprint("by ", i))
			mu.Lock()
			defer mu.Unlock()
			counts[r.status]++
		})
	}
	wg.Wait()
	if counts[success] != 1 || counts[http.StatusPreconditionFailed] != 49 {
		t.Errorf("%s: got %v", cond, counts)
	}
}

// A05: every spelling of a place is that place or an error, never another one.
func TestA05Spellings(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "MKCOL /dav/docs/secret", "")
	w.do(t, "PUT /dav/docs/secret/a", "canary")
	w.do(t, "MKCOL /dav/docs/docs-secret", "")
	same := []string{
		"/dav/docs/secret/a", "/dav//docs///secret//a", "/dav/docs/secret/a/", "/dav/docs/%73ecret/a", "/dav/docs%2Fsecret%2Fa", "/%64av/docs/secret/a",
		"/dav/docs/secret/a?x=y", "http://" + w.addr + "/dav/docs/secret/a",
	}
	for _, p := range same {
		if r := w.send(t, "alice", "GET "+p, nil, ""); r.status != 200 || r.body != "canary" {
			t.Errorf("%s: got %d", p, r.status)
		}
	}
	other := []string{
		"/dav/docs/./secret/a", "/dav/docs/x/../secret/a", "/dav/docs/%2e/secret/a", "/dav/docs/%2e%2e/docs/secret/a", "/dav/docs/secret/%2E%2E/secret/a",
		"/dav/docs%5csecret/a", "/dav/docs/secret%252Fa", "/dav/docs/secret;a=b/a", "/dav/docs/secret%3Fa", "/dav/docs/secret/a%00", "/dav/docs/secret/a%0a",
		"/dav/docs/secret/a%E2%80%A8", "/dav/docs/secret%20/a", "/dav/docs/secret./a", "/dav/docs/SECRET/a", "/dav/docs/secret/a%2F..%2Fa", "/dav/docs/%c0%af/a",
		"/dav/docs/se%ffcret/a", "/dav/../dav/docs/secret/a", "/dav/docs/secret/a#x", "/davdocs/secret/a", "/DAV/docs/secret/a",
	}
	for _, p := range other {
		r := w.send(t, "alice", "GET "+p, nil, "")
		if r.status < 400 || r.status >= 500 || strings.Contains(r.body, "canary") {
			t.Errorf("%s: got %d %.80s", p, r.status, r.body)
		}
		if r := w.send(t, "alice", "COPY /dav/docs/secret/a", []string{"Destination: " + p}, ""); r.status < 400 && !strings.ContainsAny(p, "%;.S") {
			t.Errorf("COPY to %s: got %d", p, r.status)
		}
	}
}

// P01: nothing outside is read, written or listed by any spelling of a way up.
func TestP01Traversal(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "PUT /dav/docs/a", "a")
	ups := []string{"..", "%2e%2e", "%2E.", ".%2e", "..%2f", "..%5c", "..\\", "%252e%252e", "..;", "..%00", "%c0%ae%c0%ae", "...", ". .", "..%20", "%uff0e%uff0e"}
	for _, up := range ups {
		for _, n := range []int{1, 2, 4, 12} {
			for _, tail := range []string{"etc/passwd", "proc/self/environ", ".cellgate/tmp", "docs/a"} {
				p := "/dav/docs/" + strings.Repeat(up+"/", n) + tail
				for _, line := range []string{"GET " + p, "PROPFIND " + p, "DELETE " + p} {
					if r := w.send(t, "alice", line, []string{"Depth: 0"}, ""); r.status < 400 || r.status >= 500 {
						t.Errorf("%s: got %d", line, r.status)
					}
				}
				r := w.send(t, "alice", "COPY /dav/docs/a", []string{"Destination: " + p}, "")
				if r.status < 400 {
					t.Errorf("COPY to %s: got %d", p, r.status)
				}
			}
		}
	}
	for _, line := range []string{"GET /dav/docs/.cellgate", "PUT /dav/docs/.cellgate/x", "MKCOL /dav/docs/.cellgate", "PROPFIND /dav/docs/.cellgate/", "LOCK /dav/docs/.cellgate"} {
		body := ""
		if strings.HasPrefix(line, "LOCK") {
			body = `<lockinfo xmlns="DAV:"><lockscope><shared/></lockscope><locktype><write/></locktype></lockinfo>`
		}
		if r := w.send(t, "alice", line, []string{"Depth: 0"}, body); r.status < 400 || r.status >= 500 {
			t.Errorf("%s: got %d", line, r.status)
		}
	}
	if names := w.names(t, "/dav/docs/"); len(names) != 2 {
		t.Errorf("something was made: %v", names)
	}
}

// W03: hostile XML is refused quickly.
func TestW03HostileBodies(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "PUT /dav/docs/a", "a")
	repeat := func(s string, n int) string { return strings.Repeat(s, n/len(s)) }
	const open = `<D:propertyupdate xmlns:D="DAV:"><D:set><D:prop>`
	for name, body := range map[string]string{
		"entities":   `<!DOCTYPE a [<!ENTITY b "` + repeat("x", 1000) + `"><!ENTITY c "` + repeat("&b;", 1000) + `">]><propfind xmlns="DAV:"><prop><a>&c;</a></prop></propfind>`,
		"nesting":    repeat("<a>", 1<<20),
		"properties": `<propfind xmlns="DAV:"><prop>` + repeat(`<a1/>`, 900<<10) + `</prop></propfind>`,
		"names": `<propfind xmlns="DAV:"><prop>` + func() (s string) {
			var b strings.Builder
			for i := range maxProps + 1 {
				fmt.Fprintf(&b, "<a%d/>", i)
			}
			return b.String()
		}() + `</prop></propfind>`,
		"dead property": open + `<x>` + repeat("x", 900<<10) + `</x></D:prop></D:set></D:propertyupdate>`,
		"too large":     open + `<x>` + repeat("x", 2<<20) + `</x></D:prop></D:set></D:propertyupdate>`,
	} {
		for _, line := range []string{"PROPFIND /dav/docs/a", "PROPPATCH /dav/docs/a", "LOCK /dav/docs/a"} {
			start := time.Now()
			r := w.send(t, "alice", line, []string{"Depth: 0"}, body)
			if r.status < 400 || r.status >= 500 || time.Since(start) > time.Second {
				t.Errorf("%s, %s: got %d after %v", name, line, r.status, time.Since(start))
			}
		}
	}
	if r := w.send(t, "alice", "PROPFIND /dav/docs/a", []string{"Depth: 0", "If: " + repeat("(<urn:a>)", 100<<10)}, ""); r.status != http.StatusBadRequest {
		t.Errorf("a large If: got %d", r.status)
	}
}

// W03: who dribbles a body is cut off, though the transfer as a whole has no deadline.
func TestW03Dribble(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Stall = 200 * time.Millisecond })
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "PUT /dav/docs/slow HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 10\r\n\r\n", basic("alice"))
	for range 6 { // slow, but moving: longer than Stall as a whole
		time.Sleep(60 * time.Millisecond)
		conn.Write([]byte("x"))
	}
	start := time.Now()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && res.StatusCode != http.StatusBadRequest {
		t.Errorf("got %d", res.StatusCode)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("held on for %v", took)
	}
	if r := w.send(t, "alice", "GET /dav/docs/slow", nil, ""); r.status != http.StatusNotFound {
		t.Errorf("published: %d", r.status)
	}
}

// R01: who does not read is cut off.
func TestR01SlowReader(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Stall = 200 * time.Millisecond })
	big := strings.Repeat("x", 32<<20)
	w.do(t, "PUT /dav/docs/big", big)
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /dav/docs/big HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n\r\n", basic("alice"))
	time.Sleep(1500 * time.Millisecond)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := io.Copy(io.Discard, conn); err == nil && n >= int64(len(big)) {
		t.Errorf("got all %d bytes after a long pause", n)
	}
}

// After a transfer the connection carries no deadline of ours.
func TestDeadlinesDoNotOutliveTheRequest(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Stall = 200 * time.Millisecond })
	client := w.srv.Client()
	for _, method := range []string{"PUT", "GET", "PUT", "GET"} {
		req, err := http.NewRequestWithContext(t.Context(), method, w.srv.URL+"/dav/docs/a", strings.NewReader(strings.Repeat("x", 1<<20)))
		if err != nil {
			t.Fatal(err)
		}
		if method == "GET" {
			req.Body, req.ContentLength = nil, 0
		}
		req.SetBasicAuth("alice", password)
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode >= 300 || method == "GET" && n != 1<<20 {
			t.Fatalf("%s: %d, %d bytes, %v", method, res.StatusCode, n, err)
		}
		res.Body.Close()
		time.Sleep(300 * time.Millisecond)
	}
}

// R06: a long listing is streamed in blocks, and infinity refused.
func TestR06Listing(t *testing.T) {
	w := newWorld(t, nil)
	w.do(t, "MKCOL /dav/docs/many", "")
	for i := range 300 {
		w.do(t, fmt.Sprintf("PUT /dav/docs/many/%04d", i), "x")
	}
	r := w.send(t, "alice", "PROPFIND /dav/docs/many", []string{"Depth: 1"}, "")
	if r.status != http.StatusMultiStatus || r.header.Get("Content-Length") != "" || strings.Count(r.body, "<D:response>") != 301 {
		t.Errorf("got %d, Content-Length %q, %d entries", r.status, r.header.Get("Content-Length"), strings.Count(r.body, "<D:response>"))
	}
	if _, err := readXML(strings.NewReader(r.body)); err != nil && err != errXMLBounds {
		t.Errorf("not well-formed: %v", err)
	}
	if r := w.send(t, "alice", "PROPFIND /dav/docs", []string{"Depth: infinity"}, ""); r.status != http.StatusForbidden {
		t.Errorf("infinity: got %d", r.status)
	}
}

// litmus, the real program, passes wholly.
func TestLitmus(t *testing.T) {
	program, err := exec.LookPath("litmus")
	if err != nil {
		t.Skip("litmus is not installed: apt-get install litmus")
	}
	w := newWorld(t, nil)
	cmd := exec.CommandContext(t.Context(), program, "-k", w.srv.URL+"/dav/docs/", "alice", password)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "TERM=dumb")
	out, err := cmd.CombinedOutput()
	summaries := regexp.MustCompile(`summary for .([a-z]+).: of (\d+) tests run: (\d+) passed, (\d+) failed`).FindAllStringSubmatch(string(out), -1)
	for _, s := range summaries {
		t.Log(s[0])
	}
	if err != nil || len(summaries) != 5 || bytes.Contains(out, []byte("FAIL")) {
		t.Errorf("litmus: %v\n%s", err, out)
	}
	for _, s := range summaries {
		if s[4] != "0" || s[2] == "0" {
			t.Errorf("%s\n%s", s[0], out)
		}
	}
}

// A11: what a user may not do is not done by any detour, and says nothing of what is there.
func TestA11Rights(t *testing.T) {
	house := gatewaytest.New(t, gatewaytest.Config{}) // bob reads /docs and writes /drop, guest may nothing there
	h, err := New(Config{Gateway: house.Gateway, Identity: house.Identity})
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, h)
	w.do(t, "PUT /dav/docs/a", "secret text")
	w.do(t, "MKCOL /dav/docs/f", "")
	w.do(t, "PUT /dav/drop/a", "secret text")
	const lock = `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`
	const patch = `<propertyupdate xmlns="DAV:"><set><prop><x xmlns="urn:x">1</x></prop></set></propertyupdate>`
	tests := []struct {
		user, line, header, body string
		want                     string // statuses that are right
	}{
		{"bob", "PUT /dav/docs/a", "", "x", "403"},
		{"bob", "PUT /dav/docs/new", "", "x", "403"},
		{"bob", "PATCH /dav/docs/a", "Content-Type: " + patchType + "\r\nX-Update-Range: append", "x", "403"},
		{"bob", "MKCOL /dav/docs/new", "", "", "403"},
		{"bob", "LOCK /dav/docs/new", "", lock, "403"},
		{"bob", "LOCK /dav/docs/a", "", lock, "403"},
		{"bob", "PROPPATCH /dav/docs/a", "", patch, "403"},
		{"bob", "DELETE /dav/docs/a", "", "", "403"},
		{"bob", "MOVE /dav/docs/a", "Destination: /dav/homes/a", "", "403"},
		{"bob", "COPY /dav/docs/a", "Destination: /dav/docs/b", "", "403"},
		{"bob", "COPY /dav/docs/a", "Destination: /dav/homes/a", "", "201"},
		{"bob", "MOVE /dav/homes/a", "Destination: /dav/docs/a", "", "403"},

		{"bob", "PUT /dav/drop/new", "", "x", "201"},
		{"bob", "GET /dav/drop/a", "", "", "403 404"},
		{"bob", "PROPFIND /dav/drop/a", "Depth: 0", "", "403 404"},
		{"bob", "COPY /dav/drop/a", "Destination: /dav/homes/b", "", "403 404"},

		{"guest", "GET /dav/docs/a", "", "", "404"},
		{"guest", "GET /dav/docs/none", "", "", "404"},
		{"guest", "PROPFIND /dav/docs/", "Depth: 1", "", "404"},
		{"guest", "PUT /dav/docs/new", "", "x", "403 404 409"},
		{"guest", "MKCOL /dav/docs/new", "", "", "403 404 409"},
		{"guest", "LOCK /dav/docs/new", "", lock, "403 404 409"},
		{"guest", "DELETE /dav/docs/a", "", "", "404"},
		{"guest", "COPY /dav/docs/a", "Destination: /dav/homes/a", "", "404"},
		{"guest", "GET /dav/docs/a", "If: ([\"x\"]) (Not [\"x\"])", "", "404"},
	}
	for _, tt := range tests {
		var header []string
		if tt.header != "" {
			header = strings.Split(tt.header, "\r\n")
		}
		r := w.send(t, tt.user, tt.line, header, tt.body)
		if !slices.Contains(strings.Fields(tt.want), fmt.Sprint(r.status)) || strings.Contains(r.body, "secret text") {
			t.Errorf("%s> %s, %s: got %d, want %s: %s", tt.user, tt.line, tt.header, r.status, tt.want, r.body)
		}
	}
	if names := w.names(t, "/dav/docs/"); len(names) != 3 {
		t.Errorf("/docs holds %v", names)
	}
	if r := w.send(t, "guest", "PROPFIND /dav/", []string{"Depth: 1"}, ""); strings.Contains(r.body, "docs") {
		t.Errorf("guest sees docs: %s", r.body)
	}
}

// R03: guessing is slowed down with 429, and who knows the password gets in from elsewhere.
func TestR03Guessing(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.ClientAddr = func(r *http.Request) netip.Addr { return netip.MustParseAddr(r.Header.Get("From")) }
	})
	var last reply
	for range 200 {
		if last = w.send(t, "", "GET /dav/docs/", []string{"From: 192.0.2.1", "Authorization: Basic YWxpY2U6d3Jvbmc="}, ""); last.status == http.StatusTooManyRequests {
			break
		}
	}
	if last.status != http.StatusTooManyRequests || last.header.Get("Retry-After") == "" {
		t.Errorf("after 200 guesses: got %d, Retry-After %q", last.status, last.header.Get("Retry-After"))
	}
	if r := w.send(t, "alice", "GET /dav/docs/", []string{"From: 198.51.100.1"}, ""); r.status != http.StatusOK {
		t.Errorf("the victim from elsewhere: got %d", r.status)
	}
}

// A disabled or changed account is refused at the next request, though its session was cached.
func TestSessionsFollowTheAccount(t *testing.T) {
	house := gatewaytest.New(t, gatewaytest.Config{})
	h, err := New(Config{Gateway: house.Gateway, Identity: house.Identity})
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, h)
	w.do(t, "PUT /dav/docs/a", "x")
	if r := w.send(t, "bob", "GET /dav/docs/a", nil, ""); r.status != http.StatusOK {
		t.Fatalf("before: got %d", r.status)
	}
	house.Revoke("user:bob", "docs:/")
	if r := w.send(t, "bob", "GET /dav/docs/a", nil, ""); r.status != http.StatusNotFound {
		t.Errorf("without a grant: got %d", r.status)
	}
	if err := house.Identity.DeleteUser(t.Context(), "bob"); err != nil {
		t.Fatal(err)
	}
	if r := w.send(t, "bob", "GET /dav/docs/a", nil, ""); r.status != http.StatusUnauthorized {
		t.Errorf("deleted: got %d", r.status)
	}
}

// W01: a lock survives a restart and binds the others; "infinite" is capped.
func TestW01LocksSurviveARestart(t *testing.T) {
	house := gatewaytest.New(t, gatewaytest.Config{})
	house.Grant("user:bob", "docs:/", "read", "write")
	open := func() *world {
		h, err := New(Config{Gateway: house.Gateway, Identity: house.Identity})
		if err != nil {
			t.Fatal(err)
		}
		return serve(t, h)
	}
	w := open()
	w.do(t, "PUT /dav/docs/a", "x")
	r := w.send(t, "alice", "LOCK /dav/docs/a", []string{"Timeout: Infinite"},
		`<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`)
	if r.status != http.StatusOK || !strings.Contains(r.body, "<D:timeout>Second-3600<") {
		t.Fatalf("LOCK: got %d %s", r.status, r.body)
	}
	token := r.header.Get("Lock-Token")
	house.Reopen()
	w = open()
	if r := w.send(t, "bob", "PUT /dav/docs/a", []string{"If: (" + token + ")"}, "y"); r.status != http.StatusLocked {
		t.Errorf("bob after the restart: got %d", r.status)
	}
	if r := w.send(t, "alice", "PUT /dav/docs/a", []string{"If: (" + token + ")"}, "y"); r.status != http.StatusNoContent {
		t.Errorf("alice after the restart: got %d %s", r.status, r.body)
	}
	if r := w.send(t, "alice", "UNLOCK /dav/docs/a", []string{"Lock-Token: " + token}, ""); r.status != http.StatusNoContent {
		t.Errorf("UNLOCK: got %d", r.status)
	}
}
