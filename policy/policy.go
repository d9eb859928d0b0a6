// Package policy decides who may do what: subjects, grants, security policies, and one pure function that answers with its reason.
//
// The rule, which fits on a card:
//
//  1. Nobody has anything by default; being an admin gives no rights on files.
//  2. A deny at the node or at any folder above it wins if it names any principal of the subject.
//  3. Otherwise the nearest node with a grant for the subject decides, walking up to the root of the datasource; what the subject's principals
//     are granted there is added together. A policy:NAME grant adds what the named policy answers.
//  4. Guards narrow it: every security policy bound to the place, a folder above it, or the subject must also say yes.
//
// An expired grant does not exist. What is missing counts against the subject: without a time in the Env no grant that expires gives anything,
// and every deny holds.
//
// A Snapshot is the compiled state of one epoch and never changes. A View is a subject bound to it; deciding reads memory only. Engine keeps the
// state in the store, makes a new snapshot after each change and notices the changes of other processes.
package policy

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Place is a node by where it lies: a datasource and a path in it that satisfies fs.ValidPath ("." is the root).
type Place struct {
	Datasource string `json:"datasource"`
	Path       string `json:"path"`
}

// String returns "datasource:/path".
func (p Place) String() string {
	if p.Path == "." {
		return p.Datasource + ":/"
	}
	return p.Datasource + ":/" + p.Path
}

// check reports why p is no place.
func (p Place) check() error {
	switch {
	case p.Datasource == "":
		return fmt.Errorf("the place %q has no datasource", p.Path)
	case !fs.ValidPath(p.Path):
		return fmt.Errorf("%q is not a path", p.Path)
	case strings.ContainsFunc(p.Datasource+p.Path, forbidden):
		return fmt.Errorf("%q has a control character", p.Path)
	}
	return nil
}

// forbidden tells the characters that no name of ours may hold: controls, line and paragraph separators, and what is not UTF-8.
func forbidden(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == utf8.RuneError
}

// Rights are what a grant gives. They combine with |.
type Rights uint8

// The rights. Write without Read is a drop box: one can put, and cannot list or read back.
const (
	Read  Rights = 1 << iota // list, preview, download
	Write                    // create, modify, delete
	Deny                     // nothing, here and below, whatever else is granted
)

// ParseRights reads words as a declared state has them: "read", "write", "deny" alone, or "policy:NAME" for the policy that answers.
func ParseRights(words []string) (r Rights, policy string, err error) {
	for _, w := range words {
		switch name, isPolicy := strings.CutPrefix(w, "policy:"); {
		case isPolicy && policy != "" && policy != name:
			return 0, "", fmt.Errorf("a grant names one policy, not %q and %q", policy, name)
		case isPolicy && name == "":
			return 0, "", fmt.Errorf("%q names no policy", w)
		case isPolicy:
			policy = name
		case w == "read":
			r |= Read
		case w == "write":
			r |= Write
		case w == "deny":
			r |= Deny
		default:
			return 0, "", fmt.Errorf("unknown right %q: use read, write, deny or policy:NAME", w)
		}
	}
	switch {
	case r == 0 && policy == "":
		return 0, "", fmt.Errorf("no rights given: use read, write, deny or policy:NAME")
	case r&Deny != 0 && (r != Deny || policy != ""):
		return 0, "", fmt.Errorf("deny stands alone")
	}
	return r, policy, nil
}

// String returns the words of r, joined by "+".
func (r Rights) String() string {
	var words []string
	for i, w := range [...]string{"read", "write", "deny"} {
		if r&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, "+")
}

// Action is what a subject wants to do with a node.
type Action uint8

// The actions. Overwriting is Modify. Share needs read or write: what is shared never exceeds what the sharer has.
const (
	List Action = iota
	Preview
	Download
	Create
	Modify
	Delete
	Share
	actions
)

var actionNames = [actions]string{"list", "preview", "download", "create", "modify", "delete", "share"}

// String returns the action's word.
func (a Action) String() string {
	if a < actions {
		return actionNames[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// ParseAction reads an action's word. "read" stands for Download and "write" for Modify, as in the words of rights.
func ParseAction(word string) (Action, error) {
	switch i := slices.Index(actionNames[:], word); {
	case i >= 0:
		return Action(i), nil
	case word == "read":
		return Download, nil
	case word == "write":
		return Modify, nil
	}
	return 0, fmt.Errorf("unknown action %q: use one of %s, read, write", word, strings.Join(actionNames[:], ", "))
}

// gives reports whether r covers act.
func (r Rights) gives(act Action) bool {
	switch {
	case act <= Download:
		return r&Read != 0
	case act <= Delete:
		return r&Write != 0
	default:
		return r&(Read|Write) != 0
	}
}

// Grant gives a principal rights on a node and what is below it.
type Grant struct {
	ID      int64     `json:"id"`
	To      Principal `json:"to"`
	On      Place     `json:"on"`
	Rights  Rights    `json:"rights"`
	Policy  string    `json:"policy,omitempty"` // the policy that answers, beside Rights
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Source  string    `json:"source,omitempty"` // who made it: "apply", "workspace:docs"
}

// Decision is an answer.
type Decision struct {
	Allowed bool
	// Known says that the subject may know that the node exists: it may list, preview or download it. Where it is false, the core answers
	// NotExist to whatever is not allowed. A drop box (write without read) is allowed but not known: the core must make a put of a new name
	// and of a taken one look alike (always "created", no entity tag; an If-Match never holds), except that a put which the client itself made
	// exclusive fails on a taken name, since it may not replace.
	Known bool
}
