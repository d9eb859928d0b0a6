package sftp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	client "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

const (
	queueLen = 256
	gather   = 16 << 10 // small packets that wait together are written together
)

// wire is one SFTP session in one channel of an SSH connection. The library's client and requests of our own share it: every request gets an
// id of the wire's, and answers go to who asked. One goroutine writes, one reads. A request is forgotten when its context ends, which leaves
// the wire in order: its answer is thrown away when it comes.
type wire struct {
	link   *link
	ch     ssh.Channel
	client *client.Client
	main   bool // the first of its link: not for long streams, when there are others

	queue chan outgoing
	gone  chan struct{} // closed with err set
	last  atomic.Int64  // when bytes last moved, in Unix nanoseconds

	toLib *io.PipeWriter

	mu      sync.Mutex
	pending map[uint32]waiting // guarded by mu
	slow    int                // guarded by mu; pending requests that may take long
	next    uint32             // guarded by mu
	err     error              // guarded by mu

	users, streams int       // guarded by pool.mu
	used           time.Time // guarded by pool.mu; when it last had users
}

type outgoing struct {
	p      packet
	id     uint32
	pooled bool
}

// waiting is a request without an answer.
type waiting struct {
	to    chan<- reply // nil: nobody cares any more
	tag   int
	lib   bool
	libID uint32
	opens bool // the answer is a handle, to be closed when nobody takes it
	slow  bool // it may take long without a byte: it has four times the timeout
	sent  bool
}

// reply is an answer, without its id. Its body is valid until release.
type reply struct {
	tag  int
	typ  byte
	body []byte
	full []byte // the pooled buffer that body lies in
	err  error
}

// newWire returns a wire that is not yet started.
func (l *link) newWire(ch ssh.Channel) *wire {
	w := &wire{link: l, ch: ch, queue: make(chan outgoing, queueLen), gone: make(chan struct{}), pending: map[uint32]waiting{}}
	w.touch()
	return w
}

// start runs the goroutines of w and lets the library greet the server.
func (w *wire) start() error {
	p := w.link.pool
	fromWire, toLib := io.Pipe()
	w.toLib = toLib
	w.mu.Lock()
	w.pending[0] = waiting{} // the greeting: without it the watch would not look
	w.mu.Unlock()
	p.wg.Go(w.write)
	p.wg.Go(w.read)
	c, err := client.NewClientPipe(fromWire, &tap{w: w, answers: fromWire})
	if err != nil {
		w.fail(&lostError{cause: err})
		return w.cause()
	}
	w.client = c
	w.mu.Lock()
	delete(w.pending, 0)
	w.mu.Unlock()
	return nil
}

func (w *wire) touch() { w.last.Store(time.Now().UnixNano()) }

func (w *wire) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *wire) dead() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

// load is the number of requests without an answer, and whether any may take long.
func (w *wire) load() (n int, slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pending), w.slow > 0
}

// fail ends w for good: everybody who waits is told err. The first error counts.
func (w *wire) fail(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	close(w.gone)
	orphans := w.pending
	w.pending = map[uint32]waiting{}
	w.mu.Unlock()
	for _, o := range orphans {
		if o.to != nil {
			o.to <- reply{tag: o.tag, err: lost(err, o.sent)}
		}
	}
	if w.toLib != nil {
		w.toLib.CloseWithError(io.EOF)
	}
	w.link.pool.drop(w)
	w.link.pool.spawn(func() { w.ch.Close() }) // may wait for a stalled connection, until that is closed
}

// lost is err, why a wire ended, as seen by one request.
func lost(err error, sent bool) error {
	var l *lostError
	if errors.As(err, &l) {
		return &lostError{cause: l.cause, stalled: l.stalled, sent: sent}
	}
	return &lostError{cause: err, sent: sent}
}

// enqueue gives p an id and a place in the queue. What is sent by one goroutine arrives in that order.
func (w *wire) enqueue(ctx context.Context, p packet, pooled bool, how waiting) (uint32, error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return 0, lost(w.err, false)
	}
	for w.next++; ; w.next++ {
		if _, taken := w.pending[w.next]; !taken && w.next != 0 {
			break
		}
	}
	id := w.next
	if len(w.pending) == 0 {
		w.touch()
	}
	w.pending[id] = how
	if how.slow {
		w.slow++
	}
	w.mu.Unlock()
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	binary.BigEndian.PutUint32(p[5:], id)
	select {
	case w.queue <- outgoing{p, id, pooled}:
		return id, nil
	default:
	}
	select {
	case w.queue <- outgoing{p, id, pooled}:
		return id, nil
	case <-ctx.Done():
		w.take(id)
		return 0, ctx.Err()
	case <-w.gone:
		return 0, lost(w.cause(), false) // fail has answered on the channel too, where nobody looks now
	}
}

// take removes a pending request and returns it.
func (w *wire) take(id uint32) (waiting, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.pending[id]
	if ok {
		delete(w.pending, id)
		if r.slow {
			w.slow--
		}
	}
	return r, ok
}

// passed notes that requests went out: after that, a lost connection leaves open whether they were carried out.
func (w *wire) passed(ids []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if r, ok := w.pending[id]; ok {
			r.sent = true
			w.pending[id] = r
		}
	}
}

// write is the goroutine that sends.
func (w *wire) write() {
	scratch, ids := make([]byte, 0, gather), make([]uint32, 0, queueLen)
	for {
		var o outgoing
		select {
		case o = <-w.queue:
		case <-w.gone:
			return
		}
		scratch, ids = scratch[:0], ids[:0]
		for more := true; more; {
			if len(scratch)+len(o.p) > gather && len(scratch) > 0 {
				if !w.out(scratch, ids) {
					return
				}
				scratch, ids = scratch[:0], ids[:0]
			}
			ids = append(ids, o.id)
			if len(o.p) > gather {
				if !w.out(o.p, ids) {
					return
				}
				ids = ids[:0]
			} else {
				scratch = append(scratch, o.p...)
			}
			if o.pooled {
				w.link.pool.give(o.p)
			}
			select {
			case o = <-w.queue:
			default:
				more = false
			}
		}
		if len(scratch) > 0 && !w.out(scratch, ids) {
			return
		}
	}
}

// out writes some requests.
func (w *wire) out(b []byte, ids []uint32) bool {
	if _, err := w.ch.Write(b); err != nil {
		w.broke(err)
		return false
	}
	w.passed(ids)
	w.touch()
	return true
}

// read is the goroutine that receives.
func (w *wire) read() {
	in := bufio.NewReaderSize(w.ch, 16<<10)
	var head [headerSize]byte
	for {
		if err := w.receive(in, head[:]); err != nil {
			w.broke(err)
			return
		}
	}
}

// broke ends w after an error of its channel. Where that is one of the whole connection, all the other wires of it end first, so that a call
// which is tried again meets none of them.
func (w *wire) broke(err error) {
	if !errors.Is(err, errShort) {
		select {
		case <-w.link.ended:
		case <-time.After(linkEnds):
		case <-w.gone:
		}
	}
	w.fail(&lostError{cause: err})
}

// linkEnds is how long after its channels a connection that breaks is known to be gone.
const linkEnds = 20 * time.Millisecond

// receive reads one packet and hands it to who waits for it.
func (w *wire) receive(in *bufio.Reader, head []byte) error {
	if _, err := io.ReadFull(in, head[:5]); err != nil {
		if err == io.EOF {
			return errors.New("the server closed it")
		}
		return err
	}
	w.touch()
	size, typ := binary.BigEndian.Uint32(head), head[4]
	if size < 5 || size > maxPacket {
		return errShort
	}
	if typ == typeVersion {
		return w.greet(in, head, int(size))
	}
	if _, err := io.ReadFull(in, head[5:]); err != nil {
		return err
	}
	r := reply{typ: typ}
	if n := int(size) - 5; n > gather {
		r.full = w.link.pool.buffer(n)
		r.body = r.full[:n]
	} else {
		r.body = make([]byte, n)
	}
	if _, err := io.ReadFull(&toucher{w, in}, r.body); err != nil {
		return err
	}
	var ok bool
	if r.body, ok = sound(typ, r.body); !ok && typ != typeExtReply {
		return errShort
	}
	id := binary.BigEndian.Uint32(head[5:])
	to, known := w.take(id)
	if !known {
		w.mu.Lock()
		defer w.mu.Unlock()
		if id == 0 || id > w.next { // never asked
			return errShort
		}
		w.link.pool.release(r)
		return nil
	}
	switch {
	case to.lib:
		if !ok {
			return errShort
		}
		defer w.link.pool.release(r)
		return w.forward(to.libID, r)
	case to.to == nil:
		if to.opens && typ == typeHandle {
			in := input{b: r.body}
			w.closeHandle(string(in.bytes()))
		}
		w.link.pool.release(r)
	default:
		r.tag = to.tag
		to.to <- r
	}
	return nil
}

// toucher notes that bytes move while a large packet comes in slowly.
type toucher struct {
	w *wire
	r io.Reader
}

func (t *toucher) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.w.touch()
	return n, err
}

// greet hands the VERSION packet, which has no id, to the library.
func (w *wire) greet(in io.Reader, head []byte, size int) error {
	w.mu.Lock()
	_, expected := w.pending[0]
	w.mu.Unlock()
	if !expected {
		return errShort
	}
	p := make([]byte, 4+size)
	copy(p, head[:5])
	if _, err := io.ReadFull(in, p[5:]); err != nil {
		return err
	}
	_, err := w.toLib.Write(p)
	return err
}

// forward gives an answer to the library under the id it asked with.
func (w *wire) forward(id uint32, r reply) error {
	p := make([]byte, headerSize, headerSize+len(r.body))
	binary.BigEndian.PutUint32(p, uint32(len(r.body)+5))
	p[4] = r.typ
	binary.BigEndian.PutUint32(p[5:], id)
	_, err := w.toLib.Write(append(p, r.body...))
	return err
}

// tap is where the library writes to. It puts the packets together and sends them under ids of the wire's.
type tap struct {
	w       *wire
	answers *io.PipeReader
	buf     []byte
}

func (t *tap) Write(b []byte) (int, error) {
	t.buf = append(t.buf, b...)
	for len(t.buf) >= headerSize {
		size := int(binary.BigEndian.Uint32(t.buf)) + 4
		if len(t.buf) < size {
			break
		}
		p := packet(append([]byte(nil), t.buf[:size]...))
		t.buf = t.buf[:copy(t.buf, t.buf[size:])]
		if p[4] == typeInit {
			select {
			case t.w.queue <- outgoing{p: p}:
			case <-t.w.gone:
				return 0, lost(t.w.cause(), false)
			}
			continue
		}
		how := waiting{lib: true, libID: binary.BigEndian.Uint32(p[5:])}
		how.slow = p[4] == typeExtended && bytes.HasPrefix(p[headerSize+4:], []byte(extFsync))
		if _, err := t.w.enqueue(context.Background(), p, false, how); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// Close is called by the library when it gives up, after which nobody would read its answers.
func (t *tap) Close() error {
	t.answers.CloseWithError(errPanic)
	t.w.fail(&lostError{cause: errPanic})
	return nil
}

// ask runs one question of the library, and comes back when ctx ends, whatever the library does. A panic of it, by an answer it did not
// expect, is an error.
func (w *wire) ask(ctx context.Context, do func(c *client.Client) error) error {
	answer := make(chan error, 1)
	if !w.link.pool.spawn(func() {
		defer func() {
			if p := recover(); p != nil {
				w.fail(&lostError{cause: errPanic})
				answer <- errPanic
			}
		}()
		answer <- do(w.client)
	}) {
		return errClosed
	}
	select {
	case err := <-answer:
		if errors.Is(err, client.ErrSSHFxConnectionLost) {
			if cause := w.cause(); cause != nil {
				return lost(cause, true)
			}
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
