package sftp_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
	"cellgate/mounts/sftp"
)

// calls are one of each that has to end when its context does.
func calls(b mounts.Backend) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := b.Stat(ctx, "d/f"); return err },
		"List": func(ctx context.Context) error {
			for _, err := range b.List(ctx, "d") {
				return err
			}
			return nil
		},
		"Open": func(ctx context.Context) error {
			r, err := b.Open(ctx, "d/f", 0, -1)
			if err == nil {
				_, err = io.ReadAll(r)
				r.Close()
			}
			return err
		},
		"Put":    func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "d/g", []byte("new")); return err },
		"Mkdir":  func(ctx context.Context) error { return b.Mkdir(ctx, "d/m") },
		"Remove": func(ctx context.Context) error { return b.Remove(ctx, "d/none") },
		"Rename": func(ctx context.Context) error { return b.Rename(ctx, "d/f", "d/h") },
		"Copy": func(ctx context.Context) error {
			_, err := b.(mounts.Copier).CopyFile(ctx, "d/f", "d/c")
			return err
		},
		"Space": func(ctx context.Context) error { _, err := b.(mounts.Spacer).Space(ctx); return err },
		"OpenFile": func(ctx context.Context) error {
			f, err := b.(mounts.RandomAccess).OpenFile(ctx, "d/f", os.O_RDWR, 0)
			if err == nil {
				f.Close()
			}
			return err
		},
	}
}

func seed(t testing.TB, b mounts.Backend) {
	t.Helper()
	if err := b.Mkdir(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if _, err := mounts.WriteFile(t.Context(), b, "d/f", []byte("old")); err != nil {
		t.Fatal(err)
	}
}

// TestStalled: a server that is stopped holds nobody for longer than the context or the timeout, and is used again when it goes on.
func TestStalled(t *testing.T) {
	s, key := openSSH(t)
	before := runtime.NumGoroutine()
	b := attach(t, servertest.SFTPConfig(s, key, "timeout", "1500ms"))
	seed(t, b)
	s.SFTPSignal(t, syscall.SIGSTOP)
	for op, call := range calls(b) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if d := time.Since(began); fault.KindOf(err) != fault.Timeout || d > 250*time.Millisecond {
			t.Errorf("%s on a stalled server: %v after %v; want Timeout after 100 ms", op, err, d)
		}
	}
	began := time.Now()
	_, err := b.Stat(t.Context(), "d/f")
	if d := time.Since(began); fault.KindOf(err) != fault.Timeout || d > 4*time.Second {
		t.Errorf("Stat without a deadline: %v after %v; want Timeout", err, d)
	}
	s.SFTPSignal(t, syscall.SIGCONT)
	for op, call := range map[string]func(context.Context) error{"Stat": calls(b)["Stat"], "Put": calls(b)["Put"]} {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s when the server goes on: %v", op, err)
		}
	}
	s.SFTPSignal(t, syscall.SIGSTOP)
	go b.Stat(t.Context(), "d/f")
	time.Sleep(50 * time.Millisecond)
	began = time.Now()
	b.Close()
	if d := time.Since(began); d > 1500*time.Millisecond {
		t.Errorf("Close on a stalled server took %v", d)
	}
	s.SFTPSignal(t, syscall.SIGCONT)
	settled(t, before)
}

// settled waits until no goroutine is left but those there were.
func settled(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before there were %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// TestStallOfOne: a channel that stalls costs what is on it, and nobody else.
func TestStallOfOne(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key, "timeout", "2s"))
	seed(t, b)
	old := time.Now().Add(-time.Hour)
	if _, err := b.Put(t.Context(), "large", bytes.NewReader(make([]byte, 64<<20)), mounts.PutOptions{Size: 64 << 20, ModTime: old}); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 8<<20); err != nil {
		t.Fatal(err)
	}
	sessions := s.SFTPSessions(t)
	if len(sessions) < 3 {
		t.Fatalf("%d sessions for a long stream", len(sessions))
	}
	for _, pid := range sessions[2:] { // the streams' channels were opened after the first
		syscall.Kill(pid, syscall.SIGSTOP)
		defer syscall.Kill(pid, syscall.SIGCONT)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r)
		failed <- err
	}()
	// A call may be given to a channel that nobody knows yet to be silent, but then it is closed, and no other call meets it.
	met := 0
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := mounts.WriteFile(ctx, b, "d/g", []byte{byte(i)}); err != nil {
			if met++; fault.KindOf(err) != fault.Timeout && fault.KindOf(err) != fault.Unavailable || met >= len(sessions) {
				t.Errorf("Put beside a stalled stream: %v", err)
			}
		}
		cancel()
	}
	if err := <-failed; fault.KindOf(err) != fault.Timeout || err == nil {
		t.Errorf("the stalled stream ended with %v; want Timeout", err)
	}
	if _, err := b.Stat(t.Context(), "d/f"); err != nil {
		t.Error(err)
	}
}

// TestRestart: connections that died while nobody used them are not noticed, and a killed server is found again.
func TestRestart(t *testing.T) {
	host, key := servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "")
	opt := servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, HostKey: &host, Root: servertest.Dir(t)}
	s := servertest.SFTP(t, opt)
	b := attach(t, servertest.SFTPConfig(s, key))
	seed(t, b)
	opt.Port = s.Port
	for range 2 {
		s.SFTPSignal(t, syscall.SIGKILL)
		if _, err := b.Stat(t.Context(), "d/f"); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Stat without a server: %v; want Unavailable", err)
		}
		s = servertest.SFTP(t, opt)
		if err := b.Mkdir(t.Context(), "again"); err != nil {
			t.Errorf("Mkdir on the server started again: %v", err)
		}
		if err := b.Remove(t.Context(), "again"); err != nil {
			t.Error(err)
		}
	}
}

// TestCut: a link that breaks midway is an error, never a short file, and the next call dials again.
func TestCut(t *testing.T) {
	s, key := openSSH(t)
	link := netfault.New(t, s.Addr)
	far := *s
	far.Host, far.Port = link.Host, link.Port
	b := attach(t, servertest.SFTPConfig(&far, key, "connections", "1"))
	seed(t, b)
	old := time.Now().Add(-time.Hour)
	if _, err := b.Put(t.Context(), "large", bytes.NewReader(make([]byte, 16<<20)), mounts.PutOptions{Size: -1, ModTime: old}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{100, 100_000, 1 << 20, 8 << 20} {
		link.CutAfter(at)
		r, err := b.Open(t.Context(), "large", 0, -1)
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, r)
			r.Close()
			if err == nil && n != 16<<20 {
				t.Errorf("cut after %d: %d bytes and no error", at, n)
			}
		}
		if err == nil && at > 100 { // an open that was cut is tried again
			t.Errorf("cut after %d: no error", at)
		}
		link.Heal()
		link.CutAfter(at)
		if _, err := mounts.WriteFile(t.Context(), b, "d/f", bytes.Repeat([]byte("new"), 6<<20)); err == nil || fault.KindOf(err) != fault.Unavailable {
			if at > 100 {
				t.Errorf("Put cut after %d: %v; want Unavailable", at, err)
			}
		} else if got, err := mounts.ReadFile(t.Context(), b, "d/f", 100); at > 100 && (err != nil || string(got) != "old") {
			t.Errorf("after a Put that was cut: %q, %v", got[:min(len(got), 10)], err)
		}
		link.Heal()
		link.Reset()
		time.Sleep(20 * time.Millisecond)
		if err := b.Mkdir(t.Context(), "x"); err != nil {
			t.Errorf("Mkdir after a reset while idle: %v", err)
		}
		if err := b.Remove(t.Context(), "x"); err != nil {
			t.Error(err)
		}
		if _, err := mounts.WriteFile(t.Context(), b, "d/f", []byte("old")); err != nil {
			t.Error(err)
		}
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left, err := os.ReadDir(s.Root + "/.cellgate/tmp")
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// TestFewSessions: a server that allows one channel in a connection is enough for all there is.
func TestFewSessions(t *testing.T) {
	s, key := openSSH(t, "MaxSessions 1")
	b := attach(t, servertest.SFTPConfig(s, key, "connections", "1"))
	content := strings.Repeat("0123456789abcdef", 1<<19)
	if _, err := b.Put(t.Context(), "f", strings.NewReader(content), mounts.PutOptions{Size: -1, ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	got, err := mounts.ReadFile(t.Context(), b, "f", 1<<30)
	if err != nil || string(got) != content {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// TestWithheldEnd: nothing is published before the source has ended.
func TestWithheldEnd(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	seed(t, b)
	src, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := b.Put(t.Context(), "d/f", src, mounts.PutOptions{Size: 3})
		done <- err
	}()
	feed.Write([]byte("new"))
	time.Sleep(100 * time.Millisecond)
	if got, err := mounts.ReadFile(t.Context(), b, "d/f", 10); err != nil || string(got) != "old" {
		t.Errorf("before the end of the source: %q, %v", got, err)
	}
	feed.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := mounts.ReadFile(t.Context(), b, "d/f", 10); err != nil || string(got) != "new" {
		t.Errorf("after it: %q, %v", got, err)
	}
}

// TestNoGoroutineLeft: what was begun and given up leaves nothing behind.
func TestNoGoroutineLeft(t *testing.T) {
	s, key := openSSH(t)
	before := runtime.NumGoroutine()
	b, err := sftp.Driver().Open(t.Context(), servertest.SFTPConfig(s, key))
	if err != nil {
		t.Fatal(err)
	}
	seed(t, b)
	if _, err := b.Put(t.Context(), "large", bytes.NewReader(make([]byte, 32<<20)), mounts.PutOptions{Size: -1, ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
		r, err := b.Open(ctx, "large", 0, -1)
		if err == nil {
			io.CopyN(io.Discard, r, int64(i)<<18)
			r.Close()
		}
		for _, call := range calls(b) {
			call(ctx)
		}
		cancel()
	}
	b.Close()
	settled(t, before)
}
