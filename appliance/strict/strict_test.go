package strict

import (
	"strings"
	"testing"
	"time"

	"cellgate/internal/secret"

	"github.com/google/go-cmp/cmp"
)

type sample struct {
	Name     string            `yaml:"name"`
	Password secret.String     `yaml:"password"`
	On       bool              `yaml:"on"`
	Size     int64             `yaml:"size"`
	Until    time.Time         `yaml:"until"`
	Every    time.Duration     `yaml:"every"`
	Options  map[string]string `yaml:"options"`
	List     []item            `yaml:"list"`
	Words    []string          `yaml:"words"`
	When     map[string]any    `yaml:"when"`
	Max      *int64            `yaml:"max"`
	Either   either            `yaml:"either"`
}

type item struct {
	Path  string   `yaml:"path"`
	Parts []string `yaml:"parts"`
}

// either is a list that may be written as one word.
type either []string

func (e *either) UnmarshalYAML(into func(any) error) error {
	var many []string
	if into(&many) == nil {
		*e = many
		return nil
	}
	var one string
	if err := into(&one); err != nil {
		return err
	}
	*e = either{one}
	return nil
}

func TestDecodeEither(t *testing.T) {
	for in, want := range map[string]either{"either: a": {"a"}, "either: [a, b]": {"a", "b"}} {
		var got sample
		if _, problems := Decode("f", []byte(in), &got); len(problems) > 0 || !cmp.Equal(got.Either, want) {
			t.Errorf("%s is %v, %v, want %v", in, got.Either, problems, want)
		}
	}
	var got sample
	if _, problems := Decode("f", []byte("either: {a: b}"), &got); problems.Error() != "f:1:10: either: text is expected, not keys and values" {
		t.Errorf("problems are %v", problems)
	}
}

func TestDecode(t *testing.T) {
	ten := int64(10)
	want := sample{
		Name: "docs", On: true, Size: -1, Until: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Every: 90 * time.Second, Max: &ten,
		Options: map[string]string{"path": "/srv/files", "port": "22"},
		List:    []item{{Path: "/a", Parts: []string{"x", "y: z"}}, {Path: "b"}},
		Words:   []string{"one", "2", "true"},
		When:    map[string]any{"hours": map[string]any{"from": "09:00", "n": int64(3), "ok": true, "l": []any{"a"}}},
	}
	for _, tt := range []struct{ name, in string }{
		{"yaml", `
name: docs      # a comment
password: 0123
on: true
size: -1
max: 10
until: 2027-01-01T01:00:00+01:00
every: 90s
options: {path: /srv/files, port: 22}
list:
  - path: /a
    parts: [x, "y: z"]
  - {path: b}
words:
  - one
  - 2
  - true
when: {hours: {from: "09:00", n: 3, ok: true, l: [a]}}
`},
		{"json", "{\n\t\"name\": \"docs\",\n\t\"password\": \"0123\", \"on\": true, \"size\": -1, \"max\": 10,\n\t\"until\": \"2027-01-01T00:00:00Z\", \"every\": \"90s\",\n" +
			"\t\"options\": {\"path\": \"/srv/files\", \"port\": 22},\n\t\"list\": [{\"path\": \"/a\", \"parts\": [\"x\", \"y: z\"]}, {\"path\": \"b\"}],\n" +
			"\t\"words\": [\"one\", \"2\", \"true\"],\n\t\"when\": {\"hours\": {\"from\": \"09:00\", \"n\": 3, \"ok\": true, \"l\": [\"a\"]}}\n}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got sample
			_, problems := Decode("f.yaml", []byte(tt.in), &got)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			if got.Password.Reveal() != "0123" {
				t.Errorf("password is %q, want 0123", got.Password.Reveal())
			}
			got.Password = secret.String{}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b secret.String) bool { return a.Reveal() == b.Reveal() })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeReportsEverything(t *testing.T) {
	const in = `name: [a]
nmae: x
on: "yes"
size: many
until: tomorrow
every: 5
list:
  - path: {a: b}
    part: x
  -
hidden: x
when: *alias
words: one
`
	var got sample
	doc, problems := Decode("f.yaml", []byte(in), &got)
	want := strings.TrimSpace(`
f.yaml:1:7: name: text is expected, not a list
f.yaml:2:1: nmae: unknown key, did you mean name?
f.yaml:3:5: on: true or false is expected, not text
f.yaml:4:7: size: a whole number is expected, not text
f.yaml:5:8: until: no time of the form 2027-01-31T18:00:00Z
f.yaml:6:8: every: no duration of the form 90s, 10m or 2h30m
f.yaml:8:12: list[0].path: text is expected, not keys and values
f.yaml:9:5: list[0].part: unknown key, did you mean parts?
f.yaml:10:4: list[1]: an empty entry
f.yaml:11:1: hidden: unknown key
f.yaml:12:7: when: anchors, aliases, merge keys and tags are not read; write the value out
f.yaml:13:8: words: a list is expected, not text`)
	if diff := cmp.Diff(want, problems.Err().Error()); diff != "" {
		t.Error(diff)
	}
	if got := doc.Problem("list[0].parts[3].x", "bad").String(); got != "f.yaml:8:5: list[0].parts[3].x: bad" {
		t.Errorf("a problem with a missing key is %q", got)
	}
}

func TestDecodeRefusesHostileInput(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"deep brackets", strings.Repeat("[", 100_000), "f: nested more than 64 levels deep"},
		{"deep dashes", strings.Repeat("- ", 100_000), "f: nested more than 64 levels deep"},
		{"large", strings.Repeat("#", maxSize+1), "f: larger than 8 MiB"},
		{"two documents", "name: a\n---\nname: b\n", "f:3:1: a second document"},
		{"double key", "name: a\nname: b\n", `f:2:1: mapping key "name" already defined at [1:1]`},
		{"list", "- a\n", "f:1:1: keys and values are expected, not a list"},
		{"syntax without its surroundings", "password: hunter2\nname: \"x\n", "f:2:7: could not find end character of double-quoted text"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got sample
			_, problems := Decode("f", []byte(tt.in), &got)
			if err := problems.Err(); err == nil || err.Error() != tt.want {
				t.Errorf("problems are %v, want %s", err, tt.want)
			}
		})
	}
}

func TestDecodeEmpty(t *testing.T) {
	for _, in := range []string{"", "\n", "# nothing\n", "{}", "---\n", "null"} {
		got := sample{Name: "default"}
		if _, problems := Decode("f", []byte(in), &got); len(problems) > 0 || got.Name != "default" {
			t.Errorf("decoding %q: %v, %+v", in, problems, got.Name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: docs\nlist: [{path: /a}]\n"))
	f.Add([]byte("{\"when\": {\"a\": [1, 2.5, true]}}"))
	f.Add([]byte("a: &x b\nc: *x\n"))
	f.Fuzz(func(_ *testing.T, src []byte) {
		var got sample
		doc, problems := Decode("f", src, &got)
		_ = problems.Err()
		_ = doc.Problem("list[0].path", "x").String()
	})
}
