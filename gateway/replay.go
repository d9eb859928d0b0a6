package gateway

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/store"
)

// load reads what a former life left behind.
func (j *journal) load(ctx context.Context) error {
	rows, err := j.g.db.Query(ctx, `SELECT id, datasource, kind, payload FROM journal ORDER BY id`)
	if err != nil {
		return fault.Wrap("gateway.journal", "", err)
	}
	defer rows.Close()
	j.open = make(map[string][]entry)
	for rows.Next() {
		var e entry
		var payload string
		if err := rows.Scan(&e.ID, &e.Datasource, &e.Verb, &payload); err != nil {
			return fault.Wrap("gateway.journal", "", err)
		}
		if err := json.Unmarshal([]byte(payload), &e); err != nil {
			return fault.New("gateway.journal", e.Path, fault.Corrupt, err)
		}
		j.open[e.Datasource] = append(j.open[e.Datasource], e)
	}
	return fault.Wrap("gateway.journal", "", rows.Err())
}

// replay deals with the entries of one datasource that stand by themselves. An error means that the backend is not fit for work yet.
func (j *journal) replay(ctx context.Context, ds *datasource, m *mounted) error {
	for _, e := range j.of(ds.cfg.Name) {
		if e.After != 0 || e.User != m.user {
			continue // resume's, when all datasources that open have done so; or of a user who has not come back yet
		}
		if err := j.recover(ctx, ds, m, e); err != nil {
			return err
		}
	}
	return nil
}

// resume deals with the second halves of moves between datasources: the source is taken away once its copy has landed. Where the copy has
// not, since its datasource is down, the source stays for good: users are about to work on it again.
func (j *journal) resume(ctx context.Context, t *table) {
	for _, ds := range t.datasources {
		if m, err := ds.open(); err == nil {
			j.resumeOn(ctx, t, ds, m)
		}
	}
}

// resumeOn is resume for what is left on one backend.
func (j *journal) resumeOn(ctx context.Context, t *table, ds *datasource, m *mounted) {
	for _, e := range j.of(ds.cfg.Name) {
		if e.After == 0 || e.User != m.user {
			continue
		}
		var err error
		if land, ok := j.pending(e.After); ok {
			if to := t.datasources[land.Datasource]; to != nil {
				if _, err := to.open(); err == nil && land.User == 0 {
					continue // its turn comes once that has been dealt with
				}
			}
			err = j.keep(ctx, e, &land)
		} else {
			err = j.recover(ctx, ds, m, e)
		}
		if err != nil {
			j.g.log.Warn("an interrupted operation is not dealt with yet", "datasource", ds.cfg.Name, "path", e.Path, "err", err)
		}
	}
}

// of returns the entries of a datasource that are not yet replayed, and pending one of any datasource that is not.
func (j *journal) of(datasource string) []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.open[datasource])
}

func (j *journal) pending(id int64) (entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, es := range j.open {
		if i := slices.IndexFunc(es, func(e entry) bool { return e.ID == id }); i >= 0 {
			return es[i], true
		}
	}
	return entry{}, false
}

// names returns every name that the open entries of a datasource speak of.
func (j *journal) names(datasource string) map[string]bool {
	all := make(map[string]bool)
	for _, e := range j.of(datasource) {
		for _, s := range e.Steps {
			all[s.From], all[s.To] = true, true
		}
	}
	return all
}

// passing reports whether an error may go away by itself: then the whole datasource waits. Any other concerns one operation, which was never
// acknowledged and is given up.
func passing(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Timeout, fault.Busy, fault.NoSpace, fault.Canceled:
		return true
	}
	return false
}

// recover finishes an entry, or takes it back where its place has changed from outside meanwhile.
func (j *journal) recover(ctx context.Context, ds *datasource, m *mounted, e entry) error {
	release, err := ds.serial.claim(ctx, e.spans(ds)...)
	if err != nil {
		return err
	}
	defer release()
	if _, open := j.pending(e.ID); !open {
		return nil // somebody else has dealt with it meanwhile
	}
	if e.Storage != "" && m.id != "" && e.Storage != m.id {
		return j.abandon(ctx, e)
	}
	if e.Digest != 0 {
		now, err := treeDigest(ctx, m, e.Steps[0].From)
		switch {
		case err != nil && fault.KindOf(err) != fault.NotExist:
			return err
		case err == nil && now != e.Digest:
			return j.keep(ctx, e, nil)
		}
	}
	finished, err := redo(ctx, m, e.Steps)
	if err != nil {
		return err
	}
	if !finished && e.After != 0 {
		return j.keep(ctx, e, nil)
	}
	outcome := "recovered"
	if !finished {
		outcome = "rolled back"
	}
	fresh, err := published(ctx, m, e, finished)
	if err != nil {
		return err
	}
	err = j.g.db.Update(ctx, func(tx *store.Tx) error {
		if finished {
			if fresh != nil {
				if err := renewPlace(tx, ds.place(e.Steps[0].To), *fresh); err != nil {
					return err
				}
			}
			return j.settle(tx, e, outcome)
		}
		for _, f := range j.followers(e.ID) {
			if err := j.settle(tx, f, outcome); err != nil {
				return err
			}
		}
		return j.takeBack(tx, e, outcome)
	})
	if err != nil {
		return err
	}
	j.forget(e.ID, !finished)
	j.g.log.Info("an interrupted operation was dealt with", "datasource", ds.cfg.Name, "path", e.Path, "outcome", outcome)
	j.clear(ctx, m, e, finished)
	return nil
}

// published looks at what a put has left, so that its row can say so.
func published(ctx context.Context, m mounts.Backend, e entry, finished bool) (*mounts.Info, error) {
	if !finished || len(e.Steps) != 1 || e.Steps[0].Do != doPut {
		return nil, nil
	}
	info, there, err := look(ctx, m, e.Steps[0].To)
	if err != nil || !there {
		return nil, err
	}
	return &info, nil
}

// clear deletes what the steps of a finished entry put aside, or what one that was given up had staged.
func (j *journal) clear(ctx context.Context, m *mounted, e entry, finished bool) {
	for _, s := range e.Steps {
		var err error
		switch {
		case !finished && isStaged(s.From):
			err = mounts.Purge(ctx, m.Backend, s.From)
		case !finished || !isDiscarded(s.To):
			continue
		case e.After != 0:
			err = j.g.purgeSource(ctx, m, s.To, s.From)
		default:
			err = mounts.Purge(ctx, m.Backend, s.To)
		}
		if err != nil && fault.KindOf(err) != fault.NotExist {
			j.g.log.Warn("cannot delete what an interrupted operation left behind", "path", e.Path, "err", err)
		}
	}
}

// keep gives up taking a source away: the move was never acknowledged, and becomes a copy. What protected the source protects it again. While
// the copy is still to land, the source's rows are its again, too, and no matter of the copy's any more.
func (j *journal) keep(ctx context.Context, e entry, land *entry) error {
	if land != nil {
		land.Undo.Moves = slices.DeleteFunc(slices.Clone(land.Undo.Moves), func(m shift) bool { return slices.Contains(e.Stay.Moves, m) })
		land.Undo.Usage = sum(land.Undo.Usage, negated(e.Stay.Usage))
	}
	err := j.g.db.Update(ctx, func(tx *store.Tx) error {
		if err := j.g.engine.KeepGrants(tx, e.Stay.Grants); err != nil {
			return err
		}
		j.g.count(tx, e.Stay.Usage, 1)
		if land != nil {
			for _, m := range e.Stay.Moves {
				if err := moveNodes(tx, m.From, m.To); err != nil {
					return err
				}
			}
			if err := j.rewrite(tx, land); err != nil {
				return err
			}
		}
		return j.settle(tx, e, "kept")
	})
	if err == nil {
		j.forget(e.ID, false)
		if land != nil {
			j.replace(*land)
		}
		j.g.log.Warn("an interrupted move between datasources has become a copy", "path", e.Path)
	}
	return err
}

// rewrite changes what is noted of an entry that is still open, and replace does for the working copy.
func (j *journal) rewrite(tx *store.Tx, e *entry) error {
	payload, err := json.Marshal(e)
	if err != nil {
		return fault.New("gateway.journal", e.Path, fault.Internal, err)
	}
	_, err = tx.Exec(`UPDATE journal SET payload = $1 WHERE id = $2`, string(payload), e.ID)
	return err
}

func (j *journal) replace(e entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i := slices.IndexFunc(j.open[e.Datasource], func(o entry) bool { return o.ID == e.ID }); i >= 0 {
		j.open[e.Datasource][i] = e
	}
}

// followers returns the open entries that were to come after one.
func (j *journal) followers(id int64) (all []entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, es := range j.open {
		for _, e := range es {
			if e.After == id {
				all = append(all, e)
			}
		}
	}
	return all
}

// forget drops an entry that was dealt with, and with followers those that were to come after it.
func (j *journal) forget(id int64, followers bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for name, es := range j.open {
		j.open[name] = slices.DeleteFunc(es, func(e entry) bool { return e.ID == id || followers && e.After == id })
	}
}

// spans are the places an entry's steps touch.
func (e entry) spans(ds *datasource) (spans []span) {
	for _, s := range e.Steps {
		for _, name := range []string{s.From, s.To} {
			if name != "" && !reserved(name) {
				spans = append(spans, span{path: ds.place(name).Path, tree: true})
			}
		}
	}
	return spans
}

// isDiscarded reports whether a name is one of what was put aside.
func isDiscarded(name string) bool { return strings.Contains(name, mounts.Area+"/"+discarded+"/") }

// isStaged reports whether a name is one of what was to be published.
func isStaged(name string) bool { return strings.Contains(name, mounts.Area+"/"+staging+"/") }

// treeDigest is a number that changes with any file, folder or link of a tree, in whatever order they are listed.
func treeDigest(ctx context.Context, m mounts.Backend, name string) (sum uint64, err error) {
	err = walk(ctx, m, name, func(sub string, info mounts.Info) error {
		sum += digest(relative(sub, name), info)
		return nil
	})
	return sum, err
}

// digest is the part of one node in treeDigest.
func digest(name string, info mounts.Info) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	mix := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for i := range len(name) {
		mix(name[i])
	}
	values := [...]uint64{uint64(info.Type), info.ID, 0, 0, uint64(info.ModTime.UnixNano())}
	if !info.IsDir() {
		values[2], values[3] = uint64(info.Size), uint64(info.Change)
	}
	for _, v := range values {
		for s := 0; s < 64; s += 8 {
			mix(byte(v >> s))
		}
	}
	return h | 1
}
