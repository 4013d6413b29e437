package cluster

import (
	"context"
	"log/slog"

	"github.com/musterhq/muster/fsm"
	"github.com/musterhq/muster/job"
)

var discard = slog.New(slog.DiscardHandler)

func putNode(name string) fsm.Command { return &fsm.PutNode{Node: job.Node{ID: name, Name: name}} }

// leadUntilEnd is a leader's work that does nothing.
func leadUntilEnd(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
