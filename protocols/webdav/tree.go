package webdav

import (
	"net/http"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// Values of the Depth header (RFC 4918 §10.2).
const (
	depth0   = 0
	depth1   = 1
	infinity = -1
)

// depth reads the Depth header. noroot is Microsoft's "1,noroot".
func (q *request) depth(without int) (depth int, noroot bool, err error) {
	switch v := strings.ToLower(strings.ReplaceAll(q.r.Header.Get("Depth"), " ", "")); v {
	case "":
		return without, false, nil
	case "0":
		return depth0, false, nil
	case "1":
		return depth1, false, nil
	case "1,noroot":
		return depth1, true, nil
	case "infinity":
		return infinity, false, nil
	}
	return 0, false, refuse(http.StatusBadRequest, "Depth is not understood")
}

// mkcol makes a folder (RFC 4918 §9.3).
func (q *request) mkcol() error {
	if err := q.noBody(); err != nil {
		return err
	}
	if err := q.check(); err != nil {
		return err
	}
	switch err := q.s.Mkdir(q.ctx(), q.path); {
	case err == nil:
		return q.done(true)
	case fault.KindOf(err) == fault.Exist:
		q.w.Header().Set("Allow", allowFolder)
		return refuse(http.StatusMethodNotAllowed, "already exists") // §9.3.1: only on an unmapped URL
	case fault.KindOf(err) == fault.NotExist, fault.KindOf(err) == fault.NotDir:
		return refuse(http.StatusConflict, "the folder to make it in does not exist")
	default:
		return err
	}
}

// remove deletes a file or a folder with all that is in it (RFC 4918 §9.6). The core does that wholly or not at all, so there is nothing that
// a 207 would have to tell: what stands in the way is the request's own failure. The same holds for COPY and MOVE.
func (q *request) remove() error {
	if err := q.noBody(); err != nil {
		return err
	}
	// §9.6.1: a folder is deleted with Depth infinity only. Clients send 0 with files.
	depth, _, err := q.depth(infinity)
	if err != nil {
		return err
	}
	err = q.s.Remove(q.ctx(), q.path, gateway.RemoveOptions{Cond: q.cond(), Recursive: depth == infinity})
	switch {
	case err == nil:
		return q.done(false)
	case depth != infinity && fault.KindOf(err) == fault.NotEmpty:
		return refuse(http.StatusBadRequest, "a folder is deleted with Depth: infinity")
	}
	return err
}

// copyOrMove puts the tree at Destination in one go (RFC 4918 §9.8 and §9.9).
func (q *request) copyOrMove() error {
	if err := q.noBody(); err != nil {
		return err
	}
	to, err := q.destination()
	if err != nil {
		return err
	}
	move := q.r.Method == "MOVE"
	o := gateway.MoveOptions{Cond: q.cond(), DestCond: gateway.Cond{Check: q.recheckIf(to)}}
	switch v := strings.ToUpper(strings.TrimSpace(q.r.Header.Get("Overwrite"))); v {
	case "", "T": // §10.6
		o.Overwrite = true
	case "F":
	default:
		return refuse(http.StatusBadRequest, "Overwrite is T or F")
	}
	depth, _, err := q.depth(infinity)
	switch {
	case err != nil:
		return err
	case depth == depth1 || move && depth == depth0 && strings.HasSuffix(q.r.URL.Path, "/"): // §9.8.3, §9.9.2
		return refuse(http.StatusBadRequest, "Depth is not possible here")
	case q.h.hides(to):
		return refuse(http.StatusForbidden, "files of this name are not kept here")
	case to == q.path: // §9.8.5
		return refuse(http.StatusForbidden, "source and destination are the same")
	case q.path.Contains(to), to.Contains(q.path):
		return refuse(http.StatusConflict, "source and destination lie within each other")
	}
	o.Shallow = depth == depth0 && !move
	transfer := q.s.Copy
	if move {
		transfer = q.s.Rename
	}
	created, err := transfer(q.ctx(), q.path, to, o)
	switch kind := fault.KindOf(err); {
	case err == nil:
		return q.done(created)
	case kind == fault.Exist && !o.Overwrite:
		return errPrecondition() // §9.8.5
	case kind == fault.NotExist:
		if _, err := q.s.Stat(q.ctx(), q.path); err == nil {
			return refuse(http.StatusConflict, "the folder to put it in does not exist") // §9.8.5
		}
	}
	return err
}
