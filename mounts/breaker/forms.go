package breaker

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"time"

	"cellgate/mounts"
)

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	return run(ctx, b, "Stat", name, func(ctx context.Context) (mounts.Info, error) { return b.next.Stat(ctx, name) })
}

// List implements mounts.Backend.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return pump(ctx, b, "List", dir, b.streams, b.cfg.Deadline, func(ctx context.Context) iter.Seq2[mounts.Info, error] { return b.next.List(ctx, dir) })
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return upload(ctx, b, "Put", name, src, func(ctx context.Context, src io.Reader) (mounts.Info, error) { return b.next.Put(ctx, name, src, opt) })
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.runOnly(ctx, "Mkdir", name, func(ctx context.Context) error { return b.next.Mkdir(ctx, name) })
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return b.runOnly(ctx, "Remove", name, func(ctx context.Context) error { return b.next.Remove(ctx, name) })
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	f := b.next.Features()
	do := func(ctx context.Context) error { return b.next.Rename(ctx, from, to) }
	if f.Rename == mounts.Native && f.AtomicReplace == mounts.Native {
		return b.runOnly(ctx, "Rename", from, do)
	}
	return b.runLongOnly(ctx, "Rename", from, do)
}

// Provide implements mounts.Provider: a guarded form of each capability that next has.
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
		return mounts.Offer(b.next, t, func(n mounts.Partitioned) mounts.Partitioned { return n }) // no I/O
	}
	return false, false
}

type copier struct {
	b    *Backend
	next mounts.Copier
}

func (w copier) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	return runLong(ctx, w.b, "CopyFile", from, func(ctx context.Context) (mounts.Info, error) { return w.next.CopyFile(ctx, from, to) })
}

type linker struct {
	b    *Backend
	next mounts.Linker
}

func (w linker) Link(ctx context.Context, from, to string) error {
	return w.b.runOnly(ctx, "Link", from, func(ctx context.Context) error { return w.next.Link(ctx, from, to) })
}

type times struct {
	b    *Backend
	next mounts.TimeSetter
}

func (w times) SetModTime(ctx context.Context, name string, t time.Time) error {
	return w.b.runOnly(ctx, "SetModTime", name, func(ctx context.Context) error { return w.next.SetModTime(ctx, name, t) })
}

type modes struct {
	b    *Backend
	next mounts.ModeSetter
}

func (w modes) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return w.b.runOnly(ctx, "SetMode", name, func(ctx context.Context) error { return w.next.SetMode(ctx, name, mode) })
}

type truncater struct {
	b    *Backend
	next mounts.Truncater
}

func (w truncater) Truncate(ctx context.Context, name string, size int64) error {
	return w.b.runOnly(ctx, "Truncate", name, func(ctx context.Context) error { return w.next.Truncate(ctx, name, size) })
}

type symlinker struct {
	b    *Backend
	next mounts.Symlinker
}

func (w symlinker) Symlink(ctx context.Context, target, name string) error {
	return w.b.runOnly(ctx, "Symlink", name, func(ctx context.Context) error { return w.next.Symlink(ctx, target, name) })
}

type xattrs struct {
	b    *Backend
	next mounts.Xattrer
}

func (w xattrs) Xattr(ctx context.Context, name, attr string) ([]byte, error) {
	return run(ctx, w.b, "Xattr", name, func(ctx context.Context) ([]byte, error) { return w.next.Xattr(ctx, name, attr) })
}

func (w xattrs) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	return w.b.runOnly(ctx, "SetXattr", name, func(ctx context.Context) error { return w.next.SetXattr(ctx, name, attr, value) })
}

func (w xattrs) RemoveXattr(ctx context.Context, name, attr string) error {
	return w.b.runOnly(ctx, "RemoveXattr", name, func(ctx context.Context) error { return w.next.RemoveXattr(ctx, name, attr) })
}

func (w xattrs) Xattrs(ctx context.Context, name string) ([]string, error) {
	return run(ctx, w.b, "Xattrs", name, func(ctx context.Context) ([]string, error) { return w.next.Xattrs(ctx, name) })
}

type watcher struct {
	b    *Backend
	next mounts.Watcher
}

// Watch has neither a place nor a deadline: nothing may change for days.
func (w watcher) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return pump(ctx, w.b, "Watch", ".", nil, 0, w.next.Watch)
}

type spacer struct {
	b    *Backend
	next mounts.Spacer
}

func (w spacer) Space(ctx context.Context) (mounts.Space, error) {
	return run(ctx, w.b, "Space", ".", w.next.Space)
}

type hasher struct {
	b    *Backend
	next mounts.Hasher
}

// Hash is a long call: some backends read the file for it.
func (w hasher) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	return runLong(ctx, w.b, "Hash", name, func(ctx context.Context) ([]byte, error) { return w.next.Hash(ctx, name, algo) })
}

type conditional struct {
	b    *Backend
	next mounts.Conditional
}

func (w conditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return upload(ctx, w.b, "PutIf", name, src, func(ctx context.Context, src io.Reader) (mounts.Info, error) {
		return w.next.PutIf(ctx, name, tag, src, opt)
	})
}

type parts struct {
	b    *Backend
	next mounts.PartPutter
}

func (w parts) StartParts(ctx context.Context, name string, opt mounts.PutOptions) (string, error) {
	return run(ctx, w.b, "StartParts", name, func(ctx context.Context) (string, error) { return w.next.StartParts(ctx, name, opt) })
}

func (w parts) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	_, err := upload(ctx, w.b, "PutPart", id, src, func(ctx context.Context, src io.Reader) (struct{}, error) {
		return struct{}{}, w.next.PutPart(ctx, id, number, src, size)
	})
	return err
}

func (w parts) FinishParts(ctx context.Context, id string) (mounts.Info, error) {
	return runLong(ctx, w.b, "FinishParts", id, func(ctx context.Context) (mounts.Info, error) { return w.next.FinishParts(ctx, id) })
}

func (w parts) AbortParts(ctx context.Context, id string) error {
	return w.b.runOnly(ctx, "AbortParts", id, func(ctx context.Context) error { return w.next.AbortParts(ctx, id) })
}

type purger struct {
	b    *Backend
	next mounts.Purger
}

func (w purger) Purge(ctx context.Context, name string) error {
	return w.b.runLongOnly(ctx, "Purge", name, func(ctx context.Context) error { return w.next.Purge(ctx, name) })
}

type resumer struct {
	b    *Backend
	next mounts.Resumer
}

func (w resumer) ResumeRename(ctx context.Context, from, to string) error {
	return w.b.runLongOnly(ctx, "ResumeRename", from, func(ctx context.Context) error { return w.next.ResumeRename(ctx, from, to) })
}
