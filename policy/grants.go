package policy

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"cellgate/internal/fault"
	"cellgate/policy/guard"
	"cellgate/store"
)

// check returns the grant in its one spelling, or every problem it has.
func (g Grant) check() (Grant, error) {
	var problems []error
	to, err := ParsePrincipal(string(g.To))
	problems = append(problems, err, g.On.check())
	switch {
	case g.Rights == 0 && g.Policy == "":
		problems = append(problems, errors.New("the grant gives nothing"))
	case g.Rights > Read|Write|Deny, g.Rights&Deny != 0 && (g.Rights != Deny || g.Policy != ""):
		problems = append(problems, errors.New("deny stands alone"))
	}
	g.To = to
	if !g.Expires.IsZero() {
		g.Expires = g.Expires.UTC().Round(0)
	}
	return g, errors.Join(problems...)
}

// PutGrant stores a grant: a new one, or in place of the one with the same principal, place and source. It fails with Invalid, for a policy that
// does not exist too.
func (e *Engine) PutGrant(tx *store.Tx, g Grant) error {
	_, err := e.putGrant(tx, g)
	return err
}

func (e *Engine) putGrant(tx *store.Tx, g Grant) (changed bool, err error) {
	const op = "policy.PutGrant"
	g, err = g.check()
	if err != nil {
		return false, fault.New(op, "", fault.Invalid, err)
	}
	if g.Policy != "" {
		if err := e.isACL(tx, g.Policy); err != nil {
			return false, fault.Wrap(op, "", err)
		}
	}
	old, err := queryGrants(tx.Query(grantColumns+` WHERE datasource = $1 AND path = $2 AND principal = $3 AND source = $4`,
		g.On.Datasource, g.On.Path, string(g.To), g.Source))
	if err != nil {
		return false, fault.Wrap(op, "", err)
	}
	if len(old) > 0 {
		g.ID = old[0].ID
		if old[0] == g {
			return false, nil
		}
	} else if g.ID == 0 {
		g.ID = store.NewID()
	}
	_, err = tx.Exec(`INSERT INTO grants (id, source, principal, datasource, path, rights, policy, expires) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (id) DO UPDATE SET source = excluded.source, principal = excluded.principal, datasource = excluded.datasource,
		path = excluded.path, rights = excluded.rights, policy = excluded.policy, expires = excluded.expires`,
		g.ID, g.Source, string(g.To), g.On.Datasource, g.On.Path, int64(g.Rights), g.Policy, nano(g.Expires))
	if err != nil {
		return false, fault.Wrap(op, "", err)
	}
	e.collect(tx, func(s *state) { s.grants[g.ID] = g })
	return true, nil
}

// isACL reports a policy that cannot answer for a grant.
func (e *Engine) isACL(tx *store.Tx, name string) error {
	p, err := policyRow(tx, name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fault.New("policy", "", fault.Invalid, fmt.Errorf("there is no policy %q", name))
	case err != nil:
		return err
	case p.Kind != guard.ACL:
		return fault.New("policy", "", fault.Invalid, fmt.Errorf("policy %q is of kind %s, not acl", name, p.Kind))
	}
	return nil
}

// DeleteGrant removes a grant. It fails with NotExist.
func (e *Engine) DeleteGrant(tx *store.Tx, id int64) error {
	r, err := tx.Exec(`DELETE FROM grants WHERE id = $1`, id)
	if err != nil {
		return fault.Wrap("policy.DeleteGrant", "", err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New("policy.DeleteGrant", "", fault.NotExist, nil)
	}
	e.collect(tx, func(s *state) { delete(s.grants, id) })
	return nil
}

// ReplaceGrants makes the grants of a source these and no others, and reports whether that changed anything.
func (e *Engine) ReplaceGrants(tx *store.Tx, source string, gs []Grant) (changed bool, err error) {
	old, err := queryGrants(tx.Query(grantColumns+` WHERE source = $1 ORDER BY id`, source))
	if err != nil {
		return false, fault.Wrap("policy.ReplaceGrants", "", err)
	}
	type key struct {
		to Principal
		on Place
	}
	keep := map[key]bool{}
	var problems []error
	for i, g := range gs {
		g, err := g.check()
		if k := (key{g.To, g.On}); err == nil && keep[k] {
			err = fmt.Errorf("%s is granted something on %s twice", g.To, g.On)
		} else {
			keep[k] = true
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("grant %d: %w", i+1, err))
		}
	}
	if len(problems) > 0 {
		return false, fault.New("policy.ReplaceGrants", "", fault.Invalid, errors.Join(problems...))
	}
	for _, g := range old {
		if !keep[key{g.To, g.On}] {
			if err := e.DeleteGrant(tx, g.ID); err != nil {
				return false, err
			}
			changed = true
		}
	}
	for _, g := range gs {
		g.Source, g.ID = source, 0
		c, err := e.putGrant(tx, g)
		if err != nil {
			return false, err
		}
		changed = changed || c
	}
	return changed, nil
}

// Filter selects grants; a zero field selects all.
type Filter struct {
	Source     string
	To         Principal
	Datasource string
	Under      string // with Datasource: this path and all below
}

// Grants returns the stored grants that match, ordered by datasource, path, principal and source.
func (e *Engine) Grants(ctx context.Context, f Filter) ([]Grant, error) {
	q, args := grantColumns+` WHERE 1 = 1`, []any(nil)
	arg := func(cond string, v any) {
		args = append(args, v)
		q += fmt.Sprintf(cond, len(args))
	}
	if f.Source != "" {
		arg(` AND source = $%d`, f.Source)
	}
	if f.To != "" {
		arg(` AND principal = $%d`, string(f.To))
	}
	if f.Datasource != "" {
		arg(` AND datasource = $%d`, f.Datasource)
	}
	if f.Under != "" && f.Under != "." {
		arg(` AND (path = $%d`, f.Under)
		arg(` OR path >= $%d`, f.Under+"/")
		arg(` AND path < $%d)`, f.Under+"0")
	}
	gs, err := queryGrants(e.db.Query(ctx, q+` ORDER BY datasource, path, principal, source`, args...))
	return gs, fault.Wrap("policy.Grants", "", err)
}
