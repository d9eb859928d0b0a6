package appliance

import (
	"context"
	"slices"
	"strings"
	"time"

	"cellgate/appliance/strict"
	"cellgate/gateway"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/policy/identity"
	"cellgate/policy/quota"
	"cellgate/store"
)

// apply makes a declared state so, in one transaction, and returns what changed. It fails with strict.Problems, all of them, and then nothing
// is applied. It adds and changes; what is not declared stays.
func (b *box) apply(ctx context.Context, source string, src []byte) (applied, error) {
	b.administering.Lock()
	defer b.administering.Unlock()
	var st state
	doc, problems := strict.Decode(source, src, &st)
	before, err := b.world(ctx)
	if err != nil {
		return applied{}, err
	}
	c := &checker{doc: doc, st: &st, world: before, gateway: b.gateway, engine: b.engine, problems: problems}
	st.complete(doc, before)
	c.all()
	if err := c.problems.Err(); err != nil {
		return applied{}, err
	}
	p, err := b.plan(ctx, doc, &st, before)
	if err != nil {
		return applied{}, err
	}
	var w writer
	err = b.db.Update(ctx, func(tx *store.Tx) error {
		w = writer{box: b, tx: tx, before: before, changes: []change{}}
		return w.all(&st, p)
	})
	if err != nil {
		return applied{}, err
	}
	if err := b.gateway.Reload(context.WithoutCancel(ctx)); err != nil {
		return applied{}, err
	}
	out := applied{Changes: w.changes, Warnings: c.warnings}
	for i, ds := range st.Datasources {
		for _, now := range b.gateway.Datasources(ctx) {
			if now.Name == ds.Name && now.State != stateUp {
				out.Warnings = append(out.Warnings, doc.Problem(key("datasources", i), "%s: %s", now.State, plain(now.Err)))
			}
		}
	}
	return out, nil
}

// world returns what exists.
func (b *box) world(ctx context.Context) (world, error) {
	w := world{
		users: map[string]identity.User{}, groups: map[string]string{}, roles: map[string]identity.Role{},
		datasources: map[string]gateway.Datasource{}, workspaces: map[string]gateway.Workspace{}, policies: map[string]policy.Policy{},
	}
	users, err := b.identity.Users(ctx, identity.UserFilter{})
	if err != nil {
		return w, err
	}
	groups, err := b.identity.Groups(ctx)
	if err != nil {
		return w, err
	}
	roles, err := b.identity.Roles(ctx)
	if err != nil {
		return w, err
	}
	policies, err := b.engine.Policies(ctx)
	if err != nil {
		return w, err
	}
	for _, u := range users {
		w.users[u.Login] = u
	}
	for _, g := range groups {
		w.groups[g.Path] = g.Label
	}
	for _, r := range roles {
		w.roles[r.Name] = r
	}
	for _, p := range policies {
		w.policies[p.Name] = p
	}
	for _, d := range b.gateway.Datasources(ctx) {
		w.datasources[d.Name] = d.Datasource
	}
	for _, ws := range b.gateway.Workspaces() {
		w.workspaces[ws.Slug] = ws.Workspace
	}
	return w, nil
}

// plan is what has to be worked out before the transaction: it takes long, or it reads what the transaction changes.
type plan struct {
	specs     []identity.Spec
	workspace [][]policy.Grant // by workspace; nil where they stay as they are
	grants    []policy.Grant   // those that differ from what is there
	fresh     []bool           // by grant: there was none
	differ    []diff           // by grant: how it differs from the one there was
	guards    [][]policy.Place // by policy
	limits    []limit
}

// limit is a quota of a user that differs from what is there.
type limit struct {
	login   string
	was, is int64
}

// declaredSource is the source of grants that stand by themselves.
const declaredSource = "apply"

func (b *box) plan(ctx context.Context, doc *strict.Document, st *state, before world) (*plan, error) {
	p := &plan{}
	for _, u := range st.Users {
		sp, err := u.spec()
		if err != nil {
			return nil, err
		}
		if err := b.identity.Prepare(ctx, &sp); err != nil {
			return nil, err
		}
		p.specs = append(p.specs, sp)
		if u.Quota == nil {
			continue
		}
		most := max(int64(*u.Quota), quota.None)
		if _, now, err := b.quota.Usage(ctx, "user:"+policy.FoldLogin(u.Login)); err != nil {
			return nil, err
		} else if now != most {
			p.limits = append(p.limits, limit{policy.FoldLogin(u.Login), now, most})
		}
	}
	declared := st.workspaces()
	for i, w := range st.Workspaces {
		var gs []policy.Grant
		declares := doc.Has(key("workspaces", i) + ".grants")
		if old, ok := before.workspaces[w.Slug]; declares || ok && !slices.Equal(old.Roots, w.Roots) {
			infos := make([]grantInfo, len(w.Grants))
			for i, g := range w.Grants {
				infos[i] = grantInfo{To: g.To, Rights: g.Rights, Expires: g.Expires}
			}
			var err error
			if !declares { // those there are follow to the new roots
				if infos, err = b.grantsOf(ctx, w.Slug); err != nil {
					return nil, err
				}
			}
			if gs, err = b.workspaceGrants(declared[i], infos); err != nil {
				return nil, err
			}
			if gs == nil {
				gs = []policy.Grant{}
			}
		}
		p.workspace = append(p.workspace, gs)
	}
	for i, sp := range st.Policies {
		var places []policy.Place
		if !doc.Has(key("policies", i) + ".guards") {
			places = before.policies[sp.Name].Guards
		}
		for _, on := range sp.Guards {
			at, err := st.place(b.gateway, on)
			if err != nil {
				return nil, err
			}
			places = append(places, at)
		}
		p.guards = append(p.guards, places)
	}
	return p, b.planGrants(ctx, st, p)
}

func (b *box) planGrants(ctx context.Context, st *state, p *plan) error {
	have, err := b.engine.Grants(ctx, policy.Filter{Source: declaredSource})
	if err != nil {
		return err
	}
	for _, g := range st.Grants {
		to, err := policy.ParsePrincipal(g.To)
		if err != nil {
			return err
		}
		rights, name, err := policy.ParseRights(g.Rights)
		if err != nil {
			return err
		}
		on, err := st.place(b.gateway, g.On)
		if err != nil {
			return err
		}
		want := policy.Grant{To: to, On: on, Rights: rights, Policy: name, Expires: g.Expires, Source: declaredSource}
		i := slices.IndexFunc(have, func(h policy.Grant) bool { return h.To == to && h.On == on })
		if i >= 0 && have[i].Rights == rights && have[i].Policy == name && have[i].Expires.Equal(g.Expires) {
			continue
		}
		var d diff
		if i >= 0 {
			d.compare("rights", strings.Join(rightsWords(have[i]), "+"), strings.Join(rightsWords(want), "+"))
			d.compare("expires", stamp(have[i].Expires), stamp(g.Expires))
		}
		p.grants, p.fresh, p.differ = append(p.grants, want), append(p.fresh, i < 0), append(p.differ, d)
	}
	return nil
}

// writer makes the changes within a transaction and notes them.
type writer struct {
	box     *box
	tx      *store.Tx
	before  world
	changes []change
}

// note records a change, if there was one, in the result and in the audit log.
func (w *writer) note(kind, name string, existed, changed bool, what diff) {
	if !changed {
		return
	}
	c := change{Sign: "~", Kind: kind, Name: name, What: what}
	if !existed {
		c.Sign, c.What = "+", nil
	}
	w.changes = append(w.changes, c)
	w.box.audit.Append(w.tx, audit.Record{
		Actor: localActor, Action: "apply." + kind, Place: name, Outcome: "ok", Protocol: "admin", Detail: strings.Join(c.What, ", "),
	})
}

func (w *writer) all(st *state, p *plan) error {
	steps := []func(*state, *plan) error{w.identity, w.datasources, w.credentials, w.policies, w.workspaces, w.grants}
	for _, step := range steps {
		if err := step(st, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) identity(st *state, p *plan) error {
	for _, g := range st.Groups {
		changed, err := w.box.identity.PutGroup(w.tx, identity.Group{Path: g.Path, Label: g.Label})
		if err != nil {
			return err
		}
		path, _ := policy.CanonicalGroup(g.Path)
		var d diff
		d.compare("label", w.before.groups[path], g.Label)
		w.note("group", path, has(w.before.groups, path), changed, d)
	}
	for _, r := range st.Roles {
		changed, err := w.box.identity.PutRole(w.tx, identity.Role{Name: r.Name, Label: r.Label, Profiles: w.before.roles[r.Name].Profiles})
		if err != nil {
			return err
		}
		var d diff
		d.compare("label", w.before.roles[r.Name].Label, r.Label)
		w.note("role", r.Name, has(w.before.roles, r.Name), changed, d)
	}
	for _, sp := range p.specs {
		if err := w.user(sp, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) user(sp identity.Spec, p *plan) error {
	login := policy.FoldLogin(sp.Login)
	was, existed := w.before.users[login]
	d := diffUser(was, sp)
	bare := sp
	bare.SSHKeys, bare.S3Keys = nil, nil
	changed, err := w.box.identity.PutUser(w.tx, bare)
	if err != nil {
		return err
	}
	rekeyed, err := w.box.identity.PutUser(w.tx, sp)
	if err != nil {
		return err
	}
	d.note("keys", rekeyed)
	limited := slices.IndexFunc(p.limits, func(l limit) bool { return l.login == login })
	if limited >= 0 {
		l := p.limits[limited]
		d.compare("quota", bytesText(l.was), bytesText(l.is))
		if err := w.box.quota.SetLimit(w.tx, "user:"+login, l.is); err != nil {
			return err
		}
	}
	if existed && sp.Disabled && !was.Disabled {
		if err := w.box.gateway.ForgetLocks(w.tx, was.ID); err != nil {
			return err
		}
	}
	w.note("user", login, existed, changed || rekeyed || limited >= 0, d)
	return nil
}

func (w *writer) datasources(st *state, _ *plan) error {
	for _, d := range st.Datasources {
		changed, err := w.box.gateway.PutDatasource(w.tx, d.gateway())
		if err != nil {
			return err
		}
		w.note("datasource", d.Name, has(w.before.datasources, d.Name), changed, diffDatasource(w.before.datasources[d.Name], d.gateway()))
	}
	return nil
}

// credentials stores the templates, and the credentials that are each user's own.
func (w *writer) credentials(st *state, _ *plan) error {
	for _, t := range st.Templates {
		changed, err := w.box.gateway.PutTemplate(w.tx, t.gateway())
		if err != nil {
			return err
		}
		w.note("template", t.Name, false, changed, nil)
	}
	for _, u := range st.Users {
		for _, own := range u.Credentials {
			user, err := w.box.identity.UserID(w.tx, u.Login)
			if err != nil {
				return err
			}
			name := own["datasource"].Reveal()
			changed, err := w.box.gateway.PutCredentials(w.tx, name, user, ownSecrets(own))
			if err != nil {
				return err
			}
			w.note("credentials", policy.FoldLogin(u.Login)+" "+name, true, changed, nil)
		}
	}
	return nil
}

func (w *writer) policies(st *state, p *plan) error {
	for i, sp := range st.Policies {
		changed, err := w.box.engine.PutPolicy(w.tx, policy.Policy{Policy: sp.guard(), Guards: p.guards[i]})
		if err != nil {
			return err
		}
		w.note("policy", sp.Name, has(w.before.policies, sp.Name), changed, nil)
	}
	return nil
}

func (w *writer) workspaces(st *state, p *plan) error {
	for i, sw := range st.Workspaces {
		d := diffWorkspace(w.before.workspaces[sw.Slug], sw.gateway())
		changed, err := w.box.gateway.PutWorkspace(w.tx, sw.gateway())
		if err != nil {
			return err
		}
		if p.workspace[i] != nil {
			regranted, err := w.box.engine.ReplaceGrants(w.tx, workspaceSource(sw.Slug), p.workspace[i])
			if err != nil {
				return err
			}
			d.note("grants", regranted)
			changed = changed || regranted
		}
		w.note("workspace", sw.Slug, has(w.before.workspaces, sw.Slug), changed, d)
	}
	return nil
}

func (w *writer) grants(_ *state, p *plan) error {
	for i, g := range p.grants {
		if err := w.box.engine.PutGrant(w.tx, g); err != nil {
			return err
		}
		until := ""
		if p.fresh[i] && !g.Expires.IsZero() {
			until = " until " + g.Expires.Format(time.RFC3339)
		}
		w.note("grant", string(g.To)+" on "+g.On.String()+until, !p.fresh[i], true, p.differ[i])
	}
	return nil
}
