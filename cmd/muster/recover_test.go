package main

import (
	"context"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/app"
)

// Whoever has to choose between two directories sees what to compare, and is asked nothing and changes nothing by looking.
func TestRecoverOnlyLooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := world{recover: func(_ context.Context, o app.RecoverOptions) (*app.RecoverReport, error) {
		if !o.DryRun {
			t.Error("it was not to look only")
		}
		return &app.RecoverReport{NodeID: "b", ClusterID: "c1", Index: 4711, LastTerm: 12, Epoch: 9, Servers: []string{"a 10.0.0.1:8081", "b 10.0.0.2:8081"}}, nil
	}}
	r := w.muster(t, "cluster", "recover", "--data", dir, "--name", "n2", "--dry-run")
	if r.code != exitOK || !strings.Contains(r.err, "nothing was changed") {
		t.Errorf("%+v", r)
	}
	for _, want := range []string{"4711", "12", "b 10.0.0.2:8081", "a 10.0.0.1:8081"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in %s", want, r.out)
		}
	}
}
