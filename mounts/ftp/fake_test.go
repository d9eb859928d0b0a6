package ftp_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cellgate/mounts"
)

// fake is a server in this process that says what a test wants. What answer leaves empty is answered as by a plain server with an empty
// folder; "-" says nothing at all.
type fake struct {
	greeting string
	answer   func(s *session, verb, arg string) string
	ln       net.Listener
	all      sync.WaitGroup
	flights  atomic.Int32 // pieces that commands came in
	mu       sync.Mutex
	conns    []io.Closer // guarded by mu
}

// session is one control connection.
type session struct {
	net.Conn
	f    *fake
	data net.Listener
}

func newFake(t testing.TB, answer func(s *session, verb, arg string) string, greeting ...string) *fake {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{ln: ln, greeting: "220 (vsFTPd as it were)\r\n", answer: answer} // of which no probe is made
	if len(greeting) > 0 {
		f.greeting = greeting[0]
	}
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.all.Wait()
	})
	f.all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.keep(c)
			f.all.Go(func() { f.serve(c) })
		}
	})
	return f
}

func (f *fake) keep(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
}

func (f *fake) config(options ...string) mounts.Config {
	host, port, _ := net.SplitHostPort(f.ln.Addr().String())
	cfg := mounts.Config{Name: "fake", Options: map[string]string{"host": host, "port": port, "tls": "off", "timeout": "2s"}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	return cfg
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	s := &session{Conn: c, f: f}
	io.WriteString(c, f.greeting)
	for in := bufio.NewScanner(counted{c, &f.flights}); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		text := ""
		if f.answer != nil {
			text = f.answer(s, verb, arg)
		}
		if text == "" {
			text = s.usual(verb)
		}
		if text != "-" {
			io.WriteString(c, text+"\r\n")
		}
	}
}

// counted counts what is read at once.
type counted struct {
	io.Reader
	n *atomic.Int32
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(1)
	return n, err
}

func (s *session) usual(verb string) string {
	switch verb {
	case "USER":
		return "331 password"
	case "PASS":
		return "230 in"
	case "FEAT":
		return "211-Features:\r\n MLST type*;size*;modify*;unique*;\r\n UTF8\r\n211 End"
	case "SYST":
		return "215 UNIX"
	case "PWD":
		return `257 "/" is it`
	case "CWD", "TYPE", "OPTS", "MKD", "RMD", "DELE", "RNTO":
		return "250 done"
	case "RNFR", "REST":
		return "350 go on"
	case "EPSV":
		return fmt.Sprintf("229 here (|||%d|)", s.listen())
	case "MLSD", "LIST", "RETR":
		return s.send("")
	case "STOR":
		return s.take(func(c net.Conn) { io.Copy(io.Discard, c) })
	}
	return "502 what?"
}

// listen opens a listener for a data connection and returns its port.
func (s *session) listen() int {
	if s.data != nil {
		s.data.Close()
	}
	var err error
	if s.data, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return 0
	}
	s.f.keep(s.data)
	return s.data.Addr().(*net.TCPAddr).Port
}

// take lets do use the data connection, and answers.
func (s *session) take(do func(c net.Conn)) string {
	if s.data == nil {
		return "425 no data connection"
	}
	c, err := s.data.Accept()
	if err != nil {
		return "425 no data connection"
	}
	s.f.keep(c)
	io.WriteString(s, "150 here it comes\r\n")
	do(c)
	c.Close()
	return "226 done"
}

func (s *session) send(text string) string {
	return s.take(func(c net.Conn) { io.WriteString(c, text) })
}

// comma is a port as PASV has it.
func comma(port int) string { return strconv.Itoa(port>>8) + "," + strconv.Itoa(port&0xff) }
