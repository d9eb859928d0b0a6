package s3

import (
	"context"
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// folders keeps implied folders from vanishing while somebody is about to put something into them.
type folders struct {
	mu     sync.Mutex
	pinned map[gateway.Path]int           // guarded by mu
	going  map[gateway.Path]chan struct{} // those being removed, guarded by mu
}

// pin keeps all folders above p until unpin is called. It waits for those that are just being removed.
func (f *folders) pin(p gateway.Path) (unpin func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for wait := f.leaving(p); wait != nil; wait = f.leaving(p) {
		f.mu.Unlock()
		<-wait
		f.mu.Lock()
	}
	if f.pinned == nil {
		f.pinned = make(map[gateway.Path]int)
	}
	for d := p.Parent(); d.Depth() > 1; d = d.Parent() {
		f.pinned[d]++
	}
	return func() { f.unpin(p) }
}

func (f *folders) unpin(p gateway.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for d := p.Parent(); d.Depth() > 1; d = d.Parent() {
		if f.pinned[d]--; f.pinned[d] == 0 {
			delete(f.pinned, d)
		}
	}
}

// leaving returns what to wait for before the folders above p can be pinned, nil when nothing is in the way. The caller holds mu.
func (f *folders) leaving(p gateway.Path) chan struct{} {
	if len(f.going) > 0 {
		for d := p.Parent(); d.Depth() > 1; d = d.Parent() {
			if wait := f.going[d]; wait != nil {
				return wait
			}
		}
	}
	return nil
}

// leave calls remove unless the folder d is pinned, and reports whether it is gone.
func (f *folders) leave(d gateway.Path, remove func() error) bool {
	f.mu.Lock()
	if f.pinned[d] > 0 || f.going[d] != nil {
		f.mu.Unlock()
		return false
	}
	if f.going == nil {
		f.going = make(map[gateway.Path]chan struct{})
	}
	over := make(chan struct{})
	f.going[d] = over
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.going, d)
		close(over)
	}()
	return remove() == nil
}

// tries is how often a folder is made that vanishes before it is used.
const tries = 8

// parents makes the folders above p that are missing, marked as implied, and reports whether any was.
func (q *request) parents(p gateway.Path) (made bool, err error) {
	d := p.Parent()
	if d.Depth() < 2 { // the bucket
		return false, q.bucketThere()
	}
	vain := 0
	for range tries {
		switch err := q.s.Mkdir(q.ctx(), d); {
		case err == nil:
			return true, q.s.PatchProps(q.ctx(), d, []gateway.PropChange{change(propFolder, implied)}, gateway.Cond{})
		case fault.KindOf(err) == fault.NotExist:
			if above, err := q.parents(d); err != nil {
				return false, err
			} else if vain++; above {
				vain = 0
			} else if vain > 2 { // the folder is there, and yet what shall lie in it cannot be
				return false, refuse(errReserved)
			}
		case fault.KindOf(err) == fault.Exist:
			return false, nil
		default:
			return false, err
		}
	}
	return false, refuse(errTryAgain)
}

// making calls make until it does not fail for want of a folder above p, and makes those.
func (q *request) making(p gateway.Path, make func() error) error {
	err := make()
	if err == nil || fault.KindOf(err) != fault.NotExist {
		return err
	}
	defer q.h.folders.pin(p)()
	vain := 0
	for range tries {
		err := make()
		if err == nil || fault.KindOf(err) != fault.NotExist {
			return err
		}
		if made, err := q.parents(p); err != nil {
			return err
		} else if vain++; made {
			vain = 0
		} else if vain > 2 {
			return refuse(errReserved)
		}
	}
	return refuse(errTryAgain)
}

// prune removes implied folders that have become empty, from d upwards. That is no part of what was asked for: a failure leaves a folder.
func (q *request) prune(d gateway.Path) {
	ctx := context.WithoutCancel(q.ctx())
	for ; d.Depth() > 1; d = d.Parent() {
		info, err := q.s.Stat(ctx, d)
		if err != nil {
			return
		}
		k, err := q.kept(info)
		if err != nil || !k.implied || k.put || !q.hollow(ctx, d) {
			return
		}
		if !q.h.folders.leave(d, func() error { return q.s.Remove(ctx, d, gateway.RemoveOptions{}) }) {
			return
		}
	}
}

// hollow reports whether a folder holds nothing that the user may know of.
func (q *request) hollow(ctx context.Context, d gateway.Path) bool {
	for range q.s.List(ctx, d) {
		return false // something, or an error
	}
	return true
}
