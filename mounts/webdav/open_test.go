package webdav_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
	"cellgate/mounts/webdav"
)

func TestCheck(t *testing.T) {
	secrets := func(kv ...string) map[string]secret.String {
		m := map[string]secret.String{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = secret.New(kv[i+1])
		}
		return m
	}
	for _, test := range []struct {
		name        string
		options     map[string]string
		credentials map[string]secret.String
		want        []string // words of each problem
	}{
		{"fine", map[string]string{"url": "https://[::1]:8443/a%20b/", "timeout": "5s", "connections": "4", "put": "direct"}, secrets("username", "a", "password", "b"), nil},
		{"empty", nil, nil, []string{"url is missing"}},
		{"userinfo", map[string]string{"url": "https://ann:geheim@h/"}, nil, []string{"holds a user name"}},
		{"scheme", map[string]string{"url": "ftp://h/"}, nil, []string{"begins with https"}},
		{"query", map[string]string{"url": "http://h/?x"}, nil, []string{"%3F"}},
		{"dots", map[string]string{"url": "http://h/a/%2e%2e/b"}, nil, []string{"path that is none"}},
		{"control", map[string]string{"url": "http://h/a%0ab"}, nil, []string{"path that is none"}},
		{"several", map[string]string{"url": "http://h", "uri": "x", "auth": "ntlm", "timeout": "soon", "connections": "0", "put": "x", "tlsInsecure": "maybe", "ca": "x"}, nil,
			[]string{`"uri"`, "ntlm", `put is`, "tlsInsecure", "no certificate", "duration", "connections"}},
		{"no name", map[string]string{"url": "http://h", "auth": "basic"}, secrets("password", "geheim"), []string{"needs a username", "no username"}},
		{"no token", map[string]string{"url": "http://h", "auth": "bearer"}, secrets("key", "x"), []string{`"key"`, "needs a token"}},
		{"colon", map[string]string{"url": "http://h"}, secrets("username", "a:b"), []string{"colon"}},
		{"line", map[string]string{"url": "http://h"}, secrets("username", "a\nX"), []string{"control character"}},
	} {
		cfg := mounts.Config{Name: "dav", Options: test.options, Credentials: test.credentials}
		errs := webdav.Driver().Check(cfg)
		if len(errs) != len(test.want) {
			t.Errorf("%s: %v; want %q", test.name, errs, test.want)
			continue
		}
		for i, err := range errs {
			if !strings.Contains(err.Error(), test.want[i]) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%s: %v; want %q", test.name, err, test.want[i])
			}
		}
		if len(errs) > 0 {
			refused(t, cfg, fault.Invalid)
		}
	}
}

func TestOpenFails(t *testing.T) {
	for _, auth := range []string{"basic", "digest"} {
		o := servertest.WebDAVOptions{Auth: auth}
		s := servertest.Apache(t, o)
		cfg := servertest.WebDAVConfig(s, o)
		mount(t, with(cfg, "auth", auth))
		refused(t, as(cfg, s.User, "wrong"), fault.Unauthenticated, "ann", "password")
		refused(t, as(cfg, "mallory", s.Password), fault.Unauthenticated, "mallory")
		anonymous := cfg
		anonymous.Credentials = nil
		refused(t, anonymous, fault.Unauthenticated, "asks for a user name")
		token := cfg
		token.Credentials = map[string]secret.String{"token": secret.New("geheim")}
		refused(t, token, fault.Unauthenticated, "token")
		refused(t, with(cfg, "url", "http://"+s.Addr+"/dav/none"), fault.NotExist, "make it there")
		if err := os.WriteFile(filepath.Join(s.Root, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, with(cfg, "url", "http://"+s.Addr+"/dav/file"), fault.NotDir)
		refused(t, with(cfg, "url", "https://"+s.Addr+"/dav/"), fault.Unavailable, "http://")
		refused(t, with(cfg, "url", "http://127.0.0.1:1/dav/"), fault.Unavailable, "is the server up")
		refused(t, with(cfg, "url", "http://"+s.Addr+"/"), fault.Unsupported, "does not speak WebDAV")
	}
	refused(t, mounts.Config{Options: map[string]string{"url": "http://no-such-host.invalid/"}}, fault.Unavailable, "host")
	for _, page := range []int{200, 404, 405, 501} {
		plain := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(page)
			io.WriteString(w, "<html>a page</html>")
		}))
		kind := fault.Unsupported
		if page == 404 {
			kind = fault.NotExist
		}
		refused(t, plain, kind)
	}
}

func TestBearer(t *testing.T) {
	h := disk(t)
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer geheim" {
			w.Header().Set("Www-Authenticate", `Basic realm="x", Bearer realm="y"`)
			w.WriteHeader(401)
			return
		}
		h.ServeHTTP(w, r)
	}))
	cfg.Credentials = map[string]secret.String{"token": secret.New("geheim")}
	for _, auth := range []string{"auto", "bearer"} {
		b := mount(t, with(cfg, "auth", auth))
		put(t, b, "f", "hello")
		holds(t, b, "f", "hello")
	}
}

// TestB04Certificates: what is not proven is refused by default, in words that help.
func TestB04Certificates(t *testing.T) {
	good := servertest.NewCert(t, servertest.CertOptions{})
	expired := servertest.NewCert(t, servertest.CertOptions{Expired: true})
	other := servertest.NewCert(t, servertest.CertOptions{Host: "other.example"})
	config := func(cert *servertest.Cert) mounts.Config {
		o := servertest.WebDAVOptions{Cert: cert, Auth: "basic"}
		return servertest.WebDAVConfig(servertest.Apache(t, o), o)
	}
	cfg := config(&good)
	put(t, mount(t, cfg), "f", "hello")
	mount(t, with(with(cfg, "ca", ""), "tlsInsecure", "true"))
	refused(t, with(cfg, "ca", ""), fault.Unavailable, "option ca", "tlsPin: sha256:")
	_, err := webdav.Driver().Open(t.Context(), with(cfg, "ca", ""))
	pin := err.Error()[strings.Index(err.Error(), "sha256:"):][:len("sha256:")+64]
	mount(t, with(with(cfg, "ca", ""), "tlsPin", pin))
	refused(t, with(cfg, "tlsPin", "sha256:"+strings.Repeat("0", 64)), fault.Unavailable, "not the pinned one")
	refused(t, with(cfg, "ca", other.CA), fault.Unavailable, "option ca")
	refused(t, config(&expired), fault.Unavailable, "expired")
	wrong := config(&other)
	refused(t, with(wrong, "url", strings.Replace(wrong.Options["url"], "127.0.0.1", "localhost", 1)), fault.Unavailable, "other.example", "not localhost")
}

// TestB01Redirect: what a server says leads nowhere but to itself, and nothing of it is shown.
func TestB01Redirect(t *testing.T) {
	const canary = "canary-of-another-service"
	var reached atomic.Int32
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		w.WriteHeader(207)
		io.WriteString(w, canary)
	}))
	defer victim.Close()
	h := disk(t)
	var to atomic.Pointer[string]
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := to.Load(); p != nil {
			w.Header().Set("Location", *p)
			w.WriteHeader(307)
			io.WriteString(w, canary)
			return
		}
		h.ServeHTTP(w, r)
	}))
	b := mount(t, cfg)
	put(t, b, "f", "hello")
	port := cfg.Options["url"][strings.LastIndex(cfg.Options["url"], ":"):]
	for _, target := range []string{
		victim.URL + "/dav/f", strings.Replace(victim.URL, "127.0.0.1", "localhost", 1), "http://169.254.169.254/latest", "//" + victim.Listener.Addr().String() + "/", "file:///etc/passwd",
		"gopher://127.0.0.1/", "https://127.0.0.1" + port, "http://[::ffff:127.0.0.1]" + port, "http://2130706433" + port, "", "?x", "/dav/f?x", "/dav/f",
	} {
		to.Store(&target)
		calls := map[string]error{}
		_, calls["Stat"] = b.Stat(t.Context(), "f")
		_, calls["Open"] = b.Open(t.Context(), "f", 0, -1)
		_, calls["Put"] = mounts.WriteFile(t.Context(), b, "f", []byte(strings.Repeat("x", 300_000)))
		calls["Rename"] = b.Rename(t.Context(), "f", "g")
		calls["Purge"] = b.(mounts.Purger).Purge(t.Context(), "f")
		for _, err := range b.List(t.Context(), ".") {
			calls["List"] = err
		}
		_, calls["driver.Open"] = webdav.Driver().Open(t.Context(), cfg)
		for op, err := range calls {
			if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "169.254") {
				t.Errorf("%s redirected to %q: %v", op, target, err)
			}
		}
	}
	if n := reached.Load(); n > 0 {
		t.Errorf("the other service was asked %d times", n)
	}
	to.Store(nil)
	holds(t, b, "f", "hello")
	guest := cfg
	guest.Guest = true
	refused(t, guest, fault.Denied, dial.ErrRefused.Error())
	t.Run("own", func(t *testing.T) { // within the server it is followed
		moved := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if path, ok := strings.CutPrefix(r.URL.Path, "/old"); ok {
				w.Header().Set("Location", "/dav"+path)
				w.WriteHeader(308)
				return
			}
			h.ServeHTTP(w, r)
		}))
		b := mount(t, with(moved, "url", strings.TrimSuffix(moved.Options["url"], "dav")+"old"))
		holds(t, b, "f", "hello")
		put(t, b, "g", strings.Repeat("x", 600_000))
		holds(t, b, "g", strings.Repeat("x", 600_000))
		if got := names(t, b, "."); len(got) != 2 {
			t.Errorf("listed %q", got)
		}
	})
}
