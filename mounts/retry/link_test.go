package retry_test

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"cellgate/mounts"
	"cellgate/mounts/breaker"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/retry"
	"cellgate/mounts/servertest"
	"cellgate/mounts/sftp"
	"cellgate/mounts/throttle"
)

// TestLink: a download through the whole chain gets through a link that breaks every few megabytes.
func TestLink(t *testing.T) {
	key := servertest.NewSFTPKey(t, "")
	s := servertest.SFTP(t, servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, Root: servertest.Dir(t)})
	link := netfault.New(t, s.Addr)
	far := *s
	far.Addr, far.Host, far.Port = link.Addr, link.Host, link.Port
	low, err := sftp.Driver().Open(t.Context(), servertest.SFTPConfig(&far, key))
	if err != nil {
		t.Fatal(err)
	}
	b := throttle.New(breaker.New(retry.New(low, retry.Config{Base: 10 * time.Millisecond}), breaker.Config{}), throttle.Config{Calls: 20})
	defer b.Close()
	content := make([]byte, 32<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	if _, err := mounts.WriteFile(t.Context(), b, "f", content); err != nil {
		t.Fatal(err)
	}
	link.Delay(5 * time.Millisecond)
	link.CutEvery(12 << 20)
	r, err := b.Open(t.Context(), "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil || n != int64(len(content)) || [32]byte(sum.Sum(nil)) != sha256.Sum256(content) {
		t.Errorf("%d bytes, %v", n, err)
	}
	t.Logf("%d connections, %d bytes down", link.Connections(), link.Down())
	if link.Connections() < 3 {
		t.Error("the link was never cut")
	}
}
