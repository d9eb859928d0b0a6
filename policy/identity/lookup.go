package identity

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/store"
)

// account is a user as login needs it. It never changes once made.
type account struct {
	subject  *policy.Subject
	password string
	disabled bool
}

// querier is what a look-up needs of a transaction.
type querier interface {
	Query(q string, args ...any) (*sql.Rows, error)
	QueryRow(q string, args ...any) *sql.Row
}

// userRow reads an account with its given roles. It fails with sql.ErrNoRows.
func userRow(tx querier, login string) (u User, hash string, err error) {
	var profile string
	var disabled, created int64
	err = tx.QueryRow(`SELECT id, login, name, email, grp, profile, password, disabled, created FROM users WHERE login = $1`, login).
		Scan(&u.ID, &u.Login, &u.Name, &u.Email, &u.Group, &profile, &hash, &disabled, &created)
	if err != nil {
		return User{}, "", err
	}
	if u.Profile, err = policy.ParseProfile(profile); err != nil {
		return User{}, "", fault.New("policy/identity", login, fault.Corrupt, err)
	}
	u.Disabled, u.HasPassword, u.Created = disabled != 0, hash != "", time.Unix(0, created).UTC()
	u.Roles, err = texts(tx.Query(`SELECT role FROM user_roles WHERE user_id = $1 ORDER BY role`, u.ID))
	return u, hash, err
}

// texts gathers the one column of rows.
func texts(rows *sql.Rows, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// maxAccounts bounds the accounts in memory.
const maxAccounts = 8192

// account returns a user as of now, from memory while nothing changed. It fails with NotExist.
func (s *Service) account(ctx context.Context, login string) (*account, error) {
	epoch := s.epoch.Load()
	s.mu.Lock()
	if s.asOf != epoch {
		s.accounts, s.asOf = map[string]*account{}, epoch
	}
	acc := s.accounts[login]
	s.mu.Unlock()
	if acc != nil {
		return acc, nil
	}
	const op = "policy/identity"
	if _, err := policy.CanonicalLogin(login); err != nil {
		return nil, fault.New(op, "", fault.NotExist, nil)
	}
	err := s.db.View(ctx, func(tx *store.Tx) error {
		u, hash, err := userRow(tx, login)
		if err != nil {
			return err
		}
		roles, err := rolesOf(tx, u)
		if err != nil {
			return err
		}
		sub := &policy.Subject{ID: u.ID, Login: u.Login, Name: u.Name, Email: u.Email, Group: u.Group, Profile: u.Profile, Roles: roles,
			Principals: policy.PrincipalsOf(u.Login, u.Group, u.Profile, roles)}
		acc = &account{subject: sub, password: hash, disabled: u.Disabled}
		return tx.QueryRow(`SELECT epoch FROM epochs WHERE name = 'identity'`).Scan(&sub.Epoch)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(op, login, fault.NotExist, nil)
	}
	if err != nil {
		return nil, fault.Wrap(op, login, err)
	}
	s.advance(acc.subject.Epoch)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asOf == acc.subject.Epoch {
		for other := range s.accounts {
			if len(s.accounts) < maxAccounts {
				break
			}
			delete(s.accounts, other)
		}
		s.accounts[login] = acc
	}
	return acc, nil
}

// rolesOf returns the roles of a user: given ones and those that come with its profile.
func rolesOf(tx querier, u User) ([]string, error) {
	rows, err := tx.Query(`SELECT name, profiles FROM roles WHERE profiles <> '' ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	roles := slices.Clone(u.Roles)
	for rows.Next() {
		var name, profiles string
		if err := rows.Scan(&name, &profiles); err != nil {
			return nil, err
		}
		if slices.Contains(strings.Fields(profiles), u.Profile.String()) {
			roles = append(roles, name)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles), rows.Err()
}

// Subject returns a user's subject without any proof, for what the local administrator does in its name. It fails with NotExist, and with Denied
// for a disabled account.
func (s *Service) Subject(ctx context.Context, login string) (*policy.Subject, error) {
	acc, err := s.account(ctx, policy.FoldLogin(login))
	if err != nil {
		return nil, err
	}
	if acc.disabled {
		return nil, fault.New("policy/identity.Subject", acc.subject.Login, fault.Denied, errors.New("the account is disabled"))
	}
	return acc.subject, nil
}

// UserID returns the id of an account within tx, which may just have made it.
func (s *Service) UserID(tx *store.Tx, login string) (int64, error) {
	u, _, err := userRow(tx, policy.FoldLogin(login))
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fault.New("policy/identity.UserID", login, fault.NotExist, nil)
	}
	return u.ID, fault.Wrap("policy/identity.UserID", login, err)
}

// User returns an account. It fails with NotExist.
func (s *Service) User(ctx context.Context, login string) (u User, err error) {
	const op = "policy/identity.User"
	err = s.db.View(ctx, func(tx *store.Tx) error {
		u, _, err = userRow(tx, policy.FoldLogin(login))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return User{}, fault.New(op, login, fault.NotExist, nil)
	}
	return u, fault.Wrap(op, login, err)
}

// UserFilter selects accounts; a zero field selects all.
type UserFilter struct {
	Group string // and all groups below it
	After string // logins that come later: the next page
	Limit int    // 0: no limit
}

// Users returns the accounts that match, ordered by login.
func (s *Service) Users(ctx context.Context, f UserFilter) (out []User, err error) {
	err = s.db.View(ctx, func(tx *store.Tx) error {
		out = nil
		q, args := `SELECT login FROM users WHERE login > $1`, []any{f.After}
		if f.Group != "" && f.Group != "/" {
			q += ` AND (grp = $2 OR grp >= $3 AND grp < $4)`
			args = append(args, f.Group, f.Group+"/", f.Group+"0")
		}
		q += ` ORDER BY login`
		if f.Limit > 0 {
			q += fmt.Sprintf(` LIMIT %d`, f.Limit)
		}
		logins, err := texts(tx.Query(q, args...))
		if err != nil {
			return err
		}
		for _, login := range logins {
			u, _, err := userRow(tx, login)
			if err != nil {
				return err
			}
			out = append(out, u)
		}
		return nil
	})
	return out, fault.Wrap("policy/identity.Users", "", err)
}
