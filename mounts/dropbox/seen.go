package dropbox

import (
	"strings"
	"sync"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
)

// seen remembers for a moment what names stood for when Dropbox last told, so that removing a file costs one request, and what this driver
// made of them itself, so that Watch tells of others only.
type seen struct {
	mu        sync.Mutex
	now, past map[string]sight // by path in lower case; past is what was remembered before now was full; guarded by mu
	void      time.Time        // our own changes before it are not recognised any more; guarded by mu
	busy      map[string]*busy // by path in lower case; guarded by mu
}

// busy is a name with changes of ours on their way.
type busy struct {
	changes int
	done    chan struct{} // closed when there is none any more
}

// sight is what is remembered of a name.
type sight struct {
	rev string // of a file, "" when there is none
	own string // the mark of what we made of it, "" when others did
	was string // what we had made of it before that
	at  time.Time
}

const (
	sightLife  = time.Minute
	sightsMost = 8192 // in each of the two maps
	gone       = "gone"
	settleMost = 5 * time.Second // that a page of changes waits for the answers to ours
)

func newSeen() *seen { return &seen{now: map[string]sight{}, busy: map[string]*busy{}} }

// mark is what tells one state of a name from another: the rev of a file, the id of a folder.
func mark(m files.IsMetadata) string {
	switch m := m.(type) {
	case *files.FileMetadata:
		return m.Rev
	case *files.FolderMetadata:
		return m.Id
	case *files.DeletedMetadata:
		return gone
	}
	return ""
}

// get returns what is remembered of path. The caller holds mu.
func (s *seen) get(path string) sight {
	v, ok := s.now[path]
	if !ok {
		v = s.past[path]
	}
	if time.Since(v.at) > sightLife {
		return sight{}
	}
	return v
}

// put remembers v. The caller holds mu.
func (s *seen) put(path string, v sight) {
	if len(s.now) >= sightsMost {
		s.now, s.past = map[string]sight{}, s.now
	}
	v.at = time.Now()
	s.now[path] = v
}

// told is what Dropbox says path is now; nil: nothing.
func (s *seen) told(path string, m files.IsMetadata) {
	path = strings.ToLower(path)
	state := gone
	if m != nil {
		state = mark(m)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.get(path)
	if was.own != "" && was.own == state {
		return
	}
	v := sight{}
	if f, ok := m.(*files.FileMetadata); ok {
		v.rev = f.Rev
	}
	if was != (sight{}) || v.rev != "" {
		s.put(path, v)
	}
}

// did is what we have just made of path; nil: it is gone. A rev that was there before is not our doing: the content was equal.
func (s *seen) did(path string, m files.IsMetadata) {
	path = strings.ToLower(path)
	v := sight{own: gone}
	if m != nil {
		v.own = mark(m)
	}
	if f, ok := m.(*files.FileMetadata); ok {
		v.rev = f.Rev
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.get(path)
	if v.rev != "" && was.rev == v.rev && was.own == "" {
		return
	}
	v.was = was.own
	s.put(path, v)
}

// rev returns the rev of the file that path was a moment ago, "" when that is not known.
func (s *seen) rev(path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(strings.ToLower(path)).rev
}

// changing says that a request is on its way which changes path. Done is called after did.
func (s *seen) changing(path string) (done func()) {
	path = strings.ToLower(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.busy[path]
	if d == nil {
		d = &busy{done: make(chan struct{})}
		s.busy[path] = d
	}
	d.changes++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if d.changes--; d.changes == 0 {
			close(d.done)
			delete(s.busy, path)
		}
	}
}

// settle waits until no request of ours is on its way that changes path, or until enough: a cursor may tell of a change before its answer came.
func (s *seen) settle(path string, enough <-chan struct{}) {
	s.mu.Lock()
	d := s.busy[strings.ToLower(path)]
	s.mu.Unlock()
	if d == nil {
		return
	}
	select {
	case <-d.done:
	case <-enough:
	}
}

// ours reports whether an entry of a cursor, on a page that was asked for at asked, tells of nothing but what we did last, or last before that.
// When others deleted or moved something away, nobody knows
// what of ours went with it and may come back unchanged, so what we did before counts as theirs from then on.
func (s *seen) ours(path string, m files.IsMetadata, asked time.Time) bool {
	path = strings.ToLower(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	was, state := s.get(path), mark(m)
	if was.own != "" && was.at.After(s.void) && (was.own == state || was.was == state && was.at.After(asked)) {
		return true
	}
	if state == gone {
		s.void = time.Now()
	}
	v := sight{}
	if f, ok := m.(*files.FileMetadata); ok {
		v.rev = f.Rev
	}
	if was != (sight{}) {
		s.put(path, v)
	}
	return false
}

// forget recognises nothing as ours any more.
func (s *seen) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.void = time.Now()
}
