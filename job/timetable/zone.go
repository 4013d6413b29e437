package timetable

import (
	"archive/zip"
	_ "embed"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/job"
)

// TZDataVersion names the release of the IANA time zone database inside this binary. Two nodes whose versions differ may
// disagree about a future tick, so a cluster compares them.
const TZDataVersion = "2025c"

// zoneinfo is the copy of lib/time/zoneinfo.zip that comes with Go. Go's own time/tzdata keeps the same bytes private and
// time.LoadLocation prefers the machine's files, which differ from node to node. To renew it, copy the newer file here,
// then correct TZDataVersion (the DATA line of Go's lib/time/update.bash) and the checksum in zone_test.go.
//
//go:embed zoneinfo.zip
var zoneinfo string

// zoneFiles is the table of contents of zoneinfo.
var zoneFiles = sync.OnceValues(func() (map[string]*zip.File, error) {
	r, err := zip.NewReader(strings.NewReader(zoneinfo), int64(len(zoneinfo)))
	if err != nil {
		return nil, err
	}
	files := make(map[string]*zip.File, len(r.File))
	for _, f := range r.File {
		if !f.FileInfo().IsDir() {
			files[f.Name] = f
		}
	}
	return files, nil
})

// zones remembers parsed zones, by name. Entries never change, and there are at most as many as names in zoneFiles.
var zones sync.Map // string → *zone

const (
	day = 24 * 60 * 60

	// beginning and ending stand for "since ever" and "for ever" in a span; far outside every instant in use, near
	// enough to add offsets to without overflow.
	beginning = -1 << 60
	ending    = 1 << 60

	// maxOffset bounds how far a zone's clock is from UTC. The farthest in the database is under 16 hours.
	maxOffset = day
	// reach bounds how far apart two instants can be at which a zone's clock shows the same time.
	reach = 2 * maxOffset
)

// A span is a time, [start, end) in Unix seconds, in which a zone keeps one offset from UTC.
type span struct{ start, end, offset int64 }

// A zone is a time zone as spans. It is immutable and shared by all timetables of the same name.
type zone struct {
	name    string
	starts  []int64 // starts[i] to starts[i+1], or to tabled, is a span
	offsets []int32 // of the same spans, in seconds east of UTC
	tabled  int64   // the spans from here on are asked of loc: they follow a yearly rule
	loc     *time.Location
}

var utc = &zone{name: "UTC", starts: []int64{beginning}, offsets: []int32{0}, tabled: ending, loc: time.UTC}

// findZone is the zone of a name in the database, "" meaning UTC. The error's field is the caller's to name.
func findZone(field, name string) (*zone, error) {
	switch {
	case name == "" || name == "UTC":
		return utc, nil
	case strings.EqualFold(name, "local"):
		return nil, job.InvalidField(field,
			"%q would mean another zone on each machine; write an IANA name such as Europe/Berlin, or UTC", name)
	}
	if z, ok := zones.Load(name); ok {
		return z.(*zone), nil
	}
	files, err := zoneFiles()
	if err != nil {
		return nil, brokenData(err)
	}
	f, ok := files[name]
	if !ok {
		if s := similarZone(files, name); s != "" {
			return nil, job.InvalidField(field, "%.64q is not a time zone; did you mean %s?", name, s)
		}
		return nil, job.InvalidField(field, "%.64q is not a time zone; write an IANA name such as Europe/Berlin, or UTC", name)
	}
	z, err := readZone(f)
	if err != nil {
		return nil, brokenData(err)
	}
	kept, _ := zones.LoadOrStore(name, z)
	return kept.(*zone), nil
}

func brokenData(err error) error {
	return &job.Error{Code: job.Internal, Message: "the time zone data inside this program cannot be read", Cause: err}
}

// similarZone finds what "europe/berlin" or "Berlin" may have meant.
func similarZone(files map[string]*zip.File, name string) string {
	var found []string
	for k := range files {
		if strings.EqualFold(k, name) {
			return k
		}
		if i := strings.LastIndexByte(k, '/'); i >= 0 && strings.EqualFold(k[i+1:], strings.ReplaceAll(name, " ", "_")) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

func readZone(f *zip.File) (*zone, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	loc, err := time.LoadLocationFromTZData(f.Name, data)
	if err != nil {
		return nil, err
	}
	return tabulate(f.Name, loc), nil
}

// tabulate lists the spans from before the first zone was ever set up to the year 2100. Asking a Location instead
// costs ten times as much, for it reads its rule's text anew each time.
func tabulate(name string, loc *time.Location) *zone {
	from := time.Date(1800, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	until := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	z := &zone{name: name, loc: loc}
	for at := from; at < until; {
		s := askSpan(loc, at)
		switch n := len(z.offsets); {
		case n == 0:
			z.starts, z.offsets = append(z.starts, beginning), append(z.offsets, int32(s.offset))
		case int64(z.offsets[n-1]) != s.offset:
			// Not s.start: where a yearly rule begins amid a year (Ciudad Juarez, 2022) ZoneBounds lets it begin too early.
			z.starts, z.offsets = append(z.starts, at), append(z.offsets, int32(s.offset))
		}
		at = s.end
		z.tabled = at
	}
	z.starts, z.offsets = slices.Clip(z.starts), slices.Clip(z.offsets)
	return z
}

// askSpan is the span around u according to a Location.
func askSpan(loc *time.Location, u int64) span {
	t := time.Unix(u, 0).In(loc)
	from, to := t.ZoneBounds()
	_, offset := t.Zone()
	s := span{start: beginning, end: ending, offset: int64(offset)}
	if !from.IsZero() {
		s.start = from.Unix()
	}
	if !to.IsZero() {
		s.end = to.Unix()
	}
	if s.end <= u {
		// Where a yearly rule is in force, ZoneBounds takes every year for 365 days long, so on the last day of a leap
		// year it names an end that is already past. The rule's span does last until the year's end.
		s.end = time.Date(t.UTC().Year()+1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	}
	return s
}

// spanAt is a span that holds u: all of one, or a part of one that begins or ends at a place of no meaning.
func (z *zone) spanAt(u int64) span {
	if u >= z.tabled {
		return askSpan(z.loc, u)
	}
	lo, hi := 0, len(z.starts)
	for hi-lo > 1 {
		if m := int(uint(lo+hi) >> 1); z.starts[m] <= u {
			lo = m
		} else {
			hi = m
		}
	}
	s := span{start: z.starts[lo], end: z.tabled, offset: int64(z.offsets[lo])}
	if hi < len(z.starts) {
		s.end = z.starts[hi]
	}
	return s
}

// highWater is the latest time that the zone's clock has shown up to and including the instant u. It is what the clock
// shows at u, except just after it was put back. Times on a zone's clock are counted in seconds as if it were in UTC.
func (z *zone) highWater(u int64) int64 {
	s := z.spanAt(u)
	high := u + s.offset
	for s.start > u-reach {
		last := s.start - 1
		s = z.spanAt(last)
		high = max(high, last+s.offset)
	}
	return high
}

// reaches is the first instant, not before from, at which the zone's clock shows wall or later.
func (z *zone) reaches(wall, from int64) int64 {
	for {
		s := z.spanAt(from)
		if u := max(from, wall-s.offset); u < s.end {
			return u
		}
		from = s.end
	}
}
