package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// TestOpenFails: what is wrong is said in words that help, without secrets.
func TestOpenFails(t *testing.T) {
	plain := servertest.S3(t, servertest.S3Options{})
	good := servertest.S3Config(plain, servertest.S3Options{})
	keys := func(cfg mounts.Config, id, key string) mounts.Config {
		cfg.Credentials = map[string]secret.String{"accessKey": secret.New(id), "secretKey": secret.New(key)}
		return cfg
	}
	closed := fmt.Sprintf("http://127.0.0.1:%d", servertest.Port(t))
	mute := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>It works!</html>") }))
	defer mute.Close()
	for name, test := range map[string]struct {
		cfg  mounts.Config
		kind fault.Kind
		word string
	}{
		"no server":        {with(good, "endpoint", closed), fault.Unavailable, "option endpoint"},
		"unknown host":     {with(good, "endpoint", "http://no-such-host.invalid:9000"), fault.Unavailable, "not known"},
		"no S3":            {with(good, "endpoint", mute.URL), fault.Unavailable, "S3"},
		"no bucket":        {with(good, "bucket", "no-such-bucket"), fault.NotExist, "no-such-bucket"},
		"no folder":        {with(good, "path", "no/such"), fault.NotExist, "no/such"},
		"unknown key":      {keys(good, "nobody", "testsecret0123456789"), fault.Unauthenticated, "accessKey"},
		"wrong secret":     {keys(good, "testaccess", "wrongwrongwrong"), fault.Unauthenticated, "secretKey"},
		"TLS to plain":     {with(good, "endpoint", "https://"+plain.Addr), fault.Unavailable, "http://"},
		"wrong region":     {with(good, "region", "eu-north-7"), fault.Invalid, "option region"},
		"link-local":       {with(good, "endpoint", "http://metadata.internal.169.254.169.254.nip.invalid"), fault.Unavailable, "endpoint"},
		"unknown option":   {with(good, "buckett", "x"), fault.Invalid, "buckett"},
		"userinfo":         {with(good, "endpoint", "http://me:hunter2@"+plain.Addr), fault.Invalid, "option endpoint"},
		"a path":           {with(good, "endpoint", "http://"+plain.Addr+"/x"), fault.Invalid, "option endpoint"},
		"another protocol": {with(good, "endpoint", "file:///etc/passwd"), fault.Invalid, "option endpoint"},
	} {
		b, err := Open(t.Context(), test.cfg)
		if err == nil {
			b.Close()
		}
		if err == nil || fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%s: %v; want %v, saying %q", name, err, test.kind, test.word)
		}
		for _, word := range []string{"wrongwrongwrong", "testsecret", "hunter2"} {
			if err != nil && strings.Contains(err.Error(), word) {
				t.Errorf("%s: a secret is in %q", name, err)
			}
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ended, good); fault.KindOf(err) != fault.Canceled {
		t.Errorf("Open with an ended context: %v; want Canceled", err)
	}
}

// TestCheck names every problem at once.
func TestCheck(t *testing.T) {
	errs := Driver().Check(mounts.Config{
		Options: map[string]string{"endpoint": "ftp://x", "bucket": "x", "style": "y", "timeout": "z", "connections": "0", "partSize": "1", "sse": "rot13",
			"ca": "x", "tlsPin": "y", "tlsInsecure": "maybe", "path": "a/../b", "more": ""},
		Credentials: map[string]secret.String{"password": secret.New("x")},
	})
	all := fmt.Sprint(errs)
	for _, word := range []string{"endpoint", "bucket", "style", "timeout", "connections", "partSize", "sse", "ca ", "tlsInsecure", "path", "more", "password", "accessKey", "secretKey"} {
		if !strings.Contains(all, word) {
			t.Errorf("%q is not among the problems: %s", word, all)
		}
	}
	s, errs := parse(mounts.Config{
		Options: map[string]string{"endpoint": "https://s3.example.com", "bucket": "my-bucket", "style": "virtual", "timeout": "5s", "partSize": "16 MiB",
			"sse": "aws:kms:key-id", "path": "/a/b/", "connections": "4"},
		Credentials: map[string]secret.String{"accessKey": secret.New("x"), "secretKey": secret.New("y")},
	})
	if len(errs) > 0 || s.prefix != "a/b/" || s.partSize != 16<<20 || s.dialHost() != "my-bucket.s3.example.com" || !s.secure() || s.sse == nil {
		t.Errorf("%+v, %v", s, errs)
	}
}

// TestCertificates: what is not signed by whom it should be is refused, in words that tell how to trust it.
func TestCertificates(t *testing.T) {
	t.Parallel()
	cert := servertest.NewCert(t, servertest.CertOptions{})
	expired := servertest.NewCert(t, servertest.CertOptions{Expired: true})
	other := servertest.NewCert(t, servertest.CertOptions{Host: "other.example.com"})
	pin := func(c servertest.Cert) string {
		text, err := os.ReadFile(c.CertFile)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		sum := sha256.Sum256(block.Bytes)
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	for name, test := range map[string]struct {
		cert    servertest.Cert
		options []string
		word    string // "": it is trusted
	}{
		"self-signed":      {cert, []string{"ca", ""}, "tlsPin: sha256:"},
		"another ca":       {cert, []string{"ca", other.CA}, "option ca"},
		"expired":          {expired, []string{"ca", expired.CA}, "expired"},
		"another name":     {other, []string{"ca", other.CA}, "for 127.0.0.1"},
		"another pin":      {cert, []string{"ca", "", "tlsPin", pin(other)}, "tlsPin"},
		"pinned":           {cert, []string{"ca", "", "tlsPin", pin(cert)}, ""},
		"pinned, expired":  {expired, []string{"ca", "", "tlsPin", pin(expired)}, ""},
		"insecure":         {other, []string{"ca", "", "tlsInsecure", "true"}, ""},
		"signed by the ca": {cert, []string{"ca", cert.CA}, ""},
	} {
		opt := servertest.S3Options{Cert: &test.cert}
		b, err := Open(t.Context(), with(servertest.S3Config(servertest.S3(t, opt), opt), test.options...))
		if err == nil {
			b.Close()
		}
		if test.word == "" && err != nil || test.word != "" && (fault.KindOf(err) != fault.Unavailable || !strings.Contains(fmt.Sprint(err), test.word)) {
			t.Errorf("%s: %v; want it to say %q", name, err, test.word)
		}
	}
	opt := servertest.S3Options{Cert: &cert}
	server := servertest.S3(t, opt)
	if _, err := Open(t.Context(), with(servertest.S3Config(server, opt), "ca", "", "endpoint", "http://"+server.Addr)); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("plain to TLS: %v; want Unavailable", err)
	}
}

// TestB01Redirect: a server that sends requests elsewhere is not followed, also not to where it could be reached.
func TestB01Redirect(t *testing.T) {
	var reached atomic.Int32
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached.Add(1) }))
	defer inner.Close()
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	for _, status := range []int{301, 302, 303, 307, 308} {
		f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", inner.URL+r.URL.Path)
			w.WriteHeader(status)
			return true
		})
		_, statErr := b.Stat(t.Context(), "f")
		_, openErr := b.Open(t.Context(), "f", 0, -1)
		_, putErr := mounts.WriteFile(t.Context(), b, "f", []byte("x"))
		_, newErr := Open(t.Context(), f.config())
		for _, err := range []error{statErr, openErr, putErr, newErr} {
			if err == nil || fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "endpoint") {
				t.Errorf("%d: %v; want Unavailable, saying endpoint", status, err)
			}
		}
	}
	if reached.Load() > 0 {
		t.Errorf("a redirect was followed %d times", reached.Load())
	}
}

// TestB01Private: a name that leads to this machine is not dialled, unless it was allowed.
func TestB01Private(t *testing.T) {
	f := newFake(t, false)
	cfg := f.config()
	cfg.Guest = true
	if _, err := Open(t.Context(), cfg); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "may not be dialled") {
		t.Errorf("a user's datasource on this machine: %v; want Denied", err)
	}
	cfg.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	opened(t, cfg, "")
}

// TestRegion: the region a server asks for is taken, unless an option says another.
func TestRegion(t *testing.T) {
	f := newFake(t, false)
	f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.Header.Get("Authorization"), "/eu-central-7/") {
			return false
		}
		w.WriteHeader(400)
		io.WriteString(w, "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message><Region>eu-central-7</Region></Error>")
		return true
	})
	b := opened(t, f.config(), "")
	mounttest.Script(t, b, `put f 1 -> ok`)
	if _, err := Open(t.Context(), with(f.config(), "region", "us-east-1")); fault.KindOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), "region") {
		t.Errorf("a wrong region: %v; want Invalid, saying region", err)
	}
}

// TestAbilities: what the server can is found out, remembered, and not asked for by who may not write.
func TestAbilities(t *testing.T) {
	f := newFake(t, false)
	cfg := remembering(f.config())
	for i := range 2 {
		b := opened(t, cfg, "")
		if feat := b.Features(); feat.ConditionalWrite != mounts.Native || feat.Hash != mounts.Native || !b.Versioned() {
			t.Errorf("Features = %+v", feat)
		}
		if n := len(f.requests()); i > 0 && n != 2 {
			t.Errorf("%d requests to open what is known, want 2", n)
		}
	}
	if keys := f.keys(); len(keys) > 0 || len(f.uploads) > 0 {
		t.Errorf("left are %q and %d uploads", keys, len(f.uploads))
	}
	readOnly := f.config()
	readOnly.ReadOnly = true
	b := opened(t, readOnly, "")
	if feat := b.Features(); feat.ConditionalWrite != mounts.Refused || feat.Hash != mounts.Refused || feat.AtomicReplace != mounts.Refused || len(f.requests()) != 2 {
		t.Errorf("a read-only datasource: %+v", feat)
	}
	mounttest.Script(t, b, `
		put f 1   -> ! permission denied
		mkdir d   -> ! permission denied
		rm f      -> ! permission denied
		mv f g    -> ! permission denied
	`)
	f.careless, f.odd = true, true
	if feat := opened(t, f.config(), "").Features(); feat.ConditionalWrite != mounts.Refused || feat.Hash != mounts.Refused {
		t.Errorf("a careless server: %+v", feat)
	}
	f.before.set(func(w http.ResponseWriter, r *http.Request) bool { // keys that may only read
		if r.Method == "PUT" {
			refuse(w, 403, "AccessDenied")
		}
		return r.Method == "PUT"
	})
	cfg = remembering(f.config())
	mounttest.Script(t, opened(t, cfg, ""), `put f 1 -> ! permission denied`)
	if len(cfg.Known) > 0 {
		t.Error("what could not be tried out is remembered")
	}
}

// TestVersioned runs on a bucket of the real server with versioning on.
func TestVersioned(t *testing.T) {
	opt := servertest.S3Options{Versioning: true}
	server := servertest.S3(t, opt)
	b := opened(t, servertest.S3Config(server, opt), "")
	if b.Versioned() {
		t.Error("versioned before it was")
	}
	if err := b.core.EnableVersioning(t.Context(), b.bucket); err != nil {
		t.Fatal(err)
	}
	b = opened(t, servertest.S3Config(server, opt), "")
	if !b.Versioned() {
		t.Error("not versioned")
	}
	mounttest.Script(t, b, `
		mkdir d   -> ok
		put d/f 1 -> ok
		put d/f 2 -> ok
		cat d/f   -> "2"
		rm d/f    -> ok
		ls d      -> 
		put d/f 3 -> ok
		mv d e    -> ok
		cat e/f   -> "3"
		stat d    -> ! does not exist
	`)
}

// TestVirtualStyle: the bucket goes into the host's name, and nothing but that host is dialled.
func TestVirtualStyle(t *testing.T) {
	f := newFake(t, false)
	cfg := with(f.config(), "style", "virtual", "endpoint", strings.Replace(f.URL, "127.0.0.1", "s3.example.com", 1))
	s, errs := parse(cfg)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	b := connect(cfg, s, "")
	defer b.Close()
	b.transport.base = roundTrip(func(r *http.Request) (*http.Response, error) {
		if !strings.HasPrefix(r.URL.Host, "bucket.s3.example.com:") {
			t.Errorf("the host is %s", r.URL.Host)
		}
		r.URL.Host, r.URL.Path = f.Listener.Addr().String(), "/bucket"+r.URL.Path
		r.URL.RawPath = ""
		return http.DefaultTransport.RoundTrip(r)
	})
	mounttest.Script(t, b, `
		put f 1 -> ok
		cat f   -> "1"
		ls .    -> f
	`)
}

type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestMayOnlyRead: a key that may read and not write is told so with every write, and reads.
func TestMayOnlyRead(t *testing.T) {
	server := servertest.S3(t, servertest.S3Options{})
	good := servertest.S3Config(server, servertest.S3Options{})
	owner := opened(t, good, "")
	mounttest.Script(t, owner, `
		mkdir d   -> ok
		put d/f 1 -> ok
	`)
	const user, key = "reader", "readersecret0123456789"
	made, err := exec.Command(servertest.Need(t, "versitygw"), "admin", "--access", server.User, "--secret", server.Password, "--endpoint-url", "http://"+server.Addr,
		"create-user", "--access", user, "--secret", key, "--role", "user").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, made)
	}
	policy := `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": ["reader"]},
		"Action": ["s3:GetObject", "s3:ListBucket"], "Resource": ["arn:aws:s3:::` + servertest.S3Bucket + `", "arn:aws:s3:::` + servertest.S3Bucket + `/*"]}]}`
	if err := owner.core.SetBucketPolicy(t.Context(), servertest.S3Bucket, policy); err != nil {
		t.Fatal(err)
	}
	cfg := good
	cfg.Credentials = map[string]secret.String{"accessKey": secret.New(user), "secretKey": secret.New(key)}
	readable := `
		ls .      -> d/
		ls d      -> f
		cat d/f   -> "1"
		stat d/f  -> file "f" 1
		stat e    -> ! does not exist
		put d/g 2 -> ! permission denied
		put d/f 2 -> ! permission denied
		mkdir e   -> ! permission denied
		rm d/f    -> ! permission denied
		mv d/f g  -> ! permission denied
		cat d/f   -> "1"
	`
	for _, readOnly := range []bool{false, true} {
		cfg.ReadOnly = readOnly
		b := opened(t, cfg, "")
		mounttest.Script(t, b, readable)
		if feat := b.Features(); feat.ConditionalWrite != mounts.Refused || feat.Hash != mounts.Refused {
			t.Errorf("what cannot be written to promises %+v", feat)
		}
	}
	// Who attaches it begins with a folder, and says what to do when that is Denied.
	cfg.ReadOnly = false
	b := opened(t, cfg, "")
	if err := b.Mkdir(t.Context(), mounts.Area); fault.KindOf(err) != fault.Denied || !strings.Contains(fmt.Sprint(err), "no right to do this") {
		t.Errorf("Mkdir of the area: %v; want Denied, saying that the key has no right", err)
	}
	mounttest.Script(t, owner, `
		ls .    -> d/
		ls d    -> f
		cat d/f -> "1"
	`)
}
