package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/semaphore"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
)

// HashParams are those of Argon2id. The zero value stands for 64 MiB, one pass, 4 lanes: above the least that OWASP asks for (46 MiB, one pass).
type HashParams struct {
	Memory  uint32 // KiB
	Passes  uint32
	Threads uint8
}

// What an imported hash may ask for: more would let one login take the machine.
const (
	maxHashMemory  = 256 << 10 // KiB
	maxHashPasses  = 16
	maxHashThreads = 16
	maxBcryptCost  = 14
	maxPassword    = 1024 // bytes
	maxWaiting     = 256  // logins that wait for memory to hash in
)

// hasher makes and checks password hashes within a bound of memory.
type hasher struct {
	params  HashParams
	sem     *semaphore.Weighted // in KiB
	total   int64
	dummy   string // a hash that nobody's password has
	waiting atomic.Int64
	count   atomic.Int64 // hashes computed, for tests and metrics
}

func newHasher(p HashParams, memory int64) (*hasher, error) {
	if p == (HashParams{}) {
		p = HashParams{Memory: 64 << 10, Passes: 1, Threads: 4}
	}
	if memory <= 0 {
		memory = 64 << 20
	}
	h := &hasher{params: p, total: memory >> 10}
	if err := p.check(); err != nil {
		return nil, err
	}
	if int64(p.Memory) > h.total {
		return nil, fmt.Errorf("a hash takes %d KiB, all together may take %d", p.Memory, h.total)
	}
	h.sem = semaphore.NewWeighted(h.total)
	// The dummy costs what a real one costs to check; the password is random and forgotten.
	var salt, sum [32]byte
	rand.Read(salt[:])
	rand.Read(sum[:])
	h.dummy = phc(p, salt[:16], sum[:])
	return h, nil
}

func (p HashParams) check() error {
	switch {
	case p.Threads < 1 || p.Threads > maxHashThreads, p.Passes < 1 || p.Passes > maxHashPasses:
	case p.Memory < 8*uint32(p.Threads) || p.Memory > maxHashMemory:
	default:
		return nil
	}
	return fmt.Errorf("argon2id with m=%d KiB, t=%d, p=%d is outside what is allowed: m from 8p to %d, t to %d, p to %d",
		p.Memory, p.Passes, p.Threads, maxHashMemory, maxHashPasses, maxHashThreads)
}

// phc writes the PHC string.
func phc(p HashParams, salt, sum []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.Memory, p.Passes, p.Threads, b64.EncodeToString(salt), b64.EncodeToString(sum))
}

// parsePHC reads an Argon2id PHC string.
func parsePHC(s string) (p HashParams, salt, sum []byte, err error) {
	bad := errors.New("not an argon2id hash: $argon2id$v=19$m=…,t=…,p=…$salt$hash")
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, nil, nil, bad
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.Memory, &p.Passes, &p.Threads); err != nil {
		return p, nil, nil, bad
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(sum) < 16 || len(sum) > 128 {
		return p, nil, nil, bad
	}
	return p, salt, sum, p.check()
}

func isBcrypt(s string) bool {
	return strings.HasPrefix(s, "$2a$") || strings.HasPrefix(s, "$2b$") || strings.HasPrefix(s, "$2y$")
}

// checkHash reports whether an imported hash can be used.
func checkHash(s string) error {
	if isBcrypt(s) {
		cost, err := bcrypt.Cost([]byte(s))
		if err != nil || len(s) != 60 {
			return errors.New("not a bcrypt hash")
		}
		if cost > maxBcryptCost {
			return fmt.Errorf("bcrypt at cost %d is outside what is allowed: up to %d", cost, maxBcryptCost)
		}
		return nil
	}
	_, _, _, err := parsePHC(s)
	return err
}

func checkPassword(p secret.String) error {
	switch n := len(p.Reveal()); {
	case n == 0:
		return errors.New("the password is empty")
	case n > maxPassword:
		return fmt.Errorf("the password is longer than %d bytes", maxPassword)
	}
	return nil
}

// acquire waits for KiB of memory. It fails with Busy when too many wait.
func (h *hasher) acquire(ctx context.Context, kib int64) (release func(), err error) {
	kib = min(kib, h.total)
	if h.waiting.Add(1) > maxWaiting {
		h.waiting.Add(-1)
		return nil, fault.New("policy/identity", "", fault.Busy, errors.New("too many logins at once"))
	}
	err = h.sem.Acquire(ctx, kib)
	h.waiting.Add(-1)
	if err != nil {
		return nil, fault.Wrap("policy/identity", "", err)
	}
	return func() {
		// A hash is most of what the process takes: its memory is there for the next one, or goes, in much less time than the hash took.
		if h.waiting.Load() > 0 {
			runtime.GC()
		} else {
			debug.FreeOSMemory()
		}
		h.sem.Release(kib)
	}, nil
}

// hash returns the PHC string of a password.
func (h *hasher) hash(ctx context.Context, password secret.String) (string, error) {
	if err := checkPassword(password); err != nil {
		return "", fault.New("policy/identity", "", fault.Invalid, err)
	}
	release, err := h.acquire(ctx, int64(h.params.Memory))
	if err != nil {
		return "", err
	}
	defer release()
	var salt [16]byte
	rand.Read(salt[:])
	sum := argon2.IDKey([]byte(password.Reveal()), salt[:], h.params.Passes, h.params.Memory, h.params.Threads, 32)
	return phc(h.params, salt[:], sum), nil
}

// verify reports whether the password has the hash. Without a hash it takes as long and says no.
func (h *hasher) verify(ctx context.Context, password secret.String, hash string) (bool, error) {
	real := hash != ""
	if !real {
		hash = h.dummy
	}
	if len(password.Reveal()) > maxPassword {
		return false, nil
	}
	if isBcrypt(hash) {
		release, err := h.acquire(ctx, int64(h.params.Memory)) // for the CPU's sake
		if err != nil {
			return false, err
		}
		defer release()
		h.count.Add(1)
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password.Reveal())) == nil, nil
	}
	p, salt, want, err := parsePHC(hash)
	if err != nil {
		return false, fault.New("policy/identity", "", fault.Corrupt, err)
	}
	release, err := h.acquire(ctx, int64(p.Memory))
	if err != nil {
		return false, err
	}
	defer release()
	h.count.Add(1)
	got := argon2.IDKey([]byte(password.Reveal()), salt, p.Passes, p.Memory, p.Threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1 && real, nil
}

// stale reports whether a hash should be made anew with today's parameters.
func (h *hasher) stale(hash string) bool {
	p, _, _, err := parsePHC(hash)
	return err != nil || p != h.params
}
