package cluster

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The arithmetic of the cluster's time (L8).
const (
	clockJitter  = 20 * time.Millisecond // a difference below it is not followed
	clockTooFar  = 2 * time.Second       // from the median: such a leader hands over
	clockStale   = 10 * time.Second      // a clock that was not read for so long no longer counts
	clockSamples = 30 * time.Second      // after which an exact measurement gives way to a newer one
)

// Clock is a node's idea of the cluster's time: its own clock, corrected to the median of the voters' clocks. What
// corrects it is remembered relative to a counter that no setting of a clock moves, so that a clock that is set, by hand or
// by a time server, moves the cluster's time only if most clocks were. Alone it is the node's own clock.
type Clock struct {
	wall  func() time.Time
	start time.Time // where elapsed counts from
	life  string    // elapsed means nothing in another

	mu       sync.RWMutex
	followed bool
	origin   int64 // the cluster's time when elapsed was 0, in nanoseconds of Unix time
}

// NewClock makes one from this machine's clock; nil means time.Now.
func NewClock(now func() time.Time) *Clock {
	if now == nil {
		now = time.Now
	}
	return &Clock{wall: now, start: time.Now(), life: uuid.NewString()}
}

// Now is the cluster's time.
func (c *Clock) Now() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.followed {
		return c.wall()
	}
	return time.Unix(0, c.origin+c.elapsed())
}

// Offset is how far this machine's clock is ahead of the cluster's time.
func (c *Clock) Offset() time.Duration { return c.wall().Round(0).Sub(c.Now().Round(0)) }

// elapsed counts time in this life, whatever is done to the machine's clock.
func (c *Clock) elapsed() int64 { return int64(time.Since(c.start)) }

// read answers the machine's clock and elapsed at one moment.
func (c *Clock) read() (wall, elapsed int64) { return c.wall().UnixNano(), c.elapsed() }

// follow makes the cluster's time what it is told, unless that is what it is already, but for jitter.
func (c *Clock) follow(origin int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.followed {
		wall, elapsed := c.read()
		c.origin, c.followed = wall-elapsed, true
	}
	if d := time.Duration(origin - c.origin).Abs(); d >= clockJitter {
		c.origin = origin
	}
}

// alone makes it this machine's clock.
func (c *Clock) alone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.followed = false
}

// at answers the followed origin.
func (c *Clock) at() (origin int64, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.origin, c.followed
}

// medianClock is the middle one of what clocks show at one moment. Of an even number anything between the two middle ones
// is: it is what is believed already, or the nearest to that, so that the cluster's time does not go an hour back when one
// node dies and the other of two is an hour late. Who believes nothing yet says noBelief and gets the earlier one, because
// ticks must not run ahead. ok is false if there are none.
func medianClock(shown []int64, believed int64) (median int64, ok bool) {
	if len(shown) == 0 {
		return 0, false
	}
	s := slices.Sorted(slices.Values(shown))
	return min(max(believed, s[(len(s)-1)/2]), s[len(s)/2]), true
}

const noBelief = math.MinInt64

// remoteClock is what the leader knows of another node's clock. It is zero before the first reading.
type remoteClock struct {
	life   string
	origin int64         // what the node's clock showed when its elapsed was 0: exact, as the node read both at once
	axis   int64         // this node's elapsed when the other's was 0: uncertain by half of trip
	trip   time.Duration // how long the call took that axis comes from
	axisAt int64         // when, in this node's elapsed
	readAt int64         // of the last reading
}

// reading is one answer: the other's clock and elapsed, somewhere between sent and received of this node's elapsed.
type reading struct {
	life           string
	wall, elapsed  int64
	sent, received int64
}

// with takes in a reading. How the two counters of time lie to each other does not change, unless a machine slept: so a
// quick call's measurement is kept rather than one that was long on its way and is less exact.
func (r remoteClock) with(a reading) remoteClock {
	trip := time.Duration(a.received - a.sent)
	axis := a.sent + (a.received-a.sent)/2 - a.elapsed
	r.origin, r.readAt = a.wall-a.elapsed, a.received
	moved := time.Duration(axis-r.axis).Abs() > (trip+r.trip)/2+clockJitter
	if r.life != a.life || trip <= r.trip || moved || a.received-r.axisAt > int64(clockSamples) {
		r.life, r.axis, r.trip, r.axisAt = a.life, axis, trip, a.received
	}
	return r
}

// here is what the other's clock shows when this node's elapsed is 0.
func (r remoteClock) here() int64 { return r.origin - r.axis }

// there turns the cluster's time at this node's origin into that at the other's.
func (r remoteClock) there(origin int64) int64 { return origin + r.axis }

// Where on its trip a reading was made nobody knows: of a call that was held up one way, half of the trip is far off. So of
// all that may be, these two take what is nearest to what is believed already: a difference that a slow network alone can
// explain is none, and a leader whose first calls were slow does not turn the cluster's time back, or ahead.

// hereNear is here, as near to what this node believes as the trip allows.
func (r remoteClock) hereNear(believed int64) int64 { return r.near(believed, r.here()) }

// thereNear is there, as near to the other's own clock as the trip allows.
func (r remoteClock) thereNear(origin int64) int64 { return r.near(r.origin, r.there(origin)) }

func (r remoteClock) near(believed, middle int64) int64 {
	doubt := int64(r.trip / 2)
	return min(max(believed, middle-doubt), middle+doubt)
}

func (r remoteClock) fresh(elapsed int64) bool {
	return r.life != "" && elapsed-r.readAt < int64(clockStale)
}
