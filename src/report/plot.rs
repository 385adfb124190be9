//! Curves over epochs as PNG images.
//!
//! The font is embedded and text, lines and compression are all Rust, so a chart looks the same on any machine.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{EpochRecord, ReportError, Result};
use crate::files::write_atomic;

/// Size of a chart in pixels.
const WIDTH: u32 = 1200;
const HEIGHT: u32 = 750;

/// Charts are drawn this many times larger, then averaged down: that smooths every edge.
const OVERSAMPLE: u32 = 3;

const TEXT: RGBColor = RGBColor(31, 41, 55);
const MUTED: RGBColor = RGBColor(75, 85, 99);
const GRID: RGBColor = RGBColor(229, 231, 235);
const AXIS: RGBColor = RGBColor(156, 163, 175);

/// From the palette of Okabe and Ito, <https://jfly.uni-koeln.de/color/>: readers who are colour-blind tell them apart.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Inter (SIL Open Font License, `assets/fonts/Inter-LICENSE.txt`), cut to ASCII and Latin-1.
static FONT: LazyLock<std::result::Result<&str, String>> = LazyLock::new(|| {
    let styles: [(FontStyle, &'static [u8]); 2] = [
        (FontStyle::Normal, include_bytes!("../../assets/fonts/Inter-Regular.ttf")),
        (FontStyle::Bold, include_bytes!("../../assets/fonts/Inter-SemiBold.ttf")),
    ];
    for (style, bytes) in styles {
        register_font("Inter", style, bytes).map_err(|_| "the embedded font is damaged".to_string())?;
    }
    Ok("Inter")
});

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    pub name: &'a str,
    /// `(epoch, value)` in the order of the epochs; values that are not finite are skipped.
    pub points: Vec<(u32, f64)>,
}

/// Writes `loss.png` and `accuracy.png` into `folder`: train and, where there is one, dev.
///
/// # Errors
/// A file cannot be written.
pub fn plot_history(folder: &Path, epochs: &[EpochRecord]) -> Result<()> {
    type Value = fn(&EpochRecord) -> Option<f64>;
    let charts: [(&str, &str, Value, Value); 2] = [
        ("loss", "Loss", |record| Some(record.loss), |record| record.val_loss),
        ("accuracy", "Accuracy", |record| Some(record.accuracy), |record| record.val_accuracy),
    ];
    for (name, title, train, dev) in charts {
        let curve = |name, value: Value| Curve {
            name,
            points: epochs.iter().filter_map(|record| Some((record.epoch, value(record)?))).collect(),
        };
        let curves = [curve("train", train), curve("dev", dev)];
        line_chart(&folder.join(format!("{name}.png")), title, name, &curves)?;
    }
    Ok(())
}

/// Draws curves over epochs into a PNG file of 1200 x 750 pixels; a curve with no points is left out.
///
/// # Errors
/// The file cannot be written.
pub fn line_chart(path: &Path, title: &str, y_label: &str, curves: &[Curve]) -> Result<()> {
    let pixels = draw(title, y_label, curves)
        .map_err(|reason| ReportError::Plot { title: title.to_string(), reason: reason.to_string() })?;
    let write = write_atomic(path, |file| {
        let mut encoder = png::Encoder::new(file, WIDTH, HEIGHT);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        Ok(writer.finish()?)
    });
    write.map_err(|source| ReportError::File { path: path.to_path_buf(), action: "write the chart", source })
}

type DrawResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// The chart's RGB bytes, `[HEIGHT, WIDTH, 3]`.
fn draw(title: &str, y_label: &str, curves: &[Curve]) -> DrawResult<Vec<u8>> {
    let size = (WIDTH * OVERSAMPLE, HEIGHT * OVERSAMPLE);
    let mut canvas = vec![0; (size.0 * size.1 * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut canvas, size).into_drawing_area();
        root.fill(&WHITE)?;
        let curves: Vec<(Curve, RGBColor)> = curves
            .iter()
            .map(|curve| Curve {
                name: curve.name,
                points: curve.points.iter().copied().filter(|(_, value)| value.is_finite()).collect(),
            })
            .filter(|curve| !curve.points.is_empty())
            .zip(COLOURS.into_iter().cycle())
            .collect();
        let (header, body) = root.split_vertically(px(84));
        draw_header(&header, title, &curves)?;
        draw_curves(&body, y_label, &curves)?;
        root.present()?;
    }
    Ok(downsample(&canvas))
}

/// The title at the left, the legend at the right.
fn draw_header(area: &Area, title: &str, curves: &[(Curve, RGBColor)]) -> DrawResult<()> {
    let middle = px(46);
    let left = Pos::new(HPos::Left, VPos::Center);
    let title_style = text(30, TEXT, FontStyle::Bold)?.pos(left);
    area.draw_text(title, &title_style, (px(40), middle + rise(30)))?;

    let style = text(21, TEXT, FontStyle::Normal)?.pos(left);
    let mut right = px(WIDTH as i32 - 40);
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
        .margin_right(px(40))
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

/// How far above its anchor plotters sets the middle of Inter's capitals and digits at this text size.
const fn rise(text_size: i32) -> i32 {
    px(text_size) / 5
}

/// A length in pixels of the finished chart, as pixels of the canvas.
const fn px(length: i32) -> i32 {
    length * OVERSAMPLE as i32
}

fn text(size: i32, colour: RGBColor, style: FontStyle) -> DrawResult<TextStyle<'static>> {
    let family = FONT.clone()?;
    let font = FontDesc::new(FontFamily::Name(family), f64::from(px(size)), style);
    Ok(font.color(&colour))
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

/// The mean colour of each `OVERSAMPLE` x `OVERSAMPLE` block.
fn downsample(canvas: &[u8]) -> Vec<u8> {
    let (factor, width) = (OVERSAMPLE as usize, WIDTH as usize);
    let row_bytes = width * factor * 3;
    let mut pixels = Vec::with_capacity(canvas.len() / (factor * factor));
    for rows in canvas.chunks_exact(row_bytes * factor) {
        for (x, channel) in (0..width).flat_map(|x| (0..3).map(move |channel| (x, channel))) {
            let at = |i: usize| rows[(i / factor) * row_bytes + (x * factor + i % factor) * 3 + channel];
            let sum: u32 = (0..factor * factor).map(|i| u32::from(at(i))).sum();
            pixels.push((sum / (factor * factor) as u32) as u8);
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::BufReader;

    use super::*;

    fn record(epoch: u32, loss: f64, accuracy: f64, dev: Option<(f64, f64)>) -> EpochRecord {
        EpochRecord {
            epoch,
            step: u64::from(epoch) * 169,
            loss,
            accuracy,
            val_loss: dev.map(|(loss, _)| loss),
            val_accuracy: dev.map(|(_, accuracy)| accuracy),
            seconds: 10.0,
            step_ms: 60.0,
            examples_per_second: 266.0,
            learning_rate: 1e-5,
        }
    }

    /// Decodes a chart, checks its size, and counts the pixels of each colour of [`COLOURS`].
    fn colours_in(path: &Path) -> [usize; 4] {
        let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (WIDTH, HEIGHT, png::ColorType::Rgb));
        assert_eq!(pixels[..3], [255; 3], "the background is white");
        COLOURS.map(|RGBColor(r, g, b)| pixels.chunks_exact(3).filter(|pixel| *pixel == [r, g, b]).count())
    }

    #[test]
    fn charts_show_both_curves() {
        let folder = tempfile::tempdir().unwrap();
        let epochs = [
            record(1, 0.7712, 0.6612, Some((0.6043, 0.7433))),
            record(2, 0.5331, 0.7812, Some((0.5127, 0.7866))),
            record(3, 0.3978, 0.8473, Some((0.5334, 0.8000))),
        ];
        plot_history(folder.path(), &epochs).unwrap();
        for name in ["loss.png", "accuracy.png"] {
            let [train, dev, others @ ..] = colours_in(&folder.path().join(name));
            assert!(train > 1000 && dev > 1000, "{name}: {train} and {dev} pixels");
            assert_eq!(others, [0, 0]);
        }
    }

    #[test]
    fn one_epoch_is_a_marker_and_nan_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        plot_history(folder.path(), &[record(1, f64::NAN, 0.5, Some((0.6, 0.5)))]).unwrap();
        // The train loss is NaN: dev is the first curve that has a point, and has its marker and its legend.
        let [first, second, ..] = colours_in(&folder.path().join("loss.png"));
        assert!(first > 150, "{first} pixels");
        assert_eq!(second, 0);
        line_chart(&folder.path().join("none.png"), "Nothing", "loss", &[]).unwrap();
        assert_eq!(colours_in(&folder.path().join("none.png")), [0; 4]);
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

    #[test]
    fn an_error_names_the_file() {
        // A file is no folder, not even for root.
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml/loss.png");
        let error = line_chart(Path::new(path), "Loss", "loss", &[]).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{path}: cannot write the chart")), "{error}");
    }
}
