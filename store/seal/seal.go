// Package seal encrypts secrets at rest under a master key that lies in a file beside the data, not in it. FORMAT.md describes both.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cellgate/internal/fault"
)

const (
	version   = 1
	nonceSize = 12
	header    = 1 + 4 + nonceSize // version, key id, nonce
)

// Overhead is how much longer the sealed form is than the plain one.
const Overhead = header + 16

// Keyring holds the master keys: the newest seals, all unseal. It is safe for concurrent use.
type Keyring struct {
	file string
	mu   sync.RWMutex
	keys []key // oldest first, never empty; guarded by mu
}

type key struct {
	id      uint32
	created time.Time
	secret  [32]byte
	aead    cipher.AEAD
}

func newKey(secret [32]byte, created time.Time) (key, error) {
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return key{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return key{}, err
	}
	mac := hmac.New(sha256.New, secret[:])
	mac.Write([]byte("cellgate/seal key id"))
	return key{binary.BigEndian.Uint32(mac.Sum(nil)), created, secret, aead}, nil
}

// Open reads the keys of a data folder, dir/keys/master.key, and makes the first one when there is no file. The file gets mode 0600 and its
// folder 0700. It fails with Corrupt when the file is not as FORMAT.md says: without its keys the box must not make new ones, or old
// secrets are lost.
func Open(dir string) (*Keyring, error) {
	k := &Keyring{file: filepath.Join(dir, "keys", "master.key")}
	keys, err := readKeys(k.file)
	if fault.KindOf(err) == fault.NotExist {
		if err := k.Rotate(); err != nil {
			return nil, err
		}
		return k, nil
	}
	if err != nil {
		return nil, fault.Wrap("store/seal.Open", k.file, err)
	}
	k.keys = keys
	return k, nil
}

// Rotate makes a new key, with which everything is sealed from now on, and keeps the old ones. When it fails nothing has changed.
func (k *Keyring) Rotate() error {
	const op = "store/seal.Rotate"
	k.mu.Lock()
	defer k.mu.Unlock()
	var secret [32]byte
	rand.Read(secret[:])
	next, err := newKey(secret, time.Now().UTC().Truncate(time.Second))
	if err != nil {
		return fault.New(op, "", fault.Internal, err)
	}
	if slices.ContainsFunc(k.keys, func(o key) bool { return o.id == next.id }) {
		return fault.New(op, "", fault.Busy, errors.New("the new key's id is taken, try again"))
	}
	keys := append(slices.Clone(k.keys), next)
	if err := writeKeys(k.file, keys); err != nil {
		return fault.Wrap(op, k.file, err)
	}
	k.keys = keys
	return nil
}

// Seal encrypts plain. context names what it is and whose ("datasource:disk:password"): Unseal demands the same, so one secret cannot be
// passed off as another.
func (k *Keyring) Seal(plain []byte, context string) ([]byte, error) {
	k.mu.RLock()
	newest := k.keys[len(k.keys)-1]
	k.mu.RUnlock()
	out := make([]byte, header, len(plain)+Overhead)
	out[0] = version
	binary.BigEndian.PutUint32(out[1:], newest.id)
	rand.Read(out[5:header])
	return newest.aead.Seal(out, out[5:header], plain, associated(out, context)), nil
}

// Unseal decrypts what Seal made. It fails with Corrupt when sealed was changed, made for another context, or made with a key that is not
// in the ring.
func (k *Keyring) Unseal(sealed []byte, context string) ([]byte, error) {
	const op = "store/seal.Unseal"
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, fault.New(op, "", fault.Corrupt, errors.New("not a sealed secret of a known version"))
	}
	id := binary.BigEndian.Uint32(sealed[1:])
	k.mu.RLock()
	i := slices.IndexFunc(k.keys, func(o key) bool { return o.id == id })
	var aead cipher.AEAD
	if i >= 0 {
		aead = k.keys[i].aead
	}
	k.mu.RUnlock()
	if aead == nil {
		return nil, fault.New(op, "", fault.Corrupt, errors.New("sealed with a key that is not in the key file"))
	}
	plain, err := aead.Open(nil, sealed[5:header], sealed[header:], associated(sealed, context))
	if err != nil {
		return nil, fault.New(op, "", fault.Corrupt, errors.New("changed, or sealed for something else"))
	}
	return plain, nil
}

// Stale reports whether sealed was made with an older key than the newest, so that it should be sealed again.
func (k *Keyring) Stale(sealed []byte) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return len(sealed) < 5 || binary.BigEndian.Uint32(sealed[1:]) != k.keys[len(k.keys)-1].id
}

// associated is what the tag covers besides the text: version, key id and context.
func associated(sealed []byte, context string) []byte {
	return append(slices.Clone(sealed[:5]), context...)
}
