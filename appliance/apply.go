package appliance

import (
	"context"
	"slices"
	"time"

	"cellgate/appliance/strict"
	"cellgate/gateway"
	"cellgate/policy"
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
	c.all()
	if err := c.problems.Err(); err != nil {
		return applied{}, err
	}
	p, err := b.plan(ctx, doc, &st)
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
				out.Warnings = append(out.Warnings, doc.Problem(key("datasources", i), "down: %s", plain(now.Err)))
			}
		}
	}
	return out, nil
}

// world returns what exists.
func (b *box) world(ctx context.Context) (world, error) {
	w := world{
		users: map[string]bool{}, groups: map[string]bool{}, roles: map[string]bool{},
		datasources: map[string]bool{}, workspaces: map[string]bool{}, policies: map[string]bool{},
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
		w.users[u.Login] = true
	}
	for _, g := range groups {
		w.groups[g.Path] = true
	}
	for _, r := range roles {
		w.roles[r.Name] = true
	}
	for _, p := range policies {
		w.policies[p.Name] = true
	}
	for _, d := range b.gateway.Datasources(ctx) {
		w.datasources[d.Name] = true
	}
	for _, ws := range b.gateway.Workspaces() {
		w.workspaces[ws.Slug] = true
	}
	return w, nil
}

// plan is what has to be worked out before the transaction: it takes long, or it reads what the transaction changes.
type plan struct {
	specs     []identity.Spec
	workspace [][]policy.Grant // by workspace; nil where the file says nothing about grants
	grants    []policy.Grant   // those that differ from what is there
	fresh     []bool           // by grant: there was none
	guards    [][]policy.Place // by policy
	limits    []limit
}

// limit is a quota of a user that differs from what is there.
type limit struct {
	login string
	bytes int64
}

// declaredSource is the source of grants that stand by themselves.
const declaredSource = "apply"

func (b *box) plan(ctx context.Context, doc *strict.Document, st *state) (*plan, error) {
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
			p.limits = append(p.limits, limit{policy.FoldLogin(u.Login), most})
		}
	}
	declared := st.workspaces()
	for i, w := range st.Workspaces {
		var gs []policy.Grant
		if doc.Has(key("workspaces", i) + ".grants") {
			infos := make([]grantInfo, len(w.Grants))
			for i, g := range w.Grants {
				infos[i] = grantInfo{To: g.To, Rights: g.Rights, Expires: g.Expires}
			}
			var err error
			if gs, err = b.workspaceGrants(declared[i], infos, declared...); err != nil {
				return nil, err
			}
			if gs == nil {
				gs = []policy.Grant{}
			}
		}
		p.workspace = append(p.workspace, gs)
	}
	for _, sp := range st.Policies {
		var places []policy.Place
		for _, on := range sp.Guards {
			at, err := b.gateway.GrantPlace(on, declared...)
			if err != nil {
				return nil, err
			}
			places = append(places, at)
		}
		p.guards = append(p.guards, places)
	}
	return p, b.planGrants(ctx, st, declared, p)
}

func (b *box) planGrants(ctx context.Context, st *state, declared []gateway.Workspace, p *plan) error {
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
		on, err := b.gateway.GrantPlace(g.On, declared...)
		if err != nil {
			return err
		}
		want := policy.Grant{To: to, On: on, Rights: rights, Policy: name, Expires: g.Expires, Source: declaredSource}
		i := slices.IndexFunc(have, func(h policy.Grant) bool { return h.To == to && h.On == on })
		if i >= 0 && have[i].Rights == rights && have[i].Policy == name && have[i].Expires.Equal(g.Expires) {
			continue
		}
		p.grants, p.fresh = append(p.grants, want), append(p.fresh, i < 0)
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
func (w *writer) note(kind, name string, existed, changed bool) {
	if !changed {
		return
	}
	sign := "~"
	if !existed {
		sign = "+"
	}
	w.changes = append(w.changes, change{Sign: sign, Kind: kind, Name: name})
	w.box.record(w.tx, localActor, "apply."+kind, name)
}

func (w *writer) all(st *state, p *plan) error {
	steps := []func(*state, *plan) error{w.identity, w.datasources, w.policies, w.workspaces, w.grants}
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
		w.note("group", path, w.before.groups[path], changed)
	}
	for _, r := range st.Roles {
		changed, err := w.box.identity.PutRole(w.tx, identity.Role{Name: r.Name, Label: r.Label})
		if err != nil {
			return err
		}
		w.note("role", r.Name, w.before.roles[r.Name], changed)
	}
	for _, sp := range p.specs {
		changed, err := w.box.identity.PutUser(w.tx, sp)
		if err != nil {
			return err
		}
		login := policy.FoldLogin(sp.Login)
		limited := slices.IndexFunc(p.limits, func(l limit) bool { return l.login == login })
		if limited >= 0 {
			if err := w.box.quota.SetLimit(w.tx, "user:"+login, p.limits[limited].bytes); err != nil {
				return err
			}
		}
		w.note("user", login, w.before.users[login], changed || limited >= 0)
	}
	return nil
}

func (w *writer) datasources(st *state, _ *plan) error {
	for _, d := range st.Datasources {
		changed, err := w.box.gateway.PutDatasource(w.tx, d.gateway())
		if err != nil {
			return err
		}
		w.note("datasource", d.Name, w.before.datasources[d.Name], changed)
	}
	return nil
}

func (w *writer) policies(st *state, p *plan) error {
	for i, sp := range st.Policies {
		changed, err := w.box.engine.PutPolicy(w.tx, policy.Policy{Policy: sp.guard(), Guards: p.guards[i]})
		if err != nil {
			return err
		}
		w.note("policy", sp.Name, w.before.policies[sp.Name], changed)
	}
	return nil
}

func (w *writer) workspaces(st *state, p *plan) error {
	for i, sw := range st.Workspaces {
		changed, err := w.box.gateway.PutWorkspace(w.tx, sw.gateway())
		if err != nil {
			return err
		}
		if p.workspace[i] != nil {
			regranted, err := w.box.engine.ReplaceGrants(w.tx, workspaceSource(sw.Slug), p.workspace[i])
			if err != nil {
				return err
			}
			changed = changed || regranted
		}
		w.note("workspace", sw.Slug, w.before.workspaces[sw.Slug], changed)
	}
	return nil
}

func (w *writer) grants(_ *state, p *plan) error {
	for i, g := range p.grants {
		if err := w.box.engine.PutGrant(w.tx, g); err != nil {
			return err
		}
		until := ""
		if !g.Expires.IsZero() {
			until = " until " + g.Expires.Format(time.RFC3339)
		}
		w.note("grant", string(g.To)+" on "+g.On.String()+until, !p.fresh[i], true)
	}
	return nil
}
