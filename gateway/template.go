package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
)

// Template is a datasource that an admin has filled in half. A user who completes it, with his own Dropbox or his own share, gets a
// workspace that nobody else sees.
type Template struct {
	Name        string
	Label       string
	Driver      string
	Options     map[string]string        // what the admin filled in; values may use {login} and {group}
	Credentials map[string]secret.String // likewise; the user never sees them
	Asks        []string                 // keys of options and credentials that the user fills in
	To          []policy.Principal       // who may
	ReadOnly    bool
}

// Completed is what completing a template made.
type Completed struct {
	Datasource string
	Workspace  string
	Created    bool // false: it was there, and has been changed
}

// placeOptions are options of drivers that say where on a server something lies, and not which server is dialled. Who fills in only these stays
// with the address that the admin chose, which may be a private one.
var placeOptions = []string{"path", "share", "domain"}

// addressOptions are those that say which server is dialled.
var addressOptions = []string{"address", "api", "host", "port", "url", "endpoint"}

// CheckTemplate returns every problem of t.
func (g *Gateway) CheckTemplate(t Template) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fault.New("gateway.CheckTemplate", t.Name, fault.Invalid, fmt.Errorf(format, args...)))
	}
	if !slugPattern.MatchString(t.Name) || len(t.Name) > 32 {
		bad("name %q: 3 to 32 lower-case letters, digits and '-'", t.Name)
	}
	if len(t.To) == 0 {
		bad("says nobody who may complete it")
	}
	d, ok := g.drivers[t.Driver]
	if !ok {
		bad("driver %q: this build has %s", t.Driver, strings.Join(slices.Sorted(maps.Keys(g.drivers)), ", "))
		return errs
	}
	if d.Local {
		bad("driver %s serves folders of this machine, which users cannot bring", t.Driver)
	}
	for _, key := range slices.Sorted(maps.Keys(t.Options)) {
		if !has(d.Options, key) && !isTuning(key) && !has(Spellings(d), key) {
			bad("driver %s has no option %q", t.Driver, key)
		}
		for _, word := range tokenPattern.FindAllString(t.Options[key], -1) {
			if word != "{login}" && word != "{group}" {
				bad("option %s: %w", key, errTemplate)
			}
		}
	}
	for _, err := range g.checkSecrets(t.Driver, t.Credentials) {
		bad("%w", err)
	}
	if len(t.Asks) == 0 {
		bad("asks for nothing; a datasource that is complete needs no template")
	}
	for _, key := range t.Asks {
		_, filled := t.Options[key]
		_, secret := t.Credentials[key]
		switch {
		case !has(d.Options, key) && !has(d.Secrets, key):
			bad("asks for %q, which driver %s does not know", key, t.Driver)
		case filled || secret:
			bad("asks for %q, which is filled in", key)
		case len(t.Credentials) > 0 && slices.Contains(addressOptions, key):
			bad("asks for %q and fills in credentials: whoever completes it could have them sent to a server of his own", key)
		}
	}
	for _, o := range d.Options {
		if o.Required && t.Options[o.Name] == "" && !slices.Contains(t.Asks, o.Name) {
			bad("driver %s needs the option %q, which is neither filled in nor asked for", t.Driver, o.Name)
		}
	}
	return errs
}

// PutTemplate makes or changes a template within tx and reports whether anything changed. What users have completed stays as it is until they
// complete it anew.
func (g *Gateway) PutTemplate(tx *store.Tx, t Template) (changed bool, err error) {
	const op = "gateway.PutTemplate"
	if errs := g.CheckTemplate(t); len(errs) > 0 {
		return false, errors.Join(errs...)
	}
	old, err := g.loadTemplates(tx, t.Name)
	if err != nil {
		return false, err
	}
	if len(old) == 1 && sameTemplate(old[0], t) {
		return false, nil
	}
	sealed, err := g.sealMap(t.Credentials, templateContext(t.Name))
	if err != nil {
		return false, fault.Wrap(op, t.Name, err)
	}
	var words [3]string
	for i, v := range []any{t.Options, t.Asks, t.To} {
		b, err := json.Marshal(v)
		if err != nil {
			return false, fault.New(op, t.Name, fault.Internal, err)
		}
		words[i] = string(b)
	}
	_, err = tx.Exec(`INSERT INTO templates (name, label, driver, options, credentials, asks, principals, read_only, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (name) DO UPDATE SET label = excluded.label, driver = excluded.driver, options = excluded.options,
			credentials = excluded.credentials, asks = excluded.asks, principals = excluded.principals, read_only = excluded.read_only`,
		t.Name, t.Label, t.Driver, words[0], sealed, words[1], words[2], flag(t.ReadOnly), g.now())
	return true, fault.Wrap(op, t.Name, err)
}

// DeleteTemplate forgets a template within tx. What users have completed stays.
func (g *Gateway) DeleteTemplate(tx *store.Tx, name string) error {
	res, err := tx.Exec(`DELETE FROM templates WHERE name = $1`, name)
	if err == nil {
		if n, rerr := res.RowsAffected(); rerr == nil && n == 0 {
			return fault.New("gateway.DeleteTemplate", name, fault.NotExist, nil)
		}
	}
	return fault.Wrap("gateway.DeleteTemplate", name, err)
}

// Templates returns the templates that sub may complete, by name; all of them for nil. Their credentials are left out.
func (g *Gateway) Templates(ctx context.Context, sub *policy.Subject) (all []Template, err error) {
	err = g.db.View(ctx, func(tx *store.Tx) error { all, err = g.loadTemplates(tx, ""); return err })
	for i := range all {
		all[i].Credentials = nil
	}
	if sub != nil {
		all = slices.DeleteFunc(all, func(t Template) bool { return !slices.ContainsFunc(t.To, sub.Has) })
	}
	return all, err
}

// CompleteTemplate makes within tx the datasource and the private workspace that sub gets by filling in what the template asks for; done again,
// it changes them. It is NotExist for a template sub may not complete, and Invalid for values that are not asked for or missing. Hosts that
// a user names must be public or among those an admin allowed. Reload makes it so.
func (g *Gateway) CompleteTemplate(tx *store.Tx, sub *policy.Subject, name string, values map[string]string) (done Completed, err error) {
	const op = "gateway.CompleteTemplate"
	all, err := g.loadTemplates(tx, name)
	if err != nil {
		return done, err
	}
	if len(all) != 1 || !slices.ContainsFunc(all[0].To, sub.Has) {
		return done, fault.New(op, name, fault.NotExist, errors.New("there is no such template for this user"))
	}
	t := all[0]
	ds := Datasource{Driver: t.Driver, ReadOnly: t.ReadOnly, Owner: sub.ID, Template: t.Name, Options: make(map[string]string), Credentials: make(map[string]secret.String)}
	for key, v := range t.Options {
		if ds.Options[key], err = personalise(v, sub); err != nil {
			return done, fault.New(op, name, fault.Invalid, err)
		}
		if ds.Options[key] != v && slices.Contains(addressOptions, key) {
			ds.Guest = true // who chooses a login chooses the address
		}
	}
	maps.Copy(ds.Credentials, t.Credentials)
	driver := g.drivers[t.Driver]
	for key, v := range values {
		switch {
		case !slices.Contains(t.Asks, key):
			return done, fault.New(op, name, fault.Invalid, fmt.Errorf("%q is not asked for; the template asks for %s", key, strings.Join(t.Asks, ", ")))
		case has(driver.Secrets, key):
			ds.Credentials[key] = secret.New(v)
		default:
			ds.Options[key] = v
			ds.Guest = ds.Guest || !slices.Contains(placeOptions, key)
		}
	}
	for _, key := range t.Asks {
		if values[key] == "" && (requires(driver.Options, key) || requires(driver.Secrets, key)) {
			return done, fault.New(op, name, fault.Invalid, fmt.Errorf("%q is missing", key))
		}
	}
	ds.Name = ownName(t.Name, sub.Login)
	done = Completed{Datasource: ds.Name, Workspace: ds.Name}
	there, err := g.loadDatasources(tx, ds.Name)
	if err != nil {
		return done, err
	}
	if len(there) == 1 && (there[0].Owner != sub.ID || there[0].Template != t.Name) {
		return done, fault.New(op, ds.Name, fault.Exist, errors.New("a datasource of this name belongs to somebody else"))
	}
	if done.Created = len(there) == 0; done.Created {
		ws, err := loadWorkspaces(tx)
		if err != nil {
			return done, err
		}
		if slices.ContainsFunc(ws, func(w Workspace) bool { return w.Slug == done.Workspace }) {
			return done, fault.New(op, done.Workspace, fault.Exist, errors.New("there is a workspace of this name, which is not the user's"))
		}
	}
	if _, err := g.PutDatasource(tx, ds); err != nil {
		return done, err
	}
	label := t.Label
	if label == "" {
		label = t.Name
	}
	if _, err := g.PutWorkspace(tx, Workspace{Slug: done.Workspace, Label: label, Roots: []string{ds.Name + ":/"}, Quota: -1}); err != nil {
		return done, err
	}
	rights := policy.Read | policy.Write
	return done, g.engine.PutGrant(tx, policy.Grant{
		To: policy.Principal("user:" + policy.FoldLogin(sub.Login)), On: policy.Place{Datasource: ds.Name, Path: "."}, Rights: rights, Source: "template:" + t.Name,
	})
}

// ownName is the name of the datasource and the slug of the workspace that one user's completion of a template makes. Logins that a slug
// cannot hold are told apart by a digest.
func ownName(template, login string) string {
	word := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, policy.FoldLogin(login))
	if plain := template + "-" + word; word == login && len(plain) <= 62 && slugPattern.MatchString(plain) {
		return plain
	}
	sum := sha256.Sum256([]byte(policy.FoldLogin(login)))
	digest := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
	word = strings.Trim(word, "-")
	return template + "-" + strings.TrimLeft(word[:min(len(word), 62-len(template)-2-len(digest))]+"-"+digest, "-")
}

// personalise puts the user's login and group in the places of the words that stand for them.
func personalise(value string, sub *policy.Subject) (string, error) {
	filled := strings.NewReplacer("{login}", sub.Login, "{group}", strings.Trim(sub.Group, "/")).Replace(value)
	if filled != value && strings.ContainsAny(sub.Login, `/\?#`) {
		return "", errors.New("this login cannot stand in an option")
	}
	return filled, nil
}

func (g *Gateway) loadTemplates(tx *store.Tx, only string) (all []Template, err error) {
	const op = "gateway.loadTemplates"
	rows, err := tx.Query(`SELECT name, label, driver, options, credentials, asks, principals, read_only FROM templates
		WHERE $1 = '' OR name = $1 ORDER BY name`, only)
	if err != nil {
		return nil, fault.Wrap(op, only, err)
	}
	defer rows.Close()
	for rows.Next() {
		var t Template
		var options, asks, to string
		var sealed []byte
		var readOnly int64
		if err := rows.Scan(&t.Name, &t.Label, &t.Driver, &options, &sealed, &asks, &to, &readOnly); err != nil {
			return nil, fault.Wrap(op, only, err)
		}
		t.ReadOnly = readOnly != 0
		if err := errors.Join(json.Unmarshal([]byte(options), &t.Options), json.Unmarshal([]byte(asks), &t.Asks), json.Unmarshal([]byte(to), &t.To)); err != nil {
			return nil, fault.New(op, t.Name, fault.Corrupt, err)
		}
		if sealed != nil {
			if t.Credentials, err = g.unsealMap(sealed, templateContext(t.Name)); err != nil {
				return nil, err
			}
		}
		all = append(all, t)
	}
	return all, fault.Wrap(op, only, rows.Err())
}

func templateContext(name string) string { return "template " + name }

func sameTemplate(a, b Template) bool {
	return a.Label == b.Label && a.Driver == b.Driver && a.ReadOnly == b.ReadOnly && maps.Equal(a.Options, b.Options) &&
		maps.Equal(a.Credentials, b.Credentials) && slices.Equal(a.Asks, b.Asks) && slices.Equal(a.To, b.To)
}
