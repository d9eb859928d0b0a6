package sftp

import (
	"context"
	"strings"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	folderAge  = 3 * time.Second // how long a folder is believed to be one
	maxFolders = 4096
	maxDrops   = 256 // that are remembered, for looks that were under way
)

// folders remembers which names were folders a moment ago, and no links.
type folders struct {
	mu    sync.Mutex
	seen  map[string]time.Time // guarded by mu; until when
	epoch uint64               // guarded by mu; moves with every change of ours that could make a folder something else
	drops [maxDrops]string     // guarded by mu; what changed in the last epochs, each at its number modulo maxDrops
}

// unknown returns the folders above name that have to be looked at, from the top, and the epoch of the answer.
func (f *folders) unknown(name string) (list []string, epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		if until, ok := f.seen[name[:i]]; !ok || now.After(until) {
			list = append(list, name[:i])
		}
	}
	return list, f.epoch
}

// add remembers folders that were found in epoch at the time since.
func (f *folders) add(list []string, epoch uint64, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch-epoch >= maxDrops {
		return
	}
	if f.seen == nil || len(f.seen)+len(list) > maxFolders {
		f.seen = make(map[string]time.Time, len(list))
	}
next:
	for _, name := range list {
		if dir, _ := mounts.Split(name); dir != "." && f.seen[dir].IsZero() { // forgotten meanwhile, and what is below a name must go with it
			continue
		}
		for e := epoch + 1; e <= f.epoch; e++ {
			if mounts.Below(name, f.drops[e%maxDrops]) {
				continue next
			}
		}
		f.seen[name] = since.Add(folderAge)
	}
}

// drop forgets name and what is below it.
func (f *folders) drop(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		f.epoch++
		f.drops[f.epoch%maxDrops] = name
		if _, ok := f.seen[name]; !ok {
			continue // what is below it is asked about together with it
		}
		for have := range f.seen {
			if mounts.Below(have, name) {
				delete(f.seen, have)
			}
		}
	}
}

// guard is the look at the folders above names, in the same flight as what is asked next.
type guard struct {
	b     *Backend
	names []string
	calls []*call
	epoch uint64
	since time.Time
}

// guard starts to look at the folders above names. Wait says whether they are folders.
func (b *Backend) guard(ctx context.Context, w *wire, names ...string) *guard {
	g := &guard{b: b, since: time.Now()}
	for i, name := range names {
		list, epoch := b.folders.unknown(name)
		if i == 0 {
			g.epoch = epoch
		}
		for _, dir := range list {
			g.names = append(g.names, dir)
			g.calls = append(g.calls, w.lstat(ctx, b.path(dir)))
		}
	}
	return g
}

// wait returns nil when all are folders, NotDir for the first that is none, and other errors as they came.
func (g *guard) wait(ctx context.Context) error {
	var first error
	for i, c := range g.calls {
		a, err := c.attrs(ctx)
		if err == nil && a.typ() != mounts.Dir {
			err = refusal("guard", g.names[i], fault.NotDir, nil)
			if a.typ() == mounts.Symlink {
				err = refusal("guard", g.names[i], fault.NotDir, errLink)
			}
		}
		if first == nil {
			first = err
		}
	}
	if first == nil && len(g.names) > 0 {
		g.b.folders.add(g.names, g.epoch, g.since)
	}
	return first
}

// found remembers name, which was asked about together with what g guards, if it is a folder.
func (g *guard) found(name string, a attrs) {
	if a.flags&hasMode != 0 && a.typ() == mounts.Dir && name != "." {
		g.b.folders.add([]string{name}, g.epoch, g.since)
	}
}

// path is the name on the server.
func (b *Backend) path(name string) string {
	if name == "." {
		return b.root
	}
	return strings.TrimSuffix(b.root, "/") + "/" + name
}

// look returns the attributes of name and whether its folders are folders, in one flight.
func (b *Backend) look(ctx context.Context, w *wire, name string) (attrs, error) {
	g := b.guard(ctx, w, name)
	at := w.lstat(ctx, b.path(name))
	if err := g.wait(ctx); err != nil {
		at.forget()
		return attrs{}, err
	}
	a, err := at.attrs(ctx)
	if err == nil {
		g.found(name, a)
	}
	return a, err
}
