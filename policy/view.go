package policy

import (
	"slices"
	"strings"

	"cellgate/policy/guard"
)

// View is a subject bound to a snapshot: what every decision about it is read from. It is made once per session and epoch and is safe for
// concurrent use. Answers depend on its making and on the question alone.
type View struct {
	snap *Snapshot
	sub  *Subject
	ids  []int32           // the subject's principals that anything names, sorted
	own  map[Place][]grant // grants of this subject alone
	who  *guard.Who        // nil when no policy exists
	memo memo
}

// Bind returns the view of sub. own are grants that exist for this subject alone, those of template workspaces expanded with its name; they
// count like stored ones as far as they name one of its principals. A nil sub has no rights.
func (s *Snapshot) Bind(sub *Subject, own []Grant) *View {
	v := &View{snap: s, sub: sub}
	if sub == nil {
		return v
	}
	for _, p := range sub.Principals {
		if id, ok := s.ids[p]; ok {
			v.ids = append(v.ids, id)
		}
	}
	slices.Sort(v.ids)
	v.ids = slices.Compact(v.ids)
	if len(s.sets) > 0 {
		names := make([]string, len(sub.Principals))
		for i, p := range sub.Principals {
			names[i] = string(p)
		}
		v.who = guard.NewWho(names)
	}
	for _, row := range own {
		if !sub.Has(row.To) {
			continue
		}
		if v.own == nil {
			v.own = map[Place][]grant{}
		}
		g := grant{rights: row.Rights, expires: nano(row.Expires), row: &row}
		if row.Policy != "" {
			g.set = s.answerer(row.Policy)
		}
		v.own[row.On] = append(v.own[row.On], g)
	}
	return v
}

// Subject returns whose view it is.
func (v *View) Subject() *Subject { return v.sub }

// Epoch returns that of the snapshot.
func (v *View) Epoch() uint64 { return v.snap.epoch }

// Decide answers whether the subject may do act at the place now, by the rule of the package comment. It reads memory only, and allocates
// nothing unless a policy is asked. A nil env tells nothing.
func (v *View) Decide(act Action, at Place, env *Env) Decision { return v.decide(act, at, env, nil) }

// question is one decision being made.
type question struct {
	v    *View
	tree *tree // nil when the datasource has neither grants nor guards
	at   Place
	env  *Env
	now  int64
	tr   *tracer
	req  *guard.Request // taken when the first policy is asked
}

// ruling is what the grants say, before guards.
type ruling struct {
	denied   bool
	found    bool   // some node on the way has a grant for the subject
	node     string // the nearest such
	rights   Rights
	policies bool // some grant there is answered by a policy
}

func (v *View) decide(act Action, at Place, env *Env, tr *tracer) Decision {
	q := question{v: v, tree: v.snap.trees[at.Datasource], at: at, env: env, tr: tr}
	if env != nil {
		q.now = nano(env.Time)
	}
	r := q.walk()
	d := Decision{}
	if r.found && !r.denied {
		d.Allowed = q.granted(&r, act) && q.guarded(act)
		d.Known = q.known(&r, act, d.Allowed)
	}
	if q.req != nil {
		q.req.Release()
	}
	return d
}

// known reports whether the subject may list, preview or download the node; act has been answered already.
func (q *question) known(r *ruling, act Action, allowed bool) bool {
	if act <= Download && allowed {
		return true
	}
	q.tr = nil
	for a := List; a <= Download; a++ {
		if a != act && q.granted(r, a) && q.guarded(a) {
			return true
		}
	}
	return false
}

// walk goes from the node up to the root: sentences 2 and 3 of the rule.
func (q *question) walk() ruling {
	var r ruling
	for path := q.at.Path; ; path = parent(path) {
		if q.tree != nil {
			if n := q.tree.nodes[path]; n != nil {
				q.visit(&r, path, n.grants, false)
			}
		}
		if q.v.own != nil {
			q.visit(&r, path, q.v.own[Place{q.at.Datasource, path}], true)
		}
		if r.denied || path == "." {
			break
		}
	}
	if !r.denied && !r.found {
		q.tr.none(q.at)
	}
	return r
}

// visit adds the grants at one node on the way up.
func (q *question) visit(r *ruling, path string, grants []grant, own bool) {
	for i := 0; ; i++ {
		if !own {
			i = q.v.next(grants, i)
		}
		if i >= len(grants) || r.denied {
			return
		}
		g := &grants[i]
		switch {
		case q.gone(g):
			q.tr.expired(path, g)
		case g.rights&Deny != 0:
			r.denied = true
			q.tr.denied(path, g)
		case !r.found || r.node == path:
			r.found, r.node = true, path
			r.rights |= g.rights
			r.policies = r.policies || g.set != nil
			q.tr.granted(path, g)
		default:
			q.tr.shadowed(path, r.node, g)
		}
	}
}

// gone reports whether a grant does not exist any more. Without a time, grants that expire give nothing and denies hold.
func (q *question) gone(g *grant) bool {
	if g.expires == 0 {
		return false
	}
	if q.now == 0 {
		return g.rights&Deny == 0
	}
	return q.now >= g.expires
}

// next returns the index of the first of the grants from i on that names a principal of the view, or len(grants).
func (v *View) next(grants []grant, i int) int {
	if len(grants) <= 16 {
		for ; i < len(grants); i++ {
			if _, ok := slices.BinarySearch(v.ids, grants[i].who); ok {
				return i
			}
		}
		return i
	}
	for i < len(grants) {
		// Take turns in jumping to what the other list has next.
		k, ok := slices.BinarySearch(v.ids, grants[i].who)
		if ok {
			return i
		}
		if k == len(v.ids) {
			return len(grants)
		}
		want := v.ids[k]
		j, _ := slices.BinarySearchFunc(grants[i:], want, func(g grant, id int32) int { return int(g.who) - int(id) })
		i += j
	}
	return i
}

// granted reports whether the grants of the nearest node cover act.
func (q *question) granted(r *ruling, act Action) bool {
	if r.rights.gives(act) {
		q.tr.covers(r, act)
		return true
	}
	if r.policies {
		if n := q.tree; n != nil {
			if n := n.nodes[r.node]; n != nil && q.answered(r, act, n.grants, false) {
				return true
			}
		}
		if q.v.own != nil && q.answered(r, act, q.v.own[Place{q.at.Datasource, r.node}], true) {
			return true
		}
	}
	q.tr.lacks(r, act)
	return false
}

// answered asks the policies that grants of the nearest node name.
func (q *question) answered(r *ruling, act Action, grants []grant, own bool) bool {
	for i := 0; ; i++ {
		if !own {
			i = q.v.next(grants, i)
		}
		if i >= len(grants) {
			return false
		}
		g := &grants[i]
		if g.set == nil || q.gone(g) {
			continue
		}
		verdict := q.ask(g.set, act, r.node)
		q.tr.answered(r.node, g, act, verdict)
		if verdict.Allowed {
			return true
		}
	}
}

// guarded reports whether every guard on the way says yes: sentence 4.
func (q *question) guarded(act Action) bool {
	if !q.pass(&q.v.snap.global, act, ".") {
		return false
	}
	if q.tree == nil || !q.tree.guarded {
		return true
	}
	for path := q.at.Path; ; path = parent(path) {
		if n := q.tree.nodes[path]; n != nil && !q.pass(&n.guards, act, path) {
			return false
		}
		if path == "." {
			return true
		}
	}
}

// pass asks the guards that are bound at from.
func (q *question) pass(g *guards, act Action, from string) bool {
	ask := func(a *answerer) bool {
		verdict := q.ask(a, act, from)
		q.tr.guarded(from, a, act, verdict)
		return verdict.Allowed
	}
	if len(g.fixed.all) > 0 || g.fixed.of != nil {
		key := memoKey{of: g, act: act}
		ok, known := false, false
		if q.tr == nil {
			key.fill(q.env)
			ok, known = q.v.memo.get(key)
		}
		if !known {
			ok = g.fixed.every(q.v.ids, ask)
			if q.tr == nil {
				q.v.memo.put(key, ok)
			}
		}
		if !ok {
			return false
		}
	}
	return len(g.looking.all) == 0 && g.looking.of == nil || g.looking.every(q.v.ids, ask)
}

// ask puts the question to a policy that is bound at from.
func (q *question) ask(a *answerer, act Action, from string) guard.Verdict {
	if q.req == nil {
		q.req = guard.Acquire()
		q.env.fill(q.req, q.v.who)
	}
	q.req.Action = act.String()
	q.req.At(relative(q.at.Path, from), base(q.at.Path))
	return a.Decide(q.req)
}

// fill copies what is known into a request.
func (e *Env) fill(r *guard.Request, who *guard.Who) {
	r.Who = who
	if e == nil {
		return
	}
	r.Protocol, r.Addr, r.Client, r.Method, r.Credential = e.Protocol, e.Addr, e.Client, e.Method, e.Credential
	r.Time, r.SecondFactor = e.Time, e.SecondFactor
	if e.Node != nil {
		r.Size, r.Type = e.Node.Size, strings.ToLower(e.Node.Type)
	}
}

// Check asks the login, rest or protocol policies: every policy of the kind that concerns the subject must allow the action (a protocol, or an
// HTTP method with the path of the API). Without any such policy the answer is yes. by is the policy that said no.
func (s *Snapshot) Check(kind string, sub *Subject, action, path string, env *Env) (ok bool, by string) {
	sets := s.byKind[kind]
	if sets == nil {
		return true, ""
	}
	v := s.Bind(sub, nil)
	r := guard.Acquire()
	defer r.Release()
	env.fill(r, v.who)
	r.Action = action
	path = strings.Trim(path, "/")
	r.At(path, base(path))
	ask := func(a *answerer) bool {
		by = a.Name
		return a.Decide(r).Allowed
	}
	if sets.fixed.every(v.ids, ask) && sets.looking.every(v.ids, ask) {
		return true, ""
	}
	return false, by
}
