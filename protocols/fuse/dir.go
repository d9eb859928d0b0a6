package fuse

import (
	"context"
	"iter"
	"slices"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/gateway"
)

// dir is one open folder. Its listing comes from the core while it is read, and what came last is kept, so that seekdir finds the same place
// again: exactly among the last window entries, and in as far as the folder has not changed before those.
type dir struct {
	n    *node
	gate gate

	// Guarded by gate.
	hidden []gateway.Info // new files of this mount that are not published
	past   []gateway.Info // entries from base on
	base   uint64
	next   func() (gateway.Info, error, bool) // nil before the first entry and after the last
	stop   func()
	over   bool
	life   context.CancelFunc
}

const (
	dots     = 2       // "." and ".."
	window   = 1 << 14 // entries that are kept
	maxDirs  = 128     // folders that are open at a time: each may hold an operation of the core
	noOffset = ^uint64(0)
)

// OpenDir implements gofuse.RawFileSystem.
func (f *fsys) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.dirs) >= maxDirs {
		return gofuse.Status(syscall.ENFILE)
	}
	f.tree.pin(n, 1)
	f.next++
	out.Fh = f.next
	f.dirs[out.Fh] = &dir{n: n, gate: newGate()}
	return gofuse.OK
}

// ReleaseDir implements gofuse.RawFileSystem.
func (f *fsys) ReleaseDir(in *gofuse.ReleaseIn) {
	f.mu.Lock()
	d := f.dirs[in.Fh]
	delete(f.dirs, in.Fh)
	f.mu.Unlock()
	if d == nil {
		return
	}
	f.calls.Add(1)
	go func() { // a listing may be waiting for its datasource
		defer f.calls.Done()
		if d.gate.lock(f.life) == nil {
			d.rewind()
			d.gate.unlock()
		}
		f.tree.pin(d.n, -1)
	}()
}

// rewind ends the listing.
func (d *dir) rewind() {
	if d.stop != nil {
		d.life()
		d.stop()
	}
	d.next, d.stop, d.life, d.past, d.base, d.over, d.hidden = nil, nil, nil, nil, 0, false, nil
}

// maxBatch is how many entries a request takes at most: its buffer holds no more of the shortest.
const maxBatch = 256

// readDir returns up to count entries from off on.
func (f *fsys) readDir(ctx context.Context, d *dir, off uint64, count int) ([]gateway.Info, error) {
	if err := d.gate.lock(ctx); err != nil {
		return nil, err
	}
	defer d.gate.unlock()
	if off < d.base || off == 0 && (d.over || d.next != nil) {
		d.rewind()
	}
	if d.next == nil && !d.over {
		if err := f.startDir(d); err != nil {
			return nil, err
		}
	}
	for !d.over && d.base+uint64(len(d.past)) < off+uint64(count) {
		i, err, ok := d.next()
		if !ok {
			d.over = true
			break
		}
		if err != nil {
			d.rewind()
			return nil, err
		}
		if slices.ContainsFunc(d.hidden, func(h gateway.Info) bool { return h.Name == i.Name }) {
			continue // it came just now
		}
		if len(d.past) >= 2*window {
			d.past = slices.Clone(d.past[window:])
			d.base += window
		}
		d.past = append(d.past, i)
	}
	end := d.base + uint64(len(d.past))
	if off < d.base || off >= end {
		return nil, nil
	}
	have := d.past[off-d.base:]
	return slices.Clone(have[:min(len(have), count)]), nil
}

// startDir begins the listing with what only this mount knows.
func (f *fsys) startDir(d *dir) error {
	p, err := f.tree.path(d.n)
	if err != nil {
		if errnoOf(err) == syscall.ENOENT {
			d.over = true // a folder that was removed has no entries, not even those of whoever holds it open
			return nil
		}
		return err
	}
	f.tree.mu.Lock()
	children := make(map[string]*node, len(d.n.children))
	for name, c := range d.n.children {
		if c.pins > 0 {
			children[name] = c
		}
	}
	f.tree.mu.Unlock()
	for name, c := range children {
		if f.isFresh(c) {
			c.mu.Lock()
			i := c.info
			c.mu.Unlock()
			i.Name = name
			d.hidden = append(d.hidden, i)
		}
	}
	d.past = append(d.past, d.hidden...)
	// The listing lives longer than the request that began it.
	ctx, cancel := context.WithCancel(f.life)
	d.life = cancel
	d.next, d.stop = iter.Pull2(f.s.List(ctx, p))
	return nil
}

// ReadDir implements gofuse.RawFileSystem.
func (f *fsys) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.entries(cancel, in, func(e gofuse.DirEntry, _ *node, _ gateway.Info) bool { return out.AddDirEntry(e) }, false)
}

// ReadDirPlus implements gofuse.RawFileSystem.
func (f *fsys) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.entries(cancel, in, func(e gofuse.DirEntry, n *node, i gateway.Info) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if n != nil {
			f.entry(n, i, entry)
		}
		return true
	}, true)
}

// entries hands what comes from the offset of the request on to add, until that has no room. With plus, add is given nodes that the kernel
// then has a reference to, for all but the dots.
func (f *fsys) entries(cancel <-chan struct{}, in *gofuse.ReadIn, add func(gofuse.DirEntry, *node, gateway.Info) bool, plus bool) gofuse.Status {
	f.mu.Lock()
	d := f.dirs[in.Fh]
	f.mu.Unlock()
	if d == nil {
		return gofuse.EBADF
	}
	off := in.Offset
	for ; off < dots; off++ {
		e := gofuse.DirEntry{Name: "..", Mode: syscall.S_IFDIR, Ino: f.parentIno(d.n), Off: off + 1}
		if off == 0 {
			e.Name, e.Ino = ".", d.n.ino
		}
		if !add(e, nil, gateway.Info{}) {
			return gofuse.OK
		}
	}
	if off == noOffset {
		return gofuse.OK
	}
	size := int(in.Size)
	for size > 0 {
		count := min(max(size/32, 1), maxBatch)
		infos, st := do(f, "readdir", cancel, func(ctx context.Context) ([]gateway.Info, error) {
			return f.readDir(ctx, d, off-dots, count)
		}, nil)
		if !st.Ok() {
			if off > in.Offset {
				return gofuse.OK // the next request tells
			}
			return st
		}
		for _, i := range infos {
			e := gofuse.DirEntry{Name: i.Name, Mode: kindOf(i), Off: off + 1, Ino: gofuse.FUSE_UNKNOWN_INO}
			var n *node
			if plus {
				if n = f.listed(d.n, i); n != nil {
					e.Ino = n.ino
				}
			} else if n := f.tree.child(d.n, i.Name); n != nil {
				e.Ino = n.ino
			} else if ino := f.tree.inoIn(d.n, i.ID); ino != 0 {
				e.Ino = ino
			}
			if !add(e, n, i) {
				if n != nil {
					f.tree.forget(n.id, 1)
				}
				return gofuse.OK
			}
			off++
			size -= 24 + len(i.Name)
			if plus {
				size -= 128
			}
		}
		if len(infos) < count {
			break
		}
	}
	return gofuse.OK
}

// listed returns the node of an entry of a listing, which the kernel then has a reference to; nil when it had better look it up.
func (f *fsys) listed(dir *node, i gateway.Info) *node {
	if c := f.tree.child(dir, i.Name); c != nil && f.isFresh(c) {
		f.tree.mu.Lock()
		defer f.tree.mu.Unlock()
		c.lookups++
		return c
	}
	return f.tree.enter(dir, i.Name, i)
}

// parentIno returns the inode number of "..".
func (f *fsys) parentIno(n *node) uint64 {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	if len(n.names) == 0 {
		return n.ino
	}
	return n.names[0].parent.ino
}
