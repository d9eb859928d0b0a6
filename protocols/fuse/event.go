package fuse

import (
	"time"

	"cellgate/gateway"
	"cellgate/gateway/event"
)

// queue is how many events may wait. When more happens at once, everything that the kernel remembers is invalidated.
const queue = 4096

// deed is what this mount does or has done to a path.
type deed struct {
	now  int       // how many are doing it
	last time.Time // when the last one was done
}

// ownFor is how long an event may take that tells this mount of its own doings, and ownMost how many of them are remembered. An event that is
// taken for our own by mistake costs no more than the kernel's timeouts.
const (
	ownFor  = 2 * time.Second
	ownMost = 4096
)

// doing notes that what happens to p from now on until the returned function is called is this mount's own doing: the kernel knows of it.
func (f *fsys) doing(p gateway.Path) func() {
	if f.sub == nil {
		return func() {}
	}
	name := p.String()
	f.mu.Lock()
	d := f.own[name]
	d.now++
	f.own[name] = d
	f.mu.Unlock()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		now := time.Now()
		if len(f.own) >= ownMost {
			for name, d := range f.own {
				if d.now == 0 && (now.Sub(d.last) > ownFor/4 || len(f.own) >= 2*ownMost) {
					delete(f.own, name)
				}
			}
		}
		d := f.own[name]
		d.now--
		d.last = now
		f.own[name] = d
	}
}

// ours reports whether an event tells of what this mount did to p.
func (f *fsys) ours(e event.Event, p gateway.Path) bool {
	if e.Protocol != "fuse" || e.Actor != f.s.Subject().Login {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.own[p.String()]
	return ok && (d.now > 0 || time.Since(d.last) < ownFor)
}

// watch begins to follow the core's events. It is a goroutine of its own: the kernel may hold what it is told back until a request has ended.
func (f *fsys) watch() {
	if f.cfg.Events == nil || f.cfg.Place == nil {
		return
	}
	f.sub = f.cfg.Events.Subscribe(queue)
	f.calls.Add(1)
	go func() {
		defer f.calls.Done()
		for {
			select {
			case e, ok := <-f.sub.C():
				if !ok {
					return
				}
				f.heard(e)
				if f.sub.Lost() {
					f.invalidateAll()
				}
			case <-f.life.Done():
				return
			}
		}
	}()
}

// heard makes the kernel forget what an event says has changed.
func (f *fsys) heard(e event.Event) {
	switch e.Kind {
	case event.Locked, event.Unlocked:
		return
	}
	for _, root := range f.roots() {
		base, err := f.tree.path(root)
		if err != nil {
			continue
		}
		at, err := f.cfg.Place(base)
		if err != nil {
			continue
		}
		if rel, ok := relative(at.Datasource, at.Path, e.At.Datasource, e.At.Path); ok {
			f.invalidate(e, root, rel)
		}
		if e.Kind != event.Moved {
			continue
		}
		if rel, ok := relative(at.Datasource, at.Path, e.From.Datasource, e.From.Path); ok {
			f.invalidate(e, root, rel)
		}
	}
}

// roots returns the nodes that stand for places of datasources: the highest on each way down.
func (f *fsys) roots() (all []*node) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	var collect func(n *node, depth int)
	collect = func(n *node, depth int) {
		for _, c := range n.children {
			switch {
			case c.root == c:
				all = append(all, c)
			case depth < 2:
				collect(c, depth+1)
			}
		}
	}
	collect(f.tree.top, 0)
	return all
}

// relative returns what is left of a place below a root, as segments.
func relative(rootAt, root, at, path string) ([]string, bool) {
	if rootAt != at {
		return nil, false
	}
	if root == "." || root == "" {
		return segments(path), true
	}
	if path == root {
		return nil, true
	}
	if len(path) > len(root) && path[len(root)] == '/' && path[:len(root)] == root {
		return segments(path[len(root)+1:]), true
	}
	return nil, false
}

func segments(path string) (all []string) {
	for start := 0; start <= len(path); {
		end := start
		for end < len(path) && path[end] != '/' {
			end++
		}
		if word := path[start:end]; word != "" && word != "." {
			all = append(all, word)
		}
		start = end + 1
	}
	return all
}

// invalidate makes the kernel forget the node below root that segments lead to.
func (f *fsys) invalidate(e event.Event, root *node, rel []string) {
	parent, n, last := root, root, ""
	f.tree.mu.Lock()
	for i, word := range rel {
		if n == nil {
			f.tree.mu.Unlock()
			return // the kernel knows nothing of the folder
		}
		parent, last = n, word
		if n = n.children[word]; n == nil && i < len(rel)-1 {
			f.tree.mu.Unlock()
			return
		}
	}
	p, err := f.tree.pathOf(parent)
	f.tree.mu.Unlock()
	if err == nil && last != "" {
		p, err = p.Join(last)
	}
	if err != nil || f.ours(e, p) {
		return
	}
	// Offsets below 0: attributes only, and the kernel looks at those before it uses what it has cached of the content. To drop the content at
	// once it would have to wait for reads that are under way.
	if n != nil {
		f.srv.InodeNotify(n.id, -1, 0)
	}
	if last == "" {
		return
	}
	if e.Kind != event.Modified && e.Kind != event.Props || n == nil {
		f.srv.InodeNotify(parent.id, -1, 0)
		f.srv.EntryNotify(parent.id, last)
	}
}

// invalidateAll makes the kernel forget everything.
func (f *fsys) invalidateAll() {
	for _, n := range f.tree.all() {
		f.srv.InodeNotify(n.id, -1, 0)
		f.tree.mu.Lock()
		names := append([]name(nil), n.names...)
		f.tree.mu.Unlock()
		for _, at := range names {
			f.srv.EntryNotify(at.parent.id, at.name)
		}
	}
}
