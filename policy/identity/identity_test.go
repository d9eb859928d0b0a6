package identity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/store"
	"cellgate/store/seal"
	"cellgate/store/storetest"
)

var tiny = HashParams{Memory: 8, Passes: 1, Threads: 1}

type box struct {
	*Service
	db     *store.DB
	engine *policy.Engine
	at     *clock.Clock
}

func open(t testing.TB, db *store.DB) box {
	t.Helper()
	e := policy.New(policy.Config{DB: db})
	if err := e.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := clock.At(time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC))
	s, err := New(t.Context(), Config{DB: db, Policy: e, Keys: keys, Clock: at, Hash: tiny, Poll: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); e.Close() })
	return box{s, db, e, at}
}

func (b box) create(t testing.TB, login, password string) User {
	t.Helper()
	u, err := b.CreateUser(t.Context(), Spec{Login: login, Password: secret.New(password), Group: "/staff/it", Roles: []string{"editors"}})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (b box) update(t testing.TB, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := b.db.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func attempt(login, password, addr string) Attempt {
	return Attempt{Protocol: "webdav", Login: login, Password: secret.New(password), Addr: netip.MustParseAddr(addr)}
}

func (b box) login(t testing.TB, login, password, addr string) (*policy.Subject, fault.Kind) {
	t.Helper()
	sub, err := b.Login(t.Context(), attempt(login, password, addr))
	if err != nil {
		return nil, fault.KindOf(err)
	}
	return sub, 255
}

const fine fault.Kind = 255

func TestLogin(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db)
		b.update(t, func(tx *store.Tx) error {
			_, err := b.PutRole(tx, Role{Name: "all-staff", Profiles: []policy.Profile{policy.Standard}})
			return err
		})
		b.create(t, "Alice", "correct horse")
		sub, kind := b.login(t, "ALICE", "correct horse", "192.0.2.1")
		if kind != fine {
			t.Fatal(kind)
		}
		if want := "[user:alice group:/ group:/staff group:/staff/it role:all-staff role:editors profile:standard everyone]"; fmt.Sprint(sub.Principals) != want {
			t.Errorf("principals %v, want %s", sub.Principals, want)
		}
		hashes := b.hasher.count.Load()
		for range 10 {
			if again, _ := b.login(t, "alice", "correct horse", "192.0.2.1"); again != sub {
				t.Fatal("the same credential yields another subject")
			}
		}
		if n := b.hasher.count.Load() - hashes; n > 0 {
			t.Errorf("%d passwords hashed for a verified credential", n)
		}
		// One that fails costs a hash, whether or not there is such a user: time tells nothing.
		for _, login := range []string{"alice", "nobody", "no such/login", ""} {
			hashes := b.hasher.count.Load()
			if _, kind := b.login(t, login, "wrong", "192.0.2.1"); kind != fault.Unauthenticated {
				t.Errorf("%q: %v", login, kind)
			}
			if n := b.hasher.count.Load() - hashes; n != 1 {
				t.Errorf("%q: %d hashes", login, n)
			}
		}

		// A change of somebody else's account costs a look, no hash; an own change counts at once.
		b.create(t, "bob", "pw of bob")
		hashes = b.hasher.count.Load()
		if next, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fine || next.Epoch != b.Epoch() || b.hasher.count.Load() != hashes {
			t.Error("a change elsewhere costs a hash or a login")
		}
		if err := b.SetPassword(t.Context(), "alice", secret.New("battery staple")); err != nil {
			t.Fatal(err)
		}
		if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error("the old password: ", kind)
		}
		sub, kind = b.login(t, "alice", "battery staple", "192.0.2.1")
		if kind != fine {
			t.Fatal(kind)
		}
		if same, err := b.Refresh(t.Context(), sub); same != sub || err != nil {
			t.Error("Refresh reads anew though nothing changed", err)
		}
		if err := b.UpdateUser(t.Context(), "alice", func(sp *Spec) { sp.Group, sp.Roles = "/", nil }); err != nil {
			t.Fatal(err)
		}
		if next, err := b.Refresh(t.Context(), sub); err != nil || next.Has("group:/staff") || next.Has("role:editors") || !next.Has("role:all-staff") || next.Credential != "password" {
			t.Errorf("after the change: %+v, %v", next, err)
		}
		if err := b.UpdateUser(t.Context(), "alice", func(sp *Spec) { sp.Disabled = true }); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Refresh(t.Context(), sub); fault.KindOf(err) != fault.Unauthenticated {
			t.Error("a disabled user is refreshed:", err)
		}
		if _, kind := b.login(t, "alice", "battery staple", "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error("a disabled user signs in:", kind)
		}
	})
}

// TestI08Namesake deletes alice and makes another: nothing is inherited.
func TestI08Namesake(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db)
		first := b.create(t, "alice", "correct horse")
		place := policy.Place{Datasource: "disk", Path: "a"}
		b.update(t, func(tx *store.Tx) error {
			_, err := b.engine.PutPolicy(tx, policy.Policy{Policy: guard.Policy{Name: "p", Kind: guard.ACL, Rules: []guard.Rule{
				{Effect: "allow", Principals: guard.List{"user:alice"}, Actions: guard.List{"*"}}}}})
			return errors.Join(err, b.engine.PutGrant(tx, policy.Grant{To: "user:alice", On: place, Rights: policy.Read}))
		})
		_, app, err := b.AddAppPassword(t.Context(), "alice", "laptop", time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := b.AddS3Key(t.Context(), "alice", "", S3Pair{}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		old, kind := b.login(t, "alice", "correct horse", "192.0.2.1")
		if kind != fine {
			t.Fatal(kind)
		}
		if err := b.DeleteUser(t.Context(), "ALICE"); err != nil {
			t.Fatal(err)
		}
		if b.engine.Snapshot().Bind(old, nil).Decide(policy.List, place, nil).Allowed {
			t.Error("the grant outlives the user")
		}
		second := b.create(t, "alice", "correct horse")
		if second.ID == first.ID {
			t.Error("the id is used again")
		}
		if _, err := b.Refresh(t.Context(), old); fault.KindOf(err) != fault.Unauthenticated {
			t.Error("the old session lives on in the namesake:", err)
		}
		if _, kind := b.login(t, "alice", app.Reveal(), "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error("the old app password works:", kind)
		}
		sub, kind := b.login(t, "alice", "correct horse", "192.0.2.1")
		if kind != fine || sub.ID != second.ID {
			t.Error("the namesake:", kind)
		}
		if b.engine.Snapshot().Bind(sub, nil).Decide(policy.List, place, nil).Allowed {
			t.Error("the namesake inherits a grant")
		}
		if ps, err := b.engine.Policies(t.Context()); err != nil || len(ps[0].Rules) != 0 {
			t.Errorf("the namesake inherits a rule: %+v %v", ps, err)
		}
		if keys, err := b.S3Keys(t.Context(), "alice"); err != nil || len(keys) != 0 {
			t.Errorf("the namesake inherits %v, %v", keys, err)
		}
		if _, err := b.AddS3Key(t.Context(), "alice", "", pair, time.Time{}); err != nil {
			t.Errorf("the old access key is not free: %v", err)
		}
	})
}

// TestKeys goes through app passwords, SSH keys and S3 keys.
func TestKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db)
		b.create(t, "alice", "correct horse")
		b.create(t, "bob", "pw of bob")
		a, pw, err := b.AddAppPassword(t.Context(), "alice", "phone", b.at.Now().Add(time.Hour), []string{"webdav", "sftp"})
		if err != nil {
			t.Fatal(err)
		}
		sub, kind := b.login(t, "alice", pw.Reveal(), "192.0.2.1")
		if kind != fine || sub.Credential != "app" {
			t.Fatal(kind)
		}
		if again, _ := b.login(t, "alice", pw.Reveal(), "192.0.2.1"); again != sub {
			t.Error("an app password is not remembered")
		}
		for what, at := range map[string]Attempt{"another protocol": {Protocol: "s3", Login: "alice", Password: pw}, "another user": {Protocol: "webdav", Login: "bob", Password: pw}} {
			if _, err := b.Login(t.Context(), at); fault.KindOf(err) != fault.Unauthenticated {
				t.Errorf("%s: %v", what, err)
			}
		}
		list, err := b.AppPasswords(t.Context(), "alice")
		if err != nil || len(list) != 1 || list[0].ID != a.ID || strings.Contains(fmt.Sprintf("%+v", list), pw.Reveal()) {
			t.Errorf("%+v, %v", list, err)
		}
		b.at.Advance(time.Hour)
		if _, kind := b.login(t, "alice", pw.Reveal(), "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error("an expired app password:", kind)
		}
		a, pw, err = b.AddAppPassword(t.Context(), "alice", "", time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, kind := b.login(t, "alice", pw.Reveal(), "192.0.2.1"); kind != fine {
			t.Fatal(kind)
		}
		if err := b.DeleteAppPassword(t.Context(), "bob", a.ID); fault.KindOf(err) != fault.NotExist {
			t.Error("bob revokes a password of alice:", err)
		}
		if err := b.DeleteAppPassword(t.Context(), "alice", a.ID); err != nil {
			t.Fatal(err)
		}
		if _, kind := b.login(t, "alice", pw.Reveal(), "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error("a revoked app password:", kind)
		}

		const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS alice@laptop"
		k, err := b.AddSSHKey(t.Context(), "alice", key)
		if err != nil || k.Label != "alice@laptop" || !strings.HasPrefix(k.Fingerprint, "SHA256:") {
			t.Fatalf("%+v, %v", k, err)
		}
		if _, err := b.AddSSHKey(t.Context(), "bob", key); fault.KindOf(err) != fault.Exist {
			t.Error("two users with one key:", err)
		}
		for _, bad := range []string{"", "ssh-ed25519 xyz", `command="rm" ` + key, key + "\n" + key} {
			if _, err := b.AddSSHKey(t.Context(), "alice", bad); fault.KindOf(err) != fault.Invalid {
				t.Errorf("%q: %v", bad, err)
			}
		}
		if err := b.DeleteSSHKey(t.Context(), "alice", k.Fingerprint); err != nil {
			t.Fatal(err)
		}

		pair := S3Pair{"ALICEKEY", secret.New("alicesecret0123456789")}
		spec := Spec{Login: "alice", Group: "/staff/it", Roles: []string{"editors"}, SSHKeys: []string{key}, S3Keys: []S3Pair{pair}}
		put := func() (changed bool) {
			b.update(t, func(tx *store.Tx) (err error) { changed, err = b.PutUser(tx, spec); return err })
			return changed
		}
		if !put() || put() {
			t.Error("declared keys: changed the second time or not the first")
		}
		var sealed []byte
		if err := db.QueryRow(t.Context(), `SELECT secret FROM s3_keys WHERE id = 'ALICEKEY'`).Scan(&sealed); err != nil || strings.Contains(string(sealed), "alicesecret") {
			t.Error("the secret is not sealed", err)
		}
		spec.S3Keys[0].Secret = secret.New("another-secret-0123")
		spec.SSHKeys = []string{}
		if !put() || put() {
			t.Error("another secret: changed the second time or not the first")
		}
		if keys, err := b.SSHKeys(t.Context(), "alice"); err != nil || len(keys) != 0 {
			t.Errorf("%v, %v", keys, err)
		}
	})
}

// TestPutUser declares users: the same again changes nothing, nonsense is refused with every problem.
func TestPutUser(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db)
		put := func(sp Spec) (changed bool) {
			if err := b.Prepare(t.Context(), &sp); err != nil {
				t.Fatal(err)
			}
			b.update(t, func(tx *store.Tx) (err error) { changed, err = b.PutUser(tx, sp); return err })
			return changed
		}
		sp := Spec{Login: "alice", Password: secret.New("secret"), Name: "Alice", Group: "/a/b", Roles: []string{"y", "x", "x"}}
		if !put(sp) || put(sp) {
			t.Error("the same user again changes something, or the first time nothing")
		}
		sp.Password = secret.String{}
		if put(sp) {
			t.Error("no password changes the password")
		}
		hash, err := bcrypt.GenerateFromPassword([]byte("imported"), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		sp.PasswordHash = string(hash)
		if !put(sp) || put(sp) {
			t.Error("an imported hash")
		}
		if _, kind := b.login(t, "alice", "imported", "192.0.2.1"); kind != fine {
			t.Error("the imported password:", kind)
		}
		// It is hashed anew with our parameters at the first login, and stays the password.
		if err := db.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, now, err := userRow(committed{t.Context(), db}, "alice"); err != nil || !strings.HasPrefix(now, "$argon2id$") {
			t.Error("the imported hash was not renewed:", now, err)
		}
		if u, err := b.User(t.Context(), "alice"); err != nil || strings.Join(u.Roles, " ") != "x y" || u.Profile != policy.Standard || !u.HasPassword {
			t.Errorf("%+v, %v", u, err)
		}
		b.create(t, "bob", "pw")
		if us, err := b.Users(t.Context(), UserFilter{Group: "/a"}); err != nil || len(us) != 1 || us[0].Login != "alice" {
			t.Errorf("%+v, %v", us, err)
		}
		if us, err := b.Users(t.Context(), UserFilter{After: "alice", Limit: 5}); err != nil || len(us) != 1 || us[0].Login != "bob" {
			t.Errorf("%+v, %v", us, err)
		}
		if _, err := b.CreateUser(t.Context(), Spec{Login: "ALICE"}); fault.KindOf(err) != fault.Exist {
			t.Error("created twice:", err)
		}
		err = CheckSpec(Spec{Login: "a/b", Group: "staff", Roles: []string{"A B"}, Password: secret.New("x"), PasswordHash: "$argon2id$v=19$m=99999999,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
			Name: "a\nb", SSHKeys: []string{"x"}, S3Keys: []S3Pair{{ID: "a/b"}}})
		for _, want := range []string{"a/b", "staff", "A B", "not both", "m=99999999", "name", "authorized_keys", "access key"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not name %s", err, want)
			}
		}
		for what, c := range map[string]struct {
			fn   func(tx *store.Tx) error
			want fault.Kind
		}{
			"a group with users": {func(tx *store.Tx) error { return b.RemoveGroup(tx, "/a") }, fault.NotEmpty},
			"the root":           {func(tx *store.Tx) error { return b.RemoveGroup(tx, "/") }, fault.Invalid},
			"no role":            {func(tx *store.Tx) error { return b.RemoveRole(tx, "none") }, fault.NotExist},
			"no user":            {func(tx *store.Tx) error { return b.RemoveUser(tx, "none") }, fault.NotExist},
		} {
			if err := db.Update(t.Context(), c.fn); fault.KindOf(err) != c.want {
				t.Errorf("removing %s: %v", what, err)
			}
		}
		b.update(t, func(tx *store.Tx) error { return b.RemoveRole(tx, "x") })
		if sub, err := b.Subject(t.Context(), "alice"); err != nil || sub.Has("role:x") || !sub.Has("role:y") {
			t.Errorf("%+v, %v", sub, err)
		}
		if gs, err := b.Groups(t.Context()); err != nil || fmt.Sprint(gs) != "[{/ } {/a } {/a/b } {/staff } {/staff/it }]" {
			t.Errorf("%v, %v", gs, err)
		}
	})
}

// committed is the store as a querier.
type committed struct {
	ctx context.Context
	db  *store.DB
}

func (c committed) Query(q string, args ...any) (*sql.Rows, error) {
	return c.db.Query(c.ctx, q, args...)
}
func (c committed) QueryRow(q string, args ...any) *sql.Row { return c.db.QueryRow(c.ctx, q, args...) }

// TestLoginPolicies narrows who may sign in, by whatever is known of the attempt; the answer tells nothing.
func TestLoginPolicies(t *testing.T) {
	b := open(t, storetest.Open(t))
	b.create(t, "alice", "correct horse")
	b.update(t, func(tx *store.Tx) error {
		_, err := b.engine.PutPolicy(tx, policy.Policy{Policy: guard.Policy{Name: "inside", Kind: guard.Login, Rules: []guard.Rule{
			{Effect: "allow", Principals: guard.List{"everyone"}, Actions: guard.List{"*"}, When: guard.When{IP: guard.List{"private"}}},
			{Effect: "deny", Principals: guard.List{"everyone"}, Actions: guard.List{"sftp"}}}}})
		return err
	})
	if _, kind := b.login(t, "alice", "correct horse", "10.0.0.1"); kind != fine {
		t.Error("inside:", kind)
	}
	if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fault.Unauthenticated {
		t.Error("outside, with a remembered password:", kind)
	}
	a := attempt("alice", "correct horse", "10.0.0.1")
	a.Protocol = "sftp"
	if _, err := b.Login(t.Context(), a); fault.KindOf(err) != fault.Unauthenticated {
		t.Error("by sftp:", err)
	}
}

// TestOtherProcess disables a user elsewhere.
func TestOtherProcess(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		here, there := open(t, db), open(t, db)
		here.create(t, "alice", "correct horse")
		sub, kind := there.login(t, "alice", "correct horse", "192.0.2.1")
		if kind != fine {
			t.Fatal(kind)
		}
		if err := here.UpdateUser(t.Context(), "alice", func(sp *Spec) { sp.Disabled = true }); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := there.Refresh(t.Context(), sub); err != nil {
				break
			} else if time.Now().After(end) {
				t.Fatal("not noticed")
			}
		}
		if _, kind := there.login(t, "alice", "correct horse", "192.0.2.1"); kind != fault.Unauthenticated {
			t.Error(kind)
		}
	})
}

// TestTogether signs in from many connections at once: one hash serves them all.
func TestTogether(t *testing.T) {
	b := open(t, storetest.Open(t))
	b.create(t, "alice", "correct horse")
	before := b.hasher.count.Load()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fine {
				t.Error(kind)
			}
		})
	}
	wg.Wait()
	if n := b.hasher.count.Load() - before; n > 10 {
		t.Errorf("%d hashes for 50 connections", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Login(ctx, attempt("alice", "other", "192.0.2.1")); fault.KindOf(err) != fault.Canceled && fault.KindOf(err) != fault.Unauthenticated {
		t.Error(err)
	}
}

func BenchmarkLoginVerified(b *testing.B) {
	x := open(b, storetest.Open(b))
	x.create(b, "alice", "correct horse")
	a := attempt("alice", "correct horse", "192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Login(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	h, err := newHasher(HashParams{}, 0)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := h.hash(b.Context(), secret.New("correct horse")); err != nil {
			b.Fatal(err)
		}
	}
}
