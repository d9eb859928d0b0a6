// Package strict reads a YAML or JSON file into a struct, refuses what the struct does not have, and reports every problem with its place.
//
// YAML's conveniences that make a file mean something else than it shows (anchors, aliases, tags, merge keys, several documents) are refused:
// the files read here give rights to people, so they have to be readable.
package strict

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

const (
	maxSize  = 8 << 20
	maxDepth = 64
)

// Decode reads src into the struct that into points to. Fields are named by their yaml tag; a field without one is not read.
// The document is never nil; the problems are all there are, and what they do not touch has been decoded.
func Decode(source string, src []byte, into any) (*Document, Problems) {
	d := &decoder{doc: &Document{Source: source, places: map[string]Place{"": {Line: 1, Column: 1}}}}
	switch {
	case len(src) > maxSize:
		d.add("", Place{}, "larger than %d MiB", maxSize>>20)
		return d.doc, d.problems
	case tooDeep(src):
		d.add("", Place{}, "nested more than %d levels deep", maxDepth)
		return d.doc, d.problems
	}
	file, err := parser.ParseBytes(detab(src), 0)
	if err != nil {
		d.syntax(err)
		return d.doc, d.problems
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) > 1 {
		d.add("", place(bodies[1]), "a second document")
		return d.doc, d.problems
	}
	if len(bodies) == 1 {
		if _, null := bodies[0].(*ast.NullNode); !null {
			d.value("", bodies[0], reflect.ValueOf(into).Elem())
		}
	}
	return d.doc, d.problems
}

type decoder struct {
	doc      *Document
	problems Problems
}

func (d *decoder) add(key string, at Place, format string, args ...any) {
	d.problems = append(d.problems, Problem{Source: d.doc.Source, Place: at, Key: key, Text: fmt.Sprintf(format, args...)})
}

// syntax reports what the parser stumbled over, without the lines around it that it likes to show: they may hold secrets.
func (d *decoder) syntax(err error) {
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) && syntax.Token != nil && syntax.Token.Position != nil {
		at := Place{Line: syntax.Token.Position.Line, Column: syntax.Token.Position.Column}
		d.add("", at, "%s", syntax.Message)
		return
	}
	d.add("", Place{}, "no valid YAML")
}

var (
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
)

func (d *decoder) value(key string, n ast.Node, v reflect.Value) {
	at := place(n)
	switch n := n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.add(key, at, "anchors, aliases, merge keys and tags are not read; write the value out")
		return
	case *ast.NullNode:
		return // "key:" with nothing after it keeps the default
	case *ast.CommentGroupNode, *ast.DirectiveNode:
		d.add(key, at, "a value is expected")
		return
	default:
		_ = n
	}
	switch {
	case v.Type() == timeType:
		d.text(key, n, func(s string) error {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return errors.New("no time of the form 2027-01-31T18:00:00Z")
			}
			v.Set(reflect.ValueOf(t.UTC()))
			return nil
		})
		return
	case v.Type() == durationType:
		d.text(key, n, func(s string) error {
			t, err := time.ParseDuration(s)
			if err != nil {
				return errors.New("no duration of the form 90s, 10m or 2h30m")
			}
			v.SetInt(int64(t))
			return nil
		})
		return
	case v.Addr().Type().Implements(textType):
		d.text(key, n, func(s string) error { return v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)) })
		return
	}
	if own, ok := v.Addr().Interface().(yaml.InterfaceUnmarshaler); ok {
		d.own(key, n, own)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(key, n, v.Elem())
	case reflect.Struct:
		d.object(key, n, v)
	case reflect.Map:
		d.table(key, n, v)
	case reflect.Slice:
		d.list(key, n, v)
	case reflect.String:
		d.text(key, n, func(s string) error { v.SetString(s); return nil })
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.add(key, at, "true or false is expected, not %s", kind(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int64:
		d.integer(key, n, v)
	case reflect.Interface:
		v.Set(reflect.ValueOf(d.any(key, n)))
	default:
		panic("strict: no way to decode a " + v.Type().String())
	}
}

// own lets a type that may be written in several ways try them. The places it tries in vain are forgotten with their problems.
func (d *decoder) own(key string, n ast.Node, v yaml.InterfaceUnmarshaler) {
	err := v.UnmarshalYAML(func(into any) error {
		try := &decoder{doc: &Document{Source: d.doc.Source, places: map[string]Place{}}}
		try.value(key, n, reflect.ValueOf(into).Elem())
		if len(try.problems) == 0 {
			maps.Copy(d.doc.places, try.doc.places)
		}
		return try.problems.Err()
	})
	var problems Problems
	switch {
	case errors.As(err, &problems):
		d.problems = append(d.problems, problems...)
	case err != nil:
		d.add(key, place(n), "%v", err)
	}
}

func (d *decoder) integer(key string, n ast.Node, v reflect.Value) {
	i, ok := n.(*ast.IntegerNode)
	if !ok {
		d.add(key, place(n), "a whole number is expected, not %s", kind(n))
		return
	}
	switch x := i.Value.(type) {
	case int64:
		v.SetInt(x)
	case uint64:
		if x > math.MaxInt64 {
			d.add(key, place(n), "the number is too large")
			return
		}
		v.SetInt(int64(x))
	}
}

// text gives a scalar as it was written, so that a password of digits stays what it is.
func (d *decoder) text(key string, n ast.Node, set func(string) error) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s = n.GetToken().Value
	default:
		d.add(key, place(n), "text is expected, not %s", kind(n))
		return
	}
	if err := set(s); err != nil {
		d.add(key, place(n), "%v", err)
	}
}

func (d *decoder) object(key string, n ast.Node, v reflect.Value) {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = v.Field(i)
		}
	}
	d.entries(key, n, func(name string, at Place, value ast.Node) {
		field, ok := fields[name]
		if !ok {
			d.add(join(key, name), at, "unknown key%s", meant(name, fields))
			return
		}
		d.value(join(key, name), value, field)
	})
}

func (d *decoder) table(key string, n ast.Node, v reflect.Value) {
	m := reflect.MakeMap(v.Type())
	v.Set(m)
	d.entries(key, n, func(name string, _ Place, value ast.Node) {
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(join(key, name), value, item)
		m.SetMapIndex(reflect.ValueOf(name), item)
	})
}

func (d *decoder) entries(key string, n ast.Node, each func(name string, at Place, value ast.Node)) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.add(key, place(n), "keys and values are expected, not %s", kind(n))
		return
	}
	for it := m.MapRange(); it.Next(); {
		at := place(it.Key())
		name, ok := keyName(it.Key())
		if !ok {
			d.add(key, at, "a plain word is expected as key")
			continue
		}
		d.doc.places[join(key, name)] = at
		each(name, at, it.Value())
	}
}

func (d *decoder) list(key string, n ast.Node, v reflect.Value) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(key, place(n), "a list is expected, not %s", kind(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
	for i, item := range s.Values {
		at := key + "[" + strconv.Itoa(i) + "]"
		d.doc.places[at] = place(item)
		if _, null := item.(*ast.NullNode); null {
			d.add(at, place(item), "an empty entry")
			continue
		}
		d.value(at, item, out.Index(i))
	}
	v.Set(out)
}

// any decodes a value whose shape is for somebody else to judge: string, bool, int64, float64, []any or map[string]any.
func (d *decoder) any(key string, n ast.Node) any {
	switch n := n.(type) {
	case *ast.BoolNode:
		return n.Value
	case *ast.IntegerNode:
		var i int64
		d.integer(key, n, reflect.ValueOf(&i).Elem())
		return i
	case *ast.FloatNode:
		return n.Value
	case *ast.SequenceNode:
		var list []any
		d.list(key, n, reflect.ValueOf(&list).Elem())
		return list
	case ast.MapNode:
		var table map[string]any
		d.table(key, n.(ast.Node), reflect.ValueOf(&table).Elem())
		return table
	}
	var s string
	d.text(key, n, func(text string) error { s = text; return nil })
	return s
}

func keyName(n ast.MapKeyNode) (string, bool) {
	switch k := n.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.IntegerNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func place(n ast.Node) Place {
	tk := n.GetToken()
	if m, ok := n.(ast.MapNode); ok { // a mapping's own token is its first colon
		if it := m.MapRange(); it.Next() {
			tk = it.Key().GetToken()
		}
	}
	if tk == nil || tk.Position == nil {
		return Place{}
	}
	return Place{Line: tk.Position.Line, Column: tk.Position.Column}
}

func kind(n ast.Node) string {
	switch n.(type) {
	case ast.MapNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode:
		return "a number"
	}
	return "text"
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// meant returns a hint when the unknown name is a known one in other letters, or one letter off.
func meant(name string, fields map[string]reflect.Value) string {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	for known := range fields {
		if plain(known) == plain(name) || near(plain(known), plain(name)) {
			return ", did you mean " + known + "?"
		}
	}
	return ""
}

// near reports whether one inserted, dropped, changed or swapped letter makes a into b.
func near(a, b string) bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	if len(a) < 4 || len(a)-len(b) > 1 {
		return false
	}
	i := 0
	for i < len(b) && a[i] == b[i] {
		i++
	}
	if len(a) > len(b) {
		return a[i+1:] == b[i:]
	}
	return i < len(b) && (a[i+1:] == b[i+1:] || i+1 < len(b) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:])
}

// tooDeep guards the parser, which recurses, against inputs made to exhaust the stack.
func tooDeep(src []byte) bool {
	depth, dashes, lineStart := 0, 0, true
	for i, c := range src {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(0, depth-1)
		case '\n':
			dashes, lineStart = 0, true
			continue
		case '-', '?':
			if lineStart && i+1 < len(src) && (src[i+1] == ' ' || src[i+1] == '\t') {
				dashes++
			}
		case ' ', '\t':
			continue
		default:
			lineStart = false
		}
		if depth > maxDepth || dashes > maxDepth {
			return true
		}
	}
	return false
}

// detab turns the tabs that indent JSON into spaces, which YAML insists on. Columns stay what they are.
func detab(src []byte) []byte {
	if trimmed := strings.TrimSpace(string(src)); !strings.HasPrefix(trimmed, "{") {
		return src
	}
	out := []byte(string(src))
	indent := true
	for i, c := range out {
		switch {
		case c == '\n':
			indent = true
		case c == '\t' && indent:
			out[i] = ' '
		case c != ' ':
			indent = false
		}
	}
	return out
}
