package postgres

import (
	"testing"

	"github.com/musterhq/muster/storage"
	"github.com/musterhq/muster/storage/storagetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Store { return open(t) })
}
