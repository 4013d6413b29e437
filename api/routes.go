package api

import (
	"net/http"

	"github.com/musterhq/muster/job"
)

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

func at(id string, verb Verb, method, path string) endpoint {
	return endpoint{Operation: Operation{ID: id, Verb: verb}, method: method, path: path}
}

func streaming(e endpoint) endpoint { e.stream = true; return e }

func acrossNamespaces(e endpoint) endpoint { e.anyNamespace = true; return e }

func ok(body any) []answer { return []answer{{status: http.StatusOK, body: body}} }

// buildRoutes is the whole contract.
func (a *API) buildRoutes() error {
	rt, err := newRouter(a)
	if err != nil {
		return err
	}
	a.router = rt
	a.huma = newHuma(a, rt)
	a.jobRoutes()
	a.runRoutes()
	a.workerRoutes()
	a.clusterRoutes()
	a.nodeRoutes()
	rt.mux.HandleFunc("/", a.elsewhere)
	rt.console = rt.guard(&endpoint{Operation: Operation{ID: "console", Verb: Public}, method: get, path: "/"},
		func(w http.ResponseWriter, r *http.Request) { a.Console.ServeHTTP(w, r) })
	return a.finishOpenAPI()
}

func (a *API) jobRoutes() {
	documents := []string{jsonType, yamlType}
	effective := []answer{
		{http.StatusOK, "the job as it is now", job.Job{}, ""},
		{http.StatusCreated, "the job was created", job.Job{}, ""},
		{http.StatusAccepted, "stored, but the schedule has not reached the cluster yet: effective is false", job.Job{}, ""},
	}
	const named = "The jobs in depends_on have to be there; a job that a task runs (run_job) is looked up when it is run."
	serve(a, route{endpoint: at("list-jobs", Read, get, "/v1/jobs"), tag: "jobs",
		summary: "List jobs", notes: "Ordered by name.", answers: ok(page[job.Job]{})}, a.listJobs)
	serve(a, route{endpoint: at("create-job", Define, post, "/v1/jobs"), tag: "jobs",
		summary: "Create a job", notes: "409 if there is one of that name. " + named,
		body: job.Document{}, bodyTypes: documents, answers: effective[1:]}, a.createJob)
	serve(a, route{endpoint: at("read-job", Read, get, "/v1/jobs/{name}"), tag: "jobs",
		summary: "Read a job", notes: "The ETag is its version.", answers: ok(job.Job{})}, a.readJob)
	serve(a, route{endpoint: at("put-job", Define, put, "/v1/jobs/{name}"), tag: "jobs",
		summary: "Create or change a job", notes: "The same document again changes nothing. " + named,
		body: job.Document{}, bodyTypes: documents, answers: effective}, a.putJob)
	serve(a, route{endpoint: at("delete-job", Define, del, "/v1/jobs/{name}"), tag: "jobs",
		summary: "Delete a job", notes: "Its runs stay. 409 with reason has_dependents if jobs depend on it, unless detach is true.",
		answers: []answer{{http.StatusNoContent, "it is gone", nil, ""}, effective[2]}}, a.deleteJob)
	serve(a, route{endpoint: at("list-dependencies", Read, get, "/v1/jobs/{name}/dependencies"), tag: "jobs",
		summary: "List what a job depends on, and what depends on it", notes: "Each edge with the run that satisfied it since the job last ran because of it.",
		answers: ok(Dependencies{})}, a.listDependencies)
	serve(a, route{endpoint: at("pause-job", Define, post, "/v1/jobs/{name}/pause"), tag: "jobs",
		summary: "Pause a job", notes: "It stops ticking, and its queued runs are held.", answers: ok(job.Job{})}, a.pauseJob)
	serve(a, route{endpoint: at("resume-job", Define, post, "/v1/jobs/{name}/resume"), tag: "jobs",
		summary: "Resume a job", answers: ok(job.Job{})}, a.resumeJob)
	serve(a, route{endpoint: at("backfill-job", Submit, post, "/v1/jobs/{name}/backfill"), tag: "jobs",
		summary: "Run past ticks", notes: "A run for each tick of the current schedule in a time that is past, at most 1,000.",
		body: BackfillRequest{}, answers: ok(BackfillAnswer{})}, a.backfill)
	serve(a, route{endpoint: at("next-ticks", Read, get, "/v1/jobs/{name}/next"), tag: "jobs",
		summary: "List coming ticks", answers: ok(NextTicks{})}, a.nextTicks)
	serve(a, route{endpoint: at("list-versions", Read, get, "/v1/jobs/{name}/versions"), tag: "jobs",
		summary: "List versions", notes: "Newest first.", answers: ok(page[job.Version]{})}, a.listVersions)
	serve(a, route{endpoint: at("list-ticks", Read, get, "/v1/jobs/{name}/ticks"), tag: "jobs",
		summary: "List the tick ledger", notes: "What became of each scheduled time, newest first.", answers: ok(page[TickRow]{})}, a.listTicks)
	serve(a, route{endpoint: at("verify-ticks", Read, get, "/v1/jobs/{name}/verify"), tag: "jobs",
		summary: "Compare the ledger with the timetable", notes: "Finds ticks without a disposition, and with more than one; at most 10,000 ticks.",
		answers: ok(Verification{})}, a.verifyTicks)
}

func (a *API) runRoutes() {
	birth := []answer{
		{http.StatusCreated, "the run, on the cluster's own store", job.Run{}, ""},
		{http.StatusAccepted, "the run, on a lower rung; see durability", job.Run{}, ""},
		{http.StatusOK, "the run was there already", job.Run{}, ""},
	}
	serve(a, route{endpoint: acrossNamespaces(at("list-runs", Read, get, "/v1/runs")), tag: "runs",
		summary: "List runs", notes: "Root runs, newest id first; or with root_id the task runs of one. The namespace * means all.", answers: ok(page[job.Run]{})}, a.listRuns)
	serve(a, route{endpoint: at("submit-run", Submit, post, "/v1/runs"), tag: "runs",
		summary: "Submit a run", notes: "Of a job, or with an inline spec. Repeating an id is the same run.",
		body: Submission{}, answers: birth}, a.submitRun)
	serve(a, route{endpoint: at("submit-batch", Submit, post, "/v1/runs/batch"), tag: "runs",
		summary: "Submit up to 1,000 runs", notes: "Each has its own fate: the answer's items are in the order of the request's.",
		body: Batch{}, answers: ok(BatchAnswer{})}, a.submitBatch)
	serve(a, route{endpoint: at("read-run", Read, get, "/v1/runs/{id}"), tag: "runs",
		summary: "Read a run", notes: "Of a root run whose job has tasks also how each task stands, without payloads and results, which are in the tasks' own runs.",
		answers: ok(RunWithTasks{})}, a.readRun)
	serve(a, route{endpoint: at("cancel-run", Submit, post, "/v1/runs/{id}/cancel"), tag: "runs",
		summary: "Ask for a run to be cancelled", notes: "An intent: a running attempt is stopped first. Of a root run whose job has tasks no more tasks are started, and " +
			"those that run are cancelled; the cancellation of a task run concerns that task only.",
		answers: []answer{{http.StatusAccepted, "the intent is recorded", job.Run{}, ""}, {http.StatusOK, "it had ended already", job.Run{}, ""}}}, a.cancelRun)
	serve(a, route{endpoint: at("retry-run", Submit, post, "/v1/runs/{id}/retry"), tag: "runs",
		summary: "Run a run that has ended again", notes: "A new run, of the same version and payload. Asking twice retries once. Of a job with tasks only those " +
			"run again that did not succeed, and those that come after them, unless scope is all; a run that was retried already with another scope is 409, other_scope.",
		body: RetryRequest{}, optionalBody: true, answers: birth}, a.retryRun)
	serve(a, route{endpoint: at("list-attempts", Read, get, "/v1/runs/{id}/attempts"), tag: "runs",
		summary: "List attempts", notes: "Oldest first.", answers: ok(page[job.Attempt]{})}, a.listAttempts)
	serve(a, route{endpoint: at("explain-run", Read, get, "/v1/runs/{id}/explain"), tag: "runs",
		summary: "Say why a run is where it is", answers: ok(Explanation{})}, a.explainRun)
	serve(a, route{endpoint: streaming(at("read-logs", Read, get, "/v1/runs/{id}/logs")), tag: "runs",
		summary: "Read or follow output",
		notes: "Plain text; or events named output (OutputEvent), gap (GapEvent), end (the run) and error (a problem), " +
			"whose ids continue a broken stream through Last-Event-ID.",
		answers: []answer{{http.StatusOK, "output", "", "text/plain"}, {http.StatusOK, "", OutputEvent{}, eventType}}}, a.runLogs)
}

func (a *API) workerRoutes() {
	serve(a, route{endpoint: at("join-worker", Join, post, "/v1/workers/join"), tag: "workers",
		summary: "Ask where to join", notes: "With a join token as the bearer token, where the cluster wants one; and with a " +
			"request for a certificate, which is answered with one.",
		body: JoinRequest{}, answers: ok(JoinAnswer{})}, a.joinWorker)
	serve(a, route{endpoint: at("list-workers", Inspect, get, "/v1/workers"), tag: "workers",
		summary: "List workers", notes: "Ordered by name.", answers: ok(page[job.Worker]{})}, a.listWorkers)
	serve(a, route{endpoint: at("read-worker", Inspect, get, "/v1/workers/{name}"), tag: "workers",
		summary: "Read a worker", answers: ok(job.Worker{})}, a.readWorker)
	serve(a, route{endpoint: at("cordon-worker", Operate, post, "/v1/workers/{name}/cordon"), tag: "workers",
		summary: "Give a worker no new work", answers: ok(job.Worker{})}, a.cordonWorker)
	serve(a, route{endpoint: at("uncordon-worker", Operate, post, "/v1/workers/{name}/uncordon"), tag: "workers",
		summary: "Give a worker work again", answers: ok(job.Worker{})}, a.uncordonWorker)
	serve(a, route{endpoint: at("drain-worker", Operate, post, "/v1/workers/{name}/drain"), tag: "workers",
		summary: "Let a worker finish and stop", answers: ok(job.Worker{})}, a.drainWorker)
}

func (a *API) clusterRoutes() {
	done := func(what string) []answer { return []answer{{http.StatusNoContent, what, nil, ""}} }
	serve(a, route{endpoint: at("read-cluster", Inspect, get, "/v1/cluster"), tag: "cluster",
		summary: "Describe the cluster", notes: "Answered without a leader too.", answers: ok(ClusterStatus{})}, a.readCluster)
	serve(a, route{endpoint: at("set-maintenance", Operate, post, "/v1/cluster/maintenance"), tag: "cluster",
		summary: "Start or end maintenance", body: MaintenanceRequest{}, answers: ok(MaintenanceRequest{})}, a.setMaintenance)
	serve(a, route{endpoint: at("transfer-leadership", Operate, post, "/v1/cluster/transfer"), tag: "cluster",
		summary: "Let another node lead", body: TransferRequest{}, answers: done("another node leads")}, a.transfer)
	serve(a, route{endpoint: at("remove-node", Operate, del, "/v1/cluster/nodes/{name}"), tag: "cluster",
		summary: "Remove a node", notes: "For one that is lost or not wanted any more; its process ends. 409 with reason quorum if the " +
			"nodes that remain could not decide.", answers: done("it is gone")}, a.removeNode)
	serve(a, route{endpoint: at("verify-replicas", Operate, post, "/v1/cluster/verify"), tag: "cluster",
		summary: "Compare the nodes' states", notes: "Each node's digest of all its replicated state, taken at the same index of the log.",
		answers: ok(ReplicaCheck{})}, a.verifyReplicas)
	serve(a, route{endpoint: streaming(at("read-snapshot", Admin, get, "/v1/cluster/snapshot")), tag: "cluster", // it holds every secret there is
		summary: "Download a snapshot of the replicated state", notes: "All namespaces, with what runs were given and the cluster's secrets; so it takes an admin.",
		answers: []answer{{http.StatusOK, "the snapshot", []byte{}, bytesType}}}, a.snapshot)
	serve(a, route{endpoint: streaming(at("restore-snapshot", Admin, post, "/v1/cluster/snapshot")), tag: "cluster",
		summary: "Replace the replicated state by a snapshot", notes: "One of this cluster, at most 4 GiB. What was accepted since is lost.",
		body: []byte{}, bodyTypes: []string{bytesType}, answers: done("the state is that of the snapshot")}, a.restore)
	serve(a, route{endpoint: at("greeting", Peer, get, "/v1/cluster/greeting"), tag: "cluster",
		summary: "Greet a node that starts", notes: "For nodes, by their certificates.", answers: ok(Greeting{})}, a.greeting)
	serve(a, route{endpoint: at("list-credentials", Admin, get, "/v1/credentials"), tag: "credentials",
		summary: "List credentials", notes: "Ordered by name; without their secrets, which are kept nowhere.", answers: ok(page[job.Credential]{})}, a.listCredentials)
	serve(a, route{endpoint: at("create-credential", Admin, post, "/v1/credentials"), tag: "credentials",
		summary: "Create a credential", notes: "Its token is in the answer and nowhere else. 409 if the name is taken.",
		body: CredentialRequest{}, answers: []answer{{http.StatusCreated, "the credential, and its token", NewCredential{}, ""}}}, a.createCredential)
	serve(a, route{endpoint: at("revoke-credential", Admin, del, "/v1/credentials/{id}"), tag: "credentials",
		summary: "Revoke a credential", notes: "409 with reason last_admin for the last one that could make others.", answers: done("it is gone")}, a.dropCredential)
}

func (a *API) nodeRoutes() {
	serve(a, route{endpoint: at("healthz", Public, get, "/healthz"), tag: "node",
		summary: "Does this process answer?", answers: ok(Health{})}, a.healthz)
	serve(a, route{endpoint: at("readyz", Public, get, "/readyz"), tag: "node",
		summary: "Can this node take requests?", answers: ok(Health{})}, a.readyz)
	serve(a, route{endpoint: at("metrics", Inspect, get, "/metrics"), tag: "node",
		summary: "Metrics in the format of Prometheus", answers: []answer{{http.StatusOK, "metrics", "", "text/plain"}}}, a.serveMetrics)
	serve(a, route{endpoint: at("openapi", Public, get, "/openapi.json"), tag: "node", hidden: true,
		summary: "This document", answers: ok(nil)}, a.serveOpenAPI)
	serve(a, route{endpoint: at("index", Public, get, "/{$}"), tag: "node", hidden: true,
		summary: "The console", answers: ok(nil)}, a.index)
}
