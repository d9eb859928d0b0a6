package sftp

import (
	"slices"
	"sync"

	"cellgate/gateway"
)

// turn is the place of a request in the order of those on the same paths.
type turn struct {
	paths [2]gateway.Path
	n     int
	write bool
	done  chan struct{} // made when somebody waits for it; guarded by order.mu
}

func reads(p gateway.Path) *turn { return &turn{paths: [2]gateway.Path{p}, n: 1} }

func changes(ps ...gateway.Path) *turn {
	t := &turn{n: len(ps), write: true}
	copy(t.paths[:], ps)
	return t
}

// meets reports whether t and u must not change places: one of them changes something on the way to what the other is about.
func (t *turn) meets(u *turn) bool {
	if !t.write && !u.write {
		return false
	}
	for _, p := range t.paths[:t.n] {
		for _, q := range u.paths[:u.n] {
			if p.Contains(q) || q.Contains(p) {
				return true
			}
		}
	}
	return false
}

// order holds the requests on paths that are under way.
type order struct {
	mu    sync.Mutex
	turns []*turn // oldest first; guarded by mu
}

// enter puts t behind all that are there, and returns what waits until it is t's turn, nil when it is already.
func (o *order) enter(t *turn) (wait func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var before []chan struct{}
	for _, u := range o.turns {
		if t.meets(u) {
			if u.done == nil {
				u.done = make(chan struct{})
			}
			before = append(before, u.done)
		}
	}
	o.turns = append(o.turns, t)
	if before == nil {
		return nil
	}
	return func() {
		for _, c := range before {
			<-c
		}
	}
}

func (o *order) leave(t *turn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i := slices.Index(o.turns, t); i >= 0 {
		o.turns = slices.Delete(o.turns, i, i+1)
	}
	if t.done != nil {
		close(t.done)
	}
}
