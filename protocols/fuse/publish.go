package fuse

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// sync publishes what was written. The caller holds the gate.
func (f *fsys) sync(ctx context.Context, n *node, fl *file) error {
	fl.mu.Lock()
	w, lost, was, broken, fresh, mode := fl.w, fl.lost, fl.dirty, fl.broken, fl.fresh, fl.mode
	if broken != nil && was {
		fl.mu.Unlock()
		return broken
	}
	if w == nil || lost {
		fl.mu.Unlock()
		return nil
	}
	fl.dirty = false // what is written from now on is for the next time
	fl.mu.Unlock()
	p, err := f.tree.path(n)
	switch {
	case err == nil:
		defer f.doing(p)()
		err = w.Sync(ctx)
	case f.tree.isGone(n):
		return nil
	}
	fl.mu.Lock()
	later := fl.later
	if err != nil {
		fl.dirty = fl.dirty || was
		fl.mu.Unlock()
		return err
	}
	fl.fresh, fl.later = false, gateway.Attr{}
	fl.mu.Unlock()
	if fresh && later.Mode == nil {
		// Where the backend keeps no bits, a new file has others than it was made with.
		if i, err := f.s.Stat(ctx, p); err == nil && f.mode(n, i) != mode {
			later.Mode = &mode
		}
	}
	if later != (gateway.Attr{}) {
		err = f.setKept(ctx, p, later)
	}
	i := w.Info()
	if !later.ModTime.IsZero() {
		i.ModTime = later.ModTime
	}
	n.mu.Lock()
	if i.Links = n.info.Links; later.Mode != nil || i.Mode == 0 {
		i.Mode = n.info.Mode
	}
	n.info = i
	n.mu.Unlock()
	fl.mu.Lock()
	stale := was && fl.r != nil && !fl.near && !fl.reads
	fl.mu.Unlock()
	if stale {
		if rerr := f.openReader(ctx, n, fl); rerr != nil {
			f.cfg.Logger.Debug("what was published cannot be read", "path", p.String(), "err", rerr)
		}
	}
	return err
}

// settle is sync before the last close: what fails here is reported by nobody but the log, since close has reported it already or was not waited for.
func (f *fsys) settle(ctx context.Context, n *node, fl *file) error {
	fl.mu.Lock()
	needed := fl.w != nil && !fl.lost && (fl.dirty || fl.fresh || fl.near)
	fl.mu.Unlock()
	if !needed {
		return nil
	}
	return f.sync(ctx, n, fl)
}

// keep saves the content of an open file that is about to lose its last name, where its datasource would forget it.
func (f *fsys) keep(ctx context.Context, n *node) error {
	fl := n.openFile()
	if fl == nil {
		return nil
	}
	if err := fl.gate.lock(ctx); err != nil {
		return err
	}
	defer fl.gate.unlock()
	fl.mu.Lock()
	w, r := fl.w, fl.r
	local := fl.near || fl.ros != nil
	reads := fl.reads
	fl.mu.Unlock()
	switch {
	case local || w == nil && r == nil:
		return nil
	case w != nil:
		if _, err := w.WriteAt(nil, 0); err != nil { // it stages
			return err
		}
		if reads || r == nil {
			return nil
		}
	}
	if r.Info().Size > f.cfg.SpoolBytes {
		return nil // it cannot be read on
	}
	kept, err := os.CreateTemp(f.cfg.Spool, "cellgate-fuse-")
	if err != nil {
		return err
	}
	if err := os.Remove(kept.Name()); err != nil {
		return errors.Join(err, kept.Close())
	}
	if _, err := io.Copy(kept, io.NewSectionReader(readerAt{r}, 0, r.Info().Size)); err != nil {
		return errors.Join(err, kept.Close())
	}
	fl.mu.Lock()
	fl.kept = kept
	fl.mu.Unlock()
	return nil
}

// readerAt hides all but ReadAt.
type readerAt struct{ io.ReaderAt }

// orphan notes that n has lost its last name: what is open of it is published no more.
func (f *fsys) orphan(n *node) {
	if n == nil {
		return
	}
	n.touched()
	if fl := n.openFile(); fl != nil {
		fl.mu.Lock()
		fl.lost = true
		fl.mu.Unlock()
	}
}

// publishBelow publishes what is open of n and below it, before it is moved: handles are bound to paths.
func (f *fsys) publishBelow(ctx context.Context, n *node) error {
	for _, n := range f.tree.below(n) {
		fl := n.openFile()
		if fl == nil {
			continue
		}
		if err := fl.gate.lock(ctx); err != nil {
			return err
		}
		err := f.settle(ctx, n, fl)
		fl.gate.unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// rebindBelow gives what is open of n and below it handles of the new paths.
func (f *fsys) rebindBelow(ctx context.Context, n *node) {
	for _, n := range f.tree.below(n) {
		fl := n.openFile()
		if fl == nil {
			continue
		}
		if err := fl.gate.lock(ctx); err != nil {
			return
		}
		fl.mu.Lock()
		w, reads, local := fl.w, fl.reads, fl.near
		fl.mu.Unlock()
		if w != nil {
			flag := os.O_WRONLY
			if reads {
				flag = os.O_RDWR
			}
			h, err := f.openHandle(ctx, n, flag)
			switch {
			case err == nil:
				fl.adopt(ctx, h, reads, local)
			case !local:
				// The old handle would bring the old name back.
				f.cfg.Logger.Warn("a file that was moved while it was open cannot be written any more", "err", err)
				fl.mu.Lock()
				fl.broken = fault.Wrap("fuse.rename", "", err)
				fl.mu.Unlock()
			}
		}
		fl.gate.unlock()
	}
}

// publishAll publishes everything that is open, as far as that goes.
func (f *fsys) publishAll(ctx context.Context) {
	for _, n := range f.tree.all() {
		fl := n.openFile()
		if fl == nil || fl.gate.lock(ctx) != nil {
			continue
		}
		if _, st := do(f, "publish", ctx.Done(), func(context.Context) (none, error) {
			defer fl.gate.unlock()
			return none{}, f.settle(ctx, n, fl)
		}, nil); !st.Ok() {
			f.cfg.Logger.Error("a file that is open is not published", "node", n.id, "err", syscall.Errno(st))
		}
	}
}

// closeAll closes everything that is open when nobody is served any more.
func (f *fsys) closeAll(ctx context.Context) {
	f.publishAll(ctx)
	for _, n := range f.tree.all() {
		fl := n.openFile()
		if fl == nil || fl.gate.lock(ctx) != nil {
			continue
		}
		fl.mu.Lock()
		if err := f.closeFile(fl); err != nil {
			f.cfg.Logger.Warn("closing a file failed", "node", n.id, "err", err)
		}
		fl.mu.Unlock()
		fl.gate.unlock()
	}
}
