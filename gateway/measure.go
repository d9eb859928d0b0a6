package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/quota"
	"cellgate/store"
)

// measures are the workspaces whose usage is not known: *atomic.Bool by slug, true while one is being measured. The store remembers them.
type measures struct{ due sync.Map }

// unmeasured is the setting that says so of a workspace.
func unmeasured(slug string) string { return "workspace." + slug + ".unmeasured" }

// rootsOf returns the folders of a workspace for the subject, those it has.
func (b *bound) rootsOf(w *workspace) (roots []policy.Place) {
	for i, r := range w.roots {
		if path := b.roots[w.Slug][i]; path != "" {
			roots = append(roots, policy.Place{Datasource: r.datasource, Path: path})
		}
	}
	return roots
}

// isTemplate reports whether usage is counted for each user.
func (w *workspace) isTemplate() bool {
	return slices.ContainsFunc(w.roots, func(r root) bool { return r.template })
}

// fixedRoots returns the folders of a workspace that is no template.
func (w *workspace) fixedRoots() []policy.Place {
	roots := make([]policy.Place, len(w.roots))
	for i, r := range w.roots {
		roots[i] = policy.Place{Datasource: r.datasource, Path: r.path}
	}
	return roots
}

// loadQuotas gives the book the limits of the workspaces. A workspace that gets a quota, or other roots, is measured in the background as soon
// as all its datasources are up: from then on its usage is kept with every change.
func (g *Gateway) loadQuotas(ctx context.Context, t *table) error {
	var fresh []*workspace
	for _, w := range t.workspaces {
		if w.isTemplate() {
			continue
		}
		_, limit, err := g.quota.Usage(ctx, "workspace:"+w.Slug)
		if err != nil {
			return err
		}
		if limit != w.Quota {
			fresh = append(fresh, w)
		}
		if w.Quota < 0 {
			continue
		}
		mark, err := g.db.Setting(ctx, unmeasured(w.Slug))
		if err != nil {
			return err
		}
		if mark != "" {
			g.measures.due.LoadOrStore(w.Slug, new(atomic.Bool))
		}
	}
	if len(fresh) > 0 {
		err := g.db.Update(ctx, func(tx *store.Tx) error {
			for _, w := range fresh {
				if err := g.quota.SetLimit(tx, "workspace:"+w.Slug, w.Quota); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	g.measureDue()
	return nil
}

// measureDue begins to measure what can be.
func (g *Gateway) measureDue() {
	t := g.table.Load()
	g.measures.due.Range(func(key, value any) bool {
		w, running := t.workspaces[key.(string)], value.(*atomic.Bool)
		if w == nil || w.Quota < 0 {
			g.measures.due.Delete(key)
			return true
		}
		if g.reachable(t, w.fixedRoots()) && running.CompareAndSwap(false, true) {
			g.background("measure workspace "+w.Slug, func(ctx context.Context) error {
				defer running.Store(false)
				return g.measure(ctx, w)
			})
		}
		return true
	})
}

// reachable reports whether the datasources of all places are up.
func (g *Gateway) reachable(t *table, places []policy.Place) bool {
	for _, at := range places {
		if ds := t.datasources[at.Datasource]; ds == nil {
			return false
		} else if _, err := ds.open(); err != nil {
			return false
		}
	}
	return true
}

// errRoots says that a workspace is not the one that was measured.
var errRoots = errors.New("the workspace has other roots by now")

// measure walks a workspace and sets its usage to what is there.
func (g *Gateway) measure(ctx context.Context, w *workspace) error {
	err := g.measureAs(ctx, "workspace:"+w.Slug, w.Quota, w.fixedRoots(), func(tx *store.Tx) error {
		now, err := loadWorkspaces(tx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(now, func(o Workspace) bool {
			return o.Slug == w.Slug && o.Quota == w.Quota && slices.Equal(o.Roots, w.Roots)
		}) {
			return errRoots
		}
		return store.SetSetting(tx, unmeasured(w.Slug), "")
	})
	if err == nil {
		g.measures.due.Delete(w.Slug)
	}
	return err
}

// measureAs sets the usage of a scope to what some folders hold, with its limit and also in one transaction. What is written meanwhile has it
// look again, a few times.
func (g *Gateway) measureAs(ctx context.Context, scope string, limit int64, roots []policy.Place, also func(tx *store.Tx) error) error {
	for tries := 3; ; tries-- {
		before, _, err := g.quota.Usage(ctx, scope)
		if err != nil {
			return err
		}
		total, err := g.sizeOf(ctx, roots)
		if err != nil {
			return err
		}
		if now, _, err := g.quota.Usage(ctx, scope); err != nil {
			return err
		} else if now != before && tries > 1 {
			continue
		}
		return g.db.Update(ctx, func(tx *store.Tx) error {
			if also != nil {
				if err := also(tx); err != nil {
					return err
				}
			}
			if err := g.quota.SetLimit(tx, scope, limit); err != nil {
				return err
			}
			return g.quota.SetUsage(tx, scope, total)
		})
	}
}

// sizeOf adds up the files in some folders, each once. One that is missing holds nothing.
func (g *Gateway) sizeOf(ctx context.Context, roots []policy.Place) (total int64, err error) {
	t := g.table.Load()
	for i, at := range roots {
		inside := func(o policy.Place) bool { return o.Datasource == at.Datasource && within(o.Path, at.Path) }
		if slices.ContainsFunc(roots[:i], inside) || slices.ContainsFunc(roots[i+1:], func(o policy.Place) bool { return o != at && inside(o) }) {
			continue
		}
		ds := t.datasources[at.Datasource]
		if ds == nil {
			continue
		}
		m, err := ds.open()
		if err != nil {
			return 0, err
		}
		size, err := treeSize(ctx, m, at.Path)
		if err != nil && fault.KindOf(err) != fault.NotExist {
			return 0, err
		}
		total += size
	}
	return total, nil
}

// checkSpaces compares what the quotas of workspaces count with what is there. Those that are yet to be measured, or whose datasources are down,
// are left out.
func (g *Gateway) checkSpaces(ctx context.Context, repair bool, found func(Finding)) error {
	lines, err := g.quota.All(ctx)
	if err != nil {
		return err
	}
	t := g.table.Load()
	slices.SortFunc(lines, func(a, b quota.Line) int { return cmp.Compare(a.Scope, b.Scope) })
	for _, line := range lines {
		slug, login, _ := strings.Cut(strings.TrimPrefix(line.Scope, "workspace:"), ":")
		w := t.workspaces[slug]
		if !strings.HasPrefix(line.Scope, "workspace:") || w == nil || w.Quota < 0 || line.Limit < 0 {
			continue
		}
		if _, due := g.measures.due.Load(slug); due {
			continue
		}
		roots := w.fixedRoots()
		if w.isTemplate() {
			sub, err := g.ident.Subject(ctx, login)
			if err != nil {
				continue // of one who is gone
			}
			roots = g.bind(sub).rootsOf(w)
		}
		if !g.reachable(t, roots) {
			continue
		}
		if err := g.checkSpace(ctx, line.Scope, roots, repair, found); err != nil {
			return err
		}
	}
	return nil
}

// checkSpace compares one scope; a difference counts only if it is still there once nobody is publishing.
func (g *Gateway) checkSpace(ctx context.Context, scope string, roots []policy.Place, repair bool, found func(Finding)) error {
	compare := func() (used, real int64, err error) {
		if real, err = g.sizeOf(ctx, roots); err == nil {
			used, _, err = g.quota.Usage(ctx, scope)
		}
		return used, real, err
	}
	used, real, err := compare()
	if used == real || err != nil {
		return err
	}
	release, err := g.claimAll(ctx, roots)
	if err != nil {
		return err
	}
	defer release()
	if used, real, err = compare(); used == real || err != nil {
		return err
	}
	if repair {
		if err := g.db.Update(ctx, func(tx *store.Tx) error { return g.quota.SetUsage(tx, scope, real) }); err != nil {
			return err
		}
	}
	found(Finding{What: fmt.Sprintf("quota of %s counts %d bytes, its files have %d", scope, used, real), Outside: true, Repaired: repair})
	return nil
}

// claimAll takes the publish locks of several trees, datasource by datasource in the order of their names.
func (g *Gateway) claimAll(ctx context.Context, trees []policy.Place) (release func(), err error) {
	t := g.table.Load()
	spans := make(map[string][]span)
	var names []string
	for _, at := range trees {
		if ds := t.datasources[at.Datasource]; ds != nil {
			if spans[at.Datasource] == nil {
				names = append(names, at.Datasource)
			}
			spans[at.Datasource] = append(spans[at.Datasource], span{path: ds.place(at.Path).Path, tree: true})
		}
	}
	slices.Sort(names)
	var held []func()
	release = func() {
		for _, give := range slices.Backward(held) {
			give()
		}
	}
	for _, name := range names {
		give, err := t.datasources[name].serial.claim(ctx, spans[name]...)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, give)
	}
	return release, nil
}
