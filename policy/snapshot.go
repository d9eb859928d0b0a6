package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cellgate/policy/guard"
)

// Policy is a security policy and where it narrows.
type Policy struct {
	guard.Policy
	Guards []Place     `json:"guards,omitempty"` // acl: these nodes and all below
	For    []Principal `json:"for,omitempty"`    // whom it narrows; empty: everyone. Without Guards: wherever they are
}

// Snapshot is the compiled state of one epoch. It never changes; all of its methods are safe for concurrent use.
type Snapshot struct {
	epoch  uint64
	ids    map[Principal]int32 // principals that grants and guards name
	trees  map[string]*tree    // by datasource
	sets   map[string]*answerer
	global guards             // acl policies bound to subjects alone
	byKind map[string]*guards // login, rest and protocol policies
}

// answerer is a compiled policy.
type answerer struct{ *guard.Set }

// guards are policies that narrow something. Those that look at the node acted on are kept apart: the answer of the others is the same for all
// nodes below, see memo.
type guards struct{ fixed, looking binding }

// binding is policies by whom they concern.
type binding struct {
	all []*answerer
	of  map[int32][]*answerer
}

// add binds a policy for some principals, or for everyone.
func (g *guards) add(a *answerer, who []int32) {
	b := &g.fixed
	if a.PerNode {
		b = &g.looking
	}
	if len(who) == 0 {
		b.all = append(b.all, a)
	} else if b.of == nil {
		b.of = map[int32][]*answerer{}
	}
	for _, id := range who {
		b.of[id] = append(b.of[id], a)
	}
}

// every reports whether ok holds for each policy that concerns one of the principals. A policy that names two of them is asked twice.
func (b *binding) every(ids []int32, ok func(*answerer) bool) bool {
	for _, a := range b.all {
		if !ok(a) {
			return false
		}
	}
	if b.of != nil {
		for _, id := range ids {
			for _, a := range b.of[id] {
				if !ok(a) {
					return false
				}
			}
		}
	}
	return true
}

// concerns reports whether any policy concerns one of the principals.
func (b *binding) concerns(ids []int32) bool {
	return !b.every(ids, func(*answerer) bool { return false })
}

// tree is what is granted in one datasource.
type tree struct {
	nodes   map[string]*node
	order   []*node            // sorted by path
	kids    map[string][]*node // by the parent's path, sorted by path
	guarded bool               // some node has guards
}

// node is a place that has grants or guards.
type node struct {
	path   string
	grants []grant // sorted by who
	guards guards
}

type grant struct {
	who     int32
	rights  Rights
	expires int64     // Unix nanoseconds, 0 never
	set     *answerer // of a policy:NAME grant
	row     *Grant
}

// nothing answers for a policy that does not exist.
var nothing = &answerer{guard.Broken(guard.Policy{}, errMissing)}

// compile makes the snapshot of a state. What is malformed narrows: it allows nothing.
func compile(epoch uint64, grants map[int64]Grant, policies map[string]Policy, locations map[string][]netip.Prefix) *Snapshot {
	s := &Snapshot{epoch: epoch, ids: map[Principal]int32{}, trees: map[string]*tree{}, sets: map[string]*answerer{}, byKind: map[string]*guards{}}
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		p := policies[name]
		a := &answerer{}
		var problems []error
		if a.Set, problems = guard.Compile(p.Policy, options(locations)); len(problems) > 0 {
			a.Set = guard.Broken(p.Policy, problems[0])
		}
		var who []int32
		for _, p := range p.For {
			who = append(who, s.intern(p))
		}
		s.sets[name] = a
		switch {
		case p.Kind != guard.ACL:
			if s.byKind[p.Kind] == nil {
				s.byKind[p.Kind] = new(guards)
			}
			s.byKind[p.Kind].add(a, who)
		case len(p.Guards) > 0:
			for _, at := range p.Guards {
				t := s.tree(at.Datasource)
				t.node(at.Path).guards.add(a, who)
				t.guarded = true
			}
		case len(p.For) > 0:
			s.global.add(a, who)
		}
	}
	for id := range grants {
		row := grants[id]
		g := grant{who: s.intern(row.To), rights: row.Rights, expires: nano(row.Expires), row: &row}
		if row.Policy != "" {
			g.set = s.answerer(row.Policy)
		}
		n := s.tree(row.On.Datasource).node(row.On.Path)
		n.grants = append(n.grants, g)
	}
	for _, t := range s.trees {
		t.finish()
	}
	return s
}

// answerer returns the compiled acl policy, or one that allows nothing.
func (s *Snapshot) answerer(name string) *answerer {
	if a := s.sets[name]; a != nil && a.Kind == guard.ACL {
		return a
	}
	return nothing
}

func (s *Snapshot) intern(p Principal) int32 {
	id, ok := s.ids[p]
	if !ok {
		id = int32(len(s.ids))
		s.ids[p] = id
	}
	return id
}

func (s *Snapshot) tree(datasource string) *tree {
	t := s.trees[datasource]
	if t == nil {
		t = &tree{nodes: map[string]*node{}, kids: map[string][]*node{}}
		s.trees[datasource] = t
	}
	return t
}

func (t *tree) node(path string) *node {
	n := t.nodes[path]
	if n == nil {
		n = &node{path: path}
		t.nodes[path] = n
	}
	return n
}

// finish sorts what was gathered.
func (t *tree) finish() {
	t.order = make([]*node, 0, len(t.nodes))
	for _, n := range t.nodes {
		slices.SortFunc(n.grants, func(a, b grant) int {
			if a.who != b.who {
				return int(a.who) - int(b.who)
			}
			return int(min(max(a.row.ID-b.row.ID, -1), 1))
		})
		t.order = append(t.order, n)
	}
	slices.SortFunc(t.order, func(a, b *node) int { return strings.Compare(a.path, b.path) })
	for _, n := range t.order {
		if n.path != "." {
			dir := parent(n.path)
			t.kids[dir] = append(t.kids[dir], n)
		}
	}
}

// below returns the nodes under path, sorted; those of the root include the root itself.
func (t *tree) below(path string) []*node {
	if path == "." {
		return t.order
	}
	// "/" is followed by "0", so everything below path lies between path+"/" and path+"0".
	lo, _ := slices.BinarySearchFunc(t.order, path+"/", func(n *node, p string) int { return strings.Compare(n.path, p) })
	hi, _ := slices.BinarySearchFunc(t.order, path+"0", func(n *node, p string) int { return strings.Compare(n.path, p) })
	return t.order[lo:hi]
}

// parent returns the folder of a path that is not the root.
func parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// base returns the last segment of a path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// relative returns path as seen from a folder on its way, or from itself.
func relative(path, from string) string {
	switch {
	case path == from:
		return "."
	case from == ".":
		return path
	default:
		return path[len(from)+1:]
	}
}

// nano is a time as Unix nanoseconds, 0 for the zero time.
func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// Epoch returns the number of the state. It grows with every change.
func (s *Snapshot) Epoch() uint64 { return s.epoch }

// Broken returns the stored policies that do not compile and therefore allow nothing, with the reasons.
func (s *Snapshot) Broken() map[string]error {
	var out map[string]error
	for name, a := range s.sets {
		if err := a.Err(); err != nil {
			if out == nil {
				out = map[string]error{}
			}
			out[name] = err
		}
	}
	return out
}
