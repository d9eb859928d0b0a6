package gateway

import (
	"errors"
	"sync"
	"sync/atomic"

	"cellgate/internal/fault"
)

var (
	errOperations = errors.New("too many operations of this user at once")
	errHandles    = errors.New("too many files of this user are open")
	errStaged     = errors.New("too many unpublished bytes of this user")
)

// budgets bound what each user holds at a time, over all protocols and sessions.
type budgets struct {
	limits Limits
	mu     sync.Mutex
	users  map[int64]*budget
}

// budget is one user's.
type budget struct {
	all     *budgets
	running sync.Map // operations under way, by datasource: *atomic.Int64. One that hangs uses up its own only
	handles atomic.Int64
	staged  atomic.Int64
}

// of returns the budget of a user. They are few bytes and as many as users who have signed in: none is ever dropped.
func (b *budgets) of(user int64) *budget {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users == nil {
		b.users = make(map[int64]*budget)
	}
	u := b.users[user]
	if u == nil {
		u = &budget{all: b}
		b.users[user] = u
	}
	return u
}

// totals returns what all users hold.
func (b *budgets) totals() (handles int, staged int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.users {
		handles += int(u.handles.Load())
		staged += u.staged.Load()
	}
	return handles, staged
}

// enter begins an operation on a datasource; it ends with leave.
func (u *budget) enter(datasource string) (leave func(), err error) {
	n, ok := u.running.Load(datasource)
	if !ok {
		n, _ = u.running.LoadOrStore(datasource, new(atomic.Int64))
	}
	running := n.(*atomic.Int64)
	if running.Add(1) > int64(u.all.limits.Operations) {
		running.Add(-1)
		return nil, fault.New("gateway.budget", "", fault.Busy, errOperations)
	}
	return func() { running.Add(-1) }, nil
}

func (u *budget) open() error {
	if u.handles.Add(1) > int64(u.all.limits.Handles) {
		u.handles.Add(-1)
		return fault.New("gateway.budget", "", fault.Busy, errHandles)
	}
	return nil
}

func (u *budget) close() { u.handles.Add(-1) }

// stage takes n bytes, or gives them back when n is negative.
func (u *budget) stage(n int64) error {
	if now := u.staged.Add(n); n > 0 && u.all.limits.StagedBytes > 0 && now > u.all.limits.StagedBytes {
		u.staged.Add(-n)
		return fault.New("gateway.budget", "", fault.Quota, errStaged)
	}
	return nil
}
