package gateway_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
)

// A datasource that is down costs its own workspaces only, and comes back by itself.
func TestDatasourceDown(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: put /homes/h 1 -> ok")
	disk := h.Disk("disk")
	h.SetDisk("disk", nil)
	h.Reopen()
	h.Tell(t, `
		alice: ls / -> docs/ drop/ homes/ pair/
		alice: ls /docs -> ! unavailable
		alice: put /docs/b 1 -> ! unavailable
		guest: ls /docs -> ! does not exist
		alice: cat /homes/h -> 1
		alice: put /homes/i 1 -> ok`)
	if st := h.Gateway.Datasources(t.Context()); st[0].State != "down" || st[0].Err == nil || st[1].State != "up" {
		t.Errorf("states %+v", st)
	}
	if st := h.Gateway.Workspaces(); st[0].Slug != "docs" || st[0].State != "unavailable" {
		t.Errorf("states %+v", st)
	}
	h.SetDisk("disk", disk)
	deadline := time.Now().Add(5 * time.Second)
	for h.Gateway.Datasources(t.Context())[0].State != "up" {
		if time.Now().After(deadline) {
			t.Fatal("did not come back")
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.Tell(t, "alice: cat /docs/a -> 1")

	// One that goes while it is used is noticed, too.
	rotten := flaky.New(disk)
	h.SetDisk("disk", rotten)
	h.Reopen()
	rotten.Set(flaky.Rule{Op: "Stat", Fault: fault.Unavailable})
	for h.Gateway.Datasources(t.Context())[0].State != "down" {
		if time.Now().After(deadline.Add(5 * time.Second)) {
			t.Fatal("not noticed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.Tell(t, "alice: ls /docs -> ! unavailable\nalice: cat /homes/h -> 1")
}

// A datasource that hangs while it is opened keeps nobody from the others, and is there once it answers.
func TestDatasourceHangs(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: put /homes/h 1 -> ok")
	slow := flaky.New(h.Disk("disk"))
	h.SetDisk("disk", slow)
	slow.Set(flaky.Rule{Op: "Mkdir", Stall: true})
	h.Reopen()
	h.Tell(t, "alice: ls /docs -> ! unavailable\nalice: cat /homes/h -> 1\nalice: put /homes/i 1 -> ok")
	slow.Set()
	slow.Resume()
	for deadline := time.Now().Add(5 * time.Second); h.Gateway.Datasources(t.Context())[0].State != "up"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not come up")
		}
	}
	h.Tell(t, "alice: cat /docs/a -> 1")
}

// A storage that goes while it is used, or is another one at the next start, is not written to: what is written would vanish beneath it.
func TestStorageReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	reopen := mounts.Driver{Name: "test", Options: []mounts.Option{{Name: "disk"}}, Open: func(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
		if cfg.Name != "disk" {
			return nil, fault.New("test", cfg.Name, fault.Unavailable, nil)
		}
		return local.Driver().Open(ctx, mounts.Config{Name: cfg.Name, Options: map[string]string{"path": dir}})
	}}
	h := gatewaytest.New(t, gatewaytest.Config{Driver: &reopen})
	state := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); h.Gateway.Datasources(t.Context())[0].State != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not %s: %+v", want, h.Gateway.Datasources(t.Context())[0])
			}
		}
	}
	state("up")
	h.Tell(t, "alice: put /docs/a 1 -> ok")
	for _, err := range []error{os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	state("down")
	h.Tell(t, "alice: put /docs/b 1 -> ! unavailable")
	h.Reopen()
	state("down")
	if left, err := filepath.Glob(dir + "/docs*"); err != nil || len(left) > 0 {
		t.Errorf("made in what is not the storage: %v, %v", left, err)
	}
	for _, err := range []error{os.RemoveAll(dir), os.Rename(dir+".away", dir)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	state("up")
	h.Tell(t, "alice: cat /docs/a -> 1")
	second, err := local.Driver().Open(t.Context(), mounts.Config{Name: "other", Options: map[string]string{"path": dir}})
	if fault.KindOf(err) != fault.Busy {
		t.Errorf("a second owner of the folder: %v, %v", second, err)
	}
}

// Two datasources on one storage do not sweep away what the other has in flight.
func TestOneStorageTwice(t *testing.T) {
	disk := mem.New(mem.Config{})
	far := gatewaytest.Far(disk, mounts.Native)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": far, "nas": far}})
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: put /homes/b 1 -> ok")
	if _, err := mounts.WriteFile(t.Context(), disk, ".cellgate/tmp/put-of-the-other", []byte("half")); err != nil {
		t.Fatal(err)
	}
	h.Reopen()
	h.Tell(t, "alice: cat /docs/a -> 1")
	if _, err := disk.Stat(t.Context(), ".cellgate/tmp/put-of-the-other"); err != nil {
		t.Errorf("swept: %v", err)
	}
}
