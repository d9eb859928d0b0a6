package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// from is as, with requests that come from another address of this machine.
func (b *box) from(user, pass, addr string) *client {
	c := b.as(user)
	c.pass = pass
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	tr := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 64}
	b.t.Cleanup(tr.CloseIdleConnections)
	c.c = &http.Client{Transport: tr, Timeout: time.Minute}
	return c
}

// R03: ten thousand wrong passwords for one user, in all spellings of the login, use up one budget: few are evaluated, the rest are told to
// wait, and the owner gets in from elsewhere with the right one. Passwords sprayed over many users from one address end the same way.
func TestR03Guessing(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	total := 10_000
	if testing.Short() {
		total = 2_000
	}
	base := b.forget()
	spell := []string{"alice", "ALICE", "Alice", " alice", "alice ", "aLiCe", "ａｌｉｃｅ", "alice\t"}
	var evaluated, told, other atomic.Int32
	guess := func(addr string, n int, login func(i int) string) {
		c := b.from("", "", addr)
		each(16, func(k int) {
			for i := k; i < n; i += 16 {
				mine := *c
				mine.user, mine.pass = login(i), fmt.Sprint("wrong", i)
				r, err := mine.try(context.Background(), "PROPFIND", "/docs", nil, "Depth: 0")
				switch {
				case err != nil:
					t.Error(err)
					return
				case r.status == 401:
					evaluated.Add(1)
				case r.status == 429:
					told.Add(1)
					if r.header.Get("Retry-After") == "" {
						t.Error("429 without Retry-After")
					}
				default:
					other.Add(1)
				}
			}
		})
	}
	began := time.Now()
	guess("127.0.0.2", total, func(i int) string { return spell[i%len(spell)] })
	e := evaluated.Load()
	t.Logf("one address, one user: %d evaluated, %d told to wait, in %v", e, told.Load(), time.Since(began).Round(time.Millisecond))
	// A spelling that is no spelling of alice has a budget of its own, so the bound is that of the address.
	if e > 150+int32(time.Since(began)/(5*time.Second)) || told.Load() < int32(total)-200 {
		t.Errorf("%d of %d wrong passwords were evaluated", e, total)
	}
	if r := b.from("alice", "wrong-again", "127.0.0.2").do("PROPFIND", "/docs", "", "Depth: 0"); r.status != 429 {
		t.Errorf("another wrong password: %d", r.status)
	}
	if r := b.from("alice", password("alice"), "127.0.0.3").do("PROPFIND", "/docs", "", "Depth: 0"); r.status != 207 {
		t.Errorf("the owner from elsewhere: %d %s", r.status, r.body)
	}
	if r := b.from("bob", password("bob"), "127.0.0.3").do("PROPFIND", "/docs", "", "Depth: 0"); r.status != 207 {
		t.Errorf("somebody else from elsewhere: %d %s", r.status, r.body)
	}

	if testing.Short() {
		return
	}
	// Spraying: a new login with each attempt.
	evaluated.Store(0)
	told.Store(0)
	guess("127.0.0.4", total/2, func(i int) string { return fmt.Sprint("user", i) })
	t.Logf("one address, many users: %d evaluated, %d told to wait", evaluated.Load(), told.Load())
	if evaluated.Load() > 150 {
		t.Errorf("%d of %d sprayed passwords were evaluated", evaluated.Load(), total/2)
	}
	// Many addresses at one login share the login's budget; who was there before still gets in.
	evaluated.Store(0)
	told.Store(0)
	for i := range 30 { // each of them alone stays within what is allowed
		guess(fmt.Sprintf("127.0.1.%d", i+1), 10, func(int) string { return "alice" })
	}
	t.Logf("30 addresses, one user: %d evaluated, %d told to wait", evaluated.Load(), told.Load())
	if evaluated.Load() > 150 {
		t.Errorf("%d of 300 wrong passwords from 30 addresses were evaluated", evaluated.Load())
	}
	if r := b.from("alice", password("alice"), "127.0.0.3").do("PROPFIND", "/docs", "", "Depth: 0"); r.status != 207 {
		t.Errorf("the owner where she has been before: %d", r.status)
	}
	if other.Load() > 0 {
		t.Errorf("%d answers were neither 401 nor 429", other.Load())
	}
	b.grew(base, 384<<20) // two hashes at a time, of 64 MiB each, and what the collector has not yet taken
	if log := read(t, b.log); strings.Contains(log, "wrong17") {
		t.Error("the log holds passwords that were tried")
	}
}
