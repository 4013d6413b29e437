package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musterhq/muster/job"
)

// How Serve watches. Together the first three bound how long a Postgres that hangs goes unnoticed: under 3 s.
const (
	lookEvery    = 500 * time.Millisecond
	quietFor     = time.Second     // a call that succeeded this lately makes a probe superfluous
	askAnyway    = 5 * time.Second // but not for longer: calls do not say whose database this is
	probeTimeout = 1250 * time.Millisecond

	dialTimeout  = 3 * time.Second  // of one host
	setUpTimeout = 10 * time.Second // of everything but a migration
	retryMin     = 250 * time.Millisecond
	retryMax     = time.Second
)

// parseURL reads a URL without any of its text in the error: what is malformed may well be the password.
func parseURL(url string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil || strings.TrimSpace(url) == "" {
		return nil, job.Errorf(job.Invalid, "postgres_url",
			"the address of Postgres cannot be read; it looks like postgres://user@host:5432/database?sslmode=verify-full, with special characters of a password written as %%XX")
	}
	if cfg.ConnConfig.ConnectTimeout == 0 || cfg.ConnConfig.ConnectTimeout > dialTimeout {
		cfg.ConnConfig.ConnectTimeout = dialTimeout
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "muster"
	}
	cfg.MinConns, cfg.MinIdleConns = 0, 0
	cfg.MaxConnIdleTime = 5 * time.Minute
	cfg.PingTimeout = probeTimeout
	return cfg, nil
}

// life is one stretch of time during which Postgres is there: its connections, which end with it.
type life struct {
	pools   [purposes]*pgxpool.Pool
	probe   *pgx.Conn
	sockets *sockets
	started time.Time

	lastSuccess atomic.Int64  // nanoseconds after started
	suspected   chan struct{} // a call failed: ask at once
}

func (l *life) succeeded() { l.lastSuccess.Store(int64(time.Since(l.started))) }

func (l *life) quiet() time.Duration {
	return time.Since(l.started) - time.Duration(l.lastSuccess.Load())
}

func (l *life) suspect() {
	select {
	case l.suspected <- struct{}{}:
	default: // somebody said so already
	}
}

// Serve keeps the connection until ctx ends or Close is called, and then returns nil. It returns an error only where trying
// again is useless before somebody changed something: the server is too old, the schema is older than this release needs
// and may not be changed, or the database belongs to another cluster (S11). It may be called once.
func (s *Store) Serve(ctx context.Context) error {
	done := make(chan struct{})
	if !s.running.CompareAndSwap(nil, &done) {
		return job.Errorf(job.Internal, "", "the store runs already")
	}
	defer close(done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	pause := retryMin
	s.began = time.Now()
	for ctx.Err() == nil {
		l, err := s.begin(ctx)
		was := err == nil
		if was {
			pause = retryMin
			s.came.Add(1)
			s.life.Store(l)
			s.cfg.Logger.Info("postgres is available")
			err = s.watch(ctx, l)
			s.setAway(sentenceOf(err))
			s.life.Store(nil)
			l.end()
		}
		var useless *refusal
		if errors.As(err, &useless) && !s.wasUp {
			s.setAway(useless.why.Message)
			return useless.why
		}
		if ctx.Err() != nil {
			break
		}
		if s.setAway(sentenceOf(err)) || was {
			level := slog.LevelWarn
			if s.forming(err) {
				level = slog.LevelDebug
			}
			s.cfg.Logger.Log(ctx, level, "postgres is away", "err", sentenceOf(err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, retryMax)
	}
	s.setAway("this node is stopping")
	return nil
}

// forming tells whether Postgres is only waited for because the cluster is being made: it has no id yet, or its leader has not
// made the empty database the cluster's.
func (s *Store) forming(err error) bool {
	return s.came.Load() == 0 && time.Since(s.began) < formingFor && (errors.Is(err, errNoID) || errors.Is(err, errEmpty))
}

// formingFor is how long that may take before people should know of it.
const formingFor = 10 * time.Second

var errNoID = job.Errorf(job.Unavailable, storeUnavailable, "the cluster's id is not known yet")

// setAway notes why calls fail, and tells whether that is news.
func (s *Store) setAway(why string) bool {
	old := s.why.Swap(&why)
	return old == nil || *old != why
}

// refusal is a reason not to use this database that does not pass by itself.
type refusal struct{ why *job.Error }

func (r *refusal) Error() string { return r.why.Error() }
func (r *refusal) Unwrap() error { return r.why }

func refuse(reason, format string, args ...any) error {
	return &refusal{job.Errorf(job.Conflict, reason, format, args...)}
}

// sentenceOf is what people are told of an error that keeps the store away.
func sentenceOf(err error) string {
	var ours *job.Error
	switch {
	case err == nil:
		return "the store is being closed"
	case errors.As(err, &ours):
		return ours.Message
	}
	return sentence(err)
}

// begin connects and makes sure that this is a database that the store may use.
func (s *Store) begin(ctx context.Context) (_ *life, err error) {
	id := s.cfg.ClusterID()
	if id == "" {
		return nil, errNoID
	}
	l := &life{sockets: newSockets(), started: time.Now(), suspected: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			l.end()
		}
	}()
	if err := s.dialProbe(ctx, l); err != nil {
		return nil, err
	}
	if err := s.checkServer(ctx, l.probe); err != nil {
		return nil, err
	}
	if err := s.checkSchema(ctx, l.probe); err != nil {
		return nil, err
	}
	if err := s.claim(ctx, l.probe, id); err != nil {
		return nil, err
	}
	for p := range purposes {
		if l.pools[p], err = s.pool(ctx, l, p, id); err != nil {
			return nil, err
		}
	}
	s.wasUp = true
	l.succeeded()
	return l, nil
}

// dialProbe opens the connection that Serve asks its own questions on. Of several hosts each has its time: the first may be
// one that is switched off.
func (s *Store) dialProbe(ctx context.Context, l *life) error {
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	cfg := s.parsed.ConnConfig.Copy()
	cfg.DialFunc = l.sockets.dial(cfg.DialFunc)
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	l.probe = c
	return nil
}

// pool makes one pool. It connects when it is asked to.
func (s *Store) pool(ctx context.Context, l *life, p purpose, id string) (*pgxpool.Pool, error) {
	cfg := s.parsed.Copy()
	cfg.ConnConfig.DialFunc = l.sockets.dial(cfg.ConnConfig.DialFunc)
	cfg.MaxConns = int32([...]int{leading: s.cfg.LeaderConns, bearing: s.cfg.BirthConns, reading: s.cfg.ReadConns}[p])
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		// As a statement, not as start-up parameters, which connection poolers refuse.
		var owner string
		var epoch int64
		err := c.QueryRow(ctx, greetSQL, statementTimeout, lockTimeout, idleTimeout).Scan(&owner, &epoch, nil, nil, nil, nil, nil, nil, nil, nil, nil)
		if err == nil && owner != id {
			err = foreign(owner, id)
		}
		if err == nil {
			err = s.notBehind(epoch)
		}
		if err == nil && p != reading {
			_, err = c.Exec(ctx, plansSQL)
		}
		return err
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// greetSQL makes a new connection ours, and makes sure that it leads to the database that the others lead to. What is
// looked up by id is recent and in memory, which the planner is told: it would rather read a whole small partition. The
// session of a machine that is gone ends within a minute, and not after hours, with the locks that it holds.
// At a higher isolation level, which a database can have as its default, the fence would read the epoch as it was before it
// had the lock (L1). And where commits are not waited for, a crash would lose what was accepted (D1).
const greetSQL = `SELECT id, epoch, set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false),
	set_config('idle_in_transaction_session_timeout', $3, false), set_config('random_page_cost', '1.1', false),
	set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),
	set_config('tcp_keepalives_count', '3', false),
	set_config('default_transaction_isolation', 'read committed', false),
	set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)
	FROM muster.cluster`

func foreign(owner, id string) error {
	return &refusal{job.Errorf(job.Unavailable, "store_of_another_cluster",
		"this Postgres database belongs to the cluster %s, and this is the cluster %s: check --postgres, or take the database over with --adopt-store", owner, id)}
}

// notBehind refuses a database that is this cluster's by its id, and not the one that its leader writes to.
func (s *Store) notBehind(epoch int64) error {
	if raised := s.cfg.Raised(); epoch < int64(raised) {
		return job.Errorf(job.Unavailable, "store_behind",
			"this Postgres database stands at epoch %d, and the cluster's was raised to %d: it is an old primary or a copy; check --postgres, or, if it was put back to an earlier moment on purpose, start a node with --adopt-store", epoch, raised)
	}
	return nil
}

// checkServer refuses what Muster cannot live on.
func (s *Store) checkServer(ctx context.Context, c *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	var version int
	var encoding string
	var standby, readOnly, empty bool
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
		pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', to_regclass('muster.cluster') IS NULL`).
		Scan(&version, &encoding, &standby, &readOnly, &empty)
	switch {
	case err != nil:
		return unreadable(err)
	case version < 140000:
		return refuse("postgres_version", "this Postgres is version %d, and Muster needs 14 or newer", version/10000)
	case encoding != "UTF8":
		return refuse("postgres_encoding", "this database's encoding is %s, and Muster needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0", encoding)
	case standby:
		return job.Errorf(job.Unavailable, storeUnavailable, "this Postgres is read-only: it is a standby, and the primary is needed")
	case readOnly:
		return job.Errorf(job.Unavailable, storeUnavailable,
			"this Postgres is read-only for us: turn default_transaction_read_only off for the role, the database or the server")
	case empty && !s.mayClaim():
		return errEmpty
	}
	return nil
}

var errEmpty = job.Errorf(job.Unavailable, "store_empty",
	"the database at this address is empty, and only the leader of a new cluster begins with such a one: if this cluster had another, check --postgres, or begin anew with --adopt-store")

// mayClaim tells whether a database that is nobody's may become ours.
func (s *Store) mayClaim() bool {
	return !s.wasUp && (s.cfg.AdoptStore || s.cfg.MayClaim == nil || s.cfg.MayClaim())
}

// claim makes the database this cluster's if it is nobody's, and compares otherwise (S11).
func (s *Store) claim(ctx context.Context, c *pgx.Conn, id string) error {
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	var owner string
	var epoch int64
	query, args := "SELECT id, epoch FROM muster.cluster", []any{}
	if s.mayClaim() {
		query, args = claimSQL, []any{id}
	}
	switch found, err := one(&owner, c.QueryRow(ctx, query, args...).Scan(&owner, &epoch)); {
	case err != nil:
		return err
	case found == nil:
		return errEmpty
	}
	raised := s.cfg.Raised()
	switch adopt := s.cfg.AdoptStore && !s.wasUp; {
	case owner == id && (epoch >= int64(raised) || !adopt):
		return s.notBehind(epoch)
	case !adopt:
		return foreign(owner, id)
	}
	// Whatever the other cluster's leader does ends first, or the fence would let it commit after this.
	err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", raiseLock)
		if err == nil {
			_, err = tx.Exec(ctx, "UPDATE muster.cluster SET id = $1, claimed_at = now(), epoch = greatest(epoch, $2)", id, int64(raised))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("take the database over: %w", err)
	}
	if owner == id {
		s.cfg.Logger.Warn("this postgres database is older than what the cluster wrote last and was taken over, as --adopt-store says: what it lacks is lost",
			"epoch", epoch, "raised", raised)
		return nil
	}
	s.cfg.Logger.Warn("this postgres database belonged to another cluster and was taken over, as --adopt-store says: that cluster can no longer use it",
		"previous_cluster_id", owner, "cluster_id", id)
	return nil
}

// claimSQL answers the owner after the call, whoever that is. The update changes nothing: it makes the row visible also
// to the one of two claimants that came second.
const claimSQL = `INSERT INTO muster.cluster (id) VALUES ($1) ON CONFLICT (one) DO UPDATE SET id = muster.cluster.id RETURNING id, epoch`

// watch returns when ctx ends, with nil, or when Postgres is away, with why.
func (s *Store) watch(ctx context.Context, l *life) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	asked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.suspected:
		case <-look.C:
			if l.quiet() < quietFor && time.Since(asked) < askAnyway {
				continue
			}
		}
		if err := s.ask(ctx, l); err != nil && ctx.Err() == nil {
			return err
		}
		asked = time.Now()
	}
}

// ask is one probe: is Postgres there, ours, and not a standby? A connection that broke by itself is opened again within
// the same time; a server that does not answer has had its time.
func (s *Store) ask(ctx context.Context, l *life) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for try := 1; ; try++ {
		var owner string
		var epoch int64
		var standby bool
		err := errors.New("no connection")
		if !l.probe.IsClosed() {
			err = l.probe.QueryRow(ctx, "SELECT id, epoch, pg_is_in_recovery() FROM muster.cluster").Scan(&owner, &epoch, &standby)
		}
		switch {
		case err == nil && owner != s.cfg.ClusterID():
			return foreign(owner, s.cfg.ClusterID())
		case err == nil && standby:
			return job.Errorf(job.Unavailable, storeUnavailable, "this Postgres became a standby, and the primary is needed")
		case err == nil:
			l.succeeded()
			return s.notBehind(epoch)
		case try == 2 || ctx.Err() != nil || !l.probe.IsClosed():
			return err
		}
		if err := s.dialProbe(ctx, l); err != nil {
			return err
		}
	}
}

// end closes all connections. Their sockets go first, so that calls under way fail now, and closing waits for nobody.
func (l *life) end() {
	l.sockets.cut()
	var wg sync.WaitGroup
	for _, p := range l.pools {
		if p != nil {
			wg.Go(p.Close)
		}
	}
	if l.probe != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.probe.Close(ctx) // its socket is closed already
		<-l.probe.PgConn().CleanupDone()
	}
	wg.Wait()
}

// sockets are the network connections of one life.
type sockets struct {
	mu   sync.Mutex
	open map[*socket]struct{}
	over bool
}

type socket struct {
	net.Conn
	of *sockets
}

func newSockets() *sockets { return &sockets{open: map[*socket]struct{}{}} }

// dial keeps account of what is opened, and opens nothing after cut.
func (s *sockets) dial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		s.mu.Lock()
		over := s.over
		s.mu.Unlock()
		if over {
			return nil, net.ErrClosed
		}
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		own := &socket{Conn: c, of: s}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.over {
			_ = c.Close()
			return nil, net.ErrClosed
		}
		s.open[own] = struct{}{}
		return own, nil
	}
}

func (c *socket) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut closes all, and what is being opened.
func (s *sockets) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for c := range s.open {
		_ = c.Conn.Close()
	}
}
