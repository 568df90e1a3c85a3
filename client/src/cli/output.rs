//! Results on standard output: JSON lines or tables. A reader that closed the pipe ends the process quietly.

use std::io::{ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// JSON lines instead of words.
    pub json: bool,
}

impl Out {
    /// One line of words.
    pub fn say(self, text: impl AsRef<str>) {
        write_line(text.as_ref());
    }

    /// One JSON line.
    pub fn value(self, value: &Value) {
        write_line(&value.to_string());
    }

    /// JSON, or these words.
    pub fn either(self, value: &Value, words: impl FnOnce() -> String) {
        if self.json { self.value(value) } else { write_line(&words()) }
    }

    /// A progress bar over bytes; hidden without a terminal and with JSON.
    pub fn bytes_bar(self, total: u64) -> ProgressBar {
        self.bar(total, "{bar:30} {binary_bytes:>10}/{binary_total_bytes} {binary_bytes_per_sec:>12} {eta:>4} {msg}")
    }

    /// A progress bar over things; hidden without a terminal and with JSON.
    pub fn count_bar(self, total: u64) -> ProgressBar {
        self.bar(total, "{bar:30} {pos:>10}/{len} {per_sec:>12} {eta:>4} {msg}")
    }

    fn bar(self, total: u64, style: &str) -> ProgressBar {
        let hidden = self.json || !std::io::stderr().is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    }
}

fn write_line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // `pacsvault ls | head`: nobody reads any more, and that is fine.
        let code = if error.kind() == ErrorKind::BrokenPipe { 0 } else { 1 };
        std::process::exit(code);
    }
}

/// Columns as wide as their widest cell; numbers should be given right-aligned by the caller.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headers.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// `1536` as `1.5 KiB`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut unit, mut scale) = (0, 1_u64);
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        unit += 1;
        scale *= 1024;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `90` seconds as `1.5 min`.
pub fn span_text(seconds: u64) -> String {
    let tenths = |unit: u64| {
        let tenths = u128::from(seconds) * 10 / u128::from(unit);
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", tenths(60)),
        3_600..86_400 => format!("{} h", tenths(3_600)),
        _ => format!("{} d", tenths(86_400)),
    }
}

/// `1 file`, `2 files`.
pub fn counted(count: impl Into<Count>, what: &str) -> String {
    let Count(count) = count.into();
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// A number of things.
pub struct Count(u64);

impl From<u64> for Count {
    fn from(count: u64) -> Self {
        Self(count)
    }
}

impl From<usize> for Count {
    fn from(count: usize) -> Self {
        Self(count as u64)
    }
}

/// Milliseconds since 1970 as RFC 3339, UTC. Days to date: Hinnant, "chrono-compatible low-level date algorithms".
pub fn time_text(millis: u64) -> String {
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000 / 1000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A list of failure sets as texts.
pub fn failures(list: &[pacsvault_core::layout::Failures]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_expect() {
        assert_eq!(size_text(0), "0 B");
        assert_eq!(size_text(1536), "1.5 KiB");
        assert_eq!(size_text(16 << 20), "16.0 MiB");
        assert_eq!(size_text(u64::MAX), "16383.9 PiB");
        assert_eq!((span_text(59), span_text(90)), ("59 s".to_owned(), "1.5 min".to_owned()));
        assert_eq!((span_text(7_200), span_text(14 * 86_400)), ("2.0 h".to_owned(), "14.0 d".to_owned()));
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time_text(1_767_225_599_999), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn tables_are_aligned() {
        let text = table(&["A", "LONGER"], &[vec!["wide cell".into(), "x".into()], vec!["y".into(), String::new()]]);
        assert_eq!(text, "A          LONGER\nwide cell  x\ny");
    }
}
