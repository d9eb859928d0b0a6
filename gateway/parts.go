package gateway

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/store"
)

// Multipart is a file on its way in parts, over as many requests as it takes. It survives restarts, and belongs to the user who began it.
type Multipart struct {
	ID    string
	Path  Path
	Note  string // words of the protocol that began it
	Begun time.Time
	Done  bool // completed, and remembered for a while, for those who did not hear of it

	at     policy.Place
	folder string // on the backend, where the parts lie, "" the spool
	slot   int64  // bytes of the first part that came, 0 none yet
}

// Part is one of the numbered pieces of a Multipart.
type Part struct {
	Number   int
	Size     int64
	Sums     string // checksums of its bytes, "MD5:hex …"
	Modified time.Time

	file  string // that holds it, "" the common one
	place int64  // where in it
}

// MaxPart is the highest number of a part.
const MaxPart = 10_000

const (
	multipartAge = 7 * 24 * time.Hour // after which one that nobody completed is forgotten
	doneAge      = 24 * time.Hour     // for which one that was completed is remembered
)

var (
	errUpload   = errors.New("there is no such upload")
	errNumber   = fmt.Errorf("parts have numbers from 1 to %d", MaxPart)
	errParts    = errors.New("the parts are not those that have come")
	errSequence = errors.New("the parts are not in order")
	errUploads  = errors.New("too many unfinished uploads of this user")
)

// BeginParts begins a file that will come in parts. Type, rights and locks are asked as by Create. note is kept for the protocol.
func (s *Session) BeginParts(ctx context.Context, p Path, note string) (_ Multipart, err error) {
	o, err := s.begin(ctx, verbCreate, p, policy.Create, policy.Modify)
	if err != nil {
		return Multipart{}, err
	}
	defer o.end(&err)
	u := &Upload{o: o, opt: CreateOptions{Size: -1}, acts: []policy.Action{policy.Create, policy.Modify}}
	defer func() { u.quota.release() }()
	if _, _, err := u.judge(ctx); err != nil {
		return Multipart{}, err
	}
	up := Multipart{ID: newUploadID(), Path: p, Note: note, Begun: o.g.clock.Now().UTC(), at: o.at, folder: o.partFolder()}
	err = o.g.db.Update(ctx, func(tx *store.Tx) error {
		var n int
		if err := tx.QueryRow(`SELECT count(*) FROM uploads WHERE holder = $1 AND done = 0`, s.Subject().ID).Scan(&n); err != nil {
			return err
		}
		if n >= o.g.limits.Uploads {
			return fault.New("gateway.parts", p.String(), fault.Busy, errUploads)
		}
		_, err := tx.Exec(`INSERT INTO uploads (id, holder, datasource, path, root, folder, slot, note, created, done) VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, 0)`,
			up.ID, s.Subject().ID, o.at.Datasource, o.at.Path, p.String(), up.folder, note, up.Begun.UnixNano())
		return err
	})
	return up, err
}

// Multipart returns an upload of the subject's to p. NotExist when there is none.
func (s *Session) Multipart(ctx context.Context, p Path, id string) (_ Multipart, err error) {
	o, err := s.begin(ctx, verbStat, p, policy.Create, policy.Modify)
	if err != nil {
		return Multipart{}, err
	}
	defer o.end(&err)
	return o.multipart(ctx, id)
}

// Multiparts returns up to max of the subject's unfinished uploads to what lies below the folder p, in the order of path and id, from behind
// the given ones on.
func (s *Session) Multiparts(ctx context.Context, p Path, afterPath, afterID string, max int) (_ []Multipart, err error) {
	o, err := s.begin(ctx, verbList, p, policy.List, policy.Create)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	low, high := p.String()+"/", p.String()+"0" // "0" follows "/"
	if p.IsRoot() {
		low, high = "/", "0"
	}
	rows, err := o.g.db.Query(ctx, selectUploads+` WHERE holder = $1 AND done = 0 AND root >= $2 AND root < $3 AND (root > $4 OR root = $4 AND id > $5)
		ORDER BY root, id LIMIT $6`, s.Subject().ID, low, high, afterPath, afterID, max)
	if err != nil {
		return nil, fault.Wrap("gateway.parts", p.String(), err)
	}
	defer rows.Close()
	var all []Multipart
	for rows.Next() {
		up, err := scanUpload(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, up)
	}
	return all, fault.Wrap("gateway.parts", p.String(), rows.Err())
}

const selectUploads = `SELECT id, datasource, path, root, folder, slot, note, created, done FROM uploads`

func scanUpload(scan func(...any) error) (up Multipart, err error) {
	var root string
	var created, done int64
	if err = scan(&up.ID, &up.at.Datasource, &up.at.Path, &root, &up.folder, &up.slot, &up.Note, &created, &done); err != nil {
		return up, err
	}
	up.Begun, up.Done = time.Unix(0, created).UTC(), done != 0
	up.Path, err = ParsePath(root)
	return up, err
}

// multipart returns the subject's upload to the target.
func (o *op) multipart(ctx context.Context, id string) (Multipart, error) {
	up, err := scanUpload(o.g.db.QueryRow(ctx, selectUploads+` WHERE id = $1 AND holder = $2`, id, o.s.Subject().ID).Scan)
	if errors.Is(err, sql.ErrNoRows) || err == nil && up.at != o.at {
		return up, fault.New("gateway.parts", o.path.String(), fault.NotExist, errUpload)
	}
	return up, fault.Wrap("gateway.parts", o.path.String(), err)
}

// Parts returns up to max parts that have come, from behind the number after on.
func (s *Session) Parts(ctx context.Context, p Path, id string, after, max int) (_ []Part, err error) {
	o, err := s.begin(ctx, verbStat, p, policy.Create, policy.Modify)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if _, err := o.multipart(ctx, id); err != nil {
		return nil, err
	}
	return o.parts(ctx, id, after, max)
}

func (o *op) parts(ctx context.Context, id string, after, max int) ([]Part, error) {
	rows, err := o.g.db.Query(ctx, `SELECT number, size, sums, file, place, modified FROM parts WHERE upload = $1 AND number > $2 ORDER BY number LIMIT $3`,
		id, after, max)
	if err != nil {
		return nil, fault.Wrap("gateway.parts", o.path.String(), err)
	}
	defer rows.Close()
	var all []Part
	for rows.Next() {
		var p Part
		var modified int64
		if err := rows.Scan(&p.Number, &p.Size, &p.Sums, &p.file, &p.place, &modified); err != nil {
			return nil, fault.Wrap("gateway.parts", o.path.String(), err)
		}
		p.Modified = time.Unix(0, modified).UTC()
		all = append(all, p)
	}
	return all, fault.Wrap("gateway.parts", o.path.String(), rows.Err())
}

// PutPart takes a part from r, instead of one of the same number that came before. Of opt count Size, Checksum and Compute. A part that is cut
// off, or is not what was declared, leaves the former one. On success it is durable as the datasource promises.
func (s *Session) PutPart(ctx context.Context, p Path, id string, number int, r io.Reader, opt CreateOptions) (_ Part, err error) {
	o, err := s.coming(-1).begin(ctx, verbCreate, p, policy.Create, policy.Modify)
	if err != nil {
		return Part{}, err
	}
	defer o.end(&err)
	if number < 1 || number > MaxPart {
		return Part{}, fault.New("gateway.parts", p.String(), fault.Invalid, errNumber)
	}
	up, err := o.multipart(ctx, id)
	if err == nil && up.Done {
		err = fault.New("gateway.parts", p.String(), fault.NotExist, errUpload)
	}
	if err != nil {
		return Part{}, err
	}
	if err := s.core.budget.open(); err != nil {
		return Part{}, err
	}
	defer s.core.budget.close()
	return o.putPart(ctx, up, number, r, opt)
}

// AbortParts forgets an upload with all its parts.
func (s *Session) AbortParts(ctx context.Context, p Path, id string) (err error) {
	o, err := s.begin(ctx, verbRemove, p, policy.Create, policy.Modify)
	if err != nil {
		return err
	}
	defer o.end(&err)
	up, err := o.multipart(ctx, id)
	if err == nil && up.Done {
		err = fault.New("gateway.parts", p.String(), fault.NotExist, errUpload)
	}
	if err != nil {
		return err
	}
	return o.g.forgetUpload(ctx, up)
}

// forgetUpload deletes an upload: its rows first, then what is left of it.
func (g *Gateway) forgetUpload(ctx context.Context, up Multipart) error {
	err := g.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM uploads WHERE id = $1`, up.ID)
		return err
	})
	if err != nil {
		return err
	}
	g.background("sweep parts", func(ctx context.Context) error { return g.sweepParts(ctx, up.at.Datasource) })
	return nil
}

// CompleteParts makes p of parts, which are some or all of those that have come, in ascending order and as Parts told of them. All that
// Create asks is asked. note replaces that of the upload. Completing what has been completed is fine and changes nothing.
func (s *Session) CompleteParts(ctx context.Context, p Path, id string, parts []Part, opt CreateOptions, note string) (_ Info, created bool, err error) {
	o, err := s.begin(ctx, verbCreate, p, policy.Create, policy.Modify)
	if err != nil {
		return Info{}, false, err
	}
	up, err := o.multipart(ctx, id)
	if err == nil && up.Done {
		defer o.end(&err)
		info, err := o.stat(ctx, o.m, &o.target, true, policy.Create, policy.Modify)
		return o.info(p, info), false, err
	}
	if err != nil {
		o.end(&err)
		return Info{}, false, err
	}
	state := o.g.uploads.use(id)
	defer o.g.uploads.leave(id, state)
	// While no part is coming nobody writes to the common file, which may then become the file itself.
	alone := state.writing.TryLock()
	if alone {
		defer state.writing.Unlock()
	}
	u, err := o.assemble(ctx, up, parts, alone, opt, note)
	if err != nil {
		o.end(&err)
		return Info{}, false, err
	}
	i, created, err := u.Commit(ctx)
	if err == nil {
		o.g.background("sweep parts", func(ctx context.Context) error { return o.g.sweepParts(ctx, up.at.Datasource) })
	}
	return i, created, err
}

// assemble makes an upload of the parts. Where they lie in order in one file on the backend itself, and nobody else is writing there, that is
// what will be published; else they are copied.
func (o *op) assemble(ctx context.Context, up Multipart, parts []Part, alone bool, opt CreateOptions, note string) (_ *Upload, err error) {
	total, inOrder, err := o.match(ctx, up, parts)
	if err != nil {
		return nil, err
	}
	opt.Size = total
	files := o.partFiles(up)
	var u *Upload
	if alone && inOrder && up.folder != "" && total > 0 {
		u, err = o.adoptParts(ctx, files, total, opt)
	} else {
		u, err = o.copyParts(ctx, files, parts, opt)
	}
	if err != nil {
		return nil, err
	}
	u.within = func(tx *store.Tx) error {
		if _, err := tx.Exec(`DELETE FROM parts WHERE upload = $1`, up.ID); err != nil {
			return err
		}
		res, err := tx.Exec(`UPDATE uploads SET done = $1, note = $2 WHERE id = $3 AND done = 0`, o.g.now(), note, up.ID)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return fault.New("gateway.parts", o.path.String(), fault.NotExist, errUpload)
	}
	return u, nil
}

// match compares parts with those that have come, whose places it fills in. It returns their bytes, and whether they lie one after the other.
func (o *op) match(ctx context.Context, up Multipart, parts []Part) (total int64, inOrder bool, err error) {
	if len(parts) == 0 {
		return 0, false, fault.New("gateway.parts", o.path.String(), fault.Invalid, errParts)
	}
	here, err := o.parts(ctx, up.ID, 0, MaxPart)
	if err != nil {
		return 0, false, err
	}
	inOrder = true
	for i := range parts {
		p := &parts[i]
		if i > 0 && p.Number <= parts[i-1].Number {
			return 0, false, fault.New("gateway.parts", o.path.String(), fault.Invalid, errSequence)
		}
		at, found := slices.BinarySearchFunc(here, p.Number, func(h Part, n int) int { return h.Number - n })
		if !found || here[at].Size != p.Size || !strings.EqualFold(here[at].Sums, p.Sums) {
			return 0, false, fault.New("gateway.parts", o.path.String(), fault.Precondition, errParts)
		}
		*p = here[at]
		inOrder = inOrder && p.file == "" && p.place == total
		total += p.Size
	}
	return total, inOrder, nil
}
