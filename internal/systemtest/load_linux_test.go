package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

// load is the clients of a trial: they submit, repeat, cancel and read until they are told to stop, whether the server is
// there or not.
type load struct {
	t    *testing.T
	dir  string
	url  string
	rec  *recorder
	sdk  *client.Client // repeats until it has an answer
	http *http.Client   // does not
	docs []*job.Document

	mu    sync.Mutex
	known []job.RunID // accepted, the latest last
	keys  []keyed     // used, the latest last
	next  int
}

type keyed struct {
	key  string
	body submission
}

// submission is the body of POST /v1/runs without id and key.
type submission struct {
	Job     string        `json:"job,omitempty"`
	Spec    *job.Document `json:"spec,omitempty"`
	Payload any           `json:"payload,omitempty"`
	Delay   job.Duration  `json:"delay,omitempty"`
}

func newLoad(t *testing.T, dir, url string, rec *recorder, docs []*job.Document) *load {
	l := &load{t: t, dir: dir, url: url, rec: rec, docs: docs, http: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}}
	var err error
	if l.sdk, err = client.New(client.Config{Addresses: []string{url}, AttemptTimeout: 10 * time.Second, RetryFor: time.Minute}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.sdk.Close(); l.http.CloseIdleConnections() })
	return l
}

// run is all clients; it returns when ctx has ended and each has its last answer.
func (l *load) run(ctx context.Context, seed uint64) {
	var wg sync.WaitGroup
	for i := range 6 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		turn := []func(*rand.Rand){l.submitRaw, l.submitRaw, l.submitSDK, l.submitKeyed, l.read, l.edit}[i]
		pause := []time.Duration{200, 200, 200, 200, 200, 3000}[i] * time.Millisecond
		wg.Go(func() {
			for ctx.Err() == nil {
				turn(r)
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(r.Int64N(int64(2 * pause)))):
				}
			}
		})
	}
	wg.Wait()
}

// some makes what a client may ask for: mostly quick, some slow, some later, some of the named job.
func (l *load) some(r *rand.Rand) submission {
	s := submission{Payload: map[string]int{"n": r.IntN(1000)}}
	switch r.IntN(10) {
	case 0, 1:
		s.Job = "manual"
	case 2:
		s.Spec = &job.Document{Exec: command(l.dir, "-for", "3s"), OnWorkerLost: job.FailOnLoss}
	case 3:
		s.Spec = &job.Document{Exec: command(l.dir, "-fail", "2"), Retry: job.Retry{MaxAttempts: 2, Initial: job.Duration(time.Second)}}
	case 4, 5:
		s.Spec = &job.Document{Exec: command(l.dir, "-for", "2s")}
	default:
		s.Spec = &job.Document{Exec: command(l.dir)}
	}
	if r.IntN(5) == 0 {
		s.Delay = job.Duration(time.Duration(r.IntN(5000)) * time.Millisecond)
	}
	return s
}

// submitRaw asks once, so that it learns of refusals and unknown ends. After an unknown one it sometimes asks again with
// the same id, as a user would.
func (l *load) submitRaw(r *rand.Rand) {
	s, id := l.some(r), client.NewRunID()
	for range 3 {
		if l.submit(s, id, "") != checker.Unknown || r.IntN(3) == 0 {
			break
		}
	}
	l.maybeCancel(r, id)
}

func (l *load) submitSDK(r *rand.Rand) {
	s, id := l.some(r), client.NewRunID()
	op := l.asked(s, id, "")
	run, err := l.sdk.Submit(context.Background(), client.Submission{Job: s.Job, Spec: s.Spec, Payload: s.Payload, Delay: s.Delay.Std(), ID: id})
	// The client has asked more than once, so what it reports in the end is no word on the first time.
	outcome := checker.Unknown
	if err == nil {
		outcome = checker.OK
	} else {
		l.t.Logf("the client gave up on a submission: %v", err)
	}
	l.answered(op, outcome, run, err)
	l.maybeCancel(r, id)
}

// submitKeyed uses a new key, or a known one with the same body, or with another.
func (l *load) submitKeyed(r *rand.Rand) {
	l.mu.Lock()
	l.next++
	k := keyed{fmt.Sprintf("order-%d", l.next), l.some(r)}
	if n := len(l.keys); n > 0 && r.IntN(2) == 0 {
		k = l.keys[n-1-r.IntN(min(n, 20))]
		if r.IntN(5) == 0 {
			k.body.Payload = "another"
		}
	} else {
		l.keys = append(l.keys, k)
	}
	l.mu.Unlock()
	// Two at once, as two callers that do not know of each other.
	var wg sync.WaitGroup
	for range 1 + r.IntN(2) {
		wg.Go(func() { l.submit(k.body, client.NewRunID(), k.key) })
	}
	wg.Wait()
}

// submit is one request.
func (l *load) submit(s submission, id job.RunID, key string) checker.Outcome {
	op := l.asked(s, id, key)
	body, _ := json.Marshal(struct {
		submission
		ID  job.RunID `json:"id"`
		Key string    `json:"idempotency_key,omitempty"`
	}{s, id, key})
	var run job.Run
	outcome, err := l.post("/v1/runs", body, &run)
	return l.answered(op, outcome, &run, err)
}

func (l *load) asked(s submission, id job.RunID, key string) checker.Op {
	body, err := json.Marshal(s)
	if err != nil {
		l.t.Error(err)
	}
	return checker.Op{Kind: checker.Submit, Asked: now(), ID: id, Key: key, Body: body}
}

func (l *load) answered(op checker.Op, outcome checker.Outcome, run *job.Run, err error) checker.Outcome {
	op.Done, op.Outcome = now(), outcome
	if err != nil {
		op.Problem = err.Error()
	}
	if outcome == checker.OK {
		op.Answer = run
		if op.Kind == checker.Submit {
			l.mu.Lock()
			l.known = append(l.known, run.ID)
			l.mu.Unlock()
		}
	}
	l.rec.op(op)
	return outcome
}

// post sends one request, once, and says what its end means.
func (l *load) post(path string, body []byte, out any) (checker.Outcome, error) {
	resp, err := l.http.Post(l.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return checker.Refused, err
		}
		return checker.Unknown, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return checker.Unknown, err
	case resp.StatusCode < 300:
		if err := json.Unmarshal(data, out); err != nil {
			l.t.Errorf("POST %s: answer %q: %v", path, data, err)
		}
		return checker.OK, nil
	}
	var problem struct {
		Code job.Code `json:"code"`
	}
	if err := json.Unmarshal(data, &problem); err != nil || problem.Code == "" {
		l.t.Errorf("POST %s: status %d without a problem document: %q", path, resp.StatusCode, data)
	}
	if problem.Code == job.Internal {
		l.t.Errorf("POST %s: %s", path, data)
	}
	if problem.Code == job.Unknown || problem.Code == job.Internal {
		return checker.Unknown, errors.New(string(data))
	}
	return checker.Refused, errors.New(string(data))
}

// maybeCancel cancels some, at once or later.
func (l *load) maybeCancel(r *rand.Rand, id job.RunID) {
	l.mu.Lock()
	if n := len(l.known); n > 0 && r.IntN(2) == 0 {
		id = l.known[n-1-r.IntN(min(n, 30))]
	}
	l.mu.Unlock()
	if r.IntN(6) != 0 {
		return
	}
	op := checker.Op{Kind: checker.Cancel, Asked: now(), ID: id}
	var run job.Run
	outcome, err := l.post("/v1/runs/"+id.String()+"/cancel", nil, &run)
	l.answered(op, outcome, &run, err)
}

// read looks at a run that was accepted; what it sees ended must stay so.
func (l *load) read(r *rand.Rand) {
	l.mu.Lock()
	var id job.RunID
	if n := len(l.known); n > 0 {
		id = l.known[n-1-r.IntN(min(n, 60))]
	}
	l.mu.Unlock()
	if id.IsZero() {
		return
	}
	op := checker.Op{Kind: checker.Read, Asked: now(), ID: id}
	run, err := l.sdk.Run(context.Background(), id)
	if err != nil {
		// It was accepted, so a node that answers must know it.
		l.t.Errorf("read run %s, which was accepted: %v", id, err)
		return
	}
	l.answered(op, checker.OK, run, nil)
}

// edit makes a new version of a job, so that ticks have more than one owner.
func (l *load) edit(r *rand.Rand) {
	d := l.docs[r.IntN(len(l.docs))]
	p := r.IntN(10)
	d.Priority = &p
	put(context.Background(), l.t, l.sdk, l.rec, d)
}
