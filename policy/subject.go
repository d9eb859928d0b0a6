package policy

import (
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"
)

// Profile is the kind of an account. The order is that of trust, but a principal "profile:standard" means exactly that profile.
type Profile uint8

// The profiles.
const (
	Anonymous Profile = iota
	External
	Standard
	Admin
	profiles
)

var profileNames = [profiles]string{"anonymous", "external", "standard", "admin"}

// String returns the profile's word.
func (p Profile) String() string {
	if p < profiles {
		return profileNames[p]
	}
	return fmt.Sprintf("Profile(%d)", uint8(p))
}

// ParseProfile reads a profile's word.
func ParseProfile(word string) (Profile, error) {
	if i := slices.Index(profileNames[:], word); i >= 0 {
		return Profile(i), nil
	}
	return 0, fmt.Errorf("unknown profile %q: use one of %s", word, strings.Join(profileNames[:], ", "))
}

// MarshalText returns the profile's word.
func (p Profile) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the profile's word.
func (p *Profile) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProfile(string(b))
	return err
}

// Principal names whom a grant is for: "user:alice", "group:/staff", "role:editors", "team:x", "profile:standard", "link:x" or "everyone".
type Principal string

// Everyone is every subject, links and anonymous ones included.
const Everyone Principal = "everyone"

// ParsePrincipal reads a principal and returns it in its one spelling.
func ParsePrincipal(s string) (Principal, error) {
	if s == string(Everyone) {
		return Everyone, nil
	}
	kind, name, _ := strings.Cut(s, ":")
	var err error
	switch kind {
	case "user":
		name, err = CanonicalLogin(name)
	case "group":
		name, err = CanonicalGroup(name)
	case "role", "team", "link":
		if name == "" || len(name) > 255 || strings.ContainsFunc(name, forbidden) {
			err = fmt.Errorf("%q is no name of a %s", name, kind)
		}
	case "profile":
		_, err = ParseProfile(name)
	default:
		err = fmt.Errorf("unknown principal %q: use user:, group:, role:, team:, profile:, link: or everyone", s)
	}
	if err != nil {
		return "", err
	}
	return Principal(kind + ":" + name), nil
}

// CanonicalLogin returns the one spelling of a login name: lower case, Unicode compatibility forms folded, spaces round it dropped. A login is 1 to
// 63 of a-z, 0-9 and "._@-", begins with a letter or digit and does not end with a dot, so that it is a path segment on every file system and
// never part of a template. It fails for all else.
func CanonicalLogin(s string) (string, error) {
	s = FoldLogin(s)
	ok := len(s) >= 1 && len(s) <= 63 && s[len(s)-1] != '.'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || i > 0 && (c == '.' || c == '_' || c == '@' || c == '-')
	}
	if !ok {
		return "", fmt.Errorf("%q is no login: use 1 to 63 of a-z, 0-9 and ._@-, beginning with a letter or digit", s)
	}
	return s, nil
}

// FoldLogin maps all spellings of a login, valid or not, to one.
func FoldLogin(s string) string {
	plain := true
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] > ' ' && s[i] < 0x7f && (s[i] < 'A' || s[i] > 'Z')
	}
	if plain {
		return s
	}
	return strings.TrimSpace(strings.ToLower(norm.NFKC.String(strings.TrimSpace(s))))
}

// CanonicalGroup returns the one spelling of a group's path: "/" the root of all, "/staff/it" below it. Segments are 1 to 64 bytes, without
// "{", "}", control characters and spaces round them.
func CanonicalGroup(s string) (string, error) {
	bad := fmt.Errorf("%q is no path of a group: use /name or /name/name", s)
	if s == "/" {
		return s, nil
	}
	s = norm.NFC.String(strings.TrimSuffix(s, "/"))
	if !strings.HasPrefix(s, "/") || !fs.ValidPath(s[1:]) || s == "/." || len(s) > 1024 {
		return "", bad
	}
	for seg := range strings.SplitSeq(s[1:], "/") {
		if len(seg) > 64 || strings.TrimSpace(seg) != seg || strings.ContainsAny(seg, "{}") || strings.ContainsFunc(seg, forbidden) {
			return "", bad
		}
	}
	return s, nil
}

// Subject is somebody who signed in. It is not changed once made; Epoch is that of the identity service when it was read.
type Subject struct {
	ID         int64
	Login      string
	Name       string
	Email      string
	Group      string
	Profile    Profile
	Roles      []string
	Principals []Principal
	Epoch      uint64
	Credential string // how it signed in: "password", "app"; "" when it did not have to
}

// Admin reports whether the subject may administer the box. It says nothing about files.
func (s *Subject) Admin() bool { return s.Profile == Admin }

// Has reports whether p is one of the subject's principals.
func (s *Subject) Has(p Principal) bool { return slices.Contains(s.Principals, p) }

// PrincipalsOf returns the principals of a user: itself, its group and all above, its roles, its profile and everyone.
func PrincipalsOf(login, group string, profile Profile, roles []string) []Principal {
	ps := []Principal{Principal("user:" + login), "group:/"}
	for i := 1; i < len(group); i++ {
		if group[i] == '/' {
			ps = append(ps, Principal("group:"+group[:i]))
		}
	}
	if len(group) > 1 {
		ps = append(ps, Principal("group:"+group))
	}
	for _, r := range roles {
		ps = append(ps, Principal("role:"+r))
	}
	return append(ps, Principal("profile:"+profile.String()), Everyone)
}

// Env is the circumstances of one request. A zero field is unknown, and unknown counts against the subject. Times come from the server's clock.
type Env struct {
	Protocol     string     // webdav, sftp, s3, fuse, rest
	Addr         netip.Addr // the client's
	Client       string     // user agent
	Method       string     // HTTP method
	Credential   string     // password, app, key, session, …
	Time         time.Time
	RequestID    string
	SecondFactor time.Time // when it was last given
	Node         *Node     // what is known of the node acted on
}

// Node is what guards may ask about a file beyond its name.
type Node struct {
	Size int64  // bytes, -1 unknown
	Type string // MIME type, "" unknown
}
