package gateway_test

import (
	"fmt"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
)

// A tree that is being deleted in the background is no finding.
func TestFsckWhilePurging(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: mkdir /docs/big -> ok")
	for i := range 3000 {
		if err := fill(h.Disk("disk"), fmt.Sprintf("docs/big/f%d", i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	h.Tell(t, "alice: rmtree /docs/big -> ok")
	if err := h.Gateway.Fsck(t.Context(), false, func(f gateway.Finding) { t.Errorf("%+v", f) }); err != nil {
		t.Fatal(err)
	}
}
