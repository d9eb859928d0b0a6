package s3

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
)

// Purge deletes all keys of a folder, 1,000 in a request, or the object of a file.
func (b *Backend) Purge(ctx context.Context, name string) error {
	const op = "mounts/s3.Purge"
	if err := b.begin(ctx, "Purge", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New(op, name, fault.Invalid, errRoot)
	}
	s, err := b.look(ctx, name)
	switch {
	case err != nil:
		return b.fail(ctx, "Purge", name, err)
	case s.none():
		return fault.New(op, name, fault.NotExist, nil)
	}
	if err = b.keepParent(ctx, name, true); err == nil {
		if s.file {
			err = b.core.RemoveObject(ctx, b.bucket, b.key(name), minio.RemoveObjectOptions{})
		} else {
			err = b.untilNone(ctx, func(ctx context.Context) (int, int, error) { return b.purgeOnce(ctx, b.folder(name)) })
		}
	}
	b.facts.forget(name)
	return b.fail(ctx, "Purge", name, err)
}

// untilNone repeats a pass over a folder until it finds nothing there. Servers that keep objects in a file system remove no folder's marker
// before what is in it, so that one pass may leave markers.
func (b *Backend) untilNone(ctx context.Context, pass func(context.Context) (found, removed int, err error)) error {
	for {
		found, removed, err := pass(ctx)
		if err != nil && (removed == 0 || ctx.Err() != nil || codeOf(err) == "") {
			return err
		}
		if found == 0 {
			return nil
		}
		if removed == 0 {
			return errUndeleted
		}
	}
}

func (b *Backend) purgeOnce(ctx context.Context, prefix string) (found, removed int, err error) {
	var batch []string
	flush := func() {
		n, delErr := b.delete(ctx, batch)
		removed, batch = removed+n, batch[:0]
		if err == nil {
			err = delErr
		}
	}
	for o, listErr := range b.objects(ctx, prefix, true, pageSize) {
		if listErr != nil {
			return found, removed, listErr
		}
		found++
		if batch = append(batch, o.Key); len(batch) == pageSize {
			if flush(); ctx.Err() != nil {
				return found, removed, err
			}
		}
	}
	if len(batch) > 0 {
		flush()
	}
	return found, removed, err
}

// delete removes keys, the last first: what is in a folder comes after its marker. It returns how many are surely gone, and the first error.
func (b *Backend) delete(ctx context.Context, keys []string) (removed int, err error) {
	each := func(yield func(minio.ObjectInfo) bool) {
		for _, key := range slices.Backward(keys) {
			if !yield(minio.ObjectInfo{Key: key}) {
				return
			}
		}
	}
	results, err := b.core.RemoveObjectsWithIter(ctx, b.bucket, each, minio.RemoveObjectsOptions{})
	if err != nil {
		return 0, err
	}
	for r := range results {
		switch {
		case r.Err == nil:
			removed++
		case err == nil:
			err = r.Err
		}
	}
	if err == nil && removed < len(keys) {
		if err = ctx.Err(); err == nil {
			err = errUndeleted
		}
	}
	return removed, err
}

// copiesAtOnce is how many objects of a folder are copied at a time.
const copiesAtOnce = 8

// moveTree copies all keys of a folder, and then removes those whose copy it has seen. Cut off anywhere, it has lost nothing, and goes on
// when it is called again: what is the same at the target is not copied again.
func (b *Backend) moveTree(ctx context.Context, from, to string) error {
	source, target := b.folder(from), b.folder(to)
	if err := b.mark(ctx, target); err != nil && !conflicting(err) { // the folder is there before what is in it
		return err
	}
	if _, _, err := b.mirror(ctx, source, target, false); err != nil {
		return err
	}
	if err := b.keepParent(ctx, from, true); err != nil {
		return err
	}
	return b.untilNone(ctx, func(ctx context.Context) (int, int, error) { return b.mirror(ctx, source, target, true) })
}

// mirror goes through the keys of source and target side by side and copies what is missing or differs, several keys at a time. With remove,
// it deletes each page of keys once all of them are at the target.
func (b *Backend) mirror(ctx context.Context, source, target string, remove bool) (found, removed int, err error) {
	next, stop := iter.Pull2(b.objects(ctx, target, true, pageSize))
	defer stop()
	there, listErr, more := next()
	var todo []minio.ObjectInfo // to copy
	var keys []string           // of the page
	flush := func() error {
		if err := b.copyAll(ctx, todo, source, target); err != nil {
			return err
		}
		if remove {
			n, delErr := b.delete(ctx, keys)
			removed += n
			if delErr != nil && (codeOf(delErr) == "" || ctx.Err() != nil) {
				return delErr
			}
			if err == nil {
				err = delErr // a marker that waits for what is in its folder: the next pass has it
			}
		}
		todo, keys = todo[:0], keys[:0]
		return nil
	}
	for o, err := range b.objects(ctx, source, true, pageSize) {
		if err != nil {
			return found, removed, err
		}
		found++
		rel := o.Key[len(source):]
		for more && listErr == nil && there.Key[len(target):] < rel {
			there, listErr, more = next()
		}
		if more && listErr != nil {
			return found, removed, listErr
		}
		if !more || there.Key[len(target):] != rel || !same(o, there) {
			todo = append(todo, o)
		}
		if keys = append(keys, o.Key); len(keys) == pageSize {
			if err := flush(); err != nil {
				return found, removed, err
			}
		}
	}
	if len(keys) > 0 {
		if err := flush(); err != nil {
			return found, removed, err
		}
	}
	return found, removed, err
}

// same reports whether a key at the target is the copy of one at the source. Copies of objects that were uploaded in parts, or are encrypted,
// have another tag; then the time must do.
func same(source, target minio.ObjectInfo) bool {
	if source.Size != target.Size {
		return false
	}
	if strings.HasSuffix(source.Key, "/") && source.Size == 0 || source.ETag == target.ETag && source.ETag != "" {
		return true
	}
	return strings.Contains(source.ETag, "-") && !target.LastModified.Before(source.LastModified)
}

// copyAll copies objects from one prefix to another. It returns the first error when all are done.
func (b *Backend) copyAll(ctx context.Context, todo []minio.ObjectInfo, source, target string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var copying sync.WaitGroup
	slots := make(chan struct{}, copiesAtOnce)
	for _, o := range todo {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		copying.Go(func() {
			defer func() { <-slots }()
			if _, err := b.copy(ctx, o.Key, target+o.Key[len(source):], o.Size, o.ETag); err != nil {
				cancel(err)
			}
		})
	}
	copying.Wait()
	return context.Cause(ctx)
}
