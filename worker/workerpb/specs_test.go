package workerpb

import (
	"testing"

	"github.com/musterhq/muster/job"
)

func TestTheSpecCacheIsBounded(t *testing.T) {
	t.Parallel()
	var c SpecCache
	for i := range 3*maxCachedSpecs + 5 {
		c.encode(&job.Document{Priority: new(i % 10)})
	}
	if n := len(c.young.byAddress) + len(c.old.byAddress); n > 2*maxCachedSpecs {
		t.Errorf("%d documents are cached", n)
	}
	if n := len(c.young.byContent) + len(c.old.byContent); n > 20 {
		t.Errorf("%d different contents are cached of 10", n)
	}
	d := &job.Document{Name: "x"}
	if c.encode(d) != c.encode(&job.Document{Name: "x"}) {
		t.Error("equal documents do not share their encoding")
	}
}
