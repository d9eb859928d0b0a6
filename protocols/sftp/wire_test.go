package sftp

import (
	"encoding/binary"
	"io"
	"testing"
)

// wire speaks packets, one after the other.
type wire struct {
	t  testing.TB
	rw io.ReadWriter
	id uint32
	// drop ends the connection without a word.
	drop func()
}

// wire begins a session over a connection of its own.
func (b *box) wire(login string) *wire {
	b.t.Helper()
	ch, c := b.raw(login)
	w := &wire{t: b.t, rw: ch, drop: func() { c.Close() }}
	w.hello()
	return w
}

func (w *wire) hello() {
	w.t.Helper()
	p := reply{0, 0, 0, 0, typeInit}
	if _, err := w.rw.Write(p.u32(protocolVersion).done()); err != nil {
		w.t.Fatal(err)
	}
	if typ, in := w.receive(); typ != typeVersion || in.u32() != protocolVersion {
		w.t.Fatalf("answered with %d", typ)
	}
}

func (w *wire) send(typ byte, fields []byte) {
	w.t.Helper()
	w.id++
	if _, err := w.rw.Write(append(answer(typ, w.id, len(fields)), fields...).done()); err != nil {
		w.t.Fatal(err)
	}
}

// receive returns type and what is behind it. 0 stands for a server that has gone.
func (w *wire) receive() (byte, *input) {
	var n [4]byte
	if _, err := io.ReadFull(w.rw, n[:]); err != nil {
		return 0, &input{}
	}
	p := make([]byte, binary.BigEndian.Uint32(n[:]))
	if _, err := io.ReadFull(w.rw, p); err != nil || len(p) == 0 {
		return 0, &input{}
	}
	return p[0], &input{b: p[1:]}
}

// exchange sends a request and returns its answer behind the id.
func (w *wire) exchange(typ byte, fields []byte) (byte, *input) {
	w.t.Helper()
	w.send(typ, fields)
	typ, in := w.receive()
	if id := in.u32(); id != w.id {
		w.t.Fatalf("answer %d of type %d to request %d", id, typ, w.id)
	}
	return typ, in
}

func (w *wire) ask(typ byte, args ...string) (byte, *input) {
	w.t.Helper()
	var p reply
	for _, a := range args {
		p = p.str(a)
	}
	return w.exchange(typ, p)
}

func (w *wire) statusOf(typ byte, fields []byte) uint32 {
	w.t.Helper()
	got, in := w.exchange(typ, fields)
	if got != typeStatus {
		return statusOK
	}
	return in.u32()
}

func (w *wire) status(typ byte, args ...string) uint32 {
	w.t.Helper()
	var p reply
	for _, a := range args {
		p = p.str(a)
	}
	return w.statusOf(typ, p)
}

func (w *wire) must(code uint32) {
	w.t.Helper()
	if code != statusOK {
		w.t.Errorf("status %d", code)
	}
}

func (w *wire) handle(typ byte, fields []byte) string {
	w.t.Helper()
	got, in := w.exchange(typ, fields)
	if got != typeHandle {
		w.t.Fatalf("no handle: type %d, status %d", got, in.u32())
	}
	return in.str()
}

func (w *wire) open(name string, flags uint32) string {
	w.t.Helper()
	return w.handle(typeOpen, reply(nil).str(name).u32(flags).u32(0))
}

func (w *wire) write(handle string, off int64, data []byte) uint32 {
	w.t.Helper()
	return w.statusOf(typeWrite, reply(nil).str(handle).u64(uint64(off)).str(string(data)))
}

func (w *wire) closeHandle(handle string) uint32 {
	w.t.Helper()
	return w.status(typeClose, handle)
}
