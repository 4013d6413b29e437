package job_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

// What is on disk is never renumbered and never reused. These tests are the record of it: a line may be added, none
// changed.

var writeGolden = flag.Bool("write-golden", false, "write golden files that do not exist yet")

func TestWordsKeepTheirNumbers(t *testing.T) {
	for _, list := range []struct {
		name  string
		word  func(uint8) fmt.Stringer
		words []string // by number; "" is none
	}{
		{"state", func(n uint8) fmt.Stringer { return job.State(n) }, []string{
			"", "waiting", "held", "scheduled", "queued", "running", "succeeded", "failed", "cancelled", "skipped"}},
		{"trigger", func(n uint8) fmt.Stringer { return job.Trigger(n) }, []string{
			"", "api", "tick", "backfill", "retry", "dependency", "parent"}},
		{"disposition", func(n uint8) fmt.Stringer { return job.Disposition(n) }, []string{
			"", "run", "skipped", "coalesced", "missed", "paused"}},
		{"reason", func(n uint8) fmt.Stringer { return job.Reason(n) }, []string{
			"", "dependencies", "overlap_queued", "overlap_skip", "overlap_replaced", "spooled", "deduplicating",
			"duplicate", "key_conflict", "job_paused", "namespace_paused", "delayed", "retry_backoff", "exit_code",
			"timed_out", "deadline_exceeded", "start_deadline", "worker_lost", "invalid_result", "cancel_requested",
			"catch_up_none", "catch_up_max", "catch_up_coalesced", "not_permitted", "cannot_start", "maintenance",
			"lease_lost", "worker_stopped", "task_failed", "upstream_failed", "upstream_skipped", "run_if_false", "when_false",
			"expression_failed", "child_failed"}},
		{"home", func(n uint8) fmt.Stringer { return job.Home(n) }, []string{"", "quorum", "postgres", "local"}},
	} {
		t.Run(list.name, func(t *testing.T) {
			for n, want := range list.words {
				if got := list.word(uint8(n)).String(); got != want {
					t.Errorf("%d is %q, was %q", n, got, want)
				}
			}
			next := len(list.words)
			if got := list.word(uint8(next)).String(); got != fmt.Sprintf("unknown_%d", next) {
				t.Errorf("%d is %q: record it here, and it is frozen", next, got)
			}
		})
	}
}

// The constants, too, stand for the numbers they stood for.
func TestConstantsKeepTheirNumbers(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []uint8
	}{
		{"states", []uint8{0, uint8(job.Waiting), uint8(job.Held), uint8(job.Scheduled), uint8(job.Queued), uint8(job.Running),
			uint8(job.Succeeded), uint8(job.Failed), uint8(job.Cancelled), uint8(job.Skipped)}},
		{"triggers", []uint8{0, uint8(job.ByAPI), uint8(job.ByTick), uint8(job.ByBackfill), uint8(job.ByRetry),
			uint8(job.ByDependency), uint8(job.ByParent)}},
		{"dispositions", []uint8{0, uint8(job.TickRun), uint8(job.TickSkipped), uint8(job.TickCoalesced), uint8(job.TickMissed),
			uint8(job.TickPaused)}},
		{"reasons", []uint8{uint8(job.NoReason), uint8(job.Dependencies), uint8(job.OverlapQueued), uint8(job.OverlapSkip),
			uint8(job.OverlapReplaced), uint8(job.Spooled), uint8(job.Deduplicating), uint8(job.Duplicate), uint8(job.KeyConflict),
			uint8(job.JobPaused), uint8(job.NamespacePaused), uint8(job.Delayed), uint8(job.RetryBackoff), uint8(job.ExitCode),
			uint8(job.TimedOut), uint8(job.DeadlineExceeded), uint8(job.StartDeadline), uint8(job.WorkerLost),
			uint8(job.InvalidResult), uint8(job.CancelRequested), uint8(job.CatchUpNoneReason), uint8(job.CatchUpMaxReason),
			uint8(job.CatchUpCoalesced), uint8(job.NotPermitted), uint8(job.CannotStart), uint8(job.Maintenance),
			uint8(job.LeaseLost), uint8(job.WorkerStopped), uint8(job.TaskFailed), uint8(job.UpstreamFailed),
			uint8(job.UpstreamSkipped), uint8(job.RunIfFalse), uint8(job.WhenFalse), uint8(job.ExpressionFailed),
			uint8(job.ChildFailed)}},
		{"homes", []uint8{0, uint8(job.HomeQuorum), uint8(job.HomePostgres), uint8(job.HomeLocal)}},
		{"outcomes", []uint8{0, uint8(job.AttemptSucceeded), uint8(job.AttemptFailed), uint8(job.AttemptCancelled),
			uint8(job.AttemptLost), uint8(job.AttemptReturned)}},
	} {
		for want, got := range c.got {
			if int(got) != want {
				t.Errorf("%s: the constant at %d is now %d", c.name, want, got)
			}
		}
	}
}

func TestWordsReadBack(t *testing.T) {
	for s := job.Waiting; s <= job.Skipped; s++ {
		var got job.State
		if err := got.UnmarshalText([]byte(s.String())); err != nil || got != s {
			t.Errorf("%v reads back as %v, %v", s, got, err)
		}
		if want := s >= job.Succeeded; s.Terminal() != want {
			t.Errorf("%v.Terminal() = %v", s, !want)
		}
	}
}

// runNumbers are the numbers under which the fields of a Run are on disk.
var runNumbers = map[string]string{
	"1": "ID", "2": "RootID", "3": "Namespace", "4": "JobID", "5": "Job", "6": "JobVersion", "7": "Task", "8": "Trigger",
	"9": "State", "10": "Reason", "11": "Priority", "12": "Attempt", "13": "Losses", "14": "Worker", "15": "ScheduledAt",
	"16": "CreatedAt", "17": "ReadyAt", "18": "QueuedAt", "19": "StartedAt", "20": "FinishedAt", "21": "DeadlineAt",
	"22": "Payload", "23": "Result", "24": "Error", "25": "ExitCode", "26": "Labels", "27": "Home", "28": "Lane", "29": "Spec",
	"30": "Key", "31": "RetryOf", "32": "CanonicalID", "33": "CancelAt", "34": "Fence", "35": "BackfillID", "36": "Failures",
	"37": "BodyHash", "38": "StartBy", "39": "CancelReason", "40": "Item", "41": "Items", "42": "ParentID", "43": "Depth",
	"44": "ReusedFrom", "45": "Upstreams",
}

func TestRunKeepsItsNumbers(t *testing.T) {
	got := map[string]string{}
	for f := range reflect.TypeFor[job.Run]().Fields() {
		number, _, _ := strings.Cut(f.Tag.Get("cbor"), ",")
		if was, ok := got[number]; ok {
			t.Errorf("%s and %s share the number %s", was, f.Name, number)
		}
		got[number] = f.Name
	}
	if diff := cmp.Diff(runNumbers, got); diff != "" {
		t.Errorf("a field was renumbered, or a new one is not recorded here: %s", diff)
	}
}

// fullRun has every field set, each to something else.
func fullRun() *job.Run {
	r := &job.Run{}
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		f, n := v.Field(i), i+1
		switch f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprintf("text-%d", n))
		case reflect.Int, reflect.Int32, reflect.Int64:
			f.SetInt(int64(n) * 1_000_003)
		case reflect.Uint8:
			f.SetUint(uint64(n%3 + 1))
		case reflect.Uint32, reflect.Uint64:
			f.SetUint(uint64(n) * 1_000_003)
		case reflect.Array:
			f.Index(15).SetUint(uint64(n))
		case reflect.Slice:
			if f.Type() == reflect.TypeFor[[]job.UpstreamRun]() {
				f.Set(reflect.ValueOf([]job.UpstreamRun{{Job: "load", RunID: job.RunID{15: 1}, Coalesced: 2}}))
				break
			}
			f.SetBytes(fmt.Appendf(nil, `{"n":%d}`, n))
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"a": "b", "team": "billing"}))
		default:
			panic("a field of a new kind: " + f.Type().String())
		}
	}
	return r
}

func TestRunIsOnDiskAsItWas(t *testing.T) {
	const golden = "testdata/run.cbor"
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := mode.Marshal(fullRun())
	if err != nil {
		t.Fatal(err)
	}
	var again job.Run
	if err := cbor.Unmarshal(encoded, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullRun(), &again); diff != "" {
		t.Errorf("a run does not survive the disk: %s", diff)
	}

	stored, err := os.ReadFile(golden)
	if os.IsNotExist(err) && *writeGolden {
		stored, err = encoded, os.WriteFile(golden, encoded, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	var old job.Run
	if err := cbor.Unmarshal(stored, &old); err != nil {
		t.Fatalf("what was written once cannot be read: %v", err)
	}
	// Fields that are younger than the file are not in it; all others must be as they are now.
	now := reflect.ValueOf(fullRun()).Elem()
	for i := range now.NumField() {
		name, was := now.Type().Field(i).Name, reflect.ValueOf(old).Field(i)
		if i < 38 && was.IsZero() || !was.IsZero() && !reflect.DeepEqual(was.Interface(), now.Field(i).Interface()) {
			t.Errorf("%s reads as %v from the file", name, was)
		}
	}
	if rewritten, err := mode.Marshal(&old); err != nil || !bytes.Equal(rewritten, stored) {
		t.Errorf("what was written once is written otherwise now: %v\n%x\n%x", err, stored, rewritten)
	}
}

// The smallest run leaves out what is not set, so that a million of them fit into memory.
func TestSmallRunIsSmall(t *testing.T) {
	r := &job.Run{ID: job.RunID{1}, Namespace: "default", Job: "a", JobID: job.JobID{2}, JobVersion: 1, Trigger: job.ByTick,
		State: job.Queued, Priority: 5, CreatedAt: 1767225600000000, QueuedAt: 1767225600000000, ScheduledAt: 1767225600000000, Home: job.HomeQuorum}
	b, err := cbor.Marshal(r)
	if err != nil || len(b) > 110 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
