//! Timestamps as text, UTC.

/// `2025-12-20 12:00:00.000000`, as the reference system writes it.
pub fn format(unix_ms: i64) -> String {
    let days = unix_ms.div_euclid(86_400_000);
    let ms = unix_ms.rem_euclid(86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, micro) = (ms / 1000 % 60, ms % 1000 * 1000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micro:06}")
}

/// Milliseconds since the epoch of `YYYY-MM-DD[ T]HH:MM[:SS[.frac]][Z|±HH:MM]`. A text without an offset is
/// UTC.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let date = text.get(..10)?;
    let mut parts = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut ms = days(year, month, day) * 86_400_000;
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return Some(ms);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let split = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, offset) = rest.split_at_checked(split)?;
    let mut fields = clock.split(':');
    let mut field = |max: i64| -> Option<i64> {
        fields
            .next()?
            .parse::<i64>()
            .ok()
            .filter(|value| (0..=max).contains(value))
    };
    ms += field(23)? * 3_600_000 + field(59)? * 60_000;
    if let Some(seconds) = clock.splitn(3, ':').nth(2) {
        let seconds: f64 = seconds.parse().ok()?;
        if !(0.0..61.0).contains(&seconds) {
            return None;
        }
        ms += (seconds * 1000.0) as i64;
    }
    match offset {
        "" | "Z" | "z" => Some(ms),
        _ => {
            let sign = if offset.starts_with('-') { -1 } else { 1 };
            let (hours, minutes) = offset.get(1..)?.split_once(':')?;
            let (hours, minutes) = (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?);
            let valid = (0..=23).contains(&hours) && (0..=59).contains(&minutes);
            valid.then(|| ms - sign * (hours * 60 + minutes) * 60_000)
        }
    }
}

/// Days since the epoch of a date of the proleptic Gregorian calendar (era arithmetic: years
/// begin in March, 146,097 days are 400 years).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_ours_round_trips() {
        assert_eq!(format(1_766_232_000_000), "2025-12-20 12:00:00.000000");
        for text in [
            "2025-12-20 12:00:00.000000",
            "2025-12-20T12:00:00Z",
            "2025-12-20T13:30:00.000+01:30",
            "2025-12-20 12:00",
        ] {
            assert_eq!(parse(text), Some(1_766_232_000_000), "{text}");
        }
        for ms in [0, -1, 951_782_400_123, 4_102_444_799_999] {
            assert_eq!(parse(&format(ms)), Some(ms));
        }
        for text in [
            "",
            "yesterday",
            "2025-13-01",
            "2025-12-20T25:00",
            "2025-12-20x12:00",
            "é025-12-20",
            "2025-12-20T12:00+00:9223372036854775807",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
