package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// planned is a database of 100,000 runs in six weekly partitions: 20 jobs, a few thousand live rows among many that ended.
// Of one lane most are due tomorrow.
type planned struct {
	s       *Store
	c       *pgx.Conn
	now     job.Instant
	jobs    []job.JobID
	live    []*job.Run
	loaded  []job.RunID       // of the last hour
	indexes map[string]string // the table's index, by the partition's
}

const busyLane, delayedLane = "default|@exec=|busy", "default|@exec=|delayed"

func newPlanned(t *testing.T) *planned {
	url := database(t)
	p := &planned{s: raised(t, url), c: connect(t, url), now: nowMs(), indexes: map[string]string{}}
	week := 7 * day
	from := p.now - (p.now-monday)%job.Instant(week/time.Microsecond)
	for i := -4; i <= 1; i++ {
		one := span{from.Add(time.Duration(i) * week), from.Add(time.Duration(i+1) * week)}
		for _, parents := range [][]string{{"runs", "attempts"}, {"ticks"}} {
			if err := p.s.fenced(t.Context(), 1, func(ctx context.Context, tx pgx.Tx) error { return makePartition(ctx, tx, one, parents...) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 20 {
		p.jobs = append(p.jobs, job.JobID(randomID(p.now)))
	}
	for i, id := range p.jobs {
		if _, err := p.c.Exec(t.Context(), "INSERT INTO muster.jobs (id, namespace, name, version, created_at, updated_at) VALUES ($1, 'default', $2, 1, now(), now())", id[:], fmt.Sprintf("job-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	var runs []*job.Run
	for i := range 100_000 {
		at := p.now.Add(-time.Duration(i) * 24 * time.Second) // 28 days
		r := aRun(at, func(r *job.Run) {
			r.Spec, r.Payload = nil, json.RawMessage(`{"some":"payload"}`)
			r.JobID, r.JobVersion = p.jobs[i%20], 1
			r.Job = fmt.Sprintf("job-%d", i%20)
		})
		switch {
		case i < 4000 && i%2 == 0:
			r.Lane = busyLane
		case i < 24_000 && i%5 == 1:
			r.Lane = delayedLane
			r.State, r.QueuedAt, r.ReadyAt = job.Scheduled, 0, p.now.Add(day+time.Duration(i)*time.Second)
		case i%10_000 == 0:
			r.State, r.QueuedAt = job.Held, 0
		default:
			ended(at.Add(time.Minute))(r)
		}
		if !r.State.Terminal() {
			p.live = append(p.live, r)
		}
		if at > p.now.Add(-time.Hour) {
			p.loaded = append(p.loaded, r.ID)
		}
		runs = append(runs, r)
	}
	for part := range slices.Chunk(runs, 10_000) {
		insert(t, p.c, part...)
	}
	// The connection is planned for as the store's are.
	if _, err := p.c.Exec(t.Context(), greetSQL, "60s", "60s", "0"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Exec(t.Context(), "ANALYZE muster.runs"); err != nil {
		t.Fatal(err)
	}
	rows, err := p.c.Query(t.Context(), `SELECT c.relname::text, p.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent WHERE c.relkind = 'i'`)
	if err != nil {
		t.Fatal(err)
	}
	var child, parent string
	if _, err := pgx.ForEachRow(rows, []any{&child, &parent}, func() error { p.indexes[child] = parent; return nil }); err != nil {
		t.Fatal(err)
	}
	return p
}

// node is a part of a plan, as EXPLAIN writes it.
type node struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Plans    []node
}

func (n *node) walk(visit func(*node)) {
	visit(n)
	for i := range n.Plans {
		n.Plans[i].walk(visit)
	}
}

// explain runs a query, with a plan for its arguments or with one for any, and answers what was done.
func (p *planned) explain(t *testing.T, generic bool, query string, args []any) *node {
	t.Helper()
	mode := "force_custom_plan"
	if generic {
		mode = "force_generic_plan"
	}
	literals := make([]string, len(args))
	for i, a := range args {
		literals[i] = literal(t, a)
	}
	execute := "EXECUTE q"
	if len(args) > 0 {
		execute += "(" + strings.Join(literals, ", ") + ")"
	}
	var text string
	for _, sql := range []string{"SET plan_cache_mode = " + mode, "PREPARE q AS " + query} {
		if _, err := p.c.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	defer func() { _, _ = p.c.Exec(t.Context(), "DEALLOCATE q") }()
	if err := p.c.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+execute, pgx.QueryExecModeSimpleProtocol).Scan(&text); err != nil {
		t.Fatalf("explain: %v", err)
	}
	var plans []struct{ Plan node }
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		t.Fatal(err)
	}
	return &plans[0].Plan
}

func literal(t *testing.T, a any) string {
	list := func(n int, at func(int) any) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = strings.Trim(literal(t, at(i)), "'")
		}
		return `'{"` + strings.Join(parts, `","`) + `"}'`
	}
	switch v := a.(type) {
	case nil:
		return "NULL"
	case []byte:
		return "'" + job.RunID(v).String() + "'"
	case [16]byte:
		return "'" + job.RunID(v).String() + "'"
	case string:
		return "'" + v + "'"
	case int, int64, int16:
		return fmt.Sprintf("'%d'", v)
	case time.Time:
		return "'" + v.Format(time.RFC3339Nano) + "'"
	case [][16]byte:
		return list(len(v), func(i int) any { return v[i] })
	case []string:
		return list(len(v), func(i int) any { return v[i] })
	case []int64:
		return list(len(v), func(i int) any { return v[i] })
	case []int16:
		return list(len(v), func(i int) any { return v[i] })
	}
	t.Fatalf("no literal for %T", a)
	return ""
}

// One large database serves three tests.
func TestLarge(t *testing.T) {
	t.Parallel()
	p := newPlanned(t)
	t.Run("plans", p.testPlans)
	t.Run("listings are bounded", p.testListings)
	t.Run("usage", p.testUsage)
	t.Run("edges", p.testEdges)
}

// The queries that a busy cluster makes all the time use the index made for them, look at about as many rows as they
// answer, and leave out the partitions that cannot have any.
func (p *planned) testPlans(t *testing.T) {
	wanted, lo, hi := idArray(p.loaded)
	lane := func(lane string, most int64) []any {
		return []any{[]string{lane}, []int64{laneHash(job.LaneKey(lane))}, []int64{math.MinInt64}, [][16]byte{{}}, []int64{most},
			p.now.Time(), int64(p.now.Add(queuedAhead))}
	}
	list := func(q storage.RunQuery) (string, []any) {
		l, err := newListing(t.Context(), p.c, &q)
		if err != nil {
			t.Fatal(err)
		}
		return listSQL[l.kind], l.candidates(l.from, l.limit+1)
	}
	recent, recentArgs := list(storage.RunQuery{Limit: 100, Since: p.now.Add(-time.Hour)})
	all, allArgs := list(storage.RunQuery{Limit: 100})
	ofJob, ofJobArgs := list(storage.RunQuery{Namespace: "default", Job: "job-3", Limit: 100})
	live, liveArgs := list(storage.RunQuery{States: []job.State{job.Waiting, job.Held, job.Scheduled, job.Queued, job.Running}, Limit: 100})
	var middle job.RunID
	for _, r := range p.live[len(p.live)/2:] {
		middle = r.ID
		break
	}
	for _, c := range []struct {
		name       string
		query      string
		args       []any
		index      []string
		rows       float64 // looked at, at most
		partitions int     // looked into, at most
	}{
		{"run", readSQL["run"], []any{p.loaded[0][:]}, []string{"runs_pkey"}, 1, 1},
		{"load", readSQL["load"], []any{wanted, lo[:], hi[:]}, []string{"runs_pkey"}, float64(len(p.loaded)), 2},
		{"live", readSQL["live"], []any{make([]byte, 16), 500}, []string{"runs_live"}, 600, 7},
		{"live, in the middle", readSQL["live"], []any{middle[:], 500}, []string{"runs_live"}, 600, 7},
		{"live of job", readSQL["live of job"], []any{p.jobs[1][:], 50}, []string{"runs_live_of_job"}, 100, 7},
		{"backlog", readSQL["backlog"], lane(busyLane, 100), []string{"runs_lane"}, 130, 7},
		{"backlog of what is due tomorrow", readSQL["backlog"], lane(delayedLane, 100), []string{"runs_lane"}, 10, 7},
		{"list", all, allArgs, []string{"runs_pkey"}, 130, 7},
		{"list since", recent, recentArgs, []string{"runs_pkey"}, 130, 3},
		{"list of job", ofJob, ofJobArgs, []string{"runs_of_job"}, 130, 7},
		{"list of live", live, liveArgs, []string{"runs_live"}, 130, 7},
	} {
		for _, generic := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, generic %v", c.name, generic), func(t *testing.T) {
				plan := p.explain(t, generic, c.query, c.args)
				rows, partitions := 0.0, map[string]bool{}
				plan.walk(func(n *node) {
					index := n.Index
					if n.Relation == "" && index == "" || n.Loops == 0 {
						return
					}
					if n.Relation == "runs_default" {
						return // it is empty
					}
					if n.Type != "Bitmap Heap Scan" && !slices.Contains(c.index, p.indexes[index]) {
						t.Errorf("%s of %s by the index %q of %q, not by %v", n.Type, n.Relation, index, p.indexes[index], c.index)
					}
					if n.Relation != "" {
						partitions[n.Relation] = true
						rows += (n.Rows + n.Removed) * n.Loops
					}
				})
				if rows > c.rows {
					t.Errorf("it looked at %g rows; %g are enough", rows, c.rows)
				}
				if len(partitions) > c.partitions {
					t.Errorf("it looked into %v; %d partitions are enough", partitions, c.partitions)
				}
				if t.Failed() {
					text, _ := json.MarshalIndent(plan, "", " ")
					t.Logf("%s", text)
				}
			})
		}
	}
}

// A listing whose filter matches nothing looks at so many rows and no more, and answers where to go on; all pages
// together answer what matches.
func (p *planned) testListings(t *testing.T) {
	for name, q := range map[string]storage.RunQuery{
		"no such worker":       {Worker: "nobody"},
		"no such state":        {States: []job.State{job.Failed}},
		"no such label":        {Labels: map[string]string{"a": "b"}},
		"no such state of job": {Namespace: "default", Job: "job-1", States: []job.State{job.Failed}},
		"held":                 {States: []job.State{job.Held}},
		"held of job":          {Namespace: "default", Job: "job-0", States: []job.State{job.Held}},
	} {
		var found []job.RunID
		pages := 0
		for {
			began := time.Now()
			page, err := p.s.Runs(t.Context(), q)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("%s: a page took %s", name, took)
			}
			pages++
			for _, r := range page.Runs {
				found = append(found, r.ID)
			}
			if q.Before = page.Next; page.Next.IsZero() {
				break
			}
		}
		want := 0
		if strings.HasPrefix(name, "held") {
			want = 9 // of ten, one is in the busy lane; all of them are of job-0
		}
		if len(found) != want || !slices.IsSortedFunc(found, func(a, b job.RunID) int { return strings.Compare(b.String(), a.String()) }) {
			t.Errorf("%s: found %d, not %d", name, len(found), want)
		}
		if least := map[bool]int{true: 5, false: 1}[strings.HasPrefix(name, "no such") && q.Job == ""]; pages < least || pages > 7 {
			t.Errorf("%s: %d pages", name, pages)
		}
	}
}

// Counts are exact while they are small, and estimates after that.
func (p *planned) testUsage(t *testing.T) {
	u, err := p.s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.LiveRuns != len(p.live) || u.Runs < 90_000 || u.Runs > 110_000 || u.Ticks != 0 || u.Bytes < 10<<20 || u.HistoryBytes > u.Bytes {
		t.Errorf("usage is %+v; %d runs are live", u, len(p.live))
	}
}

// With 100,000 jobs, as many edges, half of which are satisfied, and none that gives birth: what is asked after each end, and
// again and again, are probes of indexes, as many as there are ends and jobs that may be due.
func (p *planned) testEdges(t *testing.T) {
	for _, sql := range []string{
		plansSQL,
		`INSERT INTO muster.jobs (id, namespace, name, version, created_at, updated_at)
			SELECT gen_random_uuid(), 'default', k || n, 1, now(), now() FROM generate_series(1, 50000) n, unnest('{up-,down-}'::text[]) k`,
		`INSERT INTO muster.job_versions SELECT id, 1, now(), now(), '{"name": "' || name || '", "namespace": "default", "exec": {"command": ["x"]}}' FROM muster.jobs WHERE name LIKE 'down-%'`,
		`INSERT INTO muster.job_dependencies (job_id, upstream_id, on_end, fresh, satisfied_by, satisfied_at)
			SELECT d.id, u.id, 1, false, CASE WHEN k = 0 THEN d.id END, CASE WHEN k = 0 THEN now() END
			FROM generate_series(1, 50000) n, generate_series(0, 1) k, muster.jobs d, muster.jobs u
			WHERE d.namespace = 'default' AND d.name = 'down-' || n AND u.namespace = 'default' AND u.name = 'up-' || (n - 1 + k) % 50000 + 1`,
		"ANALYZE muster.jobs", "ANALYZE muster.job_dependencies", "ANALYZE muster.job_versions",
	} {
		if _, err := p.c.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	root := aRun(p.now)
	var tasks []*job.Run
	for i := range 2000 {
		tasks = append(tasks, aRun(p.now, func(r *job.Run) { r.RootID, r.Task = root.ID, fmt.Sprint("task-", i%20) }))
	}
	insert(t, p.c, append(tasks, root)...)
	if _, err := p.c.Exec(t.Context(), "ANALYZE muster.runs"); err != nil {
		t.Fatal(err)
	}
	id := func(name string) [16]byte {
		return ask[[16]byte](t, p.c, "SELECT id FROM muster.jobs WHERE namespace = 'default' AND name = $1", name)
	}
	var ends, downs [][16]byte
	for i := range 50 {
		ends, downs = append(ends, id(fmt.Sprint("up-", 1000+i))), append(downs, id(fmt.Sprint("down-", 1000+i)))
	}
	ofTask, ofTaskArgs := func() (string, []any) {
		l, err := newListing(t.Context(), p.c, &storage.RunQuery{RootID: root.ID, Task: "task-3", Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		return listSQL[l.kind], l.candidates(l.from, 101)
	}()
	some := func(n int, v int64) []int64 { return slices.Repeat([]int64{v}, n) }
	nothing := make([]byte, 16)
	for _, c := range []struct {
		name  string
		query string
		args  []any
		rows  float64
	}{
		{"end", movesSQL["satisfy"], []any{ends, ends, some(50, 6), slices.Repeat([]string{"2026-01-01"}, 50), some(50, 1)}, 550},
		{"may be due, all", fireSQL["may_be_due"], []any{nothing, 2000}, 160_000},
		{"may be due", fireSQL["may_be_due_of"], []any{downs}, 350},
		{"lock", fireSQL["lock_edges"], []any{downs}, 350},
		{"jobs due", fireSQL["jobs_due"], []any{downs}, 100},
		{"judge", fireSQL["judge"], []any{downs, ends}, 250},
		{"documents", fireSQL["documents"], []any{downs, some(50, 1)}, 100},
		{"dependencies", definitionSQL["dependencies"], []any{"default", "down-77"}, 50},
		{"list of task", ofTask, ofTaskArgs, 2100},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan := p.explain(t, true, c.query, c.args)
			rows := 0.0
			plan.walk(func(n *node) {
				if n.Loops == 0 || n.Relation == "" {
					return
				}
				if n.Type == "Seq Scan" {
					t.Errorf("a sequential scan of %s", n.Relation)
				}
				rows += (n.Rows + n.Removed) * n.Loops
			})
			if rows > c.rows {
				t.Errorf("it looked at %g rows; %g are enough", rows, c.rows)
			}
			if t.Failed() || testing.Verbose() {
				text, _ := json.MarshalIndent(plan, "", " ")
				t.Logf("%g rows\n%s", rows, text)
			}
		})
	}
	for _, want := range []int{50, 0} { // what the end, explained above, made due
		began := time.Now()
		runs, err := p.s.Fire(t.Context(), 1, nil, p.now, 1000)
		if err != nil || len(runs) != want {
			t.Fatalf("%d are born, not %d: %v", len(runs), want, err)
		}
		t.Logf("%d are born: %s", want, time.Since(began))
	}
}
