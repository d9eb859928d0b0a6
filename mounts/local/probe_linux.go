//go:build linux && !portable

package local

import (
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cellgate/mounts"
)

// file systems whose changes from elsewhere inotify does not see, and those that lie in memory
var (
	remote = map[int64]bool{
		unix.NFS_SUPER_MAGIC: true, unix.SMB_SUPER_MAGIC: true, unix.SMB2_SUPER_MAGIC: true, unix.CIFS_SUPER_MAGIC: true,
		unix.FUSE_SUPER_MAGIC: true, unix.V9FS_MAGIC: true, unix.CEPH_SUPER_MAGIC: true, unix.AFS_SUPER_MAGIC: true, unix.CODA_SUPER_MAGIC: true,
	}
	volatile = map[int64]bool{unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true}
)

// probe finds out what the file system can do by doing it in the stage, which proves too that the folder can be written.
func (b *Backend) probe() error {
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(b.root, &fsys); err != nil {
		return err
	}
	kind := int64(uint32(fsys.Type))
	f := &b.features
	f.Space, f.RandomAccess = mounts.Native, mounts.Native
	f.MaxName, f.MaxPath, f.ModTimeGrain = min(int(fsys.Namelen), mounts.MaxName), 1<<16, 1
	if !remote[kind] && b.watches > 0 && canWatch(b.root) {
		f.Watch = mounts.Native
	}
	if b.readOnly {
		f.CaseSensitive = true
		_, err := unix.Flistxattr(b.root, nil)
		f.Xattr = native(err == nil)
		return nil
	}
	f.AtomicReplace, f.Rename, f.Durable = mounts.Native, mounts.Native, native(!b.unsynced && !volatile[kind])

	f.CaseSensitive = b.sensitive()
	s, temp, fd, err := b.temp(b.mount, "probe")
	if err == unix.ENOSPC || err == unix.EDQUOT {
		return nil // reading and deleting go on; what was not seen to work is refused
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer unix.Unlinkat(s.fd, temp, 0)
	f.Xattr = native(unix.Fsetxattr(fd, user+"cellgate.probe", []byte("1"), 0) == nil)

	want := time.Unix(1e9, 123456789)
	var st unix.Stat_t
	if err := setTimes(s.fd, temp, want); err == nil && unix.Fstat(fd, &st) == nil {
		f.ModTime, f.ModTimeGrain = mounts.Native, grain(want, time.Unix(st.Mtim.Unix()))
	}
	other := temp + "-x"
	if unix.Linkat(s.fd, temp, s.fd, other, 0) == nil {
		f.HardLink = mounts.Native
		unix.Unlinkat(s.fd, other, 0)
	}
	if unix.Symlinkat("nowhere", s.fd, other) == nil {
		f.Symlink = mounts.Native
		unix.Unlinkat(s.fd, other, 0)
	}
	return nil
}

func native(ok bool) mounts.Support {
	if ok {
		return mounts.Native
	}
	return mounts.Refused
}

// grain is the coarsest usual step that makes got of want.
func grain(want, got time.Time) time.Duration {
	for _, step := range []time.Duration{1, 100, time.Microsecond, time.Millisecond, time.Second} {
		if want.Truncate(step).Equal(got) {
			return step
		}
	}
	return 2 * time.Second
}

// sensitive reports whether the Area and its name in capitals are two names. It writes nothing: also a full disk tells.
func (b *Backend) sensitive() bool {
	if err := unix.Mkdirat(b.root, mounts.Area, 0o700); err != nil && err != unix.EEXIST {
		return true
	}
	var area, capitals unix.Stat_t
	if unix.Fstatat(b.root, mounts.Area, &area, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return true
	}
	return unix.Fstatat(b.root, strings.ToUpper(mounts.Area), &capitals, unix.AT_SYMLINK_NOFOLLOW) != nil || capitals.Ino != area.Ino || capitals.Dev != area.Dev
}

// canWatch reports whether inotify can be used on descriptors, for which /proc is needed.
func canWatch(root int) bool {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, descriptorPath(root), unix.IN_DELETE_SELF)
	return err == nil
}

// descriptorPath is a path that stands for the node of a descriptor whatever its name is by now.
func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// futimens is futimens(3), which x/sys/unix lacks: utimensat(2) without a path.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
