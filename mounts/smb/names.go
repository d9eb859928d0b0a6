package smb

import (
	"errors"
	"regexp"
	"strings"
	"unicode/utf8"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	refused     = `"*:<>?\|` // by SMB within a name; the n-th is stored as firstMapped+n
	firstMapped = 0xF020
	lastSpace   = 0xF028
	lastDot     = 0xF029
	maxPath     = 32_000 // UTF-16 units; the protocol counts bytes in 16 bits
)

// devices are names that Windows and DOS take for devices, whatever their ending. Servers refuse them, or show their files under another name.
var devices = regexp.MustCompile(`(?i)^(con|prn|aux|nul|lock\$|com[0-9¹²³]|lpt[0-9¹²³])[ ]*(\.|$)`)

var (
	errDevice = errors.New("the name is that of a device on Windows")
	errMapped = errors.New("a name has a character of the private-use range that stands for one SMB refuses, U+F020 to U+F029")
	errPath   = errors.New("the path is too long for SMB")
)

// encode returns the name that segment has on the server.
func encode(segment string) (string, error) {
	if strings.IndexByte("cpanlCPANL", segment[0]) >= 0 && devices.MatchString(segment) {
		return "", errDevice
	}
	plain := true
	for i := 0; i < len(segment) && plain; i++ {
		plain = segment[i] < utf8.RuneSelf && strings.IndexByte(refused, segment[i]) < 0
	}
	end := len(segment) - 1
	if plain && segment[end] != ' ' && segment[end] != '.' {
		return segment, nil
	}
	var s strings.Builder
	for i, r := range segment {
		last := i+utf8.RuneLen(r) == len(segment)
		switch {
		case r >= firstMapped && r < firstMapped+int32(len(refused)), last && (r == lastSpace || r == lastDot):
			return "", errMapped
		case r < utf8.RuneSelf && strings.IndexByte(refused, byte(r)) >= 0:
			r = firstMapped + rune(strings.IndexByte(refused, byte(r)))
		case last && r == ' ':
			r = lastSpace
		case last && r == '.':
			r = lastDot
		}
		s.WriteRune(r)
	}
	return s.String(), nil
}

// decode is the inverse of encode.
func decode(stored string) string {
	if strings.IndexByte(stored, 0xEF) < 0 { // the first byte of them all in UTF-8
		return stored
	}
	var s strings.Builder
	for i, r := range stored {
		last := i+utf8.RuneLen(r) == len(stored)
		switch {
		case r >= firstMapped && r < firstMapped+int32(len(refused)):
			r = rune(refused[r-firstMapped])
		case last && r == lastSpace:
			r = ' '
		case last && r == lastDot:
			r = '.'
		}
		s.WriteRune(r)
	}
	return s.String()
}

// encodePath returns the path of name on the share, below root. It asks for a valid path.
func encodePath(root, name string) (string, error) {
	if err := mounts.ValidPath(name); err != nil {
		return "", err
	}
	if name == "." {
		return root, nil
	}
	var s strings.Builder
	s.WriteString(root)
	for segment := range strings.SplitSeq(name, "/") {
		stored, err := encode(segment)
		if err != nil {
			return "", fault.New("mounts/smb.encode", name, fault.Invalid, err)
		}
		if s.Len() > 0 {
			s.WriteByte('\\')
		}
		s.WriteString(stored)
	}
	if s.Len() > maxPath {
		return "", fault.New("mounts/smb.encode", name, fault.Invalid, errPath)
	}
	return s.String(), nil
}

// fold makes paths of one file the same on servers that ignore case, about.
func fold(path string) string { return strings.ToLower(path) }

// short reports whether segment has the form of a DOS short name, by which a server may reach a file of another name.
func short(segment string) bool {
	stem, ext, _ := strings.Cut(segment, ".")
	i := strings.LastIndexByte(stem, '~')
	return i >= 0 && i < len(stem)-1 && len(stem) <= 8 && len(ext) <= 3 && !strings.Contains(ext, ".")
}
