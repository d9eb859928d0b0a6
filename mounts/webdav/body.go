package webdav

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

const (
	small = 256 << 10 // bodies up to this are taken whole before anything is sent, so that they can be sent again
	piece = 256 << 10 // of a longer one
)

// body is what a Put uploads: all of it in memory, or the beginning and a source for the rest.
//
// The source is read by nobody but the goroutine that called Put (see pump), for a Read that outlives the call would take bytes from whoever
// reads on. It goes to the transport through a pipe. The last byte is held back until the source has ended as it should, so that a server
// which takes the declared length for the end gets it not before.
type body struct {
	size    int64 // -1 unknown
	whole   []byte
	src     io.Reader // nil when whole is all
	r       *io.PipeReader
	w       *io.PipeWriter
	begun   atomic.Bool // some of the pipe was taken: it cannot be sent again
	watch   *watch
	pending []byte // read from src before pump
}

// take reads the beginning of src. It fails when src does, or is shorter or longer than it should be, as far as that shows already.
func take(ctx context.Context, src io.Reader, size int64) (*body, error) {
	room := int64(small)
	if size >= 0 && size < small {
		room = size
	}
	buf := make([]byte, 0, room+1) // one more, to see the end
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			if size >= 0 && int64(len(buf)) != size {
				return nil, errLength
			}
			return &body{size: int64(len(buf)), whole: buf}, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(buf)) > room {
			if room == size {
				return nil, errLength
			}
			return &body{size: size, src: src, pending: buf}, nil
		}
	}
}

// open makes a pipe for the next sending.
func (b *body) open() {
	if b.src != nil {
		b.r, b.w = io.Pipe()
	}
}

// attach makes b the body of a request whose progress w watches.
func (b *body) attach(req *http.Request, w *watch) {
	if b.src == nil {
		req.ContentLength = b.size
		req.GetBody = func() (io.ReadCloser, error) {
			if b.size == 0 {
				return http.NoBody, nil
			}
			return &counted{r: bytes.NewReader(b.whole), w: w}, nil
		}
		req.Body, _ = req.GetBody()
		return
	}
	req.ContentLength = b.size
	// It cannot be sent again, so nothing goes before the server agrees to it. That costs a round trip: once saves it where the server can ask
	// for no other signature and the connection is sure to be alive.
	req.Header.Set("Expect", "100-continue")
	b.watch = w
	req.Body = b
}

// rewind reports whether b can be sent once more.
func (b *body) rewind() bool { return b.src == nil || !b.begun.Load() }

// Read gives the transport what pump brings. While the source is slow the server is not to blame.
func (b *body) Read(p []byte) (int, error) {
	b.begun.Store(true)
	b.watch.pause()
	n, err := b.r.Read(p)
	b.watch.resume()
	return n, err
}

// Close is the transport's, which may be given the body again: abort ends it.
func (b *body) Close() error { return nil }

// abort makes pump end, since nobody takes bytes any more.
func (b *body) abort() { b.r.CloseWithError(io.ErrClosedPipe) }

// pump moves the source into the pipe until it ends, and returns what went wrong with the source. atEnd is called once all is known to be
// there, before the last byte goes.
func (b *body) pump(ctx context.Context, atEnd func()) (sent int64, err error) {
	defer func() {
		if r := recover(); r != nil {
			b.w.CloseWithError(io.ErrUnexpectedEOF) // else the request would wait for ever
			panic(r)
		}
		if err != nil {
			b.w.CloseWithError(err)
		}
	}()
	buf := make([]byte, piece+1)
	n := copy(buf, b.pending) // never empty
	total := int64(n)
	for {
		if err := ctx.Err(); err != nil {
			return sent, err
		}
		k, err := b.w.Write(buf[:n-1])
		if sent += int64(k); err != nil {
			return sent, io.ErrClosedPipe
		}
		buf[0] = buf[n-1]
		k, err = b.src.Read(buf[1:])
		n = 1 + k
		total += int64(k)
		if b.size >= 0 && total > b.size {
			return sent, errLength
		}
		if err == nil {
			continue
		}
		if err != io.EOF {
			return sent, err
		}
		if b.size >= 0 && total != b.size {
			return sent, errLength
		}
		atEnd()
		k, werr := b.w.Write(buf[:n])
		if sent += int64(k); werr != nil {
			return sent, io.ErrClosedPipe
		}
		b.w.Close()
		return sent, nil
	}
}

// counted is a body in memory whose progress is watched: each piece that the connection takes is a sign of life.
type counted struct {
	r io.Reader
	w *watch
}

func (c *counted) Read(p []byte) (int, error) {
	c.w.resume()
	return c.r.Read(p)
}

func (c *counted) Close() error { return nil }
