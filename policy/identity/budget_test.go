package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/store/storetest"
)

var protocols = []string{"webdav", "sftp", "s3", "rest", "fuse"}

// aliases are spellings of one login.
var aliases = []string{"alice", "Alice", "ALICE", "alice ", " alice", "ａｌｉｃｅ", "ＡＬＩＣＥ", "aLiCe\t", "alice\u00a0", "𝐚lice"}

// TestR03Budget tries 10,000 wrong passwords on one user and 10,000 sprayed over users, over all protocols and spellings. One budget holds for all
// of them; the owners sign in from elsewhere all the same.
func TestR03Budget(t *testing.T) {
	b := open(t, storetest.Open(t))
	b.create(t, "alice", "correct horse")
	b.create(t, "bob", "pw of bob")
	_, app, err := b.AddAppPassword(t.Context(), "alice", "", time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	evaluated := func(fn func(i int) Attempt) (n int64) {
		before := b.hasher.count.Load()
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := w; i < 10000; i += 4 {
					_, err := b.Login(t.Context(), fn(i))
					var wait *Throttled
					switch k := fault.KindOf(err); {
					case k == fault.Busy && errors.As(err, &wait) && wait.RetryAfter > 0, k == fault.Unauthenticated:
					default:
						t.Errorf("attempt %d: %v", i, err)
					}
				}
			})
		}
		wg.Wait()
		return b.hasher.count.Load() - before
	}

	t.Run("one user", func(t *testing.T) {
		n := evaluated(func(i int) Attempt {
			return Attempt{Protocol: protocols[i%len(protocols)], Login: aliases[i%len(aliases)], Password: secret.New(fmt.Sprint(i)), Addr: netip.MustParseAddr("198.51.100.1")}
		})
		if n > 20 {
			t.Errorf("%d passwords were evaluated", n)
		}
		if _, kind := b.login(t, "alice", "correct horse", "198.51.100.1"); kind != fault.Busy {
			t.Error("right after 10,000 wrong ones from the same address:", kind)
		}
		if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fine {
			t.Error("the victim from elsewhere:", kind)
		}
		if _, kind := b.login(t, "alice", app.Reveal(), "198.51.100.1"); kind != fine {
			t.Error("the victim's app password from the attacker's address:", kind)
		}
		if _, kind := b.login(t, "bob", "pw of bob", "198.51.100.1"); kind != fine {
			t.Error("somebody else from the attacker's address:", kind)
		}
	})

	t.Run("sprayed", func(t *testing.T) {
		n := evaluated(func(i int) Attempt {
			login := []string{fmt.Sprintf("user%d", i), "bob", "alice"}[i%3]
			return Attempt{Protocol: protocols[i%len(protocols)], Login: login, Password: secret.New("Spring2027"), Addr: netip.MustParseAddr("198.51.100.2")}
		})
		if n > 100 {
			t.Errorf("%d passwords were evaluated", n)
		}
		if _, kind := b.login(t, "bob", "pw of bob", "192.0.2.2"); kind != fine {
			t.Error("a victim from elsewhere:", kind)
		}
	})

	t.Run("one /64", func(t *testing.T) {
		n := evaluated(func(i int) Attempt {
			a := netip.MustParseAddr("2001:db8:1:2::").As16()
			a[8], a[15], a[14] = byte(i*7), byte(i), byte(i>>8)
			return Attempt{Protocol: "sftp", Login: fmt.Sprintf("v6user%d", i%5000), Password: secret.New(fmt.Sprint(i)), Addr: netip.AddrFrom16(a)}
		})
		if n > 100 {
			t.Errorf("%d passwords were evaluated", n)
		}
		mapped := netip.MustParseAddr("::ffff:192.0.2.9")
		if network(mapped) != netip.MustParseAddr("192.0.2.9") {
			t.Error("IPv4 in IPv6 clothes is another network")
		}
	})

	t.Run("many networks, one user", func(t *testing.T) {
		n := evaluated(func(i int) Attempt {
			return Attempt{Protocol: "rest", Login: aliases[i%len(aliases)], Password: secret.New(fmt.Sprint(i)), Addr: netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)})}
		})
		if n > 110 {
			t.Errorf("%d passwords were evaluated", n)
		}
		if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fine {
			t.Error("the victim from where it has been before:", kind)
		}
		if _, kind := b.login(t, "alice", app.Reveal(), "192.0.2.77"); kind != fine {
			t.Error("the victim's app password from anywhere:", kind)
		}
		if _, kind := b.login(t, "alice", "correct horse", "192.0.2.88"); kind != fault.Busy {
			t.Error("a right password from a new network under attack is told from a wrong one:", kind)
		}
		b.at.Advance(time.Minute)
		if _, kind := b.login(t, "alice", "correct horse", "192.0.2.88"); kind != fine {
			t.Error("after a minute of rest:", kind)
		}
	})
}

// TestR03Memory floods the budget with a million logins and networks.
func TestR03Memory(t *testing.T) {
	b := newBudget(Budget{})
	victim := pair{"alice", netip.MustParseAddr("198.51.100.1")}
	now := time.Unix(1e9, 0)
	for range 20 {
		b.take(victim, now)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 1_000_000 {
		b.take(pair{fmt.Sprint("u", i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, now)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("the budget grew by %d bytes", grown)
	}
	if b.wait(victim, now) == 0 {
		t.Error("a flood pushes an empty bucket out")
	}
}

// TestRefill gives attempts back with time and with success.
func TestRefill(t *testing.T) {
	b := newBudget(Budget{Pair: Bucket{Burst: 3, Refill: time.Minute}})
	p, now := pair{"alice", netip.MustParseAddr("198.51.100.1")}, time.Unix(1e9, 0)
	for i := range 100 {
		if w := b.take(p, now); w > 0 {
			t.Fatalf("the owner waits %s after %d right passwords", w, i)
		}
		b.refund(p, now, true)
	}
	for range 3 {
		b.take(p, now)
	}
	if w := b.take(p, now); w != time.Minute {
		t.Errorf("waits %s, want a minute", w)
	}
	if w := b.take(p, now.Add(time.Minute)); w > 0 {
		t.Errorf("still waits %s after a minute", w)
	}
	if w := b.take(p, now.Add(time.Minute)); w != time.Minute {
		t.Errorf("waits %s, want another minute", w)
	}
	if w := b.take(p, now.Add(-time.Hour)); w > 2*time.Hour {
		t.Errorf("a clock that goes back locks out for %s", w)
	}
}

// TestForgive lets somebody in again whose attempts were used up, at every address, and nobody else.
func TestForgive(t *testing.T) {
	b := open(t, storetest.Open(t))
	b.create(t, "alice", "correct horse")
	b.create(t, "bob", "pw of bob")
	for i := range 120 {
		b.login(t, "alice", fmt.Sprint(i), fmt.Sprintf("198.51.100.%d", i))
	}
	for i := range 30 {
		b.login(t, "alice", fmt.Sprint(i), "192.0.2.1")
		b.login(t, "bob", fmt.Sprint(i), "192.0.2.1")
	}
	if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fault.Busy {
		t.Fatal("before:", kind)
	}
	b.Forgive("Alice ")
	if _, kind := b.login(t, "alice", "correct horse", "192.0.2.1"); kind != fine {
		t.Error("forgiven:", kind)
	}
	if _, kind := b.login(t, "alice", "correct horse", "192.0.2.7"); kind != fine {
		t.Error("forgiven, from elsewhere:", kind)
	}
	if _, kind := b.login(t, "bob", "pw of bob", "192.0.2.1"); kind != fault.Busy {
		t.Error("somebody else:", kind)
	}
}
