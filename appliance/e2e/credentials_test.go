package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/servertest"
)

// storagePassword is a password of the storage, or of a login, that may show nowhere in clear.
func storagePassword(login string) string { return "CANARY-" + login + "-0123456789" }

// guarded is an FTP server whose users are told apart: ann may write, ben only reads, svc sees a folder of its own.
func guarded(t *testing.T) *kind {
	t.Helper()
	openssl := program(t, "openssl")
	servertest.Root(t)
	dir := servertest.Dir(t)
	root, apart := filepath.Join(dir, "root"), filepath.Join(dir, "apart")
	var users strings.Builder
	for _, folder := range []string{root, apart} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(folder, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	for user, home := range map[string]string{"ann": root, "ben": root, "alice": root, "svc": apart} {
		cmd := exec.Command(openssl, "passwd", "-6", "-stdin")
		cmd.Stdin = strings.NewReader(storagePassword(user) + "\n")
		hash, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&users, "%s:%s:65534:65534::%s:/bin/sh\n", user, strings.TrimSpace(string(hash)), home)
	}
	opt := servertest.FTPOptions{Kind: "proftpd", Root: root, Lines: "AuthUserFile " + servertest.Write(t, filepath.Join(dir, "users"), "%s", users.String()) +
		"\n<Limit WRITE>\nDenyUser ben\n</Limit>\n"}
	s := servertest.FTP(t, opt)
	cfg := servertest.FTPConfig(s, opt)
	return &kind{name: "proftpd", driver: "ftp", options: cfg.Options, secrets: map[string]string{}, server: s}
}

// nowhere wants none of the words in what the box prints, logs, shows, keeps and saves.
func (b *box) nowhere(outputs string, words ...string) {
	b.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", b.pid())
	texts := map[string]string{"outputs": outputs, "cmdline": read(b.t, proc+"cmdline"), "environ": read(b.t, proc+"environ")}
	r, err := b.raw("", "GET /metrics", []string{"Connection: close", "Authorization: Bearer " + metricsToken}, "")
	if err != nil || r.status != 200 || !strings.Contains(r.body, "cellgate_") {
		b.t.Errorf("metrics: %d %v", r.status, err)
	}
	texts["metrics"] = r.body
	saved := filepath.Join(b.t.TempDir(), "backup")
	b.cellgate("backup", saved)
	texts["backup"] = read(b.t, saved)
	for _, args := range []string{"datasource list", "datasource show nas", "datasource credentials list nas", "datasource template list", "user list", "workspace list", "audit list", "audit export", "doctor", "fsck"} {
		out, _ := command{}.try(b.t, binary, append(strings.Fields(args), "--json", "--data", b.data)...)
		texts[args] = out
	}
	b.stop()
	texts["log"] = read(b.t, b.log)
	err = filepath.WalkDir(b.data, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			texts[name] = read(b.t, name)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if len(texts["log"]) < 1000 || len(texts["backup"]) < 5000 {
		b.t.Errorf("%d bytes of log, %d of backup: this shows nothing", len(texts["log"]), len(texts["backup"]))
	}
	for where, text := range texts {
		for _, word := range words {
			if at := strings.Index(text, word); at >= 0 {
				b.t.Errorf("%s holds a secret: …%q", where, text[max(0, at-80):min(len(text), at+60)])
			}
		}
	}
}

const metricsToken = "token-of-the-metrics"

// told is a box at its most talkative level.
func told(t *testing.T) *box {
	t.Helper()
	b := prepare(t)
	b.args, b.env = []string{"--log-level", "debug"}, []string{"CELLGATE_METRICS_TOKEN=" + metricsToken}
	b.serve()
	return b
}

// In the mode user everybody comes to the storage with credentials of his own, and may there what the storage lets him; what is wrong or
// missing is refused in words, what is put right counts at once, and none of it shows.
func TestCredentialsOfUsers(t *testing.T) {
	t.Parallel()
	k := guarded(t)
	b := told(t)
	var outputs strings.Builder
	state := `
datasources:
  - {name: disk, driver: local, options: {path: FILES}}
  - {name: nas, driver: ftp, options: ` + flow(k.options) + `, credentials: {mode: user}}
users:
  - {login: alice, password: alice-password, credentials: [{datasource: nas, username: ann, password: ` + storagePassword("ann") + `}]}
  - {login: bob, password: bob-password}
  - {login: carol, password: carol-password}
workspaces:
  - {slug: docs, roots: ["disk:/docs"], grants: [{to: "group:/", rights: [read, write]}]}
  - {slug: nas, roots: ["nas:/"], grants: [{to: "group:/", rights: [read, write]}]}
`
	bad := strings.Replace(state, "username: ann", "usrname: ann", 1)
	if out, err := (command{stdin: b.fill(bad)}).try(t, binary, "apply", "-f", "-", "--data", b.data); err == nil || !strings.Contains(out, `no credential "usrname"`) {
		t.Errorf("a wrong key: %v %s", err, out)
	} else {
		outputs.WriteString(out)
	}
	b.apply(state)
	set := func(user, pair string) {
		t.Helper()
		name, password, _ := strings.Cut(pair, " ")
		outputs.WriteString(command{stdin: "username=" + name + "\npassword=" + password + "\n"}.run(t, binary, "datasource", "credentials", "set", "nas", user, "--data", b.data))
	}
	refused := func(c *client, words string) {
		t.Helper()
		r := c.do("PUT", "/nas/x", "x")
		outputs.WriteString(r.body)
		if r.status != 403 {
			t.Errorf("%s, %s: %d %s", c.user, words, r.status, r.body)
		}
		if r := c.do("PUT", "/docs/"+c.user, "elsewhere all is well"); !r.ok() {
			t.Errorf("%s, %s, on the disk: %d %s", c.user, words, r.status, r.body)
		}
	}
	alice, bob, carol := b.as("alice"), b.as("bob"), b.as("carol")
	alice.want("PUT", "/nas/f", "alice's", 201)
	if got, err := os.ReadFile(filepath.Join(k.server.Root, "f")); err != nil || string(got) != "alice's" {
		t.Errorf("on the storage: %q %v", got, err)
	}
	refused(bob, "who has no credentials")
	set("bob", "ben "+storagePassword("wrong"))
	refused(bob, "whose credentials are wrong")
	set("bob", "ben "+storagePassword("ben"))
	if got := bob.want("GET", "/nas/f", "", 200); got.body != "alice's" {
		t.Errorf("bob reads %q", got.body)
	}
	refused(bob, "who may not write on the storage")
	if r := bob.do("DELETE", "/nas/f", ""); r.ok() {
		t.Errorf("bob deleted what the storage keeps from him: %d", r.status)
	}
	set("carol", "svc "+storagePassword("svc"))
	carol.want("GET", "/nas/f", "", 404)
	carol.want("PUT", "/nas/g", "carol's", 201)
	alice.want("GET", "/nas/g", "", 404)
	if out := b.cellgate("datasource", "credentials", "list", "nas"); strings.Count(out, "\n") != 4 || !strings.Contains(out, "bob") {
		t.Errorf("holders: %s", out)
	}
	outputs.WriteString(b.cellgate("datasource", "credentials", "delete", "nas", "carol"))
	refused(carol, "whose credentials were deleted")
	b.stop()
	b.serve()
	alice, bob, carol = b.as("alice"), b.as("bob"), b.as("carol")
	alice.want("PUT", "/nas/f", "after a restart", 204)
	bob.want("GET", "/nas/f", "", 200)
	refused(carol, "after a restart")
	b.cellgate("user", "delete", "bob")
	command{stdin: "bob-password\n"}.run(t, binary, "user", "add", "bob", "--password-stdin", "--data", b.data)
	refused(b.as("bob"), "who is a namesake")
	b.nowhere(outputs.String(), "CANARY-")
}

// In the mode session the name and password of the login open the storage. Who comes with an app password has none to pass on and is refused,
// or uses the shared credentials where the admin wanted that.
func TestCredentialsOfLogins(t *testing.T) {
	t.Parallel()
	k := guarded(t)
	b := told(t)
	b.apply(`
datasources:
  - {name: nas, driver: ftp, options: ` + flow(k.options) + `, credentials: {mode: session}}
  - {name: lax, driver: ftp, options: ` + flow(k.options) + `, credentials: {mode: session, fallback: shared, username: svc, password: ` + storagePassword("svc") + `}}
users:
  - {login: alice, password: ` + storagePassword("alice") + `}
  - {login: bob, password: ` + storagePassword("bob") + `}
workspaces:
  - {slug: nas, roots: ["nas:/"], grants: [{to: "group:/", rights: [read, write]}]}
  - {slug: lax, roots: ["lax:/"], grants: [{to: "group:/", rights: [read, write]}]}
`)
	alice, bob := b.as("alice"), b.as("bob")
	alice.pass, bob.pass = storagePassword("alice"), storagePassword("bob")
	alice.want("PUT", "/nas/f", "by login", 201)
	if got := alice.want("GET", "/lax/f", "", 200); got.body != "by login" {
		t.Errorf("with the fallback, too, a login is passed on: %q", got.body)
	}
	if r := bob.do("GET", "/nas/f", ""); r.status != 403 {
		t.Errorf("whom the storage does not know: %d %s", r.status, r.body)
	}
	app := b.as("alice")
	app.pass = strings.TrimSpace(b.cellgate("token", "create", "alice", "--label", "laptop"))
	if r := app.do("GET", "/nas/f", ""); r.status != 403 {
		t.Errorf("an app password: %d %s", r.status, r.body)
	}
	app.want("GET", "/lax/f", "", 404) // the shared user has another folder
	app.want("PUT", "/lax/shared", "shared", 201)
	alice.want("GET", "/lax/shared", "", 404)

	// The password is changed here and there: the old one opens nothing any more, the new one does.
	command{stdin: storagePassword("new") + "\n"}.run(t, binary, "user", "passwd", "alice", "--password-stdin", "--data", b.data)
	alice.want("GET", "/nas/f", "", 401)
	alice.pass = storagePassword("new")
	if r := alice.do("GET", "/nas/f", ""); r.status != 403 {
		t.Errorf("a password that the storage does not know: %d %s", r.status, r.body)
	}
	command{stdin: storagePassword("alice") + "\n"}.run(t, binary, "user", "passwd", "alice", "--password-stdin", "--data", b.data)
	alice.pass = storagePassword("alice")
	eventually(t, 15*time.Second, "the password that the storage knows works again", func() bool { return alice.do("GET", "/nas/f", "").status == 200 })
	b.nowhere("", "CANARY-", app.pass)
}

// Users complete templates: their own Dropbox, their own share. What they get nobody else sees; done again it changes; what was not asked for
// is refused; it goes with the user.
func TestTemplates(t *testing.T) {
	t.Parallel()
	first, second := dropboxtest.Start(t, dropboxtest.Config{}), dropboxtest.Start(t, dropboxtest.Config{})
	share := startKind(t, "smb")
	if err := os.MkdirAll(filepath.Join(share.server.Root, "people/alice"), 0o755); err != nil {
		t.Fatal(err)
	}
	first.Put("/hers.txt", "alice's file")
	second.Put("/other.txt", "another account")
	b := told(t)
	nas := share.options
	nas["path"] = "people/{login}"
	templates := `
templates:
  - {name: own-dropbox, label: My Dropbox, driver: dropbox, asks: [api, appKey, appSecret, refreshToken, path], to: ["group:/"]}
  - {name: own-share, label: My share, driver: smb, options: ` + flow(nas) + `, asks: [username, password], to: ["user:alice"]}
`
	b.env = append(b.env, "CELLGATE_OUTBOUND_ALLOW=127.0.0.1")
	b.stop()
	b.serve()
	b.apply(common + templates)
	var outputs strings.Builder
	complete := func(template, user string, values ...string) (string, error) {
		out, err := command{stdin: strings.Join(values, "\n") + "\n"}.try(t, binary, "datasource", "template", "complete", template, user, "--data", b.data)
		outputs.WriteString(out)
		return out, err
	}
	account := func(s *dropboxtest.Server) []string {
		return []string{"api=" + s.URL, "appKey=" + s.AppKey, "appSecret=" + s.AppSecret, "refreshToken=" + s.RefreshToken}
	}
	for user, want := range map[string]int{"alice": 2, "bob": 1} {
		if out := b.cellgate("datasource", "template", "list", "--user", user); strings.Count(out, "own-") != want {
			t.Errorf("templates of %s:\n%s", user, out)
		}
	}
	for what, bad := range map[string][]string{
		"not asked for": append(account(first), "timeout=1s"), "a tuning": append(account(first), "writeBack=true"), "missing": {"api=" + first.URL, "appKey=x"},
	} {
		if out, err := complete("own-dropbox", "alice", bad...); err == nil {
			t.Errorf("%s: %s", what, out)
		}
	}
	if out, err := complete("own-share", "bob", "username=gate", "password=x"); err == nil || !strings.Contains(out, "template") {
		t.Errorf("who may not: %s", out)
	}
	alice, bob := b.as("alice"), b.as("bob")
	tops := func(c *client) string {
		nodes, _, err := c.list("/", 1)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, n := range nodes[1:] {
			all = append(all, n.path)
		}
		return strings.Join(all, " ")
	}
	if got := tops(alice); got != "/docs" {
		t.Errorf("before: %s", got)
	}
	if out, err := complete("own-dropbox", "alice", account(first)...); err != nil || !strings.Contains(out, "own-dropbox-alice") || !strings.Contains(out, "up") {
		t.Fatalf("own Dropbox: %v %s", err, out)
	}
	if out, err := complete("own-share", "alice", "username="+share.secrets["username"], "password="+share.secrets["password"]); err != nil || !strings.Contains(out, "up") {
		t.Fatalf("own share: %v %s", err, out)
	}
	if got := alice.want("GET", "/own-dropbox-alice/hers.txt", "", 200); got.body != "alice's file" {
		t.Errorf("hers: %q", got.body)
	}
	alice.want("PUT", "/own-share-alice/f", "on the share", 201)
	if got := read(t, filepath.Join(share.server.Root, "people/alice/f")); got != "on the share" {
		t.Errorf("on the share: %q", got)
	}
	if got := tops(alice); got != "/docs /own-dropbox-alice /own-share-alice" {
		t.Errorf("alice's tree: %s", got)
	}
	if got := tops(bob); got != "/docs" {
		t.Errorf("bob's tree: %s", got)
	}
	for _, path := range []string{"/own-dropbox-alice/", "/own-dropbox-alice/hers.txt", "/own-share-alice/f"} {
		bob.want("GET", path, "", 404)
		for _, there := range []bool{true, false} { // it looks as what is nowhere does
			at := path
			if !there {
				at = strings.Replace(path, "own-", "no-", 1)
			}
			bob.want("PUT", at+"-bob", "x", 409)
		}
	}

	// Again, with another account; then the template goes, and what was completed stays, also after a restart.
	if out, err := complete("own-dropbox", "alice", account(second)...); err != nil || !strings.Contains(out, "up") {
		t.Errorf("again: %v %s", err, out)
	}
	alice.want("GET", "/own-dropbox-alice/hers.txt", "", 404)
	alice.want("GET", "/own-dropbox-alice/other.txt", "", 200)
	b.cellgate("datasource", "template", "delete", "own-dropbox")
	if out, err := complete("own-dropbox", "bob", account(first)...); err == nil {
		t.Errorf("a deleted template: %s", out)
	}
	b.stop()
	b.serve()
	alice = b.as("alice")
	eventually(t, 10*time.Second, "her own are there after a restart", func() bool {
		return alice.do("GET", "/own-dropbox-alice/other.txt", "").status == 200 && alice.do("GET", "/own-share-alice/f", "").status == 200
	})

	// I08: the account goes, and with it the way to her storage; a namesake finds nothing.
	b.cellgate("user", "delete", "alice")
	alice.want("GET", "/own-dropbox-alice/other.txt", "", 401)
	command{stdin: "alice-password\n"}.run(t, binary, "user", "add", "alice", "--password-stdin", "--data", b.data)
	alice = b.as("alice")
	if got := tops(alice); got != "" && got != "/docs" {
		t.Errorf("the namesake's tree: %s", got)
	}
	alice.want("GET", "/own-dropbox-alice/other.txt", "", 404)
	if out := b.cellgate("datasource", "list"); strings.Contains(out, "own-") {
		t.Errorf("her datasources are still attached:\n%s", out)
	}
	asked := second.Total()
	time.Sleep(time.Second)
	if now := second.Total(); now != asked {
		t.Errorf("her Dropbox was asked %d times after she had gone", now-asked)
	}
	b.nowhere(outputs.String(), first.AppSecret, first.RefreshToken, second.AppSecret, second.RefreshToken)
}
