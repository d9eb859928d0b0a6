package breaker

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"cellgate/internal/fault"
)

// flight is a call of the backend in a goroutine of its own.
type flight[V any] struct {
	b         *Backend
	done      chan struct{} // closed when the call has returned
	mu        sync.Mutex
	returned  bool // guarded by mu
	abandoned bool // guarded by mu
	value     V    // valid after done
	err       error
}

// fly starts do. When the call is abandoned before it returns, its late value is closed if it can be, and late is called then.
func fly[V any](b *Backend, op, name string, do func() (V, error), late func()) *flight[V] {
	f := &flight[V]{b: b, done: make(chan struct{})}
	go func() {
		value, err := contained(b, op, name, do)
		f.mu.Lock()
		f.value, f.err, f.returned = value, err, true
		abandoned := f.abandoned
		f.mu.Unlock()
		close(f.done)
		if !abandoned {
			return
		}
		if c, ok := any(value).(io.Closer); ok && err == nil {
			contained(b, op, name, asValue(c.Close))
		}
		if late != nil {
			late()
		}
		b.meter.abandoned.Add(-1)
	}()
	return f
}

// abandon lets the call go its own way. It reports false when the call has returned.
func (f *flight[V]) abandon() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.returned && !f.abandoned {
		f.abandoned = true
		f.b.meter.abandoned.Add(1)
	}
	return !f.returned
}

// land waits for a call whose context has ended, for the grace. It reports whether the call has returned, and abandons it else.
func (f *flight[V]) land() bool {
	f.mu.Lock()
	settled, returned := f.returned || f.abandoned, f.returned
	f.mu.Unlock()
	if settled {
		return returned
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-f.done:
		return true
	case <-timer.C:
		return !f.abandon()
	}
}

// contained turns a panic into a fault: in a goroutine of ours it would end the process.
func contained[V any](b *Backend, op, name string, do func() (V, error)) (v V, err error) {
	defer func() {
		if p := recover(); p != nil {
			b.cfg.Logger.Error("driver panicked", "op", op, "path", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fault.New("mounts/breaker."+op, name, fault.Internal, fmt.Errorf("driver panicked: %v", p))
		}
	}()
	return do()
}

// asValue is for calls that return an error only.
func asValue(do func() error) func() (struct{}, error) {
	return func() (struct{}, error) { return struct{}{}, do() }
}

// until returns what is left of d from now on.
func until(d time.Duration) func() time.Duration {
	end := time.Now().Add(d)
	return func() time.Duration { return time.Until(end) }
}

// guard runs do and returns when it does, when ctx, the caller's, ends, or when left returns no more time. In the last two cases it ends the
// call's own context, inner, by cancel and lets the call go its own way if it does not return by itself; returned is false then, and late is
// called when it ends.
func guard[V any](
	ctx context.Context, b *Backend, inner context.Context, cancel context.CancelFunc, op, name string, left func() time.Duration,
	do func() (V, error), late func(),
) (v V, err error, returned bool) {
	f := fly(b, op, name, do, late)
	timer := time.NewTimer(max(left(), 0))
	defer timer.Stop()
	for waiting := true; waiting; {
		select {
		case <-f.done:
			waiting = false
		case <-ctx.Done():
			cancel()
			waiting = false
		case <-timer.C:
			if more := left(); more > 0 {
				timer.Reset(more)
				continue
			}
			cancel()
			waiting = false
		}
	}
	if returned = f.land(); returned {
		v, err = f.value, f.err
	}
	switch {
	case returned && (err == nil || inner.Err() == nil):
	case ctx.Err() != nil && !returned:
		err = fault.Wrap("mounts/breaker."+op, name, ctx.Err())
	case ctx.Err() == nil:
		why := errSilent
		if err != nil {
			why = fmt.Errorf("%w: %w", why, told{err})
		}
		err = fault.New("mounts/breaker."+op, name, fault.Timeout, why)
	}
	return v, err, returned
}

// run is a call that moves no content.
func run[V any](ctx context.Context, b *Backend, op, name string, do func(context.Context) (V, error)) (V, error) {
	return runFor(ctx, b, b.calls, b.cfg.Deadline, op, name, do)
}

// runLong is a call by which the backend works through a tree or content by itself.
func runLong[V any](ctx context.Context, b *Backend, op, name string, do func(context.Context) (V, error)) (V, error) {
	return runFor(ctx, b, b.streams, b.cfg.Long, op, name, do)
}

func runFor[V any](
	ctx context.Context, b *Backend, places chan struct{}, limit time.Duration, op, name string, do func(context.Context) (V, error),
) (v V, err error) {
	if b.isClosed() {
		return do(ctx)
	}
	if err := b.enter(ctx, places, op, name); err != nil {
		return v, err
	}
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	leave := func() { <-places }
	v, err, returned := guard(ctx, b, inner, cancel, op, name, until(limit), func() (V, error) { return do(inner) }, leave)
	if returned {
		leave()
	}
	if places == b.calls {
		b.meter.took(time.Since(began))
	}
	b.judge(ctx, err)
	return v, err
}

// runOnly is run for calls that return an error only.
func (b *Backend) runOnly(ctx context.Context, op, name string, do func(context.Context) error) error {
	_, err := run(ctx, b, op, name, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return err
}

func (b *Backend) runLongOnly(ctx context.Context, op, name string, do func(context.Context) error) error {
	_, err := runLong(ctx, b, op, name, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return err
}
