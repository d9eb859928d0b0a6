package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cellgate/gateway"
	"cellgate/internal/clock"
	"cellgate/mounts/all"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/policy/identity"
	"cellgate/policy/quota"
	"cellgate/store"
	"cellgate/store/seal"
)

// box is everything behind the doors, wired from the bottom to the top. Safe for concurrent use.
type box struct {
	cfg      *Config
	log      *slog.Logger
	clock    *clock.Clock
	db       *store.DB
	lease    *lease // nil on SQLite
	keys     *seal.Keyring
	audit    *audit.Log
	engine   *policy.Engine
	identity *identity.Service
	quota    *quota.Book
	gateway  *gateway.Gateway
	started  time.Time

	administering sync.Mutex // one change of accounts or of the declared state at a time
}

// openBox opens the store and all that stands on it. While it is open no other process has the data folder.
func openBox(ctx context.Context, cfg *Config, log *slog.Logger) (_ *box, err error) {
	b := &box{cfg: cfg, log: log, started: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := openFolder(cfg.Data); err != nil {
		return nil, err
	}
	if b.db, err = store.Open(ctx, store.Config{URL: cfg.Database.Reveal(), Dir: cfg.Data, Clock: b.clock, Logger: log}); err != nil {
		return nil, err
	}
	if !cfg.Database.IsZero() {
		if b.lease, err = takeLease(ctx, b); err != nil {
			return nil, err
		}
	}
	if b.keys, err = openKeys(ctx, b.db, cfg.Data); err != nil {
		return nil, err
	}
	b.audit = audit.New(b.db, b.clock)
	b.engine = policy.New(policy.Config{DB: b.db, Clock: b.clock, Logger: log})
	if err := b.engine.Load(ctx); err != nil {
		return nil, err
	}
	b.identity, err = identity.New(ctx, identity.Config{DB: b.db, Policy: b.engine, Keys: b.keys, Audit: b.audit, Clock: b.clock, Logger: log})
	if err != nil {
		return nil, err
	}
	b.quota = quota.New(b.db)
	spool := filepath.Join(cfg.Data, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, err
	}
	b.gateway, err = gateway.New(ctx, gateway.Config{
		DB: b.db, Keys: b.keys, Policy: b.engine, Identity: b.identity, Audit: b.audit, Quota: b.quota,
		Drivers: drivers(cfg.Data), Clock: b.clock, Logger: log, Room: (&room{dir: cfg.Data}).left,
		Spool: spool, Allow: prefixes(cfg.Outbound.Allow),
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func prefixes(networks []Network) []netip.Prefix {
	out := make([]netip.Prefix, len(networks))
	for i, n := range networks {
		out[i] = n.Prefix
	}
	return out
}

// openFolder makes the data folder, and takes others' rights on it away where it is there already.
func openFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := os.Chmod(dir, 0o700)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the data folder %s belongs to another user: run this as that user, or name another folder with --data", dir)
	}
	return err
}

// close closes what is open, from the top to the bottom, and returns what went wrong.
func (b *box) close() error {
	var errs []error
	if b.gateway != nil {
		errs = append(errs, b.gateway.Close())
	}
	if b.identity != nil {
		errs = append(errs, b.identity.Close())
	}
	if b.engine != nil {
		errs = append(errs, b.engine.Close())
	}
	if b.lease != nil {
		errs = append(errs, b.lease.release())
	}
	if b.db != nil {
		errs = append(errs, b.db.Close())
	}
	return errors.Join(errs...)
}

func driverNames() []string {
	var names []string
	for _, d := range all.Drivers() {
		names = append(names, d.Name)
	}
	return names
}

// offline runs fn on the box of the data folder while no process serves it.
func (t *term) offline(fn func(b *box) error) (err error) {
	cfg, err := t.config()
	if err != nil {
		return err
	}
	if _, err := os.Stat(cfg.Data); err != nil {
		return fmt.Errorf("there is no box in %s: %w", filepath.Clean(cfg.Data), err)
	}
	if err := harden(); err != nil {
		return err
	}
	b, err := openBox(t.ctx, cfg, newLogger(Log{Level: "warn", Format: "text"}, t.err))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	return fn(b)
}

// config returns the configuration as the environment and --data have it, for commands that work without a running box.
func (t *term) config() (*Config, error) {
	l, err := Load(lookup(t.environ, "CELLGATE_CONFIG"), t.environ, map[string]string{"data": t.cli.Data})
	if err != nil {
		return nil, err
	}
	return &l.Config, nil
}
