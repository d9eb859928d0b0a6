package dial_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"cellgate/internal/dial"
)

// listener counts who connects to an address of this machine.
type listener struct {
	net.Listener
	mu sync.Mutex
	n  int
}

func listen(t *testing.T, addr string) *listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("this machine does not listen on %s: %v", addr, err)
	}
	c := &listener{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
			c.mu.Lock()
			c.n++
			c.mu.Unlock()
		}
	}()
	return c
}

func (l *listener) port() string {
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// names is a name server that answers each name with the next of its lists of addresses, the last one for ever.
type names struct {
	mu      sync.Mutex
	answers map[string][][]string
	asked   int // for addresses of version 4
}

func (s *names) start(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			m.Answers = s.answer(m.Questions[0])
			if out, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (s *names) answer(q dnsmessage.Question) (all []dnsmessage.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimSuffix(q.Name.String(), ".")
	lists := s.answers[name]
	if len(lists) == 0 {
		return nil
	}
	if q.Type == dnsmessage.TypeA {
		s.asked++
	}
	for _, text := range lists[0] {
		a := netip.MustParseAddr(text)
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			all = append(all, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if q.Type == dnsmessage.TypeA && len(lists) > 1 {
		s.answers[name] = lists[1:]
	}
	return all
}

// B01: whatever way an address of this machine or of the private network is written, it is not dialled unless an admin named or allowed it.
func TestB01Addresses(t *testing.T) {
	t.Parallel()
	refused := []string{
		"127.0.0.1", "127.1.2.3", "127.255.255.254", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "fe80::1%lo", "224.0.0.1", "ff02::1", "255.255.255.255",
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12:3456::1",
		"::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", // mapped
		"64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:a00:1::", "::127.0.0.1", "::7f00:1", // through NAT64, 6to4, compatible
		"0.1.2.3", "192.0.0.1", "240.0.0.1", "100::1",
	}
	for _, host := range refused {
		_, err := new(dial.Dialer).DialContext(t.Context(), "tcp", net.JoinHostPort(host, "9"))
		if !errors.Is(err, dial.ErrRefused) {
			t.Errorf("%s: %v", host, err)
		}
	}
	// What is no literal address is a name, and whatever a resolver makes of it is judged.
	l := listen(t, "127.0.0.1:0")
	for _, host := range []string{"2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "sub.localhost", "①②⑦.⓪.⓪.①", "127.0.0.1%00.example.org"} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if conn, err := new(dial.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, l.port())); err == nil {
			conn.Close()
			t.Errorf("%s was dialled", host)
		}
		cancel()
	}
	if l.count() > 0 {
		t.Errorf("%d connections arrived", l.count())
	}
}

// What an admin wrote as a literal address is dialled, and nothing else of this machine; a name that he wrote may lie in the private network,
// and no name server makes it lead to this machine.
func TestNamed(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	s := &names{answers: map[string][][]string{
		"nas.example.org": {{"127.0.0.1"}}, "meta.example.org": {{"169.254.169.254"}}, "lan.example.org": {{"10.99.99.99"}}, "six.example.org": {{"::1"}},
		"mapped.example.org": {{"::ffff:127.0.0.1"}},
	}}
	resolver := s.start(t)
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	tests := []struct {
		name    string
		d       dial.Dialer
		host    string
		refused bool
	}{
		{"literal", dial.Dialer{Host: "127.0.0.1"}, "127.0.0.1", false},
		{"localhost", dial.Dialer{Host: "localhost"}, "LocalHost", false},
		{"another literal", dial.Dialer{Host: "127.0.0.2"}, "127.0.0.1", true},
		{"everything's address", dial.Dialer{Host: "0.0.0.0"}, "0.0.0.0", true},
		{"a name for this machine", dial.Dialer{Host: "nas.example.org"}, "nas.example.org", true},
		{"in IPv6", dial.Dialer{Host: "six.example.org"}, "six.example.org", true},
		{"mapped", dial.Dialer{Host: "mapped.example.org"}, "mapped.example.org", true},
		{"a name for link-local", dial.Dialer{Host: "meta.example.org"}, "meta.example.org", true},
		{"nobody named it", dial.Dialer{}, "nas.example.org", true},
		{"allowed", dial.Dialer{Allow: allow}, "nas.example.org", false},
		{"allowed literal", dial.Dialer{Allow: allow}, "127.0.0.1", false},
		{"allowed, mapped", dial.Dialer{Allow: allow}, "::ffff:127.0.0.1", false},
		{"another is allowed", dial.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}, "nas.example.org", true},
		{"a private one that nobody named", dial.Dialer{Host: "other.example.org"}, "lan.example.org", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.d.Resolver, test.d.Timeout = resolver, 2*time.Second
			conn, err := test.d.DialContext(t.Context(), "tcp", net.JoinHostPort(test.host, l.port()))
			if err == nil {
				conn.Close()
			}
			if test.refused != errors.Is(err, dial.ErrRefused) || !test.refused && err != nil {
				t.Errorf("got %v", err)
			}
			if test.refused && !strings.Contains(err.Error(), test.host) {
				t.Errorf("the refusal does not name %s: %v", test.host, err)
			}
		})
	}
	// A private one that the admin named is dialled, though nobody may be there.
	d := dial.Dialer{Host: "lan.example.org", Resolver: resolver, Timeout: 50 * time.Millisecond}
	if conn, err := d.DialContext(t.Context(), "tcp", "lan.example.org:9"); err == nil {
		conn.Close()
	} else if errors.Is(err, dial.ErrRefused) {
		t.Errorf("a private address that an admin named: %v", err)
	}
}

// A name server that changes its mind between the look and the call gains nothing: it is asked once, and what it said is judged and dialled.
func TestB01Rebinding(t *testing.T) {
	t.Parallel()
	forbidden := listen(t, "127.0.0.1:0")
	allowed := listen(t, "127.0.0.2:"+forbidden.port())
	s := &names{answers: map[string][][]string{"evil.example.org": {{"127.0.0.2"}, {"127.0.0.1"}}, "both.example.org": {{"127.0.0.1", "127.0.0.2"}}}}
	d := dial.Dialer{Host: "evil.example.org", Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, Resolver: s.start(t)}
	conn, err := d.DialContext(t.Context(), "tcp", "evil.example.org:"+forbidden.port())
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.RemoteAddr().String(); !strings.HasPrefix(got, "127.0.0.2:") {
		t.Errorf("connected to %s", got)
	}
	conn.Close()
	if s.mu.Lock(); s.asked != 1 {
		t.Errorf("asked %d times for one connection", s.asked)
	}
	s.mu.Unlock()
	if _, err := d.DialContext(t.Context(), "tcp", "evil.example.org:"+forbidden.port()); !errors.Is(err, dial.ErrRefused) {
		t.Errorf("after it changed its mind: %v", err)
	}
	conn, err = d.DialContext(t.Context(), "tcp", "both.example.org:"+forbidden.port())
	if err != nil {
		t.Fatalf("with one address of two allowed: %v", err)
	}
	if got := conn.RemoteAddr().String(); !strings.HasPrefix(got, "127.0.0.2:") {
		t.Errorf("of two addresses it connected to %s", got)
	}
	conn.Close()
	if forbidden.count() > 0 {
		t.Errorf("%d connections arrived where none may", forbidden.count())
	}
	if allowed.count() == 0 {
		t.Error("no connection arrived where they may: this shows nothing")
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	d := dial.Dialer{Host: "127.0.0.1"}
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.1"); err == nil {
		t.Error("without a port: no error")
	}
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	l.Close()
	if _, err := d.DialContext(t.Context(), "tcp", addr); err == nil || errors.Is(err, dial.ErrRefused) {
		t.Errorf("where nobody listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialContext(ctx, "tcp", addr); !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "cancel") {
		t.Errorf("cancelled: %v", err)
	}
}
