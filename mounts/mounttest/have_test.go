package mounttest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// TestAllCapabilities: the tables here have every interface of optional.go that a backend can be asked for.
func TestAllCapabilities(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../optional.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	none := []string{"RandomFile", "Descriptor", "Stater", "Provider"} // of readers and files, or of wrappers
	have := Capabilities(everything{})
	for name, object := range f.Scope.Objects {
		spec, ok := object.Decl.(*ast.TypeSpec)
		if !ok {
			continue
		}
		if _, ok := spec.Type.(*ast.InterfaceType); ok && !slices.Contains(none, name) && !slices.Contains(have, name) {
			t.Errorf("%s is missing in everything or Capabilities", name)
		}
	}
	if len(have) != len(capabilities()) {
		t.Errorf("Capabilities knows %q, everything has %q", have, capabilities())
	}
}
