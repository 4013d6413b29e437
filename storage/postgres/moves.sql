-- Rows are looked up by r.id = m.id and by nothing else that an index could serve, in the order of the ids that are given:
-- that leaves the planner one way, an index scan of the primary key for each id in the one partition that may have it. A
-- condition on the state of a row would invite it to walk the partial index of live rows instead, which is empty whenever
-- it is analysed and looks cheap: "+ 0" keeps it out. So would a range of ids, the primary key of a small table.

-- name: end_attempts
-- Moves that end an attempt and the run with it, for rows on which job.Move.Apply makes them: see endsRun.
UPDATE muster.runs AS r SET
    state = m.state,
    reason = CASE WHEN m.state = 8 AND r.cancel_at IS NOT NULL THEN coalesce(r.cancel_reason, 19) ELSE m.reason END,
    attempt = m.attempt, losses = m.losses, failures = m.failures, worker = m.worker, fence = m.fence,
    started_at = m.started_at, finished_at = m.finished_at, exit_code = m.exit_code, result = m.result, error = m.error
FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
    $9::timestamptz[], $10::timestamptz[], $11::integer[], $12::text[], $13::text[])
    AS m (id, state, reason, attempt, losses, failures, worker, fence, started_at, finished_at, exit_code, result, error)
WHERE r.id = m.id AND r.state + 0 < 6 AND coalesce(r.fence, 0) <= m.fence
RETURNING {narrow}

-- name: lock_runs
SELECT {full} FROM unnest($1::uuid[]) AS w (id) JOIN muster.runs r ON r.id = w.id FOR UPDATE OF r

-- name: write_runs
-- Rows that lock_runs locked, as job.Move.Apply made them.
UPDATE muster.runs AS r SET
    state = m.state, reason = m.reason, attempt = m.attempt, losses = m.losses, failures = m.failures, worker = m.worker,
    fence = m.fence, started_at = m.started_at, finished_at = m.finished_at, exit_code = m.exit_code, result = m.result,
    error = m.error, ready_at = m.ready_at, queued_at = m.queued_at, lane_order = m.lane_order
FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
    $9::timestamptz[], $10::timestamptz[], $11::integer[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[], $16::bigint[])
    AS m (id, state, reason, attempt, losses, failures, worker, fence, started_at, finished_at, exit_code, result, error,
          ready_at, queued_at, lane_order)
WHERE r.id = m.id

-- name: keep_attempts
INSERT INTO muster.attempts (run_id, fence, attempt, worker, started_at, finished_at, state, reason, exit_code, error)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::smallint[],
    $8::smallint[], $9::integer[], $10::text[])
ON CONFLICT (run_id, fence) DO UPDATE SET attempt = excluded.attempt, worker = excluded.worker, started_at = excluded.started_at,
    finished_at = excluded.finished_at, state = excluded.state, reason = excluded.reason, exit_code = excluded.exit_code,
    error = excluded.error

-- name: drop_attempts
-- Attempts that were given back count against nothing, so a run may have any number: the oldest go.
DELETE FROM muster.attempts AS a USING unnest($1::uuid[], $2::integer[]) AS w (run_id, attempt)
WHERE a.run_id = w.run_id AND a.attempt <= w.attempt

-- name: emit
-- In the order in which they are given: a run's events are numbered while its row is locked, so they come in order.
INSERT INTO muster.outbox (run_id, kind, at, body)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::timestamptz[], $4::text[])
