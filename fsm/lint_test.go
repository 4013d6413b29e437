package fsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestDeterministic looks through this package's sources for what would let replicas differ: clocks, randomness,
// goroutines, and packages that it has no business with.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{
		"github.com/musterhq/muster/job": true, "github.com/google/btree": true, "github.com/hashicorp/raft": true, "github.com/fxamacker/cbor/v2": true,
		// Of the standard library only what computes. maphash groups names within one process and decides nothing.
		"bufio": true, "bytes": true, "cmp": true, "crypto/sha256": true, "encoding/binary": true, "encoding/json": true, "errors": true, "fmt": true,
		"hash/crc32": true, "hash/maphash": true, "io": true, "iter": true, "slices": true, "strings": true, "sync": true, "sync/atomic": true, "time": true,
	}
	set := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		files++
		f, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if path := strings.Trim(i.Path.Value, `"`); !allowed[path] {
				t.Errorf("%s imports %s", set.Position(i.Pos()), path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", set.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && !computes[n.Sel.Name] {
					t.Errorf("%s uses time.%s", set.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
	if files < 10 {
		t.Fatalf("only %d files were looked at", files)
	}
}

// computes lists what of package time only names spans.
var computes = map[string]bool{"Hour": true, "Minute": true, "Second": true, "Millisecond": true, "Duration": true}
