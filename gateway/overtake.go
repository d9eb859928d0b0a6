package gateway

import (
	"context"
	"errors"
	"slices"

	"cellgate/internal/fault"
	"cellgate/store"
)

// What the journal still has to do at a place, since a backend had gone, must not come upon what users do there later: a folder that is to be
// deleted may have been made anew. So nothing is changed where an entry is open: it is Busy, and the entry is gone on with at once. Only a
// removal, which makes it pointless, and whoever meets an entry that nobody may ever come back for, overtake it: their transaction takes that
// of the entry back.

var errUnfinished = errors.New("an interrupted operation is gone on with here; try again in a moment")

// overtaken returns the open entries that a change with these entries makes pointless, or Busy when it has to wait for one. The caller holds
// the publish locks.
func (o *op) overtaken(entries []*entry) (over []entry, err error) {
	for _, e := range entries {
		ds := o.b.table.datasources[e.Datasource]
		if ds == nil {
			continue
		}
		for _, was := range o.g.journal.crossing(ds, e.spans(ds)) {
			if o.verb != verbRemove && ds.returns(was, e.User) || was.After != 0 && ds.returns(was, e.User) {
				o.g.journal.hurry(ds, was.User)
				return nil, fault.New("gateway."+o.verb.String(), o.path.String(), fault.Busy, errUnfinished)
			}
			if !slices.ContainsFunc(over, func(x entry) bool { return x.ID == was.ID }) {
				over = append(over, was)
			}
		}
	}
	return over, nil
}

// returns reports whether an entry will be dealt with soon, when user works on the datasource now.
func (ds *datasource) returns(e entry, user int64) bool {
	return e.User == user || e.User == 0 && !ds.personal()
}

// crossing returns the open entries of a datasource that are about what is at, above or below the spans.
func (j *journal) crossing(ds *datasource, spans []span) (all []entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.open[ds.cfg.Name] {
		if slices.ContainsFunc(e.spans(ds), func(a span) bool {
			return slices.ContainsFunc(spans, func(b span) bool { return within(a.path, b.path) || within(b.path, a.path) })
		}) {
			all = append(all, e)
		}
	}
	return all
}

// overtake takes an open entry back within the transaction of what comes in its place.
func (j *journal) overtake(tx *store.Tx, e entry) error {
	const outcome = "overtaken"
	if e.After != 0 { // the source stays, as in keep
		if err := j.g.engine.KeepGrants(tx, e.Stay.Grants); err != nil {
			return err
		}
		j.g.count(tx, e.Stay.Usage, 1)
		return j.settle(tx, e, outcome)
	}
	for _, f := range j.followers(e.ID) {
		if err := j.settle(tx, f, outcome); err != nil {
			return err
		}
	}
	return j.takeBack(tx, e, outcome)
}

// abandon gives up an entry about another storage than the one that is there now.
func (j *journal) abandon(ctx context.Context, e entry) error {
	err := j.g.db.Update(ctx, func(tx *store.Tx) error {
		for _, f := range append(j.followers(e.ID), e) {
			if err := j.settle(tx, f, "abandoned"); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		j.forget(e.ID, true)
		j.g.log.Warn("an interrupted operation was about another storage and is given up", "datasource", e.Datasource, "path", e.Path)
	}
	return err
}

// drop forgets what is open on a datasource that is deleted.
func (j *journal) drop(datasource string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, datasource)
}

// hurry goes on with what was interrupted on a datasource as one user, without waiting for tend.
func (j *journal) hurry(ds *datasource, user int64) {
	var m *mounted
	if user == 0 {
		m, _ = ds.open()
	} else {
		m = ds.tenants.ready()[user]
	}
	if m == nil || !ds.tending.CompareAndSwap(false, true) {
		return
	}
	j.g.background("go on with interrupted operations", func(ctx context.Context) error {
		defer ds.tending.Store(false)
		return j.goOn(ctx, ds, m)
	})
}

// goOn deals with what is open on one backend.
func (j *journal) goOn(ctx context.Context, ds *datasource, m *mounted) error {
	if !slices.ContainsFunc(j.of(ds.cfg.Name), func(e entry) bool { return e.User == m.user }) {
		return nil
	}
	err := j.replay(ctx, ds, m)
	j.resumeOn(ctx, j.g.table.Load(), ds, m)
	return err
}
