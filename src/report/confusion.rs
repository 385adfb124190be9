//! A confusion matrix as a PNG image.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::{
    AXIS, Area, COLOURS, DrawResult, HEIGHT, MARGIN, MUTED, RIGHT, TEXT, TITLE_MIDDLE, WIDTH, chart, px,
    rise, text,
};
use super::{Classification, ReportError, Result};

/// Height of the header, and of what is below.
const HEADER: i32 = 84;
const BODY: i32 = HEIGHT as i32 - HEADER;
/// The widest that the column of labels becomes, and the highest that their row does.
const LABELS: i32 = 240;
const SLANTED: i32 = 120;
/// Between a label and the matrix.
const GAP: i32 = 12;
/// For the name of an axis.
const AXIS_NAME: i32 = 44;
/// A cell is no wider than so many times its height.
const RATIO: f64 = 2.2;
/// The smallest text, and the largest.
const TEXT_SIZES: (i32, i32) = (11, 26);

const CENTER: Pos = Pos { h_pos: HPos::Center, v_pos: VPos::Center };

/// The confusion matrix as a PNG file of 1200 x 750 pixels: a row per label, a column per answer. A cell has its number of
/// rows and their share among those with its label, where there is room for them, and is the darker, the larger the share.
///
/// The font has ASCII and Latin-1: a label with other characters is shown by the number of its class.
///
/// # Errors
/// More classes than there is a matrix of, or a chart that can't be drawn.
pub fn confusion_chart(report: &Classification) -> Result<Vec<u8>> {
    let title = "Confusion matrix";
    let Some(matrix) = &report.confusion else {
        let reason = format!("{} classes are too many", report.per_class.len());
        return Err(ReportError::Plot { title: title.to_owned(), reason });
    };
    chart(title, |header, body| {
        let style = text(21, MUTED, FontStyle::Normal)?.pos(RIGHT);
        let what = format!("{} rows, accuracy {:.4}", report.rows, report.accuracy);
        header.draw_text(&what, &style, (px(WIDTH as i32 - MARGIN), px(TITLE_MIDDLE) + rise(21)))?;
        let labels = report.per_class.iter().map(|score| shown(&score.label, score.class));
        draw(body, &labels.collect::<Vec<_>>(), matrix)
    })
}

/// A label as the font can show it.
fn shown(label: &str, class: u32) -> String {
    let has_glyph = |c: char| matches!(c, ' '..='~' | '\u{a0}'..='\u{ff}');
    if label.chars().all(has_glyph) { label.to_owned() } else { format!("class {class}") }
}

/// Where the matrix is, in pixels of the canvas.
struct Grid {
    left: i32,
    top: i32,
    /// Of a cell.
    width: i32,
    height: i32,
    classes: i32,
}

impl Grid {
    /// As large as fits beside labels of this width and height.
    fn new(classes: usize, label_width: i32, label_height: i32) -> Self {
        let classes = classes as i32;
        let left = px(MARGIN + AXIS_NAME + GAP) + label_width;
        let room = px(BODY - AXIS_NAME - GAP - 20) - label_height;
        let height = (room / classes).max(1);
        let widest = (f64::from(height) * RATIO) as i32;
        let width = ((px(WIDTH as i32 - MARGIN) - left) / classes).clamp(1, widest);
        Self { left, top: 0, width, height, classes }
    }

    fn right(&self) -> i32 {
        self.left + self.width * self.classes
    }

    fn bottom(&self) -> i32 {
        self.top + self.height * self.classes
    }

    /// The middle of a cell.
    fn middle(&self, row: usize, column: usize) -> (i32, i32) {
        let at = |start, size, i| start + size * i as i32 + size / 2;
        (at(self.left, self.width, column), at(self.top, self.height, row))
    }
}

fn draw(area: &Area, labels: &[String], matrix: &[Vec<u64>]) -> DrawResult<()> {
    // By the height that a row has, if nothing else took any.
    let size = (BODY / labels.len() as i32 * 2 / 5).clamp(TEXT_SIZES.0, 21);
    let style = text(size, TEXT, FontStyle::Normal)?;
    let width = |label: &str| -> DrawResult<i32> { Ok(area.estimate_text_size(label, &style)?.0 as i32) };
    let widest = |labels: &[String]| -> DrawResult<i32> {
        labels.iter().try_fold(0, |most, label| Ok(most.max(width(label)?)))
    };
    let cut_all = |most: i32| -> DrawResult<Vec<String>> {
        labels.iter().map(|label| cut(label, |label| Ok(width(label)? <= most))).collect()
    };

    let rows = cut_all(px(LABELS))?;
    let row_width = widest(&rows)?;
    // Below the columns, labels lie as they are read if they fit so; else they stand.
    let lying = Grid::new(labels.len(), row_width, px(size));
    let stand = widest(&rows)? > lying.width - px(GAP);
    let columns = if stand { cut_all(px(SLANTED))? } else { rows.clone() };
    let column_height = if stand { widest(&columns)? } else { px(size) };
    let grid = Grid::new(labels.len(), row_width, column_height);

    draw_cells(area, &grid, matrix)?;
    // Labels of rows that are closer than their text would lie on each other.
    let is_readable = grid.height.min(grid.width) >= px(TEXT_SIZES.0);
    for (i, (row, column)) in rows.iter().zip(&columns).enumerate().filter(|_| is_readable) {
        let (x, y) = grid.middle(i, i);
        area.draw_text(row, &style.pos(RIGHT), (grid.left - px(GAP), y + rise(size)))?;
        let below = grid.bottom() + px(GAP);
        match stand {
            true => {
                let style = style.transform(FontTransform::Rotate270).pos(RIGHT);
                area.draw_text(column, &style, (x + rise(size), below))?;
            }
            false => area.draw_text(column, &style.pos(CENTER), (x, below + px(size) / 2 + rise(size)))?,
        }
    }
    draw_axis_names(area, &grid, column_height)
}

fn draw_cells(area: &Area, grid: &Grid, matrix: &[Vec<u64>]) -> DrawResult<()> {
    let counts = matrix.iter().flatten().map(|count| count.to_string()).collect::<Vec<_>>();
    let widest = counts.iter().max_by_key(|count| count.len()).map_or("", |count| count);
    // The largest text in which every count fits into its cell, beside its share below it.
    let fits = |size: i32| -> DrawResult<bool> {
        let style = text(size, TEXT, FontStyle::Normal)?;
        let width = area.estimate_text_size(&widest.replace(|_| true, "0"), &style)?.0 as i32;
        Ok(width + px(6) <= grid.width && px(size) * 5 / 4 <= grid.height)
    };
    let mut size = None;
    for candidate in TEXT_SIZES.0..=TEXT_SIZES.1 {
        size = if fits(candidate)? { Some(candidate) } else { break };
    }
    for (row, counts) in matrix.iter().enumerate() {
        let support = counts.iter().sum::<u64>();
        for (column, &count) in counts.iter().enumerate() {
            let share = if support == 0 { 0.0 } else { count as f64 / support as f64 };
            let (x, y) = grid.middle(row, column);
            let (left, top) = (grid.left + grid.width * column as i32, grid.top + grid.height * row as i32);
            let cell = [(left, top), (left + grid.width, top + grid.height)];
            area.draw(&Rectangle::new(cell, shade(share).filled()))?;
            let Some(size) = size else { continue };
            draw_cell(area, grid, (x, y), size, count, (support > 0).then_some(share))?;
        }
    }
    let frame = [(grid.left, grid.top), (grid.right(), grid.bottom())];
    area.draw(&Rectangle::new(frame, AXIS.stroke_width(px(1) as u32)))?;
    Ok(())
}

/// The number of rows, and below it, where there is room, their share.
fn draw_cell(
    area: &Area,
    grid: &Grid,
    (x, y): (i32, i32),
    size: i32,
    count: u64,
    share: Option<f64>,
) -> DrawResult<()> {
    let colour = if count == 0 { MUTED } else { TEXT };
    let style = text(size, colour, FontStyle::Normal)?.pos(CENTER);
    let small = (size * 7 / 10).max(TEXT_SIZES.0);
    let small_style = text(small, colour, FontStyle::Normal)?.pos(CENTER);
    let share = share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let (width, _) = area.estimate_text_size(&share, &small_style)?;
    let height = px(size + small) * 5 / 4;
    if height > grid.height || width as i32 + px(4) > grid.width {
        area.draw_text(&count.to_string(), &style, (x, y + rise(size)))?;
        return Ok(());
    }
    let top = y - height / 2;
    area.draw_text(&count.to_string(), &style, (x, top + px(size) * 5 / 8 + rise(size)))?;
    area.draw_text(&share, &small_style, (x, y + height / 2 - px(small) * 5 / 8 + rise(small)))?;
    Ok(())
}

fn draw_axis_names(area: &Area, grid: &Grid, column_height: i32) -> DrawResult<()> {
    let style = text(21, TEXT, FontStyle::Normal)?.pos(CENTER);
    let middle = (grid.left + grid.right()) / 2;
    let below = grid.bottom() + px(GAP) + column_height + px(AXIS_NAME) / 2;
    area.draw_text("predicted", &style, (middle, below + rise(21)))?;
    let style = style.transform(FontTransform::Rotate270);
    let left = px(MARGIN + AXIS_NAME / 2 - 10);
    area.draw_text("true", &style, (left + rise(21), (grid.top + grid.bottom()) / 2))?;
    Ok(())
}

/// The colour of a share of a row: white for none, and for all of it still light enough for dark text.
fn shade(share: f64) -> RGBColor {
    const STRENGTH: f64 = 0.6;
    let RGBColor(r, g, b) = COLOURS[0];
    let mix = |c: u8| (255.0 - (255.0 - f64::from(c)) * STRENGTH * share).round() as u8;
    RGBColor(mix(r), mix(g), mix(b))
}

/// `label`, or as much of its beginning and its end as fits: either may be what tells labels apart.
fn cut(label: &str, fits: impl Fn(&str) -> DrawResult<bool>) -> DrawResult<String> {
    if fits(label)? {
        return Ok(label.to_owned());
    }
    let chars = label.chars().collect::<Vec<_>>();
    for kept in (1..chars.len()).rev() {
        let (first, last) = chars.split_at(kept.div_ceil(2));
        let last = &last[last.len() - kept / 2..];
        let shortened = first.iter().chain(&['.'; 3]).chain(last).collect::<String>();
        if fits(&shortened)? {
            return Ok(shortened);
        }
    }
    Ok("...".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::canvas::pixels;
    use super::*;

    /// A report with these counts.
    fn report(names: &[&str], counts: &[&[u64]]) -> Classification {
        let (mut labels, mut predicted) = (vec![], vec![]);
        for (label, row) in counts.iter().enumerate() {
            for (class, count) in row.iter().enumerate() {
                labels.extend((0..*count).map(|_| label as u32));
                predicted.extend((0..*count).map(|_| class as u32));
            }
        }
        Classification::new(&labels, &predicted, 0.5, |class| names[class as usize].to_owned()).unwrap()
    }

    /// The number of pixels of each shade.
    fn area_of(image: &[u8], shares: &[f64]) -> Vec<usize> {
        let pixels = pixels(image);
        let is = |RGBColor(r, g, b): RGBColor| pixels.chunks(3).filter(|pixel| *pixel == [r, g, b]).count();
        shares.iter().map(|share| is(shade(*share))).collect()
    }

    #[test]
    fn a_cell_is_shaded_by_its_share_of_the_row() {
        let image =
            confusion_chart(&report(&["a", "b", "c"], &[&[8, 2, 0], &[1, 1, 0], &[0, 0, 5]])).unwrap();
        let [eight, two, half, all, ..] = area_of(&image, &[0.8, 0.2, 0.5, 1.0])[..] else { panic!() };
        assert!(eight > 10_000, "{eight} pixels");
        // Two cells of the same share, and as large as one, but for the text in them.
        let ratio = half as f64 / (eight + two) as f64;
        assert!((ratio - 1.0).abs() < 0.05, "{half} pixels for {eight} and {two}");
        assert!((all as f64 / eight as f64 - 1.0).abs() < 0.05, "{all} pixels for {eight}");
        assert_eq!(area_of(&image, &[0.3, 0.7]), [0, 0]);
    }

    #[test]
    fn from_one_class_to_hundreds() {
        for classes in [1, 2, 20, 60, 300] {
            let names = (0..classes).map(|class| format!("label number {class}")).collect::<Vec<_>>();
            let labels = (0..classes as u32).collect::<Vec<_>>();
            let name = |class: u32| names[class as usize].clone();
            let report = Classification::new(&labels, &labels, 0.0, name).unwrap();
            let image = confusion_chart(&report).unwrap();
            let all = area_of(&image, &[1.0])[0];
            assert!(all > 50, "{classes} classes: {all} pixels");
        }
        let labels = (0..1001).collect::<Vec<u32>>();
        let report = Classification::new(&labels, &labels, 0.0, |class| class.to_string()).unwrap();
        let error = confusion_chart(&report).unwrap_err();
        let expected = "cannot draw the chart \"Confusion matrix\": 1001 classes are too many";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn labels_are_cut_in_the_middle_and_those_without_glyphs_have_numbers() {
        let fits = |label: &str| Ok(label.chars().count() <= 9);
        assert_eq!(cut("very good", fits).unwrap(), "very good");
        assert_eq!(cut("not very good", fits).unwrap(), "not...ood");
        assert_eq!(cut("\u{e9}\u{e9}", |_| Ok(false)).unwrap(), "...");
        assert_eq!(shown("tr\u{e8}s bien", 3), "tr\u{e8}s bien");
        assert_eq!(shown("\u{628}\u{627}\u{647}\u{64a}", 3), "class 3");
    }
}
