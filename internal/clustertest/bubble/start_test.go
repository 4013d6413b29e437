package bubble

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

// TestOne: a node elects itself, and a worker runs what is submitted.
func TestOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { begin(t, 1, false) })
}

// TestThree: three nodes make a cluster.
func TestThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { begin(t, 3, false) })
}

// TestThreeWithCertificates: and so they do with certificates.
func TestThreeWithCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { begin(t, 3, true) })
}

func begin(t *testing.T, nodes int, secure bool) {
	w := newWorld(t, 0, nodes, secure)
	for _, n := range w.nodes {
		n.start()
	}
	w.leader()
	t.Log("led after", time.Since(w.start))
	w.addWorker(4).start()
	w.whole()
	for _, n := range w.nodes {
		c := w.client(-1, w.scheme()+n.api())
		r, err := c.Submit(t.Context(), client.Submission{Spec: &job.Document{Handler: &job.Handler{Name: "quick"}}})
		if err != nil {
			t.Fatal(err)
		}
		if r, err = c.Wait(t.Context(), r.ID); err != nil || r.State != job.Succeeded {
			t.Fatal(r, err)
		}
	}
	t.Log("all done after", time.Since(w.start))
}
