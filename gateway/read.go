package gateway

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
)

// File is an open file for reading. It shows one content from Open to Close, whatever replaces it meanwhile, where the backend has random
// access. Read and Seek are for one goroutine; ReadAt is for many. When the right to read is revoked, the next call fails.
type File struct {
	o    *op
	info Info
	name string

	random mounts.RandomFile // nil where the backend only streams
	far    *inbound          // the stream, nil where there is random access
	pos    int64

	mu     sync.Mutex
	bound  *bound    // under which the right was last seen, guarded by mu
	seen   time.Time // when it was, guarded by mu
	closed bool      // guarded by mu
}

var errSeek = errors.New("seek before the start")

// ReadOptions say what of a file will be read.
type ReadOptions struct {
	// Off and N are the part that will be read first, if that is known: a backend across a network is then asked for it along with the opening.
	// N is 0 for everything from Off on, and -1 when perhaps nothing will be read.
	Off, N int64
}

// Open opens the file p for reading. The caller closes it.
func (s *Session) Open(ctx context.Context, p Path, opt ReadOptions) (_ *File, err error) {
	o, err := s.begin(ctx, verbRead, p, policy.Download)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if err := s.core.budget.open(); err != nil {
		return nil, err
	}
	f, err := o.open(ctx, opt)
	if err != nil {
		s.core.budget.close()
		return nil, err
	}
	o.noteRead()
	return f, nil
}

func (o *op) open(ctx context.Context, opt ReadOptions) (*File, error) {
	f := &File{o: o, bound: o.b, seen: o.env.Time}
	info, err := o.openContent(ctx, f, opt)
	if !f.opened() && (err == nil || fault.KindOf(err) != fault.NotExist) {
		// Not a plain file: look closer.
		if info, err = o.stat(ctx, o.m, &o.target, true, policy.Download); err == nil && !info.IsDir() && info.Type == mounts.File {
			info, err = o.openContent(ctx, f, opt)
		}
	}
	if err == nil {
		switch {
		case info.IsDir():
			err = fault.New("gateway.read", o.path.String(), fault.IsDir, nil)
		default:
			err = listable(info)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.release())
	}
	f.name = o.name
	if f.info, err = o.overlaid(ctx, o.info(o.path, info)); err != nil {
		return nil, errors.Join(err, f.release())
	}
	return f, nil
}

// openContent opens the target: one walk along the path, or one request, for opening, size and entity tag.
func (o *op) openContent(ctx context.Context, f *File, opt ReadOptions) (info mounts.Info, err error) {
	if !o.m.stages {
		f.far, info, err = o.inbound(ctx, opt)
		return info, err
	}
	if f.random, err = o.m.random.OpenFile(ctx, o.name, os.O_RDONLY, 0); err != nil {
		f.random = nil
		return info, err
	}
	return f.random.Stat()
}

func (f *File) opened() bool { return f.random != nil || f.far != nil }

func (f *File) release() error {
	switch {
	case f.random != nil:
		return f.random.Close()
	case f.far != nil:
		return f.far.close()
	}
	return nil
}

// noteRead records a download, once a minute for the same file of the same session.
func (o *op) noteRead() {
	if now := o.g.clock.Now(); !o.s.core.reads.again(o.at, now) {
		o.g.audit.Note(o.record("ok"))
	}
}

// Info returns what the file is; size and entity tag are those of the bytes that are read.
func (f *File) Info() Info { return f.info }

// OSFile returns the local file that holds exactly the bytes, and whether there is one: then HTTP can sendfile and FUSE can pass through.
// Who uses it should ask Allowed every now and then.
func (f *File) OSFile() (*os.File, bool) {
	if d, ok := f.random.(mounts.Descriptor); ok {
		if file := d.OSFile(); file != nil {
			return file, true
		}
	}
	return nil, false
}

// Allowed reports nil while the subject may still read the file. It costs nothing while no rights change.
func (f *File) Allowed(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fault.New("gateway.File", f.info.Path.String(), fault.Invalid, os.ErrClosed)
	}
	b, err := f.o.s.current(ctx)
	if err != nil {
		return err
	}
	now := f.o.g.clock.Now()
	if b == f.bound && now.Sub(f.seen) < rightsAge && !now.Before(f.seen) {
		return nil
	}
	f.o.env.Time = now
	if d := b.view.Decide(policy.Download, f.o.at, f.o.about(&f.o.target)); !d.Allowed {
		kind := fault.Denied
		if !d.Known {
			kind = fault.NotExist
		}
		return fault.New("gateway.File", f.info.Path.String(), kind, errRefused)
	}
	if t, err := b.resolve(f.info.Path); err != nil || t.ds == nil {
		return fault.New("gateway.File", f.info.Path.String(), fault.NotExist, err)
	}
	f.bound, f.seen = b, now
	return nil
}

// rightsAge is how long a right that was seen holds while nobody changes any: grants expire and office hours end without anybody's doing.
const rightsAge = time.Second

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	ctx := context.Background()
	if err := f.Allowed(ctx); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fault.New("gateway.File", f.info.Path.String(), fault.Invalid, errSeek)
	}
	n, err := f.readAt(ctx, p, off)
	f.o.g.stats.out.Add(int64(n))
	if err != nil && err != io.EOF {
		err = fault.Wrap("gateway.File", f.info.Path.String(), err)
	}
	return n, err
}

func (f *File) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.random != nil {
		return f.random.ReadAt(p, off)
	}
	return f.far.readAt(ctx, p, off)
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.info.Size
	}
	if offset < 0 {
		return f.pos, fault.New("gateway.File", f.info.Path.String(), fault.Invalid, errSeek)
	}
	f.pos = offset
	return offset, nil
}

// How much is sent between two looks at whether it still may be: more and more to a client that takes it quickly, and little to a slow one,
// so that a revoked right ends a download within about two seconds.
const (
	firstStep = 512 << 10
	lastStep  = 8 << 20
	leastStep = 32 << 10
)

// nextStep is how much to send after a step that took so long.
func nextStep(step int64, took time.Duration) int64 {
	switch {
	case took < 200*time.Millisecond:
		return min(2*step, lastStep)
	case took > time.Second:
		return max(step/4, leastStep)
	}
	return step
}

// CopyTo writes n bytes from off to w and returns how many it wrote. A local file in the clear goes out by sendfile when w can
// (io.ReaderFrom). It moves the position. For one goroutine.
func (f *File) CopyTo(ctx context.Context, w io.Writer, off, n int64) (written int64, err error) {
	defer func() { f.o.g.stats.out.Add(written) }()
	osf, local := f.OSFile()
	var stream io.Reader
	switch {
	case local:
		if _, err := osf.Seek(off, io.SeekStart); err != nil {
			return 0, fault.Wrap("gateway.File", f.info.Path.String(), err)
		}
	case f.far != nil:
		release, err := f.far.stream(ctx, off, n)
		if err != nil {
			return 0, err
		}
		defer release()
		stream = f.far
	}
	for size := int64(firstStep); written < n; {
		if err := f.Allowed(ctx); err != nil {
			return written, err
		}
		step, start := min(n-written, size), time.Now()
		var k int64
		switch {
		case local:
			k, err = io.CopyN(w, osf, step)
		case stream != nil:
			k, err = copyN(w, stream, step)
		default:
			k, err = copyAt(w, f.random, off+written, step)
		}
		written += k
		if err != nil {
			return written, err
		}
		size = nextStep(size, time.Since(start))
	}
	return written, nil
}

// copyN is io.CopyN through a shared buffer.
func copyN(w io.Writer, r io.Reader, n int64) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	k, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(r, n), *buf)
	if err == nil && k < n {
		err = io.ErrUnexpectedEOF
	}
	return k, err
}

// copyAt is io.CopyN from a place of a file, through a shared buffer.
func copyAt(w io.Writer, r io.ReaderAt, off, n int64) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	k, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(r, off, n), *buf)
	if err == nil && k < n {
		err = io.ErrUnexpectedEOF
	}
	return k, err
}

// Close releases the file. Calling it twice is fine.
func (f *File) Close() error {
	f.mu.Lock()
	was := f.closed
	f.closed = true
	f.mu.Unlock() // a CopyTo under way asks whether it still may
	if was {
		return nil
	}
	f.o.s.core.budget.close()
	return f.release()
}
