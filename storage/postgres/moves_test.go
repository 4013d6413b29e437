package postgres

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// model is a store in memory, in which moves are made one by one with job.Move.Apply.
type model struct {
	runs     map[job.RunID]*job.Run
	attempts map[job.RunID]map[job.Fence]job.Attempt
}

func (m *model) move(mv *job.Move) job.Moved {
	r := m.runs[mv.ID]
	if r == nil {
		return job.Moved{}
	}
	n, ok := mv.Apply(r)
	if ok {
		m.runs[mv.ID] = n
		if a := mv.Ended; a != nil {
			if m.attempts[mv.ID] == nil {
				m.attempts[mv.ID] = map[job.Fence]job.Attempt{}
			}
			m.attempts[mv.ID][a.Fence] = *a
		}
	}
	return job.Moved{Applied: ok, Run: n}
}

// drawMove is any move: a sensible one often enough, so that all paths are walked.
func drawMove(t *rapid.T, ids []job.RunID, at job.Instant) job.Move {
	instant := func(what string) job.Instant {
		return rapid.SampledFrom([]job.Instant{0, at, at + 1_000_000, at - 1}).Draw(t, what)
	}
	number := func(what string) uint32 { return rapid.Uint32Range(0, 3).Draw(t, what) }
	fence := func(what string) job.Fence {
		return rapid.SampledFrom([]job.Fence{0, job.MakeFence(1, 1), job.MakeFence(1, 2), job.MakeFence(1, 3), job.MakeFence(2, 1)}).Draw(t, what)
	}
	m := job.Move{ID: rapid.SampledFrom(ids).Draw(t, "id"), State: job.State(rapid.SampledFrom([]int{1, 2, 3, 4, 4, 5, 6, 7, 8, 9}).Draw(t, "state")),
		Reason: rapid.SampledFrom([]job.Reason{0, job.ExitCode, job.CancelRequested, job.OverlapReplaced}).Draw(t, "reason"),
		Fence:  fence("fence"), Attempt: number("attempt"), Losses: number("losses"), Failures: number("failures"),
		Worker: rapid.SampledFrom([]string{"", "w1", "w2"}).Draw(t, "worker"), StartedAt: instant("started"), FinishedAt: instant("finished"),
		Error: rapid.SampledFrom([]string{"", "exit 1", "é"}).Draw(t, "error"), ExitCode: rapid.Int32Range(-1, 2).Draw(t, "exit"),
		Result: rapid.SampledFrom([]json.RawMessage{nil, json.RawMessage(`{"ok":true}`)}).Draw(t, "result")}
	if rapid.Bool().Draw(t, "queues") {
		m.ReadyAt, m.QueuedAt = instant("ready"), instant("queued")
	}
	if rapid.IntRange(0, 3).Draw(t, "guarded") == 0 {
		f := fence("if")
		m.IfFence = &f
	}
	if rapid.IntRange(0, 2).Draw(t, "goes on") == 0 {
		m.Ended = &job.Attempt{RunID: m.ID, Fence: m.Fence, Attempt: m.Attempt, Worker: m.Worker, StartedAt: m.StartedAt,
			FinishedAt: m.FinishedAt, State: job.Failed, Reason: m.Reason, Error: m.Error, ExitCode: m.ExitCode}
	}
	return m
}

// What batches of any moves make of a store is what job.Move.Apply makes of rows, one move after the other: in the rows, in
// the attempts that are kept, and in the answers.
func TestMovesAreApply(t *testing.T) {
	t.Parallel()
	url := database(t)
	s, c := openAt(t, url), connect(t, url)
	raise(t, s, 1)
	sawFast, sawSlow := false, false
	rapid.Check(t, func(rt *rapid.T) {
		at := nowMs()
		m := &model{runs: map[job.RunID]*job.Run{}, attempts: map[job.RunID]map[job.Fence]job.Attempt{}}
		var births []*job.Run
		ids := []job.RunID{randomID(at)} // of no run
		for range rapid.IntRange(1, 6).Draw(rt, "runs") {
			r := aRun(at, func(r *job.Run) {
				r.Labels, r.Payload = map[string]string{"a": "b"}, json.RawMessage(`1`)
				if rapid.Bool().Draw(rt, "of a job") {
					r.JobID, r.Job, r.JobVersion, r.Spec = job.JobID(randomID(at)), "a", 3, nil
				}
			})
			births, ids = append(births, r), append(ids, r.ID)
			m.runs[r.ID] = copyOf(r)
		}
		submit(t, s, births...)
		for range rapid.IntRange(1, 4).Draw(rt, "batches") {
			if rapid.IntRange(0, 2).Draw(rt, "cancels") == 0 {
				c := job.CancelIntent{ID: rapid.SampledFrom(ids[1:]).Draw(rt, "cancelled"), At: at + 5,
					Reason: rapid.SampledFrom([]job.Reason{0, job.CancelRequested, job.OverlapReplaced}).Draw(rt, "why")}
				if _, err := s.Cancel(t.Context(), []job.CancelIntent{c}); err != nil {
					rt.Fatal(err)
				}
				m.runs[c.ID] = withIntent(m.runs[c.ID], c)
			}
			var moves []job.Move
			for range rapid.IntRange(1, 8).Draw(rt, "moves") {
				moves = append(moves, drawMove(rt, ids, at))
			}
			ends, rest := sortMoves(moves)
			sawFast, sawSlow = sawFast || len(ends) > 0, sawSlow || len(rest) > 0
			got, err := s.Move(t.Context(), 1, moves)
			if err != nil {
				rt.Fatal(err)
			}
			for i := range moves {
				want := m.move(&moves[i])
				if want.Applied && slices.Contains(ends, i) {
					brief := *want.Run
					brief.Payload, brief.Spec, brief.Labels = nil, nil, nil
					want.Run = &brief
				}
				if d := cmp.Diff(want, got[i]); d != "" {
					rt.Fatalf("answer to %+v (-want +got):\n%s", moves[i], d)
				}
			}
			for _, id := range ids[1:] {
				if d := cmp.Diff(m.runs[id], load(t, s, id)[0]); d != "" {
					rt.Fatalf("row after %+v (-want +got):\n%s", moves, d)
				}
				if order := ask[int64](t, c, "SELECT lane_order FROM muster.runs WHERE id = $1", id[:]); order != m.runs[id].Entry().Order() {
					rt.Fatalf("the row stands at %d in its lane, and the run at %d", order, m.runs[id].Entry().Order())
				}
				want := []job.Attempt{}
				for _, a := range m.attempts[id] {
					want = append(want, a)
				}
				slices.SortFunc(want, func(x, y job.Attempt) int { return int(int64(x.Fence) - int64(y.Fence)) })
				kept, err := s.Attempts(t.Context(), id)
				if d := cmp.Diff(want, kept, cmpopts.EquateEmpty()); err != nil || d != "" {
					rt.Fatalf("attempts, %v (-want +got):\n%s", err, d)
				}
			}
		}
	})
	if !sawFast || !sawSlow {
		t.Errorf("a path was never walked: fast %v, slow %v", sawFast, sawSlow)
	}
}

// A run that is given back over and over keeps the newest attempts only.
func TestAttemptsAreBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	raise(t, s, 1)
	r := aRun(nowMs())
	submit(t, s, r)
	const tries = keptAttempts + 30
	for n := uint32(1); n <= tries; n++ {
		m := job.Move{ID: r.ID, State: job.Queued, Fence: job.MakeFence(1, n), Attempt: n, QueuedAt: nowMs(), ReadyAt: nowMs(),
			Ended: &job.Attempt{RunID: r.ID, Fence: job.MakeFence(1, n), Attempt: n, Worker: "w", State: job.Cancelled}}
		if moved, err := s.Move(t.Context(), 1, []job.Move{m}); err != nil || !moved[0].Applied {
			t.Fatalf("try %d: %+v, %v", n, moved, err)
		}
	}
	kept, err := s.Attempts(t.Context(), r.ID)
	if err != nil || len(kept) != keptAttempts || kept[0].Attempt != tries-keptAttempts+1 {
		t.Fatalf("%d attempts are kept, %v", len(kept), err)
	}
}

// What Postgres cannot hold fails the call, and whoever splits the batch finds it (S12).
func TestMoveOfPoison(t *testing.T) {
	t.Parallel()
	s := open(t)
	raise(t, s, 1)
	for name, change := range map[string]func(*job.Move){
		"fast": func(m *job.Move) { m.Error = "a\x00" },
		"slow": func(m *job.Move) { m.Worker, m.State = "\xff", job.Queued },
		"time": func(m *job.Move) { m.FinishedAt = -1 << 62 },
		"none": func(m *job.Move) { m.State = 77 },
	} {
		good, bad := aRun(nowMs()), aRun(nowMs())
		submit(t, s, good, bad)
		moves := []job.Move{{ID: good.ID, State: job.Succeeded, Fence: 1<<32 | 1, FinishedAt: nowMs()}, {ID: bad.ID, State: job.Failed, Fence: 1<<32 | 2, FinishedAt: nowMs()}}
		change(&moves[1])
		_, err := s.Move(t.Context(), 1, moves)
		code(t, name, err, job.Invalid)
		if _, err := s.Move(t.Context(), 1, moves[:1]); err != nil {
			t.Fatal(err)
		}
		_, err = s.Move(t.Context(), 1, moves[1:])
		code(t, name, err, job.Invalid)
		if got := load(t, s, good.ID, bad.ID); got[0].State != job.Succeeded || got[1].State != job.Queued {
			t.Fatalf("%s: the runs are %s and %s", name, got[0].State, got[1].State)
		}
	}
}

// With an outbox, each birth and each move leaves an event in its transaction, a run's in order; without, there is none.
func TestOutbox(t *testing.T) {
	t.Parallel()
	for _, on := range []bool{true, false} {
		url := database(t)
		s := openAt(t, url, func(c *Config) { c.Outbox = on })
		raise(t, s, 1)
		j := s.mustPut(t, document("a"))
		r, k := aRun(nowMs()), aRun(nowMs(), keyed("k", "body"))
		submit(t, s, r, k)
		submit(t, s, r, aRun(nowMs(), keyed("k", "body"))) // births of nothing new
		tick := job.Tick{JobID: j.ID, Version: 1, ScheduledAt: nowMs(), Disposition: job.TickRun, DecidedAt: nowMs()}
		for range 2 {
			if _, err := s.StoreTicks(t.Context(), 1, []job.Tick{tick}); err != nil {
				t.Fatal(err)
			}
		}
		again := job.Move{ID: r.ID, State: job.Scheduled, Reason: job.RetryBackoff, Fence: 1<<32 | 1, Attempt: 1, ReadyAt: nowMs(), Error: "exit 1",
			Ended: &job.Attempt{RunID: r.ID, Fence: 1<<32 | 1, Attempt: 1, State: job.Failed}}
		end := job.Move{ID: r.ID, State: job.Succeeded, Fence: 1<<32 | 2, Attempt: 2, FinishedAt: nowMs(), Result: json.RawMessage(`"big"`)}
		for _, batch := range [][]job.Move{{again}, {end, {ID: k.ID, State: job.Failed, Fence: 1<<32 | 3, FinishedAt: nowMs()}}, {end}} {
			if _, err := s.Move(t.Context(), 1, batch); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := connect(t, url).Query(t.Context(), "SELECT run_id, kind, body FROM muster.outbox ORDER BY seq")
		if err != nil {
			t.Fatal(err)
		}
		events := map[job.RunID][]string{}
		for rows.Next() {
			var id [16]byte
			var kind int
			var body string
			if err := rows.Scan(&id, &kind, &body); err != nil {
				t.Fatal(err)
			}
			var e struct {
				ID, State string
				Attempt   int
				Result    any
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.ID != job.RunID(id).String() || e.Result != nil {
				t.Errorf("event %s: %v", body, err)
			}
			events[id] = append(events[id], fmt.Sprint(kind, " ", e.State, " ", e.Attempt))
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
		want := map[job.RunID][]string{}
		if on {
			want[r.ID] = []string{"1 queued 0", "2 scheduled 1", "2 succeeded 2"}
			want[k.ID] = []string{"1 queued 0", "2 failed 0"}
			want[tick.RunID()] = []string{"1 queued 0"}
		}
		if d := cmp.Diff(want, events); d != "" {
			t.Errorf("outbox %v (-want +got):\n%s", on, d)
		}
	}
}
