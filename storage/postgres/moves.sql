-- Rows are looked up by their ids, in the order of the ids that are given, and each statement has one right plan: a probe of
-- the primary key for each id, in the one partition that may have it. What is planned while a table is empty, or was when it
-- was analysed, would be something else, and stay so while it grows: it would walk an index from end to end for each id. So
-- nothing else is left to the planner. "BETWEEN m.id AND m.id" is "= m.id" that can neither be merged nor hashed, for which
-- alone an index would be walked in order; "state + 0" keeps out the index of live rows, whose condition it would be; and
-- connections that write do without sequential scans (plansSQL). TestPlans looks.

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
WHERE r.id BETWEEN m.id AND m.id AND r.state + 0 < 6 AND coalesce(r.fence, 0) <= m.fence
RETURNING {narrow}

-- name: lock_runs
SELECT {full} FROM unnest($1::uuid[]) AS w (id) JOIN muster.runs r ON r.id BETWEEN w.id AND w.id FOR UPDATE OF r

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
WHERE r.id BETWEEN m.id AND m.id

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
WHERE a.run_id BETWEEN w.run_id AND w.run_id AND a.attempt <= w.attempt

-- name: emit
-- In the order in which they are given: a run's events are numbered while its row is locked, so they come in order.
INSERT INTO muster.outbox (run_id, kind, at, body)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::timestamptz[], $4::text[])
