package breaker

import (
	"context"
	"io"
	"iter"
	"sync"
	"time"

	"cellgate/internal/fault"
)

const (
	ahead   = 256      // entries of a listing that may wait for their consumer
	piece   = 64 << 10 // read at once at most, four of it of a stream that fills them
	held    = 12 << 20 // bytes of an upload that a driver may hold while it sends them
	slowest = 64 << 10 // bytes a second of the slowest line that such bytes are given time for
)

// pump lets the backend make a sequence in a goroutine of its own, and passes it on. Without a limit it waits for ever; without places it
// takes none and says nothing about the backend.
func pump[V any](
	ctx context.Context, b *Backend, op, name string, places chan struct{}, limit time.Duration, all func(context.Context) iter.Seq2[V, error],
) iter.Seq2[V, error] {
	return func(yield func(V, error) bool) {
		if b.isClosed() {
			all(ctx)(yield)
			return
		}
		var none V
		leave := func() {}
		if places != nil {
			if err := b.enter(ctx, places, op, name); err != nil {
				yield(none, err)
				return
			}
			leave = func() { <-places }
		}
		type entry struct {
			value V
			err   error
		}
		entries := make(chan entry, ahead)
		inner, cancel := context.WithCancel(ctx)
		f := fly(b, op, name, func() (struct{}, error) {
			for value, err := range all(inner) {
				select {
				case entries <- entry{value, err}:
				case <-inner.Done():
					return struct{}{}, errAbandoned
				}
			}
			return struct{}{}, nil
		}, leave)
		defer func() {
			cancel()
			if f.land() {
				leave()
			}
		}()
		var failed error
		pass := func(e entry) bool {
			if e.err != nil {
				failed = e.err
				if places != nil {
					b.judge(ctx, failed)
				}
			}
			return yield(e.value, e.err)
		}
		// fail ends a sequence that its maker did not. A Watch just ends.
		fail := func(err error) {
			if places != nil {
				pass(entry{err: err})
			}
		}
		timer := time.NewTimer(time.Hour)
		defer timer.Stop()
		for {
			select {
			case e := <-entries: // as long as there are some, no time is measured
				if !pass(e) {
					return
				}
				continue
			default:
			}
			var late <-chan time.Time
			if limit > 0 {
				timer.Reset(limit)
				late = timer.C
			}
			select {
			case e := <-entries:
				if !pass(e) {
					return
				}
			case <-f.done:
				for len(entries) > 0 {
					if !pass(<-entries) {
						return
					}
				}
				switch {
				case ctx.Err() != nil && f.err != nil:
					fail(fault.Wrap("mounts/breaker."+op, name, ctx.Err()))
				case f.err != nil:
					fail(f.err)
				case failed == nil && places != nil:
					b.judge(ctx, nil)
				}
				return
			case <-late:
				fail(fault.New("mounts/breaker."+op, name, fault.Timeout, errSilent))
				return
			case <-ctx.Done():
				cancel()
				if f.land() {
					continue // what it says about its end comes first
				}
				fail(fault.Wrap("mounts/breaker."+op, name, ctx.Err()))
				return
			}
		}
	}
}

// upload is a call that reads src. It returns only when no Read of src is under way.
func upload[V any](
	ctx context.Context, b *Backend, op, name string, src io.Reader, do func(context.Context, io.Reader) (V, error),
) (v V, err error) {
	if b.isClosed() {
		return do(ctx, src)
	}
	if err := b.enter(ctx, b.streams, op, name); err != nil {
		return v, err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	leave := func() { <-b.streams }
	s := newSource(src, b.cfg.Progress)
	v, err, returned := guard(ctx, b, inner, cancel, op, name, s.left, func() (V, error) { return do(inner, s.reader()) }, leave)
	if returned {
		leave()
	} else {
		s.cut()
	}
	if !s.failed() {
		b.judge(ctx, err)
	}
	return v, err
}

// source is what an upload reads: it knows whose turn it is, and can be cut off.
type source struct {
	src      io.Reader
	progress time.Duration

	mu      sync.Mutex
	idle    sync.Cond
	reading bool      // it is the caller's turn, guarded by mu
	since   time.Time // the backend's turn began, guarded by mu
	taken   int64     // guarded by mu
	err     error     // of src, but for io.EOF; guarded by mu
	off     bool      // guarded by mu
}

func newSource(src io.Reader, progress time.Duration) *source {
	s := &source{src: src, progress: progress, since: time.Now()}
	s.idle.L = &s.mu
	return s
}

// reader returns the source in the form for the backend: one that can seek still can.
func (s *source) reader() io.Reader {
	if seeker, ok := s.src.(io.Seeker); ok {
		return seekable{s, seeker}
	}
	return s
}

type seekable struct {
	*source
	seeker io.Seeker
}

func (s seekable) Seek(off int64, whence int) (n int64, err error) {
	err = s.turn(func() (err error) { n, err = s.seeker.Seek(off, whence); return err })
	return n, err
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (n int, err error) {
	err = s.turn(func() (err error) {
		n, err = s.src.Read(p)
		if err != nil && err != io.EOF {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
		}
		return err
	})
	s.mu.Lock()
	s.taken += int64(n)
	s.mu.Unlock()
	return n, err
}

// turn does something of the caller's.
func (s *source) turn(do func() error) error {
	s.mu.Lock()
	if s.off {
		s.mu.Unlock()
		return errAbandoned
	}
	s.reading = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.reading, s.since = false, time.Now()
		s.idle.Broadcast()
		s.mu.Unlock()
	}()
	return do()
}

// left returns how long the backend may still keep us waiting: the progress, and the time that a slow line needs for what the driver holds.
func (s *source) left() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	allowed := s.progress + time.Duration(min(s.taken, held))*time.Second/slowest
	if s.reading {
		return allowed
	}
	return allowed - time.Since(s.since)
}

// cut keeps an abandoned call from reading any more, as the caller may close src or use it otherwise. It waits for a Read under way.
func (s *source) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
	for s.reading {
		s.idle.Wait()
	}
}

// failed reports whether src failed by itself.
func (s *source) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}
