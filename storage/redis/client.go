package redis

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/musterhq/muster/job"
)

// DefaultTimeout is how long a call may take, connecting included. Redis answers in less than a millisecond; who waits
// longer does without it.
const DefaultTimeout = 300 * time.Millisecond

// maxConnections is how many connections a client has at most: the queue is used by one caller at a time, and the status
// cache by few.
const maxConnections = 8

// Config says which Redis, and for whom.
type Config struct {
	// URL is redis://[user:password@]host:port/db, rediss:// for TLS, or unix://[user:password@]/path?db=N.
	URL string
	// ClusterID answers the cluster's id, "" while it is not known; calls are then refused as unavailable. Required.
	ClusterID func() string
	// Timeout bounds each call; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Client is a connection to Redis, which the queue and the status cache share.
type Client struct {
	redis     *goredis.Client
	clusterID func() string
	timeout   time.Duration
	secrets   []string // must not be seen
}

// silence keeps go-redis from writing to standard error, at every attempt, what its callers are told anyway. It has one
// logger for a whole process.
var silence = sync.OnceFunc(func() { goredis.SetLogger(discard{}) })

type discard struct{}

func (discard) Printf(context.Context, string, ...any) {}

// New checks the config. It connects to nothing: Redis may come and go.
func New(c Config) (*Client, error) {
	silence()
	o, err := goredis.ParseURL(c.URL)
	if err != nil { // which tells the URL, with the password
		return nil, job.Errorf(job.Invalid, "invalid_redis_url", "the URL of Redis cannot be read; write redis://[user:password@]host:port/db, with rediss:// for TLS, and with what is special in a password %%-encoded")
	}
	if c.ClusterID == nil {
		return nil, job.Errorf(job.Internal, "", "redis.Config.ClusterID is not set")
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	o.Protocol = 2
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.MaxRetries = -1 // a script whose outcome is not known is not sent again
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = c.Timeout, c.Timeout, c.Timeout, c.Timeout
	o.ContextTimeoutEnabled = true
	o.Dialer = unconnected(goredis.NewDialer(o))
	o.PoolSize, o.MaxActiveConns, o.PipelinePoolSize = maxConnections, maxConnections, -1
	o.MinIdleConns, o.MaxIdleConns, o.ConnMaxIdleTime = 0, 2, 5*time.Minute
	client := &Client{redis: goredis.NewClient(o), clusterID: c.ClusterID, timeout: c.Timeout}
	if o.Password != "" {
		client.secrets = append(client.secrets, o.Password)
	}
	return client, nil
}

// Close closes the connections. What is queued stays.
func (c *Client) Close() error { return c.redis.Close() }

// Address is where Redis is, for logs.
func (c *Client) Address() string { return c.redis.Options().Addr }

// prefix is what the names of all keys begin with.
func (c *Client) prefix() (string, error) {
	id := c.clusterID()
	if id == "" {
		return "", job.Errorf(job.Unavailable, unavailable, "the cluster has no id yet, and nothing is kept in Redis")
	}
	// A brace in it would end the hash tag.
	return "{muster:" + strings.NewReplacer("{", "%7b", "}", "%7d").Replace(id) + "}:", nil
}

// The reasons of errors.
const (
	// unavailable: Redis was not reached, or did not take the call. Nothing happened.
	unavailable = "queue_unavailable"
	// lost: the queue in Redis is not the one that the caller left there: flushed, put back from an old copy, a replica that
	// missed writes, foreign hands; or the caller does not know whether its last call was carried out. Nothing happened; the
	// way on is Raise, Reset, and filling it again.
	lost = "queue_lost"
)

// failed is the error for a call that got no answer, or that Redis answered with an error.
func (c *Client) failed(err error) error {
	cause := errors.New(c.scrub(err.Error()))
	if refused(err) {
		return &job.Error{Code: job.Unavailable, Reason: unavailable, Message: "Redis at " + c.Address() + " does not take the call", Cause: cause}
	}
	var dial noDial
	switch {
	case errors.As(err, &dial),
		errors.Is(err, goredis.ErrPoolTimeout), errors.Is(err, goredis.ErrPoolExhausted), errors.Is(err, goredis.ErrClosed):
		return &job.Error{Code: job.Unavailable, Reason: unavailable, Message: "Redis at " + c.Address() + " cannot be reached", Cause: cause}
	}
	return &job.Error{Code: job.Unknown, Reason: unavailable, Message: "Redis at " + c.Address() + " did not answer, and may have taken the call", Cause: cause}
}

// refused tells whether Redis answered that it does not even begin with a call.
func refused(err error) bool {
	_, moved := goredis.IsMovedError(err)
	_, ask := goredis.IsAskError(err)
	if moved || ask {
		return true
	}
	for _, is := range []func(error) bool{goredis.IsLoadingError, goredis.IsReadOnlyError, goredis.IsClusterDownError, goredis.IsTryAgainError,
		goredis.IsMasterDownError, goredis.IsMaxClientsError, goredis.IsAuthError, goredis.IsPermissionError, goredis.IsOOMError, goredis.IsNoReplicasError} {
		if is(err) {
			return true
		}
	}
	for _, code := range []string{"MISCONF ", "BUSY ", "NOAUTH ", "WRONGPASS "} {
		if goredis.HasErrorPrefix(err, code) {
			return true
		}
	}
	return false
}

// scrub takes passwords out of what others wrote: servers that do not know AUTH answer with its arguments.
func (c *Client) scrub(s string) string {
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, "***")
	}
	return s
}

// bounded is the context of one call.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// Ping tells whether Redis answers.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := c.redis.Ping(ctx).Err(); err != nil {
		return c.failed(err)
	}
	return nil
}
