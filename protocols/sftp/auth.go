package sftp

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
)

const protocol = "sftp"

const (
	maxCredential = 4096 // bytes of login and password, before anything is computed with them
	maxTries      = 10   // an agent offers all its keys before a password is asked for; guesses are bounded by identity's budget
	leastRSA      = 2048 // bits
)

var (
	errRefused   = errors.New("refused")
	errAuthority = errors.New("the certificate is of no authority that is trusted here")
	errPrincipal = errors.New("the certificate names nobody")
	errSHA1      = errors.New("the certificate is signed with SHA-1 or DSA")
	errCommand   = errors.New("the certificate is for another command")
	errWeak      = errors.New("the key is too short")
)

// algorithms are what is left of x/crypto's when all that leans on SHA-1, CBC or small groups is taken away. Strict key exchange comes by itself.
func algorithms() ssh.Config {
	return ssh.Config{
		KeyExchanges: []string{
			ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384, ssh.KeyExchangeECDHP521,
			ssh.KeyExchangeDH16SHA512, ssh.KeyExchangeDH14SHA256,
		},
		Ciphers: []string{
			ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR,
		},
		MACs: []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM, ssh.HMACSHA256, ssh.HMACSHA512},
	}
}

// login is somebody who has signed in, kept in the permissions of the connection.
type login struct {
	sub     *policy.Subject
	session *gateway.Session
}

type loginKey struct{}

// door is one connection on its way in.
type door struct {
	srv  *Server
	ctx  context.Context
	addr netip.Addr
}

// config is how the connection is asked who it is.
func (d *door) config() *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		Config:                      algorithms(),
		PublicKeyAuthAlgorithms:     ssh.SupportedAlgorithms().PublicKeyAuths,
		MaxAuthTries:                maxTries,
		ServerVersion:               "SSH-2.0-" + d.srv.cfg.Version,
		PasswordCallback:            d.password,
		KeyboardInteractiveCallback: d.interactive,
		PublicKeyCallback:           d.offered,
		VerifiedPublicKeyCallback:   d.proved,
	}
	for _, key := range d.srv.cfg.HostKeys {
		c.AddHostKey(key)
	}
	return c
}

// withoutSHA1 keeps an RSA key from signing as "ssh-rsa".
func withoutSHA1(key ssh.Signer) (ssh.Signer, error) {
	k, ok := key.(ssh.AlgorithmSigner)
	if !ok || key.PublicKey().Type() != ssh.KeyAlgoRSA {
		return key, nil
	}
	return ssh.NewSignerWithAlgorithms(k, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
}

func (d *door) attempt(c ssh.ConnMetadata) identity.Attempt {
	return identity.Attempt{Protocol: protocol, Login: c.User(), Addr: d.addr, Client: agent(c)}
}

// agent is what the client calls itself.
func agent(c ssh.ConnMetadata) string {
	v := strings.TrimPrefix(string(c.ClientVersion()), "SSH-2.0-")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, v)
}

func (d *door) password(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
	a := d.attempt(c)
	if len(a.Login)+len(password) > maxCredential {
		return nil, errRefused
	}
	a.Password = secret.New(string(password))
	sub, err := d.srv.cfg.Identity.Login(d.ctx, a)
	if err != nil {
		return nil, err
	}
	s, err := d.srv.cfg.Gateway.Session(sub).Carry(a.Password)
	if err != nil {
		return nil, err
	}
	return admit(sub, s, nil), nil
}

// interactive asks the one question that the password answers (RFC 4256).
func (d *door) interactive(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	answers, err := ask("", "", []string{"Password: "}, []bool{false})
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, errRefused
	}
	return d.password(c, []byte(answers[0]))
}

// offered says whether a key would do, of which nobody has proved anything yet: nobody is signed in by it.
func (d *door) offered(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if len(c.User()) > maxCredential {
		return nil, errRefused
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		return d.certified(c, cert)
	}
	if err := strong(key); err != nil {
		return nil, err
	}
	keys, err := d.srv.cfg.Identity.SSHKeys(d.ctx, c.User())
	if err != nil {
		return nil, err
	}
	mine := ssh.FingerprintSHA256(key)
	if !slices.ContainsFunc(keys, func(k identity.SSHKey) bool { return k.Fingerprint == mine }) {
		return nil, errRefused
	}
	return &ssh.Permissions{}, nil
}

// proved signs in the holder of a key, the very one that the signature was made with.
func (d *door) proved(c ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	a := d.attempt(c)
	var sub *policy.Subject
	var err error
	if cert, ok := key.(*ssh.Certificate); ok {
		if p, err = d.certified(c, cert); err == nil {
			sub, err = d.srv.cfg.Identity.LoginCertified(d.ctx, a)
		}
	} else {
		sub, err = d.srv.cfg.Identity.LoginKey(d.ctx, a, key)
	}
	if err != nil {
		return nil, err
	}
	return admit(sub, d.srv.cfg.Gateway.Session(sub), p), nil
}

// certified reports whether a certificate vouches for the login: it is a user's, signed by a trusted authority, valid now, names the login, and
// asks for nothing that is not kept. The library refuses other addresses than those of its source-address.
func (d *door) certified(c ssh.ConnMetadata, cert *ssh.Certificate) (*ssh.Permissions, error) {
	switch {
	case len(cert.ValidPrincipals) == 0: // the library takes it for everybody's
		return nil, errPrincipal
	case cert.Signature == nil || cert.Signature.Format == ssh.KeyAlgoRSA || cert.Signature.Format == "ssh-dss":
		return nil, errSHA1
	case cert.CriticalOptions["force-command"] != "" && !isSFTP(cert.CriticalOptions["force-command"]):
		return nil, errCommand
	}
	if err := errors.Join(strong(cert.Key), strong(cert.SignatureKey)); err != nil {
		return nil, err
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{"force-command"},
		IsUserAuthority: func(auth ssh.PublicKey) bool {
			return slices.ContainsFunc(d.srv.cfg.CAs, func(ca ssh.PublicKey) bool { return string(ca.Marshal()) == string(auth.Marshal()) })
		},
	}
	if !checker.IsUserAuthority(cert.SignatureKey) {
		return nil, errAuthority
	}
	p, err := checker.Authenticate(c, cert)
	if err != nil {
		return nil, err
	}
	return &ssh.Permissions{CriticalOptions: p.CriticalOptions}, nil
}

// strong refuses RSA keys that are too short.
func strong(key ssh.PublicKey) error {
	k, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if r, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() < leastRSA {
		return fmt.Errorf("%w: %d bits", errWeak, r.N.BitLen())
	}
	return nil
}

// admit notes who has signed in. What the library finds in the permissions afterwards may still refuse it.
func admit(sub *policy.Subject, s *gateway.Session, p *ssh.Permissions) *ssh.Permissions {
	out := &ssh.Permissions{ExtraData: map[any]any{loginKey{}: login{sub, s}}}
	if p != nil {
		out.CriticalOptions = p.CriticalOptions
	}
	return out
}

// addrOf returns the address of a peer, the zero one if it has none.
func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone("")
}
