//! Colours of a plot, each by what it is for, in light and in dark.
//!
//! The library writes a colour into each element. A style sheet in the same file replaces the light ones by the dark ones where the
//! reader's system is dark, so each role has a light colour that no other has.

use std::fmt::Write;

use plotters::style::RGBColor;

/// What something is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Behind everything.
    Surface,
    /// Titles.
    Ink,
    /// Labels and notes.
    Muted,
    /// Lines behind the data.
    Grid,
    /// Where the data ends.
    Axis,
    /// Data; the number chooses the colour.
    Series(usize),
    /// What has no colour of its own.
    Other,
}

const SURFACE: [u32; 2] = [0xfcfcfb, 0x1a1a19];
const INK: [u32; 2] = [0x0b0b0b, 0xffffff];
const MUTED: [u32; 2] = [0x52514e, 0xc3c2b7];
const GRID: [u32; 2] = [0xe1e0d9, 0x2c2c2a];
const AXIS: [u32; 2] = [0xc3c2b6, 0x4a4a47];
const OTHER: [u32; 2] = [0x898781, 0x8a8882];
/// Told apart also by who sees some colours alike, in this order.
const SERIES: [[u32; 2]; 8] = [
    [0x2a78d6, 0x3987e5],
    [0x1baf7a, 0x199e70],
    [0xeda100, 0xc98500],
    [0x008300, 0x3fa33f],
    [0x4a3aa7, 0x9085e9],
    [0xe34948, 0xe66767],
    [0xe87ba4, 0xd55181],
    [0xeb6834, 0xd95926],
];

impl Role {
    /// How many series have a colour of their own.
    pub const SERIES: usize = SERIES.len();

    fn pair(self) -> [u32; 2] {
        match self {
            Role::Surface => SURFACE,
            Role::Ink => INK,
            Role::Muted => MUTED,
            Role::Grid => GRID,
            Role::Axis => AXIS,
            Role::Other => OTHER,
            Role::Series(index) => SERIES.get(index).copied().unwrap_or(OTHER),
        }
    }

    /// Its colour in light.
    pub fn color(self) -> RGBColor {
        let [_, red, green, blue] = self.pair()[0].to_be_bytes();
        RGBColor(red, green, blue)
    }
}

fn all() -> impl Iterator<Item = [u32; 2]> {
    [SURFACE, INK, MUTED, GRID, AXIS, OTHER].into_iter().chain(SERIES)
}

/// The style sheet that makes it dark.
pub fn style() -> String {
    let mut rules = String::new();
    for [light, dark] in all() {
        let _ = write!(
            rules,
            "[fill=\"#{light:06X}\"]{{fill:#{dark:06x}}}[stroke=\"#{light:06X}\"]{{stroke:#{dark:06x}}}"
        );
    }
    // Some draw the file a pixel larger than its last rectangle.
    let [light, dark] = SURFACE;
    format!(
        "<style>svg{{background:#{light:06x}}}@media (prefers-color-scheme: dark) {{svg{{background:#{dark:06x}}}{rules}}}</style>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_roles_share_a_light_colour() {
        let lights: BTreeSet<u32> = all().map(|[light, _]| light).collect();
        assert_eq!(lights.len(), all().count());
    }
}
