package cluster_test

import (
	"github.com/musterhq/muster/cluster"
	"github.com/musterhq/muster/scheduler"
)

var _ scheduler.Control = (*cluster.Control)(nil)
