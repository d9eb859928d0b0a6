package gateway

import (
	"context"
	"errors"
	"io"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// inbound is the content of a file on a backend across a network, read as a stream. It stays open between reads that follow each other, and is
// opened anew where one does not. It is always the content that it was opened on: what replaced it meanwhile is Busy.
type inbound struct {
	m    *mounted
	name string
	info mounts.Info

	mu     sync.Mutex
	r      io.ReadCloser      // guarded by mu
	cancel context.CancelFunc // of r; guarded by mu
	at     int64              // where r stands; guarded by mu
	end    int64              // where r ends, -1 with the file; guarded by mu
	random mounts.RandomFile  // once reads jump about, where the backend can; guarded by mu
	jumps  int                // guarded by mu
	closed bool               // guarded by mu
}

// skip is how far a stream is read in vain rather than opened anew.
const skip = 128 << 10

var (
	errReplaced = errors.New("the file was replaced while it was read")
	errShut     = errors.New("the file is closed")
)

// inbound opens the target as a stream.
func (o *op) inbound(ctx context.Context, opt ReadOptions) (*inbound, mounts.Info, error) {
	f := &inbound{m: o.m, name: o.name}
	if opt.N < 0 {
		info, err := o.m.Stat(ctx, o.name)
		switch {
		case err != nil:
			return nil, info, err
		case info.Type != mounts.File:
			return nil, info, nil
		}
		f.info = info
		return f, info, nil
	}
	if opt.N == 0 {
		opt.N = -1
	}
	info, err := f.open(ctx, opt.Off, opt.N)
	if err != nil {
		return nil, info, err
	}
	f.info = info
	return f, info, nil
}

// open opens the stream at off and returns what the file is. The caller holds mu, or is alone.
func (f *inbound) open(ctx context.Context, off, n int64) (mounts.Info, error) {
	f.drop()
	// The stream may outlive the request for it, but its opening ends with that.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	r, err := f.m.Open(life, f.name, off, n)
	if !stop() && err == nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), r.Close())
	}
	if err != nil {
		cancel()
		return mounts.Info{}, err
	}
	f.r, f.cancel, f.at, f.end = r, cancel, off, -1
	if n >= 0 {
		f.end = off + n
	}
	var info mounts.Info
	if s, ok := r.(mounts.Stater); ok {
		info, err = s.Stat()
	} else {
		info, err = f.m.Stat(fresh(ctx), f.name)
	}
	if err != nil {
		f.drop() // nobody knows what it is
	}
	return info, err
}

// drop closes the stream.
func (f *inbound) drop() {
	if f.r != nil {
		_ = f.r.Close() // an early end is no failure
		f.cancel()
		f.r, f.cancel = nil, nil
	}
}

// seek makes the stream stand at off, with at least want bytes to come unless the file ends, n of them when it has to be opened.
func (f *inbound) seek(ctx context.Context, off, want, n int64) error {
	switch {
	case f.closed:
		return fault.New("gateway.File", f.name, fault.Invalid, errShut)
	case f.r != nil && off >= f.at && off-f.at <= skip && (f.end < 0 || off+want <= f.end || f.end >= f.info.Size):
		k, err := io.CopyN(io.Discard, f.r, off-f.at)
		if f.at += k; err == nil {
			return nil
		}
	}
	info, err := f.open(ctx, off, n)
	if err == nil && stampOf(info, true) != stampOf(f.info, true) {
		f.drop()
		err = fault.New("gateway.File", f.name, fault.Busy, errReplaced)
	}
	return err
}

// stream makes Read yield n bytes from off, and keeps others from reading until release is called.
func (f *inbound) stream(ctx context.Context, off, n int64) (release func(), err error) {
	f.mu.Lock()
	if err := f.seek(ctx, off, n, n); err != nil {
		f.mu.Unlock()
		return nil, err
	}
	return f.mu.Unlock, nil
}

// Read goes on with the stream. Only who called stream may.
func (f *inbound) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	f.at += int64(n)
	return n, err
}

// readAt reads at any place. Reads that follow each other share a stream.
func (f *inbound) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := min(int64(len(p)), f.info.Size-off)
	if want <= 0 {
		return 0, io.EOF
	}
	if f.random == nil && (f.r == nil || off < f.at || off-f.at > skip) {
		if f.jumps++; f.jumps > 2 && f.m.random != nil && !f.closed {
			if err := f.openRandom(ctx); err != nil {
				return 0, err
			}
		}
	}
	if f.random != nil {
		return f.random.ReadAt(p, off)
	}
	n := want // one range
	if f.jumps == 1 || f.r != nil && off == f.at {
		n = -1 // most likely the next ones will be asked for, too
	}
	if err := f.seek(ctx, off, want, n); err != nil {
		return 0, err
	}
	k, err := io.ReadFull(f.r, p[:want])
	f.at += int64(k)
	switch {
	case err == io.EOF:
		err = io.ErrUnexpectedEOF // not the end of the file, but of the stream
	case err == nil && want < int64(len(p)):
		err = io.EOF
	}
	if err != nil && err != io.EOF {
		f.drop()
	}
	return k, err
}

// openRandom opens the file for reads that jump about.
func (f *inbound) openRandom(ctx context.Context) error {
	r, err := f.m.random.OpenFile(ctx, f.name, 0, 0)
	if err != nil {
		return err
	}
	info, err := r.Stat()
	if err == nil && stampOf(info, true) != stampOf(f.info, true) {
		err = fault.New("gateway.File", f.name, fault.Busy, errReplaced)
	}
	if err != nil {
		return errors.Join(err, r.Close())
	}
	f.drop()
	f.random = r
	return nil
}

func (f *inbound) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.drop()
	if f.random != nil {
		return f.random.Close()
	}
	return nil
}
