package identity

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"cellgate/policy"
)

// Budget bounds wrong passwords, over all protocols and spellings of a login. Each bucket holds Burst attempts and gets one back every Refill.
//
// Attempts of one network (an IPv4 address, an IPv6 /64) at one login use up the pair's bucket; so an attacker never keeps the owner from signing
// in elsewhere. All logins tried from one network use up the network's; all networks that try one login use up the login's. The latter two do not
// bind where the login has succeeded from the network before. A right password gives its attempt back. While a bucket is empty nothing is
// evaluated: right and wrong passwords alike are Busy, except app passwords, which are too long to guess.
type Budget struct {
	Pair    Bucket // default: 20, one more a minute
	Network Bucket // default: 100, one more every 10 seconds
	Login   Bucket // default: 100, one more every 30 seconds
}

// Bucket is one allowance; zero fields have defaults.
type Bucket struct {
	Burst  int
	Refill time.Duration
}

// Throttled is the cause of a Busy login.
type Throttled struct{ RetryAfter time.Duration }

// Error says when to come back.
func (t *Throttled) Error() string {
	return fmt.Sprintf("too many attempts, try again in %s", t.RetryAfter.Round(time.Second))
}

func (b Bucket) or(burst int, refill time.Duration) Bucket {
	if b.Burst <= 0 {
		b.Burst = burst
	}
	if b.Refill <= 0 {
		b.Refill = refill
	}
	return b
}

// network is what one attacker is taken to own: an IPv4 address or an IPv6 /64. The zero Addr stands for all unknown ones.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// pair is a login tried from a network.
type pair struct {
	login string
	net   netip.Addr
}

// Forgive gives a login all its attempts back, from wherever they were made: an admin knows its owner. What a network has used up on other
// logins stays used up.
func (s *Service) Forgive(login string) { s.budget.forgive(policy.FoldLogin(login)) }

// budget keeps the buckets in tables of fixed size, so that no flood of logins or addresses can grow it or push somebody's bucket out.
type budget struct {
	mu                  sync.Mutex // guards all
	pairs, nets, logins *limiter
	good                *goodPlaces
	forgiven            map[string]int // how often an admin gave a login its attempts back; only existing ones come here
}

// Buckets of a login that was forgiven are new ones.
type (
	pairBucket struct {
		pair
		forgiven int
	}
	loginBucket struct {
		login    string
		forgiven int
	}
)

func (b *budget) buckets(p pair) (pairBucket, loginBucket) {
	n := b.forgiven[p.login]
	return pairBucket{p, n}, loginBucket{p.login, n}
}

func (b *budget) forgive(login string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgiven[login]++
}

func newBudget(b Budget) *budget {
	return &budget{
		pairs:  newLimiter(b.Pair.or(20, time.Minute)),
		nets:   newLimiter(b.Network.or(100, 10*time.Second)),
		logins: newLimiter(b.Login.or(100, 30*time.Second)),
		good:   newGoodPlaces(), forgiven: map[string]int{},
	}
}

// wait returns how long an attempt has to wait, 0 when it may be evaluated now.
func (b *budget) wait(p pair, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting(p, now)
}

func (b *budget) waiting(p pair, now time.Time) time.Duration {
	both, login := b.buckets(p)
	w := limit(b.pairs, both, now)
	if !b.good.has(p) {
		w = max(w, limit(b.nets, p.net, now), limit(b.logins, login, now))
	}
	return w
}

// take uses up one attempt, unless it has to wait.
func (b *budget) take(p pair, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.waiting(p, now); w > 0 {
		return w
	}
	b.count(p, now, 1)
	return 0
}

// refund gives an attempt back; right says that the password was right, so the network is a good one for the login.
func (b *budget) refund(p pair, now time.Time, right bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count(p, now, -1)
	if right {
		b.good.add(p)
	}
}

func (b *budget) count(p pair, now time.Time, n int) {
	both, login := b.buckets(p)
	add(b.pairs, both, now, n)
	add(b.nets, p.net, now, n)
	add(b.logins, login, now, n)
}

// slots is the length of a row of a limiter.
const slots = 1 << 15

// limiter is a table of token buckets, each a single time: when it will be full again (the generic cell rate algorithm). A key has a slot in each of
// two rows, found by hashes that nobody outside knows, and is limited when both are used up: a stranger's collision in one does not matter.
type limiter struct {
	bucket Bucket
	seeds  [2]maphash.Seed
	rows   [2][]int64
}

func newLimiter(b Bucket) *limiter {
	l := &limiter{bucket: b}
	for i := range l.rows {
		l.seeds[i], l.rows[i] = maphash.MakeSeed(), make([]int64, slots)
	}
	return l
}

func slot[K comparable](l *limiter, row int, key K) *int64 {
	return &l.rows[row][maphash.Comparable(l.seeds[row], key)%slots]
}

func limit[K comparable](l *limiter, key K, now time.Time) time.Duration {
	full := min(*slot(l, 0, key), *slot(l, 1, key))
	room := int64(l.bucket.Burst-1) * int64(l.bucket.Refill)
	return time.Duration(max(0, full-now.UnixNano()-room))
}

func add[K comparable](l *limiter, key K, now time.Time, n int) {
	for row := range l.rows {
		s := slot(l, row, key)
		*s = max(*s, now.UnixNano()) + int64(n)*int64(l.bucket.Refill)
	}
}

// goodPlaces remembers from where logins succeeded, as fingerprints in a table of fixed size. Only a right password writes to it.
type goodPlaces struct {
	seed  maphash.Seed
	table []uint64
}

func newGoodPlaces() *goodPlaces { return &goodPlaces{maphash.MakeSeed(), make([]uint64, slots)} }

func (g *goodPlaces) at(p pair) (slot *uint64, mark uint64) {
	h := maphash.Comparable(g.seed, p)
	return &g.table[h%slots], h | 1
}

func (g *goodPlaces) has(p pair) bool {
	s, mark := g.at(p)
	return *s == mark
}

func (g *goodPlaces) add(p pair) {
	s, mark := g.at(p)
	*s = mark
}
