package ftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/ftp"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// tour does a bit of everything, with small and large files.
func tour(t *testing.T, b mounts.Backend) {
	t.Helper()
	mounttest.Script(t, b, `
		put f hello         -> ok
		put f "hello again" -> ok
		cat f               -> "hello again"
		cat f 6 3           -> "aga"
		mkdir d             -> ok
		put "d/a b" 1       -> ok
		ls d                -> "a b"
		mv d e              -> ok
		cat "e/a b"         -> "1"
		rm e                -> ! folder is not empty
		rm "e/a b"          -> ok
		rm e                -> ok
		cp f g              -> ok
		ls .                -> f g
		rm none             -> ! does not exist
		rm g                -> ok
		put empty ""        -> ok
		cat empty           -> ""
	`)
	ctx := t.Context()
	content := make([]byte, 20<<20+123)
	for i := range content {
		content[i] = byte(i * 31 >> 5)
	}
	if _, err := b.Put(ctx, "large", bytes.NewReader(content), mounts.PutOptions{Size: -1}); err != nil {
		t.Fatal(err)
	}
	got, err := mounts.ReadFile(ctx, b, "large", 1<<30)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %d bytes, %v; want %d", len(got), err, len(content))
	}
	for range 5 { // broken off in the midst
		r, err := b.Open(ctx, "large", 1000, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 300_000)); err != nil {
			t.Error(err)
		}
		r.Close()
	}
	r, err := b.Open(ctx, "large", 10<<20, 70)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[10<<20:10<<20+70]) {
		t.Errorf("a range: %d bytes, %v", len(got), err)
	}
	r.Close()
	if info, err := b.Stat(ctx, "large"); err != nil || info.Size != int64(len(content)) {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}

func TestActive(t *testing.T) { suite(t, servertest.FTPOptions{Kind: "pure-ftpd"}, "mode", "active") }
func TestActiveTour(t *testing.T) {
	for _, kind := range kinds {
		_, cfg := server(t, servertest.FTPOptions{Kind: kind})
		cfg.Options["mode"] = "active"
		tour(t, open(t, cfg))
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel() // servers think long about a wrong password
	for _, kind := range kinds {
		s, cfg := server(t, servertest.FTPOptions{Kind: kind})
		for _, test := range []struct {
			name   string
			change func(cfg *mounts.Config)
			want   fault.Kind
			says   string
		}{
			{"wrong password", func(c *mounts.Config) { c.Credentials["password"] = secret.New("canary-4711") }, fault.Unauthenticated, `"ann"`},
			{"wrong user", func(c *mounts.Config) { c.Credentials["username"] = secret.New("bob") }, fault.Unauthenticated, `"bob"`},
			{"no such folder", func(c *mounts.Config) { c.Options["path"] = "none" }, fault.NotExist, "option path"},
			{"nobody there", func(c *mounts.Config) { c.Options["port"] = fmt.Sprint(servertest.Port(t)) }, fault.Unavailable, "refused"},
			{"no such host", func(c *mounts.Config) { c.Options["host"] = "host.invalid" }, fault.Unavailable, "host.invalid"},
			{"unknown option", func(c *mounts.Config) { c.Options["sharee"] = "x" }, fault.Invalid, "sharee"},
			{"bad zone", func(c *mounts.Config) { c.Options["zone"] = "Mars/North" }, fault.Invalid, "zone"},
		} {
			wrong := mounts.Config{Name: "x", Options: map[string]string{}, Credentials: map[string]secret.String{}}
			for k, v := range cfg.Options {
				wrong.Options[k] = v
			}
			for k, v := range cfg.Credentials {
				wrong.Credentials[k] = v
			}
			test.change(&wrong)
			_, err := ftp.Driver().Open(t.Context(), wrong)
			if err == nil || fault.KindOf(err) != test.want && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s, %s: %v; want %v", kind, test.name, err, test.want)
			} else if text := err.Error(); !strings.Contains(text, test.says) || strings.Contains(text, "canary") || strings.Contains(text, s.Password) {
				t.Errorf("%s, %s: %v; want %q and no secret", kind, test.name, err, test.says)
			}
		}
		if errs := ftp.Driver().Check(mounts.Config{Options: map[string]string{"tls": "maybe", "port": "x", "connections": "1", "y": "z"}}); len(errs) != 5 {
			t.Errorf("Check found %v", errs)
		}
	}
}

// TestStalled: a machine that stands still costs a call no more than its ctx or the timeout, and is well again afterwards.
func TestStalled(t *testing.T) {
	s, cfg := server(t, servertest.FTPOptions{Kind: "proftpd"})
	cfg.Options["timeout"] = "700ms"
	b := open(t, cfg)
	mounttest.Script(t, b, `
		put f 1 -> ok
		mkdir d -> ok
	`)
	big := strings.Repeat("x", 40<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "big", []byte(big)); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), "big", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	calls := map[string]func(ctx context.Context) error{
		"Stat":   func(ctx context.Context) error { _, err := b.Stat(ctx, "f"); return err },
		"List":   func(ctx context.Context) error { return listError(ctx, b) },
		"Open":   func(ctx context.Context) error { _, err := b.Open(ctx, "f", 0, -1); return err },
		"Put":    func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "f", []byte("2")); return err },
		"Large":  func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "g", []byte(big)); return err },
		"Mkdir":  func(ctx context.Context) error { return b.Mkdir(ctx, "e") },
		"Rename": func(ctx context.Context) error { return b.Rename(ctx, "f", "h") },
	}
	s.Pause(t)
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		start := time.Now()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s of a stalled server: %v, want Timeout", name, err)
		}
		if took := time.Since(start); took > 400*time.Millisecond {
			t.Errorf("%s took %v after 100ms", name, took)
		}
		cancel()
	}
	start := time.Now()
	if err := calls["Stat"](t.Context()); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Stat of a stalled server: %v, want Timeout", err)
	}
	if _, err := io.Copy(io.Discard, r); fault.KindOf(err) != fault.Timeout {
		t.Errorf("reading from a stalled server: %v, want Timeout", err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	s.Resume(t)
	mounttest.Script(t, b, `
		cat f -> "1"
		ls d  ->
	`)
	s.Pause(t)
	start = time.Now()
	if err := b.Close(); err != nil || time.Since(start) > 6*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(start))
	}
	s.Resume(t)
}

func listError(ctx context.Context, b mounts.Backend) error {
	for _, err := range b.List(ctx, ".") {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestRestarted: that the server went and came back is seen by nobody, nor that it closes idle connections.
func TestRestarted(t *testing.T) {
	opt := servertest.FTPOptions{Kind: "proftpd", Port: servertest.Port(t), Lines: "TimeoutIdle 4"} // longer than a busy machine takes for one command
	s, cfg := server(t, opt)
	b := open(t, cfg)
	mounttest.Script(t, b, `put f 1 -> ok`)
	all := make(chan error, 4) // several idle connections
	for range 4 {
		go func() { all <- listError(t.Context(), b) }()
	}
	for range 4 {
		if err := <-all; err != nil {
			t.Error(err)
		}
	}
	time.Sleep(4500 * time.Millisecond)
	mounttest.Script(t, b, `
		put f 2 -> ok
		cat f   -> "2"
		mkdir d -> ok
	`)
	s.Kill(t)
	opt.Root = s.Root
	var err error
	for range 100 { // until it is gone
		if _, err = b.Stat(t.Context(), "f"); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Stat without a server: %v", err)
	}
	servertest.FTP(t, opt)
	mounttest.Script(t, b, `
		cat f       -> "2"
		put f 3     -> ok
		mv f g      -> ok
		rm d        -> ok
		ls .        -> g
	`)
}

// TestCrowded: a server that takes few connections is used with few, also when others use some.
func TestCrowded(t *testing.T) {
	for _, kind := range kinds {
		_, cfg := server(t, servertest.FTPOptions{Kind: kind, Clients: 2})
		cfg.Options["connections"] = "8"
		b := open(t, cfg)
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				name := fmt.Sprintf("f%d", i)
				if _, err := mounts.WriteFile(t.Context(), b, name, []byte(name)); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
				if got, err := mounts.ReadFile(t.Context(), b, name, 100); err != nil || string(got) != name {
					t.Errorf("%s: %q, %v", kind, got, err)
				}
			})
		}
		all.Wait()
		b.Close()
	}
}

// TestCopiesDoNotBlock: streams from and to the same server wait for each other's connections only as long as something moves.
func TestCopiesDoNotBlock(t *testing.T) {
	_, cfg := server(t, servertest.FTPOptions{Kind: "vsftpd"})
	cfg.Options["connections"] = "2"
	b := open(t, cfg)
	if _, err := mounts.WriteFile(t.Context(), b, "f", make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if info, err := mounts.Copy(ctx, b, "f", fmt.Sprintf("g%d", i)); err != nil || info.Size != 3<<20 {
				t.Errorf("Copy: %+v, %v", info, err)
			}
		})
	}
	all.Wait()
	cfg.Options["timeout"] = "300ms"
	slow := open(t, cfg)
	r, err := slow.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := slow.Open(t.Context(), "f", 0, -1); fault.KindOf(err) != fault.Busy {
		t.Errorf("Open with all connections in use: %v, want Busy", err)
	}
}

// left returns the temporary files on the server.
func left(t *testing.T, s *servertest.Server) (names []string) {
	t.Helper()
	filepath.Walk(s.Root, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && strings.Contains(path, ".cellgate") {
			names = append(names, path)
		}
		return nil
	})
	return names
}

// TestNothingLeft: whatever ends an upload, its temporary file goes.
func TestNothingLeft(t *testing.T) {
	for _, kind := range kinds {
		s, cfg := server(t, servertest.FTPOptions{Kind: kind})
		b := open(t, cfg)
		mounttest.Script(t, b, `put f old -> ok`)
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			src := readerFunc(func(p []byte) (int, error) { // endless
				if i--; i <= 0 {
					cancel()
				}
				return len(p), nil
			})
			if _, err := b.Put(ctx, "f", src, mounts.PutOptions{Size: -1}); fault.KindOf(err) != fault.Canceled {
				t.Errorf("%s: Put: %v", kind, err)
			}
			cancel()
		}
		mounttest.Script(t, b, `
			put none/f 1 -> ! does not exist
			mkdir d      -> ok
			put d 1      -> ! is a folder
			new f 1      -> ! already exists
			cat f        -> "old"
		`)
		deadline := time.Now().Add(5 * time.Second)
		for len(left(t, s)) > 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		if names := left(t, s); len(names) > 0 {
			t.Errorf("%s: left behind: %q", kind, names)
		}
		b.Close()
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestBeside: where there can be no Area, uploads lie beside their target.
func TestBeside(t *testing.T) {
	for _, kind := range kinds {
		s, cfg := server(t, servertest.FTPOptions{Kind: kind})
		if err := os.WriteFile(filepath.Join(s.Root, mounts.Area), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		b := open(t, cfg)
		mounttest.Script(t, b, `
			put f 1   -> ok
			put f 2   -> ok
			cat f     -> "2"
			mkdir d   -> ok
			put d/f 1 -> ok
			ls d      -> f
			ls .      -> d/ f
		`)
		if names := left(t, s); len(names) != 1 {
			t.Errorf("%s: left behind: %q", kind, names)
		}
	}
}

// TestNoOverwrite: a server that does not rename over files.
func TestNoOverwrite(t *testing.T) {
	s, cfg := server(t, servertest.FTPOptions{Kind: "proftpd", Lines: "AllowOverwrite off"})
	b := open(t, cfg)
	if f := b.Features(); f.AtomicReplace != mounts.Emulated {
		t.Errorf("AtomicReplace is %v", f.AtomicReplace)
	}
	mounttest.Script(t, b, `
		put f 1   -> ok
		put f 2   -> ok
		cat f     -> "2"
		put g 3   -> ok
		mv g f    -> ok
		cat f     -> "3"
		mkdir d   -> ok
		mv f d    -> ! is a folder
		mv d f    -> ! is not a folder
		put d 1   -> ! is a folder
		new f 1   -> ! already exists
		ls .      -> d/ f
	`)
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// TestTruncatedListing: Pure-FTPd shows no more than its limit, and says so in passing.
func TestTruncatedListing(t *testing.T) {
	s, cfg := server(t, servertest.FTPOptions{Kind: "pure-ftpd", Lines: "-L 20:2"})
	b := open(t, cfg)
	for i := range 30 {
		if err := os.WriteFile(filepath.Join(s.Root, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := listError(t.Context(), b); err == nil || !strings.Contains(err.Error(), "LimitRecursion") {
		t.Errorf("List of more than the server shows: %v", err)
	}
}

// TestReadOnly: nothing is written, not at opening either.
func TestReadOnly(t *testing.T) {
	s, cfg := server(t, servertest.FTPOptions{Kind: "proftpd"})
	if err := os.WriteFile(filepath.Join(s.Root, "f"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.ReadOnly = true
	b := open(t, cfg)
	mounttest.Script(t, b, `
		cat f   -> "1"
		put f 2 -> ! permission denied
		rm f    -> ! permission denied
		mkdir d -> ! permission denied
		mv f g  -> ! permission denied
		ls .    -> f
	`)
	if entries, err := os.ReadDir(s.Root); err != nil || len(entries) != 1 {
		t.Errorf("the server's folder holds %v, %v", entries, err)
	}
}

// TestP04Names: what means something to a shell, a pattern or a server's options means nothing in a name.
func TestP04Names(t *testing.T) {
	odd := []string{"-la", "-R", "--help", "st*r", "?", "[x]", "{a,b}", " lead", "two  spaces", `q"q`, `""`, "'", "~", "~ann", "$HOME", "`id`", "]]>", "%s%n", ";ls", "|ls", "!x", "#", "<b>", "a -> b"}
	for _, kind := range kinds {
		_, cfg := server(t, servertest.FTPOptions{Kind: kind})
		b := open(t, cfg)
		ctx := t.Context()
		taken := 0
		for _, name := range odd {
			err := b.Mkdir(ctx, name)
			if err != nil && fault.KindOf(err) == fault.Invalid { // ProFTPD makes no folder with a star
				continue
			}
			taken++
			if err == nil {
				_, err = mounts.WriteFile(ctx, b, name+"/"+name, []byte(name))
			}
			if err == nil {
				var got []byte
				if got, err = mounts.ReadFile(ctx, b, name+"/"+name, 100); string(got) != name && err == nil {
					err = fmt.Errorf("holds %q", got)
				}
			}
			if err != nil {
				t.Errorf("%s: %q: %v", kind, name, err)
				continue
			}
			if got := names(t, b, name); len(got) != 1 || got[0] != name {
				t.Errorf("%s: %q holds %q", kind, name, got)
			}
		}
		if got := names(t, b, "."); len(got) != taken+1 || taken < len(odd)-1 { // and the Area
			t.Errorf("%s: listed %q", kind, got)
		}
		for _, name := range odd {
			if err := mounts.Purge(ctx, b, name); err != nil {
				t.Errorf("%s: Purge(%q): %v", kind, name, err)
			}
		}
	}
}

// TestP06Names: a name is kept as it is, or refused; never changed.
func TestP06Names(t *testing.T) {
	deep := "d" + strings.Repeat("/"+strings.Repeat("y", 200), 19)
	for _, kind := range kinds {
		s, cfg := server(t, servertest.FTPOptions{Kind: kind})
		b := open(t, cfg)
		ctx := t.Context()
		mounttest.Script(t, b, `mkdir d -> ok`)
		for _, name := range []string{
			"CON", "NUL", "con.txt", "a:b", "dot.", "space ", "PROGRA~1", strings.Repeat("n", 255), strings.Repeat("n", 256), deep, deep + "/" + strings.Repeat("z", 200),
		} {
			made := mounts.MkdirAll(ctx, b, name)
			_, put := mounts.WriteFile(ctx, b, "d/"+name, []byte("1"))
			for op, err := range map[string]error{"Mkdir": made, "Put": put} {
				if k := fault.KindOf(err); err != nil && k != fault.Invalid && k != fault.NotExist {
					t.Errorf("%s: %s(%.20q): %v", kind, op, name, err)
				}
			}
			if put == nil {
				if got, err := os.ReadFile(filepath.Join(s.Root, "d", name)); err != nil || string(got) != "1" {
					t.Errorf("%s: %.20q is kept as something else: %v", kind, name, err)
				}
				if err := b.Remove(ctx, "d/"+name); err != nil {
					t.Errorf("%s: Remove(%.20q): %v", kind, name, err)
				}
			}
		}
		if got := names(t, b, "d"); len(got) > 1 {
			t.Errorf("%s: left behind: %q", kind, got)
		}
		if got := left(t, s); len(got) > 0 {
			t.Errorf("%s: left behind: %q", kind, got)
		}
	}
}

// TestGoroutines: Close leaves nobody behind.
func TestGoroutines(t *testing.T) {
	_, cfg := server(t, servertest.FTPOptions{Kind: "vsftpd"})
	before := runtime.NumGoroutine()
	for range 5 {
		b, err := ftp.Driver().Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mounts.WriteFile(t.Context(), b, "f", make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := listError(t.Context(), b); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if _, err := io.Copy(io.Discard, r); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("reading after Close: %v", err)
		}
		r.Close()
	}
	for deadline := time.Now().Add(3 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 64<<10)
			t.Fatalf("%d goroutines, before there were %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

func BenchmarkFTP(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			_, cfg := server(b, servertest.FTPOptions{Kind: kind})
			mounttest.Bench(b, func(b *testing.B) mounts.Backend { return open(b, cfg) })
		})
	}
}
