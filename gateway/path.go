package gateway

import (
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Limits of a path, in bytes of UTF-8. They are those of Linux, which every datasource of an organisation has met already.
const (
	maxPath  = 4096
	maxDepth = 255
)

// Path is the one canonical form of a place in a user's tree: validated segments, made once at the border from what a client sent.
// The zero Path is the root. Paths compare with ==.
type Path struct {
	s string // "docs/a/b": no leading or trailing slash, "" is the root
}

// ParsePath makes a Path from a decoded, slash-separated path. Leading, trailing and repeated slashes mean nothing. Every segment must be
// a name that every protocol can carry (mounts.ValidName): no control characters, no line separators, no "." or "..", valid UTF-8, at most
// 255 bytes. Anything else is fault.Invalid. It never fails for a name that is merely reserved: those do not exist.
func ParsePath(raw string) (Path, error) {
	const op = "gateway.ParsePath"
	if len(raw) > maxPath {
		return Path{}, fault.New(op, raw[:64]+"…", fault.Invalid, errLongPath)
	}
	if canonical(raw) {
		raw = strings.Trim(raw, "/")
	} else {
		segments := strings.FieldsFunc(raw, func(r rune) bool { return r == '/' })
		raw = strings.Join(segments, "/")
	}
	depth := 0
	for rest := raw; rest != ""; depth++ {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if err := mounts.ValidName(name); err != nil {
			return Path{}, fault.New(op, raw, fault.Invalid, err)
		}
	}
	if depth > maxDepth {
		return Path{}, fault.New(op, raw[:64]+"…", fault.Invalid, errDeepPath)
	}
	return Path{raw}, nil
}

// canonical reports whether raw has no empty segment inside, so that trimming is all it needs.
func canonical(raw string) bool { return !strings.Contains(raw, "//") }

// String returns the path with a leading slash; the root is "/".
func (p Path) String() string { return "/" + p.s }

// IsRoot reports whether p is the root of the user's tree.
func (p Path) IsRoot() bool { return p.s == "" }

// Base returns the last segment, "" for the root.
func (p Path) Base() string { return p.s[strings.LastIndexByte(p.s, '/')+1:] }

// Parent returns the folder that holds p; the root's parent is the root.
func (p Path) Parent() Path { return Path{p.s[:max(strings.LastIndexByte(p.s, '/'), 0)]} }

// Depth returns the number of segments.
func (p Path) Depth() int {
	if p.s == "" {
		return 0
	}
	return strings.Count(p.s, "/") + 1
}

// Join returns the child name of p; it fails as ParsePath does.
func (p Path) Join(name string) (Path, error) {
	if err := mounts.ValidName(name); err != nil {
		return Path{}, fault.New("gateway.Path.Join", name, fault.Invalid, err)
	}
	c := p.child(name)
	if len(c.s) > maxPath {
		return Path{}, fault.New("gateway.Path.Join", name, fault.Invalid, errLongPath)
	}
	return c, nil
}

// child is Join for a name already known to be valid.
func (p Path) child(name string) Path { return Path{join(p.s, name)} }

// Contains reports whether q is p or lies below it.
func (p Path) Contains(q Path) bool { return within(p.s, q.s) }

// slug splits the first segment, the workspace's, from the rest.
func (p Path) slug() (slug, rest string) {
	slug, rest, _ = strings.Cut(p.s, "/")
	return slug, rest
}

// join appends a name to a slash-separated path in which "" or "." is the root.
func join(dir, name string) string {
	switch {
	case name == "" || name == ".":
		return dir
	case dir == "" || dir == ".":
		return name
	}
	return dir + "/" + name
}

// parentOf returns the parent of a backend path; the root "." is its own parent.
func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return "."
}

// within reports whether the slash-separated path q is p or lies below it; "" and "." are the root.
func within(p, q string) bool {
	if p == "" || p == "." {
		return true
	}
	return strings.HasPrefix(q, p) && (len(q) == len(p) || q[len(p)] == '/')
}

// depthOf counts the segments of a backend path; "." has none.
func depthOf(name string) int {
	if name == "." || name == "" {
		return 0
	}
	return strings.Count(name, "/") + 1
}

// moved returns q, which lies within from, as it is called when from has become to.
func moved(q, from, to string) string { return join(to, relative(q, from)) }

// relative returns q, which lies within dir, as seen from dir; "" is dir itself.
func relative(q, dir string) string {
	switch {
	case q == dir:
		return ""
	case dir == "." || dir == "":
		return q
	}
	return q[len(dir)+1:]
}
