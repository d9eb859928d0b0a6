package cache

import (
	"context"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// flight is a call of the backend that is under way, whose answer may be remembered and shared. It runs in the call of the one who leads it;
// when he goes away, one of those who wait leads anew.
type flight struct {
	key, name string
	list      bool
	start     time.Time
	done      chan struct{} // closed when the answer is there, or will not be shared

	spoiled bool            // what it is about changes meanwhile: not to be remembered; guarded by memory.mu
	touched map[string]bool // of a listing, the children that change meanwhile; guarded by memory.mu
	over    bool            // done is closed; guarded by memory.mu

	// Written before done is closed.
	info  mounts.Info
	err   error
	again bool // no answer: ask yourself
	kept  bool // the listing is remembered

	away atomic.Int64 // Unix nanoseconds since when a listing waits for its own client, 0 when it does not
	lost atomic.Int64 // nanoseconds it waited for it before
}

// join returns the call under way for name that may be waited for, or a new one that the caller has to make. Alone does not wait for others.
func (m *memory) join(name string, list, alone bool) (f *flight, lead bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	of := m.stats
	if list {
		of = m.lists
	}
	if f := of[name]; f != nil && !alone {
		return f, false
	}
	f = &flight{key: m.key(name), name: name, list: list, start: m.clock.Now(), done: make(chan struct{}), touched: map[string]bool{}}
	of[name] = f
	m.flights[f] = struct{}{}
	return f, true
}

// witness returns a call for name that nobody waits for.
func (m *memory) witness(name string) *flight {
	f := &flight{key: m.key(name), name: name, start: m.clock.Now(), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flights[f] = struct{}{}
	return f
}

// leave lets nobody join f any more.
func (m *memory) leave(f *flight) {
	of := m.stats
	if f.list {
		of = m.lists
	}
	if of[f.name] == f {
		delete(of, f.name)
	}
}

func (m *memory) spoil(f *flight) {
	f.spoiled = true
	m.leave(f)
}

func (m *memory) land(f *flight) {
	delete(m.flights, f)
	m.leave(f)
	if !f.over {
		f.over = true
		close(f.done)
	}
}

// abandon says that the answer of f will not be kept: who waits need not.
func (m *memory) abandon(f *flight) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leave(f)
	if !f.over {
		f.over = true
		close(f.done)
	}
}

// landStat ends a Stat.
func (m *memory) landStat(f *flight, info mounts.Info, err error, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f.info, f.err, f.again = info, err, again
	defer m.land(f)
	missing := err != nil && fault.KindOf(err) == fault.NotExist
	if f.spoiled || again || m.age <= 0 || err != nil && !missing {
		return
	}
	parent, base := split(f.name)
	d := m.makeDir(parent)
	defer m.evict()
	old := d.children[m.key(base)]
	if old != nil && old.at.After(f.start) {
		return
	}
	c := &child{info: info, what: present, at: f.start, listed: !m.folds}
	switch {
	case missing:
		c.info, c.what = mounts.Info{Name: base}, absent
	case info.Links > 1 && !info.IsDir(): // changes through its other names are not seen
		c.what = unknown
	case old != nil && old.listed && m.folds:
		c.info.Name, c.listed = old.info.Name, true
	}
	if !missing && info.Name != base && !m.folds || m.isOpen(f.key) {
		c.what = unknown
	}
	d.put(m, m.key(base), c)
}

// landList ends a listing, complete or not.
func (m *memory) landList(f *flight, infos []mounts.Info, complete bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.land(f)
	if kind := fault.KindOf(err); err != nil && (kind == fault.NotExist || kind == fault.NotDir) {
		m.touch(f.key)
	}
	if !complete || f.spoiled {
		return
	}
	d := m.makeDir(f.name)
	if d.listed.After(f.start) {
		return
	}
	defer m.evict()
	old := d.children
	m.count -= len(old)
	d.children = make(map[string]*child, len(infos))
	for _, info := range infos {
		key := m.key(info.Name)
		if d.children[key] != nil { // two that we cannot tell apart
			m.drop(d)
			return
		}
		c := &child{info: info, what: present, at: f.start, listed: true}
		if info.Links > 1 && !info.IsDir() {
			c.what = unknown
		}
		d.put(m, key, c)
	}
	for base := range f.touched {
		c := old[base]
		if c == nil || !m.fresh(c.at) {
			c = &child{}
		} else if now := d.children[base]; now != nil && c.what == present && m.folds {
			c.listed = now.info.Name == c.info.Name
		}
		d.put(m, base, c)
	}
	d.listed, d.misses, d.hits, d.large = f.start, 0, 0, time.Time{}
	f.kept = true
}

// leave and enter tell that the listing waits for its own client, and no more.
func (f *flight) leave() { f.away.Store(time.Now().UnixNano()) }

func (f *flight) enter() {
	f.lost.Add(time.Now().UnixNano() - f.away.Load())
	f.away.Store(0)
}

// wait waits for another's listing and reports whether it is remembered now. It gives up when that waits for a slow client.
func (f *flight) wait(ctx context.Context) bool {
	tick := time.NewTicker(slow / 2)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			return f.kept
		case <-ctx.Done():
			return false
		case <-tick.C:
			lost := f.lost.Load()
			if away := f.away.Load(); away > 0 {
				lost += time.Now().UnixNano() - away
			}
			if time.Duration(lost) > slow {
				return false
			}
		}
	}
}
