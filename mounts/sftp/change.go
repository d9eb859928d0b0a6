package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"

	client "github.com/pkg/sftp"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", true, name); err != nil {
		return err
	}
	if name == "." {
		return refusal("Mkdir", name, fault.Exist, nil)
	}
	return b.run(ctx, "Mkdir", name, false, func(w *wire) error {
		if err := b.guard(ctx, w, name).wait(ctx); err != nil {
			return err
		}
		return b.taken(ctx, w, "Mkdir", name, w.mkdir(ctx, b.path(name), wishes{}).ok(ctx))
	})
}

// taken turns the refusal to make something into Exist where there is something already, for which version 3 of the protocol has no status.
func (b *Backend) taken(ctx context.Context, w *wire, op, name string, err error) error {
	if code := codeOf(err); err == nil || code == codeOK || code == codeNoSuchFile || code == codeUnsupported {
		return err
	}
	if _, there := w.lstat(ctx, b.path(name)).attrs(ctx); there == nil {
		return refusal(op, name, fault.Exist, nil)
	}
	return b.explain(ctx, w, op, name, err)
}

// explain looks for the cause of a failure that the server has no word for: a full or read-only file system.
func (b *Backend) explain(ctx context.Context, w *wire, op, name string, err error) error {
	if codeOf(err) != codeFailure || !b.can[extStatvfs] {
		return err
	}
	dir, _ := mounts.Split(name)
	var v *client.StatVFS
	if w.ask(ctx, func(c *client.Client) (err error) { v, err = c.StatVFS(b.path(dir)); return err }) != nil {
		return err
	}
	const readOnly = 1 // SSH_FXE_STATVFS_ST_RDONLY
	switch {
	case v.Flag&readOnly != 0:
		return refusal(op, name, fault.Denied, errors.New("the file system on the server is read-only"))
	case v.Bavail*v.Frsize < 1<<20 || v.Files > 0 && v.Favail == 0:
		return refusal(op, name, fault.NoSpace, err)
	}
	return err
}

// Remove implements mounts.Backend. What this package left in a folder, because it could not clean up, does not keep the folder.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", true, name); err != nil {
		return err
	}
	if name == "." {
		return refusal("Remove", name, fault.Invalid, errRoot)
	}
	return b.run(ctx, "Remove", name, false, func(w *wire) error {
		if err := b.guard(ctx, w, name).wait(ctx); err != nil {
			return err
		}
		err := w.simple(ctx, typeRemove, b.path(name)).ok(ctx)
		b.folders.drop(name)
		if err == nil || codeOf(err) == codeOK {
			return err
		}
		at, rmdir := w.lstat(ctx, b.path(name)), w.simple(ctx, typeRmdir, b.path(name))
		a, there := at.attrs(ctx)
		gone := rmdir.ok(ctx)
		switch {
		case gone == nil || codeOf(gone) == codeOK:
			return gone
		case there != nil:
			return there
		case a.typ() != mounts.Dir:
			return b.explain(ctx, w, "Remove", name, err)
		}
		left, others, listed := b.leftovers(ctx, w, name)
		switch {
		case listed != nil || others == 0 && len(left) == 0:
			return b.explain(ctx, w, "Remove", name, gone)
		case others > 0:
			return refusal("Remove", name, fault.NotEmpty, nil)
		}
		for _, file := range left {
			if err := w.simple(ctx, typeRemove, file).ok(ctx); err != nil {
				return refusal("Remove", name, fault.NotEmpty, err)
			}
		}
		return w.simple(ctx, typeRmdir, b.path(name)).ok(ctx)
	})
}

// leftovers returns our own temporary files in a folder, some of them when there are many, and counts the rest up to the first.
func (b *Backend) leftovers(ctx context.Context, w *wire, dir string) (left []string, others int, err error) {
	handle, err := b.openDir(ctx, w, dir)
	if err != nil {
		return nil, 0, err
	}
	defer w.closeHandle(handle)
	for others == 0 && len(left) < 1000 {
		r, err := w.simple(ctx, typeReaddir, handle).wait(ctx, typeName)
		if codeOf(err) == codeEOF {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		in := input{b: r.body}
		page := in.entries()
		w.link.pool.release(r)
		if len(page) == 0 {
			return nil, 0, errShort
		}
		for _, e := range page {
			switch {
			case e.name == "." || e.name == "..":
			case strings.HasPrefix(e.name, tempPrefix) && mounts.ValidName(e.name) == nil && e.attrs.typ() == mounts.File:
				left = append(left, b.path(mounts.Join(dir, e.name)))
			default:
				others++
			}
		}
	}
	return left, others, nil
}

// Rename implements mounts.Backend. Both names are looked at first, in one flight: servers put a folder over an empty one.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	const op = "Rename"
	if err := b.begin(ctx, op, true, from, to); err != nil {
		return err
	}
	if from == "." || to == "." {
		return refusal(op, from, fault.Invalid, errRoot)
	}
	return b.run(ctx, op, from, false, func(w *wire) error {
		g := b.guard(ctx, w, from, to)
		source, target := w.lstat(ctx, b.path(from)), w.lstat(ctx, b.path(to))
		guarded := g.wait(ctx)
		src, err := source.attrs(ctx)
		dst, missing := target.attrs(ctx)
		switch {
		case guarded != nil:
			return guarded
		case err != nil:
			return err
		case from == to:
			return nil
		case src.typ() == mounts.Dir && mounts.Below(to, from):
			return refusal(op, to, fault.Invalid, errBelow)
		case missing != nil && codeOf(missing) != codeNoSuchFile:
			return missing
		case missing == nil && dst.typ() == mounts.Dir && src.typ() == mounts.Dir:
			return refusal(op, to, fault.Exist, nil)
		case missing == nil && dst.typ() == mounts.Dir:
			return refusal(op, to, fault.IsDir, nil)
		case missing == nil && src.typ() == mounts.Dir:
			return refusal(op, to, fault.NotDir, nil)
		}
		moved := b.own.move()
		err = b.move(ctx, w, b.path(from), b.path(to), missing == nil)
		moved(err)
		b.folders.drop(from, to)
		if err != nil {
			return b.moveRefused(ctx, w, from, to, err)
		}
		if missing == nil && src == dst {
			// rename(2) between two hard links of one file does nothing, and the protocol tells neither links nor inodes: of two files that look
			// the same, the one that is still there goes.
			if still, err := w.lstat(ctx, b.path(from)).attrs(ctx); err == nil && still == src {
				return w.simple(ctx, typeRemove, b.path(from)).ok(ctx)
			}
		}
		return nil
	})
}

// moveRefused says why a rename failed of which both ends looked right. Between file systems a server only says "Failure".
func (b *Backend) moveRefused(ctx context.Context, w *wire, from, to string, err error) error {
	if codeOf(err) != codeFailure {
		return err
	}
	if err = b.explain(ctx, w, "Rename", to, err); codeOf(err) != codeFailure || !b.can[extStatvfs] {
		return err
	}
	var ids [2]uint64
	for i, name := range []string{from, to} {
		dir, _ := mounts.Split(name)
		if w.ask(ctx, func(c *client.Client) error {
			v, err := c.StatVFS(b.path(dir))
			if err == nil {
				ids[i] = v.Fsid
			}
			return err
		}) != nil {
			return err
		}
	}
	if ids[0] != ids[1] {
		return refusal("Rename", to, fault.Unsupported, errors.New("the two names lie on different file systems of the server"))
	}
	return err
}

// move renames path from to path to, replacing a file that is there. Without posix-rename, servers differ in whether they replace: where they
// do not, the old file steps aside for a moment.
func (b *Backend) move(ctx context.Context, w *wire, from, to string, replace bool) error {
	if b.can[extRename] {
		return w.extended(ctx, extRename, from, to).ok(ctx)
	}
	err := w.simple(ctx, typeRename, from, to).ok(ctx)
	if code := codeOf(err); !replace || err == nil || code != codeFailure && code != codeExists {
		return err
	}
	aside := to[:strings.LastIndexByte(to, '/')+1] + tempPrefix + rand.Text()
	if err := w.simple(ctx, typeRename, to, aside).ok(ctx); err != nil {
		return sent(err, true)
	}
	if err := w.simple(ctx, typeRename, from, to).ok(ctx); err != nil {
		<-b.clean(func(ctx context.Context, w *wire) error { return w.simple(ctx, typeRename, aside, to).ok(ctx) })
		return sent(err, true)
	}
	return sent(w.simple(ctx, typeRemove, aside).ok(ctx), true)
}

// Link implements mounts.Linker, where the server can.
func (b *Backend) Link(ctx context.Context, from, to string) error {
	const op = "Link"
	if err := b.begin(ctx, op, true, from, to); err != nil {
		return err
	}
	if !b.can[extLink] {
		return refusal(op, from, fault.Unsupported, errors.New("the server makes no hard links"))
	}
	return b.run(ctx, op, from, false, func(w *wire) error {
		g := b.guard(ctx, w, from, to)
		source := w.lstat(ctx, b.path(from))
		guarded := g.wait(ctx)
		a, err := source.attrs(ctx)
		if guarded != nil {
			return guarded
		}
		if err != nil {
			return err
		}
		if err := plainFile(op, from, a); err != nil {
			return err
		}
		err = w.ask(ctx, func(c *client.Client) error { return c.Link(b.path(from), b.path(to)) })
		return b.taken(ctx, w, op, to, err)
	})
}

// plainFile refuses what is no file: IsDir for folders, Denied for the rest.
func plainFile(op, name string, a attrs) error {
	switch a.typ() {
	case mounts.File:
		return nil
	case mounts.Dir:
		return refusal(op, name, fault.IsDir, nil)
	case mounts.Symlink:
		return refusal(op, name, fault.Denied, errLink)
	}
	return refusal(op, name, fault.Denied, errSpecial)
}

// Symlink implements mounts.Symlinker.
func (b *Backend) Symlink(ctx context.Context, target, name string) error {
	const op = "Symlink"
	if err := b.begin(ctx, op, true, name); err != nil {
		return err
	}
	if target == "" || strings.ContainsRune(target, 0) {
		return refusal(op, name, fault.Invalid, errors.New("a link needs a target"))
	}
	if name == "." {
		return refusal(op, name, fault.Exist, nil)
	}
	return b.run(ctx, op, name, false, func(w *wire) error {
		if err := b.guard(ctx, w, name).wait(ctx); err != nil {
			return err
		}
		err := w.ask(ctx, func(c *client.Client) error { return c.Symlink(target, b.path(name)) })
		b.folders.drop(name)
		return b.taken(ctx, w, op, name, err)
	})
}
