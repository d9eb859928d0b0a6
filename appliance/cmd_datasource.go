package appliance

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"cellgate/gateway"
)

type datasourceCmd struct {
	List        datasourceListCmd        `cmd:"" help:"List datasources with their state."`
	Show        datasourceShowCmd        `cmd:"" help:"Show a datasource and what it guarantees."`
	Add         datasourceAddCmd         `cmd:"" help:"Attach a datasource, or change it."`
	Test        datasourceTestCmd        `cmd:"" help:"Try what a datasource can do, and how fast, by writing to a folder of the box's own."`
	Forget      datasourceForgetCmd      `cmd:"" help:"Forget what was learnt of a datasource's server, such as its host key; it is learnt anew at once."`
	Credentials datasourceCredentialsCmd `cmd:"" help:"Manage users' own credentials for datasources in the mode user."`
	Template    datasourceTemplateCmd    `cmd:"" help:"Manage templates: datasources that users complete."`
	Options     datasourceOptionsCmd     `cmd:"" help:"Print what each driver can be told."`
	Delete      datasourceDeleteCmd      `cmd:"" help:"Detach a datasource. The files stay."`
}

type datasourceListCmd struct{}

func (c *datasourceListCmd) Run(t *term) error {
	var out []datasourceInfo
	if err := t.call(http.MethodGet, at("datasources"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "NAME\tDRIVER\tFREE\tSTATE\n")
		for _, d := range out {
			say(w, "%s\t%s\t%s\t%s\n", d.Name, d.Driver, bytesText(d.Free), stateText(d.State, d.Reason))
		}
	})
}

type datasourceShowCmd struct {
	Name string `arg:""`
}

func (c *datasourceShowCmd) Run(t *term) error {
	var d datasourceInfo
	if err := t.call(http.MethodGet, at("datasources", c.Name), nil, &d); err != nil {
		return err
	}
	return t.show(d, func(w io.Writer) { d.print(w) })
}

func (d *datasourceInfo) print(w io.Writer) {
	say(w, "name\t%s\ndriver\t%s\n", d.Name, d.Driver)
	for _, k := range slices.Sorted(maps.Keys(d.Options)) {
		say(w, "option %s\t%s\n", k, d.Options[k])
	}
	say(w, "credentials\t%s\n", d.Mode)
	for _, k := range d.Credentials {
		say(w, "credential %s\t(sealed)\n", k)
	}
	say(w, "read-only\t%t\ndurability\t%s\nstate\t%s\nsince\t%s\n", d.ReadOnly, d.Durability, stateText(d.State, d.Reason), stamp(d.Since))
	if d.Mode != gateway.Shared {
		say(w, "users\t%d\n", d.Users)
	}
	say(w, "total\t%s\nfree\t%s\n", bytesText(d.Total), bytesText(d.Free))
	if d.Age > 0 {
		say(w, "age of listings\tat most %v\n", d.Age.Duration())
	}
	if c := d.Calls; c != nil {
		say(w, "calls\t%d under way, %d failed, %v each\n", c.Calls, c.Failures, c.Mean.Duration().Round(10*time.Microsecond))
	}
	for _, p := range d.Pending {
		say(w, "waits to be written\t%s\n", p)
	}
	d.printGuarantees(w)
}

// printGuarantees prints the table of what can be relied on.
func (d *datasourceInfo) printGuarantees(w io.Writer) {
	if len(d.Guarantees) == 0 {
		return
	}
	say(w, "\nGUARANTEE\tSUPPORT\tFOUND\n")
	for _, g := range d.Guarantees {
		found := "as the driver says"
		switch {
		case g.Failed:
			found = "FAILED"
		case g.Tested:
			found = "tried"
		}
		if g.Detail != "" {
			found += ": " + g.Detail
		}
		say(w, "%s\t%s\t%s\n", g.Name, g.Support, found)
	}
	if !d.Tried.IsZero() {
		say(w, "last tried\t%s\t\n", stamp(d.Tried))
	}
}

type datasourceAddCmd struct {
	Name        string            `arg:""`
	Driver      string            `help:"Kind of storage." default:"local"`
	Option      map[string]string `help:"What the driver has to know, such as path=/srv/files. See cellgate datasource options." placeholder:"KEY=VALUE" mapsep:"none"`
	Mode        string            `help:"Whose credentials: shared, user or session." default:"shared" enum:"shared,user,session"`
	Fallback    string            `help:"In the modes user and session, for who has none of his own: refuse or shared." default:"refuse" enum:"refuse,shared"`
	Credentials bool              `help:"Read credentials from standard input, KEY=VALUE a line." name:"credentials-stdin"`
	ReadOnly    bool              `help:"Never write to it."`
	Durability  string            `help:"synced or written." default:"synced" enum:"synced,written"`
}

func (c *datasourceAddCmd) Run(t *term) error {
	in := datasourcePut{
		Name: c.Name, Driver: c.Driver, Options: c.Option, Mode: c.Mode, Fallback: c.Fallback, ReadOnly: c.ReadOnly, Durability: c.Durability,
	}
	if c.Credentials {
		var err error
		if in.Secrets, err = t.secretLines(); err != nil {
			return err
		}
	}
	var out datasourceInfo
	if err := t.call(http.MethodPost, at("datasources"), in, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) { say(w, "%s\t%s\n", out.Name, stateText(out.State, out.Reason)) })
}

// secretLines reads KEY=VALUE lines. In a value, \n stands for a new line: private keys have some.
func (t *term) secretLines() (map[string]string, error) {
	text, err := io.ReadAll(io.LimitReader(t.in, 64<<10))
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			continue
		}
		key, v, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			return nil, usagef("standard input: KEY=VALUE is expected on each line")
		}
		values[key] = strings.ReplaceAll(v, `\n`, "\n")
	}
	if len(values) == 0 {
		return nil, usagef("standard input: nothing was given")
	}
	return values, nil
}

type datasourceTestCmd struct {
	Name string `arg:""`
}

func (c *datasourceTestCmd) Run(t *term) error {
	var out datasourceInfo
	if err := t.call(http.MethodPost, at("datasources", c.Name, "test"), nil, &out); err != nil {
		return err
	}
	err := t.show(out, func(w io.Writer) {
		say(w, "%s\t%s\n", out.Name, stateText(out.State, out.Reason))
		if l := out.Latency; l != nil {
			for _, f := range []struct {
				name string
				took millis
			}{{"stat", l.Stat}, {"list", l.List}, {"write 4 KiB", l.Put}, {"read 4 KiB", l.Get}, {"delete", l.Remove}} {
				if f.took > 0 {
					say(w, "%s\t%v\n", f.name, f.took.Duration().Round(10*time.Microsecond))
				}
			}
		}
		out.printGuarantees(w)
	})
	if err != nil {
		return err
	}
	if out.State == gateway.Down || slices.ContainsFunc(out.Guarantees, func(g guarantee) bool { return g.Failed }) {
		return errReported
	}
	return nil
}

type datasourceForgetCmd struct {
	Name string `arg:""`
}

func (c *datasourceForgetCmd) Run(t *term) error {
	var out datasourceInfo
	if err := t.call(http.MethodPost, at("datasources", c.Name, "forget"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) { say(w, "%s\t%s\n", out.Name, stateText(out.State, out.Reason)) })
}

type datasourceDeleteCmd struct {
	Name string `arg:""`
}

func (c *datasourceDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("datasources", c.Name), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("datasource", c.Name), "datasource %s detached; its files are where they were", c.Name)
}

type datasourceCredentialsCmd struct {
	List   credentialsListCmd   `cmd:"" help:"List who has stored credentials."`
	Set    credentialsSetCmd    `cmd:"" help:"Store a user's credentials, read from standard input, KEY=VALUE a line."`
	Delete credentialsDeleteCmd `cmd:"" help:"Forget a user's credentials."`
}

type credentialsListCmd struct {
	Name string `arg:""`
}

func (c *credentialsListCmd) Run(t *term) error {
	var out []credentialInfo
	if err := t.call(http.MethodGet, at("datasources", c.Name, "credentials"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "USER\tCHANGED\n")
		for _, h := range out {
			say(w, "%s\t%s\n", h.User, stamp(h.Changed))
		}
	})
}

type credentialsSetCmd struct {
	Name string `arg:""`
	User string `arg:""`
}

func (c *credentialsSetCmd) Run(t *term) error {
	values, err := t.secretLines()
	if err != nil {
		return err
	}
	if err := t.call(http.MethodPost, at("datasources", c.Name, "credentials"), credentialInfo{User: c.User, Secrets: values}, nil); err != nil {
		return err
	}
	return t.done(changedOne("credentials", c.Name+" "+c.User), "credentials of %s for %s stored", c.User, c.Name)
}

type credentialsDeleteCmd struct {
	Name string `arg:""`
	User string `arg:""`
}

func (c *credentialsDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodPost, at("datasources", c.Name, "credentials"), credentialInfo{User: c.User}, nil); err != nil {
		return err
	}
	return t.done(changedOne("credentials", c.Name+" "+c.User), "credentials of %s for %s forgotten", c.User, c.Name)
}

type datasourceTemplateCmd struct {
	List     templateListCmd     `cmd:"" help:"List templates; with --user those that a user may complete."`
	Complete templateCompleteCmd `cmd:"" help:"Complete a template for a user: what it asks for is read from standard input, KEY=VALUE a line."`
	Delete   templateDeleteCmd   `cmd:"" help:"Delete a template. What users have completed stays."`
}

type templateListCmd struct {
	User string `help:"Only those that this user may complete."`
}

func (c *templateListCmd) Run(t *term) error {
	var out []templateInfo
	path := at("templates")
	if c.User != "" {
		path += "?user=" + c.User
	}
	if err := t.call(http.MethodGet, path, nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "NAME\tLABEL\tDRIVER\tASKS FOR\tWHO MAY\n")
		for _, d := range out {
			say(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, orDash(d.Label), d.Driver, strings.Join(d.Asks, ","), strings.Join(d.To, ","))
		}
	})
}

type templateCompleteCmd struct {
	Name string `arg:""`
	User string `arg:""`
}

func (c *templateCompleteCmd) Run(t *term) error {
	values, err := t.secretLines()
	if err != nil {
		return err
	}
	var out completedInfo
	if err := t.call(http.MethodPost, at("templates", c.Name, "complete"), credentialInfo{User: c.User, Secrets: values}, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) { say(w, "workspace %s\t%s\n", out.Workspace, stateText(out.State, out.Reason)) })
}

type templateDeleteCmd struct {
	Name string `arg:""`
}

func (c *templateDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("templates", c.Name), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("template", c.Name), "template %s deleted; what users have completed stays", c.Name)
}

type datasourceOptionsCmd struct {
	Driver string `arg:"" optional:"" help:"Only this driver."`
}

func (c *datasourceOptionsCmd) Run(t *term) error {
	kinds := drivers("")
	slices.SortFunc(kinds, func(a, b driverKind) int { return strings.Compare(a.Name, b.Name) })
	var out []driverInfo
	for _, d := range kinds {
		if c.Driver != "" && c.Driver != d.Name {
			continue
		}
		info := driverInfo{Driver: d.Name, Options: optionInfos(append(slices.Clone(d.Options), gateway.Spellings(d)...)), Credentials: optionInfos(d.Secrets)}
		out = append(out, info)
	}
	if len(out) == 0 {
		return usagef("there is no driver %q", c.Driver)
	}
	out = append(out, driverInfo{Driver: "any", Options: optionInfos(gateway.Tunings())})
	return t.show(out, func(w io.Writer) {
		for i, d := range out {
			if i > 0 {
				say(w, "\n")
			}
			say(w, "%s\n", map[bool]string{true: "every driver", false: "driver " + d.Driver}[d.Driver == "any"])
			for _, o := range d.Options {
				say(w, "  option %s\t%s\n", o.Name, o)
			}
			for _, o := range d.Credentials {
				say(w, "  credential %s\t%s\n", o.Name, o)
			}
		}
	})
}

// String is the help, with whether it is required.
func (o optionInfo) String() string {
	if o.Required {
		return fmt.Sprintf("%s (required)", o.Help)
	}
	return o.Help
}
