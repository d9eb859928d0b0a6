package dropbox

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	if err := b.begin(ctx, "Rename", to, true); err != nil {
		return err
	}
	lowFrom, lowTo := strings.ToLower(from), strings.ToLower(to)
	switch {
	case from == "." || to == ".":
		return fault.New("mounts/dropbox.Rename", from, fault.Invalid, errRoot)
	case lowFrom == lowTo:
		return b.respell(ctx, from, to)
	case mounts.Below(lowTo, lowFrom):
		return fault.New("mounts/dropbox.Rename", from, fault.Invalid, errBelow)
	}
	if err := b.parent(ctx, "Rename", to); err != nil {
		return fault.Wrap("mounts/dropbox.Rename", to, err)
	}
	err := b.move(ctx, from, to)
	if no, taken := refusedWith(err, "conflict"); taken && no.has("file") {
		err = b.replace(ctx, from, to)
	}
	return fail("Rename", from, err)
}

// move asks Dropbox for one move, and returns its error as it is.
func (b *Backend) move(ctx context.Context, from, to string) error {
	b.folders.forget(b.path(from))
	defer b.seen.changing(b.path(from))()
	defer b.seen.changing(b.path(to))()
	res, err := b.files.MoveV2Context(ctx, files.NewRelocationArg(b.path(from), b.path(to)))
	b.folders.forget(b.path(from))
	if err == nil && res != nil && res.Metadata != nil {
		b.seen.did(b.path(from), nil)
		b.seen.did(b.path(to), res.Metadata)
	}
	return err
}

var errRivals = errors.New("others change the same name all the time")

// replace moves a file over another one. The former content of to is safe until the new one is there.
func (b *Backend) replace(ctx context.Context, from, to string) error {
	_, source, err := b.metadata(ctx, "Rename", from)
	switch {
	case err != nil:
		return err
	case source.IsDir():
		return fault.New("mounts/dropbox.Rename", to, fault.NotDir, nil)
	}
	for range 5 {
		aside := besides(to)
		err := b.move(ctx, to, aside)
		if _, gone := refusedWith(err, "not_found"); err != nil && !gone {
			return err
		}
		moved := err == nil
		if err = b.move(ctx, from, to); err != nil && moved {
			b.undo(ctx, aside, to)
		}
		if no, taken := refusedWith(err, "conflict"); taken && no.has("file") {
			continue // somebody else put one there meanwhile
		}
		if err == nil && moved {
			b.tidy(ctx, aside)
		}
		return err
	}
	return fault.New("mounts/dropbox.Rename", to, fault.Busy, errRivals)
}

// respell changes the case of the last segment, which Dropbox does not do in one move.
func (b *Backend) respell(ctx context.Context, from, to string) error {
	_, info, err := b.metadata(ctx, "Rename", from)
	if _, base := mounts.Split(to); err != nil || info.Name == base {
		return err
	}
	aside := besides(to)
	if err := b.move(ctx, from, aside); err != nil {
		return fail("Rename", from, err)
	}
	if err := b.move(ctx, aside, to); err != nil {
		_, base := mounts.Split(from)
		dir, _ := mounts.Split(to)
		b.undo(ctx, aside, mounts.Join(dir, base))
		return fail("Rename", from, err)
	}
	return nil
}

// besides returns a name in the same folder that nobody has.
func besides(name string) string {
	dir, _ := mounts.Split(name)
	return mounts.Join(dir, mounts.Area+"-"+strings.ToLower(rand.Text()))
}

// undo gives aside its name back, and tidy deletes it, also when ctx has ended.
func (b *Backend) undo(ctx context.Context, aside, name string) {
	b.after(ctx, aside, func(ctx context.Context) error { return b.move(ctx, aside, name) })
}

func (b *Backend) tidy(ctx context.Context, aside string) {
	b.after(ctx, aside, func(ctx context.Context) error { return b.remove(ctx, aside, "") })
}

func (b *Backend) after(ctx context.Context, aside string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := do(ctx); err != nil {
		b.logger.Warn("a file that was moved aside stays there", "path", aside, "err", fail("Rename", aside, err))
	}
}

// CopyFile implements mounts.Copier. Dropbox does not copy over a file: that is Unsupported, and the caller streams, so that the target is
// replaced in one step.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	if err := b.begin(ctx, "CopyFile", from, true); err != nil {
		return mounts.Info{}, err
	}
	if err := b.begin(ctx, "CopyFile", to, true); err != nil {
		return mounts.Info{}, err
	}
	if from == "." || to == "." {
		return mounts.Info{}, fault.New("mounts/dropbox.CopyFile", from, fault.IsDir, nil)
	}
	wait := b.parentLater(ctx, "CopyFile", to)
	_, source, err := b.metadata(ctx, "CopyFile", from)
	above := wait()
	switch {
	case err != nil:
		return mounts.Info{}, err
	case source.IsDir():
		return mounts.Info{}, fault.New("mounts/dropbox.CopyFile", from, fault.IsDir, nil)
	case source.Type != mounts.File:
		return mounts.Info{}, fault.New("mounts/dropbox.CopyFile", from, fault.Denied, errNoFile)
	case above != nil:
		return mounts.Info{}, fault.Wrap("mounts/dropbox.CopyFile", to, above)
	case strings.EqualFold(from, to):
		return source, nil
	}
	defer b.seen.changing(b.path(to))()
	res, err := b.files.CopyV2Context(ctx, files.NewRelocationArg(b.path(from), b.path(to)))
	if no, taken := refusedWith(err, "conflict"); taken {
		kind := fault.Unsupported
		switch {
		case no.has("folder"):
			kind = fault.IsDir
		case no.has("file_ancestor"):
			kind = fault.NotDir
		}
		return mounts.Info{}, fault.New("mounts/dropbox.CopyFile", to, kind, no)
	}
	if err != nil {
		return mounts.Info{}, fail("CopyFile", from, err)
	}
	if res != nil {
		if info, ok := describe(res.Metadata); ok {
			b.seen.did(b.path(to), res.Metadata)
			return info, nil
		}
	}
	return mounts.Info{}, fail("CopyFile", to, errAnswer)
}
