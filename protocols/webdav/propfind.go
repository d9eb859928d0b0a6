package webdav

import (
	"encoding/xml"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
)

// maxProps is how many properties one request may name.
const maxProps = 256

// plan is what a PROPFIND asks for, worked out once and applied to every resource of the listing.
type plan struct {
	names   bool        // propname: names without values
	live    []*liveProp // to be written, in this order
	dead    []xml.Name  // wanted by name
	allDead bool        // wanted whatever they are called
	minimal bool        // Prefer: return=minimal: say nothing of what is not there
	locks   bool        // some live property needs the locks
}

// entry is a resource as a listing comes by it.
type entry struct {
	q     *request
	info  gateway.Info
	dead  []gateway.Prop
	locks []gateway.Lock
	room  *room // of the folder that is listed; its children share it
}

// propfind lists properties (RFC 4918 §9.1), those of a folder's children from a single List.
func (q *request) propfind() error {
	depth, noroot, err := q.depth(infinity)
	if err != nil {
		return err
	}
	if depth == infinity { // §9.1.1
		return &refusal{status: http.StatusForbidden, words: "Depth is 0 or 1", cond: "propfind-finite-depth"}
	}
	if err := q.check(); err != nil {
		return err
	}
	root, err := q.readXML()
	if err != nil {
		return err
	}
	p, err := newPlan(root)
	if err != nil {
		return err
	}
	// RFC 8144 §2.1 and §3, and Microsoft's older ways to say both.
	p.minimal = q.prefers("return=minimal") || strings.EqualFold(q.r.Header.Get("Brief"), "t")
	noroot = noroot || depth == depth1 && q.prefers("depth-noroot")
	info, err := q.s.Stat(q.ctx(), q.path)
	if err != nil {
		return err
	}
	if info.Age >= time.Second { // RFC 9111 §5.1: what a storage across a network said some seconds ago
		q.w.Header().Set("Age", strconv.Itoa(int(info.Age/time.Second)))
	}
	e := entry{q: q, info: info, room: new(room)}
	if err := p.look(&e); err != nil {
		return err
	}
	m := q.multistatus()
	defer m.release()
	if !noroot {
		p.append(m, &e)
	}
	if depth == depth1 && info.Dir {
		if err := q.children(p, m, e); err != nil {
			return err
		}
	}
	return m.end()
}

// prefers reports whether the Prefer header asks for preference, and notes that it is honoured (RFC 7240 §2 and §3).
func (q *request) prefers(preference string) bool {
	for _, v := range q.r.Header["Prefer"] {
		for p := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(p), preference) {
				q.w.Header().Add("Preference-Applied", preference)
				return true
			}
		}
	}
	return false
}

// look reads the dead properties and locks of e's resource, if the plan needs them.
func (p *plan) look(e *entry) (err error) {
	if p.needsDead() {
		if e.dead, err = e.q.s.Props(e.q.ctx(), e.info.Path); err != nil {
			return err
		}
	}
	if p.locks {
		e.locks, err = e.q.s.Locks(e.q.ctx(), e.info.Path)
	}
	return err
}

func (p *plan) needsDead() bool { return p.allDead || len(p.dead) > 0 }

// propBatch is for how many children dead properties are asked at a time, which bounds the memory they take.
const propBatch = 128

// children writes what is in the folder of e. The locks of all of them come from one question, their dead properties from one for many.
func (q *request) children(p *plan, m *multistatus, e entry) (err error) {
	var locks map[string][]gateway.Lock
	var inherited []gateway.Lock
	if p.locks {
		if locks, err = q.s.LocksOf(q.ctx(), q.path); err != nil {
			return err
		}
		inherited = locks[""]
	}
	write := func(info gateway.Info, dead []gateway.Prop) error {
		e.info, e.dead, e.locks = info, dead, inherited
		if own := locks[info.Name]; len(own) > 0 {
			e.locks = slices.Concat(own, inherited)
		}
		p.append(m, &e)
		return m.more()
	}
	var batch []gateway.Info
	flush := func() error {
		names := make([]string, len(batch))
		for i, info := range batch {
			names[i] = info.Name
		}
		dead, err := q.s.PropsOf(q.ctx(), q.path, names)
		if err != nil {
			return err
		}
		for _, info := range batch {
			if err := write(info, dead[info.Name]); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	for info, err := range q.s.List(q.ctx(), q.path) {
		if err != nil {
			return err
		}
		if q.h.hidden(info.Name) {
			continue
		}
		if !p.needsDead() {
			err = write(info, nil)
		} else if batch = append(batch, info); len(batch) == propBatch {
			err = flush()
		}
		if err != nil {
			return err
		}
	}
	if len(batch) > 0 {
		return flush()
	}
	return nil
}

const (
	statOpen  = "</D:href><D:propstat><D:prop>"
	statNext  = "<D:propstat><D:prop>"
	statFound = "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
	statLost  = "</D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>"
)

// append writes the D:response of e. What the resource has goes to the buffer as it is found; only what it lacks is gathered aside.
func (p *plan) append(m *multistatus, e *entry) {
	b := append(m.b, "<D:response><D:href>"...)
	b = append(e.q.h.appendHref(b, e.info.Path, e.info.Dir), statOpen...)
	open, lost := len(b), m.lost[:0]
	for _, l := range p.live {
		start := len(b)
		if p.names {
			if l.has == nil || l.has(e) {
				b = append(b, l.empty...)
			}
			continue
		}
		b = append(b, l.open...)
		var ok bool
		if b, ok = l.value(b, e); ok {
			b = append(b, l.close...)
			continue
		}
		if b = b[:start]; !p.minimal && !l.quiet(p) {
			lost = append(lost, l.empty...)
		}
	}
	b, lost = p.appendDead(b, lost, e)
	found := len(b) > open || len(lost) == 0 // a response has one propstat at least (RFC 4918 §14.24)
	if found {
		b = append(b, statFound...)
	}
	if found && len(lost) > 0 {
		b = append(b, statNext...)
	}
	if len(lost) > 0 {
		b = append(append(b, lost...), statLost...)
	}
	m.b, m.lost = append(b, "</D:response>"...), lost
}

// appendDead writes the dead properties that are wanted to b, and those that are missing to lost.
func (p *plan) appendDead(b, lost []byte, e *entry) (found, missing []byte) {
	if p.allDead {
		for _, d := range e.dead {
			if p.names {
				b = appendPropName(b, xml.Name{Space: d.Space, Local: d.Name})
			} else {
				b = append(b, d.Value...)
			}
		}
		return b, lost
	}
next:
	for _, name := range p.dead {
		for _, d := range e.dead {
			if d.Space == name.Space && d.Name == name.Local {
				b = append(b, d.Value...)
				continue next
			}
		}
		if !p.minimal {
			lost = appendPropName(lost, name)
		}
	}
	return b, lost
}

// appendPropName writes an empty element of that name.
func appendPropName(b []byte, name xml.Name) []byte {
	prefix := "x"
	switch name.Space {
	case davSpace:
		return append(append(append(b, "<D:"...), name.Local...), "/>"...)
	case "":
		prefix = ""
	}
	return appendElement(b, &element{name: name, prefix: prefix})
}

// newPlan reads a DAV:propfind (RFC 4918 §14.20); no body at all means allprop.
func newPlan(root *element) (*plan, error) {
	bad := refuse(http.StatusBadRequest, "body is no DAV:propfind")
	if root == nil {
		return allprop(nil), nil
	}
	if !root.is("propfind") {
		return nil, bad
	}
	prop, include := root.find("prop"), root.find("include")
	kinds := 0
	for _, kind := range [...]string{"prop", "allprop", "propname"} {
		for _, k := range root.kids {
			if k.is(kind) {
				kinds++
			}
		}
	}
	if kinds != 1 || include != nil && root.find("allprop") == nil {
		return nil, bad
	}
	switch {
	case root.find("propname") != nil:
		return &plan{names: true, live: liveAll(nil), allDead: true}, nil
	case prop == nil:
		return allprop(include), nil
	}
	p := new(plan)
	seen := make(map[xml.Name]bool)
	for _, k := range prop.elements() {
		if seen[k.name] {
			continue
		}
		if seen[k.name] = true; len(seen) > maxProps {
			return nil, refuse(http.StatusRequestEntityTooLarge, "too many properties in one request")
		}
		if l := liveByName(k.name); l != nil {
			p.live = append(p.live, l)
			p.locks = p.locks || l.locks
		} else {
			p.dead = append(p.dead, k.name)
		}
	}
	return p, nil
}

// allprop is every dead property, the live ones of RFC 4918, and what include names beyond them (§9.1).
func allprop(include *element) *plan {
	p := &plan{allDead: true, live: liveAll(include)}
	for _, l := range p.live {
		p.locks = p.locks || l.locks
	}
	return p
}
