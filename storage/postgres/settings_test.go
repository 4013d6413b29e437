package postgres

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// What a database or a role has as its defaults changes neither texts nor what an accepted run is worth (D1).
func TestDefaultsOfADatabase(t *testing.T) {
	t.Parallel()
	url := database(t)
	c := connect(t, url)
	name := pgx.Identifier{ask[string](t, c, "SELECT current_database()")}.Sanitize()
	for _, set := range []string{"client_encoding = 'LATIN1'", "synchronous_commit = 'off'", "default_transaction_deferrable = 'on'", "datestyle = 'SQL, DMY'", "timezone = 'Asia/Kolkata'", "bytea_output = 'escape'"} {
		if _, err := c.Exec(t.Context(), "ALTER DATABASE "+name+" SET "+set); err != nil {
			t.Fatal(err)
		}
	}
	s := raised(t, url)
	r := aRun(nowMs(), keyed("schlüssel €", "body"), func(r *job.Run) { r.Payload = json.RawMessage(`"für 5 €, 你好"`) })
	submit(t, s, r)
	got, err := s.Run(t.Context(), r.ID)
	if err != nil || got.Key != r.Key || string(got.Payload) != string(r.Payload) {
		t.Errorf("read again: %+v, %v", got, err)
	}
	s.mustPut(t, document("für-5-€"))
	if _, err := s.Job(t.Context(), "default", "für-5-€"); err != nil {
		t.Error(err)
	}
	for range 2 {
		s.mustPrune(t, nowMs().Add(-30*day), 10)
		if list := partitionsOf(t, s, "ticks"); len(list) != 5 {
			t.Errorf("%d partitions", len(list))
		}
	}
	for p := range purposes {
		err := s.use(t.Context(), p, func(_ context.Context, c *pgx.Conn) error {
			if level := ask[string](t, c, "SHOW synchronous_commit"); level != "on" {
				t.Errorf("%s: synchronous_commit is %s", p, level)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
