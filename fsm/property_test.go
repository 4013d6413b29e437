package fsm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
	"pgregory.net/rapid"
)

// drawn is a random log over a world so small that commands meet: a few jobs, runs, keys, workers and epochs.
type drawn struct {
	*rapid.T
	at    job.Instant
	seqs  map[string]uint64
	index uint64
}

func (d *drawn) n(label string, most int) int { return rapid.IntRange(0, most).Draw(d.T, label) }

func (d *drawn) run() job.RunID { return numbered(d.n("run", 30) * 3000) }

func (d *drawn) jobID() job.JobID { return jobNumbered(d.n("job", 3)) }

func (d *drawn) epoch() job.Epoch { return job.Epoch(d.n("epoch", 2)) }

func (d *drawn) time() job.Instant { return t0.Add(time.Duration(d.n("minute", 200)) * time.Minute) }

func (d *drawn) fence(e job.Epoch) job.Fence { return job.MakeFence(e, uint32(d.n("fence", 6))) }

func (d *drawn) birth() *job.Run {
	r := bornAt(0, d.at)
	r.ID = d.run()
	r.State = rapid.SampledFrom([]job.State{job.Queued, job.Queued, job.Scheduled, job.Waiting, job.Skipped}).Draw(d.T, "state")
	r.Namespace = rapid.SampledFrom([]string{"default", "other"}).Draw(d.T, "namespace")
	switch d.n("of", 3) {
	case 0:
		n := d.n("job", 3)
		r.JobID, r.Job, r.JobVersion = jobNumbered(n), fmt.Sprintf("job-%d", n), uint64(1+d.n("version", 2))
	case 1:
		r.RootID, r.Task, r.Item, r.ReusedFrom = d.run(), "task", uint32(d.n("item", 1)), d.run()
	case 2:
		r.ParentID, r.Depth = d.run(), 1
	}
	if d.n("keyed", 2) == 0 {
		r.Key, r.BodyHash = fmt.Sprintf("key-%d", d.n("key", 3)), []byte{byte(d.n("body", 1))}
	}
	r.Payload = bytes.Repeat([]byte("1"), d.n("payload", 3)*100)
	return r
}

func (d *drawn) tick() job.Tick {
	k := job.Tick{JobID: d.jobID(), Version: uint64(1 + d.n("version", 2)), ScheduledAt: d.time(), DecidedAt: d.at,
		Disposition: job.Disposition(1 + d.n("disposition", 4))}
	if d.n("range", 4) == 0 {
		k.Until, k.Count = k.ScheduledAt.Add(time.Minute), 2
	}
	return k
}

func (d *drawn) move() job.Move {
	m := job.Move{ID: d.run(), State: rapid.SampledFrom([]job.State{job.Queued, job.Scheduled, job.Running, job.Succeeded, job.Failed, job.Cancelled}).Draw(d.T, "to"),
		Fence: d.fence(1), Attempt: uint32(d.n("attempt", 3)), Worker: "w", FinishedAt: d.at}
	if !m.State.Terminal() && d.n("ended", 1) == 0 {
		m.Ended = &job.Attempt{RunID: m.ID, Attempt: m.Attempt, Fence: m.Fence, State: job.Failed, Error: "x"}
	}
	return m
}

func (d *drawn) credential() job.Credential {
	c := credentialNumbered(d.n("credential", 3), rapid.SampledFrom([]job.Role{job.RoleAdmin, job.RoleAdmin, job.RoleViewer}).Draw(d.T, "role"))
	c.Name = fmt.Sprintf("c%d", d.n("name", 3))
	if d.n("expires", 3) == 0 {
		c.ExpiresAt = d.time()
	}
	return c
}

func several[T any](d *drawn, one func() T) []T {
	list := make([]T, 1+d.n("several", 4))
	for i := range list {
		list[i] = one()
	}
	return list
}

func (d *drawn) command() Command {
	n := d.n("number", 3)
	name := fmt.Sprintf("job-%d", n)
	on := d.n("on", 1) == 0
	switch rapid.SampledFrom(codecs).Draw(d.T, "kind").kind {
	case KindRaiseEpoch:
		if d.n("really", 9) > 0 {
			return &Maintain{On: on}
		}
		return &RaiseEpoch{}
	case KindRaiseStore:
		return &RaiseStore{Epoch: d.epoch()}
	case KindGrant:
		e := d.epoch()
		return &Grant{Epoch: e, Grants: several(d, func() job.Grant {
			return job.Grant{RunID: d.run(), Fence: d.fence(e), Attempt: 1, Worker: "w", Boot: "b"}
		}),
			Ended: several(d, func() job.EndedGrant { return job.EndedGrant{RunID: d.run(), Fence: d.fence(e)} })}
	case KindDecide:
		c := &Decide{Epoch: d.epoch(), Ticks: several(d, d.tick), Stored: several(d, func() job.TickKey { return job.TickKey{JobID: d.jobID(), ScheduledAt: d.time()} })}
		moves := map[job.JobID]bool{}
		for _, k := range c.Ticks {
			if !moves[k.JobID] {
				moves[k.JobID] = true
				c.Marks = append(c.Marks, job.MarkMove{JobID: k.JobID, Version: uint64(1 + d.n("version", 2)), At: t0.Add(240 * time.Minute)})
			}
		}
		return c
	case KindPutSchedule:
		return &PutSchedule{JobID: jobNumbered(n), Namespace: "default", Job: name, Version: uint64(1 + d.n("version", 3)), Schedule: []byte(`{"cron":"* * * * *"}`)}
	case KindDropSchedule:
		return &DropSchedule{JobID: jobNumbered(n), Version: uint64(d.n("version", 3))}
	case KindPauseJob:
		return &PauseJob{JobID: jobNumbered(n), Paused: on}
	case KindPauseNamespace:
		return &PauseNamespace{Namespace: "default", Paused: on}
	case KindMaintain:
		return &Maintain{On: on}
	case KindFlagWorker:
		return &FlagWorker{Name: name, State: rapid.SampledFrom([]job.WorkerState{job.WorkerReady, job.WorkerCordoned}).Draw(d.T, "flag")}
	case KindSetLimits:
		return &SetLimits{Limits: Limits{MaxLiveBytes: int64(d.n("live", 40)) * 1000, MaxHistoryBytes: int64(d.n("history", 20)) * 1000,
			MaxKeyBytes: int64(d.n("keys", 3)) * 1000, MaxDefinitionBytes: int64(d.n("documents", 6)) * 2000}}
	case KindInitCluster:
		return &InitCluster{ClusterID: name, GossipSecret: []byte{byte(n)}, Credentials: several(d, d.credential)}
	case KindPutNode:
		node := nodeNumbered(n)
		node.Name = fmt.Sprintf("n%d", d.n("node", 2))
		if d.n("reads", 1) == 0 {
			node.Reads = map[uint16]uint8{uint16(KindMove): uint8(d.n("version", 3)), uint16(20 + d.n("kind", 2)): 1}
		}
		return &PutNode{Node: node}
	case KindDropNode:
		return &DropNode{ID: nodeNumbered(n).ID}
	case KindPutCredential:
		return &PutCredential{Credential: d.credential()}
	case KindDropCredential:
		return &DropCredential{ID: credentialNumbered(n, "").ID}
	case KindCheckpoint:
		return &Checkpoint{}
	case KindSetStore:
		return &SetStore{Store: rapid.SampledFrom([]string{"", StoreEmbedded, StorePostgres}).Draw(d.T, "store")}
	case KindPutJob:
		return &PutJob{ID: jobNumbered(n), Namespace: "default", Name: name, IfVersion: uint64(d.n("if", 2)), NewOnly: d.n("new", 3) == 0, At: d.at,
			Document: d.document(name)}
	case KindDeleteJob:
		return &DeleteJob{Namespace: "default", Name: name}
	case KindSubmit:
		return &Submit{Runs: several(d, d.birth)}
	case KindCancel:
		return &Cancel{Intents: several(d, func() job.CancelIntent { return job.CancelIntent{ID: d.run(), At: d.at} })}
	case KindStoreTicks:
		return &StoreTicks{Epoch: d.epoch(), Ticks: several(d, d.tick)}
	case KindRelease:
		return &Release{Epoch: d.epoch(), Runs: several(d, d.birth)}
	case KindFire:
		c := &Fire{Epoch: d.epoch(), Now: d.at, Limit: d.n("limit", 3)}
		if on {
			c.Jobs = several(d, d.jobID)
		}
		return c
	case KindMove:
		return &Move{Epoch: d.epoch(), Moves: several(d, d.move)}
	default:
		return &Prune{Epoch: d.epoch(), Before: d.time(), Limit: d.n("limit", 5)}
	}
}

// document depends on other jobs, itself and jobs that are not there, each now and then.
func (d *drawn) document(name string) []byte {
	doc := job.Document{Name: name, Namespace: "default", Description: fmt.Sprint(d.n("text", 3)), Exec: &job.Exec{Command: []string{"true"}}}
	for up := range 5 {
		if d.n("depends", 9) == 0 {
			doc.DependsOn = append(doc.DependsOn, job.Edge{Job: fmt.Sprintf("job-%d", up), On: job.OnDone})
		}
	}
	data, err := json.Marshal(doc)
	if err != nil {
		d.Fatal(err)
	}
	return data
}

func (d *drawn) log() *raft.Log {
	d.at = d.at.Add(time.Duration(d.n("seconds", 40)-5) * time.Second) // clocks of different proposers go back too
	if d.n("a day later", 60) == 0 {
		d.at = d.at.Add(25 * time.Hour)
	}
	node := rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(d.T, "node")
	if d.n("replay", 9) > 0 {
		d.seqs[node]++
	}
	commands := make([]Command, 1+d.n("commands", 3))
	for i := range commands {
		commands[i] = d.command()
		if d.n("tagged", 2) == 0 {
			commands[i] = Tagged{tagNumbered(byte(1 + d.n("tag", 20))), commands[i]}
		}
	}
	data, err := EncodeEntry(Origin{Node: node, Boot: "b", Seq: d.seqs[node]}, d.at, commands...)
	if err != nil {
		d.Fatal(err)
	}
	d.index++
	return &raft.Log{Index: d.index, Type: raft.LogCommand, Data: data}
}

// TestSameLogSameState: replicas that apply the same log have equal states and give equal answers, whether they were
// restored from a snapshot on the way, and however raft cut the log into batches. And whatever the log, the state is
// consistent, and what is terminal stays so.
func TestSameLogSameState(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := &drawn{T: rt, at: t0, seqs: map[string]uint64{}}
		logs := make([]*raft.Log, 1+d.n("entries", 40))
		for i := range logs {
			logs[i] = d.log()
		}
		restoreAt := d.n("restored at", len(logs)-1)
		a, b, c := New(), New(), New()
		ended := map[job.RunID]job.State{}
		for i, l := range logs {
			wanted := tagNumbered(byte(1 + d.n("expected", 20)))
			e := a.Expect(wanted)
			cluster, credentials, store := a.ClusterID(), a.Credentials(), a.Store()
			answer := a.Apply(l)
			same := b.Apply(l)
			if diff := cmp.Diff(answerTo(rt, wanted, l, answer.([]Result)), e.Results(), sameText); diff != "" {
				rt.Fatalf("entry %d was expected and is answered differently:\n%s", i, diff)
			}
			e.Cancel()
			if a.ClusterID() == cluster && admins(credentials, a.At()) > 0 && admins(a.Credentials(), a.At()) == 0 {
				rt.Fatalf("entry %d left no admin", i)
			}
			if store != "" && a.Store() != store {
				rt.Fatalf("entry %d changed the store from %s to %s", i, store, a.Store())
			}
			if diff := cmp.Diff(answer, same, sameText); diff != "" {
				rt.Fatalf("entry %d is answered differently:\n%s", i, diff)
			}
			if i == restoreAt {
				b = New()
				if err := b.Restore(readCloser(persisted(t, a)())); err != nil {
					rt.Fatal(err)
				}
			}
			consistent(rt, a)
			terminalStays(rt, a, ended)
			prunableIsRight(rt, a, d)
			firesIsRight(rt, a)
		}
		for rest := logs; len(rest) > 0; {
			n := min(len(rest), 1+d.n("batch", 5))
			if got := c.ApplyBatch(rest[:n]); len(got) != n {
				rt.Fatalf("%d answers for %d entries", len(got), n)
			}
			rest = rest[n:]
		}
		if h := hashOf(t, a); h != hashOf(t, b) || h != hashOf(t, c) {
			rt.Fatal("replicas differ")
		}
		if index, _, ok := a.Checkpointed(); ok {
			if i, sum := digestOf(t, c); i != index || func() [32]byte { _, sum := digestOf(t, a); return sum }() != sum {
				rt.Fatal("replicas differ at their checkpoint")
			}
		}
		nobodyWaits(t, a)
		consistent(rt, b)
	})
}

// answerTo finds what an entry's first command with a tag was answered; nil if none has it.
func answerTo(t failer, tag Tag, l *raft.Log, answers []Result) []Result {
	e, err := DecodeEntry(l.Data)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for i, c := range e.Commands {
		if of, _ := untagged(c); of == tag {
			return answers[i : i+1]
		}
	}
	return nil
}

// admins counts the admin credentials that are good at a time.
func admins(list []job.Credential, now job.Instant) int {
	n := 0
	for _, c := range list {
		if c.Role == job.RoleAdmin && (c.ExpiresAt == 0 || now < c.ExpiresAt) {
			n++
		}
	}
	return n
}

// graphIsRight compares the index of edges with the documents, and finds no edge to nowhere and no cycle.
func graphIsRight(t failer, v *View) {
	want := newEdges()
	names := map[string]bool{}
	for j := range v.Jobs("", "") {
		if j.Namespace == "default" {
			names[j.Name] = true
		}
		for _, e := range j.Spec.DependsOn {
			want.ups.add(edge{j.Namespace, j.Name, e.Job})
			want.downs.add(edge{j.Namespace, e.Job, j.Name})
		}
	}
	all := func(s set[edge]) []edge { return slices.Collect(s.ascend(edge{})) }
	if ups, downs := all(v.edges.ups), all(v.edges.downs); !slices.Equal(ups, all(want.ups)) || !slices.Equal(downs, all(want.downs)) {
		t.Fatalf("edges: indexed %v and %v, the documents say %v", ups, downs, all(want.ups))
	}
	left := all(want.ups)
	for _, e := range left {
		if !names[e.to] {
			t.Fatalf("job %s depends on %s, which is not there", e.from, e.to)
		}
	}
	for len(left) > 0 { // a job without upstreams, again and again
		n := len(left)
		left = slices.DeleteFunc(left, func(e edge) bool {
			return !slices.ContainsFunc(left, func(o edge) bool { return o.from == e.to })
		})
		if len(left) == n {
			t.Fatalf("a cycle is among %v", left)
		}
	}
}

// edgeRowsAreRight finds a row for each edge and for nothing else, and recounts what is fresh and ready.
func edgeRowsAreRight(t failer, v *View) {
	rows, fresh, ready := 0, map[job.JobID]bool{}, map[job.JobID]bool{}
	for j := range v.Jobs("", "") {
		ready[j.ID] = len(j.Spec.DependsOn) > 0
		for _, e := range j.Spec.DependsOn {
			rows++
			r := v.edgeRows.rows.get(edgeID{j.ID, v.jobs.get(jobName{j.Namespace, e.Job}).ID})
			if r == nil || r.On != e.On || r.Fresh && !r.SatisfiedBy.IsZero() || r.SatisfiedBy.IsZero() && (r.SatisfiedAt != 0 || r.Coalesced != 0) {
				t.Fatalf("the edge from %s to %s stands as %+v", j.Name, e.Job, r)
			}
			if r.Fresh {
				fresh[j.ID] = true
			}
			ready[j.ID] = ready[j.ID] && !r.SatisfiedBy.IsZero()
		}
	}
	same := func(what string, want map[job.JobID]bool, got set[job.JobID]) {
		maps.DeleteFunc(want, func(_ job.JobID, in bool) bool { return !in })
		for id := range got.ascend(job.JobID{}) {
			if !want[id] {
				t.Fatalf("job %s is %s and should not be", id, what)
			}
		}
		if len(want) != got.tree.Len() {
			t.Fatalf("%d jobs are %s, want %d", got.tree.Len(), what, len(want))
		}
	}
	same("fresh", fresh, v.edgeRows.fresh)
	same("ready", ready, v.edgeRows.ready)
	if rows != v.edgeRows.rows.tree.Len() {
		t.Fatalf("%d rows of %d edges", v.edgeRows.rows.tree.Len(), rows)
	}
}

// firesIsRight fires in a copy where nothing is said to be due, and finds it as it was.
func firesIsRight(t failer, s *State) {
	if s.View().Fires() {
		return
	}
	copied := &State{tables: s.frozenTables()}
	copied.ended.Store(s.ended.Load())
	g := copied.tables.g
	entry := &Entry{At: g.At, Commands: []Command{&Fire{Epoch: max(g.Epoch, g.StoreEpoch), Now: g.At, Limit: 1000}}}
	if r := copied.apply(g.Index, entry); r[0].Err != nil || len(r[0].Value.([]*job.Run)) != 0 {
		t.Fatalf("nothing is due, and firing answers %+v", r[0])
	}
}

// prunableIsRight prunes a copy where nothing is said to be prunable, and finds it as it was.
func prunableIsRight(t failer, s *State, d *drawn) {
	before := d.time()
	if d.n("prunes", 4) > 0 || s.View().Prunable(before) {
		return
	}
	copied := &State{tables: s.frozenTables()}
	copied.ended.Store(s.ended.Load())
	g := copied.tables.g
	entry := &Entry{At: g.At, Commands: []Command{&Prune{Epoch: max(g.Epoch, g.StoreEpoch), Before: before, Limit: 1000}}}
	if r := copied.apply(g.Index, entry); r[0].Err != nil || r[0].Value != 0 {
		t.Fatalf("nothing is prunable, and pruning answers %+v", r[0])
	}
	if copied.tables.g.PruneAfter != g.PruneAfter || copied.tables.g.KeyBytes != g.KeyBytes || copied.tables.g.HistoryBytes != g.HistoryBytes {
		t.Fatalf("nothing is prunable, and pruning changed %+v to %+v", g, copied.tables.g)
	}
}

// frozenTables copies the tables, so that they can be written to apart.
func (s *State) frozenTables() *tables {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tables.frozen()
}

// sameText compares errors by their text.
var sameText = cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })

type failer interface{ Fatalf(string, ...any) }

// terminalStays checks D4: a run that ended is as it ended, or gone.
func terminalStays(t failer, s *State, ended map[job.RunID]job.State) {
	seen := map[job.RunID]bool{}
	for r := range s.View().history.rows.all() {
		seen[r.ID] = true
		if before, ok := ended[r.ID]; ok && before != r.State {
			t.Fatalf("run %s was %s and is %s", r.ID, before, r.State)
		}
		ended[r.ID] = r.State
	}
	for id := range ended {
		if !seen[id] {
			delete(ended, id) // pruned; its id may be born again
		}
	}
}

// consistent recounts what the state counts as it goes.
func consistent(t failer, s *State) {
	v := s.View()
	var live, history, keys, definitions int64
	pins := map[versionID]int{}
	count := func(what string, want, got any) {
		if want != got {
			t.Fatalf("%s: counted %v, recounted %v", what, got, want)
		}
	}
	for name, of := range map[string]*runTable{"live": &v.live, "history": &v.history} {
		roots, tasks, ofJob, running := 0, 0, 0, 0
		for r := range of.rows.all() {
			if r.State.Terminal() != (name == "history") {
				t.Fatalf("a %s run is in %s", r.State, name)
			}
			if r.State == job.Running {
				running++
			}
			if r.IsRoot() {
				roots++
			} else {
				tasks++
			}
			if r.Job != "" && (r.IsRoot() || of.tasksByJob) {
				ofJob++
			}
			if name == "live" {
				live += runSize(r)
				if !r.JobID.IsZero() {
					pins[versionID{r.JobID, r.JobVersion}]++
				}
				if v.history.rows.get(r.ID) != nil {
					t.Fatalf("run %s is live and history", r.ID)
				}
			} else {
				history += runSize(r)
			}
		}
		count(name+" running", running, of.running.tree.Len())
		count(name+" by namespace", roots, of.byNamespace.tree.Len())
		count(name+" by root", tasks, of.byRoot.tree.Len())
		count(name+" by job", ofJob, of.byJob.tree.Len())
	}
	for a := range v.attempts.all() {
		history += attemptSize(a)
	}
	for k := range v.ledger.all() {
		history += tickSize(k)
	}
	for k := range v.keys.all() {
		keys += keySize(k)
	}
	for row := range v.versions.all() {
		definitions += versionSize(row)
		if row.Orphan && pins[versionID{row.JobID, row.Version}] == 0 {
			t.Fatalf("version %d of deleted job %s is kept for nobody", row.Version, row.JobID)
		}
	}
	for j := range v.jobs.all() {
		if v.versions.get(versionID{j.ID, j.Version}) == nil {
			t.Fatalf("job %s has no document", j.Name)
		}
	}
	graphIsRight(t, v)
	count("store", v.g.Store, s.Store())
	edgeRowsAreRight(t, v)
	for p := range v.pins.all() {
		count("pins", pins[versionID{p.JobID, p.Version}], p.Live)
	}
	count("pin rows", len(pins), v.pins.tree.Len())
	count("live bytes", live, v.g.LiveBytes)
	count("history bytes", history, v.g.HistoryBytes)
	count("key bytes", keys, v.g.KeyBytes)
	count("definition bytes", definitions, v.g.DefinitionBytes)
	count("ledger by time", v.ledger.tree.Len(), v.aged.tree.Len())
	count("keys by age", v.keys.tree.Len(), v.keyAges.tree.Len())
	ids, names := map[string]bool{}, map[string]bool{}
	for _, n := range s.Nodes() {
		ids[n.ID], names[n.Name] = true, true
		if row, ok := s.NodeNamed(n.Name); !ok || row.ID != n.ID {
			t.Fatalf("node %s is found as %+v", n.Name, row)
		}
	}
	count("nodes with ids of their own", v.nodes.tree.Len(), len(ids))
	count("nodes with names of their own", v.nodes.tree.Len(), len(names))
	names = map[string]bool{}
	for _, c := range s.Credentials() {
		names[c.Name] = true
	}
	count("credentials with names of their own", v.credentials.tree.Len(), len(names))
	count("cluster", v.g.ClusterID, s.ClusterID())
	for k := Kind(0); k < 50; k++ {
		least, said := uint8(255), false
		for n := range v.nodes.all() {
			if len(n.Reads) > 0 {
				least, said = min(least, n.Reads[uint16(k)]), true
			}
		}
		for version := range uint8(5) {
			if _, yes := s.Unreadable(k, version); yes != (said && version > least) && version > 0 {
				t.Fatalf("kind %d version %d: unreadable is %v, and the oldest node reads %d", k, version, yes, least)
			}
		}
	}
	fences := map[job.RunID]job.Fence{}
	for b := range v.ended.all() {
		b.each(func(e job.EndedGrant) { fences[e.RunID] = max(fences[e.RunID], e.Fence) })
	}
	index := s.ended.Load()
	count("ended", len(fences), len(index.byRun))
	for id, f := range fences {
		if got, ok := index.find(id); !ok || got != f {
			t.Fatalf("run %s ended with fence %d, found %d", id, f, got)
		}
	}
}
