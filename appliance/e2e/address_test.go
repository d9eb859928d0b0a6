package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/mounts"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
)

// condition is what a datasource is said to be, and why.
func (b *box) condition(name string) (state, reason string) {
	b.t.Helper()
	var d struct{ State, Reason string }
	if err := json.Unmarshal([]byte(b.cellgate("datasource", "show", name, "--json")), &d); err != nil {
		b.t.Fatal(err)
	}
	return d.State, d.Reason
}

// B01: a user who completes a datasource cannot make the box connect to itself or to what only it can reach, however the address is written,
// unless an admin allowed it; nor can a server send the box there.
func TestB01Addresses(t *testing.T) {
	t.Parallel()
	k := startKind(t, "webdav")
	link := netfault.New(t, k.addr())
	templates := `
templates:
  - {name: own-dav, driver: webdav, asks: [url, username, password], to: ["group:/"]}
  - {name: own-ftp, driver: ftp, asks: [host, port], to: ["group:/"]}
  - {name: own-sftp, driver: sftp, asks: [host, port, username, password], to: ["group:/"]}
  - {name: own-smb, driver: smb, options: {share: x}, asks: [host, port, username, password], to: ["group:/"]}
  - {name: own-cloud, driver: s3, options: {bucket: bucket}, asks: [endpoint, accessKey, secretKey], to: ["group:/"]}
  - {name: own-box, driver: dropbox, asks: [api, token], to: ["group:/"]}
`
	login := fmt.Sprintf("username=%s\npassword=%s\n", k.secrets["username"], k.secrets["password"])
	b := start(t, common+templates)
	complete := func(template, values string) (string, error) {
		return command{stdin: values}.try(t, binary, "datasource", "template", "complete", template, "alice", "--data", b.data)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(link.Port)
	hosts := []string{"127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2130706433", "0x7f000001", "127.1", "localhost", "localhost.", hostname}
	if testing.Short() {
		hosts = hosts[:6]
	}
	for i, host := range hosts {
		in := host
		if strings.Contains(host, ":") {
			in = "[" + host + "]"
		}
		values := map[string]string{
			"own-dav": "url=http://" + in + ":" + port + "/dav/\n" + login, "own-ftp": "host=" + host + "\nport=" + port + "\n",
			"own-sftp": "host=" + host + "\nport=" + port + "\nusername=u\npassword=p\n", "own-smb": "host=" + host + "\nport=" + port + "\nusername=u\npassword=p\n",
			"own-cloud": "endpoint=http://" + in + ":" + port + "\naccessKey=a\nsecretKey=b\n", "own-box": "api=http://" + in + ":" + port + "\ntoken=t\n",
		}
		for template, text := range values {
			if i > 5 && template != "own-dav" {
				continue // the forms of names are the resolver's, and the same to all
			}
			out, err := complete(template, text)
			// Some forms are no host at all to the driver, or none that a resolver knows; what is dialled in the end is refused in words.
			literal := i < 6 || host == "localhost" || host == hostname
			switch {
			case err == nil && strings.Contains(out, "may not be dialled") && (strings.Contains(out, "down") || strings.Contains(out, "unavailable")):
			case err != nil && strings.Contains(out, "option"), !literal && !strings.Contains(out, "\tup") && !strings.Contains(out, " up\n"):
			default:
				t.Errorf("%s at %s: %v %s", template, host, err, out)
			}
		}
	}
	for _, url := range []string{"file:///etc/passwd", "gopher://127.0.0.1:70/", "unix:///run/x", "http://127.0.0.1\r\nX: y/", "//127.0.0.1/"} {
		if out, err := complete("own-dav", "url="+url+"\n"+login); err == nil && !strings.Contains(out, "may not be dialled") {
			t.Errorf("%q: %s", url, out)
		}
	}
	if n := link.Connections(); n > 0 {
		t.Fatalf("%d connections reached this machine", n)
	}
	// The same, allowed.
	b.stop()
	b.env = []string{"CELLGATE_OUTBOUND_ALLOW=127.0.0.1"}
	b.serve()
	if out, err := complete("own-dav", "url=http://127.0.0.1:"+port+"/dav/\n"+login); err != nil || !strings.Contains(out, "up") {
		t.Errorf("where it is allowed: %v %s", err, out)
	}
	b.as("alice").want("PUT", "/own-dav-alice/f", "x", 201)
	if out, err := complete("own-dav", "url=http://127.0.0.2:"+port+"/dav/\n"+login); err != nil || !strings.Contains(out, "may not be dialled") {
		t.Errorf("where another is allowed: %v %s", err, out)
	}
}

// B01: a server that redirects is not followed to another port of this machine, not even where its own address is an admin's.
func TestB01Redirect(t *testing.T) {
	t.Parallel()
	var reached atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(other.Close)
	b := start(t, common)
	for _, status := range []int{301, 302, 303, 307, 308} {
		var asked atomic.Int32
		sender := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			w.Header().Set("Location", other.URL+r.URL.Path)
			w.WriteHeader(status)
		}))
		t.Cleanup(sender.Close)
		for driver, rest := range map[string]string{
			"webdav": "options: {url: \"" + sender.URL + "/dav/\"}", "s3": "options: {endpoint: \"" + sender.URL + "\", bucket: bucket}, credentials: {accessKey: a, secretKey: b}",
			"dropbox": "options: {api: \"" + sender.URL + "\"}, credentials: {token: t}",
		} {
			name := fmt.Sprintf("%s%d", driver, status)
			b.apply("datasources: [{name: " + name + ", driver: " + driver + ", " + rest + "}]")
			if state, reason := b.condition(name); state != "down" || asked.Load() == 0 {
				t.Errorf("%s is %s: %s (asked %d times)", name, state, reason, asked.Load())
			} else if driver == "webdav" && !strings.Contains(reason, "redirects") {
				t.Errorf("%s does not say why: %s", name, reason)
			}
		}
	}
	if reached.Load() > 0 {
		t.Errorf("%d requests were sent where a server wanted them", reached.Load())
	}
}

// B04: a certificate that nobody vouches for, that has expired or that is for another name is refused, and what the state says to do heals it.
func TestB04Certificates(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	pin := regexp.MustCompile(`tlsPin: (sha256:[0-9a-f]{64})`)
	for name, opt := range map[string]servertest.CertOptions{"unknown": {}, "expired": {Expired: true}, "another": {Host: "elsewhere.example.org"}} {
		cert := servertest.NewCert(t, opt)
		dav, s3, ftp := servertest.WebDAVOptions{Cert: &cert}, servertest.S3Options{Cert: &cert}, servertest.FTPOptions{Kind: "proftpd", TLS: "explicit", Cert: cert}
		for driver, cfg := range map[string]mounts.Config{
			"webdav": servertest.WebDAVConfig(servertest.Apache(t, dav), dav), "s3": servertest.S3Config(servertest.S3(t, s3), s3),
			"ftp": servertest.FTPConfig(servertest.FTP(t, ftp), ftp),
		} {
			k := &kind{driver: driver, options: cfg.Options, secrets: map[string]string{}}
			for key, v := range cfg.Credentials {
				k.secrets[key] = v.Reveal()
			}
			ds := driver + "-" + name
			put := func(option, value string) (state, reason string) {
				delete(k.options, "ca")
				if option != "" {
					k.options[option] = value
				}
				b.apply("datasources: [" + k.datasource(ds) + "]")
				return b.condition(ds)
			}
			state, reason := put("", "")
			found := pin.FindStringSubmatch(reason)
			if state != "down" || !strings.Contains(reason, "option ca") || found == nil {
				t.Errorf("%s: %s, %s", ds, state, reason)
				continue
			}
			state, reason = put("ca", cert.CA)
			if vouched := name == "unknown"; vouched != (state == "up") {
				t.Errorf("%s with its authority: %s, %s", ds, state, reason)
			}
			if state, reason = put("tlsPin", "sha256:"+strings.Repeat("00", 32)); state != "down" || !strings.Contains(reason, "change the option tlsPin") {
				t.Errorf("%s with another pin: %s, %s", ds, state, reason)
			}
			if state, reason = put("tlsPin", found[1]); state != "up" {
				t.Errorf("%s with the pin that was told: %s, %s", ds, state, reason)
			}
		}
	}
}

// B04: an SSH server with another host key than before is refused, also after a restart, until somebody says that it is right.
func TestB04HostKey(t *testing.T) {
	t.Parallel()
	user, first, second := servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, ""), servertest.NewSFTPKey(t, "")
	opt := servertest.SFTPOptions{Port: servertest.Port(t), HostKey: &first, UserKeys: []servertest.SFTPKey{user}}
	server := servertest.SFTP(t, opt)
	cfg := servertest.SFTPConfig(server, user)
	k := &kind{name: "sftp", driver: "sftp", options: cfg.Options, secrets: map[string]string{"username": server.User, "privateKey": user.Private}, server: server}
	b := start(t, k.state())
	alice := b.as("alice")
	alice.want("PUT", "/docs/f", "before", 201)
	k.kill(t)
	opt.Root, opt.HostKey = server.Root, &second
	k.server = servertest.SFTP(t, opt)
	refused := func() {
		t.Helper()
		var state, reason string
		eventually(t, 20*time.Second, "the changed key is noticed", func() bool {
			state, reason = b.condition("far")
			return state == "down" && strings.Contains(reason, "host key")
		})
		if !strings.Contains(reason, "hostKey") || !strings.Contains(reason, strings.Fields(second.Public)[1]) {
			t.Errorf("the state does not say what to do: %s", reason)
		}
		if r := alice.do("PUT", "/docs/g", "x"); r.status != 503 && r.status != 504 {
			t.Errorf("PUT to a stranger: %d", r.status)
		}
	}
	refused()
	b.stop()
	b.serve()
	refused()
	if out := b.cellgate("datasource", "forget", "far"); !strings.Contains(out, "up") {
		t.Errorf("forgotten: %s", out)
	}
	if got := alice.want("GET", "/docs/f", "", 200); got.body != "before" {
		t.Errorf("the file is %q", got.body)
	}
	// Pinned by the option instead, the first key is refused however often it is forgotten.
	k.options["hostKey"] = first.Public
	b.apply("datasources: [" + k.datasource("far") + "]")
	refused()
	if out := b.cellgate("datasource", "forget", "far"); !strings.Contains(out, "down") {
		t.Errorf("a pinned key was forgotten: %s", out)
	}
	k.options["hostKey"] = second.Public
	b.apply("datasources: [" + k.datasource("far") + "]")
	alice.want("GET", "/docs/f", "", 200)
}
