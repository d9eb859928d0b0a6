// Package sftp mounts a folder of an SFTP server: version 3 of the protocol over SSH, with the extensions of OpenSSH where they are offered.
//
// Questions with one answer are asked by github.com/pkg/sftp. What has to stream, keep an order or fill a long link writes its own packets
// into the same channel (see wire): listings page by page, reads and writes ahead, the requests of a small Put, and copy-data.
//
// Round trips, with folders seen a moment ago: reading a small file 2 (open beside lstat; read beside fstat; closed in the background),
// putting one 3 (open of the temporary file beside lstat of the target; write, fsync, fstat and close in one go, which OpenSSH carries out in
// order; rename with an fsync of the folder), listing a small folder 2, stat, mkdir and removing a file 1.
//
// A channel of x/crypto/ssh takes no more than 2 MiB in one round trip, so long streams are spread over up to four channels, as far as the
// memory for all streams together goes (inAll). The handles on the other channels are opened by name and believed only when they show the same
// size, times, mode and owner as the first, and when the file is older than the seconds that SFTP counts times in, or is one that this backend
// published a moment ago and has not begun to replace since (see own): else the stream stays on one channel. A file that somebody else replaces
// between these opens by one of the same size, owner and second of modification would pass: where it is old, that has to be done on purpose,
// and where it is our own, within the second of our Put and in the moment between two requests.
//
// Symbolic links are not followed. SFTP servers follow them, so the folders on the way are asked about with lstat and believed for a few
// seconds (folderAge), and what is at the end with lstat in the same flight as the open. Who can replace a folder by a link on the server
// itself can use these seconds, and at the end of a path the moment between two requests, to lead a call elsewhere within the rights of the
// login. Opening a pipe may block the channel it is opened on; it is refused at once and that channel is given up.
//
// SFTP tells no inode numbers, link counts or change times, and keeps times in whole seconds from 1970 to 2106.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	defaultPort        = 22
	defaultTimeout     = 30 * time.Second
	defaultConnections = 4
	maxConnections     = 32
)

// Driver returns the driver "sftp".
func Driver() mounts.Driver {
	return mounts.Driver{
		Name: "sftp",
		Options: []mounts.Option{
			{Name: "host", Help: "name or address of the server", Required: true},
			{Name: "port", Help: "port of the server; 22 when absent"},
			{Name: "path", Help: "folder on the server that is served; the login's own when absent"},
			{Name: "hostKey", Help: `keys the server may show, separated by commas: "ssh-ed25519 AAAA…" as in known_hosts, or fingerprints "SHA256:…"; when absent the key seen first is remembered`},
			{Name: "timeout", Help: "how long the server may be silent, such as 30s, which is the default"},
			{Name: "connections", Help: "connections to the server at most; 4 when absent"},
		},
		Secrets: []mounts.Option{
			{Name: "username", Help: "login on the server", Required: true},
			{Name: "password", Help: "password, also where the server asks for it interactively"},
			{Name: "privateKey", Help: "private key in PEM or OpenSSH form"},
			{Name: "passphrase", Help: "passphrase of the private key"},
			{Name: "certificate", Help: "OpenSSH user certificate of the private key"},
		},
		Open: open,
		Check: func(cfg mounts.Config) []error {
			_, problems := read(cfg)
			return problems
		},
	}
}

// settings are the options and credentials of a datasource, understood.
type settings struct {
	name        string
	addr        string
	path        string
	user        string
	auth        []ssh.AuthMethod
	methods     []string // of auth, in words
	certificate *ssh.Certificate
	timeout     time.Duration
	connections int
	readOnly    bool
	unsynced    bool
	trust       *trust
	dialer      *dial.Dialer
	logger      *slog.Logger
}

// read understands cfg and names everything that is wrong with it.
func read(cfg mounts.Config) (*settings, []error) {
	s := &settings{
		name: cfg.Name, timeout: defaultTimeout, connections: defaultConnections, readOnly: cfg.ReadOnly, unsynced: cfg.Unsynced, logger: cfg.Logger,
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	known := Driver()
	for name := range cfg.Options {
		if !slices.ContainsFunc(known.Options, func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown option %q", name)
		}
	}
	for name := range cfg.Credentials {
		if !slices.ContainsFunc(known.Secrets, func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown credential %q", name)
		}
	}
	host, port := cfg.Options["host"], defaultPort
	switch {
	case host == "":
		bad("option host is missing")
	case strings.ContainsAny(host, "/@ ") || strings.Contains(host, ":") && !isAddress(host):
		bad("option host must be a name or an address alone, not %q: there are options port and path, and the user belongs to the credentials", withoutUser(host))
	}
	if v, ok := cfg.Options["port"]; ok {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 65535 {
			bad("option port is no port: %q", v)
		} else {
			port = n
		}
	}
	if v, ok := cfg.Options["timeout"]; ok {
		if d, err := time.ParseDuration(v); err != nil || d <= 0 {
			bad(`option timeout is no duration such as "30s": %q`, v)
		} else {
			s.timeout = d
		}
	}
	if v, ok := cfg.Options["connections"]; ok {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > maxConnections {
			bad("option connections is no number from 1 to %d: %q", maxConnections, v)
		} else {
			s.connections = n
		}
	}
	s.path = cfg.Options["path"]
	if strings.ContainsAny(s.path, "\x00\n\r") {
		bad("option path has a control character")
	}
	s.addr = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(port))
	s.dialer = cfg.Dialer(strings.Trim(host, "[]"))
	s.dialer.Timeout = s.timeout
	var err error
	if s.trust, err = newTrust(cfg); err != nil {
		problems = append(problems, err)
	}
	return s, append(problems, s.credentials(cfg)...)
}

// withoutUser drops what could be a login before a host.
func withoutUser(host string) string { return host[strings.LastIndexByte(host, '@')+1:] }

func isAddress(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

// open connects, logs in and looks what the server can.
func open(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
	s, problems := read(cfg)
	if len(problems) > 0 {
		return nil, refusal("Open", cfg.Name, fault.Invalid, errors.Join(problems...))
	}
	b := newBackend(s)
	if err := b.attach(ctx); err != nil {
		b.Close()
		return nil, err
	}
	if err := s.trust.keep(); err != nil {
		b.Close()
		return nil, refusal("Open", cfg.Name, fault.KindOf(err), fmt.Errorf("the server's key cannot be remembered: %w", err))
	}
	return b, nil
}
