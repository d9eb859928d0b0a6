package webdav

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// world is a server with alice and bob, who may both write in /docs, and what a script has remembered.
type world struct {
	srv  *httptest.Server
	addr string
	vars map[string]string
}

// newWorld starts a server; change may alter its configuration.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	cfg := openCore(t)
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, h)
}

func serve(t *testing.T, h *Handler) *world {
	w := &world{srv: httptest.NewServer(h.Discover(h)), vars: make(map[string]string)}
	t.Cleanup(w.srv.Close)
	w.addr = w.srv.Listener.Addr().String()
	w.vars["host"] = w.addr
	return w
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// send sends one request exactly as it is written, so that no client library tidies it up first.
func (w *world) send(t *testing.T, user, line string, header []string, body string) reply {
	t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	method, _, _ := strings.Cut(line, " ")
	var b strings.Builder
	fmt.Fprintf(&b, "%s HTTP/1.1\r\nHost: %s\r\n", line, w.addr)
	if user != "" {
		fmt.Fprintf(&b, "Authorization: %s\r\n", basic(user))
	}
	for _, h := range header {
		b.WriteString(h + "\r\n")
	}
	if !strings.Contains(strings.ToLower(b.String()), "\r\ntransfer-encoding:") && !strings.Contains(strings.ToLower(b.String()), "\r\ncontent-length:") {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n" + body)
	if _, err := io.WriteString(conn, b.String()); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return reply{res.StatusCode, res.Header, string(got)}
}

func basic(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// do is send without headers, for preparations that must succeed.
func (w *world) do(t *testing.T, line, body string) reply {
	t.Helper()
	r := w.send(t, "alice", line, nil, body)
	if r.status >= 300 {
		t.Fatalf("%s: got %d %s", line, r.status, r.body)
	}
	return r
}

// TestExchanges plays testdata/exchanges: each file is a story of its own, in this form:
//
//	# what is shown, and where the standard says so
//	alice> PUT /dav/docs/a        "-> " for a request without a login
//	If-None-Match: *
//	| the body, line by line
//	< 201                          the status
//	< ETag: *                      a header: its value, * for any, - for none; {name} remembers
//	<| text                        what the body contains
//	<! text                        what it does not
func TestExchanges(t *testing.T) {
	files, err := filepath.Glob("testdata/exchanges/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no exchanges: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, func(c *Config) { c.HideMacFiles = strings.Contains(file, "mac") })
			w.play(t, file, strings.Split(string(text), "\n"))
		})
	}
}

// exchange is a request and what is expected of the answer.
type exchange struct {
	at         string // file:line
	user, line string
	header     []string
	body       []string
	want       []string
}

func (w *world) play(t *testing.T, file string, lines []string) {
	var x *exchange
	run := func() {
		if x != nil {
			w.run(t, x)
		}
		x = nil
	}
	request := regexp.MustCompile(`^(\w*|-)> (.*)$`)
	for i, l := range lines {
		m := request.FindStringSubmatch(l)
		switch {
		case m != nil:
			run()
			x = &exchange{at: file + ":" + strconv.Itoa(i+1), user: strings.Trim(m[1], "-"), line: m[2]}
		case strings.HasPrefix(l, "#"), l == "":
		case x == nil:
			t.Fatalf("%s:%d: %q stands before any request", file, i+1, l)
		case strings.HasPrefix(l, "<"):
			x.want = append(x.want, l)
		case l[0] == '|':
			x.body = append(x.body, strings.TrimPrefix(strings.TrimPrefix(l, "|"), " "))
		default:
			x.header = append(x.header, l)
		}
	}
	run()
}

func (w *world) run(t *testing.T, x *exchange) {
	for i := range x.header {
		x.header[i] = w.fill(x.header[i])
	}
	r := w.send(t, x.user, w.fill(x.line), x.header, w.fill(strings.Join(x.body, "\n")))
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s: %s\nbody: %.2000s", x.at, x.line, fmt.Sprintf(format, args...), r.body)
	}
	for _, want := range x.want {
		switch {
		case strings.HasPrefix(want, "<| "):
			if text := w.fill(want[3:]); !strings.Contains(r.body, text) {
				fail("body lacks %q", text)
			}
		case strings.HasPrefix(want, "<! "):
			if text := w.fill(want[3:]); strings.Contains(r.body, text) {
				fail("body has %q", text)
			}
		default:
			key, value, header := strings.Cut(strings.TrimPrefix(want, "< "), ": ")
			if !header {
				if strconv.Itoa(r.status) != key {
					fail("got status %d, want %s", r.status, key)
				}
				continue
			}
			if got := r.header.Get(key); !w.match(value, got, len(r.header.Values(key)) > 0) {
				fail("%s: got %q, want %q", key, got, value)
			}
		}
	}
}

// fill puts what was remembered in the place of its name.
func (w *world) fill(s string) string {
	for k := range maps.Keys(w.vars) {
		s = strings.ReplaceAll(s, "{"+k+"}", w.vars[k])
	}
	return s
}

// match compares a header with what is wanted of it. A name in braces that means nothing yet is remembered.
func (w *world) match(want, got string, present bool) bool {
	switch want {
	case "*":
		return present
	case "-":
		return !present
	}
	want = w.fill(want)
	if pre, rest, ok := strings.Cut(want, "{"); ok {
		name, post, _ := strings.Cut(rest, "}")
		if !strings.HasPrefix(got, pre) || !strings.HasSuffix(got, post) || len(got) < len(pre)+len(post)+1 {
			return false
		}
		w.vars[name] = got[len(pre) : len(got)-len(post)]
		return true
	}
	return got == want
}
