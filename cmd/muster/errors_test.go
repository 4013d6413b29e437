package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/job"
)

// Wrong command lines and wrong input: exit code 2, nothing on stdout, one sentence on stderr that says what to do.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	const id = "0192f3a4-7c1e-7abc-8def-0123456789ab"
	good := fileWith(t, "good.yaml", "name: a\nexec: {command: [x]}\n")
	crontab := fileWith(t, "crontab", "* * * * * x\n")
	for _, c := range []struct {
		args string // %f: a good file
		want string
	}{
		{"aply", "muster has no command \"aply\"; did you mean `muster apply`?"},
		{"job lst", "muster job has no command \"lst\"; did you mean `muster job list`?"},
		{"worker xyzzy", "muster worker has no command \"xyzzy\"; see `muster worker --help`"},
		{"run list --stat failed", "muster run list has no flag --stat; did you mean --state?"},
		{"run list -z", "muster run list has no flag -z; see `muster run list --help`"},
		{"run list --limit many", `--limit: "many" is not a number`},
		{"run list --limit", "flag needs an argument: --limit; see `muster run list --help`"},
		{"run list --limit -1", "--limit: -1 is out of range; use 1 or more, or 0 for all"},
		{"job list --limit -1", "--limit: -1 is out of range"},
		{"job ticks a --limit -1", "--limit: -1 is out of range"},
		{"run list --state broken", `--state: "broken" is not a state; use waiting, held`},
		{"run list --label nokey", `--label: "nokey" is not a label; write key=value`},
		{"run list --label a=1 --label a=2", `--label: "a" is given with two values`},
		{"run list --since yesterday", `--since: "yesterday" is not a time; write one such as`},
		{"run list --since 2026-01-02 --until 2026-01-01", "--until: it does not lie after --since"},
		{"run list extra", `muster run list: "extra" is too much; usage: muster run list [flags]`},
		{"run show", "muster run show: ID is missing; usage: muster run show ID"},
		{"run show 17", `"17" is not the id of a run; ids look like`},
		{"run wait --timeout soon " + id, `--timeout: "soon" is not a span`},
		{"run submit", "nothing to run; write a command after --, or --http URL, or --handler NAME"},
		{"run submit --http http://x --handler y", "a run is one of a command, --http and --handler"},
		{"run submit --http nowhere", "http.url: this is not an absolute http or https address"},
		{"run submit --dir relative -- x", `exec.dir: "relative" is not an absolute path`},
		{"run submit --env MUSTER_X=1 -- x", "exec.env.MUSTER_X: variables that start with MUSTER_ are set by Muster"},
		{"run submit --env novalue -- x", `--env: "novalue" has no name and value; write NAME=VALUE`},
		{"run submit --header x:y -- x", "--header goes with --http"},
		{"run submit --handler x --dir /tmp", "--dir and --env are for commands"},
		{"run submit --priority 12 -- x", "--priority: 12 is out of range; use 0 to 9, 9 first"},
		{"run submit --retries -2 -- x", "--retries: it must not be negative"},
		{"run submit --delay 1h --run-at now -- x", "--delay and --run-at contradict each other"},
		{"run submit --delay soon -- x", `--delay: "soon" is not a span`},
		{"run submit --payload {broken -- x", "--payload: "},
		{"run submit --payload hello -- x", `text stands in quotes, such as '"hello"'`},
		{"run submit --payload @/does/not/exist -- x", "the file /does/not/exist does not exist"},
		{"run submit --id 7 -- x", `"7" is not the id of a run`},
		{"job run", "muster job run: NAME is missing; usage: muster job run NAME [flags]"},
		{"job show a/b", `NAME: "a/b" is not a name; use letters, digits`},
		{"job show a --version 2", "--version goes with --document"},
		{"job next a --count 0", "--count: 0 is out of range; use 1 to 1000"},
		{"job backfill a", "--since is missing; write from which time on"},
		{"cluster maintenance maybe", `"maybe" is neither on nor off`},
		{"worker list --state sleepy", `--state: "sleepy" is not a state of a worker; use ready, cordoned, draining or gone`},
		{"worker", "--join: a worker needs the addresses of the nodes"},
		{"worker --join x --insecure --allow-user root --data %d", "--allow-exec is missing; without it no command is run"},
		{"worker --join ftp://x", `--join: "ftp://x" is not the address of a node`},
		{"worker --join x --insecure --slots -1 --data %d", "--slots: -1 is out of range"},
		{"worker --join x --insecure --allow-exec relative --data %d", `--allow-exec: "relative" is not absolute`},
		{"worker --join x --insecure --allow-exec * --allow-http-host a/b/c --data %d", "--allow-http-host: "},
		{"worker --join x --insecure --name a/b", `--name: "a/b" is not a name`},
		{"worker --join 10.0.0.1:8080", "--join: http://10.0.0.1:8080 is not this machine, and without TLS whoever is in between commands this worker; name the cluster's ca.crt with --ca, or say --insecure"},
		{"worker --join https://10.0.0.1:8080", "--ca is missing: without the cluster's certificate authority (ca.crt) this worker cannot know whether https://10.0.0.1:8080 is a node of it"},
		{"worker --join 10.0.0.1:8080 --ca %f", "--ca: %f holds no certificate in PEM; name the file ca.crt that `muster cluster init` made"},
		{"worker --join 10.0.0.1:8080 --ca /does/not/exist", "--ca: the file /does/not/exist does not exist"},
		{"worker --join http://10.0.0.1:8080 --ca %f", "--join: http://10.0.0.1:8080 has no certificate to hold against --ca; write https://10.0.0.1:8080"},
		{"worker --join x --insecure --ca %f", "--ca and --insecure contradict each other"},
		{"worker --join localhost:1 --join-token %f", "--join-token: %f holds no token; tokens begin with muster_"},
		{"worker --join localhost:1 --join-token /does/not/exist", "--join-token: the file /does/not/exist does not exist"},
		{"server", "--name: a server needs a name of its own in the cluster; write --name NAME"},
		{"server --name a/b", `--name: "a/b" is not a name`},
		{"server --name n1 --election-timeout 1ms", "--election-timeout: 1ms is out of range; use 100ms to 10s"},
		{"server --name n1 --election-timeout soon", `--election-timeout: "soon" is not a duration`},
		{"server --name n1 --data %d", "--http: an address for the API is needed; set --http HOST:PORT"},
		{"server --name n1 --data %d --http 10.0.0.1:8080", "--tls: a server needs certificates: make them with `muster cluster init` and name this node's directory with --tls DIR, or say --insecure"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --tls %d --insecure", "--insecure: a node has certificates or is insecure, not both"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --insecure", "--join: name the API addresses of all nodes"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --insecure --join https://10.0.0.1:8080", "--join: https://10.0.0.1:8080; without --tls it has to be http"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --tls %d --join http://10.0.0.1:8080", "--join: http://10.0.0.1:8080; with --tls it has to be https"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --insecure --join 10.0.0.1:8080", "--raft: an address is needed; set --raft HOST:PORT"},
		{"server --name n1 --data %d --http 10.0.0.1:8080 --insecure --join 10.0.0.1:8080 --raft nowhere", `--raft: "nowhere" is not an address`},
		{"server --name n1 --data %d --http 0.0.0.0:8080 --insecure --join 10.0.0.1:8080 --raft 10.0.0.1:1 --gossip 10.0.0.1:2", "name the host under which they reach this node with --advertise HOST"},
		{"server --name n1 --data %f", "is not a directory"},
		{"cluster transfer a b", `muster cluster transfer: "b" is too much`},
		{"cluster transfer a/b", `NODE: "a/b" is not a name`},
		{"cluster remove", "muster cluster remove: NODE is missing"},
		{"cluster remove a/b", `NODE: "a/b" is not a name`},
		{"cluster snapshot save", "muster cluster snapshot save: FILE is missing"},
		{"cluster snapshot save /does/not/exist", "the directory /does/not does not exist"},
		{"cluster snapshot save %f", "exists; name another, or move it away"},
		{"cluster snapshot restore /does/not/exist", "the file /does/not/exist does not exist"},
		{"cluster snapshot inspect /does/not/exist", "the file /does/not/exist does not exist"},
		{"cluster recover", "--data is missing; see `muster cluster recover --help`"},
		{"cluster recover --data %d", "--name is missing"},
		{"cluster recover --data %d --name n1", "--raft is missing"},
		{"cluster recover --data %d --name n1 --raft nowhere --yes", `--raft: "nowhere" is not an address that other nodes reach; write HOST:PORT`},
		{"cluster recover --data %d --name n1 --raft 0.0.0.0:8081 --yes", `--raft: "0.0.0.0:8081" is not an address that other nodes reach`},
		{"cluster recover --data %d --name n1 --raft 10.0.0.1:808I --yes", `--raft: "10.0.0.1:808I" is not an address that other nodes reach`},
		{"cluster recover --data %d --name n1 --dry-run", "--data: "},
		{"cluster recover --data /does/not/exist --name n1 --raft 10.0.0.1:1", "--data: the directory /does/not/exist does not exist"},
		{"credential create", "muster credential create: NAME is missing"},
		{"credential create ci", "--role is missing; use admin, operator, developer, submitter, viewer or join"},
		{"credential create ci --role root", `--role: "root" is not a role; use admin`},
		{"credential create a/b --role viewer", `NAME: "a/b" is not a name`},
		{"credential create ci --role viewer --expires-in soon", `--expires-in: "soon" is not a span; write one such as 12h or 90d`},
		{"credential create ci --role viewer --namespaces a/b", `--namespaces: "a/b" is not a name`},
		{"credential revoke", "muster credential revoke: NAME is missing"},
		{"--ca /does/not/exist job list", "--ca: the file /does/not/exist does not exist"},
		{"--ca %f job list", "--ca: %f holds no certificate in PEM"},
		{"--token-file /does/not/exist job list", "--token-file: the file /does/not/exist does not exist"},
		{"--token-file %d job list", "--token-file: the file %d is a directory"},
		{"--token-file %f job list", "--token-file: %f holds no token"},
		{"--token-file %f --token x job list", "--token and --token-file contradict each other"},
		{"dev --log-level loud", `--log-level: "loud" is not a level; use debug, info, warn or error`},
		{"dev --log-format xml", `--log-format: "xml" is not a format; use text or json`},
		{"worker --slots 0 --join 127.0.0.1:1", "--slots: 0 is out of range; use 1 to 10000"},
		{"dev --worker-slots 0", "--worker-slots: 0 is out of range; use 1 to 10000"},
		{"dev --worker-slots -1", "--worker-slots: -1 is out of range; use 1 to 10000"},
		{"dev --data %f", "is not a directory"},
		{"dev", "--data: neither XDG_DATA_HOME nor HOME says where data may be kept"},
		{"dev --http 0.0.0.0:0 --data %d", "is not a loopback address"},
		{"dev --http nowhere --data %d", `"nowhere" is not an address; write HOST:PORT`},
		{"-o xml version", `--output: "xml" is not a form of output; use table, json, yaml or name`},
		{"--address ftp://x job list", `--address: "ftp://x" is not the address of a node`},
		{"--address= job list", "--address: "},
		{"apply", "no file is named; write -f FILE, -f DIR, or -f - for stdin"},
		{"apply -f /does/not/exist", "the file /does/not/exist does not exist"},
		{"validate -f %d", "holds no .yaml, .yml or .json file"},
		{"validate %f", "is too much; usage: muster validate -f FILE [flags]"},
		{"import crontab", "muster import crontab: FILE is missing"},
		{"import crontab %c --user --system", "--user and --system contradict each other"},
		{"import crontab %c --time-zone Mars/Olympus", "time_zone: "},
		{"import crontab /does/not/exist --time-zone UTC", "the file /does/not/exist does not exist"},
		{"completion", "muster completion: SHELL is missing"},
		{"--config /does/not/exist version", "the configuration file /does/not/exist does not exist"},
	} {
		fill := strings.NewReplacer("%f", good, "%d", t.TempDir(), "%c", crontab)
		args := strings.Fields(fill.Replace(c.args))
		r := world{now: noon, env: []string{"MUSTER_ADDRESS=http://127.0.0.1:1"}}.muster(t, args...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.err, fill.Replace(c.want)) || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "muster: ") {
			t.Errorf("muster %s: exit code %d\nstdout %q\nstderr %q\nwanted %q", c.args, r.code, r.out, r.err, c.want)
		}
	}
}

func TestNoNodeAnswers(t *testing.T) {
	t.Parallel()
	// A port where nobody listens, and one where somebody takes connections and says nothing.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + free.Addr().String()
	free.Close()
	for _, args := range [][]string{
		{"job", "list"}, {"run", "submit", "--", "true"}, {"cluster", "status"}, {"job", "delete", "a", "b"},
		{"run", "logs", "-f", "0192f3a4-7c1e-7abc-8def-0123456789ab"}, {"run", "wait", "0192f3a4-7c1e-7abc-8def-0123456789ab"},
	} {
		begun := time.Now()
		r := world{}.muster(t, append(args, "--address", nobody)...)
		want := "muster: no node answers at " + nobody + "; start one with `muster dev`, or set --address\n"
		if args[1] == "submit" { // its flags end at the command
			r = world{env: []string{"MUSTER_ADDRESS=" + nobody}}.muster(t, args...)
		}
		if r.code != exitUnavailable || r.err != want || r.out != "" {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, r.code, r.out, r.err)
		}
		if took := time.Since(begun); took > retryFor/2 {
			t.Errorf("%v: a node that is not there was waited for %v", args, took)
		}
	}
	for _, at := range []string{strings.TrimPrefix(nobody, "http://"), "no-such-host.invalid"} { // Postgres is no node
		r := world{}.muster(t, "migrate", "status", "--postgres", "postgres://u:s3cr3t@"+at+"/db")
		if r.code != exitUnavailable || !strings.HasPrefix(r.err, "muster: the store is not available: Postgres cannot be reached") || strings.Contains(r.err, "s3cr3t") {
			t.Errorf("no Postgres at %s: %+v", at, r)
		}
	}
	r := world{}.muster(t, "job", "list", "--address", nobody+","+nobody)
	if r.code != exitUnavailable || !strings.Contains(r.err, nobody+", "+nobody) {
		t.Errorf("two addresses: %+v", r)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := strings.Replace(plain.URL, "http:", "https:", 1)
	r = world{}.muster(t, "job", "list", "--address", secure)
	if r.code != exitUnavailable || !strings.Contains(r.err, "the node at "+secure+" speaks no TLS; write its address with http://, and leave --ca out") {
		t.Errorf("https where http is spoken: %+v", r)
	}
	r = world{stdin: strings.Repeat("1", 2<<20), env: []string{"MUSTER_ADDRESS=" + nobody}}.muster(t, "run", "submit", "--payload", "-", "--", "cat")
	if r.code != exitUsage || !strings.Contains(r.err, "stdin has more than 1048576 bytes, which is the limit; keep large data elsewhere") {
		t.Errorf("a huge payload: %+v", r)
	}
	r = world{}.muster(t, "job", "list", "--address", "http://no-such-host.invalid:1")
	if r.code != exitUnavailable || !strings.Contains(r.err, "no-such-host.invalid") {
		t.Errorf("an unknown name: %+v", r)
	}
}

// What a node refuses keeps its words, and has the exit code of its kind.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		body   string
		code   int
		want   string
	}{
		{404, `{"code":"not_found","detail":"there is no job \"x\" in namespace \"default\""}`, exitNotFound, `there is no job "x" in namespace "default"`},
		{409, `{"code":"conflict","detail":"it is there"}`, exitConflict, "it is there"},
		{400, `{"code":"invalid","field":"schedule.cron","detail":"it can never tick"}`, exitUsage, "schedule.cron: it can never tick"},
		{401, `{"code":"unauthenticated","detail":"a credential is needed"}`, exitFailed, "a credential is needed; name a valid credential with --token, --token-file or MUSTER_TOKEN"},
		{401, `{"code":"unauthenticated","reason":"no_credential","detail":"a credential is needed; send its token in the header"}`, exitFailed, "muster: a credential is needed; name a valid credential with --token, --token-file or MUSTER_TOKEN\n"},
		{401, `{"code":"unauthenticated","reason":"expired","detail":"the credential ci has expired"}`, exitFailed, "the credential ci has expired; name a valid credential with --token"},
		{403, `{"code":"forbidden","detail":"it may only read"}`, exitFailed, "it may only read"},
		{500, `{"code":"internal"}`, exitFailed, "the node answered with the error internal"},
		{404, `<html>not here</html>`, exitNotFound, "something that is no node of Muster answered 404"},
		{200, `<html>a portal</html>`, exitFailed, "the node's answer cannot be read"},
		{400, `{"code":"invalid","detail":"\u001b[2J\u001b]0;owned\u0007bad\nname \u202e"}`, exitUsage, "muster: bad name \n"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		r := world{}.muster(t, "job", "show", "x", "--address", s.URL)
		s.Close()
		if r.code != c.code || !strings.Contains(r.err, c.want) || r.out != "" || strings.ContainsAny(r.err, "\x1b\a") {
			t.Errorf("%d %s: %+v, want %d %q", c.status, c.body, r, c.code, c.want)
		}
	}
}

// Whoever submitted and got no answer must not lose the id.
func TestSubmissionOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel() // after the request was read: it may have been carried out
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	r := world{ctx: ctx, env: []string{"MUSTER_ADDRESS=" + s.URL}}.muster(t, "run", "submit", "--id", "0192f3a4-7c1e-7abc-8def-0123456789ab", "--", "true")
	if r.code != exitUnavailable || !strings.Contains(r.err, "submit it again with --id 0192f3a4-7c1e-7abc-8def-0123456789ab") {
		t.Errorf("%+v", r)
	}
}

// A worker is told the flag that lets it in, not the header that it would send.
func TestAWorkerThatIsNotLetIn(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"code":"unauthenticated","reason":"no_credential","detail":"a join token is needed; send its token in the header"}`))
	}))
	defer s.Close()
	r := world{}.muster(t, "worker", "--name", "w1", "--data", t.TempDir(), "--join", s.URL, "--log-level", "error")
	if r.code != exitFailed || !strings.HasSuffix(r.err, "muster: the cluster does not let this worker in without a join token; name its file with --join-token\n") {
		t.Errorf("%+v", r)
	}
}

func TestExitCodeOfSeveral(t *testing.T) {
	t.Parallel()
	missing, twice := job.Errorf(job.NotFound, "", "a"), job.Errorf(job.Conflict, "", "b")
	for _, c := range []struct {
		errs []error
		want int
	}{{nil, exitOK}, {[]error{missing}, exitNotFound}, {[]error{missing, missing}, exitNotFound}, {[]error{missing, twice}, exitFailed}, {[]error{errors.New("x")}, exitFailed}} {
		if got := exitCode(failure(c.errs)); got != c.want {
			t.Errorf("%v: %d, want %d", c.errs, got, c.want)
		}
	}
}

// A second node in one directory, or at one address, is told so in one sentence.
func TestDevCannotStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := world{}.muster(t, "dev", "--data", t.TempDir(), "--http", taken.Addr().String())
	if r.code != exitFailed || !strings.Contains(r.err, taken.Addr().String()) || !strings.Contains(r.err, "choose another --http address") {
		t.Errorf("an address in use: %+v", r)
	}
	if os.Getuid() != 0 {
		dir := filepath.Join(t.TempDir(), "no")
		if err := os.Mkdir(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if r := (world{}).muster(t, "dev", "--data", filepath.Join(dir, "data"), "--http", "127.0.0.1:0"); r.code != exitFailed || !strings.Contains(r.err, "permission denied") {
			t.Errorf("a directory that cannot be made: %+v", r)
		}
	}
	n := startNode(t)
	r = world{}.muster(t, "dev", "--data", n.data, "--http", "127.0.0.1:0")
	if r.code != exitFailed || !strings.Contains(r.err, "in use by another") {
		t.Errorf("a directory in use: %+v", r)
	}
}
