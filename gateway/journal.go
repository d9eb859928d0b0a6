package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
)

// journal holds the operations whose transaction is committed and whose last step on a backend may not be done. It is a redo log: see the
// package comment.
type journal struct {
	g     *Gateway
	mu    sync.Mutex
	done  []int64            // finished, their rows not yet deleted
	aside []policy.Place     // of what was put aside: their rows are not yet deleted
	open  map[string][]entry // by datasource, found at start and not yet replayed
}

// entry is a row of the journal: steps on one datasource that are still to be done, in order, and each harmless when done already.
type entry struct {
	ID         int64  `json:"-"`
	Datasource string `json:"-"`
	Verb       string `json:"-"`
	Path       string `json:"path"`            // virtual, for the record of a replay
	Actor      string `json:"actor,omitempty"` // likewise
	Steps      []step `json:"steps"`
	After      int64  `json:"after,omitempty"` // another entry that must be done first (a move between datasources)
}

// step renames From to To. ID and Change are what From is: a node that came to be there later is not meant.
type step struct {
	From   string `json:"from"`
	To     string `json:"to"`
	ID     uint64 `json:"id,omitempty"`
	Change int64  `json:"change,omitempty"`
}

// stepOf is the step that takes the node info away from where it is.
func stepOf(from, to string, info mounts.Info) step {
	return step{From: from, To: to, ID: info.ID, Change: info.Change}
}

// Flush implements store.Flusher: it writes the entries of one shared transaction.
func (j *journal) Flush(tx *store.Tx, items []any) error {
	rows := make([][]any, len(items))
	now := j.g.now()
	for i, item := range items {
		e := item.(*entry)
		payload, err := json.Marshal(e)
		if err != nil {
			return fault.New("gateway.journal", e.Path, fault.Internal, err)
		}
		rows[i] = []any{e.ID, e.Datasource, e.Verb, string(payload), now}
	}
	return tx.Insert(`INSERT INTO journal (id, datasource, kind, payload, created)`, ``, rows)
}

// entry makes the journal entry of an operation, with the outstanding steps on ds.
func (o *op) entry(ds *datasource, steps ...step) *entry {
	return &entry{ID: store.NewID(), Datasource: ds.cfg.Name, Verb: o.verb.String(), Path: o.path.String(), Actor: o.actor(), Steps: steps}
}

// finish notes that an entry's steps are done. Its row goes with the very next transaction of whatever operation: one that changes the same place again can only begin after this, since the caller still holds the publish lock, so
// no stale entry outlives it. Where nothing more happens, tidy sees to it.
func (j *journal) finish(id int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = append(j.done, id)
}

// discard notes that the rows of what was put aside are nobody's, as finish does for entries.
func (j *journal) discard(old policy.Place) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.aside = append(j.aside, old)
}

// tidy deletes the rows of finished entries when no operation has come to do it.
func (j *journal) tidy() {
	j.mu.Lock()
	idle := len(j.done)+len(j.aside) == 0
	j.mu.Unlock()
	if !idle {
		j.g.db.Later(func(tx *store.Tx) error { tx.Collect(sweeper{j}, nil); return nil })
	}
}

// sweeper deletes the rows of finished entries, once per shared transaction.
type sweeper struct{ j *journal }

// Flush implements store.Flusher.
func (s sweeper) Flush(tx *store.Tx, _ []any) error {
	s.j.mu.Lock()
	ids, aside := slices.Clone(s.j.done), slices.Clone(s.j.aside)
	s.j.mu.Unlock()
	if len(ids)+len(aside) == 0 {
		return nil
	}
	tx.OnCommit(func() {
		s.j.mu.Lock()
		defer s.j.mu.Unlock()
		s.j.done = slices.Delete(s.j.done, 0, len(ids))
		s.j.aside = slices.Delete(s.j.aside, 0, len(aside))
	})
	for _, old := range aside {
		if err := deleteNodes(tx, old.Datasource, old.Path); err != nil {
			return err
		}
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	return deleteIDs(tx, `DELETE FROM journal WHERE id IN `, args)
}

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

// replay does the outstanding steps of the entries of one datasource. It returns the names in the gateway's area that entries still to be
// replayed refer to. An error means that the backend is not fit for work yet.
func (j *journal) replay(ctx context.Context, ds *datasource, m *mounted) (kept map[string]bool, err error) {
	kept = make(map[string]bool)
	for _, e := range j.of(ds.cfg.Name) {
		if e.After != 0 && j.pending(e.After) {
			for _, s := range e.Steps {
				kept[s.From], kept[s.To] = true, true
			}
			continue
		}
		if err := j.settle(ctx, ds, m, e); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// of returns the entries of a datasource that are not yet replayed, and pending whether one of any datasource is not.
func (j *journal) of(datasource string) []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.open[datasource])
}

func (j *journal) pending(id int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, es := range j.open {
		if slices.ContainsFunc(es, func(e entry) bool { return e.ID == id }) {
			return true
		}
	}
	return false
}

// settle replays one entry, or gives it up with those that were to follow it when its place has changed from outside meanwhile: it was never
// acknowledged.
func (j *journal) settle(ctx context.Context, ds *datasource, m *mounted, e entry) error {
	release, err := ds.serial.claim(ctx, e.spans()...)
	if err != nil {
		return err
	}
	defer release()
	outcome, gone := "recovered", []any{e.ID}
	if err := redo(ctx, m, e.Steps); err != nil {
		switch fault.KindOf(err) {
		case fault.NotExist, fault.NotDir, fault.IsDir, fault.Exist, fault.NotEmpty:
			outcome = "rolled back"
			j.g.log.Warn("an interrupted operation cannot be finished and is given up", "datasource", ds.cfg.Name, "path", e.Path, "err", err)
		default:
			return err
		}
	}
	err = j.g.db.Update(ctx, func(tx *store.Tx) error {
		if outcome == "rolled back" {
			for _, s := range e.Steps {
				if err := deleteNodes(tx, ds.cfg.Name, s.To); err != nil {
					return err
				}
			}
		}
		j.g.audit.Append(tx, audit.Record{Time: j.g.clock.Now(), Actor: userScope(e.Actor), Action: e.Verb, Path: e.Path, Outcome: outcome})
		return deleteIDs(tx, `DELETE FROM journal WHERE id IN `, gone)
	})
	if err != nil {
		return err
	}
	j.drop(e.ID, outcome == "rolled back")
	for _, s := range e.Steps {
		if within(areaOld, s.To) {
			if err := removeAll(ctx, m, s.To); err != nil {
				return err
			}
		}
	}
	j.g.log.Info("an interrupted operation was dealt with", "datasource", ds.cfg.Name, "path", e.Path, "outcome", outcome)
	return nil
}

// drop forgets an entry that was dealt with, and with followers those that were to come after it.
func (j *journal) drop(id int64, followers bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for name, es := range j.open {
		j.open[name] = slices.DeleteFunc(es, func(e entry) bool {
			if followers && e.After == id {
				j.done = append(j.done, e.ID)
				return true
			}
			return e.ID == id
		})
	}
}

// spans are the places an entry's steps touch.
func (e entry) spans() (spans []span) {
	for _, s := range e.Steps {
		for _, name := range []string{s.From, s.To} {
			if !within(mounts.Area, name) {
				spans = append(spans, span{path: name, tree: true})
			}
		}
	}
	return spans
}

// resume replays what could not be replayed while another datasource was down.
func (j *journal) resume(ctx context.Context, t *table) {
	for name, ds := range t.datasources {
		if m, err := ds.open(); err == nil && len(j.of(name)) > 0 {
			if _, err := j.replay(ctx, ds, m); err != nil {
				j.g.log.Warn("interrupted operations are not dealt with yet", "datasource", name, "err", err)
			}
		}
	}
}

// redo does steps, skipping those that are done.
func redo(ctx context.Context, m mounts.Backend, steps []step) error {
	for _, s := range steps {
		info, err := m.Stat(ctx, s.From)
		switch {
		case fault.KindOf(err) == fault.NotExist && err != nil:
			continue
		case err != nil:
			return err
		case s.ID != 0 && info.ID != s.ID || s.Change != 0 && info.Change != s.Change && !info.IsDir():
			continue
		}
		if err := m.Rename(ctx, s.From, s.To); err != nil {
			return err
		}
	}
	return nil
}

// errLanded wraps the failure of a step that took effect all the same: a rename whose parent folder could not be synced. Nothing is undone
// then. The operation fails, since it may not outlast a power cut, and its journal entry stays, so that the next start makes it so.
var errLanded = errors.New("done, but perhaps not durable")

// perform does the steps of an entry whose transaction is committed. When one fails, those before it are undone and the transaction is
// taken back; the error is that of the step.
func (o *op) perform(ctx context.Context, m mounts.Backend, e *entry, undo func(tx *store.Tx) error) error {
	err := o.forth(ctx, m, e)
	switch {
	case err == nil:
		o.g.journal.finish(e.ID)
	case !errors.Is(err, errLanded):
		o.takeBack(ctx, err, undo, e.ID)
	}
	return err
}

// forth does the steps of an entry, all or none, or fails with errLanded in its chain.
func (o *op) forth(ctx context.Context, m mounts.Backend, e *entry) error {
	ctx = context.WithoutCancel(ctx)
	for i, s := range e.Steps {
		err := m.Rename(ctx, s.From, s.To)
		if err == nil {
			continue
		}
		if landed(ctx, m, s) {
			o.g.log.Error("a change is made but may not be durable", "path", o.path, "err", err)
			if rerr := redo(ctx, m, e.Steps[i+1:]); rerr == nil {
				return fault.New("gateway."+o.verb.String(), o.path.String(), fault.KindOf(err), errors.Join(errLanded, err))
			}
		}
		o.back(ctx, m, e.Steps[:i])
		return err
	}
	return nil
}

// landed reports whether a step that failed has taken effect.
func landed(ctx context.Context, m mounts.Backend, s step) bool {
	if _, err := m.Stat(ctx, s.From); err == nil || fault.KindOf(err) != fault.NotExist {
		return false
	}
	info, err := m.Stat(ctx, s.To)
	return err == nil && info.ID == s.ID
}

// back undoes steps that were done.
func (o *op) back(ctx context.Context, m mounts.Backend, done []step) {
	ctx = context.WithoutCancel(ctx)
	for _, s := range slices.Backward(done) {
		if err := m.Rename(ctx, s.To, s.From); err != nil {
			o.g.log.Error("a failed operation could not be undone on the backend", "path", o.path, "name", s.From, "now", s.To, "err", err)
		}
	}
}
