//! When a polling processor takes messages: at an interval, or by a cron expression in a time zone.
//!
//! Two notations are read. With 6 or 7 fields an expression is Quartz's: seconds first, an optional year last,
//! Sunday is 1, `L`, `W` and `#` work, and one of the two day fields must be `?` (or `*`). With 5 fields it is a
//! `CronJob`'s: minutes first, Sunday is 0, both day fields may be set.
//!
//! When clocks change, an expression that names every hour (`*`) follows elapsed time: it fires through a repeated
//! hour again and skips what a missing hour would have held. One that names some hours follows the wall clock: a
//! repeated time fires the first time only, and a time that does not exist fires once, when the gap ends. Either
//! way a tick is strictly later than the one before.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

/// Longest expression that is read.
const MAX_EXPRESSION_BYTES: usize = 1024;
/// More than any two offsets of one zone differ, a move across the date line included.
const WIDEST_SHIFT: SignedDuration = SignedDuration::from_hours(48);
/// Times that may lie in one repeated stretch of the wall clock: a day in seconds, when the date line moved.
const MAX_REPEATED: usize = 90_000;
/// The years of an expression that names none: as far as anyone plans, and soon searched through.
const ANY_YEAR: &str = "1970-2299";
/// Changes of the clock that are walked through for one tick.
const MAX_CHANGES: usize = 64;

/// When ticks happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// From start to start.
    Interval(Duration),
    /// By the wall clock of a time zone.
    Cron(Box<CronSchedule>),
}

/// A parsed cron expression in its time zone.
#[derive(Debug, Clone, PartialEq)]
pub struct CronSchedule {
    cron: Cron,
    zone: TimeZone,
    /// Every hour is named: the expression follows elapsed time, not the wall clock.
    every_hour: bool,
}

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not 5, 6 or 7 fields.
    #[error(
        "a cron expression has 6 or 7 fields (seconds minutes hours day-of-month month day-of-week [year]), \
         or 5 as in a CronJob; this one has {0}"
    )]
    Fields(usize),
    /// Longer than any expression needs.
    #[error("a cron expression has at most 1024 characters; shorten it")]
    TooLong,
    /// One field cannot be read.
    #[error("cron field {field}: `{text}`: {remedy}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What stands there.
        text: String,
        /// What to write instead.
        remedy: String,
    },
    /// Quartz takes one of the day fields.
    #[error("day-of-month and day-of-week are both set; write ? in one of them")]
    BothDays,
    /// Quartz takes one of the day fields.
    #[error("day-of-month and day-of-week are both ?; write * in one of them")]
    NoDay,
    /// No such time zone.
    #[error("time zone `{0}` is unknown; write an IANA name such as UTC or Europe/Rome")]
    TimeZone(String),
}

impl Schedule {
    /// Reads a cron expression (see the module) for an IANA time zone.
    ///
    /// Zones come from the data built into the program, so that a schedule means the same on every machine.
    pub fn parse_cron(expression: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        if expression.len() > MAX_EXPRESSION_BYTES {
            return Err(ScheduleError::TooLong);
        }
        let zone = TimeZoneDatabase::bundled()
            .get(time_zone)
            .map_err(|_| ScheduleError::TimeZone(time_zone.chars().take(100).collect()))?;
        let cron = parse(expression)?;
        let every_hour = cron.pattern.hours.values().len() == 24;
        Ok(Self::Cron(Box::new(CronSchedule { cron, zone, every_hour })))
    }

    /// The first tick strictly after a moment; `None` if there will be none.
    ///
    /// For an interval, `after` is the tick before.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Interval(interval) => after.checked_add(next_interval(Duration::ZERO, *interval)).ok(),
            Self::Cron(schedule) if schedule.every_hour => schedule.next_by_elapsed_time(after),
            Self::Cron(schedule) => schedule.next_by_wall_clock(after),
        }
    }
}

/// The next tick of an interval, as its distance from an earlier tick, when `elapsed` has passed since that one.
///
/// Ticks are counted from start to start. One that fell into a tick still running is skipped, not caught up: the
/// result is the first multiple of the interval later than `elapsed`. For a monotonic clock.
pub fn next_interval(elapsed: Duration, interval: Duration) -> Duration {
    let interval = interval.max(Duration::from_millis(1)).as_nanos();
    let next = (elapsed.as_nanos() / interval + 1).saturating_mul(interval);
    let seconds = u64::try_from(next / 1_000_000_000).ok();
    let nanos = u32::try_from(next % 1_000_000_000).unwrap_or(0);
    seconds.map_or(Duration::MAX, |seconds| Duration::new(seconds, nanos))
}

impl CronSchedule {
    /// Some hours are named: the next wall clock time, resolved to an instant.
    fn next_by_wall_clock(&self, after: Timestamp) -> Option<Timestamp> {
        let mut wall = whole_seconds(self.zone.to_datetime(after))?;
        // More than one round only in a repeated hour, whose times have fired already.
        for _ in 0..MAX_REPEATED {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let at = self.instant_of(wall)?;
            if at > after {
                return Some(at);
            }
        }
        None
    }

    /// The instant of a wall clock time: the first of two, and the end of the gap for one that does not exist.
    fn instant_of(&self, wall: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(wall);
        let AmbiguousOffset::Gap { after, .. } = ambiguous.offset() else { return ambiguous.earlier().ok() };
        let before_gap = ambiguous.earlier().ok()?;
        self.zone.following(before_gap).take(MAX_CHANGES).find(|change| change.offset() == after).map(|c| c.timestamp())
    }

    /// Every hour is named: piece by piece between two changes of the clock, where wall clock and time agree.
    fn next_by_elapsed_time(&self, after: Timestamp) -> Option<Timestamp> {
        let mut from = after;
        let mut inclusive = false;
        for _ in 0..MAX_CHANGES {
            let offset = self.zone.to_offset(from);
            let found = whole_seconds(offset.to_datetime(from))
                .and_then(|wall| self.cron.find_next_occurrence(&wall, inclusive).ok())
                .and_then(|wall| offset.to_timestamp(wall).ok());
            let change = self.zone.following(from).next().map(|change| change.timestamp());
            match (found, change) {
                (Some(at), None) => return Some(at),
                (Some(at), Some(change)) if at < change => return Some(at),
                // What is found lies beyond a change of the clock. Near it times may repeat, so go on there;
                // a far one repeats nothing of this piece, so go on close before what was found.
                (_, Some(change)) if change.duration_since(from) < WIDEST_SHIFT => from = change,
                (Some(at), Some(change)) => from = at.checked_sub(WIDEST_SHIFT).ok()?.max(change),
                (None, _) => return None,
            }
            inclusive = true;
        }
        None
    }
}

fn whole_seconds(time: DateTime) -> Option<DateTime> {
    time.with().subsec_nanosecond(0).build().ok()
}

const FIELDS: [&str; 7] = ["seconds", "minutes", "hours", "day-of-month", "month", "day-of-week", "year"];
const DAY_OF_MONTH: usize = 3;
const MONTH: usize = 4;
const DAY_OF_WEEK: usize = 5;
const YEAR: usize = 6;
const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// Reads an expression. The grammar is checked here, field by field, because the cron crate takes more than either
/// notation means (`1SUN`, `,`, `@daily`) and says less when it refuses; it then does bounds and the calendar.
fn parse(expression: &str) -> Result<Cron, ScheduleError> {
    let upper = expression.to_ascii_uppercase();
    let mut fields: Vec<String> = upper.split_ascii_whitespace().map(str::to_owned).collect();
    let quartz = match fields.len() {
        5 => false,
        6 | 7 => true,
        count => return Err(ScheduleError::Fields(count)),
    };
    if !quartz {
        fields.insert(0, "0".to_owned());
    }
    for (index, field) in fields.iter().enumerate() {
        check_field(index, field, quartz)?;
    }
    check_days(&fields[DAY_OF_MONTH], &fields[DAY_OF_WEEK], quartz)?;
    // In a `CronJob` a day must match both fields if one of them begins with `*`, else either.
    let both = fields[DAY_OF_MONTH].starts_with('*') || fields[DAY_OF_WEEK].starts_with('*');
    if fields.get(YEAR).is_none_or(|year| year == "*") {
        fields.truncate(YEAR);
        fields.push(ANY_YEAR.to_owned());
    }
    fields[DAY_OF_WEEK] = day_of_week_for_crate(&fields[DAY_OF_WEEK], quartz);
    CronParser::builder()
        .seconds(Seconds::Required)
        .alternative_weekdays(quartz)
        .dom_and_dow(both)
        .sloppy_ranges(true)
        .build()
        .parse(&fields.join(" "))
        .map_err(|error| refused(&fields, quartz, &error.to_string()))
}

/// Finds the field that the crate refused, by trying each alone.
fn refused(fields: &[String], quartz: bool, reason: &str) -> ScheduleError {
    let parser =
        CronParser::builder().seconds(Seconds::Required).alternative_weekdays(quartz).sloppy_ranges(true).build();
    let culprit = fields.iter().enumerate().find(|(index, field)| {
        let mut alone = ["*"; 7];
        alone[*index] = field;
        parser.parse(&alone.join(" ")).is_err()
    });
    let (index, text) = culprit.map_or((0, ""), |(index, field)| (index, field.as_str()));
    let bounds = match index {
        2 => "0 to 23",
        DAY_OF_MONTH => "1 to 31",
        MONTH => "1 to 12 or JAN to DEC",
        DAY_OF_WEEK if quartz => "1 (Sunday) to 7 or SUN to SAT",
        DAY_OF_WEEK => "0 (Sunday) to 6 or SUN to SAT",
        YEAR => "1970 to 2299",
        _ => "0 to 59",
    };
    let reason = reason.rsplit(": ").next().unwrap_or(reason).trim_end_matches('.').to_lowercase();
    let remedy = format!("{reason}; values are {bounds}, and a range that wraps is written as two (22-23,0-2)");
    ScheduleError::Field { field: FIELDS[index], text: text.chars().take(100).collect(), remedy }
}

fn check_field(index: usize, field: &str, quartz: bool) -> Result<(), ScheduleError> {
    let invalid = |text: &str, remedy: &str| ScheduleError::Field {
        field: FIELDS[index],
        text: text.chars().take(100).collect(),
        remedy: remedy.to_owned(),
    };
    if field == "?" {
        let day = index == DAY_OF_MONTH || index == DAY_OF_WEEK;
        return if day { Ok(()) } else { Err(invalid("?", "? is for the day fields; write *")) };
    }
    let items: Vec<&str> = field.split(',').collect();
    if items.contains(&"*") && items.len() > 1 {
        return Err(invalid(field, "* stands alone; remove the rest of the list"));
    }
    if items.contains(&"L") && items.contains(&"LW") {
        return Err(invalid(field, "L and LW do not go together; write one of them"));
    }
    for item in items {
        if special(index, item) {
            if quartz {
                continue;
            }
            return Err(invalid(item, "L, W and # need the Quartz form; put the seconds in front (6 fields)"));
        }
        if !plain(index, item) {
            return Err(invalid(item, "write *, a value, a range a-b, or steps */n, a/n, a-b/n, separated by commas"));
        }
    }
    Ok(())
}

/// Quartz's own: `L`, `LW`, `15W` as a day of the month; `L`, `6L`, `6#3` as a day of the week.
fn special(index: usize, item: &str) -> bool {
    match index {
        DAY_OF_MONTH => item == "L" || item == "LW" || item.strip_suffix('W').is_some_and(is_number),
        DAY_OF_WEEK => {
            item == "L"
                || item.strip_suffix('L').is_some_and(|day| is_value(index, day))
                || item.split_once('#').is_some_and(|(day, nth)| is_value(index, day) && is_number(nth))
        }
        _ => false,
    }
}

fn plain(index: usize, item: &str) -> bool {
    let (base, step) = item.split_once('/').map_or((item, None), |(base, step)| (base, Some(step)));
    if step.is_some_and(|step| !is_number(step)) {
        return false;
    }
    base == "*"
        || is_value(index, base)
        || base.split_once('-').is_some_and(|(from, to)| is_value(index, from) && is_value(index, to))
}

fn is_value(index: usize, text: &str) -> bool {
    is_number(text) || (index == MONTH && MONTHS.contains(&text)) || (index == DAY_OF_WEEK && WEEKDAYS.contains(&text))
}

fn is_number(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn check_days(day_of_month: &str, day_of_week: &str, quartz: bool) -> Result<(), ScheduleError> {
    let open = |field: &str| field == "?" || field == "*";
    match () {
        () if quartz && day_of_month == "?" && day_of_week == "?" => Err(ScheduleError::NoDay),
        () if quartz && !open(day_of_month) && !open(day_of_week) => Err(ScheduleError::BothDays),
        () => Ok(()),
    }
}

/// Where the crate means something else: a lone `L` is Saturday in Quartz, and `1/2` ends on Saturday in a `CronJob`.
fn day_of_week_for_crate(field: &str, quartz: bool) -> String {
    let item = |item: &str| match item.split_once('/') {
        None if quartz && item == "L" => "7".to_owned(),
        Some((base, step)) if !quartz && is_number(base) => format!("{base}-6/{step}"),
        _ => item.to_owned(),
    };
    field.split(',').map(item).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cron(expression: &str, zone: &str) -> Schedule {
        Schedule::parse_cron(expression, zone).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The first ticks after a moment, in the zone's wall clock with its offset.
    fn ticks(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = cron(expression, zone);
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        let mut found = Vec::new();
        while found.len() < count
            && let Some(next) = schedule.next(at)
        {
            found.push(next.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string());
            at = next;
        }
        found
    }

    fn first(expression: &str) -> String {
        ticks(expression, "UTC", "2026-11-20T12:00:01Z", 1).first().cloned().unwrap_or_default()
    }

    fn message(expression: &str) -> String {
        Schedule::parse_cron(expression, "UTC").err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn quartz_expressions_mean_what_quartz_documents() {
        for (expression, expected) in [
            ("0/2 * * * * ?", "2026-11-20T12:00:02+00:00"),
            ("0 0/5 * * * ?", "2026-11-20T12:05:00+00:00"),
            ("0 0 12 ? * 6", "2026-11-27T12:00:00+00:00"),
            ("0 0 12 ? * fri", "2026-11-27T12:00:00+00:00"),
            ("0 15 10 L * ?", "2026-11-30T10:15:00+00:00"),
            ("0 15 10 LW * ?", "2026-11-30T10:15:00+00:00"),
            ("0 15 10 15W * ?", "2026-12-15T10:15:00+00:00"),
            ("0 15 10 13W * ?", "2026-12-14T10:15:00+00:00"),
            ("0 15 10 ? * 6L", "2026-11-27T10:15:00+00:00"),
            ("0 15 10 ? * 6#3", "2026-12-18T10:15:00+00:00"),
            ("0 15 10 ? * FRI#3", "2026-12-18T10:15:00+00:00"),
            ("0 15 10 ? * L", "2026-11-21T10:15:00+00:00"),
            ("0 15 10 ? * 2-6", "2026-11-23T10:15:00+00:00"),
            ("0 15 10 ? * MON-FRI", "2026-11-23T10:15:00+00:00"),
            ("0 15 10 * * *", "2026-11-21T10:15:00+00:00"),
            ("0/2 * * * * ? 2027", "2027-01-01T00:00:00+00:00"),
            ("0 11 11 11 11 ?", "2027-11-11T11:11:00+00:00"),
            ("0 0 12 1/5 JAN,jun *", "2027-01-01T12:00:00+00:00"),
        ] {
            assert_eq!(first(expression), expected, "{expression}");
        }
    }

    #[test]
    fn five_fields_count_weekdays_from_sunday_as_a_cronjob_does() {
        for (expression, expected) in [
            ("* * * * *", "2026-11-20T12:01:00+00:00"),
            ("0 12 * * 5", "2026-11-27T12:00:00+00:00"),
            ("0 12 * * 0", "2026-11-22T12:00:00+00:00"),
            ("*/15 9-17 * * MON-FRI", "2026-11-20T12:15:00+00:00"),
            ("0 0 13 * 5", "2026-11-27T00:00:00+00:00"),
            ("0 0 */2 * MON", "2026-11-23T00:00:00+00:00"),
        ] {
            assert_eq!(first(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_step_over_weekdays_ends_on_saturday() {
        let days = ticks("0 0 * * 1/2", "UTC", "2026-11-20T12:00:00Z", 3);
        assert_eq!(days, ["2026-11-23T00:00:00+00:00", "2026-11-25T00:00:00+00:00", "2026-11-27T00:00:00+00:00"]);
    }

    #[test]
    fn what_cannot_be_read_says_where_and_what_to_write() {
        assert_eq!(message("0 0 12 15 * MON"), "day-of-month and day-of-week are both set; write ? in one of them");
        assert_eq!(message("0 0 12 ? * ?"), "day-of-month and day-of-week are both ?; write * in one of them");
        assert!(message("* * * *").ends_with("this one has 4"));
        assert!(message("@daily").ends_with("this one has 1"));
        assert!(message("0 0 24 * * ?").starts_with("cron field hours: `24`: "), "{}", message("0 0 24 * * ?"));
        assert!(message("0 0 22-2 * * ?").contains("22-23,0-2"));
        assert!(message("0 0 L * *").contains("Quartz form"));
        for expression in [
            "",
            "0 0 0 , * ?",
            "0 0 0 1,,2 * ?",
            "? * * * * ?",
            "0 0 0 ?,5 * ?",
            "0 0 0 ? * 1SUN",
            "0 0 0 ? * SUNMON",
            "0 0 0 ? JANUARY MON",
            "0 0 0 ? * +6",
            "0 0 0 ? * 0",
            "0 0 0 ? * 8",
            "0 0 0 ? * 6#6",
            "0 0 0 32 * ?",
            "0 0 0 L-3 * ?",
            "*/0 * * * * ?",
            "0 0 0 ? * ſUN",
            "61 * * * * ?",
            "0 0 0 1 1 ? 99999",
            "0 0 0 L,LW * ?",
            "JAN * * * * ?",
            "0 0 0 ? * /",
            "0 0 0 *,1 * ?",
        ] {
            let text = message(expression);
            assert!(!text.is_empty(), "{expression} was taken");
            assert_eq!(text.chars().next(), text.to_lowercase().chars().next(), "{text}");
        }
        let unknown = Schedule::parse_cron("0/2 * * * * ?", "Europe/Atlantis").unwrap_err().to_string();
        assert_eq!(unknown, "time zone `Europe/Atlantis` is unknown; write an IANA name such as UTC or Europe/Rome");
    }

    #[test]
    fn leap_days_come_every_four_years_but_not_in_2100() {
        let days = ticks("0 0 0 29 2 ?", "UTC", "2095-01-01T00:00:00Z", 2);
        assert_eq!(days, ["2096-02-29T00:00:00+00:00", "2104-02-29T00:00:00+00:00"]);
    }

    #[test]
    fn a_schedule_that_never_fires_again_ends_soon() {
        for expression in [
            "0 0 0 30 2 ?",
            "0 0 0 31 2,4,6,9,11 ?",
            "* * * 30 2 ?",
            "0 0 0 29 2 ? 2100",
            "* * * * * ? 2020",
            "0 0 0 ? 2 2#5 2027",
            "0 0 * 31 4 ?",
            "0 0 0 29W 2 ? 2027",
        ] {
            let schedule = cron(expression, "Europe/Rome");
            // Without a bound on the search this would not come back in a human's time.
            assert_eq!(schedule.next("2026-11-20T12:00:01Z".parse().unwrap()), None, "{expression}");
        }
    }

    #[test]
    fn a_time_that_a_gap_swallows_fires_once_when_the_gap_ends() {
        // Rome goes from 02:00 to 03:00 on 28 March 2027.
        assert_eq!(
            ticks("0 30 2 * * ?", "Europe/Rome", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T02:30:00+01:00", "2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
        );
        assert_eq!(
            ticks("0 0,30 2,3 * * ?", "Europe/Rome", "2027-03-28T00:00:00Z", 2),
            ["2027-03-28T03:00:00+02:00", "2027-03-28T03:30:00+02:00"]
        );
    }

    #[test]
    fn a_time_that_happens_twice_fires_once() {
        // Rome goes from 03:00 back to 02:00 on 31 October 2027.
        assert_eq!(
            ticks("0 0/30 1,2,3 * * ?", "Europe/Rome", "2027-10-30T23:10:00Z", 5),
            [
                "2027-10-31T01:30:00+02:00",
                "2027-10-31T02:00:00+02:00",
                "2027-10-31T02:30:00+02:00",
                "2027-10-31T03:00:00+01:00",
                "2027-10-31T03:30:00+01:00"
            ]
        );
    }

    #[test]
    fn a_schedule_of_every_hour_goes_on_through_both_changes() {
        assert_eq!(
            ticks("0 30 * * * ?", "Europe/Rome", "2027-10-30T23:35:00Z", 3),
            ["2027-10-31T02:30:00+02:00", "2027-10-31T02:30:00+01:00", "2027-10-31T03:30:00+01:00"]
        );
        assert_eq!(
            ticks("0 30 * * * ?", "Europe/Rome", "2027-03-28T00:00:00Z", 2),
            ["2027-03-28T01:30:00+01:00", "2027-03-28T03:30:00+02:00"]
        );
        // A rare day that is far away, and a clock that changes at midnight, of the last day that matches.
        assert_eq!(ticks("0 30 * 1 1 ? 2100", "Europe/Rome", "2027-03-28T00:00:00Z", 1), ["2100-01-01T00:30:00+01:00"]);
        assert_eq!(
            ticks("0 30 23 * * ? 2017", "America/Sao_Paulo", "2017-02-19T01:00:00Z", 2),
            ["2017-02-18T23:30:00-02:00", "2017-02-19T23:30:00-03:00"]
        );
        assert_eq!(
            ticks("0 30 * 18 2 ? 2017", "America/Sao_Paulo", "2017-02-19T01:00:00Z", 3),
            ["2017-02-18T23:30:00-02:00", "2017-02-18T23:30:00-03:00"]
        );
    }

    #[test]
    fn a_day_that_a_zone_skipped_fires_when_the_next_begins() {
        assert_eq!(
            ticks("0 0 12 * * ?", "Pacific/Apia", "2011-12-29T00:00:00Z", 3),
            ["2011-12-29T12:00:00-10:00", "2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"]
        );
    }

    #[test]
    fn a_fraction_of_a_second_does_not_repeat_a_tick() {
        assert_eq!(ticks("* * * * * ?", "UTC", "2026-11-20T12:00:01.5Z", 1), ["2026-11-20T12:00:02+00:00"]);
        assert_eq!(ticks("0 0 12 * * ?", "UTC", "2026-11-20T12:00:00.001Z", 1), ["2026-11-21T12:00:00+00:00"]);
    }

    #[test]
    fn the_ends_of_time_have_no_next_tick_and_no_panic() {
        for schedule in [cron("* * * * * ?", "Europe/Rome"), cron("0 0 2 * * ?", "Pacific/Apia")] {
            assert_eq!(schedule.next(Timestamp::MAX), None);
            let _ = schedule.next(Timestamp::MIN);
        }
        assert_eq!(Schedule::Interval(Duration::MAX).next(Timestamp::MAX), None);
    }

    #[test]
    fn an_interval_skips_what_fell_into_a_running_tick() {
        let seconds = Duration::from_secs;
        assert_eq!(next_interval(seconds(0), seconds(2)), seconds(2));
        assert_eq!(next_interval(Duration::from_millis(1_999), seconds(2)), seconds(2));
        assert_eq!(next_interval(seconds(2), seconds(2)), seconds(4), "the tick at 2 s fell into the running one");
        assert_eq!(next_interval(seconds(7), seconds(2)), seconds(8));
        assert!(next_interval(seconds(7), Duration::ZERO) > seconds(7));
        assert_eq!(next_interval(Duration::MAX, Duration::MAX), Duration::MAX);
    }

    fn zones() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "UTC",
            "Europe/Rome",
            "America/New_York",
            "Australia/Lord_Howe",
            "America/Sao_Paulo",
            "Pacific/Apia",
            "Africa/Casablanca",
            "Asia/Gaza",
            "America/St_Johns",
            "Antarctica/Troll",
        ])
    }

    /// Moments within two days of a change of the clock.
    fn near_a_change(zone: &str, from_year: i64, offset: i64) -> Timestamp {
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let start = Timestamp::from_second((from_year - 1970) * 31_556_952).unwrap();
        let change = zone.following(start).next().map_or(start, |change| change.timestamp());
        Timestamp::from_second(change.as_second() + offset).unwrap()
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", zone in ".*") {
            let _ = Schedule::parse_cron(&text, &zone);
            let _ = Schedule::parse_cron(&text, "UTC");
        }

        #[test]
        fn no_cron_like_text_panics_and_what_is_read_ticks_forward(
            text in "([0-9*?LW#/,-]|SUN|FRI|JAN| ){1,12}( ([0-9*?LW#/,-]{1,4}|FRI|JAN-MAR|\\*/[0-9]|1?[0-9])){4,6}",
            zone in zones(),
        ) {
            if let Ok(schedule) = Schedule::parse_cron(&text, zone) {
                let mut at: Timestamp = "2026-11-20T12:00:01Z".parse().unwrap();
                for _ in 0..5 {
                    let Some(next) = schedule.next(at) else { break };
                    prop_assert!(next > at, "{}: {} after {}", text, next, at);
                    at = next;
                }
            }
        }

        // The model: look at every minute of three days around a change of the clock.
        #[test]
        fn a_schedule_of_every_hour_fires_at_each_matching_minute(
            zone in zones(), year in 1990i64..2060, offset in -90_000i64..10_000, minute in 0i8..60, step in 1i8..60,
        ) {
            let after = near_a_change(zone, year, offset);
            let schedule = cron(&format!("0 {minute}/{step} * * * ?"), zone);
            let tz = TimeZoneDatabase::bundled().get(zone).unwrap();
            let mut expected = Vec::new();
            for second in after.as_second() + 1..after.as_second() + 100_000 {
                if second % 60 != 0 { continue; }
                let at = Timestamp::from_second(second).unwrap();
                let wall = tz.to_datetime(at);
                if wall.second() == 0 && wall.minute() >= minute && (wall.minute() - minute) % step == 0 {
                    expected.push(at);
                }
            }
            let mut at = after;
            for tick in expected {
                at = schedule.next(at).unwrap();
                prop_assert_eq!(at, tick);
            }
        }

        #[test]
        fn a_schedule_of_some_hours_fires_once_for_each_wall_clock_time(
            zone in zones(), year in 1990i64..2060, offset in -90_000i64..10_000, hour in 0i8..24, minute in 0i8..60,
        ) {
            let after = near_a_change(zone, year, offset);
            let schedule = cron(&format!("0 {minute} {hour},{} * * ?", (hour + 1) % 24), zone);
            let tz = TimeZoneDatabase::bundled().get(zone).unwrap();
            let mut at = after;
            let mut walls = Vec::new();
            for _ in 0..8 {
                let next = schedule.next(at).unwrap();
                prop_assert!(next > at);
                prop_assert!(next.duration_since(at) < SignedDuration::from_hours(51), "{} after {}", next, at);
                walls.push(tz.to_datetime(next));
                at = next;
            }
            let count = walls.len();
            walls.dedup();
            prop_assert_eq!(walls.len(), count, "a wall clock time fired twice");
        }

        #[test]
        fn the_next_interval_is_the_first_multiple_beyond(elapsed in 0u64..1_000_000_000, interval in 1u64..10_000_000) {
            let next = next_interval(Duration::from_millis(elapsed), Duration::from_millis(interval)).as_millis();
            prop_assert!(next > u128::from(elapsed) && next - u128::from(interval) <= u128::from(elapsed));
            prop_assert_eq!(next % u128::from(interval), 0);
        }
    }
}
