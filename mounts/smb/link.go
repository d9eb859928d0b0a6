package smb

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
)

// link is the connection under a session. It does what the library leaves undone:
//
//   - The library encrypts only when the server's answer says so (SMB2_SESSION_FLAG_ENCRYPT_DATA, MS-SMB2 §2.2.6), but that a client wants it
//     is the client's decision (§3.2.5.3.1, Session.EncryptData): link sets the flag where encryption is wanted and was negotiated.
//   - The library takes answers in the clear in an encrypted session. From then on link lets pass encrypted frames only, both ways.
//   - The library does not take the credits that a session costs to set up from its account. Where a server grants no more than it must, it would
//     be closed for a request too many: link takes them from what the server grants.
//   - The size of a frame is bounded, and the time of the last byte either way is known.
type link struct {
	net.Conn
	in      *bufio.Reader
	encrypt bool        // wanted
	broken  func(error) // told why reading ended, so that a session the server closed is known to be dead before the next call

	ready []byte  // read and still to be handed out
	left  int     // of the frame, still to be read
	head  [4]byte // of the frame to be written
	held  bool    // head is set

	handshake
	told atomic.Pointer[chan none] // closed and dropped once the next request is written, see sent
	last atomic.Int64              // time of the last byte received, or sent within a long request; by now
}

// handshake is what the server's answers said until the session was set up.
type handshake struct {
	cipher      bool        // can encrypt
	established atomic.Bool // the session is set up; the fields below are settled before it is true
	encrypted   bool
	guest       bool
}

const (
	maxFrame     = 2 << 20   // answers are 1 MiB at most, as asked for, and their headers
	maxHandshake = 128 << 10 // answers until the session is set up
	minFrame     = 52        // an encrypted frame's header
)

var (
	errFrame     = failure{fault.Unavailable, "the server sends what is not SMB"}
	errPlain     = failure{fault.Unavailable, "the server answered in the clear though the session is encrypted; the answer was dropped"}
	errPlainSent = failure{fault.Unavailable, "a request was about to be sent in the clear though the session is encrypted"}
	encrypted    = [4]byte{0xFD, 'S', 'M', 'B'}
	le           = binary.LittleEndian
)

var epoch = time.Now()

// now is monotonic.
func now() int64 { return int64(time.Since(epoch)) }

func newLink(conn net.Conn, encrypt bool) *link {
	l := &link{Conn: conn, in: bufio.NewReaderSize(conn, 32<<10), encrypt: encrypt}
	l.last.Store(now())
	return l
}

// Read implements net.Conn, for the one reader the library has.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.read(p)
	if err != nil && l.broken != nil {
		why := err
		if _, own := err.(failure); !own {
			why = &smb2.TransportError{Err: err}
		}
		l.broken(why)
	}
	return n, err
}

func (l *link) read(p []byte) (int, error) {
	if len(l.ready) == 0 && l.left == 0 {
		if err := l.frame(); err != nil {
			return 0, err
		}
	}
	if len(l.ready) > 0 {
		n := copy(p, l.ready)
		l.ready = l.ready[n:]
		return n, nil
	}
	n, err := l.in.Read(p[:min(len(p), l.left)])
	l.left -= n
	l.last.Store(now())
	return n, err
}

// frame reads the beginning of the next frame, or all of it during the handshake. MS-SMB2 §2.1: a zero byte and the length in three.
func (l *link) frame() error {
	begin := make([]byte, 8)
	if _, err := io.ReadFull(l.in, begin); err != nil {
		return err
	}
	l.last.Store(now())
	size := int(binary.BigEndian.Uint32(begin))
	if l.established.Load() {
		if size < minFrame || size > maxFrame {
			return errFrame
		}
		if l.encrypted && [4]byte(begin[4:]) != encrypted {
			return errPlain
		}
		l.ready, l.left = begin, size-4
		return nil
	}
	if size < 64 || size > maxHandshake {
		return errFrame
	}
	frame := append(make([]byte, 0, 4+size), begin...)[:4+size]
	if _, err := io.ReadFull(l.in, frame[8:]); err != nil {
		return err
	}
	l.inspect(frame[4:], l.encrypt)
	l.ready = frame
	return nil
}

// Write implements net.Conn. The library, one call at a time, writes a frame's length and then the frame.
func (l *link) Write(p []byte) (int, error) {
	if !l.held && len(p) == 4 {
		l.head, l.held = [4]byte(p), true
		return len(p), nil
	}
	if l.established.Load() && l.encrypted && (len(p) < 4 || [4]byte(p[:4]) != encrypted) {
		return 0, errPlainSent
	}
	const piece = 128 << 10
	done := min(len(p), piece)
	defer func() {
		if c := l.told.Swap(nil); c != nil {
			close(*c)
		}
	}()
	if l.held {
		l.held = false
		bufs := net.Buffers{l.head[:], p[:done]}
		if _, err := bufs.WriteTo(l.Conn); err != nil {
			return 0, err
		}
	} else if _, err := l.Conn.Write(p[:done]); err != nil {
		return 0, err
	}
	for done < len(p) {
		n, err := l.Conn.Write(p[done:min(len(p), done+piece)])
		if done += n; err != nil {
			return done, err
		}
		l.last.Store(now()) // a long request moves; short ones the system takes for a server that is stalled, too
	}
	return done, nil
}

// sent returns a channel that is closed when the next request has been written.
func (l *link) sent() <-chan none {
	for {
		if c := l.told.Load(); c != nil {
			return *c
		}
		c := make(chan none)
		if l.told.CompareAndSwap(nil, &c) {
			return c
		}
	}
}

// SMB2 header and commands, MS-SMB2 §2.2.1.
const (
	commandNegotiate = 0
	commandSetup     = 1
	flagGuest        = 0x1
	flagNull         = 0x2
	flagEncrypt      = 0x4
	setupCost        = 4 // credits: NEGOTIATE, twice SESSION_SETUP, TREE_CONNECT
)

// inspect looks at an answer of the handshake, frame, and marks the session as encrypted where that is wanted and can be.
func (h *handshake) inspect(frame []byte, encrypt bool) {
	if len(frame) < 64+8 || [4]byte(frame[:4]) != [4]byte{0xFE, 'S', 'M', 'B'} || le.Uint32(frame[8:]) != 0 {
		return
	}
	switch body := frame[64:]; le.Uint16(frame[12:]) {
	case commandNegotiate:
		h.cipher = negotiatedCipher(frame)
	case commandSetup:
		flags := le.Uint16(body[2:])
		h.guest = flags&(flagGuest|flagNull) != 0
		if encrypt && h.cipher && !h.guest {
			flags |= flagEncrypt
			le.PutUint16(body[2:], flags)
		}
		h.encrypted = flags&flagEncrypt != 0
		granted := le.Uint16(frame[14:])
		le.PutUint16(frame[14:], granted-min(granted, setupCost))
		h.established.Store(true)
	}
}

// negotiatedCipher reports whether the answer to NEGOTIATE, MS-SMB2 §2.2.4, allows encryption.
func negotiatedCipher(frame []byte) bool {
	body := frame[64:]
	if len(body) < 64 {
		return false
	}
	const capEncryption, contextEncryption = 0x40, 2
	switch le.Uint16(body[4:]) {
	case 0x0300, 0x0302:
		return le.Uint32(body[24:])&capEncryption != 0
	case 0x0311:
	default:
		return false
	}
	at := int64(le.Uint32(body[60:])) // contexts are found from the beginning of the header, each aligned to 8
	for range le.Uint16(body[6:]) {
		if at+8 > int64(len(frame)) {
			return false
		}
		context := frame[at:]
		size := int64(le.Uint16(context[2:]))
		if le.Uint16(context) == contextEncryption && size >= 4 && int64(len(context)) >= 12 {
			cipher := le.Uint16(context[10:])
			return le.Uint16(context[8:]) == 1 && (cipher == 1 || cipher == 2)
		}
		at += (8 + size + 7) &^ 7
	}
	return false
}
