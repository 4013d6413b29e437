package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

var listSQL = func() map[string]string {
	all := statements("reads_runs.sql")
	for name, text := range all {
		all[name] = strings.ReplaceAll(text, "{filter}", all["filter"])
	}
	return all
}()

// scanSteps is how many candidates a listing with filters looks at, in turn, before it answers what it has: filters that
// match much are answered after the first, and those that match little by a page that may be short.
var scanSteps = []int{1_000, 4_000, 15_000}

// Runs implements storage.Reads. It looks at 20,000 candidates at most.
func (s *Store) Runs(ctx context.Context, q storage.RunQuery) (page storage.RunPage, err error) {
	if q.Job != "" && q.Namespace == "" {
		return page, job.InvalidField("namespace", "a job is named within a namespace")
	}
	if q.Task != "" && q.RootID.IsZero() {
		return page, job.InvalidField("root_id", "a task is named within a run")
	}
	err = s.use(ctx, reading, func(ctx context.Context, c *pgx.Conn) error {
		l, err := newListing(ctx, c, &q)
		if err == nil {
			page, err = l.page(ctx, c)
		}
		return err
	})
	return page, err
}

// listing is one query on its way.
type listing struct {
	kind   string // of candidates: a name in reads_runs.sql
	args   []any  // of the kind
	task   any    // $9 of task runs
	filter []any  // $4 to $7
	// narrowed: some candidates do not match.
	narrowed bool
	labels   map[string]string
	job      string    // of task runs, which are few
	before   job.RunID // exclusive
	from     job.RunID // inclusive
	limit    int
}

func newListing(ctx context.Context, c *pgx.Conn, q *storage.RunQuery) (*listing, error) {
	l := &listing{limit: bound(q.Limit, 1000), labels: q.Labels, before: q.Before}
	if l.before.IsZero() {
		l.before = job.RunID(bytes.Repeat([]byte{0xff}, 16))
	}
	if q.Since != 0 {
		l.from = firstFrom(q.Since)
	}
	if until := firstFrom(q.Until); q.Until != 0 && bytes.Compare(until[:], l.before[:]) < 0 {
		l.before = until
	}
	var namespace, worker, states, labels any
	if q.Worker != "" {
		worker = q.Worker
	}
	if len(q.Labels) > 0 {
		labels = labelTexts(q.Labels)
	}
	onlyLive := len(q.States) > 0 && !slices.ContainsFunc(q.States, job.State.Terminal)
	switch {
	case !q.RootID.IsZero():
		l.kind, l.args, l.job = "task runs", []any{q.RootID[:]}, q.Job
		if q.Task != "" {
			l.task = q.Task
		}
		onlyLive = false
	case q.Job != "" && onlyLive:
		rows, err := c.Query(ctx, listSQL["ids of name"], q.Namespace, q.Job)
		ids, err := collect(rows, err, pgx.RowTo[[16]byte])
		if err != nil {
			return nil, err
		}
		l.kind, l.args = "live of job", []any{ids}
	case q.Job != "":
		l.kind, l.args = "of job", []any{q.Namespace, q.Job}
	case onlyLive:
		l.kind = "live"
	default:
		l.kind = "all"
	}
	if q.Namespace != "" && l.kind != "of job" && l.kind != "live of job" {
		namespace = q.Namespace
	}
	if len(q.States) > 0 && !(onlyLive && allLive(q.States)) {
		numbers := make([]int16, len(q.States))
		for i, st := range q.States {
			numbers[i] = int16(st)
		}
		states = numbers
	}
	l.filter = []any{namespace, states, worker, labels}
	l.narrowed = namespace != nil || states != nil || worker != nil || labels != nil || l.task != nil
	return l, nil
}

func allLive(states []job.State) bool {
	for st := job.Waiting; st <= job.Running; st++ {
		if !slices.Contains(states, st) {
			return false
		}
	}
	return true
}

// labelTexts is each label as it stands in the text of a row's labels; see putLabels. What is found so may still be part
// of something else: carries has the last word.
func labelTexts(labels map[string]string) (texts []string) {
	for k, v := range labels {
		text, _ := json.Marshal(map[string]string{k: v}) // always can be
		texts = append(texts, string(text[1:len(text)-1]))
	}
	return texts
}

// carries tells whether labels has all that is wanted.
func carries(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// page walks the candidates in steps. Each step is a range of ids, so that what is born or pruned meanwhile cannot make
// it skip a row.
func (l *listing) page(ctx context.Context, c *pgx.Conn) (page storage.RunPage, err error) {
	steps := scanSteps
	if !l.narrowed {
		steps = []int{0} // everything matches: the page is full before there is much to look at
	}
	for _, step := range steps {
		from, more := l.from, false
		if step > 0 {
			if from, more, err = l.edge(ctx, c, step); err != nil {
				return page, err
			}
		}
		full, err := l.collect(ctx, c, from, &page)
		if err != nil || full || !more {
			return page, err
		}
		l.before = from
	}
	page.Next = l.before
	return page, nil
}

// edge answers the candidate at which a step ends, and false when the candidates end before.
func (l *listing) edge(ctx context.Context, c *pgx.Conn, step int) (job.RunID, bool, error) {
	args := append([]any{l.before[:], l.from[:], step - 1}, l.args...)
	var id [16]byte
	found, err := one(&id, c.QueryRow(ctx, listSQL[l.kind+", edge"], args...).Scan(&id))
	if err != nil || found == nil {
		return l.from, false, err
	}
	return job.RunID(id), true, nil
}

// collect adds what matches of one step to the page, and tells whether that is full and goes on after it.
func (l *listing) collect(ctx context.Context, c *pgx.Conn, from job.RunID, page *storage.RunPage) (bool, error) {
	need := l.limit - len(page.Runs)
	rows, err := c.Query(ctx, listSQL[l.kind], l.candidates(from, need+1)...)
	runs, err := collectRuns(full, rows, err)
	if err != nil {
		return false, err
	}
	more := len(runs) > need
	if more {
		runs = runs[:need]
	}
	last := l.before
	for _, r := range runs {
		last = r.ID
		if carries(r.Labels, l.labels) && (l.job == "" || l.job == r.Job) {
			page.Runs = append(page.Runs, r)
		}
	}
	if more {
		page.Next = last
	}
	return more, nil
}

// candidates are the arguments of the listing's statement, for so many rows from an id on.
func (l *listing) candidates(from job.RunID, most int) []any {
	args := slices.Concat([]any{l.before[:], from[:], most}, l.filter, l.args)
	if l.kind == "task runs" {
		args = append(args, l.task)
	}
	return args
}

// firstFrom is the smallest id of a time; ids before it are older. Ids hold milliseconds: one within the millisecond of a
// time is older than it unless that millisecond begins there.
func firstFrom(at job.Instant) (id job.RunID) {
	if at <= 0 {
		return id
	}
	ms := uint64((at + 999) / 1000)
	for i := 5; i >= 0; i-- {
		id[i] = byte(ms)
		ms >>= 8
	}
	return id
}
