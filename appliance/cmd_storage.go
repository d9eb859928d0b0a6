package appliance

import (
	"io"
	"net/http"
	"strings"
	"time"

	"cellgate/gateway"
)

type workspaceCmd struct {
	List   workspaceListCmd   `cmd:"" help:"List workspaces with their state."`
	Show   workspaceShowCmd   `cmd:"" help:"Show a workspace and its grants."`
	Add    workspaceAddCmd    `cmd:"" help:"Make a workspace, or change it."`
	Delete workspaceDeleteCmd `cmd:"" help:"Take a workspace out of everybody's tree. The files stay."`
}

type workspaceListCmd struct{}

func (c *workspaceListCmd) Run(t *term) error {
	var out []workspaceInfo
	if err := t.call(http.MethodGet, at("workspaces"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "SLUG\tLABEL\tROOTS\tUSED\tQUOTA\tSTATE\n")
		for _, ws := range out {
			say(w, "%s\t%s\t%s\t%s\t%s\t%s\n", ws.Slug, orDash(ws.Label), strings.Join(ws.Roots, ","), bytesText(ws.Used), bytesText(ws.Quota), ws.State)
		}
	})
}

type workspaceShowCmd struct {
	Slug string `arg:""`
}

func (c *workspaceShowCmd) Run(t *term) error {
	var ws workspaceInfo
	if err := t.call(http.MethodGet, at("workspaces", c.Slug), nil, &ws); err != nil {
		return err
	}
	return t.show(ws, func(w io.Writer) {
		say(w, "slug\t%s\nlabel\t%s\nroots\t%s\nused\t%s\nquota\t%s\nstate\t%s\n", ws.Slug, orDash(ws.Label), strings.Join(ws.Roots, ", "),
			bytesText(ws.Used), bytesText(ws.Quota), stateText(ws.State, ws.Reason))
		for _, g := range ws.Grants {
			say(w, "grant\t%s\n", g)
		}
	})
}

type workspaceAddCmd struct {
	Slug  string   `arg:"" help:"Name of the folder that users see."`
	Roots []string `arg:"" help:"Where it lies: DATASOURCE:/PATH, several for several folders."`
	Label string   `help:"Name for people."`
	Quota size     `help:"Most bytes it may hold, such as 10GiB." default:"-1"`
	Grant []string `help:"Who may do what: PRINCIPAL=RIGHT+RIGHT, such as group:/staff=read+write." placeholder:"WHO=WHAT" sep:"none"`
}

func (c *workspaceAddCmd) Run(t *term) error {
	in := workspaceInfo{Slug: c.Slug, Label: c.Label, Roots: c.Roots, Quota: int64(c.Quota)}
	for _, g := range c.Grant {
		to, rights, ok := strings.Cut(g, "=")
		if !ok {
			return usagef("--grant %s: PRINCIPAL=RIGHT is expected", g)
		}
		in.Grants = append(in.Grants, grantInfo{To: to, Rights: strings.Split(rights, "+")})
	}
	var out workspaceInfo
	if err := t.call(http.MethodPost, at("workspaces"), in, &out); err != nil {
		return err
	}
	return t.done(out, "workspace %s made", c.Slug)
}

type workspaceDeleteCmd struct {
	Slug string `arg:""`
}

func (c *workspaceDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("workspaces", c.Slug), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("workspace", c.Slug), "workspace %s deleted; its files are where they were", c.Slug)
}

const stateUp = gateway.Up

func stateText(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

// String returns "user:bob read+write until 2027-01-01T00:00:00Z".
func (g grantInfo) String() string {
	s := g.To + " " + strings.Join(g.Rights, "+")
	if g.On != "" {
		s += " on " + g.On
	}
	if !g.Expires.IsZero() {
		s += " until " + g.Expires.Format(time.RFC3339)
	}
	return s
}
