package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// canned is a node that always says the same, some of it hostile.
func canned(t *testing.T) world {
	t.Helper()
	at := func(d time.Duration) job.Instant { return job.At(noon.Add(d)) }
	id := func(n byte) job.RunID { return job.MakeRunID(noon.Add(-time.Hour), [10]byte{9: n}) }
	jobID := job.MakeJobID(noon, [10]byte{1})
	document := func(text string) *job.Document {
		d, err := job.ParseDocument([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	nightly := document("name: nightly\ndescription: Yesterday's figures 報告\nlabels: {team: billing}\nschedule: {cron: '30 2 * * *', time_zone: Europe/Berlin}\n" +
		"retry: {max_attempts: 3}\nexec: {command: [/usr/bin/report, --for, 'the day before']}\n")
	check := document("name: check\nschedule: {cron: '* * * * *'}\nhttp: {method: GET, url: 'https://example.com/health'}\n")
	hook := document("name: hook\nhandler: {name: resize}\n")
	jobs := []*job.Job{
		{ID: jobID, Namespace: "default", Name: "check", Version: 12, Spec: check, Paused: true, Effective: true, UpdatedAt: at(-48 * time.Hour)},
		{ID: jobID, Namespace: "default", Name: "hook", Version: 1, Spec: hook, Effective: true, UpdatedAt: at(-time.Minute)},
		{ID: jobID, Namespace: "default", Name: "nightly", Version: 3, Spec: nightly, Effective: true, NextTickAt: at(13*time.Hour + 30*time.Minute), UpdatedAt: at(-26 * time.Hour)},
	}
	evil := "it broke \x1b]0;owned\x07\x1b[2Jhere\nand \u202ethere"
	runs := []*job.Run{
		{ID: id(4), Namespace: "default", Job: "nightly", JobVersion: 3, Trigger: job.ByTick, State: job.Running, Priority: 5, Attempt: 1, Worker: "東京-1",
			CreatedAt: at(-90 * time.Second), StartedAt: at(-80 * time.Second), ScheduledAt: at(-90 * time.Second), Home: job.HomeQuorum},
		{ID: id(3), Namespace: "default", Job: "nightly", JobVersion: 3, Trigger: job.ByAPI, State: job.Failed, Reason: job.ExitCode, Priority: 9, Attempt: 3, Worker: "w\x1b[31m1",
			CreatedAt: at(-time.Hour), StartedAt: at(-50 * time.Minute), FinishedAt: at(-50*time.Minute + 1500*time.Millisecond), Error: evil, ExitCode: 7,
			Labels: map[string]string{"a": "1", "b": "x\x1b[0my"}, Payload: json.RawMessage(`{"day":"monday"}`), Home: job.HomeQuorum},
		{ID: id(2), Namespace: "default", Trigger: job.ByAPI, State: job.Scheduled, Reason: job.Delayed, Priority: 5, CreatedAt: at(-time.Minute), ReadyAt: at(time.Hour), Home: job.HomeLocal},
		{ID: id(1), Namespace: "default", Trigger: job.ByRetry, RetryOf: id(3), State: job.Succeeded, Priority: 5, Attempt: 1, Worker: "w1", CreatedAt: at(-30 * time.Hour),
			StartedAt: at(-30 * time.Hour), FinishedAt: at(-30*time.Hour + 42*time.Millisecond), Result: json.RawMessage(`{"n":42}`), Home: job.HomeQuorum},
	}
	items := func(v any) map[string]any { return map[string]any{"items": v} }
	answers := map[string]any{
		"/v1/jobs": items(jobs), "/v1/jobs/nightly": jobs[2],
		"/v1/jobs/nightly/versions": items([]job.Version{{JobID: jobID, Version: 3, Spec: nightly, CreatedAt: at(-26 * time.Hour), From: at(-26 * time.Hour)}}),
		"/v1/jobs/nightly/next":     client.NextTicks{Items: []job.Instant{at(13*time.Hour + 30*time.Minute)}, Cron: "30 2 * * *", TimeZone: "Europe/Berlin", Paused: true},
		"/v1/jobs/nightly/ticks": items([]tickRow{
			{Tick: job.Tick{ScheduledAt: at(-90 * time.Second), DecidedAt: at(-90*time.Second + 3*time.Millisecond), Disposition: job.TickRun, Version: 3}, RunID: id(4)},
			{Tick: job.Tick{ScheduledAt: at(-72 * time.Hour), Until: at(-24 * time.Hour), Count: 3, DecidedAt: at(-23 * time.Hour), Disposition: job.TickMissed, Reason: job.StartDeadline, Version: 2}},
		}),
		"/v1/jobs/nightly/verify": client.Verification{Since: at(-24 * time.Hour), Until: at(0), Expected: 2, Decided: 1, Gaps: []job.Instant{at(-10 * time.Hour)}},
		"/v1/runs":                items(runs),
		"/v1/runs/attempts":       nil,
		"/v1/workers": items([]job.Worker{
			{Name: "w\x1b[31m1", State: job.WorkerReady, Slots: 8, SlotsUsed: 3, Executors: []string{"exec", "http"}, Node: "node-1", Version: "v1.0.0", ConnectedAt: at(-time.Hour), Labels: map[string]string{"region": "eu"}},
			{Name: "東京-1", State: job.WorkerGone, Slots: 1, Handlers: []string{"resize"}, Executors: []string{"handler"}, ConnectedAt: at(-50 * time.Hour)},
		}),
		"/v1/cluster": client.ClusterStatus{ID: "b5ba4257", Node: "node-1", Version: "v1.0.0", Leader: "node-1", Epoch: 4, Store: "embedded", Maintenance: true,
			Usage: &job.Usage{Runs: 12, LiveRuns: 2, Bytes: 123456, MaxBytes: 512 << 20},
			Term:  9, CommitIndex: 120_345,
			Quorum: client.Quorum{Healthy: true, Voters: 3, Answering: 2, Summary: "healthy: 2 of 3 voters answer; tolerates no further failure", Advice: []string{"start node-2 again", "set the clock of node-3"}},
			Nodes: []client.NodeStatus{
				{Name: "node-1", ID: "1111", Role: "leader", API: "https://10.0.0.1:8080", Raft: "10.0.0.1:8081", Version: "v1.0.0", Healthy: true, LastSeenAt: at(0), AppliedIndex: 120_345, Streams: 17, ClockOffsetMS: 3},
				{Name: "node-2", ID: "2222", Role: "voter", LastSeenAt: at(-time.Hour)},
				{Name: "node-3", ID: "3333", Role: "voter", API: "https://10.0.0.3:8080", Raft: "10.0.0.3:8081", Version: "v1.0.0", Healthy: true, LastSeenAt: at(-time.Second), AppliedIndex: 120_300, Behind: 45, ClockOffsetMS: -12},
			}},
		"/v1/cluster/verify": client.ReplicaCheck{Index: 120_345, Equal: true, Replicas: []client.ReplicaDigest{
			{Name: "node-1", Digest: strings.Repeat("ab", 32)}, {Name: "node-2", Error: "it does not answer" + evil}, {Name: "node-3", Digest: strings.Repeat("ab", 32)}}},
		"/v1/cluster/transfer":     struct{}{},
		"/v1/cluster/nodes/node-2": struct{}{},
		"/v1/credentials": items([]job.Credential{
			{ID: "c0ffee", Name: "admin", Role: job.RoleAdmin, CreatedAt: at(-48 * time.Hour)},
			{ID: "beef01", Name: "ci", Role: job.RoleSubmitter, Namespaces: []string{"billing", "ops"}, CreatedAt: at(-time.Hour), ExpiresAt: at(24 * time.Hour)},
			{ID: "dead02", Name: "old", Role: job.RoleViewer, CreatedAt: at(-time.Hour), ExpiresAt: at(-time.Minute)},
		}),
		"/v1/credentials/beef01": struct{}{},
	}
	for i, r := range runs {
		path := "/v1/runs/" + r.ID.String()
		answers[path] = r
		answers[path+"/explain"] = client.Explanation{RunID: r.ID, State: r.State, Reason: r.Reason, Explanation: []string{"It is so.", "Because " + evil}}
		answers[path+"/attempts"] = items([]job.Attempt{{RunID: r.ID, Attempt: 1, Worker: r.Worker, State: job.Failed, Reason: job.TimedOut, Error: evil, StartedAt: at(-time.Duration(i+1) * time.Hour), FinishedAt: at(-time.Duration(i+1)*time.Hour + time.Minute)}})
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok || a == nil {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"code":"not_found","detail":"there is no %s"}`, r.URL.Path)
			return
		}
		if err := json.NewEncoder(w).Encode(a); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return world{now: noon, env: []string{"MUSTER_ADDRESS=" + s.URL}}
}

// What commands show is kept as it reads. The hostile texts in it must have lost what moves a terminal.
func TestTables(t *testing.T) {
	t.Parallel()
	w := canned(t)
	run := func(n int) string {
		return job.MakeRunID(noon.Add(-time.Hour), [10]byte{9: byte(n)}).String()
	}
	var all strings.Builder
	for _, line := range []string{
		"job list", "job list -o name", "job show nightly", "job show nightly --document", "job next nightly", "job ticks nightly", "job verify nightly", "job versions nightly",
		"run list", "run list --limit 2", "run list -o name", "run show " + run(3), "run show " + run(2), "run show " + run(1) + " -o json", "run show " + run(1) + " -o yaml",
		"run explain " + run(3), "run attempts " + run(4), "worker list", "worker list -o name", "cluster status", "cluster status -o json", "cluster members", "cluster members -o name", "cluster verify", "cluster verify -o name", "cluster transfer", "cluster transfer node-1 -o json",
		"cluster remove node-2", "cluster remove node-2 --yes", "cluster remove node-2 -y -o json", "credential list", "credential list -o name", "credential revoke ci", "credential revoke beef01 nobody", "run show " + run(9), "job show nightly --document --version 2",
	} {
		r := w.muster(t, strings.Fields(line)...)
		fmt.Fprintf(&all, "$ muster %s\n%s", line, r.out)
		for l := range strings.Lines(r.err) {
			all.WriteString("stderr: " + l)
		}
		if r.code != 0 {
			fmt.Fprintf(&all, "exit code %d\n", r.code)
		}
		all.WriteByte('\n')
		if strings.ContainsAny(r.out+r.err, "\x1b\a\u202e") {
			t.Errorf("%s lets through what moves a terminal: %q", line, r.out+r.err)
		}
	}
	golden(t, "tables.txt", all.String())
}

// What is exact is the API's own words, for every list.
func TestJSONIsExact(t *testing.T) {
	t.Parallel()
	w := canned(t)
	for _, args := range []string{"job list", "run list", "worker list", "job ticks nightly", "job versions nightly", "cluster members", "credential list"} {
		var v struct {
			Items []map[string]any `json:"items"`
		}
		if err := json.Unmarshal([]byte(w.must(t, append(strings.Fields(args), "-o", "json")...)), &v); err != nil || len(v.Items) == 0 {
			t.Errorf("%s: %v, %d items", args, err, len(v.Items))
		}
	}
	var r job.Run
	if err := json.Unmarshal([]byte(w.must(t, "run", "show", job.MakeRunID(noon.Add(-time.Hour), [10]byte{9: 3}).String(), "-o", "json")), &r); err != nil || !strings.Contains(r.Error, "\x1b]0;owned") {
		t.Errorf("a run: %v, error %q: text must be as it was given", err, r.Error)
	}
}

func TestAsYAML(t *testing.T) {
	t.Parallel()
	type inner struct {
		Z string `json:"z"`
		A string `json:"a"`
	}
	got, err := asYAML(map[string]any{"list": []any{1, 2.5, "3", true, nil, "yes", "a: b\nc", inner{"z", "a"}}, "none": []string{}, "big": uint64(1<<63 + 1)})
	want := "big: 9223372036854775809\nlist:\n  - 1\n  - 2.5\n  - \"3\"\n  - true\n  - null\n  - \"yes\"\n  - |-\n    a: b\n    c\n  - z: z\n    a: a\nnone: []\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}
