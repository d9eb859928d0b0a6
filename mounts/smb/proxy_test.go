package smb_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

func hidden(s string) secret.String { return secret.New(s) }

// proxy stands before a server.
type proxy struct {
	delay  atomic.Int64              // each way
	answer func(n int, frame []byte) // may change the n-th answer of a connection

	mu   sync.Mutex
	seen bytes.Buffer // all that passed, guarded by mu
}

// before leads the datasource of cfg through p.
func (p *proxy) before(t testing.TB, cfg mounts.Config) mounts.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := net.JoinHostPort(cfg.Options["host"], cfg.Options["port"])
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			both := func() { in.Close(); out.Close() }
			all.Go(func() { defer both(); p.pass(out, in, nil) })
			all.Go(func() { defer both(); p.pass(in, out, p.answer) })
		}
	})
	cfg.Options["host"], cfg.Options["port"] = "127.0.0.1", strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	return cfg
}

// pass copies frames, each after the delay.
func (p *proxy) pass(dst io.Writer, src io.Reader, change func(n int, frame []byte)) {
	type late struct {
		at    time.Time
		frame []byte
	}
	queue := make(chan late, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for l := range queue {
			time.Sleep(time.Until(l.at))
			dst.Write(l.frame)
		}
	}()
	for n := 0; ; n++ {
		var head [4]byte
		if _, err := io.ReadFull(src, head[:]); err != nil {
			break
		}
		frame := make([]byte, 4+binary.BigEndian.Uint32(head[:]))
		copy(frame, head[:])
		if _, err := io.ReadFull(src, frame[4:]); err != nil {
			break
		}
		if change != nil {
			change(n, frame)
		}
		p.mu.Lock()
		if p.seen.Len() < 8<<20 {
			p.seen.Write(frame)
		}
		p.mu.Unlock()
		queue <- late{time.Now().Add(time.Duration(p.delay.Load())), frame}
	}
	close(queue)
	<-done
}

func (p *proxy) saw(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Contains(p.seen.Bytes(), []byte(text))
}
