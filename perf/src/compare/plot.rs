//! One plot for each group: a bar for each target in each row, with the spread of its rounds.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::Measured;

const WIDTH: u32 = 900;
/// Height of the head, of a bar, and of the space between rows.
const HEAD: u32 = 50;
const BAR: u32 = 22;
const GAP: u32 = 16;
/// Where bars begin and end.
const LEFT: i32 = 320;
const RIGHT: i32 = 760;
const COLOURS: [RGBColor; 4] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(140, 140, 140),
    RGBColor(44, 160, 44),
];

/// Draws rows into a file.
///
/// # Errors
/// It cannot be written.
pub fn bars(file: &Path, title: &str, rows: &[&Measured]) -> Result<()> {
    draw(file, title, rows).map_err(|error| anyhow!("{}: {error}", file.display()))
}

fn draw(
    file: &Path,
    title: &str,
    rows: &[&Measured],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let bars: usize = rows.iter().map(|row| row.peers.len()).sum();
    let height = HEAD + bars as u32 * BAR + rows.len() as u32 * GAP + 10;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let heading = format!("{title}: thousand requests a second, each row to its own scale");
    area.draw(&Text::new(heading, (10, 14), text(18)))?;
    let mut y = HEAD as i32;
    for row in rows {
        let iops = |of: &super::report::OfPeer| of.iops();
        let most = row.peers.iter().filter_map(iops).map(|s| s.max).fold(1.0, f64::max);
        let x = |value: f64| LEFT + ((RIGHT - LEFT) as f64 * value / most) as i32;
        area.draw(&Text::new(row.case.clone(), (10, y + 4), text(14)))?;
        for (at, of) in row.peers.iter().enumerate() {
            let Some(spread) = of.iops() else { continue };
            let colour = COLOURS[at % COLOURS.len()];
            let (top, bottom, middle) = (y + 2, y + BAR as i32 - 2, y + BAR as i32 / 2);
            let bar = [(LEFT, top), (x(spread.median), bottom)];
            area.draw(&Rectangle::new(bar, colour.mix(0.75).filled()))?;
            let whisker = vec![(x(spread.min), middle), (x(spread.max), middle)];
            area.draw(&PathElement::new(whisker, BLACK.stroke_width(1)))?;
            let name = text(14).pos(Pos::new(HPos::Right, VPos::Top));
            area.draw(&Text::new(of.peer.clone(), (LEFT - 8, y + 4), name))?;
            let figure = format!("{:.1}", spread.median / 1000.0);
            area.draw(&Text::new(figure, (RIGHT + 10, y + 4), text(14)))?;
            y += BAR as i32;
        }
        y += GAP as i32;
    }
    area.present()?;
    Ok(())
}
