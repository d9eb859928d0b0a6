package webdav

import (
	"errors"
	"strings"
)

// Bounds of an If header.
const (
	maxIfBytes      = 16 << 10
	maxIfConditions = 256
)

var errIfSyntax = errors.New("malformed If header")

// ifHeader is a parsed If header: one of its lists must hold (RFC 4918 §10.4.3). The zero ifHeader holds always.
type ifHeader []ifList

// ifList is a conjunction about one resource.
type ifList struct {
	tag   string // the Resource-Tag as it stands, "" for the request target
	conds []ifCond
}

// ifCond is a state token or an entity tag that must, or must not, be the resource's.
type ifCond struct {
	not   bool
	token string
	etag  string // with its quotes, "" for a token
}

// parseIf reads an If header (RFC 4918 §10.4.2). Tagged and untagged lists cannot be mixed.
func parseIf(s string) (ifHeader, error) {
	if len(s) > maxIfBytes {
		return nil, errIfSyntax
	}
	var h ifHeader
	var tag string
	tagged, open, total := false, false, 0 // open: a tag still waits for its first list
	for s = trimBlank(s); s != ""; s = trimBlank(s) {
		switch {
		case s[0] == '<' && !open && (tagged || len(h) == 0):
			word, rest, ok := strings.Cut(s[1:], ">")
			if !ok || word == "" {
				return nil, errIfSyntax
			}
			tag, tagged, open, s = word, true, true, rest
		case s[0] == '(':
			l, rest, err := parseIfList(s[1:])
			if err != nil {
				return nil, err
			}
			if total += len(l); total > maxIfConditions {
				return nil, errIfSyntax
			}
			h, open, s = append(h, ifList{tag, l}), false, rest
		default:
			return nil, errIfSyntax
		}
	}
	if open || len(h) == 0 {
		return nil, errIfSyntax
	}
	return h, nil
}

// parseIfList reads the conditions up to the closing parenthesis.
func parseIfList(s string) (list []ifCond, rest string, err error) {
	for {
		s = trimBlank(s)
		var c ifCond
		if len(s) > 3 && strings.EqualFold(s[:3], "not") {
			c.not, s = true, trimBlank(s[3:])
		}
		var ok bool
		switch {
		case s == "":
			return nil, "", errIfSyntax
		case s[0] == ')' && !c.not && len(list) > 0:
			return list, s[1:], nil
		case s[0] == '<':
			c.token, s, ok = strings.Cut(s[1:], ">")
			ok = ok && c.token != ""
		case s[0] == '[':
			c.etag, s, ok = cutETag(s[1:])
		}
		if !ok {
			return nil, "", errIfSyntax
		}
		list = append(list, c)
	}
}

// cutETag splits `"tag"]` or `W/"tag"]`. The quoted part may hold a bracket.
func cutETag(s string) (etag, rest string, ok bool) {
	s = trimBlank(s)
	from := 0
	if strings.HasPrefix(s, "W/") {
		from = 2
	}
	if len(s) <= from || s[from] != '"' {
		return "", "", false
	}
	end := strings.IndexByte(s[from+1:], '"')
	if end < 0 {
		return "", "", false
	}
	end += from + 2
	etag, rest = s[:end], trimBlank(s[end:])
	if !strings.HasPrefix(rest, "]") {
		return "", "", false
	}
	return etag, rest[1:], true
}

func trimBlank(s string) string { return strings.TrimLeft(s, " \t") }

// tokens returns every state token of the header, each once. To name a token anywhere in it is to submit it (RFC 4918 §6.4, §10.4.1);
// whether it helps is the core's decision, which knows whose lock it is.
func (h ifHeader) tokens() []string {
	var list []string
	seen := make(map[string]bool)
	for _, l := range h {
		for _, c := range l.conds {
			if c.etag == "" && !seen[c.token] {
				seen[c.token] = true
				list = append(list, c.token)
			}
		}
	}
	return list
}

// state is what conditions are compared with: a resource's entity tag, "" without one, and the tokens of the locks that cover it.
type state struct {
	etag   string
	tokens []string
}

// holds reports whether one list is true of the resources' states. A token nobody knows, DAV:no-lock among them, is in no state.
func (h ifHeader) holds(of func(tag string) state) bool {
	if len(h) == 0 {
		return true
	}
	for _, l := range h {
		if l.holds(of(l.tag)) {
			return true
		}
	}
	return false
}

func (l ifList) holds(st state) bool {
	for _, c := range l.conds {
		if c.holds(st) == c.not {
			return false
		}
	}
	return true
}

// holds compares by the strong function of RFC 9110 §8.8.3.2: a weak tag equals nothing, since ours are strong.
func (c ifCond) holds(st state) bool {
	if c.etag != "" {
		return c.etag == st.etag && !strings.HasPrefix(c.etag, "W/")
	}
	for _, t := range st.tokens {
		if t == c.token {
			return true
		}
	}
	return false
}
