package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// inject makes system calls of the running box fail, as strace's -e inject says, until the returned function is called. That returns the
// trace.
func (b *box) inject(calls, fault string) (end func() string) {
	b.t.Helper()
	cmd := exec.Command(program(b.t, "strace"), "-f", "-y", "-p", fmt.Sprint(b.pid()), "-e", "trace="+calls, "-e", "inject="+fault)
	var out safeBuffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var once sync.Once
	end = func() string {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGINT) // it detaches
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				_ = cmd.Process.Kill()
			}
		})
		return out.String()
	}
	b.t.Cleanup(func() { end() })
	for range 500 {
		text := out.String()
		if strings.Contains(text, "Operation not permitted") {
			end()
			b.t.Skipf("strace may not attach here: %s", text)
		}
		if strings.Contains(text, "attached") {
			time.Sleep(100 * time.Millisecond)
			return end
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatalf("strace does not attach: %s", out.String())
	return end
}

var (
	syncFailed = regexp.MustCompile(`(?:fsync|fdatasync)\(\d+<([^>]+)>\) += -1 EIO .*INJECTED`)
	renamed    = regexp.MustCompile(`renameat2?\((?:AT_FDCWD|\d+)<([^>]+)>, "([^"]+)", .*\) += 0`)
)

// D07: when the k-th sync fails, the operation fails towards its client; the file it could not make durable is never published by a later
// success; and without a restart everything works again and is as the manifest says.
func TestD07SyncFails(t *testing.T) {
	t.Parallel()
	program(t, "strace")
	b := start(t, common)
	n := seed(t)
	var writers []*writer
	for i := range 3 {
		c := b.as("alice")
		dir := fmt.Sprintf("/docs/w%d", i)
		c.want("MKCOL", dir, "", 201)
		writers = append(writers, newWriter(c, dir, n, i))
	}
	ks := []int{1, 2, 3, 5, 8, 13}
	if testing.Short() {
		ks = ks[:2]
	}
	var failed, injected int
	for _, k := range ks {
		end := b.inject("fsync,fdatasync,renameat,renameat2", fmt.Sprintf("fsync,fdatasync:error=EIO:when=%d", k))
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		var refusals atomic.Int32
		var wg sync.WaitGroup
		for _, w := range writers {
			wg.Go(func() {
				for ctx.Err() == nil && refusals.Load() < 6 {
					_, err := w.step(context.Background()) // to its end: what is cut off may still come true later
					switch {
					case errors.As(err, new(*refused)):
						refusals.Add(1)
						w.verify(t)
					case err != nil:
						t.Error(err)
						return
					}
				}
			})
		}
		for ctx.Err() == nil && refusals.Load() == 0 {
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond)
		cancel()
		wg.Wait()
		trace := end()
		dirty := map[string]bool{}
		for line := range strings.Lines(trace) {
			if m := syncFailed.FindStringSubmatch(line); m != nil {
				injected++
				if strings.Contains(m[1], "/.cellgate/") {
					dirty[m[1]] = true
				}
			}
			if m := renamed.FindStringSubmatch(line); m != nil && dirty[m[1]+"/"+m[2]] {
				t.Errorf("k=%d: %s was published though its sync had failed", k, m[2])
			}
		}
		failed += int(refusals.Load())
		// Healthy without a restart: everybody can write at once, and what is there is what was said.
		eventually(t, 10*time.Second, "the box is ready again", func() bool {
			r, err := b.raw("", "GET /readyz", nil, "")
			return err == nil && r.status == 200
		})
		for _, w := range writers {
			w.verify(t)
			if _, err := w.step(t.Context()); err != nil {
				t.Errorf("k=%d: after the fault: %v", k, err)
			}
			w.verify(t)
		}
		b.cellgate("fsck", "--repair") // what could not be cleared away then is now
		b.sound()
		if t.Failed() {
			t.Fatalf("at k=%d\n%s", k, tail(trace, 3000))
		}
	}
	if injected == 0 || failed == 0 {
		t.Errorf("%d syncs failed and %d operations were refused: this shows nothing", injected, failed)
	}
	b.kill()
	b.serve()
	for _, w := range writers {
		w.verify(t)
	}
	b.sound()
	t.Logf("%d syncs failed, %d operations were refused, none claimed", injected, failed)
}
