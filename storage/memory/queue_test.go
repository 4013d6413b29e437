package memory_test

import (
	"testing"

	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/memory"
	"github.com/musterhq/muster/storage/queuetest"
)

func TestQueue(t *testing.T) {
	queuetest.Run(t, queuetest.Options{Open: func(_ *testing.T, maxLane int) storage.Queue { return memory.New(maxLane) }})
}
