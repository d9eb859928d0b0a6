package smb

import (
	"context"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/cloudsoda/go-smb2"
)

// handle is a file or folder that is open on the server. It is safe for concurrent use; calls after close fail with os.ErrClosed.
type handle struct {
	s *session
	f *smb2.File

	mu     sync.RWMutex // held shared by calls, also by those whose callers went away: the library's Close must be alone. Taken before a place
	closed bool         // guarded by mu
}

// open opens a file for the library's flags. It takes the finalizer off, which would call the server from the collector's goroutine, and refuses
// what the library reached by following a symbolic link.
func (s *session) open(ctx context.Context, path string, flag int) (*handle, error) {
	return on(ctx, s, small, func() (*handle, error) {
		f, err := s.share.OpenFile(path, flag, 0o666)
		if err != nil {
			return nil, err
		}
		runtime.SetFinalizer(f, nil)
		if f.Name() != path {
			f.Close()
			return nil, errLink
		}
		s.addFile(1)
		return &handle{s: s, f: f}, nil
	}, func(h *handle) { h.close() })
}

// close waits for the calls under way.
func (h *handle) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	h.closed = true
	defer h.s.addFile(-1)
	_, err := run(h.s, small, func() (none, error) { return none{}, h.f.Close() })
	return err
}

// leave closes the file and waits for it, so that nothing meets it open, but not beyond the end of ctx.
func (h *handle) leave(ctx context.Context) {
	done := make(chan none)
	if !h.s.b.spawn(func() { h.close(); close(done) }) {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// use is run for a call on an open file. It does not end with a context: who calls it must not wait for it, or rely on the watch of the session.
func use[T any](h *handle, w weight, do func(f *smb2.File) (T, error)) (v T, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return v, os.ErrClosed
	}
	return run(h.s, w, func() (T, error) { return do(h.f) })
}

// both is use for a small call on two files of a session.
func both[T any](a, b *handle, do func(a, b *smb2.File) (T, error)) (v T, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return v, os.ErrClosed
	}
	return use(a, small, func(f *smb2.File) (T, error) { return do(f, b.f) })
}

// useOn is on for a call on an open file.
func useOn[T any](ctx context.Context, h *handle, w weight, do func(f *smb2.File) (T, error)) (T, error) {
	return leaving(ctx, h.s.b, func() (T, error) {
		return use(h, w, func(f *smb2.File) (T, error) { return unlessEnded(ctx, func() (T, error) { return do(f) })() })
	}, nil)
}

// stat describes the file.
func (h *handle) stat(ctx context.Context) (*smb2.FileStat, error) {
	return useOn(ctx, h, large, statOf)
}

func statOf(f *smb2.File) (*smb2.FileStat, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*smb2.FileStat)
	if !ok {
		return nil, errFrame
	}
	return stat, nil
}

// readAt fills p unless the file ends before, which is io.EOF. Until it returns, also after the end of a context, p is its own.
func (h *handle) readAt(p []byte, off int64) (int, error) {
	return use(h, data, func(f *smb2.File) (int, error) {
		n, err := f.ReadAt(p, off)
		if err == nil && n < len(p) {
			err = io.EOF
		}
		return n, err
	})
}

// writeAt writes all of p, which is its own as that of readAt.
func (h *handle) writeAt(p []byte, off int64) (int, error) {
	return use(h, data, func(f *smb2.File) (int, error) {
		n, err := f.WriteAt(p, off)
		if err == nil && n != len(p) {
			err = io.ErrShortWrite
		}
		return n, err
	})
}

// truncate gives the file another length.
func (h *handle) truncate(ctx context.Context, size int64) error {
	_, err := useOn(ctx, h, small, func(f *smb2.File) (none, error) { return none{}, f.Truncate(size) })
	return err
}

// readDir returns the next entries of a folder, and io.EOF with or after the last.
func (h *handle) readDir(ctx context.Context) ([]*smb2.FileStat, error) {
	return useOn(ctx, h, large, func(f *smb2.File) ([]*smb2.FileStat, error) {
		infos, err := f.Readdir(page)
		if status(err) == statusNoSuchFile { // the root of a volume with nothing in it
			err = io.EOF
		}
		stats := make([]*smb2.FileStat, 0, len(infos))
		for _, info := range infos {
			if stat, ok := info.Sys().(*smb2.FileStat); ok {
				stats = append(stats, stat)
			}
		}
		if err == nil && len(infos) < page { // it comes with the end only
			err = io.EOF
		}
		return stats, err
	})
}
