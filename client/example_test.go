package client_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

func Example() {
	ctx := context.Background()
	c, _ := client.New(client.Config{Addresses: []string{address()}, Token: os.Getenv("MUSTER_TOKEN")})
	defer c.Close()
	run, err := c.Submit(ctx, client.Submission{Job: "nightly-report", Payload: map[string]int{"day": 31}})
	if err != nil {
		fmt.Println(job.CodeOf(err), err)
		return
	}
	run, err = c.Wait(ctx, run.ID)
	fmt.Println(run.Job, run.State, err)
	// Output: nightly-report succeeded <nil>
}

func ExampleClient_Follow() {
	c, _ := client.New(client.Config{Addresses: []string{address()}})
	defer c.Close()
	for event, err := range c.Follow(context.Background(), client.NewRunID(), 0) {
		switch {
		case err != nil:
			fmt.Println(err)
		case event.Run != nil:
			fmt.Println(event.Run.State)
		default:
			os.Stdout.Write(event.Data)
		}
	}
	// Output:
	// hello
	// succeeded
}

func ExampleClient_Runs() {
	c, _ := client.New(client.Config{Addresses: []string{address()}})
	defer c.Close()
	failed := client.RunFilter{States: []job.State{job.Failed}, Since: time.Now().Add(-time.Hour)}
	for run, err := range c.Runs(context.Background(), failed) {
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Println(run.Job, run.State, run.Reason)
	}
	// Output: nightly-report failed exit_code
}

func ExampleClient_RunWithTasks() {
	ctx := context.Background()
	c, _ := client.New(client.Config{Addresses: []string{address()}})
	defer c.Close()
	_, err := c.PutJob(ctx, &job.Document{Name: "etl", Tasks: []job.Task{
		{Name: "extract", Exec: &job.Exec{Command: []string{"/usr/bin/extract"}}},
		{Name: "load", DependsOn: []string{"extract"}, When: "tasks.extract.result.rows > 0", Exec: &job.Exec{Command: []string{"/usr/bin/load"}}},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	run, err := c.Submit(ctx, client.Submission{Job: "etl"})
	if err == nil {
		run, err = c.Wait(ctx, run.ID)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	whole, err := c.RunWithTasks(ctx, run.ID)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, task := range whole.Tasks {
		fmt.Println(task.Name, task.State)
	}
	if run.State == job.Failed { // what has succeeded is not run again
		_, _ = c.Retry(ctx, run.ID)
	}
	// Output:
	// extract succeeded
	// load skipped
}

// address serves just enough of the API for the examples; a real one is that of any node, such as that of muster dev.
func address() string {
	const run = `{"id":"0192f3a4-7c1e-7abc-8def-0123456789ab","namespace":"default","job":"nightly-report","trigger":"api","durability":"quorum",`
	return exampleServer.serve(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/logs"):
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "event: output\nid: 1:6\ndata: {\"attempt\":1,\"offset\":0,\"text\":\"hello\\n\"}\n\n")
			io.WriteString(w, "event: end\ndata: "+run+`"state":"succeeded"}`+"\n\n")
		case r.Method == http.MethodPut:
			io.WriteString(w, `{"name":"etl","version":1}`)
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, run+`"state":"queued"}`)
		case r.URL.Query().Get("state") != "":
			io.WriteString(w, `{"items":[`+run+`"state":"failed","reason":"exit_code"}]}`)
		default:
			io.WriteString(w, run+`"state":"succeeded","tasks":[{"name":"extract","state":"succeeded"},{"name":"load","state":"skipped","reason":"when_false"}]}`)
		}
	})
}

// exampleServer is closed when the tests are done.
var exampleServer lateServer

type lateServer struct{ s *httptest.Server }

func (l *lateServer) serve(h http.HandlerFunc) string {
	if l.s == nil {
		l.s = httptest.NewServer(h)
	}
	return l.s.URL
}

func (l *lateServer) close() {
	if l.s != nil {
		l.s.Close()
	}
}
