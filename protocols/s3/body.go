package s3

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
)

// content is the body of a request, decoded. Its end comes without an error only when everything that was said of it holds: its length, the
// digest that was signed, the signature of each chunk and of the trailers, and the checksum in the trailers. Whatever is made of it must not be
// published before.
type content struct {
	r      io.Reader
	chunks *chunkReader // that r is, or nil
	size   int64        // declared, -1 unknown
	left   int64        // of size
	limit  int64        // bytes that may come, of unknown size
	least  int64        // bytes that must
	came   int64
	sum    []byte    // SHA-256 that was signed
	digest hash.Hash // of what came, for sum
	trail  string    // algorithm of the checksum in the trailers, "" none
	tail   hash.Hash // of what came, for it
	said   string    // what the trailer says, hexadecimal, when the end has come
	err    error
}

// content returns the body of the request. Only one may be asked for.
func (q *request) content(limit int64) (*content, error) {
	c := &content{r: &q.body, size: q.pay.size, left: q.pay.size, limit: limit, sum: q.pay.sum}
	if c.size > limit {
		return nil, refuse(errTooLarge)
	}
	if q.pay.chunked {
		c.chunks = newChunkReader(&q.body, &q.pay)
		c.r = c.chunks
		for _, name := range q.pay.trailers {
			algo, ok := checksumHeader(name)
			if !ok {
				continue
			}
			if c.trail != "" {
				return nil, refuseFor(errRequest, "Expecting a single x-amz-checksum- header")
			}
			c.trail, c.tail = algo, algorithms[algo].hash()
		}
	}
	if c.sum != nil {
		c.digest = sha256.New()
	}
	return c, nil
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.size >= 0 && int64(len(p)) > c.left {
		p = p[:c.left]
	}
	var n int
	var err error
	if len(p) > 0 || c.size < 0 {
		n, err = c.r.Read(p)
	}
	if c.digest != nil {
		c.digest.Write(p[:n])
	}
	if c.tail != nil {
		c.tail.Write(p[:n])
	}
	c.left -= int64(n)
	c.came += int64(n)
	switch {
	case c.size < 0:
		switch {
		case c.came > c.limit:
			err = refuse(errTooLarge)
		case err == io.EOF && c.came < c.least:
			err = refuse(errTooSmall)
		case err == io.EOF:
			err = c.finish()
		case errors.Is(err, io.ErrUnexpectedEOF): // of a form
			err = refuse(errIncomplete)
		}
	case c.left == 0 && (err == nil || err == io.EOF):
		err = c.finish()
	case err == io.EOF:
		err = refuse(errIncomplete)
	}
	c.err = err
	return n, err
}

// all reads the whole content, which is as long as p. Only a nil error says that all that was said of it holds: what io.ReadFull returns does
// not tell how it ended.
func (c *content) all(p []byte) error {
	for len(p) > 0 && c.err == nil {
		n, _ := c.Read(p)
		p = p[n:]
	}
	if c.err == nil {
		c.Read(nil)
	}
	if c.err != io.EOF {
		return c.err
	}
	return nil
}

// finish looks at what follows the last byte, and compares. All being well it returns io.EOF.
func (c *content) finish() error {
	if c.chunks != nil {
		if err := c.chunks.finish(); err != nil {
			return err
		}
	} else if c.size >= 0 {
		// The end of the body is read too, so that the server knows that there is no more.
		var one [1]byte
		if n, err := io.ReadFull(c.r, one[:]); n > 0 || err != io.EOF {
			return refuse(errIncomplete)
		}
	}
	if c.digest != nil && subtle.ConstantTimeCompare(c.digest.Sum(nil), c.sum) != 1 {
		return refuse(errContentSHA)
	}
	if c.trail == "" {
		return io.EOF
	}
	value, ok := c.chunks.trailer["x-amz-checksum-"+strings.ToLower(c.trail)]
	if !ok {
		return refuseFor(errTrailer, "A trailer that x-amz-trailer announced is missing.")
	}
	want, err := decodeSum(c.trail, value)
	if err != nil {
		return err
	}
	if !bytes.Equal(want, c.tail.Sum(nil)) {
		return refuse(errBadDigest)
	}
	c.said = hexOf(want)
	return io.EOF
}

// blame returns err, or a refusal where the body and not the core failed.
func (q *request) blame(err error) error {
	var r *refusal
	if err == nil || errors.As(err, &r) || q.body.broken == nil {
		return err
	}
	var tooBig *http.MaxBytesError
	if errors.As(q.body.broken, &tooBig) {
		return refuse(errTooLarge)
	}
	return refuse(errIncomplete)
}

// smallBody is up to what size a body is taken in before anything is done with it, as the core does.
const smallBody = 64 << 10

// small are buffers for such bodies.
var small64 = sync.Pool{New: func() any { b := make([]byte, smallBody); return &b }}

// document reads an XML body of up to limit bytes, and compares the checksums of the headers.
func (q *request) document(limit int64) ([]byte, error) {
	declared, err := declaredSums(q.r.Header)
	if err != nil {
		return nil, err
	}
	b, err := q.text(limit)
	if err != nil {
		return nil, err
	}
	for _, s := range declared {
		h := algorithms[s.algo].hash()
		h.Write(b)
		if hexOf(h.Sum(nil)) != s.value {
			return nil, refuse(errBadDigest)
		}
	}
	return b, nil
}

// text reads an XML body of up to limit bytes.
func (q *request) text(limit int64) ([]byte, error) {
	if q.pay.size > limit {
		return nil, refuse(errMalformedXML)
	}
	c, err := q.content(limit)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(c)
	return b, q.blame(err)
}
