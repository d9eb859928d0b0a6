package smb

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/dial"
	"cellgate/mounts"
)

func options() []mounts.Option {
	return []mounts.Option{
		{Name: "host", Help: "name or address of the server", Required: true},
		{Name: "port", Help: "its port; 445 when absent"},
		{Name: "share", Help: "name of the share, without slashes", Required: true},
		{Name: "path", Help: "folder of the share that becomes the datasource; the whole share when absent. It must exist"},
		{Name: "domain", Help: `Windows domain or workgroup of the user; it may also be given with the user name, as DOMAIN\user`},
		{Name: "encrypt", Help: "auto (the default): encrypt where the server can, else sign; required: refuse servers that cannot; off: in the clear unless the server demands more, faster, for trusted networks only"},
		{Name: "case", Help: "auto (the default): find out whether the server tells a from A; sensitive or insensitive: take it as given"},
		{Name: "connections", Help: "most connections at a time, 2 to 64; 4 when absent"},
		{Name: "timeout", Help: "give up on a server that is silent for so long, such as 30s, the default"},
	}
}

func secrets() []mounts.Option {
	return []mounts.Option{
		{Name: "username", Help: `user name, user@domain or DOMAIN\user`, Required: true},
		{Name: "password", Help: "password; empty only for guests"},
	}
}

// config is what a datasource was told, checked.
type config struct {
	name, host, share, domain, user, password string
	address                                   string // host:port
	root                                      string // the folder's path on the share, "" for the share itself
	encrypt                                   string // auto, required or off
	casing                                    string // auto, sensitive or insensitive
	connections                               int
	timeout                                   time.Duration
	readOnly, unsynced                        bool
	dialer                                    *dial.Dialer
}

// guest reports whether a session as a guest is what was asked for.
func (c config) guest() bool { return c.password == "" || strings.EqualFold(c.user, "guest") }

func check(mc mounts.Config) []error {
	_, errs := parse(mc)
	return errs
}

// parse returns the settings, or every problem they have.
func parse(mc mounts.Config) (config, []error) {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, key := range slices.Sorted(maps.Keys(mc.Options)) {
		if !slices.ContainsFunc(options(), func(o mounts.Option) bool { return o.Name == key }) {
			wrong("unknown option %q", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(mc.Credentials)) {
		if !slices.ContainsFunc(secrets(), func(o mounts.Option) bool { return o.Name == key }) {
			wrong("unknown credential %q", key)
		}
	}
	get := func(key, otherwise string) string {
		if v := mc.Options[key]; v != "" {
			return v
		}
		return otherwise
	}
	one := func(key string, of ...string) string {
		v := get(key, of[0])
		if !slices.Contains(of, v) {
			wrong("option %s is none of %s", key, strings.Join(of, ", "))
		}
		return v
	}
	number := func(key string, otherwise, least, most int) int {
		n, err := strconv.Atoi(get(key, strconv.Itoa(otherwise)))
		if err != nil || n < least || n > most {
			wrong("option %s is no number from %d to %d", key, least, most)
		}
		return n
	}
	c := config{
		name: mc.Name, host: strings.Trim(get("host", ""), "[]"), share: get("share", ""), domain: get("domain", ""),
		user: mc.Credentials["username"].Reveal(), password: mc.Credentials["password"].Reveal(),
		encrypt: one("encrypt", "auto", "required", "off"), casing: one("case", "auto", "sensitive", "insensitive"),
		connections: number("connections", 4, 2, 64), readOnly: mc.ReadOnly, unsynced: mc.Unsynced,
	}
	c.address = net.JoinHostPort(c.host, strconv.Itoa(number("port", 445, 1, 65535)))
	c.dialer = mc.Dialer(c.host)
	switch {
	case c.host == "":
		wrong("option host is missing")
	case strings.ContainsAny(c.host, `/\@ `):
		wrong("option host is no name or address of a server: without //, user name, port or share")
	}
	switch {
	case c.share == "":
		wrong("option share is missing")
	case strings.ContainsAny(c.share, `/\`) || mounts.ValidName(c.share) != nil:
		wrong("option share is no name of a share: folders below it go into option path")
	}
	if domain, user, ok := strings.Cut(c.user, `\`); ok {
		if c.domain != "" && !strings.EqualFold(c.domain, domain) {
			wrong("option domain is another than that of the user name")
		}
		c.domain, c.user = domain, user
	}
	if c.user == "" {
		wrong("credential username is missing")
	}
	path := strings.Trim(strings.ReplaceAll(get("path", ""), `\`, "/"), "/")
	if path == "" {
		path = "."
	}
	var err error
	if c.root, err = encodePath("", path); err != nil {
		errs = append(errs, fmt.Errorf("option path: %w", err))
	}
	if c.timeout, err = time.ParseDuration(get("timeout", "30s")); err != nil || c.timeout < 50*time.Millisecond || c.timeout > time.Hour {
		errs = append(errs, errors.New("option timeout is no time such as 30s"))
	}
	return c, errs
}
