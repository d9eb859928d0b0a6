package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
	"cellgate/store/storetest"
)

func sshKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestLoginKey: a key signs in its owner and nobody else, until it, or the account, is taken away.
func TestLoginKey(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b, ctx := open(t, db), t.Context()
		b.create(t, "alice", "correct horse")
		b.create(t, "bob", "correct horse")
		key := sshKey(t)
		kept, err := b.AddSSHKey(ctx, "alice", string(ssh.MarshalAuthorizedKey(key)))
		if err != nil {
			t.Fatal(err)
		}
		if sub, err := b.LoginKey(ctx, attempt("ALICE", "", "192.0.2.1"), key); err != nil || sub.Login != "alice" || sub.Credential != "ssh-key" {
			t.Fatal(sub, err)
		}
		refused := func(what string, err error) {
			t.Helper()
			if err == nil || fault.KindOf(err) != fault.Unauthenticated {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err = b.LoginKey(ctx, attempt("bob", "", "192.0.2.1"), key)
		refused("another's key", err)
		_, err = b.LoginKey(ctx, attempt("alice", "", "192.0.2.1"), sshKey(t))
		refused("an unknown key", err)
		_, err = b.LoginCertified(ctx, attempt("nobody", "", "192.0.2.1"))
		refused("a certificate for nobody", err)
		if sub, err := b.LoginCertified(ctx, attempt("alice", "", "192.0.2.1")); err != nil || sub.Credential != "ssh-certificate" {
			t.Error(sub, err)
		}
		if err := b.UpdateUser(ctx, "alice", func(sp *Spec) { sp.Disabled = true }); err != nil {
			t.Fatal(err)
		}
		_, err = b.LoginKey(ctx, attempt("alice", "", "192.0.2.1"), key)
		refused("a disabled account", err)
		_, err = b.LoginCertified(ctx, attempt("alice", "", "192.0.2.1"))
		refused("a disabled account's certificate", err)
		if err := b.UpdateUser(ctx, "alice", func(sp *Spec) { sp.Disabled = false }); err != nil {
			t.Fatal(err)
		}
		if err := b.DeleteSSHKey(ctx, "alice", kept.Fingerprint); err != nil {
			t.Fatal(err)
		}
		_, err = b.LoginKey(ctx, attempt("alice", "", "192.0.2.1"), key)
		refused("a deleted key", err)
	})
}

// TestLoginS3: a signature signs in the owner of the access key; wrong ones use up attempts; expiry and deletion hold at once.
func TestLoginS3(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b, ctx := open(t, db), t.Context()
		b.create(t, "alice", "correct horse")
		pair := S3Pair{ID: "ALICEKEY", Secret: secret.New("alicesecret0123456789")}
		if _, err := b.AddS3Key(ctx, "alice", "", pair, b.at.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		login := func(id string, right bool) (*policy.Subject, error) {
			return b.LoginS3(ctx, attempt("", "", "192.0.2.1"), id, func(s secret.String) bool { return right && s.Reveal() == pair.Secret.Reveal() })
		}
		first, err := login("ALICEKEY", true)
		if err != nil || first.Login != "alice" || first.Credential != "s3-key" {
			t.Fatal(first, err)
		}
		if again, err := login("ALICEKEY", true); err != nil || again != first {
			t.Error("the same key yields another subject", err)
		}
		if _, err := login("NOKEY", true); fault.KindOf(err) != fault.NotExist {
			t.Errorf("an unknown key: %v", err)
		}
		b.at.Advance(2 * time.Hour)
		if _, err := login("ALICEKEY", true); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("an expired key: %v", err)
		}
		b.at.Advance(-2 * time.Hour)
		var throttled *Throttled
		for i := 0; !errors.As(err, &throttled); i++ {
			if i > 1000 {
				t.Fatal("wrong signatures are never throttled")
			}
			if _, err = login("ALICEKEY", false); fault.KindOf(err) != fault.Unauthenticated && !errors.As(err, &throttled) {
				t.Fatal(err)
			}
		}
		b.at.Advance(24 * time.Hour)
		if err := b.DeleteS3Key(ctx, "alice", "ALICEKEY"); err != nil {
			t.Fatal(err)
		}
		if _, err := login("ALICEKEY", true); fault.KindOf(err) != fault.NotExist {
			t.Errorf("a deleted key: %v", err)
		}
	})
}
