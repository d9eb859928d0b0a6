package ftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// readWhole is how much is read at once while the file is opened, so that the connection is free again before the caller reads.
const readWhole = 128 << 10

// Open implements mounts.Backend. It takes three round trips: what the file is together with the port, the data connection, and the command.
// The kernel reads ahead: the server sends as fast as the window of the data connection grows.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, bad("Open", name, fault.Invalid, nil)
	}
	if name == "." {
		return nil, bad("Open", name, fault.IsDir, nil)
	}
	for try := 0; ; try++ {
		c, err := b.pool.get(ctx, reading, try > 0)
		if err != nil {
			return nil, b.fail(ctx, "Open", name, err)
		}
		r, err := b.open(ctx, c, name, off, n)
		if err == nil {
			return r, nil
		}
		stale := try == 0 && b.stale(ctx, c, err, true)
		c.release()
		if !stale {
			return nil, b.fail(ctx, "Open", name, err)
		}
		b.pool.flush()
	}
}

// open begins the transfer on c, which belongs to the reader when there is no error.
func (b *Backend) open(ctx context.Context, c *conn, name string, off, n int64) (*reader, error) {
	stat := b.statCommands(name)
	d, rs, err := c.reserve(stat...)
	if err != nil {
		return nil, err
	}
	info, err := b.statResult(name, rs)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fault.New("", name, fault.IsDir, nil)
	case info.Type != mounts.File:
		return nil, fault.New("", name, fault.Denied, errLink)
	}
	r := &reader{ctx: ctx, b: b, name: name, info: info, off: off, left: n, expect: -1}
	if info.Size >= 0 {
		r.expect = max(info.Size-off, 0)
	}
	if n == 0 || r.expect == 0 && off > 0 {
		r.done = true
		c.release()
		return r, nil
	}
	if err := d.connect(ctx); err != nil {
		return nil, err
	}
	if err := r.start(d); err != nil {
		return nil, err
	}
	if r.done {
		return r, nil
	}
	r.d = d
	want := r.expect
	if n >= 0 && (want < 0 || n < want) {
		want = n
	}
	if want >= 0 && want <= readWhole {
		if tcp, ok := d.conn.(interface{ SetReadBuffer(int) error }); ok && want < r.expect {
			tcp.SetReadBuffer(max(int(want), 16<<10)) // no more is needed than that
		}
		return r, r.whole(want)
	}
	return r, nil
}

// start asks for the file from off. A server that cannot start there sends it from the beginning, and what comes before is dropped.
func (r *reader) start(d *channel) error {
	c, command := d.c, "RETR "+r.b.at(r.name)
	skip := int64(0)
	if r.off == 0 {
		if err := c.send(command); err != nil {
			return err
		}
	} else {
		if err := c.send("REST "+strconv.FormatInt(r.off, 10), command); err != nil {
			return err
		}
		rest, err := c.read(r.b.timeout)
		if err != nil {
			return err
		}
		if rest.code != 350 {
			skip = r.off
		}
	}
	rep, err := d.begun(r.ctx, command)
	if err != nil {
		return err
	}
	if size, ok := announced(rep); ok && r.off == 0 && r.info.Size >= 0 && size != r.info.Size {
		r.info.Size, r.expect = size, size // replaced since it was looked at
	}
	if d.conn == nil { // nothing to send
		r.done = true
		c.release()
		return nil
	}
	if skip > 0 {
		r.d = d
		if _, err := io.CopyN(io.Discard, armed{r}, skip); err != nil {
			return d.why(&lostError{err})
		}
	}
	return nil
}

// announced reads the size in "150 Opening BINARY mode data connection for f (5 bytes)".
func announced(r reply) (int64, bool) {
	text, ok := strings.CutSuffix(strings.TrimRight(r.text(), ". "), " bytes)")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(text[strings.LastIndexByte(text, '(')+1:], 10, 64)
	return n, err == nil && n >= 0
}

// reader is an open file. It holds a connection until its end shows, unless it is small.
type reader struct {
	ctx    context.Context
	b      *Backend
	name   string
	info   mounts.Info
	off    int64
	left   int64 // of what was asked for, -1: everything
	expect int64 // what the server should send, -1 unknown
	got    int64
	d      *channel // nil when nothing is left on the way
	ahead  []byte   // what was read already
	done   bool     // no more will come
	err    error
	closed bool
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

// whole reads what is wanted now and gives the connection back. Exactly the end of the file is read until its confirmation.
func (r *reader) whole(want int64) error {
	if r.done {
		return nil
	}
	size := int(want)
	if want == r.expect {
		size++ // to see the end
	}
	buf := make([]byte, size)
	n := 0
	for n < size && !r.done {
		m, err := r.receive(buf[n:])
		if n += m; err != nil && err != io.EOF {
			return err
		}
	}
	if !r.done && want == r.expect && r.left < 0 { // it has grown: the rest comes as it is read
		r.ahead = buf[:n]
		return nil
	}
	r.ahead = buf[:min(n, int(want))]
	r.drop()
	r.done = true
	return nil
}

// drop ends a transfer whose rest nobody wants. The server's last word on it is read when the connection is used again.
func (r *reader) drop() {
	if r.d != nil {
		c := r.d.c
		r.d = nil
		c.release()
	}
}

// armed reads the data connection with a deadline for each piece.
type armed struct{ r *reader }

func (a armed) Read(p []byte) (int, error) {
	d := a.r.d
	d.c.arm(d.conn, a.r.b.timeout)
	return d.conn.Read(p)
}

// receive reads from the server, and at the end asks whether it was one.
func (r *reader) receive(p []byte) (int, error) {
	n, err := armed{r}.Read(p)
	r.got += int64(n)
	r.b.pool.move()
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		if err = r.confirm(); err == nil {
			r.done = true
			r.drop()
			return n, io.EOF
		}
	} else {
		err = r.d.why(&lostError{err})
	}
	return n, err
}

// confirm reads the server's last word. A file that came out shorter than it was when it was looked at must be another by now: it was
// replaced before it was opened.
func (r *reader) confirm() error {
	c := r.d.c
	c.attach(nil)
	rep, err := c.read(r.b.timeout)
	if err != nil {
		return err
	}
	if err := refused("RETR", rep); err != nil {
		return err
	}
	if r.expect < 0 || r.got >= r.expect {
		return nil
	}
	again, err := r.b.look(c, r.name)
	if err == nil && again == r.info {
		return &lostError{fmt.Errorf("%w: %d of %d bytes", errShort, r.got, r.expect)}
	}
	return nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	switch {
	case r.closed:
		return 0, bad("Read", r.name, fault.Invalid, os.ErrClosed)
	case r.err != nil:
		return 0, r.err
	case r.ctx.Err() != nil:
		return 0, fault.Wrap("mounts/ftp.Read", r.name, r.ctx.Err())
	case r.b.closed.Load():
		return 0, bad("Read", r.name, fault.Unavailable, errClosed)
	case len(p) == 0:
		return 0, nil
	}
	if len(r.ahead) > 0 {
		n := copy(p, r.ahead)
		r.ahead = r.ahead[n:]
		return n, nil
	}
	if r.done || r.left == 0 {
		r.drop()
		return 0, io.EOF
	}
	if r.left > 0 && int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.receive(p)
	if r.left > 0 {
		r.left -= int64(n)
	}
	if err == io.EOF {
		if n > 0 {
			err = nil
		}
		return n, err
	}
	if err != nil {
		r.err = r.b.fail(r.ctx, "Read", r.name, err)
		r.drop()
		return n, r.err
	}
	if r.left == 0 {
		r.done = true
		r.drop()
	}
	return n, nil
}

// Close gives the connection back.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.drop()
	return nil
}

var _ mounts.Stater = (*reader)(nil)
