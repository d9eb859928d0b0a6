package webdav

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestNames: one writer or any number of readers have a name, whoever gives up leaves no trace, and in the end nothing is kept.
func TestNames(t *testing.T) {
	var n names
	var all sync.WaitGroup
	var writers, readers atomic.Int32
	for w := range 8 {
		all.Go(func() {
			for i := range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				if i%10 == 9 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rand.IntN(200))*time.Microsecond)
				}
				if (w+i)%3 > 0 {
					if unlock, err := n.rlock(ctx, "f"); err == nil {
						if readers.Add(1); writers.Load() > 0 {
							t.Error("a reader beside a writer")
						}
						readers.Add(-1)
						unlock()
					}
				} else if unlock, err := n.lock(ctx, "f"); err == nil {
					if writers.Add(1) > 1 || readers.Load() > 0 {
						t.Error("a writer beside others")
					}
					writers.Add(-1)
					unlock()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if len(n.held) > 0 {
		t.Errorf("%d names are kept", len(n.held))
	}
	unlock, err := n.lock(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.lock(ended, "g"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second writer: %v", err)
	}
	unlock()
}
