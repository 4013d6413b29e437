package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musterhq/muster/job"
)

var raiseSQL = statements("raise.sql")

// raisePatience is how long a raise waits for transactions of leaders to end. Whoever began one before that and has not
// ended it hangs, or leads no longer and does not know: its session is ended (L1).
const raisePatience = time.Second

// Raise implements storage.Moves. It takes the lock that every transaction of a leader shares, so when it is done each of
// them has ended, and the next reads the new epoch. A raise that waits is ahead of transactions that begin after it.
func (s *Store) Raise(ctx context.Context, epoch job.Epoch) (stands job.Epoch, err error) {
	err = s.use(ctx, leading, func(ctx context.Context, c *pgx.Conn) error {
		for {
			err := again(ctx, func() (err error) {
				stands, err = s.raise(ctx, c, epoch)
				return err
			})
			if !lockNotHad(err) {
				return err
			}
			if err := s.endZombies(ctx, c); err != nil {
				return err
			}
		}
	})
	if err == nil && stands != epoch {
		err = job.Errorf(job.Fenced, "epoch", "the store's epoch is %d, and %d is not above it", stands, epoch)
	}
	return stands, err
}

func (s *Store) raise(ctx context.Context, c *pgx.Conn, epoch job.Epoch) (stands job.Epoch, err error) {
	// What is read after the lock is held has to be newer than the lock.
	tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil && !c.IsClosed() {
			_ = tx.Rollback(ctx) // a connection that cannot is closed by it
		}
	}()
	if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', $1, true)", raisePatience.String()); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, raiseSQL["hold_off"], raiseLock); err != nil {
		return 0, err
	}
	raised, err := tx.Exec(ctx, raiseSQL["raise"], s.cfg.ClusterID(), int64(epoch))
	if err != nil {
		return 0, err
	}
	var owner string
	var now int64
	if err := tx.QueryRow(ctx, raiseSQL["standing"]).Scan(&owner, &now); err != nil {
		return 0, err
	}
	if owner != s.cfg.ClusterID() {
		return 0, foreign(owner, s.cfg.ClusterID())
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, unsure(err)
	}
	if raised.RowsAffected() == 0 && job.Epoch(now) == epoch {
		return epoch, job.Errorf(job.Fenced, "epoch", "the store's epoch is %d already", epoch)
	}
	return job.Epoch(now), nil
}

func lockNotHad(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

// endZombies ends the sessions that a raise has waited for in vain.
func (s *Store) endZombies(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, raiseSQL["end_zombies"], raiseLock, raisePatience)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var pid int32
		var ended bool
		var from, state string
		var age float64
		if err := rows.Scan(&pid, &ended, &from, &state, &age); err != nil {
			return err
		}
		s.cfg.Logger.Warn("a session of an earlier leader held up the raise of the epoch and was ended", "pid", pid, "ended", ended,
			"from", from, "state", state, "seconds", age)
	}
	return rows.Err()
}
