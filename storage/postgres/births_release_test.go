package postgres

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// Births of any content are released, some of them there already and some twice in a call, and answered in order.
func TestRelease(t *testing.T) {
	t.Parallel()
	for name, outbox := range map[string]bool{"by copy": false, "with an outbox": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := database(t)
			s := raised(t, url, func(c *Config) { c.Outbox = outbox })
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			var there []*job.Run
			for n := range 60 {
				var runs []*job.Run
				existing := map[int]*job.Run{}
				for range 1 + rng.IntN(8) {
					switch pick := rng.IntN(6); {
					case pick == 0 && len(there) > 0 && n%2 == 0:
						old := there[rng.IntN(len(there))]
						existing[len(runs)] = old
						runs = append(runs, &job.Run{ID: old.ID, Namespace: "x", State: job.Queued, CreatedAt: 1})
					case pick == 1 && len(runs) > 0 && n%3 == 0:
						first := runs[rng.IntN(len(runs))]
						existing[len(runs)] = first
						if old := existing[0]; old != nil && first.ID == old.ID {
							existing[len(runs)] = old
						}
						runs = append(runs, copyOf(first))
					default:
						runs = append(runs, randomRun(rng))
					}
				}
				for i := range existing { // what was there decides
					for _, old := range there {
						if old.ID == runs[i].ID {
							existing[i] = old
						}
					}
				}
				receipts, err := s.Release(t.Context(), 1, runs)
				if err != nil || len(receipts) != len(runs) {
					t.Fatalf("seed %d: %d receipts, %v", seed, len(receipts), err)
				}
				for i, r := range receipts {
					want := existing[i]
					if want == nil {
						want = runs[i]
						there = append(there, want)
					}
					if r.Err != nil || r.Existing != (existing[i] != nil) || cmp.Diff(want, r.Run) != "" {
						t.Fatalf("seed %d, call %d, receipt %d: %v, existing %v\n%s", seed, n, i, r.Err, r.Existing, cmp.Diff(want, r.Run))
					}
				}
			}
			for _, want := range there {
				if d := cmp.Diff(want, load(t, s, want.ID)[0]); d != "" {
					t.Fatalf("seed %d: %s", seed, d)
				}
			}
			events := 0
			if outbox {
				events = len(there)
			}
			if n := ask[int](t, connect(t, url), "SELECT count(*) FROM muster.outbox"); n != events {
				t.Errorf("%d events of %d births", n, len(there))
			}
		})
	}
}

// S12: of many one that no store can hold is refused by itself, and so is one that is none.
func TestReleaseUnfit(t *testing.T) {
	t.Parallel()
	s := raised(t, database(t))
	var runs []*job.Run
	for i := range 2500 {
		runs = append(runs, aRun(nowMs(), func(r *job.Run) {
			switch i {
			case 700, 2300:
				r.Error = "a\x00b"
			case 5:
				r.State = 0
			}
		}))
	}
	receipts, err := s.Release(t.Context(), 1, runs)
	if err != nil {
		t.Fatal(err)
	}
	var ids []job.RunID
	for i, r := range receipts {
		bad := i == 5 || i == 700 || i == 2300
		if bad != (job.CodeOf(r.Err) == job.Invalid) || bad != (r.Run == nil) {
			t.Fatalf("receipt %d: %+v", i, r)
		}
		ids = append(ids, runs[i].ID)
	}
	stored := 0
	for _, r := range load(t, s, ids...) {
		if r != nil {
			stored++
		}
	}
	if stored != 2497 {
		t.Errorf("%d are stored", stored)
	}
}
