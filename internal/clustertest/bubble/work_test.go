package bubble

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
)

// work is one life of a worker, and the functions in it.
type work struct {
	*life
	released chan struct{} // closed when the process is gone: only then what a killed one ran can return, to nobody
}

// task is the payload of all runs: what the function is to do.
type task struct {
	For  job.Duration `json:"for,omitempty"`
	Fail uint32       `json:"fail,omitempty"` // so many first attempts
	N    int          `json:"n,omitempty"`
}

func (l *work) handlers() *worker.Handlers {
	h := &worker.Handlers{}
	for name, t := range map[string]task{"work": {}, "quick": {For: job.Duration(20 * time.Millisecond)}, "slow": {For: job.Duration(3 * time.Second)}, "flaky": {Fail: 1}} {
		h.Handle(name, func(ctx context.Context, payload json.RawMessage) (json.RawMessage, error) {
			t := t
			if len(payload) > 0 {
				if err := json.Unmarshal(payload, &t); err != nil {
					return nil, worker.Permanent(err)
				}
			}
			return nil, l.do(ctx, t)
		})
	}
	return h
}

// do works, and writes down that it does.
func (l *work) do(ctx context.Context, t task) error {
	i := worker.InfoFrom(ctx)
	line := checker.Work{Event: checker.Start, Run: i.RunID, Attempt: i.Attempt, Fence: i.Fence, Job: i.Job, Life: l.record.Pid, Pid: l.record.Pid,
		At: l.w.now(), Wall: time.Now().UnixNano()}
	if i.ScheduledAt != 0 {
		line.ScheduledAt = i.ScheduledAt.Time().Format(time.RFC3339Nano)
	}
	if l.dead.Load() {
		<-l.released
		return errors.New("killed")
	}
	l.w.rec.add(checker.Line{Work: &line})
	var err error
	select {
	case <-time.After(t.For.Std()):
		if i.Attempt <= t.Fail {
			err = errors.New("it fails on purpose")
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if l.dead.Load() {
		<-l.released
		return errors.New("killed")
	}
	line.Event, line.At, line.Wall = checker.End, l.w.now(), time.Now().UnixNano()
	if err != nil {
		line.Code = 1
	}
	l.w.rec.add(checker.Line{Work: &line})
	return err
}
