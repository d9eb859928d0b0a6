package fuse

import (
	"context"
	"errors"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cellgate/gateway"
)

// seen is a node with what is known of it. The kernel is given a reference to it.
type seen struct {
	n *node
	i gateway.Info
}

func (f *fsys) unsee(s seen) {
	if s.n != nil {
		f.tree.forget(s.n.id, 1)
	}
}

// look finds what has a name now, and gives the kernel a reference to it.
func (f *fsys) look(ctx context.Context, dir *node, name string) (*node, gateway.Info, error) {
	p, err := f.tree.join(dir, name)
	if err != nil {
		if errnoOf(err) == syscall.EINVAL {
			err = syscall.ENOENT // a name that nothing can have
		}
		return nil, gateway.Info{}, err
	}
	if c := f.tree.child(dir, name); c != nil && f.isFresh(c) {
		f.tree.mu.Lock()
		c.lookups++
		f.tree.mu.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		return c, c.info, nil
	}
	i, err := f.s.Stat(ctx, p)
	if err != nil {
		if errnoOf(err) == syscall.ENOENT {
			if c := f.tree.child(dir, name); c != nil && !f.isFresh(c) {
				f.orphan(f.tree.remove(dir, name))
			}
		}
		return nil, i, err
	}
	was := f.tree.child(dir, name)
	n := f.tree.enter(dir, name, i)
	if was != nil && was != n && f.tree.isGone(was) {
		f.orphan(was) // replaced by somebody else
	}
	return n, i, nil
}

// Lookup implements gofuse.RawFileSystem. That there is nothing is remembered, too.
func (f *fsys) Lookup(cancel <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	dir := f.tree.node(in.NodeId)
	if dir == nil {
		return gofuse.ENOENT
	}
	got, st := do(f, "lookup", cancel, func(ctx context.Context) (seen, error) {
		n, i, err := f.look(ctx, dir, name)
		return seen{n, i}, err
	}, f.unsee)
	switch st {
	case gofuse.OK:
		f.entry(got.n, got.i, out)
	case gofuse.ENOENT:
		*out = gofuse.EntryOut{}
		out.SetEntryTimeout(f.cfg.NegativeTimeout)
		return gofuse.OK
	}
	return st
}

// made answers with a node that was just made.
func (f *fsys) made(cancel <-chan struct{}, op string, out *gofuse.EntryOut, make func(ctx context.Context) (seen, error)) gofuse.Status {
	got, st := do(f, op, cancel, make, f.unsee)
	if st.Ok() {
		f.entry(got.n, got.i, out)
	}
	return st
}

// folder returns a folder that something is to change in.
func (f *fsys) folder(id uint64) (*node, gofuse.Status) {
	n := f.tree.node(id)
	switch {
	case n == nil:
		return nil, gofuse.ENOENT
	case f.cfg.ReadOnly:
		return nil, gofuse.EROFS
	case n == f.tree.top:
		return nil, gofuse.EACCES // it holds workspaces, and nothing else
	}
	return n, gofuse.OK
}

// Mkdir implements gofuse.RawFileSystem.
func (f *fsys) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	if !st.Ok() {
		return st
	}
	mode := fsMode(in.Mode)
	return f.made(cancel, "mkdir", out, func(ctx context.Context) (seen, error) {
		p, err := f.tree.join(dir, name)
		if err != nil {
			return seen{}, err
		}
		if c := f.tree.child(dir, name); c != nil && f.isFresh(c) {
			return seen{}, syscall.EEXIST
		}
		defer f.doing(p)()
		if err := f.s.Mkdir(ctx, p); err != nil {
			return seen{}, err
		}
		n, i, err := f.look(ctx, dir, name)
		if err == nil && i.Mode != mode {
			if err := f.change(ctx, n, gateway.Attr{Mode: &mode}); err != nil {
				f.cfg.Logger.Debug("a new folder has the datasource's mode", "path", p.String(), "err", err)
			} else {
				i.Mode = mode
			}
		}
		return seen{n, i}, err
	})
}

// Symlink implements gofuse.RawFileSystem.
func (f *fsys) Symlink(cancel <-chan struct{}, in *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	if !st.Ok() {
		return st
	}
	return f.made(cancel, "symlink", out, func(ctx context.Context) (seen, error) {
		p, err := f.tree.join(dir, name)
		if err != nil {
			return seen{}, err
		}
		if c := f.tree.child(dir, name); c != nil && f.isFresh(c) {
			return seen{}, syscall.EEXIST
		}
		defer f.doing(p)()
		if err := f.s.Symlink(ctx, target, p); err != nil {
			return seen{}, linkErr(err)
		}
		n, i, err := f.look(ctx, dir, name)
		return seen{n, i}, err
	})
}

// linkErr is what link(2) and symlink(2) say where there are no links.
func linkErr(err error) error {
	if errnoOf(err) == syscall.EOPNOTSUPP {
		return syscall.EPERM
	}
	return err
}

// Link implements gofuse.RawFileSystem.
func (f *fsys) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	n := f.tree.node(in.Oldnodeid)
	switch {
	case !st.Ok():
		return st
	case n == nil:
		return gofuse.ENOENT
	case f.apart(n, dir):
		return gofuse.EXDEV
	case n.kind == syscall.S_IFLNK:
		return gofuse.EPERM // the core follows links
	}
	return f.made(cancel, "link", out, func(ctx context.Context) (seen, error) {
		p, err := f.tree.join(dir, name)
		if err != nil {
			return seen{}, err
		}
		if err := f.publishBelow(ctx, n); err != nil {
			return seen{}, err
		}
		defer f.doing(p)()
		err = f.at(n, func(from gateway.Path) error {
			defer f.doing(from)()
			return f.s.Link(ctx, from, p)
		})
		if err != nil {
			return seen{}, linkErr(err)
		}
		n.touched()
		n, i, err := f.look(ctx, dir, name)
		return seen{n, i}, err
	})
}

// apart reports whether two nodes are known to lie on different datasources.
func (f *fsys) apart(a, b *node) bool {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return a.at != b.at
}

// Readlink implements gofuse.RawFileSystem.
func (f *fsys) Readlink(cancel <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return nil, gofuse.ENOENT
	}
	if n.kind != syscall.S_IFLNK {
		return nil, gofuse.EINVAL
	}
	i, st := do(f, "readlink", cancel, func(ctx context.Context) (gateway.Info, error) { return f.stat(ctx, n) }, nil)
	return []byte(i.Target), st
}

// Unlink implements gofuse.RawFileSystem.
func (f *fsys) Unlink(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	if !st.Ok() {
		return st
	}
	_, st = do(f, "unlink", cancel, func(ctx context.Context) (none, error) {
		p, err := f.tree.join(dir, name)
		if err != nil {
			return none{}, err
		}
		c := f.tree.child(dir, name)
		if c != nil && f.isFresh(c) {
			f.orphan(f.tree.remove(dir, name))
			return none{}, nil
		}
		if c != nil {
			if err := f.keep(ctx, c); err != nil {
				return none{}, err
			}
		}
		defer f.doing(p)()
		err = f.s.Remove(ctx, p, gateway.RemoveOptions{})
		if err == nil || errnoOf(err) == syscall.ENOENT {
			if c != nil {
				c.touched()
			}
			f.orphan(f.tree.remove(dir, name))
		}
		return none{}, err
	}, nil)
	return st
}

// Rmdir implements gofuse.RawFileSystem.
func (f *fsys) Rmdir(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	if !st.Ok() {
		return st
	}
	_, st = do(f, "rmdir", cancel, func(ctx context.Context) (none, error) {
		return none{}, f.removeFolder(ctx, dir, name)
	}, nil)
	return st
}

func (f *fsys) removeFolder(ctx context.Context, dir *node, name string) error {
	p, err := f.tree.join(dir, name)
	if err != nil {
		return err
	}
	c := f.tree.child(dir, name)
	if c != nil && f.holdsFresh(c) {
		return syscall.ENOTEMPTY
	}
	defer f.doing(p)()
	if err := f.s.Remove(ctx, p, gateway.RemoveOptions{}); err != nil {
		return err
	}
	f.orphan(f.tree.remove(dir, name))
	return nil
}

// holdsFresh reports whether a folder holds files that only this mount knows.
func (f *fsys) holdsFresh(dir *node) bool {
	f.tree.mu.Lock()
	children := make([]*node, 0, len(dir.children))
	for _, c := range dir.children {
		children = append(children, c)
	}
	f.tree.mu.Unlock()
	for _, c := range children {
		if f.isFresh(c) {
			return true
		}
	}
	return false
}

// Rename implements gofuse.RawFileSystem. The kernel keeps folders from being moved into themselves and looks at the types it knows; what
// another door may have changed meanwhile is looked at again.
func (f *fsys) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	dir, st := f.folder(in.NodeId)
	to := f.tree.node(in.Newdir)
	switch {
	case !st.Ok():
		return st
	case to == nil:
		return gofuse.ENOENT
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return gofuse.EINVAL // EXCHANGE and WHITEOUT: no door has those
	}
	keep := in.Flags&unix.RENAME_NOREPLACE != 0
	_, st = do(f, "rename", cancel, func(ctx context.Context) (none, error) {
		return none{}, f.rename(ctx, dir, oldName, to, newName, keep)
	}, nil)
	return st
}

func (f *fsys) rename(ctx context.Context, dir *node, oldName string, to *node, newName string, keep bool) error {
	from, err := f.tree.join(dir, oldName)
	if err != nil {
		return err
	}
	dest, err := f.tree.join(to, newName)
	if err != nil {
		return err
	}
	n, old := f.tree.child(dir, oldName), f.tree.child(to, newName)
	if f.apart(dir, to) {
		return syscall.EXDEV // mv copies, which takes as long as it takes
	}
	if n != nil {
		if err := f.publishBelow(ctx, n); err != nil {
			return err
		}
	}
	defer f.doing(from)()
	defer f.doing(dest)()
	if n != nil {
		defer f.unlockBelow(ctx, n)()
	}
	hidden := old != nil && f.isFresh(old) // the core knows nothing of it
	if hidden && keep {
		return syscall.EEXIST
	}
	removed, err := f.makeWay(ctx, from, to, newName, dest, old, hidden, keep)
	if err != nil {
		return err
	}
	if _, err = f.s.Rename(ctx, from, dest, gateway.MoveOptions{Overwrite: !keep}); err != nil {
		if removed {
			err = errors.Join(err, f.s.Mkdir(context.WithoutCancel(ctx), dest))
		}
		return err
	}
	f.orphan(f.tree.move(dir, oldName, to, newName))
	if n != nil {
		n.touched()
		f.rebindBelow(context.WithoutCancel(ctx), n)
	}
	return nil
}

// makeWay sees to it that what is at the target of a move may be replaced (rename(2)): a file by a file, an empty folder by a folder. The core
// replaces whole trees, so that a folder is removed here, and removed tells that it was.
func (f *fsys) makeWay(ctx context.Context, from gateway.Path, to *node, newName string, dest gateway.Path, old *node, hidden, keep bool) (removed bool, err error) {
	if hidden {
		return false, nil
	}
	there, err := f.s.Stat(ctx, dest)
	switch {
	case errnoOf(err) == syscall.ENOENT:
		return false, nil
	case err != nil:
		return false, err
	case keep:
		return false, syscall.EEXIST
	}
	what, err := f.s.Stat(ctx, from)
	switch {
	case err != nil:
		return false, err
	case there.Dir && !what.Dir:
		return false, syscall.EISDIR
	case !there.Dir && what.Dir:
		return false, syscall.ENOTDIR
	case there.Dir:
		err := f.removeFolder(ctx, to, newName)
		return err == nil, err
	case old != nil:
		return false, f.keep(ctx, old)
	}
	return false, nil
}
