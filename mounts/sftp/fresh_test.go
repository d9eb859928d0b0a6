package sftp_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// holders counts the sessions that have a file open, in any of its lives.
func holders(t testing.TB, s *servertest.Server, path string) (n int) {
	t.Helper()
	for _, pid := range s.SFTPSessions(t) {
		open, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
		if slices.ContainsFunc(open, func(fd string) bool { at, err := os.Readlink(fd); return err == nil && at == path }) {
			n++
		}
	}
	return n
}

// TestFresh: a large file that was put a moment ago is read over several channels when this backend put it, and over one when it could be
// somebody else's.
func TestFresh(t *testing.T) {
	s, key := openSSH(t)
	const size = 32 << 20
	future := time.Now().Add(time.Hour).Truncate(time.Second) // never old enough to be believed by its times alone
	put := func(t *testing.T, b mounts.Backend) {
		t.Helper()
		if _, err := b.Put(t.Context(), "large", bytes.NewReader(make([]byte, size)), mounts.PutOptions{Size: size, ModTime: future}); err != nil {
			t.Fatal(err)
		}
	}
	// read reads the file and returns how many sessions had it open, having waited a while for want.
	read := func(t *testing.T, b mounts.Backend, path string, want int) (n int) {
		t.Helper()
		r, err := b.Open(t.Context(), "large", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.CopyN(io.Discard, r, size/8); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && n < want; time.Sleep(10 * time.Millisecond) {
			n = holders(t, s, path)
		}
		if got, err := io.Copy(io.Discard, r); err != nil || got != size-size/8 {
			t.Errorf("%d bytes more, %v", got, err)
		}
		return max(n, holders(t, s, path))
	}
	t.Run("own", func(t *testing.T) {
		dir := empty(t, s)
		b := attach(t, servertest.SFTPConfig(s, key, "path", dir))
		for try := 0; ; try++ { // it is known for a few seconds only, which a busy machine may need for something else
			put(t, b)
			n := read(t, b, filepath.Join(dir, "large"), 2)
			if n > 1 {
				break
			}
			if try == 10 {
				t.Fatalf("%d sessions have it open, want several", n)
			}
		}
	})
	t.Run("foreign", func(t *testing.T) {
		dir := empty(t, s)
		b := attach(t, servertest.SFTPConfig(s, key, "path", dir))
		put(t, b)
		other, later := filepath.Join(dir, "other"), future.Add(time.Second)
		err := errors.Join(os.WriteFile(other, make([]byte, size), 0o644), os.Chtimes(other, later, later), os.Rename(other, filepath.Join(dir, "large")))
		if err != nil {
			t.Fatal(err)
		}
		if n := read(t, b, filepath.Join(dir, "large"), 1); n != 1 {
			t.Errorf("%d sessions have it open, want 1", n)
		}
	})
}

// TestNoMixture: who reads while the file is replaced again and again by others of its size sees one of them from beginning to end.
func TestNoMixture(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key, "path", empty(t, s)))
	const size = 8 << 20
	put := func(i int) error {
		_, err := b.Put(t.Context(), "f", bytes.NewReader(bytes.Repeat([]byte{byte(i)}, size)), mounts.PutOptions{Size: size})
		return err
	}
	if err := put(0); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for more := true; more; {
				select {
				case <-done:
					more = false
				default:
				}
				got, err := mounts.ReadFile(t.Context(), b, "f", size+1)
				if err != nil || len(got) != size {
					t.Errorf("%d bytes, %v", len(got), err)
				} else if n := bytes.Count(got, got[:1]); n != size {
					t.Errorf("a mixture: %d bytes of %d are %d", n, size, got[0])
				}
			}
		})
	}
	for i := range 20 {
		if err := put(i); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}
