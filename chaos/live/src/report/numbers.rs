//! Figures as people read them, and text that is safe inside a page.
//!
//! **Invariants.** A figure never loses its unit. [`escape`] leaves nothing that a page could take for markup, wherever it stands.

/// Text for a page, also inside a quoted attribute. Control characters, which no page may hold, become a replacement mark.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

/// Such as `12,345`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 fault`, `2 faults`.
pub(super) fn counted(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(value), if value == 1 { one } else { many })
}

/// Such as `1.5 GiB`.
pub(super) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut scaled, mut unit) = (value as f64, 0);
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || scaled >= 100.0 {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// How long something took: `340 ms`, `2.3 s`, `4 min 05 s`, `1 h 02 min`.
pub(super) fn lasted(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..59_950 => format!("{:.1} s", ms as f64 / 1000.0),
        _ if seconds < 3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A moment of the run: `0:07`, `12:05`, `1:02:05`.
pub(super) fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds % 3600 / 60, seconds % 60),
    }
}

/// A latency: `0.4 ms`, `12 ms`, `1.2 s`.
pub(super) fn latency(ms: f64) -> String {
    match ms {
        _ if ms < 9.95 => format!("{} ms", trimmed(ms)),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ => format!("{} s", trimmed(ms / 1000.0)),
    }
}

/// At most one decimal, and none that is zero.
pub(super) fn trimmed(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A moment of the world: `2026-11-22 02:08 UTC`.
pub(super) fn date(wall_ms: u64) -> String {
    let minutes = wall_ms / 60_000;
    let (days, minute) = (minutes / 1440, minutes % 1440);
    // Civil date from days since 1970 (Hinnant): years that begin in March, in eras of 400.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minute / 60, minute % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_end_the_text() {
        assert_eq!(escape("<b a='1' c=\"2\">&\n\u{7}é"), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp; \u{fffd}é");
    }

    #[test]
    fn figures_keep_their_unit_at_every_size() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1536, 150 << 20, 3 << 40].map(bytes), ["0 B", "1023 B", "1.5 KiB", "150 MiB", "3.0 TiB"]);
        let times = [0, 999, 2340, 59_949, 59_950, 245_000, 3_600_000, 3_725_000].map(lasted);
        assert_eq!(
            times,
            ["0 ms", "999 ms", "2.3 s", "59.9 s", "1 min 00 s", "4 min 05 s", "1 h 00 min", "1 h 02 min"]
        );
        assert_eq!([0, 7_999, 725_000, 3_725_000].map(clock), ["0:00", "0:07", "12:05", "1:02:05"]);
        assert_eq!([0.42, 9.0, 12.4, 999.6, 15_250.0].map(latency), ["0.4 ms", "9 ms", "12 ms", "1 s", "15.2 s"]);
    }

    #[test]
    fn dates_of_leap_years_and_centuries_are_right() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_313_340_000), "2026-11-22 02:09 UTC");
        assert_eq!(date(4_107_542_399_000), "2100-02-28 23:59 UTC");
    }
}
