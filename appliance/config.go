package appliance

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"cellgate/appliance/strict"
	"cellgate/internal/secret"
)

// Config is everything the box is told from outside. Each field is a key of the file, an environment variable (CELLGATE_ and the key in
// capitals: tls.mode is CELLGATE_TLS_MODE) and, where the common ones are concerned, a flag. Lists are comma-separated in the environment;
// a variable that ends in _FILE names a file with the value.
type Config struct {
	Data           string        `yaml:"data" help:"folder of all that the box remembers; made with mode 0700"`
	HTTP           string        `yaml:"http" help:"address of HTTP in the clear, off for none; with TLS it serves this machine and sends everyone else to https"`
	SFTP           string        `yaml:"sftp" help:"address of SFTP, off for none"`
	S3             string        `yaml:"s3" help:"address of S3, off for none"`
	Services       []string      `yaml:"services" help:"doors to open: webdav, sftp, s3; empty for all"`
	Database       secret.String `yaml:"database" help:"empty: SQLite in the data folder; postgres://USER:PASSWORD@HOST/NAME: PostgreSQL"`
	Events         string        `yaml:"events" help:"empty: events stay in this process, the only choice of this build"`
	State          string        `yaml:"state" help:"file with a declared state to apply at each start"`
	SSHAuthorities string        `yaml:"sshAuthorities" help:"file with the public keys of authorities whose SSH certificates sign in the user they name"`
	S3Region       string        `yaml:"s3Region" help:"region that requests to S3 are signed for"`
	S3Domains      []string      `yaml:"s3Domains" help:"domains under which BUCKET.DOMAIN names a bucket; DOMAIN/BUCKET always does"`
	S3Buckets      string        `yaml:"s3Buckets" help:"place for the buckets that admins make over S3, such as disk:/buckets; empty: nobody makes any"`
	H2C            bool          `yaml:"h2c" help:"also speak HTTP/2 in the clear, for proxies that do"`
	HideJunk       bool          `yaml:"hideJunk" help:"refuse the ._* and .DS_Store files that macOS leaves behind"`
	TrustedProxies []Network     `yaml:"trustedProxies" help:"addresses or CIDRs whose X-Forwarded-For and X-Request-Id are believed"`
	TLS            TLS           `yaml:"tls"`
	Log            Log           `yaml:"log"`
	Limits         Limits        `yaml:"limits"`
	Metrics        Metrics       `yaml:"metrics"`
	Outbound       Outbound      `yaml:"outbound"`
}

// Outbound says where the box may connect to by itself.
type Outbound struct {
	Allow []Network `yaml:"allow" help:"private addresses or CIDRs that users may name when they complete a datasource; an admin's own datasources may name any"`
}

// TLS says whether and with which certificate HTTPS is served.
type TLS struct {
	Mode      string   `yaml:"mode" help:"off, self-signed (made at first start, kept in the data folder), files, or acme"`
	Address   string   `yaml:"address" help:"address of HTTPS"`
	Cert      string   `yaml:"cert" help:"mode files: PEM file with the certificate and its chain; read again when it changes and on SIGHUP"`
	Key       string   `yaml:"key" help:"mode files: PEM file with the private key"`
	Domains   []string `yaml:"domains" help:"mode acme: names to get certificates for; mode self-signed: more names for the certificate"`
	Email     string   `yaml:"email" help:"mode acme: address the authority may write to"`
	Directory string   `yaml:"directory" help:"mode acme: directory of the authority; empty for Let's Encrypt"`
	Roots     string   `yaml:"roots" help:"mode acme: PEM file with certificates to trust when talking to a private authority"`
}

// Log says what is written to standard error.
type Log struct {
	Level  string `yaml:"level" help:"debug, info, warn or error"`
	Format string `yaml:"format" help:"text or json"`
	Access bool   `yaml:"access" help:"a line for each request, at level info"`
}

// Limits bound what clients can use up.
type Limits struct {
	Connections           int           `yaml:"connections" help:"open connections in all"`
	ConnectionsPerAddress int           `yaml:"connectionsPerAddress" help:"open connections of one client address (an IPv6 /64 counts as one)"`
	HeaderBytes           int           `yaml:"headerBytes" help:"largest header of a request"`
	HeaderTimeout         time.Duration `yaml:"headerTimeout" help:"time to send a request's header, and for the TLS handshake"`
	IdleTimeout           time.Duration `yaml:"idleTimeout" help:"time a connection may stay open without a request"`
	StallTimeout          time.Duration `yaml:"stallTimeout" help:"time in which a transfer must move 16 KiB; there is no limit for the whole"`
	StopTimeout           time.Duration `yaml:"stopTimeout" help:"time that requests get to finish after SIGTERM"`
}

// Metrics says who may read /metrics, besides nobody.
type Metrics struct {
	Allow []Network     `yaml:"allow" help:"addresses or CIDRs that may read /metrics"`
	Token secret.String `yaml:"token" help:"bearer token that may read /metrics"`
}

// Network is a CIDR, or an address that stands for itself.
type Network struct{ netip.Prefix }

// UnmarshalText reads "10.0.0.0/8" or "10.0.0.1".
func (n *Network) UnmarshalText(text []byte) error {
	s := string(text)
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		n.Prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is no address and no CIDR", s)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	n.Prefix = p.Masked()
	return nil
}

func within(nets []Network, addr netip.Addr) bool {
	addr = addr.Unmap()
	return slices.ContainsFunc(nets, func(n Network) bool { return n.Contains(addr) })
}

const off = "off"

// Default returns the configuration of a box nobody configured: it listens on this machine only and keeps everything in ./cellgate-data.
func Default() Config {
	return Config{
		Data: "./cellgate-data", HTTP: "127.0.0.1:8080", SFTP: "127.0.0.1:2022", S3: "127.0.0.1:9000", S3Region: "us-east-1",
		TLS: TLS{Mode: off, Address: "127.0.0.1:8443"},
		Log: Log{Level: "info", Format: "text", Access: true},
		Limits: Limits{
			Connections: 8192, ConnectionsPerAddress: 4096, HeaderBytes: 64 << 10,
			HeaderTimeout: 20 * time.Second, IdleTimeout: time.Minute, StallTimeout: 30 * time.Second, StopTimeout: 30 * time.Second,
		},
	}
}

// Validate returns everything that is wrong with the values, each with its key.
func (c *Config) Validate() strict.Problems {
	var ps strict.Problems
	bad := func(key, format string, args ...any) {
		ps = append(ps, strict.Problem{Key: key, Text: fmt.Sprintf(format, args...)})
	}
	if c.Data == "" {
		bad("data", "a folder is needed")
	}
	for key, addr := range map[string]string{"http": c.HTTP, "sftp": c.SFTP, "s3": c.S3} {
		if err := checkAddress(addr); addr != off && err != nil {
			bad(key, "%v, or off", err)
		}
	}
	for i, s := range c.Services {
		if !slices.Contains(doors, s) {
			bad(fmt.Sprintf("services[%d]", i), "unknown service; there are %s", strings.Join(doors, ", "))
		}
	}
	if db := c.Database.Reveal(); db != "" && !strings.HasPrefix(db, "postgres://") && !strings.HasPrefix(db, "postgresql://") {
		bad("database", "empty or a postgres:// URL is expected")
	}
	if c.Events != "" {
		bad("events", "only events in process are in this build; leave it empty")
	}
	if c.State != "" {
		if _, err := os.Stat(c.State); err != nil {
			bad("state", "%v", err)
		}
	}
	c.TLS.validate(bad)
	if c.HTTP == off && c.TLS.Mode == off && (c.SFTP == off || !c.serves("sftp")) && (c.S3 == off || !c.serves("s3")) {
		bad("http", "no door is open: give http, sftp or s3 an address, or switch tls on")
	}
	if _, err := authorities(c.SSHAuthorities); err != nil {
		bad("sshAuthorities", "%v", err)
	}
	if _, err := logLevel(c.Log.Level); err != nil {
		bad("log.level", "debug, info, warn or error is expected")
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format", "text or json is expected")
	}
	c.Limits.validate(bad)
	if t := c.Metrics.Token.Reveal(); t != "" && len(t) < 16 {
		bad("metrics.token", "at least 16 characters are needed")
	}
	return ps
}

func (t *TLS) validate(bad func(key, format string, args ...any)) {
	switch t.Mode {
	case off:
		return
	case "self-signed":
	case "files":
		if t.Cert == "" || t.Key == "" {
			bad("tls.cert", "mode files needs cert and key")
		} else if _, err := loadPair(t.Cert, t.Key); err != nil {
			bad("tls.cert", "%v", err)
		}
	case "acme":
		if len(t.Domains) == 0 {
			bad("tls.domains", "mode acme needs at least one name")
		}
		if t.Directory != "" && !strings.HasPrefix(t.Directory, "https://") {
			bad("tls.directory", "an https:// URL is expected")
		}
		if t.Roots != "" {
			if _, err := loadRoots(t.Roots); err != nil {
				bad("tls.roots", "%v", err)
			}
		}
	default:
		bad("tls.mode", "off, self-signed, files or acme is expected")
	}
	if err := checkAddress(t.Address); err != nil {
		bad("tls.address", "%v", err)
	}
}

func (l *Limits) validate(bad func(key, format string, args ...any)) {
	for key, n := range map[string]int{"connections": l.Connections, "connectionsPerAddress": l.ConnectionsPerAddress} {
		if n < 1 {
			bad("limits."+key, "at least 1 is needed")
		}
	}
	if l.HeaderBytes < 4096 || l.HeaderBytes > 16<<20 {
		bad("limits.headerBytes", "between 4096 and 16777216 is expected")
	}
	for key, d := range map[string]time.Duration{"headerTimeout": l.HeaderTimeout, "idleTimeout": l.IdleTimeout, "stallTimeout": l.StallTimeout} {
		if d < time.Second {
			bad("limits."+key, "at least 1s is needed")
		}
	}
	if l.StopTimeout < 0 {
		bad("limits.stopTimeout", "it cannot be negative")
	}
}

func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("an address of the form HOST:PORT or :PORT is expected")
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q is no port", port)
	}
	return nil
}

// serves reports whether a service is to run.
func (c *Config) serves(service string) bool {
	return len(c.Services) == 0 || slices.Contains(c.Services, service)
}
