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
	aside []policy.Place     // what was put aside: its rows are not yet deleted
	rows  []int64            // rows of single files that were put aside
	doubt []*entry           // the answer to whose transaction was lost, and that were not performed
	open  map[string][]entry // by datasource, found at start and not yet replayed
}

// entry is a row of the journal: steps on one datasource that are still to be done, in order, and how to take back what the transaction
// changed when they cannot be.
type entry struct {
	ID         int64   `json:"-"`
	Datasource string  `json:"-"`
	Verb       string  `json:"-"`
	Path       string  `json:"path"`              // virtual, for the record of a replay
	Actor      string  `json:"actor,omitempty"`   // likewise
	User       int64   `json:"user,omitempty"`    // whose credentials the steps need, 0 the datasource's own
	Storage    string  `json:"storage,omitempty"` // the mark of the storage that the steps are about, "" where it bears none
	Steps      []step  `json:"steps"`
	Undo       inverse `json:"undo,omitzero"`
	After      int64   `json:"after,omitempty"`  // another entry that must be done first: a move between datasources takes the source away last
	Digest     uint64  `json:"digest,omitempty"` // of the tree that the first step takes away: what changed since stays
	Stay       inverse `json:"stay,omitzero"`    // what to do when the source stays after all
}

// step is one thing to do on the backend; by default to rename From to To. ID and Change are what From is: a node that came to be there later
// is not meant. A backend that tells neither is asked for Stamp.
type step struct {
	Do     deed   `json:"do,omitempty"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	ID     uint64 `json:"id,omitempty"`
	Change int64  `json:"change,omitempty"` // of a file; a folder's moves with its children
	Stamp  string `json:"stamp,omitempty"`  // of From; of doPut, what was at To before
}

// inverse takes back what an operation changed in the store. The parts are applied in this order.
type inverse struct {
	Gone   *policy.Place    `json:"gone,omitempty"`  // rows to delete, with those below
	Moves  []shift          `json:"moves,omitempty"` // rows to move, with those below
	Was    *node            `json:"was,omitempty"`   // a row to put back
	Usage  map[string]int64 `json:"usage,omitempty"` // to add to the quotas' scopes
	Grants policy.Moved     `json:"grants,omitzero"`
}

// shift is a move of rows.
type shift struct {
	From policy.Place `json:"from"`
	To   policy.Place `json:"to"`
}

// stepOf is the step that takes the node info away from where it is.
func stepOf(from, to string, info mounts.Info) step {
	s := step{From: from, To: to, ID: info.ID}
	if !info.IsDir() {
		s.Change = info.Change
	}
	if s.ID == 0 {
		s.Stamp = stampOf(info, true)
	}
	return s
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

// entry makes the journal entry of an operation, with the outstanding steps on m.
func (o *op) entry(m *mounted, steps ...step) *entry {
	return &entry{ID: store.NewID(), Datasource: m.name, Verb: o.verb.String(), Path: o.path.String(), Actor: o.actor(), User: m.user, Storage: m.id, Steps: steps}
}

// finish notes that entries' steps are done. Their rows go with the very next transaction of whatever operation: one that changes the same
// place again can only begin after this, since the caller still holds the publish lock, so no stale entry outlives it. Where nothing more
// happens, tidy sees to it.
func (j *journal) finish(entries ...*entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		j.done = append(j.done, e.ID)
	}
}

// discard notes that the rows of what was put aside are nobody's, as finish does for entries.
func (j *journal) discard(old policy.Place) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.aside = append(j.aside, old)
}

// discardRow is discard for the row of one file; 0 is none.
func (j *journal) discardRow(id int64) {
	if id == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rows = append(j.rows, id)
}

// suspect notes entries that were not performed, but whose transactions may be committed.
func (j *journal) suspect(entries ...*entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doubt = append(j.doubt, entries...)
}

// postpone leaves entries to the replay when the backend is back.
func (j *journal) postpone(entries ...*entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		j.open[e.Datasource] = append(j.open[e.Datasource], *e)
	}
}

// tidy deletes the rows of finished entries when no operation has come to do it, and takes back those whose answer was lost.
func (j *journal) tidy(ctx context.Context) {
	j.mu.Lock()
	idle := len(j.done)+len(j.aside)+len(j.rows) == 0
	doubt := j.doubt
	j.doubt = nil
	j.mu.Unlock()
	if !idle {
		j.g.db.Later(func(tx *store.Tx) error { tx.Collect(sweeper{j}, nil); return nil })
	}
	for _, e := range doubt {
		if err := j.deny(ctx, e); err != nil {
			j.mu.Lock()
			j.doubt = append(j.doubt, e)
			j.mu.Unlock()
		}
	}
}

// deny takes back an entry that was never performed, if its transaction was committed at all.
func (j *journal) deny(ctx context.Context, e *entry) error {
	there, err := j.holds(ctx, e.ID)
	if err != nil || !there {
		return err
	}
	return j.g.db.Update(ctx, func(tx *store.Tx) error { return j.takeBack(tx, *e, "failed") })
}

// holds reports whether an entry's transaction was committed.
func (j *journal) holds(ctx context.Context, id int64) (bool, error) {
	var n int
	err := j.g.db.QueryRow(ctx, `SELECT count(*) FROM journal WHERE id = $1`, id).Scan(&n)
	return n > 0, err
}

// sweeper deletes the rows of finished entries, once per shared transaction.
type sweeper struct{ j *journal }

// Flush implements store.Flusher.
func (s sweeper) Flush(tx *store.Tx, _ []any) error {
	s.j.mu.Lock()
	ids, aside, rows := slices.Clone(s.j.done), slices.Clone(s.j.aside), slices.Clone(s.j.rows)
	s.j.mu.Unlock()
	if len(ids)+len(aside)+len(rows) == 0 {
		return nil
	}
	tx.OnCommit(func() {
		s.j.mu.Lock()
		defer s.j.mu.Unlock()
		s.j.done = slices.Delete(s.j.done, 0, len(ids))
		s.j.aside = slices.Delete(s.j.aside, 0, len(aside))
		s.j.rows = slices.Delete(s.j.rows, 0, len(rows))
	})
	for _, old := range aside {
		if err := deleteNodes(tx, old.Datasource, old.Path); err != nil {
			return err
		}
	}
	if err := deleteIDs(tx, `DELETE FROM nodes WHERE id IN `, anys(rows)); err != nil {
		return err
	}
	return deleteIDs(tx, `DELETE FROM journal WHERE id IN `, anys(ids))
}

// takeBack applies an entry's inverse, deletes its row and records the outcome.
func (j *journal) takeBack(tx *store.Tx, e entry, outcome string) error {
	u := e.Undo
	if u.Gone != nil {
		if err := deleteNodes(tx, u.Gone.Datasource, u.Gone.Path); err != nil {
			return err
		}
	}
	for _, m := range u.Moves {
		if err := moveNodes(tx, m.From, m.To); err != nil {
			return err
		}
	}
	if u.Was != nil {
		if err := (nodes{j.g}).Flush(tx, []any{u.Was}); err != nil {
			return err
		}
	}
	j.g.count(tx, u.Usage, 1)
	if err := j.g.engine.RestoreGrants(tx, u.Grants); err != nil {
		return err
	}
	return j.settle(tx, e, outcome)
}

// settle deletes an entry's row and records the outcome of its replay.
func (j *journal) settle(tx *store.Tx, e entry, outcome string) error {
	j.g.audit.Append(tx, audit.Record{Time: j.g.clock.Now(), Actor: userScope(e.Actor), Action: e.Verb, Path: e.Path, Outcome: outcome})
	return deleteIDs(tx, `DELETE FROM journal WHERE id IN `, []any{e.ID})
}

func anys(ids []int64) []any {
	all := make([]any, len(ids))
	for i, id := range ids {
		all[i] = id
	}
	return all
}

// Errors of steps whose outcome is not simply that they failed.
var (
	// errLanded wraps the failure of a step that took effect all the same: a rename whose parent folder could not be synced. The operation
	// fails, since it may not outlast a power cut, but nothing is undone: store and storage agree.
	errLanded = errors.New("done, but perhaps not durable")
	// errUnknown wraps that of a step nobody can tell of, since the backend has gone, or that is half done. The journal keeps the entry and goes
	// on with it once the backend works again.
	errUnknown = errors.New("it is gone on with when the backend works again")
)

// perform does the steps of an entry whose transaction is committed. When one fails, those before it are undone and the transaction is
// taken back; the error is that of the step.
func (o *op) perform(ctx context.Context, m *mounted, e *entry) error {
	return o.settle(ctx, o.forth(ctx, m, e), e)
}

// performed is perform for the one step of an entry that was tried already, with err.
func (o *op) performed(ctx context.Context, m *mounted, e *entry, err error) error {
	if err != nil {
		err = o.outcome(context.WithoutCancel(ctx), m, e.Steps[0], err)
	}
	return o.settle(ctx, err, e)
}

// settle finishes an entry whose steps ended with err.
func (o *op) settle(ctx context.Context, err error, e *entry) error {
	switch {
	case err == nil || errors.Is(err, errLanded):
		o.g.journal.finish(e)
	case errors.Is(err, errUnknown):
		o.g.journal.postpone(e)
	default:
		o.takeBack(ctx, err, e)
	}
	return err
}

// takeBack undoes committed transactions whose last step on the backend failed, and records that.
func (o *op) takeBack(ctx context.Context, cause error, entries ...*entry) {
	err := o.g.db.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		for _, e := range entries {
			if err := o.g.journal.takeBack(tx, *e, "failed: "+fault.KindOf(cause).String()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		o.g.log.Error("an operation failed and could not be taken back; it is tried again", "path", o.path, "err", err)
		o.g.journal.suspect(entries...)
	}
}

// forth does the steps of an entry, all or none, or fails with errLanded or errUnknown in its chain.
func (o *op) forth(ctx context.Context, m *mounted, e *entry) error {
	ctx = context.WithoutCancel(ctx)
	var unsure error
	for i, s := range e.Steps {
		err := s.do(ctx, m)
		if err != nil {
			err = o.outcome(ctx, m, s, err)
		}
		switch {
		case errors.Is(err, errUnknown):
			return err
		case errors.Is(err, errLanded):
			unsure = err
		case err != nil:
			o.back(ctx, m, e.Steps[:i])
			return err
		}
	}
	return unsure
}

// outcome finds out what became of a step that failed.
func (o *op) outcome(ctx context.Context, m *mounted, s step, err error) error {
	done, serr := s.landed(ctx, m)
	half := serr == nil && !done && passing(err) && s.half(ctx, m)
	switch {
	case half || serr != nil && passing(serr) && passing(err):
		o.g.log.Warn("the outcome of a change is not known yet", "path", o.path, "err", err)
		return fault.New("gateway."+o.verb.String(), o.path.String(), fault.KindOf(err), errors.Join(errUnknown, err))
	case done:
		o.g.log.Error("a change is made but may not be durable", "path", o.path, "err", err)
		return fault.New("gateway."+o.verb.String(), o.path.String(), fault.KindOf(err), errors.Join(errLanded, err))
	}
	return err
}

// back undoes steps that were done.
func (o *op) back(ctx context.Context, m mounts.Backend, done []step) {
	ctx = context.WithoutCancel(ctx)
	for _, s := range slices.Backward(done) {
		if err := s.undo(ctx, m); err != nil {
			o.g.log.Error("a failed operation could not be undone on the backend", "path", o.path, "name", s.From, "now", s.To, "err", err)
		}
	}
}
