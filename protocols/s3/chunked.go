package s3

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"slices"
	"strings"
)

// chunkReader decodes aws-chunked ("Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks" of the S3
// API reference): each chunk is "SIZE[;chunk-signature=SIG]\r\n" and its bytes and "\r\n", the last one is empty, and trailers may follow.
// What is read of a chunk is verified when the chunk ends, so it must not be published before the end of all.
type chunkReader struct {
	r       *bufio.Reader
	pay     *payload
	left    int64     // of this chunk
	ended   bool      // the empty chunk has come
	want    []byte    // signature of this chunk
	digest  hash.Hash // of its bytes, nil where chunks are not signed
	last    []byte    // signature of the chunk before, at first that of the request
	budget  int64     // bytes that may come in all
	trailer map[string]string
	err     error
}

const (
	maxChunkHeader = 256     // bytes of a chunk's first line
	maxTrailers    = 4 << 10 // bytes of all trailers
)

func newChunkReader(r io.Reader, pay *payload) *chunkReader {
	c := &chunkReader{r: bufio.NewReaderSize(r, 32<<10), pay: pay, budget: pay.size}
	if pay.chunkSigs {
		c.digest, c.last = sha256.New(), pay.signature.value
	}
	return c
}

// Read returns bytes of chunks, and io.EOF behind the empty one.
func (c *chunkReader) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.read(p)
	c.err = err
	return n, err
}

func (c *chunkReader) read(p []byte) (int, error) {
	for c.left == 0 {
		if c.ended {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, early(err)
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if c.digest != nil {
		c.digest.Write(p[:n])
	}
	if c.left > 0 || err != nil {
		return n, early(err)
	}
	return n, early(c.close())
}

// early is err, but for an end of the body within its chunks.
func early(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(errIncomplete)
	}
	return err
}

// next reads the first line of a chunk.
func (c *chunkReader) next() error {
	line, err := c.line(maxChunkHeader)
	if err != nil {
		return err
	}
	size, ext, _ := strings.Cut(line, ";")
	if c.left, err = chunkSize(size); err != nil {
		return err
	}
	if c.budget -= c.left; c.budget < 0 {
		return refuseFor(errIncomplete, "The chunks hold more than x-amz-decoded-content-length says.")
	}
	if c.digest != nil {
		value, named := strings.CutPrefix(strings.TrimSpace(ext), "chunk-signature=")
		var ok bool
		if c.want, ok = parseSignature(value); !ok || !named {
			return refuse(errMalformedChunk)
		}
		c.digest.Reset()
	}
	if c.left == 0 {
		c.ended = true
		if err := c.verify(); err != nil {
			return err
		}
		if c.budget > 0 {
			return refuseFor(errIncomplete, "The chunks hold less than x-amz-decoded-content-length says.")
		}
	}
	return nil
}

// chunkSize reads up to 16 hexadecimal digits.
func chunkSize(s string) (n int64, err error) {
	if s == "" || len(s) > 15 {
		return 0, refuse(errMalformedChunk)
	}
	for i := range len(s) {
		d := unhex(s[i])
		if d > 15 {
			return 0, refuse(errMalformedChunk)
		}
		n = n<<4 | int64(d)
	}
	return n, nil
}

// line reads up to "\r\n".
func (c *chunkReader) line(limit int) (string, error) {
	b, err := c.r.ReadSlice('\n')
	switch {
	case err == bufio.ErrBufferFull, len(b) > limit:
		return "", refuse(errMalformedChunk)
	case err != nil:
		return "", err
	}
	s, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		return "", refuse(errMalformedChunk)
	}
	return s, nil
}

// close ends a chunk that has come.
func (c *chunkReader) close() error {
	if rest, err := c.line(2); err != nil || rest != "" {
		if err == nil {
			err = refuse(errMalformedChunk)
		}
		return err
	}
	return c.verify()
}

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// verify compares the signature of a chunk with what came.
func (c *chunkReader) verify() error {
	if c.digest == nil {
		return nil
	}
	b := make([]byte, 0, 400)
	b = append(append(b, "AWS4-HMAC-SHA256-PAYLOAD\n"...), c.pay.stamp...)
	b = append(append(append(b, '\n'), c.pay.scope()...), '\n')
	b = append(hex.AppendEncode(b, c.last), '\n')
	b = append(append(b, emptySum...), '\n')
	b = hex.AppendEncode(b, c.digest.Sum(nil))
	return c.sealed(b)
}

// sealed compares c.want with the signature of b, which then is the last one.
func (c *chunkReader) sealed(b []byte) error {
	if !hmac.Equal(mac(c.pay.key, b), c.want) {
		return refuse(errSignature)
	}
	c.last = c.want
	return nil
}

// finish reads what follows the last byte of the content: the empty chunk, if that has not come yet, and the trailers.
func (c *chunkReader) finish() error {
	if !c.ended {
		var one [1]byte
		switch n, err := c.Read(one[:]); {
		case n > 0:
			return refuse(errIncomplete)
		case err != io.EOF:
			return err
		}
	}
	return early(c.trailers())
}

const trailerSignature = "x-amz-trailer-signature"

// trailers reads them up to the end of the body. Amazon's own examples end a trailer with "\n\r\n", so that there is an empty line behind each;
// and some clients leave out the empty line at the end.
func (c *chunkReader) trailers() error {
	c.trailer = make(map[string]string)
	var signed []string
	for total := 0; ; {
		b, err := c.r.ReadSlice('\n')
		if err == io.EOF && len(b) == 0 {
			break
		}
		if total += len(b); err == bufio.ErrBufferFull || total > maxTrailers {
			return refuse(errTrailer)
		}
		if err != nil {
			return err
		}
		line := strings.TrimRight(string(b), "\r\n")
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !ok {
			return refuse(errTrailer)
		}
		if name != trailerSignature {
			if !slices.Contains(c.pay.trailers, name) {
				return refuseFor(errTrailer, "There is a trailer that x-amz-trailer did not announce.")
			}
			signed = append(signed, name+":"+value+"\n")
		}
		if _, twice := c.trailer[name]; twice {
			return refuse(errTrailer)
		}
		c.trailer[name] = value
	}
	if c.pay.signed != streamingTrailer {
		return nil
	}
	var ok bool
	if c.want, ok = parseSignature(c.trailer[trailerSignature]); !ok {
		return refuse(errTrailer)
	}
	sum := sha256.Sum256([]byte(strings.Join(signed, "")))
	b := make([]byte, 0, 320)
	b = append(append(b, "AWS4-HMAC-SHA256-TRAILER\n"...), c.pay.stamp...)
	b = append(append(append(b, '\n'), c.pay.scope()...), '\n')
	b = append(hex.AppendEncode(b, c.last), '\n')
	return c.sealed(hex.AppendEncode(b, sum[:]))
}
