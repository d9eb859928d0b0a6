package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"cellgate/appliance/strict"

	"github.com/alecthomas/kong"
)

// The exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is the command line: each field with cmd is a command, and what it does is its Run method.
type cli struct {
	Data   string `help:"Folder of the box [CELLGATE_DATA, ./cellgate-data]." placeholder:"DIR"`
	JSON   bool   `name:"json" help:"Print results as JSON."`
	Server string `help:"Administer the box at this URL, with --token." placeholder:"URL" env:"CELLGATE_SERVER"`
	Token  string `help:"Token for --server." placeholder:"T" env:"CELLGATE_TOKEN"`

	Serve    serveCmd    `cmd:"" group:"Run" help:"Run the box until SIGTERM."`
	Portable portableCmd `cmd:"" group:"Run" help:"Share one folder at once, with a random password; nothing is kept afterwards."`
	Mount    mountCmd    `cmd:"" group:"Run" help:"Mount a user's tree on this machine, until fusermount3 -u or SIGTERM."`
	Config   configCmd   `cmd:"" group:"Run" help:"Print an example configuration: every key, its default, its environment variable."`

	Apply      applyCmd      `cmd:"" group:"Administer" help:"Make a declared state so."`
	Explain    explainCmd    `cmd:"" group:"Administer" help:"Say whether somebody may do something, and why."`
	User       userCmd       `cmd:"" group:"Administer" help:"Manage users."`
	Group      groupCmd      `cmd:"" group:"Administer" help:"Manage groups."`
	Role       roleCmd       `cmd:"" group:"Administer" help:"Manage roles."`
	Workspace  workspaceCmd  `cmd:"" group:"Administer" help:"Manage workspaces."`
	Datasource datasourceCmd `cmd:"" group:"Administer" help:"Manage datasources."`
	Token_     tokenCmd      `cmd:"" name:"token" group:"Administer" help:"Manage app passwords: passwords for one device or program."`
	Policy     policyCmd     `cmd:"" group:"Administer" help:"Manage security policies."`
	Audit      auditCmd      `cmd:"" group:"Administer" help:"Read and verify the audit log."`

	Doctor  doctorCmd  `cmd:"" group:"Look after" help:"Check the box and say what to do."`
	Fsck    fsckCmd    `cmd:"" group:"Look after" help:"Verify what the box remembers against the storage."`
	Backup  backupCmd  `cmd:"" group:"Look after" help:"Write all that the box remembers to a file, while it runs."`
	Restore restoreCmd `cmd:"" group:"Look after" help:"Read a backup into an empty data folder."`
	Version versionCmd `cmd:"" group:"Look after" help:"Print the version."`
}

// term is what a command has of the outside.
type term struct {
	ctx     context.Context
	cli     *cli
	environ []string

	dataGiven bool // by flag
	in        io.Reader
	out       io.Writer // results
	err       io.Writer // messages for people
}

// Main runs the command line and returns the exit status: 0 done, 1 failed, 2 wrong usage. It is the whole program but for os.Exit.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) (status int) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var c cli
	type exit int
	defer func() {
		if e := recover(); e != nil {
			code, ok := e.(exit)
			if !ok {
				panic(e)
			}
			status = int(code)
		}
	}()
	parser, err := kong.New(&c, kong.Name("cellgate"), kong.Writers(stdout, stderr), kong.Exit(func(code int) { panic(exit(code)) }),
		kong.Description("A gate in front of your storage: one tree over WebDAV, SFTP, S3 and as a mount, with users, rights, locks and an audit log."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 120}))
	if err != nil {
		fmt.Fprintln(stderr, "cellgate:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	run, err := parser.Parse(args)
	if err != nil {
		say(stderr, "cellgate: %v\n", err)
		var at *kong.ParseError
		if errors.As(err, &at) && at.Context.Command() != "" {
			fmt.Fprintf(stderr, "Try: cellgate %s --help\n", commandWords(at.Context))
		} else {
			fmt.Fprintln(stderr, "Try: cellgate --help")
		}
		return exitUsage
	}
	t := &term{ctx: ctx, cli: &c, environ: os.Environ(), dataGiven: c.Data != "", in: stdin, out: stdout, err: stderr}
	if c.Data == "" {
		if c.Data = os.Getenv("CELLGATE_DATA"); c.Data == "" {
			c.Data = Default().Data
		}
	}
	return t.report(run.Run(t))
}

// commandWords returns the command without its arguments: "user add <login>" is "user add".
func commandWords(c *kong.Context) string {
	words, _, _ := strings.Cut(c.Command(), " <")
	return words
}

// usageError is a command line that makes no sense though each part of it does.
type usageError string

func (e usageError) Error() string { return string(e) }

func usagef(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

// errReported is a failure that has been told in full.
var errReported = errors.New("reported")

// report tells people why a command failed and returns the exit status.
func (t *term) report(err error) int {
	var usage usageError
	var problems strict.Problems
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.As(err, &usage):
		say(t.err, "cellgate: %v\n", usage)
		return exitUsage
	case errors.As(err, &problems):
		status := exitFailed
		for _, p := range problems {
			say(t.err, "%v\n", p)
			if strings.HasPrefix(p.Source, "flag ") {
				status = exitUsage
			}
		}
		fmt.Fprintf(t.err, "cellgate: %s; nothing was changed\n", count(len(problems), "problem"))
		return status
	}
	say(t.err, "cellgate: %s\n", strings.ReplaceAll(plain(err), "\n", "; "))
	return exitFailed
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// show prints a result: as JSON when asked to, else by text.
func (t *term) show(result any, text func(w io.Writer)) error {
	if t.cli.JSON {
		return t.json(result)
	}
	w := tabwriter.NewWriter(t.out, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func (t *term) json(result any) error {
	enc := json.NewEncoder(t.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(result)
}

// done tells what was done: in words on standard error, or, for programs, as the changed thing on standard output.
func (t *term) done(result any, format string, args ...any) error {
	if t.cli.JSON {
		return t.json(result)
	}
	say(t.err, format+"\n", args...)
	return nil
}

// changed is the result of a command that leaves nothing to show.
type changed struct {
	Changed []string `json:"changed"`
}

func changedOne(kind, name string) changed { return changed{[]string{kind + " " + name}} }

// input opens the file a command reads, "-" being standard input.
func (t *term) input(name string) (io.ReadCloser, string, error) {
	if name == "-" {
		return io.NopCloser(t.in), "standard input", nil
	}
	f, err := os.Open(name)
	return f, name, err
}

// secretLine reads a secret from the first line of standard input.
func (t *term) secretLine() (string, error) {
	line, err := io.ReadAll(io.LimitReader(t.in, 4096))
	if err != nil {
		return "", err
	}
	s, _, _ := strings.Cut(string(line), "\n")
	if s = strings.TrimSuffix(s, "\r"); s == "" {
		return "", usagef("no password on standard input")
	}
	return s, nil
}

// local returns the box's admin API, over its socket.
func (t *term) local() (*client, error) {
	if t.cli.Server != "" || t.cli.Token != "" {
		return nil, usagef("--server and --token are not in this build; run the command where the box runs")
	}
	return newClient(filepath.Join(t.cli.Data, adminSocket)), nil
}

func stamp(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format(time.RFC3339)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
