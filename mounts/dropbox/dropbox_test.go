package dropbox_test

import (
	"testing"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/dropbox"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/mounttest"
)

// config returns what opens the service, with options as pairs of name and value.
func config(s *dropboxtest.Server, options ...string) mounts.Config {
	cfg := mounts.Config{
		Name: "box", Options: map[string]string{"api": s.URL},
		Credentials: map[string]secret.String{
			"appKey": secret.New(s.AppKey), "appSecret": secret.New(s.AppSecret), "refreshToken": secret.New(s.RefreshToken),
		},
	}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	return cfg
}

// open opens the service and closes the backend when the test ends.
func open(t testing.TB, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := dropbox.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func wantKind(t testing.TB, what string, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != want {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

// witnessed is a backend whose changes are watched by another one of the same folder, because a watch leaves out what its own backend did.
type witnessed struct {
	mounts.Backend
	mounts.Watcher
}

func (w witnessed) Unwrap() mounts.Backend { return w.Backend }

func TestConformance(t *testing.T) {
	for name, path := range map[string]string{"root": "", "folder": "/Team/Files"} {
		t.Run(name, func(t *testing.T) {
			mounttest.Run(t, func(t *testing.T) mounts.Backend {
				s := dropboxtest.Start(t, dropboxtest.Config{})
				if path != "" {
					s.Mkdir("/Team/Files")
				}
				return witnessed{open(t, config(s, "path", path)), open(t, config(s, "path", path)).(mounts.Watcher)}
			})
		})
	}
}

func BenchmarkDropbox(b *testing.B) {
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return open(b, config(dropboxtest.Start(b, dropboxtest.Config{})))
	})
}
