package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// L1: the fence reads the epoch after it has the lock, whatever isolation level the database has as its default.
func TestIsolationIsOurs(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := openAt(t, url)
	c := connect(t, url)
	if _, err := c.Exec(t.Context(), "ALTER ROLE CURRENT_USER IN DATABASE "+pgx.Identifier{c.Config().Database}.Sanitize()+" SET default_transaction_isolation = 'serializable'"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openAt(t, url)
	for p := range purposes {
		var level string
		pool := s.life.Load().pools[p]
		if err := pool.QueryRow(t.Context(), "SHOW transaction_isolation").Scan(&level); err != nil || level != "read committed" {
			t.Errorf("%s: the isolation level is %q, %v", p, level, err)
		}
	}
}
