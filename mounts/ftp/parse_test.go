package ftp

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

func TestParseUnix(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	l := lister{zone: berlin, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, test := range []struct {
		line string
		want mounts.Info
		skip bool
	}{
		{line: "-rw-r--r--    1 0        0               5 Feb 22 02:20 a name", want: mounts.Info{Name: "a name", Size: 5, ModTime: at("2026-02-22 01:20")}},
		{line: "-rw-r--r-- 1 ann staff 5 Nov 22 02:20  leads", want: mounts.Info{Name: " leads", Size: 5, ModTime: at("2025-11-22 01:20")}},
		{line: "-rw-r--r-- 1 ann Domain Users 5 Feb  3  2020 f", want: mounts.Info{Name: "f", Size: 5, ModTime: at("2020-02-02 23:00")}},
		{line: "-rw-r--r-- 1 7 Feb 5 Feb  3  2020 Feb 3 2020 f", want: mounts.Info{Name: "Feb 3 2020 f", Size: 5, ModTime: at("2020-02-02 23:00")}},
		{line: "-rw-r--r--+ 1 ann 5 3 Jun 2020 f", want: mounts.Info{Name: "f", Size: 5, ModTime: at("2020-06-02 22:00")}},
		{line: "-rw-r--r-- 1 ann ann 99 2020-02-03 10:11 f.txt", want: mounts.Info{Name: "f.txt", Size: 99, ModTime: at("2020-02-03 09:11")}},
		{line: "drwxr-xr-x 2 ann ann 4096 Feb 3 2020 d", want: mounts.Info{Name: "d", Type: mounts.Dir, ModTime: at("2020-02-02 23:00")}},
		{line: "lrwxrwxrwx 1 ann ann 7 Feb 3 2020 l -> a -> b", want: mounts.Info{Name: "l", Type: mounts.Symlink, Target: "a -> b", ModTime: at("2020-02-02 23:00")}},
		{line: "brw-rw---- 1 root disk 8, 0 Feb 3 2020 sda", want: mounts.Info{Name: "sda", Type: mounts.Other, ModTime: at("2020-02-02 23:00")}},
		{line: "drwxr-xr-x 2 ann ann 4096 Feb 3 2020 .", want: mounts.Info{Name: ".", Type: mounts.Dir, ModTime: at("2020-02-02 23:00")}, skip: true},
		{line: "total 12", skip: true},
		{line: "-rw-r--r-- 1 ann ann 5 Feb 33 2020 f", skip: true},
		{line: "-rw-r--r-- 1 ann ann -5 Feb 3 2020 f", skip: true},
		{line: "11-22-2026  02:20PM  12 name", want: mounts.Info{Name: "name", Size: 12, ModTime: at("2026-11-22 13:20")}},
	} {
		got, skip := l.parse(test.line)
		if skip != test.skip || got != test.want && (!skip || test.want.Name != "") {
			t.Errorf("%q:\n got %+v, %v\nwant %+v, %v", test.line, got, skip, test.want, test.skip)
		}
	}
}

func TestCoarse(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	l := lister{zone: time.UTC, now: now}
	for _, test := range []struct{ t, want time.Time }{
		{now.Add(-90 * time.Second), now.Add(-2 * time.Minute)},
		{time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC), time.Date(2020, 2, 3, 0, 0, 0, 0, time.UTC)},
		{time.Time{}, time.Time{}},
	} {
		if got := l.coarse(test.t, false); !got.Equal(test.want) {
			t.Errorf("coarse(%v) = %v, want %v", test.t, got, test.want)
		}
	}
}

// TestP04Commands: no argument ends its command.
func TestP04Commands(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	c := &conn{b: &Backend{timeout: time.Second}, raw: here, nc: here}
	for _, command := range []string{"DELE a\r\nDELE b", "DELE a\nb", "DELE a\rb", "DELE a\x00b", "STOR " + strings.Repeat("x", maxCommand)} {
		if err := c.send("NOOP", command); !errors.Is(err, errCommand) && !errors.Is(err, errLongName) {
			t.Errorf("send(%.20q): %v", command, err)
		}
	}
	there.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := there.Read(make([]byte, 100)); n > 0 || err == nil {
		t.Errorf("%d bytes were sent", n)
	}
	cfg := mounts.Config{Options: map[string]string{"host": "h"}, Credentials: map[string]secret.String{"username": secret.New("a\r\nSITE x")}}
	if _, errs := configure(cfg); len(errs) != 1 {
		t.Errorf("a user name with a line break: %v", errs)
	}
}

func FuzzList(f *testing.F) {
	for _, s := range []string{
		"-rw-r--r--    1 0        0               5 Feb 22 02:20 a name", "lrwxrwxrwx 1 a a 7 Feb 3 2020 l -> b", "11-22-26  02:20AM       <DIR>          name",
		"brw-rw---- 1 root disk 8, 0 Feb 3 2020 sda", "-rw-r--r-- 1 ann ann 99 2020-02-03 10:11 f.txt", "0", "-", "d         1 1 1 Feb 1 0:0 ",
	} {
		f.Add(s)
	}
	l := lister{zone: time.UTC, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	f.Fuzz(func(t *testing.T, s string) {
		info, skip := l.parse(s)
		if !skip && (info.Name == "" || info.Size < 0 || !strings.Contains(s, info.Name)) {
			t.Errorf("%q: %+v", s, info)
		}
	})
}

func FuzzFacts(f *testing.F) {
	for _, s := range []string{
		"type=file;size=5;modify=20261122023218;unique=FE00U1; a name", "type=OS.unix=slink:/x;; l", "type=cdir; .", "; ", " x", "size=-1;type=FILE; x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if info, skip := parseFacts(s); !skip && (info.Size < -1 || !strings.HasSuffix(s, info.Name)) {
			t.Errorf("%q: %+v", s, info)
		}
	})
}

func FuzzPassive(f *testing.F) {
	for _, s := range []string{"Entering (|||6446|)", "(!!!6446!)", "Entering Passive Mode (127,0,0,1,25,46).", "=127,0,0,1,25,46", "(|||"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if port, err := parseEPSV(s); err == nil && port < 1024 {
			t.Errorf("EPSV %q: %d", s, port)
		}
		if port, err := parsePASV(s); err == nil && port < 1024 {
			t.Errorf("PASV %q: %d", s, port)
		}
		parsePWD(s)
		announced(reply{lines: []string{s}})
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"220 hi\r\n", "220-hi\r\n220-there\r\n 220 no\r\n220 end\r\n", "211-\r\n211\r\n", "99 x\r\n", "\r\n", "500-\r\n501 x\r\n500 y\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, _, err := readReply(bufio.NewReaderSize(strings.NewReader(s), maxLine))
		if err != nil {
			return
		}
		if r.code < 100 || r.code > 599 || len(r.lines) == 0 || len(r.lines) > maxLines {
			t.Errorf("%q: %+v", s, r)
		}
		e := &replyError{"RETR", "x", r}
		if strings.ContainsAny(e.Error(), "\r\n") || len(e.Error()) > 400 {
			t.Errorf("%q: %q", s, e)
		}
		e.kind()
		mlstResult("/x", "x", r)
	})
}

// TestReply: text between the lines may look like codes.
func TestReply(t *testing.T) {
	in := bufio.NewReaderSize(strings.NewReader("220-one\r\n 220 two\r\n123 three\r\n220-four\r\n220 five\r\n226 done\r\n"), maxLine)
	r, _, err := readReply(in)
	if err != nil || r.code != 220 || strings.Join(r.lines, "|") != "one| 220 two|123 three|four|five" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _, err = readReply(in); err != nil || r.code != 226 || r.text() != "done" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, started, err := readReply(in); started || err != io.EOF {
		t.Errorf("at the end: %v, %v", started, err)
	}
}
