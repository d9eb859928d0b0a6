package gateway_test

import (
	"strings"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/store"
)

func limit(t *testing.T, h *gatewaytest.House, scope string, bytes int64) {
	t.Helper()
	if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { return h.Quota.SetLimit(tx, scope, bytes) }); err != nil {
		t.Fatal(err)
	}
}

func uses(t *testing.T, h *gatewaytest.House, scope string) int64 {
	t.Helper()
	used, _, err := h.Quota.Usage(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// quotaOn gives a workspace of one or more roots a quota.
func quotaOn(t *testing.T, h *gatewaytest.House, slug string, bytes int64, roots ...string) {
	t.Helper()
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: slug, Label: slug, Roots: roots, Quota: bytes})
		return err
	})
}

// TestQuotaOverwritesAnothers: replacing what somebody else wrote takes the whole size from one's own quota.
func TestQuotaOverwritesAnothers(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Grant("user:bob", "docs:/", "read", "write")
	limit(t, h, "user:bob", 5)
	for _, size := range []int{1000, 100_000} { // judged once, and early
		write := put("/docs/a", strings.Repeat("x", size))
		if err := write(t.Context(), h.As("alice")); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "put", write(t.Context(), h.As("bob")), fault.Quota)
		h.Tell(t, "bob: put /docs/a 123456 -> ! quota exceeded")
		if used := uses(t, h, "user:bob"); used != 0 {
			t.Errorf("bob uses %d", used)
		}
	}
	h.Tell(t, "bob: put /docs/a 12345 -> ok\nbob: put /docs/a 54321 -> ok\nbob: put /docs/b 1 -> ! quota exceeded")
	if a, b := uses(t, h, "user:alice"), uses(t, h, "user:bob"); a != 0 || b != 5 {
		t.Errorf("alice uses %d, bob %d", a, b)
	}
	sound(t, h)
}

// TestQuotaAfterRefusal: bytes that were refused leave no room for others.
func TestQuotaAfterRefusal(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	limit(t, h, "user:alice", 2000)
	u, err := h.As("alice").Create(t.Context(), gatewaytest.Path("/docs/g"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{1 << 20, 1 << 20, 0} {
		_, err := u.WriteAt(make([]byte, 100_000), off)
		wantKind(t, "write", err, fault.Quota)
	}
	if _, err := u.WriteAt(make([]byte, 1500), 0); err != nil {
		t.Error(err)
	}
	_, err = u.WriteAt(make([]byte, 1500), 1000)
	wantKind(t, "write", err, fault.Quota)
	if _, _, err = u.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if used := uses(t, h, "user:alice"); used != 1500 {
		t.Errorf("alice uses %d", used)
	}
	sound(t, h)
}

// TestQuotaOldGoesMeanwhile: an upload that counted on the room of the file it replaces does not publish beyond the quota when others have
// taken that room.
func TestQuotaOldGoesMeanwhile(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	quotaOn(t, h, "pair", 110_000, "disk:/one", "nas:/two")
	eventually(t, "it is measured", func() bool { return uses(t, h, "workspace:pair") == 0 })
	body := strings.Repeat("x", 100_000)
	if err := put("/pair/one/a", body)(t.Context(), h.As("alice")); err != nil {
		t.Fatal(err)
	}
	u, err := h.As("alice").Create(t.Context(), gatewaytest.Path("/pair/one/a"), gateway.CreateOptions{Size: int64(len(body))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.ReadFrom(strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "bob: rm /pair/one/a -> ok")
	if err := put("/pair/two/b", body)(t.Context(), h.As("alice")); err != nil {
		t.Fatal(err)
	}
	_, _, err = u.Commit(t.Context())
	wantKind(t, "commit", err, fault.Quota)
	if used := uses(t, h, "workspace:pair"); used != 100_000 {
		t.Errorf("the workspace uses %d", used)
	}
	sound(t, h)
}

// TestQuotaMeasuredLater: a workspace whose quota or roots changed while its storage was down is measured when that returns, be it after
// another restart.
func TestQuotaMeasuredLater(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1234567890 -> ok\nalice: put /pair/one/b 12345 -> ok\nalice: put /pair/two/c 123 -> ok")
	disk := h.Disk("disk")
	h.SetDisk("disk", nil)
	h.Reopen()
	quotaOn(t, h, "docs", 12, "disk:/docs")
	quotaOn(t, h, "pair", 20, "disk:/one", "nas:/two")
	h.Reopen()
	h.SetDisk("disk", disk)
	eventually(t, "docs is measured", func() bool { return uses(t, h, "workspace:docs") == 10 })
	eventually(t, "pair is measured", func() bool { return uses(t, h, "workspace:pair") == 8 })
	h.Tell(t, "alice: put /docs/b 1234567890 -> ! quota exceeded\nalice: put /docs/b 12 -> ok")
	quotaOn(t, h, "pair", 20, "disk:/one", "disk:/docs")
	eventually(t, "pair is measured anew", func() bool { return uses(t, h, "workspace:pair") == 17 })
	sound(t, h)
	quotaOn(t, h, "docs", -1, "disk:/docs")
	h.Tell(t, "alice: put /docs/b 1 -> ok")
	quotaOn(t, h, "docs", 100, "disk:/docs")
	eventually(t, "docs is measured anew", func() bool { return uses(t, h, "workspace:docs") == 11 })
	// A template counts for each user what the user's folder holds.
	h.Tell(t, "bob: put /homes/a 1234567890 -> ok")
	quotaOn(t, h, "homes", 12, "nas:/home/{login}")
	h.Tell(t, "bob: put /homes/b 123 -> ! quota exceeded\nbob: put /homes/b 12 -> ok\nalice: put /homes/b 123456789012 -> ok")
	sound(t, h)
}

// TestFsckWorkspaceUsage: what a workspace's quota counts is compared with what is there.
func TestFsckWorkspaceUsage(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	quotaOn(t, h, "docs", 100, "disk:/docs")
	quotaOn(t, h, "homes", 100, "nas:/home/{login}")
	h.Tell(t, "alice: put /docs/a 12345 -> ok\nbob: put /homes/b 123 -> ok")
	scopes := map[string]int64{"workspace:docs": 5, "workspace:homes:bob": 3}
	for scope := range scopes {
		if err := h.DB.Update(t.Context(), func(tx *store.Tx) error { return h.Quota.SetUsage(tx, scope, 77) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, repair := range []bool{false, true} {
		found := 0
		err := h.Gateway.Fsck(t.Context(), repair, func(f gateway.Finding) {
			if found++; f.Repaired != repair || !strings.Contains(f.What, "77") {
				t.Errorf("%+v", f)
			}
		})
		if err != nil || found != len(scopes) {
			t.Errorf("%d findings, %v", found, err)
		}
	}
	for scope, want := range scopes {
		if used := uses(t, h, scope); used != want {
			t.Errorf("%s uses %d, want %d", scope, used, want)
		}
	}
	sound(t, h)
}
