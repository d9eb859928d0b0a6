package dropbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/dropbox"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/servertest"
)

// TestErrorClasses: each refusal of Dropbox becomes the fault that says what it means.
func TestErrorClasses(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s, "timeout", "100ms"))
	ctx := t.Context()
	put := func() error { _, err := mounts.WriteFile(ctx, b, "new", []byte("x")); return err }
	stat := func() error { _, err := b.Stat(ctx, "f"); return err }
	mv := func() error { return b.Rename(ctx, "f", "g") }
	purge := func() error { return b.(mounts.Purger).Purge(ctx, "d") }
	for _, test := range []struct {
		route, tags string
		status      int
		do          func() error
		want        fault.Kind
	}{
		{"files/get_metadata", "path/not_found", 409, stat, fault.NotExist},
		{"files/get_metadata", "path/malformed_path", 409, stat, fault.Invalid},
		{"files/get_metadata", "path/restricted_content", 409, stat, fault.Denied},
		{"files/get_metadata", "path/locked", 409, stat, fault.Locked},
		{"files/get_metadata", "path/other", 409, stat, fault.Unavailable},
		{"files/get_metadata", "path/of_the_future", 409, stat, fault.Unavailable},
		{"files/get_metadata", "missing_scope", 401, stat, fault.Denied},
		{"files/get_metadata", "invalid_access_token", 401, stat, fault.Unauthenticated},
		{"files/get_metadata", "user_suspended", 401, stat, fault.Denied},
		{"files/get_metadata", "invalid_account_type/feature", 403, stat, fault.Denied},
		{"files/get_metadata", "", 400, stat, fault.Invalid},
		{"files/get_metadata", "", 307, stat, fault.Unavailable},
		{"files/get_metadata", "", 404, stat, fault.Unsupported},
		{"files/get_metadata", "", 429, stat, fault.Busy},
		{"files/get_metadata", "", 500, stat, fault.Unavailable},
		{"files/get_metadata", "", 503, stat, fault.Unavailable},
		{"files/upload", "path/conflict/file", 409, put, fault.Exist},
		{"files/upload", "path/conflict/folder", 409, put, fault.IsDir},
		{"files/upload", "path/conflict/file_ancestor", 409, put, fault.NotDir},
		{"files/upload", "path/disallowed_name", 409, put, fault.Invalid},
		{"files/upload", "path/no_write_permission", 409, put, fault.Denied},
		{"files/upload", "path/insufficient_space", 409, put, fault.NoSpace},
		{"files/upload", "path/too_many_write_operations", 409, put, fault.Busy},
		{"files/upload", "path/upload_traffic_limit_reached", 409, put, fault.Busy},
		{"files/upload", "path/operation_suppressed", 409, put, fault.Denied},
		{"files/upload", "payload_too_large", 409, put, fault.TooLarge},
		{"files/upload", "content_hash_mismatch", 409, put, fault.Corrupt},
		{"files/move_v2", "from_lookup/not_found", 409, mv, fault.NotExist},
		{"files/move_v2", "to/insufficient_space", 409, mv, fault.NoSpace},
		{"files/move_v2", "insufficient_quota", 409, mv, fault.NoSpace},
		{"files/move_v2", "too_many_files", 409, mv, fault.Unsupported},
		{"files/move_v2", "cant_move_shared_folder", 409, mv, fault.Denied},
		{"files/move_v2", "internal_error", 409, mv, fault.Unavailable},
		{"files/delete_v2", "too_many_files", 409, purge, fault.Unsupported},
		{"files/delete_v2", "path_write/team_folder", 409, purge, fault.Denied},
	} {
		s.Inject(dropboxtest.Fault{Route: test.route, Times: -1, Status: test.status, Tags: test.tags})
		wantKind(t, test.route+" "+test.tags, test.do(), test.want)
		s.Heal()
		// Only the summary is there, as behind some gateways.
		if test.status == 409 {
			s.Inject(dropboxtest.Fault{Route: test.route, Times: -1, Status: 409, Body: `{"error_summary":"` + test.tags + `/..."}`})
			wantKind(t, test.route+" summary "+test.tags, test.do(), test.want)
			s.Heal()
		}
	}
}

func TestFullQuota(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{Quota: 10 << 20})
	b := open(t, config(s))
	ctx := t.Context()
	if _, err := mounts.WriteFile(ctx, b, "f", make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{7 << 20, 12 << 20} { // by one call, by a session
		s.SetQuota(2 << 20)
		_, err := mounts.WriteFile(ctx, b, "f", make([]byte, size))
		wantKind(t, "Put into a full Dropbox", err, fault.NoSpace)
		if err != nil && !strings.Contains(err.Error(), "full") {
			t.Errorf("the message does not say what to do: %v", err)
		}
	}
	if c, _ := s.Read("/f"); len(c) != 1<<20 {
		t.Errorf("the old content has %d bytes", len(c))
	}
	space, err := b.(mounts.Spacer).Space(ctx)
	if err != nil || space != (mounts.Space{Total: 2 << 20, Used: 1 << 20, Free: 1 << 20}) {
		t.Errorf("Space: %+v, %v", space, err)
	}
}

func TestTokenRefresh(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	ctx := t.Context()
	s.Put("/f", "content")
	for _, do := range map[string]func() error{
		"Stat":  func() error { _, err := b.Stat(ctx, "f"); return err },
		"Open":  func() error { _, err := mounts.ReadFile(ctx, b, "f", 100); return err },
		"Put":   func() error { _, err := mounts.WriteFile(ctx, b, "g", []byte("x")); return err },
		"Large": func() error { _, err := mounts.WriteFile(ctx, b, "h", make([]byte, 13<<20)); return err },
	} {
		s.ExpireTokens()
		if err := do(); err != nil {
			t.Errorf("after the token's end: %v", err)
		}
	}
	// A token that says when it ends is replaced before, and many callers wait for one.
	short := dropboxtest.Start(t, dropboxtest.Config{TokenLife: 11 * time.Second})
	b = open(t, config(short))
	time.Sleep(1100 * time.Millisecond) // 10 s before its end a token counts as ended
	short.Reset()
	done := make(chan error)
	for range 8 {
		go func() { _, err := b.Stat(ctx, "."); done <- err }()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := short.Count("oauth2/token"); n != 1 {
		t.Errorf("%d tokens were fetched for 8 callers, want 1", n)
	}
}

func TestCredentials(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	ctx := t.Context()
	openWith := func(credentials ...string) error {
		cfg := config(s)
		for i := 0; i < len(credentials); i += 2 {
			if cfg.Credentials[credentials[i]] = secret.New(credentials[i+1]); credentials[i+1] == "" {
				delete(cfg.Credentials, credentials[i])
			}
		}
		b, err := dropbox.Driver().Open(ctx, cfg)
		if err == nil {
			b.Close()
		}
		return err
	}
	if err := openWith("refreshToken", "", "token", s.AccessToken()); err != nil {
		t.Errorf("with an access token: %v", err)
	}
	for _, test := range []struct {
		credentials []string
		kind        fault.Kind
		says        string
	}{
		{[]string{"refreshToken", "wrong-canary"}, fault.Unauthenticated, "Connect the account again"},
		{[]string{"appSecret", "wrong-canary"}, fault.Unauthenticated, "appSecret"},
		{[]string{"refreshToken", "", "token", "wrong-canary"}, fault.Unauthenticated, "Connect the account again"},
		{[]string{"refreshToken", ""}, fault.Invalid, "credentials are missing"},
		{[]string{"appKey", ""}, fault.Invalid, "appKey is missing"},
		{[]string{"refreshToken", "wrong-canary\n"}, fault.Invalid, "not copied well"},
		{[]string{"password", "wrong-canary"}, fault.Invalid, `unknown credential "password"`},
	} {
		err := openWith(test.credentials...)
		wantKind(t, "Open", err, test.kind)
		if err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("the message %q should say %q and no secret", err, test.says)
		}
	}
	b := open(t, config(s))
	s.Revoke()
	_, err := b.Stat(ctx, ".")
	wantKind(t, "Stat after the app was disconnected", err, fault.Unauthenticated)
	before := s.Count("oauth2/token")
	for range 20 {
		_, err = b.Stat(ctx, ".")
		wantKind(t, "Stat after the app was disconnected", err, fault.Unauthenticated)
	}
	if n := s.Count("oauth2/token") - before; n > 1 {
		t.Errorf("%d requests for a token that was refused already", n)
	}
}

// TestNoSecretsInLogs: neither errors nor logs hold a credential, also when the server writes it into its answer.
func TestNoSecretsInLogs(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	var log bytes.Buffer
	cfg := config(s, "timeout", "60ms")
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	access := s.AccessToken()
	delete(cfg.Credentials, "refreshToken")
	cfg.Credentials["token"] = secret.New(access)
	b := open(t, cfg)
	for _, status := range []int{400, 401, 403, 409, 429, 500} {
		for _, body := range []string{access, `{"error_summary":"` + access + `/x","error":{".tag":"` + access + `","required_scope":"` + access + `"}}`, "secret: " + s.AppSecret} {
			s.Inject(dropboxtest.Fault{Times: -1, Status: status, Body: body})
			_, err := b.Stat(t.Context(), "f")
			_, put := mounts.WriteFile(t.Context(), b, "f", nil)
			for _, err := range []error{err, put} {
				if err == nil || strings.Contains(err.Error(), access) || strings.Contains(err.Error(), s.AppSecret) {
					t.Errorf("%d %.20s: %v", status, body, err)
				}
			}
			s.Heal()
		}
	}
	if strings.Contains(log.String(), access) || strings.Contains(log.String(), s.AppSecret) {
		t.Errorf("the log holds a secret:\n%s", log.String())
	}
}

func TestRateLimit(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	s.Put("/f", "content")
	for _, route := range []string{"files/get_metadata", "files/upload", "files/download", "files/delete_v2"} {
		s.Inject(dropboxtest.Fault{Route: route, Status: 429, Tags: "too_many_requests", RetryAfter: 1})
	}
	start := time.Now()
	if _, err := b.Stat(t.Context(), "f"); err != nil || time.Since(start) < time.Second {
		t.Errorf("Stat after %v: %v; want it to wait a second and succeed", time.Since(start), err)
	}
	if _, err := mounts.WriteFile(t.Context(), b, "g", []byte("x")); err != nil {
		t.Errorf("Put: %v", err)
	}
	if _, err := mounts.ReadFile(t.Context(), b, "f", 10); err != nil {
		t.Errorf("Open: %v", err)
	}
	s.Inject(dropboxtest.Fault{Route: "files/upload", Times: 2, Status: 409, Tags: "path/too_many_write_operations"})
	if _, err := mounts.WriteFile(t.Context(), b, "g", []byte("xy")); err != nil {
		t.Errorf("Put while others write: %v", err)
	}
	s.Inject(dropboxtest.Fault{Route: "files/upload_session/append_v2", Times: 2, Status: 503, RetryAfter: 1})
	if _, err := mounts.WriteFile(t.Context(), b, "g", make([]byte, 9<<20)); err != nil {
		t.Errorf("Put of a large file: %v", err)
	}
	// Longer than patience or the context: Busy at once.
	s.Inject(dropboxtest.Fault{Route: "files/get_metadata", Times: -1, Status: 429, Tags: "too_many_requests", RetryAfter: 300})
	start = time.Now()
	_, err := b.Stat(t.Context(), "f")
	wantKind(t, "Stat", err, fault.Busy)
	s.Heal()
	s.Inject(dropboxtest.Fault{Route: "files/get_metadata", Times: -1, Status: 429, Tags: "too_many_requests", RetryAfter: 5})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = b.Stat(ctx, "f")
	wantKind(t, "Stat", err, fault.Busy)
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	start = time.Now()
	_, err = b.Stat(ctx, "f")
	wantKind(t, "Stat cancelled while it waits", err, fault.Canceled)
	if took := time.Since(start); took > 400*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

func TestOpenErrors(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	s.Put("/file", "")
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>Hello") }))
	defer page.Close()
	away := httptest.NewServer(http.RedirectHandler(s.URL, http.StatusTemporaryRedirect))
	defer away.Close()
	for _, test := range []struct {
		options []string
		want    fault.Kind
		says    string
	}{
		{[]string{"path", "/none"}, fault.NotExist, "no folder /none"},
		{[]string{"path", "/file"}, fault.NotDir, "path"},
		{[]string{"path", "/a\\b"}, fault.Invalid, "path"},
		{[]string{"path", "../x"}, fault.Invalid, "path"},
		{[]string{"folder", "/x"}, fault.Invalid, `unknown option "folder"`},
		{[]string{"timeout", "soon"}, fault.Invalid, "timeout"},
		{[]string{"connections", "0"}, fault.Invalid, "connections"},
		{[]string{"api", "ftp://x"}, fault.Invalid, "api"},
		{[]string{"api", "http://user:canary@127.0.0.1"}, fault.Invalid, "api"},
		{[]string{"api", "", "ca", "x"}, fault.Invalid, "ca"},
		{[]string{"api", "http://127.0.0.1:1"}, fault.Unavailable, "no connection"},
		{[]string{"api", page.URL}, fault.Unavailable, "api"},
		{[]string{"api", away.URL}, fault.Unavailable, "redirect"},
	} {
		_, err := dropbox.Driver().Open(t.Context(), config(s, test.options...))
		wantKind(t, strings.Join(test.options, " "), err, test.want)
		if err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("the message %q should say %q", err, test.says)
		}
	}
	cfg := config(s)
	cfg.Guest = true // a user's choice leads nowhere private
	_, err := dropbox.Driver().Open(t.Context(), cfg)
	wantKind(t, "Open by a guest", err, fault.Denied)
	problems := dropbox.Driver().Check(mounts.Config{Options: map[string]string{"a": "", "timeout": "x", "api": "y"}})
	if len(problems) != 4 {
		t.Errorf("Check found %d problems, want 4: %v", len(problems), errors.Join(problems...))
	}
	cfg = config(s)
	cfg.ReadOnly = true
	b := open(t, cfg)
	_, err = mounts.WriteFile(t.Context(), b, "x", nil)
	wantKind(t, "Put", err, fault.Denied)
	wantKind(t, "Mkdir", b.Mkdir(t.Context(), "x"), fault.Denied)
}

func TestTLS(t *testing.T) {
	service := dropboxtest.New(dropboxtest.Config{AppKey: "k", AppSecret: "s", RefreshToken: "r"})
	t.Cleanup(service.Close)
	for _, test := range []struct {
		name    string
		cert    servertest.CertOptions
		options func(c servertest.Cert) []string
		says    string // "": it works
	}{
		{"self-signed", servertest.CertOptions{}, func(servertest.Cert) []string { return nil }, "option ca"},
		{"ca", servertest.CertOptions{}, func(c servertest.Cert) []string { return []string{"ca", c.CA} }, ""},
		{"insecure", servertest.CertOptions{}, func(servertest.Cert) []string { return []string{"tlsInsecure", "true"} }, ""},
		{"expired", servertest.CertOptions{Expired: true}, func(c servertest.Cert) []string { return []string{"ca", c.CA} }, "expired"},
		{"wrong name", servertest.CertOptions{Host: "example.org"}, func(c servertest.Cert) []string { return []string{"ca", c.CA} }, "IP SANs"},
		{"wrong pin", servertest.CertOptions{}, func(servertest.Cert) []string { return []string{"tlsPin", "sha256:" + strings.Repeat("00", 32)} }, "tlsPin"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cert := servertest.NewCert(t, test.cert)
			h := httptest.NewUnstartedServer(service)
			h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			pair, err := os.ReadFile(filepath.Clean(cert.BothFile))
			if err != nil {
				t.Fatal(err)
			}
			h.TLS = tlsConfig(t, pair)
			h.StartTLS()
			defer h.Close()
			cfg := config(&dropboxtest.Server{URL: h.URL, AppKey: "k", AppSecret: "s", RefreshToken: "r"}, test.options(cert)...)
			b, err := dropbox.Driver().Open(t.Context(), cfg)
			if err == nil {
				b.Close()
			}
			if test.says == "" && err != nil {
				t.Errorf("Open: %v", err)
			} else if test.says != "" {
				wantKind(t, "Open", err, fault.Unavailable)
				if err != nil && !strings.Contains(err.Error(), test.says) {
					t.Errorf("the message %q should say %q", err, test.says)
				}
			}
		})
	}
}
