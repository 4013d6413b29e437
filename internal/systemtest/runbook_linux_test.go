package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/checker"
	"github.com/musterhq/muster/job"
)

const operationsPage = "../../docs/operations.md"

// operator follows docs/operations.md on a real cluster: it types what the page says, on the machine that the page says.
type operator struct {
	*cluster
	desk     string            // where the operator sits: muster-tls is here
	env      []string          // what was exported
	sections map[string]string // of the page, by heading
	followed map[string]bool   // sections of which every command was typed
	said     string            // what the last command said
}

func newOperator(c *cluster) *operator {
	c.t.Helper()
	page, err := os.ReadFile(operationsPage)
	if err != nil {
		c.t.Fatal(err)
	}
	o := &operator{cluster: c, desk: filepath.Join(c.dir, "desk"), sections: map[string]string{}, followed: map[string]bool{}}
	for _, s := range strings.Split(string(page), "\n## ")[1:] {
		heading, text, _ := strings.Cut(s, "\n")
		o.sections[heading] = text
	}
	if err := os.Mkdir(o.desk, 0o700); err != nil {
		c.t.Fatal(err)
	}
	return o
}

// line is one command of the page.
type line struct{ machine, text string }

var promptLine = regexp.MustCompile(`(?m)^ {4}(\w*)\$ (.*)$`)

func linesOf(text string) (all []line) {
	for _, m := range promptLine.FindAllStringSubmatch(text, -1) {
		all = append(all, line{m[1], m[2]})
	}
	return all
}

// follow types all commands of a section. After each it calls what is to be seen then, if there is such a thing: by the
// beginning of the command as it stands on the page.
func (o *operator) follow(heading string, after map[string]func()) {
	o.t.Helper()
	lines := linesOf(o.sections[heading])
	if len(lines) == 0 {
		o.t.Fatalf("the page has no section %q with commands", heading)
	}
	began := time.Now()
	seen := map[string]bool{}
	for _, l := range lines {
		o.enter(l)
		for prefix, do := range after {
			if strings.HasPrefix(l.machine+"$ "+l.text, prefix) {
				seen[prefix] = true
				do()
			}
		}
	}
	if len(seen) != len(after) {
		o.t.Errorf("%s: some of what was to be looked at never came: %v of %d", heading, seen, len(after))
	}
	o.followed[heading] = true
	o.t.Logf("%s: %s", heading, time.Since(began).Round(time.Millisecond))
}

// enter does what one line says.
func (o *operator) enter(l line) {
	o.t.Helper()
	text := strings.TrimPrefix(l.text, "sudo ")
	text = strings.TrimPrefix(text, "-u muster ")
	text, file, redirected := strings.Cut(text, " > ")
	words := strings.Fields(text)
	for i := range words {
		words[i] = o.here(l.machine, words[i])
	}
	switch words[0] {
	case "muster":
		out := o.muster(words[1:]...)
		if redirected {
			if err := os.WriteFile(filepath.Join(o.desk, file), []byte(out), 0o600); err != nil {
				o.t.Fatal(err)
			}
		}
	case "export":
		o.env = append(o.env, words[1:]...)
	case "systemctl":
		o.systemctl(o.node(l.machine), words[1:])
	case "rm", "mv":
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			o.t.Fatalf("%s: %v\n%s", l.text, err, out)
		}
	default:
		o.t.Fatalf("the page says %q, which this test cannot do", l.text)
	}
}

// here is a word of the page as it is on this machine, which is all machines at once.
func (o *operator) here(machine, word string) string {
	if machine != "" {
		word = strings.Replace(word, "/var/lib/muster", filepath.Join(o.dir, machine), 1)
	}
	for i, n := range o.nodes {
		host, port := hostPort(o.t, n)
		ip := fmt.Sprintf("10.0.0.%d", i+1)
		word = strings.ReplaceAll(word, ip+":8080", at(host, port))
		word = strings.ReplaceAll(word, ip+":8081", at(host, port+1))
	}
	return regexp.MustCompile(`10\.0\.0\.\d`).ReplaceAllString(word, "127.0.0.1")
}

// muster types a command that must succeed.
func (o *operator) muster(args ...string) string {
	o.t.Helper()
	x := exec.Command(o.binary, args...)
	x.Dir, x.Env = o.desk, append(os.Environ(), o.env...)
	var out, errs bytes.Buffer
	x.Stdout, x.Stderr = &out, &errs
	err := x.Run()
	o.said = out.String() + errs.String()
	if err != nil {
		o.t.Fatalf("muster %s: %v\n%s", strings.Join(args, " "), err, o.said)
	}
	return out.String()
}

// hostPort is where a node's API is.
func hostPort(t *testing.T, n *process) (string, int) {
	t.Helper()
	u, err := url.Parse(n.url)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return u.Hostname(), port
}

func (o *operator) node(name string) *process {
	o.t.Helper()
	for _, n := range o.nodes {
		if n.name == name {
			return n
		}
	}
	o.t.Fatalf("there is no machine %q", name)
	return nil
}

// systemctl returns, like the real one, before a server that starts is ready; but a person reads on only when it is.
func (o *operator) systemctl(n *process, words []string) {
	o.t.Helper()
	if len(words) != 2 || words[1] != "muster-server" {
		o.t.Fatalf("systemctl %v", words)
	}
	switch words[0] {
	case "stop":
		if n.running() {
			n.stop()
		}
	case "start":
		n.start()
	case "restart":
		n.stop()
		n.start()
		o.whole() // "wait for healthy before the next"
	default:
		o.t.Fatalf("systemctl %v", words)
	}
}

// whole waits until the nodes that run are all voters, and healthy, and all that the cluster has. They are told apart by
// their ids: for some seconds a cluster takes a node that was wiped for the one that it was.
func (o *operator) whole() {
	o.t.Helper()
	o.await(90*time.Second, "whole cluster", func() bool {
		s, ok := o.status(o.leader())
		want, good := map[string]bool{}, 0
		for _, n := range o.nodes {
			if n.running() {
				id, _ := os.ReadFile(filepath.Join(filepath.Dir(o.raftLog(n)), "node-id")) // not yet there: not yet whole
				want[strings.TrimSpace(string(id))] = true
			}
		}
		for _, n := range s.Nodes {
			if (n.Role == "voter" || n.Role == "leader") && n.Healthy && want[n.ID] {
				good++
			}
		}
		return ok && good == len(want) && len(s.Nodes) == len(want)
	})
}

// named waits until all nodes have told their names, which they do in their first second.
func (o *operator) named() {
	o.t.Helper()
	o.await(10*time.Second, "name of each node", func() bool {
		s, ok := o.status(o.leader())
		for _, n := range s.Nodes {
			ok = ok && n.Name != n.ID
		}
		return ok
	})
}

// ticks waits until the job ticks and runs anew.
func (o *operator) ticks() {
	o.t.Helper()
	from := time.Now()
	o.await(time.Minute, "new tick that ran", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for t, err := range o.load.sdk.Ticks(ctx, heartbeat, from, time.Time{}) {
			if err != nil {
				return false
			}
			if t.Disposition == job.TickRun && t.RunID != (job.RunID{}) {
				r, err := o.load.sdk.Run(ctx, t.RunID)
				return err == nil && r.State == job.Succeeded
			}
		}
		return false
	})
}

// epoch is the leader's.
func (o *operator) epoch() job.Epoch {
	o.t.Helper()
	s, ok := o.status(o.leader())
	if !ok {
		o.t.Fatal("the leader does not answer")
	}
	return s.Epoch
}

// runs are all that have ended, with how.
func (o *operator) runs() map[job.RunID]job.State {
	o.t.Helper()
	all := map[job.RunID]job.State{}
	for r, err := range o.load.sdk.Runs(context.Background(), client.RunFilter{}) {
		if err != nil {
			o.t.Fatal(err)
		}
		if r.State.Terminal() {
			all[r.ID] = r.State
		}
	}
	return all
}

// kept fails the test if a run is gone or has another end.
func (o *operator) kept(before map[job.RunID]job.State) {
	o.t.Helper()
	now := o.runs()
	for id, state := range before {
		if now[id] != state {
			o.t.Errorf("run %s had %s and is %s now", id, state, now[id])
		}
	}
}

const heartbeat = "beat"

// grow adds a machine with the next name, whose certificate the page has yet to make.
func (o *operator) grow() *process {
	name := fmt.Sprintf("n%d", len(o.nodes)+1)
	port := freePorts(o.t)
	var join []string
	for _, n := range o.nodes {
		host, p := hostPort(o.t, n)
		join = append(join, at(host, p))
	}
	join = append(join, at("127.0.0.1", port))
	n := newProcess(o.t, process{role: checker.Node, name: name, dir: o.dir, url: o.url(at("127.0.0.1", port)), http: o.http, rec: o.rec, starter: o.starter,
		command: func() *exec.Cmd {
			return exec.Command(o.binary, "server", "--name", name, "--data", filepath.Join(o.dir, name), "--tls", o.pki("nodes", name), "--join", strings.Join(join, ","),
				"--http", at("127.0.0.1", port), "--raft", at("127.0.0.1", port+1), "--gossip", at("127.0.0.1", port+2))
		}})
	o.nodes = append(o.nodes, n)
	return n
}

// TestOperations follows every section of docs/operations.md, with real processes, while a job ticks.
func TestOperations(t *testing.T) {
	c := newCluster(t, shape{nodes: 3, workers: 1, slots: slots, quiet: true})
	o := newOperator(c)
	o.follow("Start a cluster", map[string]func(){
		"$ muster cluster init": func() { // what it made is as the page says; from here on it is the rig's own, made in the same way
			made := filepath.Join(o.desk, "muster-tls")
			for _, m := range regexp.MustCompile("(?m)^\\| `([^`]*)` \\| ").FindAllStringSubmatch(o.sections["Start a cluster"], -1) {
				if _, err := os.Stat(filepath.Join(made, strings.ReplaceAll(m[1], "NAME", "n3"))); err != nil {
					t.Error(err)
				}
			}
			if err := os.Rename(made, made+".first"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(c.pki(), made); err != nil {
				t.Fatal(err)
			}
		},
		"n3$": func() { o.whole(); o.named() },
		"$ muster cluster members": func() {
			for _, n := range o.nodes {
				if !strings.Contains(o.said, n.name+" ") {
					t.Errorf("%s is not a member:\n%s", n.name, o.said)
				}
			}
		},
	})
	c.workers[0].start()
	c.awaitWorkers()
	put(t.Context(), t, c.load.sdk, c.rec, &job.Document{Name: heartbeat, Schedule: &job.Schedule{Cron: "@every 1s"}, Exec: command(c.dir)})
	o.ticks()

	o.follow("Look after it", map[string]func(){"$ muster cluster verify": o.equal})
	if text := o.metricsText(c.leader()); text != "" {
		o.checkMetrics(text)
	}
	o.follow("Stop for a while: restart, upgrade, maintenance", map[string]func(){
		"$ muster cluster transfer n1": func() { o.leads("n1") },
		"$ muster cluster transfer n2": func() { o.leads("n2") },
		"$ muster cluster maintenance on": func() {
			if o.muster("cluster", "status"); !strings.Contains(o.said, "no ticks, no new attempts") {
				t.Errorf("there is no maintenance:\n%s", o.said)
			}
		},
	})
	o.ticks()
	o.follow("Credentials", nil)
	o.follow("Certificates", nil)

	n4 := o.grow()
	o.follow("Add a node", map[string]func(){"n4$": o.whole})
	o.follow("Remove a node", map[string]func(){"$ muster cluster remove": func() {
		if err, ended := n4.endedBySelf(30 * time.Second); !ended || err == nil {
			t.Errorf("the node that was removed: ended %v, %v", ended, err)
		}
		o.nodes = slices.DeleteFunc(o.nodes, func(n *process) bool { return n == n4 })
		o.whole()
	}})

	o.node("n3").kill()
	o.follow("Replace a lost node", map[string]func(){"n3$ sudo systemctl": o.whole})
	before := o.runs()
	o.damage(o.node("n2"))
	o.follow("A node refuses a damaged log", map[string]func(){"n2$ sudo systemctl": o.whole})
	o.kept(before)
	o.equal()

	o.follow("Backup", map[string]func(){
		"$ muster cluster snapshot save": func() {
			o.muster("credential", "revoke", "prometheus")
			o.muster("run", "list")
		},
		"$ muster cluster snapshot restore": func() {
			if o.muster("credential", "list"); !strings.Contains(o.said, "prometheus") {
				t.Errorf("the page says that revoked credentials come back:\n%s", o.said)
			}
		},
	})
	o.ticks()
	o.lostQuorum()

	for heading, text := range o.sections {
		if !o.followed[heading] && len(linesOf(text)) > 0 {
			t.Errorf("nobody followed %q", heading)
		}
	}
	for _, p := range slices.Concat(o.workers, o.nodes) {
		p.stop()
	}
}

// lostQuorum destroys two of three nodes, and goes on with the third.
func (o *operator) lostQuorum() {
	t := o.t
	o.whole()
	// A run of which the last node knows. What only the lost ones have may be lost.
	o.await(30*time.Second, "end of all but the newest runs", func() bool { return len(o.runs()) > 3 })
	before, epoch := o.runs(), o.epoch()
	o.await(30*time.Second, "node that has it all", func() bool {
		s, ok := o.status(o.leader())
		for _, n := range s.Nodes {
			ok = ok && n.Behind < 20
		}
		return ok
	})
	o.node("n1").kill()
	o.node("n3").kill()
	dry := ""
	o.follow("A majority is lost", map[string]func(){
		"n2$ sudo -u muster muster cluster recover --data /var/lib/muster --name n2 --dry-run": func() {
			for _, want := range []string{"Last term", "Index", "nothing was changed"} {
				if !strings.Contains(o.said, want) {
					t.Errorf("recover --dry-run does not say %q:\n%s", want, o.said)
				}
			}
			dry = o.said
		},
		"n2$ sudo systemctl start": func() { o.leads("n2") },
		"n1$ sudo systemctl start": func() { o.whole() },
		"n3$ sudo systemctl start": func() { o.whole() },
		"$ muster cluster verify": func() {
			if !strings.Contains(o.said, "all 3 states are equal") {
				t.Errorf("%s", o.said)
			}
		},
	})
	if now := o.epoch(); now < epoch+1000 {
		t.Errorf("the epoch was %d and is %d; recover said before:\n%s", epoch, now, dry)
	}
	o.kept(before)
	o.ticks()
	if v, err := o.load.sdk.Verify(context.Background(), heartbeat, time.Time{}, time.Time{}); err != nil || !v.OK {
		t.Errorf("the ledger of %s: %+v, %v", heartbeat, v, err)
	}
}

// damage cuts the log of a node that was killed, and sees it refuse with a sentence of the page.
func (o *operator) damage(n *process) {
	o.t.Helper()
	n.kill()
	file := o.raftLog(n)
	edit(o.t, file, func(f *os.File, size int64) error { return f.Truncate(size / 2 / boltPage * boltPage) })
	n.start()
	err, ended := n.endedBySelf(20 * time.Second)
	if !ended || err == nil {
		o.t.Fatalf("a node with half a log: ended %v, %v", ended, err)
	}
	said := n.tail()
	for _, sentence := range regexp.MustCompile(`(?m)^    (the raft log .*)$`).FindAllStringSubmatch(o.sections["A node refuses a damaged log"], -1) {
		pattern := regexp.QuoteMeta(sentence[1])
		pattern = strings.NewReplacer("FILE", `\S+`, " N of M ", ` \d+ of \d+ `).Replace(pattern)
		if regexp.MustCompile(pattern).MatchString(said) {
			return
		}
	}
	o.t.Errorf("the page does not say what a node with a damaged log says: %s", lastLine(said))
}

// leads waits until a node of that name leads.
func (o *operator) leads(name string) {
	o.t.Helper()
	o.await(30*time.Second, name+" as the leader", func() bool { return o.leader().name == name })
}

// equal compares the replicas.
func (o *operator) equal() {
	o.t.Helper()
	if o.muster("cluster", "verify"); !strings.Contains(o.said, "states are equal") {
		o.t.Errorf("%s", o.said)
	}
}

func (o *operator) metricsText(n *process) (text string) {
	o.t.Helper()
	if err := o.call(n, "GET", "/metrics", &text); err != nil {
		o.t.Error(err)
	}
	return text
}

// checkMetrics looks for every metric of the page. Those of a kind that counts by label are there once something was
// counted, so the source is asked as well.
func (o *operator) checkMetrics(text string) {
	o.t.Helper()
	for _, m := range regexp.MustCompile("`(muster_[a-z_]+)`").FindAllStringSubmatch(o.sections["Look after it"], -1) {
		if !strings.Contains(text, "\n"+m[1]) && !slices.Contains([]string{"muster_raft_log_write_errors_total", "muster_reconciled_total", "muster_http_panics_total", "muster_port_refused_total"}, m[1]) {
			o.t.Errorf("no node has the metric %s", m[1])
		}
	}
}
