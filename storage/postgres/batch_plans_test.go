package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/musterhq/muster/job"
)

// Statements that look rows up by id do so by the primary key, one probe for each id, whatever the planner believes of the
// tables: what it plans for a table that it thinks is empty compares each of a thousand ids with each of a thousand rows,
// and stays planned while the table grows.
func TestPlans(t *testing.T) {
	t.Parallel()
	url := database(t)
	s := openAt(t, url)
	raise(t, s, 1)
	if _, err := s.Prune(t.Context(), 1, 1, 1); err != nil { // makes partitions
		t.Fatal(err)
	}
	c := connect(t, url)
	store := func(n int) {
		t.Helper()
		var runs []*job.Run
		for range n {
			runs = append(runs, aRun(nowMs(), ended(nowMs())))
		}
		submit(t, s, runs...)
	}
	probe := regexp.MustCompile(`Index Cond: \(\((run_|job_)?id >= (m|w|c|e)\.(run_|job_)?id\) AND \((run_|job_)?id <= (m|w|c|e)\.|Index Cond: \(id = c\.run_id|Index Cond: \((job|upstream)_id = e(_\d)?\.job_id\)|Index Cond: \(\(ROW\(job_id, upstream_id\) >= ROW\(l`)
	for _, believed := range []struct {
		what string
		do   func()
	}{
		{"never analysed", func() {}},
		{"analysed when empty", func() {}},
		{"one row", func() { store(1) }},
		{"few rows", func() { store(3) }},
		{"many rows, none of them live", func() { store(3000) }},
	} {
		believed.do()
		if believed.what != "never analysed" {
			if _, err := c.Exec(t.Context(), "VACUUM ANALYZE"); err != nil {
				t.Fatal(err)
			}
		}
		for name, sql := range map[string]string{"end_attempts": movesSQL["end_attempts"], "lock_runs": movesSQL["lock_runs"], "write_runs": movesSQL["write_runs"],
			"cancel": birthsSQL["cancel"], "runs_by_id": birthsSQL["runs_by_id"], "claim_keys": birthsSQL["claim_keys"],
			"lock_versions": ticksSQL["lock_versions"], "drop_attempts": movesSQL["drop_attempts"], "satisfy": movesSQL["satisfy"]} {
			var plan []string
			err := s.use(t.Context(), leading, func(ctx context.Context, c *pgx.Conn) error {
				statement, err := c.Prepare(ctx, sql, sql)
				if err != nil {
					return err
				}
				nothing := strings.TrimSuffix(strings.Repeat("NULL, ", len(statement.ParamOIDs)), ", ")
				rows, err := c.Query(ctx, fmt.Sprintf("EXPLAIN EXECUTE %s (%s)", statement.Name, nothing), pgx.QueryExecModeSimpleProtocol)
				plan, err = collect(rows, err, pgx.RowTo[string])
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			text := strings.Join(plan, "\n")
			scans := strings.Count(text, "Index Scan using") + strings.Count(text, "Index Only Scan using") + strings.Count(text, "Bitmap Index Scan on")
			if scans == 0 || len(probe.FindAllString(text, -1)) != scans || strings.Contains(text, "Seq Scan") || strings.Contains(text, "Hash Cond") || strings.Contains(text, "Merge Cond") {
				t.Errorf("%s, %s:\n%s", name, believed.what, text)
			}
		}
	}
}
