package webdav_test

import (
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	xwebdav "golang.org/x/net/webdav"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
	"cellgate/mounts/webdav"
)

// fresh opens an empty folder of the server.
func fresh(t testing.TB, s *servertest.Server, cfg mounts.Config) mounts.Backend {
	t.Helper()
	root := mount(t, cfg)
	name := rand.Text()
	if err := root.Mkdir(t.Context(), "a "+name); err != nil {
		t.Fatal(err)
	}
	return mount(t, with(cfg, "url", cfg.Options["url"]+"a%20"+name))
}

// mount opens cfg and fails the test if that does not work.
func mount(t testing.TB, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := webdav.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// with is cfg with one option changed, or left out when the value is empty.
func with(cfg mounts.Config, option, value string) mounts.Config {
	cfg.Options = maps.Clone(cfg.Options)
	cfg.Options[option] = value
	if value == "" {
		delete(cfg.Options, option)
	}
	return cfg
}

// as is cfg with other credentials.
func as(cfg mounts.Config, user, password string) mounts.Config {
	cfg.Credentials = map[string]secret.String{"username": secret.New(user), "password": secret.New(password)}
	return cfg
}

// refused opens cfg, which must fail with kind and all of the words, and without the password.
func refused(t *testing.T, cfg mounts.Config, kind fault.Kind, words ...string) {
	t.Helper()
	start := time.Now()
	b, err := webdav.Driver().Open(t.Context(), cfg)
	if err == nil {
		b.Close()
		t.Fatalf("Open works; want %v", kind)
	}
	if fault.KindOf(err) != kind {
		t.Errorf("Open: %v; want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("Open: %v; want %q in it", err, w)
		}
	}
	for _, key := range []string{"password", "token"} {
		if p := cfg.Credentials[key].Reveal(); p != "" && strings.Contains(err.Error(), p) {
			t.Errorf("Open tells the %s: %v", key, err)
		}
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("Open took %v", took)
	}
}

// want fails the test unless err is of the kind.
func want(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind {
		t.Errorf("%s: %v; want %v", what, err, kind)
	}
}

// serve runs h on this machine until the test ends, and returns a config for it.
func serve(t testing.TB, h http.Handler) mounts.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return mounts.Config{Name: "dav", Options: map[string]string{"url": "http://" + l.Addr().String() + "/dav"}}
}

// disk is a server made of x/net/webdav, which is what many are.
func disk(t testing.TB) http.Handler {
	return &xwebdav.Handler{Prefix: "/dav", FileSystem: xwebdav.Dir(t.TempDir()), LockSystem: xwebdav.NewMemLS()}
}

// put puts text and fails the test if that does not work.
func put(t testing.TB, b mounts.Backend, name, text string) {
	t.Helper()
	if _, err := mounts.WriteFile(t.Context(), b, name, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// holds fails the test unless the file holds text.
func holds(t testing.TB, b mounts.Backend, name, text string) {
	t.Helper()
	r, err := b.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Errorf("Open(%s): %v", name, err)
		return
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != text {
		t.Errorf("%s holds %d bytes, %v; want %d", name, len(got), err, len(text))
	}
}

// names lists dir.
func names(t testing.TB, b mounts.Backend, dir string) (all []string) {
	t.Helper()
	for info, err := range b.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != mounts.Area {
			all = append(all, info.Name)
		}
	}
	return all
}

// steady fails the test when goroutines are left behind once it has ended.
func steady(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines, were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}
