// Package resolve carries out what has no worker: root runs with tasks, and tasks that run other jobs (run_job). It opens
// them when the dispatcher takes them from their lane, gives birth to the task runs that what has ended lets run (T1), and
// ends them when everything below them has ended (T4, T5, T9). What follows from what is for package job/dag to say; this
// package has it stored.
//
// All that it knows of an open root can be read again from the store: the row of the root, which is running, and the rows
// of its task runs. So crash points are harmless:
//
//   - After a root was opened and before its first tasks were born: the next leader meets a running row of a leader's lane,
//     adopts it, and decides the same (ids are derived).
//   - After a task was settled and before what follows was born: likewise.
//   - After births were stored and before they were queued: they are live rows, which the reconciler queues.
//   - After a run_job task was opened and before its child was born: the adopting leader finds no child under the derived id,
//     and gives birth to it.
//   - After the last task was settled and before the root ended: adopted, and ended.
//   - A call whose outcome is unknown is made again: births that are there are answered as they are, moves carry values.
//
// A newer leader fences all of it (L1).
package resolve

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
	"github.com/musterhq/muster/job/dag"
	"github.com/musterhq/muster/scheduler/fleet"
	"github.com/musterhq/muster/scheduler/pace"
	"github.com/musterhq/muster/scheduler/specs"
)

// Store is what the resolver asks of the store.
type Store interface {
	Load(ctx context.Context, ids []job.RunID) ([]*job.Run, error)
	Runs(ctx context.Context, q job.RunQuery) (job.RunPage, error)
	Release(ctx context.Context, epoch job.Epoch, runs []*job.Run) ([]job.Receipt, error)
	Job(ctx context.Context, namespace, name string) (*job.Job, error)
	Cancel(ctx context.Context, intents []job.CancelIntent) ([]job.Receipt, error)
}

// Mover moves runs that have no lease.
type Mover interface {
	MoveAll(ctx context.Context, moves []job.Move) ([]job.Moved, error)
}

const (
	// MaxOpen bounds the roots that are open at once, and maxTasks their tasks: they are in memory. What an open root waits
	// for is not bounded, or it would wait for ever.
	MaxOpen  = 20_000
	maxTasks = 2_000_000

	// maxStep bounds what one step takes of each kind, and maxBirths and maxBytes what is released at once.
	maxStep   = 1000
	maxRead   = 64 // roots of which all rows are in memory while they are adopted
	maxBirths = 1000
	maxBytes  = 1 << 20

	// lookEvery is how often roots are looked at that nobody has heard of for quiet, in case news were lost; lookRows bounds
	// the rows of one look.
	lookEvery = 5 * time.Second
	quiet     = 10 * time.Second
	lookRows  = 1000

	// keptPayload is how large a root's payload may be to be kept in memory.
	keptPayload = 4 << 10
	// again is how long a move waits that somebody else's hand kept back.
	again = 10 * time.Millisecond
)

// Resolver is one term's. Step is called by one goroutine; Open, Adopt, Ended, Cancel, Room, Root and Prepare by any.
type Resolver struct {
	Epoch  job.Epoch
	Store  Store
	Mover  Mover
	Fleet  *fleet.Fleet
	Specs  *specs.Specs
	Fence  func() job.Fence
	Now    func() job.Instant
	Jitter func() float64
	Pace   pace.Pace
	Logger *slog.Logger
	Born   func([]*job.Run)                                            // queues what was born
	Stop   func(ctx context.Context, why job.Reason, ids ...job.RunID) // stops runs that have cancel intents
	Later  func(ids ...job.RunID)                                      // has runs looked at that nobody here knows
	Wake   func()                                                      // there is room for more roots

	troubles sync.Mutex // reads go on beside each other
	trouble  pace.Trouble

	// Of the goroutine that has its turns.
	children  map[job.RunID]*child // by the id of the child run
	parents   map[job.RunID]*child // by the id of the task run
	touched   []*root              // something was noted since their last Next
	outcomes  []outcome            // of run_job tasks, to be stored
	cancels   []*root              // cancelled, and what is below them does not know yet
	stopping  []job.RunID          // likewise, what is below cancelled tasks
	childless []*job.Run           // run_job tasks that are running, and whose child is to be born
	looked    job.Instant
	lookedAt  int // roots looked at, in the order of their ids

	mu    sync.Mutex
	inbox inbox
	roots map[job.RunID]*root // open; changed by that goroutine only
	tasks int                 // of all of them
	whole bool                // all that an earlier term left open is known
	ready chan struct{}
}

// inbox is what the others said.
type inbox struct {
	open  []*job.Run // popped, to be opened; their keys are held
	adopt []*job.Run // rows of leaders' lanes that are running
	ended []*job.Run
	swept bool // adopt has, or had, all that an earlier term left open
}

// root is an open one.
type root struct {
	row     *job.Run // without its payload, if that is long
	trimmed bool
	plan    *dag.Plan
	g       *dag.Progress
	news    job.Instant // when something was last heard of it
	touched bool
	broken  bool // its document cannot be carried out: it only ends
	// What follows, and is not stored yet: births first, then ends, of lists and of the root itself.
	births   []*job.Run
	ends     []job.Move
	kept     bool // somebody else's hand kept an end back
	lookedAt int  // task runs that were looked at
}

// child is the run of a task's run_job.
type child struct {
	id   job.RunID
	task *job.Run // as it is running
	of   *root
}

// Init must be called before any other method.
func (r *Resolver) Init() {
	r.trouble = pace.Trouble{Logger: r.Logger, What: "releasing tasks"}
	r.children, r.parents = map[job.RunID]*child{}, map[job.RunID]*child{}
	r.roots = map[job.RunID]*root{}
	r.ready = make(chan struct{}, 1)
}

// Resolving is the part that resolves. Init must have been called.
func (r *Resolver) Resolving() *pace.Part {
	return &pace.Part{Name: "resolver", Signals: [2]<-chan struct{}{r.ready}, Turn: func(ctx context.Context) (time.Duration, error) {
		more, err := r.Step(ctx)
		switch {
		case job.CodeOf(err) == job.Fenced || err != nil && ctx.Err() != nil:
			return 0, err
		case err != nil:
			r.Pace.Sleep(ctx, r.failed(err))
			return 0, nil
		}
		r.troubles.Lock()
		r.trouble.Over()
		r.troubles.Unlock()
		switch {
		case more || slices.ContainsFunc(r.touched, func(o *root) bool { return !o.kept }):
			return 0, nil
		case len(r.touched) > 0 || len(r.outcomes) > 0: // in somebody's hand
			return again, nil
		case r.Open() > 0:
			return lookEvery, nil
		}
		return pace.Forever, nil
	}}
}

func (r *Resolver) tell(put func(*inbox)) {
	r.mu.Lock()
	put(&r.inbox)
	r.mu.Unlock()
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// Take opens runs of leaders' lanes that may start now. Their concurrency keys are held from now on.
func (r *Resolver) Take(runs []*job.Run) {
	for _, x := range runs {
		r.Fleet.Hold(x.LaneKey())
	}
	r.tell(func(in *inbox) { in.open = append(in.open, runs...) })
}

// Adopt takes over rows of leaders' lanes that are running: of an earlier term, or with a cancel intent that is new. What
// is known and has no such intent needs no look.
func (r *Resolver) Adopt(runs ...*job.Run) {
	r.tell(func(in *inbox) {
		for _, x := range runs {
			if r.roots[x.ID] == nil || x.CancelAt != 0 {
				in.adopt = append(in.adopt, x)
			}
		}
	})
}

// Swept tells that what an earlier term left open was adopted, or told of.
func (r *Resolver) Swept() { r.tell(func(in *inbox) { in.swept = true }) }

// Whole tells whether all open roots are known, and so which concurrency keys are held and what below them is cancelled.
// Until then no key may be given to another run, and nothing that is below a root may start.
func (r *Resolver) Whole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.whole
}

// Ended tells of runs that are terminal, perhaps again.
func (r *Resolver) Ended(runs []*job.Run) {
	var ours []*job.Run
	for _, x := range runs {
		if !x.IsRoot() || !x.ParentID.IsZero() || x.LaneKey().OnLeader() {
			ours = append(ours, x)
		}
	}
	if len(ours) > 0 {
		r.tell(func(in *inbox) { in.ended = append(in.ended, ours...) })
	}
}

// Room is how many roots may be opened now.
func (r *Resolver) Room() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks >= maxTasks {
		return 0
	}
	return max(0, MaxOpen-len(r.roots)-len(r.inbox.open))
}

// Open is how many roots are open.
func (r *Resolver) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.roots)
}

// Tasks is how many tasks they have.
func (r *Resolver) Tasks() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks
}

// Step does what was said, and tells whether there may be more to do.
func (r *Resolver) Step(ctx context.Context) (more bool, err error) {
	in, more := r.take()
	for _, x := range in.ended {
		r.ended(x)
	}
	in.ended = nil
	if err := r.adopt(ctx, in.adopt); err != nil {
		r.putBack(in)
		return true, err
	}
	in.adopt = nil
	if err := r.cancel(ctx); err != nil {
		return true, err
	}
	r.sweptNow()
	if in.open, err = r.open(ctx, in.open); err != nil {
		r.putBack(in)
		return true, err
	}
	if err := r.beginChildren(ctx); err != nil {
		return true, err
	}
	if err := r.endTasks(ctx); err != nil {
		return true, err
	}
	if err := r.cancel(ctx); err != nil {
		return true, err
	}
	if err := r.advance(ctx); err != nil {
		return true, err
	}
	return more, r.look(ctx)
}

func (r *Resolver) take() (in inbox, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cut := func(list *[]*job.Run) []*job.Run {
		n := min(len(*list), maxStep)
		some := slices.Clone((*list)[:n])
		if *list = (*list)[n:]; len(*list) == 0 {
			*list = nil
		}
		more = more || len(*list) > 0
		return some
	}
	return inbox{open: cut(&r.inbox.open), adopt: cut(&r.inbox.adopt), ended: cut(&r.inbox.ended)}, more
}

// sweptNow notes that all is adopted that was to be, once it is.
func (r *Resolver) sweptNow() {
	r.mu.Lock()
	now := r.inbox.swept && !r.whole && len(r.inbox.adopt) == 0
	r.whole = r.whole || now
	r.mu.Unlock()
	if now {
		r.Wake()
	}
}

func (r *Resolver) putBack(in inbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inbox.open = append(in.open, r.inbox.open...)
	r.inbox.adopt = append(in.adopt, r.inbox.adopt...)
	r.inbox.ended = append(in.ended, r.inbox.ended...)
}

// ended notes a terminal run: a task's, an item's, a child's, or a root.
func (r *Resolver) ended(x *job.Run) {
	if o := r.roots[x.ID]; o != nil {
		r.close(o)
	}
	if c := r.children[x.ID]; c != nil {
		c.of.news = r.Now()
		r.childEnded(c, x)
	} else if !x.ParentID.IsZero() {
		r.Later(x.ParentID) // its root is not adopted yet; whoever adopts it reads the child
	}
	if x.IsRoot() {
		return
	}
	if c := r.parents[x.ID]; c != nil {
		r.forget(c)
	}
	o := r.roots[x.RootID]
	if o == nil {
		r.Later(x.RootID)
		return
	}
	o.news = r.Now()
	o.g.Note(x)
	r.touch(o)
}

func (r *Resolver) touch(o *root) {
	if !o.touched {
		o.touched = true
		r.touched = append(r.touched, o)
	}
}

// enter makes a root an open one.
func (r *Resolver) enter(o *root) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.news = r.Now()
	if len(o.row.Payload) > keptPayload {
		n := *o.row
		n.Payload, o.trimmed = nil, true
		o.row = &n
	}
	r.roots[o.row.ID] = o
	r.tasks += len(o.plan.Tasks)
}

// close forgets a root that has ended.
func (r *Resolver) close(o *root) {
	r.mu.Lock()
	delete(r.roots, o.row.ID)
	r.tasks -= len(o.plan.Tasks)
	full := len(r.roots) >= MaxOpen-1 || r.tasks+len(o.plan.Tasks) >= maxTasks
	r.mu.Unlock()
	r.Fleet.Unhold(o.row.LaneKey())
	for _, t := range o.plan.Tasks {
		if t.Task.RunJob == nil {
			continue
		}
		for _, id := range append(o.g.LiveItems(t.Task.Name), job.TaskRunID(o.row.ID, t.Task.Name, 0)) {
			if c := r.parents[id]; c != nil {
				r.forget(c)
			}
		}
	}
	if full {
		r.Wake()
	}
}

func (r *Resolver) forget(c *child) {
	if r.parents[c.task.ID] == c {
		delete(r.children, c.id)
		delete(r.parents, c.task.ID)
	}
}
