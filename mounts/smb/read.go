package smb

import (
	"context"
	"io"
	"os"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	block      = 512 << 10 // of reads and writes; servers take 1 MiB at most
	firstBlock = 256 << 10 // of a read to the end: the size is not known yet
	ahead      = 12        // blocks in flight for a stream, reading or writing
	inFlight   = 24        // blocks in flight for all streams, about
)

// window returns how many blocks a stream may have in flight or in memory. Streams that have not come to their second block do not count.
func (b *Backend) window() int {
	return min(ahead, max(2, inFlight/max(1, int(b.streams.Load()))))
}

// blocks are buffers of block bytes.
var blocks = sync.Pool{New: func() any { return new([block]byte) }}

// Open implements mounts.Backend. The first bytes are on their way when it returns. The file is closed on the server once all its bytes are
// here, so that a small one hinders nobody however slowly it is read.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fault.New("mounts/smb.Open", name, fault.Invalid, nil)
	}
	path, err := b.path(ctx, "Open", name, false)
	if err != nil {
		return nil, err
	}
	try := func() (*reader, error) {
		return with(ctx, b.data, true, func(s *session) (*reader, error) { return s.reader(ctx, path, name, off, n) })
	}
	r, err := patient(ctx, try)
	for again := 0; again < 2 && kindOf(err) == fault.NotExist; again++ { // so says Samba of a file that is replaced while it opens it
		r, err = patient(ctx, try)
	}
	if err != nil {
		return nil, b.fail("Open", name, err)
	}
	return r, nil
}

// reader reads a file ahead of its user. Its blocks are fetched at the same time and used in order.
type reader struct {
	ctx     context.Context // of Open, which governs the reader
	s       *session
	f       *handle
	name    string
	info    mounts.Info
	release func() // see Backend.hold

	// Owned by the user of Read.
	queue   []*fetch // in flight or fetched, in order
	next    int64    // offset of the block to fetch after those
	end     int64    // where to stop
	window  int      // blocks to have in the queue, growing
	known   bool     // info and end are what the server says
	counted bool     // in Backend.streams
	stopped bool     // no more blocks will be asked for
	err     error    // of the last Read

	mu    sync.Mutex
	users int // of f: fetches, and Read as long as it will start more; the last one closes f. Guarded by mu
}

// fetch is a block on its way.
type fetch struct {
	off  int64
	want int
	buf  *[block]byte
	done chan none
	n    int   // valid once done is closed, as err
	err  error // io.EOF at the end of the file
	used int   // bytes given to the user
}

// reader opens a file, asks for its first block and for what it is, at once.
func (s *session) reader(ctx context.Context, path, name string, off, n int64) (*reader, error) {
	f, err := s.open(ctx, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, s: s, f: f, name: name, release: s.b.hold(path), next: off, end: off, window: 1, users: 1}
	want := int64(firstBlock)
	if n >= 0 {
		want = min(n, block)
	}
	r.end += want
	r.fetch()
	stat, err := f.stat(ctx)
	if err == nil {
		_, base := mounts.Split(name)
		r.info = infoOf(stat, base)
		if stat.FileAttributes&attrReparse != 0 && r.info.Type == mounts.File {
			err = s.b.reparse(ctx, path, 0, &r.info)
		}
	}
	if err == nil && r.info.Type != mounts.File {
		err = errLink
		if r.info.IsDir() {
			err = failure{fault.IsDir, "is a folder"}
		}
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	r.known = true
	r.end = max(r.info.Size, off)
	if n >= 0 {
		r.end = min(r.end, off+min(n, 1<<62-off))
	}
	if len(r.queue) > 0 {
		r.queue[0].want = int(min(int64(r.queue[0].want), r.end-off))
	}
	r.next = min(r.next, r.end)
	if r.next == r.end {
		r.stop()
	}
	return r, nil
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err != nil || len(p) == 0 {
		return 0, r.fail(r.err)
	}
	for r.next < r.end && len(r.queue) < min(r.window, r.s.b.window()) {
		r.fetch()
	}
	if len(r.queue) == 0 {
		r.err = io.EOF
		return 0, io.EOF
	}
	head := r.queue[0]
	select {
	case <-head.done:
	case <-r.ctx.Done():
		r.err = r.ctx.Err()
		return 0, r.fail(r.err)
	}
	switch {
	case head.err != nil && head.err != io.EOF:
		r.err = head.err
		return 0, r.fail(r.err)
	case head.n < head.want:
		r.err = errShrank
		return 0, r.fail(r.err)
	}
	n := copy(p, head.buf[head.used:head.want])
	if head.used += n; head.used == head.want {
		r.queue = r.queue[1:]
		blocks.Put(head.buf)
		r.window = min(2*r.window+1, ahead)
	}
	return n, nil
}

func (r *reader) fail(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return r.s.b.fail("Read", r.name, err)
}

// fetch asks for the next block.
func (r *reader) fetch() {
	c := &fetch{off: r.next, want: int(min(r.end-r.next, block)), done: make(chan none)}
	if c.want == 0 {
		return
	}
	if r.known && !r.counted {
		r.counted = true
		r.s.b.streams.Add(1)
	}
	r.next += int64(c.want)
	r.queue = append(r.queue, c)
	r.mu.Lock()
	r.users++
	r.mu.Unlock()
	want := c.want // c.want may shrink once the size is known
	if !r.s.b.spawn(func() {
		c.buf = blocks.Get().(*[block]byte)
		c.n, c.err = r.f.readAt(c.buf[:want], c.off)
		close(c.done)
		r.drop()
	}) {
		c.err = errClosed
		close(c.done)
		r.drop()
	}
	if r.next == r.end && r.known {
		r.stop()
	}
}

// stop says that no more blocks will be asked for.
func (r *reader) stop() {
	if !r.stopped {
		r.stopped = true
		if r.counted {
			r.s.b.streams.Add(-1)
		}
		r.end = r.next
		r.drop()
	}
}

// drop takes one from the users of the file; the last one closes it.
func (r *reader) drop() {
	r.mu.Lock()
	r.users--
	last := r.users == 0
	r.mu.Unlock()
	if !last {
		return
	}
	finish := func() {
		r.f.close()
		r.release()
	}
	if !r.s.b.spawn(finish) {
		finish() // the session has ended: this takes no time
	}
}

// Close implements io.Closer. It does not wait for the server: a call that meets the file open is repeated, see patient.
func (r *reader) Close() error {
	r.stop()
	for _, c := range r.queue {
		select {
		case <-c.done:
			if c.buf != nil {
				blocks.Put(c.buf)
			}
		default: // its fetch still writes to it
		}
	}
	r.queue = nil
	r.err = fault.New("mounts/smb.Read", r.name, fault.Invalid, os.ErrClosed)
	return nil
}
