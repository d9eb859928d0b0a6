package sftp

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/local"
)

const password = gatewaytest.Password

// box is a running door over a house in which alice and bob may write in /docs.
type box struct {
	*gatewaytest.House
	srv  *Server
	addr string
	port string
	key  string // file of alice's private key
	hint string // file of known hosts
	t    testing.TB
	user ssh.Signer
}

// start serves until the test ends.
func start(t testing.TB, hc gatewaytest.Config, cfg Config) *box {
	t.Helper()
	b := &box{t: t, House: gatewaytest.New(t, hc)}
	b.Grant("user:bob", "docs:/", "read", "write")
	dir := t.TempDir()
	keys, err := HostKeys(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Gateway, cfg.Identity, cfg.HostKeys = b.Gateway, b.Identity, keys
	if cfg.Logger == nil && testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if b.srv, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	_, b.port, _ = net.SplitHostPort(b.addr)
	done := make(chan error, 1)
	go func() { done <- b.srv.Serve(l) }()
	t.Cleanup(func() {
		b.srv.Close()
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Error(err)
		}
	})
	var line string
	b.user, b.key, line = newKey(t, filepath.Join(dir, "id"))
	if _, err := b.Identity.AddSSHKey(context.Background(), "alice", line); err != nil {
		t.Fatal(err)
	}
	b.hint = filepath.Join(dir, "known_hosts")
	var known []string
	for _, k := range keys {
		known = append(known, "[127.0.0.1]:"+b.port+" "+string(ssh.MarshalAuthorizedKey(k.PublicKey())))
	}
	if err := os.WriteFile(b.hint, []byte(strings.Join(known, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// newKey makes a user's key, as a signer, a file and a line of authorized_keys.
func newKey(t testing.TB, name string) (ssh.Signer, string, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ssh.MarshalPrivateKey(key, "")
	if err == nil {
		err = os.WriteFile(name, pem.EncodeToMemory(p), 0o600)
	}
	signer, serr := ssh.NewSignerFromKey(key)
	if err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	return signer, name, string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
}

// onDisk is a house whose datasource "disk" is a folder of this machine, in memory where there is such a place.
func onDisk(t testing.TB) gatewaytest.Config {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sftp")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": openLocal(t, dir)}}
}

func openLocal(t testing.TB, dir string) mounts.Backend {
	t.Helper()
	b, err := local.Driver().Open(t.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": dir}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// dial signs in with a library's client.
func (b *box) dial(login string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	if len(auth) == 0 {
		auth = []ssh.AuthMethod{ssh.Password(password)}
	}
	return ssh.Dial("tcp", b.addr, &ssh.ClientConfig{User: login, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute})
}

// client is one of github.com/pkg/sftp.
func (b *box) client(login string, opts ...sftp.ClientOption) *sftp.Client {
	b.t.Helper()
	c, err := b.dial(login)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	s, err := sftp.NewClient(c, opts...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

// raw is a channel that speaks SFTP without a library.
func (b *box) raw(login string) (ssh.Channel, *ssh.Client) {
	b.t.Helper()
	c, err := b.dial(login)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	ch, requests, err := c.OpenChannel("session", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	if ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"sftp"})); err != nil || !ok {
		b.t.Fatal(ok, err)
	}
	return ch, c
}

// options are those every command of OpenSSH gets.
func (b *box) options() []string {
	return []string{
		"-F", "/dev/null", "-o", "UserKnownHostsFile=" + b.hint, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes",
		"-o", "IdentitiesOnly=yes", "-i", b.key, "-o", "LogLevel=ERROR",
	}
}

// run runs a program and returns what it said, and how it ended.
func run(t testing.TB, stdin, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed: nothing is tested with it", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Stdin = strings.NewReader(stdin)
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+t.TempDir())
	out, err := c.CombinedOutput()
	return string(out), err
}

// batch runs commands of OpenSSH's sftp. A leading "-" lets one fail.
func (b *box) batch(commands ...string) (string, error) {
	b.t.Helper()
	return run(b.t, strings.Join(commands, "\n")+"\n", "sftp", append(b.options(), "-P", b.port, "-b", "-", "alice@127.0.0.1")...)
}

// content reads a file of the tree as another door would, "!" and the error when it cannot.
func (b *box) content(login, p string) string {
	b.t.Helper()
	f, err := b.As(login).Open(b.t.Context(), gatewaytest.Path(p), gateway.ReadOptions{})
	if err != nil {
		return "! " + err.Error()
	}
	defer f.Close()
	var buf bytes.Buffer
	if _, err := f.CopyTo(b.t.Context(), &buf, 0, f.Info().Size); err != nil {
		return "! " + err.Error()
	}
	return buf.String()
}

// write makes a file of the tree by another door.
func (b *box) write(login, p, content string) {
	b.t.Helper()
	u, err := b.As(login).Create(b.t.Context(), gatewaytest.Path(p), gateway.CreateOptions{Size: int64(len(content))})
	if err != nil {
		b.t.Fatal(err)
	}
	defer u.Abort()
	if _, err := u.Write([]byte(content)); err != nil {
		b.t.Fatal(err)
	}
	if _, _, err := u.Commit(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// random returns n bytes that are nothing in particular.
func random(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}

// file puts content into a file of this machine.
func file(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
