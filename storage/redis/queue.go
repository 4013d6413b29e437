package redis

import (
	"context"
	"crypto/rand"
	_ "embed"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/musterhq/muster/job"
)

// DefaultMaxLane bounds the entries of one lane; the rest of a longer backlog stays in the store (Q2).
const DefaultMaxLane = 10_000

// lanesAtOnce is how many lanes one script empties.
const lanesAtOnce = 1000

// exact bounds the times that a sorted set keeps exactly.
const exact = 1 << 53

var (
	//go:embed raise.lua
	raiseLua string
	//go:embed reset.lua
	resetLua string
	//go:embed step.lua
	stepLua string
	//go:embed lanes.lua
	lanesLua string
	//go:embed depths.lua
	depthsLua string

	raiseScript  = goredis.NewScript(raiseLua)
	resetScript  = goredis.NewScript(resetLua)
	stepScript   = goredis.NewScript(stepLua)
	lanesScript  = goredis.NewScript(lanesLua)
	depthsScript = goredis.NewScript(depthsLua)
)

// Queue implements storage.Queue in Redis. It is used by one leader at a time; calls that write wait for each other.
//
// Beside the epoch, Redis keeps a token: the raise gives it a new random part, and every script that writes names the one
// that it expects and sets the next. So whatever was done to the queue by others, or to Redis as a whole, the next call
// finds it (reason queue_lost), and does nothing. After a call whose outcome is unknown the queue is lost as well.
type Queue struct {
	client  *Client
	maxLane int

	mu     sync.Mutex
	reign  string // the random part of the token; "": not raised, or lost
	number uint64 // the growing part
}

// Queue makes a queue whose lanes hold at most maxLane entries each; 0 means DefaultMaxLane.
func (c *Client) Queue(maxLane int) *Queue {
	if maxLane <= 0 {
		maxLane = DefaultMaxLane
	}
	return &Queue{client: c, maxLane: maxLane}
}

// Step is one step of the leader's, carried out whole or not at all.
type Step struct {
	Remove []job.RunID      // first these are taken out,
	Push   []job.QueueEntry // then these put in,
	Pop    []job.LaneWant   // then these popped
}

// Raise implements storage.Queue.
func (q *Queue) Raise(ctx context.Context, epoch job.Epoch) (job.Epoch, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	prefix, err := q.client.prefix()
	if err != nil {
		return 0, err
	}
	reign := rand.Text()
	answer, err := q.run(ctx, raiseScript, []string{prefix + "queue"}, epochText(epoch), token(reign, 0))
	if err == nil {
		err = q.judge(answer, epoch)
	}
	switch job.CodeOf(err) {
	case "":
		q.reign, q.number = reign, 0
		return epoch, nil
	case job.Fenced:
		stands, _ := strconv.ParseUint(text(answer, 1), 10, 32)
		return job.Epoch(stands), err
	case job.Unknown:
		q.reign = ""
	}
	return 0, err
}

// Push implements storage.Queue.
func (q *Queue) Push(ctx context.Context, epoch job.Epoch, now job.Instant, entries []job.QueueEntry) (left []job.QueueEntry, err error) {
	_, left, err = q.Step(ctx, epoch, now, Step{Push: entries})
	return left, err
}

// Pop implements storage.Queue.
func (q *Queue) Pop(ctx context.Context, epoch job.Epoch, now job.Instant, wants []job.LaneWant) ([]job.QueueEntry, error) {
	popped, _, err := q.Step(ctx, epoch, now, Step{Pop: wants})
	return popped, err
}

// Remove implements storage.Queue.
func (q *Queue) Remove(ctx context.Context, epoch job.Epoch, ids []job.RunID) error {
	_, _, err := q.Step(ctx, epoch, 0, Step{Remove: ids})
	return err
}

// Step removes, pushes and pops in one round trip.
func (q *Queue) Step(ctx context.Context, epoch job.Epoch, now job.Instant, s Step) (popped, left []job.QueueEntry, err error) {
	args, err := q.stepArgs(now, s)
	if err != nil {
		return nil, nil, err
	}
	answer, err := q.write(ctx, stepScript, epoch, args)
	if err != nil {
		return nil, nil, err
	}
	if popped, err = q.entries(answer, 1); err == nil {
		left, err = q.entries(answer, 2)
	}
	if err != nil {
		q.mu.Lock()
		q.reign = ""
		q.mu.Unlock()
		return nil, nil, err
	}
	return popped, left, nil
}

// fixedArgs is how many arguments every script that writes begins with: epoch, token expected, token after.
const fixedArgs = 3

// stepArgs are the arguments of step.lua, with room for the fixed ones.
func (q *Queue) stepArgs(now job.Instant, s Step) ([]any, error) {
	last := make(map[job.RunID]int, len(s.Push)) // a run pushed twice is pushed as it was last
	for i := range s.Push {
		last[s.Push[i].RunID] = i
	}
	type members struct{ ready, delayed []any }
	var order []job.LaneKey
	lanes := map[job.LaneKey]*members{}
	args := make([]any, fixedArgs, fixedArgs+6+len(s.Remove)+4*len(s.Push)+3*len(s.Push)/8+2*len(s.Pop)+8)
	args = append(args, instantText(now), q.maxLane, len(s.Remove), len(last))
	counts := len(args)
	args = append(args, 0, len(s.Pop))
	for _, id := range s.Remove {
		args = append(args, string(id[:]))
	}
	for i, e := range s.Push {
		if last[e.RunID] != i {
			continue
		}
		at, place := int64(e.ReadyAt), e.Order()
		if at <= -exact || at >= exact || place <= -exact {
			return nil, job.Errorf(job.Invalid, "invalid_time", "run %s is due at a time that Redis cannot keep", e.RunID)
		}
		id, readyAt := string(e.RunID[:]), instantText(e.ReadyAt)
		args = append(args, id, strconv.Itoa(int(e.Priority))+" "+readyAt+" "+string(e.Lane))
		m := lanes[e.Lane]
		if m == nil {
			m = &members{}
			lanes[e.Lane], order = m, append(order, e.Lane)
		}
		if e.ReadyAt <= now {
			m.ready = append(m.ready, instantText(job.Instant(place)), id)
		} else {
			m.delayed = append(m.delayed, readyAt, id)
		}
	}
	args[counts] = len(order)
	for _, k := range order {
		m := lanes[k]
		args = append(args, string(k), len(m.ready)/2, len(m.delayed)/2)
		args = append(append(args, m.ready...), m.delayed...)
	}
	for _, w := range s.Pop {
		args = append(args, string(w.Lane), w.Max)
	}
	return args, nil
}

// Lanes implements storage.Queue. It is for small queues and for looking: its cost grows with the number of lanes.
func (q *Queue) Lanes(ctx context.Context, now job.Instant) ([]job.LaneDepth, error) {
	prefix, err := q.client.prefix()
	if err != nil {
		return nil, err
	}
	rows, err := q.run(ctx, lanesScript, []string{prefix + "runs", prefix + "lanes", prefix + "r:", prefix + "d:"}, instantText(now))
	if err != nil {
		return nil, err
	}
	out := make([]job.LaneDepth, 0, len(rows))
	for _, r := range rows {
		row, ok := r.([]any)
		if !ok || len(row) != 5 {
			return nil, q.strange()
		}
		nextAt, err1 := score(text(row, 3))
		first, err2 := score(text(row, 4))
		if err1 != nil || err2 != nil {
			return nil, q.strange()
		}
		d := job.LaneDepth{Lane: job.LaneKey(text(row, 0)), Ready: number(row, 1), Delayed: number(row, 2), NextAt: job.Instant(nextAt), First: first}
		out = append(out, d)
	}
	return out, nil
}

// Holds implements storage.Queue.
func (q *Queue) Holds(ctx context.Context, ids []job.RunID) ([]bool, error) {
	out := make([]bool, len(ids))
	if len(ids) == 0 {
		return out, nil
	}
	prefix, err := q.client.prefix()
	if err != nil {
		return nil, err
	}
	fields := make([]string, len(ids))
	for i := range ids {
		fields[i] = string(ids[i][:])
	}
	ctx, cancel := q.client.bounded(ctx)
	defer cancel()
	values, err := q.client.redis.HMGet(ctx, prefix+"runs", fields...).Result()
	if err != nil {
		return nil, q.client.failed(err)
	}
	for i := range values {
		out[i] = values[i] != nil
	}
	return out, nil
}

// Depths is how much is queued: in all, and in some lanes.
type Depths struct {
	Entries, Lanes int
	Of             []int // of each lane asked for
}

// Depths counts what is queued. Unlike Lanes, it finds out when the queue is lost.
func (q *Queue) Depths(ctx context.Context, epoch job.Epoch, lanes []job.LaneKey) (Depths, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	prefix, err := q.client.prefix()
	if err != nil {
		return Depths{}, err
	}
	if q.reign == "" {
		return Depths{}, q.lost()
	}
	args := append(make([]any, 0, 2+len(lanes)), epochText(epoch), token(q.reign, q.number))
	for _, k := range lanes {
		args = append(args, string(k))
	}
	answer, err := q.run(ctx, depthsScript, allKeys(prefix), args...)
	if err == nil {
		err = q.judge(answer, epoch)
	}
	if err == nil && len(answer) != 3+len(lanes) {
		err = q.strange()
	}
	if err != nil {
		return Depths{}, err
	}
	d := Depths{Entries: number(answer, 1), Lanes: number(answer, 2), Of: make([]int, len(lanes))}
	for i := range d.Of {
		d.Of[i] = number(answer, 3+i)
	}
	return d, nil
}

// Reset implements storage.Queue. It takes a round trip for each thousand lanes.
func (q *Queue) Reset(ctx context.Context, epoch job.Epoch) error {
	for {
		answer, err := q.write(ctx, resetScript, epoch, append(make([]any, fixedArgs, fixedArgs+1), lanesAtOnce))
		if err != nil || number(answer, 1) == 0 {
			return err
		}
	}
}

// write runs a script that writes, under the token. Its first arguments are filled in here.
func (q *Queue) write(ctx context.Context, s *goredis.Script, epoch job.Epoch, args []any) ([]any, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	prefix, err := q.client.prefix()
	if err != nil {
		return nil, err
	}
	if q.reign == "" {
		return nil, q.lost()
	}
	args[0], args[1], args[2] = epochText(epoch), token(q.reign, q.number), token(q.reign, q.number+1)
	answer, err := q.run(ctx, s, allKeys(prefix), args...)
	if err == nil {
		err = q.judge(answer, epoch)
	}
	switch {
	case err == nil:
		q.number++
	case job.CodeOf(err) == job.Unknown:
		q.reign = ""
	}
	return answer, err
}

// allKeys are the KEYS of step, reset and depths.
func allKeys(prefix string) []string {
	return []string{prefix + "queue", prefix + "runs", prefix + "lanes", prefix + "r:", prefix + "d:"}
}

// run sends a script.
func (q *Queue) run(ctx context.Context, s *goredis.Script, keys []string, args ...any) ([]any, error) {
	ctx, cancel := q.client.bounded(ctx)
	defer cancel()
	answer, err := s.Run(ctx, q.client.redis, keys, args...).Slice()
	if err != nil {
		return nil, q.client.failed(err)
	}
	return answer, nil
}

// judge reads how a script went.
func (q *Queue) judge(answer []any, epoch job.Epoch) error {
	switch text(answer, 0) {
	case "ok":
		return nil
	case "fenced":
		return job.Errorf(job.Fenced, "old_epoch", "epoch %s was raised in Redis, epoch %d no longer leads", text(answer, 1), epoch)
	case "lost":
		return q.lost()
	}
	return q.strange()
}

func (q *Queue) lost() error {
	return job.Errorf(job.Unavailable, lost, "the queue in Redis at %s is not as it was left there, and must be filled again", q.client.Address())
}

// strange is the error for an answer that none of our scripts gives. Whatever gave it may have done anything.
func (q *Queue) strange() error {
	return job.Errorf(job.Unknown, unavailable, "Redis at %s gave an answer that cannot be read", q.client.Address())
}

// entries reads a list of ids and values.
func (q *Queue) entries(answer []any, i int) ([]job.QueueEntry, error) {
	if i >= len(answer) {
		return nil, q.strange()
	}
	list, ok := answer[i].([]any)
	if !ok || len(list)%2 != 0 {
		return nil, q.strange()
	}
	var out []job.QueueEntry
	for j := range len(list) / 2 {
		id, value := text(list, 2*j), text(list, 2*j+1)
		priority, rest, _ := strings.Cut(value, " ")
		readyAt, lane, ok := strings.Cut(rest, " ")
		p, err1 := strconv.ParseUint(priority, 10, 8)
		at, err2 := strconv.ParseInt(readyAt, 10, 64)
		if !ok || len(id) != len(job.RunID{}) || err1 != nil || err2 != nil {
			return nil, q.strange()
		}
		out = append(out, job.QueueEntry{RunID: job.RunID([]byte(id)), Lane: job.LaneKey(lane), Priority: uint8(p), ReadyAt: job.Instant(at)})
	}
	return out, nil
}

func text(list []any, i int) string {
	if i < len(list) {
		if s, ok := list[i].(string); ok {
			return s
		}
	}
	return ""
}

func number(list []any, i int) int {
	if i < len(list) {
		if n, ok := list[i].(int64); ok {
			return int(n)
		}
	}
	return 0
}

// score reads one of a sorted set; "" is 0.
func score(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	return int64(f), err
}

func token(reign string, n uint64) string { return reign + "-" + strconv.FormatUint(n, 10) }
func epochText(e job.Epoch) string        { return strconv.FormatUint(uint64(e), 10) }
func instantText(i job.Instant) string    { return strconv.FormatInt(int64(i), 10) }
