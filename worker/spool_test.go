package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/job"
)

func openSpool(t testing.TB, dir string) *Spool {
	t.Helper()
	s, err := OpenSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func outcomeOf(f job.Fence) job.Outcome {
	return job.Outcome{
		RunID: job.RunID{1, byte(f)}, Fence: f, Attempt: 3, Worker: "w1", Kind: job.AttemptFailed, Reason: job.ExitCode, Error: "the command exited with code 2",
		ExitCode: 2, Result: []byte(`{"n":1}`), StartedAt: 1000, FinishedAt: 2000, Permanent: true,
	}
}

func wantPending(t *testing.T, s *Spool, fences ...job.Fence) {
	t.Helper()
	var want []job.Outcome
	for _, f := range fences {
		want = append(want, outcomeOf(f))
	}
	if d := cmp.Diff(want, s.Pending()); d != "" {
		t.Errorf("pending (-want +got):\n%s", d)
	}
	if s.Len() != len(fences) {
		t.Errorf("len %d, want %d", s.Len(), len(fences))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSpoolSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSpool(t, dir)
	must(t, s.Add(outcomeOf(5), outcomeOf(1)))
	must(t, s.Add(outcomeOf(9)))
	must(t, s.Add())
	must(t, s.Done(1, 77))
	wantPending(t, s, 5, 9)
	s = openSpool(t, dir) // the first is not closed: its process was killed
	wantPending(t, s, 5, 9)
	must(t, s.Add(outcomeOf(5))) // again: it takes the place of the first, at the end
	must(t, s.Done(9))
	s = openSpool(t, dir)
	wantPending(t, s, 5)
	must(t, s.Done(5))
	must(t, s.Close())
	must(t, s.Close())
	if err := s.Add(outcomeOf(1)); err == nil {
		t.Error("a closed spool takes results")
	}
	wantPending(t, openSpool(t, dir))
}

func TestSpoolTornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "results.spool")
	s := openSpool(t, dir)
	must(t, s.Add(outcomeOf(1)))
	whole := s.size
	must(t, s.Add(outcomeOf(2)))
	full, err := os.ReadFile(path)
	must(t, err)
	for cut := whole; cut < int64(len(full)); cut++ {
		must(t, os.WriteFile(path, full[:cut], 0o600))
		s := openSpool(t, dir)
		wantPending(t, s, 1)
		must(t, s.Add(outcomeOf(3))) // what follows a torn record is not lost
		s.Close()
		s = openSpool(t, dir)
		wantPending(t, s, 1, 3)
		s.Close()
	}
	for at := whole; at < int64(len(full)); at++ { // a damaged record ends the file
		b := bytes.Clone(full)
		b[at] ^= 0x40
		must(t, os.WriteFile(path, b, 0o600))
		s := openSpool(t, dir)
		wantPending(t, s, 1)
		s.Close()
	}
}

func TestSpoolBounds(t *testing.T) {
	t.Parallel()
	s := openSpool(t, t.TempDir())
	s.max = 1000
	var n job.Fence
	for n = 1; ; n++ {
		if err := s.Add(outcomeOf(n)); err != nil {
			if !errors.Is(err, ErrSpoolFull) || job.CodeOf(err) != job.Exhausted {
				t.Fatal(err)
			}
			break
		}
	}
	if n < 5 || s.Len() != int(n-1) {
		t.Errorf("full at %d with %d", n, s.Len())
	}
	must(t, s.Done(1))
	must(t, s.Add(outcomeOf(n)))
	huge := outcomeOf(99)
	huge.Error = strings.Repeat("x", maxSpoolRecord)
	if err := s.Add(huge); job.CodeOf(err) != job.Invalid {
		t.Errorf("a huge outcome: %v", err)
	}
}

func TestSpoolKeepsTextThatIsNotUTF8(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSpool(t, dir)
	o := outcomeOf(1)
	o.Error = "\xff"
	must(t, s.Add(o, outcomeOf(2)))
	if s = openSpool(t, dir); s.Len() != 2 {
		t.Errorf("%d of 2 came back", s.Len())
	}
}

func TestSpoolStaysSmall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSpool(t, dir)
	must(t, s.Add(outcomeOf(1)))
	var next job.Fence = 2
	for range 2000 {
		var fences []job.Fence
		var os []job.Outcome
		for range 20 {
			fences, os = append(fences, next), append(os, outcomeOf(next))
			next++
		}
		must(t, s.Add(os...))
		must(t, s.Done(fences...))
	}
	fi, err := os.Stat(filepath.Join(dir, "results.spool"))
	must(t, err)
	if fi.Size() > 2*spoolCompactAt {
		t.Errorf("%d bytes for one result", fi.Size())
	}
	must(t, s.Add(outcomeOf(next)))
	wantPending(t, openSpool(t, dir), 1, next)
}

func TestSpoolIsSharedSafely(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSpool(t, dir)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				f := job.Fence(g*1000 + i + 1)
				if err := s.Add(outcomeOf(f)); err != nil {
					t.Error(err)
				}
				s.Pending()
				if i%10 != 0 {
					if err := s.Done(f); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := openSpool(t, dir).Len(); got != 8*50 {
		t.Errorf("%d are pending", got)
	}
}

// The decoder reads a file that anything may have happened to: it must neither panic nor invent, and what it accepts must
// be read the same way again.
func FuzzSpool(f *testing.F) {
	dir := f.TempDir()
	s := openSpool(f, dir)
	must(f, s.Add(outcomeOf(1), outcomeOf(2)))
	must(f, s.Done(1))
	b, err := os.ReadFile(s.path)
	must(f, err)
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add(appendSpoolRecord(nil, spoolOutcome, []byte{0xa1, 0x02, 0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}))
	f.Add(appendSpoolRecord(nil, 9, []byte("a kind of the future")))
	f.Fuzz(func(t *testing.T, b []byte) {
		one := &Spool{pending: map[job.Fence]spooled{}}
		n := one.load(b)
		if n > int64(len(b)) || one.live > n {
			t.Fatalf("read %d of %d bytes, %d of them live", n, len(b), one.live)
		}
		two := &Spool{pending: map[job.Fence]spooled{}}
		if m := two.load(b[:n]); m != n {
			t.Fatalf("read %d bytes, then %d", n, m)
		}
		if d := cmp.Diff(one.Pending(), two.Pending()); d != "" {
			t.Fatal(d)
		}
		// Any body behind a good checksum is decoded, too.
		one.load(appendSpoolRecord(nil, spoolOutcome, b))
		one.load(appendSpoolRecord(nil, spoolDone, b))
	})
}

func BenchmarkSpool(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			s := openSpool(b, b.TempDir())
			os, fences := make([]job.Outcome, batch), make([]job.Fence, batch)
			var next job.Fence
			b.ReportAllocs()
			for b.Loop() {
				for i := range os {
					next++
					os[i], fences[i] = outcomeOf(next), next
				}
				must(b, s.Add(os...))
				must(b, s.Done(fences...))
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "results/s")
		})
	}
}
