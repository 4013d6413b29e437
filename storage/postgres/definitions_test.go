package postgres

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/musterhq/muster/job"
)

func document(name string, upstreams ...string) *job.Document {
	d := &job.Document{Name: name, Namespace: "default", Exec: &job.Exec{Command: []string{"/bin/true"}}}
	for _, u := range upstreams {
		d.DependsOn = append(d.DependsOn, job.Edge{Job: u, On: job.OnSuccess})
	}
	return d
}

func (s *Store) mustPut(t *testing.T, d *job.Document) *job.Job {
	t.Helper()
	j, err := s.PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: d, At: nowMs()})
	if err != nil {
		t.Fatalf("put %s: %v", d.Name, err)
	}
	return j
}

// Edges that close a cycle together are put at the same moment by 8 writers on two nodes: never are all of them accepted.
// Without the lock of the graph this fails within the first rings: each writer looks before the others have committed.
func TestConcurrentCycles(t *testing.T) {
	t.Parallel()
	rounds := 375 // of 8 edges each: 1,000 rings of two, three or four jobs
	if testing.Short() {
		rounds = 40
	}
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url)}
	c := connect(t, url)
	bare, _ := json.Marshal(document("bare"))
	_, err := c.Exec(t.Context(), `WITH j AS (
		INSERT INTO muster.jobs (id, namespace, name, version, created_at, updated_at)
		SELECT gen_random_uuid(), 'default', 'r' || r || '-' || w, 1, now(), now() FROM generate_series(0, $1::int - 1) r, generate_series(0, 7) w RETURNING id
	) INSERT INTO muster.job_versions (job_id, version, from_at, created_at, document) SELECT id, 1, now(), now(), $2 FROM j`, rounds, string(bare))
	if err != nil {
		t.Fatal(err)
	}
	tries, accepted := 0, 0
	for round := range rounds {
		size := []int{2, 3, 4}[round%3]
		refused := make([]int, 8/size)
		start := make(chan struct{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		for w := range 8 / size * size {
			ring, place := w/size, w%size
			of := func(place int) string { return fmt.Sprintf("r%d-%d", round, ring*size+place%size) }
			wg.Go(func() {
				<-start
				_, err := nodes[w%2].PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document(of(place), of(place+1)), At: nowMs()})
				mu.Lock()
				defer mu.Unlock()
				switch e := job.AsError(err); {
				case err == nil:
					accepted++
				case e.Code == job.Conflict && e.Reason == "cycle":
					refused[ring]++
				default:
					t.Errorf("writer %d: %v", w, err)
				}
			})
		}
		close(start)
		wg.Wait()
		for _, n := range refused {
			tries++
			if n == 0 {
				t.Fatalf("after %d rings: all %d edges of one were accepted", tries, size)
			}
			if n > 1 {
				t.Fatalf("%d edges of a ring of %d were refused; without one of them there is no cycle", n, size)
			}
		}
	}
	if cyclic := ask[bool](t, c, `WITH RECURSIVE way (start, id) AS (
			SELECT job_id, upstream_id FROM muster.job_dependencies
			UNION SELECT w.start, d.upstream_id FROM way w JOIN muster.job_dependencies d ON d.job_id = w.id
		) SELECT EXISTS (SELECT FROM way WHERE start = id)`); cyclic {
		t.Fatal("the edges have a cycle")
	}
	if edges := ask[int](t, c, "SELECT count(*) FROM muster.job_dependencies"); edges != accepted {
		t.Fatalf("%d edges are stored, %d were accepted", edges, accepted)
	}
}

// Edges are rows, with what each waits for, and go with their job and its next version.
func TestDependencyRows(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, c := openAt(t, url), connect(t, url)
	a, b := s.mustPut(t, document("a")), s.mustPut(t, document("b"))
	d := document("c", "a", "b")
	d.DependsOn[1].On = job.OnDone
	j := s.mustPut(t, d)
	edges := func() string {
		return ask[string](t, c, "SELECT coalesce(string_agg(u.name || on_end, ',' ORDER BY u.name), '') FROM muster.job_dependencies JOIN muster.jobs u ON u.id = upstream_id WHERE job_id = $1", j.ID[:])
	}
	if got := edges(); got != "a1,b3" {
		t.Fatalf("edges are %q", got)
	}
	d2 := document("c", "b")
	d2.DependsOn[0].On = job.OnFailure
	s.mustPut(t, d2)
	if got := edges(); got != "b2" {
		t.Fatalf("edges are %q", got)
	}
	if _, err := s.DeleteJob(t.Context(), "default", "c", 0); err != nil {
		t.Fatal(err)
	}
	if got := edges(); got != "" {
		t.Fatalf("edges are %q", got)
	}
	for _, up := range []*job.Job{a, b} {
		if _, err := s.DeleteJob(t.Context(), "default", up.Name, up.Version); err != nil {
			t.Fatal(err)
		}
	}
}

// Two that create one job at once: one makes it, the other changes it or finds it as it is.
func TestCreatedTwice(t *testing.T) {
	t.Parallel()
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url)}
	for round := range 30 {
		name := fmt.Sprintf("job-%d", round)
		var wg sync.WaitGroup
		var ids [8]job.JobID
		for w := range ids {
			wg.Go(func() {
				j, err := nodes[w%2].PutJob(t.Context(), job.PutJob{ID: job.JobID(randomID(nowMs())), Spec: document(name), At: nowMs()})
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if ids[w] = j.ID; j.Version != 1 {
					t.Errorf("an equal document made version %d", j.Version)
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("one job has the ids %v", ids)
			}
		}
	}
}

// An id that belongs to another job is a conflict, and nothing is stored.
func TestJobIDTaken(t *testing.T) {
	t.Parallel()
	s := open(t)
	a := s.mustPut(t, document("a"))
	_, err := s.PutJob(t.Context(), job.PutJob{ID: a.ID, Spec: document("b"), At: nowMs()})
	code(t, "put another job with the same id", err, job.Conflict)
	_, err = s.Job(t.Context(), "default", "b")
	code(t, "read it", err, job.NotFound)
}
