package appliance

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"cellgate/appliance/strict"
	"cellgate/internal/secret"
)

// doors are the services a configuration may name.
var (
	doors = []string{"webdav", "sftp", "s3"}
)

// Loaded is a configuration together with where its values came from.
type Loaded struct {
	Config
	Warnings []string // what was asked for and does nothing
}

// Load puts a configuration together: defaults, then file (none when empty), then environment ("NAME=value"), then flags (by key).
// The error is strict.Problems with everything that is wrong, or why the file cannot be read.
func Load(file string, environ []string, flags map[string]string) (*Loaded, error) {
	l := &Loaded{Config: Default()}
	doc, problems := &strict.Document{}, strict.Problems(nil)
	if file != "" {
		src, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		doc, problems = strict.Decode(file, src, &l.Config)
	}
	origin := map[string]string{}
	leaves := leavesOf(reflect.ValueOf(&l.Config).Elem(), "")
	problems = append(problems, l.environment(environ, leaves, origin)...)
	for _, leaf := range leaves {
		if text, ok := flags[leaf.key]; ok {
			origin[leaf.key] = "flag --" + flagName(leaf.key)
			if err := setText(leaf.value, text); err != nil {
				problems = append(problems, strict.Problem{Source: origin[leaf.key], Text: err.Error()})
			}
		}
	}
	for _, p := range l.Validate() {
		key, _, _ := strings.Cut(p.Key, "[")
		if from, ok := origin[key]; ok {
			p.Source = from
		} else if doc.Has(key) {
			p = doc.Problem(p.Key, "%s", p.Text)
		}
		if !slices.ContainsFunc(problems, func(q strict.Problem) bool { return q.Key == p.Key && q.Source == p.Source }) {
			problems = append(problems, p)
		}
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return l, nil
}

// environment applies CELLGATE_… variables. One that names no key is only warned of: container platforms invent such names for services.
func (l *Loaded) environment(environ []string, leaves []leaf, origin map[string]string) (problems strict.Problems) {
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(otherEnv, name) {
			continue
		}
		bad := func(err error) {
			problems = append(problems, strict.Problem{Source: "environment", Key: name, Text: err.Error()})
		}
		i := slices.IndexFunc(leaves, func(f leaf) bool { return f.env() == name || f.env()+"_FILE" == name })
		if i < 0 {
			l.Warnings = append(l.Warnings, "environment: "+name+" is no setting")
			continue
		}
		if leaves[i].env() != name {
			if slices.ContainsFunc(environ, func(other string) bool { return strings.HasPrefix(other, leaves[i].env()+"=") }) {
				bad(errors.New("given together with " + leaves[i].env()))
				continue
			}
			src, err := os.ReadFile(text)
			if err != nil {
				bad(err)
				continue
			}
			text = strings.TrimRight(string(src), "\r\n")
		}
		origin[leaves[i].key] = "environment " + name
		if err := setText(leaves[i].value, text); err != nil {
			bad(err)
		}
	}
	return problems
}

const envPrefix = "CELLGATE_"

// otherEnv are variables that the commands read themselves.
var otherEnv = []string{"CELLGATE_CONFIG", "CELLGATE_SERVER", "CELLGATE_TOKEN", "CELLGATE_PASSWORD"}

// leaf is one key of the configuration.
type leaf struct {
	key   string // such as tls.mode
	help  string
	value reflect.Value
}

func (f leaf) env() string {
	var b strings.Builder
	b.WriteString(envPrefix)
	for _, r := range f.key {
		switch {
		case r == '.':
			b.WriteByte('_')
		case unicode.IsUpper(r):
			b.WriteByte('_')
			b.WriteRune(r)
		default:
			b.WriteRune(unicode.ToUpper(r))
		}
	}
	return b.String()
}

// flagName returns the flag of a key, for the few that have one.
func flagName(key string) string {
	switch key {
	case "tls.mode":
		return "tls"
	case "tls.address":
		return "https"
	case "log.level":
		return "log-level"
	case "log.format":
		return "log-format"
	}
	return key
}

func leavesOf(v reflect.Value, prefix string) (leaves []leaf) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key := prefix + field.Tag.Get("yaml")
		if help := field.Tag.Get("help"); help != "" {
			leaves = append(leaves, leaf{key: key, help: help, value: v.Field(i)})
		} else {
			leaves = append(leaves, leavesOf(v.Field(i), key+".")...)
		}
	}
	return leaves
}

func setText(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
		return nil
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("true or false is expected")
		}
		*p = b
		return nil
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("a whole number is expected")
		}
		*p = n
		return nil
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("a duration of the form 90s, 10m or 2h30m is expected")
		}
		*p = d
		return nil
	}
	if v.Kind() != reflect.Slice {
		panic("config: no way to set a " + v.Type().String())
	}
	list := reflect.MakeSlice(v.Type(), 0, 4)
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if err := setText(item, part); err != nil {
			return err
		}
		list = reflect.Append(list, item)
	}
	v.Set(list)
	return nil
}

// Example returns the example file: every key with its default, what it means and its environment variable.
func Example() string {
	var b strings.Builder
	b.WriteString("# Configuration of cellgate: cellgate serve --config FILE. These are the defaults; every key may be left out.\n" +
		"# Each is also an environment variable, named behind its text; with _FILE behind the name the value is read from that file.\n")
	cfg := Default()
	section := ""
	for _, f := range leavesOf(reflect.ValueOf(&cfg).Elem(), "") {
		indent, name := "", f.key
		if head, tail, ok := strings.Cut(f.key, "."); ok {
			if head != section {
				fmt.Fprintf(&b, "\n%s:\n", head)
				section = head
			}
			indent, name = "  ", tail
		} else {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s# %s [%s]\n%s%s: %s\n", indent, f.help, f.env(), indent, name, yamlText(f.value))
	}
	return b.String()
}

func yamlText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case secret.String:
		return `""`
	case time.Duration:
		s := x.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(s, zero) {
				s = s[:len(s)-2]
			}
		}
		return s
	case string:
		if x == "" || x == off {
			return strconv.Quote(x)
		}
		return x
	}
	if v.Kind() == reflect.Slice {
		return "[]"
	}
	return fmt.Sprint(v.Interface())
}
