//go:build !unix

package worker

import (
	"context"
	"io"
	"io/fs"

	"github.com/musterhq/muster/job"
)

const (
	openNoFollow = 0
	openNonblock = 0
)

func ownedBy(fs.FileInfo, int) bool { return true }

// starter has nothing to do: this system has no process groups as Muster needs them.
type starter struct{}

func (*starter) Close() error { return nil }

func (e *Exec) run(context.Context, job.Fence, *command, io.Writer) (exitStatus, *Stop, *refusal) {
	return exitStatus{}, nil, neverStarts("this worker's system cannot run commands; use a worker on Linux, macOS or BSD")
}
