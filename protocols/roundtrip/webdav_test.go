package roundtrip

import (
	"crypto/rand"
	"net"
	"net/http"
	"strings"
	"testing"

	"cellgate/gateway/gatewaytest"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	davdriver "cellgate/mounts/webdav"
	"cellgate/protocols/webdav"
)

// mark is how the gateway tells its own driver what it is, see the package comment of mounts/webdav.
const mark = "<urn:cellgate:dav:1>"

// TestWebDAV runs the suite on the server as any other, and as one that says that it is this gateway.
func TestWebDAV(t *testing.T) {
	for _, marked := range []bool{false, true} {
		t.Run(map[bool]string{false: "unknown", true: "marked"}[marked], func(t *testing.T) {
			if testing.Short() && !marked {
				t.Skip("the longer half")
			}
			house := gatewaytest.New(t, gatewaytest.Config{})
			h, err := webdav.New(webdav.Config{Gateway: house.Gateway, Identity: house.Identity})
			if err != nil {
				t.Fatal(err)
			}
			cfg := mounts.Config{Options: map[string]string{"url": serve(t, mask(h, marked)) + "/dav/docs"}, Credentials: alice()}
			root := mount(t, cfg)
			if support := root.Features().ConditionalWrite; (support == mounts.Native) != marked {
				t.Errorf("ConditionalWrite is %s", support)
			}
			mounttest.Run(t, func(t *testing.T) mounts.Backend {
				name := rand.Text()
				if err := root.Mkdir(t.Context(), name); err != nil {
					t.Fatal(err)
				}
				c := cfg
				c.Options = map[string]string{"url": cfg.Options["url"] + "/" + name}
				return mount(t, c)
			})
		})
	}
}

// mask keeps the handler from saying that it is this gateway, unless marked.
func mask(h http.Handler, marked bool) http.Handler {
	if marked {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(masked{w}, r)
	})
}

// masked changes the DAV header when the headers go out.
type masked struct{ http.ResponseWriter }

func (m masked) Unwrap() http.ResponseWriter { return m.ResponseWriter }

func (m masked) WriteHeader(status int) {
	h := m.Header()
	h.Set("Dav", strings.ReplaceAll(h.Get("Dav"), ", "+mark, ""))
	m.ResponseWriter.WriteHeader(status)
}

// serve runs h on this machine until the test ends and returns its address.
func serve(t *testing.T, h http.Handler) string {
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
	return "http://" + l.Addr().String()
}

func alice() map[string]secret.String {
	return map[string]secret.String{"username": secret.New("alice"), "password": secret.New(gatewaytest.Password)}
}

func mount(t *testing.T, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := davdriver.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}
