package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/servertest"
)

// wrong is a datasource that cannot be used as it is declared, and what the admin has to be told.
type wrong struct {
	name string
	want string // a pattern of the reason: what is wrong, and what to do
	make func(t *testing.T, k *kind)
}

// canary is a password that is wrong, and that nobody may get to see.
const canary = "CANARY-wrong-password-0123"

// option and credential declare another value than the right one.
func option(key, value string) func(*testing.T, *kind) {
	return func(_ *testing.T, k *kind) { k.options[key] = value }
}

func credential(key, value string) func(*testing.T, *kind) {
	return func(_ *testing.T, k *kind) { k.secrets[key] = value }
}

// reach makes the datasource look for its server at another address.
func (k *kind) reach(host string, port int) {
	at := fmt.Sprintf("http://%s:%d", host, port)
	switch k.driver {
	case "webdav":
		k.options["url"] = at + "/dav/"
	case "s3":
		k.options["endpoint"] = at
	case "dropbox":
		k.options["api"] = at
	default:
		k.options["host"], k.options["port"] = host, fmt.Sprint(port)
	}
}

const unwritable = `refuses to be written to: declare the datasource with readOnly: true`

// wrongs are what can be declared wrong, by kind.
func wrongs(name string) []wrong {
	all := []wrong{
		{"host", `no-such-host\.invalid`, func(_ *testing.T, k *kind) { k.reach("no-such-host.invalid", 99) }},
		{"port", `127\.0\.0\.1:\d+: connect: connection refused`, func(t *testing.T, k *kind) { k.reach("127.0.0.1", servertest.Port(t)) }},
	}
	switch name {
	case "vsftpd", "proftpd":
		readOnly := map[string]string{"vsftpd": "write_enable=NO\n", "proftpd": "<Limit WRITE>\nDenyAll\n</Limit>"}
		return append(all,
			wrong{"password", `user name "ann" with this password`, credential("password", canary)},
			wrong{"path", `"/nowhere" \(option path\)`, option("path", "/nowhere")},
			wrong{"readonly", unwritable, func(t *testing.T, k *kind) {
				k.reach("127.0.0.1", servertest.FTP(t, servertest.FTPOptions{Kind: k.name, Lines: readOnly[k.name]}).Port)
			}},
		)
	case "sftp":
		return append(all,
			wrong{"password", `.`, func(_ *testing.T, k *kind) { delete(k.secrets, "privateKey"); k.secrets["password"] = canary }},
			wrong{"key", `refuses the login of "root" with its private key`, func(t *testing.T, k *kind) { k.secrets["privateKey"] = servertest.NewSFTPKey(t, "").Private }},
			wrong{"user", `refuses the login of "nobody-here"`, credential("username", "nobody-here")},
			wrong{"path", `no folder "/nowhere".* change option path`, option("path", "/nowhere")},
			wrong{"readonly", unwritable, func(t *testing.T, k *kind) {
				key := servertest.NewSFTPKey(t, "")
				s := servertest.SFTP(t, servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, Lines: []string{"ForceCommand internal-sftp -R"}})
				k.reach("127.0.0.1", s.Port)
				k.options["path"], k.secrets["privateKey"] = s.Root, key.Private
			}},
		)
	case "smb":
		return append(all,
			wrong{"password", `wrong user name or password; check username, password`, credential("password", canary)},
			wrong{"user", `user "nobody": wrong user name or password`, credential("username", "nobody")},
			wrong{"share", `no share "nowhere"`, option("share", "nowhere")},
			wrong{"path", `option path: there is no such folder`, option("path", "nowhere")},
			wrong{"readonly", unwritable, option("share", "readonly")},
		)
	case "webdav":
		return append(all,
			wrong{"password", `check the username and the password`, credential("password", canary)},
			wrong{"path", `no such folder: .* change the path in the option url`, func(_ *testing.T, k *kind) { k.options["url"] += "nowhere/" }},
			wrong{"nodav", `does not speak WebDAV at this address: check the path in the option url`, func(_ *testing.T, k *kind) { k.options["url"] = strings.TrimSuffix(k.options["url"], "dav/") }},
			wrong{"readonly", unwritable, func(t *testing.T, k *kind) {
				k.reach("127.0.0.1", servertest.Apache(t, servertest.WebDAVOptions{Auth: "basic", Root: servertest.Dir(t)}).Port)
			}},
		)
	case "s3":
		return append(all,
			wrong{"password", `correct the credentials accessKey and secretKey`, credential("secretKey", canary)},
			wrong{"user", `correct the credentials accessKey and secretKey`, credential("accessKey", "nobody")},
			wrong{"bucket", `no bucket no-such-bucket: make it, or correct the option bucket`, option("bucket", "no-such-bucket")},
			wrong{"tls", `option endpoint must begin with http://`, func(_ *testing.T, k *kind) {
				k.options["endpoint"] = strings.Replace(k.options["endpoint"], "http:", "https:", 1)
			}},
		)
	}
	return append(all,
		wrong{"password", `refreshToken is refused: .* Connect the account again`, credential("refreshToken", canary)},
		wrong{"path", `no folder /nowhere .* change the option path`, option("path", "/nowhere")},
		wrong{"token", `access token has expired.* Connect the account again`, func(_ *testing.T, k *kind) { clear(k.secrets); k.secrets["token"] = canary }},
		wrong{"readonly", unwritable, func(t *testing.T, k *kind) {
			s := dropboxtest.Start(t, dropboxtest.Config{AppKey: k.fake.AppKey, AppSecret: k.fake.AppSecret, RefreshToken: k.fake.RefreshToken})
			for _, route := range []string{"files/create_folder_v2", "files/upload"} {
				s.Inject(dropboxtest.Fault{Route: route, Times: -1, Status: 409, Tags: "path/no_write_permission"})
			}
			k.options["api"] = s.URL
		}},
	)
}

// A datasource that is declared wrongly says what is wrong and what to do, and is down; all others work; once it is declared rightly, it is up.
// No password is shown or logged, whatever the error.
func TestBadBackend(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, k *kind) {
		b := prepare(t)
		b.args = []string{"--log-level", "debug"}
		b.serve()
		cases := wrongs(k.name)
		var sources, spaces strings.Builder
		var secrets []string
		for _, w := range cases {
			bad := *k
			bad.options, bad.secrets = maps.Clone(k.options), maps.Clone(k.secrets)
			w.make(t, &bad)
			secrets = append(secrets, confidential(&bad)...)
			fmt.Fprintf(&sources, "%s, ", bad.datasource("bad-"+w.name))
			fmt.Fprintf(&spaces, "  - {slug: %s, roots: [\"bad-%s:/docs\"], grants: [{to: \"user:alice\", rights: [read, write]}]}\n", w.name, w.name)
		}
		state := strings.Replace(k.state(), "datasources: [", "datasources: ["+sources.String(), 1) + spaces.String()
		a := b.as("alice")
		began := time.Now()
		applied, err := command{stdin: b.fill(state)}.try(t, binary, "apply", "-f", "-", "--data", b.data)
		if took := time.Since(began); err != nil || took > 30*time.Second {
			t.Errorf("apply: %v after %v\n%s", err, took, applied)
		}
		said := applied
		for _, w := range cases {
			name := "bad-" + w.name
			want := regexp.MustCompile("down: " + name + ": .*" + w.want)
			show := b.cellgate("datasource", "show", name)
			tested, err := command{}.try(t, binary, "datasource", "test", name, "--data", b.data)
			if !want.MatchString(applied) || !want.MatchString(show) || !stateIs(show, "down") || err == nil {
				t.Errorf("%s: want %s; datasource test: %v\napply said:\n%s\nshow said:\n%s", w.name, want, err, applied, show)
			}
			r := a.do("PUT", "/"+w.name+"/f", "x")
			if r.status != 503 || len(r.body) > 100 {
				t.Errorf("%s: PUT: %d %s", w.name, r.status, r.body)
			}
			if nodes, status, err := a.list("/", 1); err != nil || status != 207 || len(nodes) < len(cases)+2 {
				t.Errorf("the root lists %d names: %d %v", len(nodes), status, err)
			}
			said += show + tested + r.body
		}
		for _, path := range []string{"/near/f", "/docs/f"} {
			began := time.Now()
			a.want("PUT", path, "x", 201)
			a.want("GET", path, "", 200)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s: a file is written and read in %v while other datasources are down", path, took)
			}
		}
		list := b.cellgate("datasource", "list")
		if n := strings.Count(list, "down"); n != len(cases) {
			t.Errorf("%d of %d datasources are listed as down:\n%s", n, len(cases), list)
		}
		b.apply("datasources: [" + k.datasource("bad-password") + "]\n")
		a.want("PUT", "/password/f2", "x", 201)
		silent(t, b, said+list, secrets)
	})
}

// confidential are the values of credentials that nobody may see.
func confidential(k *kind) (all []string) {
	for key, value := range k.secrets {
		if key != "username" && key != "appKey" && key != "accessKey" {
			all = append(all, value)
			for line := range strings.Lines(value) {
				if line = strings.TrimSpace(line); len(line) > 20 && !strings.HasPrefix(line, "--") {
					all = append(all, line)
				}
			}
		}
	}
	return all
}

// silent looks for secrets in what was said and in what the box has printed.
func silent(t *testing.T, b *box, said string, secrets []string) {
	t.Helper()
	text := said + read(t, b.log) + read(t, b.out)
	for _, s := range secrets {
		if i := strings.Index(text, s); i >= 0 {
			t.Errorf("a secret is shown: …%s", text[max(0, i-200):min(len(text), i+20)])
		}
	}
}

// A backend that is full refuses uploads as full, keeps what is there, and takes them again once it has room.
func TestBadBackendFull(t *testing.T) {
	t.Parallel()
	for _, name := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var k *kind
			var fill func() (free func())
			if name == "dropbox" {
				k = startKind(t, name)
				fill = func() func() { k.fake.SetQuota(1 << 10); return func() { k.fake.SetQuota(0) } }
			} else {
				dir := filepath.Join(servertest.Dir(t), "v")
				volume(t, dir, "size=24m,mode=1777")
				root := dir
				if name == "s3" {
					for _, sub := range []string{"data/" + servertest.S3Bucket, "iam", "versions"} {
						if err := os.MkdirAll(filepath.Join(root, sub), 0o777); err != nil {
							t.Fatal(err)
						}
					}
				}
				k = startKindAt(t, name, root)
				fill = func() func() { return fillUp(t, dir, false) }
			}
			b := start(t, k.state())
			a := b.as("alice")
			old := strings.Repeat("old content\n", 1000)
			a.want("PUT", "/docs/old", old, 201)
			free := fill()
			large := pattern(3 << 20)
			for _, r := range []struct{ path, body string }{{"/docs/small", old}, {"/docs/large", large}, {"/docs/old", large}} {
				// vsftpd answers "451 Failure writing to local file", whatever the reason.
				if got := a.do("PUT", r.path, r.body); got.status != 507 && (name != "vsftpd" || got.status != 503) {
					t.Errorf("PUT %s on a full backend: %d %s", r.path, got.status, got.body)
				}
			}
			a.want("GET", "/docs/small", "", 404)
			if r := a.want("GET", "/docs/old", "", 200); r.body != old {
				t.Errorf("a file is not what it was: %d bytes", len(r.body))
			}
			a.want("PUT", "/near/f", large, 201)
			show := b.cellgate("datasource", "show", "far")
			if regexp.MustCompile(`free space +native`).MatchString(show) && !regexp.MustCompile(`state +degraded: far: no space left: .*give it more room`).MatchString(show) {
				t.Errorf("datasource show of a full backend:\n%s", show)
			}
			a.want("DELETE", "/docs/old", "", 204)
			free()
			a.want("PUT", "/docs/large", large, 201)
			if r := a.want("GET", "/docs/large", "", 200); r.body != large {
				t.Errorf("once there is room: %d bytes", len(r.body))
			}
			b.sound()
		})
	}
}

// An access token that ends is renewed where there is a refresh token. Else, and when that is revoked, the datasource says what to do, and
// works again with a new one.
func TestBadBackendToken(t *testing.T) {
	t.Parallel()
	k := startKind(t, "dropbox")
	b := start(t, k.state())
	a := b.as("alice")
	a.want("PUT", "/docs/f", "one", 201)
	k.fake.ExpireTokens()
	a.want("PUT", "/docs/f", "two", 204)

	clear(k.secrets)
	k.secrets["token"] = k.fake.AccessToken()
	secrets := confidential(k)
	b.apply("datasources: [" + k.datasource("far") + "]\n")
	a.want("PUT", "/docs/f", "three", 204)
	k.fake.ExpireTokens()
	r := a.do("PUT", "/docs/f", "four")
	if r.ok() || r.status == 401 {
		t.Errorf("PUT with a token that has ended: %d %s", r.status, r.body)
	}
	show := ""
	eventually(t, 30*time.Second, "the datasource is not up", func() bool {
		show = b.cellgate("datasource", "show", "far")
		return !stateIs(show, "up")
	})
	if !regexp.MustCompile(`state .*access token has expired.*Connect the account again`).MatchString(show) {
		t.Errorf("datasource show:\n%s", show)
	}
	a.want("PUT", "/near/f", "x", 201)
	k.secrets["token"] = k.fake.AccessToken()
	b.apply("datasources: [" + k.datasource("far") + "]\n")
	if r := a.want("GET", "/docs/f", "", 200); r.body != "three" {
		t.Errorf("after a new token: %q", r.body)
	}
	silent(t, b, show, append(secrets, confidential(k)...))
	b.sound()
}
