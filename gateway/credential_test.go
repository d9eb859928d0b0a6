package gateway_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/policy/identity"
	"cellgate/store"
)

// doorman is a storage that asks everybody for a password.
type doorman struct {
	mu     sync.Mutex
	users  map[string]string // password by user name
	opened []string          // who came in
	disks  map[string]mounts.Backend
}

func (d *doorman) driver() mounts.Driver {
	return mounts.Driver{
		Name: "test", Options: []mounts.Option{{Name: "disk", Required: true}}, Secrets: []mounts.Option{{Name: "username"}, {Name: "password"}, {Name: "domain"}},
		Open: func(_ context.Context, cfg mounts.Config) (mounts.Backend, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			user := cfg.Credentials["username"].Reveal()
			if want, ok := d.users[user]; cfg.Name == "nas" && (!ok || want != cfg.Credentials["password"].Reveal()) {
				return nil, fault.New("test.Open", cfg.Name, fault.Unauthenticated, errors.New("wrong password for "+user))
			}
			d.opened = append(d.opened, cfg.Name+" "+user+" "+cfg.Credentials["domain"].Reveal())
			return shared{d.disks[cfg.Options["disk"]]}, nil
		},
	}
}

// shared is a backend that several have open.
type shared struct{ mounts.Backend }

func (shared) Close() error { return nil }

func (d *doorman) seen() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := strings.Join(d.opened, "; ")
	d.opened = nil
	return all
}

// mode makes nas a datasource whose credentials are of a mode.
func mode(t *testing.T, h *gatewaytest.House, d gateway.Datasource) {
	t.Helper()
	d.Name, d.Driver, d.Options = "nas", "test", map[string]string{"disk": "nas"}
	err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Gateway.PutDatasource(tx, d); return err })
	if err == nil {
		err = h.Gateway.Reload(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func credentials(user, password string) map[string]secret.String {
	return map[string]secret.String{"username": secret.New(user), "password": secret.New(password)}
}

func guarded(t *testing.T) (*gatewaytest.House, *doorman) {
	d := &doorman{
		users: map[string]string{"": "", "svc": "s", "al": "a1", "bo": "b1", "alice": gatewaytest.Password},
		disks: map[string]mounts.Backend{"disk": mem.New(mem.Config{}), "nas": mem.New(mem.Config{})},
	}
	driver := d.driver()
	return gatewaytest.New(t, gatewaytest.Config{Driver: &driver}), d
}

// In the mode "user" each user's own credentials count: stored sealed, effective at once, gone with the user.
func TestCredentialsPerUser(t *testing.T) {
	h, door := guarded(t)
	mode(t, h, gateway.Datasource{Mode: gateway.PerUser, Credentials: map[string]secret.String{"domain": secret.New("CORP")}})
	id := h.As("alice").Subject().ID
	put := func(user int64, values map[string]secret.String) {
		t.Helper()
		if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Gateway.PutCredentials(tx, "nas", user, values); return err }); err != nil {
			t.Fatal(err)
		}
	}
	door.seen()
	h.Tell(t, `
		alice: put /homes/a 1 -> ! permission denied
		alice: ls / -> docs/ drop/ homes/ pair/
		alice: put /pair/one/a 1 -> ok`)
	if _, err := gatewaytest.Read(t.Context(), h.As("alice"), gatewaytest.Path("/homes/a")); err == nil || !strings.Contains(err.Error(), "own credentials") {
		t.Errorf("no credentials: %v", err)
	}
	put(id, credentials("al", "wrong"))
	_, err := gatewaytest.Read(t.Context(), h.As("alice"), gatewaytest.Path("/homes/a"))
	if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "refuses this user's credentials") {
		t.Errorf("wrong credentials: %v", err)
	}
	put(id, credentials("al", "a1"))
	h.Tell(t, `
		alice: put /homes/a 1 -> ok
		alice: cat /homes/a -> 1
		alice: mv /homes/a /pair/one/b -> ok
		alice: mv /pair/one/b /homes/c -> ok
		alice: rm /homes/c -> ok
		bob: put /homes/b 1 -> ! permission denied`)
	if got := door.seen(); got != "nas al CORP" {
		t.Errorf("opened: %s", got)
	}
	put(h.As("bob").Subject().ID, credentials("bo", "b1"))
	h.Tell(t, "bob: put /homes/b 1 -> ok\nalice: ls /homes -> nothing")
	if got := door.seen(); got != "nas bo CORP" {
		t.Errorf("opened: %s", got)
	}
	var sealed []byte
	if err := h.DB.QueryRow(t.Context(), `SELECT sealed FROM credentials WHERE user_id = $1`, id).Scan(&sealed); err != nil || strings.Contains(string(sealed), "a1") {
		t.Errorf("stored as %q, %v", sealed, err)
	}
	if st := h.Gateway.Datasources(t.Context())[1]; st.State != "up" || st.Users != 2 {
		t.Errorf("status: %+v", st)
	}
	put(id, nil)
	h.Tell(t, "alice: ls /homes -> ! permission denied")
	put(id, credentials("al", "a1"))
	h.Reopen()
	h.Tell(t, "alice: ls /homes -> nothing")
	if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { return h.Gateway.ForgetUser(tx, id, "alice") }); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: ls /homes -> ! permission denied")
}

// In the mode "session" the password of the login is passed on. Logins without one are refused, or get the shared credentials, as the admin
// chose.
func TestCredentialsPerLogin(t *testing.T) {
	h, door := guarded(t)
	login := func(password string) *gateway.Session {
		t.Helper()
		sub, err := h.Identity.Login(t.Context(), identity.Attempt{Protocol: "webdav", Login: "alice", Password: secret.New(password)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := h.Gateway.Session(sub).Carry(secret.New(password))
		if err != nil {
			t.Fatal(err)
		}
		return s.With(gateway.Client{Protocol: "webdav", Credential: sub.Credential})
	}
	_, app, err := h.Identity.AddAppPassword(t.Context(), "alice", "script", time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(s *gateway.Session, name string) error {
		return gatewaytest.Write(t.Context(), s, gatewaytest.Path("/homes/"+name), []byte("x"), gateway.Cond{})
	}
	mode(t, h, gateway.Datasource{Mode: gateway.PerLogin})
	door.seen()
	if err := write(login(gatewaytest.Password), "a"); err != nil {
		t.Errorf("with the password: %v", err)
	}
	if got := door.seen(); got != "nas alice " {
		t.Errorf("opened: %s", got)
	}
	for name, s := range map[string]*gateway.Session{"app password": login(app.Reveal()), "no login at all": h.As("alice")} {
		if err := write(s, "b"); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "password of the login") {
			t.Errorf("%s: %v", name, err)
		}
	}
	mode(t, h, gateway.Datasource{Mode: gateway.PerLogin, Fallback: gateway.Shared, Credentials: credentials("svc", "s")})
	door.seen()
	if err := write(login(app.Reveal()), "b"); err != nil {
		t.Errorf("with an app password, falling back: %v", err)
	}
	if err := write(login(gatewaytest.Password), "c"); err != nil {
		t.Errorf("with the password: %v", err)
	}
	if got := door.seen(); got != "nas alice " {
		t.Errorf("opened besides: %s", got)
	}
}
