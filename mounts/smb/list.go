package smb

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	page      = 512          // entries; the library asks for answers of 1 MiB, and holds what is over
	tempName  = ".cellgate-" // begins the names of temporary files beside their targets
	tempInDir = mounts.Area + "/tmp"
)

// List implements mounts.Backend. Only symbolic links cost a request of their own, for where they point.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.list(ctx, dir, yield); err != nil {
			yield(mounts.Info{}, err)
		}
	}
}

// list returns an error unless yield has stopped it.
func (b *Backend) list(ctx context.Context, dir string, yield func(mounts.Info, error) bool) error {
	if err := b.begin(ctx, "List", dir, false); err != nil {
		return err
	}
	path, err := b.path(ctx, "List", dir, false)
	if err != nil {
		return err
	}
	for stats, err := range b.pages(ctx, path) {
		if err != nil {
			return b.fail("List", dir, err)
		}
		for _, stat := range stats {
			info := infoOf(stat, decode(stat.FileName))
			if mounts.ValidName(info.Name) != nil || strings.HasPrefix(info.Name, tempName) {
				continue
			}
			if stat.FileAttributes&attrReparse != 0 {
				child := stat.FileName
				if path != "" {
					child = path + `\` + child
				}
				if err := b.reparse(ctx, child, stat.ReparsePointTag, &info); kindOf(err) == fault.NotExist {
					continue // it went meanwhile
				} else if err != nil {
					return b.fail("List", dir, err)
				}
			}
			if !yield(info, nil) {
				return nil
			}
		}
	}
	return nil
}

// pages yields the entries of a folder in pieces, as the server tells them.
func (b *Backend) pages(ctx context.Context, path string) iter.Seq2[[]*smb2.FileStat, error] {
	return func(yield func([]*smb2.FileStat, error) bool) {
		type first struct {
			f     *handle
			stats []*smb2.FileStat
			err   error // io.EOF after the last piece
		}
		at, err := patient(ctx, func() (first, error) {
			return with(ctx, b.data, true, func(s *session) (first, error) {
				f, err := s.open(ctx, path, 0)
				if err != nil {
					return first{}, notOnLink(err)
				}
				stats, err := f.readDir(ctx)
				if err != nil && err != io.EOF {
					err = notDir(ctx, f, err)
					f.leave(ctx)
					return first{}, err
				}
				return first{f, stats, err}, nil
			})
		})
		if err != nil {
			yield(nil, err)
			return
		}
		f := at.f
		release := b.hold(path)
		defer b.spawn(func() { f.close(); release() }) // a call that meets it open is repeated, see patient
		for {
			if at.err != nil && at.err != io.EOF {
				yield(nil, at.err)
				return
			}
			if len(at.stats) > 0 && !yield(at.stats, nil) || at.err == io.EOF {
				return
			}
			at.stats, at.err = f.readDir(ctx)
		}
	}
}

// notOnLink turns the error of a folder that is a link into that for a folder which is none.
func notOnLink(err error) error {
	if errors.Is(err, errLink) {
		return errOnLink
	}
	return err
}

// notDir explains why the first piece of a listing failed.
func notDir(ctx context.Context, f *handle, err error) error {
	if stat, e := f.stat(ctx); e == nil && stat.FileAttributes&attrDir == 0 {
		return failure{fault.NotDir, "is not a folder"}
	}
	return err
}
