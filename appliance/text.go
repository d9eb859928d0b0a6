package appliance

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// say is fmt.Fprintf for what people read: arguments that have line breaks, escapes or anything else that does not show are quoted, so that no
// name of a file or user passes for a line of ours or speaks to the terminal.
func say(w io.Writer, format string, args ...any) {
	shown := make([]any, len(args))
	for i, arg := range args {
		switch a := arg.(type) {
		case string:
			shown[i] = clean(a)
		case error:
			shown[i] = clean(a.Error())
		case fmt.Stringer:
			shown[i] = clean(a.String())
		default:
			shown[i] = arg
		}
	}
	fmt.Fprintf(w, format, shown...) // a reader that went away needs no answer
}

// clean returns s, quoted if it has what does not show.
func clean(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(s)
	}
	return s
}

// number returns n with commas between the thousands.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
