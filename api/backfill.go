package api

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/http"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/timetable"
)

// BackfillRequest is the body of POST /v1/jobs/{name}/backfill.
type BackfillRequest struct {
	Since job.Instant `json:"since" doc:"inclusive"`
	Until job.Instant `json:"until" doc:"exclusive, and not in the future"`
	ID    string      `json:"id,omitempty" doc:"names the backfill; the same id and time is the same run. Without it, an id derived from since and until"`
}

// BackfillAnswer is one item for each tick, as in a batch.
type BackfillAnswer struct {
	ID    string      `json:"id"`
	Items []BatchItem `json:"items"`
}

// backfill submits a run for each tick of the current schedule in a time that is past. The runs have ids of their own,
// derived from the backfill's id (S10): repeating the request creates nothing new, and a run that the tick itself had is
// not in the way.
func (a *API) backfill(rq *request, in *InJob) error {
	var req BackfillRequest
	if err := rq.decode(a, &req); err != nil {
		return err
	}
	now := a.now()
	switch {
	case req.Since <= 0:
		return job.InvalidField("since", "it has to be given, and not to lie before 1970")
	case req.Until <= 0:
		return job.InvalidField("until", "it has to be given, and not to lie before 1970")
	case req.Until > now:
		return job.InvalidField("until", "it lies in the future; a backfill is about ticks that have passed")
	case req.Until <= req.Since:
		return job.InvalidField("until", "it does not lie after since")
	}
	if req.ID == "" {
		req.ID = "from-" + req.Since.Time().Format("20060102T150405.000000Z") + "-to-" + req.Until.Time().Format("20060102T150405.000000Z")
	}
	if err := checkName("id", req.ID); err != nil {
		return err
	}
	j, err := a.findJob(rq, in)
	if err != nil {
		return err
	}
	if j.Spec.Schedule == nil {
		return job.Errorf(job.Conflict, "no_schedule", "the job has no schedule, so nothing can be filled in")
	}
	t, err := timetable.Parse(*j.Spec.Schedule)
	if err != nil {
		return err
	}
	ticks := t.Between((req.Since - 1).Time(), (req.Until - 1).Time(), MaxBackfill+1)
	if len(ticks) > MaxBackfill {
		return &job.Error{Code: job.Invalid, Reason: "too_many", Field: "until",
			Message: "more than 1000 ticks lie in this time; fill it in piece by piece"}
	}
	answer := BackfillAnswer{ID: req.ID, Items: make([]BatchItem, len(ticks))}
	runs, place := make([]*job.Run, len(ticks)), make([]int, len(ticks))
	for i, tick := range ticks {
		at := job.At(tick)
		r, err := job.Birth(&job.Submission{ID: backfillRunID(j.ID, req.ID, at), Namespace: j.Namespace, Job: j.Name}, j, now)
		if err != nil {
			return err
		}
		r.Trigger, r.ScheduledAt, r.BackfillID = job.ByBackfill, at, req.ID
		runs[i], place[i] = r, i
	}
	if len(runs) > 0 {
		if err := a.submitAll(rq, runs, place, answer.Items); err != nil {
			return err
		}
	}
	return rq.json(http.StatusOK, answer)
}

// backfillRunID derives the id of one tick's run within one backfill.
func backfillRunID(j job.JobID, backfill string, at job.Instant) job.RunID {
	h := sha256.New()
	h.Write([]byte("backfill"))
	h.Write(j[:])
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
	h.Write([]byte(hex.EncodeToString([]byte(backfill))))
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return job.MakeRunID(at.Time(), [10]byte(sum[:10]))
}
