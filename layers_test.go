// Package cellgate_test holds the rules about the repository. It reads sources only: nothing is built or run.
package cellgate_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layer is a top folder, with what it may import of ours beside itself.
type layer struct {
	folder string
	may    []string
}

// layers are the top folders from the top down.
var layers = []layer{
	{"appliance", []string{"protocols", "gateway", "policy", "mounts", "store", "internal", "webui"}},
	{"webui", nil},
	{"protocols", []string{"gateway", "policy", "internal"}},
	{"gateway", []string{"policy", "mounts", "store", "internal"}},
	{"policy", []string{"store", "internal"}},
	{"mounts", []string{"internal", "store/seal"}},
	{"store", []string{"internal"}},
	{"internal", nil},
}

const (
	module   = "cellgate"
	maxLines = 600 // of a file, generated ones apart
)

// source is one parsed file.
type source struct {
	name string // from the root of the module
	dir  string
	test bool
	text []byte
	file *ast.File
}

var fset = token.NewFileSet()

// sources parses every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "cellgate-data") {
			return fs.SkipDir
		}
		if d.IsDir() || path.Ext(name) != ".go" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), text: text, file: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found %d files; is this the root of the module?", len(all))
	}
	return all
}

func TestLayers(t *testing.T) {
	for _, s := range sources(t) {
		top, _, nested := strings.Cut(s.dir, "/")
		if !nested && top == "." {
			continue
		}
		at := slices.IndexFunc(layers, func(l layer) bool { return l.folder == top })
		if at < 0 {
			t.Errorf("%s: %s is no folder of the house", s.name, top)
			continue
		}
		for _, imp := range s.file.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			rest, ours := strings.CutPrefix(name, module+"/")
			switch {
			case !ours && top == "internal" && strings.Contains(strings.Split(name, "/")[0], ".") && !s.test:
				t.Errorf("%s imports %s; internal has the standard library only", s.name, name)
			case ours && !mayImport(at, rest, s.test):
				t.Errorf("%s imports %s, which lies above it or is none of its business", s.name, rest)
			}
		}
	}
}

// mayImport reports whether a file of layer at may import the package. Tests may import everything below them.
func mayImport(at int, pkg string, test bool) bool {
	folder, _, _ := strings.Cut(pkg, "/")
	if folder == layers[at].folder {
		return true
	}
	for _, may := range layers[at].may {
		if pkg == may || strings.HasPrefix(pkg, may+"/") {
			return true
		}
	}
	if !test {
		return false
	}
	for _, l := range layers[at+1:] {
		if l.folder == folder {
			return true
		}
	}
	return false
}

func TestPackageComments(t *testing.T) {
	comments := map[string]int{}
	for _, s := range sources(t) {
		if s.test || s.dir == "." {
			continue
		}
		n := comments[s.dir]
		if s.file.Doc != nil {
			n++
			first := s.file.Doc.Text()
			if name := s.file.Name.Name; name != "main" && !strings.HasPrefix(first, "Package "+name+" ") {
				t.Errorf("%s: the package comment begins with %q, not with %q", s.name, first[:min(40, len(first))], "Package "+name)
			}
		}
		comments[s.dir] = n
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("%s has %d package comments, want 1", dir, n)
		}
	}
}

func TestFilesStaySmall(t *testing.T) {
	for _, s := range sources(t) {
		if lines := bytes.Count(s.text, []byte("\n")); lines > maxLines && !generated(s) {
			t.Errorf("%s has %d lines, more than %d: split it by topic", s.name, lines, maxLines)
		}
	}
}

func generated(s source) bool { return strings.HasSuffix(s.name, "_gen.go") || ast.IsGenerated(s.file) }

func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: no init functions; wire it in appliance", fset.Position(f.Pos()))
			}
		}
	}
}

// TestNoPackageState proves that package variables are tables and sentinels: nothing assigns to one, and none is a place to keep things.
// A sync.Pool is no state: what is in it has no meaning.
func TestNoPackageState(t *testing.T) {
	all := sources(t)
	vars := map[string]map[string]bool{} // by package
	for _, s := range all {
		if s.test || strings.HasSuffix(s.dir, "test") { // storetest and its like run in tests only
			continue
		}
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for _, name := range v.Names {
					if vars[s.dir] == nil {
						vars[s.dir] = map[string]bool{}
					}
					vars[s.dir][name.Name] = true
				}
				if len(v.Values) == 0 && !embedded(g, v) {
					t.Errorf("%s: the package variable %s has no value, so it is state", fset.Position(v.Pos()), v.Names[0])
				}
				for _, value := range v.Values {
					if keeps(value) {
						t.Errorf("%s: the package variable %s keeps state", fset.Position(v.Pos()), v.Names[0])
					}
				}
			}
		}
	}
	for _, s := range all {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			var targets []ast.Expr
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					targets = n.Lhs
				}
			case *ast.IncDecStmt:
				targets = []ast.Expr{n.X}
			}
			for _, x := range targets {
				if id := rootOf(x); id != nil && vars[s.dir][id.Name] && packageLevel(s.file, id) {
					t.Errorf("%s: assignment to the package variable %s", fset.Position(x.Pos()), id.Name)
				}
			}
			return true
		})
	}
}

func embedded(g *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{g.Doc, v.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed") }) {
			return true
		}
	}
	return false
}

// keeps reports whether a value is a channel, a lock, an atomic or an empty container: places to put something later.
func keeps(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.CallExpr:
		if id, ok := x.Fun.(*ast.Ident); ok && (id.Name == "make" || id.Name == "new") {
			return true
		}
	case *ast.CompositeLit:
		switch typ := x.Type.(type) {
		case *ast.SelectorExpr:
			pkg, _ := typ.X.(*ast.Ident)
			return pkg != nil && (pkg.Name == "sync" && typ.Sel.Name != "Pool" || pkg.Name == "atomic")
		case *ast.MapType:
			return len(x.Elts) == 0
		}
	case *ast.UnaryExpr:
		return keeps(x.X)
	}
	return false
}

// rootOf returns v of v, v.f, v.f(), v[i] and *v.
func rootOf(x ast.Expr) *ast.Ident {
	for {
		switch e := x.(type) {
		case *ast.Ident:
			return e
		case *ast.SelectorExpr:
			x = e.X
		case *ast.CallExpr:
			x = e.Fun
		case *ast.IndexExpr:
			x = e.X
		case *ast.StarExpr:
			x = e.X
		case *ast.ParenExpr:
			x = e.X
		default:
			return nil
		}
	}
}

// packageLevel reports whether an identifier is that of a package variable: declared at the top of this file, or in another one.
func packageLevel(f *ast.File, id *ast.Ident) bool {
	if id.Obj == nil { //nolint:staticcheck // the resolution within a file is all that is needed here
		return slices.Contains(f.Unresolved, id)
	}
	spec, ok := id.Obj.Decl.(*ast.ValueSpec)
	return ok && slices.ContainsFunc(f.Decls, func(d ast.Decl) bool {
		g, ok := d.(*ast.GenDecl)
		return ok && slices.Contains(g.Specs, ast.Spec(spec))
	})
}

// sessionFree are the exported methods of gateway.Session that touch no files.
var sessionFree = []string{"With", "Subject", "Carry"}

// TestSessionBegins proves that nothing reaches a file but through Session.begin, where rights are decided: every exported method of Session
// calls it first, itself or through another method of Session that does.
func TestSessionBegins(t *testing.T) {
	calls := map[string][]string{} // method of Session -> the methods it calls on the receiver
	var exported []string
	for _, s := range sources(t) {
		if s.dir != "gateway" || s.test {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Body == nil || receiver(f) != "Session" {
				continue
			}
			if f.Name.IsExported() && !slices.Contains(sessionFree, f.Name.Name) {
				exported = append(exported, f.Name.Name)
			}
			var self string
			if names := f.Recv.List[0].Names; len(names) == 1 {
				self = names[0].Name
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok {
					if sel, ok := c.Fun.(*ast.SelectorExpr); ok {
						if id := rootOf(sel.X); id != nil && id.Name == self {
							calls[f.Name.Name] = append(calls[f.Name.Name], sel.Sel.Name)
						}
					}
				}
				return true
			})
		}
	}
	if len(exported) < 15 {
		t.Fatalf("found %d methods of Session, so this test reads the wrong sources", len(exported))
	}
	for _, m := range exported {
		if !begins(calls, m, nil) {
			t.Errorf("gateway.Session.%s does not go through begin", m)
		}
	}
}

func begins(calls map[string][]string, method string, seen []string) bool {
	if slices.Contains(seen, method) {
		return false
	}
	return slices.ContainsFunc(calls[method], func(called string) bool {
		return strings.HasPrefix(called, "begin") || begins(calls, called, append(seen, method))
	})
}

func receiver(f *ast.FuncDecl) string {
	x := f.Recv.List[0].Type
	if star, ok := x.(*ast.StarExpr); ok {
		x = star.X
	}
	if id, ok := x.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// TestNoAuthorisationElsewhere proves that protocols decide nothing: they neither ask the policy engine nor look at what a subject is.
func TestNoAuthorisationElsewhere(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !strings.HasPrefix(s.dir, "protocols") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"Decide", "DecideTree", "Principals", "Roles", "Profile", "Admin"}, sel.Sel.Name) {
				t.Errorf("%s: a protocol uses %s; rights are decided in gateway", fset.Position(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}
