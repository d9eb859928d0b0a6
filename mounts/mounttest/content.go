package mounttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func testRanges(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	content := make([]byte, 3*64<<10+17)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	if _, err := mounts.WriteFile(ctx, b, "f", content); err != nil {
		t.Fatal(err)
	}
	size := int64(len(content))
	borders := []int64{0, 1, 511, 4095, 4096, 4097, 32 << 10, 64<<10 - 1, 64 << 10, size - 1, size, size + 1, size + 1<<20}
	for _, off := range borders {
		for _, n := range append([]int64{-1}, borders...) {
			from := min(off, size)
			to := size
			if n >= 0 {
				to = min(from+n, size)
			}
			got, err := read(ctx, b, "f", off, n)
			if err != nil || got != string(content[from:to]) {
				t.Errorf("Open(%d, %d) reads %d bytes, %v; want %d", off, n, len(got), err, to-from)
			}
		}
	}
	if _, err := b.Open(ctx, "f", -1, 1); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Open at -1: %v; want Invalid", err)
	}
	r, err := b.Open(ctx, "f", 5, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := iotest.TestReader(r, content[5:15]); err != nil {
		t.Error(err)
	}
	testDescriptor(t, b, content)
}

// testDescriptor asks a local reader for its file, which must stand where the reader does.
func testDescriptor(t *testing.T, b mounts.Backend, content []byte) {
	r, err := b.Open(t.Context(), "f", 100, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, ok := r.(mounts.Descriptor)
	if !ok {
		return
	}
	if _, err := io.ReadFull(r, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 30)
	if _, err := io.ReadFull(d.OSFile(), got); err != nil || !bytes.Equal(got, content[120:150]) {
		t.Errorf("the descriptor does not stand at 120: %v", err)
	}
}

func testFailingSource(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	Script(t, b, "put f old -> ok")
	broken := errors.New("the line went dead")
	for _, n := range []int{0, 1, 4096, 300_000} {
		for _, size := range []int64{-1, int64(n), int64(n) + 10} {
			for _, name := range []string{"f", "new"} {
				src := io.MultiReader(strings.NewReader(strings.Repeat("x", n)), iotest.ErrReader(broken))
				if _, err := b.Put(ctx, name, src, mounts.PutOptions{Size: size}); !errors.Is(err, broken) {
					t.Errorf("Put(%s) of a source that fails after %d bytes: %v; want its error", name, n, err)
				}
			}
		}
	}
	Script(t, b, `
		cat f -> "old"
		ls .  -> f
	`)
}

func testLength(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	Script(t, b, "put f old -> ok")
	for _, test := range []struct{ have, declared int }{{0, 1}, {5, 4}, {5, 0}, {5, 6}, {300_000, 299_999}, {300_000, 300_001}, {10, 300_000}} {
		for _, name := range []string{"f", "new"} {
			src := strings.NewReader(strings.Repeat("x", test.have))
			_, err := b.Put(ctx, name, src, mounts.PutOptions{Size: int64(test.declared)})
			if err == nil || fault.KindOf(err) != fault.Invalid {
				t.Errorf("Put(%s) of %d bytes declared as %d: %v; want Invalid", name, test.have, test.declared, err)
			}
		}
	}
	Script(t, b, `
		cat f -> "old"
		ls .  -> f
	`)
	for i, n := range []int{0, 1, 4095, 4096, 65536, 262144, 262145, 600_000} {
		for _, declared := range []int64{-1, int64(n)} {
			content := strings.Repeat("y", n)
			info, err := b.Put(ctx, "f", iotest.OneByteReader(strings.NewReader(content[:min(n, 4096)])), mounts.PutOptions{Size: min(declared, 4096)})
			if err != nil || info.Size != int64(min(n, 4096)) {
				t.Errorf("Put of %d bytes one by one: %d, %v", n, info.Size, err)
			}
			info, err = b.Put(ctx, "f", strings.NewReader(content), mounts.PutOptions{Size: declared})
			if err != nil || info.Size != int64(n) || info.Name != "f" {
				t.Errorf("%d: Put of %d bytes declared as %d: %+v, %v", i, n, declared, info, err)
			}
			if got, err := read(ctx, b, "f", 0, -1); err != nil || got != content {
				t.Errorf("%d: read %d bytes, %v; want %d", i, len(got), err, n)
			}
		}
	}
}

func testPutCancelled(t *testing.T, b mounts.Backend) {
	Script(t, b, "put f old -> ok")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	src := readerFunc(func(p []byte) (int, error) { // endless, and cancelled on the way
		if n++; n == 20 {
			cancel()
		}
		return min(len(p), 4096), nil
	})
	if _, err := b.Put(ctx, "f", src, mounts.PutOptions{Size: -1}); err == nil || fault.KindOf(err) != fault.Canceled {
		t.Errorf("Put whose context ends: %v; want Canceled", err)
	}
	Script(t, b, `
		cat f -> "old"
		ls .  -> f
	`)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func testReadersDuringReplace(t *testing.T, b mounts.Backend) {
	support := b.Features().AtomicReplace
	if support == mounts.Refused {
		return // nothing is promised: the core does without
	}
	ctx := t.Context()
	rounds, size := 40, 200_000
	if testing.Short() {
		rounds = 10
	}
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, size+i%3) }
	if _, err := mounts.WriteFile(ctx, b, "f", content(0)); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !stop.Load() {
				got, err := read(ctx, b, "f", 0, -1)
				if err != nil {
					if support == mounts.Emulated && fault.KindOf(err) == fault.NotExist {
						continue
					}
					t.Errorf("reading during a replace: %v", err)
					return
				}
				if len(got) < size || strings.Count(got, got[:1]) != len(got) || len(got) != size+int(got[0]-'a')%26%3 {
					t.Errorf("reading during a replace: a mixture or a part, %d bytes", len(got))
					return
				}
				if info, err := b.Stat(ctx, "f"); err == nil && info.Size < int64(size) {
					t.Errorf("Stat during a replace: %d bytes", info.Size)
					return
				}
			}
		})
	}
	for i := range rounds {
		opt := mounts.PutOptions{Size: -1}
		if _, err := b.Put(ctx, "f", bytes.NewReader(content(i%26)), opt); err != nil {
			t.Errorf("Put: %v", err)
		}
		if _, err := mounts.WriteFile(ctx, b, "g", content((i+1)%26)); err != nil {
			t.Errorf("Put: %v", err)
		}
		if err := b.Rename(ctx, "g", "f"); err != nil {
			t.Errorf("Rename: %v", err)
		}
	}
	stop.Store(true)
	readers.Wait()
}

// testOldReader: who opened the former content reads that to the end.
func testOldReader(t *testing.T, b mounts.Backend) {
	if b.Features().AtomicReplace != mounts.Native {
		return
	}
	ctx := t.Context()
	old := bytes.Repeat([]byte("old "), 100_000)
	if _, err := mounts.WriteFile(ctx, b, "f", old); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(ctx, "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	Script(t, b, "put f new -> ok")
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, old[4:]) {
		t.Errorf("the reader of the former content got %d bytes, %v; want %d", len(got), err, len(old)-4)
	}
}

func testLarge(t *testing.T, b mounts.Backend) {
	size := int64(64<<20 + 4321)
	if testing.Short() {
		size = 5<<20 + 4321
	}
	ctx := t.Context()
	for _, declared := range []int64{size, -1} {
		sent, got := sha256.New(), sha256.New()
		src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
		info, err := b.Put(ctx, "large", src, mounts.PutOptions{Size: declared})
		if err != nil || info.Size != size {
			t.Fatalf("Put of %d bytes: %+v, %v", size, info, err)
		}
		r, err := b.Open(ctx, "large", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(got, r)
		r.Close()
		if err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Fatalf("read back %d of %d bytes, %v; the digests must be the same", n, size, err)
		}
	}
}

func testExclusive(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		new f 1   -> ok
		new f 2   -> ! already exists
		cat f     -> "1"
		mkdir d   -> ok
		new d 1   -> ! already exists | is a folder
	`)
	const rivals = 8
	for round := range 10 {
		name := fmt.Sprintf("r%d", round)
		var won atomic.Int32
		var all sync.WaitGroup
		for i := range rivals {
			all.Go(func() {
				_, err := b.Put(t.Context(), name, strings.NewReader(fmt.Sprint(i)), mounts.PutOptions{Size: -1, Exclusive: true})
				switch {
				case err == nil:
					won.Add(1)
				case fault.KindOf(err) != fault.Exist:
					t.Errorf("exclusive Put: %v; want Exist", err)
				}
			})
		}
		all.Wait()
		if got := won.Load(); got != 1 {
			t.Errorf("%d of %d exclusive Puts of %s won, want 1", got, rivals, name)
		}
	}
}
