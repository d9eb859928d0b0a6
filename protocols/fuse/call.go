package fuse

import (
	"context"
	"errors"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/gateway"
)

// gate is a mutex that can be waited for with a context.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) unlock() { <-g }

// none is the result of calls that have none.
type none struct{}

// answer is what a call came to.
type answer[T any] struct {
	value T
	err   error
}

// do runs fn, which asks the core, and returns what comes of it. When the caller is interrupted and the grace has passed, it returns EINTR
// and leaves fn alone: its context is cancelled, and what it returns nevertheless is given to undo, unless that is nil. So fn must not touch
// the request or its answer, which are used again by then. The context ends when fn has returned: what lives longer takes another.
func do[T any](f *fsys, op string, cancel <-chan struct{}, fn func(ctx context.Context) (T, error), undo func(T)) (T, gofuse.Status) {
	ctx, stop := context.WithCancel(f.life)
	var zero T
	if ctx.Err() != nil {
		stop()
		return zero, gofuse.Status(syscall.ENOTCONN)
	}
	done := make(chan answer[T], 1)
	f.calls.Add(1)
	go func() {
		defer f.calls.Done()
		v, err := fn(ctx)
		done <- answer[T]{v, err}
	}()
	var a answer[T]
	select {
	case a = <-done:
		stop()
		return a.value, f.status(op, a.err)
	case <-cancel:
	case <-f.life.Done():
	}
	grace := time.NewTimer(f.cfg.Grace)
	defer grace.Stop()
	select {
	case a = <-done:
		stop()
		return a.value, f.status(op, a.err)
	case <-grace.C:
	case <-f.life.Done():
	}
	stop()
	settle := time.NewTimer(100 * time.Millisecond) // most of the core ends at once
	defer settle.Stop()
	select {
	case a = <-done:
		if a.err == nil {
			return a.value, gofuse.OK
		}
		if errors.Is(a.err, context.Canceled) {
			a.err = syscall.EINTR
		}
		return a.value, f.status(op, a.err)
	case <-settle.C:
	}
	go func() {
		if a := <-done; a.err == nil && undo != nil {
			undo(a.value)
		}
	}()
	return zero, gofuse.EINTR
}

// at runs fn with the path of n, once more when n has been moved under it.
func (f *fsys) at(n *node, fn func(p gateway.Path) error) error {
	for tries := 0; ; tries++ {
		p, err := f.tree.path(n)
		if err != nil {
			return err
		}
		err = fn(p)
		if err == nil || tries == 3 || errnoOf(err) != syscall.ENOENT {
			return err
		}
		if now, perr := f.tree.path(n); perr != nil || now == p {
			return err
		}
	}
}
