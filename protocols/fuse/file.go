package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/gateway"
)

// file is what all who have a node open on this mount share.
type file struct {
	gate gate // held while what is open changes: opening, publishing, moving, closing

	mu     sync.Mutex
	opens  int             // guarded by mu
	w      *gateway.Handle // for writing, nil while nobody asked for that; guarded by mu
	reads  bool            // w may be read; guarded by mu
	wos    *os.File        // the local file that w changes, nil when it has none that the kernel may have; guarded by mu
	r      *gateway.File   // for reading what w does not show; guarded by mu
	ros    *os.File        // likewise; guarded by mu
	kept   *os.File        // the content of a file that was deleted under us, on a datasource that forgets it; guarded by mu
	near   bool            // it lies on this machine: w is the file itself; guarded by mu
	fresh  bool            // nothing of it is published: only this mount knows it; guarded by mu
	dirty  bool            // something is not published; guarded by mu
	lost   bool            // it has no name any more: nothing is published; guarded by mu
	mode   fs.FileMode     // that a fresh file was made with; guarded by mu
	broken error           // nothing can be written any more; guarded by mu
	mtime  time.Time       // of the last unpublished change; guarded by mu
	later  gateway.Attr    // to be set when it is published; guarded by mu
	pass   int32           // id of the passthrough backing; guarded by mu
	passes int             // opens that the kernel passes through; guarded by mu
	cached int             // and those it caches; guarded by mu
}

// fsMode turns the kernel's mode into permission bits.
func fsMode(mode uint32) fs.FileMode { return fs.FileMode(mode) & fs.ModePerm }

// openFile returns the file of n, nil while it is not open.
func (n *node) openFile() *file {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.file
}

// use returns the file of n, which is kept until leave.
func (f *fsys) use(n *node) *file {
	f.tree.pin(n, 1)
	gone := f.tree.isGone(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil {
		n.file = &file{gate: newGate(), lost: gone}
	}
	n.file.mu.Lock()
	n.file.opens++
	n.file.mu.Unlock()
	return n.file
}

// leave ends what use began. The last one closes the file, which publishes what is not published yet.
func (f *fsys) leave(ctx context.Context, n *node, fl *file) error {
	defer f.tree.pin(n, -1)
	if err := fl.gate.lock(ctx); err != nil {
		return err
	}
	defer fl.gate.unlock()
	n.mu.Lock()
	fl.mu.Lock()
	fl.opens--
	last := fl.opens == 0
	fl.mu.Unlock()
	if !last {
		n.mu.Unlock()
		return nil
	}
	n.mu.Unlock()
	err := f.settle(ctx, n, fl)
	n.mu.Lock()
	defer n.mu.Unlock()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.opens > 0 {
		return err // somebody came while it was published
	}
	n.file = nil
	return errors.Join(err, f.closeFile(fl))
}

// closeFile releases everything. The caller holds fl.mu.
func (f *fsys) closeFile(fl *file) (err error) {
	if fl.pass != 0 {
		f.srv.UnregisterBackingFd(fl.pass)
		fl.pass = 0
	}
	if fl.w != nil {
		err = fl.w.Abort() // what could be published has been
		fl.w, fl.wos = nil, nil
	}
	if fl.r != nil {
		err = errors.Join(err, fl.r.Close())
		fl.r, fl.ros = nil, nil
	}
	if fl.kept != nil {
		err = errors.Join(err, fl.kept.Close())
		fl.kept = nil
	}
	return err
}

// openRead makes the content readable. The caller holds the gate.
func (f *fsys) openRead(ctx context.Context, n *node, fl *file) error {
	fl.mu.Lock()
	done := fl.r != nil || fl.kept != nil || fl.w != nil && fl.reads
	staged := fl.w != nil && !fl.reads && !fl.near && !fl.lost && (fl.fresh || fl.dirty)
	fl.mu.Unlock()
	if staged {
		// It is open for writing only: what it holds is published, so that a handle that reads can take its place.
		if err := f.sync(ctx, n, fl); err != nil {
			return err
		}
		h, err := f.openHandle(ctx, n, os.O_RDWR)
		if err == nil {
			fl.adopt(ctx, h, true, false)
			return nil
		}
	}
	if done {
		return nil
	}
	return f.openReader(ctx, n, fl)
}

// openReader opens the content as it is published.
func (f *fsys) openReader(ctx context.Context, n *node, fl *file) error {
	var r *gateway.File
	err := f.at(n, func(p gateway.Path) (err error) {
		r, err = f.s.Open(ctx, p, gateway.ReadOptions{N: -1})
		return err
	})
	if err != nil {
		return err
	}
	if f.stranger(n, r.Info()) {
		return errors.Join(syscall.ESTALE, r.Close())
	}
	n.mu.Lock()
	n.info = r.Info()
	n.mu.Unlock()
	fl.mu.Lock()
	old := fl.r
	fl.r = r
	fl.ros, _ = r.OSFile()
	fl.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// stranger reports whether i is of another file than n.
func (f *fsys) stranger(n *node, i gateway.Info) bool {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return n.key != key{} && i.ID != 0 && n.key.id != i.ID
}

// openWrite makes the content writable, and readable with reads. The caller holds the gate.
func (f *fsys) openWrite(ctx context.Context, n *node, fl *file, flags int) error {
	reads := flags&syscall.O_ACCMODE == syscall.O_RDWR
	fl.mu.Lock()
	w, kept, lost, broken, fresh := fl.w, fl.kept, fl.lost, fl.broken, fl.fresh
	enough := w != nil && (fl.reads || !reads || fl.wos != nil)
	fl.mu.Unlock()
	switch {
	case broken != nil:
		return broken
	case lost && (w == nil || kept != nil):
		return syscall.EROFS // what is left of it is a copy to read
	case !enough && w != nil:
		// It was opened for writing only, and staged: what it holds is published, so that one that reads can take its place.
		if err := f.sync(ctx, n, fl); err != nil {
			return err
		}
	}
	if !enough {
		flag := os.O_WRONLY
		if reads {
			flag = os.O_RDWR
		}
		h, err := f.openHandle(ctx, n, flag|flags&os.O_TRUNC)
		if err != nil {
			return err
		}
		fl.adopt(ctx, h, reads, f.local(ctx, n))
		if flags&os.O_TRUNC != 0 {
			fl.changed()
		}
	} else {
		// The handle is there already: rights and locks are asked all the same.
		if !lost && !fresh {
			h, err := f.openHandle(ctx, n, os.O_WRONLY)
			if err != nil {
				return err
			}
			if err := h.Abort(); err != nil {
				return err
			}
		}
		if flags&os.O_TRUNC != 0 {
			if err := w.Truncate(0); err != nil {
				return err
			}
			fl.changed()
		}
	}
	if !reads {
		return nil
	}
	return f.openRead(ctx, n, fl)
}

func (f *fsys) openHandle(ctx context.Context, n *node, flag int) (h *gateway.Handle, err error) {
	err = f.at(n, func(p gateway.Path) error {
		defer f.doing(p)()
		h, err = f.s.OpenFile(ctx, p, gateway.OpenOptions{Flag: flag, InPlace: true})
		return err
	})
	if err != nil {
		return nil, err
	}
	if f.stranger(n, h.Info()) {
		return nil, errors.Join(syscall.ESTALE, h.Abort())
	}
	return h, nil
}

// local reports whether n lies on a datasource of this machine, in the clear. A handle of another must not be asked for its local file: it would
// fetch and publish its content.
func (f *fsys) local(ctx context.Context, n *node) (yes bool) {
	f.tree.mu.Lock()
	at := n.at
	f.tree.mu.Unlock()
	f.mu.Lock()
	seen, ok := f.places[at]
	f.mu.Unlock()
	if ok && at != "" && time.Since(seen.when) < placesAge {
		return seen.local
	}
	err := f.at(n, func(p gateway.Path) error {
		r, err := f.s.Open(ctx, p, gateway.ReadOptions{N: -1})
		if err == nil {
			_, yes = r.OSFile()
			err = r.Close()
		}
		return err
	})
	if err == nil {
		f.learn(at, yes)
	}
	return yes
}

// learn notes whether files of a datasource are local.
func (f *fsys) learn(datasource string, local bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places[datasource] = place{local, time.Now()}
}

// place is what is known of a datasource.
type place struct {
	local bool
	when  time.Time
}

// placesAge is how long it is believed: a datasource may be declared anew.
const placesAge = time.Minute

// adopt makes h the handle of the file in place of the former one, which holds nothing unpublished.
func (fl *file) adopt(ctx context.Context, h *gateway.Handle, reads, local bool) {
	var wos *os.File
	if local {
		wos, _ = h.OSFile(ctx) // and from now on the handle is bound to its file, whatever that is called
	}
	fl.mu.Lock()
	old := fl.w
	fl.w, fl.reads, fl.wos, fl.near = h, reads, wos, fl.near || local
	fl.mu.Unlock()
	if old != nil {
		_ = old.Abort()
	}
}

// changed notes that something is to be published.
func (fl *file) changed() {
	fl.mu.Lock()
	fl.dirty, fl.mtime = true, time.Now()
	fl.mu.Unlock()
}

// openInfo returns what is known of an open file better than the core knows it, and of a node without a name.
func (f *fsys) openInfo(n *node) (gateway.Info, bool) {
	gone := f.tree.isGone(n)
	n.mu.Lock()
	i, fl := n.info, n.file
	n.mu.Unlock()
	if gone {
		i.Links = 0
	}
	if fl == nil {
		return i, gone
	}
	fl.mu.Lock()
	osf := fl.wos
	if osf == nil && gone {
		osf = fl.ros
	}
	var st unix.Stat_t
	if osf == nil || unix.Fstat(int(osf.Fd()), &st) != nil {
		defer fl.mu.Unlock()
		return fl.overlay(i), gone || fl.fresh || fl.dirty && fl.w != nil
	}
	fl.mu.Unlock()
	i.Size, i.ModTime, i.Links, i.Mode = st.Size, time.Unix(st.Mtim.Unix()).UTC(), uint32(st.Nlink), fsMode(st.Mode)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bare = i.Mode == 0
	if ctime := time.Unix(st.Ctim.Unix()); ctime.After(n.ctime) {
		n.ctime = ctime
	}
	return i, true
}

// overlay returns i with what is not published. The caller holds mu.
func (fl *file) overlay(i gateway.Info) gateway.Info {
	if fl.w != nil && (fl.dirty || fl.fresh || fl.lost) {
		i.Size = fl.w.Info().Size
		if fl.mtime.After(i.ModTime) {
			i.ModTime = fl.mtime
		}
	}
	if !fl.later.ModTime.IsZero() {
		i.ModTime = fl.later.ModTime
	}
	if fl.later.Mode != nil {
		i.Mode = *fl.later.Mode
	}
	return i
}

// live returns i, as the core tells it, with what is not published.
func (f *fsys) live(n *node, i gateway.Info) gateway.Info {
	fl := n.openFile()
	if fl == nil {
		return i
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.overlay(i)
}

// changeOpen sets what cannot be set on the core: of a file that is not published, or has no name any more. It reports false for others.
func (f *fsys) changeOpen(n *node, a gateway.Attr) (bool, error) {
	gone := f.tree.isGone(n)
	fl := n.openFile()
	if fl == nil {
		if gone {
			return true, syscall.ENOENT
		}
		return false, nil
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if gone && fl.wos != nil {
		var err error
		if a.Mode != nil {
			err = fl.wos.Chmod(*a.Mode)
		}
		if !a.ModTime.IsZero() {
			ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(a.ModTime.UnixNano())}
			err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fl.wos.Fd()), ts, 0))
		}
		return true, err
	}
	if !gone && (fl.wos != nil || !fl.fresh && !fl.dirty) {
		return false, nil
	}
	if a.Mode != nil {
		fl.later.Mode = a.Mode
	}
	if !a.ModTime.IsZero() {
		fl.later.ModTime = a.ModTime
	}
	return true, nil
}

// truncate sets the size of n, which may be open.
func (f *fsys) truncate(ctx context.Context, n *node, size int64) error {
	fl := f.use(n)
	err := fl.gate.lock(ctx)
	if err == nil {
		fl.mu.Lock()
		alone := fl.w == nil
		fl.mu.Unlock()
		flags := os.O_WRONLY
		if size == 0 {
			flags |= os.O_TRUNC
		}
		err = f.openWrite(ctx, n, fl, flags)
		if err == nil && size != 0 {
			if err = fl.w.Truncate(size); err == nil {
				fl.changed()
			}
		}
		if err == nil && alone {
			err = f.sync(ctx, n, fl) // nobody has it open for writing, so nobody's close would
		}
		fl.gate.unlock()
	}
	return errors.Join(err, f.leave(context.WithoutCancel(ctx), n, fl))
}
