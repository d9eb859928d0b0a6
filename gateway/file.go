package gateway

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
)

// OpenOptions say how OpenFile opens. Flag is that of os.OpenFile: one of O_RDONLY, O_WRONLY, O_RDWR, with O_CREATE, O_EXCL and O_TRUNC.
type OpenOptions struct {
	Flag int
	Cond Cond // asked at open and whenever the content is published
	// Base makes publishing fail with Precondition when somebody else has changed the file since this handle took its copy, instead of
	// the one who publishes last winning.
	Base bool
	// InPlace changes the file itself, or makes it under its name at once, as a local disk does, where the backend can and lies on this
	// machine: what is written is seen by everybody at once, and nothing can be aborted. Sync and Close record it. Elsewhere the handle works
	// as without.
	InPlace bool
	Perm    fs.FileMode // permission bits of a new file, 0: the backend's default
}

// Handle is an open file that is read and written at any place. What is written goes to a staged copy, made at the first write (a reflink
// where the file system has it), and is published as a whole by Sync and Close: readers see the old or the new content, and a handle that
// is aborted changes nothing. Safe for concurrent use; of two handles that write the same file, the one published last wins.
type Handle struct {
	s    *Session
	p    Path
	opt  OpenOptions
	read *File // the content the handle was opened on or last published, nil while there is none

	mu     sync.RWMutex
	up     *Upload // unpublished changes, guarded by mu
	fresh  bool    // the file is to be made or emptied even if nothing is written, guarded by mu
	closed bool    // guarded by mu
	broken error   // a publication failed: what was written is lost, and every call says so; guarded by mu
	info   Info    // as last published or opened, guarded by mu
}

var errFlag = errors.New("the handle is not open for this")

// OpenFile opens p for reading and writing at any place. The caller closes or aborts it.
func (s *Session) OpenFile(ctx context.Context, p Path, opt OpenOptions) (_ *Handle, err error) {
	h := &Handle{s: s, p: p, opt: opt}
	if opt.InPlace && h.writes() && opt.Flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		if h.up, err = s.rewrite(ctx, p, opt); !errors.Is(err, errElsewhere) {
			if err == nil && opt.Flag&os.O_TRUNC != 0 {
				err = h.Truncate(0)
			}
			if err == nil {
				h.info, err = h.up.settleInfo()
			}
			if err != nil && h.up != nil {
				err = errors.Join(err, h.up.Abort())
			}
			return h, err
		}
	}
	if h.reads() && opt.Flag&os.O_CREATE == 0 && !h.writes() {
		h.read, err = s.Open(ctx, p, ReadOptions{N: -1})
		if err == nil {
			h.info = h.read.Info()
		}
		return h, err
	}
	o, err := s.begin(ctx, verbWrite, p, policy.Modify, policy.Create)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	cur, exists, err := o.existing(ctx, o.m, &o.target, policy.Modify, policy.Create)
	if err != nil {
		return nil, err
	}
	switch {
	case exists && opt.Flag&os.O_CREATE != 0 && opt.Flag&os.O_EXCL != 0:
		return nil, fault.New("gateway.OpenFile", p.String(), fault.Exist, nil)
	case !exists && opt.Flag&os.O_CREATE == 0:
		return nil, fault.New("gateway.OpenFile", p.String(), fault.NotExist, nil)
	}
	probe := &Upload{o: o, opt: CreateOptions{Cond: opt.Cond}}
	if err := probe.check(cur, exists); err != nil {
		return nil, err
	}
	h.info = o.info(p, cur)
	if !exists {
		if err := o.parentOf(ctx, o.m, &o.target); err != nil {
			return nil, err
		}
		h.info = Info{Name: p.Base(), Path: p}
	}
	h.fresh = !exists || opt.Flag&os.O_TRUNC != 0
	if !h.fresh {
		// Changing a part of a file shows nothing of the rest, so a handle that only writes needs no right to read.
		if !h.reads() {
			return h, nil
		}
		if h.read, err = s.Open(ctx, p, ReadOptions{N: -1}); err != nil {
			return nil, err
		}
		return h, nil
	}
	h.up, err = s.Create(ctx, p, CreateOptions{Size: -1, Cond: opt.Cond, Exclusive: opt.Flag&os.O_EXCL != 0, Mode: opt.Perm})
	return h, err
}

func (h *Handle) reads() bool  { return h.opt.Flag&(os.O_WRONLY|os.O_RDWR) != os.O_WRONLY }
func (h *Handle) writes() bool { return h.opt.Flag&(os.O_WRONLY|os.O_RDWR) != 0 }

// Info returns the file as it was last opened or published, with the size as it is now.
func (h *Handle) Info() Info {
	h.mu.RLock()
	defer h.mu.RUnlock()
	i := h.info
	if h.up != nil {
		i.Size = h.up.Size()
	}
	return i
}

// ReadAt implements io.ReaderAt. It sees what was written through this handle.
func (h *Handle) ReadAt(p []byte, off int64) (int, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	switch {
	case h.closed:
		return 0, h.fail(fault.Invalid, os.ErrClosed)
	case h.broken != nil:
		return 0, h.broken
	case !h.reads():
		return 0, h.fail(fault.Denied, errFlag)
	case h.up == nil:
		return h.read.ReadAt(p, off)
	}
	n, err := h.up.content().ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fault.Wrap("gateway.Handle", h.p.String(), err)
	}
	return n, err
}

// WriteAt implements io.WriterAt. Bytes between the end and off become zero.
func (h *Handle) WriteAt(p []byte, off int64) (int, error) {
	h.mu.RLock()
	if h.up != nil && !h.closed {
		defer h.mu.RUnlock()
		return h.up.WriteAt(p, off)
	}
	h.mu.RUnlock()
	if err := h.stage(context.Background()); err != nil {
		return 0, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.up == nil {
		return 0, h.fail(fault.Invalid, os.ErrClosed)
	}
	return h.up.WriteAt(p, off)
}

// Truncate sets the size.
func (h *Handle) Truncate(size int64) error {
	if err := h.stage(context.Background()); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up == nil {
		return h.fail(fault.Invalid, os.ErrClosed)
	}
	if err := h.up.grow(size); err != nil {
		return err
	}
	if err := h.up.truncate(size); err != nil {
		return fault.Wrap("gateway.Handle", h.p.String(), err)
	}
	h.up.size.Store(size)
	return nil
}

// stage makes the copy that changes go to.
func (h *Handle) stage(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return h.fail(fault.Invalid, os.ErrClosed)
	case h.broken != nil:
		return h.broken
	case !h.writes():
		return h.fail(fault.Denied, errFlag)
	case h.up != nil:
		return nil
	}
	if h.opt.InPlace {
		up, err := h.s.rewrite(ctx, h.p, OpenOptions{Cond: h.opt.Cond})
		if !errors.Is(err, errElsewhere) {
			h.up = up
			return err
		}
	}
	up, err := h.s.Create(ctx, h.p, CreateOptions{Size: -1, Cond: h.opt.Cond})
	if err != nil {
		return err
	}
	if err := up.adopt(ctx, h.opt.Base); err != nil {
		return errors.Join(err, up.Abort())
	}
	h.up = up
	return nil
}

// adopt fills a new upload with what is at its target now. With base, that is what must be there still when it is published.
func (u *Upload) adopt(ctx context.Context, base bool) error {
	ctx = fresh(ctx)
	info, err := u.o.m.Stat(ctx, u.o.name)
	if err != nil {
		return err
	}
	if tag := u.o.etag(info); base && tag != "" {
		check := u.opt.Cond.Check
		u.opt.Cond.Check = func(cur Info, exists bool) error {
			if u.o.known && (!exists || cur.ETag != tag) {
				return fault.New("gateway.precondition", u.o.path.String(), fault.Precondition, errCond)
			}
			if check == nil {
				return nil
			}
			return check(cur, exists)
		}
	}
	if err := u.grow(info.Size); err != nil {
		return err
	}
	if u.far != nil {
		r, err := u.o.m.Open(ctx, u.o.name, 0, info.Size)
		if err != nil {
			return err
		}
		if s, ok := r.(mounts.Stater); ok {
			if now, serr := s.Stat(); serr != nil || stampOf(now, true) != stampOf(info, true) {
				return errors.Join(fault.New("gateway.Handle", u.o.path.String(), fault.Busy, errReplaced), serr, r.Close())
			}
		}
		return errors.Join(u.far.adopt(r, info.Size), r.Close())
	}
	if err := u.file.Close(); err != nil {
		return err
	}
	u.file = nil
	if _, err := mounts.Copy(ctx, u.o.m.Backend, u.o.name, u.staged); err != nil {
		return err
	}
	u.file, err = u.o.m.random.OpenFile(ctx, u.staged, os.O_RDWR, 0)
	return err
}

// Sync publishes what was written and makes it durable. The handle stays open.
func (h *Handle) Sync(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.publish(ctx)
}

func (h *Handle) publish(ctx context.Context) error {
	if h.closed {
		return h.fail(fault.Invalid, os.ErrClosed)
	}
	if h.up == nil {
		return h.broken
	}
	if h.up.live {
		info, err := h.up.settleLive(ctx)
		if err == nil {
			h.info = info
		}
		return err
	}
	info, _, err := h.up.Commit(ctx)
	h.up = nil
	if err != nil {
		h.broken = err
		return err
	}
	h.fresh, h.info = false, info
	// What was published fulfils the condition the handle was opened with; from now on it is the handle's own content that counts.
	h.opt.Cond = Cond{}
	if !h.reads() {
		return nil
	}
	if h.read != nil {
		err = h.read.Close()
	}
	var rerr error
	h.read, rerr = h.s.Open(ctx, h.p, ReadOptions{N: -1})
	return errors.Join(err, rerr)
}

// Close publishes what was written and releases the handle. On failure the old content stands. Calling it twice is fine.
func (h *Handle) Close(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	err := h.broken
	if h.up != nil {
		h.info, _, err = h.up.Commit(ctx)
		h.up = nil
	}
	return errors.Join(err, h.release())
}

// OSFile returns the local file that the handle reads and writes, for the kernel to do so without asking, and whether there is one: only of
// a handle InPlace, and of one that writes only where nothing is counted on a quota. What is written there is recorded by Sync and Close.
// The file stays the handle's.
func (h *Handle) OSFile(ctx context.Context) (*os.File, bool) {
	if !h.opt.InPlace {
		return nil, false
	}
	if h.writes() && h.stage(ctx) != nil {
		return nil, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed || h.broken != nil:
		return nil, false
	case h.up != nil:
		return h.up.lend(ctx)
	}
	return h.read.OSFile()
}

// Abort releases the handle and throws away what was not published. What was written in place stays, and is recorded.
func (h *Handle) Abort() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	var err error
	switch {
	case h.up == nil:
	case h.up.live:
		_, _, err = h.up.Commit(context.WithoutCancel(h.s.g.life))
	default:
		err = h.up.Abort()
	}
	h.up = nil
	return errors.Join(err, h.release())
}

func (h *Handle) release() error {
	h.closed = true
	if h.read == nil {
		return nil
	}
	return h.read.Close()
}

func (h *Handle) fail(kind fault.Kind, err error) error {
	return fault.New("gateway.Handle", h.p.String(), kind, err)
}
