package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/breaker"
	"cellgate/mounts/cache"
	"cellgate/mounts/probe"
	"cellgate/mounts/retry"
	"cellgate/mounts/throttle"
	"cellgate/mounts/writeback"
	"cellgate/store"
)

// chain is what stands between the core and a driver. A backend across a network gets, from the driver up,
//
//	retry      what failed before it reached the backend, and reads
//	breaker    the bulkhead: places, deadlines, out of service when it only fails
//	throttle   where the admin set limits
//	writeback  where the admin asked for it
//	cache      attributes and listings, and content where the admin gave it room
//
// and one on this machine only limits: it costs a hundredth of what the chain does.
type chain struct {
	top     mounts.Backend
	direct  mounts.Backend     // below what remembers and what waits to be written
	breaker *breaker.Backend   // nil without
	cache   *cache.Backend     // likewise
	pending *writeback.Backend // likewise
	age     time.Duration      // how old what is told about files may be
}

// defaultAge is how old what is told about files across a network may be.
const defaultAge = 5 * time.Second

// chain puts the wrappers of a datasource round a backend that the driver opened.
func (ds *datasource) chain(ctx context.Context, b mounts.Backend, t tuning, user int64) (c chain, err error) {
	log := ds.g.log.With("datasource", ds.cfg.Name)
	var above atomic.Pointer[cache.Backend] // what has to hear of files that were written later
	c.top = mounts.Contain(b, log)
	c.direct = c.top
	defer func() {
		if err != nil {
			err = errors.Join(err, c.top.Close())
		}
	}()
	if ds.g.bare {
		return c, nil
	}
	if b.Features().Remote {
		c.top = retry.New(c.top, retry.Config{Logger: log})
		c.breaker = breaker.New(c.top, breaker.Config{Calls: t.maxCalls, Deadline: t.deadline, Progress: t.progress, Clock: ds.g.clock, Logger: log})
		c.top = mounts.Around(c.breaker, ds.signedIn())
	}
	if t.maxRead > 0 || t.maxWrite > 0 {
		c.top = throttle.New(c.top, throttle.Config{Read: t.maxRead, Write: t.maxWrite})
	}
	c.direct = c.top
	if t.writeBack && user == 0 && !ds.cfg.ReadOnly {
		if ds.g.spool == "" {
			return c, fault.New("gateway.dial", ds.cfg.Name, fault.Invalid, errors.New("writeBack needs a folder for what waits, and this box has none"))
		}
		if err := ds.owns(ctx, c.direct); err != nil {
			return c, err
		}
		c.pending, err = writeback.New(c.top, writeback.Config{
			Dir: ds.g.waitingRoom(ds.cfg.Name), Size: t.writeSize, Clock: ds.g.clock, Logger: log,
			OnChange: func(name string) {
				if above := above.Load(); above != nil {
					above.Invalidate(name)
				}
			},
		})
		if err != nil {
			return c, err
		}
		c.top = c.pending
	}
	if age := t.cacheAge; age > 0 || age < 0 && b.Features().Remote || t.cacheSize > 0 {
		cfg := cache.Config{Age: age, Size: t.cacheSize, ReadAhead: t.readAhead, Clock: ds.g.clock, Logger: log}
		if age < 0 {
			cfg.Age = defaultAge
		}
		c.age = cfg.Age
		if t.cacheSize > 0 && ds.g.spool != "" {
			cfg.Dir = filepath.Join(ds.g.spool, "cache", fmt.Sprintf("%s-%d", ds.cfg.Name, user))
		}
		if c.cache, err = cache.New(c.top, cfg); err != nil {
			return c, err
		}
		c.top = c.cache
		above.Store(c.cache)
	}
	return c, nil
}

// fresh is ctx for questions that only the backend itself may answer.
func fresh(ctx context.Context) context.Context { return cache.Fresh(ctx) }

// noted is ctx for questions about a file that will be replaced or removed under cond: without one, its time does not matter.
func noted(ctx context.Context, cond Cond) context.Context {
	if cond.any() {
		return fresh(ctx)
	}
	return cache.Untimed(ctx)
}

// Probe tries what the datasource's backend can do, by writing to a folder of the gateway's own, stores what it finds and returns it. Only a
// datasource that is up can be tried, and only with credentials of its own.
func (g *Gateway) Probe(ctx context.Context, name string) (probe.Report, error) {
	const op = "gateway.Probe"
	ds := g.table.Load().datasources[name]
	if ds == nil {
		return probe.Report{}, fault.New(op, name, fault.NotExist, errors.New("there is no such datasource"))
	}
	if ds.personal() {
		return probe.Report{}, fault.New(op, name, fault.Unsupported, errors.New("each user opens it with credentials of his own; it has none to be tried with"))
	}
	m, err := ds.open()
	if err != nil {
		if err := ds.attach(ctx); err != nil { // an admin who asks does not want to wait for the next attempt
			return probe.Report{}, err
		}
		if m, err = ds.open(); err != nil {
			return probe.Report{}, err
		}
	}
	return ds.probe(ctx, m)
}

// Retry tries at once to open a datasource that is down. Its state tells what came of it.
func (g *Gateway) Retry(ctx context.Context, name string) {
	if ds := g.table.Load().datasources[name]; ds != nil && ds.attach(ctx) == nil {
		g.ensureRoots(ctx, g.table.Load(), ds)
	}
}

// probeWait bounds what is tried while a datasource is opened.
const probeWait = 30 * time.Second

// probe tries the backend and stores the report. What cannot be relied on is refused from now on.
func (ds *datasource) probe(ctx context.Context, m *mounted) (probe.Report, error) {
	ctx, cancel := context.WithTimeout(fresh(ctx), probeWait)
	defer cancel()
	// Neither the cache nor what waits to be written shall answer.
	r, err := probe.Run(ctx, m.chain.direct, mounts.Area+"/"+staging, ds.cfg.ReadOnly)
	if err != nil {
		return r, fault.Wrap("gateway.Probe", ds.cfg.Name, err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return r, fault.New("gateway.Probe", ds.cfg.Name, fault.Internal, err)
	}
	err = ds.g.db.Update(ctx, func(tx *store.Tx) error { return store.SetSetting(tx, ds.reportKey(), string(text)) })
	if err != nil {
		return r, err
	}
	ds.report.Store(&r)
	return r, nil
}

func (ds *datasource) reportKey() string { return "datasource." + ds.cfg.Name + ".probe" }

// examine takes what was found out about a backend before, or finds it out now, before anybody relies on what the driver claims.
func (ds *datasource) examine(ctx context.Context, m *mounted) error {
	text, err := ds.g.db.Setting(ctx, ds.reportKey())
	if err != nil {
		return err
	}
	var r probe.Report
	if text == "" || json.Unmarshal([]byte(text), &r) != nil {
		if r, err = ds.probe(ctx, m); err != nil {
			if passing(err) {
				return err
			}
			ds.g.log.Warn("cannot try what the datasource's backend can do; taking what its driver says", "datasource", ds.cfg.Name, "err", err)
			return nil
		}
		for _, c := range r.Checks {
			if c.Failed {
				ds.g.log.Warn("the datasource does not do what its driver expects", "datasource", ds.cfg.Name, "what", c.Name, "why", c.Detail)
			}
		}
	}
	ds.report.Store(&r)
	ds.mistrust(m)
	return nil
}

// mistrust takes from what the driver claims what was found not to hold. Only what makes the core more careful: the driver knows better what
// it can do today.
func (ds *datasource) mistrust(m *mounted) {
	if r := ds.report.Load(); r != nil {
		m.features.CaseSensitive = m.features.CaseSensitive && r.Features.CaseSensitive
		m.features.ConditionalWrite = min(m.features.ConditionalWrite, r.Features.ConditionalWrite)
	}
	if m.private && ds.blind.Load() { // what one user's server says unfolds nobody's rights
		m.features.CaseSensitive = false
	}
}

// signedIn makes the refusal of credentials one of rights: nobody gains by signing in here again.
func (ds *datasource) signedIn() mounts.Hooks {
	told := func(err error) error {
		if err != nil && fault.KindOf(err) == fault.Unauthenticated {
			return fault.New("gateway.call", ds.cfg.Name, fault.Denied, fmt.Errorf("the backend does not accept the datasource's credentials any more: %w", err))
		}
		return err
	}
	return mounts.Hooks{
		Call: func(_ context.Context, _, _ string, do func() error) error { return told(do()) },
		List: func(_ context.Context, _ string, all iter.Seq2[mounts.Info, error]) iter.Seq2[mounts.Info, error] {
			return func(yield func(mounts.Info, error) bool) {
				for info, err := range all {
					if !yield(info, told(err)) {
						return
					}
				}
			}
		},
	}
}
