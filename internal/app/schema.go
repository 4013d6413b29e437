package app

import (
	"context"
	"fmt"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/storage/postgres"
)

// Schema is what a database has of Muster's schema.
type Schema struct {
	Migrations []Migration `json:"migrations"`
	Missing    int         `json:"missing"` // how many are not applied
}

// Migration is one step of the schema.
type Migration struct {
	Name      string      `json:"name"`
	AppliedAt job.Instant `json:"applied_at,omitempty"` // 0: not applied
}

// MigrateStore brings a database's schema up to date.
func MigrateStore(ctx context.Context, url string) (*Schema, error) {
	if _, err := postgres.Migrate(ctx, url); err != nil {
		return nil, err
	}
	return StoreSchema(ctx, url)
}

// StoreSchema looks at a database's schema and changes nothing.
func StoreSchema(ctx context.Context, url string) (*Schema, error) {
	steps, err := postgres.Status(ctx, url)
	if err != nil {
		return nil, err
	}
	s := &Schema{}
	for _, m := range steps {
		x := Migration{Name: fmt.Sprintf("%05d_%s", m.Version, m.Name)}
		if m.AppliedAt.IsZero() {
			s.Missing++
		} else {
			x.AppliedAt = job.At(m.AppliedAt)
		}
		s.Migrations = append(s.Migrations, x)
	}
	return s, nil
}
