package s3

import (
	"context"
	"sync"
	"time"

	"cellgate/mounts"
)

// facts is what was seen of names a moment ago. Another program that removes a folder is believed a few seconds later; until then a Put
// into it makes it anew, which loses nothing. Likewise a Remove of a file that another program has just removed finds that well done.
type facts struct {
	mu   sync.Mutex
	all  map[string]fact // by name; guarded by mu
	gone uint64          // times that something was forgotten; guarded by mu
}

type fact struct {
	folder bool      // a folder; else none
	file   bool      // a file, and no folder
	marker bool      // a folder that has its marker
	until  time.Time // when the fact is too old
	whole  time.Time // until then every folder in this one has a fact of its own
}

const (
	factsLive = 5 * time.Second
	factsMost = 8192
)

func newFacts() *facts { return &facts{all: map[string]fact{}} }

// get returns what is known of name.
func (f *facts) get(name string) (fact, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if known, ok := f.all[name]; ok && now.Before(known.until) {
		return known, true
	}
	dir, _ := mounts.Split(name)
	if parent, ok := f.all[dir]; ok && name != "." && now.Before(parent.whole) {
		return fact{}, true
	}
	return fact{}, false
}

// isFolder notes that name is a folder. A marker once seen stays.
func (f *facts) isFolder(name string, marker bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.all[name]
	f.put(name, fact{folder: true, marker: marker || old.marker, whole: old.whole, until: time.Now().Add(factsLive)})
}

// isWhole notes that name is a folder whose folders all have facts now, as seen since the moment seen.
func (f *facts) isWhole(name string, marker bool, seen time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.all[name]
	f.put(name, fact{folder: true, marker: marker || old.marker, whole: seen.Add(factsLive), until: seen.Add(factsLive)})
}

// isNew notes that name is a folder that was just made, with nothing in it.
func (f *facts) isNew(name string) {
	f.mu.Lock()
	for known := range f.all {
		if mounts.Below(known, name) {
			delete(f.all, known)
		}
	}
	f.mu.Unlock()
	f.isWhole(name, true, time.Now())
}

// isNone notes that name is no folder.
func (f *facts) isNone(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(name, fact{until: time.Now().Add(factsLive)})
}

// isFile notes that name is a file, which is no folder.
func (f *facts) isFile(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(name, fact{file: true, until: time.Now().Add(factsLive)})
}

// moment is when a question is asked whose answer wereFiles is to be told.
type moment struct {
	at   time.Time
	gone uint64
}

func (f *facts) now() moment {
	f.mu.Lock()
	defer f.mu.Unlock()
	return moment{time.Now(), f.gone}
}

// wereFiles notes that the names in dir are files, and no folders, by an answer to what was asked at seen. It does not when something was
// removed or moved since: the answer may be of before.
func (f *facts) wereFiles(seen moment, dir string, names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone != seen.gone {
		return
	}
	for _, name := range names {
		f.put(mounts.Join(dir, name), fact{file: true, until: seen.at.Add(factsLive)})
	}
}

// put notes it. The caller holds mu.
func (f *facts) put(name string, new fact) {
	if _, ok := f.all[name]; !ok && len(f.all) >= factsMost {
		clear(f.all) // asking again is cheap and rare
	}
	f.all[name] = new
}

// forget drops what is known of name and below it.
func (f *facts) forget(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for known := range f.all {
		if mounts.Below(known, name) {
			delete(f.all, known)
		}
	}
	f.left(name)
}

// forgetFile drops what is known of the file name.
func (f *facts) forgetFile(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, name)
	f.left(name)
}

// left notes that name may be gone. The caller holds mu.
func (f *facts) left(name string) {
	f.gone++
	// "whole" must not turn the gap into "no folder".
	dir, _ := mounts.Split(name)
	if parent, ok := f.all[dir]; ok {
		parent.whole = time.Time{}
		f.all[dir] = parent
	}
}

// locks are held by name, for conditions that the server does not check.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // guarded by mu; closed when given back
}

// lock waits until name is free, or ctx ends.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[name]
		if !ok {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			free := make(chan struct{})
			l.held[name] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, name)
				l.mu.Unlock()
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
