package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
)

// outside finds what other tools change on one datasource, beside the gateway: by the backend's Watcher where it has one, and by looking from
// time to time at the folders that are in use. What it finds is recorded as made outside, told to the bus, and forgotten where a row
// remembered it otherwise. That a change is seen does not depend on it: the backend is the authority, and the cache has its age.
type outside struct {
	mu      sync.Mutex
	folders map[string]*looked // by name, guarded by mu
	own     map[string]time.Time
	told    int       // records in this minute, guarded by mu
	minute  time.Time // guarded by mu
	missed  int       // not recorded in this minute, guarded by mu
}

// looked is a folder in use, with what was in it last time.
type looked struct {
	used time.Time
	seen map[string]glance // by name, nil before the first look
}

// glance is what is kept of a name to tell whether it has changed.
type glance struct{ tag, stamp string }

func glanceAt(info mounts.Info) glance {
	g := glance{tag: info.Tag}
	info.Tag = ""
	g.stamp = stampOf(info, true)
	return g
}

// alike reports whether two glances are of the same content. Some servers tell the tag of a file only when it is seconds old.
func (g glance) alike(is glance) bool {
	if g.tag != "" && is.tag != "" {
		return g.tag == is.tag
	}
	return g.stamp == is.stamp
}

const (
	outsideFolders = 256              // looked at
	outsideEntries = 5000             // in one of them; larger ones are not compared
	outsideIdle    = 15 * time.Minute // without use, then a folder is left alone
	outsideRecords = 120              // a minute; what is more is counted only
	ownChange      = 2 * time.Minute  // how long a change of our own is remembered
	ownChanges     = 20_000
)

var errMark = errors.New("this is not the storage that was here")

// Outside is the protocol that changes made beside the gateway are recorded with.
const Outside = "outside"

// use notes that somebody looks at a folder.
func (w *outside) use(folder string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.folders == nil {
		w.folders = make(map[string]*looked)
	}
	if f := w.folders[folder]; f != nil {
		f.used = now
		return
	}
	if len(w.folders) >= outsideFolders {
		oldest := ""
		for name, f := range w.folders {
			if oldest == "" || f.used.Before(w.folders[oldest].used) {
				oldest = name
			}
		}
		delete(w.folders, oldest)
	}
	w.folders[strings.Clone(folder)] = &looked{used: now}
}

// ours notes that the gateway has changed a place itself.
func (w *outside) ours(name string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.own == nil || len(w.own) >= ownChanges {
		w.own = make(map[string]time.Time)
	}
	w.own[name] = now
}

// isOurs reports whether the gateway has changed a name, or what it lies in, a short while ago.
func (w *outside) isOurs(name string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if at, ok := w.own[name]; ok && now.Sub(at) < ownChange {
			return true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}

// due returns the folders to look at now.
func (w *outside) due(now time.Time) map[string]*looked {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[string]*looked, len(w.folders))
	for name, f := range w.folders {
		if now.Sub(f.used) > outsideIdle {
			delete(w.folders, name)
			continue
		}
		all[name] = f
	}
	for name, at := range w.own {
		if now.Sub(at) > ownChange {
			delete(w.own, name)
		}
	}
	return all
}

// watch looks for outside changes until ctx ends, which is when the backend is closed.
func (ds *datasource) watch(ctx context.Context, m *mounted, poll time.Duration) {
	if m.features.Watch == mounts.Native && m.features.Remote {
		if w, ok := mounts.As[mounts.Watcher](m.Backend); ok {
			ds.g.wg.Go(func() { ds.follow(ctx, m, w) })
		}
	}
	if poll <= 0 {
		return
	}
	ds.g.wg.Go(func() {
		tick := time.NewTicker(poll)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for name, f := range ds.outside.due(ds.g.clock.Now()) {
				if err := ds.look(ctx, m, name, f); err != nil && ctx.Err() == nil {
					ds.g.log.Debug("cannot look for outside changes", "datasource", ds.cfg.Name, "path", name, "err", err)
				}
			}
		}
	})
}

// follow takes what the backend tells by itself.
func (ds *datasource) follow(ctx context.Context, m *mounted, w mounts.Watcher) {
	for ctx.Err() == nil {
		for change, err := range w.Watch(ctx) {
			if err != nil {
				ds.g.log.Debug("changes may have been missed", "datasource", ds.cfg.Name, "err", err)
				continue
			}
			if mounts.ReservedPath(change.Name) {
				continue
			}
			if err := ds.noticed(ctx, m, change.Name, false); err != nil && ctx.Err() == nil {
				ds.g.log.Debug("cannot look at an outside change", "datasource", ds.cfg.Name, "path", change.Name, "err", err)
			}
		}
		select { // a watcher that ends is asked again, and not in a circle
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
}

// look compares a folder with what was in it last time, and with its rows.
func (ds *datasource) look(ctx context.Context, m *mounted, folder string, f *looked) error {
	now := make(map[string]mounts.Info)
	for info, err := range m.List(fresh(ctx), folder) {
		if err != nil {
			return err
		}
		if mounts.Reserved(info.Name) {
			continue
		}
		if len(now) >= outsideEntries {
			f.seen = nil
			return nil
		}
		now[info.Name] = info
	}
	rows, err := ds.g.rowsIn(ctx, ds.place(folder))
	if err != nil {
		return err
	}
	changed := make(map[string]bool) // and whether it was there before
	seen := make(map[string]glance, len(now))
	for name, info := range now {
		seen[name] = glanceAt(info)
		key := ds.place(mounts.Join(folder, name)).Path
		if was, ok := f.seen[name]; f.seen != nil && (!ok || !was.alike(seen[name])) {
			changed[name] = ok
		}
		if row, ok := rows[key]; ok && m.differs(row, info) {
			changed[name] = true
		}
		delete(rows, key)
	}
	for name := range f.seen {
		if _, ok := seen[name]; !ok {
			changed[name] = true
		}
	}
	for _, row := range rows { // of what is no longer there
		_, name := mounts.Split(row.At.Path)
		changed[name] = true
	}
	f.seen = seen
	for name, was := range changed {
		if err := ds.noticed(ctx, m, mounts.Join(folder, name), was); err != nil {
			return err
		}
	}
	return nil
}

// differs reports whether a file is not the one that its row remembers.
func (m *mounted) differs(row node, info mounts.Info) bool {
	if row.Folder || info.IsDir() {
		return row.Folder != info.IsDir()
	}
	timed := row.MTime != 0 && m.features.Rename == mounts.Native
	if m.chain.pending != nil && m.features.ModTime != mounts.Native {
		timed = false // the time is that of the backend once what waited has been written
	}
	return row.Size != info.Size || row.FID != 0 && row.FID != info.ID || timed && row.MTime/int64(time.Second) != info.ModTime.Unix()
}

// noticed records that a name was changed outside, unless its row says that it was not. was says that there was something before.
func (ds *datasource) noticed(ctx context.Context, m *mounted, name string, was bool) error {
	at := ds.place(name)
	release, err := ds.serial.claim(ctx, span{path: at.Path, tree: true})
	if err != nil {
		return err
	}
	defer release()
	info, there, err := look(fresh(ctx), m, name)
	if err != nil {
		return err
	}
	row, had, err := ds.g.node(ctx, at)
	if err != nil {
		return err
	}
	kind := event.Created
	switch {
	case len(ds.g.journal.crossing(ds, []span{{path: at.Path}})) > 0:
		return nil // half of it is the gateway's own doing
	case there && had && !m.differs(row, info), !there && !had && (!was || ds.outside.isOurs(at.Path, ds.g.clock.Now())):
		return nil // what the gateway makes has a row; what it deletes, it remembers for a while
	case there && !had && info.IsDir() && ds.g.makes(at):
		return nil
	case !there:
		kind = event.Deleted
	case had || was:
		kind = event.Modified
	}
	if !there && m.id != "" { // a storage that is not mounted looks like one that somebody has emptied
		if have, err := markOf(fresh(ctx), m.chain.direct); err != nil || have != m.id {
			return fault.New("gateway.outside", ds.cfg.Name, fault.Unavailable, errors.Join(errMark, err))
		}
	}
	if had {
		err = ds.g.db.Update(ctx, func(tx *store.Tx) error { return ds.g.adjust(tx, row, info, there) })
		if err != nil {
			return err
		}
	}
	ds.g.bus.Publish(event.Event{Kind: kind, Time: ds.g.clock.Now(), Protocol: Outside, At: at, Folder: info.IsDir(), Size: info.Size})
	ds.record(kind, at)
	return nil
}

// adjust makes the rows of a place what the backend has there now, with what its owners use. Checksums of other bytes are dropped.
func (g *Gateway) adjust(tx *store.Tx, row node, info mounts.Info, there bool) error {
	if there && row.Folder == info.IsDir() {
		size := row.Size
		if !row.Folder {
			size = max(info.Size, 0)
			g.count(tx, owners(map[string]int64{row.Owner: size - row.Size}), 1)
		}
		_, err := tx.Exec(`UPDATE nodes SET sums = '', size = $1, mtime = $2, fid = $3 WHERE id = $4`, size, nanos(info.ModTime), int64(info.ID), row.ID)
		return err
	}
	gone, err := usageBelow(tx, row.At)
	if err != nil {
		return err
	}
	g.count(tx, owners(gone), -1)
	return deleteNodes(tx, row.At.Datasource, row.At.Path)
}

// makes reports whether the gateway itself makes the folder at a place, without a row: the root of a workspace, or one above it.
func (g *Gateway) makes(at policy.Place) bool {
	for _, w := range g.table.Load().workspaces {
		for _, r := range w.roots {
			if r.datasource == at.Datasource && (r.path == at.Path || strings.HasPrefix(r.path, at.Path+"/")) {
				return true
			}
		}
	}
	_, made := g.made.Load(at)
	return made
}

// record writes an outside change to the audit log. Of many in a minute only the number is kept.
func (ds *datasource) record(kind event.Kind, at policy.Place) {
	w, now := &ds.outside, ds.g.clock.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.minute) >= time.Minute || now.Before(w.minute) {
		if w.missed > 0 {
			ds.g.audit.Note(audit.Record{Action: "modify", Place: ds.place(".").String(), Outcome: "ok", Protocol: Outside, Detail: fmt.Sprintf("and %d more", w.missed)})
		}
		w.minute, w.told, w.missed = now, 0, 0
	}
	if w.told++; w.told > outsideRecords {
		w.missed++
		return
	}
	ds.g.audit.Note(audit.Record{Action: string(kind), Place: at.String(), Outcome: "ok", Protocol: Outside})
}
