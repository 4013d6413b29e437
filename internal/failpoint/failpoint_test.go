package failpoint_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/failpoint"
)

// TestTheListIsClosed compares the points with where they are hit: each in one place of shipped code.
func TestTheListIsClosed(t *testing.T) {
	hit := map[string][]string{}
	call := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := os.ReadFile(file)
		for _, m := range call.FindAllSubmatch(text, -1) {
			hit[string(m[1])] = append(hit[string(m[1])], file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range failpoint.Points() {
		if p.Left == "" {
			t.Errorf("%s says nothing", p.Name)
		}
		if len(hit[p.Name]) == 0 {
			t.Errorf("nobody hits %s", p.Name)
		}
		delete(hit, p.Name)
	}
	for name, files := range hit {
		t.Errorf("%v hit %s, which is not in the list", files, name)
	}
}

func TestHitIsEmpty(t *testing.T) {
	if n := testing.AllocsPerRun(10, func() { failpoint.Hit("births/stored") }); n != 0 {
		t.Errorf("Hit allocates %v times", n)
	}
}
