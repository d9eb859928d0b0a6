package webdav

import (
	"context"
	"sync"
	"time"
)

// names are locks on single names: shared by those that have the server open a file, exclusive for who publishes it. Neither is held while
// content streams.
type names struct {
	mu   sync.Mutex
	held map[string]*gate // guarded by mu
}

// gate is the lock of one name. It is forgotten when nobody has or wants it.
type gate struct {
	writer  bool
	readers int
	waiting int           // writers; new readers let them go first
	users   int           // who has it or wants it
	changed chan struct{} // closed when something was given back
}

// courtesy is how long a reader waits for writers. One that takes longer is stalled, and the odds are small then.
const courtesy = time.Second

// lock takes name for a writer, rlock for a reader; both fail when ctx ends.
func (n *names) lock(ctx context.Context, name string) (unlock func(), err error) {
	return n.take(ctx, name, true)
}

func (n *names) rlock(ctx context.Context, name string) (unlock func(), err error) {
	patient, cancel := context.WithTimeout(ctx, courtesy)
	defer cancel()
	unlock, err = n.take(patient, name, false)
	if err != nil && ctx.Err() == nil {
		return func() {}, nil
	}
	return unlock, err
}

func (n *names) take(ctx context.Context, name string, write bool) (func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held == nil {
		n.held = map[string]*gate{}
	}
	g := n.held[name]
	if g == nil {
		g = &gate{changed: make(chan struct{})}
		n.held[name] = g
	}
	g.users++
	for g.writer || write && g.readers > 0 || !write && g.waiting > 0 {
		changed := g.changed
		if write {
			g.waiting++
		}
		n.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		n.mu.Lock()
		if write {
			g.waiting--
		}
		if err != nil {
			n.leave(name, g)
			return nil, err
		}
	}
	if write {
		g.writer = true
	} else {
		g.readers++
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if write {
			g.writer = false
		} else {
			g.readers--
		}
		n.leave(name, g)
	}, nil
}

// leave wakes who waits. The caller holds mu.
func (n *names) leave(name string, g *gate) {
	close(g.changed)
	g.changed = make(chan struct{})
	if g.users--; g.users == 0 {
		delete(n.held, name)
	}
}

// hints remember which names are folders that the server wants a slash after, which spares the redirect. They may be wrong.
type hints struct {
	mu    sync.Mutex
	wants bool            // it redirected once; guarded by mu
	names map[string]bool // guarded by mu
}

const maxHints = 4096

func (h *hints) has(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.names[name]
}

// redirected notes that the server wanted a slash after name.
func (h *hints) redirected(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wants = true
	h.add(name)
}

// likely notes that name is a folder, most probably: where the server is one that wants slashes.
func (h *hints) likely(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wants && name != "." {
		h.add(name)
	}
}

// wrong forgets that name is a folder.
func (h *hints) wrong(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.names, name)
}

// add is for callers that hold mu.
func (h *hints) add(name string) {
	if h.names == nil || len(h.names) >= maxHints {
		h.names = map[string]bool{}
	}
	h.names[name] = true
}
