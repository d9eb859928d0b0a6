package s3

import (
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	xmlHeader = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"
	xmlSpace  = "http://s3.amazonaws.com/doc/2006-03-01/"
)

// document begins an answer.
func document(root string) []byte {
	b := make([]byte, 0, 1024)
	b = append(b, xmlHeader...)
	b = append(append(b, '<'), root...)
	return append(append(append(b, ` xmlns="`...), xmlSpace...), `">`...)
}

// closed ends it.
func closed(b []byte, root string) []byte { return append(append(append(b, "</"...), root...), '>') }

func open(b []byte, name string) []byte { return append(append(append(b, '<'), name...), '>') }

// elem writes an element with text.
func elem(b []byte, name, text string) []byte {
	b = open(b, name)
	b = appendText(b, text)
	return closed(b, name)
}

func elemInt(b []byte, name string, n int64) []byte {
	b = open(b, name)
	b = strconv.AppendInt(b, n, 10)
	return closed(b, name)
}

func elemBool(b []byte, name string, v bool) []byte { return elem(b, name, strconv.FormatBool(v)) }

func elemTime(b []byte, name string, t time.Time) []byte {
	b = open(b, name)
	b = appendTime(b, t)
	return closed(b, name)
}

// timeLayout is ISO 8601 as S3 writes it.
const timeLayout = "2006-01-02T15:04:05.000Z"

func appendTime(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, timeLayout) }

// appendText escapes s for XML 1.0 (§2.2 and §2.4). What XML cannot have at all becomes U+FFFD.
func appendText(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); {
		c, size := rune(s[i]), 1
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRuneInString(s[i:])
		}
		var as string
		switch {
		case c == '&':
			as = "&amp;"
		case c == '<':
			as = "&lt;"
		case c == '>':
			as = "&gt;"
		case c == '"':
			as = "&#34;"
		case c == '\r':
			as = "&#xD;"
		case c == '\n':
			as = "&#xA;"
		case c == '\t':
			as = "&#x9;"
		case c < 0x20, c == utf8.RuneError && size == 1, c == 0xFFFE, c == 0xFFFF:
			as = "\uFFFD"
		default:
			i += size
			continue
		}
		b = append(append(b, s[from:i]...), as...)
		i += size
		from = i
	}
	return append(b, s[from:]...)
}

// appendEscaped percent-encodes s as Signature Version 4 wants it: all but letters, digits and "-._~", and slashes if asked to.
func appendEscaped(b []byte, s string, slashes bool) []byte {
	const hex = "0123456789ABCDEF"
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~' || c == '/' && slashes {
			continue
		}
		b = append(append(b, s[from:i]...), '%', hex[c>>4], hex[c&15])
		from = i + 1
	}
	return append(b, s[from:]...)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
