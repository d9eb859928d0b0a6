package ftp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"cellgate/internal/fault"
	"cellgate/internal/trust"
)

// channel is a data connection to be: passive, with the port that the server listens on, or active, with our own listener.
type channel struct {
	c    *conn
	port uint16
	ln   *net.TCPListener
	conn net.Conn // TCP, once it is there
}

var (
	errStrangers = errors.New("the data connection came from another address than the server's")
	errNoActive  = errors.New("the server refuses active mode: set the option mode to passive")
	errNoPassive = errors.New("the server refuses passive mode: set the option mode to active")
)

// reserve makes the server ready for a data connection, in the round trip of the commands before, whose replies it returns.
func (c *conn) reserve(before ...string) (*channel, []reply, error) {
	if c.b.active {
		return c.listen(before)
	}
	d := &channel{c: c}
	commands := before
	extended := !c.b.noEPSV.Load()
	if extended {
		commands = append(append([]string(nil), before...), "EPSV")
	}
	replies, err := c.do(commands...)
	if err != nil {
		return nil, nil, err
	}
	if extended {
		r := replies[len(before)]
		switch {
		case r.code == 229:
			d.port, err = parseEPSV(r.text())
			if err == nil {
				return d, replies[:len(before)], nil
			}
			return nil, nil, &lostError{err}
		case r.code < 500:
			return nil, nil, refused("EPSV", r)
		}
		c.b.noEPSV.Store(true) // RFC 2428 is not for everybody
	}
	if !c.peer.Is4() {
		return nil, nil, fault.New("mounts/ftp.data", "", fault.Unsupported, errNoPassive)
	}
	r, err := c.run("PASV")
	if err != nil {
		if r.code >= 500 {
			err = fault.New("mounts/ftp.data", "", fault.Unsupported, fmt.Errorf("%w: %w", errNoPassive, err))
		}
		return nil, nil, err
	}
	if d.port, err = parsePASV(r.text()); err != nil {
		return nil, nil, &lostError{err}
	}
	return d, replies, nil
}

// listen opens a listener on the address that the server knows us by, and tells the server.
func (c *conn) listen(before []string) (*channel, []reply, error) {
	local, err := netip.ParseAddrPort(c.raw.LocalAddr().String())
	if err != nil {
		return nil, nil, &lostError{err}
	}
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		return nil, nil, &lostError{err}
	}
	c.attach(ln)
	at := netip.AddrPortFrom(local.Addr(), uint16(ln.Addr().(*net.TCPAddr).Port))
	eprt, port := activeArgs(at)
	first := "EPRT " + eprt
	if c.b.noEPRT.Load() && port != "" {
		first = "PORT " + port
	}
	replies, err := c.do(append(append([]string(nil), before...), first)...)
	if err != nil {
		return nil, nil, err
	}
	r := replies[len(before)]
	if r.code >= 500 && first[0] == 'E' && port != "" {
		c.b.noEPRT.Store(true)
		if r, err = c.run("PORT " + port); r.code < 500 && err != nil {
			return nil, nil, err
		}
	}
	if r.code >= 500 {
		return nil, nil, fault.New("mounts/ftp.data", "", fault.Unsupported, fmt.Errorf("%w: %w", errNoActive, refused("PORT", r)))
	}
	if err := refused(first, r); err != nil {
		return nil, nil, err
	}
	return &channel{c: c, ln: ln}, replies[:len(before)], nil
}

// connect opens a passive data connection, to the address of the control connection and no other.
func (d *channel) connect(ctx context.Context) error {
	if d.ln != nil {
		return nil
	}
	c := d.c
	dialer := c.b.cfg.Dialer(c.peer.String()) // which the control connection was allowed
	dialer.Timeout = c.b.timeout
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(c.peer.String(), strconv.Itoa(int(d.port))))
	if err != nil {
		return &lostError{fmt.Errorf("data connection: %w", err)}
	}
	d.conn = conn
	c.attach(conn)
	return nil
}

// accept waits for the server on an active data connection, and for nobody else.
func (d *channel) accept() error {
	if d.ln == nil {
		return nil
	}
	for range 16 {
		d.c.arm(d.ln, d.c.b.timeout)
		conn, err := d.ln.Accept()
		if err != nil {
			d.c.broken = true
			return &lostError{fmt.Errorf("data connection: %w", err)}
		}
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err == nil && from.Addr().Unmap() == d.c.peer {
			d.conn = conn
			d.c.attach(conn) // closes the listener
			return nil
		}
		conn.Close()
	}
	return &lostError{errStrangers}
}

// begin sends the command that uses the data connection and returns its first reply. A reply that ends it at once, with success or not, means
// that there is no data connection.
func (d *channel) begin(ctx context.Context, command string) (reply, error) {
	if err := d.c.send(command); err != nil {
		return reply{}, err
	}
	return d.begun(ctx, command)
}

// begun is begin for a command that was sent before.
func (d *channel) begun(ctx context.Context, command string) (reply, error) {
	r, err := d.c.read(d.c.b.timeout)
	if err != nil {
		return r, err
	}
	if r.code >= 200 {
		d.c.attach(nil)
		d.conn = nil
		return r, refused(command, r)
	}
	if err := d.accept(); err != nil {
		return r, err
	}
	if d.c.tls == nil {
		return r, nil
	}
	t := tls.Client(d.conn, d.c.tls)
	d.c.arm(d.conn, d.c.b.timeout)
	if err := t.HandshakeContext(ctx); err != nil {
		return r, d.why(&lostError{fmt.Errorf("TLS of the data connection: %w", trust.Explain(err))})
	}
	d.conn = t
	return r, nil
}

// finish ends the data connection and returns the reply that says whether all went well.
func (d *channel) finish(command string) (reply, error) {
	d.c.arm(d.c.raw, d.c.b.timeout)
	if t, ok := d.conn.(*tls.Conn); ok {
		t.Close() // with a goodbye, which tells an end from a cut; waits 5 s at most
	}
	d.c.attach(nil)
	r, err := d.c.read(d.c.b.timeout)
	if err != nil {
		return r, err
	}
	return r, refused(command, r)
}

// why returns the reason the server gives for a transfer that failed with err, or err.
func (d *channel) why(err error) error {
	d.c.mu.Lock()
	ended := d.c.ended
	d.c.mu.Unlock()
	if ended || d.c.broken || d.c.pending == 0 || kindOf(err) == fault.Timeout {
		return err
	}
	d.c.attach(nil)
	r, rerr := d.c.read(settleTime)
	if rerr != nil || r.code < 400 {
		return err
	}
	return refused("the transfer", r)
}
