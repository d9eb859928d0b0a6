package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/text/cases"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// datasource is one configured backend. While it is down its backend is nil and every use of it is Unavailable.
type datasource struct {
	g      *Gateway
	cfg    Datasource
	serial *serial // shared with the datasource of the same name before and after a change of configuration

	mu      sync.Mutex // one attempt to open at a time
	tending atomic.Bool
	state   sync.RWMutex
	up      *mounted // guarded by state
	err     error    // why it is down, guarded by state
	since   time.Time
	gone    bool // closed for good
}

// mounted is an open backend with what the core needs to know of it.
type mounted struct {
	mounts.Backend
	features mounts.Features
	random   mounts.RandomAccess // nil when the backend has none
}

// The gateway's own folders in a datasource.
const (
	areaTmp = mounts.Area + "/tmp" // staged, not yet published
	areaOld = mounts.Area + "/old" // unpublished, not yet deleted
)

// open returns the backend, or Unavailable with the reason.
func (ds *datasource) open() (*mounted, error) {
	ds.state.RLock()
	defer ds.state.RUnlock()
	if ds.up == nil {
		return nil, fault.New("gateway.open", ds.cfg.Name, fault.Unavailable, ds.err)
	}
	return ds.up, nil
}

// attach tries to open the backend when it is not open, makes the gateway's area in it and replays what the journal holds for it.
func (ds *datasource) attach(ctx context.Context) error {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.state.RLock()
	up, gone := ds.up, ds.gone
	ds.state.RUnlock()
	if up != nil || gone {
		return nil
	}
	m, err := ds.dial(ctx)
	if err == nil && !ds.cfg.ReadOnly {
		if err = ds.prepare(ctx, m); err != nil {
			err = fmt.Errorf("%w (closing: %v)", err, m.Close())
		}
	}
	ds.state.Lock()
	defer ds.state.Unlock()
	if err != nil {
		if ds.err == nil || ds.err.Error() != err.Error() {
			ds.g.log.Warn("datasource is down", "datasource", ds.cfg.Name, "err", err)
			ds.since = ds.g.clock.Now()
		}
		ds.err = err
		return err
	}
	ds.up, ds.err, ds.since = m, nil, ds.g.clock.Now()
	return nil
}

func (ds *datasource) dial(ctx context.Context) (*mounted, error) {
	driver, ok := ds.g.drivers[ds.cfg.Driver]
	if !ok {
		return nil, fault.New("gateway.dial", ds.cfg.Name, fault.Unsupported, fmt.Errorf("no driver %q in this build", ds.cfg.Driver))
	}
	b, err := driver.Open(ctx, mounts.Config{
		Name: ds.cfg.Name, Options: ds.cfg.Options, Credentials: ds.cfg.Credentials, ReadOnly: ds.cfg.ReadOnly,
		Unsynced: ds.cfg.Durability == Written, Logger: ds.g.log,
	})
	if err != nil {
		return nil, err
	}
	b = mounts.Contain(b, ds.g.log)
	m := &mounted{Backend: b, features: b.Features()}
	m.random, _ = mounts.As[mounts.RandomAccess](b)
	return m, nil
}

// prepare makes the area, replays the journal's entries of this datasource and removes what nobody will ask for again.
func (ds *datasource) prepare(ctx context.Context, m *mounted) error {
	for _, dir := range []string{mounts.Area, areaTmp, areaOld} {
		if err := m.Mkdir(ctx, dir); err != nil && fault.KindOf(err) != fault.Exist {
			return err
		}
	}
	kept, err := ds.g.journal.replay(ctx, ds, m)
	if err != nil {
		return err
	}
	err = ds.g.db.Update(ctx, func(tx *store.Tx) error { return deleteNodes(tx, ds.cfg.Name, mounts.Area) })
	if err != nil {
		return err
	}
	for _, dir := range []string{areaTmp, areaOld} {
		for info, err := range m.List(ctx, dir) {
			if err != nil {
				return err
			}
			if name := join(dir, info.Name); !kept[name] {
				if err := removeAll(ctx, m, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tend brings a datasource back that is down, and notices one that has gone.
func (ds *datasource) tend(ctx context.Context) {
	m, err := ds.open()
	if err != nil {
		if ds.attach(ctx) == nil {
			ds.g.log.Info("datasource is up", "datasource", ds.cfg.Name)
			t := ds.g.table.Load()
			ds.g.ensureRoots(ctx, t, ds)
			ds.g.journal.resume(ctx, t)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := m.Stat(ctx, "."); err != nil && ctx.Err() == nil {
		ds.detach(err)
	}
}

// detach takes a backend whose root does not answer out of service until attach succeeds.
func (ds *datasource) detach(reason error) {
	ds.state.Lock()
	m := ds.up
	ds.up, ds.err, ds.since = nil, reason, ds.g.clock.Now()
	ds.state.Unlock()
	if m == nil {
		return
	}
	ds.g.log.Warn("datasource is down", "datasource", ds.cfg.Name, "err", reason)
	if err := m.Close(); err != nil {
		ds.g.log.Warn("closing a datasource failed", "datasource", ds.cfg.Name, "err", err)
	}
}

func (ds *datasource) close() error {
	ds.state.Lock()
	m := ds.up
	ds.up, ds.err, ds.gone = nil, errClosed, true
	ds.state.Unlock()
	if m == nil {
		return nil
	}
	return m.Close()
}

// place returns where rights, locks and rows of name are kept. Names that a backend cannot tell apart have one place, so that a deny on
// "Secret" holds for "SECRET" where both are one folder.
func (ds *datasource) place(name string) policy.Place {
	ds.state.RLock()
	folds := ds.up != nil && !ds.up.features.CaseSensitive
	ds.state.RUnlock()
	if folds {
		name = fold(name)
	}
	return policy.Place{Datasource: ds.cfg.Name, Path: name}
}

// fold is the common form of names that differ in case only.
func fold(name string) string {
	for i := range len(name) {
		if c := name[i]; c >= 0x80 {
			return cases.Fold().String(name)
		} else if c >= 'A' && c <= 'Z' {
			return cases.Fold().String(name)
		}
	}
	return strings.Clone(name)
}

// removeAll deletes name with all that is below it, of files nobody can reach any more. What is already gone is fine.
func removeAll(ctx context.Context, b mounts.Backend, name string) error {
	err := b.Remove(ctx, name)
	switch fault.KindOf(err) {
	case fault.NotExist:
		return nil
	case fault.NotEmpty:
	default:
		return err
	}
	// Collected first: deleting while listing may skip entries on some backends. One folder at a time, in bounded pieces.
	for {
		var batch []string
		for info, err := range b.List(ctx, name) {
			if err != nil {
				return err
			}
			batch = append(batch, info.Name)
			if len(batch) == 1000 {
				break
			}
		}
		for _, child := range batch {
			if err := removeAll(ctx, b, join(name, child)); err != nil {
				return err
			}
		}
		if len(batch) < 1000 {
			break
		}
	}
	if err := b.Remove(ctx, name); err != nil && fault.KindOf(err) != fault.NotExist {
		return err
	}
	return nil
}
