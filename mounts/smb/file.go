package smb

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// OpenFile implements mounts.RandomAccess. Permission bits are none of SMB's.
func (b *Backend) OpenFile(ctx context.Context, name string, flag int, _ fs.FileMode) (mounts.RandomFile, error) {
	write := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if err := b.begin(ctx, "OpenFile", name, write); err != nil {
		return nil, err
	}
	if flag&os.O_APPEND != 0 {
		return nil, b.fail("OpenFile", name, failure{fault.Invalid, "no appending at given places"})
	}
	path, err := b.path(ctx, "OpenFile", name, flag&os.O_CREATE != 0)
	if err != nil {
		return nil, err
	}
	f, err := patient(ctx, func() (*file, error) {
		return with(ctx, b.data, flag&os.O_CREATE == 0, func(s *session) (*file, error) { return s.file(ctx, path, name, flag) })
	})
	if err != nil {
		return nil, b.fail("OpenFile", name, err)
	}
	return f, nil
}

// file opens a file. The library would follow a link: it opens without creating first, and truncates only what it knows to be no link.
func (s *session) file(ctx context.Context, path, name string, flag int) (*file, error) {
	mode := flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
	if flag&os.O_TRUNC != 0 && mode == os.O_RDONLY {
		mode = os.O_RDWR
	}
	create := flag&os.O_CREATE != 0
	open := func(more int) (*handle, error) {
		if mode != os.O_WRONLY {
			return s.open(ctx, path, mode|more)
		}
		f, err := s.open(ctx, path, os.O_RDWR|more) // the right to read what it is comes with that to read it
		if kindOf(err) == fault.Denied {
			f, err = s.open(ctx, path, mode|more)
		}
		return f, err
	}
	var f *handle
	var err error = os.ErrNotExist
	if !create || flag&os.O_EXCL == 0 {
		f, err = open(0)
	}
	made := false
	if create && kindOf(err) == fault.NotExist {
		if stat, e := s.b.lstatRaw(ctx, path); e == nil && stat.FileAttributes&attrReparse != 0 {
			return nil, errLink // to nowhere
		}
		f, err = open(os.O_CREATE | os.O_EXCL)
		made = err == nil
	}
	if err != nil {
		if kindOf(err) == fault.Denied || kindOf(err) == fault.Exist && flag&os.O_EXCL == 0 {
			if info, e := s.b.lstat(ctx, path); e == nil && info.IsDir() {
				err = failure{fault.IsDir, "is a folder"}
			}
		}
		return nil, err
	}
	h := &file{b: s.b, f: f, name: name, mode: mode, release: s.b.hold(path)}
	if !made {
		stat, err := f.stat(ctx)
		if kindOf(err) == fault.Denied && mode == os.O_WRONLY {
			stat, err = s.b.lstatRaw(ctx, path)
		}
		if err == nil && stat.FileAttributes&attrDir != 0 {
			err = failure{fault.IsDir, "is a folder"}
		}
		if err == nil && flag&os.O_TRUNC != 0 {
			err = f.truncate(ctx, 0)
		}
		if err != nil {
			h.release()
			f.leave(ctx)
			return nil, err
		}
	}
	return h, nil
}

// file is an open file. Its calls have no context; the watch of the session ends them when the server is silent.
type file struct {
	b       *Backend
	f       *handle
	name    string
	mode    int
	release func() // see Backend.hold
}

// allowed refuses what the file was not opened for.
func (h *file) allowed(op string, mode int) error {
	if h.mode != os.O_RDWR && h.mode != mode {
		return h.b.fail(op, h.name, failure{fault.Denied, "not opened for this"})
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	return h.parts("ReadAt", os.O_RDONLY, p, off, h.f.readAt)
}

// WriteAt implements io.WriterAt.
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	return h.parts("WriteAt", os.O_WRONLY, p, off, h.f.writeAt)
}

// parts does one thing to p in blocks, several at a time. It returns the bytes done before the first failure.
func (h *file) parts(op string, mode int, p []byte, off int64, do func(p []byte, off int64) (int, error)) (int, error) {
	if err := h.allowed(op, mode); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fault.New("mounts/smb."+op, h.name, fault.Invalid, nil)
	}
	if len(p) == 0 {
		return 0, nil
	}
	type result struct {
		n   int
		err error
	}
	results := make([]result, (len(p)+block-1)/block)
	var all sync.WaitGroup
	places := make(chan none, ahead)
	for i := range results {
		part := p[i*block : min(len(p), (i+1)*block)]
		step := func() { results[i].n, results[i].err = do(part, off+int64(i)*block) }
		if len(results) == 1 {
			step()
			break
		}
		places <- none{}
		all.Go(func() { step(); <-places })
	}
	all.Wait()
	n := 0
	for _, r := range results {
		if n += r.n; r.err == io.EOF {
			return n, io.EOF
		} else if r.err != nil {
			return n, h.b.fail(op, h.name, r.err)
		}
	}
	return n, nil
}

// Stat implements mounts.RandomFile.
func (h *file) Stat() (mounts.Info, error) {
	stat, err := use(h.f, large, statOf)
	if err != nil {
		return mounts.Info{}, h.b.fail("Stat", h.name, err)
	}
	_, base := mounts.Split(h.name)
	return infoOf(stat, base), nil
}

// Truncate implements mounts.RandomFile.
func (h *file) Truncate(size int64) error {
	if err := h.allowed("Truncate", os.O_WRONLY); err != nil {
		return err
	}
	_, err := use(h.f, small, func(f *smb2.File) (none, error) { return none{}, f.Truncate(size) })
	return h.b.fail("Truncate", h.name, err)
}

// Sync implements mounts.RandomFile.
func (h *file) Sync() error {
	_, err := use(h.f, small, func(f *smb2.File) (none, error) {
		if h.b.cfg.unsynced || h.mode == os.O_RDONLY { // a server refuses to flush what cannot be written
			return none{}, nil
		}
		return none{}, f.Sync()
	})
	return h.b.fail("Sync", h.name, err)
}

// Close implements io.Closer.
func (h *file) Close() error {
	err := h.f.close()
	if !errors.Is(err, os.ErrClosed) {
		h.release()
	}
	return h.b.fail("Close", h.name, err)
}

// Truncate implements mounts.Truncater.
func (b *Backend) Truncate(ctx context.Context, name string, size int64) error {
	if err := b.begin(ctx, "Truncate", name, true); err != nil {
		return err
	}
	if size < 0 {
		return fault.New("mounts/smb.Truncate", name, fault.Invalid, nil)
	}
	path, err := b.path(ctx, "Truncate", name, false)
	if err != nil {
		return err
	}
	_, err = patient(ctx, func() (none, error) {
		return with(ctx, b.data, true, func(s *session) (none, error) {
			h, err := s.file(ctx, path, name, os.O_WRONLY)
			if err != nil {
				return none{}, err
			}
			err = h.f.truncate(ctx, size)
			h.release()
			h.f.leave(ctx)
			return none{}, err
		})
	})
	return b.fail("Truncate", name, err)
}

// mostCopied is what the library copies right: above, it copies the first 16 MiB again and again.
const mostCopied = 16 << 20

// CopyFile implements mounts.Copier: the server copies, to a temporary file that is then renamed. Above 16 MiB it is Unsupported.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	if err := b.begin(ctx, "CopyFile", from, true); err != nil {
		return mounts.Info{}, err
	}
	if err := mounts.ValidPath(to); err != nil {
		return mounts.Info{}, fault.Wrap("mounts/smb.CopyFile", to, err)
	}
	path, err := b.path(ctx, "CopyFile", from, false)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.lstat(ctx, path)
	switch {
	case err != nil:
	case info.IsDir():
		err = failure{fault.IsDir, "is a folder"}
	case info.Type != mounts.File:
		err = errLink
	case info.Size > mostCopied:
		err = failure{fault.Unsupported, "too large to be copied by the server"}
	}
	if err != nil {
		return mounts.Info{}, b.fail("CopyFile", from, err)
	}
	return b.put(ctx, "CopyFile", to, mounts.PutOptions{Size: -1}, func(ctx context.Context, t *temp) error {
		if err := t.ready(ctx); err != nil {
			return err
		}
		f, err := patient(ctx, func() (*handle, error) { return t.f.s.open(ctx, path, os.O_RDONLY) })
		if err != nil {
			return err
		}
		defer f.leave(ctx)
		stat, err := f.stat(ctx)
		if err != nil || stat.EndOfFile == 0 {
			return err
		}
		if stat.EndOfFile > mostCopied || stat.FileAttributes&attrDir != 0 { // not what it was
			return failure{fault.Unsupported, "the file has changed"}
		}
		n, err := leaving(ctx, b, func() (int64, error) {
			return both(t.f, f, func(to, from *smb2.File) (int64, error) { return to.ReadFrom(from) })
		}, nil)
		if err == nil && n != stat.EndOfFile {
			err = errors.New("the server copied another number of bytes than there are")
		}
		return err
	})
}
