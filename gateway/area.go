package gateway

import (
	"context"
	"errors"
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
	if dir != mounts.Area+"/"+folder {
		// Another file system within the datasource. Who uses the name is told when this did not work.
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
	if err != nil {
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
			errs = append(errs, g.purgeNow(ctx, l.m, l.name))
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
	for _, area := range m.areas() {
		for _, dir := range []string{area + "/" + staging, area + "/" + discarded} {
			var stale []string
			for info, err := range m.List(ctx, dir) {
				if err != nil && (passing(err) || area == mounts.Area) {
					return err
				}
				if err != nil {
					break // of another file system, where nothing was staged yet
				}
				if name := join(dir, info.Name); !kept[name] && !ds.g.live.has(m, name) {
					stale = append(stale, name)
				}
			}
			for _, name := range stale {
				remove := mounts.Purge
				if strings.Contains(name, "/"+carried) {
					remove = removeListed
				}
				if err := remove(ctx, m.Backend, name); err != nil {
					ds.g.log.Warn("cannot delete what an interrupted operation left behind", "datasource", ds.cfg.Name, "name", name, "err", err)
				}
			}
		}
	}
	return nil
}

// areas returns the gateway's own folders: one for each file system in the datasource.
func (m *mounted) areas() []string {
	if p, ok := mounts.As[mounts.Partitioned](m.Backend); ok {
		return p.Areas()
	}
	return []string{mounts.Area}
}
