//go:build linux && !portable

package local

import (
	"context"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// attribute opens a node, changes it by its descriptor, and makes that durable.
func (b *Backend) attribute(ctx context.Context, op, name string, change func(fd int, st *unix.Stat_t) error) error {
	if err := b.begin(ctx, op, name, true); err != nil {
		return err
	}
	defer b.gate.leave()
	var st unix.Stat_t
	fd, err := b.node(name, unix.O_RDONLY, &st)
	if err != nil {
		return fail(op, name, err)
	}
	defer unix.Close(fd)
	if err = change(fd, &st); err == nil {
		err = b.sync(fd)
	}
	return fail(op, name, err)
}

// SetModTime implements mounts.TimeSetter.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	return b.attribute(ctx, "SetModTime", name, func(fd int, _ *unix.Stat_t) error {
		ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(t.UnixNano())}
		return futimens(fd, &ts)
	})
}

// SetMode implements mounts.ModeSetter. Set-ID and sticky bits stay as they are.
func (b *Backend) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return b.attribute(ctx, "SetMode", name, func(fd int, st *unix.Stat_t) error {
		return unix.Fchmod(fd, st.Mode&(unix.S_ISUID|unix.S_ISGID|unix.S_ISVTX)|uint32(mode.Perm()))
	})
}

// Truncate implements mounts.Truncater.
func (b *Backend) Truncate(ctx context.Context, name string, size int64) error {
	if err := b.begin(ctx, "Truncate", name, true); err != nil {
		return err
	}
	defer b.gate.leave()
	var st unix.Stat_t
	fd, err := b.file(name, unix.O_WRONLY, &st)
	if err != nil {
		return fail("Truncate", name, err)
	}
	defer unix.Close(fd)
	if err = unix.Ftruncate(fd, size); err == nil {
		err = b.sync(fd)
	}
	return fail("Truncate", name, err)
}

const user = "user." // the namespace of attributes that belong to nobody but users

// Xattr implements mounts.Xattrer.
func (b *Backend) Xattr(ctx context.Context, name, attr string) (value []byte, err error) {
	err = b.look(ctx, "Xattr", name, func(fd int) error {
		value, err = grow(func(buf []byte) (int, error) { return unix.Fgetxattr(fd, user+attr, buf) })
		return err
	})
	return value, err
}

// Xattrs implements mounts.Xattrer.
func (b *Backend) Xattrs(ctx context.Context, name string) (names []string, err error) {
	err = b.look(ctx, "Xattrs", name, func(fd int) error {
		list, err := grow(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
		for attr := range strings.SplitSeq(string(list), "\x00") {
			if attr, ok := strings.CutPrefix(attr, user); ok {
				names = append(names, attr)
			}
		}
		return err
	})
	return names, err
}

// SetXattr implements mounts.Xattrer.
func (b *Backend) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	if attr == "" || len(user+attr) > 255 {
		return refuse("SetXattr", name, fault.Invalid, nil)
	}
	return b.attribute(ctx, "SetXattr", name, func(fd int, _ *unix.Stat_t) error {
		return unix.Fsetxattr(fd, user+attr, value, 0)
	})
}

// RemoveXattr implements mounts.Xattrer.
func (b *Backend) RemoveXattr(ctx context.Context, name, attr string) error {
	return b.attribute(ctx, "RemoveXattr", name, func(fd int, _ *unix.Stat_t) error { return unix.Fremovexattr(fd, user+attr) })
}

// look opens a node to read of it.
func (b *Backend) look(ctx context.Context, op, name string, read func(fd int) error) error {
	if err := b.begin(ctx, op, name, false); err != nil {
		return err
	}
	defer b.gate.leave()
	if b.features.Xattr == mounts.Refused {
		return refuse(op, name, fault.Unsupported, nil)
	}
	var st unix.Stat_t
	fd, err := b.node(name, unix.O_RDONLY, &st)
	if err != nil {
		return fail(op, name, err)
	}
	defer unix.Close(fd)
	return fail(op, name, read(fd))
}

// grow reads something whose size is not known, which may grow between the question for the size and that for the value.
func grow(read func(buf []byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || len(buf) >= 1<<20 {
			return nil, err
		}
		buf = make([]byte, 4*len(buf))
	}
}
