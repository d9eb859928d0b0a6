package gateway

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// serial is the publish lock of a datasource: it orders the short last steps of operations, never the transfer of bytes. A claim is on one
// name or on a whole tree; two claims conflict when one's tree holds the other's name, or when both name the same.
type serial struct {
	mu    sync.Mutex
	held  map[string]*claim // by path; an entry stays while claimed or while claims lie below
	freed chan struct{}     // closed and renewed when a claim somebody waits for may have gone
	wait  int
}

type claim struct {
	name  bool // the name itself is claimed
	tree  bool // with all that is below
	below int  // claims on names below
}

// span is what an operation claims.
type span struct {
	path string
	tree bool
}

// claim waits until all spans are free and takes them at once; release with the returned function. It fails when ctx ends first.
// Spans of one call may overlap: they count as one claim.
func (s *serial) claim(ctx context.Context, spans ...span) (release func(), err error) {
	if len(spans) > 1 {
		spans = disjoint(spans)
	}
	s.mu.Lock()
	for !s.free(spans) {
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		s.wait++
		s.mu.Unlock()
		select {
		case <-freed:
			s.mu.Lock()
			s.wait--
		case <-ctx.Done():
			s.mu.Lock()
			s.wait--
			s.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	if s.held == nil {
		s.held = make(map[string]*claim)
	}
	for _, sp := range spans {
		c := s.entry(sp.path)
		c.name, c.tree = true, sp.tree
		above(sp.path, func(dir string) bool { s.entry(dir).below++; return true })
	}
	s.mu.Unlock()
	return func() { s.release(spans) }, nil
}

func (s *serial) release(spans []span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range spans {
		c := s.held[sp.path]
		c.name, c.tree = false, false
		s.drop(sp.path, c)
		above(sp.path, func(dir string) bool {
			c := s.held[dir]
			c.below--
			s.drop(dir, c)
			return true
		})
	}
	if s.wait > 0 && s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

func (s *serial) entry(path string) *claim {
	c := s.held[path]
	if c == nil {
		c = new(claim)
		s.held[path] = c
	}
	return c
}

func (s *serial) drop(path string, c *claim) {
	if !c.name && c.below == 0 {
		delete(s.held, path)
	}
}

func (s *serial) free(spans []span) bool {
	for _, sp := range spans {
		if c := s.held[sp.path]; c != nil && (c.name || sp.tree && c.below > 0) {
			return false
		}
		clear := true
		above(sp.path, func(dir string) bool {
			if c := s.held[dir]; c != nil && c.tree {
				clear = false
			}
			return clear
		})
		if !clear {
			return false
		}
	}
	return true
}

// above calls fn with every folder above path, up to and including the root ".", until fn says no.
func above(path string, fn func(dir string) bool) {
	for path != "." {
		path = parentOf(path)
		if !fn(path) {
			return
		}
	}
}

// disjoint merges spans that hold each other.
func disjoint(spans []span) []span {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int {
		if c := strings.Compare(a.path, b.path); c != 0 {
			return c
		}
		if a.tree == b.tree {
			return 0
		}
		if a.tree {
			return -1
		}
		return 1
	})
	kept := spans[:0]
	for _, sp := range spans {
		if !slices.ContainsFunc(kept, func(k span) bool { return k.path == sp.path || k.tree && within(k.path, sp.path) }) {
			kept = append(kept, sp)
		}
	}
	return kept
}
