package breaker

import (
	"context"
	"io"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if b.isClosed() {
		return b.next.Open(ctx, name, off, n)
	}
	if err := b.enter(ctx, b.streams, "Open", name); err != nil {
		return nil, err
	}
	inner, cancel := context.WithCancel(ctx) // the reader lives by it
	leave := func() { <-b.streams }
	began := time.Now()
	open := func() (io.ReadCloser, error) { return b.next.Open(inner, name, off, n) }
	from, err, returned := guard(ctx, b, inner, cancel, "Open", name, until(b.cfg.Deadline), open, leave)
	b.meter.took(time.Since(began))
	b.judge(ctx, err)
	r := &reader{b: b, ctx: ctx, inner: inner, cancel: cancel, name: name, from: from}
	switch {
	case err != nil:
		cancel()
		if returned {
			leave()
		}
		return nil, err
	case inner.Err() != nil: // it came at the last moment, but its context has ended
		r.Close()
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap("mounts/breaker.Open", name, err)
		}
		return nil, fault.New("mounts/breaker.Open", name, fault.Timeout, errSilent)
	}
	if _, ok := from.(mounts.Descriptor); ok {
		return descriptor(from, func() { cancel(); leave() }), nil
	}
	if s, ok := from.(mounts.Stater); ok {
		return statReader{r, s}, nil
	}
	return r, nil
}

// reader guards the reads of one Open.
type reader struct {
	b      *Backend
	ctx    context.Context // that of Open
	inner  context.Context
	cancel context.CancelFunc
	name   string
	from   io.ReadCloser
	fast   bool // the last Read had more than fits into a small buffer; of Read alone

	mu     sync.Mutex
	busy   bool  // a Read is under way, guarded by mu
	closed bool  // guarded by mu
	lost   bool  // a Read was abandoned, which closes from when it ends; guarded by mu
	ended  error // guarded by mu
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.begin(); err != nil {
		return 0, err
	}
	buffers := &r.b.small // an abandoned Read must not write into its caller's memory
	if r.fast && len(p) > piece {
		buffers = &r.b.large
	}
	whole := buffers.Get().(*[]byte)
	buf := (*whole)[:min(len(p), len(*whole))]
	late := func() {
		contained(r.b, "Read", r.name, asValue(r.from.Close))
		r.leave()
	}
	limit := until(r.b.cfg.Progress)
	n, err, returned := guard(r.ctx, r.b, r.inner, r.cancel, "Read", r.name, limit, func() (int, error) { return r.from.Read(buf) }, late)
	if copy(p, buf[:n]); returned {
		buffers.Put(whole)
	}
	r.fast = n >= piece
	r.finish(err, returned)
	return n, err
}

func (r *reader) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return r.ended
	}
	r.busy = !r.closed // a closed one is told so by from
	return nil
}

func (r *reader) finish(err error, returned bool) {
	r.mu.Lock()
	r.busy = false
	if !returned {
		r.lost = true
	}
	if r.inner.Err() != nil && err != nil {
		r.ended = err
	}
	closeNow := r.closed && returned && !r.lost
	r.mu.Unlock()
	switch {
	case err == io.EOF:
		r.b.judge(r.ctx, nil)
	case err != nil && !closeNow:
		r.b.judge(r.ctx, err)
	}
	if closeNow {
		r.close()
	}
}

// Close implements io.Closer. A Read under way ends, and closes then.
func (r *reader) Close() error {
	r.mu.Lock()
	busy, done := r.busy, r.closed || r.lost
	r.closed = true
	r.mu.Unlock()
	switch {
	case done:
		return nil
	case busy:
		r.cancel()
		return nil
	}
	return r.close()
}

func (r *reader) close() error {
	ctx := context.WithoutCancel(r.ctx)
	_, err, returned := guard(ctx, r.b, ctx, func() {}, "Close", r.name, until(r.b.cfg.Deadline), asValue(r.from.Close), r.leave)
	r.cancel() // after it: a context that ends may cost the connection
	if returned {
		r.leave()
	}
	return err
}

func (r *reader) leave() { <-r.b.streams }

// statReader is a reader that is a Stater.
type statReader struct {
	*reader
	stater mounts.Stater
}

func (r statReader) Stat() (mounts.Info, error) {
	info, err, _ := guard(r.ctx, r.b, r.inner, func() {}, "Stat", r.name, until(r.b.cfg.Deadline), r.stater.Stat, nil)
	return info, err
}

// descriptor returns a reader of a file of this machine as it is, but for done when it is closed.
func descriptor(from io.ReadCloser, done func()) io.ReadCloser {
	own := &closing{ReadCloser: from, done: done}
	if s, ok := from.(mounts.Stater); ok {
		return struct {
			*closing
			mounts.Descriptor
			mounts.Stater
		}{own, from.(mounts.Descriptor), s}
	}
	return struct {
		*closing
		mounts.Descriptor
	}{own, from.(mounts.Descriptor)}
}

type closing struct {
	io.ReadCloser
	once sync.Once
	done func()
}

func (c *closing) Close() error {
	defer c.once.Do(c.done)
	return c.ReadCloser.Close()
}
