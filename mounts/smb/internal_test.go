package smb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// answer makes a frame of the handshake: a header and a body of n bytes that set fills.
func answer(command uint16, n int, set func(body []byte)) []byte {
	frame := make([]byte, 64+n)
	copy(frame, "\xfeSMB")
	le.PutUint16(frame[12:], command)
	set(frame[64:])
	return frame
}

func negotiated(dialect uint16, more func(body []byte)) []byte {
	return answer(commandNegotiate, 100, func(body []byte) {
		le.PutUint16(body[4:], dialect)
		more(body)
	})
}

func withCipher(kind, count, cipher uint16) []byte {
	return negotiated(0x0311, func(body []byte) {
		le.PutUint16(body[6:], 2)
		le.PutUint32(body[60:], 64+64)
		le.PutUint16(body[64:], 1) // another context first: type, size 2, padding
		le.PutUint16(body[66:], 2)
		le.PutUint16(body[64+16:], kind)
		le.PutUint16(body[64+18:], 4)
		le.PutUint16(body[64+24:], count)
		le.PutUint16(body[64+26:], cipher)
	})
}

func TestNegotiatedCipher(t *testing.T) {
	none := func([]byte) {}
	able := func(body []byte) { le.PutUint32(body[24:], 0x44) }
	for name, test := range map[string]struct {
		frame []byte
		want  bool
	}{
		"2.1": {negotiated(0x0210, able), false}, "3.0 without": {negotiated(0x0300, none), false}, "3.0": {negotiated(0x0300, able), true},
		"3.0.2": {negotiated(0x0302, able), true}, "3.1.1 without": {negotiated(0x0311, able), false}, "3.1.1 GCM": {withCipher(2, 1, 2), true},
		"3.1.1 CCM": {withCipher(2, 1, 1), true}, "3.1.1 refused": {withCipher(2, 1, 0), false}, "3.1.1 unknown": {withCipher(2, 1, 7), false},
		"3.1.1 other context": {withCipher(3, 1, 2), false}, "3.1.1 two": {withCipher(2, 2, 2), false},
		"short": {answer(commandNegotiate, 10, none), false},
	} {
		var h handshake
		if h.inspect(test.frame, true); h.cipher != test.want {
			t.Errorf("%s: cipher %v, want %v", name, h.cipher, test.want)
		}
	}
}

// TestSetupCost: the library's account of credits is that of the server.
func TestSetupCost(t *testing.T) {
	for granted, want := range map[uint16]uint16{254: 250, 4: 0, 1: 0} {
		frame := answer(commandSetup, 9, func([]byte) {})
		le.PutUint16(frame[14:], granted)
		var h handshake
		h.inspect(frame, false)
		if got := le.Uint16(frame[14:]); got != want {
			t.Errorf("of %d credits the library is told %d, want %d", granted, got, want)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(withCipher(2, 1, 2), true)
	f.Add(answer(commandSetup, 9, func([]byte) {}), true)
	f.Fuzz(func(t *testing.T, frame []byte, encrypt bool) {
		h := handshake{cipher: encrypt}
		h.inspect(frame, encrypt)
		if h.encrypted && !h.established.Load() {
			t.Error("encrypted, but not established")
		}
	})
}

// TestLinkGuards: once a session is encrypted, nothing passes in the clear; and frames are bounded.
func TestLinkGuards(t *testing.T) {
	framed := func(frame []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
	}
	setup := func(flags uint16) []byte {
		return framed(answer(commandSetup, 9, func(body []byte) { le.PutUint16(body[2:], flags) }))
	}
	sealed := framed(append([]byte("\xfdSMB"), make([]byte, 60)...))
	plain := framed(answer(1, 20, func([]byte) {}))
	for _, test := range []struct {
		name    string
		encrypt bool
		in      [][]byte
		want    error
		out     error // of a request in the clear after that
	}{
		{"encrypted", true, [][]byte{framed(withCipher(2, 1, 2)), setup(0), sealed}, io.EOF, errPlainSent},
		{"answered in the clear", true, [][]byte{framed(withCipher(2, 1, 2)), setup(0), sealed, plain}, errPlain, errPlainSent},
		{"by the server", false, [][]byte{framed(withCipher(2, 1, 2)), setup(flagEncrypt), plain}, errPlain, errPlainSent},
		{"guest", true, [][]byte{framed(withCipher(2, 1, 2)), setup(flagGuest), plain}, io.EOF, nil},
		{"old server", true, [][]byte{framed(negotiated(0x0210, func([]byte) {})), setup(0), plain}, io.EOF, nil},
		{"large", true, [][]byte{framed(negotiated(0x0210, func([]byte) {})), setup(0), {0, 0xff, 0, 0, 1, 2, 3, 4}}, errFrame, nil},
		{"large at first", true, [][]byte{{0, 3, 0, 0, 1, 2, 3, 4}}, errFrame, nil},
		{"small", true, [][]byte{{0, 0, 0, 3, 1, 2, 3, 4}}, errFrame, nil},
	} {
		near, far := net.Pipe()
		go func() {
			far.Write(bytes.Join(test.in, nil))
			far.SetReadDeadline(time.Now().Add(5 * time.Second))
			far.Close()
		}()
		l := newLink(near, test.encrypt)
		var told error
		l.broken = func(err error) { told = err }
		got, err := io.ReadAll(l)
		if test.want == io.EOF && err != nil || test.want != io.EOF && !errors.Is(err, test.want) || told == nil {
			t.Errorf("%s: %v after %d bytes, told %v; want %v", test.name, err, len(got), told, test.want)
		}
		l.Write([]byte{0, 0, 0, 64})
		if _, err := l.Write(plain[4:]); test.out != nil && !errors.Is(err, test.out) || test.out == nil && errors.Is(err, errPlainSent) {
			t.Errorf("%s: a request in the clear: %v, want %v", test.name, err, test.out)
		}
		near.Close()
	}
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		user, password, encrypt string
		guest, encrypted        bool
		want                    fault.Kind
	}{
		{"u", "p", "auto", false, false, 0}, {"u", "p", "required", false, true, 0}, {"u", "p", "required", false, false, fault.Unsupported},
		{"u", "p", "auto", true, false, fault.Unauthenticated}, {"guest", "p", "auto", true, false, 0}, {"u", "", "off", true, false, 0},
		{"u", "", "required", true, false, fault.Unsupported},
	} {
		s := &session{b: &Backend{cfg: config{user: test.user, password: test.password, encrypt: test.encrypt}}, link: &link{}}
		s.link.guest, s.link.encrypted = test.guest, test.encrypted
		if err := s.judge(); (err == nil) != (test.want == 0) || err != nil && kindOf(err) != test.want {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"a", "a:b", "dot.", "space ", `q"uo\te|<>*?`, "\uf022", "x\uf028", "x\uf029y", "...", "con", "COM1.x", "lpt¹", "nul "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if mounts.ValidName(name) != nil {
			return
		}
		stored, err := encode(name)
		if err != nil {
			return
		}
		if strings.ContainsAny(stored, refused) || strings.HasSuffix(stored, ".") || strings.HasSuffix(stored, " ") || !utf8.ValidString(stored) {
			t.Errorf("%q is stored as %q", name, stored)
		}
		if got := decode(stored); got != name {
			t.Errorf("%q is stored as %q and read as %q", name, stored, got)
		}
	})
}

// FuzzStored: what a server calls a file leads back to that file, or nowhere.
func FuzzStored(f *testing.F) {
	f.Add("a\uf022")
	f.Add("a:\uf028")
	f.Fuzz(func(t *testing.T, stored string) {
		name := decode(stored)
		if mounts.ValidName(name) != nil || !utf8.ValidString(stored) { // it comes from UTF-16
			return
		}
		if again, err := encode(name); err == nil && again != stored && !strings.ContainsAny(stored, refused) && !strings.HasSuffix(stored, ".") && !strings.HasSuffix(stored, " ") {
			t.Errorf("%q is read as %q, which is stored as %q", stored, name, again)
		}
	})
}

func TestShort(t *testing.T) {
	for name, want := range map[string]bool{
		"LONGNA~1.TXT": true, "a~1": true, "AB12~F.x": true, "~1": true, "name~": false, "a~b.text": false, "verylong~1": false, "x": false, "a.b~1": false, "a~1.b.c": false,
	} {
		if got := short(name); got != want {
			t.Errorf("short(%q) = %v", name, got)
		}
	}
}

func TestReparse(t *testing.T) {
	b := &Backend{}
	for _, test := range []struct {
		attributes, tag uint32
		want            mounts.Type
	}{
		{attrReparse, 0x80000013, mounts.File},            // deduplicated
		{attrReparse | attrDir, 0x9000101A, mounts.Dir},   // cloud
		{attrReparse | attrDir, 0xA0000003, mounts.Other}, // junction
		{attrReparse, 0xA000001D, mounts.Other},           // a link of the Linux subsystem
	} {
		info := infoOf(&smb2.FileStat{FileAttributes: test.attributes, EndOfFile: 5}, "f")
		if err := b.reparse(t.Context(), "f", test.tag, &info); err != nil || info.Type != test.want {
			t.Errorf("tag %#x: %+v, %v; want type %d", test.tag, info, err, test.want)
		}
	}
	if got := linkTarget("a\uf022\\..\\c"); got != "a:/../c" {
		t.Errorf("the target is %q", got)
	}
}

func TestInfo(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.Local)
	info := infoOf(&smb2.FileStat{LastWriteTime: at, ChangeTime: at.Add(1), EndOfFile: -5}, "f")
	if !info.ModTime.Equal(at) || info.ModTime.Location() != time.UTC || info.Change != at.UnixNano()+1 || info.Size != 0 {
		t.Errorf("%+v", info)
	}
	info = infoOf(&smb2.FileStat{LastWriteTime: at, ChangeTime: at}, "f") // Samba
	if info.Change != 0 {
		t.Errorf("%+v", info)
	}
	var none int64 = -116444736000000000 // as the library turns the server's 0 into nanoseconds
	none *= 100
	info = infoOf(&smb2.FileStat{LastWriteTime: time.Unix(0, none), ChangeTime: time.Unix(0, none)}, "f")
	if !info.ModTime.IsZero() || info.Change != 0 {
		t.Errorf("%+v", info)
	}
}

func TestSpace(t *testing.T) {
	if s, err := space(4096, 100, 50, 40); err != nil || s != (mounts.Space{Total: 409600, Used: 204800, Free: 163840}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, block := range []uint64{0, math.MaxUint64, 1 << 40} {
		if _, err := space(block, 1<<30, 1, 1); err == nil {
			t.Errorf("blocks of %d bytes are believed", block)
		}
	}
}

// TestErrors: what the server and the library say becomes what callers switch on.
func TestErrors(t *testing.T) {
	b := &Backend{}
	for _, test := range []struct {
		err  error
		want fault.Kind
	}{
		{&os.PathError{Op: "open", Path: `\secret`, Err: &smb2.ResponseError{Code: statusSharing}}, fault.Busy},
		{&os.LinkError{Op: "rename", Old: `\secret`, New: "b", Err: &smb2.ResponseError{Code: 0xC000007F}}, fault.NoSpace},
		{&smb2.ResponseError{Code: 0xC0000044}, fault.Quota}, {&smb2.ResponseError{Code: 0xC0DEC0DE}, fault.Unavailable},
		{&smb2.ResponseError{Code: 0xC0000101}, fault.NotEmpty}, {&smb2.ResponseError{Code: statusStoppedOnLink}, fault.NotDir},
		{&os.PathError{Op: "open", Path: `\secret`, Err: os.ErrExist}, fault.Exist}, {&os.PathError{Op: "open", Path: `\secret`, Err: os.ErrPermission}, fault.Denied},
		{os.ErrNotExist, fault.NotExist}, {&smb2.TransportError{Err: io.EOF}, fault.Unavailable}, {&smb2.InvalidResponseError{}, fault.Unavailable},
		{smb2.ErrRequestNotAccepted, fault.Busy}, {errStalled, fault.Timeout},
	} {
		err := b.fail("Op", "name", test.err)
		if fault.KindOf(err) != test.want || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v is %v, want %v", test.err, err, test.want)
		}
	}
}

// TestContain: a panic of the library is an error, and ends its session.
func TestContain(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	s := newSession(newBackend(config{}, nil), newLink(near, false))
	if _, err := on(t.Context(), s, small, func() (int, error) { return []int{}[len(t.Name())], nil }, nil); kindOf(err) != fault.Unavailable || s.reason() == nil {
		t.Errorf("%v, session ended by %v", err, s.reason())
	}
}
