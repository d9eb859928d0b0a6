package appliance

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// call is client.call for a command.
func (t *term) call(method, path string, in, out any) error {
	c, err := t.local()
	if err != nil {
		return err
	}
	return c.call(t.ctx, method, path, in, out)
}

// at makes a path of the API; what people typed stays one segment each.
func at(segments ...string) string {
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/v1/" + strings.Join(segments, "/")
}

type userCmd struct {
	Add     userAddCmd     `cmd:"" help:"Make a user. Without --password-stdin a password is made up and printed."`
	List    userListCmd    `cmd:"" help:"List users."`
	Show    userShowCmd    `cmd:"" help:"Show a user."`
	Change  userChangeCmd  `cmd:"" help:"Change a user."`
	Passwd  userPasswdCmd  `cmd:"" help:"Give a user a new password. Without --password-stdin one is made up and printed."`
	Disable userDisableCmd `cmd:"" help:"Lock a user out, at once and everywhere."`
	Enable  userEnableCmd  `cmd:"" help:"Let a disabled user in again."`
	Delete  userDeleteCmd  `cmd:"" help:"Delete a user. The files stay."`
}

type userAddCmd struct {
	Login         string   `arg:"" help:"Name to sign in with."`
	Name          string   `help:"Full name."`
	Email         string   `help:"Mail address."`
	Group         string   `default:"/" help:"Group the user is in."`
	Profile       string   `default:"standard" enum:"admin,standard,external" help:"admin, standard or external."`
	Roles         []string `help:"Roles."`
	PasswordStdin bool     `help:"Read the password from standard input."`
}

func (c *userAddCmd) Run(t *term) error {
	in := account{Login: c.Login, Name: c.Name, Email: c.Email, Group: c.Group, Profile: c.Profile, Roles: c.Roles}
	if c.PasswordStdin {
		var err error
		if in.Password, err = t.secretLine(); err != nil {
			return err
		}
	}
	var out account
	if err := t.call(http.MethodPost, at("users"), in, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		if out.Password != "" {
			say(w, "%s\n", out.Password)
		}
	})
}

type userListCmd struct{}

func (c *userListCmd) Run(t *term) error {
	var out []account
	if err := t.call(http.MethodGet, at("users"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "LOGIN\tNAME\tGROUP\tPROFILE\tROLES\tSTATE\n")
		for _, u := range out {
			state := "active"
			if u.Disabled {
				state = "disabled"
			}
			say(w, "%s\t%s\t%s\t%s\t%s\t%s\n", u.Login, orDash(u.Name), u.Group, u.Profile, orDash(strings.Join(u.Roles, ",")), state)
		}
	})
}

type userShowCmd struct {
	Login string `arg:""`
}

func (c *userShowCmd) Run(t *term) error {
	var u account
	if err := t.call(http.MethodGet, at("users", c.Login), nil, &u); err != nil {
		return err
	}
	return t.show(u, func(w io.Writer) {
		say(w, "login\t%s\nname\t%s\nemail\t%s\ngroup\t%s\nprofile\t%s\nroles\t%s\ndisabled\t%t\ncreated\t%s\n", u.Login, orDash(u.Name),
			orDash(u.Email), u.Group, u.Profile, orDash(strings.Join(u.Roles, ",")), u.Disabled, stamp(u.Created))
	})
}

type userChangeCmd struct {
	Login   string    `arg:""`
	Name    *string   `help:"Full name."`
	Email   *string   `help:"Mail address."`
	Group   *string   `help:"Group the user is in."`
	Profile *string   `help:"admin, standard or external."`
	Roles   *[]string `help:"Roles, all of them."`
}

func (c *userChangeCmd) Run(t *term) error {
	in := accountChange{Name: c.Name, Email: c.Email, Group: c.Group, Profile: c.Profile, Roles: c.Roles}
	var out account
	if err := t.call(http.MethodPatch, at("users", c.Login), in, &out); err != nil {
		return err
	}
	return t.done(out, "user %s changed", c.Login)
}

type userPasswdCmd struct {
	Login         string `arg:""`
	PasswordStdin bool   `help:"Read the password from standard input."`
}

func (c *userPasswdCmd) Run(t *term) error {
	in := account{}
	if c.PasswordStdin {
		var err error
		if in.Password, err = t.secretLine(); err != nil {
			return err
		}
	}
	var out account
	if err := t.call(http.MethodPut, at("users", c.Login, "password"), in, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		if out.Password != "" {
			say(w, "%s\n", out.Password)
		}
	})
}

type userDisableCmd struct {
	Login string `arg:""`
}

func (c *userDisableCmd) Run(t *term) error { return setDisabled(t, c.Login, true) }

type userEnableCmd struct {
	Login string `arg:""`
}

func (c *userEnableCmd) Run(t *term) error { return setDisabled(t, c.Login, false) }

func setDisabled(t *term, login string, disabled bool) error {
	var out account
	if err := t.call(http.MethodPatch, at("users", login), accountChange{Disabled: &disabled}, &out); err != nil {
		return err
	}
	return t.done(out, "user %s %s", login, map[bool]string{true: "disabled", false: "enabled"}[disabled])
}

type userDeleteCmd struct {
	Login string `arg:""`
}

func (c *userDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("users", c.Login), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("user", c.Login), "user %s deleted", c.Login)
}

type groupCmd struct {
	Add    groupAddCmd    `cmd:"" help:"Make a group, or give it another label."`
	List   groupListCmd   `cmd:"" help:"List groups."`
	Delete groupDeleteCmd `cmd:"" help:"Delete a group that is empty."`
}

type groupAddCmd struct {
	Path  string `arg:"" help:"Such as /staff/it."`
	Label string `help:"Name for people."`
}

func (c *groupAddCmd) Run(t *term) error { return putLabel(t, "groups", c.Path, c.Label) }

type groupListCmd struct{}

func (c *groupListCmd) Run(t *term) error { return listLabels(t, "groups") }

type groupDeleteCmd struct {
	Path string `arg:""`
}

func (c *groupDeleteCmd) Run(t *term) error {
	if c.Path == "/" {
		return usagef("the group / stays: everybody is in it")
	}
	return deleteLabel(t, "groups", c.Path)
}

type roleCmd struct {
	Add    roleAddCmd    `cmd:"" help:"Make a role, or give it another label."`
	List   roleListCmd   `cmd:"" help:"List roles."`
	Delete roleDeleteCmd `cmd:"" help:"Delete a role and take it from who has it."`
}

type roleAddCmd struct {
	Name  string `arg:""`
	Label string `help:"Name for people."`
}

func (c *roleAddCmd) Run(t *term) error { return putLabel(t, "roles", c.Name, c.Label) }

type roleListCmd struct{}

func (c *roleListCmd) Run(t *term) error { return listLabels(t, "roles") }

type roleDeleteCmd struct {
	Name string `arg:""`
}

func (c *roleDeleteCmd) Run(t *term) error { return deleteLabel(t, "roles", c.Name) }

func putLabel(t *term, kind, name, text string) error {
	var out label
	if err := t.call(http.MethodPost, at(kind), label{Name: name, Label: text}, &out); err != nil {
		return err
	}
	return t.done(out, "%s %s made", strings.TrimSuffix(kind, "s"), name)
}

func listLabels(t *term, kind string) error {
	var out []label
	if err := t.call(http.MethodGet, at(kind), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		for _, l := range out {
			say(w, "%s\t%s\n", l.Name, orDash(l.Label))
		}
	})
}

func deleteLabel(t *term, kind, name string) error {
	if err := t.call(http.MethodDelete, at(kind, name), nil, nil); err != nil {
		return err
	}
	one := strings.TrimSuffix(kind, "s")
	return t.done(changedOne(one, name), "%s %s deleted", one, name)
}

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make an app password for a user and print it."`
	List   tokenListCmd   `cmd:"" help:"List a user's app passwords."`
	Revoke tokenRevokeCmd `cmd:"" help:"Revoke an app password."`
}

type tokenCreateCmd struct {
	Login     string         `arg:""`
	Label     string         `required:"" help:"What it is for."`
	Expires   *time.Duration `help:"How long it is valid, such as 720h; without, until revoked."`
	Protocols []string       `help:"Protocols it is good for, of webdav, sftp, s3, rest, fuse; without, all." enum:"webdav,sftp,s3,rest,fuse"`
}

func (c *tokenCreateCmd) Run(t *term) error {
	in := appPassword{Label: c.Label, Protocols: c.Protocols}
	if c.Expires != nil {
		if *c.Expires <= 0 {
			return usagef("--expires %s: it would have expired already", *c.Expires)
		}
		in.Expires = time.Now().Add(*c.Expires).UTC()
	}
	var out appPassword
	if err := t.call(http.MethodPost, at("users", c.Login, "tokens"), in, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) { say(w, "%s\n", out.Password) })
}

type tokenListCmd struct {
	Login string `arg:""`
}

func (c *tokenListCmd) Run(t *term) error {
	var out []appPassword
	if err := t.call(http.MethodGet, at("users", c.Login, "tokens"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "ID\tLABEL\tPROTOCOLS\tCREATED\tEXPIRES\n")
		for _, p := range out {
			say(w, "%s\t%s\t%s\t%s\t%s\n", p.ID, p.Label, orDash(strings.Join(p.Protocols, ",")), stamp(p.Created), stamp(p.Expires))
		}
	})
}

type tokenRevokeCmd struct {
	Login string `arg:""`
	ID    string `arg:"" name:"id"`
}

func (c *tokenRevokeCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("users", c.Login, "tokens", c.ID), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("token", c.ID), "app password revoked")
}
