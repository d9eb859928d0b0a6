package writeback_test

import (
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/writeback"
)

// No capability is lost behind write-back, and none leaks past it.
func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend {
		c, err := writeback.New(b, writeback.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
}
