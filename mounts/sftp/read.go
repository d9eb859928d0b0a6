package sftp

import (
	"context"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend. The reader is a mounts.Stater.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	const op = "Open"
	if err := b.begin(ctx, op, false, name); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, refusal(op, name, fault.Invalid, nil)
	}
	if name == "." {
		return nil, refusal(op, name, fault.IsDir, nil)
	}
	var r *reader
	err := b.run(ctx, op, name, true, func(w *wire) error {
		mine := b.own.last(name)
		g := b.guard(ctx, w, name)
		at := w.lstat(ctx, b.path(name))
		open := w.open(ctx, b.path(name), openRead, wishes{})
		err := g.wait(ctx)
		var a attrs
		if err == nil {
			a, err = at.attrs(ctx)
		} else {
			at.forget()
		}
		if err == nil {
			err = plainFile(op, name, a)
		}
		if err != nil {
			if a.flags&hasMode != 0 && a.typ() == mounts.Other {
				b.unblock(w, open)
			} else {
				open.forget()
			}
			return err
		}
		handle, err := open.handle(ctx)
		if err == nil {
			r = b.newReader(ctx, w, op, b.path(name), name, handle, off, n, a.length())
			r.mine = mine
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// unblockAfter is how long the open of a device or pipe may take.
const unblockAfter = 500 * time.Millisecond

// unblock gives up a channel whose server process hangs in the open of a pipe.
func (b *Backend) unblock(w *wire, open *call) {
	b.pool.spawn(func() {
		ctx, cancel := context.WithTimeout(b.pool.base, unblockAfter)
		defer cancel()
		handle, err := open.handle(ctx)
		if err == nil {
			w.closeHandle(handle)
		} else if ctx.Err() != nil {
			w.fail(&lostError{cause: errSpecial})
		}
	})
}

// openPath reads a whole file of our own making, by its path on the server.
func (b *Backend) openPath(ctx context.Context, w *wire, op, path, name string) (io.ReadCloser, error) {
	handle, err := w.open(ctx, path, openRead, wishes{}).handle(ctx)
	if err != nil {
		return nil, err
	}
	return b.newReader(ctx, w, op, path, name, handle, 0, -1, -1), nil
}

const tagStat = -1 // of the answer to the fstat among those to reads

// settled is how long ago a file must have been changed, by the server's clock, for handles opened by its name to be compared by their times.
const settled = 3 * time.Second

// reader reads ahead: it asks for the parts of the file in order, over one channel or several, and hands them out in order.
type reader struct {
	b          *Backend
	ctx        context.Context // of Open, until Close
	cancel     context.CancelFunc
	op         string
	path, name string
	mine       *ownFile // what this backend knew of the name before it was opened

	mu      sync.Mutex // held by Read and Stat; guards all below
	lanes   []*outlet
	results chan reply
	joined  chan struct{}
	depth   int
	parts   []*part // asked for and not handed out, in order
	first   int     // number of parts[0]
	off     int64   // of the next byte to hand out
	next    int64   // of the next byte to ask for
	end     int64   // where reading ends: what was wanted, and once known the size, is over
	known   bool    // the fstat is answered
	stat    attrs
	wide    bool
	marked  bool
	err     error
	closed  bool

	fresh struct {
		sync.Mutex
		lanes []*outlet
		over  bool
	}
}

// part is a piece of the file that was asked for in one request, and in more where answers are short.
type part struct {
	off  int64
	n    int
	got  int
	data []reply
	pos  int // bytes of data[0] handed out
	lane int
	eof  bool
}

func (b *Backend) newReader(ctx context.Context, w *wire, op, path, name, handle string, off, n, hint int64) *reader {
	r := &reader{
		b: b, op: op, path: path, name: name, lanes: []*outlet{{w: w, handle: handle}}, joined: make(chan struct{}, 1),
		depth: max(inLane/b.chunkR, 2), off: off, next: off, end: math.MaxInt64,
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.results = make(chan reply, (maxLanes+1)*r.depth+8)
	if n >= 0 && n < math.MaxInt64-off {
		r.end = off + n
	}
	b.pool.hold(w)
	_, err := w.enqueue(r.ctx, simple(typeFstat, handle), false, waiting{to: r.results, tag: tagStat})
	if err != nil {
		r.err = err
		return r
	}
	likely := r.end // as long as nothing better is known
	if hint >= 0 {
		likely = min(likely, hint)
	} else {
		likely = min(likely, off+int64(b.chunkR))
	}
	r.ask(likely)
	return r
}

// ask requests what is below limit, as far as reading ahead goes.
func (r *reader) ask(limit int64) {
	ahead := int64(r.b.pool.ahead(len(r.lanes)))
	for r.err == nil && r.next < limit && r.next-r.off < ahead {
		n := int(min(int64(r.b.chunkR), limit-r.next))
		best := 0
		for i, o := range r.lanes {
			if i == 1 && len(r.lanes) > 2 { // the first lane is for short calls too
				best = 1
			}
			if o.out < r.lanes[best].out {
				best = i
			}
		}
		if len(r.lanes) > 2 && best == 0 {
			best = 1
		}
		p := &part{off: r.next, n: n, lane: best}
		r.parts = append(r.parts, p)
		r.next += int64(n)
		r.request(p, r.first+len(r.parts)-1)
	}
}

// request asks for what is missing of a part.
func (r *reader) request(p *part, number int) {
	o := r.lanes[p.lane]
	o.out++
	q := request(typeRead, len(o.handle)+16).str(o.handle).u64(uint64(p.off) + uint64(p.got)).u32(uint32(p.n - p.got))
	if _, err := o.w.enqueue(r.ctx, q, false, waiting{to: r.results, tag: number}); err != nil {
		r.err = err
	}
}

// take handles one answer.
func (r *reader) take(a reply) {
	if a.tag == tagStat {
		if err := (&call{w: r.lanes[0].w}).judge(a, typeAttrs); err != nil {
			r.err = err
			return
		}
		in := input{b: a.body}
		r.stat, r.known = in.attrs(), true
		if size := r.stat.length(); size >= 0 {
			r.end = min(r.end, max(size, r.off))
		}
		return
	}
	p := r.parts[a.tag-r.first]
	o := r.lanes[p.lane]
	o.out--
	err := (&call{w: o.w}).judge(a, typeData)
	switch {
	case codeOf(err) == codeEOF:
		p.eof = true
	case err != nil:
		r.err = err
	default:
		in := input{b: a.body}
		a.body = in.bytes()
		if n := len(a.body); n == 0 || n > p.n-p.got {
			r.err = errShort
			return
		}
		p.got += len(a.body)
		p.data = append(p.data, a)
		if p.got < p.n && (!r.known || p.off+int64(p.got) < r.end) {
			r.request(p, a.tag)
		}
	}
}

// Read implements io.Reader.
func (r *reader) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.read(b)
	if err != nil && err != io.EOF {
		if r.closed || r.ctx.Err() == nil {
			return n, failure("Read", r.name, err)
		}
		err = failure("Read", r.name, r.ctx.Err())
	}
	return n, err
}

func (r *reader) read(b []byte) (int, error) {
	for {
		if r.closed {
			return 0, refusal("Read", r.name, fault.Invalid, os.ErrClosed)
		}
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		r.collect()
		if r.err != nil {
			return 0, r.err
		}
		if r.known {
			if n, err, done := r.hand(b); done {
				return n, err
			}
		}
		if err := r.await(); err != nil {
			return 0, err
		}
	}
}

// collect takes the answers that are there, and asks for more.
func (r *reader) collect() {
	for {
		select {
		case a := <-r.results:
			r.take(a)
			continue
		default:
		}
		break
	}
	r.fresh.Lock()
	r.lanes = append(r.lanes, r.fresh.lanes...)
	r.fresh.lanes = nil
	r.fresh.Unlock()
	if !r.known || r.err != nil {
		return
	}
	if r.end-r.next > fanOut {
		r.widen()
	}
	r.ask(r.end)
}

// await waits until something happens.
func (r *reader) await() error {
	select {
	case a := <-r.results:
		r.take(a)
		return r.err
	case <-r.joined:
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// hand gives out what has arrived in order. Done is false when nothing has.
func (r *reader) hand(b []byte) (n int, err error, done bool) {
	for {
		if r.off >= r.end {
			return n, io.EOF, true
		}
		if len(b) == 0 {
			return n, nil, true
		}
		if len(r.parts) == 0 {
			return n, nil, n > 0
		}
		p := r.parts[0]
		switch {
		case len(p.data) > 0:
			c := copy(b, p.data[0].body[p.pos:])
			b, n, p.pos, r.off = b[c:], n+c, p.pos+c, r.off+int64(c)
			if p.pos == len(p.data[0].body) {
				r.b.pool.release(p.data[0])
				p.data, p.pos = p.data[1:], 0
			}
			if r.off == p.off+int64(p.n) {
				r.parts, r.first = r.parts[1:], r.first+1
			}
			if r.off >= r.end && n > 0 {
				return n, nil, true
			}
		case p.eof && r.stat.length() < 0: // a server that does not tell sizes
			r.end = r.off
		case p.eof:
			return n, refusal("Read", r.name, fault.Unavailable, errChanged), true
		default:
			return n, nil, n > 0
		}
	}
}

// widen opens further channels in the background, once the file is old enough for that, or at once when it is one that this backend has just
// made. See the package comment.
func (r *reader) widen() {
	if !r.marked {
		r.marked = true
		r.b.pool.mark(r.lanes[0].w, 1)
	}
	if r.wide || r.stat.flags&(hasSize|hasTimes) != hasSize|hasTimes {
		return
	}
	want, pool := r.stat.still(), r.b.pool
	var mine *ownFile
	if now := time.Now().Add(time.Duration(r.b.skew.Load())); now.Sub(time.Unix(int64(want.mtime), 0)) < settled {
		if mine = r.mine; mine == nil || mine.attrs != want {
			return
		}
	}
	r.wide = true
	for range pool.share() {
		pool.spawn(func() {
			w, err := pool.lane()
			if err != nil {
				return
			}
			handle, err := w.open(r.ctx, r.path, openRead, wishes{}).handle(r.ctx)
			if err == nil {
				var have attrs
				have, err = w.simple(r.ctx, typeFstat, handle).attrs(r.ctx)
				if err == nil && (have.still() != want || mine != nil && mine != r.b.own.last(r.name)) {
					err = errChanged
				}
			}
			r.fresh.Lock()
			defer r.fresh.Unlock()
			if err != nil || r.fresh.over {
				if handle != "" {
					w.closeHandle(handle)
				}
				pool.leave(w)
				return
			}
			r.fresh.lanes = append(r.fresh.lanes, &outlet{w: w, handle: handle})
			select {
			case r.joined <- struct{}{}:
			default:
			}
		})
	}
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.known {
		err := r.err
		if r.closed {
			err = os.ErrClosed
		}
		if err == nil {
			err = r.await()
		}
		if err != nil {
			return mounts.Info{}, failure("Stat", r.name, err)
		}
	}
	_, base := mounts.Split(r.name)
	return r.stat.info(base), nil
}

// Close gives everything back. What is still on its way is thrown away when it comes.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.fresh.Lock()
	r.fresh.over = true
	r.lanes = append(r.lanes, r.fresh.lanes...)
	r.fresh.Unlock()
	for _, p := range r.parts {
		for _, a := range p.data {
			r.b.pool.release(a)
		}
	}
	r.parts = nil
	pool := r.b.pool
	for i, o := range r.lanes {
		o.w.closeHandle(o.handle)
		if i > 0 {
			pool.leave(o.w)
		}
	}
	if r.marked {
		pool.mark(r.lanes[0].w, -1)
	}
	if r.wide {
		pool.unshare()
	}
	pool.put(r.lanes[0].w)
	return nil
}
