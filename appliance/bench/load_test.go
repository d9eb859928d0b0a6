package bench

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	bufferSize = 256 << 10
	patience   = 10 * time.Minute // for all that goes over one connection
)

// conn is a client's connection: requests written in one piece, responses read by net/http's parser.
type conn struct {
	net.Conn
	side side
	in   *bufio.Reader
	out  []byte
	junk []byte // see buffer
}

func dial(s side) (*conn, error) {
	c, err := net.Dial("tcp", s.addr)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, side: s, in: bufio.NewReaderSize(c, 64<<10)}, nil
}

// begin puts a request's head into c.out; header lines end in CRLF.
func (c *conn) begin(method, path, header string, size int64) {
	c.out = fmt.Appendf(c.out[:0], "%s %s%s HTTP/1.1\r\nHost: bench\r\n%s", method, c.side.root, path, header)
	if c.side.auth != "" {
		c.out = fmt.Appendf(c.out, "Authorization: %s\r\n", c.side.auth)
	}
	if size >= 0 {
		c.out = fmt.Appendf(c.out, "Content-Length: %d\r\n", size)
	}
	c.out = append(c.out, "\r\n"...)
}

// finish reads the response, which must have a status of 2xx, and returns the length of its body.
func (c *conn) finish(method, path string) (int64, error) {
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return 0, fmt.Errorf("%s: %s %s: %w", c.side.name, method, path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return 0, fmt.Errorf("%s: %s %s: %s %s", c.side.name, method, path, resp.Status, text)
	}
	if resp.ContentLength < bufferSize {
		return io.Copy(io.Discard, resp.Body)
	}
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, c.buffer())
}

// buffer returns room for the bytes of large files.
func (c *conn) buffer() []byte {
	if c.junk == nil {
		c.junk = make([]byte, bufferSize)
	}
	return c.junk
}

// do is one small request with its response.
func (c *conn) do(method, path, header string, body []byte) (int64, error) {
	size := int64(-1)
	if body != nil {
		size = int64(len(body))
	}
	c.begin(method, path, header, size)
	if _, err := c.Write(append(c.out, body...)); err != nil {
		return 0, err
	}
	return c.finish(method, path)
}

// each runs fn with its own connection and all numbers below n, shared among the connections.
func each(s side, connections, n int, fn func(c *conn, i int) error) error {
	var wg sync.WaitGroup
	errs := make(chan error, connections)
	for k := range connections {
		wg.Go(func() {
			c, err := dial(s)
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			for i := k; i < n; i += connections {
				if err := fn(c, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// get reads a file and checks how long it is.
func get(c *conn, path string, size int64) error {
	n, err := c.do(http.MethodGet, path, "", nil)
	if err == nil && n != size {
		err = fmt.Errorf("%s: GET %s: %d bytes, want %d", c.side.name, path, n, size)
	}
	return err
}

// putLarge writes a file of size bytes.
func putLarge(c *conn, path string, size int64) error {
	c.begin(http.MethodPut, path, "", size)
	if _, err := c.Write(c.out); err != nil {
		return err
	}
	for left := size; left > 0; {
		n, err := c.Write(c.buffer()[:min(left, bufferSize)])
		if err != nil {
			return fmt.Errorf("%s: PUT %s: %w", c.side.name, path, err)
		}
		left -= int64(n)
	}
	_, err := c.finish(http.MethodPut, path)
	return err
}

// list asks for the properties of a folder and its children and returns when the first byte came and how many there were.
func list(c *conn, path, body string) (first time.Duration, n int64, err error) {
	began := time.Now()
	c.begin("PROPFIND", path, "Depth: 1\r\nContent-Type: text/xml\r\n", int64(len(body)))
	if _, err := c.Write(append(c.out, body...)); err != nil {
		return 0, 0, err
	}
	if _, err := c.in.Peek(1); err != nil {
		return 0, 0, err
	}
	first = time.Since(began)
	n, err = c.finish("PROPFIND", path)
	return first, n, err
}
