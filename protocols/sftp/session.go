package sftp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// errEOF is the answer behind the last byte or name.
var errEOF = errors.New("end of file")

// session is one channel that speaks SFTP.
type session struct {
	srv    *Server
	log    *slog.Logger
	login  string
	in     *bufio.Reader
	out    *out
	conn   *conn
	cut    func()           // closes the connection
	s      *gateway.Session // shows links as what they are
	follow *gateway.Session // follows them
	ctx    context.Context  // ends with the client: of what only looks
	life   context.Context  // ends a while after: of what changes something
	order  order
	slots  chan struct{} // one for each request under way
	bodies chan struct{} // one for each block of data that is to be written
	tasks  sync.WaitGroup
	relay  relay
	ended  chan error // why the last reader has stopped
	body   []byte     // of the request at hand

	streams atomic.Bool   // the client writes files from start to end
	held    atomic.Int64  // bytes that came before it was their turn
	heard   *atomic.Int64 // when the client last asked for something
	opened  atomic.Int64  // handles, those that are being opened or closed included

	mu      sync.Mutex
	handles map[uint32]*handle // guarded by mu
	last    uint32             // guarded by mu
}

const (
	bodyBlocks = 8       // of writes that are carried out, per session
	maxHeld    = 4 << 20 // bytes that wait for their turn, per session
	grace      = 30 * time.Second
	keepBody   = 4 << 10 // of the buffer for requests, while idle
)

// client is what serve is told of who speaks.
type client struct {
	session *gateway.Session
	about   gateway.Client
	streams bool
	heard   *atomic.Int64 // nil is fine
	conn    *conn         // nil in tests
	cut     func()        // closes the connection; nil: that of conn
}

// serve speaks SFTP until the client ends, and returns what was wrong with it, nil when nothing was. What was left open is given up.
func (srv *Server) serve(rwc io.ReadWriter, c client) error {
	about := c.about
	about.Posix = true
	s := &session{
		srv: srv, login: c.session.Subject().Login, in: bufio.NewReaderSize(rwc, 4<<10), out: newOut(rwc), conn: c.conn, cut: c.cut,
		s: c.session.With(about), heard: c.heard, handles: make(map[uint32]*handle),
		slots: make(chan struct{}, srv.limits.Requests), bodies: make(chan struct{}, bodyBlocks), ended: make(chan error, 1),
	}
	s.streams.Store(c.streams)
	about.Posix = false
	s.follow = c.session.With(about)
	s.log = srv.log.With("login", s.login, "session", about.RequestID)
	if s.cut == nil {
		s.cut = func() { c.conn.Close() }
	}
	if s.heard == nil {
		s.heard = new(atomic.Int64)
	}
	var stop, kill context.CancelFunc
	s.ctx, stop = context.WithCancel(context.Background())
	s.life, kill = context.WithCancel(context.Background())
	defer kill()
	srv.enlist(s)
	defer srv.dismiss(s)
	err := s.hello()
	if err == nil {
		s.loop(0)
		err = <-s.ended
	}
	if err != io.EOF {
		s.cut()
	}
	stop()
	late := time.AfterFunc(grace, kill)
	defer late.Stop()
	s.tasks.Wait()
	s.abandon()
	if err == io.EOF {
		return nil
	}
	return err
}

// hello answers the client's version with ours and what we know besides (§4).
func (s *session) hello() error {
	typ, n, err := s.header()
	if err != nil {
		return err
	}
	if typ != typeInit || n < 4 || n > maxOther {
		return errMalformed
	}
	if _, err := s.read(n); err != nil {
		return err
	}
	p := make(reply, 5, 512)
	p[4] = typeVersion
	p = p.u32(protocolVersion)
	for _, e := range extensions {
		p = p.str(e.name).str(e.version)
	}
	s.out.send(p.done())
	return nil
}

// header reads length and type of a packet, and returns how much comes behind them.
func (s *session) header() (typ byte, n int, err error) {
	var head [4]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = io.EOF // the client has gone
		}
		return 0, 0, err
	}
	length := binary.BigEndian.Uint32(head[:])
	switch {
	case length < 1:
		return 0, 0, errMalformed
	case length > maxPacket:
		return 0, 0, errLong
	}
	if typ, err = s.in.ReadByte(); err != nil {
		return 0, 0, io.EOF
	}
	return typ, int(length) - 1, nil
}

// read reads the rest of a packet. It is valid until the next one is read.
func (s *session) read(n int) (*input, error) {
	if cap(s.body) < n || n <= keepBody && cap(s.body) > keepBody {
		s.body = make([]byte, max(n, 512))
	}
	b := s.body[:n]
	if _, err := io.ReadFull(s.in, b); err != nil {
		return nil, io.EOF
	}
	return &input{b: b}, nil
}

// next takes one request. It returns as soon as that is on its way.
func (s *session) next() error {
	typ, n, err := s.header()
	if err != nil {
		return err
	}
	s.heard.Store(time.Now().UnixNano())
	if n < 4 {
		return errMalformed
	}
	if typ == typeWrite {
		return s.takeWrite(n)
	}
	if n > maxOther {
		return errLong
	}
	in, err := s.read(n)
	if err != nil {
		return err
	}
	s.slots <- struct{}{}
	id := in.u32()
	s.take(typ, id, in)
	return nil
}

// idle reports whether nothing is under way.
func (s *session) idle() bool { return len(s.slots) == 0 }

// refuse answers a request that is not carried out.
func (s *session) refuse(id uint32, err error) { s.finish(id, nil, err) }

// malformed answers a request whose fields are not all there.
func (s *session) malformed(id uint32) {
	s.refuse(id, fault.New("sftp", "", fault.Invalid, errMalformed))
}

// finish answers a request, with a status unless there is a reply.
func (s *session) finish(id uint32, p reply, err error) {
	if err != nil || p == nil {
		if err != nil && err != errEOF && troubles[fault.KindOf(err)] && s.ctx.Err() == nil {
			s.log.Error("sftp request failed", "err", err)
		}
		p = answer(typeStatus, id, 64).status(err)
	}
	s.out.send(p.done())
	<-s.slots
}

// later carries out a request on paths when it is its turn.
func (s *session) later(id uint32, t *turn, do func(ctx context.Context) (reply, error)) {
	ctx := s.ctx
	if t.write {
		ctx = s.life
	}
	wait := s.order.enter(t)
	carryOut := func() {
		defer s.contain()
		if wait != nil {
			wait()
		}
		p, err := func() (reply, error) {
			defer s.order.leave(t)
			return do(ctx)
		}()
		s.finish(id, p, err)
	}
	if wait == nil {
		s.perform(carryOut)
	} else {
		s.tasks.Go(carryOut)
	}
}

// contain ends the session when a request panics, and nothing else.
func (s *session) contain() {
	if v := recover(); v != nil {
		s.log.Error("sftp request panicked", "panic", v, "stack", string(debug.Stack()))
		s.cut()
		select {
		case <-s.slots:
		default:
		}
	}
}

// path returns the place a client's path names: "/" is the root, relative ones begin there, and dots are resolved by name.
func (s *session) path(raw string) (gateway.Path, error) {
	if len(raw) > 4096 {
		return gateway.Path{}, fault.New("sftp", "", fault.Invalid, errors.New("a path of more than 4096 bytes"))
	}
	return gateway.ParsePath(path.Clean("/" + raw))
}

// expand is path for one that may begin with "~": everybody's home is the root.
func (s *session) expand(raw string) (gateway.Path, error) {
	if strings.HasPrefix(raw, "~") {
		name, rest, _ := strings.Cut(raw[1:], "/")
		if name != "" && name != s.login {
			return gateway.Path{}, fault.New("sftp", "", fault.NotExist, errors.New("no such user"))
		}
		raw = rest
	}
	return s.path(raw)
}
