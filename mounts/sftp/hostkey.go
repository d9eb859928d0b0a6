package sftp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"cellgate/mounts"
)

const hostKeyOption = "hostKey" // also what a remembered key is kept as

// families are the kinds of host keys with the signatures they make, the best first. Certificates of hosts and SHA-1 are not among them.
var families = [][]string{
	{ssh.KeyAlgoED25519}, {ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521}, {ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
}

// trust decides which host key is believed. It is safe for concurrent use.
type trust struct {
	datasource string
	learn      func(key, value string) error
	pinned     bool // by an admin, in the option

	mu     sync.Mutex
	keys   []ssh.PublicKey // guarded by mu; those that are believed
	prints []string        // fingerprints that are believed
	first  bool            // guarded by mu; keys holds what was seen first and is not yet remembered
}

// newTrust reads the option, or else what is remembered.
func newTrust(cfg mounts.Config) (*trust, error) {
	t := &trust{datasource: cfg.Name, learn: cfg.Learn}
	text := cfg.Options[hostKeyOption]
	t.pinned = text != ""
	if !t.pinned {
		text = cfg.Known[hostKeyOption]
	}
	var err error
	if t.keys, t.prints, err = parseHostKeys(text); err != nil {
		if !t.pinned {
			return t, fmt.Errorf("the remembered key of the server is damaged, set the option hostKey: %w", err)
		}
		return t, fmt.Errorf("option hostKey: %w", err)
	}
	return t, nil
}

// parseHostKeys reads keys as in authorized_keys or known_hosts, and fingerprints, separated by commas or lines.
func parseHostKeys(text string) (keys []ssh.PublicKey, prints []string, err error) {
	for item := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
		item = strings.TrimSpace(item)
		if item == "" || strings.HasPrefix(item, "#") {
			continue
		}
		if strings.HasPrefix(item, "SHA256:") {
			if item = strings.TrimRight(item, "="); len(item) != len("SHA256:")+43 {
				return nil, nil, errors.New(`a fingerprint is "SHA256:" and 43 characters`)
			}
			prints = append(prints, item)
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(item))
		if err != nil { // with the host before it, as ssh-keyscan prints
			_, rest, _ := strings.Cut(item, " ")
			key, _, _, _, err = ssh.ParseAuthorizedKey([]byte(rest))
		}
		if err != nil {
			return nil, nil, errors.New(`want "ssh-ed25519 AAAA…" or "SHA256:…"`)
		}
		keys = append(keys, key)
	}
	return keys, prints, nil
}

// keyError says that the server showed a key that is not believed.
type keyError struct{ text string }

func (e *keyError) Error() string { return e.text }

// check implements ssh.HostKeyCallback.
func (t *trust) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	have := ssh.FingerprintSHA256(key)
	if len(t.keys) == 0 && len(t.prints) == 0 {
		t.keys, t.first = []ssh.PublicKey{key}, true
		return nil
	}
	if slices.Contains(t.prints, have) || slices.ContainsFunc(t.keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) }) {
		return nil
	}
	want := slices.Clone(t.prints)
	for _, k := range t.keys {
		want = append(want, ssh.FingerprintSHA256(k))
	}
	why := "it was remembered at the first contact"
	if t.pinned {
		why = "the option hostKey says so"
	}
	return &keyError{fmt.Sprintf("the server of datasource %q shows the host key %s, but is known by %s (%s). Somebody may stand between. "+
		"If the server was given a new key on purpose, compare the fingerprint at the server and set the option hostKey: %s",
		t.datasource, have, strings.Join(want, ", "), why, authorized(key))}
}

func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// keep remembers a key seen for the first time, once the login on its server has worked.
func (t *trust) keep() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.first || t.learn == nil {
		return nil
	}
	if err := t.learn(hostKeyOption, authorized(t.keys[0])); err != nil {
		return err
	}
	t.first = false
	return nil
}

// orders returns the orders of host key algorithms to try one after the other: a server shows one key of several, and a fingerprint does not
// say which kind it is of.
func (t *trust) orders() [][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.keys) == 0 && len(t.prints) > 0 {
		return append([][]string{slices.Concat(families...)}, families[1:]...)
	}
	var known, other []string
	for _, family := range families {
		for _, algo := range family {
			if slices.ContainsFunc(t.keys, func(k ssh.PublicKey) bool { return signs(k.Type(), algo) }) {
				known = append(known, algo)
			} else {
				other = append(other, algo)
			}
		}
	}
	return [][]string{append(known, other...)}
}

// signs reports whether a key of kind makes signatures of algo.
func signs(kind, algo string) bool {
	return kind == algo || kind == ssh.KeyAlgoRSA && (algo == ssh.KeyAlgoRSASHA256 || algo == ssh.KeyAlgoRSASHA512)
}
