package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// Finding is a difference between store and storage.
type Finding struct {
	Datasource string
	Path       string
	What       string // in words
	Fatal      bool   // something acknowledged is lost or was tampered with; repair cannot mend it
	Outside    bool   // other tools have changed a file, as they may; only what the store remembers of it is stale
	Repaired   bool
}

// fsckPage is how many rows are compared at a time.
const fsckPage = 500

// Fsck compares the store with the storage and the audit log with its chain, and hands every difference to found. With repair it mends what
// it can: the backend is the authority, the store an overlay. It may run while the gateway works: what seems wrong is looked at again
// under the publish lock. A datasource that is down is reported and left out.
func (g *Gateway) Fsck(ctx context.Context, repair bool, found func(Finding)) error {
	report, err := g.audit.Verify(ctx)
	if err != nil {
		return err
	}
	for _, p := range report.Problems {
		found(Finding{What: fmt.Sprintf("audit log: record %d: %s", p.Seq, p.What), Fatal: true})
	}
	t := g.table.Load()
	for _, name := range slices.Sorted(maps.Keys(t.datasources)) {
		ds := t.datasources[name]
		m, err := ds.open()
		if err != nil {
			found(Finding{Datasource: name, What: "not checked: " + err.Error()})
			continue
		}
		c := &check{g: g, ds: ds, m: m, repair: repair, found: found}
		if err := c.rows(fresh(ctx)); err != nil {
			return err
		}
		if err := c.areas(fresh(ctx)); err != nil {
			return err
		}
	}
	if err := g.checkUsage(ctx, repair, found); err != nil {
		return err
	}
	return g.checkSpaces(ctx, repair, found)
}

// check is fsck of one datasource.
type check struct {
	g      *Gateway
	ds     *datasource
	m      *mounted
	repair bool
	found  func(Finding)
}

func (c *check) report(path, what string, repaired bool) {
	c.found(Finding{Datasource: c.ds.cfg.Name, Path: path, What: what, Repaired: repaired})
}

// rows compares every node row with what is on the backend.
func (c *check) rows(ctx context.Context) error {
	depth, after := -1, ""
	for {
		page, err := c.page(ctx, depth, after)
		if err != nil {
			return err
		}
		for _, n := range page {
			if within(mounts.Area, n.At.Path) {
				continue // of an operation in flight
			}
			if err := c.row(ctx, n); err != nil {
				return err
			}
		}
		if len(page) < fsckPage {
			return nil
		}
		last := page[len(page)-1].At.Path
		depth, after = depthOf(last), last
	}
}

func (c *check) page(ctx context.Context, depth int, after string) (page []node, err error) {
	rows, err := c.g.db.Query(ctx, `SELECT id, path, folder, size, mtime, fid, owner FROM nodes
		WHERE datasource = $1 AND (depth > $2 OR depth = $2 AND path > $3) ORDER BY depth, path LIMIT $4`, c.ds.cfg.Name, depth, after, fsckPage)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		n := node{At: policy.Place{Datasource: c.ds.cfg.Name}}
		var folder, fid int64
		if err := rows.Scan(&n.ID, &n.At.Path, &folder, &n.Size, &n.MTime, &fid, &n.Owner); err != nil {
			return nil, err
		}
		n.Folder, n.FID = folder != 0, uint64(fid)
		page = append(page, n)
	}
	return page, rows.Err()
}

// row compares one row; a difference counts only if it is still there once nobody is publishing.
func (c *check) row(ctx context.Context, n node) error {
	what, _, err := c.differs(ctx, n)
	if what == "" || err != nil {
		return err
	}
	release, err := c.ds.serial.claim(ctx, span{path: n.At.Path})
	if err != nil {
		return err
	}
	defer release()
	now, ok, err := c.g.node(ctx, n.At)
	if err != nil || !ok {
		return err
	}
	what, info, err := c.differs(ctx, now)
	if what == "" || err != nil {
		return err
	}
	if c.repair {
		err = c.g.db.Update(ctx, func(tx *store.Tx) error { return c.mend(tx, now, info) })
	}
	if err == nil {
		c.found(Finding{Datasource: c.ds.cfg.Name, Path: n.At.Path, What: what, Repaired: c.repair, Outside: true})
	}
	return err
}

// differs says in words how a row and the backend differ, and what is there.
func (c *check) differs(ctx context.Context, n node) (string, mounts.Info, error) {
	info, err := c.m.Stat(ctx, n.At.Path)
	switch kind := fault.KindOf(err); {
	case err != nil && (kind == fault.NotExist || kind == fault.NotDir):
		return "has a row but is gone from the storage", info, nil
	case err != nil:
		return "", info, err
	case n.Folder != info.IsDir():
		return "is no longer of the kind its row says", info, nil
	case c.m.differs(n, info):
		return fmt.Sprintf("was changed outside: %d bytes, its row says %d", info.Size, n.Size), info, nil
	}
	return "", info, nil
}

// mend makes a row what the backend says; verified checksums of other bytes are dropped.
func (c *check) mend(tx *store.Tx, n node, info mounts.Info) error {
	if info.Name == "" {
		if !n.Folder {
			c.g.count(tx, owners(map[string]int64{n.Owner: n.Size}), -1)
		}
		_, err := tx.Exec(`DELETE FROM nodes WHERE id = $1`, n.ID)
		return err
	}
	size := max(info.Size, 0)
	c.g.count(tx, owners(map[string]int64{n.Owner: size - n.Size}), 1)
	_, err := tx.Exec(`UPDATE nodes SET folder = $1, size = $2, mtime = $3, fid = $4, sums = '' WHERE id = $5`,
		flag(info.IsDir()), size, nanos(info.ModTime), int64(info.ID), n.ID)
	return err
}

// areas looks for staged and replaced files that no operation will ask for again. While something is under way on a backend across a network,
// what lies there may belong to it: see clean.
func (c *check) areas(ctx context.Context) error {
	if c.ds.cfg.ReadOnly {
		return nil
	}
	left, err := c.ds.left(ctx, c.m)
	if err != nil {
		return err
	}
	if b := c.m.chain.breaker; b != nil {
		if now := b.Stats(); now.Calls+now.Streams > 0 {
			return nil
		}
	}
	kept := c.g.journal.names(c.ds.cfg.Name)
	for _, name := range left {
		if kept[name] {
			continue
		}
		if err := c.stale(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// stale reports what an operation left behind. The source of a move that still holds something has no other copy of it: it is only reported.
func (c *check) stale(ctx context.Context, name string) error {
	if strings.Contains(name, "/"+carried) {
		c.report(name, "holds what a move between datasources could not carry; rename it back by hand", false)
		return nil
	}
	if c.repair {
		if err := mounts.Purge(ctx, c.m.Backend, name); err != nil {
			return err
		}
	}
	c.report(name, "was left behind by an interrupted operation", c.repair)
	return nil
}

// checkUsage compares what quotas count with what the rows say.
func (g *Gateway) checkUsage(ctx context.Context, repair bool, found func(Finding)) error {
	rows, err := g.db.Query(ctx, `SELECT owner, CAST(sum(size) AS BIGINT) FROM nodes WHERE folder = 0 AND owner <> '' AND NOT (path >= $1 AND path < $2)
		GROUP BY owner ORDER BY owner`, mounts.Area+"/", mounts.Area+"0")
	if err != nil {
		return err
	}
	defer rows.Close()
	real := make(map[string]int64)
	for rows.Next() {
		var owner string
		var size int64
		if err := rows.Scan(&owner, &size); err != nil {
			return err
		}
		real[owner] = size
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, owner := range slices.Sorted(maps.Keys(real)) {
		used, _, err := g.quota.Usage(ctx, userScope(owner))
		if err != nil {
			return err
		}
		if used == real[owner] {
			continue
		}
		if repair {
			err = g.db.Update(ctx, func(tx *store.Tx) error { return g.quota.SetUsage(tx, userScope(owner), real[owner]) })
			if err != nil {
				return err
			}
		}
		found(Finding{What: fmt.Sprintf("quota of %s counts %d bytes, its files have %d", owner, used, real[owner]), Repaired: repair})
	}
	return nil
}
