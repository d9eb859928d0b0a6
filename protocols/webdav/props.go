package webdav

import (
	"encoding/xml"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
)

// msSpace is where Windows keeps a file's attributes and times.
const msSpace = "urn:schemas-microsoft-com:"

// liveProp is a property that the server computes.
type liveProp struct {
	name  xml.Name
	all   bool // part of allprop: those of RFC 4918 §15, not those of RFC 4331 and Microsoft
	locks bool // value needs the resource's locks

	open, close, empty string // the tags, ready to be written

	value func(b []byte, e *entry) (out []byte, ok bool) // not ok: this resource does not have it
	has   func(e *entry) bool                            // for propname; nil: every resource has it
}

// quiet reports that nobody asked for the property by name, so that its absence is no news.
func (l *liveProp) quiet(p *plan) bool { return p.allDead && l.all }

// live is the table of live properties, in the order in which allprop shows them.
var live = []*liveProp{
	dav("displayname", true, displayName, nil),
	dav("resourcetype", true, resourceType, nil),
	dav("getcontentlength", true, contentLength, isFile),
	dav("getcontenttype", true, contentType, isFile),
	dav("getetag", true, entityTag, func(e *entry) bool { return e.info.ETag != "" }),
	dav("getlastmodified", true, lastModified, hasTime),
	dav("creationdate", true, creationDate, hasTime),
	dav("supportedlock", true, supportedLock, nil),
	{name: xml.Name{Space: davSpace, Local: "lockdiscovery"}, all: true, locks: true, open: "<D:lockdiscovery>", close: "</D:lockdiscovery>",
		empty: "<D:lockdiscovery/>", value: lockDiscovery},
	dav("quota-available-bytes", false, quotaAvailable, isFolder),
	dav("quota-used-bytes", false, quotaUsed, isFolder),
	dav("iscollection", false, isCollection, nil),
	dav("ishidden", false, isHidden, nil),
	{name: xml.Name{Space: msSpace, Local: win32Modified}, open: `<Z:` + win32Modified + ` xmlns:Z="` + msSpace + `">`, close: `</Z:` + win32Modified + `>`,
		empty: `<Z:` + win32Modified + ` xmlns:Z="` + msSpace + `"/>`, value: lastModified, has: hasTime},
}

func dav(local string, all bool, value func([]byte, *entry) ([]byte, bool), has func(*entry) bool) *liveProp {
	return &liveProp{name: xml.Name{Space: davSpace, Local: local}, all: all, open: "<D:" + local + ">", close: "</D:" + local + ">",
		empty: "<D:" + local + "/>", value: value, has: has}
}

var liveNames = func() map[xml.Name]*liveProp {
	m := make(map[xml.Name]*liveProp, len(live))
	for _, l := range live {
		m[l.name] = l
	}
	return m
}()

func liveByName(name xml.Name) *liveProp { return liveNames[name] }

// liveAll returns the properties of allprop, and those that include names besides.
func liveAll(include *element) []*liveProp {
	var list []*liveProp
	for _, l := range live {
		wanted := l.all
		if include != nil && !wanted {
			for _, k := range include.kids {
				wanted = wanted || k.name == l.name
			}
		}
		if wanted {
			list = append(list, l)
		}
	}
	return list
}

func isFile(e *entry) bool   { return !e.info.Dir }
func isFolder(e *entry) bool { return e.info.Dir }
func hasTime(e *entry) bool  { return !e.info.ModTime.IsZero() }

func displayName(b []byte, e *entry) ([]byte, bool) {
	if e.info.Path.IsRoot() {
		return appendText(b, e.q.h.cfg.Realm), true
	}
	return appendText(b, e.info.Name), true
}

func resourceType(b []byte, e *entry) ([]byte, bool) {
	if e.info.Dir {
		b = append(b, "<D:collection/>"...)
	}
	return b, true
}

func contentLength(b []byte, e *entry) ([]byte, bool) {
	return strconv.AppendInt(b, e.info.Size, 10), !e.info.Dir && e.info.Size >= 0
}

func contentType(b []byte, e *entry) ([]byte, bool) {
	if e.info.Dir {
		return b, false
	}
	return appendText(b, e.info.Type()), true
}

func entityTag(b []byte, e *entry) ([]byte, bool) {
	return appendText(b, e.info.ETag), e.info.ETag != ""
}

func lastModified(b []byte, e *entry) ([]byte, bool) {
	if !hasTime(e) {
		return b, false
	}
	return appendTime(b, e.info.ModTime, http.TimeFormat), true
}

// creationDate is the time of modification: no backend tells the other, and Windows shows 1601 when there is none.
func creationDate(b []byte, e *entry) ([]byte, bool) {
	if !hasTime(e) {
		return b, false
	}
	return appendTime(b, e.info.ModTime, "2006-01-02T15:04:05Z"), true
}

func appendTime(b []byte, t time.Time, layout string) []byte { return t.UTC().AppendFormat(b, layout) }

func supportedLock(b []byte, _ *entry) ([]byte, bool) {
	return append(b, "<D:lockentry><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockentry>"+
		"<D:lockentry><D:lockscope><D:shared/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockentry>"...), true
}

func lockDiscovery(b []byte, e *entry) ([]byte, bool) { return e.q.appendLocks(b, e.locks), true }

func isCollection(b []byte, e *entry) ([]byte, bool) { return appendFlag(b, e.info.Dir), true }

func isHidden(b []byte, e *entry) ([]byte, bool) {
	return appendFlag(b, strings.HasPrefix(e.info.Name, ".")), true
}

func appendFlag(b []byte, on bool) []byte {
	if on {
		return append(b, '1')
	}
	return append(b, '0')
}

// room is the space of a folder, asked for at most once where the answer cannot differ.
type room struct {
	known bool
	gateway.Space
}

// space returns the bytes used and available at e's folder (RFC 4331). Quotas and datasources begin at the first or second level of the
// tree; below, a folder's children have what it has.
func (e *entry) space() gateway.Space {
	r := e.room
	if e.info.Path.Depth() <= 2 || e.info.Path == e.q.path {
		r = new(room)
	}
	if !r.known {
		r.known = true
		var err error
		if r.Space, err = e.q.s.Space(e.q.ctx(), e.info.Path); err != nil {
			r.Space = gateway.Space{Used: -1, Available: -1}
		}
	}
	return r.Space
}

func quotaAvailable(b []byte, e *entry) ([]byte, bool) {
	if !e.info.Dir {
		return b, false
	}
	n := e.space().Available
	return strconv.AppendInt(b, n, 10), n >= 0
}

func quotaUsed(b []byte, e *entry) ([]byte, bool) {
	if !e.info.Dir {
		return b, false
	}
	n := e.space().Used
	return strconv.AppendInt(b, n, 10), n >= 0
}
