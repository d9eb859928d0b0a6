package s3

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"
)

// source reads what a Put is given: it holds it to the declared length, remembers why it failed, and stops reading when the Put is over, also
// when the transport, which may still be busy with a request that failed, would go on.
type source struct {
	mu   sync.Mutex
	src  io.Reader
	want int64 // -1 unknown
	n    int64
	err  error // other than io.EOF, for good
}

// Read implements io.Reader. It yields io.EOF only at the declared length.
func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := 0, error(nil)
	for range 100 {
		if n, err = s.src.Read(p); n > 0 || err != nil {
			break
		}
	}
	s.n += int64(n)
	switch {
	case n == 0 && err == nil:
		err = io.ErrNoProgress
	case s.want >= 0 && s.n > s.want, err == io.EOF && s.n < s.want:
		err = errLength
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// ended looks that nothing comes any more.
func (s *source) ended() error {
	var one [1]byte
	switch n, err := s.Read(one[:]); {
	case n == 0 && err == io.EOF:
		return nil
	case err != nil && err != io.EOF:
		return err
	}
	return errLength
}

// stop waits for a Read that is under way and lets no other begin.
func (s *source) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = errStopped
	}
}

// failure returns why the source failed, nil when it did not.
func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == errStopped {
		return nil
	}
	return s.err
}

// whole is a source that is sent in one request: before its last bytes go, it looks that no more come.
type whole struct {
	*source
	left int64
}

// Read implements io.Reader.
func (w *whole) Read(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.EOF
	}
	n, err := w.source.Read(p[:min(int64(len(p)), w.left)])
	if w.left -= int64(n); w.left == 0 && (err == nil || err == io.EOF) {
		if err == nil {
			err = w.source.ended()
		}
		if err == nil || err == io.EOF {
			return n, io.EOF
		}
		return 0, err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// blockSize is the piece that parts in memory are made of, so that a short upload of unknown length takes no whole part.
const blockSize = 256 << 10

// part is a piece of an upload in memory, so that it can be sent again.
type part struct {
	b      *Backend
	blocks []*[]byte
	n      int64
	sum    hash.Hash // SHA-256, nil over TLS
}

func (b *Backend) newPart() *part {
	p := &part{b: b}
	if !b.secure {
		p.sum = sha256.New()
	}
	return p
}

// fill reads until the part holds most bytes. It returns io.EOF when src ended before.
func (p *part) fill(src io.Reader, most int64) error {
	for p.n < most {
		used := int(p.n % blockSize)
		if used == 0 {
			if block := most - p.n; block < blockSize && p.n == 0 {
				small := make([]byte, block) // a small file takes no more than it is
				p.blocks = append(p.blocks, &small)
			} else {
				p.blocks = append(p.blocks, p.b.blocks.Get().(*[]byte))
			}
		}
		room := (*p.blocks[len(p.blocks)-1])[used:]
		room = room[:min(int64(len(room)), most-p.n)]
		n, err := src.Read(room)
		if p.sum != nil {
			p.sum.Write(room[:n])
		}
		if p.n += int64(n); err != nil {
			if err == io.EOF && p.n == most {
				return nil
			}
			return err
		}
	}
	return nil
}

// digest returns the hex SHA-256, "" over TLS.
func (p *part) digest() string {
	if p.sum == nil {
		return ""
	}
	return hex.EncodeToString(p.sum.Sum(nil))
}

// open returns a reader of the part. It is to be stopped before the part is freed.
func (p *part) open() *source {
	readers, left := make([]io.Reader, 0, len(p.blocks)), p.n
	for _, block := range p.blocks {
		n := min(left, int64(len(*block)))
		readers, left = append(readers, bytes.NewReader((*block)[:n])), left-n
	}
	return &source{src: io.MultiReader(readers...), want: p.n}
}

// free gives the memory back.
func (p *part) free() {
	for _, block := range p.blocks {
		if len(*block) == blockSize {
			p.b.blocks.Put(block)
		}
	}
	p.blocks = nil
}
