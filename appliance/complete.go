package appliance

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cellgate/appliance/strict"
	"cellgate/gateway"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
)

// complete gives the entries of things that exist what they do not mention: a state says what shall be so, and nothing about the rest. A key
// that is there and empty (null, "", []) resets.
func (st *state) complete(doc *strict.Document, w world) {
	for i := range st.Users {
		st.Users[i].complete(doc, key("users", i), w)
	}
	for i := range st.Groups {
		g := &st.Groups[i]
		path, _ := policy.CanonicalGroup(g.Path)
		keep(doc, key("groups", i)+".label", &g.Label, w.groups[path])
	}
	for i := range st.Roles {
		r := &st.Roles[i]
		keep(doc, key("roles", i)+".label", &r.Label, w.roles[r.Name].Label)
	}
	for i := range st.Datasources {
		st.Datasources[i].complete(doc, key("datasources", i), w)
	}
	for i := range st.Workspaces {
		ws, k := &st.Workspaces[i], key("workspaces", i)
		if old, ok := w.workspaces[ws.Slug]; ok {
			most := size(old.Quota)
			keep(doc, k+".label", &ws.Label, old.Label)
			keep(doc, k+".roots", &ws.Roots, old.Roots)
			keep(doc, k+".quota", &ws.Quota, &most)
		}
	}
	for i := range st.Policies {
		p, k := &st.Policies[i], key("policies", i)
		if old, ok := w.policies[p.Name]; ok {
			keep(doc, k+".label", &p.Label, old.Label)
			keep(doc, k+".kind", &p.Kind, old.Kind)
			keep(doc, k+".rules", &p.Rules, old.Rules)
		}
	}
}

// keep sets what the file does not mention to what it was.
func keep[T any](doc *strict.Document, key string, to *T, was T) {
	if !doc.Has(key) {
		*to = was
	}
}

func (u *stateUser) complete(doc *strict.Document, k string, w world) {
	if doc.Has(k+".sshKeys") && u.SSHKeys == nil {
		u.SSHKeys = []string{}
	}
	if doc.Has(k+".s3Keys") && u.S3Keys == nil {
		u.S3Keys = []stateS3Key{}
	}
	if doc.Has(k+".quota") && u.Quota == nil {
		none := size(-1)
		u.Quota = &none
	}
	old, ok := w.users[policy.FoldLogin(u.Login)]
	if !ok {
		return
	}
	keep(doc, k+".name", &u.Name, old.Name)
	keep(doc, k+".email", &u.Email, old.Email)
	keep(doc, k+".group", &u.Group, old.Group)
	keep(doc, k+".profile", &u.Profile, old.Profile.String())
	keep(doc, k+".roles", &u.Roles, old.Roles)
	keep(doc, k+".disabled", &u.Disabled, old.Disabled)
}

func (d *stateDatasource) complete(doc *strict.Document, k string, w world) {
	old, ok := w.datasources[d.Name]
	if !ok {
		return
	}
	keep(doc, k+".driver", &d.Driver, old.Driver)
	keep(doc, k+".readOnly", &d.ReadOnly, old.ReadOnly)
	keep(doc, k+".durability", &d.Durability, old.Durability)
	if d.Driver != old.Driver {
		return // another driver understands neither
	}
	keep(doc, k+".options", &d.Options, old.Options)
	credentials := map[string]secret.String{"mode": secret.New(old.Mode)}
	maps.Copy(credentials, old.Credentials)
	keep(doc, k+".credentials", &d.Credentials, credentials)
}

// diff says in words what a change changes.
type diff []string

// compare notes what differs.
func (d *diff) compare(what string, was, is any) {
	if a, b := fmt.Sprint(was), fmt.Sprint(is); a != b {
		*d = append(*d, what+" "+orDash(clean(a))+" -> "+orDash(clean(b)))
	}
}

// note notes what has no words, or none to show.
func (d *diff) note(what string, changed bool) {
	if changed {
		*d = append(*d, what)
	}
}

func diffWorkspace(was, is gateway.Workspace) (d diff) {
	d.compare("label", was.Label, is.Label)
	d.compare("roots", strings.Join(was.Roots, ","), strings.Join(is.Roots, ","))
	d.compare("quota", bytesText(was.Quota), bytesText(is.Quota))
	return d
}

func diffUser(was identity.User, is identity.Spec) (d diff) {
	state := map[bool]string{true: "disabled", false: "enabled"}
	roles := slices.Compact(slices.Sorted(slices.Values(is.Roles)))
	if is.Group == "" {
		is.Group = "/"
	}
	d.compare("name", was.Name, is.Name)
	d.compare("email", was.Email, is.Email)
	d.compare("group", was.Group, is.Group)
	d.compare("profile", was.Profile, is.Profile)
	d.compare("roles", strings.Join(was.Roles, ","), strings.Join(roles, ","))
	d.compare("state", state[was.Disabled], state[is.Disabled])
	d.note("password", is.PasswordHash != "")
	return d
}

// diffDatasource names credentials only.
func diffDatasource(was, is gateway.Datasource) (d diff) {
	if is.Durability == "" {
		is.Durability = gateway.Synced
	}
	d.compare("driver", was.Driver, is.Driver)
	for _, k := range slices.Sorted(maps.Keys(is.Options)) {
		d.compare("option "+k, was.Options[k], is.Options[k])
	}
	for _, k := range slices.Sorted(maps.Keys(was.Options)) {
		d.note("option "+k+" removed", !has(is.Options, k))
	}
	d.compare("mode of credentials", was.Mode, cmp.Or(is.Mode, gateway.Shared))
	d.note("credentials", !maps.Equal(was.Credentials, is.Credentials))
	d.compare("read-only", was.ReadOnly, is.ReadOnly)
	d.compare("durability", was.Durability, is.Durability)
	return d
}
