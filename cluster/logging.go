package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

// raftLogger lets Raft speak through slog. Raft calls state changes warnings and retried work errors: what it says as
// Error is a Warn here, because it goes on by itself, and its Info is a Debug, because Node reports state changes once,
// in its own words.
type raftLogger struct {
	log  *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func newRaftLogger(l *slog.Logger) *raftLogger {
	return &raftLogger{log: l.With("component", "raft")}
}

// expected are warnings of Raft's that belong to every start, or that are repeated for as long as a node is down while
// "failed to contact" says it once.
var expected = map[string]bool{
	"heartbeat timeout reached, starting election":        true,
	"no known peers, aborting election":                   true,
	"not part of stable configuration, aborting election": true,
	"failed to heartbeat to":                              true,
	"failed to appendEntries to":                          true,
	"failed to pipeline appendEntries":                    true,
	"failed to make requestVote RPC":                      true,
	"failed to get previous log":                          true, // a follower that is behind, or a notice that is early
}

var rename = strings.NewReplacer("-", "_", " ", "_")

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	var to slog.Level
	switch level {
	case hclog.Trace:
		return
	case hclog.Error, hclog.Warn:
		to = slog.LevelWarn
		if expected[msg] {
			to = slog.LevelDebug
		}
	default:
		to = slog.LevelDebug
	}
	ctx := context.Background()
	if !l.log.Enabled(ctx, to) {
		return
	}
	attrs := make([]slog.Attr, 0, (len(l.args)+len(args))/2)
	for _, list := range [][]any{l.args, args} {
		for i := 0; i+1 < len(list); i += 2 {
			key := rename.Replace(fmt.Sprint(list[i]))
			value := list[i+1]
			switch v := value.(type) {
			case hclog.Format:
				value = fmt.Sprintf(v[0].(string), v[1:]...)
			case fmt.Stringer:
				value = v.String()
			}
			if key == "error" {
				key = "err"
			}
			attrs = append(attrs, slog.Any(key, value))
		}
	}
	l.log.LogAttrs(ctx, to, strings.ToLower(msg), attrs...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }
func (l *raftLogger) IsTrace() bool                 { return false }
func (l *raftLogger) IsDebug() bool {
	return l.log.Enabled(context.Background(), slog.LevelDebug)
}
func (l *raftLogger) IsInfo() bool                   { return l.IsDebug() }
func (l *raftLogger) IsWarn() bool                   { return true }
func (l *raftLogger) IsError() bool                  { return true }
func (l *raftLogger) ImpliedArgs() []any             { return l.args }
func (l *raftLogger) Name() string                   { return l.name }
func (l *raftLogger) SetLevel(hclog.Level)           {}
func (l *raftLogger) GetLevel() hclog.Level          { return hclog.Debug }
func (l *raftLogger) Named(string) hclog.Logger      { return l }
func (l *raftLogger) ResetNamed(string) hclog.Logger { return l }
func (l *raftLogger) With(args ...any) hclog.Logger {
	n := *l
	n.args = append(append([]any(nil), l.args...), args...)
	return &n
}
func (l *raftLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}
func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return &lineLogger{log: l.log}
}

// lineLogger takes the lines of libraries that log through the standard library's logger ("[WARN] memberlist: ...").
// One of a gossip library's errors is one lost packet: everything above debug is at most a Warn.
type lineLogger struct {
	log *slog.Logger
	// limit bounds what is a Warn, where strangers can cause it; the rest is a Debug. Nil: no bound.
	limit *rate.Limiter
}

func (w *lineLogger) Write(b []byte) (int, error) {
	level := slog.LevelDebug
	line := bytes.TrimSpace(b)
	if len(line) > 0 && line[0] == '[' {
		if word, rest, ok := bytes.Cut(line[1:], []byte("] ")); ok {
			line = rest
			switch string(word) {
			case "WARN", "ERR", "ERROR":
				level = slog.LevelWarn
			}
		}
	}
	if level == slog.LevelWarn && w.limit != nil && !w.limit.Allow() {
		level = slog.LevelDebug
	}
	if ctx := context.Background(); w.log.Enabled(ctx, level) {
		w.log.LogAttrs(ctx, level, "library says", slog.String("text", string(line)))
	}
	return len(b), nil
}
