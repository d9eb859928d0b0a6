package fuse

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/gateway"
)

// handle is one open file of a process.
type handle struct {
	n      *node
	fl     *file
	writes bool
	passed bool // the kernel passes it through
}

// how is what Open and Create have found out.
type how struct {
	n    *node
	info gateway.Info
	h    *handle
	id   uint64
	out  gofuse.OpenOut
}

// handle returns an open file by its number, nil when there is none.
func (f *fsys) handle(id uint64) *handle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handles[id]
}

// Open implements gofuse.RawFileSystem.
func (f *fsys) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n, flags := f.tree.node(in.NodeId), int(in.Flags)
	if n == nil {
		return gofuse.ENOENT
	}
	writes := flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0
	if writes && f.cfg.ReadOnly {
		return gofuse.EROFS
	}
	got, st := do(f, "open", cancel, func(ctx context.Context) (how, error) {
		fl := f.use(n)
		err := fl.gate.lock(ctx)
		if err == nil {
			if writes {
				err = f.openWrite(ctx, n, fl, flags)
			} else {
				err = f.openRead(ctx, n, fl)
			}
			if err == nil {
				defer fl.gate.unlock()
				return f.opened(n, fl, writes), nil
			}
			fl.gate.unlock()
		}
		return how{}, errors.Join(err, f.leave(context.WithoutCancel(ctx), n, fl))
	}, func(got how) { f.release(got.id) })
	*out = got.out
	return st
}

// opened makes a handle of an open file, and decides who reads and writes it: the kernel itself, or we.
func (f *fsys) opened(n *node, fl *file, writes bool) how {
	h := &handle{n: n, fl: fl, writes: writes}
	got := how{n: n, h: h}
	fl.mu.Lock()
	local, lent := fl.ros, true
	if fl.w != nil {
		if local == nil || fl.wos != nil {
			local = fl.wos
		}
		lent = !writes || fl.wos != nil
	}
	switch {
	case fl.passes > 0:
		// The kernel reads and writes an inode through either all of its opens or none. What we have to count comes to us all the same:
		// FOPEN_DIRECT_IO goes before.
		h.passed = true
		if !lent {
			got.out.OpenFlags |= gofuse.FOPEN_DIRECT_IO
		}
	case fl.cached == 0 && local != nil && lent && f.passes.Load():
		id, errno := f.srv.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(local.Fd())})
		switch errno {
		case 0:
			fl.pass, h.passed = id, true
		case syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOTTY:
			f.passes.Store(false)
			f.cfg.Logger.Info("the kernel does not pass files through here", "err", errno)
		}
	}
	if h.passed {
		fl.passes++
		got.out.OpenFlags |= gofuse.FOPEN_PASSTHROUGH
		got.out.BackingID = fl.pass
	} else {
		fl.cached++
	}
	fresh := fl.fresh || fl.dirty
	fl.mu.Unlock()
	if !h.passed && n.sameContent() && !fresh {
		got.out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
	}
	f.mu.Lock()
	f.next++
	got.id, got.out.Fh = f.next, f.next
	f.handles[got.id] = h
	f.mu.Unlock()
	return got
}

// sameContent reports whether the content is what the kernel's cache was filled with, and notes what it is.
func (n *node) sameContent() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	tag := n.info.ETag
	same := tag != "" && tag == n.tag
	n.tag = tag
	return same
}

// Create implements gofuse.RawFileSystem.
func (f *fsys) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	if !st.Ok() {
		return st
	}
	flags, mode := int(in.Flags), in.Mode
	got, st := do(f, "create", cancel, func(ctx context.Context) (how, error) { return f.create(ctx, dir, name, flags, mode) },
		func(got how) { f.release(got.id); f.tree.forget(got.n.id, 1) })
	if !st.Ok() {
		return st
	}
	f.entry(got.n, got.info, &out.EntryOut)
	out.OpenOut = got.out
	return gofuse.OK
}

func (f *fsys) create(ctx context.Context, dir *node, name string, flags int, mode uint32) (how, error) {
	p, err := f.tree.join(dir, name)
	if err != nil {
		return how{}, err
	}
	if c := f.tree.child(dir, name); c != nil && f.isFresh(c) {
		if flags&syscall.O_EXCL != 0 {
			return how{}, syscall.EEXIST
		}
		return f.reopen(ctx, dir, name, flags)
	}
	reads := flags&syscall.O_ACCMODE == syscall.O_RDWR
	flag := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if reads {
		flag = os.O_RDWR | os.O_CREATE | os.O_EXCL
	}
	defer f.doing(p)()
	h, err := f.s.OpenFile(ctx, p, gateway.OpenOptions{Flag: flag, Perm: fsMode(mode), InPlace: true})
	if errnoOf(err) == syscall.EEXIST && flags&syscall.O_EXCL == 0 {
		return f.reopen(ctx, dir, name, flags) // somebody made it after the kernel had looked
	}
	if err != nil {
		return how{}, err
	}
	i := h.Info()
	near := !i.ModTime.IsZero() // a staged file is nothing yet
	now := time.Now()
	if !near {
		i.Mode, i.ModTime = fsMode(mode), now
	}
	i.Links = 1
	n := f.tree.enter(dir, name, i)
	fl := f.use(n)
	if err := fl.gate.lock(ctx); err != nil {
		f.tree.forget(n.id, 1)
		return how{}, errors.Join(err, h.Abort(), f.leave(context.WithoutCancel(ctx), n, fl))
	}
	defer fl.gate.unlock()
	fl.adopt(ctx, h, reads, near)
	fl.mu.Lock()
	if !near {
		fl.fresh, fl.dirty, fl.mtime, fl.mode = true, true, now, fsMode(mode)
	}
	fl.mu.Unlock()
	f.tree.mu.Lock()
	at := n.at
	f.tree.mu.Unlock()
	f.learn(at, near)
	if mode&0o777 == 0 {
		none := fsMode(0)
		if err := f.change(ctx, n, gateway.Attr{Mode: &none}); err != nil {
			f.cfg.Logger.Debug("a new file has the datasource's mode", "path", p.String(), "err", err)
		}
	}
	got := f.opened(n, fl, true)
	got.info = i
	return got, nil
}

// isFresh reports whether n is a new file that only this mount knows.
func (f *fsys) isFresh(n *node) bool {
	fl := n.openFile()
	if fl == nil {
		return false
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.fresh
}

// reopen opens a file that is there for a process that would have made it.
func (f *fsys) reopen(ctx context.Context, dir *node, name string, flags int) (how, error) {
	n, i, err := f.look(ctx, dir, name)
	if err != nil {
		return how{}, err
	}
	if n.kind != syscall.S_IFREG {
		f.tree.forget(n.id, 1)
		if n.kind == syscall.S_IFDIR {
			return how{}, syscall.EISDIR
		}
		return how{}, syscall.ESTALE // a link: the kernel looks it up and follows it
	}
	fl := f.use(n)
	if err = fl.gate.lock(ctx); err == nil {
		if flags&syscall.O_ACCMODE == syscall.O_RDONLY && flags&syscall.O_TRUNC == 0 {
			err = f.openRead(ctx, n, fl)
		} else {
			err = f.openWrite(ctx, n, fl, flags)
		}
		if err == nil {
			defer fl.gate.unlock()
			got := f.opened(n, fl, flags&syscall.O_ACCMODE != syscall.O_RDONLY)
			got.info = i
			return got, nil
		}
		fl.gate.unlock()
	}
	f.tree.forget(n.id, 1)
	return how{}, errors.Join(err, f.leave(context.WithoutCancel(ctx), n, fl))
}

// Mknod implements gofuse.RawFileSystem: regular files only.
func (f *fsys) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	switch {
	case !st.Ok():
		return st
	case in.Mode&syscall.S_IFMT != syscall.S_IFREG && in.Mode&syscall.S_IFMT != 0:
		return gofuse.EPERM
	}
	mode := in.Mode
	got, st := do(f, "mknod", cancel, func(ctx context.Context) (how, error) {
		got, err := f.create(ctx, dir, name, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL, mode)
		if err != nil {
			return got, err
		}
		err = f.flush(ctx, got.h)
		f.release(got.id)
		return got, err
	}, func(got how) { f.tree.forget(got.n.id, 1) })
	if !st.Ok() {
		if got.n != nil {
			f.tree.forget(got.n.id, 1)
		}
		return st
	}
	f.entry(got.n, got.info, out)
	return gofuse.OK
}

// Flush implements gofuse.RawFileSystem: close(2) reports what comes of publishing.
func (f *fsys) Flush(cancel <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	f.unlockOwner(h.n, in.LockOwner, false)
	if !h.writes || !h.fl.unsettled() {
		return gofuse.OK
	}
	_, st := do(f, "close", cancel, func(ctx context.Context) (none, error) {
		return none{}, f.flush(context.WithoutCancel(ctx), h) // whoever is killed while closing has written all the same
	}, nil)
	return st
}

// unsettled reports whether close has something to publish or record.
func (fl *file) unsettled() bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.w != nil && !fl.lost && (fl.dirty || fl.fresh || fl.near)
}

func (f *fsys) flush(ctx context.Context, h *handle) error {
	if err := h.fl.gate.lock(ctx); err != nil {
		return err
	}
	defer h.fl.gate.unlock()
	return f.settle(ctx, h.n, h.fl)
}

// Fsync implements gofuse.RawFileSystem.
func (f *fsys) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	_, st := do(f, "fsync", cancel, func(ctx context.Context) (none, error) {
		if err := h.fl.gate.lock(ctx); err != nil {
			return none{}, err
		}
		defer h.fl.gate.unlock()
		h.fl.mu.Lock()
		local := h.fl.wos
		h.fl.mu.Unlock()
		if local != nil { // a datasource may leave it to the operating system when it syncs, but not when it is told to
			if err := local.Sync(); err != nil {
				return none{}, err
			}
		}
		return none{}, f.settle(ctx, h.n, h.fl)
	}, nil)
	return st
}

// FsyncDir implements gofuse.RawFileSystem: what changes folders is durable when it has succeeded.
func (f *fsys) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }

// Release implements gofuse.RawFileSystem. Nobody waits for it but Unmount.
func (f *fsys) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	if h := f.handle(in.Fh); h != nil {
		const flock = 1 << 1 // FUSE_RELEASE_FLOCK_UNLOCK
		if in.ReleaseFlags&flock != 0 {
			f.unlockOwner(h.n, in.LockOwner, true)
		}
		f.release(in.Fh)
	}
}

func (f *fsys) release(id uint64) {
	f.mu.Lock()
	h := f.handles[id]
	delete(f.handles, id)
	f.mu.Unlock()
	if h == nil {
		return
	}
	h.fl.mu.Lock()
	if h.passed {
		if h.fl.passes--; h.fl.passes == 0 {
			f.srv.UnregisterBackingFd(h.fl.pass)
			h.fl.pass = 0
		}
	} else {
		h.fl.cached--
	}
	idle := h.fl.opens > 1
	h.fl.mu.Unlock()
	leave := func() {
		if err := f.leave(context.Background(), h.n, h.fl); err != nil {
			f.cfg.Logger.Error("a file was not published at its last close", "err", err)
		}
	}
	if idle {
		leave()
		return
	}
	f.calls.Add(1)
	go func() { defer f.calls.Done(); leave() }()
}
