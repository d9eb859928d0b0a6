package gateway

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// The gateway's own folders in each area of a datasource.
const (
	staging   = "tmp" // staged, not yet published
	discarded = "old" // no longer part of the tree, not yet deleted
)

// carried marks, among what is discarded, the sources of moves between datasources: of those something may be left that no listing shows, and
// that has no copy. It goes back where it was.
const carried = "carried-"

// newName returns a name that nothing else has, in a folder of the area on the file system that name lies on. It is live until it is dropped.
func (g *Gateway) newName(m *mounted, name, folder string) string {
	return g.newNameAs(m, name, folder, "")
}

func (g *Gateway) newNameAs(m *mounted, name, folder, prefix string) string {
	dir := mounts.AreaOf(m.Backend, name) + "/" + folder
	if dir != mounts.Area+"/"+folder || m.private {
		// Another file system within the datasource, or one that nobody has prepared. Who uses the name is told when this did not work.
		_ = mounts.MkdirAll(g.life, m.Backend, dir)
	}
	made := dir + "/" + prefix + strconv.FormatInt(store.NewID(), 36)
	g.live.add(m, made)
	return made
}

// live are the names in areas that operations in flight are using: fsck and a datasource that is opened anew leave them alone.
type live struct {
	mu    sync.Mutex
	names map[policy.Place]struct{}
}

func (l *live) add(m *mounted, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil {
		l.names = make(map[policy.Place]struct{})
	}
	l.names[policy.Place{Datasource: m.name, Path: name}] = struct{}{}
}

func (l *live) drop(m *mounted, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.names, policy.Place{Datasource: m.name, Path: name})
}

func (l *live) has(m *mounted, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.names[policy.Place{Datasource: m.name, Path: name}]
	return ok
}

// purge deletes what was put aside, with its rows, and drops its name. A failure is no failure of the operation: it is tried again.
func (g *Gateway) purge(m *mounted, old policy.Place, folder bool) {
	if folder {
		g.journal.discard(old)
		g.background("purge "+old.Path, func(ctx context.Context) error { return g.purgeNow(ctx, m, old.Path) })
		return
	}
	if err := g.purgeNow(g.life, m, old.Path); err != nil {
		g.log.Warn("a removed file still takes space", "name", old.Path, "err", err)
	}
}

func (g *Gateway) purgeNow(ctx context.Context, m *mounted, name string) error {
	err := mounts.Purge(ctx, m.Backend, name)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		g.trash.add(m, name)
		return err
	}
	g.live.drop(m, name)
	return nil
}

// trash is what could not be purged when it should have been. Its names stay live until they are gone.
type trash struct {
	mu   sync.Mutex
	left []trashed
}

type trashed struct {
	m    *mounted
	name string
}

// maxTrash bounds what is remembered; what is beyond goes at the next start.
const maxTrash = 10_000

func (t *trash) add(m *mounted, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.left) < maxTrash {
		t.left = append(t.left, trashed{m, name})
	}
}

// retry purges what is left, in the background.
func (t *trash) retry(g *Gateway) {
	t.mu.Lock()
	left := t.left
	t.left = nil
	t.mu.Unlock()
	if len(left) == 0 {
		return
	}
	g.background("purge what is left", func(ctx context.Context) error {
		var errs []error
		for _, l := range left {
			m := l.m
			if m.life.Err() != nil { // closed meanwhile
				ds := g.table.Load().datasources[m.name]
				if ds == nil || m.private {
					g.live.drop(m, l.name)
					continue
				}
				now, err := ds.open()
				if err != nil {
					t.add(m, l.name)
					continue
				}
				m = now
			}
			errs = append(errs, g.purgeNow(ctx, m, l.name))
		}
		return errors.Join(errs...)
	})
}

// purgeSource deletes the source of a move to another datasource, as far as listings show it, since only that has been copied. What is left
// goes back to origin.
func (g *Gateway) purgeSource(ctx context.Context, m *mounted, name, origin string) error {
	err := removeListed(ctx, m, name)
	if err == nil || fault.KindOf(err) != fault.NotEmpty {
		return err
	}
	g.log.Warn("what has a name that cannot be carried stays where it was", "path", origin)
	return m.Rename(ctx, name, origin)
}

// removeListed deletes a tree as far as listings show it; NotEmpty says that something is left.
func removeListed(ctx context.Context, m mounts.Backend, name string) error {
	info, err := m.Stat(ctx, name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		for found := true; found; {
			var batch []mounts.Info
			for child, err := range m.List(ctx, name) {
				if err != nil {
					return err
				}
				if batch = append(batch, child); len(batch) == 1000 {
					break
				}
			}
			found = false
			for _, child := range batch {
				err := removeListed(ctx, m, join(name, child.Name))
				if err != nil && fault.KindOf(err) != fault.NotEmpty && fault.KindOf(err) != fault.NotExist {
					return err
				}
				found = found || err == nil && len(batch) == 1000
			}
		}
	}
	return m.Remove(ctx, name)
}

// sweepAreas makes the area of a datasource and deletes from all that it has what nobody will ask for again: names that are neither live nor kept. What cannot be
// deleted is reported and stays; it harms nobody.
func (ds *datasource) sweepAreas(ctx context.Context, m *mounted, kept map[string]bool) error {
	for _, dir := range []string{mounts.Area, mounts.Area + "/" + staging, mounts.Area + "/" + discarded} {
		if err := m.Mkdir(ctx, dir); err != nil && fault.KindOf(err) != fault.Exist {
			return err
		}
	}
	left, err := ds.left(ctx, m)
	ds.sweep(ctx, m, left, kept)
	return err
}

// shares reports whether another datasource of this box works on the same storage.
func (ds *datasource) shares(ctx context.Context) (bool, error) {
	mine, err := ds.g.db.Setting(ctx, ds.markKey())
	if err != nil || mine == "" {
		return false, err
	}
	var others int
	err = ds.g.db.QueryRow(ctx, `SELECT count(*) FROM settings WHERE key >= 'datasource.' AND key < 'datasource/' AND key <> $1 AND value = $2`,
		ds.markKey(), mine).Scan(&others)
	return others > 0, fault.Wrap("gateway.shares", ds.cfg.Name, err)
}

// left lists what lies in the areas of a datasource under names that are not live.
// Where another datasource of this box works on the same storage, nothing is anybody's to judge.
func (ds *datasource) left(ctx context.Context, m *mounted) (left []string, err error) {
	if shared, err := ds.shares(ctx); err != nil || shared {
		return nil, err
	}
	for _, area := range m.areas() {
		for _, dir := range []string{area + "/" + staging, area + "/" + discarded} {
			for info, err := range m.List(fresh(ctx), dir) {
				if err != nil && fault.KindOf(err) != fault.NotExist && (passing(err) || area == mounts.Area) {
					return left, err
				}
				if err != nil {
					break // of another file system, where nothing was staged yet
				}
				if name := join(dir, info.Name); !ds.g.live.has(m, name) {
					left = append(left, name)
				}
			}
		}
	}
	return left, nil
}

// sweep deletes what is left and not kept.
func (ds *datasource) sweep(ctx context.Context, m *mounted, left []string, kept map[string]bool) {
	for _, name := range left {
		remove := mounts.Purge
		if strings.Contains(name, "/"+carried) {
			remove = removeListed
		}
		if kept[name] {
			continue
		}
		if err := remove(ctx, m.Backend, name); err != nil && fault.KindOf(err) != fault.NotExist {
			ds.g.log.Warn("cannot delete what an interrupted operation left behind", "datasource", ds.cfg.Name, "name", name, "err", err)
		}
	}
}

// clean sweeps the areas when the backend has failed since the last time. Drivers stage under names that only they know: what was there
// before a moment at which nothing is under way is nobody's any more, but for what is tried (package probe) and what the journal keeps. That
// is asked last: a name gets into it before it ceases to be live. Backends that users open themselves are not counted, so with some there is
// no such moment.
func (ds *datasource) clean(ctx context.Context, m *mounted) error {
	if m.chain.breaker == nil || ds.cfg.ReadOnly || ds.cfg.Mode != Shared {
		return nil
	}
	failures := m.chain.breaker.Stats().Failures
	if failures == m.cleaned {
		return nil
	}
	left, err := ds.left(ctx, m)
	if err != nil {
		return err
	}
	left = slices.DeleteFunc(left, func(name string) bool { return strings.Contains(name, "/"+staging+"/probe-") })
	if now := m.chain.breaker.Stats(); now.Calls+now.Streams > 0 {
		return nil // the next time
	}
	ds.sweep(ctx, m, left, ds.g.journal.names(ds.cfg.Name))
	m.cleaned = failures
	return nil
}

// areas returns the gateway's own folders: one for each file system in the datasource.
func (m *mounted) areas() []string {
	if p, ok := mounts.As[mounts.Partitioned](m.Backend); ok {
		return p.Areas()
	}
	return []string{mounts.Area}
}
