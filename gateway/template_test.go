package gateway_test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
	"cellgate/store/storetest"
)

// cloud is a driver whose storages are told apart by host, account and path, and which remembers what each datasource was opened with last.
type cloud struct {
	mu     sync.Mutex
	disks  map[string]mounts.Backend
	opened map[string]mounts.Config
}

func (c *cloud) driver() mounts.Driver {
	return mounts.Driver{
		Name:    "test",
		Options: []mounts.Option{{Name: "disk"}, {Name: "host"}, {Name: "share"}, {Name: "path"}},
		Secrets: []mounts.Option{{Name: "token", Required: true}, {Name: "app"}},
		Open: func(_ context.Context, cfg mounts.Config) (mounts.Backend, error) {
			key := strings.Join([]string{cfg.Options["disk"], cfg.Options["host"], cfg.Options["share"], cfg.Options["path"], cfg.Credentials["token"].Reveal()}, " ")
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.disks[key] == nil {
				c.disks[key] = mem.New(mem.Config{})
			}
			c.opened[cfg.Name] = cfg
			return shared{c.disks[key]}, nil
		},
	}
}

func (c *cloud) last(name string) mounts.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened[name]
}

func clouded(t *testing.T, db *store.DB) (*gatewaytest.House, *cloud) {
	c := &cloud{disks: map[string]mounts.Backend{}, opened: map[string]mounts.Config{}}
	driver := c.driver()
	return gatewaytest.New(t, gatewaytest.Config{DB: db, Driver: &driver}), c
}

// box is a template as an admin would declare it.
func boxTemplate() gateway.Template {
	return gateway.Template{
		Name: "own-box", Label: "Own box", Driver: "test", Options: map[string]string{"path": "/of/{login}", "host": "box.example.org"},
		Credentials: map[string]secret.String{"app": secret.New("app-key")}, Asks: []string{"token", "share"}, To: []policy.Principal{"group:/staff"},
	}
}

func putTemplate(t *testing.T, h *gatewaytest.House, tm gateway.Template) (changed bool, err error) {
	t.Helper()
	err = h.DB.Update(t.Context(), func(tx *store.Tx) (err error) { changed, err = h.Gateway.PutTemplate(tx, tm); return err })
	return changed, err
}

func complete(t *testing.T, h *gatewaytest.House, name, login string, values map[string]string) (done gateway.Completed, err error) {
	t.Helper()
	sub, err := h.Identity.Subject(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	err = h.DB.Update(t.Context(), func(tx *store.Tx) (err error) {
		done, err = h.Gateway.CompleteTemplate(tx, sub, name, values)
		return err
	})
	if err == nil {
		err = h.Gateway.Reload(t.Context())
	}
	return done, err
}

func TestCheckTemplate(t *testing.T) {
	t.Parallel()
	far := mounts.Driver{Name: "test", Options: []mounts.Option{{Name: "disk"}, {Name: "host", Required: true}}, Secrets: []mounts.Option{{Name: "token"}},
		Open: func(context.Context, mounts.Config) (mounts.Backend, error) { return mem.New(mem.Config{}), nil }}
	house := func(driver mounts.Driver) *gatewaytest.House {
		// The house's own datasources name no host; theirs is not what is looked at here.
		loose := driver
		loose.Options = []mounts.Option{{Name: "disk"}, {Name: "host"}}
		if driver.Local {
			return gatewaytest.New(t, gatewaytest.Config{Driver: &driver})
		}
		return gatewaytest.New(t, gatewaytest.Config{Driver: &loose})
	}
	good := gateway.Template{Name: "own-box", Driver: "test", Options: map[string]string{"host": "h"}, Asks: []string{"token"}, To: []policy.Principal{"group:/"}}
	tests := []struct {
		name   string
		change func(*gateway.Template)
		want   string // "" for none
	}{
		{"as it should be", func(*gateway.Template) {}, ""},
		{"words", func(x *gateway.Template) { x.Options["host"] = "{login}.{group}.example.org" }, ""},
		{"tuning", func(x *gateway.Template) { x.Options["poll"] = "1s" }, ""},
		{"short name", func(x *gateway.Template) { x.Name = "ab" }, "3 to 32"},
		{"long name", func(x *gateway.Template) { x.Name = strings.Repeat("a", 33) }, "3 to 32"},
		{"odd name", func(x *gateway.Template) { x.Name = "Own Box" }, "lower-case"},
		{"nobody", func(x *gateway.Template) { x.To = nil }, "nobody"},
		{"unknown driver", func(x *gateway.Template) { x.Driver = "gopher" }, `driver "gopher"`},
		{"unknown option", func(x *gateway.Template) { x.Options["hots"] = "h" }, `no option "hots"`},
		{"unknown word", func(x *gateway.Template) { x.Options["host"] = "{password}" }, "option host"},
		{"unknown credential", func(x *gateway.Template) { x.Credentials = map[string]secret.String{"tokn": secret.New("x")} }, `no credential "tokn"`},
		{"asks for nothing", func(x *gateway.Template) { x.Asks = nil }, "asks for nothing"},
		{"asks for what nobody knows", func(x *gateway.Template) { x.Asks = append(x.Asks, "colour") }, `asks for "colour"`},
		{"asks for what is filled in", func(x *gateway.Template) { x.Asks = append(x.Asks, "host") }, "filled in"},
		{"asks for a credential that is filled in", func(x *gateway.Template) { x.Credentials = map[string]secret.String{"token": secret.New("x")} }, "filled in"},
		{"asks where credentials go", func(x *gateway.Template) {
			x.Options, x.Credentials, x.Asks = nil, map[string]secret.String{"token": secret.New("x")}, []string{"host"}
		}, "a server of his own"},
		{"asks for a tuning", func(x *gateway.Template) { x.Asks = append(x.Asks, "cacheSize") }, `asks for "cacheSize"`},
	}
	h := house(far)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			x := good
			x.Options, x.Asks = maps.Clone(good.Options), slices.Clone(good.Asks)
			test.change(&x)
			var got []string
			for _, err := range h.Gateway.CheckTemplate(x) {
				if fault.KindOf(err) != fault.Invalid {
					t.Errorf("kind %v of %v", fault.KindOf(err), err)
				}
				got = append(got, err.Error())
			}
			if text := strings.Join(got, "; "); test.want == "" && text != "" || !strings.Contains(text, test.want) {
				t.Errorf("got %q, want %q", text, test.want)
			}
			if _, err := putTemplate(t, h, x); (err == nil) != (test.want == "") {
				t.Errorf("put: %v", err)
			}
		})
	}
	t.Run("folders of this machine", func(t *testing.T) {
		here := far
		here.Local, here.Options = true, []mounts.Option{{Name: "disk"}, {Name: "host"}}
		errs := house(here).Gateway.CheckTemplate(good)
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "this machine") {
			t.Errorf("got %v", errs)
		}
	})
}

// A template is stored sealed, told without its credentials, to those who may complete it; putting it again changes nothing.
func TestPutTemplate(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h, _ := clouded(t, db)
		x := boxTemplate()
		for i, want := range []bool{true, false} {
			if changed, err := putTemplate(t, h, x); err != nil || changed != want {
				t.Errorf("put %d: changed %t, %v", i, changed, err)
			}
		}
		x.Credentials = map[string]secret.String{"app": secret.New("another-key")}
		if changed, err := putTemplate(t, h, x); err != nil || !changed {
			t.Errorf("with another key: changed %t, %v", changed, err)
		}
		var sealed []byte
		if err := db.QueryRow(t.Context(), `SELECT credentials FROM templates WHERE name = $1`, x.Name).Scan(&sealed); err != nil || strings.Contains(string(sealed), "another-key") {
			t.Errorf("stored as %q, %v", sealed, err)
		}
		h.Reopen()
		for login, want := range map[string]int{"": 1, "alice": 1, "guest": 0} {
			var sub *policy.Subject
			if login != "" {
				sub = h.As(login).Subject()
			}
			got, err := h.Gateway.Templates(t.Context(), sub)
			if err != nil || len(got) != want {
				t.Fatalf("templates of %q: %v, %v", login, got, err)
			}
			if want == 1 && (got[0].Credentials != nil || got[0].Label != x.Label || !slices.Equal(got[0].Asks, x.Asks) || !maps.Equal(got[0].Options, x.Options) || !slices.Equal(got[0].To, x.To)) {
				t.Errorf("template of %q: %+v", login, got[0])
			}
		}
		drop := func() error {
			return db.Update(t.Context(), func(tx *store.Tx) error { return h.Gateway.DeleteTemplate(tx, x.Name) })
		}
		if err := drop(); err != nil {
			t.Error(err)
		}
		if err := drop(); fault.KindOf(err) != fault.NotExist {
			t.Errorf("deleted twice: %v", err)
		}
	})
}

// Who completes a template has a workspace of his own that nobody else sees; done again it changes; what was not asked for is refused.
func TestCompleteTemplate(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h, c := clouded(t, db)
		if _, err := putTemplate(t, h, boxTemplate()); err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string]struct {
			login, template string
			values          map[string]string
			kind            fault.Kind
			words           string
		}{
			"not asked for":       {"alice", "own-box", map[string]string{"token": "t", "host": "evil"}, fault.Invalid, `"host" is not asked for`},
			"a filled credential": {"alice", "own-box", map[string]string{"token": "t", "app": "mine"}, fault.Invalid, `"app" is not asked for`},
			"a tuning":            {"alice", "own-box", map[string]string{"token": "t", "writeBack": "true"}, fault.Invalid, `"writeBack" is not asked for`},
			"missing":             {"alice", "own-box", map[string]string{"share": "s"}, fault.Invalid, `"token" is missing`},
			"empty":               {"alice", "own-box", map[string]string{"token": ""}, fault.Invalid, `"token" is missing`},
			"not for this user":   {"guest", "own-box", map[string]string{"token": "t"}, fault.NotExist, "no such template"},
			"no template":         {"alice", "own-bax", map[string]string{"token": "t"}, fault.NotExist, "no such template"},
		} {
			if _, err := complete(t, h, bad.template, bad.login, bad.values); fault.KindOf(err) != bad.kind || !strings.Contains(err.Error(), bad.words) {
				t.Errorf("%s: %v", name, err)
			}
		}
		h.Tell(t, "alice: ls / -> docs/ drop/ homes/ pair/")

		done, err := complete(t, h, "own-box", "alice", map[string]string{"token": "t-alice"})
		if want := (gateway.Completed{Datasource: "own-box-alice", Workspace: "own-box-alice", Created: true}); err != nil || done != want {
			t.Fatalf("completed %+v, %v", done, err)
		}
		cfg := c.last("own-box-alice")
		if cfg.Guest || cfg.Options["path"] != "/of/alice" || cfg.Options["host"] != "box.example.org" || cfg.Credentials["app"].Reveal() != "app-key" || cfg.Credentials["token"].Reveal() != "t-alice" {
			t.Errorf("opened with %+v", cfg)
		}
		if _, err := complete(t, h, "own-box", "bob", map[string]string{"token": "t-bob"}); err != nil {
			t.Fatal(err)
		}
		h.Tell(t, `
			alice: put /own-box-alice/a mine -> ok
			alice: ls / -> docs/ drop/ homes/ own-box-alice/ pair/
			bob: ls / -> docs/ drop/ homes/ own-box-bob/ pair/
			bob: cat /own-box-alice/a -> ! does not exist
			bob: put /own-box-alice/b 1 -> ! does not exist
			bob: ls /own-box-bob -> nothing
			guest: ls /own-box-alice -> ! does not exist`)

		// Again, with another share: the same workspace shows other files, until it is changed back.
		done, err = complete(t, h, "own-box", "alice", map[string]string{"token": "t-alice", "share": "other"})
		if err != nil || done.Created {
			t.Fatalf("completed again: %+v, %v", done, err)
		}
		if c.last("own-box-alice").Guest {
			t.Error("a share on the admin's own server makes its address the user's choice")
		}
		h.Tell(t, "alice: ls /own-box-alice -> nothing")
		if _, err = complete(t, h, "own-box", "alice", map[string]string{"token": "t-alice"}); err != nil {
			t.Fatal(err)
		}
		h.Tell(t, "alice: cat /own-box-alice/a -> mine")

		// What a template is changed to counts for who completes it anew; what was completed stays without it.
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return h.Gateway.DeleteTemplate(tx, "own-box") }); err != nil {
			t.Fatal(err)
		}
		h.Reopen()
		h.Tell(t, "alice: cat /own-box-alice/a -> mine")
		var text string
		rows, err := db.Query(t.Context(), `SELECT name, options, credentials FROM datasources`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var name, options string
			var sealed []byte
			if err := rows.Scan(&name, &options, &sealed); err != nil {
				t.Fatal(err)
			}
			text += name + options + string(sealed)
		}
		if !strings.Contains(text, "own-box-alice") || strings.Contains(text, "t-alice") || strings.Contains(text, "app-key") {
			t.Errorf("stored: %q", text)
		}
	})
}

// Who names the host himself is a guest on the way there; a read-only template stays so.
func TestCompleteTemplateGuest(t *testing.T) {
	t.Parallel()
	h, c := clouded(t, nil)
	x := boxTemplate()
	x.Options, x.Credentials, x.Asks, x.ReadOnly = nil, nil, []string{"token", "host", "path"}, true
	if _, err := putTemplate(t, h, x); err != nil {
		t.Fatal(err)
	}
	if _, err := complete(t, h, "own-box", "alice", map[string]string{"token": "t", "host": "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if cfg := c.last("own-box-alice"); !cfg.Guest || !cfg.ReadOnly {
		t.Errorf("opened with %+v", cfg)
	}
	h.Tell(t, "alice: put /own-box-alice/a 1 -> ! permission denied")
	h.Reopen()
	if !c.last("own-box-alice").Guest {
		t.Error("after a restart the host is an admin's choice")
	}
}

// What a user completes goes with the user, and never stands in the place of what others have.
func TestCompleteTemplateNames(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h, _ := clouded(t, db)
		if _, err := putTemplate(t, h, boxTemplate()); err != nil {
			t.Fatal(err)
		}
		token := map[string]string{"token": "t"}
		valid := regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
		seen := map[string]string{}
		for _, login := range []string{"carol", "c.arol", "c-arol", "c_arol", "x@example.org", "x-example-org", "ünïcode", "日本", "a", strings.Repeat("l", 64), strings.Repeat("l", 63) + "m", "-", "c.arol.", "dom+user"} {
			if err := identity.CheckSpec(identity.Spec{Login: login, Group: "/staff"}); err != nil {
				continue // no login can be that
			}
			h.AddUser(identity.Spec{Login: login, Group: "/staff", Profile: policy.Standard})
			done, err := complete(t, h, "own-box", login, token)
			if err != nil || !done.Created {
				t.Errorf("%q: %+v, %v", login, done, err)
				continue
			}
			if !valid.MatchString(done.Workspace) || seen[done.Workspace] != "" {
				t.Errorf("%q has the workspace %q, and so has %q", login, done.Workspace, seen[done.Workspace])
			}
			seen[done.Workspace] = login
			again, err := complete(t, h, "own-box", login, token)
			if err != nil || again.Created || again.Workspace != done.Workspace {
				t.Errorf("%q again: %+v, %v", login, again, err)
			}
		}
		if len(seen) < 6 {
			t.Errorf("only %v: this shows nothing", seen)
		}

		// A workspace or datasource of that name that is somebody else's stays as it is.
		change(t, h, func(tx *store.Tx) error {
			_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "own-box-bob", Label: "Ours", Roots: []string{"disk:/ours"}, Quota: -1})
			return err
		})
		if _, err := complete(t, h, "own-box", "bob", token); fault.KindOf(err) != fault.Exist {
			t.Errorf("in the place of a workspace: %v", err)
		}
		change(t, h, func(tx *store.Tx) error {
			if err := h.Gateway.DeleteWorkspace(tx, "own-box-bob"); err != nil {
				return err
			}
			_, err := h.Gateway.PutDatasource(tx, gateway.Datasource{Name: "own-box-bob", Driver: "test"})
			return err
		})
		if _, err := complete(t, h, "own-box", "bob", token); fault.KindOf(err) != fault.Exist {
			t.Errorf("in the place of a datasource: %v", err)
		}

		// I08: a namesake inherits neither the files nor the way to them.
		if _, err := complete(t, h, "own-box", "alice", token); err != nil {
			t.Fatal(err)
		}
		h.Tell(t, "alice: put /own-box-alice/a mine -> ok")
		id := h.As("alice").Subject().ID
		change(t, h, func(tx *store.Tx) error {
			if err := h.Identity.RemoveUser(tx, "alice"); err != nil {
				return err
			}
			return h.Gateway.ForgetUser(tx, id, "alice")
		})
		for _, ds := range h.Gateway.Datasources(t.Context()) {
			if ds.Name == "own-box-alice" {
				t.Errorf("the datasource of a deleted user is %s", ds.State)
			}
		}
		h.AddUser(identity.Spec{Login: "alice", Group: "/staff", Profile: policy.Standard})
		h.Tell(t, "alice: ls / -> homes/\nalice: cat /own-box-alice/a -> ! does not exist")
		if done, err := complete(t, h, "own-box", "alice", map[string]string{"token": "another"}); err != nil || !done.Created {
			t.Fatalf("the namesake: %+v, %v", done, err)
		}
		h.Tell(t, "alice: ls /own-box-alice -> nothing")
	})
}

// The words of a template are the user's, and cannot lead elsewhere.
func TestCompleteTemplateWords(t *testing.T) {
	t.Parallel()
	h, c := clouded(t, nil)
	x := boxTemplate()
	x.Options = map[string]string{"path": "/{group}/{login}", "host": "{login}.example.org"}
	x.To = []policy.Principal{"group:/"}
	if _, err := putTemplate(t, h, x); err != nil {
		t.Fatal(err)
	}
	h.AddUser(identity.Spec{Login: "dora", Group: "/staff/press", Profile: policy.Standard})
	if _, err := complete(t, h, "own-box", "dora", map[string]string{"token": "t", "share": "{login}"}); err != nil {
		t.Fatal(err)
	}
	got := c.last("own-box-dora").Options
	if fmt.Sprint(got) != "map[host:dora.example.org path:/staff/press/dora share:{login}]" {
		t.Errorf("opened with %v", got)
	}
}
