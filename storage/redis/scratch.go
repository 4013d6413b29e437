package redis

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/musterhq/muster/job"
)

// Scratch is a database that is empty and is emptied again: what a benchmark works on.
type Scratch struct{ options *goredis.Options }

// OpenScratch takes a database without keys, and answers what its server says of itself. It refuses one that has keys:
// they are somebody's.
func OpenScratch(ctx context.Context, url string) (*Scratch, string, error) {
	o, err := goredis.ParseURL(url)
	if err != nil { // its text may hold the password
		return nil, "", job.Errorf(job.Invalid, "redis_url", "the address of Redis cannot be read; it looks like redis://:password@host:6379/0")
	}
	s := &Scratch{o}
	about := ""
	err = s.connected(func(c *goredis.Client) error {
		keys, err := c.DBSize(ctx).Result()
		if err != nil {
			return err
		}
		if keys > 0 {
			return job.Errorf(job.Conflict, "not_empty", "this database of Redis holds %d keys, which would be lost; name an empty one", keys)
		}
		info, err := c.Info(ctx, "server", "persistence").Result()
		if err != nil {
			return err
		}
		facts := factsOf(info)
		about = fmt.Sprintf("Redis %s (aof %s)", facts["redis_version"], map[string]string{"0": "off", "1": "on"}[facts["aof_enabled"]])
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return s, about, nil
}

// Empty removes all keys of the database.
func (s *Scratch) Empty(ctx context.Context) error {
	return s.connected(func(c *goredis.Client) error { return c.FlushDB(ctx).Err() })
}

// Counters answers how many commands the server has processed, those of scripts among them.
func (s *Scratch) Counters(ctx context.Context) (commands float64, err error) {
	err = s.connected(func(c *goredis.Client) error {
		info, err := c.Info(ctx, "stats").Result()
		if err == nil {
			commands, err = strconv.ParseFloat(factsOf(info)["total_commands_processed"], 64)
		}
		return err
	})
	return commands, err
}

// factsOf reads the answer to INFO.
func factsOf(info string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(info) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[k] = v
		}
	}
	return facts
}

func (s *Scratch) connected(do func(c *goredis.Client) error) error {
	o := *s.options
	c := goredis.NewClient(&o)
	defer c.Close()
	if err := do(c); err != nil {
		if job.CodeOf(err) != job.Internal {
			return err
		}
		return &job.Error{Code: job.Unavailable, Reason: "queue_unavailable", Message: "Redis does not answer as it should", Cause: err}
	}
	return nil
}
