package dropbox_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/dropbox"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/mounttest"
)

func tlsConfig(t *testing.T, pem []byte) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// everyCall returns calls that reach the service.
func everyCall(b mounts.Backend) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := b.Stat(ctx, "f"); return err },
		"List": func(ctx context.Context) error { _, err := names(ctx, b, "."); return err },
		"Open": func(ctx context.Context) error { _, err := mounts.ReadFile(ctx, b, "f", 1<<20); return err },
		"Put":  func(ctx context.Context) error { _, err := mounts.WriteFile(ctx, b, "g", []byte("x")); return err },
		"Large": func(ctx context.Context) error {
			_, err := mounts.WriteFile(ctx, b, "g", make([]byte, 9<<20))
			return err
		},
		"Mkdir":  func(ctx context.Context) error { return b.Mkdir(ctx, "d") },
		"Remove": func(ctx context.Context) error { return b.Remove(ctx, "f") },
		"Rename": func(ctx context.Context) error { return b.Rename(ctx, "f", "g") },
		"Copy":   func(ctx context.Context) error { _, err := mounts.Copy(ctx, b, "f", "h"); return err },
		"Purge":  func(ctx context.Context) error { return b.(mounts.Purger).Purge(ctx, "f") },
		"Space":  func(ctx context.Context) error { _, err := b.(mounts.Spacer).Space(ctx); return err },
		"Hash":   func(ctx context.Context) error { _, err := b.(mounts.Hasher).Hash(ctx, "f", "dropbox"); return err },
	}
}

// TestStalled: a service that says nothing costs a call the context's time, or the progress timeout.
func TestStalled(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "2s"))
	s.Put("/f", "content")
	s.Inject(dropboxtest.Fault{Times: -1, Stall: true})
	var all sync.WaitGroup
	for name, call := range everyCall(b) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			start := time.Now()
			wantKind(t, name+" with a deadline", call(ctx), fault.Timeout)
			if took := time.Since(start); took > 1500*time.Millisecond {
				t.Errorf("%s took %v after a deadline of 150ms", name, took)
			}
			start = time.Now()
			wantKind(t, name+" without one", call(t.Context()), fault.Timeout)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%s took %v with a timeout of 2s", name, took)
			}
		})
	}
	all.Wait()
	s.Heal()
	for name, call := range everyCall(b) {
		if err := call(t.Context()); err != nil && fault.KindOf(err) != fault.NotExist && fault.KindOf(err) != fault.Exist {
			t.Errorf("%s after the stall: %v", name, err)
		}
	}
}

// TestStalledToken: the token service is no exception.
func TestStalledToken(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "300ms"))
	s.ExpireTokens()
	s.Inject(dropboxtest.Fault{Route: "oauth2/token", Times: -1, Stall: true})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := b.Stat(ctx, "f")
	wantKind(t, "Stat", err, fault.Timeout)
	start := time.Now()
	_, err = b.Stat(t.Context(), "f")
	wantKind(t, "Stat", err, fault.Timeout)
	b.Close()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestBrokenDownload: what ends early is an error and never a short file.
func TestBrokenDownload(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "1s"))
	s.Put("/f", strings.Repeat("0123456789", 100_000))
	for _, cut := range []int{1, 1000, 999_999} {
		s.Inject(dropboxtest.Fault{Route: "files/download", Cut: cut})
		got, err := mounts.ReadFile(t.Context(), b, "f", 2<<20)
		wantKind(t, fmt.Sprintf("reading what is cut after %d, %d bytes", cut, len(got)), err, fault.Unavailable)
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Error(err)
	}
	r.Close() // early
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("Read after Close works")
	}
	if got, err := mounts.ReadFile(t.Context(), b, "f", 2<<20); err != nil || len(got) != 1_000_000 {
		t.Errorf("after all: %d bytes, %v", len(got), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if r, err = b.Open(ctx, "f", 0, -1); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = io.Copy(io.Discard, r)
	wantKind(t, "reading with an ended context", err, fault.Canceled)
	r.Close()
}

// TestBrokenUpload: an upload that breaks leaves the old content; what may be sent again is.
func TestBrokenUpload(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "500ms"))
	mounttest.Script(t, b, "put f old -> ok")
	large := make([]byte, 21<<20)
	rand.NewChaCha8([32]byte{}).Read(large)
	put := func() error { _, err := mounts.WriteFile(t.Context(), b, "f", large); return err }
	for _, f := range []dropboxtest.Fault{
		{Route: "files/upload_session/append_v2", Skip: 2, Times: -1, Cut: -1},
		{Route: "files/upload_session/append_v2", Skip: 2, Times: -1, Status: 500},
		{Route: "files/upload_session/append_v2", Skip: 3, Times: -1, Stall: true},
		{Route: "files/upload_session/start", Times: -1, Status: 500},
		{Route: "files/upload_session/finish", Times: -1, Status: 500},
	} {
		s.Inject(f)
		if err := put(); err == nil {
			t.Errorf("Put works with %+v", f)
		}
		s.Heal()
		if c, _ := s.Read("/f"); c != "old" {
			t.Errorf("with %+v the file holds %d bytes", f, len(c))
		}
	}
	b = open(t, config(s, "timeout", "30s")) // a busy machine shall not be taken for a silent service
	for _, f := range []dropboxtest.Fault{
		{Route: "files/upload_session/append_v2", Skip: 2, Status: 500},
		{Route: "files/upload_session/append_v2", Status: 500}, // the first, which comes again after the last
		{Route: "files/upload_session/append_v2", Times: 2, Status: 503, RetryAfter: 0},
		{Route: "files/upload_session/append_v2", Skip: 2, Late: true},
		{Route: "files/upload_session/append_v2", Skip: 5, Late: true}, // the one that closes the session
		{Route: "files/upload_session/start", Status: 500},
		{Route: "files/upload_session/finish", Status: 409, Tags: "path/too_many_write_operations"},
	} {
		s.Put("/f", "old")
		s.Inject(f)
		if err := put(); err != nil {
			t.Errorf("Put with %+v: %v", f, err)
		}
		if c, _ := s.Read("/f"); c != string(large) {
			t.Errorf("with %+v the file holds %d other bytes", f, len(c))
		}
	}
	// A block that is damaged on the way is noticed.
	s.Inject(dropboxtest.Fault{Route: "files/upload_session/append_v2", Skip: 1, Status: 409, Tags: "content_hash_mismatch"})
	wantKind(t, "a damaged block", put(), fault.Corrupt)
}

// TestRestart: connections that were closed meanwhile cost nothing.
func TestRestart(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	s.Put("/f", "content")
	for name, call := range everyCall(b) {
		s.CloseConnections()
		time.Sleep(5 * time.Millisecond)
		if err := call(t.Context()); err != nil && fault.KindOf(err) != fault.NotExist && fault.KindOf(err) != fault.Exist {
			t.Errorf("%s after the connections were closed: %v", name, err)
		}
		s.Put("/f", "content")
	}
}

// TestSlowSource: a source that keeps its last byte back holds no connection, and nothing is published before it ends.
func TestSlowSource(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "connections", "1", "timeout", "1s"))
	for _, size := range []int{1, 1000, 8 << 20, 13 << 20} {
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := b.Put(t.Context(), "f", r, mounts.PutOptions{Size: int64(size)})
			done <- err
		}()
		w.Write(make([]byte, size-1))
		time.Sleep(1200 * time.Millisecond) // longer than the timeout
		mounttest.Script(t, b, `
			stat f  -> ! does not exist
			put g x -> ok
		`)
		w.Write([]byte{1})
		select {
		case <-done:
			t.Errorf("published before the source ended")
		case <-time.After(30 * time.Millisecond):
		}
		w.Close()
		if err := <-done; err != nil {
			t.Errorf("Put of %d bytes: %v", size, err)
		}
		if err := b.Remove(t.Context(), "f"); err != nil {
			t.Error(err)
		}
	}
}

// TestBuffersComeBack: uploads that fail, wherever they do, keep no buffer.
func TestBuffersComeBack(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	broken := errors.New("broken")
	for range 10 { // more than there are
		for _, size := range []int64{-1, 7 << 20, 40 << 20} {
			for _, sent := range []int64{0, 100, 4 << 20, 5 << 20, 6 << 20, 13 << 20} {
				if size >= 0 && sent > size {
					continue
				}
				src := io.MultiReader(io.LimitReader(zeros{}, sent), readerFunc(func([]byte) (int, error) { return 0, broken }))
				if _, err := b.Put(t.Context(), "f", src, mounts.PutOptions{Size: size}); !errors.Is(err, broken) {
					t.Fatal(err)
				}
			}
		}
		s.Inject(dropboxtest.Fault{Route: "files/upload_session/append_v2", Status: 409, Tags: "not_found"})
		if _, err := b.Put(t.Context(), "f", io.LimitReader(zeros{}, 40<<20), mounts.PutOptions{Size: 40 << 20}); err == nil {
			t.Fatal("Put works")
		}
		s.Heal()
	}
	s.Reset()
	if _, err := b.Put(t.Context(), "f", io.LimitReader(zeros{}, 7<<20), mounts.PutOptions{Size: 7 << 20}); err != nil || s.Count("files/upload") != 1 {
		t.Errorf("with all buffers free, 7 MiB take %v (%v); want one call", s.Counts(), err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPutMemory: a stream of any length needs the six blocks of all uploads, and many streams hardly more than one each.
func TestPutMemory(t *testing.T) {
	received := int64(0)
	var mu sync.Mutex
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		mu.Lock()
		received += n
		total := received
		mu.Unlock()
		switch {
		case strings.HasSuffix(r.URL.Path, "start"):
			io.WriteString(w, `{"session_id":"x"}`)
		case strings.HasSuffix(r.URL.Path, "finish"):
			fmt.Fprintf(w, `{"name":"f","id":"id:1","rev":"012345678","size":%d,"client_modified":"2020-01-01T00:00:00Z","server_modified":"2020-01-01T00:00:00Z"}`, total)
		case strings.HasSuffix(r.URL.Path, "list_folder"):
			mu.Lock()
			received = 0
			mu.Unlock()
			io.WriteString(w, `{"entries":[],"cursor":"x","has_more":false}`)
		case strings.HasSuffix(r.URL.Path, "token"):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"access_token":"x","token_type":"bearer"}`)
		default:
			io.WriteString(w, `{}`)
		}
	}))
	defer h.Close()
	b := open(t, config(&dropboxtest.Server{URL: h.URL, AppKey: "k", RefreshToken: "r"}))
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	size, read, most := int64(160<<20), int64(0), uint64(0)
	src := readerFunc(func(p []byte) (int, error) {
		if read == size {
			return 0, io.EOF
		}
		n := min(int64(len(p)), size-read, 1<<20)
		if read += n; read%(16<<20) == 0 {
			var now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
		}
		return int(n), nil
	})
	info, err := b.Put(t.Context(), "f", src, mounts.PutOptions{Size: -1})
	if err != nil || info.Size != size {
		t.Fatalf("Put: %+v, %v", info, err)
	}
	if most > 28<<20 {
		t.Errorf("a stream took %d KiB", most>>10)
	}
	// Sixteen streams that have all been read from a while.
	const streams = 16
	var reached, ended sync.WaitGroup
	reached.Add(streams)
	goOn := make(chan struct{})
	for range streams {
		ended.Go(func() {
			left := 20 << 20
			_, err := b.Put(t.Context(), "f", readerFunc(func(p []byte) (int, error) {
				if left == 2<<20 {
					reached.Done()
					<-goOn
				}
				if left == 0 {
					return 0, io.EOF
				}
				n := min(len(p), left, 1<<20)
				if left > 2<<20 {
					n = min(n, left-2<<20)
				}
				left -= n
				return n, nil
			}), mounts.PutOptions{Size: 20 << 20})
			if err == nil { // the service counts the bytes of all together
				return
			}
			if fault.KindOf(err) != fault.Unavailable {
				t.Errorf("Put: %v", err)
			}
		})
	}
	reached.Wait()
	var now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&now)
	close(goOn)
	ended.Wait()
	if took := now.HeapAlloc - min(before.HeapAlloc, now.HeapAlloc); took > (streams+6)*4<<20+4<<20 {
		t.Errorf("%d streams took %d KiB", streams, took>>10)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestHostile: answers that make no sense are errors, take bounded memory and no endless time.
func TestHostile(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "300ms"))
	s.Put("/f", "content")
	file := `{".tag":"file","name":"%s","id":"id:1","rev":"012345678","size":%s,"client_modified":"%s","server_modified":"2020-01-01T00:00:00Z"}`
	for _, body := range []string{
		"null", "{}", "[]", `""`, "<html>", `{"entries":null}`, `{".tag":"file"}`, `{".tag":"folder","name":"../x"}`, `{".tag":"unknown","name":"x"}`, `{".tag":"deleted","name":"f"}`,
		fmt.Sprintf(file, "a/b", "1", "2020-01-01T00:00:00Z"), fmt.Sprintf(file, "f", "-1", "2020-01-01T00:00:00Z"), fmt.Sprintf(file, "f", "18446744073709551615", "2020-01-01T00:00:00Z"),
		fmt.Sprintf(file, "f", "1", "yesterday"), fmt.Sprintf(file, "a\\nb", "1", "2020-01-01T00:00:00Z"),
		strings.Repeat(`{"a":`, 5000), `"` + strings.Repeat("x", 17<<20),
	} {
		for _, status := range []int{200, 409} {
			s.Inject(dropboxtest.Fault{Times: -1, Status: status, Body: body})
			for name, call := range everyCall(b) {
				if name == "List" || name == "Mkdir" || name == "Purge" || name == "Rename" || name == "Remove" || name == "Space" {
					_ = call(t.Context()) // an empty answer is fine there
					continue
				}
				if len(body) > 1<<20 && name != "Stat" {
					continue
				}
				err := call(t.Context())
				if err == nil {
					t.Errorf("%s takes %d %.60s", name, status, body)
				} else if len(err.Error()) > 600 {
					t.Errorf("%s with %.60s: the message is %d bytes long", name, body, len(err.Error()))
				}
			}
			s.Heal()
		}
	}
	s.Inject(dropboxtest.Fault{Times: -1, Status: 200, Body: `{"entries":[],"cursor":"x","has_more":true}`})
	_, err := names(t.Context(), b, ".")
	wantKind(t, "an endless listing", err, fault.Unavailable)
	wantKind(t, "an endless empty folder", b.Remove(t.Context(), "f"), fault.Unavailable)
	s.Heal()
	s.Inject(dropboxtest.Fault{Status: 200, Body: `{"entries":[null,{".tag":"x"},{".tag":"folder","name":".."},{".tag":"folder","name":"ok"},{".tag":"file","name":"g","size":1}],"cursor":"x"}`})
	if got, err := names(t.Context(), b, "."); err == nil && fmt.Sprint(got) != "[g ok]" && fmt.Sprint(got) != "[ok]" {
		t.Errorf("listed %q", got)
	}
}

// TestWrongRange: a server that ignores the range, or sends another, is not believed.
func TestWrongRange(t *testing.T) {
	s := dropboxtest.New(dropboxtest.Config{AppKey: "k", AppSecret: "s", RefreshToken: "r"})
	defer s.Close()
	s.Put("/f", "0123456789")
	ranges := ""
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			r.Header.Set("Range", ranges)
		}
		s.ServeHTTP(w, r)
	}))
	defer h.Close()
	b := open(t, config(&dropboxtest.Server{URL: h.URL, AppKey: "k", AppSecret: "s", RefreshToken: "r"}))
	for _, ranges = range []string{"", "bytes=3-5", "bytes=100-"} {
		_, err := b.Open(t.Context(), "f", 4, 3)
		wantKind(t, "Open answered with "+ranges, err, fault.Unavailable)
	}
	ranges = "" // from the start all is well
	r, err := b.Open(t.Context(), "f", 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "012" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestNothingLeft: no goroutine outlives Close.
func TestNothingLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	func() {
		s := dropboxtest.New(dropboxtest.Config{AppKey: "k", AppSecret: "s", RefreshToken: "r"})
		h := httptest.NewServer(s)
		defer h.Close()
		defer s.Close()
		s.Put("/f", "content")
		b, err := dropbox.Driver().Open(t.Context(), config(&dropboxtest.Server{URL: h.URL, AppKey: "k", AppSecret: "s", RefreshToken: "r"}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for range b.(mounts.Watcher).Watch(ctx) {
			}
		}()
		for range 3 {
			for name, call := range everyCall(b) {
				_ = name
				_ = call(t.Context())
			}
		}
		broken := errors.New("broken")
		_, err = b.Put(t.Context(), "g", io.MultiReader(bytes.NewReader(make([]byte, 30<<20)), readerFunc(func([]byte) (int, error) { return 0, broken })), mounts.PutOptions{Size: -1})
		if !errors.Is(err, broken) {
			t.Error(err)
		}
		for range b.List(t.Context(), ".") {
			break
		}
		cancel()
		<-watched
		b.Close()
	}()
	for until := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			stack := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, stack[:runtime.Stack(stack, true)])
		}
	}
}

// TestReadersKeepConnections: readers that are open and idle cost uploads and calls nothing, and one more reader an end to its waiting.
func TestReadersKeepConnections(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "connections", "2", "timeout", "200ms"))
	s.Put("/f", strings.Repeat("x", 16<<20))
	var readers []io.ReadCloser
	for range 2 {
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	mounttest.Script(t, b, `
		put g x -> ok
		stat g  -> file "g" 1
	`)
	_, err := b.Open(t.Context(), "f", 0, -1)
	wantKind(t, "Open with all connections in use", err, fault.Busy)
	for _, r := range readers {
		r.Close()
	}
	mounttest.Script(t, b, `cat g -> "x"`)
}
