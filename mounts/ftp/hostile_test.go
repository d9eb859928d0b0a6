package ftp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/ftp"
)

// trap listens on address and fails the test when anybody comes.
func trap(t *testing.T, address string) int {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		if c, err := ln.Accept(); err == nil {
			c.Close()
			t.Errorf("somebody connected to %s", address)
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

func names(t *testing.T, b mounts.Backend, dir string) (list []string) {
	t.Helper()
	for info, err := range b.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, info.Name)
	}
	return list
}

// TestB06PassiveElsewhere: whatever address the server names, the data connection goes to the server.
func TestB06PassiveElsewhere(t *testing.T) {
	elsewhere := trap(t, "127.0.0.2:0") // a listener of our own
	for _, host := range []string{"127,0,0,2", "10,255,255,1", "169,254,169,254", "0,0,0,0"} {
		f := newFake(t, func(s *session, verb, arg string) string {
			switch verb {
			case "EPSV":
				return "500 no"
			case "PASV":
				port := s.listen()
				return "227 Entering Passive Mode (" + host + "," + comma(port) + ")."
			case "MLSD":
				return s.send("type=file;size=1;modify=20200101000000; a\r\n")
			}
			return ""
		})
		b := open(t, f.config())
		if got := names(t, b, "."); len(got) != 1 || got[0] != "a" {
			t.Errorf("with PASV to %s, listed %q", host, got)
		}
	}
	f := newFake(t, func(s *session, verb, arg string) string {
		switch verb {
		case "EPSV":
			return "500 no"
		case "PASV":
			return "227 (127,0,0,2," + comma(elsewhere) + ")"
		}
		return ""
	})
	b := open(t, f.config())
	for _, err := range b.List(t.Context(), ".") {
		if err == nil {
			t.Error("listed without a data connection")
		}
	}
}

func TestB06PassivePorts(t *testing.T) {
	for _, reply := range []string{
		"229 (|||22|)", "229 (|||0|)", "229 (|||99999|)", "229 (|||-5|)", "229 ok", "229 (", "229 (|||)", "229 (|1|10.0.0.1|6000|)", "229 (aaa6000a",
		"227 (127,0,0,1,0,80)", "227 (127,0,0,1,300,1)", "227 127,0,0,1", "227 (1,2,3,4,5,6,7)", "227",
	} {
		f := newFake(t, func(_ *session, verb, _ string) string {
			if strings.HasPrefix(reply, "227") && verb == "EPSV" {
				return "500 no"
			}
			if verb == "EPSV" || verb == "PASV" {
				return reply
			}
			return ""
		})
		b := open(t, f.config())
		for _, err := range b.List(t.Context(), ".") {
			if err == nil || fault.KindOf(err) != fault.Unavailable {
				t.Errorf("List after %q: %v", reply, err)
			}
		}
	}
}

// TestB06EndlessReply: a reply is bounded in lines and bytes.
func TestB06EndlessReply(t *testing.T) {
	endless := func(line string) func(s *session, verb, _ string) string {
		return func(s *session, verb, _ string) string {
			if verb != "SYST" {
				return ""
			}
			for {
				if _, err := io.WriteString(s, line); err != nil {
					return "-"
				}
			}
		}
	}
	for _, line := range []string{"215-more and more\r\n", strings.Repeat("x", 1000), "\r\n", "215-\r\n" + strings.Repeat("y", 5000) + "\r\n"} {
		f := newFake(t, endless(line))
		start := time.Now()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ftp.Driver().Open(t.Context(), f.config())
		runtime.ReadMemStats(&after)
		if err == nil || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Open: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("an endless reply of %.10q took %v", line, took)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
			t.Errorf("an endless reply of %.10q cost %d bytes", line, grown)
		}
	}
}

// TestB06Dribble: a reply has to be complete within the timeout, however it comes.
func TestB06Dribble(t *testing.T) {
	f := newFake(t, func(*session, string, string) string { return "-" }, "")
	go func() {
		for range 40 {
			time.Sleep(50 * time.Millisecond)
			f.mu.Lock()
			for _, c := range f.conns {
				io.WriteString(c.(io.Writer), "2")
			}
			f.mu.Unlock()
		}
	}()
	start := time.Now()
	_, err := ftp.Driver().Open(t.Context(), f.config("timeout", "500ms"))
	if err == nil || fault.KindOf(err) != fault.Timeout {
		t.Errorf("Open: %v, want Timeout", err)
	}
	if took := time.Since(start); took > 1500*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

// TestB06EndlessLine: neither is a line of a listing endless.
func TestB06EndlessLine(t *testing.T) {
	for _, head := range []string{"", strings.Repeat("type=file;size=1; a\r\n", 70_000)} {
		f := newFake(t, func(s *session, verb, _ string) string {
			if verb != "MLSD" {
				return ""
			}
			return s.take(func(c net.Conn) {
				io.WriteString(c, head)
				for junk := strings.Repeat("z", 4096); ; {
					if _, err := io.WriteString(c, junk); err != nil {
						return
					}
				}
			})
		})
		b := open(t, f.config())
		var last error
		for _, err := range b.List(t.Context(), ".") {
			last = err
		}
		if last == nil || fault.KindOf(last) != fault.Unavailable {
			t.Errorf("List: %v", last)
		}
	}
}

// TestB06ActiveStranger: in active mode nobody but the server is let in.
func TestB06ActiveStranger(t *testing.T) {
	var at string
	f := newFake(t, func(s *session, verb, arg string) string {
		switch verb {
		case "EPRT":
			parts := strings.Split(arg, "|")
			if len(parts) != 5 || parts[1] != "1" || parts[2] != "127.0.0.1" {
				return "501 what?"
			}
			at = net.JoinHostPort(parts[2], parts[3])
			return "200 ok"
		case "MLSD":
			stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
			if c, err := stranger.Dial("tcp", at); err == nil {
				io.WriteString(c, "type=file;size=1; evil\r\n")
				defer c.Close()
			}
			time.Sleep(20 * time.Millisecond)
			c, err := net.Dial("tcp", at)
			if err != nil {
				return "425 cannot connect"
			}
			io.WriteString(s, "150 here\r\n")
			io.WriteString(c, "type=file;size=1; good\r\n")
			c.Close()
			return "226 done"
		}
		return ""
	})
	b := open(t, f.config("mode", "active"))
	if got := names(t, b, "."); len(got) != 1 || got[0] != "good" {
		t.Errorf("listed %q", got)
	}
}

// TestP04Listing: names that are none are left out, and what a name holds stays in it.
func TestP04Listing(t *testing.T) {
	f := newFake(t, func(s *session, verb, _ string) string {
		if verb != "MLSD" {
			return ""
		}
		var b strings.Builder
		for _, name := range []string{"a\rb", "../up", "x/y", "..", ".", "", "nul\x00", "esc\x1b[2J", "\xff\xfe", "a\u2028b", "]]>", `q"q`, "-rf", " lead", "ok"} {
			fmt.Fprintf(&b, "type=file;size=-5;modify=99999999999999;unique=; %s\r\n", name)
		}
		b.WriteString("garbage\r\ntype=file\r\n\r\n;;;;; z\r\n")
		return s.send(b.String())
	})
	b := open(t, f.config())
	want := "[]]> q\"q -rf  lead ok z]"
	got := names(t, b, ".")
	if fmt.Sprint(got) != want {
		t.Errorf("listed %q, want %s", got, want)
	}
	for info := range b.List(t.Context(), ".") {
		if info.Size < -1 || !info.ModTime.IsZero() {
			t.Errorf("%+v", info)
		}
	}
}

// TestCutShort: a transfer that ends early is an error, whether the server says so or dies.
func TestCutShort(t *testing.T) {
	for _, last := range []string{"426 cut", "226 all is well", "drop", "-"} {
		f := newFake(t, func(s *session, verb, _ string) string {
			switch verb {
			case "MLST":
				return "250-x\r\n type=file;size=1000000;modify=20200101000000;unique=1; f\r\n250 end"
			case "RETR":
				s.send(strings.Repeat("x", 500_000))
				if last == "drop" {
					s.Close()
				}
				return last
			}
			return ""
		})
		b := open(t, f.config("timeout", "300ms"))
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err == nil || n != 500_000 {
			t.Errorf("with %q: read %d bytes, %v; want an error", last, n, err)
		}
		r.Close()
	}
}

// TestUploadRefused: what a server says in the midst of an upload is what the caller learns.
func TestUploadRefused(t *testing.T) {
	deleted := make(chan string, 100)
	f := newFake(t, func(s *session, verb, arg string) string {
		switch verb {
		case "STOR":
			s.take(func(c net.Conn) { io.CopyN(io.Discard, c, 100_000) })
			return "552 quota exceeded"
		case "DELE":
			deleted <- arg
		}
		return ""
	})
	b := open(t, f.config())
	_, err := b.Put(t.Context(), "f", io.LimitReader(zeros{}, 50<<20), mounts.PutOptions{Size: -1})
	if err == nil || fault.KindOf(err) != fault.NoSpace {
		t.Errorf("Put: %v, want NoSpace", err)
	}
	select {
	case name := <-deleted:
		if !strings.Contains(name, "/put-") {
			t.Errorf("deleted %q", name)
		}
	case <-time.After(2 * time.Second):
		t.Error("the temporary file was not removed")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestMillion: memory does not grow with a listing, and it is one command.
func TestMillion(t *testing.T) {
	const many = 1_000_000
	commands := 0
	f := newFake(t, func(s *session, verb, _ string) string {
		if verb != "MLSD" {
			return ""
		}
		commands++
		return s.take(func(c net.Conn) {
			piece := strings.Repeat("type=file;size=1;modify=20200101000000;unique=fe00U1; some-file-name.txt\r\n", 1000)
			for range many / 1000 {
				io.WriteString(c, piece)
			}
		})
	})
	b := open(t, f.config())
	n, peak := 0, uint64(0)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	for _, err := range b.List(t.Context(), ".") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%100_000 == 0 {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
	}
	if n != many || commands != 1 {
		t.Errorf("listed %d of %d with %d commands", n, many, commands)
	}
	if grown := int64(peak) - int64(before); grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// TestOldServer: without EPSV, MLSD, UTF8 and PWD, with LIST of Windows, and with free space told.
func TestOldServer(t *testing.T) {
	f := newFake(t, func(s *session, verb, arg string) string {
		switch verb {
		case "FEAT":
			return "211-Features\r\n SIZE\r\n AVBL\r\n211 End"
		case "SYST":
			return "215 Windows_NT"
		case "EPSV", "PWD", "MLST", "MLSD":
			return "500 unknown"
		case "PASV":
			return "227 ok (127,0,0,1," + comma(s.listen()) + ")"
		case "LIST":
			if arg != "" { // a pattern to it
				return s.send("")
			}
			return s.send("11-22-26  02:20AM       <DIR>          a folder\r\n11-22-26  02:21PM                 1234  a file \r\n")
		case "AVBL":
			return "213 4096"
		}
		return ""
	}, "220 Microsoft FTP Service\r\n")
	b := open(t, f.config("zone", "Europe/Berlin"))
	var got []string
	for range 2 {
		got = nil
		for info, err := range b.List(t.Context(), ".") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%q %d %d %s", info.Name, info.Type, info.Size, info.ModTime.Format("2006-01-02 15:04")))
		}
	}
	want := []string{`"a folder" 1 0 2026-11-22 01:20`, `" a file " 0 1234 2026-11-22 13:21`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if f := b.Features(); f.CaseSensitive || f.AtomicReplace != mounts.Emulated || f.Space != mounts.Native || f.ModTime != mounts.Refused {
		t.Errorf("%+v", f)
	}
	if s, err := b.(mounts.Spacer).Space(t.Context()); err != nil || s != (mounts.Space{Total: -1, Used: -1, Free: 4096}) {
		t.Errorf("Space: %+v, %v", s, err)
	}
}

// TestSilent: a server that stops answering costs a call its ctx, or the timeout, and the next call is well.
func TestSilent(t *testing.T) {
	silent := make(chan bool, 1)
	f := newFake(t, func(_ *session, verb, _ string) string {
		if verb == "MLST" {
			select {
			case <-silent:
				return "-"
			default:
				return "250-x\r\n type=dir;modify=20200101000000; d\r\n250 end"
			}
		}
		return ""
	})
	b := open(t, f.config("timeout", "1s"))
	silent <- true
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := b.Stat(ctx, "d"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stat: %v", err)
	}
	if took := time.Since(start); took > 300*time.Millisecond {
		t.Errorf("took %v", took)
	}
	if _, err := b.Stat(t.Context(), "d"); err != nil {
		t.Errorf("Stat afterwards: %v", err)
	}
	silent <- true
	if _, err := b.Stat(t.Context(), "d"); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Stat: %v, want Timeout", err)
	}
	if _, err := b.Stat(t.Context(), "d"); err != nil {
		t.Errorf("Stat afterwards: %v", err)
	}
}

// TestInjectedBeforeTLS: what came in the clear is not believed to have come through TLS.
func TestInjectedBeforeTLS(t *testing.T) {
	f := newFake(t, func(_ *session, verb, _ string) string {
		if verb == "AUTH" {
			return "234 go ahead\r\n230 you are in"
		}
		return ""
	})
	if _, err := ftp.Driver().Open(t.Context(), f.config("tls", "explicit")); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "does not speak FTP") {
		t.Errorf("Open: %v", err)
	}
}

// TestRoundTrips counts how often the control connection is waited for.
func TestRoundTrips(t *testing.T) {
	stored := "" // what is published
	f := newFake(t, func(s *session, verb, arg string) string {
		switch verb {
		case "MLST":
			if arg == "/f" && stored != "" {
				return "250-x\r\n type=file;size=5;modify=20200101000000;unique=1; f\r\n250 end"
			}
			return "550 no such file"
		case "RNTO":
			stored = arg
		case "RETR":
			return s.send("hello")
		}
		return ""
	})
	b := open(t, f.config())
	ctx := t.Context()
	for _, test := range []struct {
		name string
		want int32
		call func() error
	}{
		{"Put", 3, func() error { _, err := mounts.WriteFile(ctx, b, "f", []byte("hello")); return err }},
		{"Stat", 1, func() error { _, err := b.Stat(ctx, "f"); return err }},
		{"Open", 2, func() error { _, err := mounts.ReadFile(ctx, b, "f", 100); return err }},
		{"range", 2, func() error { _, err := b.Open(ctx, "f", 1, 2); return err }},
		{"List", 2, func() error { return listError(ctx, b) }},
		{"Mkdir", 1, func() error { return b.Mkdir(ctx, "d") }},
		{"Remove", 1, func() error { return b.Remove(ctx, "f") }},
		{"Rename", 2, func() error { return b.Rename(ctx, "f", "g") }},
	} {
		before := f.flights.Load()
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := f.flights.Load() - before; got != test.want {
			t.Errorf("%s waited %d times for the control connection, want %d", test.name, got, test.want)
		}
	}
}
