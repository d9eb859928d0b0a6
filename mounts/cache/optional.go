package cache

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"

	"cellgate/mounts"
)

// maxParts is the most uploads in parts whose names are kept; those of others make everything be forgotten when they are finished.
const maxParts = 10_000

// Provide implements mounts.Provider: a form of each capability below that keeps the memory true.
func (b *Backend) Provide(target any) (known, found bool) {
	switch t := target.(type) {
	case *mounts.RandomAccess:
		return mounts.Offer(b.next, t, func(n mounts.RandomAccess) mounts.RandomAccess { return files{b, n} })
	case *mounts.Copier:
		return mounts.Offer(b.next, t, func(n mounts.Copier) mounts.Copier { return copier{b, n} })
	case *mounts.Linker:
		return mounts.Offer(b.next, t, func(n mounts.Linker) mounts.Linker { return linker{b, n} })
	case *mounts.TimeSetter:
		return mounts.Offer(b.next, t, func(n mounts.TimeSetter) mounts.TimeSetter { return times{b, n} })
	case *mounts.ModeSetter:
		return mounts.Offer(b.next, t, func(n mounts.ModeSetter) mounts.ModeSetter { return modes{b, n} })
	case *mounts.Truncater:
		return mounts.Offer(b.next, t, func(n mounts.Truncater) mounts.Truncater { return truncater{b, n} })
	case *mounts.Symlinker:
		return mounts.Offer(b.next, t, func(n mounts.Symlinker) mounts.Symlinker { return symlinker{b, n} })
	case *mounts.Xattrer:
		return mounts.Offer(b.next, t, func(n mounts.Xattrer) mounts.Xattrer { return xattrs{b, n} })
	case *mounts.Watcher:
		return mounts.Offer(b.next, t, func(n mounts.Watcher) mounts.Watcher { return watcher{b, n} })
	case *mounts.Spacer:
		return mounts.Offer(b.next, t, func(n mounts.Spacer) mounts.Spacer { return spacer{b, n} })
	case *mounts.Hasher:
		return mounts.Offer(b.next, t, func(n mounts.Hasher) mounts.Hasher { return hasher{b, n} })
	case *mounts.Conditional:
		return mounts.Offer(b.next, t, func(n mounts.Conditional) mounts.Conditional { return conditional{b, n} })
	case *mounts.PartPutter:
		return mounts.Offer(b.next, t, func(n mounts.PartPutter) mounts.PartPutter { return parts{b, n} })
	case *mounts.Purger:
		return mounts.Offer(b.next, t, func(n mounts.Purger) mounts.Purger { return purger{b, n} })
	case *mounts.Resumer:
		return mounts.Offer(b.next, t, func(n mounts.Resumer) mounts.Resumer { return resumer{b, n} })
	case *mounts.Partitioned:
		return mounts.Offer(b.next, t, func(n mounts.Partitioned) mounts.Partitioned { return n }) // no I/O, nothing to remember
	}
	return false, false
}

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	if err := w.b.begin(ctx, "OpenFile", name); err != nil {
		return nil, err
	}
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) == 0 {
		return w.next.OpenFile(ctx, name, flag, perm)
	}
	open := w.b.m.opened(name) // before it may be made or cut
	var f mounts.RandomFile
	err := w.b.change(ctx, "OpenFile", func() (err error) { f, err = w.next.OpenFile(ctx, name, flag, perm); return err }, nil, name)
	if err != nil {
		w.b.m.closed(open)
		return nil, err
	}
	own := &file{f, w.b, open}
	if d, ok := f.(mounts.Descriptor); ok { // writes past us are fine: an open name is not answered from memory
		return struct {
			*file
			mounts.Descriptor
		}{own, d}, nil
	}
	return own, nil
}

// file is a file that is open for writing.
type file struct {
	mounts.RandomFile
	b    *Backend
	open *writer
}

func (f *file) Close() error {
	err := f.RandomFile.Close()
	f.b.m.closed(f.open)
	f.b.blocks.forgetFile(f.open.key)
	return err
}

type copier struct {
	b    *Backend
	next mounts.Copier
}

func (w copier) CopyFile(ctx context.Context, from, to string) (info mounts.Info, err error) {
	if err := w.b.begin(ctx, "CopyFile", from, to); err != nil {
		return mounts.Info{}, err
	}
	do := func() error { info, err = w.next.CopyFile(ctx, from, to); return err }
	err = w.b.change(ctx, "CopyFile", do, func() { w.b.m.know(to, info) }, to)
	return info, err
}

type linker struct {
	b    *Backend
	next mounts.Linker
}

func (w linker) Link(ctx context.Context, from, to string) error {
	do := func() error {
		if info, err := w.b.next.Stat(ctx, from); err != nil || info.Links == 0 {
			w.b.m.link()
		}
		return w.next.Link(ctx, from, to)
	}
	return w.b.change(ctx, "Link", do, nil, from, to)
}

// link says that from now on a change may show at names that nobody can tell.
func (m *memory) link() {
	m.mu.Lock()
	m.linked = true
	m.mu.Unlock()
}

type times struct {
	b    *Backend
	next mounts.TimeSetter
}

func (w times) SetModTime(ctx context.Context, name string, t time.Time) error {
	return w.b.change(ctx, "SetModTime", func() error { return w.next.SetModTime(ctx, name, t) }, nil, name)
}

type modes struct {
	b    *Backend
	next mounts.ModeSetter
}

func (w modes) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return w.b.change(ctx, "SetMode", func() error { return w.next.SetMode(ctx, name, mode) }, nil, name)
}

type truncater struct {
	b    *Backend
	next mounts.Truncater
}

func (w truncater) Truncate(ctx context.Context, name string, size int64) error {
	return w.b.change(ctx, "Truncate", func() error { return w.next.Truncate(ctx, name, size) }, nil, name)
}

type symlinker struct {
	b    *Backend
	next mounts.Symlinker
}

func (w symlinker) Symlink(ctx context.Context, target, name string) error {
	return w.b.change(ctx, "Symlink", func() error { return w.next.Symlink(ctx, target, name) }, nil, name)
}

type xattrs struct {
	b    *Backend
	next mounts.Xattrer
}

func (w xattrs) Xattr(ctx context.Context, name, attr string) ([]byte, error) {
	if err := w.b.begin(ctx, "Xattr", name); err != nil {
		return nil, err
	}
	return w.next.Xattr(ctx, name, attr)
}

func (w xattrs) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	return w.b.change(ctx, "SetXattr", func() error { return w.next.SetXattr(ctx, name, attr, value) }, nil, name)
}

func (w xattrs) RemoveXattr(ctx context.Context, name, attr string) error {
	return w.b.change(ctx, "RemoveXattr", func() error { return w.next.RemoveXattr(ctx, name, attr) }, nil, name)
}

func (w xattrs) Xattrs(ctx context.Context, name string) ([]string, error) {
	if err := w.b.begin(ctx, "Xattrs", name); err != nil {
		return nil, err
	}
	return w.next.Xattrs(ctx, name)
}

type watcher struct {
	b    *Backend
	next mounts.Watcher
}

// Watch forgets what changed before it tells of it, so that who looks then sees the new.
func (w watcher) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		if err := w.b.begin(ctx, "Watch", "."); err != nil {
			yield(mounts.Change{}, err)
			return
		}
		for change, err := range w.next.Watch(ctx) {
			w.b.seen(change, err)
			if !yield(change, err) {
				return
			}
		}
	}
}

type spacer struct {
	b    *Backend
	next mounts.Spacer
}

func (w spacer) Space(ctx context.Context) (mounts.Space, error) {
	if err := w.b.begin(ctx, "Space", "."); err != nil {
		return mounts.Space{}, err
	}
	return w.next.Space(ctx)
}

type hasher struct {
	b    *Backend
	next mounts.Hasher
}

func (w hasher) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	if err := w.b.begin(ctx, "Hash", name); err != nil {
		return nil, err
	}
	return w.next.Hash(ctx, name, algo)
}

type conditional struct {
	b    *Backend
	next mounts.Conditional
}

func (w conditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	do := func() error { info, err = w.next.PutIf(ctx, name, tag, src, opt); return err }
	err = w.b.change(ctx, "PutIf", do, func() { w.b.m.know(name, info) }, name)
	return info, err
}

type parts struct {
	b    *Backend
	next mounts.PartPutter
}

func (w parts) StartParts(ctx context.Context, name string, opt mounts.PutOptions) (string, error) {
	if err := w.b.begin(ctx, "StartParts", name); err != nil {
		return "", err
	}
	id, err := w.next.StartParts(ctx, name, opt)
	if err == nil {
		w.b.partsMu.Lock()
		defer w.b.partsMu.Unlock()
		if len(w.b.parts) < maxParts {
			w.b.parts[id] = name
		}
	}
	return id, err
}

func (w parts) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	if err := w.b.begin(ctx, "PutPart", "."); err != nil {
		return err
	}
	return w.next.PutPart(ctx, id, number, src, size)
}

func (w parts) FinishParts(ctx context.Context, id string) (info mounts.Info, err error) {
	name := w.name(id) // "." for an upload begun before this process: then all is forgotten
	do := func() error { info, err = w.next.FinishParts(ctx, id); return err }
	done := func() {
		w.forget(id)
		if name != "." {
			w.b.m.know(name, info)
		}
	}
	err = w.b.change(ctx, "FinishParts", do, done, name)
	return info, err
}

func (w parts) AbortParts(ctx context.Context, id string) error {
	if err := w.b.begin(ctx, "AbortParts", "."); err != nil {
		return err
	}
	err := w.next.AbortParts(ctx, id)
	if err == nil {
		w.forget(id)
	}
	return err
}

func (w parts) name(id string) string {
	w.b.partsMu.Lock()
	defer w.b.partsMu.Unlock()
	if name, ok := w.b.parts[id]; ok {
		return name
	}
	return "."
}

func (w parts) forget(id string) {
	w.b.partsMu.Lock()
	delete(w.b.parts, id)
	w.b.partsMu.Unlock()
}

type resumer struct {
	b    *Backend
	next mounts.Resumer
}

func (w resumer) ResumeRename(ctx context.Context, from, to string) error {
	return w.b.rename(ctx, "ResumeRename", from, to, w.next.ResumeRename)
}

type purger struct {
	b    *Backend
	next mounts.Purger
}

func (w purger) Purge(ctx context.Context, name string) error {
	return w.b.change(ctx, "Purge", func() error { return w.next.Purge(ctx, name) }, func() { w.b.m.gone(name) }, name)
}
