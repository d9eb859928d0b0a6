package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
)

// kinds are the servers a datasource may lie on, each the real one but for Dropbox, which is the fake of package dropboxtest.
var kinds = []string{"vsftpd", "proftpd", "sftp", "smb", "webdav", "s3", "dropbox"}

// eachKind runs a test for every kind of datasource, in a subtest with its name:
//
//	eachKind(t, func(t *testing.T, k *kind) {
//		b := start(t, k.state())                     // the box with the datasource "far" and the workspace "docs" on it
//		b.as("alice").want("PUT", "/docs/f", "x", 201)
//		k.kill(t)                                    // the server dies …
//		k.revive(t)                                  // … and comes back where it was
//	})
func eachKind(t *testing.T, test func(*testing.T, *kind)) {
	for _, name := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, startKind(t, name))
		})
	}
}

// kind is a running server with what a datasource has to say to use it. Change options and secrets before asking for the YAML, such as
// k.options["cacheAge"] = "0s" or k.secrets["password"] = "wrong".
type kind struct {
	name    string             // one of kinds
	driver  string             // of the datasource
	options map[string]string  // of the datasource
	secrets map[string]string  // its credentials
	server  *servertest.Server // nil for dropbox
	fake    *dropboxtest.Server

	again func() *servertest.Server // starts the server again on the same port and folder
}

// startKind starts the server of a kind on this machine, on a free port, until the test ends. What is not installed skips the test.
func startKind(t testing.TB, name string) *kind {
	t.Helper()
	return startKindAt(t, name, "")
}

// startKindAt is startKind over a folder of the caller's, such as one on a small file system. It has to be writable by every user, and for s3
// it has to have the folders data/BUCKET, iam and versions. Dropbox has no folder.
func startKindAt(t testing.TB, name, root string) *kind {
	t.Helper()
	k := &kind{name: name}
	var cfg mounts.Config
	switch name {
	case "vsftpd", "proftpd", "pure-ftpd":
		opt := servertest.FTPOptions{Kind: name, Port: servertest.Port(t), Root: root}
		k.driver, k.server = "ftp", servertest.FTP(t, opt)
		opt.Root = k.server.Root
		k.again = func() *servertest.Server { return servertest.FTP(t, opt) }
		cfg = servertest.FTPConfig(k.server, opt)
	case "sftp":
		host, user := servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "")
		opt := servertest.SFTPOptions{Port: servertest.Port(t), Root: root, HostKey: &host, UserKeys: []servertest.SFTPKey{user}}
		k.driver, k.server = "sftp", servertest.SFTP(t, opt)
		opt.Root = k.server.Root
		k.again = func() *servertest.Server { return servertest.SFTP(t, opt) }
		cfg = servertest.SFTPConfig(k.server, user)
	case "smb":
		opt := servertest.SMBOptions{Port: servertest.Port(t), Root: root}
		k.driver, k.server = "smb", servertest.SMB(t, opt)
		opt.Root = k.server.Root
		k.again = func() *servertest.Server { return servertest.SMB(t, opt) }
		cfg = servertest.SMBConfig(k.server)
	case "webdav":
		opt := servertest.WebDAVOptions{Auth: "basic", Port: servertest.Port(t), Root: root}
		k.driver, k.server = "webdav", servertest.Apache(t, opt)
		opt.Root = k.server.Root
		k.again = func() *servertest.Server { return servertest.Apache(t, opt) }
		cfg = servertest.WebDAVConfig(k.server, opt)
	case "s3":
		opt := servertest.S3Options{Port: servertest.Port(t), Root: root}
		k.driver, k.server = "s3", servertest.S3(t, opt)
		opt.Root = strings.TrimSuffix(k.server.Root, "/data/"+servertest.S3Bucket)
		k.again = func() *servertest.Server { return servertest.S3(t, opt) }
		cfg = servertest.S3Config(k.server, opt)
	case "dropbox":
		k.driver, k.fake = "dropbox", dropboxtest.Start(t, dropboxtest.Config{})
		cfg.Options = map[string]string{"api": k.fake.URL}
		cfg.Credentials = map[string]secret.String{
			"appKey": secret.New(k.fake.AppKey), "appSecret": secret.New(k.fake.AppSecret), "refreshToken": secret.New(k.fake.RefreshToken),
		}
	default:
		t.Fatalf("there is no kind %q", name)
	}
	k.options, k.secrets = maps.Clone(cfg.Options), map[string]string{}
	for key, value := range cfg.Credentials {
		k.secrets[key] = value.Reveal()
	}
	return k
}

// datasource is the declared state of a datasource on the server: one item of the list datasources, on one line. More of the datasource comes
// in pairs of key and YAML: k.datasource("far", "readOnly", "true").
func (k *kind) datasource(name string, more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{name: %s, driver: %s, options: %s, credentials: %s", name, k.driver, flow(k.options, nil), flow(k.secrets, map[string]string{"mode": "shared"}))
	for i := 0; i+1 < len(more); i += 2 {
		fmt.Fprintf(&b, ", %s: %s", more[i], more[i+1])
	}
	return b.String() + "}"
}

// state is common with the workspace docs on the datasource "far" on the server, and beside it the workspace near on the box's own disk.
func (k *kind) state(more ...string) string {
	far := strings.NewReplacer(
		"datasources: [", "datasources: ["+k.datasource("far", more...)+", ",
		`["disk:/docs"]`, `["far:/docs"]`,
	).Replace(common)
	return far + `  - slug: near
    roots: ["disk:/docs"]
    grants: [{to: "user:alice", rights: [read, write]}, {to: "user:bob", rights: [read, write]}]
`
}

// via makes the datasource reach the server through a link with the faults of a network: k.via(netfault.New(t, k.addr())). Of FTP only the
// control connection goes through it.
func (k *kind) via(p *netfault.Proxy) {
	switch k.driver {
	case "webdav":
		k.options["url"] = "http://" + p.Addr + "/dav/"
	case "s3":
		k.options["endpoint"] = "http://" + p.Addr
	case "dropbox":
		k.options["api"] = "http://" + p.Addr
	default:
		k.options["host"], k.options["port"] = p.Host, strconv.Itoa(p.Port)
	}
}

// addr is where the server listens.
func (k *kind) addr() string {
	if k.fake != nil {
		return strings.TrimPrefix(k.fake.URL, "http://")
	}
	return k.server.Addr
}

// kill ends the server at once, with its connections; Dropbox cuts every connection before it answers.
func (k *kind) kill(t testing.TB) {
	t.Helper()
	k.signal(t, syscall.SIGKILL, dropboxtest.Fault{Times: -1, Cut: -1})
}

// pause stops the server as a stalled machine would be, and resume lets it go on. Dropbox never answers meanwhile.
func (k *kind) pause(t testing.TB) {
	t.Helper()
	k.signal(t, syscall.SIGSTOP, dropboxtest.Fault{Times: -1, Stall: true})
}

func (k *kind) resume(t testing.TB) {
	t.Helper()
	k.signal(t, syscall.SIGCONT, dropboxtest.Fault{})
}

// signal reaches the server with all the processes of its connections.
func (k *kind) signal(t testing.TB, sig syscall.Signal, f dropboxtest.Fault) {
	t.Helper()
	if k.fake == nil {
		k.server.SFTPSignal(t, sig)
		return
	}
	k.fake.Heal()
	if sig != syscall.SIGCONT {
		k.fake.Inject(f)
		k.fake.CloseConnections()
	}
}

// revive starts a server that was killed, on the same port, with the same folder and keys.
func (k *kind) revive(t testing.TB) {
	t.Helper()
	if k.fake != nil {
		k.fake.Heal()
		return
	}
	k.server = k.again()
}

// flow writes strings as a mapping of YAML on one line.
func flow(all ...map[string]string) string {
	merged := map[string]string{}
	for _, m := range all {
		maps.Copy(merged, m)
	}
	text, err := json.Marshal(merged) // JSON is YAML
	if err != nil {
		panic(err)
	}
	return string(text)
}
