// Package prefix is a wrapper that makes a folder of a backend the root of another.
//
// It changes names, so it has no Unwrap: a capability it has no form of is not there. Names, errors' paths, changes and Areas are those of
// the new root; nothing tells how the folder is named or what lies beside it. Symbolic links are stored as they are: one that leads above the
// new root leads out of the datasource, which mounts.Resolve denies.
package prefix

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a folder of a backend. It is safe for concurrent use.
type Backend struct {
	next mounts.Backend
	dir  string
}

var (
	_ mounts.Backend  = (*Backend)(nil)
	_ mounts.Provider = (*Backend)(nil)
)

// New returns the folder dir of next as a backend. Whether it is there shows at the first call.
func New(next mounts.Backend, dir string) (*Backend, error) {
	if err := mounts.ValidPath(dir); err != nil {
		return nil, fault.Wrap("mounts/prefix.New", dir, err)
	}
	return &Backend{next: next, dir: dir}, nil
}

var errRoot = errors.New("the root stays where it is")

// below returns the name that next knows name by.
func (b *Backend) below(ctx context.Context, op, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fault.Wrap("mounts/prefix."+op, name, err)
	}
	if err := mounts.ValidPath(name); err != nil {
		return "", fault.Wrap("mounts/prefix."+op, name, err)
	}
	if name == "." {
		return b.dir, nil
	}
	return mounts.Join(b.dir, name), nil
}

// change is below for calls that make, replace or remove name itself, which the root fails with the given kind.
func (b *Backend) change(ctx context.Context, op, name string, root fault.Kind) (string, error) {
	full, err := b.below(ctx, op, name)
	if err == nil && name == "." {
		return "", fault.New("mounts/prefix."+op, name, root, errRoot)
	}
	return full, err
}

// above returns the name here of what next knows as name, if it is the root or below it.
func (b *Backend) above(name string) (string, bool) {
	switch {
	case b.dir == ".":
		return name, true
	case name == b.dir:
		return ".", true
	case mounts.Below(name, b.dir):
		return name[len(b.dir)+1:], true
	}
	return "", false
}

// fail translates the paths in an error of next. What is not below the root is the root's own trouble.
func (b *Backend) fail(err error) error {
	if err == nil || b.dir == "." {
		return err
	}
	if f, ok := err.(*fault.Error); ok {
		name, inside := b.above(f.Path)
		if !inside && f.Path != "" {
			name = "."
		}
		return fault.New(f.Op, name, f.Kind, b.fail(f.Err))
	}
	if cause := errors.Unwrap(err); cause != nil && mounts.IsUnsent(err) && !mounts.IsUnsent(cause) {
		return mounts.Unsent(b.fail(cause))
	}
	return err
}

// info is what Stat and others say about name.
func (b *Backend) info(name string, info mounts.Info, err error) (mounts.Info, error) {
	if err == nil && name == "." {
		info.Name = "."
	}
	return info, b.fail(err)
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	full, err := b.below(ctx, "Stat", name)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.next.Stat(ctx, full)
	return b.info(name, info, err)
}

// List implements mounts.Backend.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		full, err := b.below(ctx, "List", dir)
		if err != nil {
			yield(mounts.Info{}, err)
			return
		}
		for info, err := range b.next.List(ctx, full) {
			if !yield(info, b.fail(err)) {
				return
			}
		}
	}
}

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	full, err := b.below(ctx, "Open", name)
	if err != nil {
		return nil, err
	}
	r, err := b.next.Open(ctx, full, off, n)
	if err != nil {
		return nil, b.fail(err)
	}
	if _, ok := r.(mounts.Descriptor); ok {
		return r, nil
	}
	if s, ok := r.(mounts.Stater); ok {
		return statReader{reader{b, r}, s}, nil
	}
	return reader{b, r}, nil
}

// reader translates errors.
type reader struct {
	b    *Backend
	next io.ReadCloser
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.next.Read(p)
	return n, r.b.fail(err)
}

func (r reader) Close() error { return r.b.fail(r.next.Close()) }

type statReader struct {
	reader
	stater mounts.Stater
}

func (r statReader) Stat() (mounts.Info, error) {
	info, err := r.stater.Stat()
	return info, r.b.fail(err)
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	full, err := b.change(ctx, "Put", name, fault.IsDir)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.next.Put(ctx, full, src, opt)
	return b.info(name, info, err)
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	full, err := b.change(ctx, "Mkdir", name, fault.Exist)
	if err != nil {
		return err
	}
	return b.fail(b.next.Mkdir(ctx, full))
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	full, err := b.change(ctx, "Remove", name, fault.Invalid)
	if err != nil {
		return err
	}
	return b.fail(b.next.Remove(ctx, full))
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	return b.two(ctx, "Rename", from, to, fault.Invalid, fault.Invalid, b.next.Rename)
}

// two is a call with two names, neither of which may be the root.
func (b *Backend) two(ctx context.Context, op, from, to string, fromRoot, toRoot fault.Kind, do func(ctx context.Context, from, to string) error) error {
	fullFrom, err := b.change(ctx, op, from, fromRoot)
	if err != nil {
		return err
	}
	fullTo, err := b.change(ctx, op, to, toRoot)
	if err != nil {
		return err
	}
	return b.fail(do(ctx, fullFrom, fullTo))
}

// Features returns those of next; paths are shorter by the folder's.
func (b *Backend) Features() mounts.Features {
	f := b.next.Features()
	if f.MaxPath > 0 && b.dir != "." {
		f.MaxPath = max(f.MaxPath-len(b.dir)-1, 1)
	}
	return f
}

// Close closes next.
func (b *Backend) Close() error { return b.fail(b.next.Close()) }

// areas are those of next that lie in the folder, under their names here. The folder itself lies on a file system whose Area may be further
// up; here it is one in the root, which is on the same.
type areas struct {
	b    *Backend
	next mounts.Partitioned
}

func (w areas) Area(name string) string {
	full := w.b.dir
	if name != "." {
		full = mounts.Join(w.b.dir, name)
	}
	if area, ok := w.b.above(w.next.Area(full)); ok {
		return area
	}
	return mounts.Area
}

func (w areas) Areas() []string {
	all := []string{mounts.Area}
	for _, area := range w.next.Areas() {
		if area, ok := w.b.above(area); ok && area != mounts.Area {
			all = append(all, area)
		}
	}
	return all
}

type watcher struct {
	b    *Backend
	next mounts.Watcher
}

// Watch tells of what changes in the folder. A change of a folder above it may be one of its own being there, so it is told as one of the root.
func (w watcher) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		for change, err := range w.next.Watch(ctx) {
			switch name, inside := w.b.above(change.Name); {
			case err != nil:
				if !yield(mounts.Change{}, w.b.fail(err)) {
					return
				}
				continue
			case inside:
				change.Name = name
			case mounts.Below(w.b.dir, change.Name):
				change.Name = "."
			default:
				continue
			}
			if !yield(change, nil) {
				return
			}
		}
	}
}

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	full, err := w.b.change(ctx, "OpenFile", name, fault.IsDir)
	if err != nil {
		return nil, err
	}
	f, err := w.next.OpenFile(ctx, full, flag, perm)
	if err != nil {
		return nil, w.b.fail(err)
	}
	if _, ok := f.(mounts.Descriptor); ok {
		return f, nil
	}
	return file{w.b, f}, nil
}

// file translates errors.
type file struct {
	b    *Backend
	next mounts.RandomFile
}

var _ mounts.RandomFile = file{}

func (f file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.next.ReadAt(p, off)
	return n, f.b.fail(err)
}

func (f file) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.next.WriteAt(p, off)
	return n, f.b.fail(err)
}

func (f file) Stat() (mounts.Info, error) {
	info, err := f.next.Stat()
	return info, f.b.fail(err)
}

func (f file) Truncate(size int64) error { return f.b.fail(f.next.Truncate(size)) }
func (f file) Sync() error               { return f.b.fail(f.next.Sync()) }
func (f file) Close() error              { return f.b.fail(f.next.Close()) }
