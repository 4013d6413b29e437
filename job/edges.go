package job

import (
	"fmt"
	"slices"
	"strings"
)

// What a store refuses about the edges between jobs, since only it knows the other jobs. Every store uses these, so that a
// user reads the same whichever it is. A store looks for unknown upstreams before it looks for a cycle, and does both
// under the lock of the namespace's graph.

// UnknownUpstream is the error for the edge at index i, whose upstream is not there.
func UnknownUpstream(i int, e Edge, namespace string) *Error {
	return InvalidField(indexed("depends_on", i)+".job", "there is no job %q in namespace %q; create it first, or remove this edge", e.Job, namespace)
}

// FindCycle answers the shortest cycle that a job would close with these edges, or nil: its own name, each upstream of the
// one before, and its own name again. upstreams answers the names of a job's upstreams as they are stored; it is asked
// once at most for each job that this one would depend on, however far off, and never for the job itself.
func FindCycle(name string, edges []Edge, upstreams func(job string) []string) []string {
	next := make([]string, len(edges))
	for i, e := range edges {
		next[i] = e.Job
	}
	dependent := map[string]string{} // from where the walk came to a job first
	var queue []string
	for of := name; ; {
		for _, up := range next {
			if up == name {
				cycle := []string{name}
				for ; of != name; of = dependent[of] {
					cycle = append(cycle, of)
				}
				cycle = append(cycle, name)
				slices.Reverse(cycle)
				return cycle
			}
			if _, seen := dependent[up]; !seen {
				dependent[up] = of
				queue = append(queue, up)
			}
		}
		if len(queue) == 0 {
			return nil
		}
		of, queue = queue[0], queue[1:]
		next = upstreams(of)
	}
}

// Cyclic is the error for edges that close a cycle, as FindCycle answers it.
func Cyclic(cycle []string) *Error {
	const most = 12 // a cycle may be as long as there are jobs
	if n := len(cycle); n > most {
		more := fmt.Sprintf("(%d more)", n-most)
		cycle = slices.Concat(cycle[:most-2], []string{more}, cycle[n-2:])
	}
	return &Error{Code: Conflict, Reason: "cycle", Field: "depends_on", Message: fmt.Sprintf(
		"the jobs would depend on each other in a circle: %s; remove one of these edges", strings.Join(cycle, " -> "))}
}

// Dependency is an edge between two jobs and how it stands. Only the leader moves it (S4): an end of the upstream's run
// satisfies it, and a birth of the job clears it.
type Dependency struct {
	Job         string  `json:"job"`
	Upstream    string  `json:"upstream"`
	On          EdgeOn  `json:"on"`
	SatisfiedBy RunID   `json:"satisfied_by,omitzero"` // the last run that did since the job's last birth of it; zero: none
	SatisfiedAt Instant `json:"satisfied_at,omitempty"`
	Coalesced   uint32  `json:"coalesced,omitempty"` // how many more did before it
}

// BirthOfDependencies is the run of a job that its satisfied dependencies, all of them by name of the upstream, give birth
// to. Every store derives it with this function, so repeating the step changes nothing.
func BirthOfDependencies(of *Job, by []Dependency, now Instant, home Home) *Run {
	r := &Run{
		Namespace: of.Namespace, JobID: of.ID, Job: of.Name, JobVersion: of.Version, Trigger: ByDependency, CreatedAt: now,
		Home: home, State: Queued, QueuedAt: now,
	}
	last := Instant(0)
	for i := range by {
		r.Upstreams = append(r.Upstreams, UpstreamRun{by[i].Upstream, by[i].SatisfiedBy, by[i].Coalesced})
		last = max(last, by[i].SatisfiedAt)
	}
	r.ID = DependencyRunID(of.ID, last, r.Upstreams)
	r.FromSpec(of.Spec)
	return r
}

// MaxNamedDependents is how many dependents the error for a deletion names.
const MaxNamedDependents = 5

// HasDependents is the error for the deletion of a job that others depend on: the first of them by name, and how many
// there are.
func HasDependents(name string, first []string, all int) *Error {
	first = first[:min(len(first), MaxNamedDependents)]
	text := strings.Join(first, ", ")
	if more := all - len(first); more > 0 {
		text = fmt.Sprintf("%s and %d more", text, more)
	}
	return Errorf(Conflict, "has_dependents", "the job %s is upstream of %s; remove it from their depends_on or delete them first", name, text)
}
