package roundtrip

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
	sftpdriver "cellgate/mounts/sftp"
	"cellgate/protocols/sftp"
)

// TestSFTP runs the suite on our server as the driver for SFTP sees it.
func TestSFTP(t *testing.T) {
	house := gatewaytest.New(t, gatewaytest.Config{})
	keys, err := sftp.HostKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := sftp.New(sftp.Config{Gateway: house.Gateway, Identity: house.Identity, HostKeys: keys})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, sftp.ErrServerClosed) {
			t.Error(err)
		}
	})
	plain := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{Serve: func(ch io.ReadWriteCloser) { renaming(t, ch, l.Addr().String()) }})
	cfg := servertest.SFTPConfig(plain, servertest.SFTPKey{}, "path", "/docs")
	root := mountSFTP(t, cfg)
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		name := rand.Text()
		if err := root.Mkdir(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		c := cfg
		c.Options = maps.Clone(cfg.Options)
		c.Options["path"] += "/" + name
		return mountSFTP(t, c)
	})
}

// renaming passes a channel on to our server. The driver stages what it puts in the gateway's own area, which is nobody's on any door: so that
// it finds a server as any other, that area is called something else behind this.
func renaming(t *testing.T, ch io.ReadWriteCloser, addr string) {
	c, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: "alice", Auth: []ssh.AuthMethod{ssh.Password(gatewaytest.Password)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	s, requests, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Error(err)
		return
	}
	go ssh.DiscardRequests(requests)
	if ok, err := s.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"sftp"})); err != nil || !ok {
		t.Error(ok, err)
		return
	}
	const theirs, ours = mounts.Area, "_cellgate"
	var both sync.WaitGroup
	both.Go(func() {
		packets(s, ch, theirs, ours)
		s.CloseWrite()
	})
	both.Go(func() {
		packets(ch, s, ours, theirs)
		ch.Close()
	})
	both.Wait()
}

// packets copies packets from src to dst with one name in place of another of the same length. What is written and read stays as it is.
func packets(dst io.Writer, src io.Reader, from, to string) {
	const write, data = 6, 103
	in := bufio.NewReader(src)
	for {
		head, err := in.Peek(5)
		if err != nil {
			return
		}
		p := make([]byte, 4+binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(in, p); err != nil {
			return
		}
		if p[4] != write && p[4] != data {
			p = bytes.ReplaceAll(p, []byte(from), []byte(to))
		}
		if _, err := dst.Write(p); err != nil {
			return
		}
	}
}

func mountSFTP(t *testing.T, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := sftpdriver.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}
