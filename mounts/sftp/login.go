package sftp

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/mounts"
)

// maxRounds bounds how often a server may ask for the password in one keyboard-interactive login.
const maxRounds = 3

// credentials makes the ways to log in, the key before the password, and names what is wrong with them.
func (s *settings) credentials(cfg mounts.Config) (problems []error) {
	get := func(name string) string { return cfg.Credentials[name].Reveal() }
	if s.user = get("username"); s.user == "" {
		problems = append(problems, errors.New("credential username is missing"))
	}
	if get("privateKey") != "" {
		signers, err := s.signers(get("privateKey"), get("passphrase"), get("certificate"))
		if err != nil {
			problems = append(problems, err)
		}
		s.auth = append(s.auth, ssh.PublicKeys(signers...))
		s.methods = append(s.methods, "its private key")
	} else if get("certificate") != "" {
		problems = append(problems, errors.New("credential certificate needs its privateKey"))
	}
	if password := get("password"); password != "" {
		s.auth = append(s.auth, ssh.Password(password), ssh.KeyboardInteractive(answers(password)))
		s.methods = append(s.methods, "its password")
	} else if get("privateKey") == "" {
		problems = append(problems, errors.New("credential password or privateKey is missing"))
	}
	return problems
}

func (s *settings) signers(key, passphrase, certificate string) ([]ssh.Signer, error) {
	signer, err := ssh.ParsePrivateKey([]byte(key))
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if passphrase == "" {
			return nil, errors.New("credential privateKey is locked: it needs its passphrase")
		}
		if signer, err = ssh.ParsePrivateKeyWithPassphrase([]byte(key), []byte(passphrase)); err != nil {
			return nil, errors.New("credential passphrase does not open the privateKey")
		}
	}
	if err != nil {
		return nil, errors.New("credential privateKey is no private key in PEM or OpenSSH form") // err may quote the key
	}
	if certificate == "" {
		return []ssh.Signer{signer}, nil
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(certificate))
	cert, ok := public.(*ssh.Certificate)
	if err != nil || !ok || cert.CertType != ssh.UserCert {
		return nil, errors.New("credential certificate is no OpenSSH user certificate")
	}
	both, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, errors.New("credential certificate is for another privateKey")
	}
	s.certificate = cert
	return []ssh.Signer{both, signer}, nil
}

// answers gives the password to every hidden question, and nothing to others: a server that asks for a code of a second factor gets none.
func answers(password string) ssh.KeyboardInteractiveChallenge {
	return func(_, _ string, questions []string, echos []bool) ([]string, error) {
		if len(questions) > maxRounds {
			return nil, errors.New("the server asks too many questions")
		}
		list := make([]string, len(questions))
		for i := range questions {
			if !echos[i] {
				list[i] = password
			}
		}
		return list, nil
	}
}

// ways says in words what was tried, and what may be the matter with it.
func (s *settings) ways() string {
	words := strings.Join(s.methods, " and ")
	if c := s.certificate; c != nil {
		if end := time.Unix(int64(min(c.ValidBefore, 1<<40)), 0); c.ValidBefore != ssh.CertTimeInfinity && end.Before(time.Now()) {
			words += fmt.Sprintf(" (whose certificate ended at %s)", end.UTC().Format(time.RFC3339))
		}
	}
	return words
}

// isLogin reports whether err, of a handshake, is about who we are. The library has no type for it.
func isLogin(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unable to authenticate") || strings.Contains(text, "authentication failures") ||
		strings.Contains(text, "too many questions") ||
		strings.Contains(text, "unexpected message type 51 ") // RFC 4252 §5.1: a failure, where the library is in the middle of a method
}

// clientConfig is how the server is spoken to: no SHA-1, and aes128-gcm first, which costs a third of what chacha20-poly1305 does.
func (s *settings) clientConfig(hostKeys []string) *ssh.ClientConfig {
	all := ssh.SupportedAlgorithms()
	return &ssh.ClientConfig{
		Config: ssh.Config{
			Ciphers:      append([]string{ssh.CipherAES128GCM}, without(all.Ciphers, ssh.CipherAES128GCM)...),
			KeyExchanges: without(all.KeyExchanges, "sha1"), MACs: without(all.MACs, "sha1"),
		},
		User: s.user, Auth: s.auth, HostKeyCallback: s.trust.check, HostKeyAlgorithms: hostKeys, ClientVersion: "SSH-2.0-cellgate",
		BannerCallback: func(string) error { return nil },
	}
}

func without(list []string, part string) (kept []string) {
	for _, s := range list {
		if !strings.Contains(s, part) {
			kept = append(kept, s)
		}
	}
	return kept
}
