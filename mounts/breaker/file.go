package breaker

import (
	"context"
	"errors"
	"io/fs"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

var (
	errSilent    = errors.New("the backend does not answer")
	errAbandoned = errors.New("the call was abandoned")
)

const most = 1 << 20 // bytes of one call of an open file

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

// OpenFile opens a file that lives longer than the call, by a context of its own that ends when it is closed.
func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f, err := run(ctx, w.b, "OpenFile", name, func(inner context.Context) (mounts.RandomFile, error) {
		stop := context.AfterFunc(inner, cancel) // until it is open, the call's end is its own
		f, err := w.next.OpenFile(life, name, flag, perm)
		if !stop() && err == nil {
			f.Close()
			return nil, fault.Wrap("mounts/breaker.OpenFile", name, inner.Err())
		}
		return f, err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	if _, ok := f.(mounts.Descriptor); ok {
		return f, nil
	}
	return &file{b: w.b, name: name, next: f, cancel: cancel}, nil
}

// file guards the calls of an open file. They are calls like any others, of at most so many bytes each.
type file struct {
	b      *Backend
	name   string
	next   mounts.RandomFile
	cancel context.CancelFunc
}

var _ mounts.RandomFile = (*file)(nil)

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	return f.move(p, func(part, buf []byte, at int) (int, error) {
		n, err := run(context.Background(), f.b, "ReadAt", f.name, func(context.Context) (int, error) { return f.next.ReadAt(buf, off+int64(at)) })
		if n > 0 {
			copy(part, buf[:n])
		}
		return n, err
	})
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	return f.move(p, func(part, buf []byte, at int) (int, error) {
		copy(buf, part)
		return run(context.Background(), f.b, "WriteAt", f.name, func(context.Context) (int, error) { return f.next.WriteAt(buf, off+int64(at)) })
	})
}

// move does each piece of p with memory of its own: an abandoned call must not use its caller's.
func (f *file) move(p []byte, each func(part, buf []byte, at int) (int, error)) (total int, err error) {
	for first := true; first || len(p) > 0; first = false {
		part := p[:min(len(p), most)]
		n, err := each(part, make([]byte, len(part)), total)
		total += n
		if err != nil || n < len(part) {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

func (f *file) Stat() (mounts.Info, error) {
	return run(context.Background(), f.b, "Stat", f.name, func(context.Context) (mounts.Info, error) { return f.next.Stat() })
}

func (f *file) Truncate(size int64) error {
	return f.b.runOnly(context.Background(), "Truncate", f.name, func(context.Context) error { return f.next.Truncate(size) })
}

func (f *file) Sync() error {
	return f.b.runOnly(context.Background(), "Sync", f.name, func(context.Context) error { return f.next.Sync() })
}

// Close closes the file whatever the state.
func (f *file) Close() error {
	ctx := context.Background()
	_, err, _ := guard(ctx, f.b, ctx, func() {}, "Close", f.name, until(f.b.cfg.Deadline), asValue(f.next.Close), nil)
	f.cancel()
	return err
}
