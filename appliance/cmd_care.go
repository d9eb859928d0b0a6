package appliance

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"cellgate/store"
)

type configCmd struct{}

func (c *configCmd) Run(t *term) error {
	_, err := io.WriteString(t.out, Example())
	return err
}

type applyCmd struct {
	File string `short:"f" required:"" help:"File with the declared state, YAML or JSON; - is standard input." placeholder:"FILE"`
}

func (c *applyCmd) Run(t *term) error {
	r, name, err := t.input(c.File)
	if err != nil {
		return err
	}
	defer r.Close()
	src, err := io.ReadAll(io.LimitReader(r, 9<<20))
	if err != nil {
		return err
	}
	box, err := t.local()
	if err != nil {
		return err
	}
	res, err := box.send(t.ctx, http.MethodPost, "/v1/apply?source="+url.QueryEscape(name), bytes.NewReader(src))
	if err != nil {
		return err
	}
	defer res.Close()
	var out applied
	if err := json.NewDecoder(res).Decode(&out); err != nil {
		return err
	}
	for _, w := range out.Warnings {
		say(t.err, "warning: %s\n", w)
	}
	return t.show(out, func(w io.Writer) { out.print(w) })
}

func (a *applied) print(w io.Writer) {
	for _, c := range a.Changes {
		say(w, "%s\n", c)
	}
	if len(a.Changes) == 0 {
		say(w, "nothing changed\n")
	}
}

type explainCmd struct {
	User     string    `required:"" help:"Login of who wants to."`
	Action   string    `required:"" help:"list, preview, download, create, modify, delete, share; read and write stand for download and modify."`
	Path     string    `required:"" help:"Path as that user sees it, such as /docs/a.txt."`
	Protocol string    `help:"Protocol it comes by: webdav, sftp, s3, rest or fuse." default:"webdav" enum:"webdav,sftp,s3,rest,fuse"`
	IP       string    `name:"ip" help:"Address it comes from."`
	Client   string    `help:"User agent."`
	Method   string    `help:"HTTP method."`
	At       time.Time `help:"When, such as 2026-12-01T20:00:00+01:00; now without." format:"2006-01-02T15:04:05Z07:00"`
}

func (c *explainCmd) Run(t *term) error {
	in := question{User: c.User, Action: c.Action, Path: c.Path, Protocol: c.Protocol, Addr: c.IP, Client: c.Client, Method: c.Method, At: c.At}
	var out answer
	if err := t.call(http.MethodPost, at("explain"), in, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		verdict := "denied"
		if out.Allowed {
			verdict = "allowed"
		}
		say(w, "%s: %s\n", verdict, out.Rule)
		for _, line := range out.Trace {
			say(w, "  %s\n", line)
		}
	})
}

type policyCmd struct {
	List   policyListCmd   `cmd:"" help:"List security policies."`
	Show   policyShowCmd   `cmd:"" help:"Show a security policy."`
	Delete policyDeleteCmd `cmd:"" help:"Delete a security policy. Grants that name it give nothing then."`
}

type policyListCmd struct{}

func (c *policyListCmd) Run(t *term) error {
	var out []policyInfo
	if err := t.call(http.MethodGet, at("policies"), nil, &out); err != nil {
		return err
	}
	return t.show(out, func(w io.Writer) {
		say(w, "NAME\tKIND\tGUARDS\n")
		for _, p := range out {
			say(w, "%s\t%s\t%s\n", p.Name, p.Kind, orDash(strings.Join(p.Guards, ",")))
		}
	})
}

type policyShowCmd struct {
	Name string `arg:""`
}

func (c *policyShowCmd) Run(t *term) error {
	var p policyInfo
	if err := t.call(http.MethodGet, at("policies", c.Name), nil, &p); err != nil {
		return err
	}
	t.cli.JSON = true // rules are nested; JSON shows them best, and is what apply takes
	return t.show(p, nil)
}

type policyDeleteCmd struct {
	Name string `arg:""`
}

func (c *policyDeleteCmd) Run(t *term) error {
	if err := t.call(http.MethodDelete, at("policies", c.Name), nil, nil); err != nil {
		return err
	}
	return t.done(changedOne("policy", c.Name), "policy %s deleted", c.Name)
}

type versionCmd struct{}

func (c *versionCmd) Run(t *term) error {
	v := thisVersion()
	return t.show(v, func(w io.Writer) {
		say(w, "cellgate %s %s %s\n", v.Version, v.Revision, v.Go)
	})
}

// thisVersion says what the binary was built from.
func thisVersion() version {
	v := version{Version: "devel", Revision: "unknown", Go: runtime.Version(), Doors: append(slices.Clone(doors), "fuse"), Drivers: driverNames()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = strings.Trim(info.Main.Version, "()")
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			v.Revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			v.Revision += "+"
		}
	}
	return v
}

type backupCmd struct {
	File string `arg:"" help:"File to write, which must not exist; - is standard output."`
}

func (c *backupCmd) Run(t *term) error {
	if t.cli.Server != "" || t.cli.Token != "" {
		return usagef("--server and --token are not in this build; run the command where the box runs")
	}
	if c.File == "-" {
		return t.backup(t.out)
	}
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = t.backup(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(c.File)
		return err
	}
	return t.done(changedOne("file", c.File), "written to %s; it holds the box's keys, so keep it like a password", c.File)
}

// backup asks the running box for a backup, or makes it from the data folder when none runs.
func (t *term) backup(w io.Writer) error {
	running, err := t.local()
	if err != nil {
		return err
	}
	res, err := running.send(t.ctx, http.MethodGet, "/v1/backup", nil)
	if errors.Is(err, errNoBox) {
		return t.offline(func(b *box) error { return writeBackup(t.ctx, b.db, t.cli.Data, w) })
	}
	if err != nil {
		return err
	}
	defer res.Close()
	_, err = io.Copy(w, res) // a backup that failed half-way ends the connection, which is an error here
	return err
}

type restoreCmd struct {
	File string `arg:"" help:"Backup to read; - is standard input."`
}

func (c *restoreCmd) Run(t *term) error {
	cfg, err := t.config()
	if err != nil {
		return err
	}
	r, _, err := t.input(c.File)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := restoreBackup(t.ctx, store.Config{URL: cfg.Database.Reveal(), Dir: cfg.Data}, r); err != nil {
		return err
	}
	return t.done(changedOne("folder", filepath.Clean(cfg.Data)), "restored into %s", filepath.Clean(cfg.Data))
}

type fsckCmd struct {
	Repair  bool `help:"Also repair what can be repaired without loss."`
	Verbose bool `help:"Also list the files that other tools have changed, which they may."`
}

func (c *fsckCmd) Run(t *term) error {
	var out []finding
	path := "/v1/fsck"
	if c.Repair {
		path += "?repair=true"
	}
	err := t.call(http.MethodPost, path, nil, &out)
	if errors.Is(err, errNoBox) {
		err = t.offline(func(b *box) error {
			out, err = b.fsck(t.ctx, c.Repair)
			return err
		})
	}
	if err != nil {
		return err
	}
	found, open, outside := 0, 0, 0
	for _, f := range out {
		switch {
		case f.Outside:
			outside++
			continue
		case !f.Repaired:
			open++
		}
		found++
	}
	if err := t.show(out, func(w io.Writer) {
		for _, f := range out {
			if !f.Outside || c.Verbose {
				say(w, "%s\t%s\t%s\n", f.state(), orDash(f.Place), f.Text)
			}
		}
		if outside > 0 {
			more := ""
			if !c.Verbose {
				more = "; --verbose lists them"
			}
			say(w, "%s changed outside%s\n", count(outside, "file"), more)
		}
		say(w, "%s, %d left\n", count(found, "finding"), open)
	}); err != nil {
		return err
	}
	if open > 0 {
		return errReported
	}
	return nil
}

// state is what became of a finding, in a word.
func (f finding) state() string {
	switch {
	case f.Repaired:
		return "repaired"
	case f.Fatal:
		return "LOST"
	case f.Outside:
		return "outside"
	}
	return "found"
}
