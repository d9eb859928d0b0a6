package policy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/clock"
	"cellgate/policy/guard"
	"cellgate/store"
)

// Config is what an Engine is made of.
type Config struct {
	DB     *store.DB
	Clock  *clock.Clock
	Logger *slog.Logger  // nil discards
	Poll   time.Duration // how often to look for changes of other processes; 0: each second
}

// Engine keeps grants and policies in the store and the snapshot of them in memory. Changes are made inside a transaction; the moment it is
// durable, and before Update returns, Snapshot tells of them. Changes of other processes are noticed within Config.Poll. Safe for concurrent use.
type Engine struct {
	db   *store.DB
	log  *slog.Logger
	poll time.Duration

	snap  atomic.Pointer[Snapshot]
	epoch atomic.Uint64 // counts the changes of state, here in memory

	mu     sync.Mutex // guards what follows
	state  state
	stored uint64 // the epoch of the store that state is of
	behind bool   // another process changed something in between: the store must be read again
	stop   context.CancelFunc
	done   chan struct{}
}

// state is what the snapshot is compiled from.
type state struct {
	grants    map[int64]Grant
	policies  map[string]Policy
	locations map[string][]netip.Prefix
}

var errMissing = errors.New("the policy does not exist")

// New returns an engine that knows nothing yet: call Load.
func New(cfg Config) *Engine {
	e := &Engine{db: cfg.DB, log: cfg.Logger, poll: cfg.Poll, state: newState()}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.poll <= 0 {
		e.poll = time.Second
	}
	e.snap.Store(compile(0, nil, nil, nil))
	return e
}

func newState() state {
	return state{grants: map[int64]Grant{}, policies: map[string]Policy{}, locations: builtin()}
}

// builtin returns the locations that always exist.
func builtin() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for name, nets := range guard.Locations() {
		for _, n := range nets {
			p, err := guard.ParseNet(n)
			if err != nil {
				panic(err) // a constant of ours
			}
			out[name] = append(out[name], p)
		}
	}
	return out
}

// options is what policies are compiled against.
func options(locations map[string][]netip.Prefix) guard.Options {
	return guard.Options{Locations: locations, Principal: func(s string) (string, error) {
		p, err := ParsePrincipal(s)
		return string(p), err
	}}
}

// Load reads everything from the store and, the first time, starts to follow the changes of other processes until Close.
func (e *Engine) Load(ctx context.Context) error {
	if err := e.read(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stop == nil {
		follow, stop := context.WithCancel(context.WithoutCancel(ctx))
		e.stop, e.done = stop, make(chan struct{})
		go e.follow(follow, e.done)
	}
	return nil
}

// Close stops following. Decisions go on with what is known.
func (e *Engine) Close() error {
	e.mu.Lock()
	stop, done := e.stop, e.done
	e.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
	return nil
}

// Epoch returns the number of the present state, which means something in this process only. A session whose View has another one binds again.
func (e *Engine) Epoch() uint64 { return e.epoch.Load() }

// Snapshot returns the present state, compiled. After a change the first caller compiles it, which takes some milliseconds for 10,000 grants.
func (e *Engine) Snapshot() *Snapshot {
	if s := e.snap.Load(); s.epoch == e.epoch.Load() {
		return s
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.snap.Load()
	if epoch := e.epoch.Load(); s.epoch != epoch {
		s = compile(epoch, e.state.grants, e.state.policies, e.state.locations)
		for name, err := range s.Broken() {
			e.log.Error("policy does not work and allows nothing", "policy", name, "err", err)
		}
		e.snap.Store(s)
	}
	return s
}

// follow looks at the epoch in the store at every tick.
func (e *Engine) follow(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	tick := time.NewTicker(e.poll)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := e.refresh(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			e.log.Error("cannot look for changes of policy; going on with what is known", "err", err)
		}
		failing = err != nil
	}
}

// refresh reads the store again when it has moved on.
func (e *Engine) refresh(ctx context.Context) error {
	var epoch uint64
	if err := e.db.QueryRow(ctx, `SELECT epoch FROM epochs WHERE name = 'policy'`).Scan(&epoch); err != nil {
		return err
	}
	e.mu.Lock()
	current := epoch <= e.stored && !e.behind
	e.mu.Unlock()
	if current {
		return nil
	}
	return e.read(ctx)
}

// read replaces the state by that of the store, unless commits of this process have overtaken it.
func (e *Engine) read(ctx context.Context) error {
	for {
		st, epoch, err := load(ctx, e.db)
		if err != nil {
			return err
		}
		e.mu.Lock()
		fresh := epoch >= e.stored
		if fresh {
			e.state, e.stored, e.behind = st, epoch, false
			e.epoch.Add(1)
		}
		e.mu.Unlock()
		if fresh {
			return nil
		}
	}
}

// change is one edit of the state, collected in a transaction and applied when it is durable.
type change func(*state)

// bump is the Flusher of changes: it moves the epoch once per shared transaction.
type bump struct{ e *Engine }

var _ store.Flusher = bump{}

// Flush moves the epoch and has the changes applied on commit.
func (b bump) Flush(tx *store.Tx, items []any) error {
	var epoch uint64
	if err := tx.QueryRow(`UPDATE epochs SET epoch = epoch + 1 WHERE name = 'policy' RETURNING epoch`).Scan(&epoch); err != nil {
		return err
	}
	tx.OnCommit(func() { b.e.apply(epoch, items) })
	return nil
}

func (e *Engine) apply(epoch uint64, items []any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if epoch <= e.stored {
		return // read has seen it already
	}
	e.behind = e.behind || epoch != e.stored+1
	for _, it := range items {
		it.(change)(&e.state)
	}
	e.stored = epoch
	e.epoch.Add(1)
}

func (e *Engine) collect(tx *store.Tx, c change) { tx.Collect(bump{e}, c) }
