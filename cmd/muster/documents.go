package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
	"github.com/musterhq/muster/job/timetable"
)

// fileFlags say where job documents are.
type fileFlags struct {
	files     []string
	recursive bool
}

func (f *fileFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.files, "file", "f", nil, "`FILE` or directory of job documents, YAML or JSON; - is stdin; can be repeated")
	flags.BoolVarP(&f.recursive, "recursive", "R", false, "of a directory, its directories too")
	ofOneCall(flags, "file")
}

// source is a document, where it was found, and what is wrong with it.
type source struct {
	file string
	doc  *job.Document // nil if err is about a file or a whole stream
	err  error
}

// label names a source in reports.
func (s *source) label() string {
	if s.doc == nil {
		return s.file
	}
	return s.doc.Namespace + "/" + s.doc.Name
}

// documents reads and judges all documents that the flags name. What is wrong with one does not keep the others from being
// read. All that can be known without a cluster is checked here: also what the schedule means.
func (c *cli) documents(f fileFlags) ([]source, error) {
	if len(f.files) == 0 {
		return nil, usageErrorf("no file is named; write -f FILE, -f DIR, or -f - for stdin")
	}
	paths, err := f.expand()
	if err != nil {
		return nil, err
	}
	var out []source
	first := map[string]string{} // job -> file
	for _, path := range paths {
		docs, err := c.readDocuments(path)
		if err != nil {
			out = append(out, source{file: path, err: err})
		}
		for _, d := range docs {
			s := source{file: path, doc: d, err: c.checkDocument(d)}
			if other, twice := first[s.label()]; twice && s.err == nil {
				s.err = job.InvalidField("name", "the job is in %s too; keep one of them", other)
			}
			first[s.label()] = path
			out = append(out, s)
		}
	}
	checkCycles(out)
	return out, nil
}

// checkCycles refuses documents that depend on each other in a circle. What the jobs of the cluster make of it besides, a
// node sees.
func checkCycles(sources []source) {
	edges := map[string][]job.Edge{}
	for i := range sources {
		if sources[i].err == nil {
			edges[sources[i].label()] = sources[i].doc.DependsOn
		}
	}
	for i := range sources {
		s := &sources[i]
		if s.err != nil || len(s.doc.DependsOn) == 0 {
			continue
		}
		cycle := job.FindCycle(s.doc.Name, s.doc.DependsOn, func(name string) (up []string) {
			for _, e := range edges[s.doc.Namespace+"/"+name] {
				up = append(up, e.Job)
			}
			return up
		})
		if cycle != nil {
			s.err = job.Cyclic(cycle)
		}
	}
}

// upstreamsFirst orders documents so that each comes after those of the jobs that it depends on, and otherwise as they are:
// a job is refused as long as one that it depends on is not there.
func upstreamsFirst(sources []source) []source {
	index := map[string]int{}
	for i := range sources {
		if sources[i].err == nil {
			index[sources[i].label()] = i
		}
	}
	placed := make([]bool, len(sources))
	out := make([]source, 0, len(sources))
	var place func(i int)
	place = func(i int) {
		if placed[i] {
			return
		}
		placed[i] = true
		if s := &sources[i]; s.err == nil {
			for _, e := range s.doc.DependsOn {
				if up, ok := index[s.doc.Namespace+"/"+e.Job]; ok {
					place(up)
				}
			}
		}
		out = append(out, sources[i])
	}
	for i := range sources {
		place(i)
	}
	return out
}

// checkDocument is what a node checks beyond the document's form.
func (c *cli) checkDocument(d *job.Document) error {
	if d.Schedule != nil {
		if _, err := timetable.Parse(*d.Schedule); err != nil {
			return err
		}
	}
	return dag.Validate(d)
}

// expand lists the files, directories opened, each in the order of names.
func (f *fileFlags) expand() ([]string, error) {
	var paths []string
	for _, name := range f.files {
		fi, err := os.Stat(name)
		switch {
		case name == "-":
			paths = append(paths, name)
			continue
		case err != nil:
			return nil, fileError("the file", name, err)
		case !fi.IsDir():
			paths = append(paths, name)
			continue
		}
		before := len(paths)
		if err := filepath.WalkDir(name, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && path != name && !f.recursive:
				return fs.SkipDir
			case !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path))):
				paths = append(paths, path)
			}
			return nil
		}); err != nil {
			return nil, fileError("the directory", name, err)
		}
		if len(paths) == before {
			return nil, usageErrorf("the directory %s holds no .yaml, .yml or .json file", name)
		}
	}
	return paths, nil
}

func (c *cli) readDocuments(path string) ([]*job.Document, error) {
	data, err := c.readInput(path, job.MaxDocumentsBytes, "split it")
	if err != nil {
		return nil, err
	}
	docs, err := job.ParseDocuments(data)
	if err != nil || !c.namespaceGiven {
		return docs, err
	}
	return docs, c.fillNamespace(docs, data)
}

// readInput reads a file, or stdin for "-", up to a limit. advice is what to do about one that is larger.
func (c *cli) readInput(path string, limit int, advice string) ([]byte, error) {
	in, name := c.stdin, "stdin"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fileError("the file", path, err)
		}
		defer f.Close()
		in, name = f, path
	}
	data, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, fileError("the file", path, err)
	}
	if len(data) > limit {
		return nil, usageErrorf("%s has more than %d bytes, which is the limit; %s", name, limit, advice)
	}
	return data, nil
}

// fillNamespace puts documents that name no namespace into the one that was asked for. A parsed document has a namespace
// in any case, so what was written is looked up in the text, which is known to be sound.
func (c *cli) fillNamespace(docs []*job.Document, data []byte) error {
	written, err := writtenNamespaces(data)
	if err != nil || len(written) != len(docs) {
		return errors.Join(errors.New("the documents could not be read a second time"), err)
	}
	for i, d := range docs {
		if written[i] == "" {
			d.Namespace = c.namespace
		}
	}
	return nil
}

func writtenNamespaces(data []byte) ([]string, error) {
	type head struct {
		Name      string `json:"name" yaml:"name"`
		Namespace string `json:"namespace" yaml:"namespace"`
	}
	var out []string
	if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n\ufeff"), []byte("{")) && json.Valid(firstJSON(data)) {
		for d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff")))); ; {
			var h head
			if err := d.Decode(&h); err == io.EOF {
				return out, nil
			} else if err != nil {
				return nil, err
			}
			out = append(out, h.Namespace)
		}
	}
	for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var h *head
		if err := d.Decode(&h); err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		if h != nil {
			out = append(out, h.Namespace)
		}
	}
}

// firstJSON is the first JSON value of a stream, or nothing if it is not JSON.
func firstJSON(data []byte) []byte {
	var raw json.RawMessage
	if json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff")))).Decode(&raw) != nil {
		return nil
	}
	return raw
}
