package sftp

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// handle is an open file or folder. What is asked of it is carried out in the order in which it was asked.
type handle struct {
	s  *session
	id uint32

	mu    sync.Mutex
	queue []func() // guarded by mu
	busy  bool     // somebody carries out the queue; guarded by mu

	path gateway.Path // guarded by session.mu: a rename moves it
	file *gateway.File
	dir  *listing
	w    *writer
}

var (
	errHandle  = errors.New("no such handle")
	errHandles = errors.New("too many open files")
	errReading = errors.New("the file is not open for reading")
	errWriting = errors.New("the file is not open for writing")
	errFlags   = errors.New("a file cannot be emptied or appended to without being written")
)

func badHandle() error { return fault.New("sftp", "", fault.Invalid, errHandle) }

// queueUp carries out do behind all that was asked of h before, and does not wait for it.
func (h *handle) queueUp(do func()) {
	if h.enqueue(do) {
		h.s.tasks.Go(h.work)
	}
}

// answer is queueUp for the end of a request: where nothing else is asked of h, the reader carries it out.
func (h *handle) answer(do func()) {
	if h.enqueue(do) {
		h.s.perform(h.work)
	}
}

// enqueue reports whether the caller is to see to the queue.
func (h *handle) enqueue(do func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queue = append(h.queue, do)
	was := h.busy
	h.busy = true
	return !was
}

// work carries out the queue until it is empty.
func (h *handle) work() {
	var batch []func()
	for {
		h.mu.Lock()
		if len(h.queue) == 0 {
			h.busy, h.queue = false, nil
			h.mu.Unlock()
			return
		}
		batch, h.queue = h.queue, batch[:0]
		h.mu.Unlock()
		for i, do := range batch {
			batch[i] = nil
			h.do(do)
		}
	}
}

func (h *handle) do(f func()) {
	defer h.s.contain()
	f()
}

// on queues a request on a handle.
func (s *session) on(id, name uint32, do func(h *handle) (reply, error)) {
	h := s.handle(name)
	if h == nil {
		s.refuse(id, badHandle())
		return
	}
	h.answer(func() {
		p, err := do(h)
		s.finish(id, p, err)
	})
}

// onPath is on for what also changes, or asks about, what is under the handle's path.
func (s *session) onPath(id uint32, h *handle, t *turn, do func() (reply, error)) {
	wait := s.order.enter(t)
	run := h.answer
	if wait != nil {
		run = h.queueUp
	}
	run(func() {
		if wait != nil {
			wait()
		}
		p, err := func() (reply, error) {
			defer s.order.leave(t)
			return do()
		}()
		s.finish(id, p, err)
	})
}

func (s *session) handle(id uint32) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handles[id]
}

// at returns the path of h as it is now.
func (h *handle) at() gateway.Path {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.path
}

// writers returns the handles of this session that write p or something below it.
func (s *session) writers(p gateway.Path) (all []*handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.handles {
		if h.w != nil && p.Contains(h.path) {
			all = append(all, h)
		}
	}
	return all
}

// writer returns the writer of the very path p with something that is not published, nil when there is none.
func (s *session) writer(p gateway.Path) *handle {
	for _, h := range s.writers(p) {
		if h.at() == p && h.w.pending() {
			return h
		}
	}
	return nil
}

// reserve takes one of the places for open handles.
func (s *session) reserve() error {
	if s.opened.Add(1) > int64(s.srv.limits.Handles) {
		s.opened.Add(-1)
		return fault.New("sftp.open", "", fault.TooLarge, errHandles)
	}
	return nil
}

// add makes a reserved handle known and returns the answer that names it.
func (s *session) add(id uint32, h *handle) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.last++; s.last == 0 || s.handles[s.last] != nil; s.last++ {
	}
	h.s, h.id = s, s.last
	s.handles[h.id] = h
	var name [handleSize]byte
	binary.BigEndian.PutUint32(name[:], h.id)
	return answer(typeHandle, id, 16).str(string(name[:]))
}

// open opens a file (§6.3).
func (s *session) open(id uint32, p gateway.Path, flags uint32, w wishes) {
	t := reads(p)
	if flags&(openWrite|openCreate) != 0 {
		t = changes(p)
	}
	if err := s.reserve(); err != nil {
		s.refuse(id, err)
		return
	}
	s.later(id, t, func(ctx context.Context) (reply, error) {
		h := &handle{path: p}
		var err error
		if flags&(openWrite|openCreate) == 0 {
			err = s.openReader(ctx, h, flags)
		} else {
			h.w, err = s.newWriter(ctx, p, flags, w)
		}
		if err != nil {
			s.opened.Add(-1)
			return nil, err
		}
		return s.add(id, h), nil
	})
}

func (s *session) openReader(ctx context.Context, h *handle, flags uint32) (err error) {
	if flags&(openTrunc|openAppend) != 0 {
		return fault.New("sftp.open", h.path.String(), fault.Invalid, errFlags)
	}
	opt := gateway.ReadOptions{N: -1}
	if s.streams.Load() {
		opt.N = 0
	}
	// The file may be read for as long as it is open.
	h.file, err = s.s.Open(s.ctx, h.path, opt)
	return err
}

// close closes a handle. What was written is published before the answer.
func (s *session) close(id, name uint32) {
	s.mu.Lock()
	h := s.handles[name]
	var t *turn
	if h != nil {
		delete(s.handles, name)
		if h.w != nil {
			t = changes(h.path)
		}
	}
	s.mu.Unlock()
	switch {
	case h == nil:
		s.refuse(id, badHandle())
	case t != nil:
		s.onPath(id, h, t, func() (reply, error) {
			defer s.opened.Add(-1)
			return nil, h.w.close(s.life)
		})
	default:
		h.answer(func() {
			err := h.release()
			s.opened.Add(-1)
			s.finish(id, nil, err)
		})
	}
}

// release closes what is read.
func (h *handle) release() error {
	if h.dir != nil {
		h.dir.stop()
		return nil
	}
	return h.file.Close()
}

// abandon gives up the handles that the client has left open. Nothing else runs any more.
func (s *session) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for _, h := range s.handles {
		var err error
		if h.w != nil {
			err = h.w.drop(ctx)
		} else {
			err = h.release()
		}
		if err != nil {
			s.log.Warn("giving up an open file failed", "path", h.path, "err", err)
		}
	}
}

// fstat answers what an open file is.
func (s *session) fstat(id, name uint32) {
	s.on(id, name, func(h *handle) (reply, error) {
		i, err := h.info()
		if err != nil {
			return nil, err
		}
		return answer(typeAttrs, id, 32).attrs(i), nil
	})
}

func (h *handle) info() (gateway.Info, error) {
	switch {
	case h.w != nil:
		return h.w.info()
	case h.dir != nil:
		return h.dir.info, nil
	}
	i := h.file.Info()
	if f, ok := h.file.OSFile(); ok { // it may have grown
		if now, err := f.Stat(); err == nil {
			i.Size, i.ModTime = now.Size(), now.ModTime().UTC()
		}
	}
	return i, nil
}

// fsetstat changes attributes of an open file. Those of one that is written become true when it is published.
func (s *session) fsetstat(id, name uint32, w wishes) {
	h := s.handle(name)
	if h == nil {
		s.refuse(id, badHandle())
		return
	}
	s.onPath(id, h, changes(h.at()), func() (reply, error) {
		if h.w != nil {
			return nil, h.w.set(w)
		}
		if w.flags&hasSize != 0 {
			return nil, fault.New("sftp.fsetstat", "", fault.Denied, errWriting)
		}
		return nil, s.setAttr(s.life, h.at(), w)
	})
}

// attr is what the core is asked to change for w. ok says whether there is anything.
func (w wishes) attr() (a gateway.Attr, ok bool) {
	if w.flags&hasMode != 0 {
		mode := fs.FileMode(w.mode) & fs.ModePerm
		a.Mode = &mode
	}
	if w.flags&hasTimes != 0 {
		a.ModTime = unix(w.mtime)
	}
	return a, a.Mode != nil || !a.ModTime.IsZero()
}

// perm are the permission bits of a new file.
func (w wishes) perm() fs.FileMode {
	if w.flags&hasMode == 0 {
		return 0
	}
	return fs.FileMode(w.mode) & fs.ModePerm
}

// osFlags turns the flags of §6.3 into those of the system.
func osFlags(flags uint32) (f int) {
	switch {
	case flags&openWrite == 0:
		f = os.O_RDONLY
	case flags&openRead == 0:
		f = os.O_WRONLY
	default:
		f = os.O_RDWR
	}
	if flags&openCreate != 0 {
		f |= os.O_CREATE
		if flags&openExcl != 0 {
			f |= os.O_EXCL
		}
	}
	if flags&openTrunc != 0 {
		f |= os.O_TRUNC
	}
	return f
}

// partial reports whether a name says that the file is a part of one: what has come of it is kept for going on.
func partial(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{".filepart", ".part"}, func(end string) bool { return strings.HasSuffix(name, end) })
}
