package policy

import (
	"cmp"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/store"
)

// Moved is what MoveGrants found: all that was granted and guarded at and below both places before it. It survives JSON, so that it can be kept
// in a journal until the node has really moved. The zero value says that nothing moved.
type Moved struct {
	From   Place   `json:"from,omitzero"`
	To     Place   `json:"to,omitzero"`
	Grants []Grant `json:"grants,omitempty"`
	Guards []Guard `json:"guards,omitempty"`
}

// Guard is a policy that narrows a place and all below.
type Guard struct {
	Policy string `json:"policy"`
	On     Place  `json:"on"`
}

// IsZero reports that nothing moved and nothing is to be taken back.
func (m Moved) IsZero() bool { return m.From == Place{} }

// MoveGrants has the grants and guards of a node and of all below it follow the node to another path or datasource. What was granted on the
// target before stays beside them: a deny there still holds. Where a grant of the same source for the same principal lies already, neither may
// be lost: a deny wins, else what both give is left, and nothing in common is a deny. Places within each other are Invalid.
//
// Moved takes it back. It is zero where from has neither grants nor guards, which costs one query of two index ranges. The state in memory could
// not answer instead: it lacks what this transaction and those that share its commit have written, and what other processes did since the last
// look, and a deny overlooked there would not follow its node.
func (e *Engine) MoveGrants(tx *store.Tx, from, to Place) (Moved, error) {
	const op = "policy.MoveGrants"
	if !fs.ValidPath(from.Path) || !fs.ValidPath(to.Path) || from.Path == "." || to.Path == "." || from.holds(to) || to.holds(from) {
		return Moved{}, fault.New(op, from.Path, fault.Invalid, nil)
	}
	m := Moved{From: from, To: to}
	if err := m.read(tx, from); err != nil {
		return Moved{}, fault.Wrap(op, from.Path, err)
	}
	if len(m.Grants) == 0 && len(m.Guards) == 0 {
		return Moved{}, nil
	}
	if err := to.check(); err != nil {
		return Moved{}, fault.New(op, to.Path, fault.Invalid, err)
	}
	if err := m.read(tx, to); err != nil {
		return Moved{}, fault.Wrap(op, from.Path, err)
	}
	if err := e.settle(tx, m.before(), m.after()); err != nil {
		return Moved{}, fault.Wrap(op, from.Path, err)
	}
	return m, nil
}

// RestoreGrants takes a move back: what MoveGrants put on the target is gone, and what was granted and guarded at and below both places is there
// again, with the same ids. What others did since is not taken back: their grants stay, what they removed from the target does not return (a
// grant revoked meanwhile, or one of a user who is gone), and what they changed there goes back to the source as they changed it. Doing it again,
// or with a zero Moved, changes nothing.
func (e *Engine) RestoreGrants(tx *store.Tx, m Moved) error {
	return fault.Wrap("policy.RestoreGrants", m.From.Path, e.undo(tx, m, false))
}

// KeepGrants has a move turned out to be a copy: the grants and guards of the source are there again, under new ids where the old ones have
// moved, beside those that lie at the target now. What others did since counts as it does for RestoreGrants. Doing it again, or with a zero
// Moved, changes nothing.
func (e *Engine) KeepGrants(tx *store.Tx, m Moved) error {
	return fault.Wrap("policy.KeepGrants", m.From.Path, e.undo(tx, m, true))
}

// undo puts back what was at the source, and unless keep is set also what was at the target.
func (e *Engine) undo(tx *store.Tx, m Moved, keep bool) error {
	if m.IsZero() {
		return nil
	}
	now := Moved{From: m.From, To: m.To}
	if err := now.read(tx, m.From); err != nil {
		return err
	}
	if err := now.read(tx, m.To); err != nil {
		return err
	}
	is, goal := now.before(), now.before()
	target, landed := m.target(), m.after()
	var grants []Grant
	for _, g := range m.Grants {
		if !m.From.holds(g.On) {
			continue
		}
		key := grantKey{m.landing(g.On), g.To, g.Source}
		old, merged := target.grants[key]
		put, here := landed.grants[key], is.grants[key]
		if here.ID != put.ID || merged && here == old && here != put {
			continue // removed since, or taken back already
		}
		switch {
		case keep:
		case !merged:
			delete(goal.grants, key)
		case here == put:
			goal.grants[key] = old
		}
		if here != put {
			g.Rights, g.Policy, g.Expires = here.Rights, here.Policy, here.Expires
		}
		if keep && here.ID == g.ID {
			g.ID = store.NewID()
		}
		grants = append(grants, g)
	}
	var guards []Guard
	for _, g := range m.Guards {
		at := Guard{g.Policy, m.landing(g.On)}
		if !m.From.holds(g.On) || !is.guards[at] {
			continue
		}
		if !keep && !target.guards[at] {
			delete(goal.guards, at)
		}
		guards = append(guards, g)
	}
	for _, g := range grants {
		if _, taken := goal.grants[g.key()]; !taken {
			goal.grants[g.key()] = g
		}
	}
	for _, g := range guards {
		goal.guards[g] = true
	}
	return e.settle(tx, is, goal)
}

// read adds what is granted and guarded at and below a place.
func (m *Moved) read(tx *store.Tx, at Place) error {
	const within = ` WHERE datasource = $1 AND path >= $2 AND path < $4 AND (path = $2 OR path >= $3)`
	rows, err := queryGrants(tx.Query(grantColumns+within+
		` UNION ALL SELECT 0, '', '', datasource, path, 0, policy, 0 FROM guards`+within, at.Datasource, at.Path, at.Path+"/", at.Path+"0"))
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b Grant) int {
		return cmp.Or(strings.Compare(a.On.Path, b.On.Path), cmp.Compare(a.ID, b.ID), strings.Compare(a.Policy, b.Policy))
	})
	for _, g := range rows {
		if g.ID != 0 {
			m.Grants = append(m.Grants, g)
		} else {
			m.Guards = append(m.Guards, Guard{g.Policy, g.On})
		}
	}
	return nil
}

// holds reports whether q is p or lies below it.
func (p Place) holds(q Place) bool {
	rest, ok := strings.CutPrefix(q.Path, p.Path)
	return ok && p.Datasource == q.Datasource && (rest == "" || rest[0] == '/')
}

// landing is where what lies in From goes.
func (m Moved) landing(at Place) Place {
	return Place{m.To.Datasource, m.To.Path + strings.TrimPrefix(at.Path, m.From.Path)}
}

// grantKey is what no two grants have in common.
type grantKey struct {
	on     Place
	to     Principal
	source string
}

func (g Grant) key() grantKey { return grantKey{g.On, g.To, g.Source} }

// layout is what lies at and below the places of a move.
type layout struct {
	grants map[grantKey]Grant
	guards map[Guard]bool
}

// before is the layout that m recorded.
func (m Moved) before() layout { return m.layout(func(Place) bool { return true }) }

// target is the part of it that stayed where it was.
func (m Moved) target() layout { return m.layout(func(at Place) bool { return !m.From.holds(at) }) }

func (m Moved) layout(which func(Place) bool) layout {
	l := layout{map[grantKey]Grant{}, map[Guard]bool{}}
	for _, g := range m.Grants {
		if which(g.On) {
			l.grants[g.key()] = g
		}
	}
	for _, g := range m.Guards {
		if which(g.On) {
			l.guards[g] = true
		}
	}
	return l
}

// after is the layout that the move makes.
func (m Moved) after() layout {
	l := m.target()
	for _, g := range m.Grants {
		if !m.From.holds(g.On) {
			continue
		}
		g.On = m.landing(g.On)
		if old, ok := l.grants[g.key()]; ok {
			g = merge(old, g)
		}
		l.grants[g.key()] = g
	}
	for _, g := range m.Guards {
		if m.From.holds(g.On) {
			l.guards[Guard{g.Policy, m.landing(g.On)}] = true
		}
	}
	return l
}

// merge returns what is left of two grants of one key, in the row of the old one.
func merge(old, g Grant) Grant {
	both := old.Rights & g.Rights
	switch {
	case old.Rights == Deny:
		return old
	case g.Rights == Deny:
	case old.Policy == g.Policy && (both != 0 || g.Policy != ""):
		g.Rights = both
		if g.Expires.IsZero() || !old.Expires.IsZero() && old.Expires.Before(g.Expires) {
			g.Expires = old.Expires
		}
	default:
		g.Rights, g.Policy, g.Expires = Deny, "", time.Time{}
	}
	g.ID = old.ID
	return g
}

// settle writes the difference between two layouts: rows go before others take their keys.
func (e *Engine) settle(tx *store.Tx, was, is layout) error {
	var gone, fresh []Grant
	for key, g := range was.grants {
		if is.grants[key] != g {
			gone = append(gone, g)
		}
	}
	for key, g := range is.grants {
		if was.grants[key] != g {
			fresh = append(fresh, g)
		}
	}
	lost := slices.DeleteFunc(slices.Collect(maps.Keys(was.guards)), func(g Guard) bool { return is.guards[g] })
	won := slices.DeleteFunc(slices.Collect(maps.Keys(is.guards)), func(g Guard) bool { return was.guards[g] })
	if len(gone)+len(fresh)+len(lost)+len(won) == 0 {
		return nil
	}
	// In order, so that two transactions that change the same rows do not wait for each other.
	byID := func(a, b Grant) int { return cmp.Compare(a.ID, b.ID) }
	byPlace := func(a, b Guard) int {
		return cmp.Or(strings.Compare(a.Policy, b.Policy), strings.Compare(a.On.Datasource, b.On.Datasource), strings.Compare(a.On.Path, b.On.Path))
	}
	slices.SortFunc(gone, byID)
	slices.SortFunc(fresh, byID)
	slices.SortFunc(lost, byPlace)
	slices.SortFunc(won, byPlace)
	for _, g := range gone {
		if _, err := tx.Exec(`DELETE FROM grants WHERE id = $1`, g.ID); err != nil {
			return err
		}
	}
	for _, g := range lost {
		if _, err := tx.Exec(`DELETE FROM guards WHERE policy = $1 AND datasource = $2 AND path = $3`, g.Policy, g.On.Datasource, g.On.Path); err != nil {
			return err
		}
	}
	var rows [][]any
	for _, g := range fresh {
		rows = append(rows, []any{g.ID, g.Source, string(g.To), g.On.Datasource, g.On.Path, int64(g.Rights), g.Policy, nano(g.Expires)})
	}
	if err := tx.Insert(`INSERT INTO grants (id, source, principal, datasource, path, rights, policy, expires)`, "", rows); err != nil {
		return err
	}
	rows = nil
	for _, g := range won {
		rows = append(rows, []any{g.Policy, g.On.Datasource, g.On.Path})
	}
	if err := tx.Insert(`INSERT INTO guards (policy, datasource, path)`, "", rows); err != nil {
		return err
	}
	e.collect(tx, func(s *state) { s.settle(gone, fresh, lost, won) })
	return nil
}

// settle has the state follow. A policy that it does not know came from another process, which has it read again anyway.
func (s *state) settle(gone, fresh []Grant, lost, won []Guard) {
	for _, g := range gone {
		delete(s.grants, g.ID)
	}
	for _, g := range fresh {
		s.grants[g.ID] = g
	}
	guards := map[string][]Place{}
	for _, g := range slices.Concat(lost, won) {
		if p, ok := s.policies[g.Policy]; ok && guards[g.Policy] == nil {
			guards[g.Policy] = slices.Clone(p.Guards)
		}
	}
	for name, places := range guards {
		places = slices.DeleteFunc(places, func(at Place) bool { return slices.Contains(lost, Guard{name, at}) })
		for _, g := range won {
			if g.Policy == name && !slices.Contains(places, g.On) {
				places = append(places, g.On)
			}
		}
		p := s.policies[name]
		p.Guards = places
		s.policies[name] = p
	}
}
