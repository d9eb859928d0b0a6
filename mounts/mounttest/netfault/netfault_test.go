package netfault_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"cellgate/mounts/mounttest/netfault"
)

// serve runs a server for each connection and returns its address.
func serve(t testing.TB, each func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				each(c.(*net.TCPConn))
			})
		}
	})
	return l.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func dial(t testing.TB, link *netfault.Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", link.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// ask sends some bytes and returns how long the echo took.
func ask(t testing.TB, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	got := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("echo: %q, %v", got, err)
	}
	return time.Since(began)
}

// TestDelay: a round trip takes twice the delay, opening a connection one more, and bytes are under way side by side.
func TestDelay(t *testing.T) {
	link := netfault.New(t, serve(t, echo))
	link.Delay(20 * time.Millisecond)
	c := dial(t, link)
	if d := ask(t, c); d < 80*time.Millisecond || d > 200*time.Millisecond {
		t.Errorf("connect and ask: %v; want 80ms and some", d)
	}
	if d := ask(t, c); d < 40*time.Millisecond || d > 120*time.Millisecond {
		t.Errorf("ask: %v; want 40ms and some", d)
	}
	const size = 64 << 20
	rate := throughput(t, link, size)
	t.Logf("64 MiB at 20 ms each way: %.0f MB/s", rate)
	if rate < 50 { // it is 500 and more on an idle machine
		t.Errorf("throughput %.0f MB/s: limited by the delay", rate)
	}
	if link.Up() < size || link.Down() < size || link.Connections() != 2 {
		t.Errorf("up %d, down %d, %d connections", link.Up(), link.Down(), link.Connections())
	}
}

// throughput sends size bytes through an echo and returns MB/s of one direction.
func throughput(t testing.TB, link *netfault.Proxy, size int64) float64 {
	t.Helper()
	c := dial(t, link)
	ask(t, c)
	began := time.Now()
	go func() {
		io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(zeros{}, size), make([]byte, 256<<10))
		c.CloseWrite()
	}()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err != nil || n != size {
		t.Fatalf("received %d, %v", n, err)
	}
	return float64(size) / time.Since(began).Seconds() / 1e6
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestRate(t *testing.T) {
	link := netfault.New(t, serve(t, echo))
	link.Rate(100_000)
	var both sync.WaitGroup
	began := time.Now()
	for range 2 { // the line is shared
		c := dial(t, link)
		both.Go(func() {
			c.Write(make([]byte, 25_000))
			c.CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != 25_000 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	both.Wait()
	if d := time.Since(began); d < 400*time.Millisecond || d > 900*time.Millisecond {
		t.Errorf("50 KB at 100 KB/s took %v", d)
	}
	link.Heal()
	if d := ask(t, dial(t, link)); d > 200*time.Millisecond {
		t.Errorf("healed: %v", d)
	}
}

func TestStall(t *testing.T) {
	link := netfault.New(t, serve(t, echo))
	c := dial(t, link)
	ask(t, c)
	link.Stall()
	c.Write([]byte("later"))
	late := dial(t, link)
	late.Write([]byte("later"))
	for _, c := range []*net.TCPConn{c, late} {
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("stalled: read %d", n)
		}
	}
	link.Heal()
	for _, c := range []*net.TCPConn{c, late} {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "later" {
			t.Errorf("healed: %q, %v", got, err)
		}
	}
}

// TestCut: exactly so many bytes pass, then both sides see a reset; once, or each time.
func TestCut(t *testing.T) {
	link := netfault.New(t, serve(t, func(c *net.TCPConn) { io.CopyN(c, zeros{}, 10<<20) }))
	read := func() (int64, error) { return io.Copy(io.Discard, struct{ io.Reader }{dial(t, link)}) }
	link.CutAfter(1 << 20)
	if n, err := read(); n != 1<<20 || err == nil {
		t.Errorf("cut: %d, %v; want 1 MiB and an error", n, err)
	}
	if n, err := read(); n != 10<<20 || err != nil {
		t.Errorf("after the cut: %d, %v; want all", n, err)
	}
	link.CutEvery(3 << 20)
	for range 2 {
		if n, err := read(); n != 3<<20 || err == nil {
			t.Errorf("cut: %d, %v; want 3 MiB and an error", n, err)
		}
	}
	link.Heal()
	if n, err := read(); n != 10<<20 || err != nil {
		t.Errorf("healed: %d, %v; want all", n, err)
	}
}

func TestResetRefuse(t *testing.T) {
	link := netfault.New(t, serve(t, echo))
	c := dial(t, link)
	ask(t, c)
	if link.Open() != 1 {
		t.Errorf("%d open", link.Open())
	}
	link.Reset()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("reset: %v", err)
	}
	c = dial(t, link)
	ask(t, c)
	link.Refuse()
	if _, err := net.Dial("tcp", link.Addr); err == nil {
		t.Error("not refused")
	}
	ask(t, c)
	link.Heal()
	ask(t, dial(t, link))
}

// TestHalfClose: a side that has said all still hears the answer, and a reset of the server reaches the client as one.
func TestHalfClose(t *testing.T) {
	link := netfault.New(t, serve(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(all))
		if string(all) == "reset" {
			c.SetLinger(0)
		}
	}))
	link.Delay(5 * time.Millisecond)
	c := dial(t, link)
	c.Write([]byte("all"))
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "ALL" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	c = dial(t, link)
	c.Write([]byte("reset"))
	c.CloseWrite()
	if got, err := io.ReadAll(c); err == nil {
		t.Errorf("%q without an error; want a reset", got)
	}
}

func BenchmarkThroughput(b *testing.B) {
	for _, d := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		b.Run(d.String(), func(b *testing.B) {
			link := netfault.New(b, serve(b, echo))
			link.Delay(d)
			for b.Loop() {
				b.ReportMetric(throughput(b, link, 512<<20), "MB/s-each-way")
			}
		})
	}
}
