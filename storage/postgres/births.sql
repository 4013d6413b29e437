-- On looking up rows by id see moves.sql.

-- name: claim_keys
-- A key that is there and not expired stays as it is; the update makes its row visible, whoever wrote it, and to all of
-- any number of callers. A run that is there already claims no key (S10). In the order of the keys, so that two batches
-- cannot wait for each other.
INSERT INTO muster.keys AS k (namespace, key, run_id, body_hash, accepted_at)
SELECT c.namespace, c.key, c.run_id, c.body_hash, $5::timestamptz
FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bytea[]) AS c (namespace, key, run_id, body_hash)
WHERE (SELECT true FROM muster.runs r WHERE r.id = c.run_id) IS NULL
ON CONFLICT (namespace, key) DO UPDATE SET
    run_id = CASE WHEN k.accepted_at <= $6::timestamptz THEN excluded.run_id ELSE k.run_id END,
    body_hash = CASE WHEN k.accepted_at <= $6::timestamptz THEN excluded.body_hash ELSE k.body_hash END,
    accepted_at = CASE WHEN k.accepted_at <= $6::timestamptz THEN excluded.accepted_at ELSE k.accepted_at END
RETURNING k.namespace, k.key, k.run_id, k.body_hash

-- name: runs_by_id
SELECT {full} FROM unnest($1::uuid[]) AS w (id) JOIN muster.runs r ON r.id BETWEEN w.id AND w.id

-- name: cancel
-- The first intent stays, and none changes a run that has ended (L9).
UPDATE muster.runs AS r SET cancel_at = m.at, cancel_reason = m.reason
FROM unnest($1::uuid[], $2::timestamptz[], $3::smallint[]) AS m (id, at, reason)
WHERE r.id BETWEEN m.id AND m.id AND r.state + 0 < 6 AND r.cancel_at IS NULL
