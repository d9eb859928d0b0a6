// Package mounttest is what every backend has to pass: the contract of mounts as tests, told where that can be as scripts.
//
// Run asks for what the Features claim and for what the contract demands of all. What Features refuse must be refused: by the absence of the
// capability or by Unsupported.
package mounttest

import (
	"context"
	"strings"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Run tests the backends that open returns, each empty but for an Area and independent of the others. It closes them.
func Run(t *testing.T, open func(t *testing.T) mounts.Backend) {
	tests := []struct {
		name string
		test func(t *testing.T, b mounts.Backend)
	}{
		{"Basic", testBasic}, {"Rename", testRename}, {"RenameFolder", testRenameFolder}, {"Copy", testCopy},
		{"Names", testNames}, {"BadNames", testBadNames}, {"Info", testInfo},
		{"Ranges", testRanges}, {"FailingSource", testFailingSource}, {"Length", testLength}, {"PutCancelled", testPutCancelled},
		{"ReadersDuringReplace", testReadersDuringReplace}, {"OldReader", testOldReader}, {"Large", testLarge}, {"Exclusive", testExclusive},
		{"ListMany", testListMany}, {"Concurrent", testConcurrent}, {"EndedContext", testEndedContext}, {"Closed", testClosed},
		{"Features", testFeatures}, {"RandomAccess", testRandomAccess}, {"RandomAccessFlags", testRandomAccessFlags},
		{"Link", testLink}, {"Symlink", testSymlink}, {"Times", testTimes}, {"Mode", testMode}, {"Truncate", testTruncate}, {"Xattr", testXattr},
		{"Watch", testWatch}, {"Space", testSpace}, {"Hash", testHash}, {"Conditional", testConditional}, {"Parts", testParts},
		{"Purge", testPurge}, {"Areas", testAreas},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := open(t)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test.test(t, b)
		})
	}
}

func testBasic(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		ls .              -> 
		stat .            -> dir "."
		stat f            -> ! does not exist
		cat f             -> ! does not exist
		rm f              -> ! does not exist
		ls d              -> ! does not exist
		put f hello       -> ok
		stat f            -> file "f" 5
		cat f             -> "hello"
		put f "hi there"  -> ok
		cat f             -> "hi there"
		put empty ""      -> ok
		stat empty        -> file "empty" 0
		cat empty         -> ""
		mkdir d           -> ok
		mkdir d           -> ! already exists
		mkdir f           -> ! already exists
		mkdir .           -> ! already exists
		mkdir d/e         -> ok
		mkdir x/y         -> ! does not exist
		mkdir f/y         -> ! is not a folder | does not exist
		put d/g 1         -> ok
		put d/e/h 22      -> ok
		put x/y 1         -> ! does not exist
		put f/y 1         -> ! is not a folder | does not exist
		put d 1           -> ! is a folder
		put . 1           -> ! is a folder
		ls .              -> d/ empty f
		ls d              -> e/ g
		ls d/e            -> h
		ls f              -> ! is not a folder
		stat f/y          -> ! is not a folder | does not exist
		stat x/y          -> ! does not exist
		cat d             -> ! is a folder
		cat f/y           -> ! is not a folder | does not exist
		cat d/e/h         -> "22"
		rm d              -> ! folder is not empty
		rm d/e            -> ! folder is not empty
		rm f/y            -> ! is not a folder | does not exist
		rm .              -> ! invalid
		rm d/e/h          -> ok
		rm d/e            -> ok
		rm d/g            -> ok
		ls d              -> 
		rm d              -> ok
		rm d              -> ! does not exist
		rm f              -> ok
		cat f             -> ! does not exist
		ls .              -> empty
	`)
}

func testRename(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		put a 1           -> ok
		put b 22          -> ok
		mkdir d           -> ok
		mv a c            -> ok
		cat c             -> "1"
		stat a            -> ! does not exist
		mv c c            -> ok
		cat c             -> "1"
		mv c d/c          -> ok
		cat d/c           -> "1"
		mv d/c c          -> ok
		mv nothing c      -> ! does not exist
		cat c             -> "1"
		mv nothing nothing -> ! does not exist
		mv nothing new    -> ! does not exist
		stat new          -> ! does not exist
		mv c x/y          -> ! does not exist
		mv c b/y          -> ! is not a folder | does not exist
		mv c c/y          -> ! is not a folder | does not exist | invalid
		mv c d            -> ! is a folder | already exists
		mv . e            -> ! invalid
		mv c .            -> ! invalid | is a folder
		cat c             -> "1"
		ls .              -> b c d/
	`)
	if b.Features().AtomicReplace == mounts.Refused {
		Script(t, b, "mv c b -> ! already exists | not supported")
		return
	}
	Script(t, b, `
		mv c b            -> ok
		cat b             -> "1"
		ls .              -> b d/
	`)
}

func testRenameFolder(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		mkdir d           -> ok
		mkdir d/e         -> ok
		put d/e/f 1       -> ok
		mkdir other       -> ok
		put file 1        -> ok
	`)
	if b.Features().Rename == mounts.Refused {
		Script(t, b, `
			mv d g        -> ! not supported
			cat d/e/f     -> "1"
		`)
		return
	}
	Script(t, b, `
		mv d d            -> ok
		mv d d/e/x        -> ! invalid
		mv d d/x          -> ! invalid
		mv d/e d          -> ! already exists | folder is not empty
		mv d other        -> ! already exists
		mv other d        -> ! already exists | folder is not empty
		mv d file         -> ! is not a folder | already exists
		cat d/e/f         -> "1"
		cat file          -> "1"
		ls other          -> 
		mv d g            -> ok
		stat d            -> ! does not exist
		cat g/e/f         -> "1"
		mv g/e other/e    -> ok
		ls g              -> 
		cat other/e/f     -> "1"
		mv g g2           -> ok
		mv other g2/o     -> ok
		cat g2/o/e/f      -> "1"
		ls .              -> file g2/
	`)
}

func testCopy(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		put a hello       -> ok
		mkdir d           -> ok
		cp a b            -> ok
		cat b             -> "hello"
		cp a d/b          -> ok
		cat d/b           -> "hello"
		put a other       -> ok
		cat b             -> "hello"
		cp a b            -> ok
		cat b             -> "other"
		cp a a            -> ok
		cat a             -> "other"
		cp nothing b      -> ! does not exist
		cat b             -> "other"
		cp d e            -> ! is a folder
		stat e            -> ! does not exist
		cp a d            -> ! is a folder
		cp a x/y          -> ! does not exist
		put empty ""      -> ok
		cp empty e2       -> ok
		cat e2            -> ""
	`)
}

func testNames(t *testing.T, b mounts.Backend) {
	longest := mounts.MaxName
	if n := b.Features().MaxName; n > 0 {
		longest = min(longest, n)
	}
	names := []string{
		"a b", " leading", "in  side", `quo"te`, "apo'strophe", "per%cent", "%2e%2e", "%2F", "ha#sh", "ques?tion", "am&per", "semi;a=b", "plus+", "-dash",
		"--", "-rf", ".hidden", "..two", "...", "back`tick", "dol$lar", "st*ar", "<angle>", "pipe|", "co:lon", "til~de", "at@", "[x]", "{y}", "bang!",
		"comma,", "equals=", "ünï", "日本語", "😀", "é", "עברית", "a\u200db", "]]>", "CON", "con.txt", strings.Repeat("n", longest),
		strings.Repeat("é", longest/2), "trailing dot.", "trailing space ", `back\slash`,
	}
	ctx := t.Context()
	if err := b.Mkdir(ctx, "names"); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, name := range names {
		if _, err := mounts.WriteFile(ctx, b, "names/"+name, []byte(name)); err != nil {
			// A backend may not know a name, but it must say so and not make another one of it.
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unsupported {
				t.Errorf("Put(%q): %v; want ok, Invalid or Unsupported", name, err)
			}
			continue
		}
		have[name] = true
		if got, err := read(ctx, b, "names/"+name, 0, -1); err != nil || got != name {
			t.Errorf("file %q holds %q, %v", name, got, err)
		}
		if info, err := b.Stat(ctx, "names/"+name); err != nil || info.Name != name {
			t.Errorf("Stat(%q) = %q, %v", name, info.Name, err)
		}
	}
	if !have["a b"] || !have["日本語"] || !have["per%cent"] || !have[".hidden"] || !have["-dash"] {
		t.Error("plain names with spaces, signs or other scripts are not taken")
	}
	for info, err := range b.List(ctx, "names") {
		if err != nil {
			t.Fatal(err)
		}
		if !have[info.Name] {
			t.Errorf("listed: %q, which was not put or twice", info.Name)
		}
		delete(have, info.Name)
	}
	for name := range have {
		t.Errorf("not listed: %q", name)
	}
	if b.Features().CaseSensitive {
		Script(t, b, `
			put names/case 1  -> ok
			put names/CASE 2  -> ok
			cat names/case    -> "1"
			cat names/CASE    -> "2"
		`)
	}
	testNamesFolder(t, b)
}

func testNamesFolder(t *testing.T, b mounts.Backend) {
	Script(t, b, `
		mkdir "a #1 100%"         -> ok
		put "a #1 100%/x ? y" 1   -> ok
		ls "a #1 100%"            -> "x ? y"
		mv "a #1 100%/x ? y" "a #1 100%/z+&" -> ok
		cat "a #1 100%/z+&"       -> "1"
		rm "a #1 100%/z+&"        -> ok
		rm "a #1 100%"            -> ok
	`)
}

func testBadNames(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a\x00b", "a\nb", "a\rb", "a\x1b", "a\x7f", "a\u0085b", "a\u2028b",
		"a\u2029b", "a\xffb", strings.Repeat("x", mounts.MaxName+1), "d/" + strings.Repeat("x", mounts.MaxName+1),
	} {
		calls := map[string]func() error{
			"Stat":      func() error { _, err := b.Stat(ctx, name); return err },
			"List":      func() error { _, err := list(ctx, b, name); return err },
			"Open":      func() error { _, err := b.Open(ctx, name, 0, -1); return err },
			"Put":       func() error { _, err := mounts.WriteFile(ctx, b, name, nil); return err },
			"Mkdir":     func() error { return b.Mkdir(ctx, name) },
			"Remove":    func() error { return b.Remove(ctx, name) },
			"Purge":     func() error { return mounts.Purge(ctx, b, name) },
			"Rename":    func() error { return b.Rename(ctx, name, "to") },
			"Rename to": func() error { return b.Rename(ctx, "from", name) },
		}
		for op, call := range calls {
			if err := call(); err == nil || fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s(%q): %v; want Invalid", op, name, err)
			}
		}
	}
}

func testEndedContext(t *testing.T, b mounts.Backend) {
	Script(t, b, "put f 1 -> ok")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for op, call := range everyCall(ctx, b) {
		if err := call(); err == nil || fault.KindOf(err) != fault.Canceled {
			t.Errorf("%s with an ended context: %v; want Canceled", op, err)
		}
	}
	Script(t, b, `
		ls .  -> f
		cat f -> "1"
	`)
}

func testClosed(t *testing.T, b mounts.Backend) {
	Script(t, b, "put f 1 -> ok")
	if err := b.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for op, call := range everyCall(t.Context(), b) {
		if err := call(); err == nil || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s after Close: %v; want Unavailable", op, err)
		}
	}
}

// everyCall returns one call of each method and capability of b.
func everyCall(ctx context.Context, b mounts.Backend) map[string]func() error {
	calls := map[string]func() error{
		"Stat":   func() error { _, err := b.Stat(ctx, "f"); return err },
		"List":   func() error { _, err := list(ctx, b, "."); return err },
		"Open":   func() error { _, err := b.Open(ctx, "f", 0, -1); return err },
		"Put":    func() error { _, err := mounts.WriteFile(ctx, b, "f", nil); return err },
		"Mkdir":  func() error { return b.Mkdir(ctx, "d") },
		"Remove": func() error { return b.Remove(ctx, "f") },
		"Rename": func() error { return b.Rename(ctx, "f", "g") },
	}
	for name, call := range capabilityCalls(ctx, b) {
		calls[name] = call
	}
	return calls
}
