package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/worker"
	"github.com/musterhq/muster/worker/gateway"
)

// Invoice is what a job sends along as its payload.
type Invoice struct {
	Customer string `json:"customer"`
	Cents    int    `json:"cents"`
}

// Receipt is what the run answers as its result.
type Receipt struct {
	Number string `json:"number"`
}

// A worker with one typed handler. A job calls it by name: `handler: {name: charge}`.
func ExampleRun() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	address, result, closeCluster := demoCluster(`{"customer":"ACME","cents":1250}`, stop)
	defer closeCluster()

	var handlers worker.Handlers
	worker.Register(&handlers, "charge", func(ctx context.Context, in Invoice) (Receipt, error) {
		info := worker.InfoFrom(ctx)
		fmt.Fprintf(info.Output, "charging %s\n", in.Customer) // becomes the run's output
		if in.Cents <= 0 {
			return Receipt{}, worker.Permanent(fmt.Errorf("nothing to charge")) // no retry can mend that
		}
		// The run's id makes the charge idempotent: a second attempt finds that it was made already.
		return Receipt{Number: info.RunID.String()[:8]}, nil
	})
	dir, err := os.MkdirTemp("", "worker")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	err = worker.Run(ctx, worker.Options{
		Addresses: []string{address},
		Name:      "billing-1",
		DataDir:   dir, // keeps results until the cluster has them
		Slots:     100,
		Handlers:  &handlers,
		Logger:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	fmt.Println(<-result, err)
	// Output: {"number":"018bcfe5"} <nil>
}

// demoCluster stands in for a cluster: it assigns one run to the first worker that attaches, and calls done when it has
// the result.
func demoCluster(payload string, done func()) (address string, result <-chan string, closeAll func()) {
	d := &demoLeader{payload: payload, done: done, result: make(chan string, 1)}
	g, err := gateway.New(gateway.Config{Node: "demo", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, d)
	if err != nil {
		panic(err)
	}
	d.gateway = g
	mux := http.NewServeMux()
	mux.Handle(g.Handler())
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	return server.URL, d.result, server.Close
}

type demoLeader struct {
	gateway *gateway.Gateway
	payload string
	done    func()
	result  chan string
}

func (d *demoLeader) Attach(_ context.Context, s job.SessionID, _ string, h job.WorkerHello) ([]job.Fence, error) {
	if h.Slots > 0 {
		id := job.RunID{0x01, 0x8b, 0xcf, 0xe5, 6: 0x70, 8: 0x80}
		go d.gateway.Assign(context.Background(), []job.Delivery{{Session: s, Assignment: &job.Assignment{RunID: id, RootID: id, Fence: 1, Attempt: 1,
			Payload: json.RawMessage(d.payload), Spec: &job.Document{Handler: &job.Handler{Name: "charge"}}}}})
	}
	return nil, nil
}

func (d *demoLeader) Finished(s job.SessionID, outcomes []job.Outcome) {
	for _, o := range outcomes {
		d.gateway.Acknowledge(context.Background(), []job.Ack{{Session: s, RunID: o.RunID, Fence: o.Fence}})
		select {
		case d.result <- string(o.Result) + o.Error:
			d.done()
		default: // told already
		}
	}
}

func (d *demoLeader) Detach(job.SessionID)                             {}
func (d *demoLeader) Heartbeat(job.SessionID, []job.Fence) []job.Fence { return nil }
func (d *demoLeader) Started(job.SessionID, []job.Started)             {}
