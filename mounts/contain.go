package mounts

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"runtime/debug"

	"cellgate/internal/fault"
)

// Contain returns next with every panic of its code, capabilities, readers and files included, turned into an Internal fault whose stack
// goes to the log (nil discards), so that a hostile server that trips a driver's library costs one call. A panic of the caller's own loop
// body passes. Readers and files that are Descriptors are returned as they are, so that sendfile still sees them.
func Contain(next Backend, logger *slog.Logger) Backend {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := container{logger}
	return Around(next, Hooks{
		Call: func(_ context.Context, op, name string, do func() error) error { return c.run(op, name, do) },
		List: func(_ context.Context, dir string, all iter.Seq2[Info, error]) iter.Seq2[Info, error] {
			return contained(c, "List", dir, all)
		},
		Reader: func(_ context.Context, name string, r io.ReadCloser) io.ReadCloser {
			if _, ok := r.(Descriptor); ok {
				return r
			}
			own := containedReader{c, name, r}
			if s, ok := r.(Stater); ok {
				return struct {
					containedReader
					Stater
				}{own, s}
			}
			return own
		},
		File: func(_ context.Context, name string, f RandomFile) RandomFile {
			if _, ok := f.(Descriptor); ok {
				return f
			}
			return containedFile{c, name, f}
		},
		Watch: func(_ context.Context, all iter.Seq2[Change, error]) iter.Seq2[Change, error] {
			return contained(c, "Watch", ".", all)
		},
	})
}

type container struct{ logger *slog.Logger }

func (c container) run(op, name string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.caught(op, name, p)
		}
	}()
	return do()
}

// caught must be called by the deferred function itself, so that the stack is that of the panic.
func (c container) caught(op, name string, p any) error {
	c.logger.Error("driver panicked", "op", op, "path", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fault.New("mounts."+op, name, fault.Internal, fmt.Errorf("driver panicked: %v", p))
}

// contained ends a sequence with a fault when its own code panics.
func contained[V any](c container, op, name string, all iter.Seq2[V, error]) iter.Seq2[V, error] {
	return func(yield func(V, error) bool) {
		var outside, stopped bool // in the loop body; the body asked to stop
		var err error
		func() {
			defer func() {
				if outside {
					return // the body's own panic goes on
				}
				if p := recover(); p != nil {
					err = c.caught(op, name, p)
				}
			}()
			for v, e := range all {
				outside = true
				more := yield(v, e)
				outside = false
				if !more {
					stopped = true
					return
				}
			}
		}()
		if err != nil && !stopped {
			var none V
			yield(none, err)
		}
	}
}

type containedReader struct {
	c    container
	name string
	r    io.ReadCloser
}

func (r containedReader) Read(p []byte) (n int, err error) {
	err = r.c.run("Read", r.name, func() (err error) { n, err = r.r.Read(p); return err })
	return n, err
}

func (r containedReader) Close() error { return r.c.run("Close", r.name, r.r.Close) }

type containedFile struct {
	c    container
	name string
	f    RandomFile
}

func (f containedFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.c.run("ReadAt", f.name, func() (err error) { n, err = f.f.ReadAt(p, off); return err })
	return n, err
}

func (f containedFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.c.run("WriteAt", f.name, func() (err error) { n, err = f.f.WriteAt(p, off); return err })
	return n, err
}

func (f containedFile) Stat() (info Info, err error) {
	err = f.c.run("Stat", f.name, func() (err error) { info, err = f.f.Stat(); return err })
	return info, err
}

func (f containedFile) Truncate(size int64) error {
	return f.c.run("Truncate", f.name, func() error { return f.f.Truncate(size) })
}

func (f containedFile) Sync() error  { return f.c.run("Sync", f.name, f.f.Sync) }
func (f containedFile) Close() error { return f.c.run("Close", f.name, f.f.Close) }
