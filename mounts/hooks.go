package mounts

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"time"
)

// Hooks stand round the calls of a backend and of its capabilities. Each may be nil. Op is the method's name, such as "Put".
type Hooks struct {
	Call   func(ctx context.Context, op, name string, do func() error) error                        // round every call; may run do never, once or again
	List   func(ctx context.Context, dir string, all iter.Seq2[Info, error]) iter.Seq2[Info, error] // round a listing
	Reader func(ctx context.Context, name string, r io.ReadCloser) io.ReadCloser                    // what Open returns
	Source func(ctx context.Context, op, name string, src io.Reader) io.Reader                      // what Put, PutIf and PutPart read
	File   func(ctx context.Context, name string, f RandomFile) RandomFile                          // what OpenFile returns
	Watch  func(ctx context.Context, all iter.Seq2[Change, error]) iter.Seq2[Change, error]         // round the changes
}

// Around returns next with hooks round every call. It is transparent: it has exactly the capabilities of next, and those found by As are
// hooked too.
func Around(next Backend, hooks Hooks) Backend {
	if hooks.Call == nil {
		hooks.Call = func(_ context.Context, _, _ string, do func() error) error { return do() }
	}
	return &around{next: next, hooks: hooks}
}

type around struct {
	next  Backend
	hooks Hooks
}

var _ Provider = (*around)(nil)

// Unwrap makes the concrete type below reachable.
func (a *around) Unwrap() Backend { return a.next }

// call leads do through the hook and returns its value.
func call[V any](ctx context.Context, a *around, op, name string, do func() (V, error)) (V, error) {
	var v V
	err := a.hooks.Call(ctx, op, name, func() (err error) { v, err = do(); return err })
	return v, err
}

func (a *around) source(ctx context.Context, op, name string, src io.Reader) io.Reader {
	if a.hooks.Source == nil {
		return src
	}
	return a.hooks.Source(ctx, op, name, src)
}

func (a *around) Stat(ctx context.Context, name string) (Info, error) {
	return call(ctx, a, "Stat", name, func() (Info, error) { return a.next.Stat(ctx, name) })
}

func (a *around) List(ctx context.Context, dir string) iter.Seq2[Info, error] {
	if a.hooks.List == nil {
		return a.next.List(ctx, dir)
	}
	return a.hooks.List(ctx, dir, a.next.List(ctx, dir))
}

func (a *around) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	r, err := call(ctx, a, "Open", name, func() (io.ReadCloser, error) { return a.next.Open(ctx, name, off, n) })
	if err == nil && a.hooks.Reader != nil {
		r = a.hooks.Reader(ctx, name, r)
	}
	return r, err
}

func (a *around) Put(ctx context.Context, name string, src io.Reader, opt PutOptions) (Info, error) {
	return call(ctx, a, "Put", name, func() (Info, error) { return a.next.Put(ctx, name, a.source(ctx, "Put", name, src), opt) })
}

func (a *around) Mkdir(ctx context.Context, name string) error {
	return a.hooks.Call(ctx, "Mkdir", name, func() error { return a.next.Mkdir(ctx, name) })
}

func (a *around) Remove(ctx context.Context, name string) error {
	return a.hooks.Call(ctx, "Remove", name, func() error { return a.next.Remove(ctx, name) })
}

func (a *around) Rename(ctx context.Context, from, to string) error {
	return a.hooks.Call(ctx, "Rename", from, func() error { return a.next.Rename(ctx, from, to) })
}

func (a *around) Features() Features { return a.next.Features() }

func (a *around) Close() error {
	return a.hooks.Call(context.Background(), "Close", "", a.next.Close)
}

// Provide implements Provider: a hooked form of each capability that next has.
func (a *around) Provide(target any) (known, found bool) {
	switch t := target.(type) {
	case *RandomAccess:
		return Offer(a.next, t, func(n RandomAccess) RandomAccess { return aroundFiles{a, n} })
	case *Copier:
		return Offer(a.next, t, func(n Copier) Copier { return aroundCopier{a, n} })
	case *Linker:
		return Offer(a.next, t, func(n Linker) Linker { return aroundLinker{a, n} })
	case *TimeSetter:
		return Offer(a.next, t, func(n TimeSetter) TimeSetter { return aroundTimes{a, n} })
	case *ModeSetter:
		return Offer(a.next, t, func(n ModeSetter) ModeSetter { return aroundModes{a, n} })
	case *Truncater:
		return Offer(a.next, t, func(n Truncater) Truncater { return aroundTruncater{a, n} })
	case *Symlinker:
		return Offer(a.next, t, func(n Symlinker) Symlinker { return aroundSymlinker{a, n} })
	case *Xattrer:
		return Offer(a.next, t, func(n Xattrer) Xattrer { return aroundXattrs{a, n} })
	case *Watcher:
		return Offer(a.next, t, func(n Watcher) Watcher { return aroundWatcher{a, n} })
	case *Spacer:
		return Offer(a.next, t, func(n Spacer) Spacer { return aroundSpacer{a, n} })
	case *Hasher:
		return Offer(a.next, t, func(n Hasher) Hasher { return aroundHasher{a, n} })
	case *Conditional:
		return Offer(a.next, t, func(n Conditional) Conditional { return aroundConditional{a, n} })
	case *PartPutter:
		return Offer(a.next, t, func(n PartPutter) PartPutter { return aroundParts{a, n} })
	case *Purger:
		return Offer(a.next, t, func(n Purger) Purger { return aroundPurger{a, n} })
	case *Resumer:
		return Offer(a.next, t, func(n Resumer) Resumer { return aroundResumer{a, n} })
	case *Partitioned:
		return Offer(a.next, t, func(n Partitioned) Partitioned { return n }) // as Features: no I/O, so nothing to stand round
	}
	return false, false
}

type aroundFiles struct {
	a    *around
	next RandomAccess
}

func (w aroundFiles) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (RandomFile, error) {
	f, err := call(ctx, w.a, "OpenFile", name, func() (RandomFile, error) { return w.next.OpenFile(ctx, name, flag, perm) })
	if err == nil && w.a.hooks.File != nil {
		f = w.a.hooks.File(ctx, name, f)
	}
	return f, err
}

type aroundCopier struct {
	a    *around
	next Copier
}

func (w aroundCopier) CopyFile(ctx context.Context, from, to string) (Info, error) {
	return call(ctx, w.a, "CopyFile", from, func() (Info, error) { return w.next.CopyFile(ctx, from, to) })
}

type aroundLinker struct {
	a    *around
	next Linker
}

func (w aroundLinker) Link(ctx context.Context, from, to string) error {
	return w.a.hooks.Call(ctx, "Link", from, func() error { return w.next.Link(ctx, from, to) })
}

type aroundTimes struct {
	a    *around
	next TimeSetter
}

func (w aroundTimes) SetModTime(ctx context.Context, name string, t time.Time) error {
	return w.a.hooks.Call(ctx, "SetModTime", name, func() error { return w.next.SetModTime(ctx, name, t) })
}

type aroundModes struct {
	a    *around
	next ModeSetter
}

func (w aroundModes) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return w.a.hooks.Call(ctx, "SetMode", name, func() error { return w.next.SetMode(ctx, name, mode) })
}

type aroundTruncater struct {
	a    *around
	next Truncater
}

func (w aroundTruncater) Truncate(ctx context.Context, name string, size int64) error {
	return w.a.hooks.Call(ctx, "Truncate", name, func() error { return w.next.Truncate(ctx, name, size) })
}

type aroundSymlinker struct {
	a    *around
	next Symlinker
}

func (w aroundSymlinker) Symlink(ctx context.Context, target, name string) error {
	return w.a.hooks.Call(ctx, "Symlink", name, func() error { return w.next.Symlink(ctx, target, name) })
}

type aroundXattrs struct {
	a    *around
	next Xattrer
}

func (w aroundXattrs) Xattr(ctx context.Context, name, attr string) ([]byte, error) {
	return call(ctx, w.a, "Xattr", name, func() ([]byte, error) { return w.next.Xattr(ctx, name, attr) })
}

func (w aroundXattrs) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	return w.a.hooks.Call(ctx, "SetXattr", name, func() error { return w.next.SetXattr(ctx, name, attr, value) })
}

func (w aroundXattrs) RemoveXattr(ctx context.Context, name, attr string) error {
	return w.a.hooks.Call(ctx, "RemoveXattr", name, func() error { return w.next.RemoveXattr(ctx, name, attr) })
}

func (w aroundXattrs) Xattrs(ctx context.Context, name string) ([]string, error) {
	return call(ctx, w.a, "Xattrs", name, func() ([]string, error) { return w.next.Xattrs(ctx, name) })
}

type aroundWatcher struct {
	a    *around
	next Watcher
}

func (w aroundWatcher) Watch(ctx context.Context) iter.Seq2[Change, error] {
	if w.a.hooks.Watch == nil {
		return w.next.Watch(ctx)
	}
	return w.a.hooks.Watch(ctx, w.next.Watch(ctx))
}

type aroundSpacer struct {
	a    *around
	next Spacer
}

func (w aroundSpacer) Space(ctx context.Context) (Space, error) {
	return call(ctx, w.a, "Space", ".", func() (Space, error) { return w.next.Space(ctx) })
}

type aroundHasher struct {
	a    *around
	next Hasher
}

func (w aroundHasher) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	return call(ctx, w.a, "Hash", name, func() ([]byte, error) { return w.next.Hash(ctx, name, algo) })
}

type aroundConditional struct {
	a    *around
	next Conditional
}

func (w aroundConditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt PutOptions) (Info, error) {
	return call(ctx, w.a, "PutIf", name, func() (Info, error) {
		return w.next.PutIf(ctx, name, tag, w.a.source(ctx, "PutIf", name, src), opt)
	})
}

type aroundParts struct {
	a    *around
	next PartPutter
}

func (w aroundParts) StartParts(ctx context.Context, name string, opt PutOptions) (string, error) {
	return call(ctx, w.a, "StartParts", name, func() (string, error) { return w.next.StartParts(ctx, name, opt) })
}

func (w aroundParts) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	return w.a.hooks.Call(ctx, "PutPart", id, func() error {
		return w.next.PutPart(ctx, id, number, w.a.source(ctx, "PutPart", id, src), size)
	})
}

func (w aroundParts) FinishParts(ctx context.Context, id string) (Info, error) {
	return call(ctx, w.a, "FinishParts", id, func() (Info, error) { return w.next.FinishParts(ctx, id) })
}

func (w aroundParts) AbortParts(ctx context.Context, id string) error {
	return w.a.hooks.Call(ctx, "AbortParts", id, func() error { return w.next.AbortParts(ctx, id) })
}

type aroundPurger struct {
	a    *around
	next Purger
}

func (w aroundPurger) Purge(ctx context.Context, name string) error {
	return w.a.hooks.Call(ctx, "Purge", name, func() error { return w.next.Purge(ctx, name) })
}

type aroundResumer struct {
	a    *around
	next Resumer
}

func (w aroundResumer) ResumeRename(ctx context.Context, from, to string) error {
	return w.a.hooks.Call(ctx, "ResumeRename", from, func() error { return w.next.ResumeRename(ctx, from, to) })
}
