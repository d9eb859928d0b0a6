package webdav_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// TestExpect: an upload that cannot be sent again waits for the server's consent where it may yet be asked for a signature, or the connection
// was idle, and else goes at once.
func TestExpect(t *testing.T) {
	user := map[string]secret.String{"username": secret.New("ann"), "password": secret.New("pw")}
	for _, c := range []struct {
		name      string
		login     map[string]secret.String
		challenge string
		rest      time.Duration // before the upload
		want      string
	}{
		{"nobody", nil, "", 0, ""},
		{"basic", user, `Basic realm="r"`, 0, ""},
		{"digest", user, `Digest realm="r", nonce="n", qop="auth"`, 0, "100-continue"},
		{"not asked yet", user, "", 0, "100-continue"},
		{"idle", nil, "", 1100 * time.Millisecond, "100-continue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var expects []string
			h := disk(t)
			cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.challenge != "" && r.Header.Get("Authorization") == "" {
					w.Header().Set("Www-Authenticate", c.challenge)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				if r.Method == http.MethodPut {
					mu.Lock()
					expects = append(expects, r.Header.Get("Expect"))
					mu.Unlock()
				}
				h.ServeHTTP(w, r)
			}))
			cfg.Credentials = c.login
			b := mount(t, with(cfg, "put", "direct"))
			for deadline := time.Now().Add(30 * time.Second); ; { // more than once, for on a busy machine any connection may have been idle
				time.Sleep(c.rest)
				put(t, b, "f", strings.Repeat("x", 1<<20))
				mu.Lock()
				got := expects[len(expects)-1]
				mu.Unlock()
				if got == c.want {
					break
				}
				if c.want != "" || time.Now().After(deadline) {
					t.Fatalf("Expect: %q, want %q", got, c.want)
				}
			}
			holds(t, b, "f", strings.Repeat("x", 1<<20))
		})
	}
}

// TestLargeRefused: a large upload that cannot be tells why, and leaves everything as it was.
func TestLargeRefused(t *testing.T) {
	large := strings.Repeat("x", 8<<20)
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx, "rclone": servertest.RcloneWebDAV} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := mount(t, servertest.WebDAVConfig(begin(t, servertest.WebDAVOptions{}), servertest.WebDAVOptions{}))
			if err := b.Mkdir(t.Context(), "d"); err != nil {
				t.Fatal(err)
			}
			put(t, b, "d/f", "old")
			for range 5 {
				for target, want := range map[string]fault.Kind{"d": fault.IsDir, "none/f": fault.NotExist, "d/f/below": fault.NotDir} {
					_, err := b.Put(t.Context(), target, strings.NewReader(large), mounts.PutOptions{Size: int64(len(large))})
					if fault.KindOf(err) != want || err == nil {
						t.Errorf("Put(%s): %v; want %v", target, err, want)
					}
				}
			}
			holds(t, b, "d/f", "old")
		})
	}
}
