package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpu is the processor time the box has used.
func (b *box) cpu() time.Duration {
	b.t.Helper()
	stat := read(b.t, fmt.Sprintf("/proc/%d/stat", b.pid()))
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// hostile sends a request whose body comes from fill, as much of it as the box takes, and returns the status.
func (b *box) hostile(t *testing.T, line string, header []string, fill func(w io.Writer) error) int {
	t.Helper()
	conn := b.dial().(*net.TCPConn)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.WriteString(conn, rawRequest(b.http, "alice", line, header, "")); err == nil {
			_ = fill(conn)
		}
	}()
	// The answer may come before the body has gone out.
	buf := make([]byte, 64)
	n, _ := io.ReadAtLeast(conn, buf, 12)
	conn.Close()
	<-done
	if n < 12 {
		return 0
	}
	status, _ := strconv.Atoi(string(buf[9:12]))
	return status
}

// W03: hostile XML and oversized bodies end in a 4xx within a second of processor time and in bounded memory, for every verb that reads XML.
func TestW03HostileXML(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	alice := b.as("alice")
	alice.want("PUT", "/docs/f", "f", 201)
	canary := write(t, filepath.Join(t.TempDir(), "canary"), "CANARY-ENTITY")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := io.WriteString(w, fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(s), s))
			return err
		}
	}
	// repeat sends head, n times piece and tail in chunks, unless it is cut off.
	repeat := func(head, piece string, n int, tail string) func(io.Writer) error {
		return func(w io.Writer) error {
			block := strings.Repeat(piece, max(1, 32<<10/len(piece)))
			per := len(block) / len(piece)
			chunk := func(s string) error {
				_, err := fmt.Fprintf(w, "%x\r\n%s\r\n", len(s), s)
				return err
			}
			if err := chunk(head); err != nil {
				return err
			}
			for sent := 0; sent < n; sent += per {
				if err := chunk(block); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(w, "%x\r\n%s\r\n0\r\n\r\n", len(tail), tail)
			return err
		}
	}
	lol := `<!DOCTYPE l [<!ENTITY a "lollollollol">`
	for c := 'b'; c < 'k'; c++ {
		lol += fmt.Sprintf(`<!ENTITY %c "%s">`, c, strings.Repeat(fmt.Sprintf("&%c;", c-1), 10))
	}
	bodies := []struct {
		name string
		fill func(io.Writer) error
	}{
		{"external entity", text(`<?xml version="1.0"?><!DOCTYPE p [<!ENTITY x SYSTEM "file://` + canary + `">]><propfind xmlns="DAV:"><prop><displayname>&x;</displayname></prop></propfind>`)},
		{"parameter entity", text(`<!DOCTYPE p [<!ENTITY % x SYSTEM "http://127.0.0.1:1/"> %x;]><propfind xmlns="DAV:"><allprop/></propfind>`)},
		{"billion laughs", text(lol + `]><propfind xmlns="DAV:"><prop><x>&j;</x></prop></propfind>`)},
		{"nesting", repeat(`<propfind xmlns="DAV:"><prop>`, "<x>", 1_000_000, "")},
		{"300,000 properties", repeat(`<propfind xmlns="DAV:"><prop>`, "<a/>", 300_000, "</prop></propfind>")},
		{"300,000 attributes", repeat(`<propfind xmlns="DAV:" `, `xmlns:q="u" `, 300_000, "><allprop/></propfind>")},
		{"1 GiB of nothing", repeat(`<propfind xmlns="DAV:">`, strings.Repeat(" ", 32<<10), 32<<10, "<allprop/></propfind>")},
		{"1 GiB comment", repeat(`<propfind xmlns="DAV:"><!--`, strings.Repeat("-x", 16<<10), 32<<10, "--><allprop/></propfind>")},
		{"endless tag", repeat("<", strings.Repeat("a", 32<<10), 32<<10, "/>")},
		{"dead property of 100 MB", repeat(`<propertyupdate xmlns="DAV:"><set><prop><x xmlns="urn:x">`, strings.Repeat("x", 32<<10), 3200, "</x></prop></set></propertyupdate>")},
		{"lock owner of 100 MB", repeat(`<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype><owner>`, strings.Repeat("x", 32<<10), 3200, "</owner></lockinfo>")},
		{"not closed", text(`<propfind xmlns="DAV:"><allprop>`)},
		{"two roots", text(`<propfind xmlns="DAV:"><allprop/></propfind><x/>`)},
		{"no UTF-8", text("<propfind xmlns=\"DAV:\"><prop><\xff\xfe/></prop></propfind>")},
		{"other coding", text(`<?xml version="1.0" encoding="utf-16"?><propfind xmlns="DAV:"><allprop/></propfind>`)},
		{"empty namespace prefix", text(`<D:propfind xmlns:D="DAV:"><D:prop><bar:foo xmlns:bar=""/></D:prop></D:propfind>`)},
		{"NUL", text("<propfind xmlns=\"DAV:\"><prop><a\x00/></prop></propfind>")},
		{"binary", text("\x00\x01\x02\x03")},
	}
	base := b.forget()
	for _, method := range []string{"PROPFIND", "PROPPATCH", "LOCK"} {
		for _, c := range bodies {
			began, cpu := time.Now(), b.cpu()
			status := b.hostile(t, method+" /dav/docs/f", []string{"Transfer-Encoding: chunked", "Depth: 0", "Content-Type: text/xml"}, c.fill)
			took := b.cpu() - cpu
			if status < 400 || status >= 500 {
				t.Errorf("%s with %s: status %d after %v", method, c.name, status, time.Since(began))
			}
			if took > time.Second {
				t.Errorf("%s with %s: %v of processor time", method, c.name, took)
			}
		}
	}
	for _, length := range []string{"1073741824", "9223372036854775807"} {
		if status := b.hostile(t, "PROPFIND /dav/docs/f", []string{"Content-Length: " + length, "Depth: 0"}, func(w io.Writer) error { return nil }); status < 400 || status >= 500 {
			t.Errorf("PROPFIND that announces %s bytes: %d", length, status)
		}
	}
	b.grew(base, 64<<20)

	// Many properties on one file are bounded, too, and a dead property that is allowed comes back as it was.
	if r := alice.want("PROPFIND", "/docs/f", "", 207, "Depth: 0"); strings.Contains(r.body, "xxxxxxxx") || strings.Contains(r.body, "CANARY") {
		t.Errorf("something of it was kept: %.500s", r.body)
	}
	refused := false
	for i := 0; i < 40 && !refused; i++ {
		var s strings.Builder
		for k := range 100 {
			fmt.Fprintf(&s, `<p%d_%d xmlns="urn:x">%s</p%d_%d>`, i, k, strings.Repeat("v", 1000), i, k)
		}
		r := alice.do("PROPPATCH", "/docs/f", `<propertyupdate xmlns="DAV:"><set><prop>`+s.String()+`</prop></set></propertyupdate>`)
		refused = r.status >= 400 || !strings.Contains(r.body, " 200 OK")
	}
	if !refused {
		t.Error("4,000 dead properties of 1 KB were taken")
	}
	if _, err := os.Stat(canary); err != nil || !b.alive() {
		t.Error("the box is gone")
	}
	b.sound()
}
