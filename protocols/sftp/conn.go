package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
)

// conn is one connection of SSH.
type conn struct {
	net.Conn
	srv    *Server
	heard  atomic.Int64 // when the client last asked for something
	user   int64        // guarded by Server.mu
	signed bool         // guarded by Server.mu
	once   sync.Once
}

// Close closes the connection, whatever waits on it.
func (c *conn) Close() (err error) {
	c.once.Do(func() { err = c.Conn.Close() })
	return err
}

// temporary reports whether accepting may work again.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve signs the client in and serves its channels until it goes.
func (c *conn) serve() {
	defer c.srv.gone(c)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), c.srv.limits.Handshake)
	defer cancel()
	// Negotiating too: whoever is silent in between would keep the connection.
	deadline := time.Now().Add(c.srv.limits.Handshake)
	if c.SetDeadline(deadline) != nil {
		return
	}
	d := &door{srv: c.srv, ctx: ctx, addr: addrOf(c.RemoteAddr())}
	config := d.config()
	p, ciphers, err := c.look(config.ServerVersion, deadline)
	if err != nil {
		c.srv.log.Debug("sftp handshake failed", "remote", c.RemoteAddr().String(), "err", err)
		return
	}
	config.Ciphers = ciphers
	sc, channels, requests, err := ssh.NewServerConn(p, config)
	if err != nil {
		c.srv.log.Debug("sftp handshake failed", "remote", c.RemoteAddr().String(), "err", err)
		return
	}
	in, ok := sc.Permissions.ExtraData[loginKey{}].(login)
	if !ok || !c.srv.admitted(c, in.sub.ID) {
		c.srv.log.Warn("sftp connection refused: too many", "login", sc.User())
		return
	}
	c.heard.Store(time.Now().UnixNano())
	if c.SetDeadline(time.Time{}) != nil {
		return
	}
	client := client{session: in.session, streams: streams(agent(sc)), heard: &c.heard, conn: c, about: gateway.Client{
		Protocol: protocol, Address: d.addr, Agent: agent(sc), Credential: in.sub.Credential, OwnLocks: true, RequestID: rand.Text()[:12],
	}}
	log := c.srv.log.With("login", in.sub.Login, "session", client.about.RequestID)
	log.Debug("sftp login", "remote", d.addr, "agent", client.about.Agent, "credential", in.sub.Credential)
	var open sync.WaitGroup
	open.Go(func() { // keepalives are answered; nothing else is granted
		for r := range requests {
			c.heard.Store(time.Now().UnixNano())
			r.Reply(false, nil)
		}
	})
	var n atomic.Int64
	for nc := range channels {
		switch {
		case nc.ChannelType() != "session":
			nc.Reject(ssh.Prohibited, "only sftp is served here")
		case n.Load() >= int64(c.srv.limits.Channels):
			nc.Reject(ssh.ResourceShortage, "too many channels")
		default:
			n.Add(1)
			open.Go(func() {
				defer n.Add(-1)
				if err := c.channel(nc, client); err != nil {
					log.Info("sftp session ended", "err", err)
				}
			})
		}
	}
	open.Wait()
}

// streams reports whether a client, by its name, is one that writes files from start to end. Others may ask for limits, see extended.
func streams(agent string) bool {
	for _, name := range [...]string{"rclone/", "WinSCP", "FileZilla", "PuTTY", "libssh2", "cellgate"} {
		if strings.HasPrefix(agent, name) {
			return true
		}
	}
	return false
}

// isSFTP reports whether a command is what servers call SFTP.
func isSFTP(command string) bool {
	command, _, _ = strings.Cut(command, " ")
	name := path.Base(command)
	return name == "sftp-server" || name == "internal-sftp"
}

const (
	wordsShell = "This server serves files by SFTP only: there is no shell here.\r\n"
	wordsExec  = "This server serves files by SFTP only: it runs no commands.\r\n"
	wordsSCP   = "This server does not speak the old protocol of scp, only SFTP: use scp of OpenSSH 9 or later without -O (or scp -s before), or sftp.\r\n"
)

// channel waits for what a channel is wanted for, and serves it.
func (c *conn) channel(nc ssh.NewChannel, client client) error {
	ch, requests, err := nc.Accept()
	if err != nil {
		return err
	}
	defer ch.Close()
	late := time.AfterFunc(c.srv.limits.Handshake, func() { ch.Close(); c.Close() })
	defer late.Stop()
	for r := range requests {
		c.heard.Store(time.Now().UnixNano())
		words := ""
		switch r.Type {
		case "subsystem":
			if text(r.Payload) == "sftp" {
				return c.sftp(ch, r, requests, late, client)
			}
		case "exec":
			command := text(r.Payload)
			if isSFTP(command) {
				return c.sftp(ch, r, requests, late, client)
			}
			words = wordsExec
			if name, _, _ := strings.Cut(command, " "); path.Base(name) == "scp" {
				words = wordsSCP
			}
		case "shell":
			words = wordsShell
		}
		if words == "" { // a terminal, an agent, X11, an environment: nothing of that
			r.Reply(false, nil)
			continue
		}
		r.Reply(true, nil)
		go ssh.DiscardRequests(requests) // ends with the channel
		io.WriteString(ch.Stderr(), words)
		exit(ch, 1)
		return nil
	}
	return nil
}

// sftp serves the one purpose a channel may have.
func (c *conn) sftp(ch ssh.Channel, r *ssh.Request, requests <-chan *ssh.Request, late *time.Timer, client client) error {
	late.Stop()
	r.Reply(true, nil)
	go ssh.DiscardRequests(requests) // ends with the channel
	err := c.srv.serve(ch, client)
	status := uint32(0)
	if err != nil {
		status = 1
	}
	exit(ch, status)
	return err
}

func exit(ch ssh.Channel, status uint32) {
	ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
}

// text reads the one string of a request.
func text(payload []byte) string {
	var m struct{ Text string }
	if ssh.Unmarshal(payload, &m) != nil {
		return ""
	}
	return m.Text
}
