package api

import "github.com/musterhq/muster/job"

// writeRun answers one run.
func (rq *request) writeRun(status int, r *job.Run) error { return rq.json(status, r) }

// writeBatch answers a batch.
func (rq *request) writeBatch(b *BatchAnswer) error { return rq.json(200, b) }
