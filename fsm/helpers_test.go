package fsm

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/job"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type bufferSink struct {
	bytes.Buffer
	cancelled bool
}

func (*bufferSink) Close() error    { return nil }
func (s *bufferSink) Cancel() error { s.cancelled = true; return nil }
func (*bufferSink) ID() string      { return "" }

// persisted takes a snapshot and answers how to read it, again and again.
func persisted(t testing.TB, s *State) func() io.Reader {
	t.Helper()
	data := snapshotBytes(t, s)
	return func() io.Reader { return bytes.NewReader(data) }
}

func snapshotBytes(t testing.TB, s *State) []byte {
	t.Helper()
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	sink := &bufferSink{}
	if err := snap.Persist(sink); err != nil {
		t.Fatal(err)
	}
	return sink.Bytes()
}

func hashOf(t testing.TB, s *State) [32]byte {
	t.Helper()
	h, err := s.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// machine is a state with a clock that tests turn.
type machine struct {
	*testing.T
	*State
	at    job.Instant
	index uint64
}

func newMachine(t *testing.T) *machine {
	t.Parallel()
	return &machine{T: t, State: New(), at: t0}
}

// entry applies one entry.
func (m *machine) entry(origin Origin, commands ...Command) []Result {
	m.Helper()
	data, err := EncodeEntry(origin, m.at, commands...)
	if err != nil {
		m.Fatal(err)
	}
	m.index++
	return m.Apply(&raft.Log{Index: m.index, Type: raft.LogCommand, Data: data}).([]Result)
}

// do applies one command that must succeed, and answers its value.
func (m *machine) do(c Command) any {
	m.Helper()
	r := m.entry(Origin{}, c)[0]
	if r.Err != nil {
		m.Fatalf("%T: %v", c, r.Err)
	}
	return r.Value
}

// refused applies one command that must fail, and checks that it changed nothing.
func (m *machine) refused(c Command, code job.Code) *job.Error {
	m.Helper()
	before := m.fingerprint()
	err := job.AsError(m.entry(Origin{}, c)[0].Err)
	if err == nil || err.Code != code {
		m.Fatalf("%T: %v, want the code %q", c, err, code)
	}
	if m.fingerprint() != before {
		m.Fatalf("%T was refused and changed the state", c)
	}
	return err
}

// fingerprint is the hash without the index and time of the last entry.
func (m *machine) fingerprint() string {
	m.Helper()
	s := m.freeze()
	frozen := *s.tables
	frozen.g.Index, frozen.g.At = 0, 0
	h, err := (&snapshot{tables: &frozen, windows: s.windows}).hash()
	if err != nil {
		m.Fatal(err)
	}
	return fmt.Sprintf("%x", h)
}

func (m *machine) pass(d time.Duration) { m.at = m.at.Add(d) }

func jobNumbered(n int) job.JobID { return job.JobID(numbered(1<<20 + n)) }

func (m *machine) putJob(n int, document string) *job.Job {
	m.Helper()
	return m.do(&PutJob{ID: jobNumbered(n), Namespace: "default", Name: fmt.Sprintf("job-%d", n), Document: []byte(document), At: m.at}).(*job.Job)
}

const document = `{"name":"x","namespace":"default","exec":{"command":["true"]}}`

func (m *machine) born(n int, change ...func(*job.Run)) *job.Run {
	return bornAt(n, m.at, change...)
}

func bornAt(n int, at job.Instant, change ...func(*job.Run)) *job.Run {
	r := &job.Run{ID: numbered(n), Namespace: "default", Trigger: job.ByAPI, State: job.Queued, Priority: 5, CreatedAt: at, QueuedAt: at, Lane: "default|@exec=|"}
	for _, c := range change {
		c(r)
	}
	return r
}

func (m *machine) submit(runs ...*job.Run) []job.Receipt {
	m.Helper()
	return m.do(&Submit{Runs: runs}).([]job.Receipt)
}

func (m *machine) ends(n int, fence job.Fence) {
	m.Helper()
	moved := m.do(&Move{Moves: []job.Move{{ID: numbered(n), State: job.Succeeded, Fence: fence, Attempt: 1, Worker: "w", StartedAt: m.at, FinishedAt: m.at}}}).([]job.Moved)
	if !moved[0].Applied {
		m.Fatalf("run %d did not end: %+v", n, moved[0].Run)
	}
}

func credentialNumbered(n int, role job.Role) job.Credential {
	return job.Credential{ID: fmt.Sprintf("id-%d", n), Name: fmt.Sprintf("credential-%d", n), Role: role,
		Digest: job.SecretDigest([]byte{byte(n)}), CreatedAt: t0}
}

func nodeNumbered(n int) job.Node {
	return job.Node{ID: fmt.Sprintf("node-id-%d", n), Name: fmt.Sprintf("n%d", n), Raft: fmt.Sprintf("10.0.0.%d:8081", n)}
}
