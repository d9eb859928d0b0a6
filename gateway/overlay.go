package gateway

import (
	"context"
	"database/sql"
	"io/fs"
	"path"
	"strconv"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// overlay is what of an Info stands in the store, as far as the protocol wants it and there is any.
type overlay struct{ modes, sums bool }

// overlay returns what is to be asked of the store about nodes of the target's datasource.
func (o *op) overlay() (v overlay) {
	if c := o.s.client; c.Posix && o.g.propped.Load() {
		_, native := mounts.As[mounts.ModeSetter](o.m.Backend)
		v.modes = !native
	}
	v.sums = o.s.client.Sums
	return v
}

// overlaid returns i, which is of the target, with what the store adds.
func (o *op) overlaid(ctx context.Context, i Info) (Info, error) {
	v := o.overlay()
	if v == (overlay{}) || i.Dir && !v.modes || o.name == "." {
		return i, nil
	}
	infos := []Info{i}
	infos[0].Name = path.Base(o.name) // where links led
	err := o.fill(ctx, v, parentOf(o.name), infos)
	infos[0].Name = i.Name
	return infos[0], err
}

// fill adds what the store knows of children of a folder.
func (o *op) fill(ctx context.Context, v overlay, folder string, infos []Info) error {
	at := make(map[string]*Info, len(infos))
	paths := make([]any, len(infos))
	for i := range infos {
		child := o.ds.place(join(folder, infos[i].Name)).Path
		at[child], paths[i] = &infos[i], child
	}
	depth := depthOf(o.ds.place(folder).Path) + 1
	for len(paths) > 0 {
		size := pieceOf(len(paths))
		args := append([]any{o.ds.cfg.Name, depth}, paths[:size]...)
		if v.modes {
			rows, err := o.g.db.Query(ctx, propsOf[size], args...)
			byPath, err := scanProps(rows, err)
			if err != nil {
				return err
			}
			for path, props := range byPath {
				at[path].setMode(props)
			}
		}
		if v.sums {
			rows, err := o.g.db.Query(ctx, sumsOf[size], args...)
			if err := scanSums(rows, err, at); err != nil {
				return err
			}
		}
		paths = paths[size:]
	}
	return nil
}

func (i *Info) setMode(props []Prop) {
	for _, p := range props {
		if mode, err := strconv.ParseUint(string(p.Value), 8, 32); err == nil && p.Space == posixSpace && p.Name == modeProp {
			i.Mode = fs.FileMode(mode) & fs.ModePerm
		}
	}
}

// sumsOf are the questions for the checksums of so many nodes.
var sumsOf = map[int]string{1: askSums(1), 4: askSums(4), 16: askSums(16), 64: askSums(64)}

func askSums(n int) string {
	return `SELECT path, size, mtime, fid, sums FROM nodes WHERE datasource = $1 AND depth = $2 AND path IN ` + list(3, n) + ` AND sums <> ''`
}

// scanSums gives their checksums to those of infos that are still what their row is of.
func scanSums(rows *sql.Rows, err error, at map[string]*Info) error {
	if err != nil {
		return fault.Wrap("gateway.sums", "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var path, sums string
		var size, mtime, fid int64
		if err := rows.Scan(&path, &size, &mtime, &fid, &sums); err != nil {
			return fault.Wrap("gateway.sums", "", err)
		}
		if i := at[path]; i.Size == size && nanos(i.ModTime) == mtime && i.ID == uint64(fid) { // see node.of
			i.Sums = sums
		}
	}
	return fault.Wrap("gateway.sums", "", rows.Err())
}

// page holds entries of a listing back for which the store is asked together. Where there is nothing to ask, it holds none.
type page struct {
	overlay
	infos []Info
}

const pageSize = 64

// add yields i, at once or with a later page. It reports false when the listing is over, with an error or because nobody wants more.
func (g *page) add(ctx context.Context, o *op, i Info, yield func(Info, error) bool) (more bool, err error) {
	if g.overlay == (overlay{}) {
		return yield(i, nil), nil
	}
	if g.infos = append(g.infos, i); len(g.infos) < pageSize {
		return true, nil
	}
	return g.flush(ctx, o, yield)
}

// flush yields what is held back.
func (g *page) flush(ctx context.Context, o *op, yield func(Info, error) bool) (more bool, err error) {
	if len(g.infos) == 0 {
		return true, nil
	}
	if err := o.fill(ctx, g.overlay, o.name, g.infos); err != nil {
		return false, err
	}
	for _, i := range g.infos {
		if !yield(i, nil) {
			return false, nil
		}
	}
	g.infos = g.infos[:0]
	return true, nil
}
