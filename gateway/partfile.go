package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// The parts of an upload lie in one common file, each where it shall be in the end, as far as that can be told: part n begins behind n-1 parts
// of the size of the first one that came. What does not fit there, or comes again, has a file of its own. Then completing most uploads is one
// rename.

// partsFolder is the folder of the area that holds parts.
const partsFolder = "parts"

// maxPlace is how far into the common file parts may lie, which is sparse: what file systems allow.
const maxPlace = 8 << 40

// uploads is what this process knows of uploads in parts that are under way.
type uploads struct {
	mu    sync.Mutex
	state map[string]*uploadState
}

type uploadState struct {
	users   int          // guarded by uploads.mu
	writing sync.RWMutex // held shared by parts that are coming, alone by the one who puts them together

	mu   sync.Mutex
	busy map[int]bool // numbers whose place in the common file is being written, guarded by mu
}

// use returns the state of an upload, the same to all who use it at the same time. leave must follow.
func (u *uploads) use(id string) *uploadState {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == nil {
		u.state = make(map[string]*uploadState)
	}
	s := u.state[id]
	if s == nil {
		s = &uploadState{busy: make(map[int]bool)}
		u.state[id] = s
	}
	s.users++
	return s
}

func (u *uploads) leave(id string, s *uploadState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(u.state, id)
	}
}

// newUploadID returns an id that nobody guesses and that is fit for a file name.
func newUploadID() string { return strings.ToLower(rand.Text()) }

// partFolder returns where the parts of an upload to the target go, "" for the spool.
func (o *op) partFolder() string {
	if !o.m.stages {
		return ""
	}
	return mounts.AreaOf(o.m.Backend, o.name) + "/" + partsFolder
}

// partFile is what parts are read from and written to.
type partFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// partFiles are the files of an upload, on its backend or in the spool.
type partFiles struct {
	m      *mounted // nil: the spool
	folder string
	id     string
}

func (o *op) partFiles(up Multipart) partFiles {
	if up.folder == "" {
		return partFiles{nil, o.g.partSpool(up.at.Datasource), up.ID}
	}
	return partFiles{o.m, up.folder, up.ID}
}

// partSpool is the folder of this machine for the parts of files on a datasource.
func (g *Gateway) partSpool(datasource string) string {
	return filepath.Join(g.spool, partsFolder, datasource)
}

// name is that of a file of the upload, "" the common one.
func (f partFiles) name(file string) string {
	if file == "" {
		file = f.id
	}
	return f.folder + "/" + file
}

func (f partFiles) open(ctx context.Context, file string, flag int) (partFile, error) {
	made := flag&os.O_CREATE != 0
	if f.m == nil {
		got, err := os.OpenFile(f.name(file), flag, 0o600)
		if made && errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(f.folder, 0o700); err == nil {
				got, err = os.OpenFile(f.name(file), flag, 0o600)
			}
		}
		if err != nil {
			return nil, spoolFault(err)
		}
		return got, nil
	}
	got, err := f.m.random.OpenFile(ctx, f.name(file), flag, 0)
	if made && fault.KindOf(err) == fault.NotExist {
		if err = mounts.MkdirAll(ctx, f.m.Backend, f.folder); err == nil {
			got, err = f.m.random.OpenFile(ctx, f.name(file), flag, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	return got, nil
}

func (f partFiles) remove(ctx context.Context, file string) error {
	if f.m == nil {
		err := os.Remove(f.name(file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return spoolFault(err)
	}
	err := f.m.Remove(ctx, f.name(file))
	if fault.KindOf(err) == fault.NotExist && err != nil {
		return nil
	}
	return err
}

// putPart writes a part where it belongs and then its row.
func (o *op) putPart(ctx context.Context, up Multipart, number int, r io.Reader, opt CreateOptions) (_ Part, err error) {
	state := o.g.uploads.use(up.ID)
	defer o.g.uploads.leave(up.ID, state)
	state.writing.RLock()
	defer state.writing.RUnlock()
	quota, err := o.reserve(ctx, &o.target, opt.Size, 0)
	if err != nil {
		return Part{}, err
	}
	defer quota.release()
	p := Part{Number: number}
	free, err := o.placePart(ctx, state, up, &p, opt.Size)
	if err != nil {
		return Part{}, err
	}
	defer free()
	files := o.partFiles(up)
	defer func() {
		if err != nil && p.file != "" {
			if rerr := files.remove(context.WithoutCancel(ctx), p.file); rerr != nil {
				o.g.log.Warn("a part is left behind until the next start", "path", o.path, "err", rerr)
			}
		}
	}()
	if err := o.fillPart(ctx, files, &p, r, opt, quota); err != nil {
		return Part{}, err
	}
	was, err := o.keepPart(ctx, up, &p)
	if err == nil && was != "" && was != p.file {
		if rerr := files.remove(context.WithoutCancel(ctx), was); rerr != nil {
			o.g.log.Warn("a part is left behind until the next start", "path", o.path, "err", rerr)
		}
	}
	return p, err
}

// placePart decides where a part goes. Its place in the common file is only for the first of its number, and for one at a time, since nothing
// may spoil what has come already.
func (o *op) placePart(ctx context.Context, state *uploadState, up Multipart, p *Part, size int64) (free func(), err error) {
	state.mu.Lock()
	defer state.mu.Unlock()
	own := func() { p.file = fmt.Sprintf("%s-%d-%s", up.ID, p.Number, strings.ToLower(rand.Text()[:8])) }
	if size < 0 || state.busy[p.Number] {
		own()
		return func() {}, nil
	}
	var here int
	slot := int64(0)
	err = o.g.db.QueryRow(ctx, `SELECT slot, (SELECT count(*) FROM parts WHERE upload = $1 AND number = $2) FROM uploads WHERE id = $1`, up.ID, p.Number).
		Scan(&slot, &here)
	if err != nil {
		return nil, fault.Wrap("gateway.parts", o.path.String(), err)
	}
	if slot == 0 && size > 0 {
		slot = size
		err := o.g.db.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Exec(`UPDATE uploads SET slot = $1 WHERE id = $2 AND slot = 0`, slot, up.ID)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	place := int64(p.Number-1) * slot
	if here > 0 || size > slot || place+size > maxPlace {
		own()
		return func() {}, nil
	}
	p.place = place
	state.busy[p.Number] = true
	return func() {
		state.mu.Lock()
		defer state.mu.Unlock()
		delete(state.busy, p.Number)
	}, nil
}

// fillPart writes what r yields and compares it with what was declared.
func (o *op) fillPart(ctx context.Context, files partFiles, p *Part, r io.Reader, opt CreateOptions, quota *hold) (err error) {
	sums, err := newSums(opt.Checksum, opt.Compute)
	if err != nil {
		return err
	}
	f, err := files.open(ctx, p.file, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fault.Wrap("gateway.parts", o.path.String(), f.Close())) }()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	held := int64(0)
	defer func() { _ = o.s.core.budget.stage(-held) }()
	for rerr := error(nil); rerr == nil; {
		var n int
		n, rerr = fill(r, *buf)
		if rerr != nil && rerr != io.EOF {
			return rerr
		}
		if opt.Size >= 0 && p.Size+int64(n) > opt.Size {
			return fault.New("gateway.parts", o.path.String(), fault.Invalid, fmt.Errorf("more than the %d bytes declared", opt.Size))
		}
		if err := o.s.core.budget.stage(int64(n)); err != nil {
			return err
		}
		held += int64(n)
		if err := quota.grow(p.Size + int64(n)); err != nil {
			return err
		}
		if files.m == nil && o.g.room != nil && (p.Size+int64(n))>>roomStep != p.Size>>roomStep {
			if err := o.g.room(); err != nil { // the spool lies beside the store
				return err
			}
		}
		if _, err := f.WriteAt((*buf)[:n], p.place+p.Size); err != nil {
			return fault.Wrap("gateway.parts", o.path.String(), err)
		}
		o.g.stats.in.Add(int64(n))
		sums.write((*buf)[:n])
		p.Size += int64(n)
	}
	if opt.Size >= 0 && p.Size != opt.Size {
		return fault.New("gateway.parts", o.path.String(), fault.Invalid, fmt.Errorf("%d bytes arrived, %d were declared", p.Size, opt.Size))
	}
	if err := sums.verify(o.path, nil); err != nil {
		return err
	}
	p.Sums = sums.String()
	if files.m == nil || o.ds.cfg.Durability == Synced {
		return fault.Wrap("gateway.parts", o.path.String(), f.Sync())
	}
	return nil
}

// keepPart writes the row of a part and returns the file that held the former one, "" when it needs no removal.
func (o *op) keepPart(ctx context.Context, up Multipart, p *Part) (was string, err error) {
	now := o.g.clock.Now().UTC()
	p.Modified = now
	err = o.g.db.Update(ctx, func(tx *store.Tx) error {
		var done int64
		if err := tx.QueryRow(`SELECT done FROM uploads WHERE id = $1`, up.ID).Scan(&done); err != nil || done != 0 {
			return fault.New("gateway.parts", o.path.String(), fault.NotExist, errUpload)
		}
		var files []string
		rows, err := tx.Query(`SELECT file FROM parts WHERE upload = $1 AND number = $2`, up.ID, p.Number)
		if err != nil {
			return err
		}
		for rows.Next() {
			var file string
			if err := rows.Scan(&file); err != nil {
				return errors.Join(err, rows.Close())
			}
			files = append(files, file)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		if was = ""; len(files) > 0 {
			was = files[0]
		}
		_, err = tx.Exec(`INSERT INTO parts (upload, number, size, sums, file, place, modified) VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (upload, number) DO UPDATE SET size = excluded.size, sums = excluded.sums, file = excluded.file, place = excluded.place,
				modified = excluded.modified`, up.ID, p.Number, p.Size, p.Sums, p.file, p.place, now.UnixNano())
		return err
	})
	return was, err
}

// adoptParts makes an upload of the common file.
func (o *op) adoptParts(ctx context.Context, files partFiles, total int64, opt CreateOptions) (_ *Upload, err error) {
	if err := o.s.core.budget.open(); err != nil {
		return nil, err
	}
	name := files.name("")
	f, err := o.m.random.OpenFile(ctx, name, os.O_RDWR, 0)
	if err == nil {
		if err = f.Truncate(total); err != nil { // a part behind, which is not wanted
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		o.s.core.budget.close()
		return nil, err
	}
	u := &Upload{o: o, opt: opt, acts: []policy.Action{policy.Create, policy.Modify}, file: f, staged: name, kept: true}
	u.size.Store(total)
	o.g.live.add(o.m, name)
	return u, nil
}

// copyParts makes an upload and writes the parts to it.
func (o *op) copyParts(ctx context.Context, files partFiles, parts []Part, opt CreateOptions) (_ *Upload, err error) {
	u, err := o.upload(ctx, opt)
	if err != nil {
		return nil, err
	}
	open := map[string]partFile{}
	defer func() {
		for _, f := range open {
			_ = f.Close() // it was only read
		}
		if err != nil && u.finish() {
			u.drop(&err)
		}
	}()
	for _, p := range parts {
		f := open[p.file]
		if f == nil {
			if f, err = files.open(ctx, p.file, os.O_RDONLY); err != nil {
				return nil, err
			}
			if open[p.file] = f; p.file != "" {
				defer func() { _ = f.Close(); delete(open, p.file) }()
			}
		}
		if _, err = u.ReadFrom(io.NewSectionReader(f, p.place, p.Size)); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// sweepParts deletes the files of uploads that are no more, and of parts that have been replaced, of a datasource.
func (g *Gateway) sweepParts(ctx context.Context, datasource string) error {
	ds := g.table.Load().datasources[datasource]
	if ds == nil {
		return spoolFault(os.RemoveAll(g.partSpool(datasource)))
	}
	if entries, err := os.ReadDir(g.partSpool(datasource)); err == nil {
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		if err := g.sweepFolder(ctx, partFiles{nil, g.partSpool(datasource), ""}, names); err != nil {
			return err
		}
	}
	if ds.personal() || ds.cfg.ReadOnly {
		return nil
	}
	m, err := ds.open()
	if err != nil || !m.stages {
		return err
	}
	for _, area := range m.areas() {
		folder := area + "/" + partsFolder
		var names []string
		for info, err := range m.List(ctx, folder) {
			if err != nil && fault.KindOf(err) != fault.NotExist {
				return err
			}
			if err == nil {
				names = append(names, info.Name)
			}
		}
		if err := g.sweepFolder(ctx, partFiles{m, folder, ""}, names); err != nil {
			return err
		}
	}
	return nil
}

// sweepFolder deletes those of the named files that no row speaks of. Files that a part is being written to have none yet: of an upload in use
// nothing is deleted.
func (g *Gateway) sweepFolder(ctx context.Context, files partFiles, names []string) error {
	slices.Sort(names)
	var errs []error
	for _, name := range names {
		id, rest, own := strings.Cut(name, "-")
		number, _, _ := strings.Cut(rest, "-")
		n, _ := strconv.Atoi(number)
		state := g.uploads.use(id)
		if !state.writing.TryLock() {
			g.uploads.leave(id, state)
			continue
		}
		var upload, part int
		err := g.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM uploads WHERE id = $1 AND done = 0) + (SELECT count(*) FROM journal WHERE payload LIKE $2),
			(SELECT count(*) FROM parts WHERE upload = $1 AND number = $3 AND file = $4)`, id, "%"+id+"%", n, name).Scan(&upload, &part)
		if err == nil && (upload == 0 || own && part == 0) {
			err = files.remove(ctx, name)
		}
		state.writing.Unlock()
		g.uploads.leave(id, state)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// expireParts forgets uploads that nobody has completed, and those that were completed, after a while, and deletes what is left of them.
func (g *Gateway) expireParts(ctx context.Context) error {
	now := g.clock.Now()
	rows, err := g.db.Query(ctx, selectUploads+` WHERE done = 0 AND created < $1 OR done <> 0 AND done < $2 ORDER BY id LIMIT 1000`,
		now.Add(-multipartAge).UnixNano(), now.Add(-doneAge).UnixNano())
	if err != nil {
		return fault.Wrap("gateway.parts", "", err)
	}
	var old []Multipart
	for rows.Next() {
		up, err := scanUpload(rows.Scan)
		if err != nil {
			return errors.Join(err, rows.Close())
		}
		old = append(old, up)
	}
	errs := []error{rows.Err(), rows.Close()}
	for _, up := range old {
		errs = append(errs, g.forgetUpload(ctx, up))
	}
	datasources := slices.Collect(maps.Keys(g.table.Load().datasources))
	if entries, err := os.ReadDir(g.partSpool("")); err == nil {
		for _, e := range entries {
			datasources = append(datasources, e.Name())
		}
	}
	for _, name := range datasources {
		if err := g.sweepParts(ctx, name); fault.KindOf(err) != fault.Unavailable {
			errs = append(errs, err)
		}
	}
	return fault.Wrap("gateway.parts", "", errors.Join(errs...))
}
