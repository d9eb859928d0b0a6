package sftp

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// blockSize is that of the buffers that data passes through: two packets of SSH, and no more than stays in a processor's cache on the way from the
// file to the cipher. Whoever is slow holds one of them and not a whole answer.
const blockSize = 64 << 10

type block [blockSize]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

// maxWaiting bounds the bytes of small replies that wait for a client to take them.
const maxWaiting = 128 << 10

// out sends replies. Who finds nobody at it writes for all: replies that come meanwhile are joined and go out together.
type out struct {
	w io.Writer

	mu      sync.Mutex
	free    *sync.Cond // busy or waiting has become less
	waiting []byte     // replies to be written; guarded by mu
	spare   []byte     // the other of two buffers; guarded by mu
	busy    bool       // somebody writes; guarded by mu
	err     error      // of a write: nothing can be sent any more; guarded by mu

	moved atomic.Int64 // when something was last written, or was to be while nothing waited; 0 while nothing waits
}

func newOut(w io.Writer) *out {
	o := &out{w: w}
	o.free = sync.NewCond(&o.mu)
	return o
}

// send writes p, or leaves it to who is writing. p is not kept.
func (o *out) send(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy && len(o.waiting) > maxWaiting && o.err == nil {
		o.free.Wait()
	}
	o.waiting = append(o.waiting, p...)
	if !o.busy {
		o.busy = true
		o.drain()
	}
}

// drain writes what waits until nothing does. The caller holds mu, and busy is its.
func (o *out) drain() {
	for len(o.waiting) > 0 && o.err == nil {
		batch := o.waiting
		o.waiting, o.spare = o.spare[:0], nil
		o.free.Broadcast()
		o.mu.Unlock()
		err := o.write(batch)
		o.mu.Lock()
		if cap(batch) <= blockSize {
			o.spare = batch[:0]
		}
		o.err = err
	}
	if o.err != nil || cap(o.waiting) > 4<<10 {
		o.waiting, o.spare = nil, nil // an idle session keeps little
	}
	o.busy = false
	o.moved.Store(0)
	o.free.Broadcast()
}

// take makes the caller the one who writes. It reports false when nothing can be sent any more.
func (o *out) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy && o.err == nil {
		o.free.Wait()
	}
	if o.err != nil {
		return false
	}
	o.busy = true
	return true
}

// release ends what take began.
func (o *out) release(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	o.drain()
}

// write sends p now. Only who is writing may.
func (o *out) write(p []byte) error {
	o.moved.Store(time.Now().UnixNano())
	_, err := o.w.Write(p)
	return err
}

// stalled reports whether something has been waiting to be taken since before t.
func (o *out) stalled(t time.Time) bool {
	moved := o.moved.Load()
	return moved != 0 && moved < t.UnixNano()
}
