package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

// fakeCluster answers what the commands of this file ask, and notes what was done to it.
type fakeCluster struct {
	status   string // of GET /v1/cluster
	snapshot string
	breaks   bool // the snapshot breaks off
	restored []byte
	done     []string
	token    string // the last bearer
}

func (f *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/cluster":
		fmt.Fprint(w, f.status)
		return
	case "GET /v1/cluster/snapshot":
		fmt.Fprint(w, f.snapshot)
		if f.breaks {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		return
	case "POST /v1/cluster/snapshot":
		f.restored, _ = io.ReadAll(r.Body)
	case "POST /v1/credentials":
		body, _ := io.ReadAll(r.Body)
		f.done = append(f.done, string(body))
		fmt.Fprintf(w, `{"id":"beef","name":"ci","role":"submitter","namespaces":["a"],"created_at":"2026-01-31T12:00:00Z","expires_at":"2026-05-01T12:00:00Z","token":%q}`, aToken)
		return
	default:
		f.done = append(f.done, r.Method+" "+r.URL.String())
	}
	w.WriteHeader(http.StatusNoContent)
}

var aToken = job.Token("beef", bytes.Repeat([]byte{7}, 32))

func serveCluster(t *testing.T, f *fakeCluster) string {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL
}

// at is a world whose commands ask url, with files that are read by what stands in them.
func at(url string) world {
	return world{now: noon, env: []string{"MUSTER_ADDRESS=" + url}, inspect: func(path string) (*app.SnapshotReport, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		id, ok := strings.CutPrefix(string(text), "snapshot of ")
		if !ok {
			return nil, job.Errorf(job.Invalid, "snapshot_damaged", "%s is damaged", path)
		}
		return &app.SnapshotReport{ClusterID: id, Index: 42, Epoch: 7, Bytes: int64(len(text))}, nil
	}}
}

func TestSnapshotsAreSavedWhole(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{snapshot: "snapshot of c1"}
	w := at(serveCluster(t, f))
	dir := t.TempDir()
	file := filepath.Join(dir, "a.snapshot")
	out := w.must(t, "cluster", "snapshot", "save", file)
	if text, err := os.ReadFile(file); err != nil || string(text) != f.snapshot || !strings.Contains(out, "c1") {
		t.Fatalf("%q %v: %s", text, err, out)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	// It is not overwritten, and nothing that is not whole gets the name.
	f.snapshot = "something newer"
	if r := w.muster(t, "cluster", "snapshot", "save", file); r.code != exitUsage || !strings.Contains(r.err, "exists") {
		t.Errorf("%+v", r)
	}
	other := filepath.Join(dir, "b.snapshot")
	if r := w.muster(t, "cluster", "snapshot", "save", other); r.code != exitUsage || !strings.Contains(r.err, "damaged") {
		t.Errorf("%+v", r)
	}
	f.breaks = true
	if r := w.muster(t, "cluster", "snapshot", "save", other); r.code != exitFailed || !strings.Contains(r.err, "the snapshot was not saved") {
		t.Errorf("%+v", r)
	}
	if r := w.muster(t, "cluster", "snapshot", "save", filepath.Join(dir, "none", "x")); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	var report app.SnapshotReport
	if err := json.Unmarshal([]byte(w.must(t, "cluster", "snapshot", "inspect", file, "-o", "json")), &report); err != nil || report.Index != 42 || report.ClusterID != "c1" {
		t.Errorf("%+v %v", report, err)
	}
}

// A node that is alone has no cluster: its snapshot names none, and the API answers with the node's own id.
func TestARestoreIntoANodeThatIsAlone(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{status: `{"id":"node-id","leader":"node-1","nodes":[{"id":"node-id","name":"node-1"}]}`}
	mine, foreign := fileWith(t, "mine", "snapshot of "), fileWith(t, "foreign", "snapshot of c2")
	w := at(serveCluster(t, f))
	if r := w.muster(t, "cluster", "snapshot", "restore", foreign, "--yes"); r.code != exitConflict || f.restored != nil {
		t.Errorf("%+v", r)
	}
	if out := w.must(t, "cluster", "snapshot", "restore", mine, "--yes"); string(f.restored) != "snapshot of " || !strings.Contains(out, "of the cluster node-id is") {
		t.Errorf("restored %q: %s", f.restored, out)
	}
	g := &fakeCluster{status: `{"id":"c1","leader":"n1","nodes":[{"id":"a","name":"n1"}]}`}
	r := at(serveCluster(t, g)).muster(t, "cluster", "snapshot", "restore", mine, "--yes")
	if r.code != exitConflict || !strings.Contains(r.err, "is of a node that was alone (`muster dev`), not of the cluster c1") || g.restored != nil {
		t.Errorf("%+v", r)
	}
}

// A node that was cut off, or removed and has not noticed, does not speak for a cluster that others see led.
func TestTheStatusIsThatOfANodeWithALeader(t *testing.T) {
	t.Parallel()
	const lost = `{"id":"c1","node":"n1","quorum":{"healthy":false,"voters":3,"summary":"no node leads"}}`
	cut := serveCluster(t, &fakeCluster{status: lost})
	led := serveCluster(t, &fakeCluster{status: `{"id":"c1","node":"n2","leader":"n2","quorum":{"healthy":true,"voters":3,"summary":"fine"},"nodes":[{"name":"n3"},{"name":"n2"}]}`})
	r := at(cut+","+"http://127.0.0.1:1"+","+led).muster(t, "cluster", "status")
	if r.code != exitOK || !strings.Contains(r.out, "fine") || strings.Index(r.out, "n3 ") < strings.LastIndex(r.out, "\nn2 ") {
		t.Errorf("%+v", r)
	}
	if r := at(cut+","+"http://127.0.0.1:1").muster(t, "cluster", "status"); r.code != exitUnavailable || !strings.Contains(r.out, "no node leads") {
		t.Errorf("%+v", r)
	}
}

func TestTheStatusSaysWhatToDoWithoutPostgres(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]bool{`"outage":true,"outage_reason":"it hangs"`: true, `"outage":false`: false} {
		out := at(serveCluster(t, &fakeCluster{status: `{"id":"c1","leader":"n1","store":"postgres","quorum":{"healthy":true},` + status + `}`})).must(t, "cluster", "status")
		if strings.Contains(out, "postgres, out of reach: it hangs") != want || strings.Contains(out, "To do") != want {
			t.Errorf("%s: %s", status, out)
		}
	}
}

func TestARestoreIsConfirmed(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{status: `{"id":"c1","leader":"n1"}`}
	w := at(serveCluster(t, f))
	mine, foreign := fileWith(t, "mine", "snapshot of c1"), fileWith(t, "foreign", "snapshot of c2")
	for _, typed := range []string{"", "yes\n", "c2\n", "n"} {
		w.stdin = typed
		if r := w.muster(t, "cluster", "snapshot", "restore", mine); r.code != exitUsage || !strings.Contains(r.err, "Type c1 to go on") || !strings.Contains(r.err, "nothing was changed") {
			t.Errorf("%q: %+v", typed, r)
		}
	}
	if r := w.muster(t, "cluster", "snapshot", "restore", foreign, "--yes"); r.code != exitConflict || !strings.Contains(r.err, "is of the cluster c2, not of c1") {
		t.Errorf("%+v", r)
	}
	if r := w.muster(t, "cluster", "snapshot", "restore", fileWith(t, "broken", "x"), "--yes"); r.code != exitUsage || !strings.Contains(r.err, "is damaged") {
		t.Errorf("%+v", r)
	}
	if f.restored != nil {
		t.Fatalf("restored %q", f.restored)
	}
	w.stdin = "c1\n"
	w.must(t, "cluster", "snapshot", "restore", mine)
	if string(f.restored) != "snapshot of c1" {
		t.Errorf("restored %q", f.restored)
	}
	f.restored, w.stdin = nil, ""
	w.must(t, "cluster", "snapshot", "restore", mine, "--yes")
	if f.restored == nil {
		t.Error("--yes restored nothing")
	}
}

func TestRecoveringIsConfirmed(t *testing.T) {
	t.Parallel()
	var got []app.RecoverOptions
	w := world{recover: func(_ context.Context, o app.RecoverOptions) (*app.RecoverReport, error) {
		got = append(got, o)
		if o.Name == "n2" {
			return nil, job.Errorf(job.Conflict, "in_use", "the directory is in use by another process")
		}
		return &app.RecoverReport{NodeID: "id1", ClusterID: "c1", Index: 9, Epoch: 1007}, nil
	}}
	dir := t.TempDir()
	line := []string{"cluster", "recover", "--data", dir, "--name", "n1", "--raft", "10.0.0.1:8081"}
	if r := w.muster(t, line...); r.code != exitUsage || !strings.Contains(r.err, "WARNING") || len(got) != 0 {
		t.Errorf("%+v", r)
	}
	w.stdin = "recover\n"
	if out := w.must(t, line...); !strings.Contains(out, "1007") {
		t.Errorf("%s", out)
	}
	if len(got) != 1 || got[0].DataDir != dir || got[0].Raft != "10.0.0.1:8081" || got[0].Logger == nil {
		t.Errorf("%+v", got)
	}
	r := w.muster(t, "cluster", "recover", "--data", dir, "--name", "n2", "--raft", "10.0.0.1:8081", "--yes")
	if r.code != exitFailed || r.err != "muster: the directory is in use by another process\n" {
		t.Errorf("%+v", r)
	}
}

// A status that is not healthy is said in words, and to scripts by the exit code.
func TestAnUnhealthyClusterIsAnExitCode(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{status: `{"id":"c1","quorum":{"healthy":false,"voters":3,"summary":"no node leads","advice":["start them"]}}`}
	w := at(serveCluster(t, f))
	for _, form := range []string{"table", "json"} {
		r := w.muster(t, "cluster", "status", "-o", form)
		if r.code != exitUnavailable || r.err != "" || !strings.Contains(r.out, "no node leads") || !strings.Contains(r.out, "start them") {
			t.Errorf("%+v", r)
		}
	}
	differ := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"index":3,"equal":false,"complete":true,"replicas":[{"name":"a","digest":"1"},{"name":"b","digest":"2"}]}`)
	}))
	defer differ.Close()
	if r := at(differ.URL).muster(t, "cluster", "verify"); r.code != exitFailed || !strings.Contains(r.out, "DIFFER") {
		t.Errorf("%+v", r)
	}
}

func TestNodesAreRemovedWithForceOnlyIfSaid(t *testing.T) {
	t.Parallel()
	f := new(fakeCluster)
	w := at(serveCluster(t, f))
	w.stdin = "yes\n"
	w.must(t, "cluster", "remove", "n3")
	w.must(t, "cluster", "remove", "n3", "--force", "-y")
	if got := strings.Join(f.done, " "); got != "DELETE /v1/cluster/nodes/n3 DELETE /v1/cluster/nodes/n3?force=true" {
		t.Errorf("%s", got)
	}
}

// The token stands alone on standard output, so that it can go into a file, and that file be used.
func TestACredentialsTokenGoesIntoAFile(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{status: `{"id":"c1"}`}
	w := at(serveCluster(t, f))
	r := w.muster(t, "credential", "create", "ci", "--role", "submitter", "--namespaces", "a", "--expires-in", "90d")
	if r.code != exitOK || r.out != aToken+"\n" || !strings.Contains(r.err, "submitter in a, until 2026-05-01 12:00 UTC; this is the only time") {
		t.Fatalf("%+v", r)
	}
	if want := `{"name":"ci","role":"submitter","namespaces":["a"],"expires_in":"2160h0m0s"}`; f.done[0] != want {
		t.Errorf("sent %s", f.done[0])
	}
	file := fileWith(t, "ci.token", r.out)
	other := job.Token("other", bytes.Repeat([]byte{1}, 32))
	for name, c := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"the flag":                        {nil, []string{"--token-file", file}, aToken},
		"the environment":                 {[]string{"MUSTER_TOKEN_FILE=" + file}, nil, aToken},
		"a file against the environment":  {[]string{"MUSTER_TOKEN=" + other}, []string{"--token-file", file}, aToken},
		"a token against the environment": {[]string{"MUSTER_TOKEN_FILE=" + file}, []string{"--token", other}, other},
	} {
		v := w
		v.env = append(v.env[:len(v.env):len(v.env)], c.env...)
		v.must(t, append([]string{"cluster", "status"}, c.args...)...)
		if f.token != c.want {
			t.Errorf("%s: sent %q", name, f.token)
		}
	}
	w.env = append(w.env, "MUSTER_TOKEN_FILE="+file, "MUSTER_TOKEN="+other)
	if r := w.muster(t, "cluster", "status"); r.code != exitUsage || !strings.Contains(r.err, "contradict each other") {
		t.Errorf("%+v", r)
	}
}

func TestTheNodesCertificateIsChecked(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(&fakeCluster{status: `{"id":"c1"}`})
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	ca := fileWith(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	bare := strings.TrimPrefix(s.URL, "https://")
	for _, w := range []world{
		{env: []string{"MUSTER_ADDRESS=" + s.URL, "MUSTER_CA=" + ca}},
		{env: []string{"MUSTER_ADDRESS=" + bare, "MUSTER_CA=" + ca}}, // with a CA an address means https
	} {
		w.must(t, "cluster", "status")
	}
	r := world{env: []string{"MUSTER_ADDRESS=" + s.URL}}.muster(t, "cluster", "status")
	if r.code != exitUnavailable || !strings.Contains(r.err, "cannot be known without the cluster's certificate authority") || !strings.Contains(r.err, "--ca or MUSTER_CA") {
		t.Errorf("%+v", r)
	}
	r = world{env: []string{"MUSTER_ADDRESS=localhost:" + bare[strings.LastIndexByte(bare, ':')+1:], "MUSTER_CA=" + ca}}.muster(t, "cluster", "maintenance", "on")
	if r.code != exitUnavailable || !strings.Contains(r.err, "has a certificate for other addresses (x509: certificate is valid for example.com") {
		t.Errorf("%+v", r)
	}
	strangers := filepath.Join(t.TempDir(), "tls")
	world{}.must(t, "cluster", "init", "--dir", strangers, "--node", "n1=127.0.0.1")
	strangers = filepath.Join(strangers, "ca.crt")
	r = world{env: []string{"MUSTER_ADDRESS=" + s.URL, "MUSTER_CA=" + strangers}}.muster(t, "cluster", "status")
	if r.code != exitUnavailable || !strings.Contains(r.err, "is not one of the cluster of "+strangers) {
		t.Errorf("%+v", r)
	}
	r = world{env: []string{"MUSTER_ADDRESS=http://" + bare}}.muster(t, "cluster", "status")
	if r.code != exitUsage || !strings.Contains(r.err, "the node speaks TLS; name the cluster's ca.crt with --ca") {
		t.Errorf("%+v", r)
	}
}

// With --ca alone the usual address is meant, over TLS.
func TestTheDefaultAddressWithACA(t *testing.T) {
	t.Parallel()
	c := newCLI(nil, nil, nil, nil)
	c.addresses, c.ca = []string{"http://127.0.0.1:8080"}, "ca.crt"
	if err := c.checkAddresses(); err != nil || c.addresses[0] != "https://127.0.0.1:8080" {
		t.Errorf("%v %v", c.addresses, err)
	}
	c.addresses, c.addressGiven = []string{"http://10.0.0.1:1"}, true
	if err := c.checkAddresses(); err != nil || c.addresses[0] != "http://10.0.0.1:1" {
		t.Errorf("%v %v", c.addresses, err)
	}
}
