package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(n byte) job.RunID { return job.RunID{15: n} }

func open(t testing.TB, dir string, c Config) *Store {
	t.Helper()
	s, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shut() })
	return s
}

func add(t testing.TB, s *Store, r job.RunID, offset int64, data string) {
	t.Helper()
	if err := s.Append(Frame{Run: r, Attempt: 1, Offset: offset, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

// show reads everything from an offset, with gaps as <n>.
func show(t testing.TB, s *Store, r job.RunID, from int64) string {
	t.Helper()
	out := ""
	for {
		pieces, next, err := s.Read(r, 1, from, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(pieces) == 0 {
			return out
		}
		for _, p := range pieces {
			if p.Gap > 0 {
				out += fmt.Sprintf("<%d>", p.Gap)
			}
			out += string(p.Data)
		}
		from = next
	}
}

func TestWhatComesTwiceIsKeptOnceAndGapsShow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Config{})
	add(t, s, run(1), 0, "hello ")
	add(t, s, run(1), 0, "hello ")
	add(t, s, run(1), 3, "lo world")
	add(t, s, run(1), 20, "end")
	add(t, s, run(2), 5, "late")
	if err := s.Append(Frame{run(3), 1, 0, []byte("ab")}, Frame{run(3), 1, 1, []byte("bcd")}); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		for _, w := range []struct {
			run  byte
			from int64
			want string
		}{{1, 0, "hello world<9>end"}, {1, 8, "rld<9>end"}, {1, 15, "<5>end"}, {2, 0, "<5>late"}, {3, 0, "abcd"}, {9, 0, ""}, {1, 99, ""}} {
			if got := show(t, s, run(w.run), w.from); got != w.want {
				t.Errorf("run %d from %d reads %q, want %q", w.run, w.from, got, w.want)
			}
		}
	}
	check(s)
	s.Shut()
	again := open(t, dir, Config{})
	check(again)
	add(t, again, run(1), 11, "<filled>x")
	if got := show(t, again, run(1), 0); got != "hello world<filled>xend" {
		t.Errorf("after the gap was filled it reads %q", got)
	}
}

func TestTheOldestSegmentIsDropped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := Config{SegmentBytes: 4 << 10, TotalBytes: 20 << 10}
	s := open(t, dir, c)
	line := bytes.Repeat([]byte("x"), 100)
	for i := range 1000 {
		if err := s.Append(Frame{Run: run(byte(i / 100)), Attempt: 1, Offset: int64(i%100) * 100, Data: line}); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	var total int64
	for _, f := range files {
		st, _ := os.Stat(f)
		total += st.Size()
	}
	if total > c.TotalBytes+c.SegmentBytes || total != s.bytes {
		t.Errorf("%d bytes on disk, %d counted, bound %d", total, s.bytes, c.TotalBytes)
	}
	if got := show(t, s, run(0), 0); got != "" {
		t.Errorf("the oldest run still has %d bytes", len(got))
	}
	if got := show(t, s, run(9), 0); len(got) != 10000 {
		t.Errorf("the newest run has %d bytes", len(got))
	}
	if len(s.runs) > 4 {
		t.Errorf("%d runs are in the index", len(s.runs))
	}
}

func TestTheIndexIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Config{MaxFrames: 160})
	for i := range 1000 {
		add(t, s, job.RunID{14: byte(i >> 8), 15: byte(i)}, 0, "x")
	}
	if s.frames > 180 || len(s.runs) > 180 {
		t.Errorf("%d frames, %d runs in the index", s.frames, len(s.runs))
	}
}

func TestADamagedEndIsCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Config{})
	add(t, s, run(1), 0, "kept")
	add(t, s, run(1), 4, "torn")
	s.Shut()
	path := filepath.Join(dir, "0000000000000001.output")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()-1); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Config{})
	if got := show(t, s, run(1), 0); got != "kept" {
		t.Errorf("after a torn write it reads %q", got)
	}
	add(t, s, run(1), 4, "again")
	if got := show(t, s, run(1), 0); got != "keptagain" {
		t.Errorf("then %q", got)
	}
}

func TestAFailedWriteLeavesNoTrace(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Config{})
	add(t, s, run(1), 0, "before")
	s.segments[0].file.Close()
	if err := s.Append(Frame{run(1), 1, 6, []byte("lost")}, Frame{run(2), 1, 0, []byte("lost")}); err == nil {
		t.Fatal("a write to a closed file did not fail")
	}
	if l := s.find(run(1), 1); len(l.extents) != 1 || s.find(run(2), 1) != nil {
		t.Errorf("the index has %v", l.extents)
	}
	f, err := os.OpenFile(s.path(1), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.segments[0].file = f
	add(t, s, run(1), 6, " after")
	if got := show(t, s, run(1), 0); got != "before after" {
		t.Errorf("it reads %q", got)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Config{})
	got := make(chan string)
	done := make(chan error, 1)
	follow := func(ctx context.Context, from int64) {
		go func() {
			done <- s.Follow(ctx, run(1), 1, from, func(p Piece) error { got <- fmt.Sprint(p.Gap, string(p.Data)); return nil })
		}()
	}
	follow(t.Context(), 2)
	add(t, s, run(1), 0, "abc")
	if g := <-got; g != "0 c" && g != "0c" {
		t.Errorf("first %q", g)
	}
	add(t, s, run(1), 5, "fg")
	if g := <-got; g != "2 fg" && g != "2fg" {
		t.Errorf("then %q", g)
	}
	s.Close(run(1))
	if err := <-done; err != nil {
		t.Errorf("after Close: %v", err)
	}
	follow(t.Context(), 6)
	<-got
	if err := <-done; err != nil {
		t.Errorf("of a settled attempt: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.Follow(ctx, run(2), 1, 0, func(Piece) error { return nil }) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	if s.find(run(2), 1) != nil {
		t.Error("a run that was only followed is in the index")
	}
	go func() { done <- s.Follow(t.Context(), run(1), 1, 0, func(Piece) error { return io.ErrShortWrite }) }()
	if err := <-done; !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("fn's error: %v", err)
	}
}

// The store against a dumb twin: a byte slice with a mask.
func TestStoreAgainstATwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		c := Config{SegmentBytes: 300, TotalBytes: 1 << 30}
		s := open(t, dir, c)
		defer func() { s.Shut() }()
		const size = 64
		var twin [3][size]byte
		content := func(r, i int) byte { return byte(1 + (r*31+i)%200) }
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			r := rapid.IntRange(0, 2).Draw(rt, "run")
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				s.Shut()
				if s, err = Open(dir, c); err != nil {
					rt.Fatal(err)
				}
			default:
				from := rapid.IntRange(0, size-1).Draw(rt, "from")
				to := rapid.IntRange(from, size).Draw(rt, "to")
				var data []byte
				for i := from; i < to; i++ {
					data = append(data, content(r, i))
					twin[r][i] = content(r, i)
				}
				if err := s.Append(Frame{run(byte(r)), 1, int64(from), data}); err != nil {
					rt.Fatal(err)
				}
			}
			from := rapid.IntRange(0, size).Draw(rt, "read from")
			var read [size]byte
			at := int64(from)
			for {
				pieces, next, err := s.Read(run(byte(r)), 1, at, rapid.IntRange(0, 50).Draw(rt, "limit"))
				if err != nil {
					rt.Fatal(err)
				}
				if len(pieces) == 0 {
					break
				}
				for _, p := range pieces {
					if p.Offset != at+p.Gap {
						rt.Fatalf("piece at %d with gap %d after %d", p.Offset, p.Gap, at)
					}
					copy(read[p.Offset:], p.Data)
					at = p.Offset + int64(len(p.Data))
				}
				if next != at {
					rt.Fatalf("next is %d after %d", next, at)
				}
			}
			want := twin[r]
			clear(want[:from])
			if read != want {
				rt.Fatalf("read %v, want %v", read, want)
			}
		}
	})
}

// FuzzOpen feeds the loader whatever a disk may hold: it must open, and what it reads must be readable.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir, Config{})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Append(Frame{run(1), 1, 0, []byte("hello")}, Frame{run(1), 2, 7, []byte("world")}); err != nil {
		f.Fatal(err)
	}
	s.Shut()
	seed, err := os.ReadFile(filepath.Join(dir, "0000000000000001.output"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:50])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "0000000000000001.output"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, Config{})
		for r, l := range s.runs {
			for _, a := range l.attempts {
				if _, _, err := s.Read(r, a.attempt, 0, 1<<20); err != nil {
					t.Fatal(err)
				}
			}
		}
		add(t, s, run(200), 0, "works")
		if got := show(t, s, run(200), 0); got != "works" {
			t.Fatalf("reads %q", got)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	s := open(b, b.TempDir(), Config{TotalBytes: 64 << 20})
	data := bytes.Repeat([]byte("x"), 200)
	b.ReportAllocs()
	for i := range b.N {
		if err := s.Append(Frame{Run: job.RunID{12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, Attempt: 1, Data: data}); err != nil {
			b.Fatal(err)
		}
	}
}
