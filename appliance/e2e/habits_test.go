package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestHabits plays testdata/*.txt: what clients that cannot run here were seen to send, as it came, on one connection each. In this form:
//
//	# what the client is about
//	alice> PUT /dav/docs/a        "-> " for a request without a login
//	Header: value
//	| the body, line by line
//	< 201                          the status; several with a slash between them
//	< ETag: {tag}                  a header: its value, * for any; {name} remembers
//	<| text                        what the body contains
//	<! text                        what it does not
func TestHabits(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 2 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			b := start(t, common)
			p := player{t: t, host: b.http, conn: b.dial(), vars: map[string]string{"host": b.http}}
			defer p.conn.Close()
			p.in = bufio.NewReader(p.conn)
			p.play(file)
			b.sound()
		})
	}
}

type player struct {
	t    *testing.T
	host string
	conn net.Conn
	in   *bufio.Reader
	vars map[string]string // what was remembered
}

// exchange is a request and what is expected of the answer.
type exchange struct {
	at, user, line     string
	header, body, want []string
}

var requestLine = regexp.MustCompile(`^(\w+|-)> (.*)$`)

func (p *player) play(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	var all []*exchange
	for i, l := range strings.Split(string(text), "\n") {
		at := fmt.Sprintf("%s:%d", file, i+1)
		if m := requestLine.FindStringSubmatch(l); m != nil {
			all = append(all, &exchange{at: at, user: strings.Trim(m[1], "-"), line: m[2]})
			continue
		}
		if l == "" || l[0] == '#' {
			continue
		}
		if len(all) == 0 {
			p.t.Fatalf("%s: %q stands before any request", at, l)
		}
		x := all[len(all)-1]
		switch l[0] {
		case '<':
			x.want = append(x.want, l)
		case '|':
			x.body = append(x.body, strings.TrimPrefix(strings.TrimPrefix(l, "|"), " "))
		default:
			x.header = append(x.header, l)
		}
	}
	for _, x := range all {
		p.run(x)
	}
}

func (p *player) run(x *exchange) {
	for i := range x.header {
		x.header[i] = p.fill(x.header[i])
	}
	body := p.fill(strings.Join(x.body, "\r\n"))
	if strings.Contains(strings.Join(x.header, "\n"), "chunked") {
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	r, err := rawOn(p.conn, p.in, p.host, x.user, p.fill(x.line), x.header, body)
	if err != nil {
		p.t.Fatalf("%s: %s: %v", x.at, x.line, err)
	}
	for _, want := range x.want {
		if complaint := p.check(r, want); complaint != "" {
			p.t.Errorf("%s: %s: %s\n%d %.1500s", x.at, x.line, complaint, r.status, r.body)
		}
	}
}

func (p *player) check(r reply, want string) string {
	if text, ok := strings.CutPrefix(want, "<| "); ok {
		if !strings.Contains(r.body, p.fill(text)) {
			return "body lacks " + p.fill(text)
		}
		return ""
	}
	if text, ok := strings.CutPrefix(want, "<! "); ok {
		if strings.Contains(r.body, p.fill(text)) {
			return "body has " + p.fill(text)
		}
		return ""
	}
	key, value, isHeader := strings.Cut(strings.TrimPrefix(want, "< "), ": ")
	if !isHeader {
		for s := range strings.SplitSeq(key, "/") {
			if s == strconv.Itoa(r.status) {
				return ""
			}
		}
		return "wanted " + key
	}
	got := r.header.Get(key)
	if pre, rest, ok := strings.Cut(p.fill(value), "{"); ok {
		name, post, _ := strings.Cut(rest, "}")
		if len(got) > len(pre)+len(post) && strings.HasPrefix(got, pre) && strings.HasSuffix(got, post) {
			p.vars[name] = got[len(pre) : len(got)-len(post)]
			return ""
		}
	}
	if got == p.fill(value) || value == "*" && got != "" {
		return ""
	}
	return fmt.Sprintf("header %s is %q", key, got)
}

// fill puts what was remembered in the place of its name.
func (p *player) fill(s string) string {
	for k, v := range p.vars {
		s = strings.ReplaceAll(s, "{"+k+"}", v)
	}
	return s
}
