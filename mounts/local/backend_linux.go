//go:build linux && !portable

package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a folder of this machine. It is safe for concurrent use.
type Backend struct {
	settings
	features mounts.Features
	root     int // descriptor of the folder
	owned    int // that of its Area, locked for this process; -1 for a read-only one
	dev      uint64
	mount    uint64      // the mount the folder lies on, 0 when the kernel does not tell
	walk     atomic.Bool // openat2 is missing: walk segment by segment
	uid, gid int         // of the process
	serial   atomic.Uint64
	gate     gate
	done     chan struct{} // closed by Close: ends watches

	keptMu sync.RWMutex
	kept   map[string]int // descriptors of folders in the Area, by name, guarded by keptMu
	stale  []int          // those of folders that were deleted, guarded by keptMu

	real    string // absolute path of the folder without links, "" when unknown
	parts   atomic.Pointer[partitions]
	partsMu sync.Mutex // held while parts is made anew

	stageMu sync.Mutex
	stages  map[uint64]*stage // by mount, guarded by stageMu
	retired []*stage          // deleted by somebody, guarded by stageMu
}

var (
	_ mounts.Backend      = (*Backend)(nil)
	_ mounts.RandomAccess = (*Backend)(nil)
	_ mounts.Copier       = (*Backend)(nil)
	_ mounts.Linker       = (*Backend)(nil)
	_ mounts.TimeSetter   = (*Backend)(nil)
	_ mounts.ModeSetter   = (*Backend)(nil)
	_ mounts.Truncater    = (*Backend)(nil)
	_ mounts.Symlinker    = (*Backend)(nil)
	_ mounts.Xattrer      = (*Backend)(nil)
	_ mounts.Watcher      = (*Backend)(nil)
	_ mounts.Spacer       = (*Backend)(nil)
	_ mounts.Purger       = (*Backend)(nil)
	_ mounts.Partitioned  = (*Backend)(nil)
)

// open opens the folder, clears what dead processes left in its stages, and finds out what its file system can do.
func open(_ context.Context, s settings) (*Backend, error) {
	if s.create && !s.readOnly {
		if err := os.MkdirAll(s.path, s.dirMode); err != nil {
			return nil, fail("Open", s.path, err)
		}
	}
	fd, err := openat(unix.AT_FDCWD, s.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fail("Open", s.path, err)
	}
	b := &Backend{settings: s, root: fd, owned: -1, uid: os.Geteuid(), gid: os.Getegid(), done: make(chan struct{}), stages: map[uint64]*stage{}, kept: map[string]int{}}
	b.gate.release = b.release
	if real, err := os.Readlink(descriptorPath(fd)); err == nil {
		b.real = real
	}
	where, err := statx(fd)
	if err == nil {
		b.dev, b.mount = where.dev, where.mount
		err = b.probe()
	}
	if err == nil && !s.readOnly {
		err = b.own()
	}
	if err != nil {
		b.Close()
		return nil, fail("Open", s.path, err)
	}
	return b, nil
}

// own takes the folder for this process: two that stage, publish and clean up in one Area would destroy each other's work. The lock goes with
// the process, however it ends.
func (b *Backend) own() error {
	fd, err := b.open(mounts.Area, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	b.owned = fd
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return fault.New("mounts/local.Open", b.path, fault.Busy, errOwned)
	} else if err != nil && err != unix.EOPNOTSUPP && err != unix.ENOLCK {
		return err
	}
	return nil
}

var (
	errOwned = errors.New("another datasource or another process has this folder; one at a time may write to it")
	errGone  = errors.New("the folder was unmounted, moved or replaced; it is opened anew")
)

// there fails with Unavailable when the datasource's path no longer leads to the folder that is open: what is written to that would vanish.
func (b *Backend) there() error {
	var now, held unix.Stat_t
	if err := unix.Stat(b.path, &now); err != nil {
		return fault.New("mounts/local.Stat", b.path, fault.Unavailable, errors.Join(errGone, err))
	}
	if err := unix.Fstat(b.root, &held); err != nil {
		return err
	}
	if now.Dev != held.Dev || now.Ino != held.Ino {
		return fault.New("mounts/local.Stat", b.path, fault.Unavailable, errGone)
	}
	return nil
}

// Features implements mounts.Backend with what was found when the datasource was opened.
func (b *Backend) Features() mounts.Features { return b.features }

// Close implements mounts.Backend. Calls in flight end as they would; the last one closes the descriptors.
func (b *Backend) Close() error {
	b.gate.close(func() { close(b.done) })
	return nil
}

func (b *Backend) release() {
	b.stageMu.Lock()
	defer b.stageMu.Unlock()
	for _, s := range b.stages {
		s.drop()
	}
	for _, s := range b.retired {
		s.drop()
	}
	for _, fd := range b.kept {
		unix.Close(fd)
	}
	for _, fd := range b.stale {
		unix.Close(fd)
	}
	if b.owned >= 0 {
		unix.Close(b.owned)
	}
	unix.Close(b.root)
}

// gate counts the calls inside, so that descriptors are not closed under them.
type gate struct {
	n       atomic.Int64 // calls inside, less shut when closed
	once    sync.Once
	release func()
}

const shut = 1 << 40

func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == -shut {
		g.once.Do(g.release)
	}
}

// close shuts the gate once; first runs then.
func (g *gate) close(first func()) {
	for {
		n := g.n.Load()
		if n < 0 {
			return
		}
		if g.n.CompareAndSwap(n, n-shut) {
			first()
			if n == 0 {
				g.once.Do(g.release)
			}
			return
		}
	}
}

// begin is the door of every call: it refuses ended contexts, bad names, writes to a read-only datasource and a closed backend. When it
// returns nil the caller must gate.leave.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fail(op, name, err)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fail(op, name, err)
	}
	if write && b.readOnly {
		return refuse(op, name, fault.Denied, errReadOnly)
	}
	if !b.gate.enter() {
		return refuse(op, name, fault.Unavailable, errClosed)
	}
	return nil
}

// kindOf adds to fault.KindOf what errno values mean in the calls made here.
func kindOf(err error) fault.Kind {
	var errno unix.Errno
	if errors.As(err, &errno) {
		switch errno {
		case unix.ELOOP: // a symbolic link where none is followed
			return fault.Denied
		case unix.EXDEV:
			return fault.Unsupported
		case unix.ENODATA:
			return fault.NotExist
		case unix.E2BIG, unix.ERANGE, unix.EMLINK:
			return fault.TooLarge
		case unix.ETXTBSY:
			return fault.Busy
		case unix.ENOMEM:
			return fault.Busy
		}
	}
	return fault.KindOf(err)
}

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openat is openat(2) that closes on exec and starts again when a signal interrupts.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// open opens name below the root without following any link, be it on the way or at the end.
func (b *Backend) open(name string, flags int) (int, error) {
	if !b.walk.Load() {
		how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Resolve: beneath}
		for {
			fd, err := unix.Openat2(b.root, name, &how)
			switch err {
			case unix.EINTR, unix.EAGAIN:
				continue
			case unix.ENOSYS, unix.EPERM: // an old kernel or a sandbox; EPERM may be of the file, which the walk then finds again
			default:
				return fd, err
			}
			if err == unix.ENOSYS || !b.knows2() {
				b.walk.Store(true)
			}
			break
		}
	}
	dir, last := mounts.Split(name)
	at, err := b.descend(dir)
	if err != nil {
		return -1, err
	}
	defer b.put(at)
	return openat(at, last, flags|unix.O_NOFOLLOW, 0)
}

// knows2 reports whether openat2 works on the root itself.
func (b *Backend) knows2() bool {
	fd, err := unix.Openat2(b.root, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: beneath})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// descend walks to dir segment by segment. The caller gives the descriptor back by put.
func (b *Backend) descend(dir string) (int, error) {
	at := b.root
	if dir == "." {
		return at, nil
	}
	for segment := range strings.SplitSeq(dir, "/") {
		next, err := openat(at, segment, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		b.put(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// parent returns a descriptor of the folder that name is in, and the last segment. With synced the descriptor can be synced. The caller gives
// it back by put. A link or file on the way is ENOTDIR.
func (b *Backend) parent(name string, synced bool) (int, string, error) {
	dir, base := mounts.Split(name)
	if dir == "." {
		return b.root, base, nil
	}
	if mounts.Below(dir, mounts.Area) {
		if fd, ok := b.keep(dir); ok {
			return fd, base, nil
		}
	}
	flags := unix.O_PATH | unix.O_DIRECTORY
	if synced && !b.unsynced {
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	}
	fd, err := b.open(dir, flags)
	if err == unix.ELOOP {
		err = unix.ENOTDIR
	}
	return fd, base, err
}

// keep returns a lasting descriptor of a folder right below the root's Area: every write passes through one of those, and few exist. They are
// the gateway's own, so nobody else moves them; one that was deleted all the same is opened anew. Folders on other file systems, in Areas
// further down or mounted within this one, are not kept: nobody could unmount them.
func (b *Backend) keep(dir string) (int, bool) {
	if up, _ := mounts.Split(dir); up != mounts.Area {
		return -1, false
	}
	b.keptMu.RLock()
	fd, ok := b.kept[dir]
	b.keptMu.RUnlock()
	var st unix.Stat_t
	if ok && unix.Fstat(fd, &st) == nil && st.Nlink > 0 {
		return fd, true
	}
	b.keptMu.Lock()
	defer b.keptMu.Unlock()
	if again := b.kept[dir]; again != fd {
		return again, true
	}
	if len(b.kept) >= maxKept {
		return -1, false
	}
	fresh, err := b.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, false
	}
	if at, err := statx(fresh); err != nil || at.mount != b.mount {
		return fresh, true // put closes it, as it is not kept
	}
	if ok {
		b.stale = append(b.stale, fd) // somebody may be using it
	}
	b.kept[dir] = fresh
	return fresh, true
}

// maxKept bounds the descriptors of keep.
const maxKept = 8

// put closes a descriptor got from parent.
func (b *Backend) put(fd int) {
	if fd == b.root || fd < 0 {
		return
	}
	b.keptMu.RLock()
	defer b.keptMu.RUnlock()
	for _, kept := range b.kept {
		if kept == fd {
			return
		}
	}
	if !slices.Contains(b.stale, fd) {
		unix.Close(fd)
	}
}

// sync makes what was done in the folders durable.
func (b *Backend) sync(dirs ...int) error {
	if b.unsynced {
		return nil
	}
	for i, fd := range dirs {
		if i > 0 && fd == dirs[0] {
			continue
		}
		if err := fsync(fd); err != nil {
			return err
		}
	}
	return nil
}

// fsync is fsync(2). It is not tried again but when a signal interrupted it: what the kernel could not write it has forgotten.
func fsync(fd int) error {
	for {
		if err := unix.Fsync(fd); err != unix.EINTR {
			return err
		}
	}
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// place says where a node lies.
type place struct {
	dev, mount, ino uint64
	gid             uint32
	mode            uint32
	links           uint32
}

// statx returns where the node of a descriptor lies.
func statx(fd int) (place, error) {
	var x unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &x)
	if err == unix.ENOSYS || err == unix.EPERM {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return place{}, err
		}
		return place{dev: st.Dev, mount: st.Dev, ino: st.Ino, gid: st.Gid, mode: st.Mode, links: uint32(st.Nlink)}, nil
	}
	p := place{dev: unix.Mkdev(x.Dev_major, x.Dev_minor), ino: x.Ino, gid: x.Gid, mode: uint32(x.Mode), links: x.Nlink}
	if p.mount = p.dev; x.Mask&unix.STATX_MNT_ID != 0 {
		p.mount = x.Mnt_id
	}
	return p, err
}

// perm returns the permission bits of a stat mode.
func perm(mode uint32) fs.FileMode { return fs.FileMode(mode) & fs.ModePerm }
