package gateway_test

import (
	"os"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// TestGrantExpires: a right that ends by itself ends for what is open and for what is under way, too.
func TestGrantExpires(t *testing.T) {
	now := clock.At(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	h := gatewaytest.New(t, gatewaytest.Config{Clock: now})
	h.Tell(t, "alice: put /docs/a 12345 -> ok")
	h.Revoke("user:bob", "docs:/")
	at, err := h.Gateway.GrantPlace("docs:/")
	if err != nil {
		t.Fatal(err)
	}
	err = h.DB.Update(t.Context(), func(tx *store.Tx) error {
		return h.Policy.PutGrant(tx, policy.Grant{To: "user:bob", On: at, Rights: policy.Read | policy.Write, Expires: now.Now().Add(time.Hour), Source: "test"})
	})
	if err != nil {
		t.Fatal(err)
	}
	s := h.As("bob")
	f, err := s.Open(t.Context(), gatewaytest.Path("/docs/a"), gateway.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ups []*gateway.Upload
	for _, size := range []int64{1, -1} {
		u, err := s.Create(t.Context(), gatewaytest.Path("/docs/late"), gateway.CreateOptions{Size: size})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		ups = append(ups, u)
	}
	handle, err := s.OpenFile(t.Context(), gatewaytest.Path("/docs/a"), gateway.OpenOptions{Flag: os.O_RDWR})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handle.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	now.Advance(59 * time.Minute)
	if _, err := f.ReadAt(make([]byte, 5), 0); err != nil {
		t.Errorf("a minute before: %v", err)
	}
	now.Advance(2 * time.Minute)
	_, err = f.ReadAt(make([]byte, 5), 0)
	wantKind(t, "reading on", err, fault.NotExist)
	for _, u := range ups {
		_, _, err := u.Commit(t.Context())
		wantKind(t, "commit", err, fault.NotExist)
	}
	wantKind(t, "close", handle.Close(t.Context()), fault.NotExist)
	h.Tell(t, "bob: stat /docs/a -> ! does not exist\nalice: ls /docs -> a\nalice: cat /docs/a -> 12345")
	sound(t, h)
}

// reader is a slow client that loses its right after some bytes.
type reader struct {
	pause    time.Duration
	left     int64 // bytes until revoke is run
	revoke   func()
	received int64 // bytes after it
}

func (r *reader) Write(p []byte) (int, error) {
	time.Sleep(r.pause)
	switch {
	case r.left <= 0:
		r.received += int64(len(p))
	case r.left <= int64(len(p)):
		r.revoke()
		fallthrough
	default:
		r.left -= int64(len(p))
	}
	return len(p), nil
}

// TestRevokedDownload: who reads slowly gets little of a file after the right is gone, whatever it is read from.
func TestRevokedDownload(t *testing.T) {
	const bound = 512 << 10
	for name, disks := range map[string]func() map[string]mounts.Backend{
		"memory": func() map[string]mounts.Backend { return nil },
		"disk":   func() map[string]mounts.Backend { d, _ := onDisk(t); return map[string]mounts.Backend{"disk": d} },
	} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t, gatewaytest.Config{Disks: disks()})
			if err := put("/docs/big", string(make([]byte, 16<<20)))(t.Context(), h.As("alice")); err != nil {
				t.Fatal(err)
			}
			f, err := h.As("bob").Open(t.Context(), gatewaytest.Path("/docs/big"), gateway.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w := &reader{pause: 120 * time.Millisecond, left: 1 << 20, revoke: func() { h.Revoke("user:bob", "docs:/") }}
			if name == "disk" { // smaller pieces
				w.pause /= 8
			}
			_, err = f.CopyTo(t.Context(), w, 0, 16<<20)
			wantKind(t, "copying", err, fault.NotExist)
			if w.received > bound {
				t.Errorf("%d bytes after the right was gone", w.received)
			}
		})
	}
}
