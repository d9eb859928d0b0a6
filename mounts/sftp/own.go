package sftp

import (
	"maps"
	"sync"
	"time"
)

const (
	ownAge = 2 * settled // how long a file of our own making is remembered: until it is old enough to be compared by its times
	maxOwn = 256         // names from which those are dropped that nothing is known of any more
)

// own remembers which files this backend published a moment ago, and what they were. As long as none of its calls has begun to change such a
// name, a handle opened by it is of the same file as one that was opened before.
type own struct {
	mu    sync.Mutex
	names map[string]*ownName // guarded by mu
	moves int                 // guarded by mu; renames under way, which may be of folders
	mute  time.Time           // guarded by mu; until then nothing is known of any name
}

// ownName is what is known of a name.
type ownName struct {
	changing int       // publications under way
	mute     time.Time // until then one that failed may still be carried out
	last     *ownFile
}

// ownFile is one publication. What two looks find is the same file when it is the same pointer.
type ownFile struct {
	attrs attrs
	until time.Time
}

// change is called before name gets another file, and what it returns afterwards: with what the file is, or nil after a failure.
func (o *own) change(name string) func(result *attrs) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names == nil {
		o.names = map[string]*ownName{}
	}
	n := o.names[name]
	if n == nil {
		n = &ownName{}
		o.names[name] = n
	}
	n.changing++
	n.last = nil
	return func(result *attrs) {
		o.mu.Lock()
		defer o.mu.Unlock()
		now := time.Now()
		n.changing--
		n.last = nil
		switch {
		case result == nil:
			n.mute = now.Add(ownAge)
		case n.changing == 0 && o.moves == 0 && now.After(n.mute) && now.After(o.mute) && result.length() > fanOut:
			n.last = &ownFile{attrs: result.still(), until: now.Add(ownAge)}
		}
		if n.idle(now) {
			delete(o.names, name)
		}
		if len(o.names) > maxOwn {
			maps.DeleteFunc(o.names, func(_ string, n *ownName) bool { return n.idle(now) })
		}
	}
}

// idle reports whether nothing is to be remembered of n.
func (n *ownName) idle(now time.Time) bool {
	return n.changing == 0 && now.After(n.mute) && (n.last == nil || now.After(n.last.until))
}

// move is called before a rename, and what it returns afterwards. All that was known is forgotten, for it may be of a folder.
func (o *own) move() func(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moves++
	o.forget()
	return func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.moves--
		o.forget()
		if err != nil {
			o.mute = time.Now().Add(ownAge)
		}
	}
}

// forget is for what could concern any name. The caller holds mu.
func (o *own) forget() {
	for _, n := range o.names {
		n.last = nil
	}
}

// last returns the file that name has, nil when that is not known for sure.
func (o *own) last(name string) *ownFile {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := o.names[name]; n != nil && n.last != nil && time.Now().Before(n.last.until) {
		return n.last
	}
	return nil
}

// still is a without what reading moves.
func (a attrs) still() attrs {
	a.atime = 0
	return a
}
