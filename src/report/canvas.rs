//! What the charts share: size, font, colours, the title and the image.
//!
//! The font is embedded and text, lines and compression are all Rust, so a chart looks the same on any machine.

use std::sync::LazyLock;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{ReportError, Result};

/// Size of a chart in pixels.
pub const WIDTH: u32 = 1200;
pub const HEIGHT: u32 = 750;

/// Charts are drawn this many times larger, then averaged down: that smooths every edge.
const OVERSAMPLE: u32 = 3;

pub const TEXT: RGBColor = RGBColor(31, 41, 55);
pub const MUTED: RGBColor = RGBColor(75, 85, 99);
pub const GRID: RGBColor = RGBColor(229, 231, 235);
pub const AXIS: RGBColor = RGBColor(156, 163, 175);

/// From the palette of Okabe and Ito, <https://jfly.uni-koeln.de/color/>: readers who are colour-blind tell them apart.
pub const COLOURS: [RGBColor; 4] =
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

/// Free space at the left and the right edge, in pixels of the finished chart.
pub const MARGIN: i32 = 40;

/// Where the title's line stands, below the upper edge.
pub const TITLE_MIDDLE: i32 = 46;

/// Text that begins at its anchor.
pub const LEFT: Pos = Pos { h_pos: HPos::Left, v_pos: VPos::Center };

/// Text that ends at its anchor.
pub const RIGHT: Pos = Pos { h_pos: HPos::Right, v_pos: VPos::Center };

pub type DrawResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// A chart of 1200 x 750 pixels with a title at the left of its header, as a PNG file's bytes. `draw` gets the header and
/// what is below.
pub fn chart(title: &str, draw: impl FnOnce(&Area, &Area) -> DrawResult<()>) -> Result<Vec<u8>> {
    let encoded = || {
        let pixels = render(title, draw)?;
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(file)
    };
    encoded().map_err(|reason: Box<dyn std::error::Error>| ReportError::Plot {
        title: title.to_string(),
        reason: reason.to_string(),
    })
}

/// The chart's RGB bytes, `[HEIGHT, WIDTH, 3]`.
fn render(title: &str, draw: impl FnOnce(&Area, &Area) -> DrawResult<()>) -> DrawResult<Vec<u8>> {
    let size = (WIDTH * OVERSAMPLE, HEIGHT * OVERSAMPLE);
    let mut canvas = vec![0; (size.0 * size.1 * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut canvas, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (header, body) = root.split_vertically(px(84));
        let style = text(30, TEXT, FontStyle::Bold)?.pos(LEFT);
        header.draw_text(title, &style, (px(MARGIN), px(TITLE_MIDDLE) + rise(30)))?;
        draw(&header, &body)?;
        root.present()?;
    }
    Ok(downsample(&canvas))
}

/// How far above its anchor plotters sets the middle of Inter's capitals and digits at this text size.
pub const fn rise(text_size: i32) -> i32 {
    px(text_size) / 5
}

/// A length in pixels of the finished chart, as pixels of the canvas.
pub const fn px(length: i32) -> i32 {
    length * OVERSAMPLE as i32
}

pub fn text(size: i32, colour: RGBColor, style: FontStyle) -> DrawResult<TextStyle<'static>> {
    let family = FONT.clone()?;
    let font = FontDesc::new(FontFamily::Name(family), f64::from(px(size)), style);
    Ok(font.color(&colour))
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

/// Decodes a chart, checks its size, and gives its RGB bytes.
#[cfg(test)]
pub fn pixels(image: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(image)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (WIDTH, HEIGHT, png::ColorType::Rgb));
    assert_eq!(pixels[..3], [255; 3], "the background is white");
    pixels
}

/// The number of pixels of each colour of [`COLOURS`] in a chart.
#[cfg(test)]
pub fn colours_in(image: &[u8]) -> [usize; 4] {
    let pixels = pixels(image);
    COLOURS.map(|RGBColor(r, g, b)| pixels.chunks_exact(3).filter(|pixel| *pixel == [r, g, b]).count())
}
