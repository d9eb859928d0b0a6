package sftp

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
)

// until waits for something that comes soon, on a machine that may be busy.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// quiet waits until nobody holds anything of the gateway any more.
func (b *box) quiet() {
	b.t.Helper()
	until(b.t, "nothing is left open", func() bool {
		b.srv.mu.Lock()
		n := len(b.srv.sessions)
		b.srv.mu.Unlock()
		return n == 0 && b.Gateway.Stats().Handles == 0 && b.Gateway.Stats().Staged == 0
	})
}

// TestDrop: what a client that is cut off has sent is not there, unless its name says that it is a part.
func TestDrop(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		content := random(900_000)
		for _, streams := range []bool{false, true} {
			for _, test := range []struct {
				name  string
				flags uint32
				old   string // "-" for none
				want  string
			}{
				{"new", openWrite | openCreate | openTrunc, "-", "!"},
				{"old", openWrite | openCreate | openTrunc, "old", "old"},
				{"over", openWrite, "old", "old"},
				{"new.filepart", openWrite | openCreate | openTrunc, "-", string(content)},
				{"New.PART", openWrite | openCreate | openTrunc, "-", string(content)},
				{"old.part", openWrite | openCreate, "old", string(content)},
			} {
				if test.old != "-" {
					b.write("alice", "/docs/"+test.name, test.old)
				}
				w := b.wire("alice")
				if streams {
					w.ask(typeExtended, "limits@openssh.com")
				}
				h := w.open("/docs/"+test.name, test.flags)
				for off := 0; off < len(content); off += 100_000 {
					w.must(w.write(h, int64(off), content[off:off+100_000]))
				}
				// And something behind a gap, which nobody can go on from.
				w.must(w.write(h, 1_000_000, []byte("more")))
				w.drop()
				b.quiet()
				got := b.content("bob", "/docs/"+test.name)
				if test.want == "!" && !strings.HasPrefix(got, "! ") || test.want != "!" && got != test.want {
					t.Errorf("%s, streams %v: %d bytes are there", test.name, streams, len(got))
				}
				if !strings.HasPrefix(got, "! ") {
					w = b.wire("alice")
					w.must(w.status(typeRemove, "/docs/"+test.name))
					w.drop()
				}
			}
		}
	})
}

// TestResume: a part goes on where it ended, by offset and by append, and gets its name in the end, as WinSCP does it.
func TestResume(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		content := random(500_000)
		for _, flags := range []uint32{openWrite, openWrite | openAppend, openWrite | openCreate} {
			w := b.wire("alice")
			h := w.open("/docs/f.filepart", openWrite|openCreate|openTrunc)
			w.must(w.write(h, 0, content[:200_000]))
			w.drop()
			b.quiet()
			w = b.wire("alice")
			typ, in := w.exchange(typeStat, reply(nil).str("/docs/f.filepart"))
			a := in.attrs()
			if typ != typeAttrs || a.size != 200_000 {
				t.Fatalf("%d bytes have been kept", a.size)
			}
			h = w.open("/docs/f.filepart", flags)
			for off := a.size; off < int64(len(content)); off += 50_000 {
				w.must(w.write(h, off, content[off:off+50_000]))
			}
			w.must(w.closeHandle(h))
			w.must(w.status(typeRename, "/docs/f.filepart", "/docs/f"))
			if got := b.content("bob", "/docs/f"); got != string(content) {
				t.Errorf("flags %d: %d bytes, or other ones", flags, len(got))
			}
			w.must(w.status(typeRemove, "/docs/f"))
			w.drop()
		}
	})
}

// TestHalfWrite: a write that is cut off in its middle is none.
func TestHalfWrite(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	w := b.wire("alice")
	h := w.open("/docs/f", openWrite|openCreate|openTrunc)
	p := append(answer(typeWrite, 99, 0), reply(nil).str(h).u64(0).u32(100_000)...)
	binary.BigEndian.PutUint32(p, uint32(len(p)-4+100_000))
	if _, err := w.rw.Write(append(p, random(70_000)...)); err != nil {
		t.Fatal(err)
	}
	w.drop()
	b.quiet()
	if got := b.content("bob", "/docs/f"); !strings.HasPrefix(got, "! ") {
		t.Errorf("%d bytes are there", len(got))
	}
}

// TestKill kills OpenSSH's client in the middle of an upload.
func TestKill(t *testing.T) {
	if _, err := exec.LookPath("sftp"); err != nil {
		t.Skip("sftp is not installed: nothing is tested with it")
	}
	b := start(t, onDisk(t), Config{})
	src := file(t, random(8<<20))
	b.write("alice", "/docs/old", "old")
	for name, want := range map[string]string{"new": "! ", "old": "old"} {
		c := exec.Command("sftp", append(b.options(), "-l", "4000", "-P", b.port, "-b", "-", "alice@127.0.0.1")...) // 4 Mbit/s: it takes 16 s
		c.Stdin = strings.NewReader("put " + src + " /docs/" + name + "\n")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "some of it has come", func() bool { return b.Gateway.Stats().Staged > 200_000 })
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		c.Wait()
		b.quiet()
		if got := b.content("bob", "/docs/"+name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %.20q is there", name, got)
		}
	}
}

// TestReaderDrops: of a client that goes while it reads nothing is left.
func TestReaderDrops(t *testing.T) {
	houses(t, func(t *testing.T, b *box) {
		b.write("alice", "/docs/f", string(random(6<<20)))
		for range 4 {
			w := b.wire("alice")
			h := w.open("/docs/f", openRead)
			for i := range uint64(20) {
				w.send(typeRead, reply(nil).str(h).u64(i*maxData).u32(maxData))
			}
			w.receive()
			w.drop()
		}
		b.quiet()
	})
}

// TestFailedWrite: a file of which a write has failed is not published, and the close says so.
func TestFailedWrite(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	b.write("alice", "/docs/f", "old")
	w := b.wire("alice")
	h := w.open("/docs/f", openWrite|openCreate|openTrunc)
	w.must(w.write(h, 0, []byte("new")))
	b.Revoke("user:alice", "docs:/")
	if code := w.closeHandle(h); code == statusOK {
		t.Error("published without the right to")
	}
	if got := b.content("bob", "/docs/f"); got != "old" {
		t.Errorf("it is %q", got)
	}
}

// TestChangedMeanwhile: a file that is changed in parts is not overwritten when somebody else was quicker.
func TestChangedMeanwhile(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	b.write("alice", "/docs/f", "old")
	w := b.wire("alice")
	h := w.open("/docs/f", openWrite|openAppend)
	w.must(w.write(h, 0, []byte(" and new")))
	b.write("bob", "/docs/f", "bob's")
	if code := w.closeHandle(h); code != statusFailure {
		t.Errorf("close: status %d", code)
	}
	if got := b.content("bob", "/docs/f"); got != "bob's" {
		t.Errorf("it is %q", got)
	}
}

// TestShutdown: running transfers end, new ones do not begin.
func TestShutdown(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	w, idle := b.wire("alice"), b.wire("bob")
	h := w.open("/docs/f", openWrite|openCreate|openTrunc)
	w.must(w.write(h, 0, []byte("hello")))
	done := make(chan error, 1)
	go func() { done <- b.srv.Shutdown(context.Background()) }()
	if typ, _ := idle.receive(); typ != 0 {
		t.Error("an idle client stays")
	}
	if c, err := net.Dial("tcp", b.addr); err == nil {
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Log(err)
		}
		c.Close()
	}
	w.must(w.write(h, 5, []byte(" world")))
	w.must(w.closeHandle(h))
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := b.content("bob", "/docs/f"); got != "hello world" {
		t.Errorf("it is %q", got)
	}
	if err := b.srv.Serve(nil); !errors.Is(err, ErrServerClosed) {
		t.Error(err)
	}
}

// TestShutdownInTime: who does not end is cut off, and leaves no torso.
func TestShutdownInTime(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	w := b.wire("alice")
	h := w.open("/docs/f", openWrite|openCreate|openTrunc)
	w.must(w.write(h, 0, []byte("hello")))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	b.quiet()
	if got := b.content("bob", "/docs/f"); !strings.HasPrefix(got, "! ") {
		t.Errorf("it is %q", got)
	}
}
