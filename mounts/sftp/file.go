package sftp

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	client "github.com/pkg/sftp"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// OpenFile implements mounts.RandomAccess. What the name stands for is looked at before it is opened: an open that creates would follow a link
// that leads nowhere.
func (b *Backend) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	const op = "OpenFile"
	writes := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if err := b.begin(ctx, op, writes, name); err != nil {
		return nil, err
	}
	if flag&os.O_APPEND != 0 {
		return nil, refusal(op, name, fault.Invalid, errors.New("no appending at given places"))
	}
	if name == "." {
		return nil, refusal(op, name, fault.IsDir, nil)
	}
	var f *file
	err := b.run(ctx, op, name, flag&os.O_EXCL == 0, func(w *wire) (err error) {
		for try := 0; ; try++ { // the name may come and go between look and open
			f, err = b.openFile(ctx, w, name, flag, perm)
			if code := codeOf(err); try == 2 || flag&os.O_CREATE == 0 || flag&os.O_EXCL != 0 || code != codeFailure && code != codeNoSuchFile && code != codeExists {
				return err
			}
			if guarded := b.guard(ctx, w, name).wait(ctx); guarded != nil {
				return guarded
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (b *Backend) openFile(ctx context.Context, w *wire, name string, flag int, perm fs.FileMode) (*file, error) {
	const op = "OpenFile"
	mode := flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
	a, err := b.look(ctx, w, name)
	missing := codeOf(err) == codeNoSuchFile
	switch {
	case missing && flag&os.O_CREATE != 0:
		if err := b.guard(ctx, w, name).wait(ctx); err != nil {
			return nil, err
		}
		flag = mode | os.O_CREATE | os.O_EXCL // which follows no link
	case err != nil:
		return nil, err
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, refusal(op, name, fault.Exist, nil)
	default:
		if err := plainFile(op, name, a); err != nil {
			return nil, err
		}
		flag = mode | flag&os.O_TRUNC
	}
	opened := make(chan *client.File, 1)
	err = w.ask(ctx, func(c *client.Client) error {
		defer close(opened)
		f, err := c.OpenFile(b.path(name), flag)
		if err != nil {
			return err
		}
		if missing && perm != 0 {
			f.Chmod(perm.Perm()) // the library opens without a mode
		}
		opened <- f
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			b.pool.spawn(func() {
				for f := range opened { // it came after all
					f.Close()
				}
			})
			return nil, ctx.Err()
		}
		if missing {
			err = b.taken(ctx, w, op, name, err)
		}
		return nil, err
	}
	b.pool.hold(w)
	_, base := mounts.Split(name)
	return &file{b: b, w: w, f: <-opened, name: name, base: base, read: mode != os.O_WRONLY, write: mode != os.O_RDONLY}, nil
}

// file is an open file. It has no context: what holds a call is bounded by the timeout of silence alone.
type file struct {
	b           *Backend
	w           *wire
	f           *client.File
	name, base  string
	read, write bool
	closed      atomic.Bool
}

// do runs one call of the library.
func (f *file) do(op string, allowed bool, call func() error) error {
	switch {
	case f.closed.Load():
		return refusal(op, f.name, fault.Invalid, os.ErrClosed)
	case f.b.closed.Load():
		return refusal(op, f.name, fault.Unavailable, errClosed)
	case !allowed:
		return refusal(op, f.name, fault.Denied, errors.New("not opened for this"))
	}
	err := f.w.ask(context.Background(), func(*client.Client) error { return call() })
	if err == io.EOF {
		return err
	}
	return failure(op, f.name, err)
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, refusal("ReadAt", f.name, fault.Invalid, nil)
	}
	err = f.do("ReadAt", f.read, func() (err error) { n, err = f.f.ReadAt(p, off); return err })
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, refusal("WriteAt", f.name, fault.Invalid, nil)
	}
	err = f.do("WriteAt", f.write, func() (err error) { n, err = f.f.WriteAt(p, off); return err })
	return n, err
}

func (f *file) Stat() (info mounts.Info, err error) {
	err = f.do("Stat", true, func() error {
		got, err := f.f.Stat()
		if err != nil {
			return err
		}
		if s, ok := got.Sys().(*client.FileStat); ok {
			a := attrs{flags: hasSize | hasMode | hasTimes, size: s.Size, mode: s.Mode, mtime: s.Mtime}
			info = a.info(f.base)
		}
		return nil
	})
	return info, err
}

func (f *file) Truncate(size int64) error {
	if size < 0 {
		return refusal("Truncate", f.name, fault.Invalid, nil)
	}
	return f.do("Truncate", f.write, func() error { return f.f.Truncate(size) })
}

// Sync makes the content durable where the server can and shall.
func (f *file) Sync() error {
	return f.do("Sync", true, func() error {
		if !f.b.syncs() {
			return nil
		}
		return f.f.Sync()
	})
}

func (f *file) Close() error {
	if f.closed.Swap(true) {
		return refusal("Close", f.name, fault.Invalid, os.ErrClosed)
	}
	defer f.b.pool.put(f.w)
	return failure("Close", f.name, f.w.ask(context.Background(), func(*client.Client) error { return f.f.Close() }))
}
