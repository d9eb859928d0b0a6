package gateway

import (
	"context"
	"sync"

	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/quota"
	"cellgate/store"
)

// Space is the room a path has: of the quota that binds tightest, or of the storage below.
type Space struct{ Used, Available int64 } // bytes, -1 unknown

// Space returns the room below p, as RFC 4331 and statfs show it.
func (s *Session) Space(ctx context.Context, p Path) (_ Space, err error) {
	o, err := s.begin(ctx, verbSpace, p, policy.List, policy.Create)
	if err != nil {
		return Space{}, err
	}
	defer o.end(&err)
	room := Space{Used: -1, Available: -1}
	if o.virtual() {
		return room, nil
	}
	if sp, ok := mounts.As[mounts.Spacer](o.m.Backend); ok {
		if disk, err := sp.Space(ctx); err == nil {
			room = Space{Used: disk.Used, Available: disk.Free}
		}
	}
	for _, scope := range o.scopes(&o.target) {
		used, limit, err := o.g.quota.Usage(ctx, scope)
		if err != nil {
			return Space{}, err
		}
		if left := max(limit-used, 0); limit >= 0 && (room.Available < 0 || left < room.Available) {
			room = Space{Used: used, Available: left}
		}
	}
	return room, nil
}

// scopes names the quotas that count what is written at t: the user's, and those of every workspace that has one and holds the place.
func (o *op) scopes(t *target) []string {
	scopes := []string{userScope(o.actor())}
	return append(scopes, o.b.places(t.ds.cfg.Name, t.name)...)
}

func userScope(login string) string { return "user:" + login }

// places returns the scopes of the workspaces with a quota whose root holds a name on a datasource.
func (b *bound) places(datasource, name string) (scopes []string) {
	for slug, w := range b.table.workspaces {
		if w.Quota < 0 {
			continue
		}
		for i, r := range w.roots {
			if root := b.roots[slug][i]; r.datasource == datasource && root != "" && within(root, name) {
				scopes = append(scopes, w.scope(r, b.sub.Login))
				break
			}
		}
	}
	return scopes
}

// scope is what a workspace's quota is counted on: the workspace, or each user's own where it is a template.
func (w *workspace) scope(r root, login string) string {
	if r.template {
		return "workspace:" + w.Slug + ":" + login
	}
	return "workspace:" + w.Slug
}

// hold is the quota of one operation that adds bytes.
type hold struct {
	o      *op
	scopes []string // the user's own first
	book   *quota.Reservation

	mu   sync.Mutex
	old  int64 // bytes that go when the new ones come, guarded by mu
	size int64 // new bytes so far, guarded by mu
}

// reserve sets aside what size new bytes need beyond the old ones that they replace. A size not yet known is -1: grow follows it.
func (o *op) reserve(ctx context.Context, t *target, size, old int64) (*hold, error) {
	if err := o.limitTemplates(ctx, t); err != nil {
		return nil, err
	}
	h := &hold{o: o, scopes: o.scopes(t)}
	if old > 0 {
		// What somebody else wrote makes no room on this user's quota.
		if _, limit, err := o.g.quota.Usage(ctx, h.scopes[0]); err != nil {
			return nil, err
		} else if limit >= 0 {
			was, had, err := o.g.node(ctx, t.at)
			if err != nil {
				return nil, err
			}
			if !had || was.Owner != o.actor() {
				old = 0
			}
		}
	}
	h.old, h.size = max(old, 0), max(size, 0)
	var err error
	h.book, err = o.g.quota.Reserve(ctx, h.scopes, max(h.size-h.old, 0))
	return h, err
}

// limitTemplates gives the quota of a template workspace to each user's own part of it at its first use.
func (o *op) limitTemplates(ctx context.Context, t *target) error {
	if t.ws.Quota < 0 {
		return nil
	}
	for i, r := range t.ws.roots {
		if !r.template || o.b.roots[t.ws.Slug][i] != t.root {
			continue
		}
		scope := t.ws.scope(r, o.b.sub.Login)
		_, limit, err := o.g.quota.Usage(ctx, scope)
		if err != nil || limit == t.ws.Quota {
			return err
		}
		if roots := o.b.rootsOf(t.ws); limit < 0 { // not counted so far
			if !o.g.reachable(o.b.table, roots) {
				return nil // nor can it be yet
			}
			return o.g.measureAs(ctx, scope, t.ws.Quota, roots, nil)
		}
		return o.g.db.Update(ctx, func(tx *store.Tx) error { return o.g.quota.SetLimit(tx, scope, t.ws.Quota) })
	}
	return nil
}

// grow sets aside what a total of new bytes needs. A nil hold is one that is only taken at the end, for a size already known.
func (h *hold) grow(total int64) error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if total <= h.size {
		return nil
	}
	return h.need(total, h.old)
}

// rebase tells that fewer bytes than thought will go when the new ones come.
func (h *hold) rebase(old int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old >= h.old {
		return nil
	}
	return h.need(h.size, old)
}

// need sets aside what size new bytes instead of old ones need beyond what is. The caller holds mu.
func (h *hold) need(size, old int64) error {
	more := max(size-old, 0) - max(h.size-h.old, 0)
	if h.book != nil && more > 0 {
		if err := h.book.Grow(more); err != nil {
			return err
		}
	}
	h.size, h.old = size, old
	return nil
}

func (h *hold) release() {
	if h != nil && h.book != nil {
		h.book.Release()
	}
}

// usage is what the scopes count when size bytes come where old bytes were. What another user wrote before no longer counts on that user.
// Node rows say who that was; a file without one counted on nobody.
func (h *hold) usage(size, old int64, was node, had bool) map[string]int64 {
	deltas := make(map[string]int64, len(h.scopes)+1)
	for _, s := range h.scopes {
		deltas[s] = size - old
	}
	deltas[h.scopes[0]] = size
	if had && !was.Folder && was.Owner != "" {
		deltas[userScope(was.Owner)] -= was.Size
	}
	return deltas
}

// negated returns deltas the other way round.
func negated(deltas map[string]int64) map[string]int64 {
	other := make(map[string]int64, len(deltas))
	for scope, delta := range deltas {
		if delta != 0 {
			other[scope] = -delta
		}
	}
	return other
}

// sum adds up deltas.
func sum(all ...map[string]int64) map[string]int64 {
	total := make(map[string]int64)
	for _, deltas := range all {
		for scope, delta := range deltas {
			total[scope] += delta
		}
	}
	return total
}

// count adds deltas to the usage of scopes, times sign.
func (g *Gateway) count(tx *store.Tx, deltas map[string]int64, sign int64) {
	for scope, delta := range deltas {
		if delta != 0 {
			g.quota.Add(tx, []string{scope}, sign*delta)
		}
	}
}

// treeSize adds up the files below a folder, or is the size of a file.
func treeSize(ctx context.Context, m mounts.Backend, name string) (total int64, err error) {
	err = walk(ctx, m, name, func(_ string, info mounts.Info) error {
		if info.Type == mounts.File {
			total += max(info.Size, 0)
		}
		return nil
	})
	return total, err
}

// walk calls fn for a node and everything below it, a folder before what it holds. The gateway's own area is left out, links are not
// followed. Memory grows with the depth and with the folders of one level, not with the files.
func walk(ctx context.Context, m mounts.Backend, name string, fn func(name string, info mounts.Info) error) error {
	info, err := m.Stat(ctx, name)
	if err != nil {
		return err
	}
	return walkInfo(ctx, m, name, info, fn)
}

func walkInfo(ctx context.Context, m mounts.Backend, name string, info mounts.Info, fn func(string, mounts.Info) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fn(name, info); err != nil || !info.IsDir() {
		return err
	}
	var dirs []mounts.Info
	for child, err := range m.List(ctx, name) {
		switch {
		case err != nil:
			return err
		case mounts.Reserved(child.Name):
		case child.IsDir():
			dirs = append(dirs, child)
		default:
			if err := fn(join(name, child.Name), child); err != nil {
				return err
			}
		}
	}
	for _, d := range dirs {
		if err := walkInfo(ctx, m, join(name, d.Name), d, fn); err != nil {
			return err
		}
	}
	return nil
}
