package s3

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"

	"cellgate/mounts"
)

// inParts uploads what comes in parts, of which first may be there already, and makes them the file when all are. An upload that fails is
// taken back, also when ctx has ended.
func (u *upload) inParts(ctx context.Context, first *part) (info mounts.Info, err error) {
	var id string
	err = retry(ctx, true, func() (err error) {
		id, err = u.b.core.NewMultipartUpload(ctx, u.b.bucket, u.key, u.options(false))
		return err
	})
	if err != nil {
		if first != nil {
			first.free()
		}
		return mounts.Info{}, err
	}
	m := &parts{u: u, id: id, size: partSize(u.b.partSize, u.opt.Size)}
	m.change.L = &m.mu
	err = m.upload(ctx, first)
	if err == nil {
		err = u.src.ended()
	}
	if err == nil {
		info, err = u.b.join(ctx, u.name, id, m.sent, u.options(true), u.src.n)
	}
	if err != nil {
		u.b.abort(ctx, u.key, id)
	}
	return info, err
}

// abort takes an upload back. That it failed has been told already; what stays is what the server's own rules tidy up.
func (b *Backend) abort(ctx context.Context, key, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := b.core.AbortMultipartUpload(ctx, b.bucket, key, id)
	if err != nil && !missing(err) && codeOf(err) != "NoSuchUpload" {
		b.logger.Debug("an upload could not be taken back", "err", b.fail(ctx, "Abort", "", err))
		return err
	}
	return nil
}

// partSize returns how long the parts of a file of size bytes are: no more than S3 allows to have.
func partSize(usual, size int64) int64 {
	const mib = 1 << 20
	return max(usual, (size/maxParts+mib)/mib*mib)
}

// parts is the upload of a file in parts. Two are in memory at a time, so that one is sent while the other comes, and each can be sent again.
// The rare files whose parts must be longer are sent one part at a time, and beyond a bound as they come.
type parts struct {
	u    *upload
	id   string
	size int64

	mu     sync.Mutex
	change sync.Cond            // of what follows
	sent   []minio.CompletePart // guarded by mu
	count  int                  // parts in memory; guarded by mu
	memory int64                // bytes of them; guarded by mu
	err    error                // the first of a part; guarded by mu
}

// length returns how long part number is when it is not the last. The parts of a file of unknown length grow as it does.
func (m *parts) length(number int) int64 {
	if m.u.opt.Size >= 0 {
		return m.size
	}
	switch {
	case number <= 1000:
		return m.size
	case number <= 5000:
		return m.size * 3 / 2
	}
	return m.size * 3
}

func (m *parts) upload(ctx context.Context, first *part) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the parts under way, when it failed
	var sending sync.WaitGroup
	defer sending.Wait()
	most := 3 * m.u.b.partSize // bytes in memory
	for number, left := 1, m.u.opt.Size; left != 0; number++ {
		if number > maxParts {
			return errTooMany
		}
		n := m.length(number)
		if left > 0 {
			n = min(n, left)
			left -= n
		}
		if n > most {
			if err := m.direct(ctx, number, n); err != nil {
				return err
			}
			continue
		}
		if err := m.take(n, most); err != nil {
			if first != nil {
				first.free()
			}
			return err
		}
		p, err := first, error(nil)
		if first = nil; p == nil {
			p = m.u.b.newPart()
			err = p.fill(m.u.src, n)
		}
		if err != nil && err != io.EOF || p.n == 0 {
			p.free()
			m.give(n, nil)
			if err == io.EOF {
				return m.wait(&sending)
			}
			cancel()
			return err
		}
		sending.Go(func() {
			err := m.send(ctx, number, p)
			p.free()
			if m.give(n, err); err != nil {
				cancel()
			}
		})
		if err == io.EOF {
			break
		}
	}
	return m.wait(&sending)
}

// take waits until there is memory for another part.
func (m *parts) take(n, most int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.err == nil && m.count > 0 && (m.count >= 2 || m.memory+n > most) {
		m.change.Wait()
	}
	m.count, m.memory = m.count+1, m.memory+n
	return m.err
}

func (m *parts) give(n int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count, m.memory = m.count-1, m.memory-n
	if m.err == nil {
		m.err = err
	}
	m.change.Broadcast()
}

func (m *parts) wait(sending *sync.WaitGroup) error {
	sending.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *parts) send(ctx context.Context, number int, p *part) error {
	b := m.u.b
	opt := minio.PutObjectPartOptions{Sha256Hex: p.digest(), DisableContentSha256: true}
	return retry(ctx, true, func() error {
		body := p.open()
		defer body.stop()
		done, err := b.core.PutObjectPart(hinted(ctx, hint{kind: writing}), b.bucket, m.u.key, m.id, number, body, p.n, opt)
		return m.note(number, done, err)
	})
}

// direct sends a part as it comes.
func (m *parts) direct(ctx context.Context, number int, n int64) error {
	b := m.u.b
	opt := minio.PutObjectPartOptions{DisableContentSha256: b.secure}
	done, err := b.core.PutObjectPart(hinted(ctx, hint{kind: writing}), b.bucket, m.u.key, m.id, number, io.LimitReader(m.u.src, n), n, opt)
	return m.note(number, done, err)
}

func (m *parts) note(number int, done minio.ObjectPart, err error) error {
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, minio.CompletePart{PartNumber: number, ETag: done.ETag})
	return nil
}

// join makes the parts of an upload, size bytes together, the file. When the answer is lost it looks whether it was done.
func (b *Backend) join(ctx context.Context, name, id string, sent []minio.CompletePart, opt minio.PutObjectOptions, size int64) (mounts.Info, error) {
	slices.SortFunc(sent, func(x, y minio.CompletePart) int { return x.PartNumber - y.PartNumber })
	lost := false
	var etag string
	err := retry(ctx, true, func() error {
		done, err := b.core.CompleteMultipartUpload(hinted(ctx, patience(size)), b.bucket, b.key(name), id, sent, opt)
		etag = done.ETag
		if err != nil && lost && (codeOf(err) == "NoSuchUpload" || conflicting(err)) {
			if info, headErr := b.head(ctx, name); headErr == nil && info.Size == size && info.Tag == joinedTag(sent) {
				etag = info.Tag
				return nil
			}
		}
		lost = lost || err != nil && codeOf(err) == ""
		return err
	})
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.head(ctx, name)
	if err != nil || info.Tag != etag { // somebody has been quick to change or remove it
		return fileInfo(name, minio.ObjectInfo{ETag: etag, Size: size}), nil
	}
	return info, nil
}

// joinedTag is the tag that most servers give a file of such parts.
func joinedTag(sent []minio.CompletePart) string {
	h := md5.New()
	for _, p := range sent {
		sum, _ := hex.DecodeString(strings.Trim(p.ETag, `"`))
		h.Write(sum)
	}
	return fmt.Sprintf("%x-%d", h.Sum(nil), len(sent))
}
