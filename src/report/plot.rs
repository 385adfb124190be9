//! Curves over epochs as PNG images.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::canvas::{
    AXIS, Area, COLOURS, DrawResult, GRID, LEFT, MARGIN, MUTED, TEXT, TITLE_MIDDLE, WIDTH, chart, px, rise,
    text,
};
use super::{EpochRecord, Result};

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    pub name: &'a str,
    /// `(epoch, value)` in the order of the epochs; values that are not finite are skipped.
    pub points: Vec<(u32, f64)>,
}

/// The loss of each epoch: train and, where there is one, dev.
///
/// # Errors
/// As of [`line_chart`].
pub fn loss_chart(epochs: &[EpochRecord]) -> Result<Vec<u8>> {
    train_and_dev("Loss", "loss", epochs, |record| Some(record.loss), |record| record.val_loss)
}

/// The accuracy of each epoch: train and, where there is one, dev.
///
/// # Errors
/// As of [`line_chart`].
pub fn accuracy_chart(epochs: &[EpochRecord]) -> Result<Vec<u8>> {
    train_and_dev(
        "Accuracy",
        "accuracy",
        epochs,
        |record| Some(record.accuracy),
        |record| record.val_accuracy,
    )
}

type Value = fn(&EpochRecord) -> Option<f64>;

fn train_and_dev(
    title: &str,
    y_label: &str,
    epochs: &[EpochRecord],
    train: Value,
    dev: Value,
) -> Result<Vec<u8>> {
    let curve = |name, value: Value| Curve {
        name,
        points: epochs.iter().filter_map(|record| Some((record.epoch, value(record)?))).collect(),
    };
    line_chart(title, y_label, &[curve("train", train), curve("dev", dev)])
}

/// Curves over epochs as a PNG file of 1200 x 750 pixels; a curve with no points is left out.
///
/// # Errors
/// A chart that can't be drawn.
pub fn line_chart(title: &str, y_label: &str, curves: &[Curve]) -> Result<Vec<u8>> {
    let curves: Vec<(Curve, RGBColor)> = curves
        .iter()
        .map(|curve| Curve {
            name: curve.name,
            points: curve.points.iter().copied().filter(|(_, value)| value.is_finite()).collect(),
        })
        .filter(|curve| !curve.points.is_empty())
        .zip(COLOURS.into_iter().cycle())
        .collect();
    chart(title, |header, body| {
        draw_legend(header, &curves)?;
        draw_curves(body, y_label, &curves)
    })
}

/// The curves' names, at the right of the title.
fn draw_legend(area: &Area, curves: &[(Curve, RGBColor)]) -> DrawResult<()> {
    let middle = px(TITLE_MIDDLE);
    let style = text(21, TEXT, FontStyle::Normal)?.pos(LEFT);
    let mut right = px(WIDTH as i32 - MARGIN);
    for (curve, colour) in curves.iter().rev() {
        let (width, _) = area.estimate_text_size(curve.name, &style)?;
        right -= width as i32;
        area.draw_text(curve.name, &style, (right, middle + rise(21)))?;
        let line = [(right - px(58), middle), (right - px(12), middle)];
        area.draw(&PathElement::new(line, colour.stroke_width(px(3) as u32)))?;
        area.draw(&Circle::new((right - px(35), middle), px(6), colour.filled()))?;
        right -= px(58 + 32);
    }
    Ok(())
}

fn draw_curves(area: &Area, y_label: &str, curves: &[(Curve, RGBColor)]) -> DrawResult<()> {
    let points = || curves.iter().flat_map(|(curve, _)| curve.points.iter().copied());
    let x = Axis::epochs(points().map(|(epoch, _)| epoch));
    let y = Axis::values(points().map(|(_, value)| value));
    let (x_labels, y_labels) = (x.ticks.len(), y.ticks.len());

    let mut chart = ChartBuilder::on(area)
        .margin_left(px(24))
        .margin_right(px(MARGIN))
        .margin_bottom(px(20))
        .x_label_area_size(px(70))
        .y_label_area_size(px(96))
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(x_labels)
        .y_labels(y_labels)
        .y_label_offset(rise(18))
        .x_desc("epoch")
        .y_desc(y_label)
        .bold_line_style(GRID.stroke_width(px(1) as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS.stroke_width(px(1) as u32))
        .set_all_tick_mark_size(px(6))
        .label_style(text(18, MUTED, FontStyle::Normal)?)
        .axis_desc_style(text(21, TEXT, FontStyle::Normal)?)
        .draw()?;
    for (curve, colour) in curves {
        let points = || curve.points.iter().map(|&(epoch, value)| (f64::from(epoch), value));
        chart.draw_series(LineSeries::new(points(), colour.stroke_width(px(3) as u32)))?;
        // Markers that would touch each other say less than none.
        if curve.points.len() <= 30 {
            chart.draw_series(points().map(|point| Circle::new(point, px(8), WHITE.filled())))?;
            chart.draw_series(points().map(|point| Circle::new(point, px(6), colour.filled())))?;
        }
    }
    Ok(())
}

/// What an axis spans, and where its labels stand.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
    step: f64,
}

impl Axis {
    /// Whole epochs, at most 13 labels, some air on both sides.
    fn epochs(epochs: impl Iterator<Item = u32> + Clone) -> Self {
        let first = epochs.clone().min().unwrap_or(1);
        let last = epochs.max().unwrap_or(first);
        let step = [1, 2, 5].iter().flat_map(|m| [1, 10, 100, 1000, 10_000].map(|p| m * p));
        let step = step.filter(|step| (last - first) / step < 13).min().unwrap_or(100_000);
        let ticks = (first..=last).filter(|epoch| epoch % step == 0 || step == 1).map(f64::from).collect();
        let air = (f64::from(last - first) * 0.04).max(0.25);
        Self { range: f64::from(first) - air..f64::from(last) + air, ticks, step: f64::from(step) }
    }

    /// Round values (1, 2 or 5 times a power of ten) around the data, about six of them.
    fn values(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (mut low, mut high) = (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-3 * high.abs().max(1e-3) {
            // A single value, or a flat curve: a window around it.
            let half = (0.1 * high.abs()).max(0.05);
            (low, high) = (low - half, high + half);
        }
        // Room for the markers, unless that would show a loss below 0 or an accuracy above 1.
        let air = (high - low) * 0.03;
        low = if low >= 0.0 { (low - air).max(0.0) } else { low - air };
        high = if high <= 1.0 { (high + air).min(1.0) } else { high + air };
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(10.0 * power);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let ticks = (0..=(last - first) as u32).map(|i| (first + f64::from(i)) * step).collect();
        Self { range: first * step..last * step, ticks, step }
    }
}

/// A linear axis whose labels are exactly the ticks.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// As many digits after the point as tell two labels apart.
impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let decimals = (-self.step.log10() - 1e-9).ceil().clamp(0.0, 12.0) as usize;
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::colours_in;
    use super::*;

    fn record(epoch: u32, loss: f64, accuracy: f64, dev: Option<(f64, f64)>) -> EpochRecord {
        EpochRecord {
            epoch,
            step: u64::from(epoch) * 169,
            loss,
            accuracy,
            val_loss: dev.map(|(loss, _)| loss),
            val_accuracy: dev.map(|(_, accuracy)| accuracy),
            val_f1: None,
            seconds: 10.0,
            step_ms: 60.0,
            examples_per_second: 266.0,
            learning_rate: 1e-5,
            kept: None,
        }
    }

    #[test]
    fn charts_show_both_curves() {
        let epochs = [
            record(1, 0.7712, 0.6612, Some((0.6043, 0.7433))),
            record(2, 0.5331, 0.7812, Some((0.5127, 0.7866))),
            record(3, 0.3978, 0.8473, Some((0.5334, 0.8000))),
        ];
        for image in [loss_chart(&epochs), accuracy_chart(&epochs)] {
            let [train, dev, others @ ..] = colours_in(&image.unwrap());
            assert!(train > 1000 && dev > 1000, "{train} and {dev} pixels");
            assert_eq!(others, [0, 0]);
        }
    }

    #[test]
    fn one_epoch_is_a_marker_and_nan_is_skipped() {
        let image = loss_chart(&[record(1, f64::NAN, 0.5, Some((0.6, 0.5)))]).unwrap();
        // The train loss is NaN: dev is the first curve that has a point, and has its marker and its legend.
        let [first, second, ..] = colours_in(&image);
        assert!(first > 150, "{first} pixels");
        assert_eq!(second, 0);
        assert_eq!(colours_in(&line_chart("Nothing", "loss", &[]).unwrap()), [0; 4]);
    }

    #[test]
    fn ticks_are_round() {
        let axis = Axis::values([0.63, 1.17].into_iter());
        let labels: Vec<String> = axis.ticks.iter().map(|tick| axis.format_ext(tick)).collect();
        assert_eq!(labels, ["0.6", "0.8", "1.0", "1.2"]);
        assert_eq!(Axis::epochs(1..=3).ticks, [1.0, 2.0, 3.0]);
        assert_eq!(Axis::epochs(1..=40).ticks, [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0]);
        assert_eq!(Axis::epochs(7..=7).range, 6.75..7.25);
    }
}
