package sftp

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
)

// TestMalformed: packets that lie end their session, or are refused, and cost nobody else anything.
func TestMalformed(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	other := b.wire("bob")
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	for name, p := range map[string][]byte{
		"empty":              u32(0),
		"no id":              append(u32(2), typeStat, 0),
		"too long":           append(u32(maxPacket+1), typeWrite, 0, 0, 0, 0),
		"enormous":           append(u32(0xffffffff), typeWrite, 0, 0, 0, 0),
		"long, and no write": append(u32(maxOther+10), typeStat, 0, 0, 0, 0),
		"short write":        append(u32(10), typeWrite, 0, 0, 0, 1, 0, 0, 0, 4, 0),
		"write of more":      append(append(append(u32(1+24), typeWrite, 0, 0, 0, 1), reply(nil).str("\x00\x00\x00\x01").u64(0)...), u32(1<<30)...),
		"write, far away":    append(append(append(u32(1+24), typeWrite, 0, 0, 0, 1), reply(nil).str("\x00\x00\x00\x01").u64(1<<63)...), u32(0)...),
	} {
		w := b.wire("alice")
		if _, err := w.rw.Write(p); err != nil {
			t.Fatal(err)
		}
		if typ, _ := w.receive(); typ != 0 {
			t.Errorf("%s: answered with %d", name, typ)
		}
	}
	w := b.wire("alice")
	for typ := range 256 {
		if typ == typeWrite {
			continue
		}
		for _, fields := range [][]byte{nil, u32(0xffffffff), u32(4), bytes.Repeat([]byte{0xff}, 100), reply(nil).str("fsync@openssh.com"), reply(nil).str("copy-data").u32(4)} {
			if code := w.statusOf(byte(typ), fields); code == statusOK && typ != typeRealpath && len(fields) == 0 {
				t.Errorf("type %d with nothing in it: done", typ)
			}
		}
	}
	if code := other.status(typeStat, "/docs"); code != statusOK {
		t.Errorf("somebody else: status %d", code)
	}
	// A version that is none.
	ch, _ := b.raw("alice")
	if _, err := ch.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(ch); len(rest) != 0 {
		t.Errorf("answered %q", rest)
	}
}

// TestManyOpens: 100,000 opens without a close are capped (RELIABILITY F01), and so are channels and connections.
func TestManyOpens(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{Limits: Limits{Channels: 3, UserSessions: 2}})
	b.write("alice", "/docs/f", "x")
	w := b.wire("alice")
	open := append(answer(typeOpen, 7, 0), reply(nil).str("/docs/f").u32(openRead).u32(0)...).done()
	const n = 100_000
	go func() {
		for range n / 100 {
			if _, err := w.rw.Write(bytes.Repeat(open, 100)); err != nil {
				return
			}
		}
	}()
	handles := 0
	for range n {
		typ, _ := w.receive()
		if typ == 0 {
			t.Fatal("the server has gone")
		}
		if typ == typeHandle {
			handles++
		}
	}
	if handles != 512 {
		t.Errorf("%d handles", handles)
	}
	if got := b.wire("bob").status(typeStat, "/docs/f"); got != statusOK {
		t.Errorf("somebody else: status %d", got)
	}
	_, c := b.raw("alice")
	for range 2 {
		if _, requests, err := c.OpenChannel("session", nil); err != nil {
			t.Fatal(err)
		} else {
			go ssh.DiscardRequests(requests)
		}
	}
	if _, _, err := c.OpenChannel("session", nil); err == nil {
		t.Error("a fourth channel")
	}
	third, err := b.dial("alice")
	if err == nil {
		if err = third.Wait(); err == nil {
			t.Error("a third connection stays")
		}
	}
	w.drop()
	c.Close()
	until(t, "there is room again", func() bool {
		c, err := b.dial("alice")
		if err != nil {
			return false
		}
		defer c.Close()
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			return false
		}
		go ssh.DiscardRequests(requests)
		return ch.Close() == nil
	})
}

// TestNeverReads: a client that asks and does not take what it asked for is cut off, and the memory it can tie up is small.
func TestNeverReads(t *testing.T) {
	b := start(t, onDisk(t), Config{Limits: Limits{Stall: 500 * time.Millisecond}})
	b.write("alice", "/docs/f", string(random(8<<20)))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var all []*wire
	for range 10 {
		ch, c := b.raw("alice")
		w := &wire{t: t, rw: struct {
			io.Reader
			io.Writer
		}{ch, ch}, drop: func() { c.Close() }}
		w.hello()
		h := w.open("/docs/f", openRead)
		for i := range uint64(200) { // 50 MiB
			w.send(typeRead, reply(nil).str(h).u64(i%30*maxData).u32(maxData))
		}
		all = append(all, w)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// The clients, which are in this process too, hold 2 MiB each: what their window takes.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 10*(4<<20) {
		t.Errorf("%d KiB for ten clients", grown>>10)
	}
	b.quiet()
	for _, w := range all {
		w.drop()
	}
}

// TestIdle: who asks for nothing is let go, who sends keepalives is not.
func TestIdle(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{Limits: Limits{Idle: time.Second}})
	idle, err := b.dial("alice")
	if err != nil {
		t.Fatal(err)
	}
	alive, err := b.dial("bob")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	gone := make(chan struct{})
	go func() {
		idle.Wait()
		close(gone)
	}()
	for over := false; !over; {
		if _, _, err := alive.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			t.Fatalf("one with keepalives: %v", err)
		}
		select {
		case <-gone:
			over = true
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestHalfOpen: handshakes that do not end keep nobody out, and are ended.
func TestHalfOpen(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{Limits: Limits{Handshakes: 10, Handshake: 20 * time.Second}})
	var silent []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	b.wire("alice").must(b.wire("alice").status(typeStat, "/docs"))
	for _, c := range silent[:30] { // those that had to make room
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Log(err) // a reset is an end, too
		}
	}
	b.srv.mu.Lock()
	waiting := len(b.srv.waiting)
	b.srv.mu.Unlock()
	if waiting > 10 {
		t.Errorf("%d handshakes under way", waiting)
	}
	short := start(t, gatewaytest.Config{}, Config{Limits: Limits{Handshake: 200 * time.Millisecond}})
	for _, say := range []string{"", "SSH-2.0-slow\r\n", "SSH-2.0-slow\r\n\x00\x00", string(bytes.Repeat([]byte("x"), 1000)), "SSH-2.0-x\r\n\xff\xff\xff\xff\xff"} {
		c, err := net.Dial("tcp", short.addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, say)
		io.Copy(io.Discard, c) // until it is ended
		c.Close()
	}
}

// TestMemory: a session that does nothing costs little.
func TestMemory(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	measure := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	b.wire("alice").must(b.wire("alice").status(typeStat, "/docs"))
	before := measure()
	const n = 60
	for range n {
		w := b.wire("alice")
		w.must(w.status(typeStat, "/docs"))
	}
	// Half of it is the clients'.
	if each := (measure() - before) / n; each > 2*90<<10 {
		t.Errorf("%d KiB for a session and its client", each>>10)
	} else {
		t.Logf("%d KiB for a session and its client", each>>10)
	}
}

// duplex is a connection that says what it was given.
type duplex struct {
	io.Reader
	io.Writer
}

// FuzzPackets gives the server whatever comes. It must neither panic nor hang.
func FuzzPackets(f *testing.F) {
	one := func(typ byte, fields reply) []byte { return append(answer(typ, 1, 0), fields...).done() }
	const h = "\x00\x00\x00\x01"
	f.Add(one(typeOpen, reply(nil).str("/docs/f").u32(openWrite|openCreate|openTrunc).u32(0)))
	f.Add(append(one(typeOpen, reply(nil).str("/docs/f").u32(openRead).u32(0)), one(typeRead, reply(nil).str(h).u64(0).u32(100))...))
	f.Add(append(one(typeOpendir, reply(nil).str("/")), one(typeReaddir, reply(nil).str(h))...))
	f.Add(append(one(typeOpen, reply(nil).str("/docs/g").u32(openWrite|openCreate).u32(0)), one(typeWrite, reply(nil).str(h).u64(5).str("data"))...))
	f.Add(one(typeRename, reply(nil).str("/docs/f").str("/docs/g")))
	f.Add(one(typeSetstat, reply(nil).str("/docs/f").u32(hasSize|hasTimes|hasMode|hasOwner|hasExtras).u64(1).u64(0).u32(0o644).u64(0).u32(1).str("a").str("b")))
	for _, e := range extensions {
		f.Add(one(typeExtended, reply(nil).str(e.name).str("/docs/f").str("/docs/g")))
		f.Add(one(typeExtended, reply(nil).str(e.name).str(h).u64(0).u64(0).str(h).u64(0)))
	}
	f.Add([]byte{0, 0, 0, 5, typeClose, 0, 0, 0, 1})
	b := start(f, gatewaytest.Config{}, Config{})
	b.write("alice", "/docs/f", "content")
	s := b.As("alice")
	f.Fuzz(func(t *testing.T, p []byte) {
		hello := reply{0, 0, 0, 0, typeInit}.u32(protocolVersion).done()
		in := io.MultiReader(bytes.NewReader(hello), bytes.NewReader(p))
		done := make(chan error, 1)
		go func() {
			done <- b.srv.serve(duplex{in, io.Discard}, client{session: s, about: gateway.Client{Protocol: protocol}, cut: func() {}})
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatal("it hangs")
		}
	})
}

// FuzzOffer gives prefersGCM whatever comes.
func FuzzOffer(f *testing.F) {
	f.Add([]byte{msgKexInit})
	f.Add(bytes.Repeat([]byte{msgKexInit, 0, 0, 0}, 10))
	f.Fuzz(func(t *testing.T, p []byte) { prefersGCM(p) })
}
