package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// client is a user with an HTTP client, for what must be said precisely. Safe for concurrent use.
type client struct {
	t    testing.TB
	base string // http://host:port
	user string // "" sends no login
	pass string
	c    *http.Client
}

// as returns a client for a user of the box.
func (b *box) as(user string) *client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, ExpectContinueTimeout: time.Second}
	b.t.Cleanup(tr.CloseIdleConnections)
	return &client{t: b.t, base: "http://" + b.http, user: user, pass: password(user), c: &http.Client{Transport: tr, Timeout: time.Minute}}
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) ok() bool { return r.status >= 200 && r.status < 300 }

// try sends a request to a path below /dav; header is "Key: value". The path is escaped here.
func (c *client) try(ctx context.Context, method, path string, body io.Reader, header ...string) (reply, error) {
	u := &url.URL{Path: "/dav" + path}
	req, err := http.NewRequestWithContext(ctx, method, c.base+u.EscapedPath(), body)
	if err != nil {
		return reply{}, err
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.pass)
	}
	for _, h := range header {
		key, value, _ := strings.Cut(h, ": ")
		req.Header.Set(key, value)
	}
	res, err := c.c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(got)}, err
}

// do is try where the exchange itself must succeed.
func (c *client) do(method, path, body string, header ...string) reply {
	c.t.Helper()
	r, err := c.try(context.Background(), method, path, strings.NewReader(body), header...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

// want is do with the statuses that are right.
func (c *client) want(method, path, body string, status int, header ...string) reply {
	c.t.Helper()
	r := c.do(method, path, body, header...)
	if r.status != status {
		c.t.Fatalf("%s %s as %s: got %d, want %d\n%.500s", method, path, c.user, r.status, status, r.body)
	}
	return r
}

// to is the Destination header for a path.
func (c *client) to(path string) string {
	return "Destination: " + c.base + (&url.URL{Path: "/dav" + path}).EscapedPath()
}

// multistatus is what a PROPFIND says, as far as the tests look.
type multistatus struct {
	Responses []struct {
		Href  string `xml:"DAV: href"`
		Stats []struct {
			Status string `xml:"DAV: status"`
			Prop   struct {
				Kind *struct {
					Folder *struct{} `xml:"DAV: collection"`
				} `xml:"DAV: resourcetype"`
				Length string `xml:"DAV: getcontentlength"`
				ETag   string `xml:"DAV: getetag"`
				Mark   string `xml:"urn:e2e mark"`
			} `xml:"DAV: prop"`
		} `xml:"DAV: propstat"`
	} `xml:"DAV: response"`
}

// node is one line of a listing.
type node struct {
	path string // decoded, below /dav, no slash at its end
	dir  bool
	mark string // the dead property that tests set
}

const propsAsked = `<propfind xmlns="DAV:" xmlns:e="urn:e2e"><prop><resourcetype/><getcontentlength/><getetag/><e:mark/></prop></propfind>`

// list returns the node at path and, with depth 1, its children.
func (c *client) list(path string, depth int) ([]node, int, error) {
	r, err := c.try(context.Background(), "PROPFIND", path, strings.NewReader(propsAsked), fmt.Sprintf("Depth: %d", depth))
	if err != nil || r.status != http.StatusMultiStatus {
		return nil, r.status, err
	}
	var m multistatus
	if err := xml.Unmarshal([]byte(r.body), &m); err != nil {
		return nil, r.status, fmt.Errorf("%w in %.300s", err, r.body)
	}
	var nodes []node
	for _, e := range m.Responses {
		u, err := url.Parse(e.Href)
		if err != nil {
			return nil, r.status, err
		}
		n := node{path: strings.TrimSuffix(strings.TrimPrefix(u.Path, "/dav"), "/")}
		for _, st := range e.Stats {
			if strings.Contains(st.Status, " 200 ") {
				n.dir, n.mark = st.Prop.Kind != nil && st.Prop.Kind.Folder != nil, st.Prop.Mark
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, r.status, nil
}

// lock takes an exclusive lock and returns its token.
func (c *client) lock(path string) string {
	c.t.Helper()
	r := c.do("LOCK", path, `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype><owner>e2e</owner></lockinfo>`,
		"Timeout: Second-600", "Depth: 0")
	if !r.ok() {
		c.t.Fatalf("LOCK %s as %s: %d %s", path, c.user, r.status, r.body)
	}
	return strings.Trim(r.header.Get("Lock-Token"), "<>")
}

func basic(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password(user)))
}

// raw sends a request line and headers exactly as they are written, with Host and login added, on a connection of its own, and reads the
// answer. A body goes with a Content-Length unless the headers say otherwise.
func (b *box) raw(user, line string, header []string, body string) (reply, error) {
	conn, err := net.DialTimeout("tcp", b.http, 10*time.Second)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	return rawOn(conn, bufio.NewReader(conn), b.http, user, line, header, body)
}

// rawOn is raw on a connection that is kept.
func rawOn(conn net.Conn, in *bufio.Reader, host, user, line string, header []string, body string) (reply, error) {
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, rawRequest(host, user, line, header, body)); err != nil {
		return reply{}, err
	}
	method, _, _ := strings.Cut(line, " ")
	res, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(got)}, err
}

func rawRequest(host, user, line string, header []string, body string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s HTTP/1.1\r\nHost: %s\r\n", line, host)
	if user != "" {
		fmt.Fprintf(&s, "Authorization: %s\r\n", basic(user))
	}
	for _, h := range header {
		s.WriteString(h + "\r\n")
	}
	if low := strings.ToLower(s.String()); !strings.Contains(low, "\r\ntransfer-encoding:") && !strings.Contains(low, "\r\ncontent-length:") {
		fmt.Fprintf(&s, "Content-Length: %d\r\n", len(body))
	}
	s.WriteString("\r\n" + body)
	return s.String()
}

// each calls fn n times at once and waits for all.
func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}
