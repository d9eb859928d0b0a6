package webdav

import (
	"net/http"
	"strconv"
	"sync"
)

const (
	xmlType          = `application/xml; charset="utf-8"` // RFC 4918 §8.2
	xmlHeader        = `<?xml version="1.0" encoding="utf-8"?>` + "\n"
	multistatusOpen  = xmlHeader + `<D:multistatus xmlns:D="DAV:">`
	multistatusClose = "</D:multistatus>\n"
)

// bufferSize is the block in which listings go out. The first block is smaller, so that the first byte is early.
const (
	bufferSize = 64 << 10
	firstBlock = 8 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufferSize+4<<10); return &b }}

func getBuffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

// putBuffer returns a buffer, unless one large element has blown it up.
func putBuffer(b []byte) {
	if cap(b) <= 4*bufferSize {
		buffers.Put(&b)
	}
}

// multistatus is a 207 that goes out while it is being written. Short ones get a Content-Length, long ones are chunked.
type multistatus struct {
	q       *request
	b       []byte
	lost    []byte // what the resource at hand lacks, kept for its memory
	limit   int
	started bool
}

func (q *request) multistatus() *multistatus {
	return &multistatus{q: q, b: append(getBuffer(), multistatusOpen...), limit: firstBlock}
}

// more sends what has gathered, once it is worth it.
func (m *multistatus) more() error {
	if len(m.b) < m.limit {
		return nil
	}
	early := !m.started
	m.start()
	if _, err := m.q.w.Write(m.b); err != nil {
		return err
	}
	if early {
		m.q.w.flush()
	}
	m.b, m.limit = m.b[:0], bufferSize
	return nil
}

func (m *multistatus) start() {
	if !m.started {
		m.started = true
		m.q.w.Header()["Content-Type"] = []string{xmlType}
		m.q.w.WriteHeader(http.StatusMultiStatus)
	}
}

// end sends the rest.
func (m *multistatus) end() error {
	m.b = append(m.b, multistatusClose...)
	if !m.started {
		m.q.w.Header()["Content-Length"] = []string{strconv.Itoa(len(m.b))}
	}
	m.start()
	_, err := m.q.w.Write(m.b)
	return err
}

func (m *multistatus) release() { putBuffer(m.b) }
