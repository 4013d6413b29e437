package cluster

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/musterhq/muster/job"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// GossipConfig is how a node takes part in gossip. Zero means the default wherever one is named.
type GossipConfig struct {
	// NodeID is this node's id. Required.
	NodeID string
	// Address is the host:port of the first cell; each further one takes the port after that of the one before. Port 0 takes any free ones.
	// Default 127.0.0.1:0.
	Address string
	// AdvertiseHost is what others are told instead of Address's host; needed when that is 0.0.0.0 or behind a NAT.
	AdvertiseHost string
	// Secret makes the cells' keys; all nodes of a cluster need the same one. Default a random one, for a single node.
	// Whoever has it can read and forge gossip, so workers get only the key of their own cell.
	Secret []byte
	// Version is the binary's, shown to others. At most 48 bytes count.
	Version string
	// MaxCell is how many workers a cell is filled with. Default 1,000, at most 2,000.
	MaxCell int
	// AssignPerSecond bounds placements, because each join costs the node an exchange of its cell's whole state. Default 50.
	AssignPerSecond float64
	// Logger. Required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Validate names the first field that is wrong.
func (c *GossipConfig) Validate() error {
	switch {
	case c.NodeID == "":
		return job.InvalidField("NodeID", "a node id is needed")
	case c.Logger == nil:
		return job.InvalidField("Logger", "a logger is needed")
	case c.MaxCell < 0 || c.MaxCell > 2000:
		return job.InvalidField("MaxCell", "%d is not between 1 and 2000", c.MaxCell)
	case c.AssignPerSecond < 0:
		return job.InvalidField("AssignPerSecond", "%g is negative", c.AssignPerSecond)
	case c.Secret != nil && len(c.Secret) < 16:
		return job.InvalidField("Secret", "%d bytes are too few; at least 16 are needed", len(c.Secret))
	}
	_, _, err := splitAddress(cmp.Or(c.Address, defaultGossipAddress), "Address")
	return err
}

const defaultGossipAddress = "127.0.0.1:0"

func splitAddress(addr, field string) (host string, port int, err error) {
	h, p, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, job.InvalidField(field, "%q is not an address; write HOST:PORT", addr)
	}
	return h, port, nil
}

// Placement tells a worker which cell to join. The key is secret; it travels over an authenticated connection only.
type Placement struct {
	Cell  string   `json:"cell"`
	Seeds []string `json:"seeds"` // host:port of nodes in the cell
	Key   []byte   `json:"key"`   // 32 bytes
}

// Gossip is a node's side of all cells. What it tells is rumour: it may hurry a check, and decides nothing.
type Gossip struct {
	cfg      GossipConfig
	boot     string
	log      *slog.Logger
	limiter  *rate.Limiter
	events   chan Event
	dropped  prometheus.Counter
	refused  prometheus.Counter
	unmetric func()

	opening sync.Mutex // one cell is opened at a time; taken before mu
	mu      sync.Mutex // never held while memberlist is called: it calls back under a lock of its own
	cells   []*cell
	pending map[string]placed // workers that were told where to join and have not been seen
	closed  bool
}

// placed is where a worker was told to join.
type placed struct {
	cell *cell
	at   time.Time
}

// Event is a rumour that something changed. Events are hints: some are dropped when nobody takes them in time.
type Event struct {
	Kind   EventKind
	Member Member
}

// EventKind says what changed.
type EventKind string

const (
	Joined EventKind = "joined"
	Left   EventKind = "left" // the member said goodbye
	Died   EventKind = "died" // others could not reach it
)

// Member is what gossip tells of a worker or node. Suspected says that its cell reports more deaths than is likely, so
// that the observer itself may be what is cut off.
type Member struct {
	Name      string // of the worker, or the id of the node
	Boot      string // which life of the process
	Node      bool
	Address   string
	Version   string
	Cell      string
	State     MemberState
	Since     time.Time
	Suspected bool
}

// MemberState is what gossip thinks of a member.
type MemberState string

const (
	MemberAlive MemberState = "alive"
	MemberLeft  MemberState = "left"
	MemberDead  MemberState = "dead"
)

const (
	pendingFor     = 2 * time.Minute // how long a placed worker keeps its place without joining
	rememberedFor  = 10 * time.Minute
	eventsBuffered = 1024
)

// OpenGossip opens the first cell, and takes in workers from then on.
func OpenGossip(ctx context.Context, cfg GossipConfig) (*Gossip, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	or(&cfg.Address, defaultGossipAddress)
	or(&cfg.MaxCell, 1000)
	or(&cfg.AssignPerSecond, 50)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Secret == nil {
		cfg.Secret = make([]byte, 32)
		_, _ = rand.Read(cfg.Secret) // never fails
	}
	g := &Gossip{
		cfg: cfg, boot: newBoot(), log: cfg.Logger.With("component", "gossip"),
		limiter: rate.NewLimiter(rate.Limit(cfg.AssignPerSecond), max(1, int(2*cfg.AssignPerSecond))),
		events:  make(chan Event, eventsBuffered), pending: map[string]placed{},
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_gossip_events_dropped_total", Help: "Rumours that nobody took in time."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_gossip_placements_refused_total", Help: "Workers told to ask again because too many join at once."}),
	}
	var err error
	if g.unmetric, err = g.register(); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if _, err := g.open(ctx, cellName(1)); err != nil {
		g.unmetric()
		return nil, err
	}
	return g, nil
}

// newBoot names one life of a process: short, because every packet about a member carries it.
func newBoot() string { return uuid.NewString()[:8] }

func cellName(i int) string { return "cell-" + strconv.Itoa(i) }

// maxCells bounds the numbers of cells: ten times as many as ten thousand workers need.
const maxCells = 100

// cellNumber is the number of a cell, from 1.
func cellNumber(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "cell-")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 1 && n <= maxCells && cellName(n) == name
}

// key is the key of one cell. Cells have keys of their own so that a worker of one cannot speak in another.
func (g *Gossip) key(cell string) []byte {
	h := hmac.New(sha256.New, g.cfg.Secret)
	h.Write([]byte("muster gossip " + cell))
	return h.Sum(nil)
}

// open opens a cell that this node is not in yet, or answers the one that it is in.
func (g *Gossip) open(ctx context.Context, name string) (*cell, error) {
	g.opening.Lock()
	defer g.opening.Unlock()
	g.mu.Lock()
	for _, c := range g.cells {
		if c.name == name {
			g.mu.Unlock()
			return c, nil
		}
	}
	closed := g.closed
	g.mu.Unlock()
	if closed {
		return nil, notLeader(errClosed)
	}
	number, ok := cellNumber(name)
	if !ok {
		return nil, job.Errorf(job.Invalid, "cell", "%.64q is not a gossip cell", name)
	}
	host, port, err := splitAddress(g.cfg.Address, "Address")
	if err != nil {
		return nil, err
	}
	if port != 0 {
		port += number - 1 // the same on every node
	}
	c := &cell{name: name, gossip: g, members: map[string]*Member{}, leaving: map[string]bool{}}
	c.list, err = join(ctx, memberOptions{
		cell: name, key: g.key(name), name: g.cfg.NodeID, boot: g.boot, node: true, version: g.cfg.Version,
		host: host, port: port, advertise: g.cfg.AdvertiseHost, log: g.log.With("cell", name), events: c, alive: c, hear: c.NotifyMsg,
	})
	if err != nil {
		return nil, fmt.Errorf("open gossip %s on %s: %w", name, net.JoinHostPort(host, strconv.Itoa(port)), err)
	}
	g.mu.Lock()
	c.address = c.list.LocalNode().Address()
	g.cells = append(g.cells, c)
	g.mu.Unlock()
	g.log.Info("gossip cell open", "cell", name, "address", c.address)
	return c, nil
}

// Meet makes this node join a cell through other nodes in it, and may be repeated: a node that was cut off for long is
// forgotten by its cells and has to come back by itself.
func (g *Gossip) Meet(ctx context.Context, cell string, seeds []string) error {
	c, err := g.open(ctx, cell)
	if err != nil {
		return err
	}
	seeds = slices.DeleteFunc(slices.Clone(seeds), func(s string) bool { return s == c.address })
	if len(seeds) == 0 {
		return nil
	}
	if err := joinSeeds(ctx, c.list, seeds); err != nil {
		return err
	}
	g.mu.Lock()
	c.peers = seeds
	g.mu.Unlock()
	return nil
}

// Cells answers where other nodes and workers find this one: address by cell.
func (g *Gossip) Cells() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := make(map[string]string, len(g.cells))
	for _, c := range g.cells {
		m[c.name] = c.address
	}
	return m
}

// Assign answers where a worker is to join: where it is or was told to join already, else the first cell with room, else
// a new one. Exhausted means that too many join at once; ask again after a pause with jitter.
func (g *Gossip) Assign(ctx context.Context, worker string) (Placement, error) {
	if !validMemberName(worker) {
		return Placement{}, job.InvalidField("name", "%.64q is not a worker's name; use letters, digits, '.', '_' and '-', at most 128", worker)
	}
	if !g.limiter.AllowN(g.cfg.Now(), 1) {
		g.refused.Inc()
		return Placement{}, job.Errorf(job.Exhausted, "joins_full", "too many workers join at once; try again in a few seconds")
	}
	for {
		g.mu.Lock()
		c := g.place(worker)
		if c != nil || g.closed {
			defer g.mu.Unlock()
			if c == nil {
				return Placement{}, notLeader(errClosed)
			}
			return Placement{Cell: c.name, Seeds: append([]string{c.address}, c.peers...), Key: g.key(c.name)}, nil
		}
		next := g.nextCell()
		g.mu.Unlock()
		if _, err := g.open(ctx, next); err != nil {
			return Placement{}, &job.Error{Code: job.Unavailable, Reason: "no_cell", Message: "no gossip cell has room for this worker", Cause: err}
		}
	}
}

// nextCell is the first cell that is not open yet. It needs g.mu.
func (g *Gossip) nextCell() string {
	for i := 1; ; i++ {
		name := cellName(i)
		if !slices.ContainsFunc(g.cells, func(c *cell) bool { return c.name == name }) {
			return name
		}
	}
}

// place needs g.mu. It answers nil when every cell is full.
func (g *Gossip) place(worker string) *cell {
	now := g.cfg.Now()
	room := make(map[*cell]int, len(g.cells))
	var found *cell
	for _, c := range g.cells {
		room[c] = g.cfg.MaxCell
		for _, m := range c.members {
			if m.Node || m.State != MemberAlive {
				continue
			}
			room[c]--
			if m.Name == worker {
				found = c
			}
		}
	}
	for w, p := range g.pending {
		switch {
		case now.Sub(p.at) > pendingFor:
			delete(g.pending, w)
		case w == worker:
			found = p.cell
		default:
			room[p.cell]--
		}
	}
	if found == nil {
		for _, c := range g.cells {
			if room[c] > 0 {
				found = c
				break
			}
		}
	}
	if found != nil {
		g.pending[worker] = placed{found, now}
	}
	return found
}

// Members answers what gossip tells, ordered by name. Members that left or died are remembered for ten minutes, unless
// the same worker is alive in a later life.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.cfg.Now()
	var list []Member
	for _, c := range g.cells {
		c.forget(now)
		suspected := c.suspected(now)
		for _, m := range c.members {
			v := *m
			v.Suspected = suspected
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cell, b.Cell), a.Since.Compare(b.Since))
	})
	return list
}

// Events are hints of what changed.
func (g *Gossip) Events() <-chan Event { return g.events }

// Close says goodbye in every cell, or gives up on that when ctx ends, and leaves.
func (g *Gossip) Close(ctx context.Context) error {
	g.opening.Lock()
	defer g.opening.Unlock()
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	cells := slices.Clone(g.cells)
	g.mu.Unlock()
	errs := make([]error, len(cells))
	var all sync.WaitGroup
	for i, c := range cells {
		all.Go(func() { errs[i] = leave(ctx, c.list) })
	}
	all.Wait()
	g.unmetric()
	return errors.Join(errs...)
}

func (g *Gossip) register() (func(), error) {
	if g.cfg.Registerer == nil {
		return func() {}, nil
	}
	count := func(name, help string, of func(*cell, time.Time) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "muster_gossip_" + name, Help: help}, func() float64 {
			g.mu.Lock()
			defer g.mu.Unlock()
			sum, now := 0.0, g.cfg.Now()
			for _, c := range g.cells {
				sum += of(c, now)
			}
			return sum
		})
	}
	return registerAll(g.cfg.Registerer, []prometheus.Collector{
		g.dropped, g.refused,
		count("cells", "Cells that this node is in.", func(*cell, time.Time) float64 { return 1 }),
		count("members", "Workers that gossip believes alive.", func(c *cell, _ time.Time) float64 { return float64(c.alive()) }),
		count("cells_suspected", "Cells that report more deaths than is likely.", func(c *cell, now time.Time) float64 {
			if c.suspected(now) {
				return 1
			}
			return 0
		}),
	})
}
