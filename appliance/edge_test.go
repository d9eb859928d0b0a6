package appliance

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveEdge serves h behind the edge at a door of its own and returns the address.
func serveEdge(t *testing.T, cfg *Config, h http.Handler, tc *tls.Config) (addr string, log *lockedBuffer) {
	t.Helper()
	log = new(lockedBuffer)
	logger := slog.New(slog.NewTextHandler(log, nil))
	d, err := openDoor(t.Context(), "http", "127.0.0.1:0", newEdge(h, cfg, logger, newMetrics()), tc, cfg, newConnections(cfg), logger)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.serve() }()
	t.Cleanup(func() {
		d.server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d.address(), log
}

// lockedBuffer is a log that the server writes while the test reads.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func testConfig() *Config {
	cfg := Default()
	cfg.Limits.StallTimeout = time.Second
	return &cfg
}

// TestSendfileSurvivesTheEdge proves that a handler gets a writer whose ReadFrom reaches the connection's own.
func TestSendfileSurvivesTheEdge(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	addr, _ := serveEdge(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rf, ok := w.(io.ReaderFrom)
		if !ok {
			t.Error("the writer is no io.ReaderFrom")
			return
		}
		if e, ok := w.(*response); !ok || !e.direct {
			t.Errorf("HTTP/1 in the clear is not direct: %T", w)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Length", "1048576")
		if n, err := rf.ReadFrom(io.LimitReader(f, 1<<20)); n != 1<<20 || err != nil {
			t.Errorf("ReadFrom returned %d, %v", n, err)
		}
	}), nil)
	res, err := http.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// TestStalledClients proves that clients which stop are cut off (R01), and that those which are only slow are not.
func TestStalledClients(t *testing.T) {
	big := make([]byte, 8<<20)
	ended := make(chan error, 1)
	addr, _ := serveEdge(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if r.Method == http.MethodPut {
			_, err = io.Copy(io.Discard, r.Body)
		} else {
			for range 4 {
				if _, err = w.Write(big); err != nil {
					break
				}
			}
		}
		ended <- err
	}), nil)
	dial := func(request string) net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	await := func(what string, wantErr bool, within time.Duration) {
		t.Helper()
		select {
		case err := <-ended:
			if (err != nil) != wantErr || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s ended with %v", what, err)
			}
		case <-time.After(within):
			t.Errorf("%s did not end within %s", what, within)
		}
	}
	c := dial("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc")
	await("a body that stops", true, 5*time.Second)
	c.Close()

	c = dial("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	dribble := time.NewTicker(50 * time.Millisecond)
	defer dribble.Stop()
	go func(c net.Conn) {
		for range dribble.C {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	}(c)
	await("a body that dribbles", true, 5*time.Second)

	dial("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	await("a reader that stops", true, 5*time.Second)

	c = dial("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 131072\r\n\r\n")
	for range 8 { // 1.6 s in all, more than the limit, at a fair pace
		time.Sleep(200 * time.Millisecond)
		if _, err := c.Write(big[:16<<10]); err != nil {
			t.Fatal(err)
		}
	}
	await("a body that is only slow", false, 5*time.Second)
}

func TestConnectionCaps(t *testing.T) {
	cfg := testConfig()
	cfg.Limits.ConnectionsPerAddress = 2
	addr, _ := serveEdge(t, cfg, http.NotFoundHandler(), nil)
	open := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	answers := func(c net.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	a, b := open(), open()
	if !answers(a) || !answers(b) {
		t.Fatal("two connections are allowed")
	}
	if answers(open()) {
		t.Error("a third connection was answered")
	}
	a.Close()
	for range 50 {
		time.Sleep(20 * time.Millisecond)
		if answers(open()) {
			return
		}
	}
	t.Error("a connection that closed made no room")
}

func TestClientOf(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3:5": "10.1.2.3/32", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64", "[::ffff:10.1.2.3]:5": "10.1.2.3/32", "[fe80::1%eth0]:5": "fe80::/64",
	} {
		if got := clientOf(addrConn(in)).String(); got != want {
			t.Errorf("clientOf(%s) = %s, want %s", in, got, want)
		}
	}
}

// addrConn is a connection that only has a remote address.
type addrConn string

func (c addrConn) RemoteAddr() net.Addr             { return c }
func (c addrConn) Network() string                  { return "tcp" }
func (c addrConn) String() string                   { return string(c) }
func (c addrConn) LocalAddr() net.Addr              { return c }
func (c addrConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c addrConn) Write([]byte) (int, error)        { return 0, io.EOF }
func (c addrConn) Close() error                     { return nil }
func (c addrConn) SetDeadline(time.Time) error      { return nil }
func (c addrConn) SetReadDeadline(time.Time) error  { return nil }
func (c addrConn) SetWriteDeadline(time.Time) error { return nil }

func TestForwarded(t *testing.T) {
	trusted := make([]Network, 2)
	for i, s := range []string{"10.0.0.0/8", "192.0.2.7"} {
		if err := trusted[i].UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ name, in, want string }{
		{"one", "203.0.113.5", "203.0.113.5"},
		{"forged in front", "127.0.0.1, 203.0.113.5", "203.0.113.5"},
		{"through two proxies", "203.0.113.5, 192.0.2.7, 10.1.1.1", "203.0.113.5"},
		{"all proxies", "10.1.1.1, 10.2.2.2", "10.1.1.1"},
		{"mapped", "::ffff:203.0.113.5", "203.0.113.5"},
		{"IPv6", "2001:db8::1, 10.0.0.1", "2001:db8::1"},
		{"nonsense", "203.0.113.5, you", "invalid IP"},
		{"with port", "203.0.113.5:80", "invalid IP"},
		{"empty", "", "invalid IP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := forwarded([]string{tt.in}, trusted); got.String() != tt.want {
				t.Errorf("forwarded(%q) = %s, want %s", tt.in, got, tt.want)
			}
		})
	}
}

func TestRequestIdentity(t *testing.T) {
	cfg := Default()
	cfg.TrustedProxies = []Network{{netip.MustParsePrefix("10.0.0.0/8")}}
	for _, tt := range []struct{ name, peer, id, wantAddr string }{
		{"a stranger is not believed", "203.0.113.9:1", "", "203.0.113.9:1"},
		{"a proxy is", "10.0.0.1:1", "abc-123", "198.51.100.1:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen *http.Request
			e := newEdge(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r }), &cfg, slog.New(slog.DiscardHandler), newMetrics())
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.peer
			r.Header.Set("X-Forwarded-For", "198.51.100.1")
			r.Header.Set(requestIDHeader, "abc-123")
			w := httptest.NewRecorder()
			e.ServeHTTP(w, r)
			id := seen.Header.Get(requestIDHeader)
			if seen.RemoteAddr != tt.wantAddr || (tt.id != "" && id != tt.id) || (tt.id == "" && id == "abc-123") || id != w.Header().Get(requestIDHeader) {
				t.Errorf("address %s, id %q", seen.RemoteAddr, id)
			}
		})
	}
	for _, id := range []string{"", "a b", "x\n", strings.Repeat("a", 65), "é"} {
		if plainID(id) {
			t.Errorf("%q is taken for an id", id)
		}
	}
}

func TestPanicIsContained(t *testing.T) {
	addr, log := serveEdge(t, testConfig(), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }), nil)
	res, err := http.Get("http://" + addr + "/public/secret-token")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusInternalServerError || !strings.Contains(log.String(), "boom") {
		t.Errorf("status %d, log %s", res.StatusCode, log)
	}
	if strings.Contains(log.String(), "secret-token") {
		t.Error("the token of a link is in the log")
	}
}
