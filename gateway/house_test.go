package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/event"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/policy/audit"
	"cellgate/policy/identity"
	"cellgate/policy/quota"
	"cellgate/store"
)

// onDisk is a local datasource with its folder.
func onDisk(t *testing.T) (mounts.Backend, string) {
	t.Helper()
	dir := t.TempDir()
	disk, err := local.Driver().Open(t.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": dir}})
	if err != nil {
		t.Fatal(err)
	}
	return disk, dir
}

func change(t *testing.T, h *gatewaytest.House, do func(tx *store.Tx) error) {
	t.Helper()
	if err := h.DB.Update(t.Context(), do); err != nil {
		t.Fatal(err)
	}
	if err := h.Gateway.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSymlinks(t *testing.T) {
	disk, dir := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	outside := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(outside, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, `
		alice: mkdir /docs/d -> ok
		alice: put /docs/d/a inside -> ok
		alice: mkdir /docs/secret -> ok
		alice: put /docs/secret/s hidden -> ok`)
	for link, target := range map[string]string{
		"docs/file": "d/a", "docs/dir": "d", "docs/up": "../docs/d/a", "docs/out": outside, "docs/far": "../../../../../../etc", "docs/dangling": "none",
		"docs/loop": "loop", "docs/spy": "secret", "docs/area": "../.cellgate", "docs/d/back": "..",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h.Grant("user:bob", "docs:/secret", "deny")
	h.Tell(t, `
		alice: cat /docs/file -> inside
		alice: cat /docs/dir/a -> inside
		alice: cat /docs/up -> inside
		alice: cat /docs/d/back/d/a -> inside
		alice: ls /docs/dir -> a back/
		alice: put /docs/dir/b new -> ok
		alice: cat /docs/d/b -> new
		alice: put /docs/file through -> ok
		alice: cat /docs/d/a -> through
		alice: ls /docs -> d/ dir/ file secret/ spy/ up
		bob: ls /docs -> d/ dir/ file up
		bob: cat /docs/spy/s -> ! does not exist
		bob: stat /docs/spy -> ! does not exist
		alice: stat /docs/area -> ! does not exist
		alice: ls /docs/area/tmp -> ! does not exist
		alice: rm /docs/file -> ok
		alice: cat /docs/d/a -> through`)
	for _, path := range []string{"/docs/out", "/docs/far/passwd", "/docs/dangling", "/docs/loop", "/docs/far"} {
		s := h.As("alice")
		if b, err := gatewaytest.Read(t.Context(), s, gatewaytest.Path(path)); err == nil {
			t.Errorf("read %q through %s", b, path)
		}
		if err := gatewaytest.Write(t.Context(), s, gatewaytest.Path(path), []byte("x"), gateway.Cond{}); err == nil && path != "/docs/dangling" {
			t.Errorf("wrote through %s", path)
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "canary" {
		t.Errorf("the canary is %q, %v", b, err)
	}
}

// Where a backend cannot tell "Secret" from "SECRET", neither can the rights.
func TestCaseInsensitive(t *testing.T) {
	blind := mounts.Around(mem.New(mem.Config{}), mounts.Hooks{})
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": caseless{blind}}})
	h.Tell(t, "alice: mkdir /docs/Secret -> ok\nalice: put /docs/Secret/s 1 -> ok\nalice: mkdir /docs/ÄRGER -> ok")
	h.Grant("user:bob", "docs:/SECRET", "deny")
	h.Grant("user:bob", "docs:/ärger", "deny")
	h.Tell(t, "bob: ls /docs -> nothing\nbob: cat /docs/Secret/s -> ! does not exist\nbob: ls /docs/ÄRGER -> ! does not exist")
}

type caseless struct{ mounts.Backend }

func (c caseless) Unwrap() mounts.Backend { return c.Backend }
func (c caseless) Features() mounts.Features {
	f := c.Backend.Features()
	f.CaseSensitive = false
	return f
}

func TestQuota(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/old 1234567890 -> ok")
	h.Grant("user:bob", "docs:/", "read", "write")
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "docs", Label: "Documents", Roots: []string{"disk:/docs"}, Quota: 20})
		return err
	})
	used := func(scope string, want int64) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			got, _, err := h.Quota.Usage(t.Context(), scope)
			if err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s uses %d, want %d", scope, got, want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	used("workspace:docs", 10) // what was there before the quota was
	h.Tell(t, `
		alice: put /docs/a 12345 -> ok
		alice: put /docs/b 123456 -> ! quota exceeded
		alice: put /docs/a 1234567890 -> ok
		alice: put /docs/b 1 -> ! quota exceeded
		alice: cp /docs/a /docs/c -> ! quota exceeded
		alice: ls /docs -> a old
		alice: mv /docs/a /pair/one/a -> ok
		bob: put /docs/b 123 -> ok
		bob: mv /pair/one/a /docs/a -> ! quota exceeded
		bob: rm /docs/old -> ok
		bob: mv /pair/one/a /docs/a -> ok`)
	used("workspace:docs", 13)
	used("user:alice", 10)
	used("user:bob", 3)
	room, err := h.As("bob").Space(t.Context(), gatewaytest.Path("/docs"))
	if err != nil || room != (gateway.Space{Used: 13, Available: 7}) {
		t.Errorf("room %+v, %v", room, err)
	}
	err = h.DB.Update(t.Context(), func(tx *store.Tx) error { return h.Quota.SetLimit(tx, "user:bob", 5) })
	if err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "bob: put /docs/e 123 -> ! quota exceeded\nbob: put /docs/b 12345 -> ok\nalice: put /docs/e 12 -> ok")

	// A body of unknown length is cut off when it is too much, and nothing of it stays.
	u, err := h.As("bob").Create(t.Context(), gatewaytest.Path("/pair/two/big"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.ReadFrom(strings.NewReader(strings.Repeat("x", 100))); fault.KindOf(err) != fault.Quota {
		t.Errorf("100 bytes on a quota of 5: %v", err)
	}
	if err := u.Abort(); err != nil {
		t.Error(err)
	}
	err = h.DB.Update(t.Context(), func(tx *store.Tx) error { return h.Quota.SetLimit(tx, "user:bob", quota.None) })
	if err != nil {
		t.Fatal(err)
	}
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "homes", Label: "Home", Roots: []string{"nas:/home/{login}"}, Quota: 4})
		return err
	})
	h.Tell(t, `
		alice: put /homes/a 1234 -> ok
		alice: put /homes/b 1 -> ! quota exceeded
		bob: put /homes/b 1234 -> ok`)
	sound(t, h)
}

func TestReadOnly(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1 -> ok")
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutDatasource(tx, gateway.Datasource{Name: "disk", Driver: "test", Options: map[string]string{"disk": "disk"}, ReadOnly: true})
		return err
	})
	h.Tell(t, `
		alice: cat /docs/a -> 1
		alice: put /docs/a 2 -> ! permission denied
		alice: rm /docs/a -> ! permission denied
		alice: mkdir /docs/d -> ! permission denied
		alice: prop /docs/a x y -> ! permission denied
		alice: lock /docs/a L -> ! permission denied
		alice: mv /docs/a /homes/a -> ! permission denied
		alice: cp /docs/a /homes/a -> ok`)
}

func TestUpload(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	s := h.As("alice")
	p := gatewaytest.Path("/docs/a")
	create := func(o gateway.CreateOptions) *gateway.Upload {
		t.Helper()
		u, err := s.Create(t.Context(), p, o)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	h.Tell(t, "alice: put /docs/a old -> ok")
	for _, tt := range []struct {
		what string
		opt  gateway.CreateOptions
		body string
		want fault.Kind
	}{
		{"too short", gateway.CreateOptions{Size: 5}, "1234", fault.Invalid},
		{"too long", gateway.CreateOptions{Size: 3}, "1234", fault.Invalid},
		{"wrong checksum", gateway.CreateOptions{Size: -1, Checksum: "MD5:00000000000000000000000000000000"}, "1234", fault.Invalid},
	} {
		u := create(tt.opt)
		_, err := u.ReadFrom(strings.NewReader(tt.body))
		if err == nil {
			_, _, err = u.Commit(t.Context())
		}
		if fault.KindOf(err) != tt.want {
			t.Errorf("%s: %v", tt.what, err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		h.Tell(t, "alice: cat /docs/a -> old")
	}
	if _, err := s.Create(t.Context(), p, gateway.CreateOptions{Checksum: "SHA1:xyz"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a malformed checksum: %v", err)
	}
	mtime := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	u := create(gateway.CreateOptions{Size: 8, ModTime: mtime, Checksum: "SHA-1:7c222fb2927d828af22f592134e8932480637c0d adler32:074001a5 XYZ:1"})
	for _, off := range []int64{4, 0} {
		if _, err := u.WriteAt([]byte("12345678")[off:off+4], off); err != nil {
			t.Fatal(err)
		}
	}
	i, created, err := u.Commit(t.Context())
	if err != nil || created || !i.ModTime.Equal(mtime) || i.Size != 8 || i.ETag == "" {
		t.Errorf("%+v, created %t, %v", i, created, err)
	}
	if now, err := s.Stat(t.Context(), p); err != nil || now.ETag != i.ETag {
		t.Errorf("the entity tag of the upload is %s, of the file %s (%v)", i.ETag, now.ETag, err)
	}
	if _, _, err := u.Commit(t.Context()); fault.KindOf(err) != fault.Invalid {
		t.Errorf("committed twice: %v", err)
	}
	if _, err := u.Write([]byte("x")); fault.KindOf(err) != fault.Invalid {
		t.Errorf("written after commit: %v", err)
	}
	h.Tell(t, "alice: cat /docs/a -> 12345678")
	sound(t, h)
}

func TestHandle(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	s := h.As("alice")
	p := gatewaytest.Path("/docs/a")
	ctx := t.Context()
	f, err := s.OpenFile(ctx, p, gateway.OpenOptions{Flag: os.O_RDWR | os.O_CREATE})
	if err != nil {
		t.Fatal(err)
	}
	write := func(off int64, text string) {
		t.Helper()
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			t.Fatal(err)
		}
	}
	write(4, "later")
	h.Tell(t, "alice: stat /docs/a -> ! does not exist")
	if err := f.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, `alice: cat /docs/a -> `+"\x00\x00\x00\x00later")
	write(0, "soon")
	buf := make([]byte, 9)
	if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "soonlater" {
		t.Errorf("the handle reads %q, %v", buf, err)
	}
	if err := f.Truncate(6); err != nil {
		t.Fatal(err)
	}
	if f.Info().Size != 6 {
		t.Errorf("size %d", f.Info().Size)
	}
	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: cat /docs/a -> soonla")
	if f, err = s.OpenFile(ctx, p, gateway.OpenOptions{Flag: os.O_WRONLY | os.O_TRUNC}); err != nil {
		t.Fatal(err)
	}
	write(0, "gone")
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
	h.Tell(t, "alice: cat /docs/a -> soonla")
	for flag, want := range map[int]fault.Kind{os.O_RDWR | os.O_CREATE | os.O_EXCL: fault.Exist, os.O_RDONLY: 0} {
		f, err := s.OpenFile(ctx, p, gateway.OpenOptions{Flag: flag})
		if want != 0 {
			if fault.KindOf(err) != want {
				t.Errorf("flag %x: %v", flag, err)
			}
			continue
		}
		if _, err := f.WriteAt([]byte("x"), 0); fault.KindOf(err) != fault.Denied {
			t.Errorf("writing to what is open for reading: %v", err)
		}
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	sound(t, h)
}

func TestBudget(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{Limits: gateway.Limits{Handles: 3, StagedBytes: 100}})
	s := h.As("alice")
	h.Tell(t, "alice: put /docs/a 1 -> ok")
	var open []*gateway.File
	for range 3 {
		f, err := s.Open(t.Context(), gatewaytest.Path("/docs/a"), gateway.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	if _, err := s.Open(t.Context(), gatewaytest.Path("/docs/a"), gateway.ReadOptions{}); fault.KindOf(err) != fault.Busy {
		t.Errorf("a fourth handle: %v", err)
	}
	if _, err := h.As("alice").Create(t.Context(), gatewaytest.Path("/docs/b"), gateway.CreateOptions{Size: -1}); fault.KindOf(err) != fault.Busy {
		t.Errorf("a fourth handle of another session: %v", err)
	}
	h.Tell(t, "bob: cat /docs/a -> 1")
	for _, f := range open {
		f.Close()
		f.Close()
	}
	u, err := s.Create(t.Context(), gatewaytest.Path("/docs/b"), gateway.CreateOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(make([]byte, 101)); fault.KindOf(err) != fault.Quota {
		t.Errorf("101 staged bytes of 100: %v", err)
	}
	if err := u.Abort(); err != nil {
		t.Error(err)
	}
	if st := h.Gateway.Stats(); st.Handles != 0 || st.Staged != 0 {
		t.Errorf("left: %+v", st)
	}
}

func TestEvents(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	sub := h.Gateway.Events().Subscribe(10)
	h.Tell(t, "alice: put /docs/a 1 -> ok\nalice: put /docs/a 2 -> ok\nalice: mv /docs/a /docs/b -> ok\nbob: put /docs/b 3 -> ! permission denied\nalice: rm /docs/b -> ok")
	sub.Close()
	var got []string
	for e := range sub.C() {
		got = append(got, fmt.Sprint(e.Kind, " ", e.At.Path, " ", e.Actor))
	}
	want := []string{"create docs/a alice", "modify docs/a alice", "move docs/b alice", "delete docs/b alice"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	full := h.Gateway.Events().Subscribe(1)
	defer full.Close()
	h.Gateway.Events().Publish(event.Event{})
	h.Gateway.Events().Publish(event.Event{})
	if !full.Lost() || full.Lost() {
		t.Error("a lost event is told of once")
	}
}

// TestAudit: every change and refusal is a record, and the chain holds.
func TestAudit(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 1 -> ok\nbob: cat /docs/a -> 1\nbob: cat /docs/a -> 1\nbob: rm /docs/a -> ! permission denied\nalice: mv /docs/a /docs/b -> ok")
	if err := h.DB.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r, err := range h.Audit.List(t.Context(), audit.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Join([]string{r.Actor, r.Action, r.Path, r.Outcome}, " "))
	}
	want := []string{"user:alice create /docs/a ok", "user:bob read /docs/a ok", "user:bob remove /docs/a permission denied", "user:alice move /docs/a ok"}
	slices.Reverse(got) // the newest comes first
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if rep, err := h.Audit.Verify(t.Context()); err != nil || !rep.OK() {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestFsck(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{Clock: clock.At(time.Now().Add(2 * time.Hour))}) // what is left behind is old by now
	h.Tell(t, "alice: put /docs/gone 1 -> ok\nalice: put /docs/changed 1 -> ok\nalice: mkdir /docs/kind -> ok\nalice: put /docs/fine 1 -> ok")
	sound(t, h)
	disk := h.Disk("disk")
	ctx := context.Background()
	for _, err := range []error{
		disk.Remove(ctx, "docs/gone"), disk.Remove(ctx, "docs/kind"), fill(disk, "docs/kind", "file"), fill(disk, "docs/changed", "longer"),
		disk.Mkdir(ctx, ".cellgate/old/left"), fill(disk, ".cellgate/old/left/x", "x"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, repair := range []bool{false, true} {
		found := map[string]bool{}
		err := h.Gateway.Fsck(ctx, repair, func(f gateway.Finding) {
			if f.Repaired != repair || f.Fatal {
				t.Errorf("%+v", f)
			}
			found[f.Path] = true
		})
		if err != nil || !found["docs/gone"] || !found["docs/changed"] || !found["docs/kind"] || !found[".cellgate/old/left"] || found["docs/fine"] {
			t.Errorf("repair %t: found %v, %v", repair, found, err)
		}
	}
	sound(t, h)
}

func fill(b mounts.Backend, name, content string) error {
	_, err := b.Put(context.Background(), name, bytes.NewReader([]byte(content)), mounts.PutOptions{Size: int64(len(content))})
	return err
}

// A workspace on the root of a datasource is like any other, and the gateway's area is not in it.
func TestWholeDatasource(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	change(t, h, func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "all", Roots: []string{"nas:/"}, Quota: -1})
		return err
	})
	h.Grant("user:alice", "all:/", "read", "write")
	h.Tell(t, `
		alice: put /all/a 1 -> ok
		alice: mkdir /all/d -> ok
		alice: put /all/d/b 2 -> ok
		alice: prop /all/a colour red -> ok
		alice: ls /all -> a d/ two/
		alice: cp /all /docs/all -> ok
		alice: ls /docs/all -> a d/ two/
		alice: cat /docs/all/d/b -> 2
		alice: props /docs/all/a -> colour=red
		alice: cp /all /all/x -> ! invalid
		alice: rmtree /all -> ! permission denied
		alice: mv /all/d/b /all/b -> ok
		alice: lock /all/b L -> ok`)
	s := h.As("alice")
	props, err := s.PropsOf(t.Context(), gatewaytest.Path("/all"), []string{"a", "b"})
	if err != nil || len(props["a"]) != 1 {
		t.Errorf("%v, %v", props, err)
	}
	locks, err := s.LocksOf(t.Context(), gatewaytest.Path("/all"))
	if err != nil || len(locks["b"]) != 1 {
		t.Errorf("%v, %v", locks, err)
	}
	sound(t, h)
}

// A user who is deleted leaves nothing to a namesake: no lock, no quota.
func TestForgetUser(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: put /docs/a 12345 -> ok\nalice: lock /docs/a L -> ok")
	sub := h.As("alice").Subject()
	err := h.DB.Update(t.Context(), func(tx *store.Tx) error {
		if err := h.Gateway.ForgetUser(tx, sub.ID, sub.Login); err != nil {
			return err
		}
		return h.Identity.RemoveUser(tx, "alice")
	})
	if err != nil {
		t.Fatal(err)
	}
	h.AddUser(identity.Spec{Login: "alice", Group: "/staff"})
	h.Tell(t, "alice: ls / -> homes/")
	h.Grant("user:alice", "docs:/", "read", "write")
	if used, _, err := h.Quota.Usage(t.Context(), "user:alice"); err != nil || used != 0 {
		t.Errorf("the namesake uses %d bytes, %v", used, err)
	}
	h.Tell(t, "alice: put /docs/a 123 -> ok")
	if used, _, err := h.Quota.Usage(t.Context(), "user:alice"); err != nil || used != 3 {
		t.Errorf("after replacing a file that was nobody's: %d bytes, %v", used, err)
	}
	sound(t, h)
}

// A tree that is copied, or moved to another datasource, tells how far it is.
func TestProgress(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Tell(t, "alice: mkdir /pair/one/d -> ok\nalice: put /pair/one/d/a 123 -> ok\nalice: put /pair/one/d/b 45 -> ok")
	s := h.As("alice")
	for name, transfer := range map[string]func(context.Context, gateway.Path, gateway.Path, gateway.MoveOptions) (bool, error){"copy": s.Copy, "move": s.Rename} {
		var told [][2]int64
		opt := gateway.MoveOptions{Progress: func(files, bytes int64) { told = append(told, [2]int64{files, bytes}) }}
		from := gatewaytest.Path("/pair/one/d")
		if name == "move" {
			h.Tell(t, "alice: cp /pair/one/d /pair/one/m -> ok")
			from = gatewaytest.Path("/pair/one/m")
		}
		if _, err := transfer(t.Context(), from, gatewaytest.Path("/pair/two/"+name), opt); err != nil {
			t.Fatal(err)
		}
		if len(told) != 2 || told[0][0] != 1 || told[1] != [2]int64{2, 5} {
			t.Errorf("%s told %v", name, told)
		}
	}
}
