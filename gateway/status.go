package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/breaker"
	"cellgate/mounts/probe"
	"cellgate/mounts/writeback"
)

// The states of a datasource.
const (
	Up       = "up"
	Degraded = "degraded" // it works, but failed a short while ago, or does not do what its driver expects, or writes wait that it refuses
	Down     = "down"
)

// DatasourceStatus is a datasource with how it is doing.
type DatasourceStatus struct {
	Datasource
	State    string    // Up, Degraded or Down
	Since    time.Time // when it came up or went down
	Err      error     // why it is not simply up
	Users    int       // who have it open, each with credentials of his own
	Features mounts.Features
	Space    mounts.Space
	Age      time.Duration     // how old what is told about its files may be
	Report   *probe.Report     // what was found by trying, nil before
	Calls    *breaker.Stats    // of a datasource across a network that is up, else nil
	Pending  []writeback.Entry // files that wait to be written
}

// recently is how long a failure makes a datasource degraded.
const recently = time.Minute

// Datasources returns every datasource with its state, by name. They are asked side by side: several that stall take as long as one.
func (g *Gateway) Datasources(ctx context.Context) []DatasourceStatus {
	t := g.table.Load()
	names := slices.Sorted(maps.Keys(t.datasources))
	all := make([]DatasourceStatus, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		asked.Go(func() { all[i] = t.datasources[name].status(ctx) })
	}
	asked.Wait()
	return all
}

func (ds *datasource) status(ctx context.Context) DatasourceStatus {
	st := DatasourceStatus{
		Datasource: ds.cfg, State: Up, Space: mounts.Space{Total: -1, Used: -1, Free: -1}, Users: ds.tenants.count(), Report: ds.report.Load(),
	}
	ds.state.RLock()
	st.Since, st.Err = ds.since, ds.err
	m := ds.up
	ds.state.RUnlock()
	switch {
	case ds.personal():
		return st
	case m == nil:
		st.State = Down
		return st
	}
	st.Features, st.Age = m.features, m.chain.age
	degrade := func(err error) {
		if st.State == Up {
			st.State, st.Err = Degraded, err
		}
	}
	if m.chain.pending != nil {
		st.Pending = m.chain.pending.Pending()
	}
	if m.chain.breaker != nil {
		calls := m.chain.breaker.Stats()
		st.Calls = &calls
		switch {
		case calls.State != breaker.Closed:
			st.State, st.Since, st.Err = Down, calls.Since, calls.LastError
			return st
		case calls.LastError != nil && ds.g.clock.Now().Sub(calls.LastAt) < recently:
			degrade(calls.LastError)
		}
	}
	for _, e := range st.Pending {
		if e.Err != nil {
			degrade(fmt.Errorf("%s waits to be written: %w", e.Name, e.Err))
		}
	}
	if st.Report != nil {
		for _, c := range st.Report.Checks {
			if c.Failed {
				degrade(fmt.Errorf("%s: %s", c.Name, c.Detail))
			}
		}
	}
	if sp, ok := mounts.As[mounts.Spacer](m.Backend); ok {
		ctx, cancel := context.WithTimeout(ctx, statusWait)
		defer cancel()
		if space, err := sp.Space(ctx); err == nil {
			st.Space = space
			if space.Free >= 0 && space.Free < fullBelow && !ds.cfg.ReadOnly {
				degrade(fault.New("gateway", ds.cfg.Name, fault.NoSpace, errors.New("delete something on the backend, or give it more room")))
			}
		}
	}
	return st
}

// fullBelow is the room below which a datasource is as good as full.
const fullBelow = 64 << 10

// statusWait is how long a backend may take to say how much room it has.
const statusWait = 2 * time.Second
