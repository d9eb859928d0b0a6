//go:build linux && !portable

package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"iter"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	defer b.gate.leave()
	if name == "." {
		if err := b.there(); err != nil {
			return mounts.Info{}, err
		}
	}
	dir, base, err := b.parent(name, false)
	if err != nil {
		return mounts.Info{}, fail("Stat", name, err)
	}
	defer b.put(dir)
	var st unix.Stat_t
	info, err := b.stat(dir, base, &st)
	return info, fail("Stat", name, err)
}

// stat describes base in the folder dir. It uses st, so that a listing needs only one.
func (b *Backend) stat(dir int, base string, st *unix.Stat_t) (mounts.Info, error) {
	if err := unix.Fstatat(dir, base, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return mounts.Info{}, err
	}
	info := b.info(base, st)
	if info.Type == mounts.Symlink {
		var target [unix.PathMax]byte
		n, err := unix.Readlinkat(dir, base, target[:])
		if err != nil {
			return mounts.Info{}, err
		}
		info.Target = string(target[:n])
	}
	return info, nil
}

// info is what st says of the node name.
func (b *Backend) info(name string, st *unix.Stat_t) mounts.Info {
	info := mounts.Info{
		Name: name, Mode: perm(st.Mode), ID: b.id(st.Dev, st.Ino), Links: uint32(st.Nlink),
		ModTime: time.Unix(st.Mtim.Unix()).UTC(), Change: st.Ctim.Nano(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		info.Size = st.Size
	case unix.S_IFDIR:
		info.Type = mounts.Dir
	case unix.S_IFLNK:
		info.Type = mounts.Symlink
	default:
		info.Type = mounts.Other
	}
	return info
}

// id is the inode number; those of other file systems mounted below are mixed with the device, so that they do not meet.
func (b *Backend) id(dev, ino uint64) uint64 {
	if dev == b.dev {
		return ino
	}
	x := ino ^ dev*0x9E3779B97F4A7C15 // splitmix64
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return max(x^x>>31, 1)
}

// direntBuffer is what one getdents call fills: some thousand names.
type direntBuffer [64 << 10]byte

var direntBuffers = sync.Pool{New: func() any { return new(direntBuffer) }}

// List implements mounts.Backend, in the order of the file system. A name that vanishes meanwhile is left out.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir, false); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		defer b.gate.leave()
		fd, err := b.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == unix.ELOOP {
			err = unix.ENOTDIR
		}
		if err != nil {
			yield(mounts.Info{}, fail("List", dir, err))
			return
		}
		defer unix.Close(fd)
		buf := direntBuffers.Get().(*direntBuffer)
		defer direntBuffers.Put(buf)
		var st unix.Stat_t
		for {
			if err := ctx.Err(); err != nil {
				yield(mounts.Info{}, fail("List", dir, err))
				return
			}
			n, err := unix.Getdents(fd, buf[:])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				yield(mounts.Info{}, fail("List", dir, err))
				return
			}
			if n <= 0 {
				return
			}
			for rest := buf[:n]; len(rest) > 0; {
				var e entry
				if e, rest = dirent(rest); e.name == "" || mounts.ValidName(e.name) != nil {
					continue
				}
				info, err := b.stat(fd, e.name, &st)
				if err == unix.ENOENT {
					continue
				}
				if err != nil {
					yield(mounts.Info{}, fail("List", mounts.Join(dir, e.name), err))
					return
				}
				if !yield(info, nil) {
					return
				}
			}
		}
	}
}

// entry is a name in a folder and its DT_ type, which may be unknown.
type entry struct {
	name string
	typ  byte
}

// dirent takes the first record off buf: struct linux_dirent64, an inode number and an offset of 8 bytes, the record's length of 2, a type
// of 1, and the name up to a zero byte. A deleted entry and "." and ".." have the name "".
func dirent(buf []byte) (e entry, rest []byte) {
	const header = 19
	if len(buf) < header {
		return entry{}, nil
	}
	size := int(binary.NativeEndian.Uint16(buf[16:]))
	if size < header || size > len(buf) {
		return entry{}, nil
	}
	raw := buf[header:size]
	if end := bytes.IndexByte(raw, 0); end >= 0 {
		raw = raw[:end]
	}
	if binary.NativeEndian.Uint64(buf) == 0 || string(raw) == "." || string(raw) == ".." {
		return entry{}, buf[size:]
	}
	return entry{string(raw), buf[18]}, buf[size:]
}

// Space implements mounts.Spacer: what is free is what the process may use.
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return mounts.Space{}, err
	}
	defer b.gate.leave()
	var st unix.Statfs_t
	if err := unix.Fstatfs(b.root, &st); err != nil {
		return mounts.Space{}, fail("Space", ".", err)
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return mounts.Space{
		Total: int64(st.Blocks) * unit, Used: int64(st.Blocks-st.Bfree) * unit, Free: int64(st.Bavail) * unit,
	}, nil
}

// node opens a file or folder to change its attributes by its descriptor. Links and special files are Denied.
func (b *Backend) node(name string, flags int, st *unix.Stat_t) (int, error) {
	fd, err := b.open(name, flags|unix.O_NONBLOCK)
	if err == unix.ELOOP {
		err = b.onTheWay(name)
	}
	if err == unix.ENXIO { // a pipe without a reader, or a socket
		err = fault.New("mounts/local.open", "", fault.Denied, errSpecial)
	}
	if err != nil {
		return -1, err
	}
	if err = unix.Fstat(fd, st); err == nil {
		if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
			err = fault.New("mounts/local.open", "", fault.Denied, errSpecial)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// file is node for files alone.
func (b *Backend) file(name string, flags int, st *unix.Stat_t) (int, error) {
	fd, err := b.node(name, flags, st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		unix.Close(fd)
		return -1, unix.EISDIR
	}
	return fd, err
}

// onTheWay tells a link on the way (ENOTDIR) from one at the end (ELOOP).
func (b *Backend) onTheWay(name string) error {
	dir, _, err := b.parent(name, false)
	if err != nil {
		return err
	}
	b.put(dir)
	return fault.New("mounts/local.open", "", fault.Denied, errSymlink)
}
