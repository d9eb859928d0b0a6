package writeback

import (
	"context"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// fence keeps uploads from beginning and Puts from being published at some names and below them.
type fence struct {
	keys []string
	done chan struct{}
}

func (f *fence) covers(key string) bool {
	for _, k := range f.keys {
		if mounts.Below(key, k) {
			return true
		}
	}
	return false
}

// fenced returns a fence that key is at or below. The caller holds mu.
func (b *Backend) fenced(key string) *fence {
	for f := range b.fences {
		if f.covers(key) {
			return f
		}
	}
	return nil
}

// fence waits for others that overlap, and stands until lift.
func (b *Backend) fence(ctx context.Context, op string, names ...string) (*fence, error) {
	f := &fence{done: make(chan struct{})}
	for _, name := range names {
		f.keys = append(f.keys, b.key(name))
	}
	for {
		b.mu.Lock()
		var other *fence
		for o := range b.fences {
			for _, key := range o.keys {
				if f.covers(key) {
					other = o
				}
			}
			for _, key := range f.keys {
				if o.covers(key) {
					other = o
				}
			}
		}
		if other == nil {
			b.fences[f] = struct{}{}
			b.mu.Unlock()
			return f, nil
		}
		b.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, fault.Wrap("mounts/writeback."+op, names[0], ctx.Err())
		}
	}
}

// lift takes a fence away. Puts under way below it look at their target again.
func (b *Backend) lift(f *fence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.fences, f)
	close(f.done)
	for st := range b.stages {
		if f.covers(st.key) {
			st.spoiled = true
		}
	}
	for _, s := range b.slots {
		if f.covers(s.key) {
			b.enqueue(s)
		}
	}
}

// matching returns the slots at or below the keys. The caller holds mu.
func (b *Backend) matching(keys ...string) (found []*slot) {
	if len(b.slots) == 0 {
		return nil
	}
	f := fence{keys: keys}
	for _, s := range b.slots {
		if f.covers(s.key) && (s.newest != nil || s.running != nil) {
			found = append(found, s)
		}
	}
	return found
}

// settle uploads what is pending at the names and below them, at once, and waits for it. It fails when one of the uploads does.
func (b *Backend) settle(ctx context.Context, op string, names ...string) error {
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = b.key(name)
	}
	b.mu.Lock()
	found := b.matching(keys...)
	fails := make([]int, len(found))
	last := make([]uint64, len(found))
	for i, s := range found {
		if fails[i] = s.fails; s.running != nil {
			fails[i]++ // what is under way may fail for reasons of before
		}
		for _, e := range []*entry{s.newest, s.running} {
			if e != nil {
				last[i] = max(last[i], e.seq)
			}
		}
		b.enqueue(s)
	}
	b.mu.Unlock()
	for i, s := range found {
		for {
			b.mu.Lock()
			changed, failed := s.changed, s.err
			newer := s.newest == nil || s.newest.seq > last[i]
			done := newer && (s.running == nil || s.running.seq > last[i])
			ended := s.fails > fails[i] && s.running == nil
			if !ended {
				b.enqueue(s)
			}
			b.mu.Unlock()
			if done {
				break
			}
			if ended && failed != nil {
				return fault.Wrap("mounts/writeback."+op, names[0], failed)
			}
			if b.closed.Load() {
				return fault.New("mounts/writeback."+op, names[0], fault.Unavailable, errClosed)
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return fault.Wrap("mounts/writeback."+op, names[0], ctx.Err())
			}
		}
	}
	return nil
}

// quiet settles the names and puts a fence round them.
func (b *Backend) quiet(ctx context.Context, op string, names ...string) (*fence, error) {
	for {
		if err := b.settle(ctx, op, names...); err != nil {
			return nil, err
		}
		f, err := b.fence(ctx, op, names...)
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		calm := len(b.matching(f.keys...)) == 0
		b.mu.Unlock()
		if calm {
			return f, nil
		}
		b.lift(f)
	}
}

// frozen is what is pending somewhere, kept from being uploaded.
type frozen struct {
	slots   []*slot
	entries []*entry
}

// freeze waits for the uploads under way at or below the keys and keeps others from beginning.
func (b *Backend) freeze(ctx context.Context, op, name string, only bool) (z frozen, err error) {
	key := b.key(name)
	b.mu.Lock()
	for _, s := range b.matching(key) {
		if only && s.key != key {
			continue
		}
		s.held++
		z.slots = append(z.slots, s)
	}
	b.mu.Unlock()
	for _, s := range z.slots {
		for {
			b.mu.Lock()
			running, changed := s.running != nil, s.changed
			b.mu.Unlock()
			if !running {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				b.thaw(z, false)
				return frozen{}, fault.Wrap("mounts/writeback."+op, name, ctx.Err())
			}
		}
	}
	b.mu.Lock()
	for _, s := range z.slots {
		z.entries = append(z.entries, s.newest)
	}
	b.mu.Unlock()
	return z, nil
}

// any reports whether something was pending.
func (z frozen) any() bool {
	for _, e := range z.entries {
		if e != nil {
			return true
		}
	}
	return false
}

// thaw lets uploads go on, or with drop, forgets what was pending for good.
func (b *Backend) thaw(z frozen, drop bool) error {
	var names []string
	if drop && z.any() {
		b.mu.Lock()
		for i, s := range z.slots {
			if e := z.entries[i]; e != nil && s.newest == e {
				names = append(names, e.Name)
				b.see(s, nil)
				b.used -= cost(e.Size)
				b.spool.drop(e.seq)
				for w := range b.watches { // the backend may never have had it
					w.tell(e.Name)
				}
			}
		}
		b.mu.Unlock()
	}
	var err error
	if len(names) > 0 {
		err = b.spool.sync()
	}
	b.mu.Lock()
	for _, s := range z.slots {
		s.held--
		b.enqueue(s)
		b.change(s)
	}
	b.mu.Unlock()
	for _, name := range names {
		b.cfg.OnChange(name)
	}
	return err
}

// replace lets do give the file name another content than what is pending.
func (b *Backend) replace(ctx context.Context, op, name string, do func() error) error {
	z, err := b.freeze(ctx, op, name, true)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done { // it failed, or panicked
			b.thaw(z, false)
		}
	}()
	if err := do(); err != nil {
		return err
	}
	done = true
	return fault.Wrap("mounts/writeback."+op, name, b.thaw(z, true))
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.make(ctx, "Mkdir", name, func() error { return b.next.Mkdir(ctx, name) })
}

// make lets do give a free name to something.
func (b *Backend) make(ctx context.Context, op, name string, do func() error) error {
	if err := b.begin(ctx, op, name); err != nil {
		return err
	}
	f, err := b.fence(ctx, op, name)
	if err != nil {
		return err
	}
	defer b.lift(f)
	if b.pending(name) != nil {
		return fault.New("mounts/writeback."+op, name, fault.Exist, nil)
	}
	if z, err := b.freeze(ctx, op, name, true); err != nil { // its upload may be at its last step
		return err
	} else if err := b.thaw(z, false); err != nil {
		return err
	}
	return do()
}

// Remove implements mounts.Backend. A pending file goes, too: the backend's first, so that an acknowledged content is never lost in between.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return b.remove(ctx, "Remove", name, b.next.Remove)
}

func (b *Backend) remove(ctx context.Context, op, name string, do func(ctx context.Context, name string) error) error {
	if err := b.begin(ctx, op, name); err != nil {
		return err
	}
	if name == "." {
		return do(ctx, name)
	}
	f, err := b.fence(ctx, op, name)
	if err != nil {
		return err
	}
	defer b.lift(f)
	z, err := b.freeze(ctx, op, name, false)
	if err != nil {
		return err
	}
	drop := false
	defer func() {
		if !drop {
			b.thaw(z, false)
		}
	}()
	for _, e := range z.entries {
		if e != nil && b.key(e.Name) != b.key(name) && op == "Remove" {
			return fault.New("mounts/writeback.Remove", name, fault.NotEmpty, nil)
		}
	}
	if err := do(ctx, name); err != nil && (fault.KindOf(err) != fault.NotExist || !z.any()) {
		return err
	}
	drop = true
	return fault.Wrap("mounts/writeback."+op, name, b.thaw(z, true))
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	return b.rename(ctx, "Rename", from, to, b.next.Rename)
}

func (b *Backend) rename(ctx context.Context, op, from, to string, do func(ctx context.Context, from, to string) error) error {
	if err := b.begin(ctx, op, from, to); err != nil {
		return err
	}
	if from == "." || to == "." {
		return do(ctx, from, to)
	}
	f, err := b.quiet(ctx, op, from, to)
	if err != nil {
		return err
	}
	defer b.lift(f)
	return do(ctx, from, to)
}
