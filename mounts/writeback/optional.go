package writeback

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"runtime/debug"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Provide implements mounts.Provider: a form of each capability below that knows of what is pending.
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
		return mounts.Offer(b.next, t, func(n mounts.Partitioned) mounts.Partitioned { return n }) // has nothing to do with files
	}
	return false, false
}

// ready is begin, and then waits until nothing is pending at the names.
func (b *Backend) ready(ctx context.Context, op string, names ...string) error {
	if err := b.begin(ctx, op, names...); err != nil {
		return err
	}
	return b.settle(ctx, op, names...)
}

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	if err := w.b.begin(ctx, "OpenFile", name); err != nil {
		return nil, err
	}
	if e := w.b.pending(name); e != nil && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0 {
		return nil, fault.New("mounts/writeback.OpenFile", name, fault.Exist, nil)
	}
	if err := w.b.ready(ctx, "OpenFile", name); err != nil {
		return nil, err
	}
	return w.next.OpenFile(ctx, name, flag, perm)
}

type copier struct {
	b    *Backend
	next mounts.Copier
}

func (w copier) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	if err := w.b.ready(ctx, "CopyFile", from, to); err != nil {
		return mounts.Info{}, err
	}
	return w.next.CopyFile(ctx, from, to)
}

type linker struct {
	b    *Backend
	next mounts.Linker
}

func (w linker) Link(ctx context.Context, from, to string) error {
	if err := w.b.ready(ctx, "Link", from); err != nil {
		return err
	}
	return w.b.make(ctx, "Link", to, func() error { return w.next.Link(ctx, from, to) })
}

type times struct {
	b    *Backend
	next mounts.TimeSetter
}

func (w times) SetModTime(ctx context.Context, name string, t time.Time) error {
	if err := w.b.ready(ctx, "SetModTime", name); err != nil {
		return err
	}
	return w.next.SetModTime(ctx, name, t)
}

type modes struct {
	b    *Backend
	next mounts.ModeSetter
}

func (w modes) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	if err := w.b.ready(ctx, "SetMode", name); err != nil {
		return err
	}
	return w.next.SetMode(ctx, name, mode)
}

type truncater struct {
	b    *Backend
	next mounts.Truncater
}

func (w truncater) Truncate(ctx context.Context, name string, size int64) error {
	if err := w.b.ready(ctx, "Truncate", name); err != nil {
		return err
	}
	return w.next.Truncate(ctx, name, size)
}

type symlinker struct {
	b    *Backend
	next mounts.Symlinker
}

func (w symlinker) Symlink(ctx context.Context, target, name string) error {
	return w.b.make(ctx, "Symlink", name, func() error { return w.next.Symlink(ctx, target, name) })
}

type xattrs struct {
	b    *Backend
	next mounts.Xattrer
}

func (w xattrs) Xattr(ctx context.Context, name, attr string) ([]byte, error) {
	if err := w.b.ready(ctx, "Xattr", name); err != nil {
		return nil, err
	}
	return w.next.Xattr(ctx, name, attr)
}

func (w xattrs) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	if err := w.b.ready(ctx, "SetXattr", name); err != nil {
		return err
	}
	return w.next.SetXattr(ctx, name, attr, value)
}

func (w xattrs) RemoveXattr(ctx context.Context, name, attr string) error {
	if err := w.b.ready(ctx, "RemoveXattr", name); err != nil {
		return err
	}
	return w.next.RemoveXattr(ctx, name, attr)
}

func (w xattrs) Xattrs(ctx context.Context, name string) ([]string, error) {
	if err := w.b.ready(ctx, "Xattrs", name); err != nil {
		return nil, err
	}
	return w.next.Xattrs(ctx, name)
}

type spacer struct {
	b    *Backend
	next mounts.Spacer
}

// Space counts what is pending as used.
func (w spacer) Space(ctx context.Context) (mounts.Space, error) {
	if err := w.b.begin(ctx, "Space", "."); err != nil {
		return mounts.Space{}, err
	}
	s, err := w.next.Space(ctx)
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	for _, slot := range w.b.slots {
		if e := slot.newest; e != nil && err == nil {
			if s.Used >= 0 {
				s.Used += e.Size
			}
			s.Free = max(s.Free-e.Size, min(s.Free, 0))
		}
	}
	return s, err
}

type hasher struct {
	b    *Backend
	next mounts.Hasher
}

func (w hasher) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	if err := w.b.ready(ctx, "Hash", name); err != nil {
		return nil, err
	}
	return w.next.Hash(ctx, name, algo)
}

type conditional struct {
	b    *Backend
	next mounts.Conditional
}

func (w conditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := w.b.ready(ctx, "PutIf", name); err != nil {
		return mounts.Info{}, err
	}
	w.b.mu.Lock()
	if is, ok := w.b.aliases[tag]; ok {
		tag = is
	}
	w.b.mu.Unlock()
	return w.next.PutIf(ctx, name, tag, src, opt)
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
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		if len(w.b.parts) < maxAliases {
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

// FinishParts waits for what is pending at the name, so that it does not come later and replace this.
func (w parts) FinishParts(ctx context.Context, id string) (mounts.Info, error) {
	w.b.mu.Lock()
	name, ok := w.b.parts[id]
	w.b.mu.Unlock()
	if !ok {
		name = "." // begun by an earlier process: it may be any
	}
	if err := w.b.ready(ctx, "FinishParts", name); err != nil {
		return mounts.Info{}, err
	}
	info, err := w.next.FinishParts(ctx, id)
	if err == nil {
		w.forget(id)
	}
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

func (w parts) forget(id string) {
	w.b.mu.Lock()
	delete(w.b.parts, id)
	w.b.mu.Unlock()
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
	return w.b.remove(ctx, "Purge", name, w.next.Purge)
}

type watcher struct {
	b    *Backend
	next mounts.Watcher
}

const backlog = 4096 // changes a slow watcher may lag behind before it misses some

// watch is one running Watch.
type watch struct {
	wake  chan struct{} // of capacity 1
	queue chan string
	gone  chan struct{} // closed at the end
}

// tell reports a change, or that one was missed; it never blocks.
func (w *watch) tell(name string) {
	select {
	case w.queue <- name:
	default:
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watch) end() { close(w.gone) }

// Watch tells of what is put as well as of what the backend reports.
func (w watcher) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		if err := w.b.begin(ctx, "Watch", "."); err != nil {
			yield(mounts.Change{}, err)
			return
		}
		own := &watch{wake: make(chan struct{}, 1), queue: make(chan string, backlog), gone: make(chan struct{})}
		w.b.mu.Lock()
		w.b.watches[own] = struct{}{}
		w.b.mu.Unlock()
		ctx, cancel := context.WithCancel(ctx)
		type pair struct {
			change mounts.Change
			err    error
		}
		below := make(chan pair)
		go func() {
			defer close(below)
			defer func() {
				if p := recover(); p != nil { // nobody above could catch it
					w.b.cfg.Logger.Error("watch panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				}
			}()
			for change, err := range w.next.Watch(ctx) {
				select {
				case below <- pair{change, err}:
				case <-ctx.Done():
					return
				}
			}
		}()
		defer func() {
			w.b.mu.Lock()
			delete(w.b.watches, own)
			w.b.mu.Unlock()
			cancel()
			for range below { // until the goroutine has ended
			}
		}()
		for more := true; more; {
			select {
			case p, ok := <-below:
				more = ok && yield(p.change, p.err)
			case name := <-own.queue:
				more = yield(mounts.Change{Name: name}, nil)
			case <-own.wake:
				more = yield(mounts.Change{}, fault.New("mounts/writeback.Watch", "", fault.Busy, errMissed))
			case <-own.gone:
				more = false
			case <-ctx.Done():
				more = false
			}
		}
	}
}
