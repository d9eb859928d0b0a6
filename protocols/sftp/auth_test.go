package sftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway/gatewaytest"
	"cellgate/internal/secret"
)

// authority makes an authority for user certificates.
func authority(t *testing.T) ssh.Signer {
	s, _, _ := newKey(t, filepath.Join(t.TempDir(), "ca"))
	return s
}

// certify makes a certificate of key by ca and lets edit change it before it is signed.
func certify(t *testing.T, ca, key ssh.Signer, edit func(*ssh.Certificate)) ssh.AuthMethod {
	t.Helper()
	c := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"alice"}, KeyId: "test",
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if edit != nil {
		edit(c)
	}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(c, key)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.PublicKeys(s)
}

func TestLogin(t *testing.T) {
	ca, other := authority(t), authority(t)
	b := start(t, gatewaytest.Config{}, Config{CAs: []ssh.PublicKey{ca.PublicKey()}})
	_, app, err := b.Identity.AddAppPassword(context.Background(), "alice", "laptop", time.Time{}, []string{"sftp"})
	if err != nil {
		t.Fatal(err)
	}
	_, dav, err := b.Identity.AddAppPassword(context.Background(), "alice", "drive", time.Time{}, []string{"webdav"})
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, _ := newKey(t, filepath.Join(t.TempDir(), "id"))
	_, bobs, line := newKey(t, filepath.Join(t.TempDir(), "bob"))
	if _, err := b.Identity.AddSSHKey(context.Background(), "bob", line); err != nil {
		t.Fatal(err)
	}
	bob, err := os.ReadFile(bobs)
	if err != nil {
		t.Fatal(err)
	}
	bobKey, err := ssh.ParsePrivateKey(bob)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(answers ...string) ssh.AuthMethod {
		return ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
			if len(questions) != 1 || echos[0] {
				t.Errorf("asked %q, shown: %v", questions, echos)
			}
			return answers, nil
		})
	}
	cert := func(edit func(*ssh.Certificate)) ssh.AuthMethod { return certify(t, ca, stranger, edit) }
	for _, test := range []struct {
		name  string
		login string
		auth  ssh.AuthMethod
		ok    bool
	}{
		{"password", "alice", ssh.Password(password), true},
		{"wrong password", "alice", ssh.Password("wrong"), false},
		{"nobody", "nobody", ssh.Password(password), false},
		{"long password", "alice", ssh.Password(strings.Repeat("x", maxCredential)), false},
		{"app password", "alice", ssh.Password(app.Reveal()), true},
		{"app password for another door", "alice", ssh.Password(dav.Reveal()), false},
		{"interactive", "alice", ask(password), true},
		{"interactive, wrong", "alice", ask("wrong"), false},
		{"interactive, no answer", "alice", ask(), false},
		{"key", "alice", ssh.PublicKeys(b.user), true},
		{"somebody else's key", "bob", ssh.PublicKeys(b.user), false},
		{"unknown key", "alice", ssh.PublicKeys(stranger), false},
		{"second key", "alice", ssh.PublicKeys(stranger, bobKey, b.user), true},
		{"certificate", "alice", cert(nil), true},
		{"certificate for another", "bob", cert(nil), false},
		{"certificate of nobody", "alice", cert(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), false},
		{"certificate of two", "bob", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"alice", "bob"} }), true},
		{"certificate over", "alice", cert(func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) }), false},
		{"certificate to come", "alice", cert(func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Hour).Unix()) }), false},
		{"certificate of a host", "alice", cert(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), false},
		{"certificate of another authority", "alice", certify(t, other, stranger, nil), false},
		{"certificate for here", "alice", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "127.0.0.0/8"} }), true},
		{"certificate for elsewhere", "alice", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "192.0.2.1"} }), false},
		{"certificate for sftp", "alice", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "internal-sftp"} }), true},
		{"certificate for a command", "alice", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "/bin/true"} }), false},
		{"certificate with more", "alice", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"verify-required": ""} }), false},
		{"certificate of nobody here", "nobody", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"nobody"} }), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := b.dial(test.login, test.auth)
			if err == nil {
				c.Close()
			}
			if ok := err == nil; ok != test.ok {
				t.Errorf("%v, want %v", err, test.ok)
			}
		})
	}
}

// TestProof: a key that is only offered signs nobody in; what counts is the one that the signature was made with.
func TestProof(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	d := &door{srv: b.srv, ctx: t.Context()}
	p, err := d.offered(meta("alice"), b.user.PublicKey())
	if err != nil || p.ExtraData != nil {
		t.Errorf("an offered key gives %v, %v", p, err)
	}
	stranger, _, _ := newKey(t, filepath.Join(t.TempDir(), "id"))
	if _, err := d.offered(meta("alice"), stranger.PublicKey()); err == nil {
		t.Error("an unknown key would do")
	}
	if _, err := d.proved(meta("alice"), stranger.PublicKey(), p, ""); err == nil {
		t.Error("another key than the one that was offered signs in")
	}
	p, err = d.proved(meta("alice"), b.user.PublicKey(), p, "")
	if err != nil || p.ExtraData[loginKey{}].(login).sub.Login != "alice" {
		t.Errorf("a proved key gives %v, %v", p, err)
	}
	// A client that offers alice's key, proves nothing, and then signs in as bob by password.
	c, err := b.dial("bob", ssh.PublicKeys(unable{b.user}), ssh.Password(password))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// unable is a key that cannot sign.
type unable struct{ ssh.Signer }

func (unable) Sign(io.Reader, []byte) (*ssh.Signature, error) {
	return nil, errors.New("no")
}

// meta is a connection of a user.
type meta string

func (m meta) User() string        { return string(m) }
func (meta) SessionID() []byte     { return nil }
func (meta) ClientVersion() []byte { return []byte("SSH-2.0-test") }
func (meta) ServerVersion() []byte { return nil }
func (meta) RemoteAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (meta) LocalAddr() net.Addr   { return nil }

// TestRevoked: a running session ends to see anything when its user is disabled, and the store gets to know what the password is.
func TestRevoked(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	c := b.client("alice")
	if _, err := c.ReadDir("/docs"); err != nil {
		t.Fatal(err)
	}
	if err := b.Identity.SetPassword(context.Background(), "bob", secret.New("another one, quite long")); err != nil {
		t.Fatal(err)
	}
	b.Revoke("user:alice", "docs:/")
	if _, err := c.ReadDir("/docs"); err == nil {
		t.Error("a listing without the right to it")
	}
}

// TestOnlySFTP: no shell, no commands, no forwarding, and words that say so (RELIABILITY F04).
func TestOnlySFTP(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	c, err := b.dial("alice")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for command, words := range map[string]string{"": "no shell", "ls -l": "no commands", "scp -t /docs": "scp", "scp -f /docs/x": "without -O"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		s.Stderr = &said
		if command == "" {
			if err = s.Shell(); err == nil {
				err = s.Wait()
			}
		} else {
			err = s.Run(command)
		}
		var exit *ssh.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 1 || !strings.Contains(said.String(), words) {
			t.Errorf("%q: %v, %q", command, err, said.String())
		}
		s.Close()
	}
	if s, err := c.NewSession(); err != nil {
		t.Error(err)
	} else {
		for _, kind := range []string{"pty-req", "x11-req", "auth-agent-req@openssh.com", "env"} {
			if ok, err := s.SendRequest(kind, true, nil); ok || err != nil {
				t.Errorf("%s is granted: %v, %v", kind, ok, err)
			}
		}
		if err := s.RequestSubsystem("netconf"); err == nil {
			t.Error("another subsystem is granted")
		}
		s.Close()
	}
	if _, err := c.Dial("tcp", b.addr); err == nil {
		t.Error("forwarding is granted")
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("forwarding back is granted")
	}
}

// TestAlgorithms: what leans on SHA-1, CBC or small groups is not spoken.
func TestAlgorithms(t *testing.T) {
	b := start(t, gatewaytest.Config{}, Config{})
	weak := ssh.InsecureAlgorithms()
	try := func(change func(*ssh.ClientConfig)) error {
		cfg := &ssh.ClientConfig{User: "alice", Auth: []ssh.AuthMethod{ssh.Password(password)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}
		change(cfg)
		c, err := ssh.Dial("tcp", b.addr, cfg)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, kex := range append(weak.KeyExchanges, ssh.KeyExchangeDHGEXSHA256) {
		if try(func(c *ssh.ClientConfig) { c.KeyExchanges = []string{kex} }) == nil {
			t.Errorf("%s is spoken", kex)
		}
	}
	for _, cipher := range weak.Ciphers {
		if try(func(c *ssh.ClientConfig) { c.Ciphers = []string{cipher} }) == nil {
			t.Errorf("%s is spoken", cipher)
		}
	}
	for _, mac := range append(weak.MACs, ssh.HMACSHA1) {
		if try(func(c *ssh.ClientConfig) { c.MACs, c.Ciphers = []string{mac}, []string{ssh.CipherAES128CTR} }) == nil {
			t.Errorf("%s is spoken", mac)
		}
	}
	for _, key := range weak.HostKeys {
		if try(func(c *ssh.ClientConfig) { c.HostKeyAlgorithms = []string{key} }) == nil {
			t.Errorf("host key %s is spoken", key)
		}
	}
	for _, cipher := range algorithms().Ciphers {
		if err := try(func(c *ssh.ClientConfig) { c.Ciphers = []string{cipher} }); err != nil {
			t.Errorf("%s: %v", cipher, err)
		}
	}
	for _, kex := range algorithms().KeyExchanges {
		if err := try(func(c *ssh.ClientConfig) { c.KeyExchanges = []string{kex} }); err != nil {
			t.Errorf("%s: %v", kex, err)
		}
	}
	for _, key := range []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		if err := try(func(c *ssh.ClientConfig) { c.HostKeyAlgorithms = []string{key} }); err != nil {
			t.Errorf("host key %s: %v", key, err)
		}
	}
	// OpenSSH says what was agreed on.
	out, err := run(t, "pwd\n", "sftp", append(append([]string{"-o", "LogLevel=DEBUG3"}, b.options()...), "-P", b.port, "-b", "-", "alice@127.0.0.1")...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if fastGCM() && !strings.Contains(out, "server->client cipher: aes128-gcm@openssh.com") {
		t.Error("a client that knows AES-GCM gets something slower")
	}
	if !strings.Contains(out, "strict KEX") {
		t.Errorf("no strict key exchange:\n%s", out)
	}
}

// TestPrefersGCM: only offers that have it both ways count, and nonsense is nobody's offer.
func TestPrefersGCM(t *testing.T) {
	offer := func(there, back string) []byte {
		p := append([]byte{msgKexInit}, make([]byte, 16)...)
		for _, list := range []string{"kex", "key", there, back} {
			p = reply(p).str(list)
		}
		return p
	}
	const chacha = "chacha20-poly1305@openssh.com"
	for _, test := range []struct {
		offer []byte
		want  bool
	}{
		{offer(chacha+","+ssh.CipherAES128GCM, ssh.CipherAES256GCM), true},
		{offer(chacha, ssh.CipherAES128GCM), false},
		{offer(ssh.CipherAES128GCM, chacha), false},
		{offer(ssh.CipherAES128GCM, ssh.CipherAES128GCM)[:40], false},
		{nil, false},
	} {
		if got := prefersGCM(test.offer); got != (test.want && fastGCM()) {
			t.Errorf("%q: %v", test.offer, got)
		}
	}
}

// TestHostKeys: they are made once, kept to their owner, and one that others can read is no secret.
func TestHostKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first, err := HostKeys(dir)
	if err != nil || len(first) != 3 {
		t.Fatal(len(first), err)
	}
	var types []string
	for _, k := range first {
		types = append(types, k.PublicKey().Type())
	}
	if want := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSA}; !slices.Equal(types, want) {
		t.Errorf("made %v", types)
	}
	second, err := HostKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		if !bytes.Equal(first[i].PublicKey().Marshal(), second[i].PublicKey().Marshal()) {
			t.Error("another key at the second start")
		}
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		if i, err := os.Stat(name); err != nil || i.Mode().Perm() != 0o600 {
			t.Error(name, i.Mode(), err)
		}
	}
	if len(names) != 3 {
		t.Errorf("left %v", names)
	}
	if err := os.Chmod(names[0], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKeys(dir); err == nil {
		t.Error("a key that everybody can read is taken")
	}
	if err := errors.Join(os.Chmod(names[0], 0o600), os.WriteFile(names[0], []byte("nonsense"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKeys(dir); err == nil {
		t.Error("nonsense is taken for a key")
	}
}
