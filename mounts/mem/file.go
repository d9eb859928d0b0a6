package mem

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const maxFile = 1 << 32 // of random access files: a sparse write must not eat the machine

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fail("Open", name, fault.Invalid, nil)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	node, err := b.file("Open", name)
	if err != nil {
		return nil, err
	}
	_, base := mounts.Split(name)
	return &reader{ctx: ctx, b: b, name: name, info: b.info(node, base), node: node, off: off, left: n, bounded: n >= 0}, nil
}

// file returns the inode of a regular file. The caller holds mu.
func (b *Backend) file(op, name string) (*inode, error) {
	n, kind := b.find(name)
	switch {
	case kind != 0:
		return nil, fail(op, name, kind, nil)
	case n.typ == mounts.Dir:
		return nil, fail(op, name, fault.IsDir, nil)
	case n.typ != mounts.File:
		return nil, fail(op, name, fault.Denied, errNoFile)
	}
	return n, nil
}

// reader reads an inode, which stays what it is when its name is given to another.
type reader struct {
	ctx     context.Context
	b       *Backend
	name    string
	info    mounts.Info // as of the opening
	node    *inode
	off     int64
	left    int64
	bounded bool
	closed  bool
}

func (r *reader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, fail("Read", r.name, fault.Invalid, os.ErrClosed)
	}
	if err := r.b.begin(r.ctx, "Read", r.name, false); err != nil {
		return 0, err
	}
	if r.bounded && int64(len(p)) > r.left {
		p = p[:r.left]
		if r.left == 0 {
			return 0, io.EOF
		}
	}
	n := r.node.readAt(p, r.off)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	r.off += int64(n)
	r.left -= int64(n)
	return n, nil
}

func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

func (r *reader) Close() error { r.closed = true; return nil }

func (n *inode) readAt(p []byte, off int64) int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if off >= int64(len(n.data)) {
		return 0
	}
	return copy(p, n.data[off:])
}

// resize sets the length of n's data. The caller holds n.mu.
func (b *Backend) resize(n *inode, size int64) error {
	if size > maxFile {
		return fault.New("mounts/mem.resize", "", fault.TooLarge, nil)
	}
	grow := size - int64(len(n.data))
	if !b.claim(grow) {
		return fault.New("mounts/mem.resize", "", fault.NoSpace, nil)
	}
	if grow <= 0 {
		n.data = n.data[:size]
		return nil
	}
	old := len(n.data)
	n.data = slices.Grow(n.data, int(grow))[:size]
	clear(n.data[old:])
	return nil
}

// OpenFile implements mounts.RandomAccess.
func (b *Backend) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	write := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if err := b.begin(ctx, "OpenFile", name, write); err != nil {
		return nil, err
	}
	if flag&os.O_APPEND != 0 {
		return nil, fail("OpenFile", name, fault.Invalid, errors.New("no appending at given places"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.file("OpenFile", name)
	switch {
	case err == nil && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, fail("OpenFile", name, fault.Exist, nil)
	case fault.KindOf(err) == fault.NotExist && err != nil && flag&os.O_CREATE != 0:
		dir, base, kind := b.parent(name)
		if kind != 0 {
			return nil, fail("OpenFile", name, kind, nil)
		}
		n = b.inode(mounts.File, uint32(perm&fs.ModePerm))
		b.enter(dir, base, n)
		b.tell(name)
	case err != nil:
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if flag&os.O_TRUNC != 0 {
		if err := b.resize(n, 0); err != nil {
			return nil, fault.Wrap("mounts/mem.OpenFile", name, err)
		}
		b.touchLocked(n, true)
	}
	n.open++
	_, base := mounts.Split(name)
	mode := flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
	return &handle{b: b, node: n, name: name, base: base, read: mode != os.O_WRONLY, write: mode != os.O_RDONLY}, nil
}

// handle is an open file. Its writes are seen by everybody at once.
type handle struct {
	b           *Backend
	node        *inode
	name, base  string
	read, write bool
	closed      atomic.Bool
}

func (h *handle) begin(op string, allowed bool) error {
	switch {
	case h.closed.Load():
		return fail(op, h.name, fault.Invalid, os.ErrClosed)
	case h.b.closed.Load():
		return fail(op, h.name, fault.Unavailable, errClosed)
	case !allowed:
		return fail(op, h.name, fault.Denied, errors.New("not opened for this"))
	}
	return nil
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.begin("ReadAt", h.read); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fail("ReadAt", h.name, fault.Invalid, nil)
	}
	n := h.node.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.begin("WriteAt", h.write); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fail("WriteAt", h.name, fault.Invalid, nil)
	}
	n := h.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if end := off + int64(len(p)); end > int64(len(n.data)) {
		if err := h.b.resize(n, end); err != nil {
			return 0, fault.Wrap("mounts/mem.WriteAt", h.name, err)
		}
	}
	h.b.touchLocked(n, true)
	return copy(n.data[off:], p), nil
}

func (h *handle) Stat() (mounts.Info, error) {
	if err := h.begin("Stat", true); err != nil {
		return mounts.Info{}, err
	}
	h.b.mu.RLock()
	defer h.b.mu.RUnlock()
	return h.b.info(h.node, h.base), nil
}

func (h *handle) Truncate(size int64) error {
	if err := h.begin("Truncate", h.write); err != nil {
		return err
	}
	return h.b.truncate(h.node, h.name, size)
}

func (h *handle) Sync() error {
	if err := h.begin("Sync", true); err != nil {
		return err
	}
	h.b.tell(h.name)
	return nil
}

func (h *handle) Close() error {
	if h.closed.Swap(true) {
		return fail("Close", h.name, fault.Invalid, os.ErrClosed)
	}
	n := h.node
	n.mu.Lock()
	if n.open--; n.gone && n.open == 0 {
		h.b.used.Add(-int64(len(n.data)))
	}
	n.mu.Unlock()
	if h.write {
		h.b.tell(h.name)
	}
	return nil
}

func (b *Backend) truncate(n *inode, name string, size int64) error {
	if size < 0 {
		return fail("Truncate", name, fault.Invalid, nil)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := b.resize(n, size); err != nil {
		return fault.Wrap("mounts/mem.Truncate", name, err)
	}
	b.touchLocked(n, true)
	return nil
}

// Truncate implements mounts.Truncater.
func (b *Backend) Truncate(ctx context.Context, name string, size int64) error {
	if err := b.begin(ctx, "Truncate", name, true); err != nil {
		return err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, err := b.file("Truncate", name)
	if err == nil {
		err = b.truncate(n, name, size)
	}
	if err == nil {
		b.tell(name)
	}
	return err
}

// CopyFile implements mounts.Copier.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	if err := b.begin(ctx, "CopyFile", from, true); err != nil {
		return mounts.Info{}, err
	}
	if err := mounts.ValidPath(to); err != nil {
		return mounts.Info{}, fault.Wrap("mounts/mem.CopyFile", to, err)
	}
	b.mu.RLock()
	n, err := b.file("CopyFile", from)
	b.mu.RUnlock()
	if err != nil {
		return mounts.Info{}, err
	}
	n.mu.RLock()
	data, mode := slices.Clone(n.data), modeOf(n.mode)
	n.mu.RUnlock()
	if !b.claim(int64(len(data))) {
		return mounts.Info{}, fail("CopyFile", to, fault.NoSpace, nil)
	}
	info, err := b.publish("CopyFile", to, data, mounts.PutOptions{Mode: mode}, nil)
	if err != nil {
		b.claim(-int64(len(data)))
	}
	return info, err
}

// attribute lets do read or change the attributes of a node.
func (b *Backend) attribute(ctx context.Context, op, name string, write bool, do func(n *inode) error) error {
	if err := b.begin(ctx, op, name, write); err != nil {
		return err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, kind := b.find(name)
	if kind != 0 {
		return fail(op, name, kind, nil)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := do(n); err != nil {
		return fault.Wrap("mounts/mem."+op, name, err)
	}
	if write {
		b.touchLocked(n, false)
		b.tell(name)
	}
	return nil
}

// SetModTime implements mounts.TimeSetter.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	return b.attribute(ctx, "SetModTime", name, true, func(n *inode) error { n.mtime = t.UTC(); return nil })
}

// SetMode implements mounts.ModeSetter.
func (b *Backend) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return b.attribute(ctx, "SetMode", name, true, func(n *inode) error {
		if n.typ == mounts.Symlink {
			return fault.New("mounts/mem.SetMode", name, fault.Denied, errNoFile)
		}
		n.mode = uint32(mode & fs.ModePerm)
		return nil
	})
}

// Xattr implements mounts.Xattrer.
func (b *Backend) Xattr(ctx context.Context, name, attr string) (value []byte, err error) {
	err = b.attribute(ctx, "Xattr", name, false, func(n *inode) error {
		v, ok := n.xattrs[attr]
		if !ok {
			return fs.ErrNotExist
		}
		value = slices.Clone(v)
		return nil
	})
	return value, err
}

// SetXattr implements mounts.Xattrer.
func (b *Backend) SetXattr(ctx context.Context, name, attr string, value []byte) error {
	return b.attribute(ctx, "SetXattr", name, true, func(n *inode) error {
		if attr == "" || len(attr) > 250 {
			return fs.ErrInvalid
		}
		if n.xattrs == nil {
			n.xattrs = map[string][]byte{}
		}
		n.xattrs[attr] = slices.Clone(value)
		return nil
	})
}

// RemoveXattr implements mounts.Xattrer.
func (b *Backend) RemoveXattr(ctx context.Context, name, attr string) error {
	return b.attribute(ctx, "RemoveXattr", name, true, func(n *inode) error {
		if _, ok := n.xattrs[attr]; !ok {
			return fs.ErrNotExist
		}
		delete(n.xattrs, attr)
		return nil
	})
}

// Xattrs implements mounts.Xattrer; the names are sorted.
func (b *Backend) Xattrs(ctx context.Context, name string) (names []string, err error) {
	err = b.attribute(ctx, "Xattrs", name, false, func(n *inode) error {
		for attr := range n.xattrs {
			names = append(names, attr)
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// Space implements mounts.Spacer; the total is -1 without a limit.
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return mounts.Space{}, err
	}
	used, limit := b.used.Load(), b.capacity.Load()
	if limit == 0 {
		return mounts.Space{Total: -1, Used: used, Free: -1}, nil
	}
	return mounts.Space{Total: limit, Used: used, Free: max(limit-used, 0)}, nil
}

// Hash implements mounts.Hasher for md5, sha1, sha256 and crc32c.
func (b *Backend) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	if err := b.begin(ctx, "Hash", name, false); err != nil {
		return nil, err
	}
	var h hash.Hash
	switch algo {
	case "md5":
		h = md5.New()
	case "sha1":
		h = sha1.New()
	case "sha256":
		h = sha256.New()
	case "crc32c":
		h = crc32.New(crc32.MakeTable(crc32.Castagnoli))
	default:
		return nil, fail("Hash", name, fault.Unsupported, errors.New("unknown digest "+algo))
	}
	b.mu.RLock()
	n, err := b.file("Hash", name)
	b.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	h.Write(n.data)
	return h.Sum(nil), nil
}
