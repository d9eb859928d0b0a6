package sftp

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// writer is a file that is being written: by an upload that may stream, or by a handle that is written at any place. Once published it has
// neither, until it is written again.
type writer struct {
	s     *session
	path  gateway.Path // as it is called now; guarded by mu
	flags uint32

	mu      sync.Mutex // of everything below; whoever works on the file holds it
	up      *gateway.Upload
	hd      *gateway.Handle
	next    int64   // of up: all before it has been written, in order
	loose   bool    // of up: no longer in order
	early   []piece // of up: what came before its turn, by offset
	came    ranges  // what has come of the whole file
	changed bool    // something is not published
	failed  error   // something the client believes written is not: nothing of it is published any more
	gone    bool    // removed: nothing is published, and nobody minds
	last    gateway.Info
	attr    gateway.Attr // to be set once it is published
}

// piece is data that waits for what lies before it.
type piece struct {
	off  int64
	data []byte
}

var (
	errShrink = errors.New("the end of a file that is on its way cannot be cut off")
	errBroken = errors.New("a write failed before")
)

// newWriter opens a file for writing.
func (s *session) newWriter(ctx context.Context, p gateway.Path, flags uint32, w wishes) (*writer, error) {
	if flags&openTrunc != 0 && flags&openWrite == 0 {
		return nil, fault.New("sftp.open", p.String(), fault.Invalid, errFlags)
	}
	if flags&(openCreate|openExcl) == openCreate|openExcl && s.writer(p) != nil {
		return nil, fault.New("sftp.open", p.String(), fault.Exist, nil)
	}
	f := &writer{s: s, path: p, flags: flags}
	var err error
	empty := flags&openTrunc != 0 || flags&openExcl != 0 && flags&openCreate != 0
	if s.streams.Load() && empty && flags&openCreate != 0 && flags&(openRead|openAppend) == 0 {
		f.up, err = s.s.Create(ctx, p, gateway.CreateOptions{Size: -1, Exclusive: flags&openExcl != 0, Mode: w.perm()})
		f.changed, f.last = true, gateway.Info{Name: p.Base(), Path: p}
		if w.perm() != 0 {
			f.last.Mode = w.perm()
		}
		return f, err
	}
	f.hd, err = s.s.OpenFile(ctx, p, gateway.OpenOptions{Flag: osFlags(flags), Perm: w.perm(), Base: !empty, InPlace: inPlace(flags)})
	if err != nil {
		return nil, err
	}
	f.last = f.hd.Info()
	if empty {
		f.last.Size = 0
	}
	f.came.end = f.last.Size
	f.changed = empty || f.last.ModTime.IsZero() && f.last.Size == 0
	return f, nil
}

// pending reports whether something of the file is not published yet.
func (f *writer) pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed || f.attr != gateway.Attr{}
}

// ready makes sure that there is something to write to.
func (f *writer) ready() error {
	switch {
	case f.failed != nil:
		return fault.New("sftp.write", f.path.String(), fault.KindOf(f.failed), errBroken)
	case f.flags&openWrite == 0:
		return fault.New("sftp.write", f.path.String(), fault.Denied, errWriting)
	}
	return f.open()
}

func (f *writer) open() error {
	if f.up != nil || f.hd != nil {
		return nil
	}
	flag := osFlags(f.flags &^ (openCreate | openExcl | openTrunc))
	hd, err := f.s.s.OpenFile(f.s.life, f.path, gateway.OpenOptions{Flag: flag, Base: true, InPlace: inPlace(f.flags)})
	if err != nil {
		return err
	}
	f.hd = hd
	return nil
}

// inPlace reports whether a file is opened as those do who keep working on one, and not as those who send one.
func inPlace(flags uint32) bool {
	return flags&(openRead|openWrite|openTrunc|openAppend) == openRead|openWrite
}

// write writes p at off, or keeps a copy until it is its turn.
func (f *writer) write(p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ready(); err != nil {
		return err
	}
	if f.flags&openAppend != 0 {
		off = f.size()
	}
	f.changed = true
	var err error
	if f.up != nil && !f.loose {
		err = f.stream(p, off)
	} else {
		err = f.writeAt(p, off)
	}
	if err != nil {
		f.failed = err
		return err
	}
	f.came.add(off, int64(len(p)))
	return nil
}

func (f *writer) writeAt(p []byte, off int64) (err error) {
	if f.up != nil {
		_, err = f.up.WriteAt(p, off)
	} else {
		_, err = f.hd.WriteAt(p, off)
	}
	return err
}

// stream writes what comes in order, and what came early as soon as it is its turn.
func (f *writer) stream(p []byte, off int64) error {
	if off != f.next {
		if off > f.next && f.s.held.Add(int64(len(p))) <= maxHeld {
			i, _ := slices.BinarySearchFunc(f.early, off, func(e piece, off int64) int { return int(min(max(e.off-off, -1), 1)) })
			f.early = slices.Insert(f.early, i, piece{off, slices.Clone(p)})
			return nil
		}
		if off > f.next {
			f.s.held.Add(-int64(len(p)))
		}
		if err := f.scatter(); err != nil {
			return err
		}
		return f.writeAt(p, off)
	}
	if _, err := f.up.Write(p); err != nil {
		return err
	}
	f.next += int64(len(p))
	for len(f.early) > 0 && f.early[0].off <= f.next {
		e := f.early[0]
		if e.off < f.next {
			return f.scatter()
		}
		f.early = slices.Delete(f.early, 0, 1)
		f.s.held.Add(-int64(len(e.data)))
		if _, err := f.up.Write(e.data); err != nil {
			return err
		}
		f.next += int64(len(e.data))
	}
	return nil
}

// scatter gives up the order: from now on everything is written where it belongs. It fails when the first bytes are on their way across a network.
func (f *writer) scatter() error {
	f.loose = true
	for len(f.early) > 0 {
		e := f.early[0]
		f.early = f.early[1:]
		f.s.held.Add(-int64(len(e.data)))
		if err := f.writeAt(e.data, e.off); err != nil {
			f.forget()
			return err
		}
	}
	return nil
}

// forget drops what came early.
func (f *writer) forget() {
	for _, e := range f.early {
		f.s.held.Add(-int64(len(e.data)))
	}
	f.early = nil
}

// size is that of the file as the client has written it.
func (f *writer) size() int64 {
	switch {
	case f.up != nil && len(f.early) > 0:
		e := f.early[len(f.early)-1]
		return max(f.up.Size(), e.off+int64(len(e.data)))
	case f.up != nil:
		return f.up.Size()
	case f.hd != nil && f.changed:
		return f.hd.Info().Size
	}
	return f.last.Size
}

// info describes the file as the client has written it.
func (f *writer) info() (gateway.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.last
	i.Size = f.size()
	if f.changed {
		i.ModTime = now()
	}
	if !f.attr.ModTime.IsZero() {
		i.ModTime = f.attr.ModTime
	}
	if f.attr.Mode != nil {
		i.Mode = *f.attr.Mode
	}
	return i, nil
}

// set changes attributes. Time and mode become true when the file is published.
func (f *writer) set(w wishes) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.flags&hasSize != 0 {
		if err := f.truncate(w.size); err != nil {
			return err
		}
	}
	a, ok := w.attr()
	if !ok {
		return nil
	}
	if a.Mode != nil {
		f.attr.Mode = a.Mode
	}
	if !a.ModTime.IsZero() {
		f.attr.ModTime = a.ModTime
	}
	return nil
}

func (f *writer) truncate(size int64) error {
	if err := f.ready(); err != nil {
		return err
	}
	if size == f.size() {
		return nil
	}
	var err error
	switch {
	case f.up == nil:
		err = f.hd.Truncate(size)
	case size > f.up.Size() && size > f.size():
		if err = f.scatter(); err == nil {
			err = f.writeAt([]byte{0}, size-1)
		}
	default:
		err = fault.New("sftp.truncate", f.path.String(), fault.Unsupported, errShrink)
		if size == 0 {
			err = f.restart()
		}
	}
	if err != nil {
		return err
	}
	f.changed = true
	f.came.cut(size)
	return nil
}

// restart begins an upload anew, as one that is written at any place.
func (f *writer) restart() (err error) {
	f.forget()
	perm := f.last.Mode
	if err := f.up.Abort(); err != nil {
		return err
	}
	f.up = nil
	f.hd, err = f.s.s.OpenFile(f.s.life, f.path, gateway.OpenOptions{Flag: osFlags(f.flags | openTrunc), Perm: perm})
	if err != nil {
		f.failed = err
	}
	return err
}

// read reads what was written, from a file that is open for both.
func (f *writer) read(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flags&openRead == 0 {
		return 0, fault.New("sftp.read", f.path.String(), fault.Denied, errReading)
	}
	if err := f.open(); err != nil {
		return 0, err
	}
	return f.hd.ReadAt(p, off)
}

// publish makes the file under its name what was written. The writer can go on.
func (f *writer) publish(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flush(ctx)
}

func (f *writer) flush(ctx context.Context) (err error) {
	switch {
	case f.failed != nil:
		return f.failed
	case f.gone:
		return nil
	case f.up != nil:
		if err = f.scatter(); err == nil {
			f.last, _, err = f.up.Commit(ctx)
		}
		if err != nil {
			err = errors.Join(err, f.up.Abort())
		}
		f.up = nil
	case f.hd != nil && f.changed:
		if err = f.hd.Sync(ctx); err == nil {
			f.last = f.hd.Info()
		}
	}
	if err != nil {
		f.failed = err
		return err
	}
	f.changed = false
	return f.settle(ctx)
}

// settle sets what was asked for before there was a file to set it on. What the datasource does not keep is no failure of the file.
func (f *writer) settle(ctx context.Context) error {
	a := f.attr
	if a == (gateway.Attr{}) {
		return nil
	}
	f.attr = gateway.Attr{}
	err := f.s.s.SetAttr(ctx, f.path, a)
	if fault.KindOf(err) == fault.Unsupported && a.Mode != nil && !a.ModTime.IsZero() {
		err = f.s.s.SetAttr(ctx, f.path, gateway.Attr{Mode: a.Mode})
	}
	switch {
	case fault.KindOf(err) == fault.Unsupported && err != nil:
		return nil
	case err != nil:
		return err
	}
	if !a.ModTime.IsZero() {
		f.last.ModTime = a.ModTime
	}
	if a.Mode != nil {
		f.last.Mode = *a.Mode
	}
	return nil
}

// close publishes what was written and ends the writer.
func (f *writer) close(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil || f.gone {
		failed := f.failed
		if f.gone {
			failed = nil
		}
		return errors.Join(failed, f.abort())
	}
	if f.hd != nil {
		err := f.hd.Close(ctx)
		if err == nil {
			err = f.settle(ctx)
		}
		f.hd = nil
		return err
	}
	return f.flush(ctx)
}

// drop ends the writer of a client that has gone: nothing is published but what is named a part.
func (f *writer) drop(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget()
	if !partial(f.path.Base()) || f.failed != nil || f.gone || !f.changed {
		return f.abort()
	}
	switch whole := f.size() <= f.came.end; {
	case f.hd != nil:
		if !whole {
			if err := f.hd.Truncate(f.came.end); err != nil {
				return errors.Join(err, f.abort())
			}
		}
		return f.hd.Close(ctx)
	case f.up != nil && whole:
		_, _, err := f.up.Commit(ctx)
		return err
	}
	return f.abort()
}

func (f *writer) abort() (err error) {
	f.forget()
	if f.up != nil {
		err = f.up.Abort()
	}
	if f.hd != nil {
		err = f.hd.Abort()
	}
	f.up, f.hd = nil, nil
	return err
}

// moved follows a rename. What was written is published already.
func (f *writer) moved(to gateway.Path) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = to
	if f.hd == nil {
		return nil
	}
	err := f.hd.Close(f.s.life)
	f.hd = nil // opened anew under its new name when it is written again
	return err
}

// removed makes the file nobody's.
func (f *writer) removed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
}

// takeWrite takes a write (§6.4). Its data is passed on while it comes, in blocks: a client that is slow keeps one of them, not the whole.
func (s *session) takeWrite(n int) error {
	// id, length of the handle, handle, offset, length of the data
	const head = 4 + 4 + handleSize + 8 + 4
	if n < head {
		return errMalformed
	}
	in, err := s.read(head)
	if err != nil {
		return err
	}
	id, name, off, size := in.u32(), in.handle(), in.offset(), int(in.u32())
	if in.bad || size > n-head {
		return errMalformed
	}
	rest := int64(n - head - size) // old versions of github.com/pkg/sftp send more than they mean
	s.slots <- struct{}{}
	h := s.handle(name)
	if h == nil || h.w == nil {
		if _, err := io.CopyN(io.Discard, s.in, int64(size)+rest); err != nil {
			<-s.slots
			return io.EOF
		}
		s.refuse(id, badHandle())
		return nil
	}
	var failed error // of this write; touched by the handle's queue only
	for first := true; first || size > 0; first = false {
		s.bodies <- struct{}{}
		b := blocks.Get().(*block)
		k := min(size, blockSize)
		_, err := io.ReadFull(s.in, b[:k])
		if err == nil && k == size {
			_, err = io.CopyN(io.Discard, s.in, rest)
		}
		if err != nil {
			blocks.Put(b)
			<-s.bodies
			<-s.slots
			return io.EOF // half a write is none
		}
		at, last := off, size == k
		off, size = off+int64(k), size-k
		run := h.queueUp
		if last {
			run = h.answer // only when all of the body has been read: another may go on reading meanwhile
		}
		run(func() {
			if failed == nil {
				failed = h.w.write(b[:k], at)
			}
			blocks.Put(b)
			<-s.bodies
			if last {
				s.finish(id, nil, failed)
			}
		})
	}
	return nil
}

// ranges tells how far a file has come without a gap.
type ranges struct {
	end  int64
	over [][2]int64 // behind a gap, in order
}

// maxRanges is how many are told apart. What is behind more gaps counts as not there.
const maxRanges = 64

func (r *ranges) add(off, n int64) {
	if off > r.end {
		if len(r.over) < maxRanges {
			i, _ := slices.BinarySearchFunc(r.over, off, func(e [2]int64, off int64) int { return int(min(max(e[0]-off, -1), 1)) })
			if i > 0 && r.over[i-1][1] == off {
				r.over[i-1][1] += n
			} else {
				r.over = slices.Insert(r.over, i, [2]int64{off, off + n})
			}
		}
		return
	}
	r.end = max(r.end, off+n)
	for len(r.over) > 0 && r.over[0][0] <= r.end {
		r.end = max(r.end, r.over[0][1])
		r.over = slices.Delete(r.over, 0, 1)
	}
}

// cut is for a file that gets another size. Zeros that make it longer have come.
func (r *ranges) cut(size int64) {
	if size < r.end || len(r.over) == 0 {
		r.end, r.over = size, nil
	}
}
