package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/text/cases"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/probe"
	"cellgate/policy"
	"cellgate/store"
)

// datasource is one configured backend. While it is down its backend is nil and every use of it is Unavailable.
type datasource struct {
	g   *Gateway
	cfg Datasource
	*lasting
	tenants tenants // of a datasource that is not Shared

	tending atomic.Bool
	state   sync.RWMutex
	up      *mounted  // guarded by state
	err     error     // why it is down, guarded by state
	since   time.Time // guarded by state
	gone    bool      // closed for good, guarded by state
}

// lasting is what a datasource of one name keeps through changes of its configuration.
type lasting struct {
	serial  *serial
	mu      sync.Mutex // one attempt to open at a time
	outside outside
	report  atomic.Pointer[probe.Report] // what was found by trying, nil before
	blind   atomic.Bool                  // the backend does not tell "a" from "A"; remembered in the store, so that rights hold before it is open
}

// mounted is an open backend with what the core needs to know of it.
type mounted struct {
	mounts.Backend
	chain    chain
	name     string // of the datasource
	features mounts.Features
	random   mounts.RandomAccess // nil when the backend has none
	stages   bool                // uploads are staged on the backend; else they go out to it whole (outbound.go)
	private  bool                // opened with one user's own credentials, who may not have the run of the gateway's area
	user     int64               // that user
	id       string              // the mark of the storage, "" where it is not asked for
	cleaned  uint64              // failures of the backend after which the areas were swept; tend's
	life     context.Context     // ends when it is closed
	end      context.CancelFunc
}

// Close ends what looks after the backend, and closes it.
func (m *mounted) Close() error {
	m.end()
	return m.Backend.Close()
}

// Unwrap makes the capabilities of the backend reachable.
func (m *mounted) Unwrap() mounts.Backend { return m.Backend }

// aside reports whether a tree can be put aside in one step before it is deleted.
func (m *mounted) aside() bool { return m.features.Rename == mounts.Native && !m.private }

// waiting reports whether files wait to be written to the backend. They can be read though it is away, as long as it is not closed; its breaker
// answers for it meanwhile.
func (m *mounted) waiting() bool {
	return m.chain.pending != nil && len(m.chain.pending.Pending()) > 0
}

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
	if up != nil || gone || ds.personal() {
		return nil
	}
	m, err := ds.dial(ctx, ds.cfg, 0)
	if err == nil {
		if err = ds.prepare(ctx, m); err != nil {
			err = errors.Join(err, m.Close())
		}
	}
	ds.state.Lock()
	defer ds.state.Unlock()
	if err == nil && ds.gone {
		return m.Close() // replaced while it was opened
	}
	if err != nil {
		if ds.err == nil || ds.err.Error() != err.Error() {
			ds.g.log.Warn("datasource is down", "datasource", ds.cfg.Name, "err", err)
			ds.since = ds.g.clock.Now()
		}
		ds.err = err
		return err
	}
	ds.up, ds.err, ds.since = m, nil, ds.g.clock.Now()
	if t, err := ds.cfg.tuning(); err == nil {
		ds.watch(m.life, m, t.poll)
	}
	return nil
}

// personal reports whether only its users open the datasource, each for himself.
func (ds *datasource) personal() bool { return ds.cfg.Mode != Shared && ds.cfg.Fallback != Shared }

// dial opens the backend as cfg says, for one user or, with 0, for all.
func (ds *datasource) dial(ctx context.Context, cfg Datasource, user int64) (*mounted, error) {
	driver, ok := ds.g.drivers[cfg.Driver]
	if !ok {
		return nil, fault.New("gateway.dial", cfg.Name, fault.Unsupported, fmt.Errorf("no driver %q in this build", cfg.Driver))
	}
	b, err := driver.Open(ctx, ds.g.config(cfg))
	if err != nil {
		return nil, err
	}
	t, err := cfg.tuning()
	if err != nil {
		return nil, errors.Join(fault.New("gateway.dial", cfg.Name, fault.Invalid, err), b.Close())
	}
	c, err := ds.chain(ctx, b, t, user)
	if err != nil {
		return nil, err
	}
	b = c.top
	m := &mounted{Backend: b, chain: c, name: cfg.Name, features: b.Features(), user: user, private: user != 0}
	m.life, m.end = context.WithCancel(ds.g.life)
	m.random, _ = mounts.As[mounts.RandomAccess](b)
	m.stages = m.random != nil && !m.features.Remote
	if m.features.Remote && t.cacheSize > 0 {
		m.random = nil // reads at any place shall find the cache of content
	}
	return m, nil
}

// prepare sees to it that rights hold on the backend's names, makes the area, replays the journal's entries of this datasource and removes what
// nobody will ask for again.
func (ds *datasource) prepare(ctx context.Context, m *mounted) error {
	if !ds.cfg.ReadOnly {
		if err := ds.recognise(ctx, m); err != nil {
			return unwritable(ds.cfg.Name, err)
		}
		kept := ds.g.journal.names(ds.cfg.Name)
		if err := ds.sweepAreas(ctx, m, kept); err != nil {
			return unwritable(ds.cfg.Name, err)
		}
	}
	if err := ds.examine(ctx, m); err != nil {
		return err
	}
	if err := ds.foldRights(ctx, m); err != nil || ds.cfg.ReadOnly {
		return err
	}
	if err := ds.own(m); err != nil {
		return err
	}
	return ds.g.journal.replay(ctx, ds, m)
}

// unwritable says what to do when the backend refuses to be written to.
func unwritable(name string, err error) error {
	if fault.KindOf(err) != fault.Denied {
		return err
	}
	return fault.New("gateway.attach", name, fault.Denied, fmt.Errorf("the backend refuses to be written to: declare the datasource with readOnly: true, or give its credentials the right to make files: %w", err))
}

// markKey is the setting that remembers which storage this is.
func (ds *datasource) markKey() string { return "datasource." + ds.cfg.Name + ".id" }

// mark is the file in the area that says which storage this is.
const mark = mounts.Area + "/id"

// recognise refuses a storage that is not the one the datasource was: most likely something is not mounted, and what would be written now
// would vanish beneath it.
func (ds *datasource) recognise(ctx context.Context, m *mounted) error {
	setting := ds.markKey()
	want, err := ds.g.db.Setting(ctx, setting)
	if err != nil {
		return err
	}
	have, err := markOf(ctx, m.chain.direct)
	if err != nil {
		return err
	}
	switch {
	case want != "" && have == want:
		m.id = have
		return nil
	case want != "":
		return fault.New("gateway.attach", ds.cfg.Name, fault.Unavailable,
			fmt.Errorf("this is not the storage that was here: its file %s does not say %s. Is it mounted? If it is the right one, write that into the file", mark, want))
	case have == "":
		have = rand.Text()
		if err := m.chain.direct.Mkdir(ctx, mounts.Area); err != nil && fault.KindOf(err) != fault.Exist {
			return err
		}
		content := have + "\n"
		opt := mounts.PutOptions{Size: int64(len(content)), Exclusive: true} // another datasource may be here for the first time, too
		_, err := m.chain.direct.Put(ctx, mark, strings.NewReader(content), opt)
		if fault.KindOf(err) == fault.Exist {
			have, err = markOf(ctx, m.chain.direct)
		}
		if err != nil {
			return err
		}
	}
	m.id = have
	return ds.g.db.Update(ctx, func(tx *store.Tx) error { return store.SetSetting(tx, setting, have) })
}

// markOf returns the mark of a storage, "" where there is none.
func markOf(ctx context.Context, b mounts.Backend) (string, error) {
	content, err := mounts.ReadFile(ctx, b, mark, 256)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		return "", err
	}
	return strings.TrimSpace(string(content)), nil
}

// foldRights moves grants to the one spelling that counts when the backend turns out not to tell "a" from "A". They may have been made before
// it was ever open.
func (ds *datasource) foldRights(ctx context.Context, m *mounted) error {
	ds.blind.Store(!m.features.CaseSensitive)
	setting := "datasource." + ds.cfg.Name + ".case"
	was, err := ds.g.db.Setting(ctx, setting)
	if err != nil || m.features.CaseSensitive == (was == "") {
		return err
	}
	if m.features.CaseSensitive {
		return ds.g.db.Update(ctx, func(tx *store.Tx) error { return store.SetSetting(tx, setting, "") })
	}
	grants, err := ds.g.engine.Grants(ctx, policy.Filter{Datasource: ds.cfg.Name})
	if err != nil {
		return err
	}
	policies, err := ds.g.engine.Policies(ctx)
	if err != nil {
		return err
	}
	var paths []string
	for _, g := range grants {
		paths = append(paths, g.On.Path)
	}
	for _, p := range policies {
		for _, at := range p.Guards {
			if at.Datasource == ds.cfg.Name {
				paths = append(paths, at.Path)
			}
		}
	}
	// The deepest first: what moves takes along what is below it.
	slices.SortFunc(paths, func(a, b string) int { return cmp.Or(depthOf(b)-depthOf(a), strings.Compare(a, b)) })
	paths = slices.Compact(paths)
	return ds.g.db.Update(ctx, func(tx *store.Tx) error {
		for _, path := range paths {
			if folded := fold(path); folded != path {
				if _, err := ds.g.engine.MoveGrants(tx, policy.Place{Datasource: ds.cfg.Name, Path: path}, policy.Place{Datasource: ds.cfg.Name, Path: folded}); err != nil {
					return err
				}
			}
		}
		return store.SetSetting(tx, setting, "blind")
	})
}

// tend brings a datasource back that is down, and notices one that has gone.
func (ds *datasource) tend(ctx context.Context) {
	ds.tenants.idle(ds.g.clock.Now())
	for _, m := range ds.tenants.ready() {
		if err := ds.g.journal.goOn(ctx, ds, m); err != nil {
			ds.g.log.Warn("an interrupted operation is not dealt with yet", "datasource", ds.cfg.Name, "err", err)
		}
	}
	if ds.personal() {
		return
	}
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
	// A backend that hangs does not answer its deadline either: the question is left behind.
	limit, cancel := context.WithTimeout(ctx, tendWait)
	answer := make(chan error, 1)
	go func() {
		defer cancel()
		_, err := m.Stat(fresh(limit), ".")
		answer <- err
	}()
	select {
	case err = <-answer:
	case <-limit.Done():
		err = limit.Err()
		select {
		case err = <-answer:
		default:
		}
	}
	busy := fault.KindOf(err) == fault.Busy // its places are taken: that is no sign that it has gone
	if err != nil && ctx.Err() == nil && !busy && !(m.waiting() && passing(err)) {
		ds.detach(err)
	}
	if err == nil {
		if err := ds.clean(ctx, m); err != nil {
			ds.g.log.Warn("cannot look for what interrupted operations left behind", "datasource", ds.cfg.Name, "err", err)
		}
	}
	if err == nil && len(ds.g.journal.of(ds.cfg.Name)) > 0 {
		if err := ds.g.journal.replay(ctx, ds, m); err != nil {
			ds.g.log.Warn("an interrupted operation is not dealt with yet", "datasource", ds.cfg.Name, "err", err)
		}
		ds.g.journal.resume(ctx, ds.g.table.Load())
	}
}

// tendWait is how long a backend may take to say that it is there.
const tendWait = 10 * time.Second

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
	ended := make(chan error, 1)
	go func() {
		ds.tenants.close()
		if m == nil {
			ended <- nil
			return
		}
		ended <- m.Close()
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(closeWait):
		ds.g.log.Warn("a datasource that hangs is left open", "datasource", ds.cfg.Name)
		return nil
	}
}

// place returns where rights, locks and rows of name are kept. Names that a backend cannot tell apart have one place, so that a deny on
// "Secret" holds for "SECRET" where both are one folder.
func (ds *datasource) place(name string) policy.Place {
	if ds.blind.Load() {
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
