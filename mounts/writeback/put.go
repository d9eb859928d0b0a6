package writeback

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// stage is a Put that has looked at its target and is not published yet.
type stage struct {
	key     string
	spoiled bool // the tree above it has changed: look again; guarded by Backend.mu
}

var errLength = errors.New("the source has another length than declared")

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "Put", name); err != nil {
		return mounts.Info{}, err
	}
	if opt.Exclusive {
		if b.pending(name) != nil {
			return mounts.Info{}, fault.New("mounts/writeback.Put", name, fault.Exist, nil)
		}
		return b.next.Put(ctx, name, src, opt) // what is put meanwhile comes after it
	}
	if opt.Size > b.cfg.MaxFile {
		return b.through(ctx, name, src, opt)
	}
	st := &stage{key: b.key(name)}
	b.mu.Lock()
	b.stages[st] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.stages, st)
		b.mu.Unlock()
	}()
	old, err := b.target(ctx, name)
	if err != nil {
		return mounts.Info{}, err
	}
	return b.keep(ctx, st, name, src, opt, old)
}

// target looks whether a file may be put at name, and returns what is there, the zero Info for nothing.
func (b *Backend) target(ctx context.Context, name string) (mounts.Info, error) {
	const op = "mounts/writeback.Put"
	if name == "." {
		return mounts.Info{}, fault.New(op, name, fault.IsDir, nil)
	}
	if err := b.begin(ctx, "Put", name); err != nil {
		return mounts.Info{}, err
	}
	if e := b.pending(name); e != nil {
		return e.info, nil
	}
	info, err := b.next.Stat(ctx, name)
	switch {
	case err == nil && info.IsDir():
		return info, fault.New(op, name, fault.IsDir, nil)
	case err == nil && info.Type != mounts.File:
		return info, fault.New(op, name, fault.Denied, errNoFile)
	case err == nil:
		return info, nil
	case fault.KindOf(err) != fault.NotExist:
		return info, err
	}
	dir, _ := mounts.Split(name)
	if dir == "." || b.next.Folder(dir) {
		return mounts.Info{}, nil
	}
	parent, err := b.next.Stat(ctx, dir)
	if err == nil && !parent.IsDir() {
		err = fault.New(op, name, fault.NotDir, nil)
	}
	return mounts.Info{}, err
}

// keep spools src and publishes it, or leads it straight through when it does not fit.
func (b *Backend) keep(ctx context.Context, st *stage, name string, src io.Reader, opt mounts.PutOptions, old mounts.Info) (mounts.Info, error) {
	const op = "mounts/writeback.Put"
	tmp, err := os.CreateTemp(b.spool.dir, unfinished) // 0600
	if err != nil {
		b.cfg.Logger.Warn("spool cannot be written, files go straight through", "err", err)
		return b.through(ctx, name, src, opt)
	}
	c := &claim{b: b}
	defer func() { // what is not published
		if c != nil {
			tmp.Close()
			os.Remove(tmp.Name())
			c.free()
		}
	}()
	now := b.cfg.Clock.Now()
	m := manifest{Name: name, Mode: opt.Mode, ModTime: opt.ModTime, Put: now}
	if m.ModTime.IsZero() {
		m.ModTime = now
	}
	if b.pending(name) == nil {
		m.Tag = old.Tag
	}
	rest, err := b.copy(ctx, tmp, src, opt, c, &m)
	if err != nil {
		return mounts.Info{}, err
	}
	if rest != nil { // too large after all, or no room: what is spooled goes first
		if _, err := tmp.Seek(0, io.SeekStart); err != nil {
			return mounts.Info{}, fault.Wrap(op, name, err)
		}
		return b.through(ctx, name, io.MultiReader(io.LimitReader(tmp, m.Size), rest), opt)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return mounts.Info{}, fault.Wrap(op, name, err)
	}
	seq, err := b.spool.publish(tmp.Name())
	if err != nil {
		if seq != 0 {
			b.spool.remove(seq)
		}
		return mounts.Info{}, fault.Wrap(op, name, err)
	}
	e := &entry{manifest: m, seq: seq}
	if err := b.show(ctx, st, e, old); err != nil {
		b.spool.drop(seq)
		c.free()
		c = nil
		return mounts.Info{}, err
	}
	c = nil
	return e.info, nil
}

// copy spools src with its trailer. It returns what is left of src when there is no room for it; m.Size bytes are spooled then.
func (b *Backend) copy(ctx context.Context, tmp *os.File, src io.Reader, opt mounts.PutOptions, c *claim, m *manifest) (rest io.Reader, err error) {
	const op = "mounts/writeback.Put"
	room := 64 << 10
	if opt.Size >= 0 {
		room = int(min(opt.Size+1, 256<<10)) + 1<<10 // a small one is written at once, with its trailer
	}
	buf := make([]byte, 0, room)
	sum := crc32.New(castagnoli)
	for {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(op, m.Name, err)
		}
		n, end := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		total := m.Size + int64(len(buf))
		if opt.Size >= 0 && (total > opt.Size || end == io.EOF && total < opt.Size) {
			return nil, fault.New(op, m.Name, fault.Invalid, errLength)
		}
		if end != nil && end != io.EOF {
			return nil, fault.Wrap(op, m.Name, end)
		}
		if total > b.cfg.MaxFile || !c.grow(total) {
			return io.MultiReader(bytes.NewReader(buf), again(src, end)), nil
		}
		if end == nil && cap(buf)-len(buf) > 512 {
			continue
		}
		sum.Write(buf)
		size := int64(len(buf))
		if end == io.EOF {
			m.Size, m.Sum = total, sum.Sum32()
			if buf, err = appendTrailer(buf, *m); err != nil {
				return nil, fault.Wrap(op, m.Name, err)
			}
			m.Size -= size // again, until it is written
		}
		if _, err := tmp.Write(buf); err != nil {
			b.cfg.Logger.Warn("spool cannot be written, a file goes straight through", "err", err)
			return io.MultiReader(bytes.NewReader(buf[:size]), again(src, end)), nil
		}
		if m.Size += size; end == io.EOF {
			return nil, nil
		}
		buf = buf[:0]
	}
}

// again is what src yields after it gave err.
func again(src io.Reader, err error) io.Reader {
	if err == io.EOF {
		return bytes.NewReader(nil)
	}
	return src
}

// claim is room in the spool.
type claim struct {
	b     *Backend
	bytes int64
}

// grow claims room for a file of size bytes, if there is.
func (c *claim) grow(size int64) bool {
	more := cost(size) - c.bytes
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if more > 0 && c.b.used+more > c.b.cfg.Size {
		return false
	}
	c.b.used += more
	c.bytes += more
	return true
}

func (c *claim) free() {
	c.b.mu.Lock()
	c.b.used -= c.bytes
	c.b.mu.Unlock()
}

// show makes a durable content what everybody sees, unless the tree has changed so that it cannot be there.
func (b *Backend) show(ctx context.Context, st *stage, e *entry, old mounts.Info) error {
	for {
		b.mu.Lock()
		if f := b.fenced(st.key); f != nil {
			b.mu.Unlock()
			select {
			case <-f.done:
			case <-ctx.Done():
				return fault.Wrap("mounts/writeback.Put", e.Name, ctx.Err())
			}
			continue
		}
		if st.spoiled {
			st.spoiled = false
			b.mu.Unlock()
			var err error
			if old, err = b.target(ctx, e.Name); err != nil {
				return err
			}
			continue
		}
		break
	}
	defer b.mu.Unlock()
	if b.closed.Load() {
		return fault.New("mounts/writeback.Put", e.Name, fault.Unavailable, errClosed)
	}
	e.info = b.describe(e.manifest, e.seq, old)
	s := b.slot(e.Name)
	before := s.newest
	if before != nil && before.seq > e.seq { // another Put at the same time was the later one
		b.spool.remove(e.seq)
		b.used -= cost(e.Size)
		return nil
	}
	if before != nil && before != s.running {
		b.spool.remove(before.seq)
		b.used -= cost(before.Size)
	}
	b.see(s, e)
	if b.cfg.Delay > 0 {
		time.AfterFunc(b.cfg.Delay, func() { b.kick(s) })
	} else {
		b.enqueue(s)
	}
	for w := range b.watches {
		w.tell(e.Name)
	}
	return nil
}

// through puts straight to the backend, in the place of what is pending.
func (b *Backend) through(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	err = b.replace(ctx, "Put", name, func() error { info, err = b.next.Put(ctx, name, src, opt); return err })
	return info, err
}
