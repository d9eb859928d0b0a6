package webdav

import (
	"net/http"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

func errPrecondition() error { return fault.New("webdav.precondition", "", fault.Precondition, nil) }

// checkIf evaluates the If header before the verb (RFC 4918 §10.4.1: 412 when every list fails). The state of each resource named in it is
// read once and kept for recheckIf.
func (q *request) checkIf() error {
	if len(q.ifh) == 0 {
		return nil
	}
	q.states = make(map[string]state, 1)
	for _, l := range q.ifh {
		if _, ok := q.states[l.tag]; !ok {
			q.states[l.tag] = q.stateOf(l.tag)
		}
	}
	if !q.ifh.holds(func(tag string) state { return q.states[tag] }) {
		return errPrecondition()
	}
	return nil
}

// recheckIf returns what evaluates the If header again with what p, the request target or a destination, is by then. The core calls it under
// its publish lock. It is nil without an If header.
func (q *request) recheckIf(p gateway.Path) func(cur gateway.Info, exists bool) error {
	if len(q.ifh) == 0 {
		return nil
	}
	return func(cur gateway.Info, exists bool) error {
		holds := q.ifh.holds(func(tag string) state {
			st := q.states[tag]
			if at, ok := q.tagged(tag); ok && at == p {
				st.etag = ""
				if exists {
					st.etag = cur.ETag
				}
			}
			return st
		})
		if !holds {
			return errPrecondition()
		}
		return nil
	}
}

// tagged returns the place a Resource-Tag names; the empty tag is the request target.
func (q *request) tagged(tag string) (gateway.Path, bool) {
	if tag == "" {
		return q.path, true
	}
	p, ok, err := q.h.reference(q.r, tag)
	return p, ok && err == nil
}

// stateOf reads the state of a resource, as far as the session may know it: what it may not see has no state.
func (q *request) stateOf(tag string) state {
	var st state
	p, ok := q.tagged(tag)
	if !ok {
		return st
	}
	info, err := q.s.Stat(q.ctx(), p)
	if err == nil {
		st.etag = info.ETag
	} else if fault.KindOf(err) == fault.NotExist {
		st.tokens = q.tokensOf(st.tokens, p.Parent()) // to make it is to change its folder (RFC 4918 §7.4)
	}
	st.tokens = q.tokensOf(st.tokens, p)
	return st
}

// tokensOf appends the tokens of the locks that cover p.
func (q *request) tokensOf(tokens []string, p gateway.Path) []string {
	locks, err := q.s.Locks(q.ctx(), p)
	if err != nil {
		return tokens
	}
	for _, l := range locks {
		tokens = append(tokens, l.Token)
	}
	return tokens
}

// cond returns the conditions of the request for the core (RFC 9110 §13), which checks them early and again under its publish lock.
func (q *request) cond() gateway.Cond {
	c := gateway.Cond{
		Match:     etags(q.r.Header, "If-Match"),
		NoneMatch: etags(q.r.Header, "If-None-Match"),
		Check:     q.recheckIf(q.path),
	}
	if len(c.Match) == 0 { // §13.1.4
		c.UnmodifiedSince = httpTime(q.r.Header.Get("If-Unmodified-Since"))
	}
	return c
}

// check evaluates the conditions here, for the verbs whose call of the core takes none. A target that does not exist has no entity tag.
func (q *request) check() error {
	c := q.cond()
	if len(c.Match) == 0 && len(c.NoneMatch) == 0 && c.UnmodifiedSince.IsZero() {
		return nil // the If header was checked before
	}
	info, err := q.s.Stat(q.ctx(), q.path)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		return err
	}
	exists := err == nil
	switch {
	case len(c.Match) > 0 && !(exists && matches(c.Match, info.ETag, false)),
		exists && matches(c.NoneMatch, info.ETag, true),
		exists && !c.UnmodifiedSince.IsZero() && info.ModTime.Truncate(time.Second).After(c.UnmodifiedSince):
		return errPrecondition()
	}
	return nil
}

// etags splits a list of entity tags. A tag may hold commas; what is no entity tag is kept as it stands and matches nothing.
func etags(hd http.Header, key string) []string {
	var list []string
	for _, v := range hd[key] { // keys given in canonical form
		for v = strings.Trim(v, " \t,"); v != ""; v = strings.Trim(v, " \t,") {
			from := 0
			if strings.HasPrefix(v, "W/") {
				from = 2
			}
			end := strings.IndexByte(v, ',')
			if len(v) > from && v[from] == '"' {
				if i := strings.IndexByte(v[from+1:], '"'); i >= 0 {
					end = from + i + 2
				}
			}
			if end < 0 || end > len(v) {
				end = len(v)
			}
			list = append(list, strings.TrimRight(v[:end], " \t"))
			v = v[end:]
		}
	}
	return list
}

// matches compares a resource's entity tag with a list, strongly or weakly (RFC 9110 §8.8.3.2). "*" is whatever exists.
func matches(list []string, etag string, weakly bool) bool {
	for _, t := range list {
		if weakly {
			t, etag = strings.TrimPrefix(t, "W/"), strings.TrimPrefix(etag, "W/")
		}
		if t == "*" || t == etag && etag != "" && !strings.HasPrefix(t, "W/") {
			return true
		}
	}
	return false
}

// httpTime reads an HTTP date; one that is none counts as absent (RFC 9110 §13.1.3).
func httpTime(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return time.Time{}
	}
	return t
}
