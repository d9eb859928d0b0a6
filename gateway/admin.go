package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
)

// The durabilities of a datasource: success means synced to the medium, or handed to the operating system.
const (
	Synced  = "synced"
	Written = "written"
)

// Datasource is a backend as an admin declares it.
type Datasource struct {
	Name        string
	Driver      string
	Options     map[string]string
	Mode        string                   // of the credentials: Shared (and ""), PerUser or PerLogin
	Fallback    string                   // Shared: who has no credentials of his own gets the datasource's; "": is refused
	Credentials map[string]secret.String // sealed in the store; in the other modes what they all have in common
	ReadOnly    bool
	Durability  string // Synced (and "") or Written
	Owner       int64  // the user who completed it from a template, 0 none
	Template    string // that template
	Guest       bool   // its address is that user's choice
}

// Workspace is a top folder of users' trees as an admin declares it. With one root its content is that root's; with several, one folder
// per root. A root is "datasource:/path"; the words {login} and {group} make it a template, expanded for each user.
type Workspace struct {
	Slug  string
	Label string
	Roots []string
	Quota int64 // bytes, negative for none
}

// WorkspaceStatus is a workspace with how it is doing.
type WorkspaceStatus struct {
	Workspace
	State string // "up", or "unavailable" when a root is
	Err   error
}

var (
	slugPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
	namePattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,61}$`)
	tokenPattern = regexp.MustCompile(`\{[^}]*\}`)
)

// CheckDatasource returns every problem of d, none when it can be put. It touches no storage.
func (g *Gateway) CheckDatasource(d Datasource) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New("gateway.CheckDatasource", d.Name, fault.Invalid, fmt.Errorf(format, args...)))
	}
	if !namePattern.MatchString(d.Name) {
		bad("name %q: lower-case letters, digits, '.', '_' and '-', at most 62", d.Name)
	}
	switch d.Mode {
	case "", Shared, PerUser, PerLogin:
	default:
		bad("credentials mode %q: shared, user or session", d.Mode)
	}
	switch {
	case d.Fallback != "" && d.Fallback != "refuse" && d.Fallback != Shared:
		bad("credentials fallback %q: refuse or shared", d.Fallback)
	case d.Fallback == Shared && (d.Mode == "" || d.Mode == Shared):
		bad("credentials have a fallback only in the modes user and session")
	}
	if d.Durability != "" && d.Durability != Synced && d.Durability != Written {
		bad("durability %q: synced or written", d.Durability)
	}
	driver, ok := g.drivers[d.Driver]
	if !ok {
		bad("driver %q: this build has %s", d.Driver, strings.Join(slices.Sorted(maps.Keys(g.drivers)), ", "))
		return errs
	}
	d = d.spelled(driver)
	for _, key := range slices.Sorted(maps.Keys(d.Options)) {
		if !has(driver.Options, key) && !isTuning(key) {
			bad("driver %s has no option %q", d.Driver, key)
		}
	}
	for _, o := range driver.Options {
		if o.Required && d.Options[o.Name] == "" {
			bad("driver %s needs the option %q: %s", d.Driver, o.Name, o.Help)
			return errs
		}
	}
	for _, err := range g.checkSecrets(d.Driver, d.Credentials) {
		bad("%w", err)
	}
	if _, err := d.tuning(); err != nil {
		bad("%w", err)
	}
	if driver.Check != nil && len(errs) == 0 {
		for _, err := range driver.Check(g.config(d.complete(driver))) {
			bad("%w", err)
		}
	}
	return errs
}

// CheckWorkspace returns every problem of w. The datasources it may name are those that exist and those in also.
func (g *Gateway) CheckWorkspace(w Workspace, also ...string) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New("gateway.CheckWorkspace", w.Slug, fault.Invalid, fmt.Errorf(format, args...)))
	}
	if !slugPattern.MatchString(w.Slug) {
		bad("slug %q: 3 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit", w.Slug)
	}
	if len(w.Roots) == 0 {
		bad("has no roots")
	}
	seen := make(map[string]bool)
	for _, r := range w.Roots {
		root, err := parseRoot(r)
		if err != nil {
			bad("root %q: %w", r, err)
			continue
		}
		if seen[r] {
			bad("root %q is named twice", r)
		}
		seen[r] = true
		if _, ok := g.table.Load().datasources[root.datasource]; !ok && !slices.Contains(also, root.datasource) {
			bad("root %q: there is no datasource %q", r, root.datasource)
		}
	}
	return errs
}

// PutDatasource makes or changes a datasource within tx and reports whether anything changed. Reload makes it so.
func (g *Gateway) PutDatasource(tx *store.Tx, d Datasource) (changed bool, err error) {
	const op = "gateway.PutDatasource"
	if errs := g.CheckDatasource(d); len(errs) > 0 {
		return false, errors.Join(errs...)
	}
	normalise(&d)
	old, err := g.loadDatasources(tx, d.Name)
	if err != nil {
		return false, err
	}
	if len(old) == 1 && sameDatasource(old[0], d) {
		return false, nil
	}
	if n, err := g.waiting(d.Name); err != nil {
		return false, err
	} else if t, terr := d.tuning(); n > 0 && terr == nil && (!t.writeBack || d.ReadOnly) {
		return false, fault.New(op, d.Name, fault.Invalid, g.errWaiting(n, d.Name, "writeBack has to stay on until they are"))
	}
	if len(old) == 1 && old[0].Guest && d.Owner == 0 && maps.Equal(old[0].Options, d.Options) {
		d.Guest = true // the address is still that user's choice
	}
	options, err := json.Marshal(d.Options)
	if err != nil {
		return false, fault.New(op, d.Name, fault.Internal, err)
	}
	sealed, err := g.sealMap(d.Credentials, sealContext(d.Name))
	if err != nil {
		return false, err
	}
	// Somewhere else it may well be new, and another server.
	if err := store.SetSetting(tx, "datasource."+d.Name+".probe", ""); err != nil {
		return false, err
	}
	if len(old) == 1 && (old[0].Driver != d.Driver || !maps.Equal(old[0].Options, d.Options)) {
		if err := g.Forget(tx, d.Name); err != nil {
			return false, err
		}
	}
	if err := store.SetSetting(tx, "datasource."+d.Name+".id", ""); err != nil {
		return false, err
	}
	_, err = tx.Exec(`INSERT INTO datasources (name, driver, options, mode, fallback, credentials, read_only, durability, owner, template, guest, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
		ON CONFLICT (name) DO UPDATE SET driver = excluded.driver, options = excluded.options, mode = excluded.mode, fallback = excluded.fallback,
			credentials = excluded.credentials, read_only = excluded.read_only, durability = excluded.durability, guest = excluded.guest`,
		d.Name, d.Driver, string(options), d.Mode, d.Fallback, sealed, flag(d.ReadOnly), d.Durability, d.Owner, d.Template, flag(d.Guest), g.now())
	return true, fault.Wrap(op, d.Name, err)
}

// DeleteDatasource forgets a datasource with everything the store knows of its nodes; the files stay where they are. It is Exist while a
// workspace names it.
func (g *Gateway) DeleteDatasource(tx *store.Tx, name string) error {
	const op = "gateway.DeleteDatasource"
	ws, err := loadWorkspaces(tx)
	if err != nil {
		return err
	}
	for _, w := range ws {
		for _, r := range w.Roots {
			if root, err := parseRoot(r); err == nil && root.datasource == name {
				return fault.New(op, name, fault.Exist, fmt.Errorf("workspace %s has the root %s", w.Slug, r))
			}
		}
	}
	if n, err := g.waiting(name); err != nil {
		return err
	} else if n > 0 {
		return fault.New(op, name, fault.Exist, g.errWaiting(n, name, "it has to stay until they are"))
	}
	res, err := tx.Exec(`DELETE FROM datasources WHERE name = $1`, name)
	if err != nil {
		return fault.Wrap(op, name, err)
	}
	if n, err := res.RowsAffected(); err == nil && n == 0 {
		return fault.New(op, name, fault.NotExist, nil)
	}
	for _, q := range []string{
		`DELETE FROM props WHERE node IN (SELECT id FROM nodes WHERE datasource = $1)`,
		`DELETE FROM nodes WHERE datasource = $1`,
		`DELETE FROM locks WHERE datasource = $1`,
		`DELETE FROM uploads WHERE datasource = $1`,
		`DELETE FROM credentials WHERE datasource = $1`,
		`DELETE FROM settings WHERE key = 'datasource.' || $1 || '.probe'`,
		`DELETE FROM journal WHERE datasource = $1`,
		`DELETE FROM settings WHERE key IN ('datasource.' || $1 || '.id', 'datasource.' || $1 || '.case')`,
	} {
		if _, err := tx.Exec(q, name); err != nil {
			return fault.Wrap(op, name, err)
		}
	}
	tx.OnCommit(func() { g.journal.drop(name) })
	return g.Forget(tx, name)
}

// PutWorkspace makes or changes a workspace within tx and reports whether anything changed. Reload makes it so and creates missing root
// folders.
func (g *Gateway) PutWorkspace(tx *store.Tx, w Workspace) (changed bool, err error) {
	const op = "gateway.PutWorkspace"
	if w.Quota < 0 {
		w.Quota = -1
	}
	known, err := g.loadDatasources(tx, "")
	if err != nil {
		return false, err
	}
	names := make([]string, len(known))
	for i, d := range known {
		names[i] = d.Name
	}
	if errs := g.CheckWorkspace(w, names...); len(errs) > 0 {
		return false, errors.Join(errs...)
	}
	all, err := loadWorkspaces(tx)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(all, func(o Workspace) bool { return o.Slug == w.Slug })
	if i >= 0 && all[i].Label == w.Label && all[i].Quota == w.Quota && slices.Equal(all[i].Roots, w.Roots) {
		return false, nil
	}
	roots, err := json.Marshal(w.Roots)
	if err != nil {
		return false, fault.New(op, w.Slug, fault.Internal, err)
	}
	if w.Quota >= 0 && (i < 0 || all[i].Quota < 0 || !slices.Equal(all[i].Roots, w.Roots)) {
		if err := store.SetSetting(tx, unmeasured(w.Slug), "1"); err != nil {
			return false, err
		}
	}
	_, err = tx.Exec(`INSERT INTO workspaces (slug, label, roots, quota, created) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (slug) DO UPDATE SET label = excluded.label, roots = excluded.roots, quota = excluded.quota`,
		w.Slug, w.Label, string(roots), w.Quota, g.now())
	return true, fault.Wrap(op, w.Slug, err)
}

// DeleteWorkspace takes a workspace out of everybody's tree within tx, with its quota; its files stay. Its grants are the caller's to replace.
func (g *Gateway) DeleteWorkspace(tx *store.Tx, slug string) error {
	const op = "gateway.DeleteWorkspace"
	res, err := tx.Exec(`DELETE FROM workspaces WHERE slug = $1`, slug)
	if err != nil {
		return fault.Wrap(op, slug, err)
	}
	if n, err := res.RowsAffected(); err == nil && n == 0 {
		return fault.New(op, slug, fault.NotExist, nil)
	}
	if err := store.SetSetting(tx, unmeasured(slug), ""); err != nil {
		return err
	}
	return g.quota.Drop(tx, "workspace:"+slug)
}

// ForgetUser drops within tx what the core holds for a user who is being deleted: locks, credentials, the datasources that the user completed
// from templates with their workspaces, and the quota of what the user wrote. The files stay, nobody's. A namesake made later inherits
// nothing. Reload makes it so.
func (g *Gateway) ForgetUser(tx *store.Tx, id int64, login string) error {
	const op = "gateway.ForgetUser"
	if err := g.ForgetLocks(tx, id); err != nil {
		return fault.Wrap(op, login, err)
	}
	for _, q := range []string{`DELETE FROM credentials WHERE user_id = $1`, `DELETE FROM uploads WHERE holder = $1`} {
		if _, err := tx.Exec(q, id); err != nil {
			return fault.Wrap(op, login, err)
		}
	}
	tx.OnCommit(func() {
		for _, ds := range g.table.Load().datasources {
			ds.tenants.forget(id)
		}
	})
	if err := g.forgetOwn(tx, id); err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE nodes SET owner = '' WHERE owner = $1`, login); err != nil {
		return fault.Wrap(op, login, err)
	}
	return g.quota.Drop(tx, userScope(login))
}

// forgetOwn detaches within tx what a user has completed: nobody else may go on with that user's own keys. What an admin has put into another
// workspace stays.
func (g *Gateway) forgetOwn(tx *store.Tx, id int64) error {
	all, err := g.loadDatasources(tx, "")
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Owner != id || id == 0 {
			continue
		}
		if err := g.DeleteWorkspace(tx, d.Name); err != nil && fault.KindOf(err) != fault.NotExist {
			return err
		}
		if err := g.DeleteDatasource(tx, d.Name); err != nil && fault.KindOf(err) != fault.Exist {
			return err
		}
	}
	return nil
}

// ForgetLocks drops within tx the locks of a user, who is being disabled or deleted: they would bind everybody else until they run out.
func (g *Gateway) ForgetLocks(tx *store.Tx, id int64) error { return g.locks.forgetHolder(tx, id) }

// Workspaces returns every workspace with its state, by slug.
func (g *Gateway) Workspaces() []WorkspaceStatus {
	var all []WorkspaceStatus
	t := g.table.Load()
	for _, slug := range slices.Sorted(maps.Keys(t.workspaces)) {
		w := t.workspaces[slug]
		st := WorkspaceStatus{Workspace: w.Workspace, State: "up"}
		for _, r := range w.roots {
			ds := t.datasources[r.datasource]
			if ds == nil {
				st.State, st.Err = "unavailable", fault.New("gateway", r.datasource, fault.NotExist, nil)
			} else if _, err := ds.open(); err != nil && !ds.personal() {
				st.State, st.Err = "unavailable", err
			}
		}
		all = append(all, st)
	}
	return all
}

// GrantPlace returns the place a grant's "on" names: "workspace:/path" (of a workspace with one root, or with the root's folder as the
// first segment) or "datasource:/path". Workspaces that are only being declared are given in declared; they go before those that exist.
// A place in a template workspace keeps its words in braces: the core expands it for each subject.
func (g *Gateway) GrantPlace(on string, declared ...Workspace) (policy.Place, error) {
	const op = "gateway.GrantPlace"
	head, rest, ok := strings.Cut(on, ":")
	if !ok {
		return policy.Place{}, fault.New(op, on, fault.Invalid, errors.New(`want "workspace:/path" or "datasource:/path"`))
	}
	p, err := ParsePath(rest)
	if err != nil {
		return policy.Place{}, err
	}
	t := g.table.Load()
	w := t.workspaces[head]
	known := t.datasources[head] != nil
	for _, d := range declared {
		if d.Slug == head {
			if w, err = newWorkspace(d); err != nil {
				return policy.Place{}, err
			}
		}
		known = known || slices.ContainsFunc(d.Roots, func(r string) bool { return strings.HasPrefix(r, head+":") })
	}
	switch {
	case w != nil && len(w.roots) == 1:
		return t.place(w.roots[0].datasource, join(w.roots[0].path, p.s)), nil
	case w != nil:
		folder, inner, _ := strings.Cut(p.s, "/")
		i := slices.Index(w.names, folder)
		if i < 0 {
			return policy.Place{}, fault.New(op, on, fault.Invalid, fmt.Errorf("workspace %s has the roots %s", head, strings.Join(w.names, ", ")))
		}
		return t.place(w.roots[i].datasource, join(w.roots[i].path, inner)), nil
	case known:
		return t.place(head, join(".", p.s)), nil
	}
	return policy.Place{}, fault.New(op, on, fault.NotExist, fmt.Errorf("there is no workspace or datasource %q", head))
}

// RootPlace returns the place that a root of a workspace names: always "datasource:/path", though a workspace may be called the same. Words in
// braces stay.
func (g *Gateway) RootPlace(s string) (policy.Place, error) {
	r, err := parseRoot(s)
	if err != nil {
		return policy.Place{}, fault.New("gateway.RootPlace", s, fault.Invalid, err)
	}
	return g.table.Load().place(r.datasource, r.path), nil
}

func normalise(d *Datasource) {
	if d.Mode == "" {
		d.Mode = Shared
	}
	if d.Fallback == "refuse" {
		d.Fallback = ""
	}
	if d.Durability == "" {
		d.Durability = Synced
	}
	if d.Options == nil {
		d.Options = map[string]string{}
	}
}

func sameDatasource(a, b Datasource) bool {
	return a.Name == b.Name && a.Driver == b.Driver && a.Mode == b.Mode && a.Fallback == b.Fallback && a.Owner == b.Owner && a.Guest == b.Guest && a.ReadOnly == b.ReadOnly && a.Durability == b.Durability &&
		maps.Equal(a.Options, b.Options) && maps.Equal(a.Credentials, b.Credentials)
}

func sealContext(datasource string) string { return "datasource " + datasource }

// flag is a bool as rows keep it.
func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
