package s3

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	maxEmptyPages = 1000
	pageSize      = 1000
)

// objects yields the keys that begin with prefix: all of them, or with the delimiter "/" those of one level and the folders in it, whose keys
// end with a slash. Within a page the folders come after the objects.
func (b *Backend) objects(ctx context.Context, prefix string, deep bool, page int) iter.Seq2[minio.ObjectInfo, error] {
	return func(yield func(minio.ObjectInfo, error) bool) {
		pages, none := 0, false
		hinted := hinted(ctx, hint{pages: &pages})
		for o := range b.core.ListObjectsIter(hinted, b.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: deep, MaxKeys: page, FetchOwner: &none}) {
			if o.Err != nil {
				yield(minio.ObjectInfo{}, o.Err)
				return
			}
			pages = 0
			if !strings.HasPrefix(o.Key, prefix) {
				continue // not what was asked for
			}
			if !yield(o, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil { // the client above ends without a word then
			yield(minio.ObjectInfo{}, err)
		}
	}
}

// peek returns the first n keys that begin with prefix.
func (b *Backend) peek(ctx context.Context, prefix string, n int) (first []minio.ObjectInfo, err error) {
	for o, err := range b.objects(ctx, prefix, true, n) {
		if err != nil {
			return nil, err
		}
		if first = append(first, o); len(first) == n {
			break
		}
	}
	return first, nil
}

// List takes a request for each 1,000 entries, and one more where there are none, to tell an empty root from a file and from nothing.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir, false); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		var (
			prefix, asked  = b.folder(dir), b.facts.now()
			exists, marker bool
			files          shadows
			folders, names []string // as far as they are few
		)
		for o, err := range b.objects(ctx, prefix, false, pageSize) {
			if err != nil {
				yield(mounts.Info{}, b.fail(ctx, "List", dir, err))
				return
			}
			exists = true
			if o.Key == prefix {
				marker = true
				continue
			}
			base, isDir := strings.CutSuffix(o.Key[len(prefix):], "/")
			if mounts.ValidName(base) != nil || strings.HasPrefix(base, own) || isDir && files.hide(base) {
				continue
			}
			info := fileInfo(base, o)
			if isDir {
				info = dirInfo(base)
				if len(folders) <= pageSize {
					folders = append(folders, base)
				}
			} else {
				files.add(base)
				if len(names) <= pageSize {
					names = append(names, base)
				}
			}
			if !yield(info, nil) {
				return
			}
		}
		if !exists {
			if err := b.absent(ctx, dir); err != nil {
				yield(mounts.Info{}, err)
			}
			return
		}
		if len(folders) <= pageSize {
			for _, base := range folders {
				b.facts.isFolder(mounts.Join(dir, base), false)
			}
			b.facts.isWhole(dir, marker, asked.at)
		}
		if len(names) <= pageSize {
			b.facts.wereFiles(asked, dir, names...)
		}
	}
}

// own is how names of the gateway's passing objects begin.
const own = mounts.Area + "-"

// absent says why nothing begins with the prefix of dir: nil where dir is the root.
func (b *Backend) absent(ctx context.Context, dir string) error {
	if dir == "." {
		return nil
	}
	switch _, err := b.head(ctx, dir); {
	case err == nil:
		return fault.New("mounts/s3.List", dir, fault.NotDir, nil)
	case missing(err):
		return fault.New("mounts/s3.List", dir, fault.NotExist, nil)
	default:
		return b.fail(ctx, "List", dir, err)
	}
}

// shadows finds the folders of a listing that have the name of a file in it, in bounded memory. Keys come sorted, and between "a" and "a/"
// there are only names that begin with "a": so of the files that came long ago only those matter that all later names begin with.
type shadows struct {
	recent map[string]bool
	queue  []string // recent, the oldest first from next on; at most twice a page long
	next   int
	chain  []string // of older ones, each beginning with the one before
}

func (s *shadows) add(file string) {
	if s.recent == nil {
		s.recent = map[string]bool{}
	}
	s.recent[file] = true
	if len(s.queue) < 2*pageSize {
		s.queue = append(s.queue, file)
		return
	}
	old := s.queue[s.next]
	s.queue[s.next] = file
	s.next = (s.next + 1) % len(s.queue)
	delete(s.recent, old)
	for len(s.chain) > 0 && !strings.HasPrefix(old, s.chain[len(s.chain)-1]) {
		s.chain = s.chain[:len(s.chain)-1]
	}
	s.chain = append(s.chain, old)
}

func (s *shadows) hide(folder string) bool {
	return s.recent[folder] || slices.Contains(s.chain, folder)
}
