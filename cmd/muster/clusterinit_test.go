package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

func TestClusterInit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "with space", "tls")
	out := world{now: noon}.must(t, "cluster", "init", "--dir", dir,
		"--node", "n1=10.0.0.1", "--node", "n2=10.0.0.1", "--node", "n3=n3.example.com,10.0.0.3", "--days", "30")
	id, _, _ := strings.Cut(strings.TrimPrefix(out, "made the cluster "), " ")
	golden(t, "clusterinit.txt", strings.NewReplacer(id, "ID", dir, "/home/me/tls with space").Replace(out))
	for _, secret := range []string{"admin.token", "join.token"} {
		token, err := os.ReadFile(filepath.Join(dir, secret))
		if err != nil || strings.Contains(out, strings.TrimSpace(string(token))) {
			t.Errorf("%s: it is shown, or not there: %v", secret, err)
		}
	}
	r := world{now: noon}.muster(t, "cluster", "init", "--dir", dir, "--node", "n1=10.0.0.1")
	if r.code != exitConflict || r.out != "" || !strings.Contains(r.err, "holds a cluster already, and nothing of it is overwritten") {
		t.Errorf("a second init: %+v", r)
	}

	r = world{}.muster(t, "cluster", "certify", "--dir", dir, "--node", "n1=10.0.0.9")
	if r.code != exitConflict || !strings.Contains(r.err, "say --renew to replace it") {
		t.Errorf("a node that is there: %+v", r)
	}
	r = world{}.muster(t, "cluster", "certify", "--dir", dir, "--node", "n9", "--renew")
	if r.code != exitNotFound || !strings.Contains(r.err, "there is no node n9") {
		t.Errorf("a node that is not there: %+v", r)
	}
	r = world{}.muster(t, "cluster", "certify", "--dir", filepath.Join(dir, "none"), "--node", "n9=h")
	if r.code != exitNotFound || !strings.Contains(r.err, "does not exist; muster cluster init makes one") {
		t.Errorf("no directory: %+v", r)
	}
	// Loopback is in each certificate, and so not named as a host of its own.
	loopback := filepath.Join(t.TempDir(), "loopback")
	world{}.must(t, "cluster", "init", "--dir", loopback, "--node", "n1=127.0.0.1")
	if out := (world{}).must(t, "cluster", "certify", "--dir", loopback, "--node", "n1", "--renew"); !strings.Contains(out, "good for localhost until") {
		t.Errorf("renewed: %s", out)
	}
	for _, args := range [][]string{{"--node", "n4=10.0.0.4"}, {"--node", "n1", "--renew"}} {
		var made madeNode
		out := world{}.must(t, append([]string{"cluster", "certify", "--dir", dir, "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &made); err != nil {
			t.Fatal(err)
		}
		if n, err := pki.LoadNode(made.Dir); err != nil || n.Name() != made.Name || n.ClusterID() != id || job.At(n.ExpiresAt()) != made.ExpiresAt || len(made.Hosts) != 1 {
			t.Errorf("%+v: %v", made, err)
		}
	}
	if out := (world{}).must(t, "cluster", "certify", "--dir", dir, "--node", "n5=a,b", "-o", "name"); out != "n5\n" {
		t.Errorf("%q", out)
	}
	out = world{now: noon}.must(t, "cluster", "certify", "--dir", dir, "--node", "n6=a,b")
	if want := "made " + filepath.Join(dir, "nodes", "n6") + ", for n6 alone: good for a, b until "; !strings.HasPrefix(out, want) {
		t.Errorf("%q", out)
	}
}

func TestClusterInitForms(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tls")
	var made madeCluster
	if err := json.Unmarshal([]byte(world{}.must(t, "cluster", "init", "--dir", dir, "--node", "n1=h", "--node", "n2=h", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	if made.ClusterID == "" || made.Dir != dir || len(made.Nodes) != 2 || made.Nodes[1].Name != "n2" {
		t.Errorf("%+v", made)
	}
	for _, f := range []string{made.CA, made.CAKey, made.AdminToken, made.JoinToken, filepath.Join(made.Nodes[0].Dir, "node.key")} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	if out := (world{}).must(t, "cluster", "init", "--dir", filepath.Join(t.TempDir(), "tls"), "--node", "n1=h", "--node", "n2=h", "-o", "name"); out != "n1\nn2\n" {
		t.Errorf("%q", out)
	}
	r := world{}.muster(t, "cluster", "init", "--dir", filepath.Join(t.TempDir(), "tls"), "--node", "n1=h", "--node", "n2=h")
	if r.code != exitOK || !strings.Contains(r.err, "2 nodes survive the loss of 0, as 1 would; an odd number is better") {
		t.Errorf("two nodes: %+v", r)
	}
}

func TestClusterInitWrongInput(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	file := fileWith(t, "file", "")
	dir := filepath.Join(parent, "tls")
	for _, c := range []struct{ args, want string }{
		{"init --node n1=h", "--dir: the directory to make is missing"},
		{"init --dir %d", "--node: a cluster needs nodes; write --node NAME=HOST for each"},
		{"init --dir %d --node n1", "--node: by which names or addresses n1 is reached is missing; write n1=HOST"},
		{"init --dir %d --node n1=", "--node: a host is empty"},
		{"init --dir %d --node =h", "--node: a name is missing"},
		{"init --dir %d --node a/b=h", `--node: "a/b" is not a name`},
		{"init --dir %d --node n1=h:8080", `--node: "h:8080" is not a host; write a name such as n1.example.com or an address such as 10.0.0.1, without a port`},
		{"init --dir %d --node n1=h --node N1=i", "--node: the name N1 is given twice"},
		{"init --dir %d --node n1=h --name a/b", `--name: "a/b" is not a name`},
		{"init --dir %d --node n1=h --days 0", "--days: 0 is out of range; use 1 to 3650"},
		{"init --dir %d --node n1=h --days -1", "--days: -1 is out of range"},
		{"init --dir %d --node n1=h --days soon", `--days: "soon" is not a number`},
		{"init --dir %d --node n1=h extra", `"extra" is too much; usage: muster cluster init`},
		{"init --dir %f --node n1=h", "is not a directory"},
		{"certify --node n1=h", "--dir: the directory that muster cluster init made is missing"},
		{"certify --dir %d", "--node: the node is missing; write --node NAME=HOST"},
		{"certify --dir %d --node n1", "--node: by which names or addresses n1 is reached is missing"},
		{"certify --dir %d --node n1=h --days 4000", "--days: 4000 is out of range"},
	} {
		args := strings.Fields(strings.NewReplacer("%d", dir, "%f", file).Replace(c.args))
		r := world{now: noon}.muster(t, append([]string{"cluster"}, args...)...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.err, c.want) || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "muster: ") {
			t.Errorf("muster cluster %s: exit code %d\nstdout %q\nstderr %q\nwanted %q", c.args, r.code, r.out, r.err, c.want)
		}
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("wrong input left %v behind: %v", left, err)
	}
	// They are no settings: a file or a variable must not make a cluster somewhere else.
	r := world{now: noon, env: []string{"MUSTER_DIR=" + dir, "MUSTER_NODE=n1=h"}}.muster(t, "cluster", "init")
	if r.code != exitUsage || !strings.Contains(r.err, "--dir: ") {
		t.Errorf("%+v", r)
	}
}
