package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musterhq/muster/job"
)

// Births are stored by COPY: it costs Postgres half of what an INSERT of as many rows does. A column that is NULL in all
// rows of a batch still costs a tenth of a microsecond a row, and most are, so a batch names the columns it needs.

// columnGroup is columns that are sent when a run of the batch needs one of them.
type columnGroup struct {
	names  []string
	needed func(r *job.Run) bool
}

// always are sent with every batch; the groups after it, if needed; what is in neither, in one group of what births hardly
// ever have.
var always = []string{"id", "namespace", "trigger", "state", "priority", "created_at", "queued_at", "lane", "lane_hash", "lane_order"}

var columnGroups = [groupCount]columnGroup{
	{[]string{"job_id", "job", "job_version"}, func(r *job.Run) bool { return r.Job != "" || !r.JobID.IsZero() || r.JobVersion != 0 }},
	{[]string{"payload"}, func(r *job.Run) bool { return len(r.Payload) > 0 }},
	{[]string{"spec"}, func(r *job.Run) bool { return len(r.Spec) > 0 }},
	{[]string{"labels"}, func(r *job.Run) bool { return len(r.Labels) > 0 }},
	{[]string{"scheduled_at", "ready_at", "reason"}, func(r *job.Run) bool { return r.ScheduledAt != 0 || r.ReadyAt != 0 || r.Reason != 0 }},
	{[]string{"deadline_at", "start_by"}, func(r *job.Run) bool { return r.DeadlineAt != 0 || r.StartBy != 0 }},
	{[]string{"key", "body_hash"}, func(r *job.Run) bool { return r.Key != "" || len(r.BodyHash) > 0 }},
	{[]string{"root_id", "task", "item"}, func(r *job.Run) bool { return !r.IsRoot() || r.Task != "" || r.Item != 0 }},
	{nil, func(r *job.Run) bool {
		return r.Items != 0 || !r.ParentID.IsZero() || r.Depth != 0 || !r.ReusedFrom.IsZero() || len(r.Upstreams) > 0 || r.Attempt != 0 || r.Losses != 0 || r.Failures != 0 || r.Worker != "" || r.Fence != 0 ||
			r.StartedAt != 0 || r.FinishedAt != 0 || r.CancelAt != 0 || r.CancelReason != 0 || !r.RetryOf.IsZero() ||
			!r.CanonicalID.IsZero() || r.BackfillID != "" || r.ExitCode != 0 || len(r.Result) > 0 || r.Error != ""
	}},
}

// copyPlan is how batches that need the same groups are sent.
type copyPlan struct {
	columns []*column
	sql     string
}

// copyPlans are the plans made so far, by the groups that are needed as a set of bits: few of all sets ever are.
var copyPlans [1 << groupCount]atomic.Pointer[copyPlan]

const groupCount = 9

func makeCopyPlan(set int) *copyPlan {
	placed := slices.Clone(always)
	for _, g := range columnGroups {
		placed = append(placed, g.names...)
	}
	list := slices.Clone(always)
	for i, g := range columnGroups {
		if set&(1<<i) != 0 {
			list = append(list, g.names...)
		}
	}
	if set>>(groupCount-1) != 0 {
		for _, c := range columns {
			if !slices.Contains(placed, c.name) {
				list = append(list, c.name)
			}
		}
	}
	return &copyPlan{columnsNamed(list...), "COPY muster.runs (" + strings.Join(list, ", ") + ") FROM STDIN BINARY"}
}

// planCopy answers how to send runs.
func planCopy(runs []*job.Run) *copyPlan {
	set := 0
	for _, r := range runs {
		for i := range columnGroups {
			if set&(1<<i) == 0 && columnGroups[i].needed(r) {
				set |= 1 << i
			}
		}
	}
	plan := copyPlans[set].Load()
	if plan == nil {
		plan = makeCopyPlan(set)
		copyPlans[set].Store(plan)
	}
	return plan
}

// copyHead begins a COPY in the binary format: a signature, no flags, no extension.
var copyHead = append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)

var copyBuffers = sync.Pool{New: func() any { return new([]byte) }}

// copyRuns stores new runs in the order in which they are given, and does what before and after say, in the same round trip.
// Outside of a transaction it is one by itself. A run that is there already is a unique violation, and none is stored.
func copyRuns(ctx context.Context, c *pgconn.PgConn, runs []*job.Run, before, after string) error {
	plan := planCopy(runs)
	buffer := copyBuffers.Get().(*[]byte)
	b := append((*buffer)[:0], copyHead...)
	for _, r := range runs {
		b = binary.BigEndian.AppendUint16(b, uint16(len(plan.columns)))
		for _, column := range plan.columns {
			b = appendField(b, column, r)
		}
	}
	b = binary.BigEndian.AppendUint16(b, 0xffff)
	if _, err := c.CopyFrom(ctx, bytes.NewReader(b), before+plan.sql+after); err != nil {
		return err // the driver may still be reading the buffer
	}
	if cap(b) <= batchBytes {
		*buffer = b
		copyBuffers.Put(buffer)
	}
	return nil
}
