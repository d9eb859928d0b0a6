// Package throttle is a transparent wrapper that spares a backend, its line or its account: it limits the bytes a second each way, and the
// calls at once.
//
// The limits of calls are three of the same size: for readers, which count until they are closed, for uploads, and for all other calls. One
// for all would lock up: to copy a file is to hold a reader and to wait for an upload, and as many copies as there are places would wait for
// ever. For the same reason a listing counts while the backend works at it, and not while the loop's body does. Open files of RandomAccess
// count during their calls. Who waits is served in the order of coming, and until its context ends.
package throttle

import (
	"context"
	"io"
	"iter"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Config are the limits. Zero is none.
type Config struct {
	Read  int64 // bytes a second from the backend, of all readers together
	Write int64 // bytes a second to it
	Calls int   // readers, uploads and other calls at once, each
}

const piece = 256 << 10 // moved at once at most, so that streams take turns

// Backend is a backend with limits. It is safe for concurrent use.
type Backend struct {
	mounts.Backend // the hooked one
	next           mounts.Backend
	read, write    *flow
	readers        places
	uploads        places
	calls          places
}

// New returns next with limits.
func New(next mounts.Backend, cfg Config) *Backend {
	b := &Backend{next: next, read: newFlow(cfg.Read), write: newFlow(cfg.Write)}
	if cfg.Calls > 0 {
		b.readers, b.uploads, b.calls = make(places, cfg.Calls), make(places, cfg.Calls), make(places, cfg.Calls)
	}
	b.Backend = mounts.Around(next, mounts.Hooks{Call: b.call, List: b.list, Source: b.source, File: b.file})
	return b
}

// Unwrap returns the hooked backend, which gives As capabilities under the same limits.
func (b *Backend) Unwrap() mounts.Backend { return b.Backend }

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.readers.take(ctx, "Open", name); err != nil {
		return nil, err
	}
	r, err := b.next.Open(ctx, name, off, n)
	if err != nil {
		b.readers.leave()
		return nil, err
	}
	if b.readers == nil && b.read == nil {
		return r, nil
	}
	own := &reader{b: b, ctx: ctx, name: name, from: r}
	s, stats := r.(mounts.Stater)
	d, open := r.(mounts.Descriptor)
	open = open && b.read == nil // the kernel would read past the limit
	switch {
	case stats && open:
		return struct {
			*reader
			mounts.Stater
			mounts.Descriptor
		}{own, s, d}, nil
	case stats:
		return struct {
			*reader
			mounts.Stater
		}{own, s}, nil
	case open:
		return struct {
			*reader
			mounts.Descriptor
		}{own, d}, nil
	}
	return own, nil
}

// reader pays for what it read and gives its place back when it is closed.
type reader struct {
	b    *Backend
	ctx  context.Context // that of Open, which its readers live by
	name string
	from io.ReadCloser
	once sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.from.Read(r.b.read.limit(p))
	if late := r.b.read.wait(r.ctx, n); late != nil {
		return 0, fault.Wrap("mounts/throttle.Read", r.name, late)
	}
	return n, err
}

func (r *reader) Close() error {
	defer r.once.Do(r.b.readers.leave)
	return r.from.Close()
}

// call stands round every call of the hooked backend.
func (b *Backend) call(ctx context.Context, op, name string, do func() error) error {
	at := b.calls
	switch op {
	case "Put", "PutIf", "PutPart":
		at = b.uploads
	case "Close":
		return do()
	}
	if err := at.take(ctx, op, name); err != nil {
		return err
	}
	defer at.leave()
	return do()
}

func (b *Backend) list(ctx context.Context, dir string, all iter.Seq2[mounts.Info, error]) iter.Seq2[mounts.Info, error] {
	if b.calls == nil {
		return all
	}
	return func(yield func(mounts.Info, error) bool) {
		if err := b.calls.take(ctx, "List", dir); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		inside := true // has a place
		defer func() {
			if inside {
				b.calls.leave()
			}
		}()
		for info, err := range all {
			b.calls.leave()
			inside = false
			if !yield(info, err) {
				return
			}
			if err := b.calls.take(ctx, "List", dir); err != nil {
				yield(mounts.Info{}, err)
				return
			}
			inside = true
		}
	}
}

// source pays for what the backend reads of an upload. One that can seek still can.
func (b *Backend) source(ctx context.Context, op, name string, src io.Reader) io.Reader {
	if b.write == nil {
		return src
	}
	own := &source{b: b, ctx: ctx, op: op, name: name, from: src}
	if s, ok := src.(io.Seeker); ok {
		return struct {
			*source
			io.Seeker
		}{own, s}
	}
	return own
}

type source struct {
	b        *Backend
	ctx      context.Context // that of the upload
	op, name string
	from     io.Reader
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.from.Read(s.b.write.limit(p))
	if late := s.b.write.wait(s.ctx, n); late != nil {
		return 0, fault.Wrap("mounts/throttle."+s.op, s.name, late)
	}
	return n, err
}

// file puts an open file under the limits. Its descriptor is out of reach then, as the kernel would not keep to them.
func (b *Backend) file(_ context.Context, name string, f mounts.RandomFile) mounts.RandomFile {
	if b.calls == nil && b.read == nil && b.write == nil {
		return f
	}
	ctx, cancel := context.WithCancel(context.Background()) // the file outlives the call that opened it
	return &file{RandomFile: f, b: b, name: name, ctx: ctx, cancel: cancel}
}

type file struct {
	mounts.RandomFile
	b      *Backend
	name   string
	ctx    context.Context // ends when the file is closed
	cancel context.CancelFunc
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.b.calls.take(f.ctx, "ReadAt", f.name); err != nil {
		return 0, err
	}
	n, err := f.RandomFile.ReadAt(p, off)
	f.b.calls.leave()
	if late := f.b.read.wait(f.ctx, n); late != nil {
		return 0, fault.Wrap("mounts/throttle.ReadAt", f.name, late)
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.b.write.wait(f.ctx, len(p)); err != nil {
		return 0, fault.Wrap("mounts/throttle.WriteAt", f.name, err)
	}
	if err := f.b.calls.take(f.ctx, "WriteAt", f.name); err != nil {
		return 0, err
	}
	defer f.b.calls.leave()
	return f.RandomFile.WriteAt(p, off)
}

func (f *file) Close() error {
	f.cancel()
	return f.RandomFile.Close()
}

// places bound how many are inside at once; nil holds any number. Go serves the waiting senders of a channel in the order they came.
type places chan struct{}

func (p places) take(ctx context.Context, op, name string) error {
	if p == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/throttle."+op, name, err)
	}
	select {
	case p <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Wrap("mounts/throttle."+op, name, ctx.Err())
	}
}

func (p places) leave() {
	if p != nil {
		<-p
	}
}

// flow is a line of so many bytes a second; nil is one without a limit.
type flow struct{ limiter *rate.Limiter }

func newFlow(perSecond int64) *flow {
	if perSecond <= 0 {
		return nil
	}
	// What a timer is late by is made up for from the burst.
	return &flow{rate.NewLimiter(rate.Limit(perSecond), int(max(perSecond/8, 1)))}
}

// limit returns as much of p as moves at once.
func (f *flow) limit(p []byte) []byte {
	if f == nil {
		return p
	}
	return p[:min(len(p), f.limiter.Burst(), piece)]
}

// wait returns when n bytes have been paid for.
func (f *flow) wait(ctx context.Context, n int) error {
	if f == nil {
		return nil
	}
	for n > 0 {
		now := min(n, f.limiter.Burst()) // more would never be given
		n -= now
		paid := f.limiter.ReserveN(time.Now(), now)
		delay := paid.Delay()
		if delay == 0 {
			continue
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			paid.Cancel()
			return ctx.Err()
		}
	}
	return nil
}
