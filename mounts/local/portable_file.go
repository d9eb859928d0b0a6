//go:build !linux || portable

package local

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend. The reader is a mounts.Descriptor.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	defer b.mu.RUnlock()
	if off < 0 {
		return nil, refuse("Open", name, fault.Invalid, nil)
	}
	if err := b.regular(name); err != nil {
		return nil, fail("Open", name, err)
	}
	f, err := b.root.Open(name)
	if err != nil {
		return nil, fail("Open", name, err)
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		f.Close()
		return nil, fail("Open", name, err)
	}
	var r io.Reader = f
	if n >= 0 {
		r = io.LimitReader(f, n)
	}
	return &reader{ctx: ctx, name: name, file: f, from: r}, nil
}

type reader struct {
	ctx  context.Context
	name string
	file *os.File
	from io.Reader
}

var _ mounts.Descriptor = (*reader)(nil)

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fail("Read", r.name, err)
	}
	n, err := r.from.Read(p)
	if err != nil && err != io.EOF {
		err = fail("Read", r.name, err)
	}
	return n, err
}

func (r *reader) OSFile() *os.File { return r.file }
func (r *reader) Close() error     { return fail("Close", r.name, r.file.Close()) }

// temp makes a file in the Area.
func (b *Backend) temp() (string, *os.File, error) {
	for _, dir := range []string{mounts.Area, stagePath} {
		if err := b.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", nil, err
		}
		if i, err := b.root.Lstat(dir); err != nil || !i.IsDir() {
			return "", nil, fault.New("mounts/local.stage", mounts.Area, fault.Unavailable, err)
		}
	}
	name := path.Join(stagePath, "put-"+strings.ToLower(rand.Text()))
	f, err := b.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return name, f, err
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "Put", name, true); err != nil {
		return mounts.Info{}, err
	}
	defer b.mu.RUnlock()
	if name == "." {
		return mounts.Info{}, refuse("Put", name, fault.IsDir, nil)
	}
	err := b.put(ctx, name, src, opt)
	if err != nil {
		return mounts.Info{}, fail("Put", name, err)
	}
	i, err := b.root.Lstat(name)
	if err != nil {
		return mounts.Info{}, fail("Put", name, err)
	}
	return b.info(name, i), nil
}

func (b *Backend) put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) error {
	dir, _ := mounts.Split(name)
	if _, err := b.root.Lstat(dir); err != nil {
		return err
	}
	mode := opt.Mode.Perm()
	if mode == 0 {
		mode = b.fileMode
	}
	switch err := b.regular(name); {
	case err == nil && opt.Exclusive:
		return fs.ErrExist
	case err == nil:
		if old, err := b.root.Lstat(name); err == nil {
			mode = old.Mode().Perm()
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	temp, f, err := b.temp()
	if err != nil {
		return err
	}
	defer b.root.Remove(temp) // fails once it is in place
	defer f.Close()
	n, err := io.Copy(f, source{ctx, src})
	if err != nil {
		return err
	}
	if opt.Size >= 0 && n != opt.Size {
		return fault.New("mounts/local.write", "", fault.Invalid, errLength)
	}
	if !b.unsynced {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Close(), b.root.Chmod(temp, mode)); err != nil {
		return err
	}
	if !opt.ModTime.IsZero() {
		if err := b.root.Chtimes(temp, time.Time{}, opt.ModTime); err != nil {
			return err
		}
	}
	if opt.Exclusive {
		b.names.Lock()
		defer b.names.Unlock()
		err = b.root.Link(temp, name)
	} else {
		err = b.root.Rename(temp, name)
	}
	if err != nil {
		return err
	}
	return b.sync(name)
}

// source ends with its context.
type source struct {
	ctx context.Context
	r   io.Reader
}

func (s source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// OpenFile implements mounts.RandomAccess.
func (b *Backend) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (mounts.RandomFile, error) {
	write := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if err := b.begin(ctx, "OpenFile", name, write); err != nil {
		return nil, err
	}
	defer b.mu.RUnlock()
	if flag&os.O_APPEND != 0 {
		return nil, refuse("OpenFile", name, fault.Invalid, errAppend)
	}
	if perm = perm.Perm(); perm == 0 {
		perm = b.fileMode
	}
	if err := b.regular(name); err != nil && (flag&os.O_CREATE == 0 || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fail("OpenFile", name, err)
	}
	f, err := b.root.OpenFile(name, flag, perm)
	if err != nil {
		return nil, fail("OpenFile", name, err)
	}
	return &handle{b: b, name: name, file: f}, nil
}

type handle struct {
	b    *Backend
	name string
	file *os.File
}

var _ mounts.Descriptor = (*handle)(nil)

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.file.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fail("ReadAt", h.name, err)
	}
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	n, err := h.file.WriteAt(p, off)
	if err != nil && !errors.Is(err, os.ErrClosed) && n == 0 && strings.Contains(err.Error(), "bad file descriptor") {
		err = fs.ErrPermission
	}
	return n, fail("WriteAt", h.name, err)
}

func (h *handle) Stat() (mounts.Info, error) {
	i, err := h.file.Stat()
	if err != nil {
		return mounts.Info{}, fail("Stat", h.name, err)
	}
	return h.b.info(h.name, i), nil
}

func (h *handle) Truncate(size int64) error { return fail("Truncate", h.name, h.file.Truncate(size)) }
func (h *handle) Sync() error               { return fail("Sync", h.name, h.file.Sync()) }
func (h *handle) Close() error              { return fail("Close", h.name, h.file.Close()) }
func (h *handle) OSFile() *os.File          { return h.file }

// SetModTime implements mounts.TimeSetter.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	return b.attribute(ctx, "SetModTime", name, func() error { return b.root.Chtimes(name, time.Time{}, t) })
}

// SetMode implements mounts.ModeSetter.
func (b *Backend) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	return b.attribute(ctx, "SetMode", name, func() error { return b.root.Chmod(name, mode.Perm()) })
}

func (b *Backend) attribute(ctx context.Context, op, name string, change func() error) error {
	if err := b.begin(ctx, op, name, true); err != nil {
		return err
	}
	defer b.mu.RUnlock()
	if err := b.regular(name); err != nil && fault.KindOf(err) != fault.IsDir {
		return fail(op, name, err)
	}
	return fail(op, name, change())
}
