package gateway

import (
	"bytes"
	"context"
	"database/sql"
	"errors"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// Prop is a dead property of a node (RFC 4918 §4): a name in a name space and whatever the client said, which means nothing to the gateway.
type Prop struct {
	Space, Name string
	Value       []byte
}

var (
	errProps     = errors.New("too many properties on one node")
	errPropBytes = errors.New("the property is too large")
)

// Props returns the dead properties of p, by name space and name.
func (s *Session) Props(ctx context.Context, p Path) (_ []Prop, err error) {
	o, err := s.begin(ctx, verbProps, p, policy.List)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if o.virtual() {
		return nil, nil
	}
	if _, err := o.stat(ctx, o.m, &o.target, true, policy.List); err != nil {
		return nil, err
	}
	rows, err := o.g.db.Query(ctx, `SELECT n.path, p.space, p.name, p.value FROM nodes n JOIN props p ON p.node = n.id
		WHERE n.datasource = $1 AND n.depth = $2 AND n.path = $3 ORDER BY p.space, p.name`, o.at.Datasource, depthOf(o.at.Path), o.at.Path)
	all, err := scanProps(rows, err)
	return all[o.at.Path], err
}

// PropsOf returns the dead properties of some children of the folder p, by the child's name. Children without any, and those the subject may
// not know of, are not in it. Ask for a bounded number at a time: a node may hold as much as the limits allow.
func (s *Session) PropsOf(ctx context.Context, p Path, names []string) (_ map[string][]Prop, err error) {
	o, err := s.begin(ctx, verbProps, p, policy.List)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if o.virtual() {
		return nil, nil
	}
	if !o.g.propped.Load() {
		return nil, nil
	}
	if _, err := o.stat(ctx, o.m, &o.target, true, policy.List); err != nil {
		return nil, err
	}
	may := o.b.view.Children(policy.List, o.at, o.env)
	called := make(map[string]string, len(names)) // by the path that rows are kept under
	paths := make([]any, 0, len(names))
	for _, name := range names {
		at := o.ds.place(join(o.name, name))
		if may(relative(at.Path, o.at.Path)).Allowed {
			called[at.Path] = name
			paths = append(paths, at.Path)
		}
	}
	byName := make(map[string][]Prop)
	for len(paths) > 0 {
		size := pieceOf(len(paths))
		rows, err := o.g.db.Query(ctx, propsOf[size], append([]any{o.at.Datasource, depthOf(o.at.Path) + 1}, paths[:size]...)...)
		byPath, err := scanProps(rows, err)
		if err != nil {
			return nil, err
		}
		for path, props := range byPath {
			byName[called[path]] = props
		}
		paths = paths[size:]
	}
	return byName, nil
}

// propsOf are the questions for the properties of so many nodes.
var propsOf = map[int]string{1: askProps(1), 4: askProps(4), 16: askProps(16), 64: askProps(64)}

func askProps(n int) string {
	return `SELECT n.path, p.space, p.name, p.value FROM nodes n JOIN props p ON p.node = n.id
		WHERE n.datasource = $1 AND n.depth = $2 AND n.path IN ` + list(3, n) + ` ORDER BY n.path, p.space, p.name`
}

func scanProps(rows *sql.Rows, err error) (map[string][]Prop, error) {
	if err != nil {
		return nil, fault.Wrap("gateway.props", "", err)
	}
	defer rows.Close()
	all := make(map[string][]Prop)
	for rows.Next() {
		var path string
		var p Prop
		if err := rows.Scan(&path, &p.Space, &p.Name, &p.Value); err != nil {
			return nil, fault.Wrap("gateway.props", "", err)
		}
		all[path] = append(all[path], p)
	}
	return all, fault.Wrap("gateway.props", "", rows.Err())
}

// PropChange sets a property, or removes it when Remove is set.
type PropChange struct {
	Prop
	Remove bool
}

// PatchProps changes dead properties of p in the given order, all or none (RFC 4918 §9.2). Removing what is not there is fine. Values over
// the limits are TooLarge.
func (s *Session) PatchProps(ctx context.Context, p Path, changes []PropChange, cond Cond) (err error) {
	o, err := s.begin(ctx, verbSetProps, p, policy.Modify, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	for _, c := range changes {
		if len(c.Value) > o.g.limits.PropBytes || len(c.Space)+len(c.Name) > 1024 {
			return fault.New("gateway.props", p.String(), fault.TooLarge, errPropBytes)
		}
	}
	info, err := o.changing(ctx, cond)
	if err != nil {
		return err
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return err
	}
	defer release()
	if err := o.again(ctx, policy.Modify, policy.Create); err != nil {
		return err
	}
	if info, err = o.changing(ctx, cond); err != nil {
		return err
	}
	err = o.commit(ctx, func(tx *store.Tx) error { return o.patch(tx, info, changes) })
	if err == nil {
		o.publish(event.Props, o.at, policy.Place{}, info.IsDir(), -1)
	}
	return err
}

// changing asks for what every change of a node's attributes needs: the node, the right to write it, no lock, the precondition.
func (o *op) changing(ctx context.Context, cond Cond) (mounts.Info, error) {
	info, err := o.stat(ctx, o.m, &o.target, true, policy.Modify, policy.Create)
	if err != nil {
		return info, err
	}
	act := policy.Modify
	if info.IsDir() {
		act = policy.Create
	}
	if _, err := o.ask(act, &o.target); err != nil {
		return info, err
	}
	if err := cond.hold(o.info(o.path, info), true, !o.known); err != nil {
		return info, err
	}
	return info, o.unlocked(&o.target, lockScope{})
}

func (o *op) patch(tx *store.Tx, info mounts.Info, changes []PropChange) error {
	n, ok, err := loadNode(tx.QueryRow, o.at)
	if err != nil {
		return err
	}
	if !ok {
		// A node that came from outside: nobody's quota counts it.
		row := o.row(o.at, info, "")
		row.Owner, row.Size = "", max(info.Size, 0)
		if err := (nodes{o.g}).Flush(tx, []any{row}); err != nil {
			return err
		}
		n.ID = row.ID
	}
	o.g.propped.Store(true) // at worst too early, which costs listings a question
	for _, c := range changes {
		if c.Remove {
			if _, err := tx.Exec(`DELETE FROM props WHERE node = $1 AND space = $2 AND name = $3`, n.ID, c.Space, c.Name); err != nil {
				return err
			}
			continue
		}
		_, err := tx.Exec(`INSERT INTO props (node, space, name, value) VALUES ($1, $2, $3, $4)
			ON CONFLICT (node, space, name) DO UPDATE SET value = excluded.value`, n.ID, c.Space, c.Name, bytes.Clone(c.Value))
		if err != nil {
			return err
		}
	}
	var count, size int
	err = tx.QueryRow(`SELECT count(*), CAST(coalesce(sum(length(value)), 0) AS BIGINT) FROM props WHERE node = $1`, n.ID).Scan(&count, &size)
	if err != nil {
		return err
	}
	if count > o.g.limits.Props || size > o.g.limits.PropsBytes {
		return fault.New("gateway.props", o.path.String(), fault.TooLarge, errProps)
	}
	return nil
}
