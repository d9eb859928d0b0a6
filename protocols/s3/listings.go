package s3

import (
	"slices"
	"strings"
	"sync"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/event"
	"cellgate/internal/clock"
	"cellgate/policy"
)

// entry is a child of a folder, as small as can be.
type entry struct {
	name  string
	size  int64
	mtime int64    // nanoseconds
	tag   [16]byte // of the entity tag
	parts int32    // behind it: -1 none, 0 opaque
	algo  uint8    // index in inOrder and one, 0 none
	dir   bool
	comp  bool // the checksum is a composite one
}

// compare orders entries as the keys that begin with them are: those of a folder go on with a slash.
func (e *entry) compare(o *entry) int {
	n := min(len(e.name), len(o.name))
	if c := strings.Compare(e.name[:n], o.name[:n]); c != 0 {
		return c
	}
	return int(e.after(n)) - int(o.after(n))
}

// after returns what follows n bytes of the entry's keys, 0 for the end; no name has that byte.
func (e *entry) after(n int) byte {
	switch {
	case n < len(e.name):
		return e.name[n]
	case e.dir:
		return '/'
	}
	return 0
}

// below compares the entry's keys with a position: -1 when all lie before it or on it, 1 when all lie behind, 0 when some of each may.
func (e *entry) below(position string) int {
	n := min(len(e.name), len(position))
	if c := strings.Compare(e.name[:n], position[:n]); c != 0 {
		return c
	}
	if len(position) > len(e.name) { // the position goes on
		next := position[len(e.name)]
		switch {
		case !e.dir || '/' < next:
			return -1
		case '/' > next:
			return 1
		}
		return 0
	}
	if len(position) == len(e.name) && !e.dir {
		return -1
	}
	return 1
}

// listing are children of a folder in order.
type listing struct {
	entries []entry
	from    string // entries before this position are not in it
	more    bool   // there are entries behind the last one
}

// seek returns the index of the first entry with keys behind a position.
func (l *listing) seek(position string) int {
	if position == "" {
		return 0
	}
	i, _ := slices.BinarySearchFunc(l.entries, position, func(e entry, p string) int {
		if e.below(p) < 0 {
			return -1
		}
		return 1
	})
	return i
}

// covers reports whether what follows a position can be read from l.
func (l *listing) covers(position string) bool {
	if position < l.from {
		return false
	}
	return !l.more || l.seek(position) < len(l.entries)
}

// collector keeps all entries of a folder, or, when those are too many, the smallest behind a position.
type collector struct {
	listing
	most  int    // entries that are kept as long as all are
	part  bool   // not all are
	floor *entry // only what is behind it, nil everything
	last  *entry // entries behind it are left out
}

func (c *collector) add(e entry) {
	if c.floor != nil && e.compare(c.floor) <= 0 {
		return
	}
	if c.part {
		if e.below(c.from) < 0 && c.from != "" {
			return
		}
		if c.last != nil && e.compare(c.last) > 0 {
			c.more = true
			return
		}
	}
	e.name = strings.Clone(e.name)
	c.entries = append(c.entries, e)
	if c.part && len(c.entries) >= 2*window {
		c.cut()
	}
}

// full reports whether all that may be kept has come and there is more.
func (c *collector) full() bool { return !c.part && len(c.entries) >= c.most }

// only goes on with the smallest entries behind a position.
func (c *collector) only(position string) {
	c.part, c.from = true, position
	c.entries = slices.DeleteFunc(c.entries, func(e entry) bool { return position != "" && e.below(position) < 0 })
	c.cut()
}

// cut sorts the entries and throws away what is too many.
func (c *collector) cut() {
	slices.SortFunc(c.entries, func(a, b entry) int { return a.compare(&b) })
	if c.part && len(c.entries) > window {
		last := c.entries[window-1]
		c.entries, c.more, c.last = slices.Clone(c.entries[:window]), true, &last
	}
}

// place of a folder in the cache: whose eyes saw it, and what of it.
type listed struct {
	user    string
	address string
	folder  gateway.Path
	prefix  string // of the names
}

// remembered is a listing that may be used for another page.
type remembered struct {
	listing
	at    policy.Place
	since time.Time
	used  uint64
	void  bool // something has changed while it was being read
}

// listings remembers sorted listings between pages. Nothing is older than listedAge, and all are forgotten that an event tells of.
type listings struct {
	events *event.Subscription
	clock  *clock.Clock
	limit  int // entries in all

	mu      sync.Mutex
	known   map[listed]*remembered // guarded by mu
	reading map[*remembered]bool   // being read, guarded by mu
	entries int                    // in known, guarded by mu
	ends    map[[2]string]string   // where the last page of a user and bucket ended, guarded by mu
	turn    uint64                 // guarded by mu
	large   int                    // listings being read that may hold more than window, guarded by mu
}

const (
	listedAge   = time.Minute
	maxListings = 512
	eventQueue  = 1024

	window   = 4096 // entries of a folder that is too large to be remembered
	maxLarge = 4    // listings that may hold more at a time
)

func newListings(bus *event.Bus, clock *clock.Clock, limit int) *listings {
	return &listings{
		events: bus.Subscribe(eventQueue), clock: clock, limit: limit,
		known: make(map[listed]*remembered), reading: make(map[*remembered]bool),
	}
}

// settle obeys the events that have come. Nobody else reads them: whoever does not list needs none. The caller holds mu.
func (l *listings) settle() {
	for {
		select {
		case e := <-l.events.C():
			l.forget(e)
			continue
		default:
		}
		if !l.events.Lost() {
			return
		}
		for k := range l.known {
			l.drop(k)
		}
		for r := range l.reading {
			r.void = true
		}
	}
}

// forget drops the listings that an event makes stale: of the folder it was in, and of what was below it.
func (l *listings) forget(e event.Event) {
	if e.Kind == event.Locked || e.Kind == event.Unlocked {
		return
	}
	stale := func(at policy.Place) bool {
		return touches(e.At, at) || e.From != (policy.Place{}) && touches(e.From, at)
	}
	for k, r := range l.known {
		if stale(r.at) {
			l.drop(k)
		}
	}
	for r := range l.reading {
		r.void = r.void || stale(r.at)
	}
}

// touches reports whether a change of a node shows in the listing of a folder.
func touches(node, folder policy.Place) bool {
	if node.Datasource != folder.Datasource {
		return false
	}
	parent := ""
	if i := strings.LastIndexByte(node.Path, '/'); i >= 0 {
		parent = node.Path[:i]
	}
	path := folder.Path
	if path == "." {
		path = ""
	}
	return path == parent || path == node.Path || strings.HasPrefix(path, node.Path+"/") || node.Path == "" || node.Path == "."
}

func (l *listings) drop(k listed) {
	l.entries -= len(l.known[k].entries)
	delete(l.known, k)
}

// find returns a listing that was remembered and holds what follows a position.
func (l *listings) find(k listed, position string) (*listing, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	r := l.known[k]
	if r == nil {
		return nil, false
	}
	if age := l.clock.Now().Sub(r.since); age > listedAge || age < 0 {
		l.drop(k)
		return nil, false
	}
	if !r.covers(position) {
		return nil, false
	}
	l.turn++
	r.used = l.turn
	return &r.listing, true
}

// begin says that a listing is being read. keep or leave must follow.
func (l *listings) begin(at policy.Place) *remembered {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	r := &remembered{at: at, since: l.clock.Now()}
	l.reading[r] = true
	return r
}

// grow reports whether a listing may hold more than window; shrink must follow.
func (l *listings) grow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.large >= maxLarge {
		return false
	}
	l.large++
	return true
}

func (l *listings) shrink() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.large--
}

// leave forgets what begin said.
func (l *listings) leave(r *remembered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.reading, r)
}

// keep remembers a listing that was read, unless something has changed meanwhile.
func (l *listings) keep(k listed, r *remembered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle()
	delete(l.reading, r)
	if l.known[k] != nil {
		l.drop(k)
	}
	if r.void || len(r.entries) > l.limit {
		return
	}
	for l.entries+len(r.entries) > l.limit || len(l.known) >= maxListings {
		var oldest listed
		least := ^uint64(0)
		for k, o := range l.known {
			if o.used < least {
				oldest, least = k, o.used
			}
		}
		l.drop(oldest)
	}
	l.turn++
	r.used = l.turn
	l.known[k] = r
	l.entries += len(r.entries)
}

// end notes where a page ended whose successor names only the key: then whoever goes on from there has seen that page.
func (l *listings) end(user, bucket, position string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ends == nil || len(l.ends) >= maxListings {
		l.ends = make(map[[2]string]string)
	}
	l.ends[[2]string{user, bucket}] = position
}

// ended reports whether the last page of the user's ended at a position.
func (l *listings) ended(user, bucket, position string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return position != "" && l.ends[[2]string{user, bucket}] == position
}
