package gateway

import (
	"context"
	"errors"
	"os"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// errElsewhere says that a file cannot be changed where it is: it lies across a network, or its backend has no random access.
var errElsewhere = errors.New("the file cannot be changed in place")

// rewrite begins to change the file p itself, or makes it: what is written is there at once, for everybody, as on a local disk. Rights, locks
// and quota are asked now; row, audit record and event follow at the next settle. What the row says of the content is forgotten before it
// changes: a kill in between leaves a file that looks as if it had been changed outside.
func (s *Session) rewrite(ctx context.Context, p Path, opt OpenOptions) (_ *Upload, err error) {
	o, err := s.begin(ctx, verbWrite, p, policy.Modify, policy.Create)
	if err != nil {
		return nil, err
	}
	u, err := o.rewrite(ctx, opt)
	if err != nil {
		o.end(&err)
		return nil, err
	}
	return u, nil
}

func (o *op) rewrite(ctx context.Context, opt OpenOptions) (_ *Upload, err error) {
	if !o.m.stages {
		return nil, fault.New("gateway.rewrite", o.path.String(), fault.Unsupported, errElsewhere)
	}
	u := &Upload{o: o, opt: CreateOptions{Size: -1, Cond: opt.Cond}, acts: []policy.Action{policy.Modify, policy.Create}, live: true}
	cur, exists, release, err := u.claim(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	defer func() {
		if err != nil {
			u.quota.release()
		}
	}()
	flag := os.O_RDWR
	switch {
	case !exists && opt.Flag&os.O_CREATE == 0:
		return nil, fault.New("gateway.rewrite", o.path.String(), fault.NotExist, nil)
	case !exists:
		flag |= os.O_CREATE | os.O_EXCL
	case opt.Flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, fault.New("gateway.rewrite", o.path.String(), fault.Exist, nil)
	default:
		if opt.Flag&os.O_RDWR != 0 {
			if _, err := o.ask(policy.Download, &o.target); err != nil {
				return nil, err
			}
		}
		if err := o.forgetSums(ctx); err != nil {
			return nil, err
		}
	}
	if err := o.s.core.budget.open(); err != nil {
		return nil, err
	}
	if u.file, err = o.m.random.OpenFile(ctx, o.name, flag, opt.Perm); err != nil {
		o.s.core.budget.close()
		return nil, err
	}
	if !exists {
		u.changed.Store(true)
		return u, nil
	}
	u.base = cur.Size
	u.size.Store(cur.Size)
	return u, nil
}

// forgetSums drops what is known of the target's content.
func (o *op) forgetSums(ctx context.Context) error {
	n, ok, err := o.g.node(ctx, o.at)
	if err != nil || !ok || n.Sums == "" {
		return err
	}
	return o.g.db.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE nodes SET sums = '' WHERE id = $1`, n.ID)
		return err
	})
}

// settleLive makes durable what was written in place and records it. A file that has lost its name meanwhile, or that another has taken the place
// of, is nobody's to record any more: as on a local disk, it lives until it is closed.
func (u *Upload) settleLive(ctx context.Context) (Info, error) {
	o := u.o
	changed := u.changed.Swap(false)
	info, err := u.file.Stat()
	if err != nil {
		u.changed.Store(true)
		return Info{}, err
	}
	info.Name = o.path.Base()
	if u.lent && (info.Size != u.last.Size || info.Change != u.last.Change || info.Size != u.base) {
		changed = true
	}
	if !changed {
		return u.info(info), nil
	}
	if err := u.record(ctx, info); err != nil {
		u.changed.Store(true)
		return Info{}, err
	}
	u.last = info
	return u.info(info), nil
}

// permitted reports nil while the subject may still change the file: what is written is there at once. It costs nothing while no rights change.
func (u *Upload) permitted() error {
	o := u.o
	u.mu.Lock()
	defer u.mu.Unlock()
	ctx := context.Background()
	b, err := o.s.current(ctx)
	if err != nil {
		return err
	}
	if now := o.g.clock.Now(); b == o.b && now.Sub(o.env.Time) < rightsAge && !now.Before(o.env.Time) {
		return nil
	}
	return o.fail(o.again(ctx, u.acts...))
}

// settleInfo describes a live file as it is.
func (u *Upload) settleInfo() (Info, error) {
	info, err := u.file.Stat()
	info.Name = u.o.path.Base()
	return u.info(info), err
}

func (u *Upload) record(ctx context.Context, info mounts.Info) error {
	o := u.o
	if o.ds.cfg.Durability == Synced {
		if err := u.file.Sync(); err != nil {
			return fault.Wrap("gateway.rewrite", o.path.String(), err)
		}
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return err
	}
	defer release()
	switch now, err := o.m.Stat(ctx, o.name); {
	case fault.KindOf(err) == fault.NotExist || fault.KindOf(err) == fault.NotDir:
		return nil
	case err != nil:
		return err
	case now.ID != info.ID:
		return nil
	}
	existed := false
	err = o.commit(ctx, func(tx *store.Tx) error {
		was, had, err := loadNode(tx.QueryRow, o.at)
		if err != nil {
			return err
		}
		existed = had || u.base > 0
		o.g.count(tx, u.quota.usage(info.Size, u.base, was, had), 1)
		tx.Collect(nodes{o.g}, o.row(o.at, info, ""))
		return nil
	})
	if err != nil {
		return err
	}
	u.base = info.Size
	o.replaced(existed, info.Size)
	// What was set aside is counted now; what comes is on top of it.
	u.quota.release()
	u.quota, err = o.reserve(ctx, &o.target, -1, info.Size)
	return err
}

// lend returns the local file itself, for the kernel to read and write without asking, unless what is written must be counted.
func (u *Upload) lend(ctx context.Context) (*os.File, bool) {
	d, ok := u.file.(mounts.Descriptor)
	if !ok || !u.live || u.o.g.limits.StagedBytes > 0 {
		return nil, false
	}
	for _, scope := range u.quota.scopes {
		if _, limit, err := u.o.g.quota.Usage(ctx, scope); err != nil || limit >= 0 {
			return nil, false
		}
	}
	f := d.OSFile()
	if f == nil {
		return nil, false
	}
	if !u.lent {
		u.last, _ = u.file.Stat()
		u.lent = true
	}
	return f, true
}
