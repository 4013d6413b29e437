package housetest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/musterhq/muster"
)

// pkg is one folder of Go files, whatever platform they are for: unlike the go command, the tests here see all.
type pkg struct {
	dir     string            // from the top of the tree, "" is the top
	name    string            // of the package
	doc     string            // its comment
	imports map[string]string // path → a file that imports it; test files left out
}

// tree reads every package of the module.
func tree(t *testing.T) []*pkg {
	t.Helper()
	byDir := map[string]*pkg{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch name := d.Name(); {
			case name == "testdata", name == "node_modules", name == "bin", strings.HasPrefix(name, ".") && file != root:
				return fs.SkipDir
			case file != root && isModule(file): // such as the peers' libraries of bench
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		dir := strings.TrimPrefix(filepath.ToSlash(rel), ".")
		p := byDir[dir]
		if p == nil {
			p = &pkg{dir: dir, imports: map[string]string{}}
			byDir[dir] = p
		}
		p.add(f, path.Join(dir, d.Name()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(byDir) < 5 {
		t.Fatalf("only %d packages found below %s", len(byDir), root)
	}
	var all []*pkg
	for _, p := range byDir {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	return all
}

func (p *pkg) add(f *ast.File, file string) {
	p.name = f.Name.Name
	if f.Doc != nil && p.doc == "" {
		p.doc = f.Doc.Text()
	}
	for _, i := range f.Imports {
		if name, err := strconv.Unquote(i.Path.Value); err == nil {
			p.imports[name] = file
		}
	}
}

func isModule(dir string) bool {
	found, err := filepath.Glob(filepath.Join(dir, "go.mod"))
	return err == nil && len(found) > 0
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range tree(t) {
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(p.doc, want) {
			t.Errorf("%s has no comment that begins with %q", p.dir, want)
		}
	}
}
