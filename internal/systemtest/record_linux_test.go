package systemtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/musterhq/muster/internal/checker"
)

// The files of a trial's history, below its directory.
const (
	workFile    = "work.jsonl"    // what the commands write
	clientsFile = "clients.jsonl" // what the test writes
)

// recorder writes the history of the clients, line by line as things happen.
type recorder struct {
	mu   sync.Mutex
	file *os.File
	err  error
}

func newRecorder(t *testing.T, dir string) *recorder {
	f, err := os.Create(filepath.Join(dir, clientsFile))
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{file: f}
	t.Cleanup(func() { f.Close() })
	return r
}

func (r *recorder) add(l checker.Line) {
	b, err := json.Marshal(l)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		_, err = r.file.Write(append(b, '\n'))
	}
	if r.err == nil {
		r.err = err
	}
}

func (r *recorder) op(o checker.Op) { r.add(checker.Line{Op: &o}) }

// history reads back all that was written down.
func (r *recorder) history(t *testing.T, dir string) *checker.History {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		t.Fatalf("write the history: %v", r.err)
	}
	h := &checker.History{}
	for _, name := range []string{clientsFile, workFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		err = h.Read(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return h
}
