package systemtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
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
	rec  *recorder
	docs []*job.Document

	nodes []endpoint
	sdk   *client.Client // of all nodes; repeats until it has an answer
	http  *http.Client   // of the one that is asked; does not repeat
	token string

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

	Labels map[string]string `json:"labels,omitempty"`
}

// endpoint is a node's API.
type endpoint struct{ name, url string }

// newLoad makes clients of all nodes. ca is what their certificates come from, nil without TLS.
func newLoad(t *testing.T, dir string, nodes []endpoint, ca *tls.Config, token string, rec *recorder, docs []*job.Document) *load {
	l := &load{t: t, dir: dir, nodes: nodes, token: token, rec: rec, docs: docs}
	l.http = &http.Client{Transport: &http.Transport{TLSClientConfig: ca}, Timeout: 10 * time.Second}
	patient := &http.Client{Transport: &http.Transport{TLSClientConfig: ca, MaxIdleConnsPerHost: 16}}
	c := client.Config{Token: token, HTTPClient: patient, AttemptTimeout: 10 * time.Second, RetryFor: time.Minute}
	for _, n := range nodes {
		c.Addresses = append(c.Addresses, n.url)
	}
	if len(nodes) > 1 { // another one may answer
		l.http.Timeout, c.AttemptTimeout = 6*time.Second, 4*time.Second
	}
	var err error
	if l.sdk, err = client.New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { patient.CloseIdleConnections(); l.http.CloseIdleConnections() })
	return l
}

// run is all clients; it returns when ctx has ended and each has its last answer.
func (l *load) run(ctx context.Context, seed uint64) {
	var wg sync.WaitGroup
	for i := range 7 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		turn := []func(*rand.Rand){l.submitRaw, l.submitRaw, l.submitSDK, l.submitKeyed, l.read, l.edit, l.submitBad}[i]
		pause := []time.Duration{200, 200, 200, 200, 200, 3000, 1500}[i] * time.Millisecond
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
	l.answered(&op, outcome, run, err)
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
	op := l.submitOp(s, id, key)
	return op.Outcome
}

// submitOp is one request, and all that became of it.
func (l *load) submitOp(s submission, id job.RunID, key string) checker.Op {
	return l.submitTo(l.http, l.nodes[rand.IntN(len(l.nodes))], s, id, key)
}

// submitTo is one request to a certain node.
func (l *load) submitTo(by *http.Client, node endpoint, s submission, id job.RunID, key string) checker.Op {
	op := l.asked(s, id, key)
	body, _ := json.Marshal(struct {
		submission
		ID  job.RunID `json:"id"`
		Key string    `json:"idempotency_key,omitempty"`
	}{s, id, key})
	var run job.Run
	outcome, err := l.askNode(by, node, &op, http.MethodPost, "/v1/runs", body, &run)
	l.answered(&op, outcome, &run, err)
	return op
}

// submitTogether has many callers submit the same under one key, and counts of which run they are told.
func (l *load) submitTogether(s submission, key string, callers int) map[job.RunID]int {
	told := make(chan checker.Op, callers)
	begin := make(chan struct{})
	for range callers {
		go func() {
			<-begin
			told <- l.submitOp(s, client.NewRunID(), key)
		}()
	}
	close(begin)
	ids := map[job.RunID]int{}
	others := map[string]int{}
	for range callers {
		if op := <-told; op.Outcome == checker.OK {
			ids[op.Answer.ID]++
		} else {
			problem, _, _ := strings.Cut(op.Problem, `"request_id"`) // each has another
			others[fmt.Sprintf("%s: %d %s", op.Outcome, op.Status, problem)]++
		}
	}
	for answer, n := range others {
		l.t.Errorf("%d of %d submissions with one key were answered %s", n, callers, answer)
	}
	return ids
}

// bad is what must be refused, with the field named.
var bad = []string{
	`"spec": {"exec": {"command": []}}`,
	`"spec": {"exec": {"command": ["x"]}, "priority": 77}`,
	`"spec": {"exec": {"command": ["x"]}, "retry": {"max_attempts": -1}}`,
	`"spec": {"exec": {"command": ["x"]}, "schedule": {"cron": "TZ="}}`,
	`"spec": {"exec": {"command": ["x"]}, "timeout": "long"}`,
	`"job": "../manual"`,
	`"job": "manual", "delay": "-1h"`,
	`"job": "manual", "surprise": 1`,
}

// submitBad asks for what cannot be: it must be refused, and disturb nobody (D5).
func (l *load) submitBad(r *rand.Rand) {
	id := client.NewRunID()
	body := []byte(fmt.Sprintf(`{"id": %q, %s}`, id, bad[r.IntN(len(bad))]))
	op := checker.Op{Kind: checker.Submit, Bad: true, Asked: now(), ID: id, Body: body}
	var run job.Run
	outcome, err := l.post(&op, "/v1/runs", body, &run)
	l.answered(&op, outcome, &run, err)
}

func (l *load) asked(s submission, id job.RunID, key string) checker.Op {
	body, err := json.Marshal(s)
	if err != nil {
		l.t.Error(err)
	}
	return checker.Op{Kind: checker.Submit, Asked: now(), ID: id, Key: key, Body: body}
}

func (l *load) answered(op *checker.Op, outcome checker.Outcome, run *job.Run, err error) checker.Outcome {
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
	l.rec.op(*op)
	return outcome
}

// post sends one request to some node, once, and says what its end means.
func (l *load) post(op *checker.Op, path string, body []byte, out any) (checker.Outcome, error) {
	return l.ask(op, http.MethodPost, path, body, out)
}

func (l *load) ask(op *checker.Op, method, path string, body []byte, out any) (checker.Outcome, error) {
	return l.askNode(l.http, l.nodes[rand.IntN(len(l.nodes))], op, method, path, body, out)
}

// askNode sends one request to a certain node.
func (l *load) askNode(by *http.Client, node endpoint, op *checker.Op, method, path string, body []byte, out any) (checker.Outcome, error) {
	op.Node = node.name
	request, err := http.NewRequest(method, node.url+path, bytes.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return checker.Refused, err
	}
	request.Header.Set("Content-Type", "application/json")
	if l.token != "" {
		request.Header.Set("Authorization", "Bearer "+l.token)
	}
	resp, err := by.Do(request)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return checker.Refused, err
		}
		return checker.Unknown, err
	}
	defer resp.Body.Close()
	op.Status = resp.StatusCode
	data, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return checker.Unknown, err
	case resp.StatusCode < 300:
		if err := json.Unmarshal(data, out); err != nil {
			l.t.Errorf("%s %s: answer %q: %v", method, path, data, err)
		}
		return checker.OK, nil
	}
	var problem struct {
		Code   job.Code `json:"code"`
		Field  string   `json:"field"`
		Reason string   `json:"reason"`
	}
	if err := json.Unmarshal(data, &problem); err != nil || problem.Code == "" {
		l.t.Errorf("%s %s: status %d without a problem document: %q", method, path, resp.StatusCode, data)
	}
	op.Field, op.Reason = problem.Field, problem.Reason
	if problem.Code == job.Internal {
		l.t.Errorf("%s %s: %s", method, path, data)
	}
	if problem.Code == job.Unknown || problem.Code == job.Internal {
		return checker.Unknown, errors.New(string(data))
	}
	if op.Bad && problem.Code == job.Unavailable {
		op.Status = 0 // it was not looked at
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
	outcome, err := l.post(&op, "/v1/runs/"+id.String()+"/cancel", nil, &run)
	l.answered(&op, outcome, &run, err)
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
	var run job.Run
	outcome, err := l.ask(&op, http.MethodGet, "/v1/runs/"+id.String(), nil, &run)
	if outcome != checker.OK && op.Status != http.StatusNotFound {
		return // nobody answered; what a read that failed says is nothing
	}
	// It was accepted, so a node that answers must know it: the checker sees to that.
	l.answered(&op, outcome, &run, err)
}

// edit makes a new version of a job, so that ticks have more than one owner.
func (l *load) edit(r *rand.Rand) {
	d := l.docs[r.IntN(len(l.docs))]
	p := r.IntN(10)
	d.Priority = &p
	put(context.Background(), l.t, l.sdk, l.rec, d)
}
