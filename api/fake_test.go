package api

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// node is a whole node behind the API, in memory: small, but real enough that a job that was put can be read, and a run
// that was submitted twice is one. It counts its writes, so that a test can say that nothing was written.
type node struct {
	mu       sync.Mutex
	jobs     map[string]*job.Job // by namespace/name
	versions map[job.JobID][]*job.Version
	runs     map[job.RunID]*job.Run
	keys     map[string]job.RunID
	attempts map[job.RunID][]job.Attempt
	ticks    []job.Tick
	marks    map[job.JobID]job.Mark
	unstored []job.Tick
	paused   map[job.JobID]bool
	grants   map[job.RunID]job.Grant
	workers  map[string]*job.Worker
	output   map[job.RunID][]chunkOf
	maintain bool
	writes   int
	maxScan  int // rows that one read looks at; 0: all

	nodes       []NodeStatus // beside itself
	credentials []job.Credential

	satisfied map[string]job.Dependency // by dependent/upstream
	beforePut func()                    // between the reading of a job and its change

	born, cancelled []job.RunID

	raftErr, storeErr, leaderErr error // answered while set
	home, rung                   job.Home
	now                          func() time.Time
}

type chunkOf struct {
	attempt uint32
	OutputChunk
}

func newNode() *node {
	return &node{
		jobs: map[string]*job.Job{}, versions: map[job.JobID][]*job.Version{}, runs: map[job.RunID]*job.Run{},
		keys: map[string]job.RunID{}, attempts: map[job.RunID][]job.Attempt{}, marks: map[job.JobID]job.Mark{},
		paused: map[job.JobID]bool{}, grants: map[job.RunID]job.Grant{}, workers: map[string]*job.Worker{},
		output: map[job.RunID][]chunkOf{}, home: job.HomeQuorum, rung: job.HomeQuorum,
		now: func() time.Time { return testNow },
	}
}

// testNow is when most tests happen.
var testNow = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

func (n *node) lock() func() { n.mu.Lock(); return n.mu.Unlock }

func (n *node) PutJob(_ context.Context, p job.PutJob) (*job.Job, error) {
	if n.beforePut != nil {
		n.beforePut()
	}
	defer n.lock()()
	if n.storeErr != nil {
		return nil, n.storeErr
	}
	key := p.Spec.Namespace + "/" + p.Spec.Name
	old := n.jobs[key]
	switch {
	case old != nil && p.NewOnly:
		return nil, job.Errorf(job.Conflict, "exists", "it exists")
	case old == nil && p.IfVersion != 0:
		return nil, job.Errorf(job.NotFound, "no_job", "there is no job %s", p.Spec.Name)
	case old != nil && p.IfVersion != 0 && p.IfVersion != old.Version:
		return nil, job.Errorf(job.Conflict, "version", "the job is at version %d", old.Version)
	case old != nil && job.EqualDocuments(old.Spec, p.Spec):
		return old, nil
	}
	n.writes++
	j := &job.Job{ID: p.ID, Namespace: p.Spec.Namespace, Name: p.Spec.Name, Version: 1, Spec: p.Spec, CreatedAt: p.At, UpdatedAt: p.At}
	if old != nil {
		j.ID, j.Version, j.CreatedAt = old.ID, old.Version+1, old.CreatedAt
	}
	n.jobs[key] = j
	n.versions[j.ID] = append(n.versions[j.ID], &job.Version{JobID: j.ID, Version: j.Version, CreatedAt: p.At, Spec: p.Spec})
	return j, nil
}

func (n *node) DeleteJob(_ context.Context, ns, name string, ifVersion uint64) (*job.Job, error) {
	defer n.lock()()
	j := n.jobs[ns+"/"+name]
	if j == nil {
		return nil, job.Errorf(job.NotFound, "no_job", "there is no job %s", name)
	}
	if ifVersion != 0 && ifVersion != j.Version {
		return nil, job.Errorf(job.Conflict, "version", "the job is at version %d", j.Version)
	}
	var dependents []string
	for _, e := range n.edges(ns, name) {
		if e.Upstream == name {
			dependents = append(dependents, e.Job)
		}
	}
	if len(dependents) > 0 {
		return nil, job.HasDependents(name, dependents, len(dependents))
	}
	n.writes++
	delete(n.jobs, ns+"/"+name)
	return j, nil
}

// edges answers the edges of a job, to its upstreams first. The caller holds the lock.
func (n *node) edges(ns, name string) []job.Dependency {
	var ups, downs []job.Dependency
	for _, j := range n.jobs {
		for _, e := range j.Spec.DependsOn {
			if j.Namespace != ns || j.Name != name && e.Job != name {
				continue
			}
			d := n.satisfied[j.Name+"/"+e.Job]
			d.Job, d.Upstream, d.On = j.Name, e.Job, e.On
			if j.Name == name {
				ups = append(ups, d)
			} else {
				downs = append(downs, d)
			}
		}
	}
	slices.SortFunc(ups, func(x, y job.Dependency) int { return strings.Compare(x.Upstream, y.Upstream) })
	slices.SortFunc(downs, func(x, y job.Dependency) int { return strings.Compare(x.Job, y.Job) })
	return append(ups, downs...)
}

func (n *node) Dependencies(_ context.Context, ns, name string) ([]job.Dependency, error) {
	defer n.lock()()
	return n.edges(ns, name), nil
}

func (n *node) Job(_ context.Context, ns, name string) (*job.Job, error) {
	defer n.lock()()
	if n.storeErr != nil {
		return nil, n.storeErr
	}
	if j := n.jobs[ns+"/"+name]; j != nil {
		return j, nil
	}
	return nil, job.Errorf(job.NotFound, "no_job", "there is no job %s in the namespace %s", name, ns)
}

func (n *node) Jobs(_ context.Context, q job.JobQuery) (p job.JobPage, _ error) {
	defer n.lock()()
	var all []*job.Job
	for _, j := range n.jobs {
		if j.Namespace == q.Namespace && j.Name > q.After {
			all = append(all, j)
		}
	}
	slices.SortFunc(all, func(x, y *job.Job) int { return strings.Compare(x.Name, y.Name) })
	for i, j := range all {
		if len(p.Jobs) == q.Limit || n.maxScan > 0 && i == n.maxScan {
			p.Next = all[i-1].Name
			break
		}
		if hasLabels(j.Spec.Labels, q.Labels) {
			p.Jobs = append(p.Jobs, j)
		}
	}
	return p, nil
}

func (n *node) Version(_ context.Context, id job.JobID, version uint64) (*job.Version, error) {
	defer n.lock()()
	for _, v := range n.versions[id] {
		if v.Version == version {
			return v, nil
		}
	}
	return nil, job.Errorf(job.NotFound, "no_version", "there is no such version")
}

func (n *node) Versions(ctx context.Context, ns, name string, limit int) ([]*job.Version, error) {
	j, err := n.Job(ctx, ns, name)
	if err != nil {
		return nil, err
	}
	defer n.lock()()
	all := slices.Clone(n.versions[j.ID])
	slices.Reverse(all)
	return all[:min(len(all), limit)], nil
}

func (n *node) Submit(_ context.Context, runs []*job.Run) ([]job.Receipt, error) {
	defer n.lock()()
	if n.storeErr != nil {
		return nil, n.storeErr
	}
	receipts := make([]job.Receipt, len(runs))
	for i, r := range runs {
		rc := &receipts[i]
		if old := n.runs[r.ID]; old != nil {
			rc.Run, rc.Existing = old, true
			continue
		}
		if r.Key != "" {
			if id, ok := n.keys[r.Namespace+"/"+r.Key]; ok {
				if old := n.runs[id]; bytes.Equal(old.BodyHash, r.BodyHash) {
					rc.Run, rc.Existing = old, true
				} else {
					rc.Err = job.Errorf(job.Conflict, "key_conflict", "the idempotency key was used with another body")
				}
				continue
			}
			n.keys[r.Namespace+"/"+r.Key] = r.ID
		}
		n.writes++
		c := *r
		c.Home = n.rung
		n.runs[r.ID], rc.Run = &c, &c
	}
	return receipts, nil
}

func (n *node) Cancel(_ context.Context, intents []job.CancelIntent) ([]job.Receipt, error) {
	defer n.lock()()
	receipts := make([]job.Receipt, len(intents))
	for i, in := range intents {
		r := n.runs[in.ID]
		if r == nil {
			receipts[i].Err = job.Errorf(job.NotFound, "no_run", "there is no run %s", in.ID)
			continue
		}
		if !r.State.Terminal() && r.CancelAt == 0 {
			n.writes++
			c := *r
			c.CancelAt = in.At
			n.runs[in.ID], r = &c, &c
		}
		receipts[i].Run = r
	}
	return receipts, nil
}

func (n *node) Run(_ context.Context, id job.RunID) (*job.Run, error) {
	defer n.lock()()
	if n.storeErr != nil {
		return nil, n.storeErr
	}
	if r := n.runs[id]; r != nil {
		return r, nil
	}
	return nil, job.Errorf(job.NotFound, "no_run", "there is no run %s", id)
}

func (n *node) Load(_ context.Context, ids []job.RunID) ([]*job.Run, error) {
	defer n.lock()()
	if n.storeErr != nil {
		return nil, n.storeErr
	}
	rows := make([]*job.Run, len(ids))
	for i, id := range ids {
		rows[i] = n.runs[id]
	}
	return rows, nil
}

func (n *node) Runs(_ context.Context, q job.RunQuery) (p job.RunPage, _ error) {
	defer n.lock()()
	var all []*job.Run
	for _, r := range n.runs {
		if q.Before.IsZero() || bytes.Compare(r.ID[:], q.Before[:]) < 0 {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(x, y *job.Run) int { return bytes.Compare(y.ID[:], x.ID[:]) })
	for i, r := range all {
		if len(p.Runs) == q.Limit || n.maxScan > 0 && i == n.maxScan {
			p.Next = all[i-1].ID
			break
		}
		if matches(r, &q) {
			p.Runs = append(p.Runs, r)
		}
	}
	return p, nil
}

func (n *node) Attempts(_ context.Context, id job.RunID) ([]job.Attempt, error) {
	defer n.lock()()
	return n.attempts[id], nil
}

func (n *node) Ticks(_ context.Context, q job.TickQuery) ([]job.Tick, error) {
	defer n.lock()()
	var all []job.Tick
	for _, t := range n.ticks {
		if t.JobID == q.JobID && t.ScheduledAt >= q.Since && (q.Until == 0 || t.ScheduledAt < q.Until) && (q.Before == 0 || t.ScheduledAt < q.Before) {
			all = append(all, t)
		}
	}
	slices.SortStableFunc(all, func(x, y job.Tick) int { return cmp.Compare(y.ScheduledAt, x.ScheduledAt) })
	return all[:min(len(all), q.Limit)], nil
}

func (n *node) Usage(context.Context) (job.Usage, error) {
	defer n.lock()()
	return job.Usage{Runs: len(n.runs)}, nil
}

func (n *node) PutSchedule(_ context.Context, j *job.Job) error {
	defer n.lock()()
	if n.raftErr != nil {
		return n.raftErr
	}
	if j.Spec.Schedule == nil {
		delete(n.marks, j.ID)
		return nil
	}
	at := job.At(n.now())
	n.marks[j.ID] = job.Mark{JobID: j.ID, Namespace: j.Namespace, Job: j.Name, Version: j.Version, From: at, At: at}
	return nil
}

func (n *node) DropSchedule(_ context.Context, j *job.Job) error {
	defer n.lock()()
	if n.raftErr != nil {
		return n.raftErr
	}
	delete(n.marks, j.ID)
	return nil
}

func (n *node) PauseJob(_ context.Context, j *job.Job, paused bool) error {
	defer n.lock()()
	if n.raftErr != nil {
		return n.raftErr
	}
	n.writes++
	n.paused[j.ID] = paused
	return nil
}

func (n *node) Mark(id job.JobID) (job.Mark, bool) {
	defer n.lock()()
	m, ok := n.marks[id]
	return m, ok
}

func (n *node) Unstored(job.JobID) []job.Tick {
	defer n.lock()()
	return n.unstored
}

func (n *node) Paused(id job.JobID, _ string) job.Reason {
	defer n.lock()()
	switch {
	case n.maintain:
		return job.Maintenance
	case n.paused[id]:
		return job.JobPaused
	}
	return job.NoReason
}

func (n *node) Grant(id job.RunID) (job.Grant, bool) {
	defer n.lock()()
	g, ok := n.grants[id]
	return g, ok
}

func (n *node) Grants() []job.Grant {
	defer n.lock()()
	var all []job.Grant
	for _, g := range n.grants {
		all = append(all, g)
	}
	return all
}

func (n *node) Explain(_ context.Context, r *job.Run) ([]string, error) {
	if n.leaderErr != nil {
		return nil, n.leaderErr
	}
	return []string{"No worker matches its selector."}, nil
}

func (n *node) Workers(context.Context) ([]job.Worker, error) {
	defer n.lock()()
	if n.leaderErr != nil {
		return nil, n.leaderErr
	}
	var all []job.Worker
	for _, w := range n.workers {
		all = append(all, *w)
	}
	return all, nil
}

func (n *node) Worker(_ context.Context, name string) (*job.Worker, error) {
	defer n.lock()()
	if w := n.workers[name]; w != nil {
		c := *w
		return &c, nil
	}
	return nil, job.Errorf(job.NotFound, "no_worker", "there is no worker %s", name)
}

func (n *node) FlagWorker(_ context.Context, name string, state job.WorkerState) error {
	defer n.lock()()
	n.writes++
	n.workers[name].State = state
	return nil
}

func (n *node) Maintain(_ context.Context, on bool) error {
	defer n.lock()()
	n.writes++
	n.maintain = on
	return nil
}

func (n *node) Born(runs []*job.Run) {
	defer n.lock()()
	for _, r := range runs {
		n.born = append(n.born, r.ID)
	}
}

func (n *node) CancelRequested(ids []job.RunID) {
	defer n.lock()()
	n.cancelled = append(n.cancelled, ids...)
}

func (n *node) Output(_ context.Context, q OutputQuery, each func(OutputChunk) error) error {
	n.mu.Lock()
	chunks := slices.Clone(n.output[q.RunID])
	n.mu.Unlock()
	for _, c := range chunks {
		if c.attempt == q.Attempt && c.Offset+int64(len(c.Data)) > q.From {
			if err := each(c.OutputChunk); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) Join(_ context.Context, q JoinRequest) (*JoinAnswer, error) {
	if q.Token == "wrong" {
		return nil, job.Errorf(job.Unauthenticated, "join_token", "the join token is not valid")
	}
	return &JoinAnswer{ClusterID: "c1", Streams: []string{"http://127.0.0.1:1"}, GossipKey: []byte("key")}, nil
}

func (n *node) Status(context.Context) (*ClusterStatus, error) {
	return &ClusterStatus{ID: "c1", Node: "n1", Leader: "n1", Epoch: 3, Store: "embedded", Maintenance: n.maintain,
		Nodes: append([]NodeStatus{{ID: "1", Name: "n1", Role: RoleLeader, Healthy: true}}, n.nodes...)}, nil
}

func (n *node) Ready(context.Context) error { return n.leaderErr }
func (n *node) Home() job.Home              { return n.home }
func (n *node) Rung() job.Home              { return n.rung }

func (n *node) Transfer(_ context.Context, to string) error {
	defer n.lock()()
	if n.leaderErr != nil {
		return n.leaderErr
	}
	if to != "" && to != "n2" {
		return job.Errorf(job.NotFound, "no_node", "there is no node %s", to)
	}
	n.writes++
	return nil
}

func (n *node) Remove(_ context.Context, name string, force bool) error {
	defer n.lock()()
	switch {
	case name != "n2" && name != "n3":
		return job.Errorf(job.NotFound, "no_node", "there is no node %s", name)
	case name == "n3" && !force:
		return job.Errorf(job.Conflict, "quorum", "without n3 the others cannot decide")
	}
	n.writes++
	return nil
}

func (n *node) Verify(context.Context) (*ReplicaCheck, error) {
	return &ReplicaCheck{Index: 7, Equal: true, Complete: true, Replicas: []ReplicaDigest{{ID: "1", Name: "n1", Digest: "00"}}}, nil
}

func (n *node) Greeting(context.Context) (*Greeting, error) {
	return &Greeting{NodeID: "1", Name: "n1", HasState: true, ClusterID: "c1", Knows: []string{"1", "2"}}, nil
}

func (n *node) Credentials() []job.Credential {
	defer n.lock()()
	return slices.Clone(n.credentials)
}

func (n *node) PutCredential(_ context.Context, c job.Credential) error {
	defer n.lock()()
	for _, old := range n.credentials {
		if old.Name == c.Name {
			return job.Errorf(job.Conflict, "exists", "there is a credential named %s", c.Name)
		}
	}
	n.writes++
	n.credentials = append(n.credentials, c)
	return nil
}

func (n *node) DropCredential(_ context.Context, id string) error {
	defer n.lock()()
	for i, c := range n.credentials {
		if c.ID == id {
			n.writes++
			n.credentials = slices.Delete(n.credentials, i, i+1)
			return nil
		}
	}
	return job.Errorf(job.NotFound, "no_credential", "there is no credential %s", id)
}

func (n *node) Snapshot(_ context.Context, w io.Writer) error {
	if n.storeErr != nil {
		return n.storeErr
	}
	_, err := io.WriteString(w, "snapshot")
	return err
}

func (n *node) Restore(_ context.Context, r io.Reader) error {
	b, err := io.ReadAll(r)
	defer n.lock()()
	if err != nil {
		return err
	}
	if string(b) != "snapshot" {
		return job.Errorf(job.Invalid, "snapshot_damaged", "this is no snapshot")
	}
	n.writes++
	return nil
}

func (n *node) config() Config {
	return Config{
		Store: n, Graphs: n, Schedules: n, Leases: n, Leader: n, Flags: n, Hints: n, Output: n, Joiner: n, Cluster: n, Admin: n, Credentials: n, Snapshots: n,
		Now: func() time.Time { return n.now() }, FollowEvery: time.Millisecond,
	}
}
