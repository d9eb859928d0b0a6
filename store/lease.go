package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"cellgate/internal/fault"
)

// Lease makes holder the one who does name (a job, a cleaner) until ttl has passed, or prolongs what it holds. ok is false while somebody
// else holds it.
//
// fence grows each time the lease changes hands. A holder that stalled for longer than ttl does not know it: so what it writes goes through
// CheckFence. The clocks of nodes must agree to well within ttl.
func (db *DB) Lease(ctx context.Context, name, holder string, ttl time.Duration) (fence int64, ok bool, err error) {
	now := db.clock.Now()
	err = db.Update(ctx, func(tx *Tx) error {
		fence, ok = 0, false
		err := tx.QueryRow(`
			INSERT INTO leases (name, holder, fence, expires) VALUES ($1, $2, 1, $3)
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires = excluded.expires,
				fence = leases.fence + CASE WHEN leases.holder = excluded.holder AND leases.expires > $4 THEN 0 ELSE 1 END
			WHERE leases.holder = excluded.holder OR leases.expires <= $4
			RETURNING fence`, name, holder, now.Add(ttl).UnixNano(), now.UnixNano()).Scan(&fence)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		ok = err == nil
		return err
	})
	if err != nil {
		return 0, false, fault.Wrap("store.Lease", name, err)
	}
	return fence, ok, nil
}

// Release gives a lease back before its time. A fence that is not the present one changes nothing.
func (db *DB) Release(ctx context.Context, name string, fence int64) error {
	return db.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE leases SET expires = 0 WHERE name = $1 AND fence = $2`, name, fence)
		return err
	})
}

// CheckFence fails with Precondition unless fence is the present one of the lease. In one transaction with a holder's writes it keeps out
// one whose lease went to somebody else.
func CheckFence(tx *Tx, name string, fence int64) error {
	var now int64
	err := tx.QueryRow(`SELECT fence FROM leases WHERE name = $1`, name).Scan(&now)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if now != fence {
		return fault.New("store.CheckFence", name, fault.Precondition, errors.New("the lease went to another holder"))
	}
	return nil
}
