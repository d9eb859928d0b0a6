package identity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/store"
)

// Group is a node of the tree of groups.
type Group struct {
	Path  string `json:"path"`
	Label string `json:"label"`
}

// Role is a name that grants can be given to. Profiles are those it comes with by itself.
type Role struct {
	Name     string           `json:"name"`
	Label    string           `json:"label"`
	Profiles []policy.Profile `json:"profiles,omitempty"`
}

// ensure makes the groups down to path, and the roles, that do not exist.
func (s *Service) ensure(tx *store.Tx, path string, roles []string) error {
	for i := 1; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if _, err := tx.Exec(`INSERT INTO user_groups (path, label) VALUES ($1, '') ON CONFLICT (path) DO NOTHING`, path[:i]); err != nil {
				return err
			}
		}
	}
	for _, r := range roles {
		if _, err := tx.Exec(`INSERT INTO roles (name, label, profiles) VALUES ($1, '', '') ON CONFLICT (name) DO NOTHING`, r); err != nil {
			return err
		}
	}
	return nil
}

// PutGroup makes a group, and those above it, or changes its label, and reports whether that changed anything. It fails with Invalid.
func (s *Service) PutGroup(tx *store.Tx, g Group) (changed bool, err error) {
	const op = "policy/identity.PutGroup"
	path, err := policy.CanonicalGroup(g.Path)
	if err = errors.Join(err, checkText("label", g.Label)); err != nil {
		return false, fault.New(op, g.Path, fault.Invalid, err)
	}
	var label string
	err = tx.QueryRow(`SELECT label FROM user_groups WHERE path = $1`, path).Scan(&label)
	if err == nil && label == g.Label {
		return false, nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fault.Wrap(op, path, err)
	}
	if err := s.ensure(tx, path, nil); err != nil {
		return false, fault.Wrap(op, path, err)
	}
	_, err = tx.Exec(`UPDATE user_groups SET label = $2 WHERE path = $1`, path, g.Label)
	return true, fault.Wrap(op, path, err)
}

// RemoveGroup deletes a group and what is granted to it. It fails with NotExist, and with NotEmpty while users or groups are in it.
func (s *Service) RemoveGroup(tx *store.Tx, path string) error {
	const op = "policy/identity.RemoveGroup"
	path, err := policy.CanonicalGroup(path)
	if err != nil || path == "/" {
		return fault.New(op, path, fault.Invalid, errors.Join(err, errors.New("the root of the groups stays")))
	}
	var n int64
	err = tx.QueryRow(`SELECT (SELECT COUNT(*) FROM users WHERE grp = $1) + (SELECT COUNT(*) FROM user_groups WHERE path >= $2 AND path < $3)`,
		path, path+"/", path+"0").Scan(&n)
	if err != nil {
		return fault.Wrap(op, path, err)
	}
	if n > 0 {
		return fault.New(op, path, fault.NotEmpty, fmt.Errorf("%d users and groups are in it", n))
	}
	r, err := tx.Exec(`DELETE FROM user_groups WHERE path = $1`, path)
	if err != nil {
		return fault.Wrap(op, path, err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, path, fault.NotExist, nil)
	}
	return s.policy.DropPrincipal(tx, policy.Principal("group:"+path))
}

// Groups returns all groups, ordered by path.
func (s *Service) Groups(ctx context.Context) ([]Group, error) {
	const op = "policy/identity.Groups"
	rows, err := s.db.Query(ctx, `SELECT path, label FROM user_groups ORDER BY path`)
	if err != nil {
		return nil, fault.Wrap(op, "", err)
	}
	defer rows.Close()
	var out []Group
	for rows.Next() {
		var g Group
		if err := rows.Scan(&g.Path, &g.Label); err != nil {
			return nil, fault.Wrap(op, "", err)
		}
		out = append(out, g)
	}
	return out, fault.Wrap(op, "", rows.Err())
}

// PutRole makes or changes a role, and reports whether that changed anything. It fails with Invalid.
func (s *Service) PutRole(tx *store.Tx, r Role) (changed bool, err error) {
	const op = "policy/identity.PutRole"
	problems := []error{checkRole(r.Name), checkText("label", r.Label)}
	var words []string
	for _, p := range slices.Compact(slices.Sorted(slices.Values(r.Profiles))) {
		if p > policy.Admin {
			problems = append(problems, fmt.Errorf("unknown profile %d", p))
		}
		words = append(words, p.String())
	}
	if err := errors.Join(problems...); err != nil {
		return false, fault.New(op, r.Name, fault.Invalid, err)
	}
	profiles := strings.Join(words, " ")
	var oldLabel, oldProfiles string
	err = tx.QueryRow(`SELECT label, profiles FROM roles WHERE name = $1`, r.Name).Scan(&oldLabel, &oldProfiles)
	if err == nil && oldLabel == r.Label && oldProfiles == profiles {
		return false, nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fault.Wrap(op, r.Name, err)
	}
	_, err = tx.Exec(`INSERT INTO roles (name, label, profiles) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET label = excluded.label, profiles = excluded.profiles`, r.Name, r.Label, profiles)
	s.changed(tx)
	return true, fault.Wrap(op, r.Name, err)
}

// RemoveRole deletes a role, takes it from everybody and drops what is granted to it. It fails with NotExist.
func (s *Service) RemoveRole(tx *store.Tx, name string) error {
	const op = "policy/identity.RemoveRole"
	if _, err := tx.Exec(`DELETE FROM user_roles WHERE role = $1`, name); err != nil {
		return fault.Wrap(op, name, err)
	}
	r, err := tx.Exec(`DELETE FROM roles WHERE name = $1`, name)
	if err != nil {
		return fault.Wrap(op, name, err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, name, fault.NotExist, nil)
	}
	s.changed(tx)
	return s.policy.DropPrincipal(tx, policy.Principal("role:"+name))
}

// Roles returns all roles, ordered by name.
func (s *Service) Roles(ctx context.Context) ([]Role, error) {
	const op = "policy/identity.Roles"
	rows, err := s.db.Query(ctx, `SELECT name, label, profiles FROM roles ORDER BY name`)
	if err != nil {
		return nil, fault.Wrap(op, "", err)
	}
	defer rows.Close()
	var out []Role
	for rows.Next() {
		var r Role
		var profiles string
		if err := rows.Scan(&r.Name, &r.Label, &profiles); err != nil {
			return nil, fault.Wrap(op, "", err)
		}
		for _, w := range strings.Fields(profiles) {
			p, err := policy.ParseProfile(w)
			if err != nil {
				return nil, fault.New(op, r.Name, fault.Corrupt, err)
			}
			r.Profiles = append(r.Profiles, p)
		}
		out = append(out, r)
	}
	return out, fault.Wrap(op, "", rows.Err())
}
