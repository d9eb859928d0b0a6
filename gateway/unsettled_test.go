package gateway_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/store"
)

func newFlaky(next mounts.Backend) (*atomic.Pointer[func(op, name string) error], mounts.Backend) {
	p := new(atomic.Pointer[func(op, name string) error])
	none := func(string, string) error { return nil }
	p.Store(&none)
	return p, mounts.Around(next, mounts.Hooks{Call: func(_ context.Context, op, name string, do func() error) error {
		if err := (*p.Load())(op, name); err != nil {
			return err
		}
		return do()
	}})
}

var errGone = fault.New("test", "", fault.Unavailable, errors.New("gone"))

// A removal that broke off in the middle does not come upon what was made anew in its place.
func TestOvertakenPurge(t *testing.T) {
	t.Parallel()
	p, disk := newFlaky(gatewaytest.Far(mem.New(mem.Config{}), mounts.Emulated))
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}, Limits: gateway.Limits{Retry: time.Second}})
	h.Tell(t, "alice: mkdir /docs/d -> ok\nalice: put /docs/d/a 1 -> ok\nalice: put /docs/d/b 2 -> ok")
	n := 0
	f := func(op, name string) error {
		if op == "Remove" {
			if n++; n == 2 {
				return errGone
			}
		}
		return nil
	}
	p.Store(&f)
	h.Tell(t, "alice: rmtree /docs/d -> ! unavailable")
	do := func(what string, fn func() error) {
		t.Helper()
		for range 100 {
			err := fn()
			if err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal(what)
	}
	s := h.As("alice")
	do("remove", func() error {
		err := s.Remove(t.Context(), gatewaytest.Path("/docs/d"), gateway.RemoveOptions{Recursive: true})
		if fault.KindOf(err) == fault.NotExist && err != nil {
			return nil
		}
		return err
	})
	do("mkdir", func() error { return s.Mkdir(t.Context(), gatewaytest.Path("/docs/d")) })
	do("put", func() error {
		return gatewaytest.Write(t.Context(), s, gatewaytest.Path("/docs/d/new"), []byte("acknowledged"), gateway.Cond{})
	})
	time.Sleep(2500 * time.Millisecond)
	h.Tell(t, "alice: cat /docs/d/new -> acknowledged")
}

// What was interrupted on one storage is not gone on with on another that takes its place.
func TestEntriesOfAnotherStorage(t *testing.T) {
	t.Parallel()
	p, disk := newFlaky(gatewaytest.Far(mem.New(mem.Config{}), mounts.Emulated))
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}, Limits: gateway.Limits{Retry: time.Hour}})
	h.Tell(t, "alice: mkdir /docs/d -> ok\nalice: put /docs/d/a 1 -> ok\nalice: put /docs/d/b 2 -> ok")
	n := 0
	f := func(op, name string) error {
		if op == "Remove" {
			if n++; n == 2 {
				return errGone
			}
		}
		return nil
	}
	p.Store(&f)
	h.Tell(t, "alice: rmtree /docs/d -> ! unavailable")
	other := mem.New(mem.Config{})
	for _, d := range []string{"docs", "docs/d"} {
		if err := other.Mkdir(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mounts.WriteFile(t.Context(), other, "docs/d/precious", []byte("x")); err != nil {
		t.Fatal(err)
	}
	h.SetDisk("disk", gatewaytest.Far(other, mounts.Emulated))
	change := func(fn func(tx *store.Tx) error) {
		t.Helper()
		if err := h.DB.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
		if err := h.Gateway.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	change(func(tx *store.Tx) error {
		_, err := h.Gateway.PutDatasource(tx, gateway.Datasource{Name: "disk", Driver: "test", Options: map[string]string{"disk": "disk", "poll": "0s"}})
		return err
	})
	time.Sleep(300 * time.Millisecond)
	h.Tell(t, "alice: cat /docs/d/precious -> x")
}

// What waits to be written to one storage is not written to another.
func TestWaitingForAnotherStorage(t *testing.T) {
	t.Parallel()
	p, disk := newFlaky(gatewaytest.Far(mem.New(mem.Config{}), mounts.Native))
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}, Limits: gateway.Limits{Retry: time.Hour}})
	change := func(o map[string]string) error {
		t.Helper()
		o["disk"] = "disk"
		err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
			_, err := h.Gateway.PutDatasource(tx, gateway.Datasource{Name: "disk", Driver: "test", Options: o})
			return err
		})
		if err != nil {
			return err
		}
		return h.Gateway.Reload(t.Context())
	}
	if err := change(map[string]string{"writeBack": "true"}); err != nil {
		t.Fatal(err)
	}
	f := func(op, name string) error {
		if op == "Put" && strings.HasPrefix(name, "docs/") {
			return fault.New("test", name, fault.Denied, nil)
		}
		return nil
	}
	p.Store(&f)
	h.Tell(t, "alice: put /docs/secret 1 -> ok")
	other := mem.New(mem.Config{})
	if err := other.Mkdir(t.Context(), "docs"); err != nil {
		t.Fatal(err)
	}
	h.SetDisk("disk", gatewaytest.Far(other, mounts.Native))
	if err := change(map[string]string{"writeBack": "true", "poll": "0s"}); err != nil {
		t.Fatal(err)
	}
	if err := change(map[string]string{}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("write-back is turned off though a file waits: %v", err)
	}
	err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
		for _, w := range []string{"docs", "pair", "drop"} {
			if err := h.Gateway.DeleteWorkspace(tx, w); err != nil {
				return err
			}
		}
		return h.Gateway.DeleteDatasource(tx, "disk")
	})
	if fault.KindOf(err) != fault.Exist || !strings.Contains(err.Error(), "wait to be written") {
		t.Errorf("deleted though a file waits: %v", err)
	}
	time.Sleep(time.Second)
	if _, err := other.Stat(t.Context(), "docs/secret"); err == nil {
		t.Error("the file went to another storage")
	}
	for _, d := range h.Gateway.Datasources(t.Context()) {
		if d.Name == "disk" && (d.Err == nil || !strings.Contains(d.Err.Error(), "another storage")) {
			t.Error(d.State, d.Err)
		}
	}
	// Back again, it is written.
	none := func(string, string) error { return nil }
	p.Store(&none)
	h.SetDisk("disk", disk)
	if err := change(map[string]string{"writeBack": "true", "poll": "2s"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := disk.Stat(t.Context(), "docs/secret"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never written")
		}
	}
}

// early is a backend whose Put succeeds before it has read all.
type early struct{ mounts.Backend }

func (e early) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if !strings.HasPrefix(name, "docs/") {
		return e.Backend.Put(ctx, name, src, opt)
	}
	opt.Size = -1
	return e.Backend.Put(ctx, name, io.LimitReader(src, 400<<10), opt)
}

func TestPutThatEndsEarly(t *testing.T) {
	t.Parallel()
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": early{gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)}}})
	s := h.As("alice")
	for _, size := range []int{410 << 10, 600 << 10, 100 << 10} {
		u, err := s.Create(t.Context(), gatewaytest.Path("/docs/x"), gateway.CreateOptions{Size: int64(size)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.ReadFrom(strings.NewReader(strings.Repeat("x", size)))
		if err == nil {
			_, _, err = u.Commit(t.Context())
		}
		u.Abort()
		info, serr := s.Stat(t.Context(), gatewaytest.Path("/docs/x"))
		if serr != nil {
			t.Fatal(serr)
		}
		if err == nil && info.Size != int64(size) {
			t.Errorf("acknowledged %d bytes, stored are %d", size, info.Size)
		}
	}
}

// An empty write does not let the backend finish before the commit.
func TestEmptyWriteHoldsBack(t *testing.T) {
	t.Parallel()
	disk := gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": exact{disk}}})
	s := h.As("alice")
	u, err := s.Create(t.Context(), gatewaytest.Path("/docs/x"), gateway.CreateOptions{Size: 500 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(make([]byte, 500<<10)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if info, err := disk.Stat(t.Context(), "docs/x"); err == nil {
		t.Error("published before it was committed", info.Size)
	}
	u.Abort()
}

// exact reads as much as was declared and no more.
type exact struct{ mounts.Backend }

func (e exact) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if opt.Size >= 0 {
		src = io.LimitReader(src, opt.Size)
	}
	return e.Backend.Put(ctx, name, src, opt)
}

// A user with credentials of his own copies and moves like everybody.
func TestCredentialsPerUserVerbs(t *testing.T) {
	t.Parallel()
	h, door := guarded(t)
	door.mu.Lock()
	door.disks["nas"] = gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	door.mu.Unlock()
	mode(t, h, gateway.Datasource{Mode: gateway.PerUser})
	id := h.As("alice").Subject().ID
	if err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
		_, err := h.Gateway.PutCredentials(tx, "nas", id, credentials("al", "a1"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, `
		alice: mkdir /homes/d -> ok
		alice: put /homes/d/a 1 -> ok
		alice: cp /homes/d/a /homes/b -> ok
		alice: cp /homes/d /homes/e -> ok
		alice: ls /homes/e -> a
		alice: mv! /homes/d /homes/e -> ok
		alice: put /docs/x 1 -> ok
		alice: mv /docs/x /homes/x -> ok
		alice: mv /homes/x /docs/y -> ok
		alice: mv! /homes/b /homes/e -> ok
		alice: ls /homes -> e
		alice: rmtree /homes/e -> ok`)
}

// What others delete and change outside counts on the quota of who wrote it.
func TestOutsideQuota(t *testing.T) {
	t.Parallel()
	disk := mem.New(mem.Config{})
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": gatewaytest.Far(disk, mounts.Native)}})
	poll := gateway.Datasource{Name: "disk", Driver: "test", Options: map[string]string{"disk": "disk", "poll": "1s", "cacheAge": "0s"}}
	if err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
		_, err := h.Gateway.PutDatasource(tx, poll)
		if err == nil {
			err = h.Quota.SetLimit(tx, "user:alice", 1000)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := h.Gateway.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: put /docs/a "+strings.Repeat("x", 400)+" -> ok\nalice: put /docs/b "+strings.Repeat("x", 100)+" -> ok\nalice: ls /docs -> a b")
	if err := disk.Remove(t.Context(), "docs/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := mounts.WriteFile(t.Context(), disk, "docs/b", []byte(strings.Repeat("y", 250))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	used, _, err := h.Quota.Usage(t.Context(), "user:alice")
	if used != 250 {
		t.Error("usage", used, err)
	}
}

// A storage that is not mounted for a while is not one that somebody has emptied.
func TestOutsideOfAnotherStorage(t *testing.T) {
	t.Parallel()
	disk := mem.New(mem.Config{})
	sw := &switched{}
	var b mounts.Backend = gatewaytest.Far(disk, mounts.Native)
	sw.now.Store(&b)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": mounts.Backend(sw)}})
	poll := gateway.Datasource{Name: "disk", Driver: "test", Options: map[string]string{"disk": "disk", "poll": "1s", "cacheAge": "0s"}}
	if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { _, err := h.Gateway.PutDatasource(tx, poll); return err }); err != nil {
		t.Fatal(err)
	}
	if err := h.Gateway.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: prop /docs/a color red -> ok\nalice: ls /docs -> a")
	empty := mem.New(mem.Config{})
	if err := empty.Mkdir(t.Context(), "docs"); err != nil {
		t.Fatal(err)
	}
	var e mounts.Backend = gatewaytest.Far(empty, mounts.Native)
	sw.now.Store(&e)
	time.Sleep(2500 * time.Millisecond)
	sw.now.Store(&b)
	time.Sleep(1200 * time.Millisecond)
	h.Tell(t, "alice: props /docs/a -> color=red")
}

type switched struct {
	now atomic.Pointer[mounts.Backend]
}

func (s *switched) Stat(ctx context.Context, n string) (mounts.Info, error) {
	return (*s.now.Load()).Stat(ctx, n)
}
func (s *switched) List(ctx context.Context, n string) iter.Seq2[mounts.Info, error] {
	return (*s.now.Load()).List(ctx, n)
}
func (s *switched) Open(ctx context.Context, n string, off, k int64) (io.ReadCloser, error) {
	return (*s.now.Load()).Open(ctx, n, off, k)
}
func (s *switched) Put(ctx context.Context, n string, src io.Reader, o mounts.PutOptions) (mounts.Info, error) {
	return (*s.now.Load()).Put(ctx, n, src, o)
}
func (s *switched) Mkdir(ctx context.Context, n string) error  { return (*s.now.Load()).Mkdir(ctx, n) }
func (s *switched) Remove(ctx context.Context, n string) error { return (*s.now.Load()).Remove(ctx, n) }
func (s *switched) Rename(ctx context.Context, a, b string) error {
	return (*s.now.Load()).Rename(ctx, a, b)
}
func (s *switched) Features() mounts.Features { return (*s.now.Load()).Features() }
func (s *switched) Close() error              { return nil }
