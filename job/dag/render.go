package dag

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/musterhq/muster/job"
)

// Render answers what the work of a run is given: its task's spec with values in the place of templates, and its payload:
// what the task says, else of an item the item, else the root's. tasks answers the outcomes of the tasks that Results
// lists. Of a document with one executor r and root are the same row. The error is a *job.Error; the run cannot start
// then, and fails as expression_failed.
func (p *Plan) Render(r, root *job.Run, tasks func(name string) *Outcome) (spec *job.Document, payload json.RawMessage, err error) {
	w, spec := p.own, p.Doc
	t := p.byName[r.Task]
	if t != nil {
		w, spec = &t.work, t.Spec
	}
	s := &scene{run: p.runOf(root)}
	seen := map[string]*outcomeVal{}
	s.tasks = func(name string) *outcomeVal {
		if v, ok := seen[name]; ok {
			return v
		}
		if of := tasks(name); of != nil {
			seen[name] = &outcomeVal{of: of}
		}
		return seen[name]
	}
	if r.Item > 0 {
		s.index = int(r.Item) - 1
		if s.item, err = decode(r.Payload); err != nil {
			return nil, nil, failed("item", err)
		}
	}
	if spec, err = w.fill(spec, s, t); err != nil {
		return nil, nil, err
	}
	switch {
	case w.payload != nil:
		payload, err = w.payload.fill(s)
	case t != nil && t.Task.Payload != nil:
		payload = t.Task.Payload
	case r.Item > 0:
		payload = r.Payload
	default:
		payload, err = s.run.raw, s.run.err
	}
	if err != nil {
		return nil, nil, err
	}
	return spec, payload, nil
}

// runOf is a root as expressions see it. A payload that the root has from its document has that document's templates; one
// that was submitted is data, whatever it looks like.
func (p *Plan) runOf(root *job.Run) *runVal {
	v := &runVal{root: root, raw: root.Payload}
	if p.payload != nil && (len(root.Payload) == 0 || bytes.Equal(canonical(root.Payload), p.canonical)) {
		v.raw, v.err = p.payload.fill(&scene{run: &runVal{root: root}})
	}
	return v
}

// canonical is the same for JSON that differs in white space, the order of fields and how letters are escaped only: a
// document is written anew where it is stored, and a run's payload is not.
func canonical(raw json.RawMessage) []byte {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return raw
	}
	b, err := json.Marshal(v)
	if err != nil {
		return raw
	}
	return b
}

// fill is a copy of a spec with values in the place of templates, as valid as Validate would have it.
func (w *work) fill(spec *job.Document, s *scene, t *Task) (*job.Document, error) {
	if !w.filled {
		return spec, nil
	}
	n, in := *spec, ""
	if t != nil {
		in = at(t, "")
	}
	put := func(field string, t template, to *string) error {
		text, err := t.text(s)
		if err != nil {
			return failed(in+field, err)
		}
		*to = text
		return nil
	}
	putAll := func(field string, all map[string]template, texts map[string]string) (map[string]string, error) {
		if len(all) == 0 {
			return texts, nil
		}
		texts = maps.Clone(texts)
		for _, name := range slices.Sorted(maps.Keys(all)) { // so that the same error comes first each time
			var text string
			if err := put(field+"."+name, all[name], &text); err != nil {
				return nil, err
			}
			texts[name] = text
		}
		return texts, nil
	}
	var err error
	if spec.Exec != nil {
		e := *spec.Exec
		n.Exec = &e
		if e.Env, err = putAll("exec.env", w.env, e.Env); err != nil {
			return nil, err
		}
	}
	if spec.HTTP != nil {
		h := *spec.HTTP
		n.HTTP = &h
		if w.url != nil {
			if err := put("http.url", w.url, &h.URL); err != nil {
				return nil, err
			}
			if strings.Contains(h.URL, job.TemplateMark) {
				return nil, failed(in+"http.url", errors.New("what was put into the address has a template in it, which is no part of one"))
			}
		}
		if h.Headers, err = putAll("http.headers", w.headers, h.Headers); err != nil {
			return nil, err
		}
		if w.body != nil {
			if err := put("http.body", w.body, &h.Body); err != nil {
				return nil, err
			}
		}
	}
	if err := n.ValidateExecutor(); err != nil {
		return nil, failed(in, err)
	}
	return &n, nil
}
