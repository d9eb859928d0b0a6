package identity

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/audit"
)

// Here are the logins of those who prove that they hold a key, instead of showing a password. Keys cannot be guessed, so an unknown one uses
// up nobody's attempts: clients try all they have.

// The kinds of credentials that keys are, as policies and the audit log name them.
const (
	byKey         = "ssh-key"
	byCertificate = "ssh-certificate"
	byS3Key       = "s3-key"
)

// LoginKey signs in the owner of key, of which the client has proved that it holds the private half. It fails with Unauthenticated when the
// login has no such key, is disabled, or a login policy says no. Attempt.Password is not looked at.
func (s *Service) LoginKey(ctx context.Context, a Attempt, key ssh.PublicKey) (*policy.Subject, error) {
	const op = "policy/identity.LoginKey"
	login := policy.FoldLogin(a.Login)
	var owner int64
	err := s.db.QueryRow(ctx, `SELECT user_id FROM ssh_keys WHERE fingerprint = $1`, ssh.FingerprintSHA256(key)).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(op, "", fault.Unauthenticated, errRefused)
	}
	if err != nil {
		return nil, fault.Wrap(op, "", err)
	}
	return s.vouched(ctx, op, login, owner, byKey, a)
}

// LoginCertified signs in a.Login, for whom a certificate of a trusted authority vouches. It fails as LoginKey.
func (s *Service) LoginCertified(ctx context.Context, a Attempt) (*policy.Subject, error) {
	return s.vouched(ctx, "policy/identity.LoginCertified", policy.FoldLogin(a.Login), 0, byCertificate, a)
}

// vouched returns the subject of a login whose proof holds. owner is whose proof it is, 0 the login's.
func (s *Service) vouched(ctx context.Context, op, login string, owner int64, credential string, a Attempt) (*policy.Subject, error) {
	acc, err := s.account(ctx, login)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		return nil, fault.Wrap(op, "", err)
	}
	if err != nil || acc.disabled || owner != 0 && acc.subject.ID != owner {
		return nil, fault.New(op, "", fault.Unauthenticated, errRefused)
	}
	sub := signedIn(acc.subject, credential)
	if !s.permits(sub, a, s.clock.Now()) {
		s.noteRefused(login, a)
		return nil, fault.New(op, "", fault.Unauthenticated, errRefused)
	}
	return sub, nil
}

func (s *Service) noteRefused(login string, a Attempt) {
	if s.audit != nil {
		s.audit.Note(audit.Record{Time: s.clock.Now(), Actor: "user:" + login, Action: "login", Outcome: "refused", Protocol: a.Protocol, Addr: addrText(a.Addr), Detail: a.Client})
	}
}

// s3Keys remembers the access keys that are in use, unsealed, as of one epoch: a request signed with one costs no look at the store.
type s3Keys struct {
	mu    sync.Mutex
	asOf  uint64            // guarded by mu
	known map[string]*s3Key // guarded by mu
}

type s3Key struct {
	subject  *policy.Subject
	secret   secret.String
	expires  time.Time // zero: never
	disabled bool
}

// maxS3Keys bounds what is remembered. It is emptied when full.
const maxS3Keys = 8192

// LoginS3 signs in the owner of the access key id, if verify says of its secret that it made the request's signature. It fails with NotExist when there is
// no such key, with Unauthenticated when the signature is wrong, the key expired, the account disabled or a login policy says no, and with
// Busy and a *Throttled cause when too many signatures from one network were wrong. The same key yields the same Subject as long as nothing
// about the account changes. a.Login and a.Password are not looked at.
func (s *Service) LoginS3(ctx context.Context, a Attempt, id string, verify func(secret secret.String) bool) (*policy.Subject, error) {
	const op = "policy/identity.LoginS3"
	now := s.clock.Now()
	p := pair{"s3:" + id, network(a.Addr)}
	if wait := s.budget.wait(p, now); wait > 0 {
		return nil, fault.New(op, "", fault.Busy, &Throttled{wait})
	}
	k, err := s.s3Key(ctx, id)
	if err != nil {
		return nil, fault.Wrap(op, "", err)
	}
	if k == nil {
		return nil, fault.New(op, "", fault.NotExist, errors.New("there is no such access key"))
	}
	if !verify(k.secret) {
		if wait := s.budget.take(p, now); wait > 0 {
			return nil, fault.New(op, "", fault.Busy, &Throttled{wait})
		}
		s.noteRefused(k.subject.Login, a)
		return nil, fault.New(op, "", fault.Unauthenticated, errors.New("the signature is not the key's"))
	}
	if k.disabled || !k.expires.IsZero() && !now.Before(k.expires) || !s.permits(k.subject, a, now) {
		s.noteRefused(k.subject.Login, a)
		return nil, fault.New(op, "", fault.Unauthenticated, errRefused)
	}
	return k.subject, nil
}

// s3Key returns an access key with its owner, nil when there is none.
func (s *Service) s3Key(ctx context.Context, id string) (*s3Key, error) {
	epoch := s.epoch.Load()
	s.s3.mu.Lock()
	if s.s3.asOf != epoch || len(s.s3.known) >= maxS3Keys || s.s3.known == nil {
		s.s3.asOf, s.s3.known = epoch, make(map[string]*s3Key)
	}
	k := s.s3.known[id]
	s.s3.mu.Unlock()
	if k != nil {
		return k, nil
	}
	var sealed []byte
	var login string
	var expires int64
	err := s.db.QueryRow(ctx, `SELECT k.secret, k.expires, u.login FROM s3_keys k JOIN users u ON u.id = k.user_id WHERE k.id = $1`, id).Scan(&sealed, &expires, &login)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if s.keys == nil {
		return nil, fault.New("policy/identity", id, fault.Unsupported, errors.New("there is no key ring to open secrets with"))
	}
	plain, err := s.keys.Unseal(sealed, s3Context(id))
	if err != nil {
		return nil, err
	}
	acc, err := s.account(ctx, login)
	if err != nil {
		return nil, err
	}
	k = &s3Key{subject: signedIn(acc.subject, byS3Key), secret: secret.New(string(plain)), disabled: acc.disabled}
	if expires != 0 {
		k.expires = time.Unix(0, expires)
	}
	s.s3.mu.Lock()
	defer s.s3.mu.Unlock()
	if s.s3.asOf != epoch || s.epoch.Load() != epoch {
		return k, nil // an account has changed meanwhile: what was read may be of before
	}
	if same := s.s3.known[id]; same != nil {
		return same, nil
	}
	s.s3.known[id] = k
	return k, nil
}
