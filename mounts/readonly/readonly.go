// Package readonly is a wrapper that refuses every change of a backend with Denied, whatever the backend would allow.
//
// It changes rights, so it has no Unwrap: a capability it does not know is not there. Those that only write are absent; files can be opened
// for reading, and extended attributes be read.
package readonly

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync/atomic"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a backend that cannot be changed. It is safe for concurrent use.
type Backend struct {
	next   mounts.Backend
	closed atomic.Bool
}

var (
	_ mounts.Backend  = (*Backend)(nil)
	_ mounts.Provider = (*Backend)(nil)
)

// New returns next without its changes.
func New(next mounts.Backend) *Backend { return &Backend{next: next} }

var (
	errReadOnly = errors.New("the datasource is read-only")
	errClosed   = errors.New("closed")
)

// refuse is the answer to a change of name. What is wrong with the call itself is told first, as backends do.
func (b *Backend) refuse(ctx context.Context, op string, names ...string) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/readonly."+op, names[0], err)
	}
	if b.closed.Load() {
		return fault.New("mounts/readonly."+op, names[0], fault.Unavailable, errClosed)
	}
	for _, name := range names {
		if err := mounts.ValidPath(name); err != nil {
			return fault.Wrap("mounts/readonly."+op, name, err)
		}
	}
	return fault.New("mounts/readonly."+op, names[0], fault.Denied, errReadOnly)
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	return b.next.Stat(ctx, name)
}

// List implements mounts.Backend.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return b.next.List(ctx, dir)
}

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	return b.next.Open(ctx, name, off, n)
}

// Put implements mounts.Backend by refusing.
func (b *Backend) Put(ctx context.Context, name string, _ io.Reader, _ mounts.PutOptions) (mounts.Info, error) {
	return mounts.Info{}, b.refuse(ctx, "Put", name)
}

// Mkdir implements mounts.Backend by refusing.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.refuse(ctx, "Mkdir", name)
}

// Remove implements mounts.Backend by refusing.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return b.refuse(ctx, "Remove", name)
}

// Rename implements mounts.Backend by refusing.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	return b.refuse(ctx, "Rename", from, to)
}

// Features returns those of next without what changes.
func (b *Backend) Features() mounts.Features {
	f := b.next.Features()
	f.AtomicReplace, f.ConditionalWrite, f.Rename, f.ModTime, f.HardLink, f.Symlink = 0, 0, 0, 0, 0, 0
	return f
}

// Close closes next.
func (b *Backend) Close() error {
	b.closed.Store(true)
	return b.next.Close()
}

// Provide implements mounts.Provider for what reads. Each form is a type of its own, so that the concrete one, and with it what else that can
// do, stays out of reach.
func (b *Backend) Provide(target any) (known, found bool) {
	switch t := target.(type) {
	case *mounts.RandomAccess:
		return provide(b, t, func(n mounts.RandomAccess) mounts.RandomAccess { return files{b, n} })
	case *mounts.Xattrer:
		return provide(b, t, func(n mounts.Xattrer) mounts.Xattrer { return xattrs{b, n} })
	case *mounts.Watcher:
		return provide(b, t, func(n mounts.Watcher) mounts.Watcher { return struct{ mounts.Watcher }{n} })
	case *mounts.Spacer:
		return provide(b, t, func(n mounts.Spacer) mounts.Spacer { return struct{ mounts.Spacer }{n} })
	case *mounts.Hasher:
		return provide(b, t, func(n mounts.Hasher) mounts.Hasher { return struct{ mounts.Hasher }{n} })
	case *mounts.Partitioned:
		return provide(b, t, func(n mounts.Partitioned) mounts.Partitioned { return struct{ mounts.Partitioned }{n} })
	}
	return true, false
}

func provide[T any](b *Backend, target *T, form func(T) T) (known, found bool) {
	n, ok := mounts.As[T](b.next)
	if ok {
		*target = form(n)
	}
	return true, ok
}

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

// OpenFile opens files for reading only.
func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_TRUNC|os.O_EXCL) != 0 {
		return nil, w.b.refuse(ctx, "OpenFile", name)
	}
	f, err := w.next.OpenFile(ctx, name, flag, perm)
	if err != nil {
		return nil, err
	}
	if d, ok := f.(mounts.Descriptor); ok { // opened for reading, as told
		return struct {
			file
			mounts.Descriptor
		}{file{f, name}, d}, nil
	}
	return file{f, name}, nil
}

type file struct {
	next mounts.RandomFile
	name string
}

var _ mounts.RandomFile = file{}

func (f file) ReadAt(p []byte, off int64) (int, error) { return f.next.ReadAt(p, off) }
func (f file) Stat() (mounts.Info, error)              { return f.next.Stat() }
func (f file) Sync() error                             { return nil }
func (f file) Close() error                            { return f.next.Close() }

func (f file) WriteAt([]byte, int64) (int, error) {
	return 0, fault.New("mounts/readonly.WriteAt", f.name, fault.Denied, errReadOnly)
}

func (f file) Truncate(int64) error {
	return fault.New("mounts/readonly.Truncate", f.name, fault.Denied, errReadOnly)
}

type xattrs struct {
	b    *Backend
	next mounts.Xattrer
}

func (w xattrs) Xattr(ctx context.Context, name, attr string) ([]byte, error) {
	return w.next.Xattr(ctx, name, attr)
}

func (w xattrs) Xattrs(ctx context.Context, name string) ([]string, error) {
	return w.next.Xattrs(ctx, name)
}

func (w xattrs) SetXattr(ctx context.Context, name, _ string, _ []byte) error {
	return w.b.refuse(ctx, "SetXattr", name)
}

func (w xattrs) RemoveXattr(ctx context.Context, name, _ string) error {
	return w.b.refuse(ctx, "RemoveXattr", name)
}
