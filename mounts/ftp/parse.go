package ftp

import (
	"strconv"
	"strings"
	"time"

	"cellgate/mounts"
)

// parseFacts reads an entry of MLSD or MLST (RFC 3659 §7.2), such as "type=file;size=5;modify=20261122023218; a name". Skip says that it is
// the folder itself, its parent or nothing that can be understood.
func parseFacts(line string) (info mounts.Info, skip bool) {
	facts, name, ok := strings.Cut(line, " ")
	if !ok {
		return info, true
	}
	info = mounts.Info{Name: name, Type: mounts.Other, Size: -1}
	for fact := range strings.SplitSeq(facts, ";") {
		key, value, _ := strings.Cut(fact, "=")
		switch strings.ToLower(key) {
		case "type":
			switch kind := strings.ToLower(value); {
			case kind == "file":
				info.Type = mounts.File
			case kind == "dir":
				info.Type = mounts.Dir
			case kind == "cdir" || kind == "pdir":
				skip = true
				info.Type = mounts.Dir // which MLST of a folder may say
			case strings.HasPrefix(kind, "os.unix=slink") || strings.HasPrefix(kind, "os.unix=symlink"):
				info.Type = mounts.Symlink
				_, info.Target, _ = strings.Cut(value, ":")
			}
		case "size":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 {
				info.Size = n
			}
		case "modify":
			info.ModTime = parseStamp(value)
		case "unique":
			if value != "" {
				info.ID = max(digest(value), 1)
			}
		}
	}
	if info.Type != mounts.File {
		info.Size = 0
	}
	return info, skip
}

// digest makes a number of what identifies a file (FNV-1a).
func digest(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// parseStamp reads a time of RFC 3659 §2.3, in UTC and to the second; the zero time when it makes no sense.
func parseStamp(s string) time.Time {
	s, _, _ = strings.Cut(s, ".")
	t, err := time.Parse("20060102150405", s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// stamp is the time as MFMT wants it.
func stamp(t time.Time) string { return t.UTC().Format("20060102150405") }

// lister reads the lines of LIST, which no standard describes: those of ls -l and of DIR.
type lister struct {
	zone *time.Location
	now  time.Time
}

// parse reads one line. Skip says that it names nothing, as "total 12" or what is not understood.
func (l lister) parse(line string) (info mounts.Info, skip bool) {
	if line == "" {
		return info, true
	}
	if c := line[0]; c >= '0' && c <= '9' {
		info, skip = l.parseDOS(line)
	} else {
		info, skip = l.parseUnix(line)
	}
	return info, skip || info.Name == "." || info.Name == ".."
}

// word is a field of a line and where it ends.
type word struct {
	text string
	end  int
}

// words splits a line into list, as far as that has room.
func words(list []word, line string) []word {
	for i := 0; i < len(line) && len(list) < cap(list); {
		for i < len(line) && line[i] == ' ' {
			i++
		}
		start := i
		for i < len(line) && line[i] != ' ' {
			i++
		}
		if i > start {
			list = append(list, word{line[start:i], i})
		}
	}
	return list
}

const months = "janfebmaraprmayjunjulaugsepoctnovdec"

// month returns 1 to 12, or 0.
func month(s string) time.Month {
	if len(s) != 3 {
		return 0
	}
	i := strings.Index(months, strings.ToLower(s))
	if i < 0 || i%3 != 0 {
		return 0
	}
	return time.Month(i/3 + 1)
}

// parseUnix finds the date, which comes after the size and before the name: names of groups may have spaces, and some servers leave fields
// out.
func (l lister) parseUnix(line string) (info mounts.Info, skip bool) {
	switch line[0] {
	case '-':
		info.Type = mounts.File
	case 'd':
		info.Type = mounts.Dir
	case 'l':
		info.Type = mounts.Symlink
	case 'b', 'c', 'p', 's', 'D':
		info.Type = mounts.Other
	default:
		return info, true
	}
	var room [16]word
	fields := words(room[:0], line)
	if len(fields) < 6 || len(fields[0].text) < 10 {
		return info, true
	}
	for i := 2; i < len(fields); i++ {
		size, err := strconv.ParseInt(fields[i-1].text, 10, 64)
		if err != nil || size < 0 {
			continue
		}
		end, t, ok := l.date(fields[i:])
		if !ok || end+1 >= len(line) {
			continue
		}
		info.Name, info.ModTime = line[end+1:], t // one space, then the name with all its own
		if info.Type == mounts.File {
			info.Size = size
		}
		if info.Type == mounts.Symlink {
			info.Name, info.Target, _ = strings.Cut(info.Name, " -> ")
		}
		return info, false
	}
	return info, true
}

// date reads "Nov 22 02:20", "22 Nov 2019" or "2026-11-22 02:20" and returns where it ends in the line.
func (l lister) date(f []word) (end int, t time.Time, ok bool) {
	if len(f) >= 2 && len(f[0].text) == 10 {
		if t, err := time.ParseInLocation("2006-01-02 15:04", f[0].text+" "+f[1].text, l.zone); err == nil {
			return f[1].end, t.UTC(), true
		}
	}
	if len(f) < 3 {
		return 0, t, false
	}
	m, d := month(f[0].text), f[1].text
	if m == 0 {
		m, d = month(f[1].text), f[0].text
	}
	day, err := strconv.Atoi(d)
	if m == 0 || err != nil || day < 1 || day > 31 {
		return 0, t, false
	}
	last := f[2]
	if hour, minute, isTime := strings.Cut(last.text, ":"); isTime {
		h, err := strconv.Atoi(hour)
		n, err2 := strconv.Atoi(minute)
		if err != nil || err2 != nil || h < 0 || h > 23 || n < 0 || n > 59 {
			return 0, t, false
		}
		now := l.now.In(l.zone)
		t = time.Date(now.Year(), m, day, h, n, 0, 0, l.zone)
		if t.After(now.Add(24 * time.Hour)) { // the year is left out for what is less than half a year old
			t = time.Date(now.Year()-1, m, day, h, n, 0, 0, l.zone)
		}
		return last.end, t.UTC(), true
	}
	year, err := strconv.Atoi(last.text)
	if err != nil || year < 1900 || year > 9999 {
		return 0, t, false
	}
	return last.end, time.Date(year, m, day, 0, 0, 0, 0, l.zone).UTC(), true
}

// parseDOS reads "11-22-26  02:20AM       <DIR>          name" of IIS.
func (l lister) parseDOS(line string) (info mounts.Info, skip bool) {
	var room [4]word
	fields := words(room[:0], line)
	if len(fields) < 4 {
		return info, true
	}
	ok := false
	for _, layout := range []string{"01-02-06 03:04PM", "01-02-2006 03:04PM", "01-02-06 15:04", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, fields[0].text+" "+fields[1].text, l.zone); err == nil {
			info.ModTime, ok = t.UTC(), true
			break
		}
	}
	if !ok {
		return info, true
	}
	switch what := fields[2].text; what {
	case "<DIR>":
		info.Type = mounts.Dir
		// The name stands in a column of its own, so one that begins with spaces keeps them.
		const column = 39
		if len(line) > column && strings.TrimSpace(line[fields[2].end:column]) == "" {
			info.Name = line[column:]
			return info, false
		}
	case "<JUNCTION>", "<SYMLINK>", "<SYMLINKD>":
		info.Type = mounts.Symlink
	default:
		n, err := strconv.ParseInt(strings.ReplaceAll(what, ",", ""), 10, 64)
		if err != nil || n < 0 {
			return info, true
		}
		info.Size = n
		info.Name = line[min(fields[2].end+1, len(line)):]
		return info, false
	}
	info.Name = strings.TrimLeft(line[fields[2].end:], " ")
	return info, info.Name == ""
}

// halfYear is what ls and servers that imitate it call old: such files show their year instead of the hour.
const halfYear = 182 * 24 * time.Hour

// coarse is the time that LIST tells of a file modified at t, so that Stat says the same of it. Servers of Windows show the hour always.
func (l lister) coarse(t time.Time, dos bool) time.Time {
	if t.IsZero() {
		return t
	}
	at := t.In(l.zone)
	if age := l.now.Sub(t); !dos && (age > halfYear || age < -10*time.Minute) {
		return time.Date(at.Year(), at.Month(), at.Day(), 0, 0, 0, 0, l.zone).UTC()
	}
	return time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), 0, 0, l.zone).UTC()
}
