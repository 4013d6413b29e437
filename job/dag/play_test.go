package dag

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

var start = job.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))

// parse reads a document as the API does. One that begins with a dash is the list of tasks of a job named j.
func parse(t testing.TB, text string) *job.Document {
	t.Helper()
	if strings.HasPrefix(text, "- ") {
		text = "name: j\ntasks:\n" + text
	}
	d, err := job.ParseDocument([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return d
}

func compiled(t testing.TB, text string) *Plan {
	t.Helper()
	p, err := Compile(parse(t, text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return p
}

// rootOf is a root run of a plan, open.
func rootOf(p *Plan) *job.Run {
	var entropy [10]byte
	entropy[0] = 7
	return &job.Run{
		ID: job.MakeRunID(start.Time(), entropy), Namespace: p.Doc.Namespace, Job: p.Doc.Name, JobVersion: 3, Trigger: job.ByAPI,
		State: job.Running, Priority: 4, Attempt: 1, Fence: 0, CreatedAt: start, StartedAt: start, Payload: p.Doc.Payload,
		Labels: map[string]string{"team": "x"}, Home: job.HomePostgres, Depth: 2,
	}
}

// play is a store, a queue and workers in one. How a run ends is a function of its task and item.
type play struct {
	t    testing.TB
	plan *Plan
	root *job.Run
	g    *Progress
	rows map[job.RunID]*job.Run
	now  job.Instant
	end  *job.Run // the root as it ended
	old  []*job.Run

	ends   map[string]string // by task, or task/item: a state, and after a space the result or reason; succeeded
	born   []string          // task or task/item, and how it was born
	rng    *rand.Rand        // shuffles, if there is one
	crash  bool              // Progress is made anew from the rows before each Next
	lose   bool              // every second step is not stored at first
	lost   bool
	limits map[string]int // by task: the most items live at once
}

func newPlay(t testing.TB, p *Plan, ends map[string]string) *play {
	y := &play{t: t, plan: p, root: rootOf(p), rows: map[job.RunID]*job.Run{}, now: start, ends: ends, limits: map[string]int{}}
	y.g = NewProgress(p, y.root)
	return y
}

func label(r *job.Run) string {
	if r.Item > 0 {
		return fmt.Sprintf("%s/%d", r.Task, r.Item)
	}
	return r.Task
}

// note notes one row, and sometimes an older one again.
func (y *play) note(r *job.Run) {
	y.g.Note(r)
	if y.rng != nil && y.rng.IntN(3) == 0 {
		all := y.sorted()
		y.g.Note(all[y.rng.IntN(len(all))])
		y.g.Note(r)
	}
}

func (y *play) sorted() []*job.Run {
	var all []*job.Run
	for _, r := range y.rows {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *job.Run) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return all
}

func (y *play) rebuild() {
	y.g = NewProgress(y.plan, y.root)
	all := y.sorted()
	if y.rng != nil {
		y.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	if y.old != nil {
		y.g.Reuse(y.old)
	}
	for _, r := range all {
		y.g.Note(r)
	}
}

// step stores what follows, and tells whether anything did.
func (y *play) step() bool {
	y.t.Helper()
	if y.crash {
		y.rebuild()
	}
	s := y.g.Next(y.now)
	if s.Empty() {
		return false
	}
	if y.lose && !y.lost {
		y.lost = true
		for _, r := range s.Births { // some were stored all the same
			if y.rng.IntN(2) == 0 && y.rows[r.ID] == nil {
				y.store(r)
				y.note(r)
			}
		}
		y.g.Again()
		return true
	}
	y.lost = false
	births := slices.Clone(s.Births)
	if y.rng != nil {
		y.rng.Shuffle(len(births), func(i, j int) { births[i], births[j] = births[j], births[i] })
	}
	for _, r := range births {
		if y.rows[r.ID] == nil {
			y.store(r)
		}
		y.note(y.rows[r.ID])
	}
	for _, m := range s.Moves {
		r, ok := m.Apply(y.rows[m.ID])
		if !ok {
			y.t.Fatalf("%s: the move to %s does not apply to %s", r.Task, m.State, r.State)
		}
		y.rows[m.ID] = r
		y.note(r)
	}
	if s.End != nil {
		m := *s.End
		m.Fence = 1 << 32
		r, ok := m.Apply(y.root)
		if !ok {
			y.t.Fatal("the end does not apply")
		}
		for _, r := range y.rows {
			if !r.State.Terminal() {
				y.t.Errorf("the root ends while %s is %s", label(r), r.State)
			}
		}
		y.end = r
		y.g.Note(r)
		if s := y.g.Next(y.now); !s.Empty() {
			y.t.Errorf("after the end follows %+v", s)
		}
	}
	return true
}

func (y *play) store(r *job.Run) {
	y.t.Helper()
	if r.ID != job.TaskRunID(y.root.ID, r.Task, r.Item) || r.RootID != y.root.ID || r.Trigger != job.ByParent ||
		r.Job != y.root.Job || r.Home != y.root.Home || r.Depth != y.root.Depth || r.Labels["team"] != "x" || r.CreatedAt != y.now {
		y.t.Errorf("an incomplete row: %+v", r)
	}
	if r.State.Terminal() != (r.FinishedAt != 0) || r.State.Terminal() != (r.QueuedAt == 0) {
		y.t.Errorf("%s is %s, queued at %v and finished at %v", label(r), r.State, r.QueuedAt, r.FinishedAt)
	}
	y.rows[r.ID] = r
	born := label(r) + " " + r.State.String()
	if r.Reason != 0 {
		born += " " + r.Reason.String()
	}
	if !r.ReusedFrom.IsZero() {
		born += " reused"
	}
	y.born = append(y.born, born)
	if live := len(y.g.LiveItems(r.Task)); live > y.limits[r.Task] {
		y.limits[r.Task] = live
	}
}

// queued are the rows that a worker could take.
func (y *play) queued() []*job.Run {
	var queued []*job.Run
	for _, r := range y.sorted() {
		if r.State == job.Queued {
			queued = append(queued, r)
		}
	}
	return queued
}

// finish ends a run as the play says.
func (y *play) finish(r *job.Run) {
	how, ok := y.ends[label(r)]
	if !ok {
		how = y.ends[r.Task]
	}
	state, rest, _ := strings.Cut(how, " ")
	n := *r
	n.State, n.FinishedAt = job.Succeeded, y.now
	if state != "" {
		if err := n.State.UnmarshalText([]byte(state)); err != nil {
			y.t.Fatal(err)
		}
	}
	switch {
	case n.State == job.Succeeded && rest != "":
		n.Result = json.RawMessage(rest)
	case n.State == job.Failed:
		n.Reason, n.Error = job.ExitCode, "it went wrong"
		if rest != "" {
			if err := n.Reason.UnmarshalText([]byte(rest)); err != nil {
				y.t.Fatal(err)
			}
		}
	case n.State == job.Cancelled:
		n.Reason = job.CancelRequested
	}
	y.rows[r.ID] = &n
	y.note(&n)
}

// run plays to the end.
func (y *play) run() *play {
	y.t.Helper()
	for range 100_000 {
		for y.end == nil && y.step() {
		}
		if y.end != nil {
			return y
		}
		queued := y.queued()
		if len(queued) == 0 {
			y.t.Fatalf("nothing follows, and nothing is queued: %s", y.states())
		}
		r := queued[0]
		if y.rng != nil {
			r = queued[y.rng.IntN(len(queued))]
		}
		y.now += 1000
		y.finish(r)
	}
	y.t.Fatal("it does not end")
	return y
}

// states is how tasks and items stand, in the order of the document.
func (y *play) states() string {
	var out []string
	for _, t := range y.plan.Tasks {
		for i := uint32(0); i == 0 || y.rows[job.TaskRunID(y.root.ID, t.Task.Name, i)] != nil; i++ {
			r := y.rows[job.TaskRunID(y.root.ID, t.Task.Name, i)]
			if r == nil {
				out = append(out, t.Task.Name+" -")
				break
			}
			s := label(r) + " " + r.State.String()
			if r.Reason != 0 {
				s += " " + r.Reason.String()
			}
			if !r.ReusedFrom.IsZero() {
				s += " reused"
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

func (y *play) row(name string, item uint32) *job.Run {
	y.t.Helper()
	r := y.rows[job.TaskRunID(y.root.ID, name, item)]
	if r == nil {
		y.t.Fatalf("%s has no run %d", name, item)
	}
	return r
}
