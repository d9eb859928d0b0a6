package sftp

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"cellgate/internal/fault"
)

// answers are buffers for what cannot be sent while it is read: an answer begins with its length, and across a network nobody knows how much comes.
var answers = sync.Pool{New: func() any { return new([dataHead + maxData]byte) }}

var errCut = errors.New("the file was cut off while it was read")

// sendData answers with a part of a file (§6.4).
func (s *session) sendData(id, name uint32, off int64, n uint32) {
	h := s.handle(name)
	if h == nil || h.dir != nil {
		s.refuse(id, badHandle())
		return
	}
	h.answer(func() {
		want := int(min(n, maxData))
		if h.file != nil {
			if _, ok := h.file.OSFile(); ok {
				h.sendLocal(id, off, want)
				return
			}
		}
		h.sendWhole(id, off, want)
	})
}

// sendLocal sends while it reads, block by block.
func (h *handle) sendLocal(id uint32, off int64, want int) {
	b := blocks.Get().(*block)
	defer blocks.Put(b)
	got, err := h.file.ReadAt(b[dataHead:dataHead+min(want, blockSize-dataHead)], off)
	total := got
	switch {
	case got == 0 && (err == nil || err == io.EOF):
		h.s.finish(id, nil, errEOF)
		return
	case err != nil && err != io.EOF:
		h.s.finish(id, nil, err)
		return
	case err == nil && got < want:
		i, _ := h.info()
		total = int(max(min(int64(want), i.Size-off), int64(got)))
	}
	defer func() { <-h.s.slots }()
	if !h.s.out.take() {
		return
	}
	head(b[:], id, total)
	err = h.s.out.write(b[:dataHead+got])
	for sent := got; sent < total && err == nil; sent += got {
		got, err = h.file.ReadAt(b[:min(total-sent, blockSize)], off+int64(sent))
		if got < min(total-sent, blockSize) {
			// The length is said already: whoever gets less must not take it for the file.
			h.s.log.Error("sftp download ended", "path", h.at(), "err", errors.Join(errCut, err))
			h.s.cut()
			err = errCut
			break
		}
		err = h.s.out.write(b[:got])
	}
	h.s.out.release(err)
}

// sendWhole reads first.
func (h *handle) sendWhole(id uint32, off int64, want int) {
	b := answers.Get().(*[dataHead + maxData]byte)
	defer answers.Put(b)
	var got int
	var err error
	if h.w != nil {
		got, err = h.w.read(b[dataHead:dataHead+want], off)
	} else {
		got, err = h.file.ReadAt(b[dataHead:dataHead+want], off)
	}
	switch {
	case got == 0 && (err == nil || err == io.EOF):
		h.s.finish(id, nil, errEOF)
		return
	case err != nil && err != io.EOF:
		h.s.finish(id, nil, err)
		return
	}
	defer func() { <-h.s.slots }()
	if h.s.out.take() {
		head(b[:], id, got)
		h.s.out.release(h.s.out.write(b[:dataHead+got]))
	}
}

// head fills in the beginning of an answer with n bytes of data.
func head(b []byte, id uint32, n int) {
	binary.BigEndian.PutUint32(b, uint32(dataHead-4+n))
	b[4] = typeData
	binary.BigEndian.PutUint32(b[5:], id)
	binary.BigEndian.PutUint32(b[9:], uint32(n))
}

// copyData copies between open files (draft-ietf-secsh-filexfer-extensions-00 §7). n is 0 for all there is.
func (s *session) copyData(id, from, to uint32, off, n, at int64) {
	src, dst := s.handle(from), s.handle(to)
	if src == nil || dst == nil || src == dst || src.dir != nil || dst.w == nil {
		s.refuse(id, badHandle())
		return
	}
	// The source stays what it is until the copy is made: what comes for it waits.
	begun, over := make(chan struct{}), make(chan struct{})
	src.queueUp(func() {
		close(begun)
		<-over
	})
	dst.queueUp(func() {
		err := func() error {
			defer close(over)
			<-begun
			return dst.copyFrom(src, off, n, at)
		}()
		s.finish(id, nil, err)
	})
}

func (h *handle) copyFrom(src *handle, off, n, at int64) error {
	b := blocks.Get().(*block)
	defer blocks.Put(b)
	for all := n == 0; all || n > 0; {
		want := int64(blockSize)
		if !all {
			want = min(want, n)
		}
		var got int
		var err error
		if src.w != nil {
			got, err = src.w.read(b[:want], off)
		} else {
			got, err = src.file.ReadAt(b[:want], off)
		}
		if err != nil && err != io.EOF {
			return err
		}
		if got == 0 {
			return nil
		}
		if err := h.w.write(b[:got], at); err != nil {
			return err
		}
		if h.s.ctx.Err() != nil {
			return fault.New("sftp.copy-data", "", fault.Canceled, nil)
		}
		off, at, n = off+int64(got), at+int64(got), n-int64(got)
	}
	return nil
}
