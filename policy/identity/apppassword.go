package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
)

// appPrefix begins every app password, so that scanners for leaked secrets can know one, and so can Login.
const appPrefix = "cga-"

// AppPassword is an app password as it is shown: never the password itself.
type AppPassword struct {
	ID        int64     `json:"id,string"`
	Label     string    `json:"label"`
	Protocols []string  `json:"protocols,omitempty"` // empty: all
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires,omitzero"`
}

// userID returns the id of an account. It fails with NotExist.
func userID(tx querier, op, login string) (id int64, err error) {
	err = tx.QueryRow(`SELECT id FROM users WHERE login = $1`, policy.FoldLogin(login)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fault.New(op, login, fault.NotExist, nil)
	}
	return id, fault.Wrap(op, login, err)
}

// AddAppPassword makes a random password for one program. It is returned once and only its hash is kept. expires zero: never; protocols empty: all.
func (s *Service) AddAppPassword(ctx context.Context, login, label string, expires time.Time, protocols []string) (AppPassword, secret.String, error) {
	const op = "policy/identity.AddAppPassword"
	if err := checkText("label", label); err != nil {
		return AppPassword{}, secret.String{}, fault.New(op, login, fault.Invalid, err)
	}
	for _, p := range protocols {
		if p == "" || strings.ContainsAny(p, " \t\n") {
			return AppPassword{}, secret.String{}, fault.New(op, login, fault.Invalid, fmt.Errorf("%q is no protocol", p))
		}
	}
	password := appPrefix + strings.ToLower(rand.Text()) // 26 characters, at least 128 bits
	sum := sha256.Sum256([]byte(password))
	a := AppPassword{ID: store.NewID(), Label: label, Protocols: slices.Clone(protocols), Created: s.clock.Now(), Expires: expires}
	err := s.db.Update(ctx, func(tx *store.Tx) error {
		id, err := userID(tx, op, login)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO app_passwords (id, user_id, label, hash, protocols, created, expires) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			a.ID, id, label, sum[:], strings.Join(protocols, " "), a.Created.UnixNano(), stamp(expires))
		return fault.Wrap(op, login, err)
	})
	if err != nil {
		return AppPassword{}, secret.String{}, err
	}
	return a, secret.New(password), nil
}

// stamp is a time as it is stored, 0 for the zero time.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func unstamp(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// AppPasswords returns those of an account, ordered by age.
func (s *Service) AppPasswords(ctx context.Context, login string) ([]AppPassword, error) {
	const op = "policy/identity.AppPasswords"
	rows, err := s.db.Query(ctx, `SELECT a.id, a.label, a.protocols, a.created, a.expires FROM app_passwords a JOIN users u ON u.id = a.user_id
		WHERE u.login = $1 ORDER BY a.id`, policy.FoldLogin(login))
	if err != nil {
		return nil, fault.Wrap(op, login, err)
	}
	defer rows.Close()
	var out []AppPassword
	for rows.Next() {
		var a AppPassword
		var protocols string
		var created, expires int64
		if err := rows.Scan(&a.ID, &a.Label, &protocols, &created, &expires); err != nil {
			return nil, fault.Wrap(op, login, err)
		}
		a.Protocols, a.Created, a.Expires = strings.Fields(protocols), unstamp(created), unstamp(expires)
		out = append(out, a)
	}
	return out, fault.Wrap(op, login, rows.Err())
}

// DeleteAppPassword revokes an app password of an account. It fails with NotExist.
func (s *Service) DeleteAppPassword(ctx context.Context, login string, id int64) error {
	return s.deleteKey(ctx, "policy/identity.DeleteAppPassword", login, `DELETE FROM app_passwords WHERE user_id = $1 AND id = $2`, id)
}

// deleteKey runs a DELETE on an account's keys, by user id and key.
func (s *Service) deleteKey(ctx context.Context, op, login, q string, key any) error {
	return s.db.Update(ctx, func(tx *store.Tx) error {
		id, err := userID(tx, op, login)
		if err != nil {
			return err
		}
		r, err := tx.Exec(q, id, key)
		if err != nil {
			return fault.Wrap(op, login, err)
		}
		if n, _ := r.RowsAffected(); n == 0 {
			return fault.New(op, login, fault.NotExist, nil)
		}
		s.changed(tx)
		return nil
	})
}

// appPassword looks an app password up. A nil credential means no.
func (s *Service) appPassword(ctx context.Context, login string, a Attempt, now time.Time) (*credential, error) {
	sum := sha256.Sum256([]byte(a.Password.Reveal()))
	var id, expires int64
	var protocols string
	err := s.db.QueryRow(ctx, `SELECT user_id, protocols, expires FROM app_passwords WHERE hash = $1`, sum[:]).Scan(&id, &protocols, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	acc, err := s.account(ctx, login)
	if fault.KindOf(err) == fault.NotExist && err != nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &credential{protocols: strings.Fields(protocols), expires: unstamp(expires)}
	if acc.subject.ID != id || acc.disabled || !c.allows(a.Protocol) || !c.expires.IsZero() && !now.Before(c.expires) {
		return nil, nil
	}
	c.subject = signedIn(acc.subject, "app")
	return c, nil
}
