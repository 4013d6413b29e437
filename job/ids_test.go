package job_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// Derived ids are how a repeated step finds out that it was done before, across versions too: they never change.
func TestDerivedIDsAreStable(t *testing.T) {
	at := job.At(time.Date(2026, 1, 31, 9, 0, 0, 0, time.UTC))
	entropy := [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	j := job.MakeJobID(time.UnixMilli(1700000000000), entropy)
	r := job.MakeRunID(time.UnixMilli(1700000000001), entropy)
	for _, c := range []struct{ name, got, want string }{
		{"a job's id", j.String(), "018bcfe5-6800-7102-8304-05060708090a"},
		{"a run's id", r.String(), "018bcfe5-6801-7102-8304-05060708090a"},
		{"of a tick", job.TickRunID(j, at).String(), "019c1347-d280-715c-b0eb-9e787718393a"},
		{"of the next tick", job.TickRunID(j, at.Add(time.Minute)).String(), "019c1348-bce0-79c6-8f57-3e7724c10701"},
		{"of a retry", job.RetryRunID(r, at).String(), "019c1347-d280-7889-8ec8-959d5a0e49fd"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %s, was %s", c.name, c.got, c.want)
		}
	}
}

func TestIDsAreUUIDv7(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Int64Range(1, 1<<47).Draw(t, "ms")
		var entropy [10]byte
		copy(entropy[:], rapid.SliceOfN(rapid.Byte(), 10, 10).Draw(t, "entropy"))
		at := time.UnixMilli(ms)
		id := job.MakeRunID(at, entropy)
		tick := job.TickRunID(job.JobID(id), job.At(at))
		for _, id := range []job.RunID{id, tick} {
			if id[6]>>4 != 7 {
				t.Fatalf("%v has version %d", id, id[6]>>4)
			}
			if id[8]>>6 != 0b10 {
				t.Fatalf("%v has variant %b", id, id[8]>>6)
			}
			if !id.Time().Equal(at) {
				t.Fatalf("%v says %v, made at %v", id, id.Time(), at)
			}
			back, err := job.ParseRunID(id.String())
			if err != nil || back != id {
				t.Fatalf("%v reads back as %v, %v", id, back, err)
			}
		}
		// Randomness keeps all but the six bits that version and variant take.
		if id[6]&0x0f != entropy[0]&0x0f || id[7] != entropy[1] || id[8]&0x3f != entropy[2]&0x3f || [7]byte(id[9:]) != [7]byte(entropy[3:]) {
			t.Fatalf("%v lost randomness of %x", id, entropy)
		}
	})
}

func TestIDsSortByTime(t *testing.T) {
	a := job.MakeRunID(time.UnixMilli(1000), [10]byte{0xff, 0xff, 0xff})
	b := job.MakeRunID(time.UnixMilli(1001), [10]byte{})
	if a.String() >= b.String() {
		t.Errorf("%v does not sort before %v", a, b)
	}
}

func TestParseRunIDRefuses(t *testing.T) {
	for _, c := range []struct{ name, in string }{
		{"nothing", ""},
		{"braces", "{0192f3a4-7c1e-7abc-8def-0123456789ab}"},
		{"a URN", "urn:uuid:0192f3a4-7c1e-7abc-8def-0123456789ab"},
		{"no dashes", "0192f3a47c1e7abc8def0123456789ab"},
		{"version 4", "0192f3a4-7c1e-4abc-8def-0123456789ab"},
		{"letters beyond hexadecimal", "0192f3a4-7c1e-7abc-8def-0123456789ag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if id, err := job.ParseRunID(c.in); job.CodeOf(err) != job.Invalid {
				t.Errorf("got %v, %v", id, err)
			}
		})
	}
}

func TestFence(t *testing.T) {
	f := job.MakeFence(3, 7)
	if f != 3<<32|7 || f.Epoch() != 3 {
		t.Errorf("fence %x of epoch %d", uint64(f), f.Epoch())
	}
	if job.MakeFence(4, 0) <= job.MakeFence(3, 1<<32-1) {
		t.Error("a new epoch does not outrank the old one")
	}
}
