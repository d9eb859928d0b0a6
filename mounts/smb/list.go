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
			s     *session
			f     *smb2.File
			stats []*smb2.FileStat
			err   error // io.EOF after the last piece
		}
		at, err := patient(ctx, func() (first, error) {
			return with(ctx, b.data, true, func(s *session) (first, error) {
				f, err := s.openFile(ctx, path, 0)
				if err != nil {
					return first{}, notOnLink(err)
				}
				stats, err := s.readDir(ctx, f)
				if err != nil && err != io.EOF {
					err = b.notDir(ctx, s, f, err)
					s.leaveFile(ctx, f)
					return first{}, err
				}
				return first{s, f, stats, err}, nil
			})
		})
		if err != nil {
			yield(nil, err)
			return
		}
		s, f := at.s, at.f
		release := b.hold(path)
		defer b.spawn(func() { s.closeFile(f); release() }) // a call that meets it open is repeated, see patient
		for {
			if at.err != nil && at.err != io.EOF {
				yield(nil, at.err)
				return
			}
			if len(at.stats) > 0 && !yield(at.stats, nil) || at.err == io.EOF {
				return
			}
			at.stats, at.err = s.readDir(ctx, f)
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
func (b *Backend) notDir(ctx context.Context, s *session, f *smb2.File, err error) error {
	if stat, e := s.stat(ctx, f); e == nil && stat.FileAttributes&attrDir == 0 {
		return failure{fault.NotDir, "is not a folder"}
	}
	return err
}

// readDir returns the next entries of a folder, and io.EOF with or after the last.
func (s *session) readDir(ctx context.Context, f *smb2.File) ([]*smb2.FileStat, error) {
	return on(ctx, s, func() ([]*smb2.FileStat, error) {
		free, err := s.slot()
		if err != nil {
			return nil, err
		}
		defer free()
		infos, err := f.Readdir(page)
		if status(err) == statusNoSuchFile { // the root of a volume with nothing in it
			err = io.EOF
		}
		stats := make([]*smb2.FileStat, 0, len(infos))
		for _, info := range infos {
			if stat, ok := info.Sys().(*smb2.FileStat); ok {
				stats = append(stats, stat)
			}
		}
		if err == nil && len(infos) < page { // it comes with the end only
			err = io.EOF
		}
		return stats, err
	}, nil)
}

// leaveFile closes a file and waits for it, so that nothing meets it open, but not beyond the end of ctx.
func (s *session) leaveFile(ctx context.Context, f *smb2.File) {
	done := make(chan none)
	if !s.b.spawn(func() { s.closeFile(f); close(done) }) {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
