package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// everything is one call of each kind that reaches the server.
func everything(b *Backend) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := b.Stat(ctx, "f"); return err },
		"List": func(ctx context.Context) error { _, err := listed(ctx, b, "."); return err },
		"Open": func(ctx context.Context) error { _, err := b.Open(ctx, "f", 0, -1); return err },
		"Put":  func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "f", []byte("x")); return err },
		"Put long": func(ctx context.Context) error {
			_, err := mounts.WriteFile(ctx, b, "f", make([]byte, 3<<20))
			return err
		},
		"Put parts": func(ctx context.Context) error {
			_, err := b.Put(ctx, "f", bytes.NewReader(make([]byte, 20<<20)), mounts.PutOptions{Size: -1})
			return err
		},
		"Mkdir":    func(ctx context.Context) error { return b.Mkdir(ctx, "d") },
		"Remove":   func(ctx context.Context) error { return b.Remove(ctx, "f") },
		"Rename":   func(ctx context.Context) error { return b.Rename(ctx, "f", "g") },
		"CopyFile": func(ctx context.Context) error { _, err := b.CopyFile(ctx, "f", "g"); return err },
		"Purge":    func(ctx context.Context) error { return b.Purge(ctx, "f") },
		"Hash":     func(ctx context.Context) error { _, err := b.Hash(ctx, "f", "md5"); return err },
		"Parts":    func(ctx context.Context) error { _, err := b.StartParts(ctx, "f", mounts.PutOptions{}); return err },
	}
}

// TestStalled: with a server that stands still calls end with their context, and else by themselves; afterwards all goes on.
func TestStalled(t *testing.T) {
	server := servertest.S3(t, servertest.S3Options{})
	b := opened(t, with(servertest.S3Config(server, servertest.S3Options{}), "timeout", "700ms"), "")
	content := make([]byte, 40<<20)
	rand.NewChaCha8([32]byte{3}).Read(content)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	server.Pause(t)
	for name, call := range everything(b) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		start := time.Now()
		if err := call(ctx); fault.KindOf(err) != fault.Canceled || time.Since(start) > 250*time.Millisecond {
			t.Errorf("%s whose context ends: %v after %v; want Canceled at once", name, err, time.Since(start))
		}
	}
	ended := make(chan string)
	calls := everything(b)
	calls["Read"] = func(context.Context) error { _, err := io.Copy(io.Discard, r); return err }
	for name, call := range calls {
		go func() {
			start := time.Now()
			if err := call(t.Context()); fault.KindOf(err) != fault.Timeout || time.Since(start) > 3*time.Second {
				t.Errorf("%s: %v after %v; want Timeout", name, err, time.Since(start))
			}
			ended <- name
		}()
	}
	for range calls {
		<-ended
	}
	server.Resume(t)
	if _, err := mounts.WriteFile(t.Context(), b, "after", content); err != nil { // what was asked for may have happened to f
		t.Errorf("after the stall: %v", err)
	}
	if got, err := mounts.ReadFile(t.Context(), b, "after", 1<<30); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after the stall: %d bytes, %v", len(got), err)
	}
	server.Pause(t)
	time.Sleep(50 * time.Millisecond)
	done := make(chan error)
	go func() { _, err := b.Stat(t.Context(), "f"); done <- err }()
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	b.Close()
	if err := <-done; fault.KindOf(err) != fault.Unavailable || time.Since(start) > 300*time.Millisecond {
		t.Errorf("a call under way at Close: %v after %v; want Unavailable at once", err, time.Since(start))
	}
	server.Resume(t)
}

// TestSlowSource: neither a source nor a reader that takes its time is a stall.
func TestSlowSource(t *testing.T) {
	server := servertest.S3(t, servertest.S3Options{})
	b := opened(t, with(servertest.S3Config(server, servertest.S3Options{}), "timeout", "300ms"), "")
	for _, size := range []int{100, 2 << 20} {
		content := bytes.Repeat([]byte("x"), size)
		slow := io.MultiReader(bytes.NewReader(content[:size-1]), &late{wait: 600 * time.Millisecond, r: bytes.NewReader(content[size-1:])})
		if _, err := b.Put(t.Context(), "f", slow, mounts.PutOptions{Size: int64(size)}); err != nil {
			t.Errorf("Put of %d bytes whose last comes late: %v", size, err)
		}
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.Sleep(600 * time.Millisecond)
	if n, err := io.Copy(io.Discard, r); n != 2<<20 || err != nil {
		t.Errorf("a reader that waited got %d bytes, %v", n, err)
	}
}

// late is a reader that waits once.
type late struct {
	wait time.Duration
	r    io.Reader
}

func (l *late) Read(p []byte) (int, error) {
	time.Sleep(l.wait)
	l.wait = 0
	return l.r.Read(p)
}

// TestKilled: a download is cut with an error, an upload leaves the old, and a server that is back is used again without a word.
func TestKilled(t *testing.T) {
	opt := servertest.S3Options{Port: servertest.Port(t), Root: ""}
	server := servertest.S3(t, opt)
	b := opened(t, servertest.S3Config(server, opt), "")
	content := make([]byte, 40<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, b, "put g old -> ok")
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	sent := 0
	src := readFunc(func(p []byte) (int, error) {
		if sent += len(p); sent > 2<<20 {
			server.Kill(t)
			time.Sleep(50 * time.Millisecond)
		}
		return len(p), nil
	})
	if _, err := b.Put(t.Context(), "g", src, mounts.PutOptions{Size: 6 << 20}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Put to a server that dies: %v; want Unavailable", err)
	}
	if n, err := io.Copy(io.Discard, r); fault.KindOf(err) != fault.Unavailable || n >= 39<<20 {
		t.Errorf("a download was cut after %d bytes: %v; want Unavailable", n, err)
	}
	r.Close()
	if _, err := b.Stat(t.Context(), "f"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Stat without a server: %v; want Unavailable", err)
	}
	opt.Root = strings.TrimSuffix(server.Root, "/data/"+servertest.S3Bucket)
	servertest.S3(t, opt)
	mounttest.Script(t, b, `
		cat g   -> "old"
		ls .    -> f g
		put h 1 -> ok
	`)
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestAbortedPuts cuts uploads of all kinds off anywhere: the old stays, and no part is left at the server.
func TestAbortedPuts(t *testing.T) {
	t.Parallel()
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	mounttest.Script(t, b, "put f old -> ok")
	broken := errors.New("the line went dead")
	for _, size := range []int64{10, 1<<20 + 5, 17 << 20} {
		for _, declared := range []int64{size, -1} {
			for _, at := range []int64{0, size / 2, size - 1} {
				for _, end := range []string{"fails", "ends", "cancelled"} {
					ctx, cancel := context.WithCancel(t.Context())
					src := io.MultiReader(io.LimitReader(zeros{}, at), readFunc(func(p []byte) (int, error) {
						switch end {
						case "fails":
							return 0, broken
						case "ends":
							return 0, io.EOF
						}
						cancel()
						return copy(p, "x"), nil
					}))
					if end == "ends" && declared < 0 {
						cancel()
						continue // that is how such a source ends
					}
					_, err := b.Put(ctx, "f", src, mounts.PutOptions{Size: declared})
					cancel()
					want := map[string]bool{"fails": errors.Is(err, broken), "ends": fault.KindOf(err) == fault.Invalid, "cancelled": fault.KindOf(err) == fault.Canceled}
					if err == nil || !want[end] {
						t.Errorf("a source of %d bytes, declared %d, that %s after %d: %v", size, declared, end, at, err)
					}
				}
			}
		}
	}
	mounttest.Script(t, b, `
		cat f -> "old"
		ls .  -> f
	`)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.uploads) > 0 {
		t.Errorf("%d uploads are left", len(f.uploads))
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHostile: whatever a server answers, calls end with a fault, in little memory.
func TestHostile(t *testing.T) {
	endless := func(head, piece string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, head)
			for range 10_000 {
				if _, err := io.WriteString(w, strings.Repeat(piece, 1000)); err != nil {
					return
				}
			}
		}
	}
	answers := map[string]http.HandlerFunc{
		"nothing":  func(w http.ResponseWriter, r *http.Request) {},
		"garbage":  func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "\x00\xff<<<&&&") },
		"html":     func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html><body>hello</body></html>") },
		"teapot":   func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) },
		"hang up":  func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"endless":  endless("<ListBucketResult>", "<Contents><Key>x</Key></Contents>"),
		"a string": endless("<Error><Code>", "x"),
		"nested":   endless("", "<a>"),
		"no tokens": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
		},
		"the same token": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>")
		},
		"foreign keys": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Last-Modified", "yesterday")
			w.Header().Set("Content-Range", "bytes 9-3/1")
			io.WriteString(w, "<ListBucketResult><Contents><Key>elsewhere</Key><Size>-5</Size></Contents><Contents><Key>../../etc</Key></Contents></ListBucketResult>")
		},
		"odd headers": func(w http.ResponseWriter, r *http.Request) {
			for _, h := range []string{"Last-Modified", "Expires", "X-Amz-Tagging", "X-Amz-Tagging-Count", "X-Amz-Restore", "ETag", "X-Minio-Source-Mtime", "Set-Cookie"} {
				w.Header().Set(h, "\"x=\x01%%%"+strings.Repeat("y", 3000))
			}
		},
		"many headers": func(w http.ResponseWriter, r *http.Request) {
			for i := range 3000 {
				w.Header().Set(fmt.Sprintf("X-Amz-Meta-%d", i), strings.Repeat("z", 1000))
			}
		},
		"interim": func(w http.ResponseWriter, r *http.Request) {
			for range 1000 {
				w.WriteHeader(103)
			}
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			large := name == "endless" || name == "a string" || name == "nested"
			if !large {
				t.Parallel()
			}
			f := newFake(t, false)
			b := opened(t, remembering(f.config()), "")
			f.before.set(func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true })
			grown, _ := heap(func() {
				for op, call := range everything(b) {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					err := call(ctx)
					var fa *fault.Error
					if err != nil && (!errors.As(err, &fa) || fa.Kind == fault.Internal || len(err.Error()) > 1500) {
						t.Errorf("%s: %v; want a fault that says something", op, err)
					}
					if ctx.Err() != nil {
						t.Errorf("%s takes for ever", op)
					}
					cancel()
				}
			})
			if large && grown > 128<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
		})
	}
}

// TestShortDownload: an answer that ends early, or is another part than asked for, is an error and no file.
func TestShortDownload(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter)
		off, n int64
		want   string // "": an error
	}{
		"cut":      {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10"); io.WriteString(w, "0123") }, 0, -1, ""},
		"whole":    {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10"); io.WriteString(w, "0123456789") }, 0, -1, "0123456789"},
		"no range": {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10"); io.WriteString(w, "0123456789") }, 3, 2, "34"},
		"other range": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-1/10")
			w.WriteHeader(206)
			io.WriteString(w, "01")
		}, 3, 2, ""},
		"short range": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 3-3/10")
			w.WriteHeader(206)
			io.WriteString(w, "3")
		}, 3, 2, ""},
		"cut range": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 3-4/10")
			w.WriteHeader(206)
			w.(http.Flusher).Flush() // chunked
			io.WriteString(w, "3")
		}, 3, 2, ""},
	} {
		f := newFake(t, false)
		b := opened(t, remembering(f.config()), "")
		f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
			test.answer(w)
			return true
		})
		r, err := b.Open(t.Context(), "f", test.off, test.n)
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
			r.Close()
		}
		if test.want != "" && (err != nil || string(got) != test.want) || test.want == "" && fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %q, %v; want %q", name, got, err, test.want)
		}
	}
}

// TestCodes: what servers say comes out as the right kind, in words.
func TestCodes(t *testing.T) {
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	for _, test := range []struct {
		status int
		code   string
		kind   fault.Kind
		word   string
	}{
		{403, "AccessDenied", fault.Denied, "right"}, {403, "InvalidAccessKeyId", fault.Unauthenticated, "accessKey"},
		{400, "ExpiredToken", fault.Unauthenticated, "session token"}, {403, "RequestTimeTooSkewed", fault.Unauthenticated, "clock"},
		{503, "SlowDown", fault.Busy, ""}, {503, "", fault.Busy, ""}, {507, "", fault.NoSpace, ""}, {507, "XMinioStorageFull", fault.NoSpace, ""},
		{403, "QuotaExceeded", fault.Quota, "quota"}, {400, "EntityTooLarge", fault.TooLarge, ""}, {500, "InternalError", fault.Unavailable, ""},
		{404, "NoSuchBucket", fault.Unavailable, "bucket"}, {501, "NotImplemented", fault.Unsupported, ""}, {403, "InvalidObjectState", fault.Unsupported, "archived"},
		{301, "PermanentRedirect", fault.Unavailable, "region"}, {502, "", fault.Unavailable, ""}, {400, "NeverHeardOf", fault.Invalid, "NeverHeardOf"},
	} {
		f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
			if test.code == "" {
				w.WriteHeader(test.status)
			} else {
				refuse(w, test.status, test.code)
			}
			return true
		})
		_, err := listed(t.Context(), b, "d")
		if err == nil || fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%d %s: %v; want %v, saying %q", test.status, test.code, err, test.kind, test.word)
		}
	}
}

// TestSlots: more callers than connections wait their turn, and not for ever.
func TestSlots(t *testing.T) {
	f := newFake(t, false)
	b := opened(t, with(remembering(f.config()), "connections", "2", "timeout", "300ms"), "")
	f.put("f", strings.Repeat("x", 20<<20))
	var readers []io.ReadCloser
	for range 2 {
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	if _, err := b.Open(t.Context(), "f", 0, -1); fault.KindOf(err) != fault.Busy {
		t.Errorf("a third reader: %v; want Busy", err)
	}
	mounttest.Script(t, b, `
		stat f  -> file "f" 20971520
		put g 1 -> ok
	`)
	readers[0].Close()
	if _, err := mounts.ReadFile(t.Context(), b, "f", 1<<30); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
	readers[1].Close()
}

// TestGoroutines: nothing is left running after Close.
func TestGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	server := httptest.NewServer(nil)
	server.Close()
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	f.put("many/x", strings.Repeat("x", 5<<20))
	for range 3 {
		for _, call := range everything(b) {
			call(t.Context())
		}
		r, err := b.Open(t.Context(), "many/x", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		r.Read(make([]byte, 10))
		r.Close()
		for range b.List(t.Context(), "many") {
			break
		}
	}
	b.Close()
	f.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes 5-14/100", "bytes */100", "bytes 0-0/1", "bytes 9-3/1", "bytes -1-5/9", "bytes 0-99999999999999999999/1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, size, err := parseRange(s)
		if err == nil && (first < 0 || last < first || size <= last) {
			t.Errorf("%q is %d to %d of %d", s, first, last, size)
		}
	})
}

func FuzzTicket(f *testing.F) {
	f.Add(ticket{"a/b", "id", 5, true}.String())
	f.Add("e30")
	b := &Backend{transport: newTransport(http.DefaultTransport, time.Second, 1)}
	f.Fuzz(func(t *testing.T, id string) {
		if got, err := b.ticket(context.Background(), "PutPart", id); err == nil && (mounts.ValidPath(got.Name) != nil || got.Name == ".") {
			t.Errorf("%q is an upload of %q", id, got.Name)
		}
	})
}

func Benchmark(b *testing.B) {
	server := servertest.S3(b, servertest.S3Options{})
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return opened(b, servertest.S3Config(server, servertest.S3Options{}), "")
	})
}
