package timetable

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"
)

// TestZoneDataIsTheNamedRelease makes whoever renews zoneinfo.zip think of TZDataVersion.
func TestZoneDataIsTheNamedRelease(t *testing.T) {
	t.Parallel()
	const version, sum = "2025c", "8f55634d05f8bca1f7bc7c69c5933428c69357e0bdf565e5ba224e3f88ff12e8"
	if got := fmt.Sprintf("%x", sha256.Sum256([]byte(zoneinfo))); got != sum || TZDataVersion != version {
		t.Errorf("zoneinfo.zip has the checksum %s and is said to be %s; correct TZDataVersion and this test together", got, TZDataVersion)
	}
}

func TestEveryZone(t *testing.T) {
	t.Parallel()
	for _, name := range zoneNames(t) {
		z := mustZone(t, name)
		for i, u := range z.starts {
			s := z.spanAt(max(u, firstInstant))
			if s.start != u || s.offset != int64(z.offsets[i]) || s.end <= s.start {
				t.Errorf("%s: the span from %d is found as %+v", name, u, s)
			}
			if s.offset < -maxOffset/2-4*3600 || s.offset > maxOffset/2+4*3600 {
				t.Errorf("%s: an offset of %d seconds; reach is too small", name, s.offset)
			}
		}
		// Spans join without gaps and agree with package time, also where the table ends.
		for u := time.Date(1850, 1, 1, 0, 0, 0, 0, time.UTC).Unix(); u < 6_000_000_000; {
			s := z.spanAt(u)
			if s.start > u || s.end <= u {
				t.Fatalf("%s: %d is not in its span %+v", name, u, s)
			}
			for _, v := range []int64{u, min(s.end, 6_000_000_000) - 1} {
				if _, offset := time.Unix(v, 0).In(z.loc).Zone(); int64(offset) != s.offset {
					t.Fatalf("%s: at %d the offset is %d, in %+v", name, v, offset, s)
				}
			}
			u = s.end
		}
	}
}

func TestLastDayOfALeapYear(t *testing.T) {
	t.Parallel()
	// Package time ends this span before it began (see askSpan).
	u := time.Date(2104, 12, 31, 12, 0, 0, 0, time.UTC).Unix()
	if s := askSpan(mustZone(t, "Europe/Berlin").loc, u); s.start > u || s.end <= u || s.offset != 3600 {
		t.Errorf("got %+v around %d", s, u)
	}
}
