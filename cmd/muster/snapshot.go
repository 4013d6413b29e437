package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/internal/app"
	"github.com/musterhq/muster/job"
)

func (c *cli) snapshotCommand() *cobra.Command {
	group := &cobra.Command{Use: "snapshot COMMAND", Short: "Save the cluster's state, and put it back"}
	save := &cobra.Command{
		Use: "save FILE", Short: "Save the cluster's state in a file", Args: takes("FILE"),
		Long: `Save a consistent copy of the cluster's whole state: jobs, runs, credentials (as
digests), what has ticked. The file appears when it is whole; one that exists is not
overwritten. It holds what runs were given and what they answered: keep it as you keep
those. The output of runs is not in it. The credential must be one of the role admin.`,
		RunE: func(cmd *cobra.Command, args []string) error { return c.snapshotSave(cmd.Context(), args[0]) },
	}
	var yes bool
	restore := &cobra.Command{
		Use: "restore FILE [flags]", Short: "Replace the cluster's state by a saved one", Args: takes("FILE"),
		Long: `Replace the state of a running cluster by a saved one of the same cluster. What was
accepted since it was saved is lost: runs, changes of jobs, credentials; ticks since
then are decided again. The credential must be one of the role admin.`,
		RunE: func(cmd *cobra.Command, args []string) error { return c.snapshotRestore(cmd.Context(), args[0], yes) },
	}
	restore.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	ofOneCall(restore.Flags(), "yes")
	inspect := &cobra.Command{
		Use: "inspect FILE", Short: "Show what a file holds, and that it is whole", Args: takes("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := c.inspectFile(args[0])
			if err != nil {
				return err
			}
			return c.printSnapshot(r, args[0])
		},
	}
	group.AddCommand(save, restore, inspect)
	return group
}

func (c *cli) inspectFile(path string) (*app.SnapshotReport, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("the file", path, err)
	}
	f.Close()
	return c.inspect(path)
}

func (c *cli) printSnapshot(r *app.SnapshotReport, path string) error {
	return c.print(answer{
		value: r,
		names: func() []string { return []string{path} },
		table: func(b *strings.Builder, color bool) {
			var s sheet
			s.add("File", path)
			s.add("Cluster", r.ClusterID)
			s.add("Index", fmt.Sprint(r.Index))
			s.add("Epoch", fmt.Sprint(r.Epoch))
			s.add("Size", bytesWords(r.Bytes))
			s.write(b, color)
		},
	})
}

func (c *cli) snapshotSave(ctx context.Context, path string) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return usageErrorf("the file %s exists; name another, or move it away", path)
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil {
		return fileError("the directory", filepath.Dir(path), err)
	} else if !fi.IsDir() {
		return usageErrorf("%s is not a directory", filepath.Dir(path))
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	body, err := k.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fileError("the file", tmp, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	bar := c.moved("saving", 0)
	_, err = io.Copy(io.MultiWriter(f, bar), body)
	bar.done()
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return &exitError{exitFailed, fmt.Sprintf("the snapshot was not saved: %v", err)}
	}
	r, err := c.inspectFile(tmp) // a copy that cannot be put back is none
	if err != nil {
		return err
	}
	if err = giveName(tmp, path); err != nil {
		return fileError("the file", path, err)
	}
	syncDir(filepath.Dir(path))
	return c.printSnapshot(r, path)
}

// giveName moves a file to a name that must not be taken. A link, unlike a rename, overwrites nothing that appeared meanwhile.
func giveName(tmp, path string) error {
	switch err := os.Link(tmp, path); {
	case err == nil:
		return os.Remove(tmp)
	case errors.Is(err, fs.ErrExist):
		return err
	}
	return os.Rename(tmp, path) // a file system without links
}

// syncDir makes a new name last; where that is not possible the name is there all the same.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}

func (c *cli) snapshotRestore(ctx context.Context, path string, yes bool) error {
	r, err := c.inspectFile(path)
	if err != nil {
		return err
	}
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	s, err := k.Cluster(ctx)
	if err != nil {
		return err
	}
	if r.ClusterID == "" && !alone(s) {
		return job.Errorf(job.Conflict, "other_cluster", "%s is of a node that was alone (`muster dev`), not of the cluster %s; nothing was changed", path, s.ID)
	}
	if r.ClusterID != "" && r.ClusterID != s.ID {
		return job.Errorf(job.Conflict, "other_cluster", "%s is of the cluster %s, not of %s; nothing was changed", path, r.ClusterID, s.ID)
	}
	if err := c.confirm(yes, s.ID, "The state of the cluster %s is replaced by the one in %s (index %d).\nWhat was accepted since it was saved is lost.", s.ID, path, r.Index); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fileError("the file", path, err)
	}
	defer f.Close()
	bar := c.moved("sending", r.Bytes)
	err = k.Restore(ctx, countedFile{f, bar})
	bar.done()
	if err != nil {
		return err
	}
	return c.print(answer{
		value: r,
		names: func() []string { return []string{r.ClusterID} },
		table: func(b *strings.Builder, _ bool) {
			fmt.Fprintf(b, "the state of the cluster %s is that of %s, index %d\n", clean(s.ID), clean(path), r.Index)
		},
	})
}

// alone tells whether this is a node on its own: it has no cluster, and answers with its own id for that.
func alone(s *client.ClusterStatus) bool {
	return slices.ContainsFunc(s.Nodes, func(n client.NodeStatus) bool { return n.ID == s.ID })
}

const recoverHelp = `Make a cluster of one out of a node's data directory, for the day when a majority of
the nodes is lost for good and cannot be brought back. While a majority can still be
started, start it instead.

What the lost nodes had accepted and this one had not is lost. Every other old node
must never run again with its old data: start them anew with empty directories, and
they join this one.

    muster cluster recover --data /var/lib/muster --name n1 --dry-run
    muster cluster recover --data /var/lib/muster --name n1 --raft 10.0.0.1:8081

Look first, with --dry-run, at every node that is left, while no server runs there.
Then run it on the one whose last entry has the highest term, and among those with the
same term the highest index; then start that server as before.`

type recoverFlags struct {
	data, name, raft string
	dry, yes         bool
	log              logFlags
}

func (c *cli) recoverCommand() *cobra.Command {
	var f recoverFlags
	cmd := &cobra.Command{
		Use: "recover --data DIR --name NODE --raft HOST:PORT [flags]", Short: "Go on with one node when a majority is lost for good", Long: recoverHelp, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.recoverNode(cmd.Context(), f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.data, "data", "", "`DIR`: the node's data directory")
	fs.StringVar(&f.name, "name", "", "`NAME` of the node")
	fs.StringVar(&f.raft, "raft", "", "`HOST:PORT` where other nodes will reach this one")
	fs.BoolVar(&f.dry, "dry-run", false, "only show what the directory holds")
	fs.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	f.log.add(fs, "warn")
	ofOneCall(fs, "dry-run", "yes")
	return cmd
}

func (c *cli) recoverNode(ctx context.Context, f recoverFlags) error {
	logger, err := f.log.logger(c)
	if err != nil {
		return err
	}
	for _, flag := range [][2]string{{"data", f.data}, {"name", f.name}, {"raft", f.raft}} {
		if flag[1] == "" && !(f.dry && flag[0] == "raft") {
			return usageErrorf("--%s is missing; see `muster cluster recover --help`", flag[0])
		}
	}
	if err := job.CheckName("--name", f.name); err != nil {
		return err
	}
	// It becomes the cluster's only address: one that nobody reaches would be found out when it is too late.
	if host, port, err := net.SplitHostPort(f.raft); f.raft != "" && (err != nil || !reachable(host) || !isPort(port)) {
		return usageErrorf("--raft: %q is not an address that other nodes reach; write HOST:PORT, such as 10.0.0.1:8081", clip(f.raft, 128))
	}
	if f.data, err = c.dataDir(f.data, ""); err != nil {
		return err
	}
	if _, err := os.Stat(f.data); err != nil {
		return fileError("--data: the directory", f.data, err)
	}
	if f.dry {
		return c.recoverDry(ctx, f, logger)
	}
	if err := c.confirm(f.yes, "recover", "WARNING: %s becomes a cluster of the node %s alone.\nWhat the other nodes had accepted and this one had not is lost, and none of them\nmay ever run again with its old data.", f.data, f.name); err != nil {
		return err
	}
	r, err := c.recover(ctx, app.RecoverOptions{DataDir: f.data, Name: f.name, Raft: f.raft, Logger: logger})
	if err != nil {
		return processError(asFlag(err))
	}
	return c.printRecovery(f.name, r, "start the server now, then the other nodes with empty data directories")
}

func reachable(host string) bool {
	ip := net.ParseIP(host)
	return host != "" && (ip == nil || !ip.IsUnspecified())
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// recoverDry shows what a directory holds, for the choice between those that are left.
func (c *cli) recoverDry(ctx context.Context, f recoverFlags, logger *slog.Logger) error {
	r, err := c.recover(ctx, app.RecoverOptions{DataDir: f.data, Name: f.name, Raft: f.raft, DryRun: true, Logger: logger})
	if err != nil {
		return processError(asFlag(err))
	}
	return c.printRecovery(f.name, r, "nothing was changed; recover the node with the highest term, and among those with the highest index")
}

func (c *cli) printRecovery(name string, r *app.RecoverReport, note string) error {
	return c.print(answer{
		value: r,
		names: func() []string { return []string{r.NodeID} },
		table: func(b *strings.Builder, color bool) {
			var s sheet
			s.add("Cluster", r.ClusterID)
			s.add("Node", name+", "+r.NodeID)
			s.add("Last term", fmt.Sprint(r.LastTerm))
			s.add("Index", fmt.Sprint(r.Index))
			s.add("Epoch", fmt.Sprint(r.Epoch))
			for _, server := range r.Servers {
				s.add("Knew", server)
			}
			s.write(b, color)
		},
		note: note,
	})
}

// confirm asks before what cannot be undone; the word is what has to be typed.
func (c *cli) confirm(yes bool, word, format string, args ...any) error {
	if yes {
		return nil
	}
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		c.say("%s", strings.TrimSuffix(line, "\n"))
	}
	fmt.Fprintf(c.stderr, "Type %s to go on: ", clean(word))
	line, err := bufio.NewReader(io.LimitReader(c.stdin, 1024)).ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.stderr) // nobody pressed Enter
	}
	if strings.TrimSpace(line) != word {
		return usageErrorf("not confirmed, so nothing was changed; --yes does it without asking")
	}
	return nil
}
