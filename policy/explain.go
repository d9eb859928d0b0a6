package policy

import (
	"fmt"
	"strconv"
	"time"

	"cellgate/policy/guard"
)

// Trace is a decision with its reason.
type Trace struct {
	Subject string `json:"subject"`
	Action  string `json:"action"`
	Place   string `json:"place"`
	Allowed bool   `json:"allowed"`
	Known   bool   `json:"known"` // the subject may know that the node exists
	Rule    string `json:"rule"`  // what decided, in words
	Grant   int64  `json:"grant,string,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Steps   []Step `json:"steps"` // everything that was looked at, in order
}

// Step is one thing that was looked at on the way to a decision.
type Step struct {
	Place  string `json:"place"`
	Effect string `json:"effect"` // granted, denied, expired, shadowed, covers, lacks, answered, guarded, none
	Words  string `json:"words"`
	Grant  int64  `json:"grant,string,omitempty"`
	Policy string `json:"policy,omitempty"`
}

// String returns the answer in a sentence.
func (t Trace) String() string {
	word := "may not"
	if t.Allowed {
		word = "may"
	}
	return fmt.Sprintf("%s %s %s %s: %s", t.Subject, word, t.Action, t.Place, t.Rule)
}

// Explain is Decide with a trace: the same function, watched.
func (v *View) Explain(act Action, at Place, env *Env) Trace {
	tr := &tracer{datasource: at.Datasource}
	d := v.decide(act, at, env, tr)
	t := Trace{Action: act.String(), Place: at.String(), Allowed: d.Allowed, Known: d.Known, Steps: tr.steps, Subject: "nobody"}
	if v.sub != nil {
		t.Subject = "user:" + v.sub.Login
	}
	if n := len(tr.steps); n > 0 {
		last := tr.steps[n-1]
		t.Rule, t.Grant, t.Policy = last.Words, last.Grant, last.Policy
		// A guard that says yes decides nothing: the grant before it does.
		for i := n - 1; d.Allowed && i >= 0; i-- {
			if s := tr.steps[i]; s.Effect == "covers" || s.Effect == "answered" {
				t.Rule, t.Grant, t.Policy = s.Words, s.Grant, s.Policy
				break
			}
		}
	}
	return t
}

// tracer watches a decision. The nil tracer watches nothing.
type tracer struct {
	datasource string
	steps      []Step
}

func (t *tracer) step(path, effect string, id int64, policy, format string, args ...any) {
	t.steps = append(t.steps, Step{Place{t.datasource, path}.String(), effect, fmt.Sprintf(format, args...), id, policy})
}

// words says what a grant gives to whom.
func (g *grant) words() string {
	text := g.rights.String()
	if g.row.Policy != "" {
		if text != "" {
			text += "+"
		}
		text += "policy:" + g.row.Policy
	}
	text += " for " + string(g.row.To)
	if g.row.Source != "" {
		text += " (from " + g.row.Source + ")"
	}
	return text
}

func (t *tracer) none(at Place) {
	if t != nil {
		t.step(at.Path, "none", 0, "", "no grant names the subject here or in any folder above: nobody has anything by default")
	}
}

func (t *tracer) expired(path string, g *grant) {
	if t != nil {
		t.step(path, "expired", g.row.ID, "", "%s expired at %s", g.words(), g.row.Expires.UTC().Format(time.RFC3339))
	}
}

func (t *tracer) denied(path string, g *grant) {
	if t != nil {
		t.step(path, "denied", g.row.ID, "", "%s at %s: a deny on the way wins", g.words(), Place{t.datasource, path})
	}
}

func (t *tracer) granted(path string, g *grant) {
	if t != nil {
		t.step(path, "granted", g.row.ID, g.row.Policy, "%s at %s: the nearest node with a grant decides", g.words(), Place{t.datasource, path})
	}
}

func (t *tracer) shadowed(path, nearest string, g *grant) {
	if t != nil {
		t.step(path, "shadowed", g.row.ID, g.row.Policy, "%s at %s does not count: %s is nearer", g.words(), Place{t.datasource, path}, Place{t.datasource, nearest})
	}
}

func (t *tracer) covers(r *ruling, act Action) {
	if t == nil {
		return
	}
	var id int64
	for _, s := range t.steps {
		if s.Effect == "granted" && id == 0 {
			id = s.Grant
		}
	}
	t.step(r.node, "covers", id, "", "%s granted at %s covers %s", r.rights, Place{t.datasource, r.node}, act)
}

func (t *tracer) lacks(r *ruling, act Action) {
	if t == nil {
		return
	}
	what := r.rights.String()
	if what == "" {
		what = "what is granted"
	}
	t.step(r.node, "lacks", 0, "", "%s at %s does not cover %s", what, Place{t.datasource, r.node}, act)
}

func (t *tracer) answered(path string, g *grant, act Action, v guard.Verdict) {
	if t != nil {
		t.step(path, "answered", g.row.ID, g.row.Policy, "%s", verdictWords(g.row.Policy, g.set, act, v))
	}
}

func (t *tracer) guarded(path string, a *answerer, act Action, v guard.Verdict) {
	if t != nil {
		t.step(path, "guarded", 0, a.Name, "guard of %s: %s", Place{t.datasource, path}, verdictWords(a.Name, a, act, v))
	}
}

func verdictWords(name string, a *answerer, act Action, v guard.Verdict) string {
	text := "policy " + name
	switch {
	case a.Err() != nil:
		return text + " does not work and allows nothing: " + a.Err().Error()
	case v.Allowed:
		return text + " allows " + act.String() + " by rule " + strconv.Itoa(v.Rule)
	case v.Rule > 0:
		return text + " denies " + act.String() + " by rule " + strconv.Itoa(v.Rule)
	default:
		return text + " has no rule that allows " + act.String() + " now"
	}
}
