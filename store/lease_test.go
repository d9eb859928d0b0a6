package store_test

import (
	"testing"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/store"
	"cellgate/store/storetest"
)

func TestLease(t *testing.T) {
	storetest.EachURL(t, func(t *testing.T, url string) {
		c := clock.At(time.Unix(1_800_000_000, 0))
		db := storetest.OpenAt(t, url, c)
		take := func(holder string, wantFence int64) {
			t.Helper()
			fence, ok, err := db.Lease(t.Context(), "cleaner", holder, time.Minute)
			if err != nil || ok != (wantFence > 0) || fence != wantFence {
				t.Errorf("%s at %v: got %d, %v, %v, want %d", holder, c.Now(), fence, ok, err, wantFence)
			}
		}
		fenced := func(fence int64) fault.Kind {
			return fault.KindOf(db.Update(t.Context(), func(tx *store.Tx) error {
				if err := store.CheckFence(tx, "cleaner", fence); err != nil {
					return err
				}
				return store.SetSetting(tx, "a", "1")
			}))
		}
		take("a", 1)
		take("b", 0)
		c.Advance(50 * time.Second)
		take("a", 1) // prolonged
		c.Advance(50 * time.Second)
		take("b", 0)
		c.Advance(11 * time.Second)
		take("b", 2)
		take("a", 0)
		if got := fenced(1); got != fault.Precondition {
			t.Errorf("an old holder wrote: %v", got)
		}
		if got := fenced(2); got != fault.Internal { // the kind of nil
			t.Errorf("the holder could not write: %v", got)
		}
		if err := db.Release(t.Context(), "cleaner", 1); err != nil {
			t.Fatal(err)
		}
		take("a", 0)
		if err := db.Release(t.Context(), "cleaner", 2); err != nil {
			t.Fatal(err)
		}
		take("a", 3)
		c.Advance(time.Hour)
		take("a", 4) // it had run out: others may have come and gone
	})
}
