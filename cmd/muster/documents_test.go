package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml":         "name: a\nschedule: {cron: '0 9 * * Mon', time_zone: Europe/Berlin}\nexec: {command: [x]}\n---\nname: b\nexec: {command: [x]}\n",
		"again.yml":      "name: a\nexec: {command: [x]}\n",
		"broken.yaml":    "name: c\n  exec: [\n",
		"never.yaml":     "name: never\nschedule: {cron: '0 0 30 2 *'}\nexec: {command: [x]}\n",
		"later.json":     `{"name":"later","tasks":[{"name":"t","exec":{"command":["x"]}}]}`,
		"unknown.yaml":   "name: d\nexec: {comand: [x]}\n",
		"once.yaml":      "name: once\nschedule: {cron: '@at 2026-02-01T00:00:00Z'}\nexec: {command: [x]}\n",
		"hostile.yaml":   "name: \"\\e[2Jx\"\nexec: {command: [x]}\n",
		"notes.txt":      "not a document",
		"below/sub.yaml": "name: sub\nexec: {command: [x]}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := world{now: noon}
	r := w.muster(t, "validate", "-f", dir)
	if r.code != exitUsage {
		t.Errorf("exit code %d, want %d", r.code, exitUsage)
	}
	golden(t, "validate.txt", strings.ReplaceAll(r.out, dir, "DIR")+"stderr: "+r.err)

	if r := w.muster(t, "validate", "-R", "-f", dir, "-o", "name"); !strings.Contains(r.out, "sub\n") {
		t.Errorf("recursively: %+v", r)
	}
	var v struct{ Items []verdict }
	r = w.muster(t, "validate", "-f", filepath.Join(dir, "unknown.yaml"), "-f", filepath.Join(dir, "a.yaml"), "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || len(v.Items) != 3 || v.Items[0].Error == nil || v.Items[0].Error.Reason != "unknown_field" || v.Items[1].NextTicks[0].String() != "2026-02-02T08:00:00Z" {
		t.Errorf("as JSON: %v, %s", err, r.out)
	}
	w.stdin = `{"name":"a","exec":{"command":["x"]}} {"name":"b","namespace":"other","exec":{"command":["x"]}}`
	if out := w.must(t, "validate", "-f", "-", "--namespace", "billing"); !strings.Contains(out, "billing/a valid") || !strings.Contains(out, "other/b valid") {
		t.Errorf("JSON in a namespace: %s", out)
	}
	w.stdin = "# nothing\n---\nname: a\nexec: {command: [x]}\n---\n---\nname: b\nnamespace: default\nexec: {command: [x]}\n"
	if out := w.must(t, "validate", "-f", "-", "--namespace", "billing"); !strings.Contains(out, "billing/a valid") || !strings.Contains(out, "default/b valid") {
		t.Errorf("YAML in a namespace: %s", out)
	}
}

func TestDocumentsThatDependOnEachOther(t *testing.T) {
	t.Parallel()
	w := world{now: noon}
	w.stdin = "name: a\ndepends_on: [b]\nexec: {command: [x]}\n---\nname: b\ndepends_on: [c]\nexec: {command: [x]}\n---\nname: c\ndepends_on: [a]\nexec: {command: [x]}\n" +
		"---\nname: d\ndepends_on: [a]\nexec: {command: [x]}\n---\nname: a\nnamespace: other\ndepends_on: [b]\nexec: {command: [x]}\n"
	r := w.muster(t, "validate", "-f", "-")
	if r.code == exitOK || !strings.Contains(r.out, "a -> b -> c -> a; remove one") || !strings.Contains(r.out, "default/d valid") || !strings.Contains(r.out, "other/a valid") {
		t.Errorf("in a circle: %+v", r)
	}
	edge := func(name string, on ...string) source {
		d := &job.Document{Name: name, Namespace: "default"}
		for _, up := range on {
			d.DependsOn = append(d.DependsOn, job.Edge{Job: up})
		}
		return source{doc: d}
	}
	var order []string
	for _, s := range upstreamsFirst([]source{edge("mail", "report", "load"), {file: "broken", err: os.ErrInvalid}, edge("report", "load", "elsewhere"), edge("load"), edge("alone")}) {
		order = append(order, s.file)
		if s.doc != nil {
			order[len(order)-1] = s.doc.Name
		}
	}
	if got := strings.Join(order, " "); got != "load report mail broken alone" {
		t.Errorf("applied in the order %s", got)
	}
}

func TestImportCrontab(t *testing.T) {
	t.Parallel()
	w := world{now: noon, env: []string{"TZ=Europe/Berlin"}}
	r := w.muster(t, "import", "crontab", "../../examples/crontab", "--prefix", "web-")
	if r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	var b strings.Builder
	b.WriteString(r.out)
	for line := range strings.Lines(r.err) {
		b.WriteString("stderr: " + line)
	}
	golden(t, "crontab.txt", b.String())
	docs, err := job.ParseDocuments([]byte(r.out))
	if err != nil || len(docs) != 10 || docs[0].Name != "web-cron.hourly" || docs[0].Schedule.TimeZone != "Europe/Berlin" {
		t.Fatalf("what was written cannot be read: %d, %v", len(docs), err)
	}

	dir := filepath.Join(t.TempDir(), "jobs")
	files := strings.Fields(w.must(t, "import", "crontab", "../../examples/crontab", "--system", "-o", dir, "--namespace", "web"))
	if len(files) != 10 {
		t.Errorf("files: %v", files)
	}
	if out := w.must(t, "validate", "-f", dir); !strings.Contains(out, "web/offsite valid") {
		t.Errorf("the files: %s", out)
	}
	if r := w.muster(t, "import", "crontab", "../../examples/crontab", "-o", dir); r.code != exitConflict || !strings.Contains(r.err, "exists; --force replaces it") {
		t.Errorf("over files that are there: %+v", r)
	}
	w.must(t, "import", "crontab", "../../examples/crontab", "-o", dir, "--force")
}

// A line is somebody's text: it must not become a part of the document.
func TestImportHostileCrontab(t *testing.T) {
	t.Parallel()
	w := world{now: noon, stdin: "* * * * * echo a \u2028name: evil\u0085name: evil\r name: evil # \x1b[2J\n* * * * * echo 'x%name: evil'\n0 0 30 2 * never\nMUSTER_X=1\n1 1 * * * x\n"}
	r := w.muster(t, "import", "crontab", "-", "--user", "--time-zone", "UTC")
	if r.code != exitOK || strings.ContainsAny(r.out+r.err, "\x1b\u2028\u0085") && strings.Contains(r.out, "\x1b[2J\n") {
		t.Fatalf("%+v", r)
	}
	docs, err := job.ParseDocuments([]byte(r.out))
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out)
	}
	for _, d := range docs {
		if d.Name == "evil" {
			t.Errorf("a line became a document: %s", r.out)
		}
	}
	for line := range strings.Lines(r.out) {
		if strings.HasPrefix(line, "#") && strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\x1b\r\u2028\u0085") {
			t.Errorf("a comment with control characters: %q", line)
		}
	}
	if !strings.Contains(r.err, "line 3 was left out") {
		t.Errorf("what can never tick was not reported: %s", r.err)
	}
}

func TestImportEmptyCrontab(t *testing.T) {
	t.Parallel()
	r := world{stdin: "# nothing\n\n"}.muster(t, "import", "crontab", "-", "--time-zone", "UTC")
	if r.code != exitUsage || !strings.Contains(r.err, "stdin holds no line that cron would run") {
		t.Errorf("%+v", r)
	}
}
