// Package guard holds security policies: rules with conditions that say yes or no to a request at this moment, from this address, with this client.
//
// The model is that of ory/ladon, and ladon combines the rules: nothing is allowed by default, and a deny wins in any order. What ladon does
// not do safely is replaced: candidates come from an index made when the policy was saved, names are compared as literals and path segments
// and never become regular expressions, every condition knows the effect of its rule (what the request does not tell makes an allow fail and a
// deny apply), and a policy that does not compile is refused when it is saved, with every problem.
package guard

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Policy is a named group of rules about one kind of thing.
type Policy struct {
	Name  string `json:"name" yaml:"name"`
	Label string `json:"label,omitempty" yaml:"label"`
	Kind  string `json:"kind" yaml:"kind"` // one of the Kinds
	Rules []Rule `json:"rules" yaml:"rules"`
}

// The kinds of policies, by what their actions are.
const (
	Login    = "login"    // who may sign in; actions are protocols
	REST     = "rest"     // the API; actions are HTTP methods, paths those of the API
	Protocol = "protocol" // which doors are open to whom; actions are protocols
	ACL      = "acl"      // files; actions are those of policy, and read, write, upload
)

// Kinds lists the kinds.
var Kinds = []string{Login, REST, Protocol, ACL}

// Rule allows or denies its actions to its principals when all of its conditions hold.
type Rule struct {
	Effect     string `json:"effect" yaml:"effect"` // allow or deny
	Principals List   `json:"principals" yaml:"principals"`
	Actions    List   `json:"actions" yaml:"actions"` // "*" for all
	When       When   `json:"when,omitzero" yaml:"when"`
}

// When holds the conditions of a rule. All that are given must hold; within a list one is enough.
type When struct {
	IP           List          `json:"ip,omitempty" yaml:"ip"` // networks (CIDR), addresses, names of locations
	Country      List          `json:"country,omitempty" yaml:"country"`
	Hours        *Hours        `json:"hours,omitempty" yaml:"hours"`
	Period       *Period       `json:"period,omitempty" yaml:"period"`
	Protocol     List          `json:"protocol,omitempty" yaml:"protocol"`
	Client       List          `json:"client,omitempty" yaml:"client"` // user agents, "*" for any text, case ignored
	Method       List          `json:"method,omitempty" yaml:"method"`
	Credential   List          `json:"credential,omitempty" yaml:"credential"` // password, app, key, …
	SecondFactor *SecondFactor `json:"secondFactor,omitempty" yaml:"secondFactor"`
	Extension    List          `json:"extension,omitempty" yaml:"extension"` // without the dot, case ignored
	Size         *Size         `json:"size,omitempty" yaml:"size"`
	Type         List          `json:"type,omitempty" yaml:"type"` // MIME types, "image/*" for all of a kind
	Path         List          `json:"path,omitempty" yaml:"path"` // globs over segments, see Glob
}

// Hours is a weekly window on the wall clocks of a time zone. A window that ends before it begins runs over midnight and belongs to the day on
// which it began.
type Hours struct {
	Days string `json:"days,omitempty" yaml:"days"` // "Mon-Fri", "Sat,Sun"; empty: every day
	From string `json:"from,omitempty" yaml:"from"` // "09:00"; empty: midnight
	To   string `json:"to,omitempty" yaml:"to"`     // "18:30", exclusive; empty: 24:00
	Zone string `json:"zone" yaml:"zone"`           // "Europe/Paris"
}

// Period is a stretch of time; either end may be open.
type Period struct {
	From string `json:"from,omitempty" yaml:"from"` // RFC 3339
	To   string `json:"to,omitempty" yaml:"to"`     // RFC 3339, exclusive
}

// SecondFactor asks for a second factor given not longer ago than MaxAge ("15m").
type SecondFactor struct {
	MaxAge string `json:"maxAge" yaml:"maxAge"`
}

// Size bounds a file's bytes, both ends inclusive. Max 0 is no bound.
type Size struct {
	Min int64 `json:"min,omitempty" yaml:"min"`
	Max int64 `json:"max,omitempty" yaml:"max"`
}

// List is a list of words that may be written as one word.
type List []string

// UnmarshalJSON reads a string or a list of strings.
func (l *List) UnmarshalJSON(b []byte) error {
	return l.decode(func(v any) error { return json.Unmarshal(b, v) })
}

// UnmarshalYAML reads a string or a list of strings.
func (l *List) UnmarshalYAML(unmarshal func(any) error) error { return l.decode(unmarshal) }

func (l *List) decode(into func(any) error) error {
	var many []string
	if err := into(&many); err == nil {
		*l = many
		return nil
	}
	var one string
	if err := into(&one); err != nil {
		return err
	}
	*l = List{one}
	return nil
}

// Names returns the names of locations that the policy may refer to: every word of its ip conditions that is no network.
func (p Policy) Names() []string {
	var names []string
	for _, r := range p.Rules {
		for _, w := range r.When.IP {
			if _, err := ParseNet(w); err != nil && !slices.Contains(names, w) {
				names = append(names, w)
			}
		}
	}
	return names
}

// aclActions maps the words of acl rules to the actions of package policy.
var aclActions = map[string][]string{
	"list": {"list"}, "preview": {"preview"}, "download": {"download"}, "create": {"create"}, "modify": {"modify"}, "delete": {"delete"},
	"share": {"share"}, "upload": {"create", "modify"}, "read": {"list", "preview", "download"}, "write": {"create", "modify", "delete"},
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// expand returns the actions of a rule of the kind, "*" kept, and what is wrong with them.
func expand(kind string, words List) (actions []string, problems []error) {
	if len(words) == 0 {
		return nil, []error{fmt.Errorf("no actions: name some, or \"*\"")}
	}
	for _, w := range words {
		switch {
		case w == "*":
			actions = append(actions, w)
		case kind == ACL && aclActions[w] != nil:
			actions = append(actions, aclActions[w]...)
		case kind == REST && slices.Contains(methods, strings.ToUpper(w)):
			actions = append(actions, strings.ToUpper(w))
		case (kind == Login || kind == Protocol) && isWord(w):
			actions = append(actions, w)
		default:
			problems = append(problems, fmt.Errorf("%q is no action of kind %s", w, kind))
		}
	}
	return actions, problems
}

// isWord reports whether w is 1 to 63 of a-z, 0-9, "-", "_" and ".".
func isWord(w string) bool {
	return len(w) > 0 && len(w) < 64 && !strings.ContainsFunc(w, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}
