// Package timetable says when a job is due: cron expressions, time zones, daylight saving, catch-up; and it reads
// crontabs. It is pure: it never asks the time, and its answers follow from the schedule and from the time zone data
// inside the binary, so that every node gives the same ones. It is the only package that knows robfig/cron.
//
// [Parse] turns a job.Schedule into a [Timetable]; [Timetable.Next] and [Timetable.Between] list ticks,
// [Timetable.Range] counts them, [Timetable.Due] decides what becomes of those that a leader finds due,
// [Timetable.Describe] puts the schedule into words, and [ParseCrontab] makes schedules and commands of a crontab.
//
// # Expressions
//
//	MIN HOUR DAY MONTH WEEKDAY         as in crontab(5); six fields begin with the second
//	@hourly @daily @midnight @weekly @monthly @yearly @annually
//	@every DURATION                    whole seconds, from 1s to ten years
//	@at TIME                           once; RFC 3339, or without an offset in the schedule's zone
//
// Ticks are whole seconds. "@every" counts from start_at, which is its first tick, or from the Unix epoch: never from
// somebody's clock, so a new leader goes on with the same ticks. start_at is the first instant at which a job may tick,
// end_at the first at which it no longer may; a fraction of a second rounds both up. The week begins with 0, and 7 is
// Sunday too, in ranges as well (5-7, FRI-SUN).
//
// If day of month and day of week are both restricted, either is enough. As crontab(5) has it, a field that begins with
// a star is not restricted, even if it is "*/2": "0 0 */2 * MON" ticks on Mondays that are odd days. (robfig/cron reads
// it as odd days and all Mondays.)
//
// What can never tick is refused: "0 0 30 2 *", or bounds that hold no tick. "0 0 29 2 *" is fine, also over 2100.
//
// # When clocks change
//
// A time that the clock jumps over is ticked for once, at the first instant after the jump; if several ticks fall into
// one jump they are one tick. A time that comes twice is ticked for once, the first time, if the hour field has no star
// (the "fixed-time" jobs of cron(8)). If it has a star the job ticks both times, for it counts hours rather than names
// them; and if such a job ticks in every hour, a jump owes it nothing: "30 * * * *" ticks at 01:30 and at 03:30, which
// are an hour apart. In short:
//
//	                      clock jumps 02:00 to 03:00     clock is put back 03:00 to 02:00
//	30 2 * * *            03:00                          02:30, the first
//	*/15 2 * * *          03:00                          four times, in the first hour
//	30 */2 * * *          03:00 (for 02:30)              02:30, twice
//	30 * * * *            (01:30, then 03:30)            02:30, twice
//	@every 15m            as ever                        as ever
//
// The rule behind it is one line for fixed-time jobs, a tick comes at the first instant at which the clock shows its
// time or a later one, and holds for whatever clocks have done: half an hour, at midnight, a whole day (Apia, 2011).
// Zones come from the data inside the binary ([TZDataVersion]), never from the machine's.
//
// # Inside
//
// zone.go has the zones as spans of constant offset, pattern.go an expression as sets of numbers with the search for the
// next match on a clock that knows no zones, expression.go the way from text to pattern through robfig's parser,
// ticks.go joins the three. due.go decides by counting ticks, so that a year of missed seconds costs no more than a
// minute of them. crontab.go reads a crontab, crontab_line.go takes its lines apart, crontab_name.go invents job names;
// all three guess where they must and say so in notes. Times on a clock ("wall") and instants are both int64 seconds; only the exported functions
// deal in time.Time. twin_test.go has slow and obvious versions of it all, which random schedules are compared with.
package timetable
