package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
)

// outbound is the content of an upload to a backend that nothing can be staged on: one across a network, or one without random access. What
// is written in order goes to the backend's own atomic Put while it comes, except for what is held back until the upload is published:
// without it the backend cannot finish. A small body waits in memory, one that is written at any place in an unlinked file of this machine.
//
//	memory ──more than memoryBody, in order──> stream
//	   └──────written at another place───────> spool
type outbound struct {
	o   *op
	opt mounts.PutOptions
	tag string // not empty: replace only what has this tag

	mu     sync.Mutex
	memory []byte         // all of it, or in a stream what is held back; guarded by mu
	end    int64          // how much was written in order; guarded by mu
	pipe   *io.PipeWriter // the way into the stream, nil without; guarded by mu
	spool  *os.File       // guarded by mu
	done   chan struct{}  // closed when the stream's Put has returned
	info   mounts.Info    // what it returned, once done
	err    error          // likewise

	ctx    context.Context // of the stream
	cancel context.CancelFunc
}

// outbound begins an upload across a network.
func (o *op) outbound(opt CreateOptions) *outbound {
	c := &outbound{o: o, opt: mounts.PutOptions{Size: opt.Size, ModTime: opt.ModTime}}
	c.ctx, c.cancel = context.WithCancel(o.g.life)
	return c
}

// expect makes what was seen at the target a condition of the backend's own, where it can keep one: between looking and publishing somebody
// else may come, who does not pass through here.
func (c *outbound) expect(u *Upload, cur mounts.Info, exists bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe != nil {
		return // on its way: what was expected then counts
	}
	c.opt.Exclusive = !exists && (u.opt.Exclusive || slices.Contains(u.opt.Cond.NoneMatch, "*") || !c.o.allowed(policy.Modify))
	c.tag = ""
	if exists && c.o.m.features.ConditionalWrite == mounts.Native && (len(u.opt.Cond.Match) > 0 || u.opt.Cond.Check != nil) {
		c.tag = cur.Tag
	}
}

const (
	memoryBody = 256 << 10 // of an upload that keeps waiting in memory
	heldBack   = 32 << 10  // of a stream, at most
)

var (
	errOrder = errors.New("what is on its way to the backend cannot be changed any more")
	errEarly = errors.New("the backend was content before it had everything")
)

// write appends p.
func (c *outbound) write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // it would let go of what is held back
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spool != nil {
		n, err := c.spool.WriteAt(p, c.end)
		c.end += int64(n)
		return n, spoolFault(err)
	}
	c.end += int64(len(p))
	if c.pipe == nil && len(c.memory)+len(p) <= memoryBody {
		c.memory = append(c.memory, p...)
		return len(p), nil
	}
	if c.pipe == nil {
		c.start()
	}
	// What was held back goes first; the end of p is held back instead.
	keep := min(len(p), heldBack)
	for _, part := range [][]byte{c.memory, p[:len(p)-keep]} {
		if len(part) > 0 {
			if _, err := c.pipe.Write(part); err != nil {
				return 0, err
			}
		}
	}
	c.memory = append(c.memory[:0], p[len(p)-keep:]...)
	return len(p), nil
}

// start lets the backend begin to take the content.
func (c *outbound) start() {
	r, w := io.Pipe()
	c.pipe, c.done = w, make(chan struct{})
	c.o.g.wg.Go(func() {
		defer close(c.done)
		c.info, c.err = c.put(c.ctx, r, c.opt)
		err := c.err
		if err == nil {
			err = fault.New("gateway.Upload", c.o.path.String(), fault.Unavailable, errEarly)
		}
		r.CloseWithError(err)
	})
}

// put hands src to the backend, under the condition there is.
func (c *outbound) put(ctx context.Context, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if c.tag != "" {
		if b, ok := mounts.As[mounts.Conditional](c.o.m.Backend); ok {
			return b.PutIf(ctx, c.o.name, c.tag, src, opt)
		}
	}
	return c.o.m.Put(ctx, c.o.name, src, opt)
}

// scatter makes a spool of what waits in memory.
func (c *outbound) scatter() error {
	switch {
	case c.spool != nil:
		return nil
	case c.pipe != nil:
		return fault.New("gateway.Upload", c.o.path.String(), fault.Unsupported, errOrder)
	}
	f, err := os.CreateTemp(c.o.g.spool, "upload-")
	if err != nil {
		return spoolFault(err)
	}
	if err := os.Remove(f.Name()); err != nil { // it lives as long as it is open: a crash leaves nothing
		return errors.Join(spoolFault(err), f.Close())
	}
	c.spool = f
	if _, err := f.WriteAt(c.memory, 0); err != nil {
		return spoolFault(err)
	}
	c.memory = nil
	return nil
}

// writeAt writes p at off.
func (c *outbound) writeAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	err := c.scatter()
	spool := c.spool
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := spool.WriteAt(p, off)
	return n, spoolFault(err)
}

// truncate sets the size.
func (c *outbound) truncate(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.scatter(); err != nil {
		return err
	}
	return spoolFault(c.spool.Truncate(size))
}

// adopt fills the upload with the size bytes that r yields, before anything is written.
func (c *outbound) adopt(r io.Reader, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.scatter(); err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(io.NewOffsetWriter(c.spool, 0), struct{ io.Reader }{r}, *buf)
	if err == nil && n != size {
		err = fault.New("gateway.Upload", c.o.path.String(), fault.Busy, errReplaced)
	}
	return err
}

// ReadAt implements io.ReaderAt for what has not left yet.
func (c *outbound) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.spool != nil:
		return c.spool.ReadAt(p, off)
	case c.pipe != nil:
		return 0, fault.New("gateway.Upload", c.o.path.String(), fault.Unsupported, errOrder)
	case off >= int64(len(c.memory)):
		return 0, io.EOF
	}
	n := copy(p, c.memory[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// publish lets the backend have the rest and returns what it made of it. The content has size bytes.
func (c *outbound) publish(ctx context.Context, size int64) (mounts.Info, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe == nil {
		var src io.Reader = bytes.NewReader(c.memory)
		if c.spool != nil {
			src = io.NewSectionReader(c.spool, 0, size)
		}
		opt := c.opt
		opt.Size = size
		return c.whole(size)(c.put(ctx, src, opt))
	}
	_, err := c.pipe.Write(c.memory)
	if err == nil {
		c.pipe.Close()
	}
	<-c.done
	if c.err == nil {
		c.err = err
	}
	return c.whole(size)(c.info, c.err)
}

// whole refuses to call a file published of which the backend says that it has another size.
func (c *outbound) whole(size int64) func(mounts.Info, error) (mounts.Info, error) {
	return func(info mounts.Info, err error) (mounts.Info, error) {
		if err == nil && info.Size >= 0 && info.Size != size {
			err = fault.New("gateway.Upload", c.o.path.String(), fault.Unavailable, fmt.Errorf("the backend has %d bytes of %d", info.Size, size))
		}
		return info, err
	}
}

// close gives up what was not published. The backend cleans up by itself.
func (c *outbound) close() error {
	c.cancel() // first: it frees a write that waits for a backend which does not take it
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe != nil {
		c.pipe.CloseWithError(fault.New("gateway.Upload", c.o.path.String(), fault.Canceled, errOver))
	}
	c.memory = nil
	if c.spool != nil {
		return c.spool.Close()
	}
	return nil
}

// spoolFault says that it is this machine's own volume that fails.
func spoolFault(err error) error { return fault.Wrap("gateway.spool", "", err) }
