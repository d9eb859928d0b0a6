package webdav

import (
	"context"
	"io"
	"net/http"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	if name == "." {
		return fail("Mkdir", name, fault.Exist, nil)
	}
	if b.kind.remakes {
		switch _, err := b.stat(ctx, name); {
		case err == nil:
			return fail("Mkdir", name, fault.Exist, nil)
		case fault.KindOf(err) != fault.NotExist && fault.KindOf(err) != fault.NotDir:
			return wrap("Mkdir", name, err)
		}
	}
	err := b.mkcol(ctx, name)
	switch code := statusOf(err); {
	case err == nil:
		b.dirs.likely(name)
		return nil
	case code == 0, code == http.StatusConflict: // RFC 4918 §9.3.1: the latter says that the parent is missing
	case code == http.StatusMethodNotAllowed && b.kind.known:
		return fail("Mkdir", name, fault.Exist, err)
	default:
		if _, serr := b.stat(ctx, name); serr == nil {
			return fail("Mkdir", name, fault.Exist, err)
		}
	}
	return b.explain(ctx, "Mkdir", name, err)
}

// Remove implements mounts.Backend. DELETE takes a folder with all that is in it, so the emptiness of one is looked at first; what is a file
// goes in one request where the server can be told to take nothing else.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return fail("Remove", name, fault.Invalid, errRoot)
	}
	if b.kind.shallow {
		err := b.remove(ctx, b.path(name), true)
		switch code := statusOf(err); {
		case err == nil, code == http.StatusNotFound, !vague(err):
			return wrap("Remove", name, err)
		}
	}
	info, err := b.stat(ctx, name)
	switch {
	case err != nil:
	case !info.IsDir():
		err = b.remove(ctx, b.path(name), false)
	default:
		var empty bool
		if empty, err = b.empty(ctx, name); err == nil && !empty {
			return fail("Remove", name, fault.NotEmpty, nil)
		}
		if err == nil {
			err = b.remove(ctx, b.folder(name), false)
		}
	}
	if err != nil && fault.KindOf(err) == fault.NotDir {
		return wrap("Remove", name, err)
	}
	return b.explain(ctx, "Remove", name, err)
}

// empty reports whether nothing is in a folder, whatever its name.
func (b *Backend) empty(ctx context.Context, dir string) (bool, error) {
	l, err := b.list(ctx, dir)
	if err != nil {
		return false, err
	}
	defer l.close()
	_, err = l.next()
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// Purge implements mounts.Purger, by one DELETE.
func (b *Backend) Purge(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Purge", name, true); err != nil {
		return err
	}
	if name == "." {
		return fail("Purge", name, fault.Invalid, errRoot)
	}
	if b.kind.slashes {
		info, err := b.stat(ctx, name)
		if err != nil {
			return b.explain(ctx, "Purge", name, err)
		}
		if info.IsDir() {
			return wrap("Purge", name, b.remove(ctx, b.folder(name), false))
		}
	}
	return b.explain(ctx, "Purge", name, b.remove(ctx, b.path(name), false))
}

// Rename implements mounts.Backend. A free target takes one request. One that is taken is looked at first, for MOVE with Overwrite: T would
// delete a folder with all that is in it.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	const op = "Rename"
	if err := b.begin(ctx, op, from, true); err != nil {
		return err
	}
	if err := mounts.ValidPath(to); err != nil {
		return wrap(op, to, err)
	}
	if from == "." || to == "." {
		return fail(op, from, fault.Invalid, errRoot)
	}
	if mounts.Below(to, from) {
		info, err := b.stat(ctx, from)
		switch {
		case err != nil:
			return b.explain(ctx, op, from, err)
		case from == to:
			return nil
		case info.IsDir():
			return fail(op, to, fault.Invalid, errBelow)
		}
		return fail(op, to, fault.NotDir, nil)
	}
	var first error
	if !b.kind.slashes && !b.kind.parents {
		first = b.move(ctx, b.path(from), b.path(to), false)
		if first == nil || !vague(first) && statusOf(first) != http.StatusPreconditionFailed {
			return wrap(op, from, first)
		}
	}
	source, dest, above := b.look(ctx, from), b.look(ctx, to), b.look(ctx, parent(to))
	s, t, up := <-source, <-dest, <-above
	src, dst := b.path(from), b.path(to)
	if s.info.IsDir() && b.kind.slashes {
		src, dst = b.folder(from), b.folder(to)
	}
	switch taken := t.err == nil; {
	case s.err != nil:
		return wrap(op, from, s.err)
	case up.err != nil:
		return wrap(op, to, up.err)
	case !up.info.IsDir():
		return fail(op, to, fault.NotDir, nil)
	case taken && s.info.IsDir() && t.info.IsDir():
		return fail(op, to, fault.Exist, nil)
	case taken && t.info.IsDir():
		return fail(op, to, fault.IsDir, nil)
	case taken && s.info.IsDir():
		return fail(op, to, fault.NotDir, nil)
	case taken && b.replace() == mounts.Refused:
		return fail(op, to, fault.Exist, nil)
	case taken:
		unlock, err := b.names.lock(ctx, to)
		if err != nil {
			return wrap(op, to, err)
		}
		defer unlock()
		return wrap(op, from, b.move(ctx, src, dst, true))
	case first != nil && statusOf(first) != http.StatusPreconditionFailed:
		return wrap(op, from, first)
	}
	err := b.move(ctx, src, dst, false)
	if statusOf(err) == http.StatusPreconditionFailed { // it came meanwhile
		return fail(op, to, fault.Exist, err)
	}
	return wrap(op, from, err)
}
