package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/ftp"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
)

// direct is the name, in the report, of the backend's own client.
const direct = "direct"

// kind is a backend with its own client.
type kind struct {
	name string
	open func(b *testing.B, c *chain) // sets link, config, dial and lay
}

var kinds = []kind{
	{"sftp", openSFTP}, {"webdav", openWebDAV}, {"s3", openS3}, {"smb", openSMB}, {"ftp", openFTP}, {"dropbox", openDropbox},
}

// party is the box or the direct client, with its connections.
type party struct {
	name    string
	root    string // before each name: the box shows one folder of the storage, the direct client all of it
	clients []client
	dial    func() (client, error)
}

// want makes so many connections ready before any time is taken.
func (p *party) want(n int) error {
	for len(p.clients) < n {
		c, err := p.dial()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		p.clients = append(p.clients, c)
	}
	return nil
}

// renew makes new connections: the box ends those that were idle for a while. The direct clients see to that themselves.
func (p *party) renew() error {
	if p.dial == nil || p.name == direct {
		return nil
	}
	n := len(p.clients)
	for _, c := range p.clients {
		c.close()
	}
	p.clients = nil
	return p.want(n)
}

// chain is a box in front of one backend, with a link between them that may be slow; the direct client takes the same link.
type chain struct {
	kind   kind
	link   *netfault.Proxy
	config mounts.Config // of the datasource, through link
	box    *server
	auth   string
	dial   func() (client, error)
	below  func(folder string) (option, value string) // of config, to show one folder of the storage
	lay    func(dir string, n int) error              // makes a folder of small files at the backend, past everybody
	ours   *party                                     // the datasource as it comes
	direct *party
	names  atomic.Int64
}

// fresh returns a name that nobody has used.
func (c *chain) fresh(what string) string { return fmt.Sprintf("%s%d", what, c.names.Add(1)) }

// storage makes a folder for a server's files, in memory where the run is, that any user may write to.
func storage(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(bench.dir, "far-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// pathBelow is chain.below of drivers with an option for it.
func pathBelow(root string) func(folder string) (string, string) {
	return func(folder string) (string, string) { return "path", root + folder }
}

// layFiles is chain.lay of servers that serve a folder of this machine.
func layFiles(root string) func(dir string, n int) error {
	return func(dir string, n int) error {
		if err := fill(side{files: root}, dir, n); err != nil {
			return err
		}
		return filepath.WalkDir(filepath.Join(root, dir), func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Chmod(path, 0o777) // not every server is root
		})
	}
}

func openSFTP(b *testing.B, c *chain) {
	key, root := servertest.NewSFTPKey(b, ""), storage(b)
	s := servertest.SFTP(b, servertest.SFTPOptions{Root: root, UserKeys: []servertest.SFTPKey{key}})
	c.relay(b, s)
	c.config = servertest.SFTPConfig(s, key)
	c.dial = func() (client, error) { return dialSFTP(s.Addr, root, s.User, key.Signer) }
	c.below, c.lay = pathBelow(root+"/"), layFiles(root)
}

func openWebDAV(b *testing.B, c *chain) {
	opt := servertest.WebDAVOptions{Root: storage(b)}
	s := servertest.Apache(b, opt)
	c.relay(b, s)
	c.config = servertest.WebDAVConfig(s, opt)
	base := "http://" + s.Addr + "/dav/"
	c.dial = func() (client, error) { return newDAV(base), nil }
	c.below = func(folder string) (string, string) { return "url", base + folder + "/" }
	c.lay = layFiles(s.Root)
}

func openS3(b *testing.B, c *chain) {
	opt := servertest.S3Options{Root: storage(b)}
	for _, dir := range []string{"data/" + servertest.S3Bucket, "iam", "versions"} {
		if err := os.MkdirAll(filepath.Join(opt.Root, dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	s := servertest.S3(b, opt)
	c.relay(b, s)
	c.config = servertest.S3Config(s, opt)
	c.dial = func() (client, error) { return newS3(s.Addr, s.User, s.Password) }
	c.below, c.lay = pathBelow(""), layFiles(s.Root)
}

func openSMB(b *testing.B, c *chain) {
	s := servertest.SMB(b, servertest.SMBOptions{Root: storage(b)})
	c.relay(b, s)
	c.config = servertest.SMBConfig(s)
	c.dial = func() (client, error) { return dialSMB(s.Addr, s.User, s.Password) }
	c.below, c.lay = pathBelow(""), layFiles(s.Root)
}

// openFTP has the delay on the control connection only: where data connections go, the server says by number, past the link.
func openFTP(b *testing.B, c *chain) {
	opt := servertest.FTPOptions{Kind: "vsftpd", Root: storage(b)}
	s := servertest.FTP(b, opt)
	c.relay(b, s)
	c.config = servertest.FTPConfig(s, opt)
	open := sync.OnceValues(func() (mounts.Backend, error) { return ftp.Driver().Open(b.Context(), c.config) })
	b.Cleanup(func() {
		if d, err := open(); err == nil {
			d.Close()
		}
	})
	c.dial = func() (client, error) {
		d, err := open()
		return driverClient{d}, err
	}
	c.below, c.lay = pathBelow(""), layFiles(s.Root)
}

func openDropbox(b *testing.B, c *chain) {
	s := dropboxtest.Start(b, dropboxtest.Config{})
	c.link = netfault.New(b, s.URL[len("http://"):])
	base := "http://" + c.link.Addr
	c.config = mounts.Config{
		Name: "box", Options: map[string]string{"api": base},
		Credentials: map[string]secret.String{
			"appKey": secret.New(s.AppKey), "appSecret": secret.New(s.AppSecret), "refreshToken": secret.New(s.RefreshToken),
		},
	}
	c.dial = func() (client, error) { return newDropbox(base, s.AccessToken()), nil }
	c.below = pathBelow("/")
	c.lay = func(dir string, n int) error {
		s.Fill("/"+dir, n, func(i int) string { return fmt.Sprintf("file-%06d.txt", i) })
		return nil
	}
}

// relay puts the link in front of a server and gives it the link's address.
func (c *chain) relay(b *testing.B, s *servertest.Server) {
	b.Helper()
	c.link = netfault.New(b, s.Addr)
	s.Addr, s.Host, s.Port = c.link.Addr, c.link.Host, c.link.Port
}

// The workspaces of the box: the datasource as it comes, one that writes back, and one whose memory is so short that it can be waited out.
const (
	plain   = "plain"
	late    = "late"
	forgets = "forgets"
)

// memoryAge is how long forgets remembers.
const memoryAge = 2 * time.Second

// openChain starts a backend of this kind and a box in front of it.
func openChain(b *testing.B, k kind) *chain {
	b.Helper()
	c := &chain{kind: k}
	k.open(b, c)
	dir := filepath.Join(bench.dir, "chain-"+k.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	var err error
	if c.box, err = c.start(dir); err != nil {
		b.Fatal(err)
	}
	c.ours = &party{name: ours, dial: func() (client, error) { return c.door(plain) }}
	c.direct = &party{name: direct, root: plain + "/", dial: c.dial}
	b.Cleanup(func() {
		for _, p := range []*party{c.ours, c.direct} {
			for _, cl := range p.clients {
				cl.close()
			}
		}
		if err := c.box.stop(); err != nil {
			b.Error(err)
		}
		if b.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			b.Logf("the box said:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return c
}

// directAt is the direct client in the folder of another workspace.
func (c *chain) directAt(slug string) *party {
	return &party{name: direct, root: slug + "/", clients: c.direct.clients}
}

// start starts the box and declares its state.
func (c *chain) start(dir string) (*server, error) {
	const password = "bench-password"
	secrets := map[string]string{"mode": "shared"}
	for key, value := range c.config.Credentials {
		secrets[key] = value.Reveal()
	}
	var sources, spaces []any
	for slug, more := range map[string][2]string{plain: {}, late: {"writeBack", "true"}, forgets: {"cacheAge", memoryAge.String()}} {
		options := map[string]string{}
		for key, value := range c.config.Options {
			options[key] = value
		}
		if more[0] != "" {
			options[more[0]] = more[1]
		}
		if err := c.lay(slug, 1); err != nil {
			return nil, err
		}
		option, value := c.below(slug)
		options[option] = value
		sources = append(sources, map[string]any{"name": slug, "driver": c.kind.name, "options": options, "credentials": secrets})
		spaces = append(spaces, map[string]any{"slug": slug, "roots": []string{slug + ":/"}, "grants": []any{map[string]any{"to": "user:bench", "rights": []string{"read", "write"}}}})
	}
	state, err := json.Marshal(map[string]any{ // which is YAML, too
		"users": []any{map[string]string{"login": "bench", "password": password}}, "datasources": sources, "workspaces": spaces,
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "state.yaml")
	if err := os.WriteFile(file, state, 0o600); err != nil {
		return nil, err
	}
	command, env, data := []string{bench.binary}, []string{"CELLGATE_LOG_ACCESS=false"}, filepath.Join(dir, "data")
	if profiles := os.Getenv(profileEnv); profiles != "" {
		command, env = []string{os.Args[0]}, append(env, roleEnv+"=profiled", profileEnv+"="+profiles)
	}
	s, err := spawn(ours, "", filepath.Join(dir, "log"), env, append(command, "serve", "--http", "127.0.0.1:0", "--sftp", "off", "--s3", "off", "--data", data)...)
	if err != nil {
		return nil, err
	}
	if text, err := exec.Command(bench.binary, "apply", "-f", file, "--data", data).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("apply: %w: %s", err, text), s.stop())
	}
	r, _ := http.NewRequest(http.MethodGet, "http://"+s.addr, nil)
	r.SetBasicAuth("bench", password)
	c.auth = r.Header.Get("Authorization")
	return s, nil
}

// door is a client's connection to one workspace of the box. It waits for the datasource to be up.
func (c *chain) door(slug string) (client, error) {
	cl, err := dial(side{server: c.box, name: ours, root: "/dav/" + slug, auth: c.auth})
	for until := time.Now().Add(30 * time.Second); err == nil; time.Sleep(100 * time.Millisecond) {
		if _, _, lerr := list(cl, "/", named); lerr == nil || time.Now().After(until) {
			err = lerr
			break
		}
	}
	return boxClient{cl}, err
}
