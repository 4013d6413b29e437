package api

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/musterhq/muster/job"
)

// Runs are most of what the API answers, and encoding/json spent half the time of a batch on them: it calls each type's
// MarshalJSON or MarshalText, and checks and copies what they answer. So runs are written by hand here, field for field
// what job.Run's own tags say; a test holds the two against each other, for every field there is.

// writeRun answers one run.
func (rq *request) writeRun(status int, r *job.Run) error {
	buf := takeBuffer()
	defer giveBuffer(buf)
	b := appendRun(buf.AvailableBuffer(), r)
	buf.Write(append(b, '\n')) // in place, if it fitted
	rq.writeBytes(status, jsonType, buf.Bytes())
	return nil
}

// writeBatch answers a batch.
func (rq *request) writeBatch(a *BatchAnswer) error {
	buf := takeBuffer()
	defer giveBuffer(buf)
	b := append(buf.AvailableBuffer(), `{"items":[`...)
	for i := range a.Items {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendItem(b, &a.Items[i])
	}
	buf.Write(append(b, "]}\n"...))
	rq.writeBytes(http.StatusOK, jsonType, buf.Bytes())
	return nil
}

// writeRuns answers a page of runs.
func (rq *request) writeRuns(p *page[*job.Run]) error {
	buf := takeBuffer()
	defer giveBuffer(buf)
	b := append(buf.AvailableBuffer(), `{"items":[`...)
	for i, r := range p.Items {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendRun(b, r)
	}
	b = append(b, ']')
	if p.NextCursor != "" {
		b = appendText(append(b, `,"next_cursor":`...), p.NextCursor)
	}
	buf.Write(append(b, "}\n"...))
	rq.writeBytes(http.StatusOK, jsonType, buf.Bytes())
	return nil
}

func appendItem(b []byte, it *BatchItem) []byte {
	if it.Problem != nil {
		doc, err := json.Marshal(it.Problem)
		if err != nil { // it has only texts and numbers
			panic(err)
		}
		return append(append(append(b, `{"problem":`...), doc...), '}')
	}
	b = appendRun(append(b, `{"run":`...), it.Run)
	if it.Existing {
		b = append(b, `,"existing":true`...)
	}
	return append(b, '}')
}

// appendRun writes r as json.Marshal would.
func appendRun(b []byte, r *job.Run) []byte {
	root := r.RootID
	if root.IsZero() {
		root = r.ID
	}
	b = appendID(append(b, `{"id":`...), r.ID)
	b = appendID(append(b, `,"root_id":`...), root)
	b = appendText(append(b, `,"namespace":`...), r.Namespace)
	b = textField(b, `,"job":`, r.Job)
	b = numberField(b, `,"job_version":`, r.JobVersion)
	b = textField(b, `,"task":`, r.Task)
	b = appendText(append(b, `,"trigger":`...), r.Trigger.String())
	b = appendText(append(b, `,"state":`...), r.State.String())
	if r.Reason != job.NoReason {
		b = appendText(append(b, `,"reason":`...), r.Reason.String())
	}
	b = strconv.AppendUint(append(b, `,"priority":`...), uint64(r.Priority), 10)
	b = strconv.AppendUint(append(b, `,"attempt":`...), uint64(r.Attempt), 10)
	b = numberField(b, `,"losses":`, uint64(r.Losses))
	b = textField(b, `,"worker":`, r.Worker)
	b = timeField(b, `,"scheduled_at":`, r.ScheduledAt)
	if r.CreatedAt == 0 {
		b = append(b, `,"created_at":null`...)
	}
	b = timeField(b, `,"created_at":`, r.CreatedAt)
	b = timeField(b, `,"ready_at":`, r.ReadyAt)
	b = timeField(b, `,"queued_at":`, r.QueuedAt)
	b = timeField(b, `,"started_at":`, r.StartedAt)
	b = timeField(b, `,"finished_at":`, r.FinishedAt)
	b = timeField(b, `,"deadline_at":`, r.DeadlineAt)
	b = timeField(b, `,"start_by":`, r.StartBy)
	b = rawField(b, `,"payload":`, r.Payload)
	b = rawField(b, `,"result":`, r.Result)
	b = textField(b, `,"error":`, r.Error)
	if r.ExitCode != 0 {
		b = strconv.AppendInt(append(b, `,"exit_code":`...), int64(r.ExitCode), 10)
	}
	b = labelsField(b, r.Labels)
	b = appendText(append(b, `,"durability":`...), r.Home.String())
	b = rawField(b, `,"spec":`, r.Spec)
	b = textField(b, `,"idempotency_key":`, r.Key)
	b = idField(b, `,"retry_of":`, r.RetryOf)
	b = idField(b, `,"canonical_id":`, r.CanonicalID)
	b = timeField(b, `,"cancel_requested_at":`, r.CancelAt)
	b = textField(b, `,"backfill_id":`, r.BackfillID)
	b = numberField(b, `,"failures":`, uint64(r.Failures))
	b = numberField(b, `,"item":`, uint64(r.Item))
	b = numberField(b, `,"items":`, uint64(r.Items))
	b = idField(b, `,"parent_id":`, r.ParentID)
	b = idField(b, `,"reused_from":`, r.ReusedFrom)
	b = upstreamsField(b, r.Upstreams)
	return append(b, '}')
}

func upstreamsField(b []byte, ups []job.UpstreamRun) []byte {
	if len(ups) == 0 {
		return b
	}
	b = append(b, `,"upstreams":[`...)
	for i := range ups {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(b, `{"job":`...), ups[i].Job)
		b = appendID(append(b, `,"run_id":`...), ups[i].RunID)
		b = append(numberField(b, `,"coalesced":`, uint64(ups[i].Coalesced)), '}')
	}
	return append(b, ']')
}

func textField(b []byte, name, v string) []byte {
	if v == "" {
		return b
	}
	return appendText(append(b, name...), v)
}

func numberField(b []byte, name string, v uint64) []byte {
	if v == 0 {
		return b
	}
	return strconv.AppendUint(append(b, name...), v, 10)
}

func timeField(b []byte, name string, at job.Instant) []byte {
	if at == 0 {
		return b
	}
	b = append(append(b, name...), '"')
	b = at.Time().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

func idField(b []byte, name string, id job.RunID) []byte {
	if id.IsZero() {
		return b
	}
	return appendID(append(b, name...), id)
}

// rawField writes JSON that was checked when it came in. One that is broken all the same is shown as text: it must not
// break the page that it stands in.
func rawField(b []byte, name string, raw json.RawMessage) []byte {
	if len(raw) == 0 {
		return b
	}
	b = append(b, name...)
	if !json.Valid(raw) {
		return appendText(b, string(raw))
	}
	return append(b, raw...)
}

func labelsField(b []byte, labels map[string]string) []byte {
	if len(labels) == 0 {
		return b
	}
	b = append(b, `,"labels":{`...)
	for i, k := range slices.Sorted(maps.Keys(labels)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(appendText(b, k), ':'), labels[k])
	}
	return append(b, '}')
}

func appendID(b []byte, id job.RunID) []byte {
	b = append(b, '"')
	b = hex.AppendEncode(b, id[:4])
	b = hex.AppendEncode(append(b, '-'), id[4:6])
	b = hex.AppendEncode(append(b, '-'), id[6:8])
	b = hex.AppendEncode(append(b, '-'), id[8:10])
	b = hex.AppendEncode(append(b, '-'), id[10:])
	return append(b, '"')
}

func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil { // a string always can be
				panic(err)
			}
			return append(b, quoted...)
		}
	}
	b = append(append(b, '"'), s...)
	return append(b, '"')
}
