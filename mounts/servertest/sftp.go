package servertest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

// SFTPKey is a key pair of SSH.
type SFTPKey struct {
	Private string // PEM
	Public  string // as in authorized_keys
	Signer  ssh.Signer
}

// NewSFTPKey makes a key, which is locked when there is a passphrase.
func NewSFTPKey(t testing.TB, passphrase string) SFTPKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return SFTPKey{
		Private: string(pem.EncodeToMemory(block)), Signer: signer,
		Public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))),
	}
}

// Certificate returns an OpenSSH user certificate for key, signed by k, that ends at end.
func (k SFTPKey) Certificate(t testing.TB, key SFTPKey, principal string, end time.Time) string {
	t.Helper()
	cert := &ssh.Certificate{
		Key: key.Signer.PublicKey(), CertType: ssh.UserCert, KeyId: "test", ValidPrincipals: []string{principal},
		ValidAfter: uint64(time.Now().Add(-48 * time.Hour).Unix()), ValidBefore: uint64(end.Unix()),
	}
	if err := cert.SignCert(rand.Reader, k.Signer); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert)))
}

// SFTPOptions say how sshd serves.
type SFTPOptions struct {
	Port     int      // 0: a free one
	Root     string   // the folder to serve; "": a fresh one
	HostKey  *SFTPKey // nil: a fresh one
	UserKeys []SFTPKey
	CA       *SFTPKey // whose user certificates are taken
	Lines    []string // more lines of sshd_config, such as "MaxSessions 2"
}

// SFTP starts OpenSSH's sshd with a configuration of its own. Who logs in is the user the test runs as, by one of the keys. SFTP is served by
// sshd itself, in a process for each channel: a program of its own would be started by the user's shell, which may run what it likes before,
// and leave locks behind when a test kills it.
func SFTP(t testing.TB, opt SFTPOptions) *Server {
	t.Helper()
	sshd := Need(t, "sshd")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" { // where it separates privileges; the package's own service makes it at boot
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := Dir(t)
	port := opt.Port
	if port == 0 {
		port = Port(t)
	}
	root := opt.Root
	if root == "" {
		root = filepath.Join(dir, "data")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host := opt.HostKey
	if host == nil {
		k := NewSFTPKey(t, "")
		host = &k
	}
	var keys []string
	for _, k := range opt.UserKeys {
		keys = append(keys, k.Public)
	}
	lines := []string{
		"Port " + strconv.Itoa(port), "ListenAddress 127.0.0.1", "HostKey " + Write(t, filepath.Join(dir, "host"), "%s", host.Private),
		"AuthorizedKeysFile " + Write(t, filepath.Join(dir, "authorized"), "%s\n", strings.Join(keys, "\n")),
		"Subsystem sftp internal-sftp", "PidFile none", "UsePAM no", "StrictModes no", "PermitRootLogin yes", "PasswordAuthentication no",
		"LogLevel ERROR", "MaxStartups 100", "UseDNS no",
	}
	if opt.CA != nil {
		lines = append(lines, "TrustedUserCAKeys "+Write(t, filepath.Join(dir, "ca"), "%s\n", opt.CA.Public))
	}
	conf := Write(t, filepath.Join(dir, "sshd_config"), "%s\n", strings.Join(append(lines, opt.Lines...), "\n"))
	s := Start(t, port, exec.Command(sshd, "-D", "-e", "-f", conf))
	t.Cleanup(func() { s.tree(syscall.SIGKILL) })
	s.Root, s.User = root, me.Username
	return s
}

// SFTPConfig is the configuration of a datasource on s, with key if it has one and else with the password of s, and more options in pairs of
// key and value. It allows to dial this machine and remembers nothing.
func SFTPConfig(s *Server, key SFTPKey, options ...string) mounts.Config {
	cfg := mounts.Config{
		Name:        "sftp",
		Options:     map[string]string{"host": s.Host, "port": strconv.Itoa(s.Port), "path": s.Root},
		Credentials: map[string]secret.String{"username": secret.New(s.User)},
	}
	if key.Private != "" {
		cfg.Credentials["privateKey"] = secret.New(key.Private)
	} else {
		cfg.Credentials["password"] = secret.New(s.Password)
	}
	for i := 0; i+1 < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	return cfg
}

// SFTPSignal signals sshd with all the processes of its connections, which leave its process group, and so Pause, Resume and Kill out.
func (s *Server) SFTPSignal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if s.tree(sig) < 1 {
		t.Error("no process of sshd is left")
	}
}

// tree signals the server's process and its descendants, the parents first, and counts them.
func (s *Server) tree(sig syscall.Signal) (n int) {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		line := string(text) // pid (name) state ppid …, and the name may hold anything
		fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], pid)
	}
	todo := []int{s.Cmd.Process.Pid}
	for ; len(todo) > 0; todo = todo[1:] {
		if syscall.Kill(todo[0], sig) == nil {
			n++
		}
		todo = append(todo, children[todo[0]]...)
	}
	return n
}

// PlainSFTPOptions say how the server in this process behaves.
type PlainSFTPOptions struct {
	Port        int
	Root        string   // "": a fresh folder
	HostKey     *SFTPKey // nil: a fresh one
	Interactive bool     // it asks for the password instead of taking it
	Serve       func(io.ReadWriteCloser)
}

// PlainSFTP is an SFTP server in this process that takes the user and password of the Server, and has none of OpenSSH's extensions: the server
// of github.com/pkg/sftp, or what Serve does with the channel. It has no process, so it cannot be paused.
func PlainSFTP(t testing.TB, opt PlainSFTPOptions) *Server {
	t.Helper()
	if err := sftp.SetSFTPExtensions(); err != nil { // of the whole process, in which nobody else serves
		t.Fatal(err)
	}
	s := &Server{Host: "127.0.0.1", Root: opt.Root, User: "gate", Password: `pass "word" ü`, log: new(buffer)}
	if s.Root == "" {
		s.Root = Dir(t)
	}
	host := opt.HostKey
	if host == nil {
		k := NewSFTPKey(t, "")
		host = &k
	}
	conf := &ssh.ServerConfig{}
	judge := func(c ssh.ConnMetadata, password string) (*ssh.Permissions, error) {
		if c.User() != s.User || password != s.Password {
			return nil, errors.New("wrong password")
		}
		return nil, nil
	}
	if opt.Interactive {
		conf.KeyboardInteractiveCallback = func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "Welcome", []string{"Password: "}, []bool{false})
			if err != nil || len(answers) != 1 {
				return nil, errors.New("no answer")
			}
			return judge(c, answers[0])
		}
	} else {
		conf.PasswordCallback = func(c ssh.ConnMetadata, p []byte) (*ssh.Permissions, error) { return judge(c, string(p)) }
	}
	conf.AddHostKey(host.Signer)
	serve := opt.Serve
	if serve == nil {
		serve = func(ch io.ReadWriteCloser) {
			server, err := sftp.NewServer(ch)
			if err == nil {
				server.Serve()
				server.Close()
			}
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.Host, strconv.Itoa(opt.Port)))
	if err != nil {
		t.Fatal(err)
	}
	s.Addr, s.Port = l.Addr().String(), l.Addr().(*net.TCPAddr).Port
	var mu sync.Mutex
	var running sync.WaitGroup
	open, closed := map[net.Conn]bool{}, false
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		closed = true
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if closed {
				c.Close()
			}
			open[c] = true
			mu.Unlock()
			running.Go(func() {
				plainSession(c, conf, serve)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	return s
}

// plainSession serves one connection.
func plainSession(c net.Conn, conf *ssh.ServerConfig, serve func(io.ReadWriteCloser)) {
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	defer conn.Close()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { ssh.DiscardRequests(requests) })
	for offer := range channels {
		ch, asked, err := offer.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			for r := range asked {
				ok := r.Type == "subsystem"
				r.Reply(ok, nil)
				if ok {
					all.Go(func() { serve(ch); ch.Close() })
				}
			}
		})
	}
}

// SFTPSessions returns the processes of sshd's that serve SFTP sessions, one for each channel, by their numbers.
func (s *Server) SFTPSessions(t testing.TB) (pids []int) {
	t.Helper()
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range names {
		if name, err := os.ReadFile(file); err != nil || !strings.Contains(string(name), "@internal-sftp") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		for up := pid; up > 1; {
			text, err := os.ReadFile("/proc/" + strconv.Itoa(up) + "/stat")
			if err != nil {
				break
			}
			fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
			if up, _ = strconv.Atoi(fields[1]); up == s.Cmd.Process.Pid {
				pids = append(pids, pid)
				break
			}
		}
	}
	slices.Sort(pids)
	return pids
}
