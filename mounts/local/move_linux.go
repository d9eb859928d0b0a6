//go:build linux && !portable

package local

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.make(ctx, "Mkdir", name, func(dir int, base string) error {
		if err := unix.Mkdirat(dir, base, uint32(b.dirMode)); err != nil {
			return err
		}
		fd, err := openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if perm(st.Mode) == b.dirMode {
			return nil
		}
		return unix.Fchmod(fd, uint32(b.dirMode)|st.Mode&unix.S_ISGID) // whatever the umask made of it
	})
}

// Symlink implements mounts.Symlinker.
func (b *Backend) Symlink(ctx context.Context, target, name string) error {
	if target == "" || len(target) >= unix.PathMax || strings.IndexByte(target, 0) >= 0 {
		return refuse("Symlink", name, fault.Invalid, nil)
	}
	return b.make(ctx, "Symlink", name, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

// Link implements mounts.Linker.
func (b *Backend) Link(ctx context.Context, from, to string) error {
	return b.make(ctx, "Link", to, func(dir int, base string) error {
		if err := mounts.ValidPath(from); err != nil {
			return err
		}
		old, oldBase, err := b.parent(from, false)
		if err != nil {
			return err
		}
		defer b.put(old)
		err = unix.Linkat(old, oldBase, dir, base, 0)
		if err == unix.EPERM && b.isDir(old, oldBase) {
			return unix.EISDIR
		}
		return err
	})
}

// make runs create in the parent of name, which gets a new entry, and makes it durable.
func (b *Backend) make(ctx context.Context, op, name string, create func(dir int, base string) error) error {
	if err := b.begin(ctx, op, name, true); err != nil {
		return err
	}
	defer b.gate.leave()
	if name == "." {
		return refuse(op, name, fault.Exist, nil)
	}
	dir, base, err := b.parent(name, true)
	if err != nil {
		return fail(op, name, err)
	}
	defer b.put(dir)
	if err = create(dir, base); err == nil {
		err = b.sync(dir)
	}
	return fail(op, name, err)
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	defer b.gate.leave()
	if name == "." {
		return refuse("Remove", name, fault.Invalid, errRoot)
	}
	dir, base, err := b.parent(name, true)
	if err != nil {
		return fail("Remove", name, err)
	}
	defer b.put(dir)
	err = unix.Unlinkat(dir, base, 0)
	if err == unix.EISDIR || err == unix.EPERM && b.isDir(dir, base) {
		err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	}
	if err == unix.EEXIST { // as some file systems say ENOTEMPTY
		err = unix.ENOTEMPTY
	}
	if err == nil {
		err = b.sync(dir)
	}
	return fail("Remove", name, err)
}

func (b *Backend) isDir(dir int, base string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// Rename implements mounts.Backend. Both names are durable when it returns.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	defer b.gate.leave()
	if err := mounts.ValidPath(to); err != nil {
		return fail("Rename", to, err)
	}
	if from == "." || to == "." {
		return refuse("Rename", from, fault.Invalid, errRoot)
	}
	src, oldBase, err := b.parent(from, true)
	if err != nil {
		return fail("Rename", from, err)
	}
	defer b.put(src)
	if from == to || mounts.Below(to, from) {
		var st unix.Stat_t
		err := unix.Fstatat(src, oldBase, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err != nil:
			return fail("Rename", from, err)
		case from == to:
			return nil
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return refuse("Rename", to, fault.Invalid, errBelow)
		}
		return fail("Rename", to, unix.ENOTDIR)
	}
	dst := src
	oldDir, _ := mounts.Split(from)
	newDir, newBase := mounts.Split(to)
	if newDir != oldDir {
		if dst, _, err = b.parent(to, true); err != nil {
			return fail("Rename", to, err)
		}
		defer b.put(dst)
	}
	if err = b.rename(src, oldBase, dst, newBase); err == nil {
		if mounts.InArea(from) {
			err = b.sync(dst) // a staged name that comes back after a power cut is cleared away at the next start
		} else {
			err = b.sync(dst, src)
		}
	}
	return fail("Rename", from, err)
}

// rename gives a free name without looking. For a taken one it looks at both: a file replaces a file in one step, nothing else is replaced.
// Were the source to become a folder in between, rename(2) itself would refuse but for an empty folder as target, which nobody misses.
func (b *Backend) rename(src int, oldBase string, dst int, newBase string) error {
	err := unix.Renameat2(src, oldBase, dst, newBase, unix.RENAME_NOREPLACE)
	if err != unix.EEXIST && err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	var old, taken unix.Stat_t
	if err := unix.Fstatat(src, oldBase, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fstatat(dst, newBase, &taken, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return unix.Renameat(src, oldBase, dst, newBase)
	} else if err != nil {
		return err
	}
	same := old.Ino == taken.Ino && old.Dev == taken.Dev
	fromDir, toDir := old.Mode&unix.S_IFMT == unix.S_IFDIR, taken.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case same && (fromDir || old.Nlink == 1): // the same name in other case, where case does not count
		return unix.Renameat(src, oldBase, dst, newBase)
	case fromDir && toDir:
		return unix.EEXIST
	case fromDir:
		return unix.ENOTDIR
	case toDir:
		return unix.EISDIR
	case same && !strings.EqualFold(oldBase, newBase): // two links of one file, which rename(2) would leave both
		return unix.Unlinkat(src, oldBase, 0)
	}
	return unix.Renameat(src, oldBase, dst, newBase)
}
