package e2e

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
)

// W01: locks bind everybody, by every path to the node, over a restart; only their owner gives them up; they are bounded in number and time.
func TestW01Locks(t *testing.T) {
	t.Parallel()
	b := start(t, common+`
  - slug: same
    roots: ["disk:/docs"]
    grants: [{to: "user:bob", rights: [read, write]}]
`)
	alice, bob, carol := b.as("alice"), b.as("bob"), b.as("carol")
	alice.want("PUT", "/docs/f", "f", 201)
	alice.want("MKCOL", "/docs/d", "", 201)
	alice.want("PUT", "/docs/d/in", "in", 201)
	body := `<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>`
	token := alice.lock("/docs/f")
	tree := strings.Trim(alice.want("LOCK", "/docs/d", body, 200, "Depth: infinity", "Timeout: Infinite, Second-4100000000").header.Get("Lock-Token"), "<>")

	bound := func() {
		t.Helper()
		for _, path := range []string{"/docs/f", "/docs/d/in", "/same/f", "/same/d/in"} {
			bob.want("PUT", path, "x", 423)
			bob.want("DELETE", path, "", 423)
			bob.want("PROPPATCH", path, `<propertyupdate xmlns="DAV:"><set><prop><x xmlns="urn:x"/></prop></set></propertyupdate>`, 423)
			bob.want("MOVE", path, "", 423, bob.to("/docs/elsewhere"))
			bob.want("LOCK", path, body, 423)
		}
		bob.want("PUT", "/same/d/new", "x", 423)
		bob.want("DELETE", "/same/d", "", 423)
		for _, tok := range []string{token, tree} {
			for _, path := range []string{"/docs/f", "/docs/d", "/same/f", "/same/d"} {
				if r := bob.do("UNLOCK", path, "", "Lock-Token: <"+tok+">"); r.ok() {
					t.Errorf("bob unlocks %s: %d", path, r.status)
				}
			}
			if r := bob.do("PUT", "/docs/f", "x", "If: (<"+tok+">)"); r.ok() {
				t.Errorf("bob writes with alice's token: %d", r.status)
			}
			if r := bob.do("LOCK", "/docs/f", "", "If: (<"+tok+">)"); r.ok() {
				t.Errorf("bob refreshes alice's lock: %d", r.status)
			}
		}
		bob.want("GET", "/same/f", "", 200)
	}
	bound()
	carol.want("LOCK", "/docs/d2", body, 403)
	carol.want("LOCK", "/docs/f", body, 403)
	b.kill()
	b.serve()
	bound()
	b.stop()
	b.serve()
	bound()
	alice.want("PUT", "/docs/f", "by its owner", 204, "If: (<"+token+">)")
	r := alice.want("PROPFIND", "/docs/d", `<propfind xmlns="DAV:"><prop><lockdiscovery/></prop></propfind>`, 207, "Depth: 0")
	var seconds int
	_, rest, _ := strings.Cut(r.body, "Second-")
	fmt.Sscan(strings.SplitN(rest, "<", 2)[0], &seconds)
	if seconds <= 0 || seconds > 86400 {
		t.Errorf("an infinite lock lasts %d seconds: %s", seconds, r.body)
	}
	alice.want("UNLOCK", "/docs/f", "", 204, "Lock-Token: <"+token+">")
	alice.want("UNLOCK", "/docs/d", "", 204, "Lock-Token: <"+tree+">")
	bob.want("PUT", "/same/f", "free", 204)

	// One user cannot fill the memory with locks.
	if testing.Short() {
		return
	}
	const places = 400
	alice.want("MKCOL", "/docs/locks", "", 201)
	for i := range places {
		write(t, b.disk(fmt.Sprintf("locks/%d", i)), "")
	}
	base := b.forget()
	var refused atomic.Bool
	shared := strings.Replace(body, "exclusive", "shared", 1)
	for i := 0; i < 20_000 && !refused.Load(); i += 16 {
		each(16, func(k int) {
			r := alice.do("LOCK", fmt.Sprintf("/docs/locks/%d", (i+k)%places), shared, "Timeout: Second-3600", "Depth: 0")
			if r.status == 503 || r.status == 507 || r.status == 429 {
				refused.Store(true)
			} else if !r.ok() {
				t.Errorf("lock %d: %d %s", i+k, r.status, r.body)
			}
		})
	}
	if !refused.Load() {
		t.Error("20,000 locks of one user were granted")
	}
	b.grew(base, 64<<20)
	bob.want("PUT", "/docs/other", "x", 201)
	token = bob.lock("/docs/other") // the locks of one user do not use up those of another
	bob.want("UNLOCK", "/docs/other", "", 204, "Lock-Token: <"+token+">")
}
