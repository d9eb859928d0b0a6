// Package flaky is a wrapper that lets a backend fail as told by a table of rules, for tests of what stands on it.
//
//	b := flaky.New(mem.New(mem.Config{}),
//		flaky.Rule{Op: "Put", Call: 3, Fault: fault.NoSpace},         // the third Put fails
//		flaky.Rule{Op: "Put", Call: 4, Fault: fault.Timeout, After: true}, // the fourth is done, but its answer is lost
//		flaky.Rule{Op: "Open", Path: "big", Cut: 1 << 20, Fault: fault.Unavailable}, // every reader of big breaks after 1 MiB
//		flaky.Rule{Op: "Stat", Stall: true},                          // every Stat hangs until its context ends
//	)
//
// The capabilities found by mounts.As are the backend's, and fail by the same rules.
package flaky

import (
	"context"
	"io"
	"iter"
	"sync"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Rule says which calls go wrong and how. The first rule that fits a call decides it.
type Rule struct {
	Op   string // the method, such as "Put", "Open", "CopyFile", "ReadAt", "WriteAt", "Sync"; "" is any but Close
	Path string // the name it is called with (that of Rename's source); "" is any
	Call int    // counts the calls that fit Op and Path, from 1; 0 is each of them

	Fault fault.Kind // what it fails with
	Err   error      // the cause
	After bool       // the call is done first: only the answer is lost
	Stall bool       // it hangs until its context ends or Resume is called; then it fails as its context says, or goes on
	Panic bool       // it panics
	Cut   int64      // Open, Put, List, WriteAt: it goes well for this many bytes (entries of a listing) and fails then
	Short bool       // with Cut: no failure but the end; a write of Cut bytes and io.ErrShortWrite
}

// Backend is a backend that fails by rules. It is safe for concurrent use.
type Backend struct {
	mounts.Backend // the hooked one

	mu     sync.Mutex
	rules  []*rule        // guarded by mu
	counts map[string]int // calls by op, guarded by mu
	resume chan struct{}  // closed by Resume, guarded by mu
}

type rule struct {
	Rule
	seen int
}

// New returns next with rules.
func New(next mounts.Backend, rules ...Rule) *Backend {
	b := &Backend{counts: map[string]int{}, resume: make(chan struct{})}
	b.Backend = mounts.Around(next, mounts.Hooks{Call: b.call, List: b.list, Reader: b.reader, Source: b.source, File: b.file})
	b.Set(rules...)
	return b
}

// Unwrap returns the hooked backend, which gives As capabilities that fail by the same rules.
func (b *Backend) Unwrap() mounts.Backend { return b.Backend }

// Set replaces the rules and counts anew. Without any, everything goes well.
func (b *Backend) Set(rules ...Rule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = nil
	for _, r := range rules {
		b.rules = append(b.rules, &rule{Rule: r})
	}
	clear(b.counts)
}

// Resume lets stalled calls go on, those of now.
func (b *Backend) Resume() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.resume)
	b.resume = make(chan struct{})
}

// Calls returns how often op was called since the last Set.
func (b *Backend) Calls(op string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[op]
}

// match counts the call and returns the rule that decides it, of those that cut streams or of the others.
func (b *Backend) match(op, name string, cuts bool) (Rule, <-chan struct{}, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !cuts {
		b.counts[op]++
	}
	var hit *rule
	for _, r := range b.rules {
		if cuts != r.cuts() || r.Op != op && (r.Op != "" || op == "Close") || r.Path != "" && r.Path != name {
			continue
		}
		if r.seen++; hit == nil && (r.Call == 0 || r.Call == r.seen) {
			hit = r
		}
	}
	if hit == nil {
		return Rule{}, nil, false
	}
	return hit.Rule, b.resume, true
}

func (r *Rule) cuts() bool { return r.Cut > 0 || r.Short }

func (r *Rule) fault(op, name string) error {
	return fault.New("mounts/flaky."+op, name, r.Fault, r.Err)
}

func (b *Backend) call(ctx context.Context, op, name string, do func() error) error {
	r, resume, ok := b.match(op, name, false)
	switch {
	case !ok:
		return do()
	case r.Panic:
		panic("flaky: " + op + " " + name)
	case r.Stall:
		select {
		case <-ctx.Done():
			return fault.Wrap("mounts/flaky."+op, name, ctx.Err())
		case <-resume:
			return do()
		}
	case r.After:
		if err := do(); err != nil {
			return err
		}
	}
	return r.fault(op, name)
}

// list lets a listing fail at its start or after some entries.
func (b *Backend) list(ctx context.Context, dir string, all iter.Seq2[mounts.Info, error]) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.call(ctx, "List", dir, func() error { return nil }); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		r, _, cut := b.match("List", dir, true)
		left := r.Cut
		for info, err := range all {
			if cut && left <= 0 {
				if !r.Short {
					yield(mounts.Info{}, r.fault("List", dir))
				}
				return
			}
			left--
			if !yield(info, err) {
				return
			}
		}
	}
}

func (b *Backend) reader(_ context.Context, name string, rc io.ReadCloser) io.ReadCloser {
	if r, _, ok := b.match("Open", name, true); ok {
		return struct {
			io.Reader
			io.Closer
		}{r.cut("Read", name, rc), rc}
	}
	return rc
}

func (b *Backend) source(_ context.Context, op, name string, src io.Reader) io.Reader {
	if r, _, ok := b.match(op, name, true); ok {
		return r.cut(op, name, src)
	}
	return src
}

// cut returns r up to the rule's cut, and then its fault or, when Short, the end.
func (r Rule) cut(op, name string, from io.Reader) io.Reader {
	head := io.LimitReader(from, r.Cut)
	if r.Short {
		return head
	}
	return io.MultiReader(head, failing{r.fault(op, name)})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (b *Backend) file(ctx context.Context, name string, f mounts.RandomFile) mounts.RandomFile {
	own := file{f, ctx, b, name}
	if d, ok := f.(mounts.Descriptor); ok {
		return struct {
			file
			mounts.Descriptor
		}{own, d}
	}
	return own
}

// file fails by the rules for "ReadAt", "WriteAt", "Truncate" and "Sync". Stalls end with the context of OpenFile.
type file struct {
	mounts.RandomFile
	ctx  context.Context
	b    *Backend
	name string
}

func (f file) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.b.call(f.ctx, "ReadAt", f.name, func() (err error) { n, err = f.RandomFile.ReadAt(p, off); return err })
	return n, err
}

func (f file) WriteAt(p []byte, off int64) (n int, err error) {
	r, _, cut := f.b.match("WriteAt", f.name, true)
	cut = cut && int64(len(p)) > r.Cut
	if cut {
		p = p[:r.Cut]
	}
	err = f.b.call(f.ctx, "WriteAt", f.name, func() (err error) { n, err = f.RandomFile.WriteAt(p, off); return err })
	if cut && err == nil {
		if err = r.fault("WriteAt", f.name); r.Short {
			err = io.ErrShortWrite
		}
	}
	return n, err
}

func (f file) Truncate(size int64) error {
	return f.b.call(f.ctx, "Truncate", f.name, func() error { return f.RandomFile.Truncate(size) })
}

func (f file) Sync() error { return f.b.call(f.ctx, "Sync", f.name, f.RandomFile.Sync) }
