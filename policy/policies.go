package policy

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/policy/guard"
	"cellgate/store"
)

// CheckPolicy returns every problem of a policy, compiled against the locations known now.
func (e *Engine) CheckPolicy(p Policy) []error {
	e.mu.Lock()
	locations := maps.Clone(e.state.locations)
	e.mu.Unlock()
	_, problems := p.check(locations)
	return problems
}

// check returns the policy in its one spelling and every problem it has.
func (p Policy) check(locations map[string][]netip.Prefix) (Policy, []error) {
	_, problems := guard.Compile(p.Policy, options(locations))
	wrong := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("policy %q: "+format, append([]any{p.Name}, args...)...))
	}
	if len(p.Guards) > 0 && p.Kind != guard.ACL {
		wrong("kind %s guards no places", p.Kind)
	}
	p.Guards, p.For = slices.Clone(p.Guards), slices.Clone(p.For)
	for _, at := range p.Guards {
		if err := at.check(); err != nil {
			wrong("%w", err)
		}
	}
	for i, who := range p.For {
		spelled, err := ParsePrincipal(string(who))
		if err != nil {
			wrong("%w", err)
		}
		p.For[i] = spelled
	}
	slices.Sort(p.For)
	p.For = slices.Compact(p.For)
	slices.SortFunc(p.Guards, func(a, b Place) int {
		return strings.Compare(a.Datasource+"\x00"+a.Path, b.Datasource+"\x00"+b.Path)
	})
	p.Guards = slices.Compact(p.Guards)
	return p, problems
}

// PutPolicy stores a policy in place of the one of the same name and reports whether that changed anything. A malformed one is refused with
// Invalid and every problem it has.
func (e *Engine) PutPolicy(tx *store.Tx, p Policy) (changed bool, err error) {
	const op = "policy.PutPolicy"
	locations := builtin()
	if err := loadLocations(tx, locations); err != nil {
		return false, fault.Wrap(op, "", err)
	}
	p, problems := p.check(locations)
	if len(problems) > 0 {
		return false, fault.New(op, "", fault.Invalid, errors.Join(problems...))
	}
	body, err := p.body()
	if err != nil {
		return false, fault.New(op, "", fault.Invalid, err)
	}
	old, err := policyRow(tx, p.Name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return false, fault.Wrap(op, "", err)
	default:
		if was, err := old.body(); err == nil && was == body && slices.Equal(old.Guards, p.Guards) {
			return false, nil
		}
		if p.Kind != guard.ACL {
			if err := unused(tx, p.Name); err != nil {
				return false, fault.New(op, "", fault.Invalid, err)
			}
		}
	}
	if _, err := tx.Exec(`INSERT INTO policies (name, body) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET body = excluded.body`, p.Name, body); err != nil {
		return false, fault.Wrap(op, "", err)
	}
	if _, err := tx.Exec(`DELETE FROM guards WHERE policy = $1`, p.Name); err != nil {
		return false, fault.Wrap(op, "", err)
	}
	for _, at := range p.Guards {
		if _, err := tx.Exec(`INSERT INTO guards (policy, datasource, path) VALUES ($1, $2, $3)`, p.Name, at.Datasource, at.Path); err != nil {
			return false, fault.Wrap(op, "", err)
		}
	}
	e.collect(tx, func(s *state) { s.policies[p.Name] = p })
	return true, nil
}

// body returns what the row of a policy holds: all but its guards, which have rows of their own.
func (p Policy) body() (string, error) {
	p.Guards = nil
	b, err := json.Marshal(p)
	return string(b), err
}

// policyRow reads one policy with its guards. It fails with sql.ErrNoRows.
func policyRow(tx *store.Tx, name string) (p Policy, err error) {
	var body string
	if err := tx.QueryRow(`SELECT body FROM policies WHERE name = $1`, name).Scan(&body); err != nil {
		return p, err
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		return p, fault.New("policy", "", fault.Corrupt, fmt.Errorf("policy %q: %w", name, err))
	}
	rows, err := tx.Query(`SELECT datasource, path FROM guards WHERE policy = $1 ORDER BY datasource, path`, name)
	if err != nil {
		return p, err
	}
	defer rows.Close()
	for rows.Next() {
		var at Place
		if err := rows.Scan(&at.Datasource, &at.Path); err != nil {
			return p, err
		}
		p.Guards = append(p.Guards, at)
	}
	return p, rows.Err()
}

// unused reports that grants name the policy.
func unused(tx *store.Tx, name string) error {
	var n int64
	if err := tx.QueryRow(`SELECT COUNT(*) FROM grants WHERE policy = $1`, name).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d grants name the policy %q", n, name)
	}
	return nil
}

// DeletePolicy removes a policy. It fails with NotExist, and with Precondition while grants name it.
func (e *Engine) DeletePolicy(tx *store.Tx, name string) error {
	const op = "policy.DeletePolicy"
	if err := unused(tx, name); err != nil {
		return fault.New(op, "", fault.Precondition, err)
	}
	r, err := tx.Exec(`DELETE FROM policies WHERE name = $1`, name)
	if err != nil {
		return fault.Wrap(op, "", err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, "", fault.NotExist, fmt.Errorf("there is no policy %q", name))
	}
	if _, err := tx.Exec(`DELETE FROM guards WHERE policy = $1`, name); err != nil {
		return fault.Wrap(op, "", err)
	}
	e.collect(tx, func(s *state) { delete(s.policies, name) })
	return nil
}

// Policies returns the stored policies, ordered by name.
func (e *Engine) Policies(ctx context.Context) (out []Policy, err error) {
	err = e.db.View(ctx, func(tx *store.Tx) error {
		all, err := loadPolicies(tx)
		out = nil
		for _, name := range slices.Sorted(maps.Keys(all)) {
			out = append(out, all[name])
		}
		return err
	})
	return out, fault.Wrap("policy.Policies", "", err)
}

// PutLocation names a list of networks for the ip conditions of policies, and reports whether that changed anything.
func (e *Engine) PutLocation(tx *store.Tx, name string, nets []string) (changed bool, err error) {
	const op = "policy.PutLocation"
	var problems []error
	if len(name) == 0 || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || name[0] < 'a' || name[0] > 'z' {
		problems = append(problems, fmt.Errorf("%q is no name of a location: use a-z, 0-9, \"-\" and \"_\", beginning with a letter", name))
	}
	if len(nets) == 0 {
		problems = append(problems, fmt.Errorf("location %q has no networks", name))
	}
	var list []netip.Prefix
	var words []string
	for _, n := range nets {
		p, err := guard.ParseNet(n)
		if err != nil {
			problems = append(problems, fmt.Errorf("location %q: %w", name, err))
			continue
		}
		list, words = append(list, p), append(words, p.String())
	}
	if len(problems) > 0 {
		return false, fault.New(op, "", fault.Invalid, errors.Join(problems...))
	}
	text, old := strings.Join(words, "\n"), ""
	err = tx.QueryRow(`SELECT nets FROM locations WHERE name = $1`, name).Scan(&old)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fault.Wrap(op, "", err)
	}
	if old == text {
		return false, nil
	}
	if _, err := tx.Exec(`INSERT INTO locations (name, nets) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET nets = excluded.nets`, name, text); err != nil {
		return false, fault.Wrap(op, "", err)
	}
	e.collect(tx, func(s *state) { s.locations[name] = list })
	return true, nil
}

// DeleteLocation removes a location. It fails with NotExist, and with Precondition while a policy refers to it.
func (e *Engine) DeleteLocation(tx *store.Tx, name string) error {
	const op = "policy.DeleteLocation"
	all, err := loadPolicies(tx)
	if err != nil {
		return fault.Wrap(op, "", err)
	}
	for _, p := range all {
		if _, shipped := guard.Locations()[name]; !shipped && slices.Contains(p.Names(), name) {
			return fault.New(op, "", fault.Precondition, fmt.Errorf("policy %q refers to the location %q", p.Name, name))
		}
	}
	r, err := tx.Exec(`DELETE FROM locations WHERE name = $1`, name)
	if err != nil {
		return fault.Wrap(op, "", err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, "", fault.NotExist, fmt.Errorf("there is no location %q", name))
	}
	e.collect(tx, func(s *state) {
		if delete(s.locations, name); builtin()[name] != nil {
			s.locations[name] = builtin()[name]
		}
	})
	return nil
}

// Locations returns the named lists of networks, shipped and stored.
func (e *Engine) Locations() map[string][]netip.Prefix {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.state.locations)
}

// DropPrincipal removes everything that is given to a principal which ceases to exist: its grants, and its name from the rules of policies (a
// rule left without principals goes). A namesake made later inherits nothing.
func (e *Engine) DropPrincipal(tx *store.Tx, who Principal) error {
	const op = "policy.DropPrincipal"
	gs, err := queryGrants(tx.Query(grantColumns+` WHERE principal = $1 ORDER BY id`, string(who)))
	if err != nil {
		return fault.Wrap(op, "", err)
	}
	for _, g := range gs {
		if err := e.DeleteGrant(tx, g.ID); err != nil {
			return err
		}
	}
	all, err := loadPolicies(tx)
	if err != nil {
		return fault.Wrap(op, "", err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p := all[name]
		rules, named := make([]guard.Rule, 0, len(p.Rules)), false
		for _, r := range p.Rules {
			left := slices.DeleteFunc(slices.Clone(r.Principals), func(s string) bool {
				spelled, err := ParsePrincipal(s)
				return err == nil && spelled == who
			})
			named = named || len(left) != len(r.Principals)
			if r.Principals = left; len(left) > 0 {
				rules = append(rules, r)
			}
		}
		if !named {
			continue
		}
		p.Rules = rules
		body, err := p.body()
		if err != nil {
			return fault.Wrap(op, "", err)
		}
		if _, err := tx.Exec(`UPDATE policies SET body = $2 WHERE name = $1`, name, body); err != nil {
			return fault.Wrap(op, "", err)
		}
		e.collect(tx, func(s *state) { s.policies[name] = p })
	}
	return nil
}
