package writeback

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	firstPause = 250 * time.Millisecond
	longPause  = time.Minute // between tries of what may go well at any time
	mostPause  = 10 * time.Minute
)

// enqueue has s looked at by the dispatcher. The caller holds mu.
func (b *Backend) enqueue(s *slot) {
	if s.queued || s.newest == nil {
		return
	}
	s.queued = true
	b.queue = append(b.queue, s)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *Backend) kick(s *slot) {
	b.mu.Lock()
	b.enqueue(s)
	b.mu.Unlock()
}

// dispatch begins uploads until ctx ends, and waits for them then.
func (b *Backend) dispatch(ctx context.Context) {
	for {
		b.mu.Lock()
		for len(b.queue) > 0 && b.running < b.cfg.Workers && ctx.Err() == nil {
			s := b.queue[0]
			b.queue = b.queue[1:]
			s.queued = false
			// Whoever ends what hinders it puts it into the queue again.
			if s.newest == nil || s.running != nil || s.held > 0 || b.fenced(s.key) != nil {
				continue
			}
			e := s.newest
			s.running = e
			b.running++
			b.tasks.Go(func() { b.upload(ctx, s, e) })
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
	}
}

// upload brings a content to the backend and takes it out of the spool.
func (b *Backend) upload(ctx context.Context, s *slot, e *entry) {
	info, err := b.send(ctx, e)
	if errors.Is(err, errContent) {
		if moved := b.spool.setAside(e.seq, err); moved != nil {
			b.cfg.Logger.Error("a damaged spool file cannot be set aside", "path", e.Name, "err", moved)
		}
	} else if err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("upload failed, will be tried again", "path", e.Name, "err", err)
	}

	b.mu.Lock()
	b.running--
	over := err == nil || errors.Is(err, errContent) || s.newest != e // the latter: a newer one waits
	if err != nil {
		s.fails++
	}
	if over && s.newest == e {
		if err == nil {
			b.alias(e.info.Tag, info.Tag)
		}
		b.see(s, nil) // from now on it is the backend's; but s.running makes those wait who need that it cannot come again
	}
	b.mu.Unlock()
	if over {
		b.spool.remove(e.seq)
		if err := b.spool.sync(); err != nil {
			b.cfg.Logger.Error("spool cannot be synced", "err", err)
		}
	}
	b.mu.Lock()
	s.running = nil
	if over {
		b.used -= cost(e.Size)
		b.enqueue(s)
	} else {
		s.tries++
		s.err = err
		time.AfterFunc(pause(s.tries, err), func() { b.kick(s) })
	}
	b.change(s)
	select { // a worker is free
	case b.wake <- struct{}{}:
	default:
	}
	b.mu.Unlock()
	if ctx.Err() == nil {
		b.cfg.OnChange(e.Name)
	}
}

// send puts a content to the backend, and makes sure that it is the one that was spooled.
func (b *Backend) send(ctx context.Context, e *entry) (info mounts.Info, err error) {
	defer func() {
		if p := recover(); p != nil { // nobody above could catch it
			b.cfg.Logger.Error("upload panicked", "path", e.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fault.New("mounts/writeback.upload", e.Name, fault.Internal, fmt.Errorf("panicked: %v", p))
		}
	}()
	if _, known := b.next.Age(e.Name); known && e.Tag != "" { // costs nothing
		if now, err := b.next.Stat(ctx, e.Name); err == nil && now.Tag != "" && now.Tag != e.Tag {
			b.cfg.Logger.Warn("a change from outside is replaced by a later upload", "path", e.Name)
		}
	}
	f, err := b.spool.open(e.seq)
	if err != nil {
		return mounts.Info{}, fault.Wrap("mounts/writeback.upload", e.Name, err)
	}
	defer f.Close()
	src := &verifier{from: io.NewSectionReader(f, 0, e.Size), m: e.manifest}
	return b.next.Put(ctx, e.Name, src, mounts.PutOptions{Size: e.Size, ModTime: e.ModTime, Mode: e.Mode})
}

// verifier reads a content and fails in the place of its last bytes when it is not the one that was spooled.
type verifier struct {
	from *io.SectionReader
	m    manifest
	sum  uint32
	read int64
	bad  error
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.bad != nil {
		return 0, v.bad
	}
	n, err := v.from.Read(p)
	v.sum = crc32.Update(v.sum, castagnoli, p[:n])
	v.read += int64(n)
	short := err == io.EOF && v.read < v.m.Size
	if short || v.read == v.m.Size && v.sum != v.m.Sum {
		v.bad = fault.New("mounts/writeback.upload", v.m.Name, fault.Corrupt, errContent)
		return 0, v.bad
	}
	return n, err
}

// pause is how long to wait after so many failures in a row.
func pause(tries int, err error) time.Duration {
	least, most := firstPause, longPause
	switch fault.KindOf(err) {
	case fault.Timeout, fault.Unavailable, fault.Busy, fault.Canceled, fault.Internal, fault.Locked:
	default: // somebody has to do something first
		least, most = 15*time.Second, mostPause
	}
	d := min(least<<min(tries-1, 12), most)
	return d/2 + rand.N(d/2)
}

// alias remembers what the Tag of a pending file has become. The caller holds mu.
func (b *Backend) alias(was, is string) {
	if was == "" || is == "" {
		return
	}
	b.aliases[was] = is
	if b.oldest = append(b.oldest, was); len(b.oldest) > maxAliases {
		delete(b.aliases, b.oldest[0])
		b.oldest = b.oldest[1:]
	}
}
