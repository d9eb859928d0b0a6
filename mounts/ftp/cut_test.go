package ftp_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
)

// middle stands between the driver and a server, on the control connection, and leads data connections to where a test wants them: it puts
// another port into the server's answers to EPSV.
type middle struct {
	t        *testing.T
	upstream string
	all      sync.WaitGroup

	mu   sync.Mutex
	data func(upstream string) (port int) // guarded by mu
}

// between puts a middle in front of cfg's server.
func between(t *testing.T, cfg mounts.Config) *middle {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &middle{t: t, upstream: net.JoinHostPort(cfg.Options["host"], cfg.Options["port"])}
	t.Cleanup(func() { ln.Close(); m.all.Wait() })
	m.all.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			m.all.Go(func() { m.serve(client) })
		}
	})
	cfg.Options["port"] = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	return m
}

// lead lets data connections go to the port that by returns for the server's own address; nil: there.
func (m *middle) lead(by func(upstream string) (port int)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = by
}

func (m *middle) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", m.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	m.all.Go(func() {
		io.Copy(server, client)
		server.Close() // some servers do not notice that the client has gone while they transfer
	})
	for in := bufio.NewReader(server); ; {
		line, err := in.ReadString('\n')
		if parts := strings.Split(line, "|"); strings.HasPrefix(line, "229 ") && len(parts) == 5 {
			m.mu.Lock()
			by := m.data
			m.mu.Unlock()
			if by != nil {
				parts[3] = strconv.Itoa(by(net.JoinHostPort("127.0.0.1", parts[3])))
			}
			line = strings.Join(parts, "|")
		}
		if _, werr := io.WriteString(client, line); err != nil || werr != nil {
			return
		}
	}
}

// endAfter is a relay for one connection that ends it in order, on both sides, after n bytes in either direction.
func (m *middle) endAfter(n int64) func(upstream string) (port int) {
	return func(upstream string) int {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			m.t.Error(err)
			return 0
		}
		m.all.Go(func() {
			defer ln.Close()
			ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
			client, err := ln.Accept()
			if err != nil {
				return
			}
			defer client.Close()
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				return
			}
			defer server.Close()
			var both sync.WaitGroup
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				both.Go(func() {
					io.CopyN(way[1], way[0], n)
					way[1].(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, way[0]) // unread bytes would make a reset of it
				})
			}
			both.Wait()
		})
		return ln.Addr().(*net.TCPAddr).Port
	}
}

// TestDataCut: a transfer whose data connection is cut, ended or stalled fails with a reason; nothing of an upload gets the name.
func TestDataCut(t *testing.T) {
	const size, after = 3<<20 + 77, 1<<20 + 5
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 31 >> 7)
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s, cfg := server(t, servertest.FTPOptions{Kind: kind})
			cfg.Options["timeout"] = "2s"
			m := between(t, cfg)
			b := open(t, cfg)
			mounttest.Script(t, b, "put old \"the old content\" -> ok")
			if _, err := mounts.WriteFile(t.Context(), b, "large", content); err != nil {
				t.Fatal(err)
			}
			by := func(wrong func(link *netfault.Proxy)) func(string) int {
				return func(upstream string) int {
					link := netfault.New(t, upstream)
					wrong(link)
					return link.Port
				}
			}
			for _, test := range []struct {
				name string
				lead func(upstream string) (port int)
				want []fault.Kind
			}{
				{"reset", by(func(l *netfault.Proxy) { l.CutAfter(after) }), []fault.Kind{fault.Unavailable}},
				{"reset at once", by(func(l *netfault.Proxy) { l.CutAfter(0) }), []fault.Kind{fault.Unavailable}},
				{"refused", by(func(l *netfault.Proxy) { l.Refuse() }), []fault.Kind{fault.Unavailable}},
				{"ended", m.endAfter(after), []fault.Kind{fault.Unavailable}},
				{"ended at once", m.endAfter(0), []fault.Kind{fault.Unavailable}},
				{"stalled", by(func(l *netfault.Proxy) { l.Stall() }), []fault.Kind{fault.Timeout}},
			} {
				t.Run(test.name, func(t *testing.T) {
					m.lead(test.lead)
					got, err := mounts.ReadFile(t.Context(), b, "large", size+1)
					if !bytes.HasPrefix(content, got) {
						t.Errorf("read %d bytes that are not the file's", len(got))
					}
					wantOne(t, "read", err, test.want)
					for _, name := range []string{"new", "old"} {
						_, err = mounts.WriteFile(t.Context(), b, name, content)
						wantOne(t, "put "+name, err, test.want)
					}
					_, err = b.Put(t.Context(), "new", struct{ io.Reader }{bytes.NewReader(content)}, mounts.PutOptions{Size: -1})
					wantOne(t, "put of unknown length", err, test.want)
					m.lead(nil)
					mounttest.Script(t, b, `
						stat new -> ! does not exist
						cat old  -> "the old content"
						ls .     -> large old
					`)
					if got, err := mounts.ReadFile(t.Context(), b, "large", size+1); err != nil || !bytes.Equal(got, content) {
						t.Errorf("read afterwards: %d bytes, %v", len(got), err)
					}
				})
			}
			// What was stored of them is removed, maybe a little later.
			for until := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				left, err := os.ReadDir(filepath.Join(s.Root, mounts.Area, "tmp"))
				if err != nil {
					t.Fatal(err)
				}
				if len(left) == 0 {
					break
				}
				if time.Now().After(until) {
					t.Fatalf("%d files stay in the Area, such as %s", len(left), left[0])
				}
			}
		})
	}
}

// TestDataCutSmall: a small upload, which is not measured before it gets its name, is not acknowledged when something of it was lost.
func TestDataCutSmall(t *testing.T) {
	_, cfg := server(t, servertest.FTPOptions{Kind: "vsftpd"})
	m := between(t, cfg)
	b := open(t, cfg)
	for _, after := range []int64{0, 1000} {
		m.lead(m.endAfter(after))
		_, err := mounts.WriteFile(t.Context(), b, fmt.Sprint("f", after), make([]byte, 5000))
		wantOne(t, "put", err, []fault.Kind{fault.Unavailable})
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%d of 5000 bytes", after)) {
			t.Errorf("the message is %q", err)
		}
		m.lead(nil)
	}
}

func wantOne(t *testing.T, what string, err error, want []fault.Kind) {
	t.Helper()
	for _, k := range want {
		if err != nil && fault.KindOf(err) == k {
			return
		}
	}
	t.Errorf("%s: %v; want %v", what, err, want)
}
