// Package gatewaytest is a gateway on mem mounts with some users, and a runner for stories told as several of them.
package gatewaytest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/policy/identity"
	"cellgate/policy/quota"
	"cellgate/store"
	"cellgate/store/seal"
	"cellgate/store/storetest"
)

// Password is that of every user of a House.
const Password = "correct horse battery"

// House is a gateway with all that belongs to it: the datasources "disk" and "nas", the workspaces
//
//	docs   disk:/docs        alice reads and writes, bob reads
//	homes  nas:/home/{login} each his own
//	pair   disk:/one, nas:/two  alice and bob read and write
//	drop   disk:/drop        bob writes only, alice reads and writes
//
// and the users alice and bob of the group /staff, and guest of /guests with the profile external, who has a home and no more.
type House struct {
	Gateway  *gateway.Gateway
	DB       *store.DB
	Policy   *policy.Engine
	Identity *identity.Service
	Audit    *audit.Log
	Quota    *quota.Book
	Clock    *clock.Clock

	t      testing.TB
	mu     sync.Mutex
	disks  map[string]mounts.Backend // what the datasources are, guarded by mu
	keys   *seal.Keyring
	limits gateway.Limits
	custom *mounts.Driver
	log    *slog.Logger
	bare   bool
	spool  string
}

// Config varies a House. The zero Config is fine.
type Config struct {
	DB     *store.DB // nil: SQLite in memory speed
	Limits gateway.Limits
	Disks  map[string]mounts.Backend // nil, or missing entries: mem
	Driver *mounts.Driver            // nil: one that opens the disks
	Clock  *clock.Clock              // nil: the real one
	Bare   bool                      // without wrappers, for tests that end a call in its middle
	Logger *slog.Logger
}

// New builds a house and tears it down at the end of the test.
func New(t testing.TB, cfg Config) *House {
	t.Helper()
	h := &House{t: t, DB: cfg.DB, Clock: cfg.Clock, limits: cfg.Limits, log: cfg.Logger, custom: cfg.Driver, bare: cfg.Bare, spool: t.TempDir(), disks: map[string]mounts.Backend{}}
	for _, name := range []string{"disk", "nas"} {
		if h.disks[name] = cfg.Disks[name]; h.disks[name] == nil {
			h.disks[name] = mem.New(mem.Config{})
		}
	}
	if h.DB == nil {
		h.DB = storetest.Open(t)
	}
	if h.limits.Retry == 0 {
		h.limits.Retry = 50 * time.Millisecond
	}
	var err error
	if h.keys, err = seal.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.furnish()
	t.Cleanup(h.close)
	return h
}

func (h *House) open() {
	h.t.Helper()
	ctx := context.Background()
	h.Policy = policy.New(policy.Config{DB: h.DB, Clock: h.Clock})
	if err := h.Policy.Load(ctx); err != nil {
		h.t.Fatal(err)
	}
	h.Audit = audit.New(h.DB, h.Clock)
	h.Quota = quota.New(h.DB)
	var err error
	h.Identity, err = identity.New(ctx, identity.Config{DB: h.DB, Policy: h.Policy, Keys: h.keys, Audit: h.Audit, Clock: h.Clock, Hash: identity.HashParams{Memory: 64, Passes: 1, Threads: 1}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Gateway, err = gateway.New(ctx, gateway.Config{
		DB: h.DB, Keys: h.keys, Policy: h.Policy, Identity: h.Identity, Audit: h.Audit, Quota: h.Quota,
		Drivers: []mounts.Driver{h.driver()}, Clock: h.Clock, Limits: h.limits, Logger: h.log, Bare: h.bare, Spool: h.spool,
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *House) close() {
	if err := h.Gateway.Close(); err != nil {
		h.t.Error(err)
	}
	if err := h.Identity.Close(); err != nil {
		h.t.Error(err)
	}
	if err := h.Policy.Close(); err != nil {
		h.t.Error(err)
	}
}

// Reopen ends the gateway and makes a new one on the same store and disks, as a restart does.
func (h *House) Reopen() {
	h.t.Helper()
	h.close()
	h.open()
}

// Disk returns what a datasource is: "disk" or "nas".
func (h *House) Disk(name string) mounts.Backend {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.disks[name]
}

// SetDisk replaces what a datasource is from its next opening on; nil does not open.
func (h *House) SetDisk(name string, b mounts.Backend) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disks[name] = b
}

// driver opens the disks by name. They outlive the gateway, so their Close is kept from them.
func (h *House) driver() mounts.Driver {
	if h.custom != nil {
		return *h.custom
	}
	return mounts.Driver{
		Name:    "test",
		Options: []mounts.Option{{Name: "disk", Help: "which of the house's disks", Required: true}},
		Open: func(_ context.Context, cfg mounts.Config) (mounts.Backend, error) {
			disk := h.Disk(cfg.Options["disk"])
			if disk == nil {
				return nil, fault.New("gatewaytest.Open", cfg.Name, fault.Unavailable, nil)
			}
			return lasting{disk}, nil
		},
	}
}

// lasting is a backend that others still need after it is closed.
type lasting struct{ mounts.Backend }

func (l lasting) Unwrap() mounts.Backend { return l.Backend }
func (lasting) Close() error             { return nil }

func (h *House) furnish() {
	h.t.Helper()
	ctx := context.Background()
	workspaces := []gateway.Workspace{
		{Slug: "docs", Label: "Documents", Roots: []string{"disk:/docs"}, Quota: -1},
		{Slug: "homes", Label: "Home", Roots: []string{"nas:/home/{login}"}, Quota: -1},
		{Slug: "pair", Label: "Pair", Roots: []string{"disk:/one", "nas:/two"}, Quota: -1},
		{Slug: "drop", Label: "Drop", Roots: []string{"disk:/drop"}, Quota: -1},
	}
	err := h.DB.Update(ctx, func(tx *store.Tx) error {
		for _, name := range []string{"disk", "nas"} {
			if _, err := h.Gateway.PutDatasource(tx, gateway.Datasource{Name: name, Driver: "test", Options: map[string]string{"disk": name}}); err != nil {
				return err
			}
		}
		for _, w := range workspaces {
			if _, err := h.Gateway.PutWorkspace(tx, w); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = h.Gateway.Reload(ctx)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	for _, u := range []identity.Spec{
		{Login: "alice", Group: "/staff", Profile: policy.Standard},
		{Login: "bob", Group: "/staff", Profile: policy.Standard},
		{Login: "guest", Group: "/guests", Profile: policy.External},
	} {
		h.AddUser(u)
	}
	h.Grant("user:alice", "docs:/", "read", "write")
	h.Grant("user:bob", "docs:/", "read")
	h.Grant("group:/", "homes:/", "read", "write")
	for _, on := range []string{"pair:/one", "pair:/two"} {
		h.Grant("user:alice", on, "read", "write")
		h.Grant("user:bob", on, "read", "write")
	}
	h.Grant("user:alice", "drop:/", "read", "write")
	h.Grant("user:bob", "drop:/", "write")
}

// AddUser makes a user with Password, and the groups and roles that are missing.
func (h *House) AddUser(u identity.Spec) {
	h.t.Helper()
	u.Password = secret.New(Password)
	if _, err := h.Identity.CreateUser(context.Background(), u); err != nil {
		h.t.Fatal(err)
	}
}

// Grant gives rights: "read", "write", "deny" or "policy:NAME".
func (h *House) Grant(to, on string, rights ...string) {
	h.t.Helper()
	at, err := h.Gateway.GrantPlace(on)
	if err != nil {
		h.t.Fatal(err)
	}
	r, name, err := policy.ParseRights(rights)
	if err != nil {
		h.t.Fatal(err)
	}
	g := policy.Grant{To: policy.Principal(to), On: at, Rights: r, Policy: name, Source: "test"}
	if err := h.DB.Update(context.Background(), func(tx *store.Tx) error { return h.Policy.PutGrant(tx, g) }); err != nil {
		h.t.Fatal(err)
	}
}

// Revoke takes back what Grant gave to a principal on a place.
func (h *House) Revoke(to, on string) {
	h.t.Helper()
	at, err := h.Gateway.GrantPlace(on)
	if err != nil {
		h.t.Fatal(err)
	}
	gs, err := h.Policy.Grants(context.Background(), policy.Filter{To: policy.Principal(to), Datasource: at.Datasource, Under: at.Path})
	if err != nil {
		h.t.Fatal(err)
	}
	err = h.DB.Update(context.Background(), func(tx *store.Tx) error {
		for _, g := range gs {
			if g.On == at {
				if err := h.Policy.DeleteGrant(tx, g.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// As returns the session of a user, as from a WebDAV client on loopback.
func (h *House) As(login string) *gateway.Session {
	h.t.Helper()
	sub, err := h.Identity.Subject(context.Background(), login)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.Gateway.Session(sub).With(gateway.Client{Protocol: "webdav", Address: netip.MustParseAddr("127.0.0.1")})
}

// Path is gateway.ParsePath for paths that are known to be right.
func Path(s string) gateway.Path {
	p, err := gateway.ParsePath(s)
	if err != nil {
		panic(fmt.Sprint("gatewaytest.Path: ", err))
	}
	return p
}
