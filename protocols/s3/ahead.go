package s3

import (
	"io"
	"sync"
	"time"

	"cellgate/gateway"
)

// aheadFrom is from what size on a body is read by a goroutine of its own while what came before is hashed and written.
const aheadFrom = 1 << 20

// blocks are what goes through between the two.
var blocks = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

type block struct {
	buf *[]byte
	n   int
	err error
}

// ahead reads a body ahead, by at most three blocks.
type ahead struct {
	q    *request
	out  chan block
	stop chan struct{}
	done chan struct{}
	over bool // the last block has come
}

func (q *request) ahead(c *content) *ahead {
	a := &ahead{q: q, out: make(chan block, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go a.read(c)
	return a
}

func (a *ahead) read(c *content) {
	defer close(a.done)
	defer close(a.out)
	for {
		b := block{buf: blocks.Get().(*[]byte)}
		for b.n < len(*b.buf) && b.err == nil {
			var n int
			n, b.err = c.Read((*b.buf)[b.n:])
			b.n += n
		}
		last := b.err != nil
		select {
		case a.out <- b:
		case <-a.stop:
			blocks.Put(b.buf)
			return
		}
		if last {
			return
		}
	}
}

// close ends the goroutine. Where it still waits for the client, the client is not waited for.
func (a *ahead) close() {
	close(a.stop)
	if !a.over {
		a.q.w.rc.SetReadDeadline(time.Unix(1, 0))
	}
	<-a.done
	for b := range a.out {
		blocks.Put(b.buf)
	}
}

// each hands every block to write, in order, and returns how the body ended: nil when it is whole.
func (a *ahead) each(write func(p []byte) error) error {
	for b := range a.out {
		var err error
		a.over = b.err != nil
		if b.n > 0 {
			err = write((*b.buf)[:b.n])
		}
		blocks.Put(b.buf)
		switch {
		case err != nil:
			return err
		case b.err == io.EOF:
			return nil
		case b.err != nil:
			return b.err
		}
	}
	return errGone
}

// pour writes the content to an upload.
func (q *request) pour(up *gateway.Upload, c *content) error {
	if c.size >= 0 && c.size < aheadFrom {
		_, err := up.ReadFrom(c)
		return err
	}
	a := q.ahead(c)
	defer a.close()
	return a.each(func(p []byte) error { _, err := up.Write(p); return err })
}

// aheadReader is an io.Reader over a body that is read ahead.
type aheadReader struct {
	*ahead
	rest []byte
	cur  block
}

// Read implements io.Reader.
func (r *aheadReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.cur.buf != nil {
			blocks.Put(r.cur.buf)
			r.cur.buf = nil
			if r.cur.err != nil {
				return 0, r.cur.err
			}
		}
		b, ok := <-r.out
		if !ok {
			if r.cur.err != nil {
				return 0, r.cur.err
			}
			return 0, errGone
		}
		r.cur, r.rest, r.over = b, (*b.buf)[:b.n], b.err != nil
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
