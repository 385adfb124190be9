//! Shares of a whole as a PNG image: one horizontal bar each.

use plotters::prelude::*;

use super::Result;
use super::canvas::{
    AXIS, Area, COLOURS, DrawResult, HEIGHT, LEFT, MARGIN, MUTED, RIGHT, TEXT, TITLE_MIDDLE, WIDTH, chart,
    px, rise, text,
};

/// The widest that the column of labels becomes.
const LABELS: i32 = 400;
/// Between a label, its bar and its value.
const GAP: i32 = 14;
/// A bar with its share of the space around it, at most.
const ROW: i32 = 64;

/// One bar per `(label, value)`, from top to bottom, as a PNG file of 1200 x 750 pixels. Each value stands at
/// the end of its bar, with an SI prefix; `axis` says what is measured, as in `cycles`. Values that are not finite, or
/// negative, are left out.
///
/// # Errors
/// A chart that can't be drawn.
pub fn bar_chart(title: &str, axis: &str, bars: &[(String, f64)]) -> Result<Vec<u8>> {
    let bars = bars.iter().filter(|(_, value)| value.is_finite() && *value >= 0.0).collect::<Vec<_>>();
    chart(title, |header, body| {
        let style = text(21, MUTED, FontStyle::Normal)?.pos(RIGHT);
        let end = (px(WIDTH as i32 - MARGIN), px(TITLE_MIDDLE) + rise(21));
        header.draw_text(axis, &style, end)?;
        draw_bars(body, &bars)
    })
}

fn draw_bars(area: &Area, bars: &[&(String, f64)]) -> DrawResult<()> {
    // The rows shrink when there are many, and their text with them.
    let bottom = HEIGHT as i32 - 84 - 30;
    let row = (bottom / (bars.len() as i32).max(1)).clamp(1, ROW);
    let size = (row / 2).clamp(9, 21);
    let label_style = text(size, TEXT, FontStyle::Normal)?.pos(RIGHT);
    let value_style = text(size, MUTED, FontStyle::Normal)?.pos(LEFT);
    let width = |label: &str, style: &TextStyle| -> DrawResult<i32> {
        Ok(area.estimate_text_size(label, style)?.0 as i32)
    };

    let labels = bars
        .iter()
        .map(|(label, _)| shorten(label, |label| Ok(width(label, &label_style)? <= px(LABELS))))
        .collect::<DrawResult<Vec<_>>>()?;
    let values = bars.iter().map(|(_, value)| si(*value)).collect::<Vec<_>>();
    let widest = |texts: &[String], style| -> DrawResult<i32> {
        texts.iter().try_fold(0, |most, text| Ok(most.max(width(text, style)?)))
    };
    let zero = px(MARGIN + GAP) + widest(&labels, &label_style)?;
    let full = px(WIDTH as i32 - MARGIN - GAP) - widest(&values, &value_style)? - zero;
    let largest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);

    for (i, (_, value)) in bars.iter().enumerate() {
        let middle = px(row * i as i32 + row / 2);
        let half = px(row) * 3 / 10;
        // A value above zero is never invisible.
        let length = (f64::from(full) * value / largest).round() as i32;
        let length = if *value > 0.0 { length.max(px(3)) } else { 0 };
        let bar = [(zero, middle - half), (zero + length, middle + half)];
        area.draw(&Rectangle::new(bar, COLOURS[0].filled()))?;
        let baseline = middle + rise(size);
        area.draw_text(&labels[i], &label_style, (zero - px(GAP), baseline))?;
        area.draw_text(&values[i], &value_style, (zero + length + px(GAP), baseline))?;
    }
    if !bars.is_empty() {
        let left = zero - px(1);
        let line = [(left, 0), (left, px(row * bars.len() as i32))];
        area.draw(&PathElement::new(line, AXIS.stroke_width(px(2) as u32)))?;
    }
    Ok(())
}

/// `label`, or as much of its end as fits: the last part of a layer's path says most.
fn shorten(label: &str, fits: impl Fn(&str) -> DrawResult<bool>) -> DrawResult<String> {
    if fits(label)? {
        return Ok(label.to_owned());
    }
    for (start, _) in label.char_indices().skip(1) {
        let shortened = format!("...{}", &label[start..]);
        if fits(&shortened)? {
            return Ok(shortened);
        }
    }
    Ok("...".to_owned())
}

/// A small whole number as it is; else three significant digits and an SI prefix: 27,834,560 is `27.8 M`.
fn si(value: f64) -> String {
    if value < 1000.0 && value.fract() == 0.0 {
        return value.to_string();
    }
    const PREFIXES: [&str; 9] = ["p", "n", "\u{b5}", "m", "", "k", "M", "G", "T"];
    // By way of `{:e}`, which rounds first: 999.96 is 1.00 k.
    let rounded = format!("{value:.2e}");
    let (mantissa, exponent) = rounded.split_once('e').unwrap_or((&rounded, "0"));
    let (mantissa, exponent) = (mantissa.parse().unwrap_or(value), exponent.parse().unwrap_or(0));
    let group = i32::div_euclid(exponent, 3).clamp(-4, 4);
    let over = exponent - 3 * group;
    let decimals = (2 - over).max(0) as usize;
    let number = mantissa * 10f64.powi(over);
    let text = format!("{number:.decimals$} {}", PREFIXES[(group + 4) as usize]);
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::canvas::colours_in;
    use super::*;

    fn bars(values: &[(&str, f64)]) -> Vec<(String, f64)> {
        values.iter().map(|(label, value)| (label.to_string(), *value)).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let area = |values: &[(&str, f64)]| {
            let image = bar_chart("Cycles", "cycles", &bars(values)).unwrap();
            let [bars, others @ ..] = colours_in(&image);
            assert_eq!(others, [0; 3]);
            bars as f64
        };
        let one = area(&[("a", 4e6), ("b", 0.0), ("c", 0.0)]);
        let three = area(&[("a", 4e6), ("b", 2e6), ("c", 1e6)]);
        assert!((three / one - 1.75).abs() < 0.01, "{three} pixels, {one} for the longest bar");
        // A tiny value still shows; nothing is drawn for none, nor for what is no number.
        assert!(area(&[("a", 4e6), ("b", 1.0), ("c", f64::NAN)]) > one);
        assert_eq!(area(&[]), 0.0);
    }

    #[test]
    fn values_have_three_digits_and_a_prefix() {
        let expected = [
            (27_834_560.0, "27.8 M"),
            (0.0, "0"),
            (3.0, "3"),
            (1.5, "1.50"),
            (12.0, "12"),
            (999.96, "1.00 k"),
            (999.4, "999"),
            (0.0157, "15.7 m"),
            (1.2e-9, "1.20 n"),
            (3e15, "3000 T"),
            (2.5e-15, "0.00250 p"),
        ];
        for (value, text) in expected {
            assert_eq!(si(value), text);
        }
    }

    #[test]
    fn long_labels_keep_their_end() {
        let fits = |label: &str| Ok(label.chars().count() <= 12);
        assert_eq!(shorten("loss", fits).unwrap(), "loss");
        assert_eq!(shorten("encoder/layer.11/attention", fits).unwrap(), "...attention");
        assert_eq!(shorten("\u{e9}\u{e9}", |_| Ok(false)).unwrap(), "...");
    }
}
