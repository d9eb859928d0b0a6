package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

var (
	errChanged = errors.New("the file changed while it was read, or nobody can tell whether it did")
	errClosed  = errors.New("closed while it was read")
)

// reader reads a file and opens it anew where its link broke. Read and Close belong to its user; Stat may be called meanwhile.
type reader struct {
	b      *Backend
	ctx    context.Context // that of Open, which its readers live by
	name   string
	off, n int64 // what Open was asked for

	got    int64 // bytes passed on
	failed int   // attempts since the last byte
	broken error // what came with the last bytes, to be dealt with by the next Read
	ended  error // the answer to every further Read

	mu     sync.Mutex
	from   io.ReadCloser // guarded by mu
	gone   bool          // from was closed, guarded by mu
	info   mounts.Info   // of the first reader, guarded by mu
	known  bool          // guarded by mu
	closed bool          // guarded by mu
}

var _ mounts.Stater = (*reader)(nil)

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for r.ended == nil {
		n, err := 0, r.broken
		if r.broken = nil; err == nil {
			n, err = r.current().Read(p)
		}
		if n > 0 {
			r.got += int64(n)
			r.failed = 0
			if err != nil && err != io.EOF {
				r.broken, err = err, nil
			}
			return n, err
		}
		if err == nil || err == io.EOF {
			return 0, err
		}
		r.ended = r.resume(err)
	}
	return 0, r.ended
}

// Stat implements mounts.Stater with what the first reader said.
func (r *reader) Stat() (mounts.Info, error) {
	r.mu.Lock()
	from, info, known := r.from, r.info, r.known
	r.mu.Unlock()
	if known {
		return info, nil
	}
	info, err := from.(mounts.Stater).Stat()
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.info, r.known = info, true
	}
	return info, err
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	return r.drop()
}

// drop closes the present reader, once.
func (r *reader) drop() error {
	r.mu.Lock()
	from, gone := r.from, r.gone
	r.gone = true
	r.mu.Unlock()
	if gone {
		return nil
	}
	return from.Close()
}

func (r *reader) current() io.Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from
}

// resume opens the file where reading stopped. It returns the error to end with.
func (r *reader) resume(cause error) error {
	if !passing(cause) {
		return cause
	}
	if r.n >= 0 && r.got >= r.n {
		return io.EOF // all was there
	}
	if r.got > 0 {
		info, err := r.Stat()
		switch {
		case err == nil && info.Size == r.off+r.got:
			return io.EOF
		case err != nil || info.Tag == "" && info.ModTime.IsZero():
			return cause
		}
	}
	r.drop() // its link is gone, and so is whatever it would say
	for {
		r.failed++
		if again, err := r.b.pause(r.ctx, "Read", r.name, r.failed, cause); !again {
			return err
		}
		left := r.n
		if left >= 0 {
			left -= r.got
		}
		from, err := r.b.next.Open(r.ctx, r.name, r.off+r.got, left)
		if err == nil {
			if err = r.accept(from); err == nil {
				return nil
			}
			from.Close()
		}
		if !passing(err) {
			return fault.New("mounts/retry.Read", r.name, fault.KindOf(cause), fmt.Errorf("%w; and then: %w", cause, err))
		}
		cause = err
	}
}

// accept goes on with from when it reads the file that was read before.
func (r *reader) accept(from io.ReadCloser) error {
	s, ok := from.(mounts.Stater)
	if !ok {
		return errChanged
	}
	r.mu.Lock()
	before, known := r.info, r.known
	r.mu.Unlock()
	if known {
		now, err := s.Stat()
		if err != nil {
			return err
		}
		if now.Size != before.Size || !now.ModTime.Equal(before.ModTime) || now.Tag != before.Tag || now.ID != before.ID {
			return errChanged
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errClosed
	}
	r.from, r.gone = from, false
	return nil
}
