package fsm

import (
	"bytes"
	"cmp"
	"encoding/json"

	"github.com/musterhq/muster/job"
)

// edges is which job of a namespace depends on which, both ways round, by the current versions of all jobs. It is an index:
// the documents say the same, and a restore makes it from them. So whoever asks for the upstreams or the dependents of a
// job pays for those and for no other job.
type edges struct{ ups, downs set[edge] }

// edge leads from a job to an upstream of it, or to a dependent.
type edge struct{ namespace, from, to string }

func lessEdge(a, b edge) bool {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) < 0
}

func newEdges() edges { return edges{newSet(lessEdge), newSet(lessEdge)} }

func (e *edges) frozen() edges { return edges{e.ups.frozen(), e.downs.frozen()} }

// set makes a job depend on these upstreams and no others.
func (e *edges) set(namespace, name string, upstreams []job.Edge) {
	for _, up := range e.upstreams(namespace, name) {
		e.ups.remove(edge{namespace, name, up})
		e.downs.remove(edge{namespace, up, name})
	}
	for _, up := range upstreams {
		e.ups.add(edge{namespace, name, up.Job})
		e.downs.add(edge{namespace, up.Job, name})
	}
}

// upstreams answers the names of a job's upstreams in order.
func (e *edges) upstreams(namespace, name string) (names []string) {
	for at := range e.ups.ascend(edge{namespace: namespace, from: name}) {
		if at.namespace != namespace || at.from != name {
			break
		}
		names = append(names, at.to)
	}
	return names
}

// dependents answers the first few names of the jobs that depend on one, in order, and how many there are.
func (e *edges) dependents(namespace, name string, most int) (first []string, all int) {
	for at := range e.downs.ascend(edge{namespace: namespace, from: name}) {
		if at.namespace != namespace || at.from != name {
			break
		}
		if all++; all <= most {
			first = append(first, at.to)
		}
	}
	return first, all
}

// dependentsOf answers the names of the jobs that depend on one, in order.
func (e *edges) dependentsOf(namespace, name string) []string {
	all, _ := e.dependents(namespace, name, 1<<31-1)
	return all
}

// dependencies answers the edges that a document wants, or why it may not have them.
func (t *tx) dependencies(c *PutJob) ([]job.Edge, *job.Error) {
	wanted := upstreamsOf(c.Document)
	for i, e := range wanted {
		if e.Job != c.Name && t.jobs.get(jobName{c.Namespace, e.Job}) == nil {
			return nil, job.UnknownUpstream(i, e, c.Namespace)
		}
	}
	cycle := job.FindCycle(c.Name, wanted, func(name string) []string { return t.edges.upstreams(c.Namespace, name) })
	if cycle != nil {
		return nil, job.Cyclic(cycle)
	}
	return wanted, nil
}

// upstreamsOf reads the edges out of a document. Few have any, and decoding all of them was most of a restart: a search for
// the word is all that the others cost. What cannot be decoded has none; whoever proposed the document has tried.
func upstreamsOf(document []byte) []job.Edge {
	if !bytes.Contains(document, []byte(`"depends_on"`)) {
		return nil
	}
	var d struct {
		DependsOn []job.Edge `json:"depends_on"`
	}
	if json.Unmarshal(document, &d) != nil {
		return nil
	}
	return d.DependsOn
}
