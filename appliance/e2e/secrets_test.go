package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// G01: secrets show nowhere: not in what the box prints or logs at its most talkative level, not in its folders, not in its command line or
// environment, not in an answer; whatever is done with them.
func TestG01Canaries(t *testing.T) {
	t.Parallel()
	b := prepare(t)
	b.args = []string{"--log-level", "debug"}
	secret := func(name string) string { return "CANARY-" + name + "-0123456789" }
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, secret("metrics")+"\n")
	b.env = []string{"CELLGATE_METRICS_TOKEN_FILE=" + token}
	b.serve()
	state := fmt.Sprintf(`
datasources: [{name: disk, driver: local, options: {path: FILES}}]
users:
  - {login: alice, password: %s, profile: admin, s3Keys: [{id: ALICEKEY, secret: %s}]}
  - {login: bob, password: %s}
workspaces: [{slug: docs, roots: ["disk:/docs"], grants: [{to: "user:alice", rights: [read, write]}]}]
`, secret("alice"), secret("s3"), secret("bob"))
	state = b.fill(state)
	b.apply(state)
	var outputs bytes.Buffer
	say := func(stdin string, args ...string) {
		out, _ := command{stdin: stdin}.try(t, binary, append(args, "--data", b.data)...)
		outputs.WriteString(out)
	}
	alice := b.as("alice")
	alice.pass = secret("alice")
	answer := func(c *client, method, path, body string, header ...string) {
		t.Helper()
		r := c.do(method, path, body, header...)
		outputs.WriteString(r.body)
		for k, v := range r.header {
			fmt.Fprintln(&outputs, k, v)
		}
	}
	wrong := *alice
	wrong.pass = secret("wrong")
	strange := *alice
	strange.user, strange.pass = "nobody", secret("strange")
	for _, c := range []*client{alice, &wrong, &strange} {
		answer(c, "PUT", "/docs/f", "content")
		answer(c, "GET", "/docs/f", "")
		answer(c, "PROPFIND", "/docs", "", "Depth: 1")
		answer(c, "PROPFIND", "/docs", "<broken", "Depth: 1")
		answer(c, "LOCK", "/docs/f", `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`)
		answer(c, "MOVE", "/docs/f", "", "Destination: http://alice:"+url.QueryEscape(secret("destination"))+"@"+b.http+"/dav/docs/g")
		answer(c, "GET", "/docs/missing", "", "Cookie: session="+secret("cookie"))
		answer(c, "BREW", "/docs/f", "", "Authorization: Bearer "+secret("bearer"))
	}
	for _, line := range []string{"GET /dav/docs/f?password=" + secret("query"), "GET /public/" + secret("link"), "GET /setup?token=" + secret("setup"), "GET /metrics"} {
		r, err := b.raw("", line, []string{"Authorization: Bearer " + secret("metrics")}, "")
		if err != nil {
			t.Fatal(err)
		}
		outputs.WriteString(r.body)
	}
	bad := strings.ReplaceAll(state, "profile: admin", "profile: king, pasword: "+secret("typo"))
	say(bad, "apply", "-f", "-")
	say(state+"\n  - broken: {"+secret("syntax"), "apply", "-f", "-")
	say(state, "apply", "-f", "-", "--json")
	say(secret("carol")+"\n", "user", "add", "carol", "--password-stdin")
	say(secret("carol2")+"\n", "user", "passwd", "carol", "--password-stdin", "--json")
	for _, args := range []string{"user list", "user show alice", "workspace list", "datasource show disk", "audit list", "audit export", "token list alice", "doctor", "fsck", "policy list", "group list"} {
		say("", append(strings.Fields(args), "--json")...)
	}
	printed := command{}.run(t, binary, "token", "create", "alice", "--label", "laptop", "--data", b.data)
	app := strings.TrimSpace(printed)
	alice.pass = app
	alice.want("GET", "/docs/", "", 200)

	proc := fmt.Sprintf("/proc/%d/", b.pid())
	texts := map[string]string{"outputs": outputs.String(), "cmdline": read(t, proc+"cmdline"), "environ": read(t, proc+"environ")}
	b.stop()
	texts["log"], texts["out"] = read(t, b.log), read(t, b.out)
	files := 0
	for _, dir := range []string{b.data, b.files} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(name)
			texts[name] = string(text)
			files++
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(texts["log"]) < 1000 || len(texts["outputs"]) < 1000 || files < 3 {
		t.Errorf("%d bytes of log, %d of outputs, %d files: this shows nothing", len(texts["log"]), len(texts["outputs"]), files)
	}
	for where, text := range texts {
		for _, canary := range []string{"CANARY-", app, url.QueryEscape(app)} {
			if at := strings.Index(text, canary); at >= 0 {
				t.Errorf("%s holds a secret: …%q", where, text[max(0, at-80):min(len(text), at+60)])
			}
		}
	}
}

// G04: a fresh box is closed: nothing of it is anybody else's to read, whatever the umask; there is no account, no profiler, no page for
// debugging, and the figures are for nobody.
func TestG04Fresh(t *testing.T) {
	t.Parallel()
	b := prepare(t)
	b.umask, b.args = 0, []string{"--tls", "self-signed", "--https", "127.0.0.1:0"}
	b.serve()
	private := func() {
		t.Helper()
		n := 0
		check := func(name string, info fs.FileInfo) {
			if n++; info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", name, info.Mode())
			}
		}
		err := filepath.WalkDir(b.data, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				check(name, info)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// Nobody gets past the door of the private area of a datasource.
		if info, err := os.Stat(filepath.Join(b.files, ".cellgate")); err == nil {
			check(info.Name(), info)
		}
		if n < 5 {
			t.Errorf("%d files: this shows nothing", n)
		}
	}
	private()
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/debug/pprof/profile", "/metrics", "/admin", "/api/v1/users", "/v1/users", "/.git/config", "/dav/../metrics", "/server-status"} {
		for _, host := range []string{"127.0.0.1", "localhost"} {
			r, err := b.raw("", "GET "+path, []string{"X-Forwarded-For: " + host, "Connection: close"}, "")
			if err != nil || r.status != 404 && r.status != 401 && r.status != 400 {
				t.Errorf("GET %s: %d %v", path, r.status, err)
			}
		}
	}
	for _, login := range []string{"admin", "root", "administrator", "cellgate", "guest", "anonymous", "test", "demo", "user", ""} {
		for _, pass := range []string{login, "", "admin", "password", "cellgate", "123456"} {
			c := b.as(login)
			c.pass = pass
			if r := c.do("PROPFIND", "/", "", "Depth: 0"); r.status != 401 && r.status != 429 {
				t.Errorf("%s with %q: %d", login, pass, r.status)
			}
		}
	}
	if users := b.cellgate("user", "list", "--json"); strings.TrimSpace(users) != "[]" {
		t.Errorf("a fresh box has users: %s", users)
	}
	if limits := read(t, fmt.Sprintf("/proc/%d/limits", b.pid())); !strings.Contains(strings.Join(strings.Fields(limits), " "), "Max core file size 0 0") {
		t.Errorf("it may dump its memory:\n%s", limits)
	}
	if n := strings.Count(read(t, b.log), "/setup?token="); n != 1 {
		t.Errorf("%d set-up links are printed, want 1", n)
	}
	b.apply(common)
	b.as("alice").want("PUT", "/docs/f", "f", 201)
	private()
	b.kill()
	b.serve()
	private()
	if n := strings.Count(read(t, b.log), "/setup?token="); n != 1 {
		t.Errorf("%d set-up links after a restart, want that of the first start alone", n)
	}
}
