package writeback_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"

	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/writeback"
)

// slowed is a backend each of whose calls takes some time.
func slowed(next mounts.Backend, delay time.Duration) mounts.Backend {
	return mounts.Around(next, mounts.Hooks{Call: func(ctx context.Context, op, name string, do func() error) error {
		if op != "Close" {
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return fault.Wrap("slow."+op, name, ctx.Err())
			}
		}
		return do()
	}})
}

func folder(t *testing.T, dir string) mounts.Backend {
	b, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": dir, "create": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func contentOf(name string, i int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%s version %d\n", name, i)), 1+i%300)
}

// TestKill kills a process that puts files through a spool onto a slow folder, again and again; whatever it had acknowledged is there once
// another process has uploaded what was left.
func TestKill(t *testing.T) {
	if dir := os.Getenv("CELLGATE_WRITEBACK_KILL"); dir != "" {
		putForEver(t, dir)
		return
	}
	dir := t.TempDir()
	acknowledged := map[string]int{} // the last version of each name
	removed := map[string]int{}
	total, pending := 0, 0
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "CELLGATE_WRITEBACK_KILL="+dir, "CELLGATE_WRITEBACK_ROUND="+strconv.Itoa(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(300*time.Millisecond+rand.N(500*time.Millisecond), func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			word := strings.Fields(lines.Text())
			if len(word) != 3 {
				continue
			}
			i, err := strconv.Atoi(word[2])
			if err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			switch word[0] {
			case "put":
				acknowledged[word[1]] = max(acknowledged[word[1]], i)
				total++
			case "removed":
				removed[word[1]] = max(removed[word[1]], i)
			default:
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		cmd.Wait()
	}
	next := folder(t, filepath.Join(dir, "files"))
	b := open(t, next, writeback.Config{Dir: filepath.Join(dir, "spool")})
	defer b.Close()
	pending = len(b.Pending())
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if total < 50 || pending == 0 {
		t.Errorf("%d Puts were acknowledged and %d pending at the end: that proves nothing", total, pending)
	}
	for name, i := range acknowledged {
		got, err := mounts.ReadFile(t.Context(), next, name, 1<<20)
		if removed[name] >= i && fault.KindOf(err) == fault.NotExist {
			continue
		}
		version, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(strings.SplitN(string(got), "\n", 2)[0], name+" version ")))
		// A later version may have come without having been acknowledged, an earlier one may not.
		if err != nil || version < i || !bytes.Equal(got, contentOf(name, version)) {
			t.Errorf("%s holds version %d of %d bytes, %v; acknowledged was %d", name, version, len(got), err, i)
		}
	}
	for name, i := range removed {
		if _, err := next.Stat(t.Context(), name); i > acknowledged[name] && err == nil {
			got, _ := mounts.ReadFile(t.Context(), next, name, 1<<20)
			version, _ := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(strings.SplitN(string(got), "\n", 2)[0], name+" version ")))
			if version <= i {
				t.Errorf("%s came back after its removal, version %d of %d", name, version, i)
			}
		}
	}
}

// putForEver puts versions of some files and says which were acknowledged, until it is killed.
func putForEver(t *testing.T, dir string) {
	b := open(t, slowed(folder(t, filepath.Join(dir, "files")), 20*time.Millisecond), writeback.Config{Dir: filepath.Join(dir, "spool"), Workers: 4})
	round, _ := strconv.Atoi(os.Getenv("CELLGATE_WRITEBACK_ROUND"))
	var out sync.Mutex
	say := func(what, name string, i int) {
		out.Lock()
		defer out.Unlock()
		fmt.Fprintf(os.Stdout, "%s %s %d\n", what, name, i)
	}
	var all sync.WaitGroup
	for c := range 3 {
		all.Go(func() {
			for i := round*1_000_000 + 1; ; i++ {
				name := fmt.Sprintf("c%d-%d", c, i%40)
				if _, err := b.Put(t.Context(), name, bytes.NewReader(contentOf(name, i)), mounts.PutOptions{Size: -1}); err != nil {
					t.Error(err)
					return
				}
				say("put", name, i)
				if i%25 == 0 {
					if err := b.Remove(t.Context(), name); err == nil {
						say("removed", name, i)
					}
				}
			}
		})
	}
	all.Wait()
}

// TestSample opens a spool as it was written when the format was made.
func TestSample(t *testing.T) {
	dir := t.TempDir()
	const sample = "0000000000000001.put"
	content, err := os.ReadFile(filepath.Join("testdata", sample))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, sample), content, 0o600); err != nil {
		t.Fatal(err)
	}
	next := mem.New(mem.Config{})
	b := open(t, next, writeback.Config{Dir: dir})
	defer b.Close()
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := next.Stat(t.Context(), "hello.txt")
	if err != nil || info.Mode != 0o640 || !info.ModTime.Equal(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)) {
		t.Errorf("%+v, %v", info, err)
	}
	mounttest.Script(t, next, `cat hello.txt -> "hello, spool"`)
}

func BenchmarkPut(b *testing.B) {
	const delay = 40 * time.Millisecond
	content := bytes.Repeat([]byte("x"), 4<<10)
	put := func(b *testing.B, m mounts.Backend) {
		for i := 0; b.Loop(); i++ {
			if _, err := mounts.WriteFile(b.Context(), m, fmt.Sprintf("d/%d", i), content); err != nil {
				b.Fatal(err)
			}
		}
	}
	fast := mem.New(mem.Config{})
	if err := fast.Mkdir(b.Context(), "d"); err != nil {
		b.Fatal(err)
	}
	slow := slowed(fast, delay)
	b.Run("direct", func(b *testing.B) { put(b, slow) })
	b.Run("writeback", func(b *testing.B) {
		w := open(b, slow, writeback.Config{})
		put(b, w)
		b.StopTimer()
		w.Close()
	})
}
