package sftp_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
	"cellgate/mounts/sftp"
)

// refused opens a datasource that must not open, and looks at the kind and the words.
func refused(t *testing.T, cfg mounts.Config, want fault.Kind, words ...string) {
	t.Helper()
	b, err := sftp.Driver().Open(t.Context(), cfg)
	if err == nil {
		b.Close()
		t.Fatalf("opened; want %v", want)
	}
	if fault.KindOf(err) != want {
		t.Errorf("%v; want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
	for name, c := range cfg.Credentials {
		if v := c.Reveal(); name != "username" && len(v) > 3 && strings.Contains(err.Error(), v) {
			t.Errorf("the error tells the %s: %v", name, err)
		}
	}
}

func with(cfg mounts.Config, credentials ...string) mounts.Config {
	for i := 0; i < len(credentials); i += 2 {
		cfg.Credentials[credentials[i]] = secret.New(credentials[i+1])
	}
	return cfg
}

func TestLoginByKey(t *testing.T) {
	key, locked, stranger, ca := servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "open sesame"), servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "")
	s := servertest.SFTP(t, servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key, locked}, CA: &ca})
	cfg := func(k servertest.SFTPKey, options ...string) mounts.Config {
		return servertest.SFTPConfig(s, k, options...)
	}

	attach(t, cfg(key))
	attach(t, with(cfg(locked), "passphrase", "open sesame"))
	attach(t, with(cfg(stranger), "certificate", ca.Certificate(t, stranger, s.User, time.Now().Add(time.Hour))))

	refused(t, cfg(stranger), fault.Unauthenticated, s.User, "private key")
	refused(t, with(cfg(key), "username", "nobody-here"), fault.Unauthenticated, "nobody-here")
	refused(t, cfg(locked), fault.Invalid, "passphrase")
	refused(t, with(cfg(locked), "passphrase", "wrong"), fault.Invalid, "passphrase")
	refused(t, with(cfg(stranger), "privateKey", "no key at all"), fault.Invalid, "privateKey")
	refused(t, with(cfg(stranger), "certificate", ca.Certificate(t, stranger, s.User, time.Now().Add(-time.Hour))), fault.Unauthenticated, "certificate ended")
	refused(t, with(cfg(stranger), "certificate", ca.Certificate(t, stranger, "other", time.Now().Add(time.Hour))), fault.Unauthenticated)
	refused(t, with(cfg(stranger), "certificate", ca.Certificate(t, key, s.User, time.Now().Add(time.Hour))), fault.Invalid, "another privateKey")
	refused(t, with(cfg(stranger), "certificate", stranger.Public), fault.Invalid, "certificate")

	refused(t, cfg(key, "path", filepath.Join(s.Root, "missing")), fault.NotExist, "missing", "option path")
	refused(t, cfg(key, "path", servertest.Write(t, filepath.Join(s.Root, "file"), "x")), fault.NotDir)
	refused(t, cfg(key, "port", strconv.Itoa(servertest.Port(t))), fault.Unavailable, "host and port")
	refused(t, cfg(key, "host", "no-such-host.invalid"), fault.Unavailable, "no-such-host.invalid")
	refused(t, cfg(key, "colour", "red", "port", "0", "timeout", "soon", "connections", "x", "host", "root:secret@box"), fault.Invalid,
		`unknown option "colour"`, "option port", "option timeout", "option connections", "option host")
	if problems := sftp.Driver().Check(mounts.Config{}); len(problems) < 3 {
		t.Errorf("Check of nothing finds %v", problems)
	}
}

func TestLoginByPassword(t *testing.T) {
	for _, interactive := range []bool{false, true} {
		s := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{Interactive: interactive})
		cfg := func() mounts.Config { return servertest.SFTPConfig(s, servertest.SFTPKey{}) }
		attach(t, cfg())
		attach(t, with(cfg(), "privateKey", servertest.NewSFTPKey(t, "").Private)) // the key is refused, the password is not
		refused(t, with(cfg(), "password", "wrong one"), fault.Unauthenticated, `"gate"`, "password")
		refused(t, with(cfg(), "password", ""), fault.Invalid, "password")
	}
}

// TestSilentServer: what accepts and says nothing, or is no SSH server, costs no more than the timeout.
func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := servertest.SFTPConfig(&servertest.Server{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "u", Password: "password"},
		servertest.SFTPKey{}, "timeout", "300ms")
	began := time.Now()
	refused(t, cfg, fault.Timeout, "host and port")
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			c.Close()
		}
	}()
	cfg.Options["timeout"] = "5s"
	refused(t, cfg, fault.Unavailable, "host and port")
}

// TestB04HostKeyChanged: the key seen first is remembered, and another one is refused, at the next start and under way.
func TestB04HostKeyChanged(t *testing.T) {
	key, first, second := servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "")
	opt := servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, HostKey: &first}
	s := servertest.SFTP(t, opt)
	known := map[string]string{}
	remembering := func(options ...string) mounts.Config {
		cfg := servertest.SFTPConfig(s, key, options...)
		cfg.Name, cfg.Known = "archive", known
		cfg.Learn = func(k, v string) error { known[k] = v; return nil }
		return cfg
	}
	refused(t, with(remembering(), "username", "nobody-here"), fault.Unauthenticated)
	if len(known) != 0 {
		t.Error("the key of a server that refused the login was remembered")
	}
	running := attach(t, remembering())
	if known["hostKey"] != first.Public {
		t.Fatalf("remembered %q, want %q", known, first.Public)
	}
	attach(t, remembering())

	s.SFTPSignal(t, 9)
	opt.HostKey, opt.Port, opt.Root = &second, s.Port, servertest.Dir(t)
	s = servertest.SFTP(t, opt)
	prints := []string{ssh.FingerprintSHA256(first.Signer.PublicKey()), ssh.FingerprintSHA256(second.Signer.PublicKey()), `"archive"`, "hostKey"}
	refused(t, remembering(), fault.Denied, prints...)
	if _, err := running.Stat(t.Context(), "."); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), prints[1]) {
		t.Errorf("a running datasource says %v; want Denied", err)
	}
	for _, pin := range []string{second.Public, prints[1], prints[0] + ", " + prints[1], "[127.0.0.1]:22 " + second.Public} {
		attach(t, remembering("hostKey", pin))
	}
	for _, pin := range []string{first.Public, prints[0]} {
		refused(t, remembering("hostKey", pin), fault.Denied, prints...)
	}
	refused(t, remembering("hostKey", "ssh-ed25519 nonsense"), fault.Invalid, "hostKey")
	refused(t, remembering("hostKey", "SHA256:short"), fault.Invalid, "hostKey")
	if known["hostKey"] != first.Public {
		t.Error("a pin changed what is remembered")
	}
}

// TestHostKeyOfOtherKind: of several keys a server has, the one that is known is asked for.
func TestHostKeyOfOtherKind(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(servertest.Dir(t), "rsa")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	s, key := openSSH(t, "HostKey "+file)
	attach(t, servertest.SFTPConfig(s, key, "hostKey", string(ssh.MarshalAuthorizedKey(public))))
	attach(t, servertest.SFTPConfig(s, key, "hostKey", ssh.FingerprintSHA256(public)))
}
