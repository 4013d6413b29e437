package housetest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// Every word that users meet is explained, and no other.
func TestReasonsAreExplained(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/reasons.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := strings.Split(string(page), "\n## ")
	for _, c := range []struct {
		section string
		word    func(uint8) fmt.Stringer
	}{
		{"States of a run", func(n uint8) fmt.Stringer { return job.State(n) }},
		{"Reasons", func(n uint8) fmt.Stringer { return job.Reason(n) }},
		{"Dispositions of a tick", func(n uint8) fmt.Stringer { return job.Disposition(n) }},
	} {
		t.Run(c.section, func(t *testing.T) {
			explained := map[string]string{}
			for _, s := range sections {
				if !strings.HasPrefix(s, c.section+"\n") {
					continue
				}
				for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (.*) \\|$").FindAllStringSubmatch(s, -1) {
					if explained[row[1]] != "" {
						t.Errorf("%s is there twice", row[1])
					}
					explained[row[1]] = row[2]
				}
			}
			for n := uint8(1); ; n++ {
				w := c.word(n).String()
				if strings.HasPrefix(w, "unknown_") {
					break
				}
				if text := explained[w]; len(text) < 20 || !strings.HasSuffix(text, ".") {
					t.Errorf("%s is not explained in docs/reasons.md, but as %q", w, text)
				}
				delete(explained, w)
			}
			for w := range explained {
				t.Errorf("docs/reasons.md explains %s, which is no such word", w)
			}
		})
	}
}

// An example that does not work is worse than none.
func TestExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "examples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			docs, err := job.ParseDocuments(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range docs {
				if d.Schedule == nil {
					continue
				}
				if _, err := timetable.Parse(*d.Schedule); err != nil {
					t.Errorf("%s: %v", d.Name, err)
				}
			}
		})
	}
}
