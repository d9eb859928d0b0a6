package ftp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/trust"
)

// maxCommand is the longest command in bytes: vsftpd and ProFTPD take 4096, and what some servers do with the rest of a longer one is
// nobody's guess.
const maxCommand = 4000

// settleTime is how long the end of a transfer that was broken off may take before its connection is given up.
const settleTime = 2 * time.Second

// conn is a control connection, logged in, and the data connection of the transfer that goes on. One goroutine uses it at a time.
type conn struct {
	b    *Backend
	raw  net.Conn      // TCP
	nc   net.Conn      // what commands go through: raw, or TLS over it
	r    *bufio.Reader // of nc
	tls  *tls.Config   // of data connections, nil when they are in the clear
	peer netip.Addr
	// greeting is what the server said first.
	greeting string

	pending int  // replies that are to come
	begun   bool // the last reply was not the command's final one
	broken  bool // in an unknown state: not to be used again
	reused  bool // came from the pool, so the server may have closed it meanwhile
	heard   bool // a reply came since then
	class   class
	idle    time.Time // since when
	unwatch func()    // ends what watch began, once

	mu    sync.Mutex // guards what follows
	data  deadliner  // the data connection or listener, nil when there is none
	ended bool       // the call's ctx has: every deadline has passed
}

// deadliner is what interrupt stops.
type deadliner interface {
	SetDeadline(time.Time) error
	Close() error
}

// watch lets the end of ctx interrupt what the connection waits for, until unwatch. The connection lives on: what it owes is read later.
func (c *conn) watch(ctx context.Context) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c.interrupt()
	})
	c.unwatch = sync.OnceFunc(func() {
		if !stop() {
			<-done
		}
		c.mu.Lock()
		c.ended = false
		c.mu.Unlock()
	})
}

var past = time.Unix(1, 0)

func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.raw.SetDeadline(past)
	if c.data != nil {
		c.data.SetDeadline(past)
	}
}

// arm gives d, which waits next, until timeout; nothing when the ctx has ended.
func (c *conn) arm(d deadliner, timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		d.SetDeadline(past)
		return
	}
	d.SetDeadline(time.Now().Add(timeout))
}

// attach makes d the data connection, in place of the former; nil for none.
func (c *conn) attach(d deadliner) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data != nil && c.data != d {
		c.data.Close()
	}
	if c.data = d; d != nil && c.ended {
		d.SetDeadline(past)
	}
}

// close closes all there is. It may be called by anybody.
func (c *conn) close() {
	c.raw.Close() // not nc: a TLS goodbye could wait for a stalled server
	c.attach(nil)
}

// send writes commands. It is the one place that does, and so the one that refuses names which would end a command and begin another.
func (c *conn) send(commands ...string) error {
	var buf []byte
	for _, s := range commands {
		if strings.ContainsAny(s, "\r\n\x00") {
			return errCommand
		}
		if len(s) > maxCommand {
			return errLongName
		}
		// No telnet escapes (RFC 854): the byte 255 is not UTF-8, and names are.
		buf = append(append(buf, s...), '\r', '\n')
	}
	c.arm(c.raw, c.b.timeout)
	if _, err := c.nc.Write(buf); err != nil {
		c.broken = true
		return &lostError{err}
	}
	c.pending += len(commands)
	return nil
}

// read returns the next reply. All of it has to come within the timeout, however it dribbles.
func (c *conn) read(timeout time.Duration) (reply, error) {
	c.arm(c.raw, timeout)
	r, started, err := readReply(c.r)
	if err != nil {
		var n net.Error
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if started || !ended || !errors.As(err, &n) || !n.Timeout() {
			c.broken = true // else nothing was lost
		}
		return r, &lostError{err}
	}
	c.heard = true
	if c.begun = r.code < 200; !c.begun {
		c.pending--
	}
	if r.code == 421 { // RFC 959 §4.2.1: the server closes the connection
		c.broken = true
		return r, &lostError{refused("the command", r)}
	}
	return r, nil
}

// do sends commands at once and returns their replies: one round trip, unless the server was found to lose commands sent so.
func (c *conn) do(commands ...string) ([]reply, error) {
	replies := make([]reply, 0, len(commands))
	step := len(commands)
	if c.b.serial.Load() {
		step = 1
	}
	for at := 0; at < len(commands); at += step {
		if err := c.send(commands[at : at+step]...); err != nil {
			return nil, err
		}
		for i := range step {
			r, err := c.read(c.b.timeout)
			if err != nil {
				if i > 0 && kindOf(err) == fault.Timeout && c.broken {
					c.b.serial.Store(true)
				}
				return nil, err
			}
			replies = append(replies, r)
		}
	}
	return replies, nil
}

// run sends one command and fails when it is refused.
func (c *conn) run(command string) (reply, error) {
	rs, err := c.do(command)
	if err != nil {
		return reply{}, err
	}
	return rs[0], refused(command, rs[0])
}

// settle reads the replies owed from before.
func (c *conn) settle(timeout time.Duration) bool {
	c.attach(nil)
	for end := time.Now().Add(timeout); c.pending > 0 && !c.broken; {
		again := c.begun
		r, err := c.read(time.Until(end))
		if err != nil {
			c.broken = true
		}
		if again && r.code < 200 { // Pure-FTPd ends a transfer that was broken off with 150
			c.pending--
			c.begun = false
		}
	}
	return !c.broken
}

// release gives the connection back.
func (c *conn) release() {
	c.attach(nil)
	c.unwatch()
	c.b.pool.put(c)
}

// dial opens a connection and logs in. The ctx limits it, and so does the timeout, step by step.
func (b *Backend) dial(ctx context.Context) (*conn, error) {
	d := b.cfg.Dialer(b.host)
	d.Timeout = b.timeout
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort(b.host, b.port))
	if err != nil {
		return nil, &lostError{fmt.Errorf("%w (options host and port)", err)}
	}
	peer, err := netip.ParseAddrPort(raw.RemoteAddr().String())
	if err != nil {
		raw.Close()
		return nil, &lostError{err}
	}
	c := &conn{b: b, raw: raw, nc: raw, r: bufio.NewReaderSize(raw, maxLine), peer: peer.Addr().Unmap()}
	c.watch(ctx)
	if err = c.login(ctx); err == nil && ctx.Err() == nil {
		return c, nil
	}
	c.unwatch()
	c.close()
	if err == nil {
		err = &lostError{ctx.Err()}
	}
	return nil, err
}

// login greets, encrypts and signs in, and sets what holds for the whole connection.
func (c *conn) login(ctx context.Context) error {
	if c.b.tlsMode == tlsImplicit {
		if err := c.encrypt(ctx); err != nil {
			return err
		}
	}
	c.pending = 1
	for {
		r, err := c.read(c.b.timeout)
		if r.code == 421 || crowded(r) {
			return &crowdError{refused("the connection", r)}
		}
		if err != nil {
			return err
		}
		if r.code == 120 { // RFC 959 §5.4: ready in some minutes
			continue
		}
		if !r.ok() {
			return refused("the connection", r)
		}
		c.greeting = strings.Join(r.lines, " ")
		break
	}
	if err := c.upgrade(ctx); err != nil {
		return err
	}
	if err := c.signIn(); err != nil {
		return err
	}
	return c.prepare()
}

// upgrade makes a connection TLS that began in the clear (RFC 4217 §4).
func (c *conn) upgrade(ctx context.Context) error {
	if c.b.tlsMode != tlsExplicit && c.b.tlsMode != tlsAuto {
		return nil
	}
	if r, err := c.run("AUTH TLS"); err != nil {
		if r.code < 500 {
			return err
		}
		if c.b.tlsMode == tlsAuto && !c.b.secure.Load() {
			return nil
		}
		return fault.New("mounts/ftp.login", "", fault.Unsupported, fmt.Errorf("%w: %w", errAuthTLS, err))
	}
	if c.r.Buffered() > 0 { // sent in the clear to be believed afterwards
		return &lostError{errGarbled}
	}
	return c.encrypt(ctx)
}

// crowded recognises servers that say with 530 what 421 is for.
func crowded(r reply) bool {
	if r.code != 530 {
		return false
	}
	text := strings.ToLower(strings.Join(r.lines, " "))
	return strings.Contains(text, "maximum number") || strings.Contains(text, "too many") || strings.Contains(text, "connection limit")
}

// wantsTLS recognises servers that take no password in the clear, for which each has a code and words of its own.
func wantsTLS(r reply) bool {
	text := strings.ToLower(strings.Join(r.lines, " "))
	return strings.Contains(text, "cleartext") || strings.Contains(text, "encryption") || strings.Contains(text, "tls") || strings.Contains(text, "ssl")
}

func (c *conn) signIn() error {
	user := c.b.user
	r, err := c.run("USER " + user)
	if r.code == 331 {
		r, err = c.run("PASS " + c.b.password.Reveal())
	}
	var refusal *replyError
	switch {
	case errors.As(err, &refusal) && c.tls == nil && wantsTLS(refusal.reply):
		return fault.New("mounts/ftp.login", "", fault.Unsupported, fmt.Errorf("%w: %w", errWantsTLS, err))
	case crowded(r) || errors.As(err, &refusal) && refusal.reply.code == 421:
		return &crowdError{err}
	case errors.As(err, &refusal) && (r.code == 530 || r.code == 430 || r.code == 332 || r.code == 532 || r.code == 331):
		return fault.New("mounts/ftp.login", "", fault.Unauthenticated, fmt.Errorf("the server does not accept the user name %q with this password: %w", user, err))
	}
	return err
}

// prepare asks, once per connection, for bytes as they are, for UTF-8 and short listings, and for encrypted data.
func (c *conn) prepare() error {
	if c.b.server.Load() == nil {
		if err := c.b.discover(c); err != nil {
			return err
		}
	}
	s := c.b.server.Load()
	commands := []string{"TYPE I"}
	if c.tls != nil {
		commands = append(commands, "PBSZ 0", "PROT P") // RFC 4217 §8, §9
	}
	must := len(commands)
	if s.has("UTF8") {
		commands = append(commands, "OPTS UTF8 ON")
	}
	if s.facts != "" {
		commands = append(commands, "OPTS MLST "+s.facts)
	}
	rs, err := c.do(commands...)
	if err != nil {
		return err
	}
	for i, r := range rs[:must] {
		if err := refused(commands[i], r); err != nil {
			return fault.New("mounts/ftp.login", "", fault.Unsupported, err)
		}
	}
	return nil
}

// encrypt makes the control connection TLS. Data connections resume its session, which vsftpd and ProFTPD demand; so each control connection
// remembers its own, and the first: servers compare with that.
func (c *conn) encrypt(ctx context.Context) error {
	conf := c.b.tls.Clone()
	conf.ClientSessionCache = &firstSession{}
	t := tls.Client(c.raw, conf)
	c.arm(c.raw, c.b.timeout)
	if err := t.HandshakeContext(ctx); err != nil {
		if trust.Is(err) {
			return fault.New("mounts/ftp.login", "", fault.Unavailable, trust.Explain(err))
		}
		return &lostError{fmt.Errorf("TLS: %w", err)}
	}
	if cert := t.ConnectionState().PeerCertificates; conf.InsecureSkipVerify && len(cert) > 0 && time.Now().After(cert[0].NotAfter) {
		// A certificate that is pinned is believed though it has expired, but its session would not be resumed.
		conf.Time = func() time.Time { return cert[0].NotAfter }
	}
	c.nc, c.tls = t, conf
	c.b.secure.Store(true)
	c.r = bufio.NewReaderSize(t, maxLine)
	return nil
}

// firstSession is a cache of the session that came first.
type firstSession struct {
	mu    sync.Mutex
	state *tls.ClientSessionState
}

func (s *firstSession) Get(string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.state != nil
}

func (s *firstSession) Put(_ string, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == nil {
		s.state = state
	}
}
