package cache

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	misses  = 3                     // names asked for in vain before their folder is listed
	patient = 12                    // times Age, for which a large folder is not listed ahead again
	slow    = 50 * time.Millisecond // what a listing may wait for its own client before others stop waiting for it
)

// state says what is remembered of a name.
type state uint8

const (
	unknown state = iota // something was, and changed since: ask
	present
	absent
)

// memory is what is remembered of names. Its methods lock it, but those that endWrite's done calls.
type memory struct {
	age     time.Duration
	max     int // names
	largest int // names of a listing that is kept
	clock   *clock.Clock
	folds   bool

	mu      sync.Mutex // guards all below
	dirs    map[string]*dir
	order   *list.List     // of the dirs, the last used first
	count   int            // dirs and their children
	deep    map[string]int // dirs at or below a key
	stats   map[string]*flight
	lists   map[string]*flight // those that others may wait for
	flights map[*flight]struct{}
	writes  map[*write]struct{}
	open    map[*writer]struct{}
	linked  bool // hard links were made on a backend that does not count them
}

// dir is what is remembered of the names in a folder.
type dir struct {
	key, name string // name as it was spelled first
	at        *list.Element
	listed    time.Time         // when the listing was asked for that is complete but for what changed since; zero: none
	children  map[string]*child // by the key of the last segment
	misses    int
	since     time.Time // of the first miss
	hits      int       // answers that the listing gave
	large     time.Time // not to be listed ahead until then
}

type child struct {
	info   mounts.Info // of an absent one only its Name
	what   state
	at     time.Time // when it was asked for
	listed bool      // Name is what a listing says
	free   bool      // of an unknown one: it was absent before the last change
	folder bool      // of an unknown one: it still is a folder, as of at; what changed are its times
	rough  bool      // of an unknown one: a file that was written here, of which only the time is not known
}

// write is a change that is under way.
type write struct {
	keys  []string
	mixed bool // another one was under way at the same names
}

// writer is a file that is open for writing.
type writer struct{ key string }

func newMemory(age time.Duration, entries int, c *clock.Clock, folds bool) *memory {
	return &memory{
		age: age, max: entries, largest: max(entries/5, 1), clock: c, folds: folds,
		dirs: map[string]*dir{}, order: list.New(), deep: map[string]int{}, stats: map[string]*flight{}, lists: map[string]*flight{},
		flights: map[*flight]struct{}{}, writes: map[*write]struct{}{}, open: map[*writer]struct{}{},
	}
}

// key is what all spellings of a name share.
func (m *memory) key(name string) string {
	if m.folds {
		return Fold(name)
	}
	return name
}

// split is mounts.Split, with a parent "" of the root.
func split(key string) (dir, base string) {
	if key == "." {
		return "", "."
	}
	return mounts.Split(key)
}

// same reports whether an answer for the spelling a is one for b.
func (m *memory) same(a, b string) bool { return a == b || m.folds && strings.EqualFold(a, b) }

func (m *memory) fresh(t time.Time) bool {
	old := m.clock.Now().Sub(t)
	return !t.IsZero() && old >= 0 && old < m.age
}

// dir returns what is known of the folder name, nil if nothing for that spelling.
func (m *memory) dir(name string) *dir {
	d := m.dirs[m.key(name)]
	if d == nil || !m.same(d.name, name) {
		return nil
	}
	m.order.MoveToFront(d.at)
	return d
}

// makeDir is dir, but there is one then.
func (m *memory) makeDir(name string) *dir {
	if d := m.dir(name); d != nil {
		return d
	}
	key := m.key(name)
	if d := m.dirs[key]; d != nil { // another spelling
		m.drop(d)
	}
	d := &dir{key: key, name: name, children: map[string]*child{}}
	d.at = m.order.PushFront(d)
	m.dirs[key] = d
	m.count++
	m.ancestors(key, 1)
	return d
}

func (m *memory) drop(d *dir) {
	delete(m.dirs, d.key)
	m.order.Remove(d.at)
	m.count -= 1 + len(d.children)
	m.ancestors(d.key, -1)
}

// ancestors counts n more dirs at or below key and all above it.
func (m *memory) ancestors(key string, n int) {
	for {
		if m.deep[key] += n; m.deep[key] == 0 {
			delete(m.deep, key)
		}
		if key == "" || key == "." {
			return
		}
		key, _ = split(key)
	}
}

func (m *memory) evict() {
	for m.count > m.max && m.order.Len() > 0 {
		m.drop(m.order.Back().Value.(*dir))
	}
}

func (d *dir) put(m *memory, base string, c *child) {
	if d.children[base] == nil {
		m.count++
	}
	d.children[base] = c
}

// stat returns what is remembered of name.
func (m *memory) stat(name string) (mounts.Info, state) {
	m.mu.Lock()
	defer m.mu.Unlock()
	info, _, what := m.find(name)
	return info, what
}

// untimed returns what is remembered of a file that was written here, which is all but its time.
func (m *memory) untimed(name string) (mounts.Info, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, base := split(name)
	d := m.dir(parent)
	if d == nil || m.isOpen(m.key(name)) {
		return mounts.Info{}, false
	}
	c := d.children[m.key(base)]
	if c == nil || !c.rough || !m.fresh(c.at) || !m.same(c.info.Name, base) {
		return mounts.Info{}, false
	}
	return c.info, true
}

// find returns what is remembered of name, and since when.
func (m *memory) find(name string) (mounts.Info, time.Time, state) {
	if m.isOpen(m.key(name)) {
		return mounts.Info{}, time.Time{}, unknown
	}
	for at, exact := name, true; ; exact = false {
		parent, base := split(at)
		if d := m.dir(parent); d != nil {
			c := d.children[m.key(base)]
			switch {
			case c == nil && m.fresh(d.listed):
				d.hits++
				return mounts.Info{}, d.listed, absent
			case c == nil || !m.fresh(c.at) || !m.same(c.info.Name, base):
			case c.what == absent:
				return mounts.Info{}, c.at, absent
			case c.what == present && exact:
				d.hits++
				info := c.info
				if m.folds {
					info.Name = base
				}
				return info, c.at, present
			}
			if c != nil && !exact {
				return mounts.Info{}, time.Time{}, unknown // the folder is there, or may be
			}
		}
		if parent == "" || parent == "." {
			return mounts.Info{}, time.Time{}, unknown
		}
		at = parent // a missing folder has nothing in it
	}
}

// list returns the remembered listing of a folder, when it is whole.
func (m *memory) list(name string) ([]mounts.Info, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.dir(name)
	if d == nil || !m.fresh(d.listed) {
		return nil, false
	}
	for w := range m.open {
		if parent, _ := split(w.key); parent == d.key {
			return nil, false
		}
	}
	infos := make([]mounts.Info, 0, len(d.children))
	for _, c := range d.children {
		switch {
		case c.what == absent:
		case c.what == unknown || !c.listed:
			return nil, false
		default:
			infos = append(infos, c.info)
		}
	}
	d.hits += misses
	return infos, true
}

func (m *memory) ageOf(name string) (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Now()
	if d := m.dir(name); d != nil && m.fresh(d.listed) {
		return now.Sub(d.listed), true
	}
	if _, at, what := m.find(name); what != unknown {
		return now.Sub(at), true
	}
	return 0, false
}

func (m *memory) folder(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.dir(name); d != nil && m.fresh(d.listed) {
		return true
	}
	if info, _, what := m.find(name); what != unknown {
		return what == present && info.IsDir()
	}
	parent, base := split(name)
	d := m.dir(parent)
	if d == nil {
		return false
	}
	c := d.children[m.key(base)]
	return c != nil && c.folder && m.fresh(c.at) && m.same(c.info.Name, base)
}

// missed counts that name was asked for in vain, and says whether its folder should be listed instead of asking for it.
func (m *memory) missed(name string) bool {
	parent, base := split(name)
	if parent == "" || m.age <= 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.makeDir(parent)
	defer m.evict()
	now := m.clock.Now()
	if m.fresh(d.listed) || now.Before(d.large) || m.isOpen(m.key(name)) {
		return false // it is about this name only, or listing is no good
	}
	if c := d.children[m.key(base)]; c != nil && c.info.Links > 1 && !c.info.IsDir() {
		return false
	}
	if !m.fresh(d.since) {
		d.misses, d.since = 0, now
		if d.hits > misses { // the last listing was of use
			return true
		}
	}
	d.misses++
	return d.misses >= misses
}

// tooLarge says that listing the folder ahead did not work out.
func (m *memory) tooLarge(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.makeDir(name).large = m.clock.Now().Add(patient * m.age)
	m.evict()
}

func (m *memory) invalidate(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.touch(m.key(name))
}

// touch takes a name, all below it and the attributes of its folder out of memory.
func (m *memory) touch(key string) {
	m.stale(key, false)
	m.below(key)
	if parent, _ := split(key); parent != "" {
		m.stale(parent, true)
	}
}

// stale makes the attributes of key unknown, or with timely only such as change with the content of a folder.
func (m *memory) stale(key string, timely bool) {
	parent, base := split(key)
	if d := m.dirs[parent]; d != nil {
		switch c := d.children[base]; {
		case c == nil && !d.listed.IsZero():
			d.put(m, base, &child{free: m.fresh(d.listed)})
		case c == nil:
		case timely && c.what == present && c.info.ModTime.IsZero() && c.info.Change == 0 && c.info.Tag == "":
		default:
			c.free = c.what == absent
			c.folder = timely && (c.folder || c.what == present && c.info.IsDir())
			c.rough = false
			c.what = unknown // and not a new one: its Name may be a listing's
		}
	}
	for f := range m.flights {
		if f.list && f.key == parent {
			f.touched[base] = true
		} else if !f.list && f.key == key {
			m.spoil(f)
		}
	}
	m.evict()
}

// below forgets what lies in key and further down.
func (m *memory) below(key string) {
	if m.deep[key] > 0 || key == "." {
		for k, d := range m.dirs {
			if k != "" && mounts.Below(k, key) {
				m.drop(d)
			}
		}
	}
	for f := range m.flights {
		if mounts.Below(f.key, key) && (f.list || f.key != key) {
			m.spoil(f)
		}
	}
}

// beginWrite says that names are about to be changed.
func (m *memory) beginWrite(names ...string) *write {
	w := &write{}
	for _, name := range names {
		w.keys = append(w.keys, m.key(name))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for other := range m.writes {
		if overlap(w.keys, other.keys) {
			w.mixed, other.mixed = true, true
		}
	}
	m.writes[w] = struct{}{}
	return w
}

func overlap(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if mounts.Below(x, y) || mounts.Below(y, x) {
				return true
			}
		}
	}
	return false
}

// endWrite says that they have been, and lets done remember how when that is sure.
func (m *memory) endWrite(w *write, err error, done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.writes, w)
	for _, key := range w.keys {
		m.touch(key)
		if m.linked {
			m.below(".") // another name of the same file may be anywhere
			m.stale(key, false)
		}
		if kind := fault.KindOf(err); err != nil && (kind == fault.NotExist || kind == fault.NotDir) {
			for at := key; at != "" && at != "."; { // what is believed of the folders above may be wrong
				at, _ = split(at)
				m.stale(at, false)
				if d := m.dirs[at]; d != nil {
					m.drop(d)
				}
			}
		}
	}
	if err == nil && !w.mixed && done != nil && m.age > 0 {
		done()
		m.evict()
	}
}

// know remembers a file that was just written. The caller holds mu.
func (m *memory) know(name string, info mounts.Info) {
	parent, base := split(name)
	d := m.makeDir(parent)
	old := d.children[m.key(base)]
	c := &child{info: info, what: present, at: m.clock.Now(), listed: !m.folds || old != nil && old.free}
	if info.Links > 1 || info.Name != base || info.ModTime.IsZero() || m.isOpen(m.key(name)) {
		c.what = unknown
		c.rough = info.Links <= 1 && info.Name == base && !m.isOpen(m.key(name)) // all but its time is known
	}
	d.put(m, m.key(base), c)
}

// gone remembers that nothing has the name any more. The caller holds mu.
func (m *memory) gone(name string) {
	parent, base := split(name)
	m.makeDir(parent).put(m, m.key(base), &child{info: mounts.Info{Name: base}, what: absent, at: m.clock.Now()})
}

// emptyFolder remembers that nothing is in a folder that was just made; its attributes are not known. The caller holds mu.
func (m *memory) emptyFolder(name string) {
	d := m.makeDir(name)
	d.listed, d.hits = m.clock.Now(), misses+1
}

func (m *memory) isOpen(key string) bool {
	if len(m.open) == 0 {
		return false
	}
	for w := range m.open {
		if w.key == key {
			return true
		}
	}
	return false
}

// opened says that a file is open for writing: until closed, its name is not answered from memory.
func (m *memory) opened(name string) *writer {
	w := &writer{key: m.key(name)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open[w] = struct{}{}
	m.written(w)
	return w
}

func (m *memory) closed(w *writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, w)
	m.written(w)
}

// written says that the content of an open file has changed. The caller holds mu.
func (m *memory) written(w *writer) {
	m.stale(w.key, false)
	if m.linked {
		m.below(".")
	}
}

// moveOpen lets open files follow their names. The caller holds mu.
func (m *memory) moveOpen(from, to string) {
	from, to = m.key(from), m.key(to)
	for w := range m.open {
		if mounts.Below(w.key, from) {
			w.key = to + w.key[len(from):]
		}
	}
}
