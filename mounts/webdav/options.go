package webdav

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/trust"
	"cellgate/mounts"
)

// settings are the options, understood.
type settings struct {
	scheme, host, port string
	root               []string // decoded segments of the folder that becomes "."
	auth               string
	direct             bool
	trust              trust.Options
	timeout            time.Duration
	connections        int
}

func options() []mounts.Option {
	return []mounts.Option{
		{Name: "url", Required: true, Help: "address of the folder, such as https://cloud.example.org/remote.php/dav/files/ann; without user name and password"},
		{Name: "auth", Help: "auto (as the server asks), basic, digest or bearer; auto when absent"},
		{Name: "put", Help: `"direct" where the server is known to keep the old content when an upload breaks off: spares two round trips a file`},
		{Name: "ca", Help: "certificates of the authorities to trust instead of the system's, in PEM form"},
		{Name: "tlsPin", Help: `"sha256:" and the hex digest of the one certificate to trust`},
		{Name: "tlsInsecure", Help: `"true" believes every certificate: for tests only`},
		{Name: "timeout", Help: "how long the server may keep silent, such as 30s, the default"},
		{Name: "connections", Help: "how many connections are used at most each for transfers to and from the server, 16 when absent"},
	}
}

func secrets() []mounts.Option {
	return []mounts.Option{
		{Name: "username", Help: "name to sign in with; nobody in particular when absent"},
		{Name: "password", Help: "its password, or an app password"},
		{Name: "token", Help: "bearer token instead of name and password"},
	}
}

// check returns every problem that shows without asking the server.
func check(cfg mounts.Config) []error {
	_, errs := parse(cfg)
	return errs
}

func parse(cfg mounts.Config) (s settings, errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	known := options()
	for _, name := range sorted(cfg.Options) {
		if !slices.ContainsFunc(known, func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown option %q", name)
		}
	}
	for _, name := range sorted(cfg.Credentials) {
		if !slices.ContainsFunc(secrets(), func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown credential %q", name)
		}
	}
	o := cfg.Options
	if err := s.address(o["url"]); err != nil {
		errs = append(errs, err)
	}
	s.auth = "auto"
	if v := o["auth"]; v != "" {
		s.auth = v
	}
	user, token := cfg.Credentials["username"].Reveal(), !cfg.Credentials["token"].IsZero()
	switch s.auth {
	case "auto":
	case "basic", "digest":
		if user == "" {
			bad("auth is %s, which needs a username", s.auth)
		}
	case "bearer":
		if !token {
			bad("auth is bearer, which needs a token")
		}
	default:
		bad("option auth is auto, basic, digest or bearer, not %q", s.auth)
	}
	if user == "" && !cfg.Credentials["password"].IsZero() {
		bad("there is a password, but no username")
	}
	if strings.Contains(user, ":") && s.auth != "digest" { // RFC 7617 §2
		bad("a username with a colon is possible with auth: digest only")
	}
	for _, name := range []string{"username", "password", "token"} {
		if strings.ContainsFunc(cfg.Credentials[name].Reveal(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			bad("%s has a control character", name)
		}
	}
	if v := o["put"]; v != "" && v != "direct" {
		bad(`option put is "direct" or absent`)
	}
	s.direct = o["put"] == "direct"
	s.trust = trust.Options{Host: s.host, CA: o["ca"], Pin: o["tlsPin"]}
	if v := o["tlsInsecure"]; v != "" {
		insecure, err := strconv.ParseBool(v)
		if err != nil {
			bad("option tlsInsecure is true or false")
		}
		s.trust.Insecure = insecure
	}
	if _, err := trust.Config(s.trust); err != nil {
		errs = append(errs, err)
	}
	s.timeout, s.connections = 30*time.Second, 16
	var err error
	if v := o["timeout"]; v != "" {
		if s.timeout, err = time.ParseDuration(v); err != nil || s.timeout <= 0 {
			bad("option timeout is a duration such as 30s")
		}
	}
	if v := o["connections"]; v != "" {
		if s.connections, err = strconv.Atoi(v); err != nil || s.connections < 1 || s.connections > 256 {
			bad("option connections is a number from 1 to 256")
		}
	}
	return s, errs
}

// address reads the url. Its errors do not repeat it, for it may hold a password.
func (s *settings) address(v string) error {
	if v == "" {
		return errors.New("option url is missing")
	}
	u, err := url.Parse(v)
	switch {
	case err != nil:
		return errors.New("option url is no address")
	case u.User != nil:
		return errors.New("option url holds a user name: that belongs into the credentials")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("option url begins with https:// or http:// and a host")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errors.New("option url has a ? or #, which are written as %3F and %23 in names")
	}
	s.scheme, s.host, s.port = u.Scheme, u.Hostname(), u.Port()
	if s.port == "" {
		s.port = map[string]string{"http": "80", "https": "443"}[s.scheme]
	}
	var ok bool
	if s.root, ok = segments(u.EscapedPath()); !ok {
		return errors.New("option url has a path that is none")
	}
	for _, segment := range s.root {
		if err := mounts.ValidName(segment); err != nil {
			return errors.New("option url has a path that is none")
		}
	}
	return nil
}

// authority is the host as the Host header and Destination name it.
func (s *settings) authority() string {
	if s.scheme == "http" && s.port == "80" || s.scheme == "https" && s.port == "443" {
		if strings.Contains(s.host, ":") {
			return "[" + s.host + "]"
		}
		return s.host
	}
	return net.JoinHostPort(s.host, s.port)
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
