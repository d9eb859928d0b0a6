package prefix

import (
	"context"
	"io"
	"io/fs"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Provide implements mounts.Provider: each capability that next has, with other names.
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
		return mounts.Offer(b.next, t, func(n mounts.Partitioned) mounts.Partitioned { return areas{b, n} })
	}
	return true, false
}

// one is a call with one name, which may be the root's.
func (b *Backend) one(ctx context.Context, op, name string, do func(full string) error) error {
	full, err := b.below(ctx, op, name)
	if err != nil {
		return err
	}
	return b.fail(do(full))
}

type copier struct {
	b    *Backend
	next mounts.Copier
}

func (w copier) CopyFile(ctx context.Context, from, to string) (info mounts.Info, err error) {
	err = w.b.two(ctx, "CopyFile", from, to, fault.IsDir, fault.IsDir, func(ctx context.Context, from, to string) (err error) {
		info, err = w.next.CopyFile(ctx, from, to)
		return err
	})
	return info, err
}

type linker struct {
	b    *Backend
	next mounts.Linker
}

func (w linker) Link(ctx context.Context, from, to string) error {
	return w.b.two(ctx, "Link", from, to, fault.IsDir, fault.Exist, w.next.Link)
}

type times struct {
	b    *Backend
	next mounts.TimeSetter
}

func (w times) SetModTime(ctx context.Context, name string, t time.Time) error {
	return w.b.one(ctx, "SetModTime", name, func(full string) error { return w.next.SetModTime(ctx, full, t) })
}

type modes struct {
	b    *Backend
	next mounts.ModeSetter
}

func (w modes) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return w.b.one(ctx, "SetMode", name, func(full string) error { return w.next.SetMode(ctx, full, mode) })
}

type truncater struct {
	b    *Backend
	next mounts.Truncater
}

func (w truncater) Truncate(ctx context.Context, name string, size int64) error {
	return w.b.one(ctx, "Truncate", name, func(full string) error { return w.next.Truncate(ctx, full, size) })
}

type symlinker struct {
	b    *Backend
	next mounts.Symlinker
}

func (w symlinker) Symlink(ctx context.Context, target, name string) error {
	full, err := w.b.change(ctx, "Symlink", name, fault.Exist)
	if err != nil {
		return err
	}
	return w.b.fail(w.next.Symlink(ctx, target, full))
}

type xattrs struct {
	b    *Backend
	next mounts.Xattrer
}

func (w xattrs) Xattr(ctx context.Context, name, attr string) (value []byte, err error) {
	err = w.b.one(ctx, "Xattr", name, func(full string) (err error) { value, err = w.next.Xattr(ctx, full, attr); return err })
	return value, err
}

func (w xattrs) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	return w.b.one(ctx, "SetXattr", name, func(full string) error { return w.next.SetXattr(ctx, full, attr, value) })
}

func (w xattrs) RemoveXattr(ctx context.Context, name, attr string) error {
	return w.b.one(ctx, "RemoveXattr", name, func(full string) error { return w.next.RemoveXattr(ctx, full, attr) })
}

func (w xattrs) Xattrs(ctx context.Context, name string) (attrs []string, err error) {
	err = w.b.one(ctx, "Xattrs", name, func(full string) (err error) { attrs, err = w.next.Xattrs(ctx, full); return err })
	return attrs, err
}

type spacer struct {
	b    *Backend
	next mounts.Spacer
}

func (w spacer) Space(ctx context.Context) (mounts.Space, error) {
	s, err := w.next.Space(ctx)
	return s, w.b.fail(err)
}

type hasher struct {
	b    *Backend
	next mounts.Hasher
}

func (w hasher) Hash(ctx context.Context, name, algo string) (sum []byte, err error) {
	err = w.b.one(ctx, "Hash", name, func(full string) (err error) { sum, err = w.next.Hash(ctx, full, algo); return err })
	return sum, err
}

type conditional struct {
	b    *Backend
	next mounts.Conditional
}

func (w conditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	full, err := w.b.change(ctx, "PutIf", name, fault.IsDir)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := w.next.PutIf(ctx, full, tag, src, opt)
	return info, w.b.fail(err)
}

// parts passes on the ids of next, which are its own affair.
type parts struct {
	b    *Backend
	next mounts.PartPutter
}

func (w parts) StartParts(ctx context.Context, name string, opt mounts.PutOptions) (string, error) {
	full, err := w.b.change(ctx, "StartParts", name, fault.IsDir)
	if err != nil {
		return "", err
	}
	id, err := w.next.StartParts(ctx, full, opt)
	return id, w.b.fail(err)
}

func (w parts) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	return w.b.fail(w.next.PutPart(ctx, id, number, src, size))
}

func (w parts) FinishParts(ctx context.Context, id string) (mounts.Info, error) {
	info, err := w.next.FinishParts(ctx, id)
	return info, w.b.fail(err)
}

func (w parts) AbortParts(ctx context.Context, id string) error {
	return w.b.fail(w.next.AbortParts(ctx, id))
}

type purger struct {
	b    *Backend
	next mounts.Purger
}

func (w purger) Purge(ctx context.Context, name string) error {
	full, err := w.b.change(ctx, "Purge", name, fault.Invalid)
	if err != nil {
		return err
	}
	return w.b.fail(w.next.Purge(ctx, full))
}

type resumer struct {
	b    *Backend
	next mounts.Resumer
}

func (w resumer) ResumeRename(ctx context.Context, from, to string) error {
	return w.b.two(ctx, "ResumeRename", from, to, fault.Invalid, fault.Invalid, w.next.ResumeRename)
}
