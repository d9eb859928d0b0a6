package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/appliance/strict"
	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
)

// change runs fn in one transaction and has the core take up what it did.
func (b *box) change(ctx context.Context, fn func(tx *store.Tx) error) error {
	if err := b.db.Update(ctx, fn); err != nil {
		return err
	}
	return b.gateway.Reload(context.WithoutCancel(ctx)) // what is stored has to take effect, whoever has gone meanwhile
}

func (b *box) workspaces(ctx context.Context) ([]workspaceInfo, error) {
	out := []workspaceInfo{}
	for _, st := range b.gateway.Workspaces() {
		w := workspaceInfo{Slug: st.Slug, Label: st.Label, Roots: st.Roots, Quota: st.Quota, State: st.State, Grants: []grantInfo{}}
		if st.Err != nil {
			w.Reason = plain(st.Err)
		}
		var err error
		if w.Used, _, err = b.quota.Usage(ctx, "workspace:"+st.Slug); err != nil {
			return nil, err
		}
		grants, err := b.engine.Grants(ctx, policy.Filter{Source: workspaceSource(st.Slug)})
		if err != nil {
			return nil, err
		}
		for _, g := range grants {
			info := grantInfo{To: string(g.To), Rights: rightsWords(g), Expires: g.Expires}
			if len(st.Roots) > 1 {
				info.On = g.On.String()
			}
			w.Grants = append(w.Grants, info)
		}
		out = append(out, w)
	}
	return out, nil
}

func workspaceSource(slug string) string { return "workspace:" + slug }

// rightsWords returns the rights of a grant as a declared state has them.
func rightsWords(g policy.Grant) []string {
	words := []string{}
	if g.Rights != 0 {
		words = strings.Split(g.Rights.String(), "+")
	}
	if g.Policy != "" {
		words = append(words, "policy:"+g.Policy)
	}
	return words
}

func (b *box) workspace(ctx context.Context, slug string) (workspaceInfo, error) {
	all, err := b.workspaces(ctx)
	if err != nil {
		return workspaceInfo{}, err
	}
	if i := slices.IndexFunc(all, func(w workspaceInfo) bool { return w.Slug == slug }); i >= 0 {
		return all[i], nil
	}
	return workspaceInfo{}, notThere("workspace", slug)
}

func notThere(kind, name string) error {
	return fault.New("appliance.admin", "", fault.NotExist, fmt.Errorf("there is no %s %q", kind, name))
}

// putWorkspace makes or changes a workspace. Grants that are nil stay as they are, on the roots there are now.
func (b *box) putWorkspace(ctx context.Context, in workspaceInfo) (workspaceInfo, error) {
	w := gateway.Workspace{Slug: in.Slug, Label: in.Label, Roots: in.Roots, Quota: in.Quota}
	if errs := b.gateway.CheckWorkspace(w); len(errs) > 0 {
		return workspaceInfo{}, invalid(errs)
	}
	if in.Grants == nil {
		var err error
		if in.Grants, err = b.grantsOf(ctx, w.Slug); err != nil {
			return workspaceInfo{}, err
		}
	}
	grants, err := b.workspaceGrants(w, in.Grants)
	if err != nil {
		return workspaceInfo{}, err
	}
	err = b.change(ctx, func(tx *store.Tx) error {
		if _, err := b.gateway.PutWorkspace(tx, w); err != nil {
			return err
		}
		if _, err := b.engine.ReplaceGrants(tx, workspaceSource(w.Slug), grants); err != nil {
			return err
		}
		b.record(tx, localActor, "workspace.put", w.Slug)
		return nil
	})
	if err != nil {
		return workspaceInfo{}, err
	}
	return b.workspace(ctx, w.Slug)
}

// invalid makes one error of several problems.
func invalid(errs []error) error {
	problems := make(strict.Problems, len(errs))
	for i, err := range errs {
		problems[i].Text = plain(err)
	}
	return problems
}

// grantsOf returns the grants of a workspace as they were declared, before they were spread over its roots.
func (b *box) grantsOf(ctx context.Context, slug string) (out []grantInfo, err error) {
	grants, err := b.engine.Grants(ctx, policy.Filter{Source: workspaceSource(slug)})
	for _, g := range grants {
		info := grantInfo{To: string(g.To), Rights: rightsWords(g), Expires: g.Expires}
		if !slices.ContainsFunc(out, func(o grantInfo) bool { return o.String() == info.String() }) {
			out = append(out, info)
		}
	}
	return out, err
}

// workspaceGrants spreads the grants of a workspace over its roots.
func (b *box) workspaceGrants(w gateway.Workspace, in []grantInfo) ([]policy.Grant, error) {
	var out []policy.Grant
	for _, g := range in {
		to, err := policy.ParsePrincipal(g.To)
		if err != nil {
			return nil, fault.New("appliance.admin", "", fault.Invalid, err)
		}
		rights, name, err := policy.ParseRights(g.Rights)
		if err != nil {
			return nil, fault.New("appliance.admin", "", fault.Invalid, err)
		}
		for _, root := range w.Roots {
			on, err := b.gateway.RootPlace(root)
			if err != nil {
				return nil, err
			}
			out = append(out, policy.Grant{To: to, On: on, Rights: rights, Policy: name, Expires: g.Expires})
		}
	}
	return out, nil
}

func (b *box) deleteWorkspace(ctx context.Context, slug string) error {
	return b.named("workspace", slug, b.change(ctx, func(tx *store.Tx) error {
		if err := b.gateway.DeleteWorkspace(tx, slug); err != nil {
			return err
		}
		if _, err := b.engine.ReplaceGrants(tx, workspaceSource(slug), nil); err != nil {
			return err
		}
		b.record(tx, localActor, "workspace.delete", slug)
		return nil
	}))
}

func (b *box) policies(ctx context.Context) ([]policyInfo, error) {
	all, err := b.engine.Policies(ctx)
	if err != nil {
		return nil, err
	}
	out := []policyInfo{}
	for _, p := range all {
		info := policyInfo{Name: p.Name, Kind: p.Kind, Rules: p.Rules}
		for _, at := range p.Guards {
			info.Guards = append(info.Guards, at.String())
		}
		out = append(out, info)
	}
	return out, nil
}

func (b *box) policy(ctx context.Context, name string) (policyInfo, error) {
	all, err := b.policies(ctx)
	if err != nil {
		return policyInfo{}, err
	}
	if i := slices.IndexFunc(all, func(p policyInfo) bool { return p.Name == name }); i >= 0 {
		return all[i], nil
	}
	return policyInfo{}, notThere("policy", name)
}

func (b *box) deletePolicy(ctx context.Context, name string) error {
	return b.named("policy", name, b.db.Update(ctx, func(tx *store.Tx) error {
		if err := b.engine.DeletePolicy(tx, name); err != nil {
			return err
		}
		b.record(tx, localActor, "policy.delete", name)
		return nil
	}))
}

// explain answers a question with the function that decides for real.
func (b *box) explain(ctx context.Context, q question) (answer, error) {
	bad := func(err error) (answer, error) {
		return answer{}, fault.New("appliance.explain", "", fault.Invalid, err)
	}
	act, err := policy.ParseAction(q.Action)
	if err != nil {
		return bad(err)
	}
	p, err := gateway.ParsePath(q.Path)
	if err != nil {
		return answer{}, err
	}
	env := policy.Env{Protocol: q.Protocol, Client: q.Client, Method: q.Method, Time: q.At}
	if q.Addr != "" {
		if env.Addr, err = netip.ParseAddr(q.Addr); err != nil {
			return bad(fmt.Errorf("%q is no address", q.Addr))
		}
	}
	sub, err := b.subject(ctx, q.User)
	if err != nil {
		return answer{}, err
	}
	trace, err := b.gateway.Explain(ctx, sub, act, p, env)
	if err != nil {
		return answer{}, err
	}
	out := answer{Allowed: trace.Allowed, Known: trace.Known, Rule: trace.Rule, Trace: []string{}}
	for _, s := range trace.Steps {
		out.Trace = append(out.Trace, s.Place+" "+s.Effect+": "+s.Words)
	}
	return out, nil
}

// auditRecords streams records, one JSON object a line, the oldest first. With a limit it gives the latest.
func (a *admin) auditRecords(w http.ResponseWriter, r *http.Request) {
	f := audit.Filter{OldestFirst: true, Action: r.FormValue("action")}
	if user := r.FormValue("user"); user != "" {
		f.Actor = "user:" + policy.FoldLogin(user)
	}
	limit, _ := strconv.Atoi(r.FormValue("limit"))
	for key, at := range map[string]*time.Time{"since": &f.From, "until": &f.To} {
		if text := r.FormValue(key); text != "" {
			t, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				writeError(w, fault.New("appliance.audit", "", fault.Invalid, fmt.Errorf("%s: no time", key)))
				return
			}
			*at = t
		}
	}
	var latest []audit.Record
	if limit > 0 {
		f.OldestFirst, f.Limit = false, min(limit, 100_000)
		for rec, err := range a.audit.List(r.Context(), f) {
			if err != nil {
				writeError(w, err)
				return
			}
			latest = append(latest, rec)
		}
		slices.Reverse(latest)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, rec := range latest {
		_ = enc.Encode(toAuditRecord(rec))
	}
	if limit > 0 {
		return
	}
	for rec, err := range a.audit.List(r.Context(), f) {
		if err != nil {
			a.log.Error("audit export", "err", err)
			panic(http.ErrAbortHandler)
		}
		if enc.Encode(toAuditRecord(rec)) != nil {
			return
		}
	}
}

func toAuditRecord(r audit.Record) auditRecord {
	return auditRecord{
		Seq: r.Seq, Time: r.Time, Actor: r.Actor, Action: r.Action, Outcome: r.Outcome, Place: r.Place, Path: r.Path, Protocol: r.Protocol,
		Addr: r.Addr, RequestID: r.RequestID, Detail: r.Detail,
	}
}

func (b *box) verifyAudit(ctx context.Context) (auditReport, error) {
	rep, err := b.audit.Verify(ctx)
	if err != nil {
		return auditReport{}, err
	}
	out := auditReport{Records: rep.Records, OK: rep.OK(), Head: rep.Head}
	if !out.OK {
		out.Broken, out.Text = rep.Problems[0].Seq, rep.Problems[0].What
	}
	return out, nil
}

func (b *box) fsck(ctx context.Context, repair bool) ([]finding, error) {
	out := []finding{}
	err := b.gateway.Fsck(ctx, repair, func(f gateway.Finding) {
		at := ""
		if f.Datasource != "" {
			at = policy.Place{Datasource: f.Datasource, Path: f.Path}.String()
		}
		out = append(out, finding{Place: at, Text: f.What, Fatal: f.Fatal, Outside: f.Outside, Repaired: f.Repaired})
	})
	return out, err
}
