package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

func keyed(key, body string) func(*job.Run) {
	return func(r *job.Run) { r.Key, r.BodyHash = key, []byte(body) }
}

// submit stores births, one receipt each without an error.
func submit(t *testing.T, s *Store, runs ...*job.Run) []job.Receipt {
	t.Helper()
	receipts, err := s.Submit(t.Context(), runs)
	if err != nil || len(receipts) != len(runs) {
		t.Fatalf("submit %d runs: %d receipts, %v", len(runs), len(receipts), err)
	}
	for i, r := range receipts {
		if r.Err != nil || r.Run == nil {
			t.Fatalf("submit run %d: %+v", i, r)
		}
	}
	return receipts
}

func load(t *testing.T, s *Store, ids ...job.RunID) []*job.Run {
	t.Helper()
	runs, err := s.Load(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

func copyOf(r *job.Run) *job.Run {
	own := *r
	return &own
}

// Births of any content are stored, whichever columns they need and whichever way they go.
func TestBirthsOfAnyContent(t *testing.T) {
	t.Parallel()
	for name, outbox := range map[string]bool{"by copy": false, "with an outbox": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, func(c *Config) { c.Outbox = outbox })
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			for n := range 100 {
				var runs []*job.Run
				for i := range 1 + rng.IntN(4) {
					r := randomRun(rng)
					switch rng.IntN(3) {
					case 0:
						r.Key = fmt.Sprintf("%s %d %d", r.Key, n, i)
					case 1: // the narrowest there is
						r, r.Key = aRun(nowMs()), ""
					default:
						r.Key = ""
					}
					runs = append(runs, r)
				}
				want := make([]*job.Run, len(runs))
				for i, r := range runs {
					want[i] = copyOf(r)
				}
				receipts := submit(t, s, runs...)
				again := submit(t, s, runs...)
				for i, r := range want {
					if d := cmp.Diff(r, receipts[i].Run); d != "" || receipts[i].Existing {
						t.Fatalf("seed %d: answered (-want +got):\n%s", seed, d)
					}
					if d := cmp.Diff(r, load(t, s, r.ID)[0]); d != "" {
						t.Fatalf("seed %d: stored (-want +got):\n%s", seed, d)
					}
					if d := cmp.Diff(r, again[i].Run); d != "" || !again[i].Existing {
						t.Fatalf("seed %d: answered again (-want +got):\n%s", seed, d)
					}
				}
			}
		})
	}
}

// S10: a key that is submitted 200 times at once through three nodes is one run, and all are answered with it.
func TestOneKeyOfManyNodes(t *testing.T) {
	t.Parallel()
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url), openAt(t, url)}
	for round := range 10 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids, created, conflicts := map[job.RunID]int{}, map[string]int{}, 0
		for i := range 200 {
			body := "body"
			if i%5 == 4 {
				body = "other body"
			}
			r := aRun(nowMs(), keyed(fmt.Sprint("k", round), body))
			wg.Go(func() {
				receipts, err := nodes[i%3].Submit(t.Context(), []*job.Run{r})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Errorf("submit: %v", err)
				case receipts[0].Err != nil:
					if e := job.AsError(receipts[0].Err); e.Code != job.Conflict || e.Reason != "key_conflict" {
						t.Errorf("submit: %v", e)
					}
					conflicts++
				default:
					ids[receipts[0].Run.ID]++
					if !receipts[0].Existing {
						created[body]++
					}
				}
			})
		}
		wg.Wait()
		won := 160
		if created["other body"] == 1 {
			won = 40
		}
		if len(ids) != 1 || created["body"]+created["other body"] != 1 || conflicts != 200-won {
			t.Fatalf("%d ids, created %v, %d conflicts", len(ids), created, conflicts)
		}
	}
	if n := ask[int](t, connect(t, url), "SELECT count(*) FROM muster.runs"); n != 10 {
		t.Fatalf("%d runs are stored, want 10", n)
	}
}

// S9: a key is remembered for 24 hours from its acceptance, and then it is free.
func TestKeysExpire(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	s := open(t, func(c *Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	first := submit(t, s, aRun(nowMs(), keyed("k", "body")))[0].Run
	pass(keyLife - time.Microsecond)
	if again := submit(t, s, aRun(nowMs(), keyed("k", "body")))[0]; !again.Existing || again.Run.ID != first.ID {
		t.Fatalf("a key that lives is answered %+v", again)
	}
	pass(time.Microsecond)
	second := aRun(nowMs(), keyed("k", "other body"))
	if got := submit(t, s, second)[0]; got.Existing || got.Run.ID != second.ID {
		t.Fatalf("a key that has expired is answered %+v", got)
	}
	if again := submit(t, s, aRun(nowMs(), keyed("k", "other body")))[0]; !again.Existing || again.Run.ID != second.ID {
		t.Fatalf("a key that was taken again is answered %+v", again)
	}
}

// A key outlives its run, and is not the key of another one because of that.
func TestKeyOfARunThatIsGone(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := openAt(t, url)
	first := submit(t, s, aRun(nowMs(), keyed("k", "body")))[0].Run
	if _, err := connect(t, url).Exec(t.Context(), "DELETE FROM muster.runs"); err != nil {
		t.Fatal(err)
	}
	receipts, err := s.Submit(t.Context(), []*job.Run{aRun(nowMs(), keyed("k", "body"))})
	code(t, "submit", err, "")
	code(t, "the receipt", receipts[0].Err, job.Conflict)
	contains(t, "the error", receipts[0].Err.Error(), first.ID.String())
}

// S10: an id comes before a key. What is there is answered, and the key that came with it stays free.
func TestIDsComeBeforeKeys(t *testing.T) {
	t.Parallel()
	s := open(t)
	x := submit(t, s, aRun(nowMs()))[0].Run
	owner := submit(t, s, aRun(nowMs(), keyed("taken", "body")))[0].Run
	for _, key := range []string{"free", "taken"} {
		for _, body := range []string{"body", "other body"} {
			again := copyOf(x)
			keyed(key, body)(again)
			if r := submit(t, s, again)[0]; !r.Existing || r.Run.ID != x.ID || r.Run.Key != "" {
				t.Fatalf("a run that is there, with the key %q: %+v", key, r)
			}
		}
	}
	if r := submit(t, s, aRun(nowMs(), keyed("taken", "body")))[0]; r.Run.ID != owner.ID {
		t.Fatalf("the key of another run: %+v", r)
	}
	if r := submit(t, s, aRun(nowMs(), keyed("free", "yet another")))[0]; r.Existing {
		t.Fatalf("a key that came with a known id was taken: %+v", r)
	}
}

// Repeats of all kinds within one call are settled as if they came one after the other.
func TestRepeatsInOneBatch(t *testing.T) {
	t.Parallel()
	s := open(t)
	owner := submit(t, s, aRun(nowMs(), keyed("owned", "body")))[0].Run
	known := submit(t, s, aRun(nowMs()))[0].Run
	a, b, c := aRun(nowMs(), keyed("new", "1")), aRun(nowMs(), keyed("new", "1")), aRun(nowMs(), keyed("new", "2"))
	d, e, f := aRun(nowMs(), keyed("owned", "wrong")), aRun(nowMs(), keyed("owned", "body")), aRun(nowMs(), keyed("owned", "wrong"))
	g, h := copyOf(known), aRun(nowMs(), keyed("with known", "x")) // g brings the key of h, and is not its owner
	keyed("with known", "y")(g)
	i := copyOf(e) // the id of e, which is not stored: its key belongs to owner
	i.Key, i.BodyHash = "", nil
	receipts, err := s.Submit(t.Context(), []*job.Run{a, b, c, copyOf(a), d, e, f, g, h, i})
	code(t, "submit", err, "")
	const conflict = "conflict"
	want := []any{a.ID, a.ID, conflict, a.ID, conflict, owner.ID, conflict, known.ID, h.ID, i.ID}
	fresh := []bool{true, false, false, false, false, false, false, false, true, true}
	for n, r := range receipts {
		var got any = conflict
		if r.Err == nil {
			got = r.Run.ID
		} else {
			code(t, fmt.Sprint("receipt ", n), r.Err, job.Conflict)
		}
		if got != want[n] || r.Err == nil && r.Existing == fresh[n] {
			t.Errorf("receipt %d: %v, existing %v; want %v", n, got, r.Existing, want[n])
		}
	}
}

// Batches that have ids and keys in common, in any order and of several nodes at once, neither fail nor wait for each other
// in a circle, and each id and each key is one run.
func TestOverlappingBatches(t *testing.T) {
	t.Parallel()
	url := database(t)
	nodes := []*Store{openAt(t, url), openAt(t, url), openAt(t, url)}
	at := nowMs()
	var pool []*job.Run
	for i := range 300 {
		r := aRun(at.Add(time.Duration(i) * time.Hour))
		if i%2 == 0 {
			keyed(fmt.Sprint("k", i%100), "body")(r)
		}
		pool = append(pool, r)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	created := map[job.RunID]int{}
	owners := map[string]map[job.RunID]bool{}
	for w := range 12 {
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			for range 25 {
				batch := slices.Clone(pool)
				rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
				batch = batch[:1+rng.IntN(60)]
				for i, r := range batch {
					batch[i] = copyOf(r)
				}
				receipts, err := nodes[w%3].Submit(t.Context(), batch)
				if err != nil {
					t.Errorf("submit: %v", err)
					return
				}
				mu.Lock()
				for i, r := range receipts {
					if r.Err != nil {
						t.Errorf("receipt: %v", r.Err)
						continue
					}
					if !r.Existing {
						created[r.Run.ID]++
					}
					if key := batch[i].Key; key != "" {
						if owners[key] == nil {
							owners[key] = map[job.RunID]bool{}
						}
						owners[key][r.Run.ID] = true
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id, n := range created {
		if n != 1 {
			t.Errorf("run %s was created %d times", id, n)
		}
	}
	for key, ids := range owners {
		if len(ids) != 1 {
			t.Errorf("the key %s belongs to %d runs", key, len(ids))
		}
	}
	c := connect(t, url)
	if n := ask[int](t, c, "SELECT count(*) FROM muster.runs"); n != len(created) {
		t.Errorf("%d runs are stored, and %d were answered as new", n, len(created))
	}
	if n := ask[int](t, c, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// S12: what Postgres cannot hold fails alone, and everybody else's birth in its batch is stored.
func TestPoison(t *testing.T) {
	t.Parallel()
	s := open(t)
	poisons := []func(*job.Run){
		func(r *job.Run) { r.Payload = []byte("\"a\x00b\"") },
		func(r *job.Run) { r.Payload = []byte("\"\xff\"") },
		func(r *job.Run) { r.Labels, r.Job = map[string]string{"a": "b"}, "\xc3(" },
		func(r *job.Run) { r.CreatedAt = -1 << 62 },
		func(r *job.Run) { r.Priority = 77 },
		func(r *job.Run) { keyed("a\x00", "body")(r) },
		func(r *job.Run) { r.Namespace = "a\x00" },
		func(r *job.Run) { r.State = 0 },
		func(r *job.Run) { r.ID = job.RunID{} },
	}
	var runs []*job.Run
	for i := range 200 {
		r := aRun(nowMs())
		if i%3 == 0 {
			keyed(fmt.Sprint(i), "body")(r)
		}
		if i%20 == 7 {
			poisons[i/20%len(poisons)](r)
		}
		runs = append(runs, r)
	}
	receipts, err := s.Submit(t.Context(), runs)
	code(t, "submit", err, "")
	for i, r := range receipts {
		want := job.Code("")
		if i%20 == 7 {
			want = job.Invalid
		}
		code(t, fmt.Sprint("receipt ", i), r.Err, want)
		if stored := load(t, s, runs[i].ID)[0]; (stored != nil) != (want == "") {
			t.Fatalf("run %d, refused as %q, is stored: %v", i, want, stored != nil)
		}
	}
	// Of several callers whose runs share a batch.
	var wg sync.WaitGroup
	for i := range 64 {
		r := aRun(nowMs())
		if i == 40 {
			r.Payload = []byte("\"\x00\"")
		}
		wg.Go(func() {
			receipts, err := s.Submit(t.Context(), []*job.Run{r})
			if err != nil || (job.CodeOf(receipts[0].Err) == job.Invalid) != (i == 40) {
				t.Errorf("caller %d: %v, %+v", i, err, receipts)
			}
		})
	}
	wg.Wait()
}
