package fuse

import (
	"context"
	"slices"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// held is a lock that a process has: on a range (fcntl), or on the whole file as the holder of an open file (flock). The two kinds do not
// know of each other, as on Linux.
type held struct {
	owner      uint64
	flock      bool
	writes     bool
	start, end uint64 // inclusive
	pid        uint32
}

func (a held) overlaps(b held) bool {
	return a.flock == b.flock && a.start <= b.end && b.start <= a.end
}

func (a held) conflicts(b held) bool {
	return a.overlaps(b) && a.owner != b.owner && (a.writes || b.writes)
}

// lockList is the locks of a node. Its methods are for who holds node.mu.
type lockList struct {
	all     []held
	changed chan struct{} // closed when some are given back; nil while nobody waits
	core    *coreLock     // nil until somebody locks for writing
}

// maxLocks is how many locks a file may have.
const maxLocks = 10_000

// conflict returns a lock that is in the way of l.
func (ls *lockList) conflict(l held) (held, bool) {
	i := slices.IndexFunc(ls.all, l.conflicts)
	if i < 0 {
		return held{}, false
	}
	return ls.all[i], true
}

// clear gives back what l's owner holds of its range, and wakes those who wait.
func (ls *lockList) clear(l held) {
	var left []held
	for _, h := range ls.all {
		if h.owner != l.owner || !h.overlaps(l) {
			left = append(left, h)
			continue
		}
		if h.start < l.start {
			before := h
			before.end = l.start - 1
			left = append(left, before)
		}
		if h.end > l.end {
			after := h
			after.start = l.end + 1
			left = append(left, after)
		}
	}
	ls.all = left
	if ls.changed != nil {
		close(ls.changed)
		ls.changed = nil
	}
}

// writes reports whether anybody holds a write lock.
func (ls *lockList) writes() bool {
	return slices.ContainsFunc(ls.all, func(h held) bool { return h.writes })
}

// wait returns what is closed when something changes.
func (ls *lockList) wait() <-chan struct{} {
	if ls.changed == nil {
		ls.changed = make(chan struct{})
	}
	return ls.changed
}

// wanted makes a lock of a request. It reports false for a wish to give one back.
func wanted(in *gofuse.LkIn) (l held, locks bool) {
	l = held{owner: in.Owner, flock: in.LkFlags&gofuse.LK_FLOCK != 0, writes: in.Lk.Typ == syscall.F_WRLCK, start: in.Lk.Start, end: in.Lk.End, pid: in.Lk.Pid}
	if l.flock {
		l.start, l.end = 0, ^uint64(0)>>1
	}
	return l, in.Lk.Typ != syscall.F_UNLCK
}

// GetLk implements gofuse.RawFileSystem.
func (f *fsys) GetLk(_ <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	l, _ := wanted(in)
	n.mu.Lock()
	defer n.mu.Unlock()
	other, ok := n.locks.conflict(l)
	if !ok {
		out.Lk = in.Lk
		out.Lk.Typ = syscall.F_UNLCK
		return gofuse.OK
	}
	out.Lk = gofuse.FileLock{Start: other.start, End: other.end, Typ: syscall.F_RDLCK, Pid: other.pid}
	if other.writes {
		out.Lk.Typ = syscall.F_WRLCK
	}
	return gofuse.OK
}

// SetLk implements gofuse.RawFileSystem.
func (f *fsys) SetLk(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.lock(cancel, in, false)
}

// SetLkw implements gofuse.RawFileSystem.
func (f *fsys) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return f.lock(cancel, in, true)
}

func (f *fsys) lock(cancel <-chan struct{}, in *gofuse.LkIn, waits bool) gofuse.Status {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	l, locks := wanted(in)
	if !locks {
		n.mu.Lock()
		n.locks.clear(l)
		n.mu.Unlock()
		f.ease(n)
		return gofuse.OK
	}
	for {
		st, wait := f.tryLock(cancel, n, l)
		if st != gofuse.EAGAIN || !waits {
			return st
		}
		select {
		case <-wait:
		case <-cancel:
			return gofuse.EINTR // fcntl(2), flock(2): interrupted while waiting
		case <-f.life.Done():
			return gofuse.EINTR
		}
	}
}

// tryLock takes l if nothing is in the way. Else it returns EAGAIN and when to try again.
func (f *fsys) tryLock(cancel <-chan struct{}, n *node, l held) (gofuse.Status, <-chan struct{}) {
	n.mu.Lock()
	if _, ok := n.locks.conflict(l); ok {
		wait := n.locks.wait()
		n.mu.Unlock()
		return gofuse.EAGAIN, wait
	}
	if len(n.locks.all) >= maxLocks {
		n.mu.Unlock()
		return gofuse.Status(syscall.ENOLCK), nil
	}
	before := slices.Clone(n.locks.all)
	n.locks.clear(l)
	n.locks.all = append(n.locks.all, l)
	n.mu.Unlock()
	if !l.writes {
		f.ease(n) // it may have been a write lock before
		return gofuse.OK, nil
	}
	_, st := do(f, "lock", cancel, func(ctx context.Context) (none, error) { return none{}, f.takeCore(ctx, n) }, nil)
	if st.Ok() {
		return st, nil
	}
	// Another user's lock is in the way: the range is as it was.
	n.mu.Lock()
	n.locks.clear(l)
	for _, h := range before {
		if h.owner == l.owner && h.overlaps(l) {
			n.locks.all = append(n.locks.all, clip(h, l))
		}
	}
	n.mu.Unlock()
	f.ease(n)
	return st, f.pause()
}

// clip returns the part of h that lies in l.
func clip(h, l held) held {
	h.start, h.end = max(h.start, l.start), min(h.end, l.end)
	return h
}

// unlockOwner gives back all that somebody holds: at the close of a descriptor what a process has by fcntl (POSIX), and at the last close of
// an open file its flock.
func (f *fsys) unlockOwner(n *node, owner uint64, flock bool) {
	n.mu.Lock()
	had := len(n.locks.all)
	if had > 0 {
		n.locks.clear(held{owner: owner, flock: flock, end: ^uint64(0)})
	}
	n.mu.Unlock()
	if had > 0 {
		f.ease(n)
	}
}
