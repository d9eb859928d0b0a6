package gateway_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/policy/audit"
	"cellgate/store"
)

// What other tools do on a storage is recorded as made outside, what the gateway does is not, and a row that says otherwise goes.
func TestOutsideChanges(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			disk := mem.New(mem.Config{})
			h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": kind.wrap(disk)}})
			poll := gateway.Datasource{Name: "disk", Driver: "test", Options: map[string]string{"disk": "disk", "poll": "1s", "cacheAge": "0s"}}
			if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Gateway.PutDatasource(tx, poll); return err }); err != nil {
				t.Fatal(err)
			}
			if err := h.Gateway.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.Tell(t, `
				alice: put /docs/kept 1 -> ok
				alice: put /docs/changed 1 -> ok
				alice: put /docs/gone 1 -> ok
				alice: ls /docs -> changed gone kept`)
			for name, content := range map[string]string{"docs/changed": "longer", "docs/new": "x"} {
				if _, err := mounts.WriteFile(t.Context(), disk, name, []byte(content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := disk.Remove(t.Context(), "docs/gone"); err != nil {
				t.Fatal(err)
			}
			h.Tell(t, "alice: ls /docs -> changed kept new\nalice: cat /docs/changed -> longer")
			recorded := func(want ...string) {
				t.Helper()
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
					var got []string
					for r, err := range h.Audit.List(t.Context(), audit.Filter{}) {
						if err != nil {
							t.Fatal(err)
						}
						if r.Protocol == gateway.Outside {
							got = append(got, r.Action+" "+r.Place)
						}
					}
					slices.Sort(got)
					if slices.Equal(got, want) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("recorded %q, want %q", strings.Join(got, "; "), want)
					}
				}
			}
			recorded("delete disk:/docs/gone", "modify disk:/docs/changed")
			// What the gateway never wrote is known once the folder was looked at.
			h.Tell(t, "alice: rm /docs/kept -> ok\nalice: put /docs/mine 1 -> ok\nalice: mv /docs/changed /docs/moved -> ok")
			time.Sleep(1500 * time.Millisecond)
			if _, err := mounts.WriteFile(t.Context(), disk, "docs/later", nil); err != nil {
				t.Fatal(err)
			}
			if err := disk.Remove(t.Context(), "docs/new"); err != nil {
				t.Fatal(err)
			}
			recorded("create disk:/docs/later", "delete disk:/docs/gone", "delete disk:/docs/new", "modify disk:/docs/changed")
		})
	}
}
