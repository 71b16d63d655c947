//! Times, counts and untrusted text for people.

/// Seconds in a day.
const DAY: u64 = 86_400;

/// Seconds since 1970 as `2026-11-21 03:45:12Z`; the time is UTC, as everywhere in the daemon.
pub fn time(seconds: u64) -> String {
    let days = seconds / DAY;
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted in years that begin in March, so that the leap day is the last of its year, and from
    // the year 0, so that 400 years (146,097 days) are whole.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// `1 disk`, `2 disks`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// `part` of `whole` in percent, one digit after the point.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let thousandths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}%", thousandths / 10, thousandths % 10)
}

/// Text that may come from elsewhere, without what would move the cursor.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_799, "2000-02-29 23:59:59Z"),
            (951_868_800, "2000-03-01 00:00:00Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (1_735_689_600, "2025-01-01 00:00:00Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
        // A hostile clock does not panic.
        assert!(time(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn counts_percents_and_controls() {
        assert_eq!((count(1, "disk"), count(0, "disk")), ("1 disk".into(), "0 disks".into()));
        assert_eq!((percent(1, 3), percent(1, 0)), ("33.3%".into(), "-".into()));
        assert_eq!(plain("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}
