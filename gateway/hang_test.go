package gateway_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/store"
)

// stuck is a disk that does not answer while it hangs, not even when asked to close.
type stuck struct {
	hangs atomic.Bool
	free  chan struct{}
}

func (s *stuck) wire(b mounts.Backend) mounts.Backend {
	return mounts.Around(b, mounts.Hooks{Call: func(_ context.Context, _, _ string, do func() error) error {
		if s.hangs.Load() {
			<-s.free
		}
		return do()
	}})
}

// TestHangingBudget: operations that hang on one datasource do not use up what a user may do on another.
func TestHangingBudget(t *testing.T) {
	s := &stuck{free: make(chan struct{})}
	disks := map[string]mounts.Backend{"disk": s.wire(mem.New(mem.Config{}))}
	h := gatewaytest.New(t, gatewaytest.Config{Disks: disks, Limits: gateway.Limits{Operations: 8}})
	s.hangs.Store(true)
	var wg sync.WaitGroup
	var busy atomic.Int64
	for range 20 {
		wg.Go(func() {
			if _, err := h.As("alice").Stat(context.Background(), gatewaytest.Path("/docs/x")); fault.KindOf(err) == fault.Busy {
				busy.Add(1)
			}
		})
	}
	eventually(t, "the budget of the disk is used up", func() bool { return busy.Load() == 12 })
	h.Tell(t, "alice: put /homes/a x -> ok\nalice: cat /homes/a -> x\nalice: ls /homes -> a\nalice: ls / -> docs/ drop/ homes/ pair/")
	s.hangs.Store(false)
	close(s.free)
	wg.Wait()
	h.Tell(t, "alice: put /docs/a x -> ok")
}

// TestHangingClose: a backend that hangs does not keep the process from ending.
func TestHangingClose(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time that is left to what hangs")
	}
	t.Parallel()
	s := &stuck{free: make(chan struct{})}
	driver := mounts.Driver{Name: "test", Options: []mounts.Option{{Name: "disk"}}, Open: func(_ context.Context, cfg mounts.Config) (mounts.Backend, error) {
		b := mounts.Backend(mem.New(mem.Config{}))
		if cfg.Name == "disk" {
			b = s.wire(b)
		}
		return b, nil
	}}
	h := gatewaytest.New(t, gatewaytest.Config{Driver: &driver})
	h.Tell(t, "alice: mkdir /docs/d -> ok\nalice: put /docs/d/a x -> ok")
	s.hangs.Store(true)
	ended := make(chan error, 1)
	go func() { ended <- h.As("alice").Mkdir(context.Background(), gatewaytest.Path("/docs/e")) }()
	time.Sleep(100 * time.Millisecond) // the datasource is looked after meanwhile
	closed := make(chan error, 1)
	go func() { closed <- h.Gateway.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Close hangs")
	}
	s.hangs.Store(false)
	close(s.free)
	<-ended
}

// TestReconfigured: an upload that is under way while its datasource is reconfigured is published where users see it, or fails; either
// way it leaves nothing, and others' uploads are whole.
func TestReconfigured(t *testing.T) {
	dirs := map[string]string{"disk": t.TempDir(), "other": t.TempDir(), "nas": t.TempDir()}
	driver := mounts.Driver{Name: "test", Options: []mounts.Option{{Name: "disk"}}, Open: func(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
		return local.Driver().Open(ctx, mounts.Config{Name: cfg.Name, Options: map[string]string{"path": dirs[cfg.Options["disk"]]}, Unsynced: true})
	}}
	h := gatewaytest.New(t, gatewaytest.Config{Driver: &driver})
	body := strings.Repeat("x", 100_000)
	begin := func(path string) *gateway.Upload {
		t.Helper()
		u, err := h.As("alice").Create(t.Context(), gatewaytest.Path(path), gateway.CreateOptions{Size: int64(len(body))})
		if err == nil {
			_, err = u.ReadFrom(strings.NewReader(body))
		}
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	configs := []gateway.Datasource{
		{Durability: gateway.Written, Options: map[string]string{"disk": "disk"}},
		{Durability: gateway.Synced, Options: map[string]string{"disk": "disk"}},
		{Options: map[string]string{"disk": "other"}},
		{Options: map[string]string{"disk": "disk"}},
	}
	for i, d := range configs {
		d.Name, d.Driver = "disk", "test"
		before := begin(fmt.Sprint("/docs/before", i))
		change(t, h, func(tx *store.Tx) error { _, err := h.Gateway.PutDatasource(tx, d); return err })
		eventually(t, "the disk is up", func() bool { return h.Gateway.Datasources(t.Context())[0].State == "up" })
		during := begin(fmt.Sprint("/docs/during", i))
		_, _, err := before.Commit(t.Context())
		_, serr := h.As("alice").Stat(t.Context(), gatewaytest.Path(fmt.Sprint("/docs/before", i)))
		switch {
		case err == nil && serr != nil:
			t.Errorf("%d: acknowledged, but %v", i, serr)
		case err != nil && (serr == nil || fault.KindOf(err) != fault.Unavailable):
			t.Errorf("%d: failed with %v, but is there: %v", i, err, serr)
		}
		for range 3 { // is looked after meanwhile, and checked
			if err := h.Gateway.Fsck(t.Context(), true, func(f gateway.Finding) {
				if !f.Outside && !strings.Contains(f.Path, ".cellgate") {
					t.Errorf("%d: %+v", i, f)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := during.Commit(t.Context()); err != nil {
			t.Errorf("%d: one begun later: %v", i, err)
		}
		h.Tell(t, fmt.Sprintf("alice: stat /docs/during%d -> file 100000", i))
	}
	h.Reopen()
	if left, err := filepath.Glob(dirs["disk"] + "/.cellgate/tmp/*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if st := h.Gateway.Stats(); st.Handles != 0 || st.Staged != 0 {
		t.Errorf("left: %+v", st)
	}
}
