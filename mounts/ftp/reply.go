package ftp

import (
	"bufio"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// What one reply may be. Real ones have some lines; a hostile server's never ends.
const (
	maxLine  = 8 << 10 // bytes, which is the size of the control connection's buffer
	maxLines = 1000
	maxReply = 128 << 10
)

var (
	errFlood   = errors.New("the server's reply is endless")
	errGarbled = errors.New("the server does not speak FTP")
)

// reply is the server's answer to a command.
type reply struct {
	code  int
	lines []string // without the code
}

// text is the last line.
func (r reply) text() string { return r.lines[len(r.lines)-1] }

// ok reports whether the command was carried out.
func (r reply) ok() bool { return r.code >= 200 && r.code < 300 }

// readReply reads one reply, of several lines or one (RFC 959 §4.2). Started says whether something of it was read when it fails.
func readReply(r *bufio.Reader) (rep reply, started bool, err error) {
	total := 0
	for {
		line, err := r.ReadSlice('\n')
		started = started || len(line) > 0
		if errors.Is(err, bufio.ErrBufferFull) {
			return rep, true, errFlood
		}
		if err != nil {
			return rep, started, err
		}
		if total += len(line); total > maxReply || len(rep.lines) >= maxLines {
			return rep, true, errFlood
		}
		text := strings.TrimRight(string(line), "\r\n")
		code, last, isCode := replyCode(text)
		switch {
		case len(rep.lines) == 0 && !isCode:
			return rep, true, errGarbled
		case len(rep.lines) == 0:
			rep.code = code
			rep.lines = append(rep.lines, text[min(len(text), 4):])
		case isCode && last && code == rep.code:
			rep.lines = append(rep.lines, text[min(len(text), 4):])
		default: // in between, lines are free text, with or without the code
			rep.lines = append(rep.lines, strings.TrimPrefix(text, strconv.Itoa(rep.code)+"-"))
			continue
		}
		if last {
			return rep, true, nil
		}
	}
}

// replyCode splits the code from a line. Last is false before a hyphen.
func replyCode(s string) (code int, last, ok bool) {
	if len(s) < 3 || s[0] < '1' || s[0] > '5' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return 0, false, false
	}
	if len(s) > 3 && s[3] != ' ' && s[3] != '-' {
		return 0, false, false
	}
	return int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0'), len(s) == 3 || s[3] == ' ', true
}

var errPassive = errors.New("the server names no port for the data connection")

// parseEPSV returns the port of a reply such as "Entering Extended Passive Mode (|||6446|)" (RFC 2428 §3).
func parseEPSV(text string) (uint16, error) {
	open := strings.LastIndexByte(text, '(')
	if open < 0 || len(text) < open+6 {
		return 0, errPassive
	}
	body := text[open+1:]
	mark := body[0]
	if mark < 33 || mark > 126 || mark >= '0' && mark <= '9' || body[1] != mark || body[2] != mark {
		return 0, errPassive
	}
	digits, _, ok := strings.Cut(body[3:], string(rune(mark)))
	if !ok {
		return 0, errPassive
	}
	return dataPort(digits)
}

// parsePASV returns the port of a reply such as "Entering Passive Mode (127,0,0,1,25,46)". The address in it is not looked at: RFC 2577
// warns of those that lead elsewhere, and many are wrong behind a NAT.
func parsePASV(text string) (uint16, error) {
	start := strings.IndexAny(text, "0123456789")
	if start < 0 {
		return 0, errPassive
	}
	text = text[start:]
	if end := strings.IndexFunc(text, func(r rune) bool { return r != ',' && (r < '0' || r > '9') }); end >= 0 {
		text = text[:end]
	}
	parts := strings.Split(text, ",")
	if len(parts) != 6 {
		return 0, errPassive
	}
	var n [6]uint64
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return 0, errPassive
		}
		n[i] = v
	}
	return dataPort(strconv.FormatUint(n[4]<<8|n[5], 10))
}

// dataPort refuses the ports of well-known services, which no server listens on for data.
func dataPort(digits string) (uint16, error) {
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n < 1024 {
		return 0, errPassive
	}
	return uint16(n), nil
}

// activeArgs returns the arguments of EPRT (RFC 2428 §2) and PORT; the latter is "" for IPv6.
func activeArgs(a netip.AddrPort) (eprt, port string) {
	ip := a.Addr().Unmap().WithZone("")
	family := "2"
	if ip.Is4() {
		family = "1"
		b := ip.As4()
		for _, v := range b {
			port += strconv.Itoa(int(v)) + ","
		}
		port += strconv.Itoa(int(a.Port()>>8)) + "," + strconv.Itoa(int(a.Port()&0xff))
	}
	return "|" + family + "|" + ip.String() + "|" + strconv.Itoa(int(a.Port())) + "|", port
}

// parsePWD returns the path of a reply such as `"/a ""b""" is the current directory` (RFC 959, appendix II), "" when there is none.
func parsePWD(text string) string {
	_, rest, ok := strings.Cut(text, `"`)
	if !ok {
		return ""
	}
	var b strings.Builder
	for {
		part, after, ok := strings.Cut(rest, `"`)
		if !ok {
			return ""
		}
		b.WriteString(part)
		if !strings.HasPrefix(after, `"`) {
			return b.String()
		}
		b.WriteByte('"')
		rest = after[1:]
	}
}
