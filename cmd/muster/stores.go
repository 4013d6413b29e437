package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/internal/app"
)

// storeFlags say where a node keeps jobs, runs and the queue.
type storeFlags struct {
	postgres, redis   string
	keepSchema, adopt bool
}

func (f *storeFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.postgres, "postgres", "", "`URL` of the PostgreSQL that keeps jobs and runs (default: the node's own state)")
	fs.StringVar(&f.redis, "redis", "", "`URL` of the Redis that holds the queue (default: the leader's memory)")
	fs.BoolVar(&f.keepSchema, "keep-schema", false, "change no schema in PostgreSQL; muster migrate does")
	fs.BoolVar(&f.adopt, "adopt-store", false, "take a PostgreSQL over that belongs to another cluster, or begin anew with an empty one")
	ofOneCall(fs, "adopt-store")
}

func (f *storeFlags) apply(o *app.Options) {
	o.Postgres, o.Redis, o.KeepSchema, o.AdoptStore = f.postgres, f.redis, f.keepSchema, f.adopt
}

const migrateHelp = `Bring the schema of a PostgreSQL up to date, or look at it. Nodes do it themselves when they
start, unless they are told to --keep-schema: then somebody who may change schemas does
it before a new release of Muster is started.

    muster migrate status --postgres postgres://muster@db/muster
    muster migrate up     --postgres postgres://muster@db/muster

What is made has to belong to the nodes' role. As somebody else, such as an administrator, say
so in the URL: postgres://admin@db/muster?role=muster

A password is better not written on a command line, where others see it: set
MUSTER_POSTGRES, or use a password file (~/.pgpass).`

func (c *cli) migrateCommand() *cobra.Command {
	group := &cobra.Command{Use: "migrate COMMAND", Short: "Bring the schema in PostgreSQL up to date", Long: migrateHelp}
	group.AddCommand(c.migrateOneCommand("up", "Apply what is missing", app.MigrateStore),
		c.migrateOneCommand("status", "Show what is applied and what is missing", app.StoreSchema))
	return group
}

func (c *cli) migrateOneCommand(name, short string, do func(ctx context.Context, url string) (*app.Schema, error)) *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use: name + " --postgres URL", Short: short, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				return usageErrorf("--postgres is missing; write --postgres postgres://USER@HOST/DATABASE, or set MUSTER_POSTGRES")
			}
			s, err := do(cmd.Context(), url)
			if err != nil {
				return asFlag(err)
			}
			return c.printSchema(s)
		},
	}
	cmd.Flags().StringVar(&url, "postgres", "", "`URL` of the database")
	return cmd
}

func (c *cli) printSchema(s *app.Schema) error {
	return c.print(answer{
		value: s,
		names: func() (names []string) {
			for _, m := range s.Migrations {
				names = append(names, m.Name)
			}
			return names
		},
		table: func(b *strings.Builder, color bool) {
			t := newTable("MIGRATION", "APPLIED")
			for _, m := range s.Migrations {
				at := cell{"missing", "33"}
				if m.AppliedAt != 0 {
					at = cell{text: c.moment(m.AppliedAt)}
				}
				t.add(m.Name, at)
			}
			t.write(b, color)
			if s.Missing > 0 {
				fmt.Fprintf(b, "\n%s missing: muster migrate up\n", count(s.Missing, "migration"))
			} else {
				fmt.Fprint(b, "\nThe schema is up to date.\n")
			}
		},
	})
}
