package webdav

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/studio-b12/gowebdav"

	"cellgate/internal/secret"
)

// login signs requests. In mode auto it does so in the way the server asked for last, and not before it asked: who would be told a password
// in clear for nothing.
type login struct {
	mode     string
	user     string
	password secret.String
	token    secret.String

	mu     sync.Mutex
	scheme string // basic, digest, bearer or none yet; guarded by mu
	digest digest // guarded by mu
}

var _ gowebdav.Authenticator = (*login)(nil)

func newLogin(mode string, credentials map[string]secret.String) *login {
	l := &login{mode: mode, user: credentials["username"].Reveal(), password: credentials["password"], token: credentials["token"]}
	if mode == "basic" || mode == "bearer" {
		l.scheme = mode
	}
	return l
}

// advice says whom the server refused.
func (l *login) advice() string {
	switch {
	case l.user != "":
		return fmt.Sprintf("the user %q was refused: check the username and the password", l.user)
	case !l.token.IsZero():
		return "the token was refused: it is wrong or has expired"
	}
	return "the server asks for a user name and a password"
}

// open reports whether the server may ask for a signature that it was not sent, and get it.
func (l *login) undecided() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.scheme == "digest" || l.scheme == "" && (l.user != "" || !l.token.IsZero())
}

// Authorize implements gowebdav.Authenticator: it signs a request.
func (l *login) Authorize(_ *http.Client, r *http.Request, _ string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.scheme {
	case "basic":
		r.SetBasicAuth(l.user, l.password.Reveal())
	case "bearer":
		r.Header.Set("Authorization", "Bearer "+l.token.Reveal())
	case "digest":
		r.Header.Set("Authorization", l.digest.sign(l.user, l.password.Reveal(), r.Method, r.URL.RequestURI()))
	}
	return nil
}

// Verify implements gowebdav.Authenticator: answers that want another signature are dealt with below the library.
func (l *login) Verify(*http.Client, *http.Response, string) (bool, error) { return false, nil }

// Clone implements gowebdav.Authenticator: one login serves all.
func (l *login) Clone() gowebdav.Authenticator { return l }

// Close implements gowebdav.Authenticator.
func (l *login) Close() error { return nil }

// challenged takes up what a 401 asks for and reports whether another signature than the one used makes sense.
func (l *login) challenged(headers []string, used string) bool {
	all := challenges(headers)
	has := func(scheme string) bool {
		return slices.ContainsFunc(all, func(c challenge) bool { return c.scheme == scheme })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	may := func(scheme string) bool { return l.mode == "auto" || l.mode == scheme }
	if may("digest") && l.user != "" {
		if d, err := newDigest(all); err == nil {
			// The same nonce again means that the password is wrong; another one that the former is too old, or was never known.
			if strings.HasPrefix(used, "Digest ") && !d.stale && strings.Contains(used, fmt.Sprintf("nonce=%s,", quoted(d.nonce))) {
				return false
			}
			refused := strings.HasPrefix(used, "Digest ") && !d.stale && l.digest.nonce != "" && strings.Contains(used, fmt.Sprintf("nonce=%s,", quoted(l.digest.nonce)))
			l.scheme, l.digest = "digest", d
			return !refused
		}
	}
	switch {
	case may("basic") && l.user != "" && has("basic"):
		l.scheme = "basic"
		return !strings.HasPrefix(used, "Basic ")
	case may("bearer") && !l.token.IsZero() && has("bearer"):
		l.scheme = "bearer"
		return !strings.HasPrefix(used, "Bearer ")
	}
	return false
}

// digest is the state of RFC 7616 with a server.
type digest struct {
	realm, nonce, opaque, algorithm string
	qop, stale                      bool
	count                           uint32 // of the signatures with this nonce
}

var errNoDigest = errors.New("no digest that we know")

// digestAlgorithms by preference.
var digestAlgorithms = []struct {
	name string
	hash func() hash.Hash
}{{"SHA-256", sha256.New}, {"MD5", md5.New}, {"", md5.New}}

// newDigest takes the strongest of the digests that are offered.
func newDigest(all []challenge) (digest, error) {
	for _, a := range digestAlgorithms {
		for _, c := range all {
			p := c.params
			if c.scheme != "digest" || p["nonce"] == "" || !strings.EqualFold(p["algorithm"], a.name) {
				continue
			}
			auth := slices.ContainsFunc(strings.Split(p["qop"], ","), func(q string) bool { return strings.EqualFold(strings.TrimSpace(q), "auth") })
			if p["qop"] != "" && !auth {
				continue // auth-int: the body would have to be known before it is sent
			}
			return digest{
				realm: p["realm"], nonce: p["nonce"], opaque: p["opaque"], algorithm: a.name, qop: auth, stale: strings.EqualFold(p["stale"], "true"),
			}, nil
		}
	}
	return digest{}, errNoDigest
}

// sign returns the Authorization header of a request.
func (d *digest) sign(user, password, method, uri string) string {
	sum := md5.New
	for _, a := range digestAlgorithms {
		if a.name == d.algorithm {
			sum = a.hash
		}
	}
	digest := func(s string) string {
		h := sum()
		h.Write([]byte(s))
		return hex.EncodeToString(h.Sum(nil))
	}
	d.count++
	count, client := fmt.Sprintf("%08x", d.count), rand.Text()
	who, what := digest(user+":"+d.realm+":"+password), digest(method+":"+uri)
	answer := digest(who + ":" + d.nonce + ":" + what) // RFC 2069
	if d.qop {
		answer = digest(strings.Join([]string{who, d.nonce, count, client, "auth", what}, ":")) // RFC 7616 §3.4.1
	}
	out := fmt.Sprintf(`Digest username=%s, realm=%s, nonce=%s, uri=%s, response="%s"`, quoted(user), quoted(d.realm), quoted(d.nonce), quoted(uri), answer)
	if d.algorithm != "" {
		out += ", algorithm=" + d.algorithm
	}
	if d.opaque != "" {
		out += ", opaque=" + quoted(d.opaque)
	}
	if d.qop {
		out += fmt.Sprintf(`, qop=auth, nc=%s, cnonce="%s"`, count, client)
	}
	return out
}

// quoted returns s as a quoted-string (RFC 9110 §5.6.4).
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// challenge is one way to sign that a server offers.
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

const maxChallenges = 32

// challenges reads WWW-Authenticate headers (RFC 9110 §11.6.1). What makes no sense is skipped; no parameter has a control character.
func challenges(headers []string) (all []challenge) {
	for _, h := range headers {
		for h = skip(h); h != "" && len(all) <= maxChallenges; h = skip(h) {
			var word string
			if word, h = token(h); word == "" {
				h = h[1:]
				continue
			}
			rest := strings.TrimLeft(h, " \t")
			if !strings.HasPrefix(rest, "=") || len(all) == 0 {
				all = append(all, challenge{strings.ToLower(word), map[string]string{}})
				continue
			}
			var value string
			value, h = parameter(strings.TrimLeft(rest[1:], " \t"))
			if !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				all[len(all)-1].params[strings.ToLower(word)] = value
			}
		}
	}
	return all
}

func skip(s string) string { return strings.TrimLeft(s, " \t,") }

// token cuts a token off the front of s.
func token(s string) (word, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) })
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

// parameter cuts a token or quoted-string off the front of s.
func parameter(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, " \t,")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
