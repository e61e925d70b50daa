//! Events of files, as people and their programs write them.

use super::*;

fn read(body: &str) -> Result<Vec<Event>, String> {
    let text = format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\n{body}END:VCALENDAR\r\n");
    let zone = TimeZone::get("America/New_York").unwrap();
    let (from, until) = ("2026-11-01T00:00Z", "2027-12-01T00:00Z");
    events(text.as_bytes(), &zone, from.parse().unwrap(), until.parse().unwrap())
}

fn event(lines: &str) -> String {
    format!("BEGIN:VEVENT\r\nUID:1\r\nSUMMARY:Peak\\, season\r\n{lines}END:VEVENT\r\n")
}

/// An event with a name of its own, which is its title, too.
fn named(uid: &str, lines: &str) -> String {
    format!("BEGIN:VEVENT\r\nUID:{uid}\r\nSUMMARY:{uid}\r\n{lines}END:VEVENT\r\n")
}

fn error(body: &str) -> String {
    read(body).expect_err(body)
}

fn spans(body: &str) -> Vec<String> {
    let show = |event: Event| format!("{} {}", event.span.from, event.span.until);
    read(body).unwrap().into_iter().map(show).collect()
}

#[test]
fn all_day_events_are_the_owners_days_clock_changes_included() {
    let one = event("DTSTART;VALUE=DATE:20261126\r\n");
    assert_eq!(spans(&one), ["2026-11-26T05:00:00Z 2026-11-27T05:00:00Z"]);
    assert_eq!(read(&one).unwrap()[0].title, "Peak, season");
    // The last day of October to the second of November 2027 has no change, 6 to 8 has.
    let over = event("DTSTART;VALUE=DATE:20271106\r\nDTEND;VALUE=DATE:20271108\r\n");
    assert_eq!(spans(&over), ["2027-11-06T04:00:00Z 2027-11-08T05:00:00Z"]);
}

#[test]
fn repetitions_without_an_end_are_bounded_and_exceptions_hold() {
    let weekly = event(
        "DTSTART;TZID=Europe/Berlin:20261030T180000\r\nDTEND;TZID=Europe/Berlin:20261030T200000\r\n\
         RRULE:FREQ=WEEKLY\r\nEXDATE;TZID=Europe/Berlin:20261113T180000\r\n",
    );
    let spans = spans(&weekly);
    assert_eq!(spans[0], "2026-11-06T17:00:00Z 2026-11-06T19:00:00Z");
    assert_eq!(spans[1], "2026-11-20T17:00:00Z 2026-11-20T19:00:00Z");
    assert_eq!(spans.len(), 55, "{spans:?}");
    // The same hours by the wall clock in summer.
    assert!(spans.contains(&"2027-06-04T16:00:00Z 2027-06-04T18:00:00Z".to_owned()));
}

#[test]
fn many_endless_repetitions_do_not_starve_each_other() {
    let body: String = (0..20)
        .map(|n| event(&format!("DTSTART;VALUE=DATE:200001{:02}\r\nRRULE:FREQ=DAILY\r\n", n + 1)))
        .collect();
    let error = read(&body).unwrap_err();
    assert!(error.contains("more than"), "{error}");
    let yearly = event("DTSTART;VALUE=DATE:20001225\r\nRRULE:FREQ=YEARLY\r\n").repeat(100);
    assert_eq!(spans(&yearly).len(), 100);
}

#[test]
fn cancelled_events_take_no_time() {
    assert!(read(&event("DTSTART;VALUE=DATE:20261126\r\nSTATUS:CANCELLED\r\n")).unwrap().is_empty());
    let shown_as_free = event("DTSTART;VALUE=DATE:20261126\r\nTRANSP:TRANSPARENT\r\n");
    assert_eq!(read(&shown_as_free).unwrap().len(), 1);
}

#[test]
fn what_is_in_doubt_is_an_error() {
    for (body, word) in [
        (event("DTSTART:tomorrow\r\n"), "DTSTART"),
        (event(""), "DTSTART"),
        (event("DTSTART;TZID=Mars/Olympus:20261126T100000\r\n"), "unknown zone"),
        (event("DTSTART;VALUE=DATE:20261126\r\nRRULE:FREQ=SOMETIMES\r\n"), "RRULE"),
        (event("DTSTART;VALUE=DATE:20261126\r\nDTEND:x\r\n"), "DTEND"),
    ] {
        let error = read(&body).expect_err(&body);
        assert!(error.contains(word), "{error}");
    }
    let zone = TimeZone::UTC;
    let (from, until) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
    let cut = b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nDTSTART:20261126T100000Z\r\n";
    for bad in [&b""[..], b"hello", b"\xff\xfe", cut] {
        assert!(events(bad, &zone, from, until).is_err());
    }
}

const WEEKLY: &str = "DTSTART;TZID=Europe/Berlin:20261102T180000\r\nDURATION:PT2H\r\n";

#[test]
fn an_exception_is_of_its_event_alone() {
    let weekly = format!("{WEEKLY}RRULE:FREQ=WEEKLY;COUNT=3\r\n");
    let at = "RECURRENCE-ID;TZID=Europe/Berlin:20261109T180000\r\n\
              DTSTART;TZID=Europe/Berlin:20261109T180000\r\n";
    let cancelled = format!("{at}STATUS:CANCELLED\r\n");
    let body = named("b", &weekly) + &named("a", &weekly) + &named("a", &cancelled);
    let mut titles: Vec<_> = read(&body).unwrap().into_iter().map(|event| event.title).collect();
    titles.sort();
    assert_eq!(titles, ["a", "a", "b", "b", "b"]);
    // Nobody says whose exception it is that has no name: then it is nobody's.
    let unnamed = |lines: &str| format!("BEGIN:VEVENT\r\n{lines}END:VEVENT\r\n");
    assert_eq!(spans(&(unnamed(&weekly) + &unnamed(&cancelled))).len(), 3);
    // Two that say different things of one repetition.
    let twice = named("a", &weekly) + &named("a", at) + &named("a", &cancelled);
    assert!(error(&twice).contains("RECURRENCE-ID"));
    let future = at.replace("RECURRENCE-ID;", "RECURRENCE-ID;RANGE=THISANDFUTURE;");
    assert!(error(&(named("a", &weekly) + &named("a", &future))).contains("RANGE"));
}

#[test]
fn the_last_repetition_is_within_the_end() {
    let last = |start: &str, until: &str| {
        let body = event(&format!("{start}RRULE:FREQ=DAILY;UNTIL={until}\r\n"));
        spans(&body).pop().unwrap()
    };
    // An end in UTC is a moment, not a time by the wall clock: 18:00 in Berlin.
    assert_eq!(last(WEEKLY, "20261116T170000Z"), "2026-11-16T17:00:00Z 2026-11-16T19:00:00Z");
    assert_eq!(last(WEEKLY, "20261116T165959Z"), "2026-11-15T17:00:00Z 2026-11-15T19:00:00Z");
    // 00:30 in Berlin, which is the day before in UTC.
    let night = "DTSTART;TZID=Europe/Berlin:20261102T003000\r\nDURATION:PT1H\r\n";
    assert_eq!(last(night, "20261115T233000Z"), "2026-11-15T23:30:00Z 2026-11-16T00:30:00Z");
    // In the hour that there is twice: 02:30 comes first, then 02:10 in winter time.
    let twice = "DTSTART;TZID=Europe/Berlin:20271030T023000\r\nDURATION:PT1H\r\n";
    assert_eq!(last(twice, "20271031T011000Z"), "2027-10-31T00:30:00Z 2027-10-31T02:30:00Z");
    // A day is meant whole.
    assert_eq!(last(WEEKLY, "20261116"), "2026-11-16T17:00:00Z 2026-11-16T19:00:00Z");
    assert_eq!(
        last("DTSTART:20261102T180000\r\nDURATION:PT1H\r\n", "20261116T230000Z"),
        "2026-11-16T23:00:00Z 2026-11-17T00:00:00Z"
    );
    let utc = "DTSTART:20261102T010000Z\r\nDURATION:PT1H\r\n";
    // The evening of the 15th where the owner is.
    assert_eq!(last(utc, "20261115"), "2026-11-16T01:00:00Z 2026-11-16T02:00:00Z");
    // Days by their date, whatever the moment is where the owner is.
    let days = "DTSTART;VALUE=DATE:20261102\r\n";
    assert_eq!(last(days, "20261116T000000Z"), "2026-11-16T05:00:00Z 2026-11-17T05:00:00Z");
    assert!(error(&event(&format!("{WEEKLY}RRULE:FREQ=DAILY;UNTIL=20261399\r\n"))).contains("RRULE"));
}

#[test]
fn repetitions_that_begin_later_than_anybody_looks_are_none() {
    let later = event("DTSTART;TZID=Europe/Berlin:20300101T100000\r\nRRULE:FREQ=WEEKLY\r\n");
    assert_eq!(spans(&later), [""; 0]);
}

#[test]
fn repetitions_of_a_time_in_utc_are_in_utc() {
    let weekly = "DTSTART:20261102T180000Z\r\nDTEND:20261102T190000Z\r\nRRULE:FREQ=WEEKLY;COUNT=2\r\n";
    assert_eq!(spans(&event(weekly))[1], "2026-11-09T18:00:00Z 2026-11-09T19:00:00Z");
}

#[test]
fn a_zone_is_what_the_file_says_it_is() {
    let zone = "BEGIN:VTIMEZONE\r\nTZID:ours\r\nX-LIC-LOCATION:Europe/Berlin\r\nEND:VTIMEZONE\r\n";
    // 02:30 is skipped on the 28th of March.
    let daily =
        event("DTSTART;TZID=ours:20270327T023000\r\nDURATION:PT1H\r\nRRULE:FREQ=DAILY;COUNT=2\r\n");
    assert_eq!(
        spans(&format!("{zone}{daily}")),
        ["2027-03-27T01:30:00Z 2027-03-27T02:30:00Z", "2027-03-28T00:30:00Z 2027-03-28T01:30:00Z"]
    );
}

#[test]
fn a_repetition_over_a_clock_change_lasts_until_its_hour() {
    let nights = "DTSTART;TZID=Europe/Berlin:20261101T000000\r\nDTEND;TZID=Europe/Berlin:20261101T060000\r\n\
                  RRULE:FREQ=WEEKLY\r\n";
    let spans = spans(&event(nights));
    assert!(spans.contains(&"2027-10-30T22:00:00Z 2027-10-31T05:00:00Z".to_owned()), "{spans:?}");
}

#[test]
fn a_beginning_that_its_rule_leaves_out_counts() {
    // A Sunday, repeated on Mondays.
    let body = event("DTSTART;VALUE=DATE:20261108\r\nRRULE:FREQ=WEEKLY;BYDAY=MO;COUNT=2\r\n");
    assert_eq!(spans(&body).len(), 3);
    assert_eq!(spans(&body)[0], "2026-11-08T05:00:00Z 2026-11-09T05:00:00Z");
}

#[test]
fn too_many_repetitions_are_noticed_whatever_is_left_out() {
    let start = "DTSTART:20261102T000000\r\nDURATION:PT1M\r\nRRULE:FREQ=MINUTELY\r\n";
    let out: Vec<_> = (10..30).map(|minute| format!("EXDATE:20261102T00{minute}00\r\n")).collect();
    for lines in [start.to_owned(), format!("{start}{}", out.concat())] {
        let error = error(&event(&lines));
        assert!(error.contains("more than"), "{error}");
    }
    // Each of them has few enough.
    let many: String = (0..3)
        .map(|n| {
            named(
                &n.to_string(),
                "DTSTART:20261102T000000\r\nDURATION:PT1M\r\nRRULE:FREQ=MINUTELY;COUNT=20000\r\n",
            )
        })
        .collect();
    assert!(error(&many).contains("more than"));
}

#[test]
fn what_would_be_passed_over_is_an_error() {
    let day = event("DTSTART;VALUE=DATE:20261126\r\n");
    let [begin, end] = ["BEGIN:VCALENDAR\r\n", "END:VCALENDAR\r\n"];
    for body in [
        // Behind the end, twice; and after an end of nothing.
        format!("{day}{end}{begin}{day}"),
        format!("{day}{end}{day}"),
        format!("{day}END:VALARM\r\n{day}"),
        format!("{day}{begin}{day}{end}"),
        // Ends that are another one's.
        event("END:VALARM\r\nDTSTART;VALUE=DATE:20261126\r\n"),
        event("DTSTART;VALUE=DATE:20261126\r\nBEGIN:VALARM\r\n"),
        event("BEGIN:VALARM\r\nTRIGGER:PT0S\r\nDTSTART;VALUE=DATE:20261126\r\nEND:VALARM\r\n"),
        // An event that is not seen as one, or a line of it.
        day.replace("BEGIN:VEVENT", "BEGIN:VEVENT "),
        day.replace("BEGIN:VEVENT\r\n", "BEGIN:VEVENT\r"),
        event("DTSTART;VALUE=DATE:20261126\r\nRRULE\r\n"),
        event("DTSTART;VALUE=DATE:20261126\r\nX;ENCODING=QUOTED-PRINTABLE:=\r\nRRULE:FREQ=DAILY\r\n"),
    ] {
        assert!(read(&body).is_err(), "{body}");
    }
    // Lines may be folded anywhere, and alarms have times of their own.
    let alarm =
        "BEGIN:VALARM\r\nACTION:AUDIO\r\nTRIGGER:-PT5M\r\nDURATION:PT5M\r\nREPEAT:2\r\nEND:VALARM\r\n";
    let folded = event(&format!("DTST\r\n ART;VALUE=DATE:2026\r\n\t1126\r\n{alarm}"))
        .replace("BEGIN:VE", "begin:VE\r\n ");
    assert_eq!(spans(&folded).len(), 1);
    assert_eq!(spans(&folded.replace("\r\n", "\n")).len(), 1);
}

#[test]
fn what_is_said_twice_is_in_doubt() {
    let lines = format!("{WEEKLY}RRULE:FREQ=WEEKLY;COUNT=2\r\nSTATUS:CONFIRMED\r\n");
    assert_eq!(spans(&event(&lines)).len(), 2);
    for second in [
        "DTSTART;TZID=Europe/Berlin:20261103T180000",
        "DURATION:PT1H",
        "DTEND;TZID=Europe/Berlin:20261102T190000",
        "RRULE:FREQ=DAILY;COUNT=2",
        "STATUS:CANCELLED",
        "UID:2",
    ] {
        let error = error(&event(&format!("{lines}{second}\r\n")));
        assert!(error.contains(second.split([':', ';']).next().unwrap()), "{error}");
    }
}

#[test]
fn times_that_take_no_time_or_less_are_in_doubt() {
    let zoned = "DTSTART;TZID=Europe/Berlin:20261126T100000\r\n";
    for lines in [
        format!("{zoned}DTEND;TZID=Europe/Berlin:20261126T090000\r\n"),
        format!("{zoned}DTEND;TZID=Europe/Berlin:20261126T090000\r\nRRULE:FREQ=DAILY\r\n"),
        // An hour later by the name, five earlier in truth.
        format!("{zoned}DTEND;TZID=Asia/Tokyo:20261126T110000\r\n"),
        format!("{zoned}DURATION:-PT1H\r\n"),
        format!("{zoned}DURATION:-PT1H\r\nRRULE:FREQ=DAILY\r\n"),
        // The hours by the names are not those that it lasts.
        format!("{zoned}DTEND;TZID=America/New_York:20261126T100000\r\nRRULE:FREQ=DAILY\r\n"),
        format!("{zoned}DTEND:20261126T103000Z\r\nRDATE;TZID=Europe/Berlin:20261127T100000\r\n"),
        format!("{zoned}RDATE;VALUE=PERIOD:20261127T100000Z/20261127T090000Z\r\n"),
        // Skipped by the clocks.
        format!("{zoned}RDATE;TZID=Europe/Berlin:20270328T023000\r\n"),
        "DTSTART;VALUE=DATE:20261126\r\nDTEND;VALUE=DATE:20261126\r\n".to_owned(),
        // One is by the owner's clock, the other one is not.
        "DTSTART:20261126T100000\r\nRRULE:FREQ=DAILY\r\nEXDATE:20261127T100000Z\r\n".to_owned(),
        "DTSTART:20261126T100000Z\r\nRDATE:20261127T100000\r\n".to_owned(),
        "DTSTART:20261126T100000+0100\r\n".to_owned(),
        "DTSTART;VALUE=DATE:20261126\r\nRRULE:FREQ=YEARLY;RSCALE=CHINESE\r\n".to_owned(),
    ] {
        assert!(read(&event(&lines)).is_err(), "{lines}");
    }
    // Where the zones differ and nothing repeats, both moments are known.
    let flight = format!("{zoned}DTEND;TZID=America/New_York:20261126T100000\r\n");
    assert_eq!(spans(&event(&flight)), ["2026-11-26T09:00:00Z 2026-11-26T15:00:00Z"]);
}
