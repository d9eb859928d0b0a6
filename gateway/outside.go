package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"cellgate/gateway/event"
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
	seen map[string]string // stamps by name, nil before the first look
}

const (
	outsideFolders = 256              // looked at
	outsideEntries = 5000             // in one of them; larger ones are not compared
	outsideIdle    = 15 * time.Minute // without use, then a folder is left alone
	outsideRecords = 120              // a minute; what is more is counted only
	ownChange      = 2 * time.Minute  // how long a change of our own is remembered
	ownChanges     = 20_000
)

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
	seen := make(map[string]string, len(now))
	for name, info := range now {
		seen[name] = stampOf(info, true)
		key := ds.place(mounts.Join(folder, name)).Path
		if was, ok := f.seen[name]; f.seen != nil && was != seen[name] {
			changed[name] = ok
		}
		if row, ok := rows[key]; ok && m.differs(row, info) {
			changed[name] = true
		}
		delete(rows, key)
	}
	for name := range f.seen {
		if seen[name] == "" {
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
	case there && had && !m.differs(row, info), !there && !had && (!was || ds.outside.isOurs(at.Path, ds.g.clock.Now())):
		return nil // what the gateway makes has a row; what it deletes, it remembers for a while
	case !there:
		kind = event.Deleted
	case had || was:
		kind = event.Modified
	}
	if had {
		err = ds.g.db.Update(ctx, func(tx *store.Tx) error {
			if !there || row.Folder != info.IsDir() {
				return deleteNodes(tx, at.Datasource, at.Path)
			}
			return renewPlace(tx, at, info)
		})
		if err != nil {
			return err
		}
	}
	ds.g.bus.Publish(event.Event{Kind: kind, Time: ds.g.clock.Now(), Protocol: Outside, At: at, Folder: info.IsDir(), Size: info.Size})
	ds.record(kind, at)
	return nil
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
