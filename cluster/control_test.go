package cluster_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/scheduler"
)

var _ scheduler.Control = (*cluster.Control)(nil)

// direct applies what is proposed at once, as Raft would, and can stop after some entries.
type direct struct {
	state   *fsm.State
	entries int
	most    int // 0: no bound
}

func (d *direct) Propose(_ context.Context, commands ...fsm.Command) ([]fsm.Result, error) {
	if d.most > 0 && d.entries >= d.most {
		return nil, job.Errorf(job.Unavailable, "not_leader", "this node does not lead")
	}
	d.entries++
	data, err := fsm.EncodeEntry(fsm.Origin{}, job.Instant(1e15)+job.Instant(d.entries), commands...)
	if err != nil {
		return nil, err
	}
	return d.state.Apply(&raft.Log{Index: uint64(d.entries), Type: raft.LogCommand, Data: data}).([]fsm.Result), nil
}

func newDirect() (*direct, *cluster.Control) {
	d := &direct{state: fsm.New()}
	return d, cluster.NewControl(d, d.state)
}

func id(n int) (v [16]byte) {
	binary.BigEndian.PutUint64(v[8:], uint64(n)+1)
	return v
}

func TestGrantInSeveralEntries(t *testing.T) {
	ctx := context.Background()
	d, c := newDirect()
	epoch, err := c.RaiseEpoch(ctx, 41)
	if err != nil || epoch != 42 {
		t.Fatal(epoch, err)
	}
	grants := make([]job.Grant, 9000)
	for i := range grants {
		grants[i] = job.Grant{RunID: id(i), Fence: job.MakeFence(epoch, uint32(i)), Worker: fmt.Sprint("worker-", i%100), Boot: "b"}
	}
	// One lies open already, far behind the first cut.
	taken := grants[8000]
	taken.Fence--
	if refused, err := c.Grant(ctx, epoch, []job.Grant{taken}, nil); err != nil || len(refused) != 0 {
		t.Fatal(refused, err)
	}
	refused, err := c.Grant(ctx, epoch, grants, nil)
	if err != nil || !reflect.DeepEqual(refused, []int{8000}) || len(c.Grants()) != 9000 {
		t.Fatalf("refused %v of %d: %v", refused, len(c.Grants()), err)
	}
	if d.entries < 4 {
		t.Errorf("%d entries", d.entries)
	}
	ended := make([]job.EndedGrant, len(grants))
	for i, g := range c.Grants() {
		ended[i] = job.EndedGrant{RunID: g.RunID, Fence: g.Fence}
	}
	if _, err := c.Grant(ctx, epoch, nil, ended); err != nil || len(c.Grants()) != 0 {
		t.Errorf("%d are left: %v", len(c.Grants()), err)
	}
	if _, err := c.Grant(ctx, epoch-1, nil, nil); job.CodeOf(err) != job.Fenced {
		t.Error(err)
	}
}

func TestDecideInSeveralEntries(t *testing.T) {
	ctx := context.Background()
	d, c := newDirect()
	epoch, _ := c.RaiseEpoch(ctx, 0)
	const jobs, each = 100, 100
	from := job.Instant(2e15)
	var ticks []job.Tick
	var marks []job.MarkMove
	for i := range jobs {
		if _, err := c.PutSchedule(ctx, job.Mark{JobID: id(i), Namespace: "default", Job: fmt.Sprint("job-", i), Version: 1, Schedule: []byte(`{"cron":"@every 1s"}`)}); err != nil {
			t.Fatal(err)
		}
		for k := range each {
			ticks = append(ticks, job.Tick{JobID: id(i), Version: 1, ScheduledAt: from + job.Instant(k), Disposition: job.TickRun, DecidedAt: from})
		}
		marks = append(marks, job.MarkMove{JobID: id(i), Version: 1, At: from + each})
	}
	d.entries = 0
	recorded, err := c.Decide(ctx, epoch, ticks, marks, nil)
	if err != nil || len(recorded) != jobs*each || d.entries < 2 {
		t.Fatalf("%d recorded in %d entries: %v", len(recorded), d.entries, err)
	}
	var stored []job.TickKey
	for i := range recorded {
		stored = append(stored, recorded[i].Key())
	}
	// It stops half way: what was done is answered, and the rest can be repeated.
	d.most = d.entries + 1
	if _, err := c.Decide(ctx, epoch, nil, nil, append(stored, make([]job.TickKey, 10_000)...)); job.CodeOf(err) != job.Unavailable {
		t.Error(err)
	}
	d.most = 0
	if left := len(c.Unstored()); left != 0 && left >= jobs*each {
		t.Errorf("%d are left", left)
	}
	if _, err := c.Decide(ctx, epoch, nil, nil, stored); err != nil || len(c.Unstored()) != 0 {
		t.Errorf("%d are left: %v", len(c.Unstored()), err)
	}
	// A tick without a mark is refused by the state machine, also in a large batch.
	if _, err := c.Decide(ctx, epoch, ticks, nil, nil); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
}

func TestAdminWrites(t *testing.T) {
	ctx := context.Background()
	_, c := newDirect()
	j := job.JobID(id(1))
	mark, err := c.PutSchedule(ctx, job.Mark{JobID: j, Namespace: "ns", Job: "a", Version: 2, Schedule: []byte(`{"cron":"@daily"}`)})
	if err != nil || mark.From == 0 || mark.Version != 2 {
		t.Fatalf("%+v %v", mark, err)
	}
	if _, err := c.PutSchedule(ctx, job.Mark{JobID: j, Namespace: "ns", Job: "a", Version: 1, Schedule: []byte(`{}`)}); job.CodeOf(err) != job.Conflict {
		t.Error(err)
	}
	select {
	case <-c.ScheduleChanges():
	default:
		t.Error("no signal")
	}
	if got := c.TakeScheduleChanges(); len(got) != 1 || got[0] != j {
		t.Error(got)
	}
	expect := func(what job.Reason, err error) {
		t.Helper()
		if got := c.Paused(j, "ns"); got != what || err != nil {
			t.Errorf("paused: %s, want %s; %v", got, what, err)
		}
	}
	expect(job.JobPaused, c.PauseJob(ctx, j))
	expect(job.NamespacePaused, c.PauseNamespace(ctx, "ns", true))
	expect(job.Maintenance, c.Maintenance(ctx, true))
	expect(job.NamespacePaused, c.Maintenance(ctx, false))
	expect(job.JobPaused, c.PauseNamespace(ctx, "ns", false))
	expect(job.NoReason, c.ResumeJob(ctx, j))
	if err := c.FlagWorker(ctx, "w", job.WorkerDraining); err != nil || c.WorkerFlag("w") != job.WorkerDraining {
		t.Error(err)
	}
	if err := c.FlagWorker(ctx, "w", "asleep"); job.CodeOf(err) != job.Invalid {
		t.Error(err)
	}
	for range 2 {
		if err := c.SetStore(ctx, fsm.StorePostgres); err != nil || c.Store() != fsm.StorePostgres {
			t.Error(c.Store(), err)
		}
	}
	if err := c.SetStore(ctx, fsm.StoreEmbedded); job.AsError(err).Reason != "store_setting" {
		t.Error(err)
	}
	if err := c.DropSchedule(ctx, j, 0); err != nil || len(c.Marks()) != 0 {
		t.Error(err)
	}
	if _, ok := c.Mark(j); ok {
		t.Error("the mark is still there")
	}
}

// Example opens a node on its own and does something while it leads.
func Example() {
	n, err := cluster.Open(context.Background(), cluster.Config{
		Memory: cluster.NewMemory("a"), State: fsm.New(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = n.Run(ctx, func(term context.Context) error {
		epoch, err := n.Control().RaiseEpoch(term, 0)
		fmt.Println("epoch", epoch, err)
		cancel() // a real leader works until term ends
		<-term.Done()
		return nil
	})
	// Output: epoch 1 <nil>
}
