package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/policy/identity"
	"cellgate/policy/quota"
	"cellgate/store"
	"cellgate/store/seal"
)

var (
	errLongPath = errors.New("path is longer than 4096 bytes")
	errDeepPath = errors.New("path has more than 255 segments")
	errClosed   = errors.New("the gateway is closed")
	errOpening  = errors.New("it is being opened, and its server has not answered yet")
)

// Config is what a Gateway is made of. All but Clock, Logger and Limits is required.
type Config struct {
	DB       *store.DB
	Keys     *seal.Keyring // seals the credentials of datasources
	Policy   *policy.Engine
	Identity *identity.Service
	Audit    *audit.Log
	Quota    *quota.Book
	Drivers  []mounts.Driver
	Clock    *clock.Clock
	Logger   *slog.Logger // nil discards
	Limits   Limits
	// Room fails with NoSpace while the store's own volume is nearly full. Then only operations that give space back, or change nothing, go on:
	// each needs a little of that volume for its record. Nil: there is always room.
	Room func() error
	// Spool is a folder of this machine for uploads that are written at any place before they go to a backend across a network. Nothing in it
	// outlives the process. Empty: that of temporary files.
	Spool string
	// Bare leaves out the wrappers of backends across a network, for tests that end a call in its middle.
	Bare bool
	// Allow are private networks that users may name in datasources which they complete themselves.
	Allow []netip.Prefix
}

// Limits bound what one principal may hold at a time. A zero field means its default.
type Limits struct {
	Operations  int           // running at once per user and datasource, 256
	Handles     int           // open files and uploads per user, 1000
	Locks       int           // per user, 10,000
	LocksNode   int           // shared ones of one node, 64
	LocksTotal  int           // of everybody, 200,000
	LockTimeout time.Duration // the longest a lock lasts without refresh, 1 h
	Uploads     int           // unfinished uploads in parts per user, 1000
	Props       int           // dead properties of a node, 256
	PropBytes   int           // of one property's value, 64 KiB
	PropsBytes  int           // of all properties of a node, 256 KiB
	StagedBytes int64         // unpublished bytes per user, 0: as much as the datasource holds
	Retry       time.Duration // between attempts to open a datasource that is down, 5 s
}

func (l *Limits) defaults() {
	set := func(field *int, v int) {
		if *field == 0 {
			*field = v
		}
	}
	set(&l.Operations, 256)
	set(&l.Handles, 1000)
	set(&l.Locks, 10_000)
	set(&l.LocksNode, 64)
	set(&l.LocksTotal, 200_000)
	set(&l.Uploads, 1000)
	set(&l.Props, 256)
	set(&l.PropBytes, 64<<10)
	set(&l.PropsBytes, 256<<10)
	if l.LockTimeout == 0 {
		l.LockTimeout = time.Hour
	}
	if l.Retry == 0 {
		l.Retry = 5 * time.Second
	}
}

// Gateway is the core over a set of datasources. Safe for concurrent use.
type Gateway struct {
	db     *store.DB
	keys   *seal.Keyring
	engine *policy.Engine
	ident  *identity.Service
	audit  *audit.Log
	quota  *quota.Book
	clock  *clock.Clock
	log    *slog.Logger
	limits Limits
	room   func() error
	spool  string

	allow []netip.Prefix
	bare  bool

	passportKey []byte // tells passwords in memory apart

	drivers map[string]mounts.Driver
	table   atomic.Pointer[table] // datasources and workspaces as they are now
	reload  sync.Mutex            // one Reload at a time

	propped  atomic.Bool // some node has dead properties: as long as none has, listings need not ask
	made     sync.Map    // roots of templates that exist, by policy.Place
	measures measures    // workspaces whose usage is to be looked up

	live    live  // names in the areas of datasources
	trash   trash // what could not be purged yet
	locks   lockTable
	journal journal
	budgets budgets
	uploads uploads
	bus     event.Bus
	stats   counters

	stop   context.CancelFunc // ends the background work
	life   context.Context    // of the background work
	wg     sync.WaitGroup
	closed atomic.Bool
}

// New loads what the store knows, opens the datasources and replays the journal. A datasource that does not open is reported as down and
// tried again until it does; it fails nothing else.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	cfg.Limits.defaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		db: cfg.DB, keys: cfg.Keys, engine: cfg.Policy, ident: cfg.Identity, audit: cfg.Audit, quota: cfg.Quota,
		clock: cfg.Clock, log: cfg.Logger, limits: cfg.Limits, room: cfg.Room, spool: cfg.Spool, allow: cfg.Allow, bare: cfg.Bare, drivers: make(map[string]mounts.Driver),
	}
	for _, d := range cfg.Drivers {
		g.drivers[d.Name] = d
	}
	g.passportKey = newPassportKey()
	g.life, g.stop = context.WithCancel(context.WithoutCancel(ctx))
	g.journal.g = g
	g.budgets.limits = cfg.Limits
	if err := g.locks.load(ctx, g); err != nil {
		return nil, err
	}
	if err := g.journal.load(ctx); err != nil {
		return nil, err
	}
	var any int
	if err := g.db.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM props LIMIT 1) AS found`).Scan(&any); err != nil {
		return nil, fault.Wrap("gateway.New", "", err)
	}
	g.propped.Store(any > 0)
	g.table.Store(new(table))
	if err := g.Reload(ctx); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	g.wg.Go(g.tend)
	return g, nil
}

// Close ends the background work and closes the datasources. Operations in flight should have ended: those that have not fail with
// Unavailable. The store is not closed.
func (g *Gateway) Close() error {
	if g.closed.Swap(true) {
		return nil
	}
	g.stop()
	ended := make(chan struct{})
	go func() { g.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeWait):
		g.log.Warn("background work hangs and is left behind; what it was about is done at the next start")
	}
	g.journal.tidy(context.WithoutCancel(g.life))
	var closing sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, ds := range g.table.Load().datasources {
		closing.Go(func() {
			err := ds.close()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

// closeWait is how long Close waits for background work that hangs in a backend.
const closeWait = 10 * time.Second

// Events is the bus of what happens in the core.
func (g *Gateway) Events() *event.Bus { return &g.bus }

// tend looks after what needs a look from time to time: datasources that are down, or have gone, and locks that have expired.
func (g *Gateway) tend() {
	tick := time.NewTicker(g.limits.Retry)
	defer tick.Stop()
	var expired time.Time
	for {
		select {
		case <-g.life.Done():
			return
		case <-tick.C:
			for _, ds := range g.table.Load().datasources {
				// Each by itself: one that hangs keeps nobody waiting, and is not asked again before it has answered.
				if ds.tending.CompareAndSwap(false, true) {
					g.wg.Go(func() {
						defer ds.tending.Store(false)
						ds.tend(g.life)
					})
				}
			}
			g.measureDue()
			g.locks.expire()
			g.trash.retry(g)
			g.journal.tidy(g.life)
			if now := g.clock.Now(); now.Sub(expired) > time.Hour || now.Before(expired) {
				expired = now
				if err := g.expireParts(g.life); err != nil {
					g.log.Warn("cannot forget old uploads", "err", err)
				}
			}
		}
	}
}

// go runs fn in the background; Close waits for it.
func (g *Gateway) background(what string, fn func(ctx context.Context) error) {
	if g.closed.Load() {
		return
	}
	g.wg.Go(func() {
		if err := fn(g.life); err != nil && g.life.Err() == nil {
			g.log.Warn("background work failed", "what", what, "err", err)
		}
	})
}

// Stats are figures since the start, for metrics.
type Stats struct {
	Operations map[string]int64 // begun, by verb
	Refused    int64            // by rights
	Published  int64            // files
	Bytes      struct{ In, Out int64 }
	Locks      int
	Staged     int64 // bytes in unpublished uploads
	Handles    int
}

type counters struct {
	verbs     [verbs]atomic.Int64
	refused   atomic.Int64
	published atomic.Int64
	in, out   atomic.Int64
}

// Stats returns the figures.
func (g *Gateway) Stats() Stats {
	st := Stats{Operations: make(map[string]int64, verbs), Refused: g.stats.refused.Load(), Published: g.stats.published.Load(), Locks: g.locks.count()}
	for v := range verbs {
		st.Operations[v.String()] = g.stats.verbs[v].Load()
	}
	st.Bytes.In, st.Bytes.Out = g.stats.in.Load(), g.stats.out.Load()
	st.Handles, st.Staged = g.budgets.totals()
	return st
}

// now is the clock's time in Unix nanoseconds, as rows keep it.
func (g *Gateway) now() int64 { return g.clock.Now().UnixNano() }

// down is the error of a gateway that is closing.
func (g *Gateway) down(op string) error { return fault.New(op, "", fault.Unavailable, errClosed) }
