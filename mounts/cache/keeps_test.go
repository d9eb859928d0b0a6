package cache_test

import (
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mounttest"
)

// No capability is lost behind the cache, and none leaks past it.
func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend {
		c, err := cache.New(b, cache.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
}
