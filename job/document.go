package job

import "encoding/json"

// Document is a job as its author writes it, in YAML or JSON (design section 5). ParseDocument reads one strictly,
// fills the defaults in and validates it; what is stored is the result, so that a later default changes no job.
type Document struct {
	Name        string            `json:"name,omitempty"` // absent in an inline spec
	Namespace   string            `json:"namespace,omitempty"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`

	Schedule  *Schedule `json:"schedule,omitempty"`
	DependsOn []Edge    `json:"depends_on,omitempty"` // jobs of the same namespace

	StartDeadline Duration     `json:"start_deadline,omitempty"` // how late a tick may still start; 0: no bound
	Deadline      Duration     `json:"deadline,omitempty"`       // for the run, from birth or its time to its end; 0: none
	Overlap       Overlap      `json:"overlap,omitempty"`
	Priority      *int         `json:"priority,omitempty"` // 0..9, 9 first; default 5
	Concurrency   *Concurrency `json:"concurrency,omitempty"`

	Timeout      Duration          `json:"timeout,omitempty"` // per attempt; 0: none
	Retry        Retry             `json:"retry,omitzero"`
	Selector     map[string]string `json:"selector,omitempty"` // labels that the worker must carry
	Slots        int               `json:"slots,omitempty"`    // of the worker's slots; default 1
	OnWorkerLost OnWorkerLost      `json:"on_worker_lost,omitempty"`
	OnLeaseLost  OnLeaseLost       `json:"on_lease_lost,omitempty"`

	// Payload is for runs that bring none, such as ticks. Text in it may hold templates over run, but for its payload.
	Payload json.RawMessage `json:"payload,omitempty"`

	// Result is an expression over tasks and run that makes the run's result when it has succeeded; only with Tasks.
	Result string `json:"result,omitempty"`

	// Exactly one executor, or Tasks.
	Exec    *Exec    `json:"exec,omitempty"`
	HTTP    *HTTP    `json:"http,omitempty"`
	Handler *Handler `json:"handler,omitempty"`
	Tasks   []Task   `json:"tasks,omitempty"`
}

// DefaultPriority is in the middle of 0..9.
const DefaultPriority = 5

// Task is one step of a job. What it does not set is inherited from the document.
type Task struct {
	Name      string   `json:"name"`
	DependsOn []string `json:"depends_on,omitempty"` // tasks of the same job
	RunIf     RunIf    `json:"run_if,omitempty"`
	// When is an expression (CEL) over the tasks before this one and run, such as tasks.extract.result.rows > 0. It must be
	// true as well, once RunIf is; else the task is skipped. One that cannot be evaluated fails the task.
	When string `json:"when,omitempty"`
	// ForEach is an expression that answers a list of at most MaxItems: the task then has one run for each item of it, of
	// which so many as MaxParallel are released at once (0: all). An item is its run's payload unless Payload says
	// otherwise; the task's result, for expressions, is the list of the items' results.
	ForEach     string `json:"for_each,omitempty"`
	MaxParallel int    `json:"max_parallel,omitempty"`
	// AllowFailure: that this task fails, or is cancelled, does not make its run fail. Tasks after it see how it ended.
	AllowFailure bool `json:"allow_failure,omitempty"`
	// Payload is what the work gets instead of the run's payload. Text in it may hold templates, ${{ expression }}; one
	// that is the whole text stands for its value, of whatever kind.
	Payload json.RawMessage `json:"payload,omitempty"`

	Timeout      Duration          `json:"timeout,omitempty"`
	Retry        *Retry            `json:"retry,omitempty"`
	Selector     map[string]string `json:"selector,omitempty"`
	Slots        int               `json:"slots,omitempty"`
	Priority     *int              `json:"priority,omitempty"`
	OnWorkerLost OnWorkerLost      `json:"on_worker_lost,omitempty"`
	OnLeaseLost  OnLeaseLost       `json:"on_lease_lost,omitempty"`

	// Exactly one of these.
	Exec    *Exec    `json:"exec,omitempty"`
	HTTP    *HTTP    `json:"http,omitempty"`
	Handler *Handler `json:"handler,omitempty"`
	RunJob  *RunJob  `json:"run_job,omitempty"`
}

// RunJob runs another job of the namespace, in its current version, and ends as that run does: with its result.
type RunJob struct {
	Job string `json:"job"`
}

// Edge is a dependency on another job.
type Edge struct {
	Job string `json:"job"`
	On  EdgeOn `json:"on,omitempty"` // default success
}

// EdgeOn says which ends of an upstream's run satisfy an edge.
type EdgeOn string

const (
	OnSuccess EdgeOn = "success"
	OnFailure EdgeOn = "failure"
	OnDone    EdgeOn = "done"
)

// SatisfiedBy tells whether a run that ended so satisfies the edge. One that was skipped did not run.
func (on EdgeOn) SatisfiedBy(s State) bool {
	switch on {
	case OnFailure:
		return s == Failed
	case OnDone:
		return s == Succeeded || s == Failed || s == Cancelled
	}
	return s == Succeeded
}

// RunIf says, once all upstream tasks are terminal, whether a task runs.
type RunIf string

const (
	AllSucceeded RunIf = "all_succeeded" // the default
	AllDone      RunIf = "all_done"
	AnySucceeded RunIf = "any_succeeded"
	AnyFailed    RunIf = "any_failed"
	NoneFailed   RunIf = "none_failed"
)

// Overlap says what a tick does while a run of an earlier tick is not terminal.
type Overlap string

const (
	OverlapAllow      Overlap = "allow"
	OverlapSkipTick   Overlap = "skip" // the default
	OverlapQueueTick  Overlap = "queue"
	OverlapReplaceRun Overlap = "replace"
)

// OnWorkerLost says what happens to a run whose worker vanished.
type OnWorkerLost string

const (
	RequeueOnLoss OnWorkerLost = "requeue" // the default: at least once
	FailOnLoss    OnWorkerLost = "fail"    // at most once
)

// OnLeaseLost says what the agent does with a process whose lease ended.
type OnLeaseLost string

const (
	KillOnLeaseLost   OnLeaseLost = "kill" // the default
	FinishOnLeaseLost OnLeaseLost = "finish"
)

// Backoff says how the pause between attempts grows.
type Backoff string

const (
	ExponentialBackoff Backoff = "exponential" // doubles; the default
	ConstantBackoff    Backoff = "constant"
)

// Retry is the policy for failed attempts. MaxAttempts counts the first one (L5); default 1.
type Retry struct {
	MaxAttempts int      `json:"max_attempts,omitempty"`
	Backoff     Backoff  `json:"backoff,omitempty"`
	Initial     Duration `json:"initial,omitempty"` // default 1s
	Max         Duration `json:"max,omitempty"`     // default 5m
}

// Concurrency bounds how many runs that share Key, within the namespace, hold a lease at once.
type Concurrency struct {
	Key   string `json:"key"`
	Limit int    `json:"limit"` // default 1; when jobs that share a key disagree, each run obeys its own job's limit
}

// Exec runs a command: an argv, never a shell string. Values of Env may hold templates; the command may not, so that what
// is executed never depends on data.
type Exec struct {
	Command          []string          `json:"command"`
	Dir              string            `json:"dir,omitempty"`
	User             string            `json:"user,omitempty"` // needs a worker that may switch users
	Env              map[string]string `json:"env,omitempty"`
	EnvFrom          []string          `json:"env_from,omitempty"`           // files of KEY=VALUE lines on the worker
	SuccessExitCodes []int             `json:"success_exit_codes,omitempty"` // default [0]
}

// HTTP sends one request; the attempt's id, fence and scheduled time go along as headers. URL, Body and the values of
// Headers may hold templates.
type HTTP struct {
	Method        string            `json:"method,omitempty"` // default POST
	URL           string            `json:"url"`
	Headers       map[string]string `json:"headers,omitempty"`
	Body          string            `json:"body,omitempty"` // absent: the run's payload, as application/json
	SuccessStatus []int             `json:"success_status,omitempty"`
}

// Handler calls a function registered in a worker built with the SDK.
type Handler struct {
	Name string `json:"name"`
}

// OfTask is the document that a run of one task goes by: what the task sets, and under it what the document does. It has
// the task's executor, or none if the task runs another job, which the leader itself carries out. A task with ForEach has
// a run above those of its items, which goes by nothing: it waits for them.
func (d *Document) OfTask(t *Task) *Document {
	n := &Document{
		Name: d.Name, Namespace: d.Namespace, Timeout: d.Timeout, Retry: d.Retry, Selector: d.Selector, Slots: d.Slots,
		Priority: d.Priority, OnWorkerLost: d.OnWorkerLost, OnLeaseLost: d.OnLeaseLost, Payload: t.Payload,
		Exec: t.Exec, HTTP: t.HTTP, Handler: t.Handler,
	}
	n.Timeout = cmpOr(t.Timeout, n.Timeout)
	n.Slots = cmpOr(t.Slots, n.Slots)
	n.OnWorkerLost = cmpOr(t.OnWorkerLost, n.OnWorkerLost)
	n.OnLeaseLost = cmpOr(t.OnLeaseLost, n.OnLeaseLost)
	if t.Retry != nil {
		n.Retry = *t.Retry
	}
	if t.Selector != nil {
		n.Selector = t.Selector
	}
	if t.Priority != nil {
		n.Priority = t.Priority
	}
	return n
}

// ExecutorName is "exec", "http" or "handler": which one the document or task uses; "" with tasks, and for a task that the
// leader carries out itself.
func (d *Document) ExecutorName() string { return executorName(d.Exec, d.HTTP, d.Handler) }

func executorName(e *Exec, h *HTTP, f *Handler) string {
	switch {
	case e != nil:
		return "exec"
	case h != nil:
		return "http"
	case f != nil:
		return "handler"
	}
	return ""
}

// Job is a stored definition with its current version.
type Job struct {
	ID        JobID     `json:"id" cbor:"1,keyasint"`
	Namespace string    `json:"namespace" cbor:"2,keyasint"`
	Name      string    `json:"name" cbor:"3,keyasint"`
	Version   uint64    `json:"version" cbor:"4,keyasint"` // grows by one with each change; the ETag
	Spec      *Document `json:"spec" cbor:"-"`             // the current version's document
	Paused    bool      `json:"paused" cbor:"-"`           // control state, joined in by readers
	CreatedAt Instant   `json:"created_at" cbor:"5,keyasint"`
	UpdatedAt Instant   `json:"updated_at" cbor:"6,keyasint"`
	// Effective is false while the schedule of this version has not reached Raft yet (L7).
	Effective bool `json:"effective" cbor:"-"`
	// NextTickAt is when the job ticks next, if it does.
	NextTickAt Instant `json:"next_tick_at,omitempty" cbor:"-"`
}

// Version is one immutable version of a job.
type Version struct {
	JobID     JobID     `json:"job_id"`
	Version   uint64    `json:"version"`
	From      Instant   `json:"from"` // this version owns the ticks after From (L7)
	CreatedAt Instant   `json:"created_at"`
	Spec      *Document `json:"spec"`
}
