//! Texts in columns, as `kubectl get` shows them.

/// Between two columns.
const GAP: usize = 3;

/// Pads every cell but a row's last to its column's width. Control characters become spaces: a row is one line.
pub fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0) + GAP).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let padding = if at + 1 == row.len() { 0 } else { widths[at].saturating_sub(cell.chars().count()) };
                line.extend(cell.chars().map(|letter| if letter.is_control() { ' ' } else { letter }));
                line.extend(std::iter::repeat_n(' ', padding));
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

/// `5s`, `3m12s`, `4h5m`, `2d3h`, as kubectl writes an age.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let lines =
            align(&rows(&[&["NAME", "STATE", "X"], &["orders-of-today", "Active", ""], &["ü", "no\nline", "7"]]));
        assert_eq!(
            lines,
            ["NAME              STATE     X", "orders-of-today   Active", "ü                 no line   7"]
        );
    }

    #[test]
    fn no_rows_are_no_lines() {
        assert!(align(&[]).is_empty());
    }

    #[test]
    fn ages_read_as_in_kubectl() {
        let cases = [
            (-1, "0s"),
            (119, "119s"),
            (130, "2m10s"),
            (300, "5m"),
            (700, "11m"),
            (15_000, "4h10m"),
            (200_000, "2d7h"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(age(seconds), expected);
        }
    }
}
