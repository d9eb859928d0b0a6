package mounts

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"cellgate/internal/fault"
)

// MaxName is the longest name of a node in bytes, whatever a backend would take.
const MaxName = 255

// ValidName returns nil when segment can be the name of a node: 1 to MaxName bytes of valid UTF-8 without "/", control characters (C0, DEL,
// C1) and the line separators U+2028 and U+2029, and neither "." nor "..". Anything else is Invalid, on every protocol and backend alike.
func ValidName(segment string) error {
	if why := flaw(segment); why != nil {
		return fault.New("mounts.ValidName", segment, fault.Invalid, why)
	}
	return nil
}

// ValidPath returns nil when name is "." or a slash-separated sequence of valid names. Drivers call it before anything else.
func ValidPath(name string) error {
	if name == "." {
		return nil
	}
	for rest := name; ; {
		segment, after, more := strings.Cut(rest, "/")
		if why := flaw(segment); why != nil {
			return fault.New("mounts.ValidPath", name, fault.Invalid, why)
		}
		if !more {
			return nil
		}
		rest = after
	}
}

var (
	errEmpty   = errors.New("a name is empty")
	errDots    = errors.New(`a name is "." or ".."`)
	errLong    = errors.New("a name is longer than 255 bytes")
	errUTF8    = errors.New("a name is not UTF-8")
	errControl = errors.New("a name has a control character")
	errSlash   = errors.New("a name has a slash")
)

// flaw says why segment is no valid name. ASCII, the usual case, costs one look at each byte.
func flaw(segment string) error {
	switch {
	case segment == "":
		return errEmpty
	case segment == "." || segment == "..":
		return errDots
	case len(segment) > MaxName:
		return errLong
	}
	for i := 0; i < len(segment); i++ {
		switch c := segment[i]; {
		case c == '/':
			return errSlash
		case c < ' ' || c == 0x7f:
			return errControl
		case c >= utf8.RuneSelf:
			return flawBeyondASCII(segment[i:])
		}
	}
	return nil
}

func flawBeyondASCII(s string) error {
	if !utf8.ValidString(s) {
		return errUTF8
	}
	for _, r := range s {
		switch {
		case r == '/':
			return errSlash
		case unicode.IsControl(r) || r == '\u2028' || r == '\u2029':
			return errControl
		}
	}
	return nil
}

// Reserved reports whether segment is the gateway's own: the name of a staged file beside its target, which begins with Area and "-", or what
// some file system or server could take for Area: in other case, composed otherwise or in compatibility
// forms (full width), with characters that file systems ignore (joiners, marks of direction, soft hyphens), with the trailing dots and
// spaces that Windows drops, as an NTFS stream of it, behind a backslash, or as its short name. The core refuses such names.
func Reserved(segment string) bool {
	for part := range strings.SplitSeq(segment, `\`) {
		if isASCII(part) {
			if reserved(part) {
				return true
			}
			continue
		}
		folded := norm.NFKC.String(strings.Map(visible, part)) // may make slashes and dots: U+2024, U+FF0F
		folded = strings.Map(visible, folded)
		for piece := range strings.FieldsFuncSeq(folded, func(r rune) bool { return r == '/' || r == '\\' }) {
			if reserved(piece) {
				return true
			}
		}
	}
	return false
}

// ReservedPath reports whether any segment of name is Reserved.
func ReservedPath(name string) bool {
	for segment := range strings.SplitSeq(name, "/") {
		if Reserved(segment) {
			return true
		}
	}
	return false
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// visible drops the code points that HFS+, APFS and string comparison of servers ignore.
func visible(r rune) rune {
	if unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || unicode.Is(unicode.Variation_Selector, r) {
		return -1
	}
	return r
}

func reserved(s string) bool {
	if i := strings.IndexByte(s, ':'); i >= 0 {
		s = s[:i] // a stream of it, such as ".cellgate::$INDEX_ALLOCATION"
	}
	s = strings.TrimRight(strings.TrimLeft(s, " "), " .")
	if strings.EqualFold(s, Area) || len(s) > len(Area) && s[len(Area)] == '-' && strings.EqualFold(s[:len(Area)], Area) {
		return true
	}
	return isShort(s)
}

// isShort reports whether s could be the short name that NTFS and FAT make of Area: CELLGA~1 and, once those are taken, CE1A2B~1.
func isShort(s string) bool {
	stem, number, ok := strings.Cut(s, "~")
	if !ok || len(stem) != 6 || number == "" || strings.Trim(number, "0123456789") != "" {
		return false
	}
	return strings.EqualFold(stem, Area[1:7]) || strings.EqualFold(stem[:2], Area[1:3]) && strings.Trim(stem[2:], "0123456789abcdefABCDEF") == ""
}

// InArea reports whether name is an Area or lies in one, be it that of the root or one further down.
func InArea(name string) bool {
	for {
		i := strings.Index(name, Area)
		if i < 0 {
			return false
		}
		if end := i + len(Area); (i == 0 || name[i-1] == '/') && (end == len(name) || name[end] == '/') {
			return true
		}
		name = name[i+1:] // begins with no dot, so no half segment passes for a whole one
	}
}

// Below reports whether name is dir or lies below it.
func Below(name, dir string) bool {
	return dir == "." || name == dir || len(name) > len(dir) && name[len(dir)] == '/' && name[:len(dir)] == dir
}

// Split returns the parent of name ("." for a child of the root) and its last segment.
func Split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// Join returns the child base of dir.
func Join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}
