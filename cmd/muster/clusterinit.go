package main

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/internal/pki"
	"github.com/musterhq/muster/job"
)

const clusterInitHelp = `Make what a new cluster needs to be safe, in a directory that does not exist yet: a
certificate authority, a certificate for each node, the first credential, and the token
with which workers join. No node needs to run, and none is asked.

    muster cluster init --dir muster-tls --node n1=10.0.0.1 --node n2=10.0.0.2 \
        --node n3=10.0.0.3,n3.example.com

Each node gets its own directory, nodes/NAME, and nothing else. The rest stays with you:
whoever has ca.key can make nodes, and whoever has admin.token can do everything.`

const clusterCertifyHelp = `Make a certificate for one more node, in a directory that muster cluster init made; or,
with --renew, a new one for a node that has one. No node is asked.

    muster cluster certify --dir muster-tls --node n4=10.0.0.4
    muster cluster certify --dir muster-tls --node n1 --renew

Copy the files of a renewed certificate over the node's own: it takes them within
seconds, without a restart. What --renew replaces is kept in nodes/.replaced.`

// Ports of the commands that init suggests. Nodes on one machine get others, tenAway from each other.
const (
	suggestedHTTP   = 8080
	suggestedRaft   = 8081
	suggestedGossip = 7946
	tenAway         = 10
)

func (c *cli) clusterInitCommand() *cobra.Command {
	var dir, name, id string
	var nodes []string
	var days int
	cmd := &cobra.Command{
		Use: "init --dir DIR --node NAME=HOST [flags]", Short: "Make the certificates and tokens of a new cluster",
		Long: clusterInitHelp, Args: takes(),
		RunE: func(*cobra.Command, []string) error { return c.clusterInit(dir, name, id, nodes, days) },
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "dir", "", "`DIR` to make, for the whole cluster")
	fs.StringArrayVar(&nodes, "node", nil, "`NAME=HOST,HOST...` of a node, and how it is reached; can be repeated")
	fs.StringVar(&name, "name", "muster", "`NAME` of the cluster, for people")
	fs.StringVar(&id, "cluster-id", "", "`ID` of a cluster that gets new certificates, so that its snapshots can be restored (default: a new one)")
	fs.IntVar(&days, "days", 365, "`N` days for which the nodes' certificates are good")
	ofOneCall(fs, "dir", "node", "name", "cluster-id", "days")
	return cmd
}

// madeCluster is the answer of init.
type madeCluster struct {
	ClusterID  string     `json:"cluster_id"`
	Dir        string     `json:"dir"`
	CA         string     `json:"ca"`
	CAKey      string     `json:"ca_key"`
	AdminToken string     `json:"admin_token"` // the file, not the token
	JoinToken  string     `json:"join_token"`
	Nodes      []madeNode `json:"nodes"`
}

type madeNode struct {
	Name      string      `json:"name"`
	Hosts     []string    `json:"hosts"`
	Dir       string      `json:"dir"`
	ExpiresAt job.Instant `json:"expires_at"`
}

func asMadeNode(n pki.MadeNode) madeNode {
	return madeNode{n.Name, n.Hosts, n.Dir, job.At(n.ExpiresAt)}
}

func (c *cli) clusterInit(dir, name, id string, nodes []string, days int) error {
	if dir == "" {
		return usageErrorf("--dir: the directory to make is missing")
	}
	if len(nodes) == 0 {
		return usageErrorf("--node: a cluster needs nodes; write --node NAME=HOST for each, three of them to survive the loss of one")
	}
	if err := checkDays(days); err != nil {
		return err
	}
	o := pki.InitOptions{ClusterName: name, ClusterID: id, Days: days, Now: c.now}
	for _, text := range nodes {
		o.Nodes = append(o.Nodes, pki.ParseNodeSpec(text))
	}
	made, err := pki.Init(dir, o)
	if err != nil {
		return asFlag(err)
	}
	a := madeCluster{made.ClusterID, filepath.Dir(made.CA), made.CA, made.CAKey, made.AdminToken, made.JoinToken, nil}
	for _, n := range made.Nodes {
		a.Nodes = append(a.Nodes, asMadeNode(n))
	}
	return c.print(answer{
		value: a,
		names: func() (names []string) {
			for _, n := range a.Nodes {
				names = append(names, n.Name)
			}
			return names
		},
		table: func(b *strings.Builder, _ bool) { a.write(b) },
		note: when(len(a.Nodes)%2 == 0, "%d nodes survive the loss of %d, as %d would; an odd number is better",
			len(a.Nodes), (len(a.Nodes)-1)/2, len(a.Nodes)-1),
	})
}

// write says what was made, and what to type next.
func (a *madeCluster) write(b *strings.Builder) {
	fmt.Fprintf(b, "made the cluster %s in %s\n\n", a.ClusterID, clean(a.Dir))
	var w sheet
	w.add("ca.crt", "for everybody: by it the nodes are known")
	w.add("ca.key", "makes nodes; keep it off the nodes, and safe")
	w.add("admin.token", "a credential that may do everything")
	w.add("join.token", "lets workers join")
	for _, n := range a.Nodes {
		w.add("nodes/"+n.Name, "for "+n.Name+" alone: good for "+strings.Join(n.Hosts, ", ")+" until "+n.ExpiresAt.Time().Format(time.DateOnly))
	}
	w.write(b, false)
	addresses := make([]string, len(a.Nodes))
	ports := make([]int, len(a.Nodes)) // how far from the usual ones
	used := map[string]int{}
	for i, n := range a.Nodes {
		ports[i] = tenAway * used[n.Hosts[0]]
		used[n.Hosts[0]]++
		addresses[i] = net.JoinHostPort(n.Hosts[0], strconv.Itoa(suggestedHTTP+ports[i]))
	}
	join := strings.Join(addresses, ",")
	for i, n := range a.Nodes {
		at := func(port int) string { return net.JoinHostPort(n.Hosts[0], strconv.Itoa(port+ports[i])) }
		fmt.Fprintf(b, "\nStart %s, on its machine, to which nodes/%s is copied first:\n\n", n.Name, n.Name)
		fmt.Fprintf(b, "    muster server --name %s --data muster-%s --tls %s \\\n        --http %s --raft %s --gossip %s \\\n        --join %s\n",
			n.Name, n.Name, shellWord(n.Dir), at(suggestedHTTP), at(suggestedRaft), at(suggestedGossip), join)
	}
	workerJoin := "https://" + strings.ReplaceAll(join, ",", ",https://")
	fmt.Fprintf(b, "\nStart a worker, on any machine to which ca.crt and join.token are copied:\n\n"+
		"    muster worker --join %s \\\n        --ca %s --join-token %s \\\n        --allow-exec '/usr/local/bin/*'\n", workerJoin, shellWord(a.CA), shellWord(a.JoinToken))
	fmt.Fprintf(b, "\nUse it:\n\n    export MUSTER_ADDRESS=%s\n    export MUSTER_CA=%s MUSTER_TOKEN_FILE=%s\n    muster cluster status\n",
		workerJoin, shellWord(a.CA), shellWord(a.AdminToken))
}

func (c *cli) clusterCertifyCommand() *cobra.Command {
	var dir, node string
	var days int
	var renew bool
	cmd := &cobra.Command{
		Use: "certify --dir DIR --node NAME=HOST [flags]", Short: "Make the certificate of one more node, or renew one",
		Long: clusterCertifyHelp, Args: takes(),
		RunE: func(*cobra.Command, []string) error { return c.clusterCertify(dir, node, days, renew) },
	}
	fs := cmd.Flags()
	fs.StringVar(&dir, "dir", "", "`DIR` that muster cluster init made")
	fs.StringVar(&node, "node", "", "`NAME=HOST,HOST...` of the node, and how it is reached")
	fs.BoolVar(&renew, "renew", false, "replace the certificate that it has; without hosts the new one has the same")
	fs.IntVar(&days, "days", 365, "`N` days for which the certificate is good")
	ofOneCall(fs, "dir", "node", "renew", "days")
	return cmd
}

func (c *cli) clusterCertify(dir, node string, days int, renew bool) error {
	if dir == "" {
		return usageErrorf("--dir: the directory that muster cluster init made is missing")
	}
	if node == "" {
		return usageErrorf("--node: the node is missing; write --node NAME=HOST")
	}
	if err := checkDays(days); err != nil {
		return err
	}
	made, err := pki.Certify(dir, pki.CertifyOptions{Node: pki.ParseNodeSpec(node), Renew: renew, Days: days, Now: c.now})
	if err != nil {
		return asFlag(err)
	}
	n := asMadeNode(*made)
	return c.print(answer{
		value: n,
		names: func() []string { return []string{n.Name} },
		table: func(b *strings.Builder, _ bool) {
			fmt.Fprintf(b, "made %s, for %s alone: good for %s until %s\n", clean(n.Dir), n.Name, cmp.Or(strings.Join(n.Hosts, ", "), "localhost"),
				n.ExpiresAt.Time().Format(time.DateOnly))
		},
	})
}

func checkDays(days int) error {
	if days < 1 || days > pki.MaxDays {
		return usageErrorf("--days: %d is out of range; use 1 to %d", days, pki.MaxDays)
	}
	return nil
}

// asFlag names the flag that a setting came from: they have the same names.
func asFlag(err error) error {
	if err == nil {
		return nil
	}
	e := *job.AsError(err)
	if e.Code == job.Internal {
		return err // of the machine
	}
	if e.Field != "" {
		e.Field = "--" + e.Field
	}
	return &e
}

// shellWord writes a word as a shell takes it.
func shellWord(s string) string {
	if s = clean(s); s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-+,:@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
