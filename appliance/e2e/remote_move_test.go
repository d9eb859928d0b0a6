package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// D12: a large file goes from this machine to a server and back. In the middle, or at the moment when it has arrived, the server or the box
// is killed. The source stays until the target is there and whole; no name ever shows a part; whoever was killed comes back and nothing is
// left of what was begun.
func TestD12MoveBetween(t *testing.T) {
	t.Parallel()
	sizes := map[string]int64{"vsftpd": 1 << 30, "smb": 1 << 30, "proftpd": 64 << 20}
	if testing.Short() {
		sizes = map[string]int64{"smb": 64 << 20, "proftpd": 64 << 20}
	}
	for name, size := range sizes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			moveBetween(t, startKind(t, name), size)
		})
	}
}

func moveBetween(t *testing.T, k *kind, size int64) {
	k.options["maxWrite"], k.options["maxRead"] = fmt.Sprint(min(size, 256<<20)), fmt.Sprint(min(size, 256<<20)) // slow enough to be met in the middle
	b := start(t, k.state())
	m := &mover{t: t, b: b, k: k, size: size}
	near := spot{"/near/big", b.disk("big"), filepath.Join(b.files, ".cellgate")}
	far := spot{"/docs/big", filepath.Join(k.server.Root, "docs/big"), filepath.Join(k.server.Root, ".cellgate")}
	m.sum = scribble(t, near.disk, size)
	from, to := near, far
	for _, landed := range []bool{false, true} {
		for _, victim := range []string{"server", "box"} {
			for range 2 {
				m.run(from, to, victim, landed)
				from, to = to, from
			}
		}
	}
	b.sound()
}

// spot is where the file may be.
type spot struct {
	path string // at the box
	disk string // on this machine, whichever server it belongs to
	area string // the gateway's own folder there
}

type mover struct {
	t    *testing.T
	b    *box
	k    *kind
	size int64
	sum  [32]byte
}

// run moves the file and kills the server or the box when half of it is over or, with landed, when the target's name appears.
func (m *mover) run(from, to spot, victim string, landed bool) {
	m.t.Helper()
	what := fmt.Sprintf("%s to %s, %s killed, landed %t", from.path, to.path, victim, landed)
	status := make(chan int, 1)
	a := m.b.as("alice")
	a.c.Timeout = 4 * time.Minute
	began := time.Now()
	go func() {
		r, err := a.try(context.Background(), "MOVE", from.path, nil, a.to(to.path), "Overwrite: F")
		if err != nil {
			r.status = 0
		}
		status <- r.status
	}()
	look := m.watch(from, to)
	for m.over(to) < m.size/2 || landed && !exists(to.disk) {
		if time.Since(began) > 3*time.Minute {
			m.t.Fatalf("%s: only %d bytes have come over", what, m.over(to))
		}
		time.Sleep(time.Millisecond)
	}
	middle := time.Since(began)
	if victim == "box" {
		m.b.kill()
	} else {
		m.k.kill(m.t)
	}
	got := 0
	select {
	case got = <-status:
	case <-time.After(3 * time.Minute):
		m.t.Fatalf("%s: the client has no answer", what)
	}
	answered := time.Since(began) - middle
	if !landed && (got/100 == 2 || victim == "server" && got/100 != 5) {
		m.t.Errorf("%s: the client was told %d", what, got)
	}
	if victim == "box" {
		m.b.serve()
	} else {
		m.k.revive(m.t)
	}
	// Rolled back or gone on with: in the end there is one of the two, whole.
	revived := time.Now()
	a = m.b.as("alice")
	a.c.Timeout = 4 * time.Minute
	arrived := false
	eventually(m.t, 45*time.Second, what+": one of source and target is there", func() bool {
		source, target := m.state(a, from), m.state(a, to)
		arrived = target == "whole"
		return source == "whole" && target == "missing" || source == "missing" && target == "whole"
	})
	if got/100 == 2 && !arrived {
		m.t.Errorf("%s: the client was told %d, and the file has not arrived", what, got)
	}
	settled := time.Since(revived)
	look()
	if !arrived {
		a.want("MOVE", from.path, "", 201, a.to(to.path))
	}
	if sum := digestOf(m.t, to.disk); sum != m.sum {
		m.t.Errorf("%s: the file is not what it was", what)
	}
	if exists(from.disk) {
		m.t.Errorf("%s: the source is still there", what)
	}
	for _, s := range []spot{from, to} {
		eventually(m.t, 30*time.Second, what+": nothing is left in "+s.area, func() bool { return len(leftIn(s.area)) == 0 })
	}
	m.b.sound()
	m.t.Logf("%s: killed after %v, answer %d %v later, settled %v after the return, arrived %t", what, middle.Round(time.Millisecond), got,
		answered.Round(time.Millisecond), settled.Round(time.Millisecond), arrived)
}

// watch looks at source and target all the time, on their disks and through the box, until the function it returns is called.
func (m *mover) watch(from, to spot) (done func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(pause time.Duration, look func() bool) {
		wg.Go(func() {
			for look() {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
			}
		})
	}
	loop(2*time.Millisecond, func() bool {
		source := exists(from.disk)
		info, err := os.Stat(to.disk)
		switch {
		case err == nil && info.Size() != m.size:
			m.t.Errorf("%s shows %d of %d bytes", to.disk, info.Size(), m.size)
		case err != nil && !source:
			m.t.Errorf("neither %s nor %s is there", from.disk, to.disk)
		default:
			return true
		}
		return false
	})
	a := m.b.as("alice")
	loop(50*time.Millisecond, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r, err := a.try(ctx, "HEAD", to.path, nil)
		if err == nil && r.status == 200 && r.header.Get("Content-Length") != fmt.Sprint(m.size) {
			m.t.Errorf("%s shows %s of %d bytes", to.path, r.header.Get("Content-Length"), m.size)
			return false
		}
		return true
	})
	return func() { close(stop); wg.Wait() }
}

// state is what the box says of a place.
func (m *mover) state(a *client, s spot) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := a.try(ctx, "HEAD", s.path, nil)
	switch {
	case err != nil:
		return err.Error()
	case r.status == 404:
		return "missing"
	case r.status == 200 && r.header.Get("Content-Length") == fmt.Sprint(m.size):
		return "whole"
	}
	return fmt.Sprint(r.status, " ", r.header.Get("Content-Length"))
}

// over is how many bytes have come to where the copy is staged. On this machine that has no name, and only the box has it open.
func (m *mover) over(to spot) (n int64) {
	_ = filepath.WalkDir(filepath.Join(to.area, "tmp"), func(name string, d fs.DirEntry, err error) error {
		n = max(n, sizeOf(name))
		return nil
	})
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.b.pid()))
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, to.area+"/") {
			n = max(n, sizeOf(fd))
		}
	}
	return max(n, sizeOf(to.disk))
}

// sizeOf is that of a file, 0 where there is none.
func sizeOf(name string) int64 {
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		return info.Size()
	}
	return 0
}

// leftIn lists what is in the folders of an area.
func leftIn(area string) (names []string) {
	for _, dir := range []string{"tmp", "old"} {
		entries, _ := os.ReadDir(filepath.Join(area, dir))
		for _, e := range entries {
			names = append(names, dir+"/"+e.Name())
		}
	}
	return names
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// scribble makes a large file of which no part is like another, and returns its digest.
func scribble(t *testing.T, name string, size int64) (sum [32]byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	block := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{12})
	for off := int64(0); off < size; off += int64(len(block)) {
		_, _ = rng.Read(block)
		if _, err := io.MultiWriter(f, h).Write(block[:min(int64(len(block)), size-off)]); err != nil {
			t.Fatal(err)
		}
	}
	return [32]byte(h.Sum(nil))
}

func digestOf(t *testing.T, name string) (sum [32]byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return sum
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Error(err)
	}
	return [32]byte(h.Sum(nil))
}
