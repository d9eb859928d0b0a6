package gateway

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// node is a row: what the core remembers of a file or folder.
type node struct {
	ID     int64        `json:"id"`
	At     policy.Place `json:"at"`
	Folder bool         `json:"folder,omitempty"`
	Size   int64        `json:"size"`
	MTime  int64        `json:"mtime"`
	FID    uint64       `json:"fid"`
	Sums   string       `json:"sums,omitempty"`
	Owner  string       `json:"owner"`
}

// of reports whether the row is of what info describes, as far as sizes, times and ids tell.
func (n node) of(info mounts.Info) bool {
	return info.Size == n.Size && nanos(info.ModTime) == n.MTime && info.ID == n.FID
}

// nodes writes the rows of files that were published in one shared transaction.
type nodes struct{ g *Gateway }

// Flush implements store.Flusher. The last row of a place wins.
func (n nodes) Flush(tx *store.Tx, items []any) error {
	last := make(map[policy.Place]int, len(items))
	for i, item := range items {
		last[item.(*node).At] = i
	}
	rows := make([][]any, 0, len(items))
	now := n.g.now()
	for i, item := range items {
		if r := item.(*node); last[r.At] == i {
			rows = append(rows, []any{r.ID, r.At.Datasource, depthOf(r.At.Path), r.At.Path, flag(r.Folder), r.Size, r.MTime, int64(r.FID), r.Sums, r.Owner, now, now})
		}
	}
	return tx.Insert(`INSERT INTO nodes (id, datasource, depth, path, folder, size, mtime, fid, sums, owner, created, changed)`,
		`ON CONFLICT (datasource, depth, path) DO UPDATE SET folder = excluded.folder, size = excluded.size, mtime = excluded.mtime,
			fid = excluded.fid, sums = excluded.sums, owner = excluded.owner, changed = excluded.changed`, rows)
}

// row is the node row of a file or folder as it is about to be published.
func (o *op) row(at policy.Place, info mounts.Info, sums string) *node {
	return &node{ID: store.NewID(), At: at, Folder: info.IsDir(), Size: info.Size, MTime: nanos(info.ModTime), FID: info.ID, Sums: sums, Owner: o.actor()}
}

// nanos is a time as rows keep it; 0 is one the backend did not tell.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// renewRow writes down what the file of a row turned out to be, if the row is still that of the same publication.
func renewRow(tx *store.Tx, row node, info mounts.Info) error {
	_, err := tx.Exec(`UPDATE nodes SET mtime = $1, fid = $2 WHERE datasource = $3 AND depth = $4 AND path = $5 AND size = $6 AND mtime = $7`,
		nanos(info.ModTime), int64(info.ID), row.At.Datasource, depthOf(row.At.Path), row.At.Path, row.Size, row.MTime)
	return err
}

// renewPlace writes down what the file of a place's row turned out to be. Where it is of another size, its sums are forgotten.
func renewPlace(tx *store.Tx, at policy.Place, info mounts.Info) error {
	_, err := tx.Exec(`UPDATE nodes SET sums = CASE WHEN size = $1 THEN sums ELSE '' END, size = $1, mtime = $2, fid = $3
		WHERE datasource = $4 AND depth = $5 AND path = $6`, info.Size, nanos(info.ModTime), int64(info.ID), at.Datasource, depthOf(at.Path), at.Path)
	return err
}

// querier is what rows are read from: the committed state or a transaction.
type querier func(q string, args ...any) *sql.Row

// loadNode returns the row of a place, and whether there is one.
func loadNode(query querier, at policy.Place) (node, bool, error) {
	n := node{At: at}
	var folder, fid int64
	err := query(`SELECT id, folder, size, mtime, fid, sums, owner FROM nodes WHERE datasource = $1 AND depth = $2 AND path = $3`,
		at.Datasource, depthOf(at.Path), at.Path).Scan(&n.ID, &folder, &n.Size, &n.MTime, &fid, &n.Sums, &n.Owner)
	if errors.Is(err, sql.ErrNoRows) {
		return n, false, nil
	}
	n.Folder, n.FID = folder != 0, uint64(fid)
	return n, err == nil, fault.Wrap("gateway.node", at.Path, err)
}

// node is loadNode on the committed state.
func (g *Gateway) node(ctx context.Context, at policy.Place) (node, bool, error) {
	return loadNode(func(q string, args ...any) *sql.Row { return g.db.QueryRow(ctx, q, args...) }, at)
}

// rowsIn returns the rows of what lies in a folder, by path.
func (g *Gateway) rowsIn(ctx context.Context, folder policy.Place) (map[string]node, error) {
	low, high := bounds(folder.Path)
	rows, err := g.db.Query(ctx, `SELECT path, folder, size, mtime, fid FROM nodes WHERE datasource = $1 AND depth = $2 AND path >= $3 AND path < $4`,
		folder.Datasource, depthOf(folder.Path)+1, low, high)
	if err != nil {
		return nil, fault.Wrap("gateway.rowsIn", folder.Path, err)
	}
	defer rows.Close()
	all := make(map[string]node)
	for rows.Next() {
		n := node{At: policy.Place{Datasource: folder.Datasource}}
		var dir, fid int64
		if err := rows.Scan(&n.At.Path, &dir, &n.Size, &n.MTime, &fid); err != nil {
			return nil, fault.Wrap("gateway.rowsIn", folder.Path, err)
		}
		n.Folder, n.FID = dir != 0, uint64(fid)
		all[n.At.Path] = n
	}
	return all, fault.Wrap("gateway.rowsIn", folder.Path, rows.Err())
}

// lists are the lists of values that deleteIDs uses: few, so that the statements stay prepared.
var lists = map[int]string{1: list(1, 1), 4: list(1, 4), 16: list(1, 16), 64: list(1, 64)}

// list returns "($3, $4, …)" for n values from first on.
func list(first, n int) string {
	words := make([]string, n)
	for i := range words {
		words[i] = "$" + strconv.Itoa(first+i)
	}
	return "(" + strings.Join(words, ", ") + ")"
}

// pieceOf is how many of n values one statement takes.
func pieceOf(n int) int {
	for _, size := range []int{64, 16, 4} {
		if n >= size {
			return size
		}
	}
	return 1
}

// deleteIDs runs "head ($1, …)" over ids in pieces.
func deleteIDs(tx *store.Tx, head string, ids []any) error {
	for len(ids) > 0 {
		size := pieceOf(len(ids))
		if _, err := tx.Exec(head+lists[size], ids[:size]...); err != nil {
			return err
		}
		ids = ids[size:]
	}
	return nil
}

// below runs fn once per depth at which rows below path may lie, with the bounds of their paths: q is "… datasource = $1 AND depth = $2
// AND path >= $3 AND path < $4". The index begins with depth, so each is one range.
func below(tx *store.Tx, datasource, path string, fn func(depth int, low, high string) error) error {
	var deepest sql.NullInt64
	if err := tx.QueryRow(`SELECT max(depth) FROM nodes WHERE datasource = $1`, datasource).Scan(&deepest); err != nil {
		return fault.Wrap("gateway.below", path, err)
	}
	low, high := bounds(path)
	for d := depthOf(path) + 1; d <= int(deepest.Int64); d++ {
		if err := fn(d, low, high); err != nil {
			return err
		}
	}
	return nil
}

// bounds returns the half-open range of the paths below path.
func bounds(path string) (low, high string) {
	if path == "." {
		return "", "\U0010FFFF"
	}
	return path + "/", path + "0" // '0' follows '/'
}

// deleteNodes deletes the rows of a place and of everything below it, with their properties.
func deleteNodes(tx *store.Tx, datasource, path string) error {
	if _, err := tx.Exec(`DELETE FROM nodes WHERE datasource = $1 AND depth = $2 AND path = $3`, datasource, depthOf(path), path); err != nil {
		return err
	}
	return below(tx, datasource, path, func(depth int, low, high string) error {
		_, err := tx.Exec(`DELETE FROM nodes WHERE datasource = $1 AND depth = $2 AND path >= $3 AND path < $4`, datasource, depth, low, high)
		return err
	})
}

// moveNodes makes the rows of from and everything below it those of to. On another datasource the content is a copy: its id and time there
// are not known. What was at to is deleted first.
func moveNodes(tx *store.Tx, from, to policy.Place) error {
	if err := deleteNodes(tx, to.Datasource, to.Path); err != nil {
		return err
	}
	set := `UPDATE nodes SET datasource = $1, depth = depth + $2, path = $3 || substr(path, $4) `
	if from.Datasource != to.Datasource {
		set = `UPDATE nodes SET datasource = $1, depth = depth + $2, path = $3 || substr(path, $4), fid = 0, mtime = 0 `
	}
	shift, rest := depthOf(to.Path)-depthOf(from.Path), utf8.RuneCountInString(from.Path)+1
	if _, err := tx.Exec(set+`WHERE datasource = $5 AND depth = $6 AND path = $7`,
		to.Datasource, shift, to.Path, rest, from.Datasource, depthOf(from.Path), from.Path); err != nil {
		return err
	}
	type level struct {
		depth     int
		low, high string
	}
	var levels []level
	err := below(tx, from.Datasource, from.Path, func(depth int, low, high string) error {
		levels = append(levels, level{depth, low, high})
		return nil
	})
	for _, l := range levels {
		if err == nil {
			_, err = tx.Exec(set+`WHERE datasource = $5 AND depth = $6 AND path >= $7 AND path < $8`,
				to.Datasource, shift, to.Path, rest, from.Datasource, l.depth, l.low, l.high)
		}
	}
	return err
}

// usageBelow returns how many bytes each owner has in the tree at a place, by the rows.
func usageBelow(tx *store.Tx, at policy.Place) (map[string]int64, error) {
	usage := make(map[string]int64)
	add := func(q string, args ...any) error {
		rows, err := tx.Query(q, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var owner string
			var size int64
			if err := rows.Scan(&owner, &size); err != nil {
				return err
			}
			usage[owner] += size
		}
		return rows.Err()
	}
	if err := add(`SELECT owner, size FROM nodes WHERE datasource = $1 AND depth = $2 AND path = $3 AND folder = 0`, at.Datasource, depthOf(at.Path), at.Path); err != nil {
		return nil, err
	}
	err := below(tx, at.Datasource, at.Path, func(depth int, low, high string) error {
		return add(`SELECT owner, CAST(sum(size) AS BIGINT) FROM nodes WHERE datasource = $1 AND depth = $2 AND path >= $3 AND path < $4 AND folder = 0 GROUP BY owner ORDER BY owner`,
			at.Datasource, depth, low, high)
	})
	return usage, err
}
