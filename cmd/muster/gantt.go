package main

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const (
	ganttColumns = 80 // where nobody knows how wide the terminal is
	ganttLeast   = 60 // below that a chart says nothing
	ganttNames   = 28 // columns for names at most
)

// gantt draws when the tasks of a run were queued and when they ran, one line a task, in the order in which they began. It
// is as wide as columns. now is where what still goes on ends so far.
func gantt(b *strings.Builder, color bool, r *client.RunWithTasks, now job.Instant, columns int) {
	tasks := ganttTasks(r)
	from, to := ganttRange(r, tasks, now)
	names, states := columnsOf("TASK"), 0
	for i := range tasks {
		names = max(names, min(columnsOf(tasks[i].Name), ganttNames))
		states = max(states, columnsOf(ganttState(&tasks[i], now)))
	}
	bars := max(10, max(columns, ganttLeast)-names-states-4)
	scale := ganttScale{from, max(1, to-from), bars}

	pad := func(s string, n int) string { return s + strings.Repeat(" ", max(0, n-columnsOf(s))) }
	line := func(name, middle, end string) {
		b.WriteString(strings.TrimRight(pad(name, names)+"  "+pad(middle, bars)+"  "+end, " ") + "\n")
	}
	line("TASK", scale.ruler(), "")
	for i := range tasks {
		t := &tasks[i]
		state := ganttState(t, now)
		if c := stateCell(t.State); color && c.color != "" {
			state = "\x1b[" + c.color + "m" + state + "\x1b[0m"
		}
		line(clip(clean(t.Name), ganttNames), scale.bar(t, now), state)
	}
	b.WriteString("\n" + pad("", names) + "  ░ queued  █ running\n")
}

// ganttTasks are the tasks in the order of the chart; of a run without tasks the run itself.
func ganttTasks(r *client.RunWithTasks) []client.TaskRun {
	if len(r.Tasks) == 0 {
		name := r.Task
		if name == "" {
			name = r.Job
		}
		if name == "" {
			name = "run"
		}
		return []client.TaskRun{{Name: name, State: r.State, Reason: r.Reason, Attempt: r.Attempt,
			QueuedAt: r.QueuedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt}}
	}
	tasks := slices.Clone(r.Tasks)
	began := func(t *client.TaskRun) job.Instant {
		at := cmp.Or(t.QueuedAt, t.StartedAt, t.FinishedAt)
		if at == 0 {
			at = 1<<63 - 1 // the end of the list
		}
		return at
	}
	slices.SortStableFunc(tasks, func(x, y client.TaskRun) int {
		return cmp.Or(cmp.Compare(began(&x), began(&y)), cmp.Compare(x.StartedAt, y.StartedAt))
	})
	return tasks
}

// ganttRange is what the chart spans: from the first to the last that happened, until now while the run goes on.
func ganttRange(r *client.RunWithTasks, tasks []client.TaskRun, now job.Instant) (from, to job.Instant) {
	see := func(at job.Instant) {
		if at == 0 {
			return
		}
		if from == 0 || at < from {
			from = at
		}
		to = max(to, at)
	}
	see(r.StartedAt)
	see(r.FinishedAt)
	for i := range tasks {
		if !tasks[i].ReusedFrom.IsZero() { // its times are those of another run
			continue
		}
		see(tasks[i].QueuedAt)
		see(tasks[i].StartedAt)
		see(tasks[i].FinishedAt)
	}
	if from == 0 {
		from = r.CreatedAt
	}
	if !r.State.Terminal() {
		to = max(to, now)
	}
	return from, max(from, to)
}

// ganttState is how a task stands, in words, with the time that it took.
func ganttState(t *client.TaskRun, now job.Instant) string {
	words := t.State.String()
	if !t.ReusedFrom.IsZero() {
		return words + ", reused"
	}
	if t.StartedAt != 0 && (t.State == job.Running || t.State.Terminal()) {
		words += " " + tookUntil(t.StartedAt, t.FinishedAt, now)
	}
	return words
}

// ganttScale maps times to columns.
type ganttScale struct {
	from, length job.Instant
	columns      int
}

func (s ganttScale) column(at job.Instant) int {
	return min(s.columns, max(0, int(float64(at-s.from)/float64(s.length)*float64(s.columns)+0.5)))
}

// bar draws one task. What happened has a column at least, however short it was.
func (s ganttScale) bar(t *client.TaskRun, now job.Instant) string {
	if !t.ReusedFrom.IsZero() || t.QueuedAt == 0 && t.StartedAt == 0 {
		return ""
	}
	end := t.FinishedAt
	if end == 0 {
		end = now
	}
	queued, started := t.QueuedAt, t.StartedAt
	if started < queued { // of an attempt before: the next one waits
		started = 0
	}
	if queued == 0 {
		queued = started
	}
	if started == 0 {
		a, z := s.column(queued), s.column(end)
		return strings.Repeat(" ", min(a, s.columns-1)) + strings.Repeat("░", max(1, z-a))
	}
	a, m, z := s.column(queued), s.column(started), s.column(end)
	m = min(m, s.columns-1)
	a = min(a, m)
	return strings.Repeat(" ", a) + strings.Repeat("░", m-a) + strings.Repeat("█", max(1, z-m))
}

// ruler says at which time since the beginning the columns are.
func (s ganttScale) ruler() string {
	const apart = 14
	var b strings.Builder
	b.WriteString("0")
	for at := apart; at+apart/2 <= s.columns; at += apart {
		text := "|" + span(time.Duration(float64(s.length)*float64(time.Microsecond)/float64(s.columns)*float64(at)))
		b.WriteString(strings.Repeat(" ", max(1, at-columnsOf(b.String()))) + text)
	}
	return b.String()
}
