package mem

import (
	"context"
	"errors"
	"iter"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const backlog = 4096 // changes a slow watcher may lag behind before it misses some

var errMissed = errors.New("changes may have been missed")

// watch is one running Watch.
type watch struct {
	wake   chan struct{} // of capacity 1: something is pending
	mu     sync.Mutex
	names  []string        // pending, guarded by mu
	known  map[string]bool // the pending ones, guarded by mu
	missed bool            // guarded by mu
	ended  bool            // guarded by mu
}

// Watch implements mounts.Watcher. Changes are reported once while they wait to be seen; with too many the error pair comes instead.
func (b *Backend) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		if err := b.begin(ctx, "Watch", ".", false); err != nil {
			yield(mounts.Change{}, err)
			return
		}
		w := &watch{wake: make(chan struct{}, 1), known: map[string]bool{}}
		b.watchMu.Lock()
		b.watches[w] = true
		b.watchMu.Unlock()
		defer func() {
			b.watchMu.Lock()
			delete(b.watches, w)
			b.watchMu.Unlock()
		}()
		for {
			names, missed, ended := w.take()
			if missed && !yield(mounts.Change{}, fault.New("mounts/mem.Watch", "", fault.Busy, errMissed)) {
				return
			}
			for _, name := range names {
				if !yield(mounts.Change{Name: name}, nil) {
					return
				}
			}
			if ended || b.closed.Load() {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
		}
	}
}

func (w *watch) take() (names []string, missed, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	names, missed, ended = w.names, w.missed, w.ended
	w.names, w.missed = nil, false
	clear(w.known)
	return names, missed, ended
}

func (w *watch) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.signal()
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tell reports a change of name to all watchers. It never blocks.
func (b *Backend) tell(name string) {
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	for w := range b.watches {
		w.mu.Lock()
		switch {
		case w.known[name]:
		case len(w.names) >= backlog:
			w.missed = true
		default:
			w.known[name] = true
			w.names = append(w.names, name)
		}
		w.mu.Unlock()
		w.signal()
	}
}
