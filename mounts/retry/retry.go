// Package retry is a transparent wrapper that tries again what failed for the moment: with Unavailable, Busy or Timeout.
//
// What only reads is tried again whatever went wrong on the way: Stat, Open, Hash, Space, extended attributes, a file opened for reading,
// a listing as long as nothing of it was passed on. A reader of Open whose link breaks midway goes on where it was, as long as the file still
// is the same; each byte received gives it all its attempts back, so that a large download gets through a link that breaks every minute.
// A call that changes something is tried again only when its error is marked by mounts.Unsent: it never happens twice. A Put moreover
// needs its source from the start: one that was not read yet, or an io.Seeker.
//
// The pauses grow exponentially and are random between nothing and that ("full jitter"), so that clients of a server that comes back do not
// come all at once. Nothing is tried again after the caller's context has ended, or when it would end during the pause.
package retry

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Config says how often and how fast. The zero value is fit for a server on the Internet.
type Config struct {
	Attempts int           // of a call in all, 1: nothing is tried again; default 4
	Base     time.Duration // the longest pause after the first attempt, doubled after each; default 100 ms
	Max      time.Duration // the longest pause at all; default 5 s
	Logger   *slog.Logger  // nil discards
}

// Backend tries again what next fails at. It is safe for concurrent use.
type Backend struct {
	mounts.Backend // the hooked one
	next           mounts.Backend
	cfg            Config
	close          sync.Once
	closed         chan struct{}
}

var _ mounts.Provider = (*Backend)(nil)

// New returns next with retries.
func New(next mounts.Backend, cfg Config) *Backend {
	if cfg.Attempts <= 0 {
		cfg.Attempts = 4
	}
	if cfg.Base <= 0 {
		cfg.Base = 100 * time.Millisecond
	}
	if cfg.Max <= 0 {
		cfg.Max = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Backend{next: next, cfg: cfg, closed: make(chan struct{})}
	b.Backend = mounts.Around(next, mounts.Hooks{Call: b.call, List: b.list})
	return b
}

// Unwrap returns the hooked backend, which gives As capabilities that are tried again, too.
func (b *Backend) Unwrap() mounts.Backend { return b.Backend }

// Close ends pauses and closes next.
func (b *Backend) Close() error {
	b.close.Do(func() { close(b.closed) })
	return b.next.Close()
}

// Open implements mounts.Backend with a reader that goes on after its link broke.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	r, err := b.Backend.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	if _, ok := r.(mounts.Descriptor); ok {
		return r, nil // a file of this machine, to be seen as such
	}
	if _, ok := r.(mounts.Stater); !ok {
		return r, nil // nobody could tell whether it still is the same file
	}
	return &reader{b: b, ctx: ctx, name: name, off: off, n: n, from: r}, nil
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	err = b.upload(ctx, "Put", name, src, func(src io.Reader) (err error) {
		info, err = b.next.Put(ctx, name, src, opt)
		return err
	})
	return info, err
}

// Provide implements mounts.Provider for the capabilities that need more than to be called again.
func (b *Backend) Provide(target any) (known, found bool) {
	switch t := target.(type) {
	case *mounts.Conditional:
		n, ok := mounts.As[mounts.Conditional](b.next)
		if ok {
			*t = conditional{b, n}
		}
		return true, ok
	case *mounts.PartPutter:
		n, ok := mounts.As[mounts.PartPutter](b.Backend)
		if ok {
			*t = parts{n, b}
		}
		return true, ok
	case *mounts.RandomAccess:
		n, ok := mounts.As[mounts.RandomAccess](b.next)
		if ok {
			*t = files{b, n}
		}
		return true, ok
	}
	return false, false
}

type conditional struct {
	b    *Backend
	next mounts.Conditional
}

func (w conditional) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	err = w.b.upload(ctx, "PutIf", name, src, func(src io.Reader) (err error) {
		info, err = w.next.PutIf(ctx, name, tag, src, opt)
		return err
	})
	return info, err
}

// parts are the hooked ones but for PutPart, whose hook must not try again.
type parts struct {
	mounts.PartPutter
	b *Backend
}

func (w parts) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	return w.b.upload(ctx, "PutPart", id, src, func(src io.Reader) error { return w.PartPutter.PutPart(ctx, id, number, src, size) })
}

type files struct {
	b    *Backend
	next mounts.RandomAccess
}

func (w files) OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (f mounts.RandomFile, err error) {
	safe := mounts.IsUnsent
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) == 0 {
		safe = always
	}
	err = w.b.again(ctx, "OpenFile", name, safe, func() (err error) {
		f, err = w.next.OpenFile(ctx, name, flag, perm)
		return err
	})
	return f, err
}

func always(error) bool { return true }

// call stands round every call of the hooked backend.
func (b *Backend) call(ctx context.Context, op, name string, do func() error) error {
	switch op {
	case "Stat", "Open", "Hash", "Space", "Xattr", "Xattrs":
		return b.again(ctx, op, name, always, do)
	case "Put", "PutIf", "PutPart", "Close":
		return do()
	}
	return b.again(ctx, op, name, mounts.IsUnsent, do)
}

// again calls do until it succeeds, fails for good or in a way that is not safe, or the attempts are used up.
func (b *Backend) again(ctx context.Context, op, name string, safe func(error) bool, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || !passing(err) || !safe(err) {
			return err
		}
		if again, err := b.pause(ctx, op, name, attempt, err); !again {
			return err
		}
	}
}

// passing reports whether err may be over soon.
func passing(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Busy, fault.Timeout:
		return true
	}
	return false
}

// pause waits after a failed attempt, of which there were so many. When there is to be none any more, it returns the error to return.
func (b *Backend) pause(ctx context.Context, op, name string, attempt int, cause error) (again bool, err error) {
	if ended := ctx.Err(); ended != nil {
		return false, fault.New("mounts/retry."+op, name, fault.KindOf(ended), cause)
	}
	if attempt >= b.cfg.Attempts {
		return false, cause
	}
	longest := b.cfg.Max
	if shift := attempt - 1; shift < 32 && b.cfg.Base<<shift>>shift == b.cfg.Base {
		longest = min(longest, b.cfg.Base<<shift)
	}
	wait := rand.N(longest + 1)
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
		return false, cause
	}
	select {
	case <-b.closed:
		return false, cause
	default:
	}
	b.cfg.Logger.Debug("trying again", "op", op, "path", name, "attempt", attempt+1, "pause", wait, "err", cause)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, nil
	case <-b.closed:
		return false, cause
	case <-ctx.Done():
		return false, fault.New("mounts/retry."+op, name, fault.KindOf(ctx.Err()), cause)
	}
}

// upload is again for calls that read src.
func (b *Backend) upload(ctx context.Context, op, name string, src io.Reader, do func(src io.Reader) error) error {
	seeker, seekable := src.(io.Seeker)
	var start int64
	if seekable {
		var err error
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seekable = false // such as a pipe
		}
	}
	if !seekable {
		once := &untouched{r: src}
		safe := func(err error) bool { return mounts.IsUnsent(err) && !once.read }
		return b.again(ctx, op, name, safe, func() error { return do(once) })
	}
	first := true
	return b.again(ctx, op, name, mounts.IsUnsent, func() error {
		if !first {
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return fault.Wrap("mounts/retry."+op, name, err)
			}
		}
		first = false
		return do(src)
	})
}

// untouched notes whether anything was read of a source.
type untouched struct {
	r    io.Reader
	read bool
}

func (u *untouched) Read(p []byte) (int, error) {
	u.read = true
	return u.r.Read(p)
}

// list starts a listing anew as long as nothing of it was passed on.
func (b *Backend) list(ctx context.Context, dir string, all iter.Seq2[mounts.Info, error]) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		for attempt := 1; ; attempt++ {
			var failed error
			passed := false
			for info, err := range all {
				if err != nil && !passed && passing(err) {
					failed = err
					break
				}
				passed = true
				if !yield(info, err) {
					return
				}
			}
			if failed == nil {
				return
			}
			if again, err := b.pause(ctx, "List", dir, attempt, failed); !again {
				yield(mounts.Info{}, err)
				return
			}
		}
	}
}
