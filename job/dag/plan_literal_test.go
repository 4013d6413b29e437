package dag_test

import (
	"testing"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
)

func TestTemplatesWhereNoneAreFilledInAreRefused(t *testing.T) {
	t.Parallel()
	const text = "${{ run.payload }}"
	for field, d := range map[string]*job.Document{
		"labels.team":            {Labels: map[string]string{"team": text}},
		"selector.zone":          {Selector: map[string]string{"zone": text}},
		"concurrency.key":        {Concurrency: &job.Concurrency{Key: text, Limit: 1}},
		"tasks[0].selector.zone": {Tasks: []job.Task{{Name: "a", Selector: map[string]string{"zone": text}, Handler: &job.Handler{Name: "h"}}}},
	} {
		if d.Tasks == nil {
			d.Handler = &job.Handler{Name: "h"}
		}
		if err := dag.Validate(d); err == nil || job.AsError(err).Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
