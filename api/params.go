package api

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musterhq/muster/job"
)

// Parameters reach handlers as text, and are read by the functions below: so that a wrong one is refused in our own words,
// naming it. Their types say to OpenAPI what the text means.

type (
	limitParam  string
	timeParam   string
	statesParam string
	numberParam string
	flagParam   string
	idParam     string
	nameParam   string
)

func (limitParam) Schema(huma.Registry) *huma.Schema {
	lo, hi := 1.0, float64(MaxPage)
	return &huma.Schema{Type: huma.TypeInteger, Minimum: &lo, Maximum: &hi, Default: DefaultPage}
}

func (timeParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time"}
}

func (statesParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Examples: []any{"queued,running"}}
}

func (numberParam) Schema(huma.Registry) *huma.Schema {
	lo := 0.0
	return &huma.Schema{Type: huma.TypeInteger, Minimum: &lo}
}

func (flagParam) Schema(huma.Registry) *huma.Schema { return &huma.Schema{Type: huma.TypeBoolean} }

func (idParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "uuid"}
}

func (nameParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: namePattern}
}

const namePattern = `^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`

// InNamespace is embedded by the parameters of every operation that has a namespace. It is exported, as are InJob,
// InJobChange and InRun, because huma does not look into embedded structs that are not.
type InNamespace struct {
	Namespace nameParam `query:"namespace" doc:"the namespace; without it: default"`
}

// checkName refuses what is not a name (design section 5).
func checkName(field, s string) error {
	if len(s) > 0 && len(s) <= 128 && strings.IndexByte("._-", s[0]) < 0 && strings.Trim(s, idCharacters) == "" {
		return nil
	}
	if s == "" {
		return job.InvalidField(field, "a name is needed")
	}
	return job.InvalidField(field, "%s is not a name; names have 1 to 128 letters, digits, dots, underscores and hyphens, and begin with a letter or digit", quote(s))
}

// plainText refuses what could not be stored, logged or shown: too long, broken UTF-8, control characters.
func plainText(field, s string, limit int) error {
	if len(s) > limit {
		return job.InvalidField(field, "it has %d bytes; %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return job.InvalidField(field, "it is not valid UTF-8")
	}
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return job.InvalidField(field, "it contains the control character %U", r)
		}
	}
	return nil
}

// quote shows a piece of somebody's input without letting it be long or wild.
func quote(s string) string { return strconv.QuoteToASCII(clip(s)) }

func clip(s string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	return strings.ToValidUTF8(s, "?")
}

func (p limitParam) read(field string, most int) (int, error) {
	if p == "" {
		return min(DefaultPage, most), nil
	}
	n, err := strconv.Atoi(string(p))
	if err != nil || n < 1 || n > most {
		return 0, job.InvalidField(field, "%s is not a number between 1 and %d", quote(string(p)), most)
	}
	return n, nil
}

func (p numberParam) read(field string) (uint32, error) {
	if p == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(p), 10, 32)
	if err != nil {
		return 0, job.InvalidField(field, "%s is not a number", quote(string(p)))
	}
	return uint32(n), nil
}

func (p flagParam) read(field string) (bool, error) {
	switch p {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, job.InvalidField(field, "%s is neither true nor false", quote(string(p)))
}

// maxInstant is the end of the year 9999, the last that RFC 3339 can write.
var maxInstant = job.At(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))

func (p timeParam) read(field string) (job.Instant, error) {
	if p == "" {
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(p))
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return 0, job.InvalidField(field, "%s is not a time; write it as RFC 3339, such as 2026-01-31T09:00:00Z", quote(string(p)))
	}
	return job.At(t), nil
}

func (p idParam) read(field string) (job.RunID, error) {
	id, err := job.ParseRunID(string(p))
	if err != nil {
		return id, job.Within(field, err)
	}
	return id, nil
}

// readStates reads words separated by commas.
func (p statesParam) read(field string) ([]job.State, error) {
	if p == "" {
		return nil, nil
	}
	var states []job.State
	for word := range strings.SplitSeq(string(p), ",") {
		var s job.State
		if err := s.UnmarshalText([]byte(word)); err != nil || s == 0 {
			return nil, job.InvalidField(field, "%s is not a state of a run; use some of waiting, held, scheduled, queued, running, succeeded, failed, cancelled, skipped", quote(word))
		}
		if !slices.Contains(states, s) {
			states = append(states, s)
		}
	}
	slices.Sort(states)
	return states, nil
}

// readLabels reads key=value pairs.
func readLabels(field string, pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	if len(pairs) > 16 {
		return nil, job.InvalidField(field, "%d labels are given; 16 are allowed", len(pairs))
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, job.InvalidField(field, "%s is not a label; write key=value", quote(p))
		}
		if old, twice := m[k]; twice && old != v {
			return nil, job.InvalidField(field, "the label %s is given with two values", quote(k))
		}
		m[k] = v
	}
	return m, nil
}

// filterText tells two queries apart, for their cursors.
func filterText(parts ...any) string { return fmt.Sprintf("%q", fmt.Sprint(parts...)) }

// readEntityTag reads If-Match: one strong version, as ETag wrote it.
func readEntityTag(s string) (version uint64, any bool, err error) {
	switch s {
	case "":
		return 0, false, nil
	case "*":
		return 0, true, nil
	}
	if len(s) > 2 && s[0] == '"' && s[len(s)-1] == '"' {
		if v, err := strconv.ParseUint(s[1:len(s)-1], 10, 64); err == nil && v > 0 {
			return v, false, nil
		}
	}
	return 0, false, job.InvalidField("If-Match", "%s is not a version; take the ETag of the job, such as \"3\" in its quotes", quote(s))
}

func entityTag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

func encodeBytes(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
