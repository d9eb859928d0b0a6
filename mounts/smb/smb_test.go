package smb_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
	"cellgate/mounts/smb"
)

// serve starts a server whose share lies in memory, so that a loaded disk does not count.
func serve(t testing.TB, opt servertest.SMBOptions) *servertest.Server {
	t.Helper()
	if _, err := os.Stat("/dev/shm"); err == nil && opt.Root == "" {
		dir, err := os.MkdirTemp("/dev/shm", "smb")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		opt.Root = dir
	}
	return servertest.SMB(t, opt)
}

// dial opens the datasource of cfg, which the test ends.
func dial(t testing.TB, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := smb.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// each returns datasources in fresh folders of s.
func each(s *servertest.Server, options ...string) func(t *testing.T) mounts.Backend {
	var n atomic.Int32
	return func(t *testing.T) mounts.Backend {
		dir := fmt.Sprintf("d%d", n.Add(1))
		if err := os.Mkdir(filepath.Join(s.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		cfg := servertest.SMBConfig(s, options...)
		cfg.Options["path"] = dir
		b, err := smb.Driver().Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

var all = flag.Bool("all", false, "run the whole conformance suite on every kind of server")

func TestConformance(t *testing.T) {
	for i, test := range []struct {
		name   string
		server servertest.SMBOptions
		option string // encrypt
	}{
		{"SMB3", servertest.SMBOptions{}, "auto"},
		{"Plain", servertest.SMBOptions{}, "off"},
		{"Encrypted", servertest.SMBOptions{Encrypt: "required", Min: "SMB3_11"}, "off"},
		{"Signed", servertest.SMBOptions{Signing: "mandatory", Encrypt: "off"}, "auto"},
		{"SMB2", servertest.SMBOptions{Max: "SMB2_10", Lines: []string{"case sensitive = yes"}}, "auto"},
	} {
		if i > 0 && !*all { // TestDialects runs what differs
			break
		}
		t.Run(test.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			test.server.Global = []string{"smb2 max trans = 65536"} // listings in many answers
			s := serve(t, test.server)
			mounttest.Run(t, each(s, "encrypt", test.option))
			noMore(t, before+2) // those of the server
		})
	}
}

// TestDialects does what is different between dialects and ways of protection: small and large transfers.
func TestDialects(t *testing.T) {
	for _, test := range []struct {
		name   string
		server servertest.SMBOptions
		option string
	}{
		{"2.0.2", servertest.SMBOptions{Max: "SMB2_02"}, "auto"},
		{"2.0.2 signed", servertest.SMBOptions{Max: "SMB2_02", Signing: "mandatory"}, "off"},
		{"2.1 signed", servertest.SMBOptions{Max: "SMB2_10", Signing: "mandatory"}, "off"},
		{"3.0", servertest.SMBOptions{Max: "SMB3_00"}, "required"},
		{"3.0.2 signed", servertest.SMBOptions{Max: "SMB3_02", Signing: "mandatory"}, "off"},
		{"3.1.1", servertest.SMBOptions{Min: "SMB3_11"}, "required"},
		{"3.1.1 signed", servertest.SMBOptions{Signing: "mandatory"}, "off"},
		{"share encrypted", servertest.SMBOptions{Lines: []string{"server smb encrypt = required"}}, "off"},
		{"share and session encrypted", servertest.SMBOptions{Lines: []string{"server smb encrypt = required"}}, "required"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := dial(t, servertest.SMBConfig(serve(t, test.server), "encrypt", test.option))
			mounttest.Script(t, b, `
				put f hello   -> ok
				cat f 1 3     -> "ell"
				mkdir d       -> ok
				mv f d/f      -> ok
				cp d/f g      -> ok
				ls .          -> d/ g
			`)
			large := strings.Repeat("0123456789abcdef", 5<<20/16) + "!"
			if _, err := b.Put(t.Context(), "g", strings.NewReader(large), mounts.PutOptions{Size: -1}); err != nil {
				t.Fatal(err)
			}
			if got, err := mounts.ReadFile(t.Context(), b, "g", 10<<20); err != nil || string(got) != large {
				t.Errorf("read back %d bytes, %v; want %d", len(got), err, len(large))
			}
		})
	}
}

// noMore waits until there are no more goroutines than that.
func noMore(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); runtime.NumGoroutine() > most; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Errorf("%d goroutines, want %d at most\n%s", runtime.NumGoroutine(), most, buf[:runtime.Stack(buf, true)])
			return
		}
	}
}

// TestOpen: what is wrong is said, with what to do, and never with the password.
func TestOpen(t *testing.T) {
	s := serve(t, servertest.SMBOptions{Max: "SMB2_10"})
	guests := serve(t, servertest.SMBOptions{Guests: true})
	os.WriteFile(filepath.Join(s.Root, "file"), nil, 0o644)
	const password = "canary-4711"
	for _, test := range []struct {
		name    string
		server  *servertest.Server
		options []string
		user    string
		kind    fault.Kind
		words   string
	}{
		{"password", s, nil, "gate", fault.Unauthenticated, `user "gate": wrong user name or password; check username, password and domain`},
		{"user", s, nil, `TEST\nobody-here`, fault.Unauthenticated, `"nobody-here"`},
		{"guest", guests, []string{"encrypt", "off"}, "nobody-here", fault.Unauthenticated, `"nobody-here"`},
		{"guest unsigned", guests, nil, "nobody-here", fault.Unauthenticated, `"nobody-here"`},
		{"host", s, []string{"host", "127.0.0.9"}, "", fault.Unavailable, "cannot reach 127.0.0.9:"},
		{"name", s, []string{"host", "no-such-host.invalid"}, "", fault.Unavailable, "check host and port"},
		{"port", s, []string{"port", "1"}, "", fault.Unavailable, "cannot reach 127.0.0.1:1"},
		{"share", s, []string{"share", "none"}, "", fault.NotExist, `no share "none"`},
		{"path", s, []string{"path", "none/below"}, "", fault.NotExist, "option path: there is no such folder"},
		{"path is a file", s, []string{"path", "file"}, "", fault.NotDir, "option path"},
		{"encryption", s, []string{"encrypt", "required"}, "", fault.Unsupported, "needs SMB 3"},
		{"options", s, []string{"encrypt", "maybe", "size", "1", "connections", "1", "port", "x", "timeout", "soon", "share", "a/b", "case", "?"}, "", fault.Invalid, "size"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := servertest.SMBConfig(test.server, test.options...)
			if test.user != "" {
				cfg.Credentials["username"], cfg.Credentials["password"] = hidden(test.user), hidden(password)
			}
			b, err := smb.Driver().Open(t.Context(), cfg)
			if err == nil {
				b.Close()
			}
			if fault.KindOf(err) != test.kind || err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("Open: %v; want %v with %q", err, test.kind, test.words)
			}
			if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), s.Password)) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
	if errs := smb.Driver().Check(mounts.Config{Options: map[string]string{"encrypt": "x", "y": "z"}}); len(errs) != 5 {
		t.Errorf("Check found %q, want 5 problems", errs)
	}
	cfg := servertest.SMBConfig(guests)
	cfg.Credentials["username"], cfg.Credentials["password"] = hidden("guest"), hidden("")
	mounttest.Script(t, dial(t, cfg), `
		put f 1 -> ok
		cat f   -> "1"
	`)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if _, err := smb.Driver().Open(ctx, servertest.SMBConfig(s)); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Open with an ended context: %v; want Timeout", err)
	}
}

func TestReadOnly(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	if err := os.WriteFile(filepath.Join(s.Root, "f"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	declared := servertest.SMBConfig(s)
	declared.ReadOnly = true
	for name, cfg := range map[string]mounts.Config{"share": servertest.SMBConfig(s, "share", "readonly"), "datasource": declared} {
		t.Run(name, func(t *testing.T) {
			mounttest.Script(t, dial(t, cfg), `
				cat f     -> "hello"
				ls .      -> f
				put f 1   -> ! permission denied
				new g 1   -> ! permission denied
				mkdir d   -> ! permission denied
				rm f      -> ! permission denied
				mv f g    -> ! permission denied
				cp f g    -> ! permission denied
				cat f     -> "hello"
			`)
		})
	}
	if names, _ := os.ReadDir(s.Root); len(names) != 1 {
		t.Errorf("a read-only datasource holds %v now", names)
	}
}

// TestP06Names: a name is kept as it is or refused, and is never another file.
func TestP06Names(t *testing.T) {
	s := serve(t, servertest.SMBOptions{Lines: []string{"mangled names = yes"}})
	b := dial(t, servertest.SMBConfig(s))
	mounttest.Script(t, b, `
		put a:b 1               -> ok
		put "a?*<>|\"\\b" 2     -> ok
		put "dot." 3            -> ok
		put "space " 4          -> ok
		put "..." 5             -> ok
		put ".. ." 6            -> ok
		mkdir d:                -> ok
		put d:/f. 7             -> ok
		cat d:/f.               -> "7"
		ls d:                   -> f.
		mv a:b a:c              -> ok
		cat a:c                 -> "1"
		cat a                   -> ! does not exist
		stat dot                -> ! does not exist
		stat space              -> ! does not exist
		put CON 1               -> ! invalid
		put nul.txt 1           -> ! invalid
		put d:/Com1.a.b 1       -> ! invalid
		mkdir LPT9              -> ! invalid
		put "aux .x" 1          -> ! invalid
		put con1 ok             -> ok
		put "a\uf022b" 1        -> ! invalid
		put "a\uf028" 1         -> ! invalid
		put "a\uf029" 1         -> ! invalid
		stat "a\uf022c"         -> ! invalid
		put "a\uf028b" 8        -> ok
		cat "a\uf028b"          -> "8"
	`)
	for name, want := range map[string]string{"a\uf022c": "1", "a\uf025\uf021\uf023\uf024\uf027\uf020\uf026b": "2", "dot\uf029": "3", "space\uf028": "4", "..\uf029": "5"} {
		if got, err := os.ReadFile(filepath.Join(s.Root, name)); err != nil || string(got) != want {
			t.Errorf("on the server %q holds %q, %v; want %q", name, got, err, want)
		}
	}
	ctx := t.Context()
	for n, want := range map[int]bool{255: true, 256: false} {
		name := strings.Repeat("n", n)
		_, err := mounts.WriteFile(ctx, b, name, nil)
		if want && err != nil || !want && fault.KindOf(err) != fault.Invalid {
			t.Errorf("a name of %d bytes: %v", n, err)
		}
	}
	for _, n := range []int{40, 200} { // 4 KiB and 20 KiB of path
		name := strings.Repeat(strings.Repeat("d", 99)+"/", n) + "f"
		if _, err := mounts.WriteFile(ctx, b, name, nil); err == nil || fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.NotExist {
			t.Errorf("a path of %d bytes: %v; want Invalid or NotExist", len(name), err)
		}
	}
	testShortNames(t, s, b)
}

// testShortNames: the short name that a server makes up for a file is not a second name of it.
func testShortNames(t *testing.T, s *servertest.Server, b mounts.Backend) {
	const long = "A very long name.text"
	if err := os.WriteFile(filepath.Join(s.Root, long), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	alias := servertest.SMBShortName(t, s, long)
	if !strings.Contains(alias, "~") {
		t.Fatalf("the short name is %q", alias)
	}
	mounttest.Script(t, b, fmt.Sprintf(`
		cat %[1]s       -> ! does not exist
		stat %[1]s      -> ! does not exist
		rm %[1]s        -> ! does not exist
		mv %[1]s x      -> ! does not exist
		put %[1]s x     -> ! invalid
		mv con1 %[1]s   -> ! invalid
		cat %[1]s/x     -> ! does not exist
		put REAL~1.TXT 1 -> ok
		cat real~1.txt  -> "1"
		mv REAL~1.TXT R~2 -> ok
		rm R~2          -> ok
	`, alias))
	if got, err := os.ReadFile(filepath.Join(s.Root, long)); string(got) != "secret" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

// TestCopy: what the library copies wrong is streamed.
func TestCopy(t *testing.T) {
	b := dial(t, servertest.SMBConfig(serve(t, servertest.SMBOptions{})))
	content := make([]byte, 40<<20)
	rand.NewChaCha8([32]byte{3}).Read(content)
	for _, n := range []int{1, 1 << 20, 16<<20 - 1, 16 << 20, 16<<20 + 1, 40 << 20} {
		if _, err := mounts.WriteFile(t.Context(), b, "f", content[:n]); err != nil {
			t.Fatal(err)
		}
		info, err := mounts.Copy(t.Context(), b, "f", "g")
		if err != nil || info.Size != int64(n) || info.Name != "g" {
			t.Errorf("Copy of %d bytes: %+v, %v", n, info, err)
		}
		if got, err := mounts.ReadFile(t.Context(), b, "g", 64<<20); err != nil || !bytes.Equal(got, content[:n]) {
			t.Errorf("the copy of %d bytes has %d, %v, and is another", n, len(got), err)
		}
	}
}

func TestCase(t *testing.T) {
	for _, test := range []struct {
		line, option string
		want         bool
	}{{"case sensitive = yes", "auto", true}, {"case sensitive = no", "auto", false}, {"case sensitive = no", "sensitive", true}} {
		s := serve(t, servertest.SMBOptions{Lines: []string{test.line}})
		b := dial(t, servertest.SMBConfig(s, "case", "auto"))
		if b.Features().CaseSensitive {
			t.Error("an empty share is taken for sensitive to case")
		}
		mounttest.Script(t, b, `
			mkdir Dir -> ok
			mkdir Dir/e -> ok
			put f 1   -> ok
		`)
		b = dial(t, servertest.SMBConfig(s, "case", test.option))
		if got := b.Features().CaseSensitive; got != test.want {
			t.Errorf("%s, %s: CaseSensitive is %v", test.line, test.option, got)
		}
		if !test.want {
			mounttest.Script(t, b, `
				mv f F          -> ok
				ls .            -> Dir/ F
				mv Dir dIR      -> ok
				ls .            -> F dIR/
				mv dIR DIR/e/x  -> ! invalid
				put f 2         -> ok
				cat F           -> "2"
			`)
		}
	}
}

func BenchmarkSMB(b *testing.B) {
	for _, way := range []string{"auto", "off"} {
		b.Run(way, func(b *testing.B) {
			s := serve(b, servertest.SMBOptions{})
			mounttest.Bench(b, func(b *testing.B) mounts.Backend { return dial(b, servertest.SMBConfig(s, "encrypt", way)) })
		})
	}
}
