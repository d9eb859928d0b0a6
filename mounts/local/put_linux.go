//go:build linux && !portable

package local

import (
	"context"
	"io"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// block is how much of a source is gathered before it is written.
type block [256 << 10]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return b.publish(ctx, "Put", name, opt, func(fd int) error { return fill(ctx, fd, src, opt.Size) })
}

// publish stages a file that write fills, and puts it in the place of name. A failure before the rename leaves no trace.
func (b *Backend) publish(ctx context.Context, op, name string, opt mounts.PutOptions, write func(fd int) error) (mounts.Info, error) {
	if err := b.begin(ctx, op, name, true); err != nil {
		return mounts.Info{}, err
	}
	defer b.gate.leave()
	if name == "." {
		return mounts.Info{}, refuse(op, name, fault.IsDir, nil)
	}
	dir, base, err := b.parent(name, true)
	if err != nil {
		return mounts.Info{}, fail(op, name, err)
	}
	defer b.put(dir)
	info, err := b.replace(dir, base, name, opt, write)
	return info, fail(op, name, err)
}

func (b *Backend) replace(dir int, base, name string, opt mounts.PutOptions, write func(fd int) error) (mounts.Info, error) {
	at, err := statx(dir)
	if err != nil {
		return mounts.Info{}, err
	}
	mode, owner, err := b.successor(dir, base, at, opt)
	if err != nil {
		return mounts.Info{}, err
	}
	s, temp, fd, err := b.temp(at.mount, name)
	if err != nil {
		return mounts.Info{}, err
	}
	defer unix.Close(fd)
	published := false
	defer func() {
		if !published {
			unix.Unlinkat(s.fd, temp, 0)
		}
	}()
	if err := write(fd); err != nil {
		return mounts.Info{}, err
	}
	owner.give(fd)
	if mode != 0o600 {
		if err := unix.Fchmod(fd, uint32(mode)); err != nil {
			return mounts.Info{}, err
		}
	}
	if !opt.ModTime.IsZero() {
		if err := setTimes(s.fd, temp, opt.ModTime); err != nil {
			return mounts.Info{}, err
		}
	}
	if err := b.sync(fd); err != nil {
		return mounts.Info{}, err
	}
	if err := b.move(s.fd, temp, dir, base, opt.Exclusive); err != nil {
		return mounts.Info{}, err
	}
	published = true
	if err := b.sync(dir); err != nil {
		return mounts.Info{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return mounts.Info{}, err
	}
	return b.info(base, &st), nil
}

// owner is whom a new file is given to: -1 stands for whom it would belong to anyway.
type owner struct{ uid, gid int }

// give changes the owner as far as the process may; where it may not, files belong to it, as with any other program.
func (o owner) give(fd int) {
	if o.uid >= 0 && unix.Fchown(fd, o.uid, o.gid) == nil {
		return
	}
	if o.gid >= 0 {
		unix.Fchown(fd, -1, o.gid)
	}
}

// successor looks at what the new file base in dir replaces: it refuses what cannot be replaced and returns the permission bits and the
// owner to take over.
func (b *Backend) successor(dir int, base string, at place, opt mounts.PutOptions) (fs.FileMode, owner, error) {
	mode, own := opt.Mode.Perm(), owner{-1, -1}
	if mode == 0 {
		mode = b.fileMode
	}
	if at.mode&unix.S_ISGID != 0 {
		own.gid = int(at.gid)
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return mode, own, nil
	case err != nil:
		return 0, own, err
	case opt.Exclusive:
		return 0, own, unix.EEXIST
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if int(st.Uid) != b.uid || int(st.Gid) != b.gid {
			own = owner{int(st.Uid), int(st.Gid)}
		}
		return perm(st.Mode), own, nil
	case unix.S_IFDIR:
		return 0, own, unix.EISDIR
	case unix.S_IFLNK:
		return 0, own, fault.New("mounts/local.replace", "", fault.Denied, errSymlink)
	}
	return 0, own, fault.New("mounts/local.replace", "", fault.Denied, errSpecial)
}

// move gives the staged file its name. Exclusively, it fails with EEXIST when the name is taken, in one step.
func (b *Backend) move(from int, temp string, dir int, base string, exclusive bool) error {
	if !exclusive {
		return unix.Renameat(from, temp, dir, base)
	}
	if err := unix.Renameat2(from, temp, dir, base, unix.RENAME_NOREPLACE); err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	if err := unix.Linkat(from, temp, dir, base, 0); err != nil {
		return err
	}
	unix.Unlinkat(from, temp, 0) // else it goes with the stage
	return nil
}

// setTimes sets the modification time of base in dir.
func setTimes(dir int, base string, t time.Time) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(t.UnixNano())}
	return unix.UtimesNanoAt(dir, base, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// fill writes what src yields, which must be size bytes unless that is negative.
func fill(ctx context.Context, fd int, src io.Reader, size int64) error {
	var total int64
	if r, ok := src.(*reader); ok {
		n, err := r.splice(ctx, fd)
		if err != nil {
			return err
		}
		total = n
	}
	buf := blocks.Get().(*block)
	defer blocks.Put(buf)
	for {
		n, err := gather(ctx, src, buf[:])
		if total += int64(n); size >= 0 && total > size {
			return fault.New("mounts/local.write", "", fault.Invalid, errLength)
		}
		if err := writeAll(fd, buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if size >= 0 && total != size {
		return fault.New("mounts/local.write", "", fault.Invalid, errLength)
	}
	return nil
}

// gather reads until buf is full or src ends or fails.
func gather(ctx context.Context, src io.Reader, buf []byte) (n int, err error) {
	for empty := 0; n < len(buf) && err == nil; {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		var k int
		if k, err = src.Read(buf[n:]); k > 0 {
			n, empty = n+k, 0
		} else if empty++; empty > 100 && err == nil {
			return n, io.ErrNoProgress
		}
	}
	return n, err
}

// splice lets the kernel copy what is left of another local file. It returns what it has copied; the rest, if any, is to be read.
func (r *reader) splice(ctx context.Context, fd int) (int64, error) {
	var total int64
	const step = 8 << 20
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0, nil
	}
	for !r.bounded || r.left > 0 {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		want := step
		if r.bounded {
			want = int(min(step, r.left))
		}
		var n int
		var failed error
		if err := raw.Control(func(from uintptr) { n, failed = unix.CopyFileRange(int(from), nil, fd, nil, want, 0) }); err != nil {
			return total, err
		}
		if failed == unix.EINTR {
			continue
		}
		if failed != nil || n <= 0 {
			break
		}
		total += int64(n)
		r.left -= int64(n)
	}
	return total, nil
}

// CopyFile implements mounts.Copier: it shares the blocks where the file system can, else the kernel copies. A new file gets the
// permission bits of the former.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	if err := b.begin(ctx, "CopyFile", from, true); err != nil {
		return mounts.Info{}, err
	}
	defer b.gate.leave()
	var st unix.Stat_t
	src, err := b.file(from, unix.O_RDONLY, &st)
	if err != nil {
		return mounts.Info{}, fail("CopyFile", from, err)
	}
	r := &reader{ctx: ctx, name: from, file: blocking(src, from), left: st.Size, bounded: true}
	defer r.Close()
	return b.publish(ctx, "CopyFile", to, mounts.PutOptions{Mode: perm(st.Mode)}, func(fd int) error {
		if unix.IoctlFileClone(fd, src) == nil {
			return nil
		}
		return fill(ctx, fd, r, st.Size)
	})
}
