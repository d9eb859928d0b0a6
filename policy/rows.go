package policy

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy/guard"
	"cellgate/store"
)

// load reads the whole state and its epoch in one snapshot.
func load(ctx context.Context, db *store.DB) (st state, epoch uint64, err error) {
	err = db.View(ctx, func(tx *store.Tx) error {
		st = newState()
		if err := tx.QueryRow(`SELECT epoch FROM epochs WHERE name = 'policy'`).Scan(&epoch); err != nil {
			return err
		}
		grants, err := queryGrants(tx.Query(grantColumns + ` ORDER BY id`))
		if err != nil {
			return err
		}
		for _, g := range grants {
			st.grants[g.ID] = g
		}
		if st.policies, err = loadPolicies(tx); err != nil {
			return err
		}
		return loadLocations(tx, st.locations)
	})
	return st, epoch, fault.Wrap("policy.Load", "", err)
}

const grantColumns = `SELECT id, source, principal, datasource, path, rights, policy, expires FROM grants`

func queryGrants(rows *sql.Rows, err error) ([]Grant, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Grant
	for rows.Next() {
		var g Grant
		var expires int64
		if err := rows.Scan(&g.ID, &g.Source, &g.To, &g.On.Datasource, &g.On.Path, &g.Rights, &g.Policy, &expires); err != nil {
			return nil, err
		}
		if expires != 0 {
			g.Expires = time.Unix(0, expires).UTC()
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

func loadPolicies(tx *store.Tx) (map[string]Policy, error) {
	rows, err := tx.Query(`SELECT name, body FROM policies ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]Policy{}
	for rows.Next() {
		var name, body string
		if err := rows.Scan(&name, &body); err != nil {
			return nil, err
		}
		var p Policy
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			return nil, fault.New("policy", "", fault.Corrupt, fmt.Errorf("policy %q: %w", name, err))
		}
		out[name] = p
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	rows.Close()
	guards, err := tx.Query(`SELECT policy, datasource, path FROM guards ORDER BY policy, datasource, path`)
	if err != nil {
		return nil, err
	}
	defer guards.Close()
	for guards.Next() {
		var name string
		var at Place
		if err := guards.Scan(&name, &at.Datasource, &at.Path); err != nil {
			return nil, err
		}
		p := out[name]
		p.Guards = append(p.Guards, at)
		out[name] = p
	}
	return out, guards.Err()
}

func loadLocations(tx *store.Tx, into map[string][]netip.Prefix) error {
	rows, err := tx.Query(`SELECT name, nets FROM locations ORDER BY name`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name, nets string
		if err := rows.Scan(&name, &nets); err != nil {
			return err
		}
		var list []netip.Prefix
		for line := range strings.SplitSeq(nets, "\n") {
			p, err := guard.ParseNet(line)
			if err != nil {
				return fault.New("policy", "", fault.Corrupt, fmt.Errorf("location %q: %w", name, err))
			}
			list = append(list, p)
		}
		into[name] = list
	}
	return rows.Err()
}
