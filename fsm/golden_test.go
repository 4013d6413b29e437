package fsm

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/musterhq/muster/job"
)

var update = flag.Bool("update", false, "write golden files that are missing; those that exist are never changed")

func sampleRun() *job.Run {
	return &job.Run{ID: numbered(1), RootID: numbered(2), Namespace: "ns", JobID: job.JobID(numbered(3)), Job: "job", JobVersion: 4, Task: "task",
		Trigger: job.ByParent, State: job.Scheduled, Reason: job.RetryBackoff, Priority: 9, Attempt: 2, Losses: 1, Worker: "w", ScheduledAt: t0,
		CreatedAt: t0 + 1, ReadyAt: t0 + 2, QueuedAt: t0 + 3, StartedAt: t0 + 4, FinishedAt: t0 + 5, DeadlineAt: t0 + 6, Payload: []byte(`{"p":1}`),
		Result: []byte(`{"r":1}`), Error: "error", ExitCode: -1, Labels: map[string]string{"b": "2", "a": "1"}, Home: job.HomeQuorum, Lane: "ns|@exec=|",
		Spec: []byte(`{}`), Key: "key", RetryOf: numbered(5), CanonicalID: numbered(6), CancelAt: t0 + 7, Fence: 1<<32 | 8, BackfillID: "bf",
		BodyHash: []byte{1, 2}, StartBy: t0 + 9, Failures: 1, CancelReason: job.OverlapReplaced, Item: 3, Items: 4, ParentID: numbered(7), Depth: 2,
		ReusedFrom: numbered(8), Upstreams: []job.UpstreamRun{{Job: "up", RunID: numbered(9), Coalesced: 1}}}
}

func sampleTick() job.Tick {
	return job.Tick{JobID: job.JobID(numbered(3)), Version: 4, ScheduledAt: t0, Until: t0 + 60, Count: 2, Disposition: job.TickMissed,
		Reason: job.CatchUpNoneReason, DecidedAt: t0 + 70, Waiting: true}
}

func sampleAttempt() *job.Attempt {
	return &job.Attempt{RunID: numbered(1), Attempt: 1, Fence: 1<<32 | 7, Worker: "w", StartedAt: t0, FinishedAt: t0 + 1, State: job.Failed,
		Reason: job.ExitCode, Error: "error", ExitCode: 3}
}

func sampleCredential() job.Credential {
	return job.Credential{ID: "id", Name: "name", Role: job.RoleDeveloper, Namespaces: []string{"ns"}, Digest: job.SecretDigest([]byte("secret")),
		CreatedAt: t0, ExpiresAt: t0 + 1}
}

// samples has one command of each kind in its current version, every field set. When a kind gets a new version, its old
// sample stays in an own test that decodes the old golden file.
func samples() []Command {
	fence := job.MakeFence(1, 2)
	id := job.JobID(numbered(3))
	return []Command{
		&RaiseEpoch{AtLeast: 7},
		&Grant{Epoch: 1, Ended: []job.EndedGrant{{RunID: numbered(2), Fence: 1<<32 | 1}},
			Grants: []job.Grant{{RunID: numbered(1), Fence: 1<<32 | 2, Attempt: 3, Worker: "w", Boot: "b", GrantedAt: t0, Slots: 2, Lane: "ns|@exec=|", JobID: id}}},
		&Decide{Epoch: 1, Ticks: []job.Tick{sampleTick()}, Marks: []job.MarkMove{{JobID: id, Version: 4, At: t0 + 60, Was: t0 + 30}}, Stored: []job.TickKey{{JobID: id, ScheduledAt: t0 - 60}}},
		&PutSchedule{JobID: id, Namespace: "ns", Job: "job", Version: 4, Schedule: []byte(`{"cron":"* * * * *"}`), Overlap: job.OverlapQueueTick, StartDeadline: 600},
		&DropSchedule{JobID: id, Version: 4},
		&PauseJob{JobID: id, Paused: true},
		&PauseNamespace{Namespace: "ns", Paused: true},
		&Maintain{On: true},
		&FlagWorker{Name: "w", State: job.WorkerCordoned},
		&SetLimits{Limits: Limits{MaxLiveBytes: 1, MaxHistoryBytes: 2, MaxKeyBytes: 3, MaxDefinitionBytes: 4}},
		&InitCluster{ClusterID: "c", GossipSecret: []byte{1, 2}, Credentials: []job.Credential{sampleCredential()}},
		&PutNode{Node: job.Node{ID: "id", Name: "n", API: "https://n:8080", Raft: "n:8081", Gossip: "n:8082", Version: "v1", Reads: map[uint16]uint8{1: 1, 300: 2}}},
		&DropNode{ID: "id"},
		&PutCredential{Credential: sampleCredential()},
		&DropCredential{ID: "id"},
		&Checkpoint{},
		&SetStore{Store: StorePostgres},
		&RaiseStore{Epoch: 2},
		&PutJob{ID: id, Namespace: "ns", Name: "job", Document: []byte(`{"depends_on":[]}`), IfVersion: 3, NewOnly: true, At: t0},
		&DeleteJob{Namespace: "ns", Name: "job", IfVersion: 4},
		&Submit{Runs: []*job.Run{sampleRun()}},
		&Cancel{Intents: []job.CancelIntent{{ID: numbered(1), At: t0, Reason: job.OverlapReplaced}}},
		&StoreTicks{Epoch: 1, Ticks: []job.Tick{sampleTick()}},
		&Move{Epoch: 1, Moves: []job.Move{{ID: numbered(1), State: job.Scheduled, Reason: job.RetryBackoff, Fence: 1<<32 | 7, Attempt: 1, Losses: 1, Worker: "w",
			ReadyAt: t0 + 1, QueuedAt: t0 + 2, StartedAt: t0 + 3, FinishedAt: t0 + 4, Result: []byte(`{}`), Error: "error", ExitCode: 3, Ended: sampleAttempt(), Failures: 1, IfFence: &fence, IfState: job.Queued}}},
		&Prune{Epoch: 1, Before: t0, Limit: 100},
		&Release{Epoch: 1, Runs: []*job.Run{sampleRun()}},
		&Fire{Epoch: 1, Jobs: []job.JobID{id}, Now: t0, Limit: 100},
	}
}

// TestGolden keeps what is on disk readable for ever: the encoding of a kind and version never changes.
func TestGolden(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, c := range samples() {
		version := VersionOf(c)
		name := fmt.Sprintf("%02d_%s_v%d", c.Kind(), codecOf(c.Kind(), version).name, version)
		seen[c.Kind()] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if version != Version(c.Kind()) {
				t.Errorf("the sample is of version %d", version)
			}
			noZeroField(t, name, reflect.ValueOf(c).Elem())
			body, err := encoder.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			want := golden(t, name, body)
			if d := cmp.Diff(hex.EncodeToString(want), hex.EncodeToString(body)); d != "" {
				t.Errorf("the encoding changed; make a new version of the command instead (-want +got):\n%s", d)
			}
			back, err := decodeCommand(c.Kind(), version, want)
			if err != nil {
				t.Fatalf("the golden file is not readable: %v", err)
			}
			if d := cmp.Diff(c, back); d != "" {
				t.Errorf("decoded (-want +got):\n%s", d)
			}
			if got := c.Size(); got < len(body) {
				t.Errorf("the size is estimated at %d bytes, and is %d", got, len(body))
			}
		})
	}
	for _, c := range codecs {
		if !seen[c.kind] {
			t.Errorf("kind %d (%s) has no sample", c.kind, c.name)
		}
	}
}

// TestGoldenOlder does the same for the versions that are written still where they say enough.
func TestGoldenOlder(t *testing.T) {
	t.Parallel()
	r := sampleRun()
	r.Item, r.Items, r.ParentID, r.Depth, r.ReusedFrom, r.Upstreams = 0, 0, job.RunID{}, 0, job.RunID{}, nil
	put := &PutJob{ID: job.JobID(numbered(3)), Namespace: "ns", Name: "job", Document: []byte(`{}`), IfVersion: 3, NewOnly: true, At: t0}
	fence := job.MakeFence(1, 2)
	move := &Move{Epoch: 1, Moves: []job.Move{{ID: numbered(1), State: job.Scheduled, Reason: job.RetryBackoff, Fence: 1<<32 | 7, Attempt: 1, Losses: 1, Worker: "w",
		ReadyAt: t0 + 1, QueuedAt: t0 + 2, StartedAt: t0 + 3, FinishedAt: t0 + 4, Result: []byte(`{}`), Error: "error", ExitCode: 3, Ended: sampleAttempt(), Failures: 1, IfFence: &fence}}}
	for name, c := range map[string]Command{"33_put_job_v1": put, "38_move_v1": move, "35_submit_v1": &Submit{Runs: []*job.Run{r}}} {
		body, err := encoder.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(hex.EncodeToString(golden(t, name, body)), hex.EncodeToString(body)); d != "" || VersionOf(c) != 1 || VersionOf(Tagged{tagNumbered(1), c}) != 1 {
			t.Errorf("%s is written in version %d (-want +got):\n%s", name, VersionOf(c), d)
		}
		if back, err := decodeCommand(c.Kind(), 1, body); err != nil || cmp.Diff(c, back) != "" {
			t.Errorf("%s is read as %+v, %v", name, back, err)
		}
	}
}

// TestVersionsOfCommands: what an older node cannot read or carry out is written in a version that it does not know.
func TestVersionsOfCommands(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*job.Run){
		func(r *job.Run) { r.Item = 1 }, func(r *job.Run) { r.Items = 1 }, func(r *job.Run) { r.ParentID = numbered(1) },
		func(r *job.Run) { r.Depth = 1 }, func(r *job.Run) { r.ReusedFrom = numbered(1) },
		func(r *job.Run) { r.Upstreams = make([]job.UpstreamRun, 1) },
		func(r *job.Run) { r.Lane = string(job.LaneOf("ns", &job.Document{})) },
	} {
		if c := (&Submit{Runs: []*job.Run{bornAt(1, t0), bornAt(2, t0, change)}}); VersionOf(c) != 2 {
			t.Errorf("%+v is written in version %d", c.Runs[1], VersionOf(c))
		}
	}
	for _, document := range []string{`{"tasks":[]}`, `{"depends_on":[]}`} {
		if c := (&PutJob{Document: []byte(document)}); VersionOf(c) != 2 {
			t.Errorf("%s is written in version %d", document, VersionOf(c))
		}
	}
}

// TestGoldenEntry does the same for the entry around the commands.
func TestGoldenEntry(t *testing.T) {
	t.Parallel()
	data, err := EncodeEntry(Origin{Node: "n1", Boot: "b1", Seq: 7}, t0, &RaiseEpoch{AtLeast: 7}, &Maintain{On: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(hex.EncodeToString(golden(t, "entry_v1", data)), hex.EncodeToString(data)); d != "" {
		t.Errorf("the encoding changed (-want +got):\n%s", d)
	}
}

// TestGoldenTagged does the same for tags.
func TestGoldenTagged(t *testing.T) {
	t.Parallel()
	commands := []Command{Tagged{tagNumbered(1), &RaiseEpoch{AtLeast: 7}}, &Maintain{On: true}}
	entry, err := EncodeEntry(Origin{Node: "n1", Boot: "b1", Seq: 7}, t0, commands...)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := EncodeCommands(commands)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"entry_tagged_v1": entry, "commands_v1": wire} {
		if d := cmp.Diff(hex.EncodeToString(golden(t, name, data)), hex.EncodeToString(data)); d != "" {
			t.Errorf("the encoding of %s changed (-want +got):\n%s", name, d)
		}
	}
}

// TestGoldenSnapshot reads a snapshot from before clusters had a directory: what is added to the format since must be
// missing without harm.
func TestGoldenSnapshot(t *testing.T) {
	m := newMachine(t)
	data := golden(t, "snapshot_v1", nil)
	if err := m.Restore(readCloser(bytes.NewReader(data))); err != nil {
		t.Fatal(err)
	}
	consistent(t, m.State)
	v := m.View()
	if j := v.Job("default", "job-1"); j == nil || j.Version != 1 || v.Run(numbered(2)).State != job.Succeeded || !v.Maintenance() ||
		v.WorkerFlag("w") != job.WorkerReady || len(m.Nodes()) != 0 || m.ClusterID() != "" || m.Store() != "" {
		t.Fatal("the snapshot came back as something else")
	}
	if id, index, epoch, err := SnapshotInfo(bytes.NewReader(data)); id != "" || index != m.Index() || epoch != 0 || err != nil {
		t.Fatalf("it is said to be of cluster %q, index %d, epoch %d: %v", id, index, epoch, err)
	}
	m.do(&InitCluster{ClusterID: "c"})
	m.do(&PutNode{Node: nodeNumbered(1)})
	back := New()
	if err := back.Restore(readCloser(persisted(t, m.State)())); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, back) != hashOf(t, m.State) || back.ClusterID() != "c" || len(back.Nodes()) != 1 {
		t.Fatal("what came on top of it is lost")
	}
}

func golden(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		text = []byte(hex.EncodeToString(now) + "\n")
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.Fatalf("%v (-update writes golden files that are missing)", err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// noZeroField fails on a field that a sample leaves out, so that a new field cannot slip into an old version.
func noZeroField(t *testing.T, path string, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			noZeroField(t, path, v.Elem())
		}
	case reflect.Slice:
		if v.Len() > 0 && v.Index(0).Kind() != reflect.Uint8 {
			noZeroField(t, path+"[0]", v.Index(0))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := path + "." + v.Type().Field(i).Name
			if v.Field(i).IsZero() {
				t.Errorf("the sample leaves %s out", f)
			}
			noZeroField(t, f, v.Field(i))
		}
	}
}

// TestKindsAreUnique guards the numbers on disk.
func TestKindsAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, c := range codecs {
		k := fmt.Sprintf("kind %d version %d", c.kind, c.version)
		if other, ok := seen[k]; ok {
			t.Errorf("%s is %s and %s", k, other, c.name)
		}
		seen[k] = c.name
		if got := c.fresh().Kind(); got != c.kind {
			t.Errorf("%s says that it is of kind %d", c.name, got)
		}
	}
	if got := Supported()[KindSubmit]; got != 2 {
		t.Errorf("submit is supported in version %d", got)
	}
}
