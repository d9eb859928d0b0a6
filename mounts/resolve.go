package mounts

import (
	"context"
	"errors"
	"strings"

	"cellgate/internal/fault"
)

const maxLinks = 40 // as Linux; a longer chain is a loop

var (
	errOutside = errors.New("a symbolic link leads out of the datasource")
	errLoop    = errors.New("too many symbolic links")
)

// Resolve follows the symbolic links in name, the last segment's included, and returns the name without any and what it is. Backends never
// follow links themselves, so that a node has one name and rights are decided on that name: ask about the resolved name before using it.
// A link that is absolute or leads above the root is Denied. The answer is of the moment; a backend refuses a link put in place later.
func Resolve(ctx context.Context, b Backend, name string) (string, Info, error) {
	const op = "mounts.Resolve"
	if err := ValidPath(name); err != nil {
		return "", Info{}, err
	}
	info, err := b.Stat(ctx, name)
	if err == nil && info.Type != Symlink {
		return name, info, nil
	}
	if err != nil && fault.KindOf(err) != fault.NotDir {
		return "", Info{}, err
	}
	todo := strings.Split(name, "/")
	at, links := ".", 0
	for len(todo) > 0 {
		segment := todo[0]
		todo = todo[1:]
		switch segment {
		case "", ".":
			continue
		case "..":
			if at == "." {
				return "", Info{}, fault.New(op, name, fault.Denied, errOutside)
			}
			at, _ = Split(at)
			continue
		}
		if err := ValidName(segment); err != nil {
			return "", Info{}, fault.New(op, name, fault.Denied, err)
		}
		next := Join(at, segment)
		if info, err = b.Stat(ctx, next); err != nil {
			return "", Info{}, err
		}
		if info.Type != Symlink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", Info{}, fault.New(op, name, fault.Denied, errLoop)
		}
		if strings.HasPrefix(info.Target, "/") {
			return "", Info{}, fault.New(op, name, fault.Denied, errOutside)
		}
		todo = append(strings.Split(info.Target, "/"), todo...)
	}
	info, err = b.Stat(ctx, at)
	return at, info, err
}
