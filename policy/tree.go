package policy

import (
	"slices"
	"strings"
)

// DecideTree answers whether the subject may do act at the place and at every place below it that has grants or guards. When it may not,
// blocked is the first place that refuses, which the subject may not know of. Known is that of the place itself.
//
// Where PerNode is true, policies look at the names and contents of nodes, and the caller asks Decide for each node of the tree as well.
func (v *View) DecideTree(act Action, at Place, env *Env) (d Decision, blocked Place) {
	if d = v.Decide(act, at, env); !d.Allowed {
		return d, at
	}
	for below := range v.below(at) {
		if !v.Decide(act, below, env).Allowed {
			return Decision{Known: d.Known}, below
		}
	}
	return d, Place{}
}

// below yields the places under at where something could change an answer for the subject.
func (v *View) below(at Place) func(yield func(Place) bool) {
	return func(yield func(Place) bool) {
		if t := v.snap.trees[at.Datasource]; t != nil {
			for _, n := range t.below(at.Path) {
				if n.path == at.Path || v.next(n.grants, 0) == len(n.grants) && !n.guards.fixed.concerns(v.ids) && !n.guards.looking.concerns(v.ids) {
					continue
				}
				if !yield(Place{at.Datasource, n.path}) {
					return
				}
			}
		}
		for place := range v.own {
			if under(place, at) && !yield(place) {
				return
			}
		}
	}
}

// under reports whether p lies below at.
func under(p, at Place) bool {
	if p.Datasource != at.Datasource || p.Path == at.Path {
		return false
	}
	return at.Path == "." || len(p.Path) > len(at.Path) && p.Path[len(at.Path)] == '/' && strings.HasPrefix(p.Path, at.Path)
}

// Below reports whether any grant or guard below the place could change an answer for the subject.
func (v *View) Below(at Place) bool {
	for range v.below(at) {
		return true
	}
	return false
}

// PerNode reports whether policies that look at names, sizes or types of nodes count at the place or below it, so that DecideTree alone does not
// tell everything about the tree.
func (v *View) PerNode(at Place) bool {
	if v.perNodeOn(at) {
		return true
	}
	for below := range v.below(at) {
		if v.looks(below) {
			return true
		}
	}
	return false
}

// perNodeOn reports whether policies that look at nodes count for a place and its children by what is bound there or above.
func (v *View) perNodeOn(at Place) bool {
	if v.snap.global.looking.concerns(v.ids) {
		return true
	}
	for ; ; at.Path = parent(at.Path) {
		if v.looks(at) {
			return true
		}
		if at.Path == "." {
			return false
		}
	}
}

// looks reports whether a policy bound or named at the place looks at nodes.
func (v *View) looks(at Place) bool {
	if t := v.snap.trees[at.Datasource]; t != nil {
		if n := t.nodes[at.Path]; n != nil && (n.guards.looking.concerns(v.ids) || slices.ContainsFunc(n.grants, asksNode)) {
			return true
		}
	}
	return v.own != nil && slices.ContainsFunc(v.own[at], asksNode)
}

// asksNode reports whether the grant's policy looks at nodes.
func asksNode(g grant) bool { return g.set != nil && g.set.PerNode }

// Children returns the answers for the children of dir, for a listing: what holds for most is worked out once, exceptions are found by name.
// The function allocates nothing where no policy looks at nodes. It is not safe for concurrent use.
func (v *View) Children(act Action, dir Place, env *Env) func(name string) Decision {
	each := func(name string) Decision { return v.Decide(act, Place{dir.Datasource, join(dir.Path, name)}, env) }
	if v.perNodeOn(dir) {
		return each
	}
	common := v.Decide(act, dir, env)
	var kids []*node
	if t := v.snap.trees[dir.Datasource]; t != nil {
		kids = t.kids[dir.Path]
	}
	var own []string
	for place := range v.own {
		if place.Datasource == dir.Datasource && place.Path != "." && parent(place.Path) == dir.Path {
			own = append(own, base(place.Path))
		}
	}
	if len(kids) == 0 && len(own) == 0 {
		return func(string) Decision { return common }
	}
	return func(name string) Decision {
		_, special := slices.BinarySearchFunc(kids, name, func(n *node, name string) int { return strings.Compare(base(n.path), name) })
		if special || slices.Contains(own, name) {
			return each(name)
		}
		return common
	}
}

// join returns the path of a child.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// GrantsWithin returns the grants on a node and on everything below it, in no order.
func (s *Snapshot) GrantsWithin(at Place) (all []Grant) {
	t := s.trees[at.Datasource]
	if t == nil {
		return nil
	}
	add := func(n *node) {
		for _, g := range n.grants {
			all = append(all, *g.row)
		}
	}
	if n := t.nodes[at.Path]; n != nil && at.Path != "." {
		add(n)
	}
	for _, n := range t.below(at.Path) {
		add(n)
	}
	return all
}
