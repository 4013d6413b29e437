package fsm

import (
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
)

func digestOf(t testing.TB, s *State) (uint64, [32]byte) {
	t.Helper()
	index, digest, ok := s.Checkpointed()
	if !ok {
		t.Fatal("there is no checkpoint")
	}
	sum, err := digest()
	if err != nil {
		t.Fatal(err)
	}
	return index, sum
}

func TestCheckpointIsOfItsIndex(t *testing.T) {
	m := everything(t)
	if _, _, ok := m.Checkpointed(); ok {
		t.Fatal("there is a checkpoint before the first one")
	}
	// Another command of the same entry stands behind it: the entry as a whole counts.
	r := m.entry(Origin{}, &Checkpoint{}, &FlagWorker{Name: "w", State: job.WorkerCordoned})
	want := hashOf(t, m.State)
	if r[0].Value != m.index {
		t.Fatalf("it is answered %v", r[0].Value)
	}
	at := m.index
	for n := range 50 {
		m.submit(m.born(500 + n))
	}
	index, sum := digestOf(t, m.State)
	if index != at || sum != want {
		t.Fatalf("the digest at %d is not that of the state at %d", index, at)
	}
	if c := m.checkpoint.Load(); c.frozen != nil {
		t.Fatal("what was digested is still held")
	}
	if _, again := digestOf(t, m.State); again != want {
		t.Fatal("asked again, it is another digest")
	}
	_, older, _ := m.Checkpointed()
	m.do(&Checkpoint{})
	if i, next := digestOf(t, m.State); i != m.index || next == want {
		t.Fatal("the second checkpoint is the first")
	}
	if sum, _ := older(); sum != want {
		t.Fatal("who holds an older checkpoint gets another one's digest")
	}
}

func TestCheckpointTellsReplicasApart(t *testing.T) {
	t.Parallel()
	rows := map[string]Command{
		"flag":       &FlagWorker{Name: "w", State: job.WorkerCordoned},
		"run":        &Submit{Runs: []*job.Run{bornAt(1, t0)}},
		"node":       &PutNode{Node: nodeNumbered(1)},
		"credential": &PutCredential{Credential: credentialNumbered(1, job.RoleViewer)},
		"cluster":    &InitCluster{ClusterID: "c"},
		"secret":     &InitCluster{ClusterID: "c", GossipSecret: []byte{1}},
		"nothing":    &Maintain{},
		"epoch":      &RaiseEpoch{},
	}
	sums := map[[32]byte]string{}
	for what, c := range rows {
		apply := func(c Command) [32]byte {
			s := New()
			s.Apply(mustLog(t, 1, c))
			s.Apply(mustLog(t, 2, &Checkpoint{}))
			_, sum := digestOf(t, s)
			return sum
		}
		sum := apply(c)
		if apply(c) != sum {
			t.Errorf("%s: two replicas of one log differ", what)
		}
		if other, ok := sums[sum]; ok {
			t.Errorf("%s and %s make the same digest", what, other)
		}
		sums[sum] = what
	}
}

func TestCheckpointIsNotHeldForEver(t *testing.T) {
	m := newMachine(t)
	m.do(&Checkpoint{})
	_, digest, _ := m.Checkpointed()
	want := m.fingerprint()
	m.pass(CheckpointKept)
	m.do(&Maintain{On: true})
	if _, _, ok := m.Checkpointed(); !ok {
		t.Fatal("dropped too early")
	}
	m.pass(time.Microsecond)
	m.do(&Maintain{})
	if _, _, ok := m.Checkpointed(); ok {
		t.Fatal("still held")
	}
	if _, err := digest(); err != nil || want == "" {
		t.Fatal("who holds it cannot use it")
	}
	m.do(&Checkpoint{})
	if err := m.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := m.Checkpointed(); ok {
		t.Fatal("a checkpoint of before is there after a restore")
	}
}

func TestReplayedCheckpointIsNone(t *testing.T) {
	m := newMachine(t)
	o := Origin{Node: "n", Boot: "b", Seq: 1}
	m.entry(o, &Checkpoint{})
	m.entry(o, &Checkpoint{})
	if index, _, _ := m.Checkpointed(); index != 1 {
		t.Fatalf("the checkpoint is at %d", index)
	}
}

// TestDigestWhileEntriesAreApplied: several ask at once, and applies go on. The race detector makes most of it.
func TestDigestWhileEntriesAreApplied(t *testing.T) {
	t.Parallel()
	d := &driver{s: New()}
	var before, after []*raft.Log
	for n := range 200 {
		before = append(before, d.log(t0, &Submit{Runs: []*job.Run{bornAt(n, t0)}}))
	}
	before = append(before, d.log(t0, &Checkpoint{}))
	for n := range 200 {
		after = append(after, d.log(t0, &Move{Moves: []job.Move{{ID: numbered(n), State: job.Succeeded, FinishedAt: t0}}}))
	}
	d.apply(before)
	want := hashOf(t, d.s)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, digest, _ := d.s.Checkpointed()
			if sum, err := digest(); err != nil || sum != want {
				t.Errorf("digest: %v", err)
			}
		})
	}
	d.apply(after)
	wg.Wait()
}
