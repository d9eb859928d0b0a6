package appliance

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cellgate/appliance/strict"
	"cellgate/gateway"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/policy/identity"
)

// state is what somebody declares the box to be. Sections that this build cannot make so are read, so that using them is refused in words.
type state struct {
	Datasources        []stateDatasource `yaml:"datasources"`
	Templates          []stateTemplate   `yaml:"templates"`
	VersioningPolicies []stateVersioning `yaml:"versioningPolicies"`
	Users              []stateUser       `yaml:"users"`
	Groups             []stateGroup      `yaml:"groups"`
	Roles              []stateRole       `yaml:"roles"`
	Workspaces         []stateWorkspace  `yaml:"workspaces"`
	Grants             []stateGrant      `yaml:"grants"`
	Cells              []stateCell       `yaml:"cells"`
	Policies           []statePolicy     `yaml:"policies"`
	Tenancy            struct {
		Enabled bool `yaml:"enabled"`
	} `yaml:"tenancy"`
}

type stateDatasource struct {
	Name        string                   `yaml:"name"`
	Driver      string                   `yaml:"driver"`
	Options     map[string]string        `yaml:"options"`
	Credentials map[string]secret.String `yaml:"credentials"`
	Versioning  string                   `yaml:"versioning"`
	Encryption  string                   `yaml:"encryption"`
	ReadOnly    bool                     `yaml:"readOnly"`
	Durability  string                   `yaml:"durability"`
}

// stateTemplate is a datasource that users complete.
type stateTemplate struct {
	Name        string                   `yaml:"name"`
	Label       string                   `yaml:"label"`
	Driver      string                   `yaml:"driver"`
	Options     map[string]string        `yaml:"options"`
	Credentials map[string]secret.String `yaml:"credentials"`
	Asks        []string                 `yaml:"asks"`
	To          []string                 `yaml:"to"`
	ReadOnly    bool                     `yaml:"readOnly"`
}

type stateVersioning struct {
	Name string `yaml:"name"`
	Keep []struct {
		Within duration `yaml:"within"`
		Max    int      `yaml:"max"`
	} `yaml:"keep"`
	OnDelete         string `yaml:"onDelete"`
	IgnoreLargerThan size   `yaml:"ignoreLargerThan"`
}

type stateUser struct {
	Login        string        `yaml:"login"`
	Password     secret.String `yaml:"password"`
	PasswordHash secret.String `yaml:"passwordHash"`
	Name         string        `yaml:"name"`
	Email        string        `yaml:"email"`
	Group        string        `yaml:"group"`
	Profile      string        `yaml:"profile"`
	Roles        []string      `yaml:"roles"`
	Disabled     bool          `yaml:"disabled"`
	Quota        *size         `yaml:"quota"`
	SSHKeys      []string      `yaml:"sshKeys"`
	S3Keys       []stateS3Key  `yaml:"s3Keys"`

	Credentials []map[string]secret.String `yaml:"credentials"`
}

type stateS3Key struct {
	ID     string        `yaml:"id"`
	Secret secret.String `yaml:"secret"`
}

type stateGroup struct {
	Path  string `yaml:"path"`
	Label string `yaml:"label"`
}

type stateRole struct {
	Name  string `yaml:"name"`
	Label string `yaml:"label"`
}

type stateWorkspace struct {
	Slug   string       `yaml:"slug"`
	Label  string       `yaml:"label"`
	Roots  []string     `yaml:"roots"`
	Quota  *size        `yaml:"quota"`
	Grants []stateGrant `yaml:"grants"`
}

type stateGrant struct {
	To      string    `yaml:"to"`
	On      string    `yaml:"on"`
	Rights  []string  `yaml:"rights"`
	Expires time.Time `yaml:"expires"`
}

type stateCell struct {
	Slug    string       `yaml:"slug"`
	Label   string       `yaml:"label"`
	Owner   string       `yaml:"owner"`
	Roots   []string     `yaml:"roots"`
	Members []stateGrant `yaml:"members"`
	Expires time.Time    `yaml:"expires"`
}

type statePolicy struct {
	Name   string       `yaml:"name"`
	Label  string       `yaml:"label"`
	Kind   string       `yaml:"kind"`
	Rules  []guard.Rule `yaml:"rules"`
	Guards []string     `yaml:"guards"`
}

// duration is a time.Duration, which YAML files write as 10m.
type duration = time.Duration

// world is what exists before a state is applied, as far as a state may refer to it.
type world struct {
	users       map[string]identity.User
	groups      map[string]string // label by path
	roles       map[string]identity.Role
	datasources map[string]gateway.Datasource
	workspaces  map[string]gateway.Workspace
	policies    map[string]policy.Policy
}

func has[T any](m map[string]T, name string) bool {
	_, ok := m[name]
	return ok
}

// checker finds everything that is wrong with a state.
type checker struct {
	doc      *strict.Document
	st       *state
	world    world
	gateway  *gateway.Gateway
	engine   *policy.Engine
	problems strict.Problems
	warnings strict.Problems
}

func (c *checker) bad(key, format string, args ...any) {
	c.problems = append(c.problems, c.doc.Problem(key, format, args...))
}

// later refuses what this build does not have.
func (c *checker) later(key, what string) { c.bad(key, "%s not in this build", what) }

func (c *checker) all() {
	st := c.st
	for i, d := range st.Datasources {
		c.datasource(key("datasources", i), d)
	}
	for i, t := range st.Templates {
		c.template(key("templates", i), t)
	}
	if len(st.Cells) > 0 {
		c.later("cells", "Cells are")
	}
	if st.Tenancy.Enabled {
		c.later("tenancy.enabled", "group tenancy is")
	}
	for i, v := range st.VersioningPolicies {
		c.versioning(key("versioningPolicies", i), v)
	}
	c.identity()
	for i, w := range st.Workspaces {
		c.workspace(key("workspaces", i), w)
	}
	for i, g := range st.Grants {
		k := key("grants", i)
		c.grant(k, g)
		if g.On == "" {
			c.bad(k, "on is missing: workspace:/path or datasource:/path")
		} else {
			c.place(k+".on", g.On)
		}
	}
	for i, p := range st.Policies {
		c.policy(key("policies", i), p)
	}
	c.twice()
}

func (c *checker) datasource(key string, d stateDatasource) {
	for _, err := range c.gateway.CheckDatasource(d.gateway()) {
		c.bad(key, "%s", plain(err))
	}
	if d.Versioning != "" && d.Versioning != "none" {
		c.later(key+".versioning", "versions are")
	}
	if d.Encryption != "" && d.Encryption != "none" {
		c.later(key+".encryption", "encryption is")
	}
}

func (c *checker) versioning(key string, v stateVersioning) {
	if v.Name == "" {
		c.bad(key, "name is missing")
	}
	if v.OnDelete != "" && !slices.Contains([]string{"all", "last", "none"}, v.OnDelete) {
		c.bad(key+".onDelete", "all, last or none is expected")
	}
	for i, k := range v.Keep {
		if k.Within <= 0 {
			c.bad(fmt.Sprintf("%s.keep[%d].within", key, i), "a period such as 10m is expected")
		}
		if k.Max < -1 {
			c.bad(fmt.Sprintf("%s.keep[%d].max", key, i), "a number is expected, -1 for all")
		}
	}
	p := c.doc.Problem(key, "versions are not in this build; the policy is not kept")
	c.warnings = append(c.warnings, p)
}

func (c *checker) identity() {
	for i, g := range c.st.Groups {
		if _, err := policy.CanonicalGroup(g.Path); err != nil {
			c.bad(fmt.Sprintf("groups[%d].path", i), "%v", err)
		}
	}
	for i, r := range c.st.Roles {
		if _, err := policy.ParsePrincipal("role:" + r.Name); err != nil {
			c.bad(fmt.Sprintf("roles[%d].name", i), "%v", err)
		}
	}
	for i, u := range c.st.Users {
		c.user(key("users", i), u)
	}
	c.admins()
}

// admins refuses a state that leaves nobody to administer the box.
func (c *checker) admins() {
	left, taken := map[string]bool{}, ""
	for login, u := range c.world.users {
		if u.Profile == policy.Admin && !u.Disabled {
			left[login] = true
		}
	}
	for i, u := range c.st.Users {
		login := policy.FoldLogin(u.Login)
		switch {
		case u.Profile == "admin" && !u.Disabled:
			left[login] = true
		case left[login] && u.Disabled:
			taken = key("users", i) + ".disabled"
			delete(left, login)
		case left[login]:
			taken = key("users", i) + ".profile"
			delete(left, login)
		}
	}
	if len(left) == 0 && taken != "" {
		c.bad(taken, "this would leave the box without an admin who can sign in; make another user admin first")
	}
}

func (c *checker) user(key string, u stateUser) {
	sp, err := u.spec()
	if err != nil {
		c.bad(key+".profile", "%v", err)
	}
	for _, err := range flatten(identity.CheckSpec(sp)) {
		c.bad(key, "%v", err)
	}
	for _, k := range []string{".password", ".passwordHash"} {
		if c.doc.Has(key+k) && u.Password.IsZero() && u.PasswordHash.IsZero() {
			c.bad(key+k, "it is empty; without the key the password stays as it is, and disabled: true locks the user out")
		}
	}
	for i, own := range u.Credentials {
		c.credentials(fmt.Sprintf("%s.credentials[%d]", key, i), own)
	}
}

// credentials looks at a user's own credentials for a datasource.
func (c *checker) credentials(key string, own map[string]secret.String) {
	name := own["datasource"].Reveal()
	d, known := c.world.datasources[name]
	for _, declared := range c.st.Datasources {
		if declared.Name == name {
			d, known = declared.gateway(), true
		}
	}
	switch {
	case name == "":
		c.bad(key, "datasource is missing: whose credentials these are")
	case !known:
		c.bad(key+".datasource", "there is no datasource %q", name)
	case d.Mode != gateway.PerUser:
		c.bad(key+".datasource", "datasource %s is not in the mode user: its credentials are not each user's own", name)
	case len(own) == 1:
		c.bad(key, "no credentials are given")
	default:
		for _, err := range c.gateway.CheckCredentials(d.Driver, ownSecrets(own)) {
			c.bad(key, "%v", err)
		}
	}
}

// ownSecrets are the credentials among the keys of an entry.
func ownSecrets(own map[string]secret.String) map[string]secret.String {
	out := maps.Clone(own)
	delete(out, "datasource")
	return out
}

func (c *checker) template(key string, t stateTemplate) {
	for _, err := range c.gateway.CheckTemplate(t.gateway()) {
		c.bad(key, "%s", plain(err))
	}
	for i, to := range t.To {
		if _, err := policy.ParsePrincipal(to); err != nil {
			c.bad(fmt.Sprintf("%s.to[%d]", key, i), "%v", err)
		}
	}
}

func (t stateTemplate) gateway() gateway.Template {
	out := gateway.Template{Name: t.Name, Label: t.Label, Driver: t.Driver, Options: t.Options, Credentials: t.Credentials, Asks: t.Asks, ReadOnly: t.ReadOnly}
	for _, to := range t.To {
		if p, err := policy.ParsePrincipal(to); err == nil {
			out.To = append(out.To, p)
		}
	}
	return out
}

// flatten takes apart what errors.Join put together.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

func (c *checker) workspace(key string, w stateWorkspace) {
	names := make([]string, 0, len(c.st.Datasources))
	for _, d := range c.st.Datasources {
		names = append(names, d.Name)
	}
	for _, err := range c.gateway.CheckWorkspace(w.gateway(), names...) {
		c.bad(key, "%s", plain(err))
	}
	for i, g := range w.Grants {
		gk := fmt.Sprintf("%s.grants[%d]", key, i)
		c.grant(gk, g)
		if g.On != "" {
			c.bad(gk+".on", "a grant of a workspace is on the workspace; declare others under grants")
		}
	}
}

func (c *checker) grant(key string, g stateGrant) {
	who, err := policy.ParsePrincipal(g.To)
	if err != nil {
		c.bad(key+".to", "%v", err)
	} else {
		c.principal(key+".to", who)
	}
	if _, name, err := policy.ParseRights(g.Rights); err != nil {
		c.bad(key+".rights", "%v", err)
	} else if name != "" && !has(c.world.policies, name) && !slices.ContainsFunc(c.st.Policies, func(p statePolicy) bool { return p.Name == name }) {
		c.bad(key+".rights", "there is no policy %q; declare it under policies", name)
	}
}

// principal reports a principal that names nobody: a slip of the pen there would give rights to nobody, or deny nobody.
func (c *checker) principal(key string, who policy.Principal) {
	kind, name, _ := strings.Cut(string(who), ":")
	found := true
	switch kind {
	case "user":
		found = has(c.world.users, name) || slices.ContainsFunc(c.st.Users, func(u stateUser) bool { return policy.FoldLogin(u.Login) == name })
	case "group":
		found = c.hasGroup(name)
	case "role":
		found = c.hasRole(name)
	case "team", "link":
		c.later(key, kind+"s are")
	}
	if !found {
		c.bad(key, "there is no %s %q; declare it under %ss", kind, name, kind)
	}
}

func (c *checker) hasRole(name string) bool {
	return has(c.world.roles, name) || slices.ContainsFunc(c.st.Roles, func(r stateRole) bool { return r.Name == name }) ||
		slices.ContainsFunc(c.st.Users, func(u stateUser) bool { return slices.Contains(u.Roles, name) })
}

func (c *checker) hasGroup(path string) bool {
	if path == "/" || has(c.world.groups, path) {
		return true
	}
	under := func(declared string) bool {
		g, err := policy.CanonicalGroup(declared)
		return err == nil && (g == path || strings.HasPrefix(g, path+"/"))
	}
	return slices.ContainsFunc(c.st.Groups, func(g stateGroup) bool { return under(g.Path) }) ||
		slices.ContainsFunc(c.st.Users, func(u stateUser) bool { return under(u.Group) })
}

func (c *checker) policy(key string, p statePolicy) {
	for _, err := range c.engine.CheckPolicy(policy.Policy{Policy: p.guard()}) {
		c.bad(key, "%v", err)
	}
	for i, on := range p.Guards {
		c.place(fmt.Sprintf("%s.guards[%d]", key, i), on)
	}
}

// place reports what a grant or guard is on and does not exist. A root of a workspace that names it too does not make it exist.
func (c *checker) place(key, on string) {
	head, _, ok := strings.Cut(on, ":")
	known := has(c.world.datasources, head) || has(c.world.workspaces, head) ||
		slices.ContainsFunc(c.st.Datasources, func(d stateDatasource) bool { return d.Name == head }) ||
		slices.ContainsFunc(c.st.Workspaces, func(w stateWorkspace) bool { return w.Slug == head })
	if ok && !known {
		c.bad(key, "%s: there is no workspace or datasource %q", on, head)
	} else if _, err := c.st.place(c.gateway, on); err != nil {
		c.bad(key, "%s", plain(err))
	}
}

// place returns what a grant or guard is on. A datasource may only be being declared, so that the core does not know it yet.
func (st *state) place(g *gateway.Gateway, on string) (policy.Place, error) {
	head, _, _ := strings.Cut(on, ":")
	at, err := g.GrantPlace(on, st.workspaces()...)
	if err != nil && slices.ContainsFunc(st.Datasources, func(d stateDatasource) bool { return d.Name == head }) &&
		!slices.ContainsFunc(st.Workspaces, func(w stateWorkspace) bool { return w.Slug == head }) {
		return g.RootPlace(on)
	}
	return at, err
}

// twice reports names that are declared twice: the second would silently win.
func (c *checker) twice() {
	list := func(section, field string, n int, name func(int) string) {
		seen := map[string]bool{}
		for i := range n {
			if seen[name(i)] {
				c.bad(fmt.Sprintf("%s[%d].%s", section, i, field), "%q is declared twice", name(i))
			}
			seen[name(i)] = true
		}
	}
	st := c.st
	list("datasources", "name", len(st.Datasources), func(i int) string { return st.Datasources[i].Name })
	list("templates", "name", len(st.Templates), func(i int) string { return st.Templates[i].Name })
	list("users", "login", len(st.Users), func(i int) string { return policy.FoldLogin(st.Users[i].Login) })
	list("groups", "path", len(st.Groups), func(i int) string { return st.Groups[i].Path })
	list("roles", "name", len(st.Roles), func(i int) string { return st.Roles[i].Name })
	list("workspaces", "slug", len(st.Workspaces), func(i int) string { return st.Workspaces[i].Slug })
	list("policies", "name", len(st.Policies), func(i int) string { return st.Policies[i].Name })
}

// workspaces returns the declared workspaces as the core knows them.
func (st *state) workspaces() []gateway.Workspace {
	ws := make([]gateway.Workspace, len(st.Workspaces))
	for i, w := range st.Workspaces {
		ws[i] = w.gateway()
	}
	return ws
}

func (w stateWorkspace) gateway() gateway.Workspace {
	out := gateway.Workspace{Slug: w.Slug, Label: w.Label, Roots: w.Roots, Quota: -1}
	if w.Quota != nil {
		out.Quota = int64(*w.Quota)
	}
	return out
}

func (d stateDatasource) gateway() gateway.Datasource {
	out := gateway.Datasource{Name: d.Name, Driver: d.Driver, Options: d.Options, ReadOnly: d.ReadOnly, Durability: d.Durability}
	for k, v := range d.Credentials {
		switch k {
		case "mode":
			out.Mode = v.Reveal()
			continue
		case "fallback":
			out.Fallback = v.Reveal()
			continue
		}
		if out.Credentials == nil {
			out.Credentials = map[string]secret.String{}
		}
		out.Credentials[k] = v
	}
	return out
}

func (p statePolicy) guard() guard.Policy {
	return guard.Policy{Name: p.Name, Label: p.Label, Kind: p.Kind, Rules: p.Rules}
}

func (u stateUser) spec() (identity.Spec, error) {
	sp := identity.Spec{
		Login: u.Login, Password: u.Password, PasswordHash: u.PasswordHash.Reveal(), Name: u.Name, Email: u.Email, Group: u.Group,
		Profile: policy.Standard, Roles: u.Roles, Disabled: u.Disabled, SSHKeys: u.SSHKeys,
	}
	if u.S3Keys != nil {
		sp.S3Keys = make([]identity.S3Pair, len(u.S3Keys))
		for i, k := range u.S3Keys {
			sp.S3Keys[i] = identity.S3Pair{ID: k.ID, Secret: k.Secret}
		}
	}
	switch u.Profile {
	case "", "standard":
	case "external":
		sp.Profile = policy.External
	case "admin":
		sp.Profile = policy.Admin
	default:
		return sp, errors.New("admin, standard or external is expected")
	}
	return sp, nil
}

// key names an entry of a section.
func key(section string, i int) string { return fmt.Sprintf("%s[%d]", section, i) }
