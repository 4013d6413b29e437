package replicated_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/replicated"
)

// What the contract's suite cannot see: leases, bounds, and how batches are cut into commands.

var ctx = context.Background()

func birth(n int, at job.Instant) *job.Run {
	return &job.Run{ID: job.MakeRunID(at.Add(time.Duration(n)*time.Millisecond).Time(), [10]byte{9: byte(n)}), Namespace: "default",
		Trigger: job.ByAPI, State: job.Queued, CreatedAt: at, QueuedAt: at, Lane: "default|@exec=|"}
}

func submit(t *testing.T, s *replicated.Store, runs ...*job.Run) {
	t.Helper()
	receipts, err := s.Submit(ctx, runs)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range receipts {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

func do(t *testing.T, d *direct, c fsm.Command) {
	t.Helper()
	r, err := d.Propose(ctx, c)
	if err != nil || r[0].Err != nil {
		t.Fatalf("%T: %v, %v", c, err, r)
	}
}

func TestRunsUnderALeaseReadAsRunning(t *testing.T) {
	t.Parallel()
	s, d := openDirect()
	at := now()
	var ids []job.RunID
	for n := range 6 {
		r := birth(n, at)
		ids = append(ids, r.ID)
		if n == 5 {
			r.Namespace = "other"
		}
		submit(t, s, r)
	}
	grant := func(n int, fence job.Fence) job.Grant {
		return job.Grant{RunID: ids[n], Fence: fence, Attempt: 2, Worker: fmt.Sprintf("w%d", n%2), Boot: "b", GrantedAt: at.Add(time.Minute)}
	}
	do(t, d, &fsm.Grant{Grants: []job.Grant{grant(1, 1), grant(2, 2), grant(3, 3), grant(5, 5)}})

	r, err := s.Run(ctx, ids[1])
	if err != nil || r.State != job.Running || r.Worker != "w1" || r.Attempt != 2 || r.StartedAt != at.Add(time.Minute) {
		t.Fatalf("run is %+v, %v", r, err)
	}
	if rows, _ := s.Load(ctx, ids[1:2]); rows[0].State != job.Queued {
		t.Fatalf("the leader reads %s, which is not what is stored", rows[0].State)
	}
	list := func(q job.RunQuery) []job.RunID {
		t.Helper()
		page, err := s.Runs(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		var got []job.RunID
		for _, r := range page.Runs {
			got = append(got, r.ID)
		}
		return got
	}
	expect := func(what string, q job.RunQuery, want ...int) {
		t.Helper()
		var wanted []job.RunID
		for _, n := range want {
			wanted = append(wanted, ids[n])
		}
		if got := list(q); !slices.Equal(got, wanted) {
			t.Errorf("%s: %v, want %v", what, got, wanted)
		}
	}
	expect("running", job.RunQuery{States: []job.State{job.Running}}, 5, 3, 2, 1)
	expect("running in a namespace", job.RunQuery{Namespace: "default", States: []job.State{job.Running}}, 3, 2, 1)
	expect("running, next page", job.RunQuery{States: []job.State{job.Running}, Before: ids[3]}, 2, 1)
	expect("running, limited", job.RunQuery{States: []job.State{job.Running}, Limit: 2}, 5, 3)
	expect("running on a worker", job.RunQuery{States: []job.State{job.Running}, Worker: "w1"}, 5, 3, 1)
	expect("queued", job.RunQuery{States: []job.State{job.Queued}}, 4, 0)
	expect("queued or running", job.RunQuery{Namespace: "default", States: []job.State{job.Queued, job.Running}}, 4, 3, 2, 1, 0)

	// The end is written before the lease is ended, and the next attempt's lease may live when it is.
	if _, err := s.Move(ctx, 1, []job.Move{
		{ID: ids[1], State: job.Succeeded, Fence: 1, Attempt: 2, Worker: "w1", FinishedAt: at},
		{ID: ids[2], State: job.Scheduled, Reason: job.RetryBackoff, Fence: 2, Attempt: 2, ReadyAt: at},
		{ID: ids[3], State: job.Running, Fence: 3, Attempt: 2, Worker: "w1", StartedAt: at + 7},
	}); err != nil {
		t.Fatal(err)
	}
	expect("running, after some ended", job.RunQuery{States: []job.State{job.Running}}, 5, 3)
	if r, _ := s.Run(ctx, ids[2]); r.State != job.Scheduled {
		t.Fatalf("run is %s though its attempt ended", r.State)
	}
	if r, _ := s.Run(ctx, ids[3]); r.StartedAt != at+7 {
		t.Fatalf("run started at %s, though the worker's word was written", r.StartedAt)
	}
}

func TestFullStoreAnswersExhausted(t *testing.T) {
	t.Parallel()
	s, d := openDirect()
	at := now()
	do(t, d, &fsm.SetLimits{Limits: fsm.Limits{MaxLiveBytes: 1000, MaxHistoryBytes: 1 << 20}})
	submit(t, s, birth(1, at))
	if _, err := s.Submit(ctx, []*job.Run{birth(2, at)}); job.CodeOf(err) != job.Exhausted {
		t.Fatalf("submit to a full store: %v", err)
	}
	u, err := s.Usage(ctx)
	if err != nil || u.LiveRuns != 1 || u.Bytes == 0 || u.MaxBytes != 1000+1<<20 {
		t.Fatalf("usage is %+v, %v", u, err)
	}
	moved, err := s.Move(ctx, 1, []job.Move{{ID: birth(1, at).ID, State: job.Succeeded, Result: json.RawMessage(`"` + strings.Repeat("x", 4000) + `"`), FinishedAt: at}})
	if err != nil || !moved[0].Applied {
		t.Fatalf("a result was refused: %+v, %v", moved, err)
	}
	submit(t, s, birth(2, at))
}

// recording notes the size of what is proposed, and fails on cue.
type recording struct {
	*direct
	sizes []int
	fail  map[int]error
}

func (r *recording) Propose(ctx context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	r.sizes = append(r.sizes, fsm.Size(commands...))
	if err := r.fail[len(r.sizes)]; err != nil {
		return nil, err
	}
	return r.direct.Propose(ctx, commands...)
}

func TestLargeBatchesAreCut(t *testing.T) {
	t.Parallel()
	_, d := openDirect()
	p := &recording{direct: d, fail: map[int]error{2: job.Errorf(job.Unknown, "timeout", "cut off")}}
	s := replicated.New(p, d.state)
	at := now()
	big := json.RawMessage(`"` + strings.Repeat("x", 60<<10) + `"`)
	var runs []*job.Run
	for n := range 10 {
		r := birth(n, at)
		r.Payload = big
		runs = append(runs, r)
	}
	tooLarge := birth(99, at)
	tooLarge.Spec = json.RawMessage(`"` + strings.Repeat("x", fsm.MaxEntryBytes) + `"`)
	receipts, err := s.Submit(ctx, append(runs, tooLarge))
	if err != nil || len(receipts) != 11 {
		t.Fatalf("%d receipts, %v", len(receipts), err)
	}
	stored, unknown := 0, 0
	for _, r := range receipts[:10] {
		switch job.CodeOf(r.Err) {
		case "":
			stored++
		case job.Unknown:
			unknown++
		}
	}
	if stored != 6 || unknown != 4 || job.CodeOf(receipts[10].Err) != job.Invalid {
		t.Fatalf("%d stored, %d unknown, the large one: %v", stored, unknown, receipts[10].Err)
	}
	if len(p.sizes) != 3 || slices.Max(p.sizes) > replicated.MaxCommandBytes+1024 {
		t.Fatalf("entries of %v bytes", p.sizes)
	}
	// No part was stored, but one may have been: the whole must not be called "nothing happened".
	p.sizes, p.fail = nil, map[int]error{1: job.Errorf(job.Unknown, "timeout", "cut off"), 2: job.Errorf(job.Unavailable, "not_leader", "no leader"),
		3: job.Errorf(job.Unavailable, "not_leader", "no leader")}
	if again, err := s.Submit(ctx, runs); err != nil || job.CodeOf(again[0].Err) != job.Unknown || job.CodeOf(again[9].Err) != job.Unavailable {
		t.Fatalf("parts that failed each in its own way: %v, %v", again, err)
	}
	// Repeated with the same ids, the batch is whole.
	receipts, err = s.Submit(ctx, runs)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range receipts {
		if r.Err != nil || r.Run.ID != runs[i].ID {
			t.Fatalf("receipt %d is %+v", i, r)
		}
	}
	p.fail = map[int]error{len(p.sizes) + 1: job.Errorf(job.Unavailable, "no_leader", "no leader")}
	if _, err := s.Submit(ctx, runs[:1]); job.CodeOf(err) != job.Unavailable {
		t.Fatalf("submit without a leader: %v", err)
	}
	if _, err := s.PutJob(ctx, job.PutJob{ID: job.JobID(runs[0].ID), Spec: &job.Document{Name: "a", Namespace: "b", Description: strings.Repeat("x", fsm.MaxEntryBytes)}}); job.CodeOf(err) != job.Invalid {
		t.Fatalf("a document that no entry holds: %v", err)
	}
}

// TestScansAreBounded: a filter that matches nothing looks at so many rows and no more.
func TestScansAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("stores more rows than one scan looks at")
	}
	t.Parallel()
	s, d := openDirect()
	do(t, d, &fsm.SetLimits{Limits: fsm.Limits{MaxLiveBytes: 1 << 40}})
	at := now()
	match := birth(0, at.Add(-time.Hour))
	match.Worker = "w"
	submit(t, s, match)
	for start := 0; start < replicated.MaxScan; start += 1000 {
		var runs []*job.Run
		for n := range 1000 {
			runs = append(runs, birth(start+n, at))
		}
		submit(t, s, runs...)
	}
	page, err := s.Runs(ctx, job.RunQuery{Worker: "w"})
	if err != nil || len(page.Runs) != 0 {
		t.Fatalf("%d runs, %v", len(page.Runs), err)
	}
	// It says so, and where to go on: an empty page is not the end.
	if page, err = s.Runs(ctx, job.RunQuery{Worker: "w", Before: page.Next}); err != nil || len(page.Runs) != 1 || !page.Next.IsZero() {
		t.Fatalf("the next page: %d runs, next %s, %v", len(page.Runs), page.Next, err)
	}
	if page, err := s.Runs(ctx, job.RunQuery{Worker: "w", Until: at}); err != nil || len(page.Runs) != 1 {
		t.Fatalf("narrowed by time: %d runs, %v", len(page.Runs), err)
	}
}
