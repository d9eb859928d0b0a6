// Package servertest starts the real servers that drivers are tested against, on free ports of this machine, and stops them when the test
// ends. What is not installed is skipped, and said so.
package servertest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a running server.
type Server struct {
	Addr     string // host:port
	Host     string
	Port     int
	Root     string // the folder on this machine that it serves, "" where there is none
	User     string
	Password string
	Cmd      *exec.Cmd
	log      *buffer
}

// Pause stops the server's processes (SIGSTOP) as a stalled machine would be, and Resume lets them go on. It returns once they have stopped.
func (s *Server) Pause(t testing.TB) {
	s.signal(t, syscall.SIGSTOP)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		running := false
		for _, pid := range append(descendants(s.Cmd.Process.Pid), s.Cmd.Process.Pid) {
			if fields := stat(pid); len(fields) > 0 && !strings.ContainsAny(fields[0], "TtZX") {
				running = true
			}
		}
		if !running {
			return
		}
	}
	t.Error("the server does not stop")
}

// Resume is the end of Pause.
func (s *Server) Resume(t testing.TB) { s.signal(t, syscall.SIGCONT) }

// Kill ends the server's processes at once (SIGKILL).
func (s *Server) Kill(t testing.TB) { s.signal(t, syscall.SIGKILL) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	below := descendants(s.Cmd.Process.Pid)
	if err := syscall.Kill(-s.Cmd.Process.Pid, sig); err != nil {
		t.Errorf("signal %v: %v", sig, err)
	}
	for _, pid := range below { // some servers give each connection a process group of its own
		_ = syscall.Kill(pid, sig) // it may have ended meanwhile
	}
}

// descendants returns the processes that pid has started, and theirs.
func descendants(pid int) (all []int) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	children := make(map[int][]int)
	for _, name := range files {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		fields := stat(child)
		if err != nil || len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}

// stat returns the state of a process, its parent and more; nothing when it has ended.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// "pid (name) state ppid …": the name may hold anything, parentheses too.
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

// Start runs cmd in a process group of its own and waits until port accepts on this machine. The group is killed when the test ends.
func Start(t testing.TB, port int, cmd *exec.Cmd) *Server {
	t.Helper()
	s := &Server{Addr: "127.0.0.1:" + strconv.Itoa(port), Host: "127.0.0.1", Port: port, Cmd: cmd, log: new(buffer)}
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		below := descendants(cmd.Process.Pid)
		for _, sig := range []syscall.Signal{syscall.SIGCONT, syscall.SIGKILL} {
			syscall.Kill(-cmd.Process.Pid, sig)
			for _, pid := range below {
				syscall.Kill(pid, sig)
			}
		}
		<-exited
		if t.Failed() && s.log.String() != "" {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), s.log.tail(4000))
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", s.Addr, time.Second)
		if err == nil {
			conn.Close()
			return s
		}
		select {
		case <-exited:
			t.Fatalf("%s ended: %v\n%s", filepath.Base(cmd.Path), cmd.ProcessState, s.log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s: %v\n%s", filepath.Base(cmd.Path), s.Addr, err, s.log)
		}
	}
}

// Port returns a port of this machine that is free now.
func Port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Need returns the path of a program, and skips the test when it is in none of the usual places, nor in bin/tools of the project.
func Need(t testing.TB, name string) string {
	t.Helper()
	tools := toolbox(t)
	for _, p := range []string{filepath.Join(tools, name), filepath.Join(tools, "root/usr/sbin", name), "/usr/sbin/" + name} {
		if info, err := os.Stat(p); err == nil && info.Mode()&0o111 != 0 {
			return p
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: make packages tools", name)
	}
	return p
}

// toolbox is bin/tools of the project that the test belongs to.
func toolbox(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "bin/tools")
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("the test runs outside of its module")
		}
		dir = up
	}
}

// Root skips the test unless it runs as root, which the real servers need to change users.
func Root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("this server needs root to serve several users")
	}
}

// Dir returns a fresh folder with a short name that every user may pass through, removed when the test ends.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "srv")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Write makes a file for a server.
func Write(t testing.TB, path, text string, args ...any) string {
	t.Helper()
	if len(args) > 0 {
		text = fmt.Sprintf(text, args...)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// buffer collects what a process prints.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b.Len() > 1<<20 {
		return len(p), nil
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) tail(n int) string {
	s := b.String()
	return s[max(0, len(s)-n):]
}
