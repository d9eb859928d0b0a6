package gatewaytest

import (
	"context"
	"io"
	"iter"
	"time"

	"cellgate/mounts"
)

// Far makes of a backend one as it looks across a network: without random access, ids and times of change, so that nothing can be staged on
// it and a node is known by its name, size and time alone. Of folders only the copies are one step with Emulated; a rename then leaves the
// source until all is there.
func Far(next mounts.Backend, rename mounts.Support) mounts.Backend { return far{next, rename} }

type far struct {
	next   mounts.Backend
	rename mounts.Support
}

var _ mounts.Resumer = far{}

func (f far) dim(i mounts.Info) mounts.Info {
	i.ID, i.Change, i.Links = 0, 0, 0
	i.ModTime = i.ModTime.Truncate(time.Microsecond)
	return i
}

func (f far) Stat(ctx context.Context, name string) (mounts.Info, error) {
	i, err := f.next.Stat(ctx, name)
	return f.dim(i), err
}

func (f far) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		for i, err := range f.next.List(ctx, dir) {
			if !yield(f.dim(i), err) {
				return
			}
		}
	}
}

func (f far) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	r, err := f.next.Open(ctx, name, off, n)
	if s, ok := r.(mounts.Stater); ok {
		return farReader{r, s, f}, err
	}
	return r, err
}

// farReader tells of its file what a stat would.
type farReader struct {
	io.ReadCloser
	stater mounts.Stater
	far    far
}

func (r farReader) Stat() (mounts.Info, error) {
	i, err := r.stater.Stat()
	return r.far.dim(i), err
}

func (f far) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	i, err := f.next.Put(ctx, name, src, opt)
	return f.dim(i), err
}

func (f far) Mkdir(ctx context.Context, name string) error { return f.next.Mkdir(ctx, name) }

func (f far) Remove(ctx context.Context, name string) error { return f.next.Remove(ctx, name) }

func (f far) Rename(ctx context.Context, from, to string) error {
	info, err := f.next.Stat(ctx, from)
	if f.rename == mounts.Native || err != nil || !info.IsDir() {
		return f.next.Rename(ctx, from, to)
	}
	// Fails as Rename does before anything is done.
	if err := f.next.Mkdir(ctx, to); err != nil {
		return err
	}
	return f.ResumeRename(ctx, from, to)
}

// ResumeRename implements mounts.Resumer.
func (f far) ResumeRename(ctx context.Context, from, to string) error {
	info, err := f.next.Stat(ctx, from)
	if f.rename == mounts.Native || err != nil || !info.IsDir() {
		return f.next.Rename(ctx, from, to)
	}
	if err := f.copyTree(ctx, from, to); err != nil {
		return err
	}
	return mounts.Purge(ctx, f.next, from)
}

func (f far) copyTree(ctx context.Context, from, to string) error {
	if err := mounts.MkdirAll(ctx, f.next, to); err != nil {
		return err
	}
	for i, err := range f.next.List(ctx, from) {
		if err != nil {
			return err
		}
		a, b := mounts.Join(from, i.Name), mounts.Join(to, i.Name)
		if i.IsDir() {
			err = f.copyTree(ctx, a, b)
		} else {
			_, err = mounts.Copy(ctx, f.next, a, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f far) Features() mounts.Features {
	all := f.next.Features()
	return mounts.Features{
		AtomicReplace: all.AtomicReplace, Rename: f.rename, CaseSensitive: all.CaseSensitive, MaxName: all.MaxName, Durable: all.Durable, Remote: true,
	}
}

func (f far) Close() error { return f.next.Close() }
