package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
)

// SSHKey is a public key that may sign in.
type SSHKey struct {
	Fingerprint string    `json:"fingerprint"` // SHA256:…
	Key         string    `json:"key"`         // type and base64, as in authorized_keys
	Label       string    `json:"label"`
	Created     time.Time `json:"created"`
}

// parseSSHKey reads a line of authorized_keys. Options are refused: they would promise what nobody keeps.
func parseSSHKey(line string) (SSHKey, error) {
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return SSHKey{}, errors.New("not a public key as in authorized_keys: ssh-ed25519 AAAA… comment")
	}
	if len(options) > 0 || len(strings.TrimSpace(string(rest))) > 0 {
		return SSHKey{}, errors.New("an SSH key is one line without options")
	}
	if key.Type() == "ssh-dss" {
		return SSHKey{}, errors.New("DSA keys are not safe")
	}
	return SSHKey{Fingerprint: ssh.FingerprintSHA256(key), Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), Label: comment},
		checkText("comment", comment)
}

// AddSSHKey lets a public key, a line of authorized_keys, sign in. It fails with Invalid, and with Exist when any account has the key.
func (s *Service) AddSSHKey(ctx context.Context, login, line string) (SSHKey, error) {
	const op = "policy/identity.AddSSHKey"
	k, err := parseSSHKey(line)
	if err != nil {
		return SSHKey{}, fault.New(op, login, fault.Invalid, err)
	}
	k.Created = s.clock.Now()
	err = s.db.Update(ctx, func(tx *store.Tx) error {
		id, err := userID(tx, op, login)
		if err != nil {
			return err
		}
		return s.insertSSHKey(tx, id, k)
	})
	return k, err
}

func (s *Service) insertSSHKey(tx *store.Tx, user int64, k SSHKey) error {
	const op = "policy/identity.AddSSHKey"
	r, err := tx.Exec(`INSERT INTO ssh_keys (id, user_id, fingerprint, key, label, created) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (fingerprint) DO NOTHING`,
		store.NewID(), user, k.Fingerprint, k.Key, k.Label, s.clock.Now().UnixNano())
	if err != nil {
		return fault.Wrap(op, k.Fingerprint, err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, k.Fingerprint, fault.Exist, errors.New("an account has this key already"))
	}
	s.changed(tx)
	return nil
}

// SSHKeys returns those of an account, ordered by age.
func (s *Service) SSHKeys(ctx context.Context, login string) ([]SSHKey, error) {
	const op = "policy/identity.SSHKeys"
	rows, err := s.db.Query(ctx, `SELECT k.fingerprint, k.key, k.label, k.created FROM ssh_keys k JOIN users u ON u.id = k.user_id WHERE u.login = $1 ORDER BY k.id`,
		policy.FoldLogin(login))
	if err != nil {
		return nil, fault.Wrap(op, login, err)
	}
	defer rows.Close()
	var out []SSHKey
	for rows.Next() {
		var k SSHKey
		var created int64
		if err := rows.Scan(&k.Fingerprint, &k.Key, &k.Label, &created); err != nil {
			return nil, fault.Wrap(op, login, err)
		}
		k.Created = unstamp(created)
		out = append(out, k)
	}
	return out, fault.Wrap(op, login, rows.Err())
}

// DeleteSSHKey takes a key from an account. It fails with NotExist.
func (s *Service) DeleteSSHKey(ctx context.Context, login, fingerprint string) error {
	return s.deleteKey(ctx, "policy/identity.DeleteSSHKey", login, `DELETE FROM ssh_keys WHERE user_id = $1 AND fingerprint = $2`, fingerprint)
}

// S3Key is an access key as it is shown: without its secret.
type S3Key struct {
	ID      string    `json:"id"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
}

// check reports why a pair cannot be used.
func (k S3Pair) check() error {
	if len(k.ID) < 3 || len(k.ID) > 128 || strings.Trim(k.ID, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return fmt.Errorf("%q is no access key: use 3 to 128 letters, digits and ._-", k.ID)
	}
	if n := len(k.Secret.Reveal()); n < 16 || n > 256 {
		return fmt.Errorf("the secret of access key %s is not 16 to 256 bytes long", k.ID)
	}
	return nil
}

// AddS3Key gives an account an access key; a zero pair is made up. The secret is returned once. It fails with Invalid, and with Exist when the id
// is taken.
func (s *Service) AddS3Key(ctx context.Context, login, label string, pair S3Pair, expires time.Time) (S3Pair, error) {
	const op = "policy/identity.AddS3Key"
	if pair == (S3Pair{}) {
		pair = S3Pair{ID: "CG" + rand.Text()[:18], Secret: secret.New(rand.Text() + rand.Text()[:14])}
	}
	if err := errors.Join(pair.check(), checkText("label", label)); err != nil {
		return S3Pair{}, fault.New(op, login, fault.Invalid, err)
	}
	err := s.db.Update(ctx, func(tx *store.Tx) error {
		id, err := userID(tx, op, login)
		if err != nil {
			return err
		}
		return s.insertS3Key(tx, id, label, pair, expires)
	})
	return pair, err
}

func (s *Service) insertS3Key(tx *store.Tx, user int64, label string, pair S3Pair, expires time.Time) error {
	const op = "policy/identity.AddS3Key"
	if s.keys == nil {
		return fault.New(op, pair.ID, fault.Unsupported, errors.New("there is no key ring to seal secrets with"))
	}
	sealed, err := s.keys.Seal([]byte(pair.Secret.Reveal()), s3Context(pair.ID))
	if err != nil {
		return fault.Wrap(op, pair.ID, err)
	}
	r, err := tx.Exec(`INSERT INTO s3_keys (id, user_id, secret, label, created, expires) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING`,
		pair.ID, user, sealed, label, s.clock.Now().UnixNano(), stamp(expires))
	if err != nil {
		return fault.Wrap(op, pair.ID, err)
	}
	if n, _ := r.RowsAffected(); n == 0 {
		return fault.New(op, pair.ID, fault.Exist, errors.New("the access key is taken"))
	}
	s.changed(tx)
	return nil
}

// s3Context ties a sealed secret to its access key.
func s3Context(id string) string { return "s3key:" + id }

// S3Keys returns those of an account, ordered by id.
func (s *Service) S3Keys(ctx context.Context, login string) ([]S3Key, error) {
	const op = "policy/identity.S3Keys"
	rows, err := s.db.Query(ctx, `SELECT k.id, k.label, k.created, k.expires FROM s3_keys k JOIN users u ON u.id = k.user_id WHERE u.login = $1 ORDER BY k.id`,
		policy.FoldLogin(login))
	if err != nil {
		return nil, fault.Wrap(op, login, err)
	}
	defer rows.Close()
	var out []S3Key
	for rows.Next() {
		var k S3Key
		var created, expires int64
		if err := rows.Scan(&k.ID, &k.Label, &created, &expires); err != nil {
			return nil, fault.Wrap(op, login, err)
		}
		k.Created, k.Expires = unstamp(created), unstamp(expires)
		out = append(out, k)
	}
	return out, fault.Wrap(op, login, rows.Err())
}

// DeleteS3Key takes an access key from an account. It fails with NotExist.
func (s *Service) DeleteS3Key(ctx context.Context, login, id string) error {
	return s.deleteKey(ctx, "policy/identity.DeleteS3Key", login, `DELETE FROM s3_keys WHERE user_id = $1 AND id = $2`, id)
}

// putKeys makes the SSH and S3 keys of an account those of a spec, where the spec has any.
func (s *Service) putKeys(tx *store.Tx, user int64, sp Spec) (changed bool, err error) {
	if sp.SSHKeys != nil {
		have, err := texts(tx.Query(`SELECT fingerprint FROM ssh_keys WHERE user_id = $1 ORDER BY fingerprint`, user))
		if err != nil {
			return false, fault.Wrap("policy/identity.PutUser", sp.Login, err)
		}
		var want []string
		for _, line := range sp.SSHKeys {
			k, _ := parseSSHKey(line) // checked
			if slices.Contains(want, k.Fingerprint) {
				continue
			}
			want = append(want, k.Fingerprint)
			if !slices.Contains(have, k.Fingerprint) {
				changed = true
				if err := s.insertSSHKey(tx, user, k); err != nil {
					return false, err
				}
			}
		}
		for _, f := range have {
			if !slices.Contains(want, f) {
				changed = true
				if _, err := tx.Exec(`DELETE FROM ssh_keys WHERE user_id = $1 AND fingerprint = $2`, user, f); err != nil {
					return false, fault.Wrap("policy/identity.PutUser", sp.Login, err)
				}
			}
		}
	}
	if sp.S3Keys != nil {
		c, err := s.putS3Keys(tx, user, sp)
		if err != nil {
			return false, err
		}
		changed = changed || c
	}
	if changed {
		s.changed(tx)
	}
	return changed, nil
}

func (s *Service) putS3Keys(tx *store.Tx, user int64, sp Spec) (changed bool, err error) {
	const op = "policy/identity.PutUser"
	have, err := texts(tx.Query(`SELECT id FROM s3_keys WHERE user_id = $1 ORDER BY id`, user))
	if err != nil {
		return false, fault.Wrap(op, sp.Login, err)
	}
	drop := func(id string) error {
		changed = true
		_, err := tx.Exec(`DELETE FROM s3_keys WHERE user_id = $1 AND id = $2`, user, id)
		return fault.Wrap(op, sp.Login, err)
	}
	for _, k := range sp.S3Keys {
		if slices.Contains(have, k.ID) {
			var sealed []byte
			if err := tx.QueryRow(`SELECT secret FROM s3_keys WHERE id = $1`, k.ID).Scan(&sealed); err != nil {
				return false, fault.Wrap(op, sp.Login, err)
			}
			if s.keys != nil {
				if plain, err := s.keys.Unseal(sealed, s3Context(k.ID)); err == nil && string(plain) == k.Secret.Reveal() {
					continue
				}
			}
			if err := drop(k.ID); err != nil {
				return false, err
			}
		}
		changed = true
		if err := s.insertS3Key(tx, user, "", k, time.Time{}); err != nil {
			return false, err
		}
	}
	for _, id := range have {
		if !slices.ContainsFunc(sp.S3Keys, func(k S3Pair) bool { return k.ID == id }) {
			if err := drop(id); err != nil {
				return false, err
			}
		}
	}
	return changed, nil
}
