// Package ftp is the driver for FTP servers (RFC 959, 1123, 2428, 3659), in the clear or with TLS (RFC 4217), passive or active.
//
// The client is our own: the libraries know no active mode and no contexts. A control connection does one thing at a time, so there is a pool
// of them; commands that do not depend on each other's answers travel together. Data connections go to, or come from, the address of the
// control connection only, whatever the server says. TLS is 1.2 on both: servers demand that data connections resume the control connection's
// session, and over 1.3 some end an upload with 426 because of session tickets nobody read.
//
// Put stores under a temporary name and renames. FTP has no way to ask for a sync, so nothing is durable beyond what the server does by
// itself, and no way to replace only what is not there, so an exclusive Put looks first and is safe among the writers of this gateway only.
//
// Servers with MLSD tell exact times and a number that stays with the file. For others there is LIST, whose times are to the minute, and to
// the day for what is older than half a year; Stat then says no more than List does, so that both agree. Times in a LIST are of the
// server's zone: see the option zone. Servers follow symbolic links by themselves, and FTP has no way to forbid it; a link that shows as such
// is not opened. Neither can links be made by FTP, but by some servers' own commands.
//
// Names go over the wire as UTF-8. A server that changes a name instead of refusing it (Pure-FTPd does so with a space at the end) is found
// out before something is written: Invalid.
package ftp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/internal/trust"
	"cellgate/mounts"
)

// options are what a datasource can be told.
var options = []mounts.Option{
	{Name: "host", Help: "name or address of the server", Required: true},
	{Name: "port", Help: "21 when absent, 990 with tls: implicit"},
	{Name: "path", Help: "folder on the server that is shown; the login's own when absent"},
	{Name: "tls", Help: "auto (the default): encrypt where the server offers AUTH TLS; explicit: refuse servers that do not; implicit: encrypt from the start; off: password and files travel in the clear"},
	{Name: "ca", Help: "PEM of the authorities to trust instead of the system's"},
	{Name: "tlsPin", Help: "sha256: and the digest of the one certificate to trust"},
	{Name: "tlsInsecure", Help: "true: trust any certificate"},
	{Name: "mode", Help: "passive (the default) or active: then the server connects to the gateway for each transfer"},
	{Name: "zone", Help: "time zone of the server, such as Europe/Berlin, for the times in listings of servers without MLSD; UTC when absent"},
	{Name: "timeout", Help: "how long the server may be silent, such as 30s, the default"},
	{Name: "connections", Help: "connections at most, 4 when absent; at least 2"},
}

// Driver returns the driver "ftp".
func Driver() mounts.Driver {
	return mounts.Driver{
		Name:    "ftp",
		Options: options,
		Secrets: []mounts.Option{{Name: "username", Help: "anonymous when absent"}, {Name: "password"}},
		Open:    open,
		Check: func(cfg mounts.Config) []error {
			_, errs := configure(cfg)
			return errs
		},
	}
}

// The values of the option tls.
const (
	tlsAuto     = "auto"
	tlsExplicit = "explicit"
	tlsImplicit = "implicit"
	tlsOff      = "off"
)

// Backend is a folder on an FTP server. It is safe for concurrent use.
type Backend struct {
	cfg        mounts.Config
	host, port string
	user       string
	password   secret.String
	folder     string // option path
	tlsMode    string
	tls        *tls.Config
	active     bool
	zone       *time.Location
	timeout    time.Duration
	pool       *pool

	closed  atomic.Bool
	server  atomic.Pointer[server]
	secure  atomic.Bool // the server did TLS: a later refusal is not believed
	noEPSV  atomic.Bool
	noEPRT  atomic.Bool
	serial  atomic.Bool // the server loses commands sent ahead of its answers
	dashA   atomic.Int32
	dos     atomic.Bool // LIST is that of Windows
	replace atomic.Int32
	beside  atomic.Bool // temporary names are made beside the target: there is no Area
	spaces  atomic.Int32

	publishing [64]chan struct{} // taken while a name is given to something new, by hash
	mu         sync.Mutex        // held while closed is set and cleaning begins
	cleaning   sync.WaitGroup    // of what cancelled calls left behind
}

var (
	_ mounts.Backend    = (*Backend)(nil)
	_ mounts.TimeSetter = (*Backend)(nil)
	_ mounts.Spacer     = (*Backend)(nil)
	_ mounts.Hasher     = (*Backend)(nil)
	_ mounts.Copier     = (*Backend)(nil)
)

// Answers to questions that are asked once.
const (
	unknown int32 = iota
	yes
	no
)

// configure reads the options and says all that is wrong with them.
func configure(cfg mounts.Config) (*Backend, []error) {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, bad("Open", cfg.Name, fault.Invalid, fmt.Errorf(format, args...)))
	}
	for name := range cfg.Options {
		if !slices.ContainsFunc(options, func(o mounts.Option) bool { return o.Name == name }) {
			wrong("unknown option %q", name)
		}
	}
	for name := range cfg.Credentials {
		if name != "username" && name != "password" {
			wrong("unknown credential %q", name)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	o := cfg.Options
	b := &Backend{
		cfg: cfg, host: o["host"], port: o["port"], folder: o["path"], tlsMode: tlsAuto, timeout: 30 * time.Second, zone: time.UTC,
		user: "anonymous", password: secret.New("anonymous@"),
	}
	if b.host == "" || strings.ContainsAny(b.host, "/@ \r\n\x00") {
		wrong("option host must be the name or address of the server")
	}
	if v := o["tls"]; v != "" {
		if b.tlsMode = v; v != tlsAuto && v != tlsOff && v != tlsExplicit && v != tlsImplicit {
			wrong("option tls must be auto, explicit, implicit or off")
		}
	}
	switch b.port {
	case "":
		if b.port = "21"; b.tlsMode == tlsImplicit {
			b.port = "990"
		}
	default:
		if n, err := strconv.ParseUint(b.port, 10, 16); err != nil || n == 0 {
			wrong("option port must be a number from 1 to 65535")
		}
	}
	if strings.ContainsAny(b.folder, "\r\n\x00") {
		wrong("option path has a control character")
	}
	var err error
	if v := o["tlsInsecure"]; v != "" && v != "true" && v != "false" {
		wrong("option tlsInsecure must be true or false")
	}
	if b.tls, err = trust.Config(trust.Options{
		Host: b.host, CA: o["ca"], Pin: o["tlsPin"], Insecure: o["tlsInsecure"] == "true", Maximum: tls.VersionTLS12,
	}); err != nil {
		wrong("%w", err)
	}
	switch v := o["mode"]; v {
	case "", "passive":
	case "active":
		b.active = true
	default:
		wrong("option mode must be passive or active")
	}
	if v := o["zone"]; v != "" {
		if b.zone, err = time.LoadLocation(v); err != nil {
			wrong("option zone is no time zone: %w", err)
		}
	}
	if v := o["timeout"]; v != "" {
		if b.timeout, err = time.ParseDuration(v); err != nil || b.timeout < 100*time.Millisecond || b.timeout > time.Hour {
			wrong("option timeout must be a duration such as 30s")
		}
	}
	limit := 4
	if v := o["connections"]; v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 2 || limit > 1000 {
			wrong("option connections must be a number from 2 to 1000")
		}
	}
	if v := cfg.Credentials["username"]; !v.IsZero() {
		b.user, b.password = v.Reveal(), secret.String{}
	}
	if v := cfg.Credentials["password"]; !v.IsZero() {
		b.password = v
	}
	if strings.ContainsAny(b.user+b.password.Reveal(), "\r\n\x00") {
		wrong("username and password must not have a line break")
	}
	b.pool = &pool{b: b, limit: limit, all: map[*conn]bool{}}
	for i := range b.publishing {
		b.publishing[i] = make(chan struct{}, 1)
	}
	return b, errs
}

// open implements Driver.Open.
func open(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
	b, errs := configure(cfg)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	err := b.with(ctx, meta, true, func(*conn) error { return nil })
	if err == nil {
		err = b.probe(ctx)
	}
	if err != nil {
		err = b.fail(ctx, "Open", cfg.Name, err)
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close closes all connections; calls that go on fail.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed.Store(true)
	b.mu.Unlock()
	b.pool.close()
	b.cleaning.Wait()
	return nil
}

// server is what was learnt about the server at the first login. It is not changed later.
type server struct {
	features map[string]string // FEAT, by name in upper case
	facts    string            // to ask MLST for, "" when all are sent anyway
	mlst     bool
	windows  bool
	known    bool   // as one that renames over files
	root     string // absolute path of "."
}

func (s *server) has(feature string) bool {
	_, ok := s.features[feature]
	return ok
}

// discover asks the server what it is and where the datasource lies on it.
func (b *Backend) discover(c *conn) error {
	rs, err := c.do("FEAT", "SYST", "PWD")
	if err != nil {
		return err
	}
	s := &server{features: map[string]string{}}
	if feat := rs[0]; feat.code == 211 && len(feat.lines) > 2 {
		for _, line := range feat.lines[1 : len(feat.lines)-1] {
			name, args, _ := strings.Cut(strings.TrimSpace(line), " ")
			s.features[strings.ToUpper(name)] += args + ";"
		}
	}
	if facts, ok := s.features["MLST"]; ok {
		s.mlst = true
		for _, f := range []string{"type", "size", "modify", "unique"} {
			if strings.Contains(strings.ToLower(facts), f) {
				s.facts += f + ";"
			}
		}
		if !strings.Contains(s.facts, "type;size;modify;") {
			s.mlst, s.facts = false, "" // not what Stat needs
		}
	}
	s.windows = strings.Contains(strings.ToUpper(rs[1].text()), "WINDOWS")
	b.dos.Store(s.windows)
	greeting := strings.ToLower(c.greeting)
	s.known = strings.Contains(greeting, "vsftpd") || strings.Contains(greeting, "pure-ftpd")
	home := "/"
	if rs[2].ok() {
		if p := parsePWD(rs[2].lines[0]); strings.HasPrefix(p, "/") && mountable(p) {
			home = p
		}
	}
	if s.root = home; b.folder != "" {
		s.root = path.Join("/", b.folder)
		if !strings.HasPrefix(b.folder, "/") {
			s.root = path.Join(home, b.folder)
		}
	}
	// ". " is no name there is, except to a server that drops spaces.
	rs, err = c.do("CWD "+s.root, "CWD "+path.Join(s.root, ". "))
	if err != nil {
		return err
	}
	if err := refused("CWD", rs[0]); err != nil {
		kind := kindOf(err)
		if kind == fault.Denied {
			kind = fault.NotExist
		}
		return fault.New("mounts/ftp.Open", "", kind, fmt.Errorf("the folder %q (option path) cannot be entered: %w", s.root, err))
	}
	if rs[1].ok() {
		b.spaces.Store(no)
	}
	b.server.Store(s)
	return nil
}

// mountable reports whether a path that the server told can be said back to it.
func mountable(p string) bool { return !strings.ContainsAny(p, "\r\n\x00") && len(p) < maxCommand/2 }

// Features returns what this server does, as far as it showed.
func (b *Backend) Features() mounts.Features {
	s := b.server.Load()
	f := mounts.Features{
		AtomicReplace: mounts.Native, Rename: mounts.Native, ModTimeGrain: time.Minute, CaseSensitive: !s.windows, MaxName: mounts.MaxName,
		MaxPath: maxCommand - 100, Remote: true,
	}
	if b.replace.Load() != yes {
		f.AtomicReplace = mounts.Emulated
	}
	if s.mlst {
		f.ModTimeGrain = time.Second
		if s.has("MFMT") && !b.cfg.ReadOnly {
			f.ModTime = mounts.Native
		}
	}
	if b.cfg.ReadOnly {
		f.AtomicReplace, f.Rename = mounts.Refused, mounts.Refused
	}
	if len(s.digests()) > 0 {
		f.Hash = mounts.Native
	}
	if s.has("AVBL") {
		f.Space = mounts.Native
	}
	return f
}

// begin is the door of every call: it refuses ended contexts, a closed backend, bad names and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/ftp."+op, name, err)
	}
	if b.closed.Load() {
		return bad(op, name, fault.Unavailable, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/ftp."+op, name, err)
	}
	if write && b.cfg.ReadOnly {
		return bad(op, name, fault.Denied, errReadOnly)
	}
	if len(b.at(name)) > maxCommand-100 {
		return bad(op, name, fault.Invalid, errLongName)
	}
	if strings.HasSuffix(name, " ") && b.spaces.Load() == no {
		return bad(op, name, fault.Invalid, errSpace)
	}
	return nil
}

// at is the path of name on the server: absolute, so that it begins with no hyphen.
func (b *Backend) at(name string) string {
	root := b.server.Load().root
	switch {
	case name == ".":
		return root
	case root == "/":
		return "/" + name
	}
	return root + "/" + name
}

// with runs do on a connection of its own. When the connection turns out to have been closed while it was idle, do is run once more on a new
// one: always after 421, and after silence when again says that do may be repeated.
func (b *Backend) with(ctx context.Context, k class, again bool, do func(c *conn) error) error {
	for try := 0; ; try++ {
		c, err := b.pool.get(ctx, k, try > 0)
		if err != nil {
			return err
		}
		err = do(c)
		stale := b.stale(ctx, c, err, again)
		c.release()
		if !stale || try > 0 {
			return err
		}
		b.cfg.Logger.Debug("ftp connection was stale", "datasource", b.cfg.Name, "err", err)
		b.pool.flush()
	}
}

// stale reports whether err is that of a connection which the server had closed while it was idle.
func (b *Backend) stale(ctx context.Context, c *conn, err error, again bool) bool {
	var lost *lostError
	if !c.reused || c.heard || ctx.Err() != nil || b.closed.Load() || !errors.As(err, &lost) {
		return false
	}
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return false
	}
	var r *replyError
	return again || errors.As(err, &r) && r.reply.code == 421
}
