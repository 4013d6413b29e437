package app

import (
	"context"
	"errors"

	"github.com/musterhq/muster/storage/postgres"
	"github.com/musterhq/muster/storage/redis"
)

// Scratch is a Postgres, and perhaps a Redis, that a benchmark fills and empties.
type Scratch struct {
	// About is what the servers say of themselves: versions, and the settings that decide about speed and durability.
	About string

	postgres *postgres.Scratch
	redis    *redis.Scratch
}

// OpenScratch takes databases that are empty and refuses others. redisURL may be "".
func OpenScratch(ctx context.Context, postgresURL, redisURL string) (s *Scratch, err error) {
	s = new(Scratch)
	if s.postgres, s.About, err = postgres.OpenScratch(ctx, postgresURL); err != nil || redisURL == "" {
		return s, err
	}
	var about string
	s.redis, about, err = redis.OpenScratch(ctx, redisURL)
	s.About += ", " + about
	return s, err
}

// Counters answers what the servers have done so far: transactions and bytes of the write-ahead log of Postgres, and
// commands of Redis.
func (s *Scratch) Counters(ctx context.Context) (map[string]float64, error) {
	m := map[string]float64{}
	var err error
	if m["Postgres transactions"], m["Postgres WAL bytes"], err = s.postgres.Counters(ctx); err != nil {
		return nil, err
	}
	if s.redis != nil {
		m["Redis commands"], err = s.redis.Counters(ctx)
	}
	return m, err
}

// Empty removes what a node left there, which must have ended.
func (s *Scratch) Empty(ctx context.Context) error {
	err := s.postgres.Empty(ctx)
	if s.redis != nil {
		err = errors.Join(err, s.redis.Empty(ctx))
	}
	return err
}
