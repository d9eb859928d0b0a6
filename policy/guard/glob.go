package guard

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Glob is a pattern over the segments of a path.
//
// "*" stands for any characters of a segment, "?" for one, a segment "**" for any number of segments or none; a backslash takes the next
// character as it is; all else means itself. A pattern with a leading slash begins where the policy is bound; one without begins anywhere
// below. "/reports/**" is reports and all in it; "*.pdf" is every such name. Matching takes time in proportion to pattern times path.
type Glob struct{ segments []segment }

type segment struct {
	any   bool    // "**"
	parts []token // else
	lit   string  // the segment itself when it has no wildcards
	plain bool
}

type token struct {
	r    rune
	wild byte // 0, '*' or '?'
}

// ParseGlob reads a pattern.
func ParseGlob(s string) (Glob, error) {
	if s == "" || len(s) > 1024 {
		return Glob{}, errors.New("a path pattern is 1 to 1,024 bytes long")
	}
	if !cleanText(s) {
		return Glob{}, fmt.Errorf("the path pattern %q has a control character", s)
	}
	var g Glob
	if s[0] != '/' {
		g.segments = append(g.segments, segment{any: true})
	}
	s = strings.Trim(s, "/")
	if s == "" {
		return g, nil // the place itself
	}
	for word := range strings.SplitSeq(s, "/") {
		switch word {
		case "**":
			if n := len(g.segments); n == 0 || !g.segments[n-1].any {
				g.segments = append(g.segments, segment{any: true})
			}
			continue
		case "", ".", "..":
			return Glob{}, fmt.Errorf("the path pattern has an impossible segment %q", word)
		}
		seg, err := parseSegment(word)
		if err != nil {
			return Glob{}, err
		}
		g.segments = append(g.segments, seg)
	}
	return g, nil
}

func parseSegment(word string) (segment, error) {
	seg := segment{plain: true}
	var lit strings.Builder
	escaped := false
	for _, r := range word {
		t := token{r: r}
		switch {
		case escaped:
			escaped = false
		case r == '\\':
			escaped = true
			continue
		case r == '*' || r == '?':
			t.wild, seg.plain = byte(r), false
		}
		lit.WriteRune(r)
		seg.parts = append(seg.parts, t)
	}
	if escaped {
		return segment{}, fmt.Errorf("%q ends in a backslash", word)
	}
	seg.lit = lit.String()
	return seg, nil
}

// key returns a segment that every matching path has, "" when there is none: what rules are indexed by.
func (g Glob) key() string {
	best := ""
	for _, s := range g.segments {
		if s.plain && len(s.lit) > len(best) {
			best = s.lit
		}
	}
	return best
}

// Match reports whether the path ("." is the place itself) is one of the pattern's.
func (g Glob) Match(path string) bool {
	if path == "." {
		path = ""
	}
	// The usual walk with one point of return, here over segments: the last "**" may always take one segment more.
	segs, backSeg, backPath := g.segments, []segment(nil), ""
	for {
		switch {
		case len(segs) > 0 && segs[0].any:
			segs = segs[1:]
			backSeg, backPath = segs, path
			if len(segs) == 0 {
				return true
			}
			continue
		case path == "" && len(segs) == 0:
			return true
		case path != "" && len(segs) > 0:
			name, rest, _ := strings.Cut(path, "/")
			if segs[0].match(name) {
				segs, path = segs[1:], rest
				continue
			}
		}
		if backSeg == nil || backPath == "" {
			return false
		}
		_, backPath, _ = strings.Cut(backPath, "/")
		segs, path = backSeg, backPath
	}
}

func (s segment) match(name string) bool {
	if s.plain {
		return s.lit == name
	}
	p, back, backName := s.parts, []token(nil), ""
	for {
		if len(p) > 0 && p[0].wild == '*' {
			p = p[1:]
			back, backName = p, name
			if len(p) == 0 {
				return true
			}
			continue
		}
		if name == "" && len(p) == 0 {
			return true
		}
		if name != "" && len(p) > 0 {
			if r, n := utf8.DecodeRuneInString(name); p[0].wild == '?' || p[0].r == r {
				p, name = p[1:], name[n:]
				continue
			}
		}
		if back == nil || backName == "" {
			return false
		}
		_, n := utf8.DecodeRuneInString(backName)
		backName = backName[n:]
		p, name = back, backName
	}
}

// like reports whether text matches a pattern where "*" is any text; both are lower case.
func like(pattern, text string) bool {
	head, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == text
	}
	if !strings.HasPrefix(text, head) {
		return false
	}
	text = text[len(head):]
	for {
		part, more, wild := strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(text, part)
		}
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text, rest = text[i+len(part):], more
	}
}

// cleanText reports whether s is UTF-8 without controls, line and paragraph separators: only such names are compared.
func cleanText(s string) bool {
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return false
		}
		i += n
	}
	return true
}
