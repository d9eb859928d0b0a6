package mounts_test

import (
	"io/fs"
	"strings"
	"testing"
	"unicode/utf8"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", ".a", "...", "a b", " ", "ü", "日本語", strings.Repeat("x", 255), "a\u00a0b", "😀", "a\\b", "a:b"} {
		if err := mounts.ValidName(name); err != nil {
			t.Errorf("ValidName(%q): %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", "a/b", "/", "ü/", "a\x00", "\n", "a\rb", "\x1b", "\x7f", "\u0080", "\u0085", "\u009f", "a\u2028", "\u2029", "\xff", "a\xc3",
		"\xed\xa0\x80", strings.Repeat("x", 256), strings.Repeat("é", 128),
	} {
		if err := mounts.ValidName(name); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("ValidName(%q): %v; want Invalid", name, err)
		}
	}
}

func TestReserved(t *testing.T) {
	for _, name := range []string{
		".cellgate", ".CELLGATE", ".CellGate", ".cellgate.", ".cellgate. . ", ".cellgate ", " .cellgate", ".cellgate::$INDEX_ALLOCATION", ".cellgate:x",
		"CELLGA~1", "cellga~12", "CE1A2B~1", "ce00ff~3", ".cell\u200dgate", ".cell\u200cgate", "\ufeff.cellgate", ".cell\u00adgate", ".cellgate\u200f",
		".cell\u2060gate", ".cellgate\ufe0f", "．ｃｅｌｌｇａｔｅ", "․cellgate", ".𝐜𝐞𝐥𝐥𝐠𝐚𝐭𝐞", ".cellgate\u00a0", "x\\.cellgate", ".cellgate\\x", ".cellgate\u3000",
		".ⅽellgate", "x／.cellgate", "x＼.cellgate", ".cell\U000e0067gate",
	} {
		if !mounts.Reserved(name) {
			t.Errorf("Reserved(%q) is false", name)
		}
	}
	for _, name := range []string{
		"cellgate", ".cellgate2", ".cellgat", "a.cellgate", "..cellgate", ".cell gate", "CELLGA~", "CELLGA~x", "CELLGATE~1", "CEXYZW~1", "ü", "~1", "",
		"celery~1", ".cellgaté", "日本語",
	} {
		if mounts.Reserved(name) {
			t.Errorf("Reserved(%q) is true", name)
		}
	}
	if !mounts.ReservedPath("a/.Cellgate/b") || mounts.ReservedPath("a/b") {
		t.Error("ReservedPath does not look at each segment")
	}
}

func TestBelow(t *testing.T) {
	for _, test := range []struct {
		name, dir string
		want      bool
	}{{"a", ".", true}, {".", ".", true}, {"a/b", "a", true}, {"a", "a", true}, {"ab", "a", false}, {"a", "a/b", false}, {".", "a", false}} {
		if got := mounts.Below(test.name, test.dir); got != test.want {
			t.Errorf("Below(%q, %q) = %v", test.name, test.dir, got)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, seed := range []string{"a", ".cellgate", "CELLGA~1", "a/b", "\xff", ".cell\u200dgate", "．cellgate", "..", "a\u2028"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		valid := mounts.ValidName(s) == nil
		if valid && (!fs.ValidPath(s) || s == "." || strings.ContainsAny(s, "/\x00\r\n\x1b\x7f") || !utf8.ValidString(s) || len(s) > 255) {
			t.Errorf("ValidName(%q) is nil", s)
		}
		if path := mounts.ValidPath(s) == nil; path && !fs.ValidPath(s) || valid && !path {
			t.Errorf("ValidPath(%q) is %v", s, path)
		}
		got := mounts.Reserved(s)
		if same := mounts.Reserved(s + "."); got && !same && !strings.ContainsAny(s, "\\:/") {
			t.Errorf("Reserved(%q) but not with a dot behind", s)
		}
		if strings.EqualFold(strings.TrimRight(s, ". "), mounts.Area) && !got {
			t.Errorf("Reserved(%q) is false", s)
		}
	})
}

func BenchmarkReserved(b *testing.B) {
	for b.Loop() {
		mounts.Reserved("quarterly-report 2026.docx")
	}
}
