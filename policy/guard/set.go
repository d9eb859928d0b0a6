package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ory/ladon"
)

// Options is what a policy is compiled against.
type Options struct {
	Locations map[string][]netip.Prefix    // named lists of networks
	Principal func(string) (string, error) // checks a principal and returns its one spelling; nil takes all
}

// Who is a subject as rules see it: its principals. Made once per subject.
type Who struct {
	principals []string
	joined     string
}

// NewWho returns the subject with these principals.
func NewWho(principals []string) *Who {
	return &Who{slices.Clone(principals), wrap(strings.Join(principals, sep))}
}

// sep stands between principals, none of which holds it.
const sep = "\x00"

func wrap(s string) string { return sep + s + sep }

// Request is one question. Take it from Acquire, fill in what is known, and Release it. The zero value of a field is "not known"; Size is
// unknown below 0.
type Request struct {
	Who          *Who
	Action       string
	Protocol     string
	Addr         netip.Addr
	Client       string
	Method       string
	Credential   string
	Time         time.Time
	SecondFactor time.Time
	Size         int64
	Type         string
	Path         string // set by At: below the place where the policy is bound, "." for the place itself
	Name         string // set by At: the last segment of the whole path

	cleanPath, cleanName bool
	lowClient            string
	decider              *rule
	asked                ladon.Request
	candidates           ladon.Policies
}

var requests = sync.Pool{New: func() any {
	r := new(Request)
	r.asked.Context = ladon.Context{"": r}
	return r
}}

// Acquire returns an empty request.
func Acquire() *Request {
	r := requests.Get().(*Request)
	r.Size = -1
	return r
}

// Release takes the request back.
func (r *Request) Release() {
	*r = Request{asked: ladon.Request{Context: r.asked.Context}, candidates: r.candidates[:0]}
	requests.Put(r)
}

func requestOf(r *ladon.Request) *Request { return r.Context[""].(*Request) }

// At says which node is asked about: its path below the place where the policy is bound, and its name. Text that no name may hold makes the
// path unknown, so that allows about paths fail and denies apply.
func (r *Request) At(path, name string) {
	r.Path, r.Name = path, name
	r.cleanPath, r.cleanName = cleanText(path), cleanText(name)
}

func (r *Request) client() string {
	if r.lowClient == "" {
		r.lowClient = strings.ToLower(r.Client)
	}
	return r.lowClient
}

// Set is a compiled policy. It never changes and is safe for concurrent use.
type Set struct {
	Name    string
	Kind    string
	PerNode bool // some rule asks for the path, extension, size or type of the node
	broken  error
	warden  *ladon.Ladon
}

// Verdict is the answer of a Set. Rule is the number of the rule that decided, counted from 1, 0 when none applied.
type Verdict struct {
	Allowed bool
	Rule    int
}

// Compile checks the policy and makes it ready. It reports every problem at once.
func Compile(p Policy, opt Options) (*Set, []error) {
	var problems []error
	if !isWord(p.Name) {
		problems = append(problems, fmt.Errorf("policy %q: a name is 1 to 63 of a-z, 0-9, \"-\", \"_\" and \".\"", p.Name))
	}
	if !slices.Contains(Kinds, p.Kind) {
		problems = append(problems, fmt.Errorf("policy %q: unknown kind %q: use one of %s", p.Name, p.Kind, strings.Join(Kinds, ", ")))
	}
	ix := &index{by: map[string]*bucket{}}
	set := &Set{Name: p.Name, Kind: p.Kind}
	for i, in := range p.Rules {
		r, c := compileRule(p, i, in, opt)
		for _, err := range c.problems {
			problems = append(problems, fmt.Errorf("policy %q, rule %d: %w", p.Name, i+1, err))
		}
		set.PerNode = set.PerNode || c.perNode
		ix.add(r, c.keys)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	set.warden = &ladon.Ladon{Manager: ix, Matcher: literal{}, AuditLogger: recorder{}, Metric: &ladon.MetricNoOp{}}
	return set, nil
}

// Broken returns a Set that allows nothing, in place of a stored policy that no longer compiles.
func Broken(p Policy, why error) *Set { return &Set{Name: p.Name, Kind: p.Kind, broken: why} }

// Err returns why the Set allows nothing, nil for one that works.
func (s *Set) Err() error { return s.broken }

// Decide answers the request.
func (s *Set) Decide(r *Request) Verdict {
	if s.broken != nil || r.Who == nil {
		return Verdict{}
	}
	r.decider = nil
	r.asked.Subject, r.asked.Action, r.asked.Resource = r.Who.joined, r.Action, s.Kind
	err := s.warden.IsAllowed(context.Background(), &r.asked)
	v := Verdict{Allowed: err == nil}
	if r.decider != nil {
		v.Rule = r.decider.number
	}
	return v
}

func compileRule(p Policy, i int, in Rule, opt Options) (*rule, *compiler) {
	c := &compiler{opt: opt, kind: p.Kind, deny: in.Effect == ladon.DenyAccess, out: ladon.Conditions{}}
	if in.Effect != ladon.AllowAccess && in.Effect != ladon.DenyAccess {
		c.problems = append(c.problems, fmt.Errorf("unknown effect %q: use allow or deny", in.Effect))
	}
	r := &rule{id: fmt.Sprintf("%s#%d", p.Name, i+1), number: i + 1, deny: c.deny, resources: []string{p.Kind}}
	if len(in.Principals) == 0 {
		c.problems = append(c.problems, errors.New("no principals: name some, or everyone"))
	}
	for _, who := range in.Principals {
		if opt.Principal != nil {
			spelled, err := opt.Principal(who)
			if err != nil {
				c.problems = append(c.problems, err)
			}
			who = spelled
		}
		r.principals = append(r.principals, who)
		r.subjects = append(r.subjects, wrap(who))
	}
	actions, problems := expand(p.Kind, in.Actions)
	c.problems = append(c.problems, problems...)
	r.actions = actions
	c.when(in.When)
	r.conditions = c.out
	return r, c
}

// rule is a compiled rule as ladon wants it.
type rule struct {
	id         string
	number     int
	deny       bool
	principals []string
	subjects   []string // principals between separators
	actions    []string
	resources  []string
	conditions ladon.Conditions
}

var _ ladon.Policy = (*rule)(nil)

func (r *rule) GetID() string                   { return r.id }
func (r *rule) GetDescription() string          { return "" }
func (r *rule) GetSubjects() []string           { return r.subjects }
func (r *rule) GetResources() []string          { return r.resources }
func (r *rule) GetActions() []string            { return r.actions }
func (r *rule) GetConditions() ladon.Conditions { return r.conditions }
func (r *rule) GetMeta() []byte                 { return nil }
func (r *rule) GetStartDelimiter() byte         { return 0 } // no part of a rule is ever a regular expression
func (r *rule) GetEndDelimiter() byte           { return 0 }
func (r *rule) AllowAccess() bool               { return !r.deny }

func (r *rule) GetEffect() string {
	if r.deny {
		return ladon.DenyAccess
	}
	return ladon.AllowAccess
}

func (r *rule) covers(action string) bool {
	return slices.Contains(r.actions, action) || slices.Contains(r.actions, "*")
}

// literal compares names as they are. A subject is its principals between separators, and so are the subjects of a rule.
type literal struct{}

func (literal) Matches(_ ladon.Policy, haystack []string, needle string) (bool, error) {
	for _, h := range haystack {
		if strings.HasPrefix(needle, sep) {
			if strings.Contains(needle, h) {
				return true, nil
			}
		} else if h == needle || h == "*" {
			return true, nil
		}
	}
	return false, nil
}

// recorder notes which rule decided.
type recorder struct{}

var _ ladon.AuditLogger = recorder{}

func (recorder) LogRejectedAccessRequest(_ context.Context, r *ladon.Request, _, deciders ladon.Policies) {
	if n := len(deciders); n > 0 && !deciders[n-1].AllowAccess() {
		requestOf(r).decider = deciders[n-1].(*rule)
	}
}

func (recorder) LogGrantedAccessRequest(_ context.Context, r *ladon.Request, _, deciders ladon.Policies) {
	requestOf(r).decider = deciders[0].(*rule)
}

// index finds the rules that may apply: by principal, and by a segment which the path must have.
type index struct {
	by map[string]*bucket
}

type bucket struct {
	free  []*rule
	keyed map[string][]*rule
}

var _ ladon.Manager = (*index)(nil)

func (ix *index) add(r *rule, keys []string) {
	for _, p := range r.principals {
		b := ix.by[p]
		if b == nil {
			b = &bucket{keyed: map[string][]*rule{}}
			ix.by[p] = b
		}
		if len(keys) == 0 {
			b.free = append(b.free, r)
		}
		for _, k := range keys {
			b.keyed[k] = append(b.keyed[k], r)
		}
	}
}

// FindRequestCandidates returns the rules that name a principal of the subject, cover the action and may match the path.
func (ix *index) FindRequestCandidates(_ context.Context, asked *ladon.Request) (ladon.Policies, error) {
	r := requestOf(asked)
	found := r.candidates[:0]
	take := func(rules []*rule) {
		for _, x := range rules {
			if x.covers(r.Action) {
				found = append(found, x)
			}
		}
	}
	for _, p := range r.Who.principals {
		b := ix.by[p]
		if b == nil {
			continue
		}
		take(b.free)
		switch {
		case len(b.keyed) == 0:
		case !r.cleanPath: // unknown: denies apply
			for _, rules := range b.keyed {
				take(rules)
			}
		default:
			for seg := range strings.SplitSeq(r.Path, "/") {
				take(b.keyed[seg])
			}
		}
	}
	r.candidates = found
	return found, nil
}

// errFixed answers the parts of ladon's Manager that change or list policies: a compiled set has no such thing.
var errFixed = errors.New("guard: a compiled policy does not change")

func (ix *index) Create(context.Context, ladon.Policy) error                   { return errFixed }
func (ix *index) Update(context.Context, ladon.Policy) error                   { return errFixed }
func (ix *index) Get(context.Context, string) (ladon.Policy, error)            { return nil, errFixed }
func (ix *index) Delete(context.Context, string) error                         { return errFixed }
func (ix *index) GetAll(context.Context, int64, int64) (ladon.Policies, error) { return nil, errFixed }
func (ix *index) FindPoliciesForSubject(context.Context, string) (ladon.Policies, error) {
	return nil, errFixed
}
func (ix *index) FindPoliciesForResource(context.Context, string) (ladon.Policies, error) {
	return nil, errFixed
}
