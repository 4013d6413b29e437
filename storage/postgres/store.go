package postgres

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage"
)

// Config is what a Store needs to know.
type Config struct {
	// URL says where Postgres is, as libpq reads it: postgres://user@host:5432/database?sslmode=verify-full, or key=value
	// pairs. The password may come with it, from PGPASSWORD or from a passfile; it is never written to a log or an error.
	URL string
	// ClusterID answers the id of the cluster, "" while it is not known yet: the store stays away until it is.
	ClusterID func() string
	// Migrate lets Serve bring the schema up to date. Without it an older schema than this release needs is refused.
	Migrate bool
	// Raised answers the epoch to which a leader has raised this store, as far as the cluster knows; nil means 0. A database
	// with a lower one is another than the leader writes to, though it has the cluster's id: an old primary, or a copy. It is
	// refused, but with AdoptStore (S11).
	Raised func() job.Epoch
	// MayClaim answers whether a database that is nobody's may become the cluster's; nil means always. It may not once the
	// cluster has runs in another one: what is empty then is the wrong database, or one that lost everything.
	MayClaim func() bool
	// AdoptStore takes a database over that belongs to another cluster, which can then no longer use it, or one that
	// MayClaim refuses (S11).
	AdoptStore bool
	// Outbox makes births and moves write events to muster.outbox, for a sink that is configured.
	Outbox bool
	// PartitionWidth is how much time a partition of runs, attempts and ticks covers; 0 means a week. Partitions made with
	// another width stay as they are.
	PartitionWidth time.Duration
	// PartitionsAhead is how many partitions after the current one are kept ready; 0 means 4.
	PartitionsAhead int
	// LeaderConns, BirthConns and ReadConns bound the three pools; 0 means 4, 4 and 8. They are opened as needed.
	LeaderConns, BirthConns, ReadConns int
	// Now is the cluster's time; nil means the machine's. Only the ages of idempotency keys and the partitions made ahead
	// are judged by it.
	Now func() time.Time
	// Logger takes what people should know; nil means nobody.
	Logger *slog.Logger
	// Registerer takes the metrics; nil means nobody.
	Registerer prometheus.Registerer
}

// Bounds of one call. The server's own come first, so that a slow statement is answered as one that did nothing.
const (
	callTimeout      = 5 * time.Second
	statementTimeout = "4s"
	lockTimeout      = "3s"
	// idleTimeout ends the session of who was paused within a transaction, with what it has locked: the fence (L1), a
	// namespace's graph, keys, rows. Its call is over by then.
	idleTimeout = "5s"
)

// Store implements storage.Store.
type Store struct {
	cfg     Config
	parsed  *pgxpool.Config
	metrics *metrics

	life atomic.Pointer[life]   // nil while Postgres is away
	came atomic.Uint64          // how often it came
	why  atomic.Pointer[string] // why it is away

	began   time.Time       // Serve alone
	wasUp   bool            // Serve alone: this database was ours before, so an empty one in its place is refused
	closing context.Context // ended by Close
	close   context.CancelFunc
	running atomic.Pointer[chan struct{}] // closed when Serve has returned

	pruning   pruning
	jobs      sharedReads[jobName, *job.Job]
	specs     specs
	bulkySize *int64 // of tests alone; nil means bulky

	births    batcher[*job.Run]
	intents   batcher[job.CancelIntent]
	documents documentCache
	unfit     complaints
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Graphs = (*Store)(nil)
)

// New checks the configuration. It opens nothing: see Serve.
func New(cfg Config) (*Store, error) {
	parsed, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.ClusterID == nil {
		return nil, job.Errorf(job.Internal, "", "a store needs to know whose it is: ClusterID is not set")
	}
	if cfg.PartitionWidth < 0 || cfg.PartitionWidth > 0 && cfg.PartitionWidth < time.Minute {
		return nil, job.Errorf(job.Invalid, "", "a partition cannot cover %s; a minute is the least", cfg.PartitionWidth)
	}
	cfg.PartitionWidth = or(cfg.PartitionWidth, 7*24*time.Hour)
	cfg.PartitionsAhead = or(cfg.PartitionsAhead, 4)
	cfg.LeaderConns, cfg.BirthConns, cfg.ReadConns = or(cfg.LeaderConns, 4), or(cfg.BirthConns, 4), or(cfg.ReadConns, 8)
	if cfg.Raised == nil {
		cfg.Raised = func() job.Epoch { return 0 }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, parsed: parsed}
	s.closing, s.close = context.WithCancel(context.Background())
	s.births = batcher[*job.Run]{write: s.writeBirths, weight: birthWeight}
	s.intents = batcher[job.CancelIntent]{write: s.writeIntents, weight: func(*job.CancelIntent) int { return 32 }}
	s.metrics = newMetrics(cfg.Registerer, s)
	s.setAway("nothing has connected to it yet")
	return s, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Ready tells whether calls can succeed now, and if not, why in one sentence.
func (s *Store) Ready() (ok bool, reason string) {
	if s.life.Load() != nil {
		return true, ""
	}
	return false, *s.why.Load()
}

// Came counts how often Postgres came, the first time included. What comes may be another server at the same address.
func (s *Store) Came() uint64 { return s.came.Load() }

// Close ends Serve and waits for it. It may be called twice, and when Serve was never called.
func (s *Store) Close() error {
	s.close()
	if done := s.running.Load(); done != nil {
		<-*done
	}
	return nil
}

// purpose is which pool a connection comes from.
type purpose int

const (
	leading purpose = iota // what the leader alone does: ticks, moves, raising, pruning
	bearing                // births and intents
	reading                // what people read, and definitions
	purposes
)

func (p purpose) String() string { return [...]string{"leader", "births", "reads"}[p] }

// use lends a connection for one call. It answers at once while Postgres is away, and within callTimeout in any case.
// What do returns is turned into a *job.Error: one of the driver as something that did nothing, unless it was marked with
// unsure. After an error the connection is as the driver left it: closed, or usable and outside of a transaction only if
// do saw to that.
func (s *Store) use(ctx context.Context, p purpose, do func(ctx context.Context, c *pgx.Conn) error) error {
	l := s.life.Load()
	if l == nil {
		return s.unavailable()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := l.pools[p].Acquire(ctx)
	if err != nil {
		l.suspect()
		return s.unreached(l, p, err)
	}
	defer c.Release()
	if err = do(ctx, c.Conn()); err == nil {
		l.succeeded()
		return nil
	}
	if doubtful(err) {
		l.suspect()
	} else {
		l.succeeded() // it answered
	}
	mapped := mapError(err)
	s.metrics.failed(p, mapped)
	return mapped
}

// unreached is the error of a call that got no connection, and so did nothing.
func (s *Store) unreached(l *life, p purpose, err error) error {
	var mapped error
	switch {
	case errors.As(err, new(*job.Error)):
		mapped = mapError(err)
	case s.life.Load() != l: // it ended meanwhile, and its pools were closed
		mapped = s.unavailable()
	case errors.Is(err, context.DeadlineExceeded) && l.pools[p].Stat().AcquiredConns() >= l.pools[p].Config().MaxConns:
		mapped = away(err, "all "+p.String()+" connections to Postgres are busy")
	default:
		mapped = away(err, sentence(err))
	}
	s.metrics.failed(p, mapped)
	return mapped
}

// transact runs do in a transaction and commits it, again when Postgres says that repeating helps (serialization, a
// deadlock). do may therefore run more than once.
func (s *Store) transact(ctx context.Context, p purpose, do func(ctx context.Context, tx pgx.Tx) error) error {
	return s.use(ctx, p, func(ctx context.Context, c *pgx.Conn) error {
		return again(ctx, func() error {
			tx, err := c.Begin(ctx)
			if err != nil {
				return err
			}
			if err := do(ctx, tx); err != nil {
				// A connection that cannot even roll back is closed by this, and then so is the transaction.
				_ = tx.Rollback(ctx)
				return err
			}
			if err := tx.Commit(ctx); err != nil {
				return unsure(err)
			}
			return nil
		})
	})
}

// fenced is transact for the leader: nothing in it happens unless epoch is the one that was raised last (L1).
func (s *Store) fenced(ctx context.Context, epoch job.Epoch, do func(ctx context.Context, tx pgx.Tx) error) error {
	return s.transact(ctx, leading, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fenceSQL, s.cfg.ClusterID(), int64(epoch)); err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// fenceSQL is the first statement of every transaction of a leader.
const fenceSQL = "SELECT muster.fence($1, $2)"

// raiseLock is the advisory lock that muster.fence shares and a raise takes for itself.
const raiseLock int64 = 7236829178463982

// again repeats what Postgres asks to be repeated, a few times.
func again(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == 5 || !repeatable(err) {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * 5 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// one is nil, and no error, when a query finds nothing.
func one[T any](v *T, err error) (*T, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return v, err
}
