package sftp

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// copyPiece is what one request copies: small enough for its answer not to take long.
const copyPiece = 64 << 20

// CopyFile implements mounts.Copier by copy-data, where the server has it.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (info mounts.Info, err error) {
	const op = "CopyFile"
	if err := b.begin(ctx, op, true, from, to); err != nil {
		return mounts.Info{}, err
	}
	if !b.can[extCopy] {
		return mounts.Info{}, refusal(op, from, fault.Unsupported, errors.New("the server does not copy"))
	}
	if from == "." || to == "." {
		return mounts.Info{}, refusal(op, from, fault.IsDir, nil)
	}
	err = b.run(ctx, op, from, false, func(w *wire) error {
		info, err = b.copyData(ctx, w, op, from, to)
		return err
	})
	return info, err
}

func (b *Backend) copyData(ctx context.Context, w *wire, op, from, to string) (mounts.Info, error) {
	g := b.guard(ctx, w, from)
	at := w.lstat(ctx, b.path(from))
	guarded := g.wait(ctx)
	a, err := at.attrs(ctx)
	if guarded != nil {
		return mounts.Info{}, sent(guarded, false)
	}
	if err == nil {
		err = plainFile(op, from, a)
	}
	if err != nil {
		return mounts.Info{}, sent(err, false)
	}
	source := w.open(ctx, b.path(from), openRead, wishes{})
	s, err := b.stage(ctx, w, op, to, mounts.PutOptions{Mode: fs.FileMode(a.mode & 0o777)}, b.beside.needed(to))
	handle, opened := source.handle(ctx)
	if opened == nil {
		defer w.closeHandle(handle)
	}
	if err != nil {
		return mounts.Info{}, sent(err, false)
	}
	if opened != nil {
		s.discard(ctx)
		return mounts.Info{}, opened
	}
	size, err := s.fill(ctx, handle)
	if err == nil {
		err = s.publish(ctx, false)
	}
	if errors.Is(err, errForeign) {
		info, err := b.relocate(ctx, w, op, s, mounts.PutOptions{Mode: fs.FileMode(a.mode & 0o777)}, size)
		s.discard(ctx)
		return info, sent(err, true)
	}
	if err != nil {
		err = b.explain(ctx, w, op, to, err) // while the disk is as full as it was
		s.discard(ctx)
		return mounts.Info{}, sent(err, true)
	}
	_, base := mounts.Split(to)
	return s.result.info(base), nil
}

// fill copies an open file into s, in pieces, two of them under way.
func (s *staged) fill(ctx context.Context, source string) (int64, error) {
	w := s.w
	a, err := w.simple(ctx, typeFstat, source).attrs(ctx)
	if err != nil {
		return 0, err
	}
	size := a.length()
	if size < 0 {
		return 0, refusal(s.op, s.name, fault.Unsupported, errors.New("the server does not tell the size of the file"))
	}
	var ahead []*call
	if s.mode != nil {
		ahead = append(ahead, w.setstat(ctx, typeFsetstat, s.handle, wishes{mode: s.mode}))
	}
	for off := int64(0); off < size || len(ahead) > 0; {
		for len(ahead) < 2 && off < size {
			n := min(copyPiece, size-off)
			p := simple(typeExtended, extCopy, source).u64(uint64(off)).u64(uint64(n)).str(s.handle).u64(uint64(off))
			ahead = append(ahead, w.request(ctx, p, waiting{slow: true}))
			off += n
		}
		if err := ahead[0].ok(ctx); err != nil {
			for _, c := range ahead[1:] {
				c.forget()
			}
			return 0, err
		}
		ahead = ahead[1:]
	}
	return size, s.seal(ctx, time.Time{})(size)
}
