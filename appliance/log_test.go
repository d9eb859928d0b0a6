package appliance

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// writes is an output that remembers each write.
type writes struct {
	mu  sync.Mutex
	all []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(bytes.Clone(p)))
	return len(p), nil
}

// Request lines are written together, others at once, and the order is kept.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out writes
		l := &lines{out: &out}
		log := l.logger(Log{Level: "info"}).With("box", 1)
		log.Info(requestLine, "n", 1)
		log.Info(requestLine, "n", 2)
		if len(out.all) != 0 {
			t.Errorf("request lines were not held: %q", out.all)
		}
		log.Info("starting")
		if len(out.all) != 1 || strings.Count(out.all[0], "\n") != 3 || !strings.HasSuffix(out.all[0], "msg=starting box=1\n") {
			t.Errorf("another line did not take them along: %q", out.all)
		}
		log.Info(requestLine, "n", 3)
		time.Sleep(2 * linesWait)
		synctest.Wait()
		if len(out.all) != 2 || !strings.Contains(out.all[1], "n=3") {
			t.Errorf("a held line was not written in time: %q", out.all)
		}
		log.Warn(requestLine, "n", 4)
		if len(out.all) != 3 {
			t.Errorf("a warning was held: %q", out.all)
		}
		log.Info(requestLine, slog.String("long", strings.Repeat("x", linesSize)))
		if len(out.all) != 4 {
			t.Errorf("more was held than should be: %d writes", len(out.all))
		}
		log.Info(requestLine, "n", 5)
		if err := l.Flush(); err != nil || len(out.all) != 5 {
			t.Errorf("%d writes, %v", len(out.all), err)
		}
	})
}
