package appliance

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/store"

	"golang.org/x/sys/unix"
)

type doctorCmd struct{}

func (c *doctorCmd) Run(t *term) error {
	box, err := t.local()
	if err != nil {
		return err
	}
	d := &doctor{now: time.Now()}
	cfg := d.offline(t)
	var running []check
	if err := box.call(t.ctx, http.MethodGet, "/v1/doctor", nil, &running); err == nil {
		d.ok("box", "it runs")
		d.checks = append(d.checks, running...)
	} else {
		d.warn("box", "%s", plain(err))
		d.files()
		if cfg != nil && errors.Is(err, errNoBox) {
			d.remembered(t.ctx, cfg)
		}
	}
	worst := 0
	for _, k := range d.checks {
		if k.State == "fail" {
			worst++
		}
	}
	if err := t.show(d.checks, func(w io.Writer) {
		for _, k := range d.checks {
			say(w, "%s\t%s\t%s\n", k.State, k.Name, k.Text)
		}
	}); err != nil {
		return err
	}
	if worst > 0 {
		return errReported
	}
	return nil
}

// doctor collects what it looked at.
type doctor struct {
	now    time.Time
	checks []check
}

func (d *doctor) add(state, name, format string, args ...any) {
	d.checks = append(d.checks, check{Name: name, State: state, Text: fmt.Sprintf(format, args...)})
}
func (d *doctor) ok(name, format string, args ...any)   { d.add("ok", name, format, args...) }
func (d *doctor) warn(name, format string, args ...any) { d.add("warn", name, format, args...) }
func (d *doctor) fail(name, format string, args ...any) { d.add("fail", name, format, args...) }

// offline looks at what can be seen whether a box runs or not, and returns the configuration, nil for one that is wrong.
func (d *doctor) offline(t *term) *Config {
	cfg, err := t.config()
	if err != nil {
		d.fail("configuration", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		return nil
	}
	d.ok("configuration", "valid")
	d.modes(cfg.Data)
	d.space(cfg.Data)
	d.clock()
	if cfg.TLS.Mode == "files" {
		d.certificate(cfg.TLS.Cert)
	} else {
		d.certificate(filepath.Join(cfg.Data, "tls", "self-signed.crt"))
	}
	return cfg
}

// remembered reads just enough of the database of a box that does not run to say whether it is one, and whether the keys fit. It writes nothing.
func (d *doctor) remembered(ctx context.Context, cfg *Config) {
	driver, source, file := "pgx", cfg.Database.Reveal(), filepath.Join(cfg.Data, "cellgate.db")
	if source == "" {
		driver, source = "sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?mode=ro"
		if _, err := os.Stat(file); os.IsNotExist(err) {
			if found, err := hasKeys(cfg.Data); found || err != nil {
				d.fail("store", "%v", errNewDatabase(cfg.Data))
			}
			return // said by modes
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	probe := ""
	db, err := sql.Open(driver, source)
	if err == nil {
		defer db.Close()
		if driver == "sqlite" {
			err = whole(ctx, db)
		}
		if err == nil {
			err = db.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = $1`, keysSetting).Scan(&probe)
		}
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		probe = keysExpected
	case err != nil && driver == "sqlite":
		d.fail("store", "%s cannot be read: %v; restore a backup into a new folder (cellgate restore)", file, err)
		return
	case err != nil:
		d.fail("store", "PostgreSQL: %v", err)
		return
	}
	d.ok("store", "it can be read")
	if err := checkKeys(cfg.Data, probe); err != nil {
		d.fail("keys", "%s", plain(err))
		return
	}
	d.ok("keys", "they fit the store")
}

// whole asks SQLite whether its file is in order.
func whole(ctx context.Context, db *sql.DB) error {
	var answer string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&answer); err != nil {
		return err
	}
	if answer != "ok" {
		return errors.New(answer)
	}
	return nil
}

// modes checks that nobody else can read the data folder.
func (d *doctor) modes(dir string) {
	info, err := os.Stat(dir)
	if os.IsNotExist(err) {
		d.warn("data folder", "%s does not exist yet; cellgate serve makes it", dir)
		return
	}
	if err != nil {
		d.fail("data folder", "%v", err)
		return
	}
	if info.Mode().Perm()&0o077 != 0 {
		d.fail("data folder", "%s has mode %04o; chmod 700 it", dir, info.Mode().Perm())
		return
	}
	var open []string
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // a file that has gone meanwhile is fine
		}
		if info, err := e.Info(); err == nil && e.Type()&fs.ModeSymlink == 0 && info.Mode().Perm()&0o077 != 0 {
			open = append(open, name)
		}
		return nil
	})
	switch {
	case err != nil:
		d.fail("data folder", "%v", err)
	case len(open) > 0:
		d.warn("data folder", "%s can be read by others, such as %s; chmod go-rwx them if they are not shared files", count(len(open), "file"), open[0])
	default:
		d.ok("data folder", "%s is readable by its owner only", dir)
	}
}

const (
	leastSpace = 100 << 20
	goodSpace  = 1 << 30
)

func (d *doctor) space(dir string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return // said by modes
	}
	free := int64(st.Bavail) * st.Bsize
	switch {
	case free < leastSpace:
		d.fail("disk space", "%s left for the data folder; make room", bytesText(free))
	case free < goodSpace:
		d.warn("disk space", "%s left for the data folder", bytesText(free))
	default:
		d.ok("disk space", "%s left for the data folder", bytesText(free))
	}
	if st.Files > 0 && st.Ffree < 10_000 {
		d.warn("inodes", "%d left for the data folder", st.Ffree)
	}
}

func (d *doctor) files() {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		d.warn("open files", "%v", err)
		return
	}
	if lim.Max < 16384 {
		d.warn("open files", "at most %d; raise the limit (LimitNOFILE in systemd, ulimit -Hn) for many clients", lim.Max)
		return
	}
	d.ok("open files", "at most %d", lim.Max)
}

func (d *doctor) clock() {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	switch {
	case d.now.Year() < 2026:
		d.fail("clock", "it says %s; set it: expiry, policies and logs depend on it", d.now.UTC().Format(time.RFC3339))
	case err != nil || state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0:
		d.warn("clock", "%s, and nothing keeps it right as far as the kernel knows; run an NTP client", d.now.UTC().Format(time.RFC3339))
	default:
		d.ok("clock", "%s, synchronised", d.now.UTC().Format(time.RFC3339))
	}
}

// certificate looks at the end of a certificate file, where there is one.
func (d *doctor) certificate(name string) {
	src, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return
	}
	block, _ := pem.Decode(src)
	if err != nil || block == nil {
		d.fail("certificate", "%s cannot be read", name)
		return
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		d.fail("certificate", "%s: %v", name, err)
		return
	}
	switch left := c.NotAfter.Sub(d.now); {
	case left <= 0:
		d.fail("certificate", "%s ended on %s; renew it", name, c.NotAfter.Format(time.DateOnly))
	case left < renewBefore:
		d.warn("certificate", "%s ends on %s; renew it", name, c.NotAfter.Format(time.DateOnly))
	default:
		d.ok("certificate", "%s is good until %s", name, c.NotAfter.Format(time.DateOnly))
	}
}

// doctor looks at the running box from inside.
func (s *server) doctor(ctx context.Context) []check {
	d := &doctor{now: s.clock.Now()}
	d.files() // of the box: a shell may have other limits
	if err := s.check(ctx); err != nil {
		d.fail("store", "%s", plain(err))
	} else {
		d.ok("store", "%s answers and takes writes", s.databaseName())
	}
	for _, ds := range s.gateway.Datasources(ctx) {
		name := "datasource " + ds.Name
		switch {
		case ds.State == gateway.Down:
			d.fail(name, "down since %s: %s", stamp(ds.Since), plain(ds.Err))
		case ds.State != stateUp:
			d.warn(name, "%s: %s", ds.State, plain(ds.Err))
		case ds.Space.Free >= 0 && ds.Space.Free < leastSpace:
			d.warn(name, "up, %s left", bytesText(ds.Space.Free))
		case ds.Space.Free < 0:
			d.ok(name, "up; it does not tell how much is left")
		default:
			d.ok(name, "up, %s left", bytesText(ds.Space.Free))
		}
	}
	for _, w := range s.gateway.Workspaces() {
		if w.State != stateUp {
			d.fail("workspace "+w.Slug, "unavailable: %s", plain(w.Err))
		}
	}
	for name, err := range s.engine.Snapshot().Broken() {
		d.fail("policy "+name, "it does not work and allows nothing: %v", err)
	}
	return d.checks
}

func (b *box) databaseName() string {
	if b.cfg.Database.IsZero() {
		return "SQLite"
	}
	return "PostgreSQL"
}

// check reports why the store does not work. After a write that failed it tries another, so that the box becomes ready by itself once there
// is room again.
func (b *box) check(ctx context.Context) error {
	if b.db.Err() != nil {
		return b.db.Update(ctx, func(tx *store.Tx) error { return store.SetSetting(tx, "probe", b.clock.Now().Format(time.RFC3339)) })
	}
	var one int
	return b.db.QueryRow(ctx, `SELECT 1`).Scan(&one)
}
