package appliance

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/store"
	"cellgate/store/storetest"
)

// TestOneBoxPerDatabase starts boxes on one PostgreSQL database: a second is refused while the first lives and may follow when it has gone or is
// dead; one with other keys is refused.
func TestOneBoxPerDatabase(t *testing.T) {
	url := storetest.Postgres(t)
	log := new(lockedBuffer)
	logger := slog.New(slog.NewTextHandler(log, nil))
	open := func(data string) (*box, error) {
		cfg := Default()
		cfg.Data, cfg.Database = data, secret.New(url)
		return openBox(t.Context(), &cfg, logger)
	}
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	first, err := open(one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(two); err == nil || !strings.Contains(err.Error(), first.lease.holder) {
		t.Errorf("a second box while the first lives: %v", err)
	}
	if !strings.Contains(log.String(), "another box has the database") {
		t.Errorf("nothing says what is waited for:\n%s", log)
	}

	// Killed: the lease stays, the lock of the folder goes.
	fence := first.lease.fence
	first.lease.stop()
	<-first.lease.done
	killed := strings.Replace(first.lease.holder, fmt.Sprintf(":%d:", os.Getpid()), ":1:", 1)
	if err := first.db.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE leases SET holder = $1 WHERE name = $2`, killed, leaseName)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	first.lease = nil
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	again, err := open(one)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > leaseTTL/2 {
		t.Errorf("the successor in the same folder waited %s", took)
	}
	if again.lease.fence <= fence {
		t.Errorf("the successor's fence is %d, its predecessor's was %d", again.lease.fence, fence)
	}

	// Somebody else takes the lease, as after a long stall.
	if err := again.db.Release(t.Context(), leaseName, again.lease.fence); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := again.db.Lease(t.Context(), leaseName, "elsewhere:1:/data", time.Minute); err != nil || !ok {
		t.Fatal(ok, err)
	}
	select {
	case <-again.lostLease():
	case <-time.After(2 * leaseRenew):
		t.Error("a box that lost its lease goes on")
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := again.db.Setting(t.Context(), "x"); err == nil {
		t.Error("the store is open")
	}
}

// TestKeysOfAnotherBox starts a box on the database of another that has stopped, with keys of its own and with none.
func TestKeysOfAnotherBox(t *testing.T) {
	url := storetest.Postgres(t)
	open := func(data, url string) error {
		cfg := Default()
		cfg.Data, cfg.Database = data, secret.New(url)
		b, err := openBox(t.Context(), &cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return b.close()
	}
	owner, other := filepath.Join(t.TempDir(), "owner"), filepath.Join(t.TempDir(), "other")
	for range 2 {
		if err := open(owner, url); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(other, url); err == nil || !strings.Contains(err.Error(), "master.key is missing") {
		t.Errorf("without keys: %v", err)
	}
	if err := open(other, ""); err != nil {
		t.Fatal(err)
	}
	if err := open(other, url); err == nil || !strings.Contains(err.Error(), "belongs to another box") {
		t.Errorf("with other keys: %v", err)
	}
	if err := open(owner, storetest.Postgres(t)); err == nil || !strings.Contains(err.Error(), "the database is new") {
		t.Errorf("on a new database: %v", err)
	}
}
