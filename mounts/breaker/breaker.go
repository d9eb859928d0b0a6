// Package breaker is the bulkhead of a datasource: a transparent wrapper that keeps a backend which stalls, hangs or is down from costing
// more than its own mount.
//
// Every call of the backend runs in a goroutine of its own, so that one which ignores its context is abandoned at the deadline and its caller
// goes on. An abandoned call keeps its place among the calls at once until it ends, so there never are more than the places. Readers,
// uploads and listings have places of their own, and no deadline but one for progress: the time in which the backend owes the next byte. The
// time in which a consumer does not read, or the source of an upload blocks, is not counted.
//
// So many failures in a row with Unavailable or Timeout open the breaker: calls fail at once, without a word to the backend, until a probe
// (one at a time, after each cooldown) succeeds. Other faults are answers, and answers are successes. What ends because the caller's context
// does, or because the source of an upload fails, says nothing about the backend. Streams that are open go on whatever the state.
//
// Readers and files that are Descriptors, which is those of local disks, are returned as they are, so that sendfile still sees them.
package breaker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Config are the limits. The zero value is fit for most.
type Config struct {
	Calls     int           // at once, of those that move no content; default 128
	Streams   int           // readers, uploads and listings at once; default 1024
	Wait      time.Duration // how long a caller waits for a place before it is Busy; default 10 s
	Deadline  time.Duration // of a call that moves no content, and for the next entry of a listing; default 30 s
	Progress  time.Duration // how long the backend may take for the next byte of a stream, or to finish an upload; default 60 s
	Long      time.Duration // deadline of calls that work through trees or content by themselves: copies, purges, emulated renames; default 1 h
	Threshold int           // failures in a row that open the breaker; default 5
	Cooldown  time.Duration // from opening, and from a failed probe, to the next probe; default 5 s

	Probe   func(ctx context.Context) error // says whether the backend is there again; default: Stat of the root. It may take 2 Cooldowns
	OnState func(State)                     // hears of every change of state, one after the other; it must not block for long
	Clock   *clock.Clock                    // for Stats.Since; nil is the real one
	Logger  *slog.Logger                    // nil discards
}

// State is whether calls reach the backend.
type State uint8

// The states.
const (
	Closed   State = iota // they do
	Open                  // they fail at once
	HalfOpen              // they fail at once while a probe runs
)

// String returns "closed", "open" or "half-open".
func (s State) String() string { return [...]string{"closed", "open", "half-open"}[s] }

// grace is how long a call has to return by itself after its context ended. What it returns is more exact than what we could say.
const grace = 100 * time.Millisecond

// Backend is a backend behind a breaker. It is safe for concurrent use.
type Backend struct {
	next    mounts.Backend
	cfg     Config
	calls   chan struct{}
	streams chan struct{}
	meter   meter
	small   sync.Pool // of *[]byte, piece long
	large   sync.Pool // of *[]byte, for readers that come with more

	row     atomic.Int64 // failures in a row
	closing sync.Once
	closed  chan struct{}
	prober  sync.WaitGroup

	mu      sync.Mutex
	state   State         // guarded by mu
	since   time.Time     // of state, guarded by mu
	last    error         // the last failure, guarded by mu
	lastAt  time.Time     // guarded by mu
	tripped chan struct{} // closed when the breaker opens, then replaced; guarded by mu
	telling sync.Mutex    // held by the prober for its life, so that states are told in order
}

var (
	_ mounts.Backend  = (*Backend)(nil)
	_ mounts.Provider = (*Backend)(nil)
)

// New returns next behind a breaker.
func New(next mounts.Backend, cfg Config) *Backend {
	positive(&cfg.Calls, 128)
	positive(&cfg.Streams, 1024)
	positive(&cfg.Threshold, 5)
	positive(&cfg.Wait, 10*time.Second)
	positive(&cfg.Deadline, 30*time.Second)
	positive(&cfg.Progress, time.Minute)
	positive(&cfg.Long, time.Hour)
	positive(&cfg.Cooldown, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Probe == nil {
		cfg.Probe = func(ctx context.Context) error { _, err := next.Stat(ctx, "."); return err }
	}
	b := &Backend{
		next: next, cfg: cfg, calls: make(chan struct{}, cfg.Calls), streams: make(chan struct{}, cfg.Streams),
		closed: make(chan struct{}), tripped: make(chan struct{}), since: cfg.Clock.Now(),
	}
	b.small.New = func() any { buf := make([]byte, piece); return &buf }
	b.large.New = func() any { buf := make([]byte, 4*piece); return &buf }
	return b
}

func positive[T int | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

// Unwrap makes the concrete type below reachable.
func (b *Backend) Unwrap() mounts.Backend { return b.next }

// Features implements mounts.Backend.
func (b *Backend) Features() mounts.Features { return b.next.Features() }

// Close stops probing and closes next, for which it waits no longer than the deadline. Calls go straight to next after that.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closing.Do(func() { close(b.closed) }) // with mu held no prober begins after it
	b.mu.Unlock()
	b.prober.Wait()
	ctx := context.Background()
	_, err, _ := guard(ctx, b, ctx, func() {}, "Close", "", until(b.cfg.Deadline), asValue(b.next.Close), nil)
	return err
}

func (b *Backend) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// enter refuses ended contexts and calls while the breaker is open, and takes a place.
func (b *Backend) enter(ctx context.Context, places chan struct{}, op, name string) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/breaker."+op, name, err)
	}
	b.mu.Lock()
	err, tripped := b.refusal(op, name), b.tripped
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case places <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(b.cfg.Wait)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return nil
	case <-timer.C:
		b.meter.busy.Add(1)
		why := fmt.Errorf("%d calls are under way, and none ended within %v", cap(places), b.cfg.Wait)
		return fault.New("mounts/breaker."+op, name, fault.Busy, why)
	case <-ctx.Done():
		return fault.Wrap("mounts/breaker."+op, name, ctx.Err())
	case <-tripped:
		b.mu.Lock()
		defer b.mu.Unlock()
		if err := b.refusal(op, name); err != nil {
			return err
		}
		return fault.New("mounts/breaker."+op, name, fault.Unavailable, b.last) // it was open meanwhile
	}
}

// refusal returns what a call is told while the breaker is open. The caller holds mu.
func (b *Backend) refusal(op, name string) error {
	if b.state == Closed || b.isClosed() {
		return nil
	}
	b.meter.refused.Add(1)
	why := fmt.Errorf("out of service since %s: %w", b.since.Format(time.RFC3339), told{b.last})
	return fault.New("mounts/breaker."+op, name, fault.Unavailable, why)
}

// told is a cause that is read, but not taken for one of this call: neither its kind nor that it was not sent.
type told struct{ err error }

func (t told) Error() string { return t.err.Error() }

// failed reports whether err is the backend's failure, when ctx was the caller's.
func failed(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil {
		return false
	}
	kind := fault.KindOf(err)
	return kind == fault.Unavailable || kind == fault.Timeout
}

// judge counts how a call ended for the caller with ctx.
func (b *Backend) judge(ctx context.Context, err error) {
	switch {
	case failed(ctx, err):
		b.blame(err)
	case ctx.Err() == nil && b.row.Load() != 0:
		b.row.Store(0)
	}
}

// blame counts a failure, and opens the breaker when there were enough.
func (b *Backend) blame(err error) {
	b.meter.failures.Add(1)
	if fault.KindOf(err) == fault.Timeout {
		b.meter.timeouts.Add(1)
	}
	row := b.row.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last, b.lastAt = err, b.cfg.Clock.Now()
	if row < int64(b.cfg.Threshold) || b.state != Closed || b.isClosed() {
		return
	}
	b.set(Open)
	close(b.tripped)
	b.tripped = make(chan struct{})
	b.prober.Go(func() { b.probing(err) })
}

// set changes the state. The caller holds mu.
func (b *Backend) set(s State) {
	if b.state == Closed {
		b.since = b.cfg.Clock.Now() // of the outage, whatever probes there are
	}
	if b.state = s; s == Closed {
		b.since = b.cfg.Clock.Now()
		b.row.Store(0)
	}
}

// probing tries until the backend answers or the breaker is closed for good. It owns the state meanwhile.
func (b *Backend) probing(cause error) {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.cfg.Logger.Warn("backend is out of service", "err", cause)
	b.tell(Open)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.prober.Go(func() {
		select {
		case <-b.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	began := time.Now()
	for {
		select {
		case <-time.After(b.cfg.Cooldown):
		case <-ctx.Done():
			return
		}
		select {
		case b.calls <- struct{}{}:
		default:
			continue // held by abandoned calls, of which probes that hang must not make more
		}
		b.change(HalfOpen)
		limit := min(b.cfg.Deadline, 2*b.cfg.Cooldown)
		inner, stop := context.WithTimeout(ctx, limit)
		leave := func() { <-b.calls }
		_, err, returned := guard(ctx, b, inner, stop, "Probe", ".", until(limit), asValue(func() error { return b.cfg.Probe(inner) }), leave)
		stop()
		if returned {
			leave()
		}
		if ctx.Err() != nil {
			return
		}
		if !failed(ctx, err) {
			b.cfg.Logger.Info("backend is in service again", "after", time.Since(began))
			b.change(Closed)
			return
		}
		b.mu.Lock()
		b.last, b.lastAt = err, b.cfg.Clock.Now()
		b.mu.Unlock()
		b.change(Open)
	}
}

func (b *Backend) change(s State) {
	b.mu.Lock()
	b.set(s)
	b.mu.Unlock()
	b.tell(s)
}

func (b *Backend) tell(s State) {
	if b.cfg.OnState != nil {
		b.cfg.OnState(s)
	}
}
