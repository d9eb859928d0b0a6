package dropbox

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/secret"
	"cellgate/internal/trust"
	"cellgate/mounts"
)

// Driver returns the driver "dropbox".
func Driver() mounts.Driver {
	return mounts.Driver{
		Name: "dropbox", Options: options(), Secrets: secrets(), Open: open,
		Check: func(cfg mounts.Config) []error { _, problems := parse(cfg); return problems },
	}
}

func options() []mounts.Option {
	return []mounts.Option{
		{Name: "path", Help: "folder of the Dropbox that is shown, such as /Projects; everything when absent"},
		{Name: "api", Help: "base address of a gateway or test service that ALL calls go to instead of Dropbox, the tokens included; with http:// they travel in the clear"},
		{Name: "ca", Help: "certificates (PEM) of the authorities to trust for api, instead of the system's"},
		{Name: "tlsPin", Help: `"sha256:" and the digest of the one certificate to trust for api`},
		{Name: "tlsInsecure", Help: `"true" trusts any certificate of api: for tests only`},
		{Name: "timeout", Help: "longest time without a byte from Dropbox, such as 30s, which is the default"},
		{Name: "connections", Help: "most connections at a time to each of Dropbox's services, 1 to 64; 16 when absent"},
	}
}

func secrets() []mounts.Option {
	return []mounts.Option{
		{Name: "appKey", Help: "key of the Dropbox app, for use with refreshToken"},
		{Name: "appSecret", Help: "secret of the Dropbox app; absent where the account was connected with PKCE"},
		{Name: "refreshToken", Help: "refresh token of the account, from connecting it with token_access_type=offline"},
		{Name: "token", Help: "an access token instead, which ends after some hours: for trying out"},
	}
}

// settings are the options and credentials, understood.
type settings struct {
	root           string
	base           *url.URL // of api, nil for Dropbox itself
	trust          trust.Options
	timeout        time.Duration
	connections    int
	key            string
	secret         secret.String
	refresh, token secret.String
}

const (
	timeoutDefault = 30 * time.Second
	timeoutLeast   = 50 * time.Millisecond
	timeoutMost    = 10 * time.Minute
)

// parse returns the settings and everything that is wrong with them. No problem names a secret.
func parse(cfg mounts.Config) (s settings, problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	s.timeout, s.connections = timeoutDefault, 16
	for name := range cfg.Options {
		if !named(options(), name) {
			bad("unknown option %q", name)
		}
	}
	for name := range cfg.Credentials {
		if !named(secrets(), name) {
			bad("unknown credential %q", name)
		}
	}
	if path := strings.Trim(cfg.Options["path"], "/"); path != "" && path != "." {
		if err := mounts.ValidPath(path); err != nil || strings.Contains(path, `\`) {
			bad("option path is no path of a folder")
		}
		s.root = "/" + path
	}
	var err error
	if text := cfg.Options["timeout"]; text != "" {
		if s.timeout, err = time.ParseDuration(text); err != nil || s.timeout < timeoutLeast || s.timeout > timeoutMost {
			bad("option timeout must be a duration from %v to %v, such as 30s", timeoutLeast, timeoutMost)
		}
	}
	if text := cfg.Options["connections"]; text != "" {
		if s.connections, err = strconv.Atoi(text); err != nil || s.connections < 1 || s.connections > 64 {
			bad("option connections must be a number from 1 to 64")
		}
	}
	problems = append(problems, s.parseAPI(cfg.Options)...)
	s.key, s.secret = cfg.Credentials["appKey"].Reveal(), cfg.Credentials["appSecret"]
	s.refresh, s.token = cfg.Credentials["refreshToken"], cfg.Credentials["token"]
	switch {
	case s.refresh.IsZero() && s.token.IsZero():
		bad("credentials are missing: give refreshToken with appKey, or token")
	case !s.refresh.IsZero() && s.key == "":
		bad("credential appKey is missing: a refreshToken works only with the key of its app")
	}
	for _, name := range []string{"appKey", "appSecret", "refreshToken", "token"} {
		if strings.ContainsFunc(cfg.Credentials[name].Reveal(), func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			bad("credential %s has a space or a character that is not ASCII: it was not copied well", name)
		}
	}
	return s, problems
}

// parseAPI understands the options that lead away from Dropbox itself.
func (s *settings) parseAPI(options map[string]string) (problems []error) {
	api := options["api"]
	s.trust = trust.Options{CA: options["ca"], Pin: options["tlsPin"], Insecure: options["tlsInsecure"] == "true"}
	if t := options["tlsInsecure"]; t != "" && t != "true" && t != "false" {
		problems = append(problems, errors.New(`option tlsInsecure must be "true" or "false"`))
	}
	if api == "" {
		if s.trust != (trust.Options{}) {
			problems = append(problems, errors.New("options ca, tlsPin and tlsInsecure are for a service named in api, not for Dropbox itself"))
		}
		return problems
	}
	u, err := url.Parse(api)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "":
		problems = append(problems, errors.New("option api must be a base address such as https://gateway.example.org"))
	case u.User != nil:
		problems = append(problems, errors.New("option api must not hold a user or password"))
	default:
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
		s.base = u
	}
	if _, err := trust.Config(s.trust); err != nil {
		problems = append(problems, err)
	}
	return problems
}

func named(options []mounts.Option, name string) bool {
	return slices.ContainsFunc(options, func(o mounts.Option) bool { return o.Name == name })
}

// url returns the address of a route. Dropbox has three hosts, a service named in api one for all.
func (s *settings) url(host, namespace, route string) string {
	return s.host(host) + "/2/" + namespace + "/" + route
}

func (s *settings) host(host string) string {
	if s.base != nil {
		return s.base.String()
	}
	return "https://" + host + ".dropboxapi.com"
}
