package appliance

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The lease of the box on a database that others can reach. In the data folder a lock does the same.
const (
	leaseName  = "box"
	leaseTTL   = 10 * time.Second
	leaseRenew = leaseTTL / 4
	leaseLook  = leaseTTL / 20
)

// lease is held while a box uses a PostgreSQL database: two boxes on one would undo each other's work.
type lease struct {
	box    *box
	holder string // HOST:PID:DATA
	fence  int64
	lost   chan error // gets why the lease is no longer ours
	stop   context.CancelFunc
	done   chan struct{}
}

// takeLease waits for a box that may be dead, and fails when one lives. One with our host and data folder is dead: we have the folder's lock.
func takeLease(ctx context.Context, b *box) (*lease, error) {
	l := &lease{box: b, lost: make(chan error, 1), done: make(chan struct{})}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	data, err := filepath.Abs(b.cfg.Data)
	if err != nil {
		return nil, err
	}
	l.holder = fmt.Sprintf("%s:%d:%s", host, os.Getpid(), real(data))
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	go l.keep(ctx)
	return l, nil
}

func (l *lease) take(ctx context.Context) error {
	db, first := l.box.db, time.Time{}
	for {
		fence, ok, err := db.Lease(ctx, leaseName, l.holder, leaseTTL)
		if err != nil || ok {
			l.fence = fence
			return err
		}
		var holder string
		var expires int64
		err = db.QueryRow(ctx, `SELECT holder, fence, expires FROM leases WHERE name = $1`, leaseName).Scan(&holder, &fence, &expires)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		until := time.Unix(0, expires)
		switch {
		case sameBox(holder, l.holder):
			if err := db.Release(ctx, leaseName, fence); err != nil {
				return err
			}
			continue
		case first.IsZero():
			first = until
			l.box.log.Warn("another box has the database; waiting whether it is alive", "holder", holder, "until", until.UTC().Format(time.RFC3339))
		case until.After(first):
			return fmt.Errorf("the database is in use by another box, %s (host:process:data folder); stop that one first, or give this one a database of its own", holder)
		}
		select {
		case <-time.After(leaseLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sameBox reports whether two holders differ in their process only.
func sameBox(a, b string) bool {
	x, y := strings.SplitN(a, ":", 3), strings.SplitN(b, ":", 3)
	return len(x) == 3 && len(y) == 3 && x[0] == y[0] && x[2] == y[2]
}

// keep renews the lease until it is stopped or somebody else has it. A database that does not answer is waited for: nobody can take it meanwhile.
func (l *lease) keep(ctx context.Context) {
	defer close(l.done)
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		fence, ok, err := l.box.db.Lease(ctx, leaseName, l.holder, leaseTTL)
		switch {
		case err != nil && ctx.Err() == nil:
			l.box.log.Warn("the lease on the database could not be renewed", "err", err)
		case err == nil && (!ok || fence != l.fence):
			l.lost <- errors.New("another box has taken the database, which this one did not reach for a while")
			return
		}
	}
}

// release gives the lease back.
func (l *lease) release() error {
	l.stop()
	<-l.done
	ctx, cancel := context.WithTimeout(context.Background(), leaseTTL/2)
	defer cancel()
	return l.box.db.Release(ctx, leaseName, l.fence)
}

// lostLease yields why the box has to stop, never where there is no lease.
func (b *box) lostLease() <-chan error {
	if b.lease == nil {
		return nil
	}
	return b.lease.lost
}
