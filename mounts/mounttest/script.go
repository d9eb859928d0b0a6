package mounttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Script runs lines such as
//
//	put "a b" hello   -> ok
//	cat "a b" 1 3     -> "ell"
//	mv d/e f          -> ok
//	rm d              -> ! folder is not empty
//
// against b. A line that comes out otherwise fails the test and is named. What follows "!" are kinds of faults in words, separated by "|".
// Words with spaces are quoted as in Go. The commands: put NAME TEXT, new NAME TEXT (exclusively), cat NAME [OFFSET LENGTH], ls NAME, stat
// NAME, mkdir, rm, mv FROM TO, cp FROM TO.
func Script(t *testing.T, b mounts.Backend, script string) {
	t.Helper()
	_, file, line, _ := runtime.Caller(1)
	first := line - strings.Count(script, "\n")
	for i, text := range strings.Split(script, "\n") {
		text = strings.TrimSpace(text)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		command, want, ok := cutLast(text, "->")
		if !ok {
			t.Fatalf("%s:%d: no -> in %q", file, first+i, text)
		}
		got := run(t.Context(), b, words(t, command))
		if !matches(got, want) {
			t.Errorf("%s:%d: %s -> %s\nwant -> %s", file, first+i, command, got, want)
		}
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return strings.TrimSpace(s[:i]), strings.TrimSpace(s[i+len(sep):]), true
}

func matches(got, want string) bool {
	kinds, isError := strings.CutPrefix(want, "! ")
	if !isError {
		return got == want
	}
	for kind := range strings.SplitSeq(kinds, "|") {
		if got == "! "+strings.TrimSpace(kind) {
			return true
		}
	}
	return false
}

// words splits a command at spaces that are not in quotes.
func words(t *testing.T, command string) (list []string) {
	t.Helper()
	for command != "" {
		if command[0] != '"' {
			word, rest, _ := strings.Cut(command, " ")
			list, command = append(list, word), strings.TrimLeft(rest, " ")
			continue
		}
		quoted, err := strconv.QuotedPrefix(command)
		if err != nil {
			t.Fatalf("bad quotes: %s", command)
		}
		word, _ := strconv.Unquote(quoted)
		list, command = append(list, word), strings.TrimLeft(command[len(quoted):], " ")
	}
	return list
}

// run carries out one command and returns what it came to.
func run(ctx context.Context, b mounts.Backend, w []string) string {
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	var err error
	switch w[0] {
	case "put", "new":
		opt := mounts.PutOptions{Size: int64(len(arg(2))), Exclusive: w[0] == "new"}
		_, err = b.Put(ctx, arg(1), strings.NewReader(arg(2)), opt)
	case "cat":
		off, n := int64(0), int64(-1)
		if len(w) == 4 {
			off, _ = strconv.ParseInt(w[2], 10, 64)
			n, _ = strconv.ParseInt(w[3], 10, 64)
		}
		var content string
		if content, err = read(ctx, b, arg(1), off, n); err == nil {
			return strconv.Quote(content)
		}
	case "ls":
		var names []string
		if names, err = list(ctx, b, arg(1)); err == nil {
			return strings.Join(names, " ")
		}
	case "stat":
		var info mounts.Info
		if info, err = b.Stat(ctx, arg(1)); err == nil {
			return describe(info)
		}
	case "mkdir":
		err = b.Mkdir(ctx, arg(1))
	case "rm":
		err = b.Remove(ctx, arg(1))
	case "mv":
		err = b.Rename(ctx, arg(1), arg(2))
	case "cp":
		_, err = mounts.Copy(ctx, b, arg(1), arg(2))
	default:
		return "unknown command " + w[0]
	}
	return outcome(err)
}

// outcome is "ok" or "! " with the kind; an error that is no fault is told as a failure of its own.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return fmt.Sprintf("no fault: %v", err)
	}
	return "! " + fault.KindOf(err).String()
}

func describe(i mounts.Info) string {
	switch i.Type {
	case mounts.File:
		return fmt.Sprintf("file %q %d", i.Name, i.Size)
	case mounts.Dir:
		return fmt.Sprintf("dir %q", i.Name)
	case mounts.Symlink:
		return fmt.Sprintf("link %q %s", i.Name, i.Target)
	}
	return fmt.Sprintf("other %q", i.Name)
}

func read(ctx context.Context, b mounts.Backend, name string, off, n int64) (string, error) {
	r, err := b.Open(ctx, name, off, n)
	if err != nil {
		return "", err
	}
	content, err := io.ReadAll(r)
	if closed := r.Close(); err == nil {
		err = closed
	}
	return string(content), err
}

// list returns the sorted names in dir but the Area's, folders with a slash.
func list(ctx context.Context, b mounts.Backend, dir string) (names []string, err error) {
	for info, err := range b.List(ctx, dir) {
		if err != nil {
			return nil, err
		}
		name := info.Name
		if name == mounts.Area {
			continue
		}
		if strings.ContainsAny(name, " \"") {
			name = strconv.Quote(name)
		}
		if info.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}
