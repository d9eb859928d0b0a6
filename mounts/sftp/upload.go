package sftp

import (
	"context"
	"io"
	"sync"
	"time"

	"cellgate/internal/fault"
)

const (
	maxLanes   = 4        // channels of one stream
	allLanes   = 8        // of all streams, about
	inLane     = 2 << 20  // bytes under way in a channel: what its window takes
	inAll      = 20 << 20 // bytes under way in all streams, about; it bounds memory
	fanOut     = 1 << 20  // bytes from which more channels are worth their opening
	laneShared = -1
)

// upload streams into a staged file. Who calls copy reads the source and hands chunks to the lane with the least under way; more lanes join as
// they are opened.
type upload struct {
	b       *Backend
	ctx     context.Context // of the Put
	cancel  context.CancelFunc
	s       *staged
	size    int64 // declared, or -1
	depth   int   // chunks under way in a lane
	lanes   []*outlet
	results chan reply
	joined  chan struct{} // has a token when fresh is not empty
	wide    bool
	mode    *call // that sets the mode

	mu    sync.Mutex
	fresh []*outlet // guarded by mu; lanes that are ready
	over  bool      // guarded by mu; no lane may join
}

// outlet is a channel with its own handle of the file.
type outlet struct {
	w      *wire
	handle string
	out    int // chunks under way
}

func (b *Backend) newUpload(ctx context.Context, s *staged, size int64) *upload {
	u := &upload{b: b, s: s, size: size, depth: max(inLane/b.chunkW, 2), joined: make(chan struct{}, 1)}
	u.ctx, u.cancel = context.WithCancel(ctx)
	u.results = make(chan reply, (maxLanes+1)*u.depth)
	u.lanes = []*outlet{{w: s.w, handle: s.handle}}
	return u
}

// copy sends what src yields and returns its length. It has returned when src is not touched any more.
func (u *upload) copy(src io.Reader) (sent int64, err error) {
	if u.s.mode != nil { // before the content: the file may have been secret, and the temporary one is not
		u.mode = u.s.w.setstat(u.ctx, typeFsetstat, u.s.handle, wishes{mode: u.s.mode})
	}
	head := headerSize + 4 + len(u.s.handle) + 8 + 4
	for {
		room := u.b.chunkW
		if u.size >= 0 {
			room = int(min(int64(room), u.size-sent+1)) // and one byte to see whether there are more than declared
		}
		buf := u.b.pool.buffer(head + room)
		n, err := io.ReadFull(src, buf[head:head+room])
		ended := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !ended {
			return sent, fault.Wrap("mounts/sftp."+u.s.op, u.s.name, err)
		}
		if u.size >= 0 && (sent+int64(n) > u.size || ended && sent+int64(n) < u.size) {
			return sent, refusal(u.s.op, u.s.name, fault.Invalid, errLength)
		}
		if err := u.ctx.Err(); err != nil {
			return sent, err
		}
		if n > 0 {
			if err := u.send(buf, head, n, sent); err != nil {
				return sent, err
			}
			sent += int64(n)
		}
		if ended {
			return sent, nil
		}
		if !u.wide && (sent >= fanOut || u.size >= 4*fanOut) {
			u.wide = true
			u.widen()
		}
	}
}

// send writes buf[head:head+n] at off, in the lane with the least to do.
func (u *upload) send(buf []byte, head, n int, off int64) error {
	lane, err := u.free()
	if err != nil {
		return err
	}
	o := u.lanes[lane]
	start := head - (headerSize + 4 + len(o.handle) + 8 + 4) // handles differ in length
	if start < 0 {
		return refusal(u.s.op, u.s.name, fault.Unavailable, errShort)
	}
	p := packet(buf[start : start+headerSize : len(buf)])
	p[4] = typeWrite
	p = p.str(o.handle).u64(uint64(off)).u32(uint32(n))
	o.out++
	_, err = o.w.enqueue(u.ctx, p[:len(p)+n], true, waiting{to: u.results, tag: lane})
	return err
}

// free returns a lane that takes another chunk, waiting for one if need be. The first lane is the one that short calls use too: it is spared
// as soon as there are others.
func (u *upload) free() (int, error) {
	for {
		for more := true; more; {
			select {
			case r := <-u.results:
				if err := u.landed(r); err != nil {
					return 0, err
				}
			default:
				more = false
			}
		}
		u.join()
		best, out := laneShared, 0
		for i, o := range u.lanes {
			out += o.out
			if i == 0 && len(u.lanes) > 2 {
				continue
			}
			if o.out < u.depth && (best == laneShared || o.out < u.lanes[best].out) {
				best = i
			}
		}
		if best >= 0 && out*u.b.chunkW < u.b.pool.ahead(len(u.lanes)) {
			return best, nil
		}
		select {
		case r := <-u.results:
			if err := u.landed(r); err != nil {
				return 0, err
			}
		case <-u.joined:
		case <-u.ctx.Done():
			return 0, u.ctx.Err()
		}
	}
}

// landed counts the answer to a write.
func (u *upload) landed(r reply) error {
	o := u.lanes[r.tag]
	o.out--
	return (&call{w: o.w}).judge(r, typeStatus)
}

// join takes lanes in that were opened meanwhile.
func (u *upload) join() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lanes = append(u.lanes, u.fresh...)
	u.fresh = nil
}

// widen opens further lanes in the background.
func (u *upload) widen() {
	u.b.pool.mark(u.s.w, 1)
	for range u.b.pool.share() {
		u.b.pool.spawn(func() {
			w, err := u.b.pool.lane()
			if err != nil {
				return
			}
			handle, err := w.open(u.ctx, u.s.temp, openWrite, wishes{}).handle(u.ctx)
			u.mu.Lock()
			defer u.mu.Unlock()
			if err != nil || u.over || len(handle) > len(u.lanes[0].handle) {
				if err == nil {
					w.closeHandle(handle)
				}
				u.b.pool.leave(w)
				return
			}
			u.fresh = append(u.fresh, &outlet{w: w, handle: handle})
			select {
			case u.joined <- struct{}{}:
			default:
			}
		})
	}
}

// finish completes the file. A small one into one lane of an orderly server is sealed before the answers to its writes are in.
func (u *upload) finish(modTime time.Time, size int64) error {
	var sealed func(int64) error
	if u.b.orderly && len(u.lanes) == 1 {
		sealed = u.s.seal(u.ctx, modTime)
	}
	for i := 0; i < len(u.lanes); {
		if u.lanes[i].out == 0 {
			i++
			continue
		}
		select {
		case r := <-u.results:
			if err := u.landed(r); err != nil {
				return err
			}
		case <-u.ctx.Done():
			return u.ctx.Err()
		}
	}
	if u.mode != nil {
		if err := u.mode.ok(u.ctx); err != nil {
			return err
		}
	}
	var closing []*call
	for _, o := range u.lanes[1:] {
		closing = append(closing, o.w.simple(u.ctx, typeClose, o.handle))
		o.handle = ""
	}
	if sealed == nil && u.b.orderly { // what was written is in the file, whatever handle it came by
		sealed = u.s.seal(u.ctx, modTime)
	}
	for _, c := range closing { // a close may be what tells of a failed write
		if err := c.ok(u.ctx); err != nil {
			return err
		}
	}
	if sealed == nil {
		sealed = u.s.seal(u.ctx, modTime)
	}
	return sealed(size)
}

// end gives the lanes back. Handles that are open still are closed.
func (u *upload) end() {
	u.mu.Lock()
	u.over = true
	u.lanes = append(u.lanes, u.fresh...)
	u.fresh = nil
	u.mu.Unlock()
	u.cancel()
	for _, o := range u.lanes[1:] {
		if o.handle != "" {
			o.w.closeHandle(o.handle)
		}
		u.b.pool.leave(o.w)
	}
	if u.wide {
		u.b.pool.mark(u.s.w, -1)
		u.b.pool.unshare()
	}
}
