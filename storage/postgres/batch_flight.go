package postgres

import (
	"context"
	"encoding/binary"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musterhq/muster/job"
)

// plansSQL is for the connections that write. What their statements look up they look up by id, in one way that is right
// whatever the size of a table: moves.sql says how that is made sure of.
const plansSQL = `SELECT set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false),
	set_config('jit', 'off', false)`

// The ends of a transaction. What is read after the fence's lock is held has to be newer than the lock (L1), whatever
// isolation the database has as its default.
const (
	beginSQL  = "BEGIN ISOLATION LEVEL READ COMMITTED"
	commitSQL = "COMMIT"
)

// flight is a transaction in as few round trips as there are things to wait for: statements are gathered with then, and
// sent in one go by fly. Values travel in the binary format, both ways.
type flight struct {
	c       *pgx.Conn
	steps   []step
	commits bool // a COMMIT is among the steps
	open    bool // a transaction is
}

type step struct {
	statement *pgconn.StatementDescription
	args      [][]byte
	row       func(values [][]byte) error // values are good until it returns; nil: none are expected
}

// begin starts a transaction with the flight's next steps.
func (f *flight) begin(ctx context.Context) error { return f.then(ctx, beginSQL, nil) }

// fence refuses all that follows unless epoch is the one that was raised last (L1).
func (f *flight) fence(ctx context.Context, cluster string, epoch job.Epoch) error {
	return f.then(ctx, fenceSQL, nil, []byte(cluster), int8Arg(int64(epoch)))
}

// then adds a statement, which is prepared once on each connection.
func (f *flight) then(ctx context.Context, sql string, row func([][]byte) error, args ...[]byte) error {
	statement, err := f.c.Prepare(ctx, sql, sql)
	if err != nil {
		return err
	}
	f.steps = append(f.steps, step{statement, args, row})
	f.commits = f.commits || sql == commitSQL
	f.open = f.open || sql == beginSQL
	return nil
}

// land is fly with a COMMIT as its last step.
func (f *flight) land(ctx context.Context) error {
	if err := f.then(ctx, commitSQL, nil); err != nil {
		return err
	}
	return f.fly(ctx)
}

var binaryFormat = []int16{pgx.BinaryFormatCode}

// fly sends the steps and reads what they answer. An error of the way on which a COMMIT travelled is marked as unsure.
func (f *flight) fly(ctx context.Context) error {
	steps, commits := f.steps, f.commits
	f.steps, f.commits = nil, false
	p := f.c.PgConn().StartPipeline(ctx)
	for i := range steps {
		p.SendQueryStatement(steps[i].statement, steps[i].args, binaryFormat, binaryFormat)
	}
	err := p.Sync()
	for i := 0; err == nil && i < len(steps); i++ {
		err = readResult(p, steps[i].row)
	}
	if closed := p.Close(); err == nil {
		err = closed
	}
	if err == nil && commits {
		f.open = false
	}
	if commits {
		return unsure(err)
	}
	return err
}

func readResult(p *pgconn.Pipeline, row func([][]byte) error) error {
	result, err := p.GetResults()
	if err != nil {
		return err
	}
	reader, ok := result.(*pgconn.ResultReader)
	if !ok {
		return errUnexpected
	}
	for reader.NextRow() {
		if row == nil || err != nil {
			continue
		}
		err = row(reader.Values())
	}
	if _, failed := reader.Close(); failed != nil {
		return failed
	}
	return err
}

var errUnexpected = &job.Error{Code: job.Internal, Message: "Postgres answered something else than was asked"}

// end rolls back what did not land. A connection on which that fails is closed by it.
func (f *flight) end(ctx context.Context) {
	if f.open && !f.c.IsClosed() {
		_, _ = f.c.Exec(ctx, "ROLLBACK")
	}
}

// Arguments in the binary format.

func putInt2(b []byte, n uint8) []byte  { return binary.BigEndian.AppendUint16(b, uint16(n)) }
func putInt4(b []byte, n uint32) []byte { return binary.BigEndian.AppendUint32(b, n) }
func putInt8(b []byte, n int64) []byte  { return binary.BigEndian.AppendUint64(b, uint64(n)) }

func int8Arg(n int64) []byte { return putInt8(nil, n) }

func instantArg(at job.Instant) []byte { return putInstant(nil, at) }

// arrayArg is an array of one value of each item; put answers false for NULL.
func arrayArg[T any](oid uint32, items []T, put func(b []byte, item *T) ([]byte, bool)) []byte {
	b := arrayHead(make([]byte, 0, 20+20*len(items)), oid, len(items))
	for i := range items {
		at := len(b)
		var ok bool
		if b, ok = put(append(b, 0, 0, 0, 0), &items[i]); ok {
			binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		} else {
			b = append(b[:at], 0xff, 0xff, 0xff, 0xff)
		}
	}
	return b
}

func arrayHead(b []byte, oid uint32, n int) []byte {
	if n == 0 {
		return binary.BigEndian.AppendUint32(append(b, 0, 0, 0, 0, 0, 0, 0, 0), oid)
	}
	for _, v := range []uint32{1, 1, oid, uint32(n), 1} { // dimensions, may hold NULL, of what, how many, the first index
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func idsArg(ids []job.RunID) []byte {
	return arrayArg(pgtype.UUIDOID, ids, func(b []byte, id *job.RunID) ([]byte, bool) { return append(b, id[:]...), true })
}

// columnArgs are columns of runs, each as an array.
func columnArgs(list []*column, runs []*job.Run) [][]byte {
	args := make([][]byte, len(list))
	for i, c := range list {
		args[i] = appendArray(make([]byte, 0, 20+20*len(runs)), c, runs)
	}
	return args
}

// columnsNamed are columns by name, in the order of the names.
func columnsNamed(list ...string) []*column {
	found := make([]*column, 0, len(list))
	for _, name := range list {
		for i := range columns {
			if columns[i].name == name {
				found = append(found, &columns[i])
			}
		}
	}
	if len(found) != len(list) {
		panic("a run has no such column among " + list[0])
	}
	return found
}
