package dropbox

import (
	"sync"
	"time"
)

// buffers are the blocks that uploads are read into. All uploads together have so many, but each has one of its own in any case.
type buffers struct {
	spare chan struct{} // holds one for each block in use, as far as there is room

	mu   sync.Mutex
	over int            // blocks in use beyond that; guarded by mu
	free []*[block]byte // kept for the next uploads; guarded by mu
	idle *time.Timer    // drops free; guarded by mu
}

const (
	blocksMost = 6                // in use, unless more uploads go on at the same time
	blocksIdle = 10 * time.Second // for which blocks are kept that nobody uses
)

// newBuffers returns those for uploads over so many connections: a block that waits for one serves nobody.
func newBuffers(connections int) *buffers {
	return &buffers{spare: make(chan struct{}, min(blocksMost, connections))}
}

// use counts a block, whatever is in use.
func (p *buffers) use() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.try() {
		p.over++
	}
}

// try counts a block if there is room.
func (p *buffers) try() bool {
	select {
	case p.spare <- struct{}{}:
		return true
	default:
		return false
	}
}

// done says that a block that was counted is not used any more.
func (p *buffers) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over > 0 {
		p.over--
		return
	}
	<-p.spare
}

// get returns a block that was counted.
func (p *buffers) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b[:]
	}
	return new([block]byte)[:]
}

// put takes a block back, of which data is the beginning.
func (p *buffers) put(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) >= blocksMost {
		return
	}
	p.free = append(p.free, (*[block]byte)(data[:block]))
	if p.idle == nil {
		p.idle = time.AfterFunc(blocksIdle, p.drop)
	} else {
		p.idle.Reset(blocksIdle)
	}
}

// drop forgets the blocks that nobody uses.
func (p *buffers) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = nil
}
