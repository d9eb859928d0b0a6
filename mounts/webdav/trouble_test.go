package webdav_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// calls is one of each, on a backend that holds the file f and the folder d.
func calls(ctx context.Context, b mounts.Backend) map[string]func() error {
	return map[string]func() error{
		"Stat": func() error { _, err := b.Stat(ctx, "f"); return err },
		"List": func() error {
			for _, err := range b.List(ctx, ".") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"Open": func() error {
			r, err := b.Open(ctx, "f", 0, -1)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			return err
		},
		"Put":   func() error { _, err := mounts.WriteFile(ctx, b, "f", []byte("new")); return err },
		"Large": func() error { _, err := mounts.WriteFile(ctx, b, "f", make([]byte, 20<<20)); return err },
		"Mkdir": func() error { return b.Mkdir(ctx, "new") },
		"Remove": func() error {
			return b.Remove(ctx, "d")
		},
		"Rename": func() error { return b.Rename(ctx, "f", "g") },
	}
}

// TestStalled: a server that keeps silent costs no call more than its context, or the progress timeout, and heals.
func TestStalled(t *testing.T) {
	steady(t)
	s := servertest.Apache(t, servertest.WebDAVOptions{})
	cfg := with(servertest.WebDAVConfig(s, servertest.WebDAVOptions{}), "timeout", "600ms")
	b := mount(t, cfg)
	put(t, b, "f", strings.Repeat("old", 5_000_000))
	if err := b.Mkdir(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	reader, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	s.Pause(t)
	ended := make(chan string)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	run := func(name string, call func() error, kind fault.Kind, least, most time.Duration) {
		start := time.Now()
		err := call()
		if took := time.Since(start); fault.KindOf(err) != kind || err == nil || took < least || took > most {
			t.Errorf("%s of a stalled server: %v after %v; want %v in %v to %v", name, err, took, kind, least, most)
		}
		ended <- name
	}
	n := 0
	for name, call := range calls(ctx, b) {
		n++
		go run(name+" with a deadline", call, fault.Timeout, 150*time.Millisecond, 450*time.Millisecond)
	}
	for range n {
		<-ended
	}
	n = 1
	go run("Read", func() error { _, err := io.Copy(io.Discard, reader); return err }, fault.Timeout, 500*time.Millisecond, 2500*time.Millisecond)
	for name, call := range calls(t.Context(), b) {
		if name == "Rename" { // may take long on the server
			continue
		}
		n++
		go run(name, call, fault.Timeout, 500*time.Millisecond, 2500*time.Millisecond)
	}
	for range n {
		<-ended
	}
	s.Resume(t)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := b.Stat(t.Context(), "."); err == nil { // what was asked during the stall the server may still do
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after the stall: %v", err)
		}
	}
	put(t, b, "after", "hello")
	holds(t, b, "after", "hello")
	s.Pause(t)
	defer s.Resume(t)
	start := time.Now()
	if err := b.Close(); err != nil || time.Since(start) > time.Second {
		t.Errorf("Close of a stalled server: %v after %v", err, time.Since(start))
	}
}

// TestCloseEnds: Close ends what is under way.
func TestCloseEnds(t *testing.T) {
	steady(t)
	s := servertest.Apache(t, servertest.WebDAVOptions{})
	b := mount(t, servertest.WebDAVConfig(s, servertest.WebDAVOptions{}))
	s.Pause(t)
	defer s.Resume(t)
	time.Sleep(50 * time.Millisecond)
	time.AfterFunc(100*time.Millisecond, func() { b.Close() })
	start := time.Now()
	_, err := b.Stat(t.Context(), "f")
	if want(t, "Stat", err, fault.Unavailable); time.Since(start) > time.Second {
		t.Errorf("Stat ended after %v", time.Since(start))
	}
}

// TestRestart: a server that was killed costs the calls meanwhile Unavailable, and nothing once it is back.
func TestRestart(t *testing.T) {
	steady(t)
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx, "rclone": servertest.RcloneWebDAV} {
		t.Run(name, func(t *testing.T) {
			o := servertest.WebDAVOptions{Port: servertest.Port(t), Root: servertest.WebDAVRoot(t)}
			s := begin(t, o)
			b := mount(t, servertest.WebDAVConfig(s, o))
			put(t, b, "f", "old")
			if err := b.Mkdir(t.Context(), "d"); err != nil {
				t.Fatal(err)
			}
			s.Kill(t)
			s.Cmd.Process.Wait()
			time.Sleep(50 * time.Millisecond)
			for name, call := range calls(t.Context(), b) {
				want(t, name+" of a dead server", call(), fault.Unavailable)
			}
			begin(t, o)
			holds(t, b, "f", "old")
			put(t, b, "f", "new")
			for name, call := range calls(t.Context(), b) {
				if name == "Open" || name == "Stat" {
					continue // Rename may have been first
				}
				if err := call(); err != nil && fault.KindOf(err) != fault.NotExist {
					t.Errorf("%s after the restart: %v", name, err)
				}
			}
		})
	}
}

// TestIdleClosed: connections that the server closed while nobody used them cost nothing.
func TestIdleClosed(t *testing.T) {
	h := disk(t)
	var requests atomic.Int32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{IdleTimeout: 30 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h.ServeHTTP(w, r)
	})}
	go s.Serve(l)
	defer s.Close()
	b := mount(t, mounts.Config{Options: map[string]string{"url": "http://" + l.Addr().String() + "/dav"}})
	for i := range 10 {
		time.Sleep(time.Duration(25+i) * time.Millisecond) // about when the server closes
		put(t, b, "f", fmt.Sprint(i))
		time.Sleep(time.Duration(25+i) * time.Millisecond)
		holds(t, b, "f", fmt.Sprint(i))
	}
}

// TestCutUploads: an upload that breaks off, on whichever side, leaves the former file and nothing else. (D01)
func TestCutUploads(t *testing.T) {
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx, "rclone": servertest.RcloneWebDAV} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, servertest.WebDAVOptions{})
			b := mount(t, servertest.WebDAVConfig(s, servertest.WebDAVOptions{}))
			put(t, b, "f", "old")
			const size = 8 << 20
			lost := errors.New("the line went dead")
			for _, at := range []int{1, size / 2, size * 99 / 100, size - 1, size} {
				for _, declared := range []int64{-1, size} {
					for _, file := range []string{"f", "new"} {
						src := io.MultiReader(bytes.NewReader(make([]byte, at)), iotest.ErrReader(lost))
						if _, err := b.Put(t.Context(), file, src, mounts.PutOptions{Size: declared}); !errors.Is(err, lost) {
							t.Errorf("a source lost at %d: %v", at, err)
						}
						ctx, cancel := context.WithCancel(t.Context())
						n := 0
						src = iotest.DataErrReader(reader(func(p []byte) (int, error) {
							if n += len(p); n >= at {
								cancel()
								return max(0, len(p)-(n-at)), nil
							}
							return len(p), nil
						}))
						_, err := b.Put(ctx, file, src, mounts.PutOptions{Size: declared})
						want(t, fmt.Sprintf("a Put cancelled at %d", at), err, fault.Canceled)
						cancel()
					}
				}
			}
			time.Sleep(time.Second) // for what the server may do late
			holds(t, b, "f", "old")
			if got := names(t, b, "."); len(got) != 1 {
				t.Errorf("there are %q", got)
			}
			leftovers(t, s.Root)
		})
	}
}

// leftovers fails the test when files of ours are left behind on the server's disk.
func leftovers(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.Contains(path, "ellgate") || strings.Contains(d.Name(), "davfs.tmp")) {
			t.Errorf("%s is left behind", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

type reader func(p []byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }

// TestSlowSource: a source may rest for longer than the server may, before its last byte and before its end, and nothing is published before.
func TestSlowSource(t *testing.T) {
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, servertest.WebDAVOptions{})
			b := mount(t, with(servertest.WebDAVConfig(s, servertest.WebDAVOptions{}), "timeout", "300ms"))
			t.Parallel()
			put(t, b, "f", "old")
			for _, size := range []int{10, 1 << 20} {
				rest := func(p []byte) (int, error) {
					time.Sleep(400 * time.Millisecond)
					holds(t, b, "f", "old")
					return 0, io.EOF
				}
				text := strings.Repeat("x", size)
				src := io.MultiReader(strings.NewReader(text[1:]), reader(rest), strings.NewReader("x"), reader(rest))
				if _, err := b.Put(t.Context(), "f", src, mounts.PutOptions{Size: int64(size)}); err != nil {
					t.Errorf("Put: %v", err)
				}
				holds(t, b, "f", text)
				put(t, b, "f", "old")
			}
		})
	}
}

// TestLocked: somebody else's lock is told as such.
func TestLocked(t *testing.T) {
	s := servertest.Apache(t, servertest.WebDAVOptions{})
	cfg := servertest.WebDAVConfig(s, servertest.WebDAVOptions{})
	b := mount(t, cfg)
	put(t, b, "f", "old")
	put(t, b, "g", "other")
	const lock = `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`
	r, err := http.NewRequest("LOCK", cfg.Options["url"]+"f", strings.NewReader(lock))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("LOCK: %v %v", resp, err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	_, err = mounts.WriteFile(t.Context(), b, "f", []byte("new"))
	if want(t, "Put", err, fault.Locked); !strings.Contains(err.Error(), "has locked") {
		t.Error(err)
	}
	want(t, "Remove", b.Remove(t.Context(), "f"), fault.Locked)
	want(t, "Rename", b.Rename(t.Context(), "f", "h"), fault.Locked)
	want(t, "Rename", b.Rename(t.Context(), "g", "f"), fault.Locked)
	want(t, "Purge", b.(mounts.Purger).Purge(t.Context(), "f"), fault.Locked)
	holds(t, b, "f", "old")
	leftovers(t, s.Root)
}

// TestPutIfRefused: neither server keeps conditions to the end, so nothing is promised.
func TestPutIfRefused(t *testing.T) {
	for _, begin := range []start{servertest.Apache, servertest.Nginx} {
		s := begin(t, servertest.WebDAVOptions{})
		b := mount(t, servertest.WebDAVConfig(s, servertest.WebDAVOptions{}))
		put(t, b, "f", "old")
		_, err := b.(mounts.Conditional).PutIf(t.Context(), "f", "x", strings.NewReader("new"), mounts.PutOptions{Size: 3})
		want(t, "PutIf", err, fault.Unsupported)
		holds(t, b, "f", "old")
	}
}

// TestP06Names: names that are special elsewhere, and the longest, are kept or refused in words.
func TestP06Names(t *testing.T) {
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx, "rclone": servertest.RcloneWebDAV} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, servertest.WebDAVOptions{})
			b := mount(t, servertest.WebDAVConfig(s, servertest.WebDAVOptions{}))
			all := []string{
				"CON", "NUL", "aux.txt", "a:b", "a::$DATA", "dot.", "space ", "PROGRA~1", "%2Ehidden", "%252Ehidden", "%25", "%", "..x", ".", "]]>", "&amp;", "-rf",
				strings.Repeat("l", 255), strings.Repeat("é", 127), "a?b#c", "http:", "x;y=z", "+", "é", ".hidden", ".part-x",
			}
			for _, n := range all {
				if n == "." {
					continue
				}
				put(t, b, n, n)
				holds(t, b, n, n)
			}
			have := map[string]bool{}
			for _, n := range names(t, b, ".") {
				have[n] = true
			}
			for _, n := range all {
				if n != "." && !have[n] {
					t.Errorf("%q is not listed in %d names", n, len(have))
				}
			}
			_, err := mounts.WriteFile(t.Context(), b, strings.Repeat("x", 256), nil)
			want(t, "256 bytes", err, fault.Invalid)
			long := ""
			for range 16 { // 4 KiB
				long = strings.TrimPrefix(long+"/"+strings.Repeat("d", 255), "/")
				if err := b.Mkdir(t.Context(), long); err != nil {
					if len(long) < 3000 || !slices.Contains([]fault.Kind{fault.Invalid, fault.Unavailable, fault.Denied, fault.NotExist, fault.Unsupported}, fault.KindOf(err)) {
						t.Errorf("a path of %d bytes: %v", len(long), err)
					}
					break
				}
			}
		})
	}
}
