//go:build linux && !portable

package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend. The reader is a mounts.Descriptor.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	defer b.gate.leave()
	if off < 0 {
		return nil, refuse("Open", name, fault.Invalid, nil)
	}
	var st unix.Stat_t
	fd, err := b.file(name, unix.O_RDONLY, &st)
	if err == nil && off > 0 {
		if _, err = unix.Seek(fd, off, io.SeekStart); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fail("Open", name, err)
	}
	_, base := mounts.Split(name)
	return &reader{ctx: ctx, name: name, info: b.info(base, &st), file: blocking(fd, name), left: n, bounded: n >= 0}, nil
}

// blocking makes an os.File of a descriptor that was opened with O_NONBLOCK only for the case that it was no file.
func blocking(fd int, name string) *os.File {
	unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0) // cannot fail on a descriptor of ours; were it to, files never block anyway
	return os.NewFile(uintptr(fd), name)
}

// reader reads an open file from its position on.
type reader struct {
	ctx     context.Context // of the Open: its end ends the reading
	name    string
	info    mounts.Info // as of the opening
	file    *os.File
	left    int64
	bounded bool
}

var (
	_ mounts.Descriptor = (*reader)(nil)
	_ mounts.Stater     = (*reader)(nil)
	_ io.WriterTo       = (*reader)(nil)
)

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fail("Read", r.name, err)
	}
	if r.bounded && int64(len(p)) > r.left {
		if r.left == 0 {
			return 0, io.EOF
		}
		p = p[:r.left]
	}
	n, err := r.file.Read(p)
	r.left -= int64(n)
	if err != nil && err != io.EOF {
		err = fail("Read", r.name, err)
	}
	return n, err
}

// WriteTo lets the kernel move the bytes where w is a socket or file. It looks at the context every few MiB.
func (r *reader) WriteTo(w io.Writer) (int64, error) {
	const step = 4 << 20
	var total int64
	for {
		if err := r.ctx.Err(); err != nil {
			return total, fail("Read", r.name, err)
		}
		want := int64(step)
		if r.bounded {
			want = min(want, r.left)
		}
		n, err := io.Copy(w, &io.LimitedReader{R: r.file, N: want})
		total += n
		r.left -= n
		if err != nil {
			return total, fail("Read", r.name, err)
		}
		if n < step {
			return total, nil
		}
	}
}

func (r *reader) OSFile() *os.File { return r.file }

func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

func (r *reader) Close() error { return fail("Close", r.name, r.file.Close()) }

const knownFlags = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_CREATE | os.O_EXCL | os.O_TRUNC | os.O_SYNC

// OpenFile implements mounts.RandomAccess. The files are mounts.Descriptors. What it creates is durable as a name when it returns; a perm of
// 0 is the datasource's default.
func (b *Backend) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	write := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if err := b.begin(ctx, "OpenFile", name, write); err != nil {
		return nil, err
	}
	defer b.gate.leave()
	if flag&os.O_APPEND != 0 {
		return nil, refuse("OpenFile", name, fault.Invalid, errAppend)
	}
	if flag&^knownFlags != 0 {
		return nil, refuse("OpenFile", name, fault.Invalid, errFlag)
	}
	fd, err := b.openFile(name, flag, perm)
	if err != nil {
		return nil, fail("OpenFile", name, err)
	}
	return &handle{b: b, name: name, file: blocking(fd, name)}, nil
}

func (b *Backend) openFile(name string, flag int, perm fs.FileMode) (int, error) {
	access := flag &^ (os.O_CREATE | os.O_EXCL | os.O_TRUNC)
	for {
		if flag&os.O_CREATE == 0 || flag&os.O_EXCL == 0 {
			var st unix.Stat_t
			fd, err := b.file(name, access, &st)
			if err == nil && flag&os.O_TRUNC != 0 && st.Size > 0 {
				if err = unix.Ftruncate(fd, 0); err != nil {
					unix.Close(fd)
				}
			}
			if err != unix.ENOENT || flag&os.O_CREATE == 0 {
				return fd, err
			}
		}
		fd, err := b.create(name, access, perm)
		if err != unix.EEXIST || flag&os.O_EXCL != 0 {
			return fd, err
		}
	}
}

// create makes an empty file that was not there.
func (b *Backend) create(name string, access int, mode fs.FileMode) (int, error) {
	if mode = mode.Perm(); mode == 0 {
		mode = b.fileMode
	}
	dir, base, err := b.parent(name, true)
	if err != nil {
		return -1, err
	}
	defer b.put(dir)
	fd, err := openat(dir, base, access|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, uint32(mode))
	if err != nil {
		return -1, err
	}
	if err = unix.Fchmod(fd, uint32(mode)); err == nil && !mounts.InArea(name) {
		err = b.sync(dir) // what is staged is nothing yet
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// handle is an open file with random access.
type handle struct {
	b      *Backend
	name   string
	file   *os.File
	broken atomic.Bool // a sync failed: what the kernel dropped is lost
}

var _ mounts.Descriptor = (*handle)(nil)

// begin refuses the use of files of a closed datasource. The caller must gate.leave.
func (h *handle) begin(op string) error {
	if !h.b.gate.enter() {
		return refuse(op, h.name, fault.Unavailable, errClosed)
	}
	return nil
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.begin("ReadAt"); err != nil {
		return 0, err
	}
	defer h.b.gate.leave()
	n, err := h.file.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fail("ReadAt", h.name, misused(err))
	}
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.begin("WriteAt"); err != nil {
		return 0, err
	}
	defer h.b.gate.leave()
	n, err := h.file.WriteAt(p, off)
	return n, fail("WriteAt", h.name, misused(err))
}

func (h *handle) Stat() (mounts.Info, error) {
	if err := h.begin("Stat"); err != nil {
		return mounts.Info{}, err
	}
	defer h.b.gate.leave()
	var st unix.Stat_t
	if err := h.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return mounts.Info{}, fail("Stat", h.name, err)
	}
	_, base := mounts.Split(h.name)
	return h.b.info(base, &st), nil
}

// control runs do on the descriptor, which is not closed meanwhile.
func (h *handle) control(do func(fd int) error) error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { err = do(int(fd)) }); err != nil {
		return err
	}
	return err
}

func (h *handle) Truncate(size int64) error {
	if err := h.begin("Truncate"); err != nil {
		return err
	}
	defer h.b.gate.leave()
	return fail("Truncate", h.name, misused(h.file.Truncate(size)))
}

// Sync implements mounts.RandomFile. Once it has failed it fails for good: the kernel marks pages clean that it could not write.
func (h *handle) Sync() error {
	if err := h.begin("Sync"); err != nil {
		return err
	}
	defer h.b.gate.leave()
	if h.broken.Load() {
		return refuse("Sync", h.name, fault.Unavailable, errUnsynced)
	}
	err := h.file.Sync()
	if err != nil {
		h.broken.Store(true)
	}
	return fail("Sync", h.name, err)
}

func (h *handle) OSFile() *os.File { return h.file }

func (h *handle) Close() error { return fail("Close", h.name, h.file.Close()) }

// misused turns EBADF, which says that the file was not opened for this, into fs.ErrPermission.
func misused(err error) error {
	if errors.Is(err, unix.EBADF) {
		return fs.ErrPermission
	}
	return err
}
