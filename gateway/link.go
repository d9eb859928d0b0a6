package gateway

import (
	"context"
	"errors"
	"strings"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

var (
	errNoSymlinks = errors.New("the datasource has no symbolic links")
	errNoLinks    = errors.New("the datasource has no hard links")
	errFar        = errors.New("a hard link lies on the datasource of its file")
	errTarget     = errors.New("not the target of a link")
)

// maxTarget is the longest target of a symbolic link in bytes, as Linux has it.
const maxTarget = 4095

// Symlink makes p a symbolic link that says target, whatever that leads to: it is followed when it is used, within the datasource only, and
// then rights are asked for where it leads. Its parent must exist; a name that is taken is Exist. Unsupported where the datasource has none.
func (s *Session) Symlink(ctx context.Context, target string, p Path) (err error) {
	o, err := s.begin(ctx, verbLink, p, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	if target == "" || len(target) > maxTarget || strings.ContainsRune(target, 0) {
		return fault.New("gateway.link", p.String(), fault.Invalid, errTarget)
	}
	links, ok := mounts.As[mounts.Symlinker](o.m.Backend)
	if !ok {
		return fault.New("gateway.link", p.String(), fault.Unsupported, errNoSymlinks)
	}
	return o.makeLink(ctx, func(staged string) error { return links.Symlink(ctx, target, staged) })
}

// Link makes p another name of the file from, on the same datasource. It needs the rights to read and to change that file, since the new name
// is a way to do both. Unsupported where the datasource has no hard links, and between two.
func (s *Session) Link(ctx context.Context, from, p Path) (err error) {
	o, err := s.begin(ctx, verbLink, p, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	source, m, err := o.also(ctx, from, policy.Download)
	if err != nil {
		return err
	}
	info, err := o.stat(ctx, m, &source, true, policy.Download)
	if err != nil {
		return err
	}
	links, ok := mounts.As[mounts.Linker](o.m.Backend)
	switch {
	case source.ds != o.ds:
		return fault.New("gateway.link", p.String(), fault.Unsupported, errFar)
	case !ok:
		return fault.New("gateway.link", p.String(), fault.Unsupported, errNoLinks)
	case info.IsDir():
		return fault.New("gateway.link", from.String(), fault.IsDir, nil)
	}
	if err := listable(info); err != nil {
		return err
	}
	for _, act := range []policy.Action{policy.Download, policy.Modify} {
		if _, err := o.ask(act, &source); err != nil {
			return err
		}
	}
	return o.makeLink(ctx, func(staged string) error { return links.Link(ctx, source.name, staged) })
}

// makeLink makes in the gateway's area what shall have the target's name, so that what is left to do after the transaction is one rename.
func (o *op) makeLink(ctx context.Context, link func(staged string) error) error {
	if o.isRoot() {
		return fault.New("gateway.link", o.path.String(), fault.Exist, nil)
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return err
	}
	defer release()
	if err := o.again(ctx, policy.Create); err != nil {
		return err
	}
	if err := o.unlocked(&o.target, lockScope{member: true}); err != nil {
		return err
	}
	switch _, err := o.m.Stat(ctx, o.name); {
	case err == nil:
		return fault.New("gateway.link", o.path.String(), fault.Exist, nil)
	case fault.KindOf(err) != fault.NotExist:
		return err
	}
	if err := o.parentOf(ctx, o.m, &o.target); err != nil {
		return err
	}
	staged := o.g.newName(o.m, o.name, staging)
	defer o.g.live.drop(o.m, staged)
	if err := link(staged); err != nil {
		return err
	}
	err = o.takeName(ctx, staged)
	if err != nil && !errors.Is(err, errUnknown) {
		if rerr := o.m.Remove(context.WithoutCancel(ctx), staged); rerr != nil && fault.KindOf(rerr) != fault.NotExist {
			o.g.log.Warn("a staged link is left behind until the next start", "name", staged, "err", rerr)
		}
	}
	return err
}

// takeName commits that what is staged gets the target's name, and gives it.
func (o *op) takeName(ctx context.Context, staged string) error {
	info, err := o.m.Stat(ctx, staged)
	if err != nil {
		return err
	}
	e := o.entry(o.m, stepOf(staged, o.name, info))
	err = o.commit(ctx, func(tx *store.Tx) error { return deleteNodes(tx, o.at.Datasource, o.at.Path) }, e) // of something that vanished from outside
	if err == nil {
		err = o.perform(ctx, o.m, e)
	}
	if err == nil {
		o.publish(event.Created, o.at, policy.Place{}, false, max(info.Size, 0))
	}
	return err
}
