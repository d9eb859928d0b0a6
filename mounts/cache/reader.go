package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	few  = 4       // blocks that are fetched at the opening; more are streamed
	skip = 4 << 20 // bytes that are read over rather than asked for anew
)

var (
	errChanged = errors.New("the file is another one than it was a moment ago")
	errShort   = errors.New("the file ended too early")
)

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name); err != nil {
		return nil, err
	}
	if b.blocks == nil || off < 0 || b.m.openForWriting(name) {
		return b.direct(ctx, name, off, n)
	}
	for range 2 { // once more when what is remembered of the file is not true any more
		info, err := b.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		id, ok := identify(info, b.clock.Now())
		if !ok {
			break
		}
		r := &reader{ctx: ctx, b: b, name: name, info: info, c: b.blocks.content(b.m.key(name), id), pins: map[int64]*block{}}
		r.pos = min(off, info.Size)
		if r.end = info.Size; n >= 0 {
			r.end = min(r.pos+min(n, info.Size), info.Size)
		}
		if err = r.open(); err == nil {
			return r, nil
		}
		r.Close()
		others := fault.KindOf(err) == fault.Canceled && ctx.Err() == nil // he who fetched for us went away, again and again
		if !errors.Is(err, errChanged) && !others {
			return nil, err
		}
		b.Invalidate(name)
	}
	return b.direct(ctx, name, off, n)
}

// direct opens a file without the block cache. What the reader says of the file is remembered.
func (b *Backend) direct(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	f := b.m.witness(name)
	kept := false
	defer func() {
		if !kept {
			b.m.landStat(f, mounts.Info{}, nil, true)
		}
	}()
	r, err := b.next.Open(ctx, name, off, n)
	if err != nil {
		if kind := fault.KindOf(err); kind == fault.NotExist || kind == fault.NotDir || kind == fault.IsDir {
			b.m.invalidate(name) // so what is remembered is not true
		}
		return nil, err
	}
	s, ok := r.(mounts.Stater)
	if _, local := r.(mounts.Descriptor); !ok || local || b.m.age <= 0 {
		return r, nil // a file of this machine is to be seen as such
	}
	kept = true
	return &telling{ReadCloser: r, s: s, m: b.m, f: f}, nil
}

// telling is a reader of the backend whose Stat is remembered.
type telling struct {
	io.ReadCloser
	s    mounts.Stater
	m    *memory
	f    *flight
	once sync.Once
}

// Stat implements mounts.Stater.
func (r *telling) Stat() (mounts.Info, error) {
	info, err := r.s.Stat()
	r.once.Do(func() { r.m.landStat(r.f, info, err, err != nil || info.Size < 0 || info.ModTime.IsZero()) }) // else it is all there is to know
	return info, err
}

func (r *telling) Close() error {
	r.once.Do(func() { r.m.landStat(r.f, mounts.Info{}, nil, true) })
	return r.ReadCloser.Close()
}

func (m *memory) openForWriting(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isOpen(m.key(name))
}

// openSame opens a range of a file, or fails with errChanged when its content is not c.
func (b *Backend) openSame(ctx context.Context, name string, c *content, off, n int64) (io.ReadCloser, error) {
	r, err := b.direct(ctx, name, off, n)
	if err != nil {
		if fault.KindOf(err) == fault.NotExist {
			err = fault.New("mounts/cache.Open", name, fault.NotExist, errors.Join(errChanged, err))
		}
		return nil, err
	}
	var info mounts.Info
	if s, ok := r.(mounts.Stater); ok {
		info, err = s.Stat()
	} else { // it was this content before and after: so it is
		info, err = b.next.Stat(ctx, name)
	}
	if err == nil {
		if id, ok := identify(info, b.clock.Now()); !ok || id != c.id {
			err = fault.New("mounts/cache.Open", name, fault.Unavailable, errChanged)
		}
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// fetch fills blocks that are the caller's, in a row, from one stream of the backend.
func (b *Backend) fetch(ctx context.Context, name string, c *content, run []*block) (err error) {
	filled := 0
	defer func() { // also when the backend panics
		if filled < len(run) && err == nil {
			err = fault.New("mounts/cache.Open", name, fault.Internal, nil)
		}
		for _, blk := range run[filled:] {
			b.blocks.fill(blk, nil, err)
		}
	}()
	off, n := run[0].i*b.blocks.size, int64(0)
	for _, blk := range run {
		n += int64(blk.size)
	}
	r, err := b.openSame(ctx, name, c, off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	var data []byte
	for _, blk := range run {
		if cap(data) < blk.size {
			data = make([]byte, blk.size)
		}
		data = data[:blk.size]
		if err = readFull(r, data, name); err != nil {
			return err
		}
		filled++
		if !b.blocks.fill(blk, data, nil) {
			data = nil // others read it
		}
	}
	return nil
}

func readFull(r io.Reader, data []byte, name string) error {
	_, err := io.ReadFull(r, data)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fault.New("mounts/cache.Read", name, fault.Unavailable, errShort)
	}
	return fault.Wrap("mounts/cache.Read", name, err)
}

// reader gives one content from blocks and, where there are none, from its own stream.
type reader struct {
	ctx      context.Context
	b        *Backend
	name     string
	info     mounts.Info
	c        *content
	pos, end int64
	closed   bool

	pins  map[int64]*block // pinned since the opening
	cur   *block           // pinned, where pos is
	data  []byte           // the block cur in the clear, when this reader fetched it itself
	kept  chan bool        // of data: says once whether it was stored, which goes on meanwhile
	spare []byte           // to fetch the next one into
	chunk []byte           // a chunk of cur in the clear, number k
	k     int
	buf   []byte

	stream io.ReadCloser // the backend's, at the place at
	at     int64
	scan   bool // it reads too much to be kept: blocks that are missing are not stored
	plain  bool // from the stream only: the cache failed, or has no more for a scan
}

func (r *reader) open() error {
	if r.pos >= r.end {
		return nil
	}
	size := r.b.blocks.size
	first, last := r.pos/size, (r.end-1)/size
	if last-first < few {
		err := r.load(first, last)
		r.b.fetchAhead(r.name, r.c, first, last)
		return err
	}
	r.scan = last-first >= r.b.blocks.slots/share
	for i := first; i <= last; i++ {
		blk := r.b.blocks.stored(r.c, i)
		switch {
		case blk == nil && r.scan:
			return r.seek(max(i*size, r.pos), r.end)
		case blk == nil:
			return r.seek(i*size, r.alignedEnd())
		}
		r.pins[i] = blk
	}
	return nil
}

// alignedEnd is where the last block ends that is needed.
func (r *reader) alignedEnd() int64 {
	size := r.b.blocks.size
	return min((r.end+size-1)/size*size, r.c.id.size)
}

// load pins the blocks from first to last, fetching what is missing and nobody else fetches.
func (r *reader) load(first, last int64) error {
	var failed error
	for range 3 { // another's fetch may fail for reasons of its own
		var mine, others []*block
		failed = nil
		for i := first; i <= last; i++ {
			if r.pins[i] != nil {
				continue
			}
			blk, own := r.b.blocks.acquire(r.c, i)
			if r.pins[i] = blk; own {
				mine = append(mine, blk)
			} else {
				others = append(others, blk)
			}
		}
		for len(mine) > 0 { // runs of neighbours
			n := 1
			for n < len(mine) && mine[n].i == mine[0].i+int64(n) {
				n++
			}
			run := mine[:n]
			mine = mine[n:]
			if failed != nil {
				for _, blk := range run {
					r.b.blocks.fill(blk, nil, failed)
				}
			} else {
				failed = r.b.fetch(r.ctx, r.name, r.c, run)
			}
		}
		if failed != nil {
			return failed
		}
		for _, blk := range others {
			select {
			case <-blk.done:
			case <-r.ctx.Done():
				return fault.Wrap("mounts/cache.Open", r.name, r.ctx.Err())
			}
			if blk.err != nil {
				failed = blk.err
				delete(r.pins, blk.i)
				r.b.blocks.release(blk)
			}
		}
		if failed == nil {
			return nil
		}
	}
	return failed
}

// fetchAhead fetches what follows in the background when the file is being read piece by piece.
func (b *Backend) fetchAhead(name string, c *content, first, last int64) {
	n := b.ahead / b.blocks.size
	end := (c.id.size + b.blocks.size - 1) / b.blocks.size
	if n <= 0 || last+1 >= end || first > 0 && !b.blocks.known(c, first-1) {
		return
	}
	if next := last + 1 + n/2; b.blocks.known(c, last+1) && (next >= end || b.blocks.known(c, next)) {
		return
	}
	select {
	case b.busy <- struct{}{}:
	default:
		return
	}
	var run []*block
	for i := last + 1; i < min(last+1+n, end); i++ {
		blk, mine := b.blocks.acquire(c, i)
		if !mine {
			b.blocks.release(blk)
			if len(run) > 0 {
				break
			}
			continue
		}
		run = append(run, blk)
	}
	if len(run) == 0 {
		<-b.busy
		return
	}
	ctx := b.ctx()
	b.tasks.Go(func() {
		defer func() {
			if p := recover(); p != nil { // nobody above could catch it
				b.logger.Error("fetching ahead panicked", "path", name, "panic", p)
			}
			for _, blk := range run {
				b.blocks.release(blk)
			}
			<-b.busy
		}()
		if err := b.fetch(ctx, name, c, run); err != nil {
			b.logger.Debug("fetching ahead failed", "path", name, "err", err)
		}
	})
}

// seek has the stream stand at off; it goes to the end at least.
func (r *reader) seek(off, end int64) error {
	if r.stream != nil && r.at == off {
		return nil
	}
	if r.stream == nil || off < r.at || off-r.at > skip {
		s, err := r.b.openSame(r.ctx, r.name, r.c, off, end-off)
		if err == nil {
			if r.stream != nil {
				r.stream.Close()
			}
			r.stream, r.at = s, off
			return nil
		}
		if r.stream == nil || off < r.at || r.ctx.Err() != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, struct{ io.Reader }{r.stream}, off-r.at) // it still is what was opened, whatever the name stands for now
	r.at += n
	if err == io.EOF {
		err = fault.New("mounts/cache.Read", r.name, fault.Unavailable, errShort)
	}
	return fault.Wrap("mounts/cache.Read", r.name, err)
}

func (r *reader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, fault.New("mounts/cache.Read", r.name, fault.Invalid, os.ErrClosed)
	}
	if err := r.b.begin(r.ctx, "Read", r.name); err != nil {
		return 0, err
	}
	if r.pos >= r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > r.end-r.pos {
		p = p[:r.end-r.pos]
	}
	if i := r.pos / r.b.blocks.size; r.scan && (r.cur == nil || r.cur.i != i) && r.pins[i] == nil {
		r.plain = true
	}
	if !r.plain {
		from, err := r.piece()
		if err == nil {
			n := copy(p, from)
			r.pos += int64(n)
			return n, nil
		}
		if !errors.Is(err, errDisk) {
			return 0, err
		}
		r.plain = true
	}
	if err := r.seek(r.pos, r.end); err != nil {
		return 0, err
	}
	n, err := r.stream.Read(p)
	r.pos += int64(n)
	r.at += int64(n)
	if err == io.EOF && r.pos < r.end {
		if n == 0 {
			return 0, fault.New("mounts/cache.Read", r.name, fault.Unavailable, errShort)
		}
		err = nil
	}
	return n, err
}

// piece returns some of the bytes at pos.
func (r *reader) piece() ([]byte, error) {
	size := r.b.blocks.size
	i := r.pos / size
	if r.cur == nil || r.cur.i != i {
		if err := r.turn(i); err != nil {
			return nil, err
		}
	}
	off := r.pos - i*size
	switch {
	case r.data != nil:
		return r.data[off:], nil
	case r.cur.data != nil:
		return r.cur.data[off:], nil
	}
	if k := int(off / chunk); r.chunk == nil || r.k != k {
		if n := min(r.cur.size, chunk) + overhead; len(r.buf) < n {
			r.buf = make([]byte, n)
		}
		r.chunk = nil
		c, err := r.b.blocks.read(r.cur, k, r.buf)
		if err != nil {
			return nil, errors.Join(errDisk, err)
		}
		r.chunk, r.k = c, k
	}
	return r.chunk[off%chunk:], nil
}

// leave gives the current block back, once it is stored.
func (r *reader) leave() {
	if r.data != nil {
		if <-r.kept { // else others read it
			r.spare = r.data
		}
		r.data, r.kept = nil, nil
	}
	if r.cur != nil {
		r.b.blocks.release(r.cur)
	}
	r.cur, r.chunk = nil, nil
}

// turn makes i the current block.
func (r *reader) turn(i int64) error {
	r.leave()
	if blk := r.pins[i]; blk != nil {
		delete(r.pins, i)
		r.cur = blk
		return nil
	}
	for {
		blk, mine := r.b.blocks.acquire(r.c, i)
		if mine {
			return r.fill(blk)
		}
		select {
		case <-blk.done:
		case <-r.ctx.Done():
			r.b.blocks.release(blk)
			return fault.Wrap("mounts/cache.Read", r.name, r.ctx.Err())
		}
		if blk.err == nil {
			r.cur = blk
			return nil
		}
		r.b.blocks.release(blk) // he who fetched it failed or went away
	}
}

// fill fetches a block from the stream, for all who wait for it. It is stored while this reader's client takes it.
func (r *reader) fill(blk *block) (err error) {
	var data []byte
	done := false
	defer func() {
		if !done && err == nil {
			err = fault.New("mounts/cache.Read", r.name, fault.Internal, nil)
		}
		if err != nil {
			r.b.blocks.fill(blk, nil, err)
			r.b.blocks.release(blk)
			return
		}
		kept := make(chan bool, 1)
		r.cur, r.data, r.kept = blk, data, kept
		go func() { kept <- r.b.blocks.fill(blk, data, nil) }()
	}()
	if err = r.seek(blk.i*r.b.blocks.size, r.alignedEnd()); err != nil {
		done = true
		return err
	}
	if data = r.spare; cap(data) < blk.size {
		data = make([]byte, blk.size)
	}
	r.spare, data = nil, data[:blk.size]
	if err = readFull(r.stream, data, r.name); err != nil {
		r.stream.Close() // nobody knows where it stands
		r.stream = nil
	}
	r.at += int64(blk.size)
	done = true
	return err
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.leave()
	for _, blk := range r.pins {
		r.b.blocks.release(blk)
	}
	if r.stream != nil {
		return r.stream.Close()
	}
	return nil
}
