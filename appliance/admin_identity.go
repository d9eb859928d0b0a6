package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
)

func toAccount(u identity.User) account {
	roles := u.Roles
	if roles == nil {
		roles = []string{}
	}
	return account{Login: u.Login, Name: u.Name, Email: u.Email, Group: u.Group, Profile: u.Profile.String(), Roles: roles, Disabled: u.Disabled, Created: u.Created}
}

func (b *box) accounts(ctx context.Context) ([]account, error) {
	users, err := b.identity.Users(ctx, identity.UserFilter{})
	out := make([]account, len(users))
	for i, u := range users {
		out[i] = toAccount(u)
	}
	return out, err
}

func (b *box) account(ctx context.Context, login string) (account, error) {
	u, err := b.identity.User(ctx, login)
	if fault.KindOf(err) == fault.NotExist && err != nil {
		return account{}, notThere("user", login)
	}
	return toAccount(u), err
}

func (b *box) subject(ctx context.Context, login string) (*policy.Subject, error) {
	if _, err := b.account(ctx, login); err != nil {
		return nil, err
	}
	return b.identity.Subject(ctx, login)
}

// userExists reports whether a login is taken.
func (b *box) userExists(ctx context.Context, login string) (bool, error) {
	_, err := b.identity.User(ctx, login)
	if err != nil && fault.KindOf(err) == fault.NotExist {
		return false, nil
	}
	return err == nil, err
}

// createUser makes a user. One without a password gets one that is made up, and given back this once.
func (b *box) createUser(ctx context.Context, in account, actor string) (account, error) {
	const op = "appliance.createUser"
	profile, err := policy.ParseProfile(in.Profile)
	if err != nil {
		return account{}, fault.New(op, "", fault.Invalid, err)
	}
	made := ""
	if in.Password == "" {
		made = madeUpPassword()
		in.Password = made
	}
	sp := identity.Spec{
		Login: in.Login, Name: in.Name, Email: in.Email, Group: in.Group, Profile: profile, Roles: in.Roles, Password: secret.New(in.Password),
	}
	if err := identity.CheckSpec(sp); err != nil {
		return account{}, fault.New(op, "", fault.Invalid, err)
	}
	b.administering.Lock()
	defer b.administering.Unlock()
	if taken, err := b.userExists(ctx, in.Login); err != nil {
		return account{}, err
	} else if taken {
		return account{}, fault.New(op, in.Login, fault.Exist, nil)
	}
	if err := b.known(ctx, sp.Group, sp.Roles); err != nil {
		return account{}, err
	}
	if err := b.putUser(ctx, sp, 0, actor, "user.create"); err != nil {
		return account{}, err
	}
	out, err := b.account(ctx, in.Login)
	out.Password = made
	return out, err
}

// madeUpPassword returns one with 130 random bits.
func madeUpPassword() string { return strings.ToLower(rand.Text()) }

// known refuses a group or role that does not exist: from the shell that is a slip of the pen; a declared state makes them.
func (b *box) known(ctx context.Context, group string, roles []string) error {
	if g, err := policy.CanonicalGroup(group); err == nil { // a wrong name is said by who puts the user
		groups, err := b.identity.Groups(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(groups, func(have identity.Group) bool { return have.Path == g }) {
			return notThere("group", g)
		}
	}
	have, err := b.identity.Roles(ctx)
	for _, name := range roles {
		if err == nil && !slices.ContainsFunc(have, func(r identity.Role) bool { return r.Name == name }) {
			return notThere("role", name)
		}
	}
	return err
}

// putUser makes or changes the account with this id, 0 for a new one.
func (b *box) putUser(ctx context.Context, sp identity.Spec, id int64, actor, action string) error {
	if err := b.identity.Prepare(ctx, &sp); err != nil {
		return err
	}
	return b.db.Update(ctx, func(tx *store.Tx) error {
		if _, err := b.identity.PutUser(tx, sp); err != nil {
			return err
		}
		if sp.Disabled { // nobody shall wait for locks that their holder cannot release
			if err := b.gateway.ForgetLocks(tx, id); err != nil {
				return err
			}
		}
		b.record(tx, actor, action, "user:"+policy.FoldLogin(sp.Login))
		return nil
	})
}

// editUser changes an account and leaves what edit does not touch.
func (b *box) editUser(ctx context.Context, login, action string, edit func(*identity.Spec) error) (account, error) {
	b.administering.Lock()
	defer b.administering.Unlock()
	u, err := b.identity.User(ctx, login)
	if err != nil {
		if fault.KindOf(err) == fault.NotExist {
			err = notThere("user", login)
		}
		return account{}, err
	}
	sp := identity.Spec{Login: u.Login, Name: u.Name, Email: u.Email, Group: u.Group, Profile: u.Profile, Roles: u.Roles, Disabled: u.Disabled}
	if err := edit(&sp); err != nil {
		return account{}, err
	}
	if err := identity.CheckSpec(sp); err != nil {
		return account{}, fault.New("appliance.editUser", "", fault.Invalid, err)
	}
	if err := b.putUser(ctx, sp, u.ID, localActor, action); err != nil {
		return account{}, err
	}
	return b.account(ctx, login)
}

func (b *box) changeUser(ctx context.Context, login string, c accountChange) (account, error) {
	out, err := b.editUser(ctx, login, "user.change", func(sp *identity.Spec) error {
		var group string
		var roles []string
		set(&group, c.Group)
		set(&roles, c.Roles)
		if err := b.known(ctx, group, roles); err != nil {
			return err
		}
		set(&sp.Name, c.Name)
		set(&sp.Email, c.Email)
		set(&sp.Group, c.Group)
		set(&sp.Roles, c.Roles)
		set(&sp.Disabled, c.Disabled)
		if c.Profile == nil {
			return nil
		}
		profile, err := policy.ParseProfile(*c.Profile)
		if err != nil {
			return fault.New("appliance.changeUser", "", fault.Invalid, err)
		}
		sp.Profile = profile
		return nil
	})
	if err == nil && c.Disabled != nil && !*c.Disabled {
		b.identity.Forgive(login)
	}
	return out, err
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (b *box) setPassword(ctx context.Context, login, password string) (account, error) {
	made := ""
	if password == "" {
		made = madeUpPassword()
		password = made
	}
	out, err := b.editUser(ctx, login, "user.password", func(sp *identity.Spec) error {
		sp.Password = secret.New(password)
		return nil
	})
	if err == nil {
		b.identity.Forgive(login)
	}
	out.Password = made
	return out, err
}

func (b *box) deleteUser(ctx context.Context, login string) error {
	user, err := b.identity.User(ctx, login)
	if err != nil {
		return b.named("user", login, err)
	}
	return b.named("user", login, b.change(ctx, func(tx *store.Tx) error {
		if err := b.identity.RemoveUser(tx, login); err != nil {
			return err
		}
		if err := b.gateway.ForgetUser(tx, user.ID, user.Login); err != nil {
			return err
		}
		b.record(tx, localActor, "user.delete", "user:"+policy.FoldLogin(login))
		return nil
	}))
}

// named says which thing is not there.
func (b *box) named(kind, name string, err error) error {
	if err != nil && fault.KindOf(err) == fault.NotExist {
		return notThere(kind, name)
	}
	return err
}

func (b *box) groups(ctx context.Context) ([]label, error) {
	groups, err := b.identity.Groups(ctx)
	out := make([]label, len(groups))
	for i, g := range groups {
		out[i] = label{Name: g.Path, Label: g.Label}
	}
	return out, err
}

func (b *box) putGroup(ctx context.Context, l label) error {
	return b.db.Update(ctx, func(tx *store.Tx) error {
		if _, err := b.identity.PutGroup(tx, identity.Group{Path: l.Name, Label: l.Label}); err != nil {
			return err
		}
		b.record(tx, localActor, "group.put", "group:"+l.Name)
		return nil
	})
}

func (b *box) deleteGroup(ctx context.Context, path string) error {
	return b.named("group", path, b.db.Update(ctx, func(tx *store.Tx) error {
		if err := b.identity.RemoveGroup(tx, path); err != nil {
			return err
		}
		b.record(tx, localActor, "group.delete", "group:"+path)
		return nil
	}))
}

func (b *box) roles(ctx context.Context) ([]label, error) {
	roles, err := b.identity.Roles(ctx)
	out := make([]label, len(roles))
	for i, r := range roles {
		out[i] = label{Name: r.Name, Label: r.Label}
	}
	return out, err
}

func (b *box) putRole(ctx context.Context, l label) error {
	return b.db.Update(ctx, func(tx *store.Tx) error {
		if _, err := b.identity.PutRole(tx, identity.Role{Name: l.Name, Label: l.Label}); err != nil {
			return err
		}
		b.record(tx, localActor, "role.put", "role:"+l.Name)
		return nil
	})
}

func (b *box) deleteRole(ctx context.Context, name string) error {
	return b.named("role", name, b.db.Update(ctx, func(tx *store.Tx) error {
		if err := b.identity.RemoveRole(tx, name); err != nil {
			return err
		}
		b.record(tx, localActor, "role.delete", "role:"+name)
		return nil
	}))
}

func (b *box) appPasswords(ctx context.Context, login string) ([]appPassword, error) {
	if _, err := b.account(ctx, login); err != nil {
		return nil, err
	}
	all, err := b.identity.AppPasswords(ctx, login)
	out := make([]appPassword, len(all))
	for i, p := range all {
		out[i] = toAppPassword(p)
	}
	return out, err
}

func toAppPassword(p identity.AppPassword) appPassword {
	protocols := p.Protocols
	if protocols == nil {
		protocols = []string{}
	}
	return appPassword{ID: strconv.FormatInt(p.ID, 10), Label: p.Label, Protocols: protocols, Created: p.Created, Expires: p.Expires}
}

func (b *box) addAppPassword(ctx context.Context, login string, in appPassword) (appPassword, error) {
	const op = "appliance.addAppPassword"
	if in.Label == "" {
		return appPassword{}, fault.New(op, "", fault.Invalid, errors.New("a label is needed, to know later what to revoke"))
	}
	if !in.Expires.IsZero() && in.Expires.Before(b.clock.Now()) {
		return appPassword{}, fault.New(op, "", fault.Invalid, fmt.Errorf("it would have expired on %s", in.Expires.Format(time.RFC3339)))
	}
	p, password, err := b.identity.AddAppPassword(ctx, login, in.Label, in.Expires, in.Protocols)
	if err != nil {
		return appPassword{}, b.named("user", login, err)
	}
	b.note(login, "token.create", in.Label)
	out := toAppPassword(p)
	out.Password = password.Reveal()
	return out, nil
}

func (b *box) revokeAppPassword(ctx context.Context, login, id string) error {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return notThere("app password", id)
	}
	if err := b.named("app password", id, b.identity.DeleteAppPassword(ctx, login, n)); err != nil {
		return err
	}
	b.note(login, "token.revoke", id)
	return nil
}
