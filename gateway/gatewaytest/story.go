package gatewaytest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// Tell runs a story: one line a step, "who: verb args -> outcome". An outcome is "ok", the text that the verb prints, or "! words of the
// fault's kind". Blank lines and lines that begin with # are skipped. Words may be quoted as in Go. The verbs:
//
//	ls PATH               children by name, folders with a slash, or "nothing"
//	stat PATH             "folder" or "file SIZE"
//	cat PATH              the content
//	put PATH TEXT         make or replace a file; new PATH TEXT: only if it does not exist; over PATH TEXT: only if it does
//	mkdir PATH, rm PATH, rmtree PATH
//	mv FROM TO, cp FROM TO, mv! and cp! replace what is at TO
//	write PATH OFFSET TEXT   through a random-access handle
//	prop PATH NAME VALUE, props PATH
//	lock PATH NAME        an exclusive lock whose token the story calls NAME; lock+ with everything below; share: a shared one
//	unlock PATH NAME
//	hold NAME, drop NAME  submit the token with what this user does from now on, or no longer
//	sleep DURATION        moves the house's clock
func (h *House) Tell(t *testing.T, story string) {
	t.Helper()
	s := &teller{h: h, sessions: map[string]*gateway.Session{}, tokens: map[string]string{}, held: map[string][]string{}}
	for i, line := range strings.Split(story, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		step, want, ok := strings.Cut(line, " -> ")
		if !ok {
			t.Fatalf("line %d: %s: no outcome", i+1, line)
		}
		got, err := s.step(t.Context(), step)
		switch {
		case err != nil:
			got = "! " + fault.KindOf(err).String()
		case got == "":
			got = "ok"
		}
		if got != strings.TrimSpace(want) {
			t.Errorf("line %d: %s\n\tgot %s (%v)", i+1, line, got, err)
		}
	}
}

type teller struct {
	h        *House
	sessions map[string]*gateway.Session
	tokens   map[string]string   // by the story's name
	held     map[string][]string // by user
}

func (s *teller) step(ctx context.Context, line string) (string, error) {
	who, rest, ok := strings.Cut(line, ":")
	if !ok {
		return "", fmt.Errorf("no user in %q", line)
	}
	words, err := split(rest)
	if err != nil || len(words) == 0 {
		return "", fmt.Errorf("cannot read %q: %v", rest, err)
	}
	session := s.sessions[who]
	if session == nil {
		session = s.h.As(who)
		s.sessions[who] = session
	}
	session = session.With(gateway.Client{Protocol: "webdav", Tokens: s.held[who]})
	verb, args := words[0], words[1:]
	switch verb {
	case "hold":
		s.held[who] = append(s.held[who], s.tokens[args[0]])
		return "", nil
	case "drop":
		s.held[who] = slices.DeleteFunc(s.held[who], func(t string) bool { return t == s.tokens[args[0]] })
		return "", nil
	case "sleep":
		d, err := time.ParseDuration(args[0])
		s.h.Clock.Advance(d)
		return "", err
	}
	p, err := gateway.ParsePath(args[0])
	if err != nil {
		return "", err
	}
	switch verb {
	case "lock", "lock+", "share":
		l, _, err := session.Lock(ctx, p, gateway.LockRequest{Shared: verb == "share", Infinite: verb == "lock+", Timeout: time.Minute})
		s.tokens[args[1]] = l.Token
		return "", err
	case "unlock":
		return "", session.Unlock(ctx, p, s.tokens[args[1]])
	}
	return do(ctx, session, verb, p, args[1:])
}

func do(ctx context.Context, s *gateway.Session, verb string, p gateway.Path, args []string) (string, error) {
	switch verb {
	case "ls":
		return ls(ctx, s, p)
	case "stat":
		i, err := s.Stat(ctx, p)
		if i.Dir {
			return "folder", err
		}
		return fmt.Sprint("file ", i.Size), err
	case "cat":
		b, err := Read(ctx, s, p)
		return string(b), err
	case "put":
		return "", Write(ctx, s, p, []byte(args[0]), gateway.Cond{})
	case "new":
		return "", Write(ctx, s, p, []byte(args[0]), gateway.Cond{NoneMatch: []string{"*"}})
	case "over":
		return "", Write(ctx, s, p, []byte(args[0]), gateway.Cond{Match: []string{"*"}})
	case "mkdir":
		return "", s.Mkdir(ctx, p)
	case "rm", "rmtree":
		return "", s.Remove(ctx, p, gateway.RemoveOptions{Recursive: verb == "rmtree"})
	case "mv", "mv!", "cp", "cp!":
		to, err := gateway.ParsePath(args[0])
		if err != nil {
			return "", err
		}
		transfer := s.Rename
		if verb[0] == 'c' {
			transfer = s.Copy
		}
		_, err = transfer(ctx, p, to, gateway.MoveOptions{Overwrite: strings.HasSuffix(verb, "!")})
		return "", err
	case "write":
		off, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return "", err
		}
		f, err := s.OpenFile(ctx, p, gateway.OpenOptions{Flag: os.O_RDWR})
		if err != nil {
			return "", err
		}
		if _, err := f.WriteAt([]byte(args[1]), off); err != nil {
			return "", err
		}
		return "", f.Close(ctx)
	case "prop":
		return "", s.PatchProps(ctx, p, []gateway.PropChange{{Prop: gateway.Prop{Space: "urn:x", Name: args[0], Value: []byte(args[1])}}}, gateway.Cond{})
	case "props":
		props, err := s.Props(ctx, p)
		var words []string
		for _, p := range props {
			words = append(words, p.Name+"="+string(p.Value))
		}
		return orNothing(words), err
	}
	return "", fmt.Errorf("no verb %q", verb)
}

func ls(ctx context.Context, s *gateway.Session, p gateway.Path) (string, error) {
	var names []string
	for i, err := range s.List(ctx, p) {
		if err != nil {
			return "", err
		}
		name := i.Name
		if i.Dir {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return orNothing(names), nil
}

func orNothing(words []string) string {
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, " ")
}

// Read returns the content of a file.
func Read(ctx context.Context, s *gateway.Session, p gateway.Path) ([]byte, error) {
	f, err := s.Open(ctx, p, gateway.ReadOptions{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Write makes or replaces a file.
func Write(ctx context.Context, s *gateway.Session, p gateway.Path, content []byte, cond gateway.Cond) error {
	u, err := s.Create(ctx, p, gateway.CreateOptions{Size: int64(len(content)), Cond: cond})
	if err != nil {
		return err
	}
	defer u.Close()
	if _, err := u.ReadFrom(bytes.NewReader(content)); err != nil {
		return err
	}
	_, _, err = u.Commit(ctx)
	return err
}

// split cuts a line into words; one may be quoted as in Go.
func split(line string) (words []string, err error) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, err
			}
			w, err := strconv.Unquote(q)
			if err != nil {
				return nil, err
			}
			words, line = append(words, w), line[len(q):]
			continue
		}
		var w string
		w, line, _ = strings.Cut(line, " ")
		words = append(words, w)
	}
	return words, nil
}
