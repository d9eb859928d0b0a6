package smb_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
	"cellgate/mounts/smb"
)

// calls are one of each kind.
func calls(b mounts.Backend) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := b.Stat(ctx, "f"); return err },
		"Open": func(ctx context.Context) error { _, err := mounts.ReadFile(ctx, b, "f", 64<<20); return err },
		"Put": func(ctx context.Context) error {
			_, err := mounts.WriteFile(ctx, b, "p", make([]byte, 3<<20))
			return err
		},
		"Mkdir":  func(ctx context.Context) error { return b.Mkdir(ctx, "new") },
		"Remove": func(ctx context.Context) error { return b.Remove(ctx, "old") },
		"Rename": func(ctx context.Context) error { return b.Rename(ctx, "f", "f") },
		"Copy":   func(ctx context.Context) error { _, err := b.(mounts.Copier).CopyFile(ctx, "f", "c"); return err },
		"Space":  func(ctx context.Context) error { _, err := b.(mounts.Spacer).Space(ctx); return err },
		"List": func(ctx context.Context) error {
			for _, err := range b.List(ctx, ".") {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// TestStalled: calls end with their context, or when the server is silent for the timeout, and all is well once it goes on.
func TestStalled(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	before := runtime.NumGoroutine()
	b := dial(t, servertest.SMBConfig(s, "timeout", "500ms"))
	if _, err := mounts.WriteFile(t.Context(), b, "f", make([]byte, 20<<20)); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	h, err := b.(mounts.RandomAccess).OpenFile(t.Context(), "f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Pause(t)
	for op, call := range calls(b) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		start := time.Now()
		err := call(ctx)
		if took := time.Since(start); fault.KindOf(err) != fault.Timeout || took > 500*time.Millisecond {
			t.Errorf("%s on a stalled server with a deadline: %v after %v", op, err, took)
		}
		cancel()
	}
	var silent sync.WaitGroup
	for op, call := range calls(b) {
		silent.Go(func() {
			start := time.Now()
			if err, took := call(t.Context()), time.Since(start); fault.KindOf(err) != fault.Timeout || took > 1500*time.Millisecond {
				t.Errorf("%s on a stalled server: %v after %v", op, err, took)
			}
		})
	}
	silent.Wait()
	if n, err := io.Copy(io.Discard, r); fault.KindOf(err) != fault.Timeout {
		t.Errorf("the reader: %d bytes, %v; want Timeout", n, err)
	}
	if _, err := h.ReadAt(make([]byte, 10), 0); fault.KindOf(err) != fault.Timeout {
		t.Errorf("the open file: %v; want Timeout", err)
	}
	r.Close()
	h.Close()
	start := time.Now()
	if _, err := smb.Driver().Open(t.Context(), servertest.SMBConfig(s, "timeout", "300ms")); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Open of a stalled server: %v; want Timeout", err)
	}
	go calls(b)["Put"](t.Context())
	time.Sleep(20 * time.Millisecond)
	if b.Close(); time.Since(start) > 2500*time.Millisecond {
		t.Errorf("Open and Close took %v", time.Since(start))
	}
	noMore(t, before+1)
	s.Resume(t)
	b = dial(t, servertest.SMBConfig(s))
	mounttest.Script(t, b, "put f 1 -> ok")
}

// TestRestart: a server that comes back, or only drops its connections, is dialled again, and nobody sees it but who was in the middle.
func TestRestart(t *testing.T) {
	opt := servertest.SMBOptions{Port: servertest.Port(t)}
	s := serve(t, opt)
	opt.Root = s.Root
	b := dial(t, servertest.SMBConfig(s))
	content := bytes.Repeat([]byte("x"), 30<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.SMBChild(t)
		for op, call := range calls(b) {
			if op == "Mkdir" || op == "Remove" {
				continue
			}
			if err := call(t.Context()); err != nil && fault.KindOf(err) != fault.Unsupported {
				t.Errorf("%s after the server dropped the connections: %v", op, err)
			}
		}
	}
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	io.ReadFull(r, make([]byte, 100))
	s.Kill(t)
	if n, err := io.Copy(io.Discard, r); fault.KindOf(err) != fault.Unavailable || n >= int64(len(content)-100) {
		t.Errorf("reading from a killed server: %d bytes, %v", n, err)
	}
	if _, err := b.Stat(t.Context(), "f"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Stat on a killed server: %v; want Unavailable", err)
	}
	serve(t, opt)
	if got, err := mounts.ReadFile(t.Context(), b, "f", 40<<20); err != nil || !bytes.Equal(got, content) {
		t.Errorf("after the restart: %d bytes, %v", len(got), err)
	}
	mounttest.Script(t, b, `
		put g 1 -> ok
		mv g h  -> ok
		rm h    -> ok
	`)
}

// TestCancel: who goes away early costs nobody else anything, and no session.
func TestCancel(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	cfg := servertest.SMBConfig(s, "connections", "3")
	var log lockedBuffer
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b := dial(t, cfg)
	content := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var readers, hasty sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				if got, err := mounts.ReadFile(t.Context(), b, "f", 64<<20); err != nil || !bytes.Equal(got, content) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range 20 {
		hasty.Go(func() {
			for op, call := range calls(b) {
				if op == "Rename" {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(3*time.Millisecond))))
				call(ctx)
				cancel()
			}
		})
	}
	hasty.Wait()
	close(done)
	readers.Wait()
	if got := strings.Count(log.String(), "smb session opened"); got > 3 || strings.Contains(log.String(), "lost") {
		t.Errorf("%d sessions were opened, want 3 at most\n%s", got, log.String())
	}
	b.Close()
	if names, _ := filepath.Glob(filepath.Join(s.Root, ".cellgate/tmp/*")); len(names) > 0 {
		t.Errorf("temporary files stay: %v", names)
	}
}

// TestCredits: calls whose callers went away leave those that come then what they need, and a server that grants little is asked for less at a time.
func TestCredits(t *testing.T) {
	for _, test := range []struct {
		granted string
		hasty   int
	}{{"8192", 600}, {"40", 60}} {
		t.Run(test.granted, func(t *testing.T) {
			s := serve(t, servertest.SMBOptions{Global: []string{"smb2 max credits = " + test.granted}})
			p := &proxy{}
			b := dial(t, p.before(t, servertest.SMBConfig(s, "connections", "2")))
			content := bytes.Repeat([]byte("x"), 5<<20)
			if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
				t.Fatal(err)
			}
			p.delay.Store(int64(20 * time.Millisecond))
			var all sync.WaitGroup
			for range test.hasty {
				all.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
					defer cancel()
					b.Stat(ctx, "f")
				})
			}
			for range 4 {
				all.Go(func() {
					for range 2 {
						if got, err := mounts.ReadFile(t.Context(), b, "f", 20<<20); err != nil || !bytes.Equal(got, content) {
							t.Errorf("read %d bytes, %v", len(got), err)
						}
						if err := calls(b)["List"](t.Context()); err != nil {
							t.Errorf("List: %v", err)
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// TestPutInfo: Put tells what Stat tells then, whichever of its questions the server hears first, and with a file open at the target.
func TestPutInfo(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	unsynced := servertest.SMBConfig(s)
	unsynced.Unsynced = true
	p := &proxy{}
	p.delay.Store(int64(3 * time.Millisecond))
	for name, b := range map[string]mounts.Backend{
		"synced": dial(t, servertest.SMBConfig(s)), "unsynced": dial(t, unsynced), "far": dial(t, p.before(t, servertest.SMBConfig(s))),
	} {
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for n := range 10 {
					file := name + strconv.Itoa(i)
					var r io.ReadCloser
					if n == 5 {
						r, _ = b.Open(t.Context(), file, 0, 2)
					}
					put, err := b.Put(t.Context(), file, strings.NewReader("content"[:n%7]), mounts.PutOptions{Size: -1, Exclusive: n == 0})
					stat, serr := b.Stat(t.Context(), file)
					if err != nil || serr != nil || put != stat {
						t.Errorf("%s: Put says %+v, %v; Stat %+v, %v", name, put, err, stat, serr)
					}
					if r != nil {
						r.Close()
					}
				}
			})
		}
		all.Wait()
	}
	if names, _ := filepath.Glob(filepath.Join(s.Root, ".cellgate/tmp/*")); len(names) > 0 {
		t.Errorf("temporary files stay: %v", names)
	}
}

// TestCloseInUse: a file can be closed while calls on it are under way; these end with what they came for or find it closed.
func TestCloseInUse(t *testing.T) {
	b := dial(t, servertest.SMBConfig(serve(t, servertest.SMBOptions{})))
	content := bytes.Repeat([]byte("x"), 3<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		h, err := b.(mounts.RandomAccess).OpenFile(t.Context(), "f", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for _, call := range []func() error{
			func() error { _, err := h.ReadAt(make([]byte, len(content)), 0); return err },
			func() error { _, err := h.WriteAt(content, 0); return err },
			func() error { _, err := h.Stat(); return err },
			h.Sync,
			func() error { return h.Truncate(int64(len(content))) },
		} {
			all.Go(func() {
				for err := call(); !errors.Is(err, fs.ErrClosed); err = call() {
					if err != nil {
						t.Errorf("a call on a file that is being closed: %v", err)
						return
					}
				}
			})
		}
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		all.Wait()
		if err := h.Close(); !errors.Is(err, fs.ErrClosed) || fault.KindOf(err) != fault.Invalid {
			t.Errorf("a second Close: %v", err)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func TestFull(t *testing.T) {
	dir := servertest.Dir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0755"); err != nil {
		t.Skipf("no small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := serve(t, servertest.SMBOptions{Root: dir})
	b := dial(t, servertest.SMBConfig(s))
	mounttest.Script(t, b, "put f old -> ok")
	for _, size := range []int64{8 << 20, -1} {
		if _, err := b.Put(t.Context(), "f", bytes.NewReader(make([]byte, 8<<20)), mounts.PutOptions{Size: size}); fault.KindOf(err) != fault.NoSpace {
			t.Errorf("Put of 8 MiB into 4: %v; want NoSpace", err)
		}
	}
	mounttest.Script(t, b, `
		cat f      -> "old"
		put g new  -> ok
	`)
	space, err := b.(mounts.Spacer).Space(t.Context())
	if err != nil || space.Total != 4<<20 || space.Free > 4<<20 || space.Free < 3<<20 {
		t.Errorf("Space: %+v, %v", space, err)
	}
}

// TestBeside: where the Area cannot be had, or lies on another disk, the content is written beside its target.
func TestBeside(t *testing.T) {
	s := serve(t, servertest.SMBOptions{Lines: []string{"veto files = /.cellgate/"}})
	script := `
		put d/f hello -> ok
		put d/f other -> ok
		cat d/f       -> "other"
		new d/f x     -> ! already exists
		new d/g x     -> ok
		put none/f x  -> ! does not exist
		ls d          -> f g
	`
	os.Mkdir(filepath.Join(s.Root, "d"), 0o755)
	mounttest.Script(t, dial(t, servertest.SMBConfig(s)), script)
	if names, _ := filepath.Glob(filepath.Join(s.Root, "d", ".*")); len(names) > 0 {
		t.Errorf("temporary files stay: %v", names)
	}

	s = serve(t, servertest.SMBOptions{})
	dir := filepath.Join(s.Root, "d")
	os.Mkdir(dir, 0o755)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m,mode=0755"); err != nil {
		t.Skipf("no second file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	b := dial(t, servertest.SMBConfig(s))
	mounttest.Script(t, b, script)
	content := bytes.Repeat([]byte("x"), 5<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "d/large", content); err != nil {
		t.Fatal(err)
	}
	if got, err := mounts.ReadFile(t.Context(), b, "d/large", 10<<20); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
}

// TestInUse: what others have open is Busy, in words; replacing it works on this server.
func TestInUse(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	b, other := dial(t, servertest.SMBConfig(s)), dial(t, servertest.SMBConfig(s))
	mounttest.Script(t, b, `
		put f 1 -> ok
		put g 2 -> ok
	`)
	h, err := other.(mounts.RandomAccess).OpenFile(t.Context(), "f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = b.Remove(t.Context(), "f")
	if fault.KindOf(err) != fault.Busy || !strings.Contains(err.Error(), "open here or by another program") {
		t.Errorf("Remove of an open file: %v", err)
	}
	go func() { time.Sleep(300 * time.Millisecond); h.Close() }()
	mounttest.Script(t, b, `
		mv f h -> ok
		mv g h -> ok
		cat h  -> "2"
	`)
}

// TestLatency: streams fill a long line (30 blocks one by one were 34 round trips to read, 39 to write; a quiet machine needs 10 and 14), and a small Put costs the round trips that it must.
func TestLatency(t *testing.T) {
	s := serve(t, servertest.SMBOptions{})
	const rtt = 100 * time.Millisecond
	p := &proxy{}
	p.delay.Store(int64(rtt / 2))
	b := dial(t, p.before(t, servertest.SMBConfig(s)))
	ctx := t.Context()
	measure := func(what string, most float64, do func() error) {
		t.Helper()
		start := time.Now()
		err := do()
		if trips := float64(time.Since(start)) / float64(rtt); err != nil || trips > most {
			t.Errorf("%s took %.1f round trips, %v; want %.1f at most", what, trips, err, most)
		} else {
			t.Logf("%s: %.1f round trips", what, trips)
		}
	}
	put := func(n int) func() error {
		return func() error { _, err := mounts.WriteFile(ctx, b, "f", make([]byte, n)); return err }
	}
	put(1)()                       // the Area and the session for renames are there
	measure("Put", 8.9, put(4096)) // one request after the other: 9
	measure("Stat", 3, func() error { _, err := b.Stat(ctx, "f"); return err })
	measure("Open", 4, func() error { _, err := mounts.ReadFile(ctx, b, "f", 1<<20); return err })
	measure("List", 5, func() error { return calls(b)["List"](ctx) })
	measure("Put 30 MiB", 37, put(30<<20))
	measure("Open 30 MiB", 33, func() error { _, err := mounts.ReadFile(ctx, b, "f", 64<<20); return err })
}

// TestWire: what is encrypted cannot be read on the way, and what answers in the clear is not believed.
func TestWire(t *testing.T) {
	const canary = "canary-in-the-coal-mine"
	for _, test := range []struct {
		option string
		want   bool
	}{{"auto", false}, {"required", false}, {"off", true}} {
		s := serve(t, servertest.SMBOptions{})
		p := &proxy{}
		b := dial(t, p.before(t, servertest.SMBConfig(s, "encrypt", test.option)))
		mounttest.Script(t, b, `put f `+canary+` -> ok`)
		mounttest.Script(t, b, `cat f -> "`+canary+`"`)
		if got := p.saw(canary); got != test.want {
			t.Errorf("encrypt %s: the content could be seen: %v", test.option, got)
		}
	}
}

// TestHostile: answers that make no sense cost the calls they answer, and end.
func TestHostile(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, answer := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, 1<<20), "text": []byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n\r\n", 1000)),
		"huge frame": {0, 0xff, 0xff, 0xff, 0xfe, 'S', 'M', 'B'}, "tiny frame": {0, 0, 0, 1, 0xfe}, "half a frame": {0, 0, 1, 0, 0xfe, 'S', 'M', 'B', 64},
		"header only": append([]byte{0, 0, 0, 64, 0xfe, 'S', 'M', 'B', 64}, make([]byte, 59)...),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Write(answer)
					time.AfterFunc(time.Second, func() { c.Close() })
				}
			}()
			host, port, _ := net.SplitHostPort(l.Addr().String())
			cfg := servertest.SMBConfig(&servertest.Server{}, "host", host, "port", port, "timeout", "300ms")
			cfg.Credentials["username"], cfg.Credentials["password"] = hidden("u"), hidden("p")
			start := time.Now()
			b, err := smb.Driver().Open(t.Context(), cfg)
			if err == nil {
				b.Close()
			}
			if k := fault.KindOf(err); err == nil || k != fault.Unavailable && k != fault.Timeout || time.Since(start) > time.Second {
				t.Errorf("Open: %v after %v", err, time.Since(start))
			}
		})
	}
	s := serve(t, servertest.SMBOptions{})
	rounds := 30
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		t.Run("mutated", func(t *testing.T) { testMutated(t, s, uint64(round)) })
	}
	noMore(t, before+4)
}

// testMutated changes bytes of answers on the way, and looks that every call ends.
func testMutated(t *testing.T, s *servertest.Server, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	from, every := 3+random.IntN(6), 1+random.IntN(4)
	var mu sync.Mutex
	p := &proxy{answer: func(n int, frame []byte) {
		mu.Lock()
		defer mu.Unlock()
		if n < from && seed%4 != 0 || n%every != 0 {
			return
		}
		for range 1 + random.IntN(3) {
			at := 4 + random.IntN(min(len(frame)-4, 200))
			if at >= 4+24 && at < 4+32 { // a message that is answered to nobody is but a stall
				continue
			}
			frame[at] = []byte{0, 1, 0x7f, 0x80, 0xff, byte(random.Uint32())}[random.IntN(6)]
		}
	}}
	cfg := p.before(t, servertest.SMBConfig(s, "encrypt", "off", "timeout", "200ms"))
	b, err := smb.Driver().Open(t.Context(), cfg)
	if err != nil {
		return
	}
	var all sync.WaitGroup
	for _, call := range calls(b) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
			defer cancel()
			call(ctx)
		})
	}
	start := time.Now()
	all.Wait()
	b.Close()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("seed %d: the calls took %v", seed, took)
	}
}
