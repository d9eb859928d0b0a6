package fuse

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
)

// buffers are what requests pass through: their own memory is used again when a call is left alone.
var buffers = [...]sync.Pool{
	{New: func() any { b := make([]byte, 16<<10); return &b }},
	{New: func() any { b := make([]byte, 128<<10); return &b }},
	{New: func() any { b := make([]byte, maxWrite); return &b }},
}

// buffer returns one of at least n bytes, cut to n, and what gives it back.
func buffer(n int) ([]byte, func()) {
	for i := range buffers {
		if p := buffers[i].Get().(*[]byte); len(*p) >= n {
			return (*p)[:n], func() { buffers[i].Put(p) }
		} else {
			buffers[i].Put(p)
		}
	}
	return make([]byte, n), func() {}
}

// result is what was read, in a buffer that is given back when it has been sent.
type result struct {
	gofuse.ReadResult
	back func()
}

// Done implements gofuse.ReadResult.
func (r result) Done() { r.back() }

// Read implements gofuse.RawFileSystem.
func (f *fsys) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return nil, gofuse.EBADF
	}
	size, off := min(int(in.Size), len(buf)), int64(in.Offset)
	type read struct {
		data []byte
		back func()
	}
	got, st := do(f, "read", cancel, func(context.Context) (read, error) {
		data, back := buffer(size)
		n, err := h.fl.readAt(data, off)
		if err != nil && err != io.EOF {
			back()
			return read{}, err
		}
		return read{data[:n], back}, nil
	}, func(got read) { got.back() })
	if !st.Ok() {
		return nil, st
	}
	return result{gofuse.ReadResultData(got.data), got.back}, gofuse.OK
}

// source returns what is read, nil when nothing can be.
func (fl *file) source() io.ReaderAt {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	switch {
	case fl.w != nil && fl.reads:
		return fl.w
	case fl.kept != nil:
		return fl.kept
	case fl.r != nil:
		return fl.r
	}
	return nil
}

// readAt reads what the file holds now.
func (fl *file) readAt(p []byte, off int64) (int, error) {
	for {
		src := fl.source()
		if src == nil {
			return 0, syscall.EBADF
		}
		n, err := src.ReadAt(p, off)
		if err == nil || err == io.EOF || fl.source() == src {
			if errnoOf(err) == syscall.EBUSY {
				err = syscall.ESTALE // somebody else has replaced it, on a datasource that does not keep the old one
			}
			return n, err
		}
	}
}

// Write implements gofuse.RawFileSystem.
func (f *fsys) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	h := f.handle(in.Fh)
	if h == nil || !h.writes {
		return 0, gofuse.EBADF
	}
	own, back := buffer(len(data))
	copy(own, data)
	off := int64(in.Offset)
	n, st := do(f, "write", cancel, func(context.Context) (int, error) {
		defer back()
		return h.fl.writeAt(own, off)
	}, nil)
	return uint32(n), st
}

func (fl *file) writeAt(p []byte, off int64) (int, error) {
	for {
		fl.mu.Lock()
		w, broken := fl.w, fl.broken
		fl.mu.Unlock()
		switch {
		case broken != nil:
			return 0, broken
		case w == nil:
			return 0, syscall.EBADF
		}
		n, err := w.WriteAt(p, off)
		if err == nil {
			fl.changed()
			return n, nil
		}
		fl.mu.Lock()
		same := fl.w == w
		fl.mu.Unlock()
		if same {
			return n, err
		}
	}
}

// Fallocate implements gofuse.RawFileSystem. Where the file is not a local one, room cannot be set aside: only the size grows.
func (f *fsys) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	h := f.handle(in.Fh)
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	switch {
	case h == nil || !h.writes:
		return gofuse.EBADF
	case in.Mode&^known != 0:
		return gofuse.Status(syscall.EOPNOTSUPP)
	case in.Offset > 1<<62 || in.Length > 1<<62:
		return gofuse.Status(syscall.EFBIG)
	}
	mode, off, length := in.Mode, int64(in.Offset), int64(in.Length)
	_, st := do(f, "fallocate", cancel, func(ctx context.Context) (none, error) {
		if err := h.fl.gate.lock(ctx); err != nil {
			return none{}, err
		}
		defer h.fl.gate.unlock()
		h.fl.mu.Lock()
		w, local := h.fl.w, h.fl.wos
		h.fl.mu.Unlock()
		switch {
		case w == nil:
			return none{}, syscall.EBADF
		case local != nil:
			return none{}, unix.Fallocate(int(local.Fd()), mode, off, length)
		case mode&unix.FALLOC_FL_KEEP_SIZE != 0 && mode != unix.FALLOC_FL_KEEP_SIZE, mode&unix.FALLOC_FL_ZERO_RANGE != 0:
			return none{}, syscall.EOPNOTSUPP
		case mode == unix.FALLOC_FL_KEEP_SIZE || off+length <= w.Info().Size:
			return none{}, nil
		}
		if err := w.Truncate(off + length); err != nil {
			return none{}, err
		}
		h.fl.changed()
		return none{}, nil
	}, nil)
	if st.Ok() {
		h.n.touched()
	}
	return st
}

// Lseek implements gofuse.RawFileSystem: SEEK_DATA and SEEK_HOLE. Files that are not local have no holes but the one behind the end.
func (f *fsys) Lseek(_ <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	off := int64(in.Offset)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return gofuse.EINVAL
	}
	h.fl.mu.Lock()
	defer h.fl.mu.Unlock()
	local := h.fl.wos
	if local == nil {
		local = h.fl.ros
	}
	if local != nil {
		at, err := unix.Seek(int(local.Fd()), off, int(in.Whence))
		out.Offset = uint64(at)
		return gofuse.Status(errnoOf(err))
	}
	var size int64
	switch {
	case h.fl.w != nil:
		size = h.fl.w.Info().Size
	case h.fl.r != nil:
		size = h.fl.r.Info().Size
	}
	if off < 0 || off >= size {
		return gofuse.Status(syscall.ENXIO)
	}
	out.Offset = uint64(off)
	if in.Whence == unix.SEEK_HOLE {
		out.Offset = uint64(size)
	}
	return gofuse.OK
}

// copyStep is how much one request copies: the caller asks again for the rest, and may be interrupted in between.
const copyStep = 64 << 20

// CopyFileRange implements gofuse.RawFileSystem. Between local files the file system does it, perhaps without copying anything.
func (f *fsys) CopyFileRange(cancel <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	from, to := f.handle(in.FhIn), f.handle(in.FhOut)
	if from == nil || to == nil || !to.writes {
		return 0, gofuse.EBADF
	}
	left, src, dst := int64(min(in.Len, copyStep)), int64(in.OffIn), int64(in.OffOut)
	if src < 0 || dst < 0 {
		return 0, gofuse.EINVAL
	}
	n, st := do(f, "copy", cancel, func(ctx context.Context) (int64, error) {
		a, b := from.fl.locals(false), to.fl.locals(true)
		if a != nil && b != nil {
			n, err := unix.CopyFileRange(int(a.Fd()), &src, int(b.Fd()), &dst, int(left), 0)
			if err == nil {
				return int64(n), nil
			}
		}
		buf, back := buffer(maxWrite)
		defer back()
		var done int64
		for done < left && ctx.Err() == nil {
			k, err := from.fl.readAt(buf[:min(int64(len(buf)), left-done)], src+done)
			if k > 0 {
				var w int
				w, werr := to.fl.writeAt(buf[:k], dst+done)
				if done += int64(w); werr != nil {
					err = werr
				}
			}
			if err != nil && err != io.EOF && done == 0 {
				return 0, err
			}
			if err != nil || k == 0 {
				break
			}
		}
		if done == 0 && ctx.Err() != nil {
			return 0, fault.New("fuse.copy", "", fault.Canceled, ctx.Err())
		}
		return done, nil
	}, nil)
	return uint32(n), st
}

// locals returns the local file that is read, or written, nil when there is none.
func (fl *file) locals(writes bool) *os.File {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.wos != nil || writes {
		return fl.wos
	}
	return fl.ros
}
