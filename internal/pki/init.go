package pki

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/musterhq/muster/job"
)

// NodeSpec is a node to make a certificate for.
type NodeSpec struct {
	Name  string
	Hosts []string // names and addresses by which it is reached, without ports
}

// InitOptions are the settings of a new cluster.
type InitOptions struct {
	ClusterName string // for people; "": muster
	ClusterID   string // of a cluster that gets new certificates, so that its snapshots are its own; "": a new one
	Nodes       []NodeSpec
	Days        int              // life of the node certificates; 0: 365
	Now         func() time.Time // nil: time.Now
}

// Made is what Init made. Each field but ID and Nodes is the path of a file.
type Made struct {
	ClusterID             string
	CA, CAKey             string
	AdminToken, JoinToken string
	Nodes                 []MadeNode
}

// MadeNode is what was made for one node.
type MadeNode struct {
	Name      string
	Hosts     []string
	Dir       string // all that the node needs, and nothing that makes nodes
	ExpiresAt time.Time
}

const (
	maxNodes = 100
	maxHosts = 32
)

// Init makes a cluster's root, its authority for workers, its first two credentials, and a directory for each node. All of it
// is there when Init returns nil, and nothing when it does not. It overwrites nothing.
func Init(dir string, o InitOptions) (*Made, error) {
	if o.ClusterName == "" {
		o.ClusterName = "muster"
	}
	if err := job.CheckName("name", o.ClusterName); err != nil {
		return nil, err
	}
	if o.ClusterID != "" {
		if id, err := uuid.Parse(o.ClusterID); err != nil || id.String() != o.ClusterID {
			return nil, job.InvalidField("cluster-id", "%.64q is not the id of a cluster; `muster cluster status` and `muster cluster snapshot inspect` show it", o.ClusterID)
		}
	}
	if len(o.Nodes) > maxNodes {
		return nil, job.InvalidField("node", "there are %d nodes; the limit is %d", len(o.Nodes), maxNodes)
	}
	for i, n := range o.Nodes {
		if err := n.check(true); err != nil {
			return nil, err
		}
		// Some file systems do not tell capitals from small letters.
		if slices.ContainsFunc(o.Nodes[:i], func(m NodeSpec) bool { return strings.EqualFold(m.Name, n.Name) }) {
			return nil, job.InvalidField("node", "the name %s is given twice", n.Name)
		}
	}
	life, err := lifeOf(o.Days)
	if err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := vacant(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	made := &Made{
		ClusterID: cmp.Or(o.ClusterID, uuid.NewString()), CA: filepath.Join(dir, fileCA), CAKey: filepath.Join(dir, fileCAKey),
		AdminToken: filepath.Join(dir, fileAdmin), JoinToken: filepath.Join(dir, fileJoin),
	}
	err = stage(dir, func(at string) error {
		c, err := newCluster(at, made.ClusterID, o.ClusterName, o.Now())
		if err != nil {
			return err
		}
		for _, n := range o.Nodes {
			inner := filepath.Join(at, dirNodes, n.Name)
			if err := os.Mkdir(inner, 0o700); err != nil {
				return err
			}
			m, err := c.writeNode(inner, n, o.Now(), life)
			if err != nil {
				return err
			}
			m.Dir = filepath.Join(dir, dirNodes, n.Name)
			made.Nodes = append(made.Nodes, *m)
		}
		return nil
	})
	if errors.Is(err, fs.ErrExist) {
		return nil, occupied(dir)
	}
	if err != nil {
		return nil, err
	}
	return made, nil
}

// vacant makes sure that nothing is at dir. An empty directory may be there, and makes room.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		if info, statErr := os.Stat(dir); statErr == nil && !info.IsDir() {
			return job.Errorf(job.Invalid, "not_a_directory", "%s is not a directory", dir)
		}
		return err
	case len(entries) > 0:
		return occupied(dir)
	}
	if err := os.Remove(dir); err != nil {
		return &job.Error{Code: job.Invalid, Reason: "directory_exists", Cause: err,
			Message: fmt.Sprintf("the directory %s cannot be replaced; name one that does not exist yet, in a directory of yours", dir)}
	}
	return nil
}

func occupied(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, fileCluster)); err == nil {
		return job.Errorf(job.Conflict, "cluster_exists",
			"%s holds a cluster already, and nothing of it is overwritten; muster cluster certify adds a node to it", dir)
	}
	return job.Errorf(job.Conflict, "directory_not_empty", "the directory %s is not empty; name one that does not exist yet", dir)
}

// home is a cluster's directory, opened.
type home struct {
	clusterFile
	root, workers *authority
}

func newCluster(dir, id, name string, now time.Time) (*home, error) {
	c := &home{clusterFile: clusterFile{ID: id, Name: name, CreatedAt: job.At(now)}}
	var err error
	if c.root, err = newRoot(name, id, now); err != nil {
		return nil, err
	}
	if c.workers, err = newWorkersAuthority(name, id, c.root, now); err != nil {
		return nil, err
	}
	admin, err := c.credential("admin", job.RoleAdmin)
	if err != nil {
		return nil, err
	}
	join, err := c.credential("join", job.RoleJoin)
	if err != nil {
		return nil, err
	}
	rootKey, err := pemKey(c.root.key)
	if err != nil {
		return nil, err
	}
	if err := c.writeShared(dir); err != nil {
		return nil, err
	}
	for file, text := range map[string][]byte{fileCAKey: rootKey, fileAdmin: []byte(admin + "\n"), fileJoin: []byte(join + "\n")} {
		if err := write(filepath.Join(dir, file), text); err != nil {
			return nil, err
		}
	}
	return c, os.Mkdir(filepath.Join(dir, dirNodes), 0o700)
}

// credential makes one, keeps its digest, and returns its token.
func (c *home) credential(name string, role job.Role) (token string, err error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	id := randomText(6)
	c.Credentials = append(c.Credentials, credentialFile{ID: id, Name: name, Role: role, CreatedAt: c.CreatedAt, Digest: job.SecretDigest(secret)})
	return job.Token(id, secret), nil
}

// writeShared writes what the cluster's directory and each node's have in common.
func (c *home) writeShared(dir string) error {
	key, err := pemKey(c.workers.key)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(&c.clusterFile, "", "  ")
	if err != nil {
		return err
	}
	for file, text := range map[string][]byte{
		fileCA: pemCertificates(c.root.certificate), fileWorkers: pemCertificates(c.workers.certificate), fileWorkersKey: key,
		fileCluster: append(text, '\n'),
	} {
		if err := write(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return nil
}

func (c *home) writeNode(dir string, spec NodeSpec, now time.Time, life time.Duration) (*MadeNode, error) {
	certificate, key, err := c.root.node(spec, c.ID, now, life)
	if err != nil {
		return nil, err
	}
	text, err := pemKey(key)
	if err != nil {
		return nil, err
	}
	if err := c.writeShared(dir); err != nil {
		return nil, err
	}
	if err := write(filepath.Join(dir, fileNode), pemCertificates(certificate)); err != nil {
		return nil, err
	}
	if err := write(filepath.Join(dir, fileNodeKey), text); err != nil {
		return nil, err
	}
	return &MadeNode{Name: spec.Name, Hosts: spec.Hosts, Dir: dir, ExpiresAt: certificate.NotAfter}, nil
}

// openCluster reads the directory that Init made.
func openCluster(dir string) (*home, error) {
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, job.Errorf(job.NotFound, "no_cluster", "the directory %s does not exist; muster cluster init makes one", dir)
		}
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, fileCAKey)); errors.Is(err, fs.ErrNotExist) {
		return nil, job.Errorf(job.NotFound, "no_cluster",
			"%s has no %s; give the directory that muster cluster init made, as only that can make certificates of nodes", dir, fileCAKey)
	}
	at := func(file string) string { return filepath.Join(dir, file) }
	c := &home{}
	text, err := read(at(fileCluster))
	if err == nil {
		var f *clusterFile
		if f, err = parseCluster(text); err == nil {
			c.clusterFile = *f
		}
	}
	if err != nil {
		return nil, damaged(at(fileCluster), err)
	}
	if c.root, err = readAuthority(at(fileCA), at(fileCAKey)); err != nil {
		return nil, err
	}
	if c.workers, err = readAuthority(at(fileWorkers), at(fileWorkersKey)); err != nil {
		return nil, err
	}
	return c, nil
}

// readAuthority reads a certificate and its key.
func readAuthority(certificate, key string) (*authority, error) {
	c, err := readCertificate(certificate)
	if err != nil {
		return nil, err
	}
	text, err := read(key)
	if err != nil {
		return nil, damaged(key, err)
	}
	k, err := parseKey(text)
	if err != nil {
		return nil, damaged(key, err)
	}
	a, err := pair(c, k)
	return a, damaged(certificate, err)
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := read(path)
	if err != nil {
		return nil, damaged(path, err)
	}
	all, err := parseCertificates(text)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("it holds %d certificates where one is expected", len(all))
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	return all[0], nil
}

// CertifyOptions are the settings of a certificate for one more node, or a new one for a node that has one.
type CertifyOptions struct {
	Node  NodeSpec
	Renew bool // the node is there: its directory is replaced. Without hosts it keeps those it has
	Days  int  // 0: 365
	Now   func() time.Time
}

// Certify makes the directory of one node in a directory that Init made. What it replaces is kept beside it.
func Certify(dir string, o CertifyOptions) (*MadeNode, error) {
	if err := o.Node.check(!o.Renew); err != nil {
		return nil, err
	}
	life, err := lifeOf(o.Days)
	if err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	c, err := openCluster(dir)
	if err != nil {
		return nil, err
	}
	path, now := filepath.Join(dir, dirNodes, o.Node.Name), o.Now()
	if now.After(c.root.certificate.NotAfter) {
		return nil, job.Errorf(job.Conflict, "ca_expired", "the cluster's root certificate ended at %s; make a new cluster directory", stamp(c.root.certificate.NotAfter))
	}
	_, err = os.Lstat(path)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case there && !o.Renew:
		return nil, job.Errorf(job.Conflict, "node_exists", "the node %s has a certificate already; say --renew to replace it", o.Node.Name)
	case !there && o.Renew:
		return nil, job.Errorf(job.NotFound, "no_node", "there is no node %s in %s", o.Node.Name, filepath.Join(dir, dirNodes))
	}
	if o.Renew && len(o.Node.Hosts) == 0 {
		old, err := readCertificate(filepath.Join(path, fileNode))
		if err != nil {
			return nil, err
		}
		o.Node.Hosts = hostsOf(old)
	}
	if err := os.MkdirAll(filepath.Join(dir, dirNodes), 0o700); err != nil {
		return nil, err
	}
	var made *MadeNode
	err = stage(path, func(at string) (err error) {
		if made, err = c.writeNode(at, o.Node, now, life); err != nil || !there {
			return err
		}
		kept := filepath.Join(dir, dirNodes, dirReplaced)
		if err := os.MkdirAll(kept, 0o700); err != nil {
			return err
		}
		return os.Rename(path, filepath.Join(kept, o.Node.Name+"-"+now.UTC().Format("20060102T150405.000000")))
	})
	if err != nil {
		return nil, err
	}
	made.Dir = path
	return made, nil
}

func lifeOf(days int) (time.Duration, error) {
	if days == 0 {
		return nodeLife, nil
	}
	if days < 1 || days > MaxDays {
		return 0, job.InvalidField("days", "%d is out of range; use 1 to %d", days, MaxDays)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

// ParseNodeSpec reads NAME=HOST[,HOST...], or NAME alone.
func ParseNodeSpec(text string) NodeSpec {
	name, hosts, ok := strings.Cut(text, "=")
	spec := NodeSpec{Name: strings.TrimSpace(name)}
	if ok {
		for h := range strings.SplitSeq(hosts, ",") {
			spec.Hosts = append(spec.Hosts, strings.TrimSpace(h))
		}
	}
	return spec
}

func (n *NodeSpec) check(hosts bool) error {
	if err := job.CheckName("node", n.Name); err != nil {
		return err
	}
	if len(n.Hosts) == 0 && hosts {
		return job.InvalidField("node", "by which names or addresses %s is reached is missing; write %s=HOST", n.Name, n.Name)
	}
	if len(n.Hosts) > maxHosts {
		return job.InvalidField("node", "%s has %d hosts; the limit is %d", n.Name, len(n.Hosts), maxHosts)
	}
	for _, h := range n.Hosts {
		if err := checkHost(h); err != nil {
			return err
		}
	}
	return nil
}

func checkHost(h string) error {
	if net.ParseIP(h) != nil {
		return nil
	}
	if h == "" {
		return job.InvalidField("node", "a host is empty; write NAME=HOST or NAME=HOST,HOST")
	}
	bad := len(h) > 253
	for label := range strings.SplitSeq(h, ".") {
		bad = bad || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != ""
	}
	// What looks like an IPv4 address and is none is a slip, not a name.
	if last := h[strings.LastIndexByte(h, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		bad = true
	}
	if !bad {
		return nil
	}
	if len(h) > 64 {
		h = h[:64] + "..."
	}
	return job.InvalidField("node", "%q is not a host; write a name such as n1.example.com or an address such as 10.0.0.1, without a port", h)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
