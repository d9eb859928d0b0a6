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
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/store"
)

// User is an account as it is shown: without secrets.
type User struct {
	ID          int64          `json:"id,string"`
	Login       string         `json:"login"`
	Name        string         `json:"name"`
	Email       string         `json:"email"`
	Group       string         `json:"group"`
	Profile     policy.Profile `json:"profile"`
	Roles       []string       `json:"roles"` // given ones; those that come with the profile are not listed
	Disabled    bool           `json:"disabled"`
	HasPassword bool           `json:"hasPassword"`
	Created     time.Time      `json:"created"`
}

// Spec is an account as it is asked for.
type Spec struct {
	Login        string
	Password     secret.String // or PasswordHash; see Prepare. Neither: as it is, or none
	PasswordHash string        // argon2id or bcrypt as a PHC string
	Name         string
	Email        string
	Group        string         // "": "/"; made when missing
	Profile      policy.Profile // Anonymous, the zero value, stands for Standard
	Roles        []string       // made when missing
	Disabled     bool
	SSHKeys      []string // nil: as they are
	S3Keys       []S3Pair // nil: as they are
}

// S3Pair is an access key with its secret.
type S3Pair struct {
	ID     string
	Secret secret.String
}

// check returns the spec in its one spelling and every problem it has.
func (sp Spec) check() (Spec, error) {
	var problems []error
	login, err := policy.CanonicalLogin(sp.Login)
	problems = append(problems, err)
	if sp.Group == "" {
		sp.Group = "/"
	}
	group, err := policy.CanonicalGroup(sp.Group)
	problems = append(problems, err)
	if sp.Profile == policy.Anonymous {
		sp.Profile = policy.Standard
	}
	if sp.Profile > policy.Admin {
		problems = append(problems, fmt.Errorf("unknown profile %d", sp.Profile))
	}
	roles := slices.Clone(sp.Roles)
	slices.Sort(roles)
	for _, r := range roles {
		problems = append(problems, checkRole(r))
	}
	if !sp.Password.IsZero() {
		problems = append(problems, checkPassword(sp.Password))
		if sp.PasswordHash != "" {
			problems = append(problems, errors.New("give a password or its hash, not both"))
		}
	}
	if sp.PasswordHash != "" {
		problems = append(problems, checkHash(sp.PasswordHash))
	}
	problems = append(problems, checkText("name", sp.Name), checkText("email", sp.Email))
	for _, k := range sp.SSHKeys {
		_, err := parseSSHKey(k)
		problems = append(problems, err)
	}
	for _, k := range sp.S3Keys {
		problems = append(problems, k.check())
	}
	sp.Login, sp.Group, sp.Roles = login, group, slices.Compact(roles)
	return sp, errors.Join(problems...)
}

// checkText refuses what no one-line text of ours holds.
func checkText(what, s string) error {
	if len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd || r == 0x2028 || r == 0x2029 }) {
		return fmt.Errorf("the %s %q is longer than 255 bytes or has control characters", what, s)
	}
	return nil
}

func checkRole(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || name[0] < '0' {
		return fmt.Errorf("%q is no name of a role: use 1 to 63 of a-z, 0-9 and ._-, beginning with a letter or digit", name)
	}
	return nil
}

// CheckSpec returns why a spec cannot be used, every problem at once.
func CheckSpec(sp Spec) error {
	_, err := sp.check()
	return err
}

// Prepare turns the spec's password into a hash, outside of any transaction since that takes long. A password or hash that the account has already
// is taken out, so that declaring it again changes nothing.
func (s *Service) Prepare(ctx context.Context, sp *Spec) error {
	if sp.Password.IsZero() && sp.PasswordHash == "" {
		return nil
	}
	login, err := policy.CanonicalLogin(sp.Login)
	if err != nil {
		return fault.New("policy/identity.Prepare", "", fault.Invalid, err)
	}
	acc, err := s.account(ctx, login)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		return err
	}
	if sp.Password.IsZero() {
		if acc != nil && acc.password == sp.PasswordHash {
			sp.PasswordHash = ""
		}
		return nil
	}
	if acc != nil && acc.password != "" {
		same, err := s.hasher.verify(ctx, sp.Password, acc.password)
		if err != nil {
			return err
		}
		if same {
			sp.Password, sp.PasswordHash = secret.String{}, ""
			return nil
		}
	}
	hash, err := s.hasher.hash(ctx, sp.Password)
	if err != nil {
		return err
	}
	sp.Password, sp.PasswordHash = secret.String{}, hash
	return nil
}

// PutUser makes the account so, a new one or the one with this login, and reports whether that changed anything. A spec with a password needs
// Prepare first. It fails with Invalid and every problem.
func (s *Service) PutUser(tx *store.Tx, sp Spec) (changed bool, err error) {
	const op = "policy/identity.PutUser"
	sp, err = sp.check()
	if err == nil && !sp.Password.IsZero() {
		err = errors.New("the password is not hashed yet: call Prepare")
	}
	if err != nil {
		return false, fault.New(op, sp.Login, fault.Invalid, err)
	}
	old, hash, err := userRow(tx, sp.Login)
	isNew := errors.Is(err, sql.ErrNoRows)
	if err != nil && !isNew {
		return false, fault.Wrap(op, sp.Login, err)
	}
	if sp.PasswordHash == "" {
		sp.PasswordHash = hash
	}
	if err := s.ensure(tx, sp.Group, sp.Roles); err != nil {
		return false, fault.Wrap(op, sp.Login, err)
	}
	u := User{ID: old.ID, Login: sp.Login, Name: sp.Name, Email: sp.Email, Group: sp.Group, Profile: sp.Profile, Roles: sp.Roles, Disabled: sp.Disabled}
	switch {
	case isNew:
		u.ID = store.NewID()
		_, err = tx.Exec(`INSERT INTO users (id, login, name, email, grp, profile, password, disabled, created) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			u.ID, u.Login, u.Name, u.Email, u.Group, u.Profile.String(), sp.PasswordHash, bit(u.Disabled), s.clock.Now().UnixNano())
	case old.Name != u.Name || old.Email != u.Email || old.Group != u.Group || old.Profile != u.Profile || old.Disabled != u.Disabled || hash != sp.PasswordHash:
		_, err = tx.Exec(`UPDATE users SET name = $2, email = $3, grp = $4, profile = $5, password = $6, disabled = $7 WHERE id = $1`,
			u.ID, u.Name, u.Email, u.Group, u.Profile.String(), sp.PasswordHash, bit(u.Disabled))
	case slices.Equal(old.Roles, u.Roles):
		return s.putKeys(tx, u.ID, sp)
	}
	if err != nil {
		return false, fault.Wrap(op, sp.Login, err)
	}
	if !slices.Equal(old.Roles, u.Roles) {
		if _, err := tx.Exec(`DELETE FROM user_roles WHERE user_id = $1`, u.ID); err != nil {
			return false, fault.Wrap(op, sp.Login, err)
		}
		for _, r := range u.Roles {
			if _, err := tx.Exec(`INSERT INTO user_roles (user_id, role) VALUES ($1, $2)`, u.ID, r); err != nil {
				return false, fault.Wrap(op, sp.Login, err)
			}
		}
	}
	s.changed(tx)
	_, err = s.putKeys(tx, u.ID, sp)
	return true, err
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// CreateUser makes a new account. It fails with Exist when the login is taken, and as PutUser does.
func (s *Service) CreateUser(ctx context.Context, sp Spec) (User, error) {
	if err := s.Prepare(ctx, &sp); err != nil {
		return User{}, err
	}
	err := s.db.Update(ctx, func(tx *store.Tx) error {
		if _, _, err := userRow(tx, policy.FoldLogin(sp.Login)); err == nil {
			return fault.New("policy/identity.CreateUser", sp.Login, fault.Exist, nil)
		}
		_, err := s.PutUser(tx, sp)
		return err
	})
	if err != nil {
		return User{}, err
	}
	return s.User(ctx, sp.Login)
}

// UpdateUser changes an account: edit gets it as it is and may run more than once. Passwords are set by SetPassword.
func (s *Service) UpdateUser(ctx context.Context, login string, edit func(*Spec)) error {
	return s.db.Update(ctx, func(tx *store.Tx) error {
		u, _, err := userRow(tx, policy.FoldLogin(login))
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New("policy/identity.UpdateUser", login, fault.NotExist, nil)
		}
		if err != nil {
			return fault.Wrap("policy/identity.UpdateUser", login, err)
		}
		sp := Spec{Name: u.Name, Email: u.Email, Group: u.Group, Profile: u.Profile, Roles: u.Roles, Disabled: u.Disabled}
		edit(&sp)
		sp.Login = u.Login
		_, err = s.PutUser(tx, sp)
		return err
	})
}

// SetPassword gives an account another password. It fails with NotExist and Invalid.
func (s *Service) SetPassword(ctx context.Context, login string, password secret.String) error {
	const op = "policy/identity.SetPassword"
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *store.Tx) error {
		r, err := tx.Exec(`UPDATE users SET password = $1 WHERE login = $2`, hash, policy.FoldLogin(login))
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

// DeleteUser is RemoveUser in a transaction of its own.
func (s *Service) DeleteUser(ctx context.Context, login string) error {
	return s.db.Update(ctx, func(tx *store.Tx) error { return s.RemoveUser(tx, login) })
}

// RemoveUser deletes an account with its roles, keys and passwords, and what is granted to it by name. It fails with NotExist.
func (s *Service) RemoveUser(tx *store.Tx, login string) error {
	const op = "policy/identity.RemoveUser"
	u, _, err := userRow(tx, policy.FoldLogin(login))
	if errors.Is(err, sql.ErrNoRows) {
		return fault.New(op, login, fault.NotExist, nil)
	}
	if err != nil {
		return fault.Wrap(op, login, err)
	}
	for _, q := range []string{`DELETE FROM users WHERE id = $1`, `DELETE FROM user_roles WHERE user_id = $1`, `DELETE FROM app_passwords WHERE user_id = $1`,
		`DELETE FROM ssh_keys WHERE user_id = $1`, `DELETE FROM s3_keys WHERE user_id = $1`} {
		if _, err := tx.Exec(q, u.ID); err != nil {
			return fault.Wrap(op, login, err)
		}
	}
	s.changed(tx)
	return s.policy.DropPrincipal(tx, policy.Principal("user:"+u.Login))
}
