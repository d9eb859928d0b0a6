package guard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones of policies must not depend on what the host has installed

	"github.com/ory/ladon"
)

// condition is one compiled condition of a rule. Conditions about time see whole seconds. test returns whether it holds and whether the request tells what it asks for.
type condition struct {
	name string
	deny bool // the effect of the rule, which decides what a missing answer means
	test func(*Request) (holds, known bool)
}

var _ ladon.Condition = (*condition)(nil)

// GetName returns the key of the condition as written in policies.
func (c *condition) GetName() string { return c.name }

// Fulfills reports whether the condition lets its rule apply.
func (c *condition) Fulfills(_ context.Context, _ any, r *ladon.Request) bool {
	holds, known := c.test(requestOf(r))
	if !known {
		return c.deny
	}
	return holds
}

// ParseNet reads a network in CIDR notation or a single address. IPv4 in IPv6 clothes is IPv4.
func ParseNet(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("the address %q has a zone", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no network: write 10.0.0.0/8 or 2001:db8::/32", s)
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q mixes IPv4 and IPv6", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// compiler turns one When into conditions and gathers what is wrong with it.
type compiler struct {
	opt      Options
	kind     string
	deny     bool
	out      ladon.Conditions
	perNode  bool
	keys     []string // segments one of which a path must have, nil when any may match
	problems []error
}

func (c *compiler) fail(key string, err error) {
	c.problems = append(c.problems, fmt.Errorf("%s: %w", key, err))
}

func (c *compiler) add(key string, test func(*Request) (bool, bool)) {
	c.out[key] = &condition{name: key, deny: c.deny, test: test}
}

// words adds a condition that one of the words equals, case ignored, what get returns.
func (c *compiler) words(key string, words List, get func(*Request) string) {
	if words == nil {
		return
	}
	if len(words) == 0 {
		c.fail(key, errors.New("the list is empty"))
	}
	set := make([]string, len(words))
	for i, w := range words {
		if set[i] = strings.ToLower(w); w == "" || !cleanText(w) {
			c.fail(key, fmt.Errorf("%q is no word", w))
		}
	}
	c.add(key, func(r *Request) (bool, bool) {
		have := get(r)
		for _, w := range set {
			if strings.EqualFold(w, have) {
				return true, have != ""
			}
		}
		return false, have != ""
	})
}

// patterns adds a condition that one of the patterns matches what get returns, which is lower case.
func (c *compiler) patterns(key string, words List, get func(*Request) string) {
	if words == nil {
		return
	}
	if len(words) == 0 {
		c.fail(key, errors.New("the list is empty"))
	}
	set := make([]string, len(words))
	for i, w := range words {
		if set[i] = strings.ToLower(w); w == "" || len(w) > 1024 || !cleanText(w) {
			c.fail(key, fmt.Errorf("%q is no pattern", w))
		}
	}
	c.add(key, func(r *Request) (bool, bool) {
		have := get(r)
		return slices.ContainsFunc(set, func(p string) bool { return like(p, have) }), have != ""
	})
}

func (c *compiler) when(w When) {
	if w.Country != nil {
		c.fail("country", errors.New("countries cannot be told yet, since no GeoIP database can be configured; use ip with networks or a location"))
	}
	c.ip(w.IP)
	if w.Hours != nil {
		c.hours(*w.Hours)
	}
	if w.Period != nil {
		c.period(*w.Period)
	}
	c.words("protocol", w.Protocol, func(r *Request) string { return r.Protocol })
	c.words("method", w.Method, func(r *Request) string { return r.Method })
	c.words("credential", w.Credential, func(r *Request) string { return r.Credential })
	c.patterns("client", w.Client, (*Request).client)
	if w.SecondFactor != nil {
		c.secondFactor(*w.SecondFactor)
	}
	if (w.Extension != nil || w.Size != nil || w.Type != nil) && c.kind != ACL {
		c.fail("extension, size, type", fmt.Errorf("a policy of kind %s has no files", c.kind))
	}
	c.extension(w.Extension)
	if w.Size != nil {
		c.size(*w.Size)
	}
	c.patterns("type", w.Type, func(r *Request) string { return r.Type })
	c.path(w.Path)
	c.perNode = w.Extension != nil || w.Size != nil || w.Type != nil || w.Path != nil
}

func (c *compiler) ip(words List) {
	if words == nil {
		return
	}
	if len(words) == 0 {
		c.fail("ip", errors.New("the list is empty"))
	}
	var nets []netip.Prefix
	for _, w := range words {
		if p, err := ParseNet(w); err == nil {
			nets = append(nets, p)
		} else if loc, ok := c.opt.Locations[w]; ok {
			nets = append(nets, loc...)
		} else if isWord(w) && !strings.ContainsRune("0123456789", rune(w[0])) {
			c.fail("ip", fmt.Errorf("there is no location %q", w))
		} else {
			c.fail("ip", err)
		}
	}
	c.add("ip", func(r *Request) (bool, bool) {
		a := r.Addr.Unmap().WithZone("")
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) }), a.IsValid()
	})
}

func (c *compiler) hours(h Hours) {
	days, err := parseDays(h.Days)
	if err != nil {
		c.fail("hours", err)
	}
	from, to := 0, 24*60
	if h.From != "" {
		if from, err = parseTime(h.From); err != nil {
			c.fail("hours", err)
		}
	}
	if h.To != "" {
		if to, err = parseTime(h.To); err != nil {
			c.fail("hours", err)
		}
	}
	if from == to || from == 24*60 {
		c.fail("hours", fmt.Errorf("from %s to %s is no time at all", h.From, h.To))
	}
	if h.Zone == "" || h.Zone == "Local" {
		c.fail("hours", errors.New("name the time zone, such as Europe/Paris or UTC"))
		return
	}
	zone, err := time.LoadLocation(h.Zone)
	if err != nil {
		c.fail("hours", fmt.Errorf("there is no time zone %q", h.Zone))
		return
	}
	c.add("hours", func(r *Request) (bool, bool) {
		if r.Time.IsZero() {
			return false, false
		}
		t := r.Time.In(zone)
		m, day := t.Hour()*60+t.Minute(), t.Weekday()
		switch {
		case from < to:
			return days[day] && from <= m && m < to, true
		case m >= from:
			return days[day], true
		default: // after midnight: the window began yesterday
			return days[(day+6)%7] && m < to, true
		}
	})
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// parseDays reads "Mon-Fri,Sun". A range may run over the end of the week.
func parseDays(s string) (days [7]bool, err error) {
	if s == "" {
		return [7]bool{true, true, true, true, true, true, true}, nil
	}
	for part := range strings.SplitSeq(strings.ToLower(s), ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a := slices.Index(dayNames, strings.TrimSpace(first))
		b := a
		if isRange {
			b = slices.Index(dayNames, strings.TrimSpace(last))
		}
		if a < 0 || b < 0 {
			return days, fmt.Errorf("%q are no days: write Mon-Fri or Sat,Sun", part)
		}
		for d := a; ; d = (d + 1) % 7 {
			days[d] = true
			if d == b {
				break
			}
		}
	}
	return days, nil
}

// parseTime reads "HH:MM" up to "24:00" and returns minutes.
func parseTime(s string) (int, error) {
	hh, mm, _ := strings.Cut(s, ":")
	h, err1 := strconv.ParseUint(hh, 10, 8)
	m, err2 := strconv.ParseUint(mm, 10, 8)
	if err1 != nil || err2 != nil || len(hh) != 2 || len(mm) != 2 || m > 59 || h*60+m > 24*60 {
		return 0, fmt.Errorf("%q is no time of day: write 09:00", s)
	}
	return int(h*60 + m), nil
}

func (c *compiler) period(p Period) {
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	for _, end := range []struct {
		text string
		into *int64
	}{{p.From, &from}, {p.To, &to}} {
		if end.text == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339, end.text)
		if err != nil {
			c.fail("period", fmt.Errorf("%q is no time with a zone: write 2027-01-31T18:00:00Z", end.text))
			continue
		}
		*end.into = t.Unix()
	}
	if p == (Period{}) || from >= to {
		c.fail("period", fmt.Errorf("from %q to %q is no period", p.From, p.To))
	}
	c.add("period", func(r *Request) (bool, bool) {
		t := r.Time.Unix()
		return from <= t && t < to, !r.Time.IsZero()
	})
}

func (c *compiler) secondFactor(s SecondFactor) {
	age, err := time.ParseDuration(s.MaxAge)
	if err != nil || age <= 0 {
		c.fail("secondFactor", fmt.Errorf("%q is no age: write 15m or 8h", s.MaxAge))
	}
	c.add("secondFactor", func(r *Request) (bool, bool) {
		have := time.Duration(r.Time.Unix()-r.SecondFactor.Unix()) * time.Second
		return have <= age, !r.SecondFactor.IsZero() && !r.Time.IsZero() && have >= 0
	})
}

func (c *compiler) extension(words List) {
	if words == nil {
		return
	}
	if len(words) == 0 {
		c.fail("extension", errors.New("the list is empty"))
	}
	exts := make([]string, len(words))
	for i, w := range words {
		exts[i] = strings.TrimPrefix(w, ".")
		if exts[i] == "" || strings.ContainsAny(exts[i], "./\\*? ") || !cleanText(w) {
			c.fail("extension", fmt.Errorf("%q is no extension: write pdf", w))
		}
	}
	c.add("extension", func(r *Request) (bool, bool) {
		have := extension(r.Name)
		return slices.ContainsFunc(exts, func(w string) bool { return strings.EqualFold(w, have) }), r.cleanName
	})
}

// extension returns what follows the last dot of a name, as a file system that drops trailing dots and spaces would see it.
func extension(name string) string {
	name = strings.TrimRight(name, ". ")
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return ""
	}
	return name[i+1:]
}

func (c *compiler) size(s Size) {
	if s.Max == 0 {
		s.Max = math.MaxInt64
	}
	if s.Min < 0 || s.Max < s.Min {
		c.fail("size", fmt.Errorf("from %d to %d is no range of sizes", s.Min, s.Max))
	}
	c.add("size", func(r *Request) (bool, bool) { return s.Min <= r.Size && r.Size <= s.Max, r.Size >= 0 })
}

func (c *compiler) path(words List) {
	if words == nil {
		return
	}
	if len(words) == 0 {
		c.fail("path", errors.New("the list is empty"))
	}
	var globs []Glob
	keyed := true
	for _, w := range words {
		g, err := ParseGlob(w)
		if err != nil {
			c.fail("path", err)
			continue
		}
		globs = append(globs, g)
		if key := g.key(); key != "" && keyed {
			c.keys = append(c.keys, key)
		} else {
			c.keys, keyed = nil, false
		}
	}
	c.add("path", func(r *Request) (bool, bool) {
		return r.cleanPath && slices.ContainsFunc(globs, func(g Glob) bool { return g.Match(r.Path) }), r.cleanPath
	})
}
