package strict

import (
	"fmt"
	"slices"
	"strings"
)

// Place is where something stands in a file. Line 0 means nowhere: a default, an environment variable, a flag.
type Place struct {
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

// Problem is one thing that is wrong with an input, where it stands, and what to do about it. It never quotes a value, which may be a secret,
// unless whoever made the text knows it is none.
type Problem struct {
	Source string `json:"source,omitempty"` // the file, or "environment"
	Place
	Key  string `json:"key,omitempty"` // such as users[0].login
	Text string `json:"text"`
}

// String returns "file:3:7: users[0].login: unknown key", without the parts that are not known.
func (p Problem) String() string {
	var b strings.Builder
	if p.Source != "" {
		b.WriteString(p.Source)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key)
		b.WriteString(": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Problems is everything that is wrong with an input, as an error. Return it through Err: an empty Problems is no error.
type Problems []Problem

// Err returns the problems in the order of their places, or nil when there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return ps
}

// Error returns a line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Document is what a file says about itself once it is decoded: its name, and the place of each key.
type Document struct {
	Source string
	places map[string]Place
}

// Problem returns a problem with key at the key's place. A key that is not in the file has the place of the nearest one above it.
func (d *Document) Problem(key, format string, args ...any) Problem {
	p := Problem{Source: d.Source, Key: key, Text: fmt.Sprintf(format, args...)}
	for k := key; ; k = parent(k) {
		if at, ok := d.places[k]; ok {
			p.Place = at
			break
		}
		if k == "" {
			break
		}
	}
	return p
}

// Has reports whether the file has key.
func (d *Document) Has(key string) bool {
	_, ok := d.places[key]
	return ok
}

func parent(key string) string {
	if i := strings.LastIndexAny(key, ".["); i >= 0 {
		return key[:i]
	}
	return ""
}
