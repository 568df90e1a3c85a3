//! The timeline of a run as one SVG: faults, leader, throughput, errors, latency, bytes by distance and nodes over one axis.
//!
//! **Invariants.** All panels share the axis of time; a fault's band crosses all of them. Nothing is told by colour alone: lines
//! differ in their dashes, areas in their order and their names, and everything is also in tables. Texts are escaped.

use std::collections::BTreeMap;

use super::{
    lanes::{self, Lane, Span},
    numbers::{self, escape},
    series::{self, Bin},
};
use crate::record::Run;

/// Height of one lane of faults.
const LANE: f64 = 20.0;
/// Height of a line of words.
const LINE: f64 = 17.0;
/// Pixels of one letter at 12 pixels.
const LETTER: f64 = 6.9;
/// Names of the four lines of latency.
const LATENCIES: [&str; 4] = ["write p50", "write p99", "read p50", "read p99"];
/// Names of the bands of distance, the closest to loss first.
const DISTANCES: [&str; 4] = ["no further loss", "1 more", "2 more", "3 or more"];

/// How large a drawing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Distinguishes identifiers of two drawings on one page.
    pub name: &'static str,
    /// Pixels.
    pub width: f64,
    /// Pixels left of the plots.
    pub gutter: f64,
    /// Most bins.
    pub bins: usize,
    /// Most labels on the axis of time.
    pub ticks: u64,
    /// Kinds of faults are named above their lanes, not beside.
    pub narrow: bool,
}

/// For screens and paper.
pub(super) const WIDE: Size = Size { name: "wide", width: 1120.0, gutter: 150.0, bins: 320, ticks: 12, narrow: false };
/// For phones.
pub(super) const NARROW: Size = Size { name: "narrow", width: 400.0, gutter: 52.0, bins: 115, ticks: 5, narrow: true };

/// A drawing in the making.
struct Drawing<'a> {
    run: &'a Run,
    bins: Vec<Bin>,
    span: Span,
    size: Size,
    out: String,
    /// Where the next panel begins.
    y: f64,
}

/// The drawing and the bins it shows.
pub(super) fn timeline(run: &Run, size: Size) -> (String, Vec<Bin>) {
    let span = Span { left: size.gutter, right: size.width - 14.0, end_ms: lanes::end_ms(run) };
    let bins = series::bins(&run.samples, size.bins);
    let mut drawing = Drawing { run, bins, span, size, out: String::new(), y: 4.0 };
    let lanes = lanes::lanes(&run.faults, span, LETTER);
    let fault_lanes = drawing.measured(|it| it.fault_lanes(&lanes));
    let panels = drawing.measured(|it| {
        it.leader();
        it.throughput();
        it.errors();
        it.latency();
        it.distance();
        it.nodes();
    });
    let bottom = drawing.y;
    let bands = drawing.measured(|it| it.bands(bottom));
    let axis = drawing.measured(|it| it.axis(bottom));
    let height = drawing.y + 6.0;
    let name = size.name;
    let svg = format!(
        "<svg class=\"{name}\" viewBox=\"0 0 {} {height:.0}\" width=\"{}\" height=\"{height:.0}\" role=\"img\" tabindex=\"0\" \
         aria-labelledby=\"{name}-title {name}-about\" data-left=\"{}\" data-right=\"{}\" data-end=\"{}\">\
         <title id=\"{name}-title\">Timeline of {}</title><desc id=\"{name}-about\">{}</desc>\
         <defs><pattern id=\"{name}-hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" class=\"hatch-ground\"/>\
         <rect width=\"2\" height=\"6\" class=\"hatch-line\"/></pattern></defs>{bands}{axis}{fault_lanes}{panels}\
         <line class=\"cross\" y1=\"0\" y2=\"{bottom:.0}\" visibility=\"hidden\"/></svg>",
        size.width,
        size.width,
        span.left,
        span.right,
        span.end_ms,
        escape(&run.scenario),
        about(run),
    );
    (svg, drawing.bins)
}

/// The drawing in words, for those who do not see it.
fn about(run: &Run) -> String {
    format!(
        "Over {}: faults as bars, who led, writes and reads per second, errors, latency on a logarithmic scale, bytes by how many \
         further losses they survive, nodes that answered. The same figures are in the tables below.",
        numbers::lasted(lanes::end_ms(run))
    )
}

/// A vertical scale of one panel.
#[derive(Clone, Copy)]
struct Scale {
    top: f64,
    bottom: f64,
    highest: f64,
    /// The decimal power at the bottom of a logarithmic scale.
    lowest_power: Option<i32>,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let part = match self.lowest_power {
            None => value / self.highest,
            Some(lowest) => {
                let lowest = f64::from(lowest);
                (value.max(1e-9).log10() - lowest) / (self.highest.log10() - lowest)
            }
        };
        self.bottom - (self.bottom - self.top) * part.clamp(0.0, 1.0)
    }
}

/// A round number that is not below `value`, whose half is round too.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|round| *round >= value * 0.999)
        .unwrap_or(value)
}

/// A round number of bytes that is not below `value`.
fn round_up_bytes(value: f64) -> f64 {
    let unit = 1024_f64.powf((value.max(1.0).log2() / 10.0).floor());
    let scaled = value / unit;
    let round = if scaled > 1000.0 { 1024.0 } else { round_up(scaled) };
    round * unit
}

impl Drawing<'_> {
    /// What `draw` adds, taken out again.
    fn measured(&mut self, draw: impl FnOnce(&mut Self)) -> String {
        draw(self);
        std::mem::take(&mut self.out)
    }

    fn add(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn text(&mut self, class: &str, x: f64, y: f64, words: &str) {
        self.add(&format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(words)));
    }

    /// Heading of a panel with its legend; returns where its plot begins.
    fn heading(&mut self, title: &str, legend: &[(&str, &str)]) {
        self.y += 16.0;
        let left = if self.size.narrow { 2.0 } else { self.span.left };
        self.text("head", left, self.y + 12.0, title);
        let mut x = left + title.chars().count() as f64 * (LETTER + 0.9) + 16.0;
        for (name, class) in legend {
            let width = name.chars().count() as f64 * LETTER + 22.0 + 12.0;
            if x + width > self.span.right + 14.0 {
                x = left;
                self.y += LINE;
            }
            let y = self.y + 8.0;
            let key = if class.contains("area") || class.contains("bar") {
                format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"16\" height=\"10\"/>", y - 5.0)
            } else {
                format!("<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\"/>", x + 16.0)
            };
            self.add(&key);
            self.text("key", x + 22.0, self.y + 12.0, name);
            x += width;
        }
        self.y += LINE + 7.0;
    }

    /// The frame of a plot of `height` with labelled lines at `marks`.
    fn frame(&mut self, height: f64, highest: f64, lowest_power: Option<i32>, marks: &[(f64, String)]) -> Scale {
        let scale = Scale { top: self.y, bottom: self.y + height, highest, lowest_power };
        let (left, right) = (self.span.left, self.span.right);
        for (value, label) in marks {
            let y = scale.at(*value);
            self.add(&format!("<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"));
            self.text("tick end", left - 6.0, y + 4.0, label);
        }
        self.y += height;
        scale
    }

    fn linear(&mut self, height: f64, highest: f64, shown: impl Fn(f64) -> String) -> Scale {
        let marks = [0.0, 0.5, 1.0].map(|part| (part * highest, shown(part * highest)));
        self.frame(height, highest, None, &marks)
    }

    /// Says that there is nothing to draw.
    fn nothing(&mut self, scale: Scale, words: &str) {
        let (x, y) = (f64::midpoint(self.span.left, self.span.right), f64::midpoint(scale.top, scale.bottom));
        self.text("none", x, y + 4.0, words);
    }

    fn fault_lanes(&mut self, lanes: &[Lane<'_>]) {
        self.heading("Faults", &[]);
        if lanes.is_empty() {
            self.text("key", self.span.left, self.y + 12.0, "none");
            self.y += LANE;
        }
        for lane in lanes {
            if self.size.narrow && !lane.name.is_empty() {
                self.text("lane", 2.0, self.y + 12.0, lane.name);
                self.y += LINE;
            } else if !lane.name.is_empty() {
                let name = shortened(lane.name, self.size.gutter - 12.0);
                self.text("lane end", self.span.left - 8.0, self.y + 13.0, &name);
            }
            for bar in &lane.bars {
                let fault = bar.fault;
                let lasted = fault.ended_ms.map_or("to the end".to_owned(), |end| {
                    format!("for {}", numbers::lasted(end.saturating_sub(fault.began_ms)))
                });
                let title = format!("{}: {}, at {} {lasted}", fault.number, fault.what, numbers::clock(fault.began_ms));
                let open = if fault.ended_ms.is_none() { " open" } else { "" };
                self.add(&format!(
                    "<g class=\"fault\"><title>{}</title><rect class=\"fault-bar{open}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
                     height=\"{:.1}\" rx=\"2\"/>",
                    escape(&title),
                    bar.from,
                    self.y + 2.0,
                    bar.to - bar.from,
                    LANE - 4.0
                ));
                let class = if bar.label_at < bar.to { "label in" } else { "label" };
                if !bar.label.is_empty() {
                    self.text(class, bar.label_at, self.y + 14.0, &bar.label);
                }
                self.add("</g>");
            }
            self.y += LANE;
        }
    }

    /// Behind everything: when something was wrong.
    fn bands(&mut self, bottom: f64) {
        let span = self.span;
        if let Some(ended_ms) = self.run.load_ended_ms.filter(|ended_ms| *ended_ms < span.end_ms) {
            let (from, height) = (span.at(ended_ms), bottom - 30.0);
            let width = span.right - from;
            self.add(&format!(
                "<rect class=\"tail\" x=\"{from:.1}\" y=\"30\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            ));
            self.text("tick end", span.right, 24.0, "sessions ended: last reads and proof");
        }
        for fault in &self.run.faults {
            let from = span.at(fault.began_ms);
            let to = span.at(fault.ended_ms.unwrap_or(span.end_ms)).max(from + 1.0);
            let band = format!(
                "<rect class=\"band\" x=\"{from:.1}\" y=\"30\" width=\"{:.1}\" height=\"{:.1}\"/>",
                to - from,
                bottom - 30.0
            );
            self.add(&band);
        }
    }

    fn axis(&mut self, bottom: f64) {
        let step = step_ms(self.span.end_ms, self.size.ticks);
        for number in 0..=self.span.end_ms / step {
            let at = number * step;
            let x = self.span.at(at);
            self.add(&format!(
                "<line class=\"grid time\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"30\" y2=\"{:.1}\"/>",
                bottom + 5.0
            ));
            let near_the_edge = x + 18.0 > self.size.width;
            self.text(if near_the_edge { "tick end" } else { "tick mid" }, x, bottom + 18.0, &numbers::clock(at));
        }
        self.y = bottom + 22.0;
    }

    fn leader(&mut self) {
        self.heading("Leader", &[]);
        let sites: Vec<&str> =
            self.run.nodes.iter().map(|node| node.site.as_str()).fold(Vec::new(), |mut sites, site| {
                if !sites.contains(&site) {
                    sites.push(site);
                }
                sites
            });
        let site_of: BTreeMap<&str, usize> = (self.run.nodes.iter())
            .map(|node| (node.name.as_str(), sites.iter().position(|site| *site == node.site).unwrap_or(0)))
            .collect();
        let mut changes = self.run.leaders.clone();
        changes.sort_by_key(|change| change.at_ms);
        if changes.is_empty() {
            self.text("key", self.span.left, self.y + 13.0, "not recorded");
        }
        let ends: Vec<u64> = changes.iter().skip(1).map(|next| next.at_ms).chain([self.span.end_ms]).collect();
        for (change, end_ms) in changes.iter().zip(ends) {
            let (from, to) = (self.span.at(change.at_ms), self.span.at(end_ms));
            let name = change.node.as_deref().unwrap_or("nobody");
            let site = change.node.as_deref().and_then(|node| site_of.get(node)).map_or(0, |site| site % 6);
            let fill = match change.node {
                Some(_) => format!("class=\"lead site-{site}\""),
                None => format!("class=\"lead\" fill=\"url(#{}-hatch)\"", self.size.name),
            };
            let title = format!(
                "{name} from {} for {}, term {}",
                numbers::clock(change.at_ms),
                numbers::lasted(end_ms.saturating_sub(change.at_ms)),
                change.term
            );
            self.add(&format!(
                "<g><title>{}</title><rect {fill} x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\"/>",
                escape(&title),
                self.y,
                (to - from).max(1.0)
            ));
            if name.chars().count() as f64 * LETTER + 8.0 <= to - from {
                self.text(if change.node.is_some() { "label in" } else { "label" }, from + 4.0, self.y + 13.5, name);
            }
            self.add("</g>");
        }
        self.y += 18.0;
    }

    fn throughput(&mut self) {
        let legend = [("writes", "line write"), ("reads", "line read")];
        self.heading("Operations per second", &legend);
        let highest = self.bins.iter().map(|bin| bin.writes.highest.max(bin.reads.highest)).fold(0.0, f64::max);
        let scale = self.linear(120.0, round_up(highest.max(2.0)), numbers::trimmed);
        if self.bins.is_empty() {
            self.nothing(scale, "nothing was measured");
        }
        for (class, part) in
            [("read", (|bin: &Bin| bin.reads) as fn(&Bin) -> series::Rate), ("write", |bin| bin.writes)]
        {
            let low: Vec<f64> = self.bins.iter().map(|bin| scale.at(part(bin).lowest)).collect();
            let high: Vec<f64> = self.bins.iter().map(|bin| scale.at(part(bin).highest)).collect();
            if low != high {
                self.steps_between(&format!("spread {class}"), &low, &high);
            }
            let mean: Vec<Option<f64>> = self.bins.iter().map(|bin| Some(scale.at(part(bin).mean))).collect();
            self.steps(&format!("line {class}"), &mean);
        }
    }

    fn errors(&mut self) {
        let legend =
            [("writes refused", "bar refused"), ("writes unknown", "bar unknown"), ("reads failed", "bar failed")];
        let each = self.bins.first().map_or(1000, |bin| bin.to_ms - bin.from_ms);
        self.heading(&format!("Errors per {}", numbers::lasted(each.max(1)).replace(".0", "")), &legend);
        let highest = self.bins.iter().map(|bin| bin.errors.iter().sum::<u64>()).max().unwrap_or(0);
        let scale = self.linear(60.0, round_up(highest.max(2) as f64), numbers::trimmed);
        if highest == 0 {
            self.nothing(scale, "no errors");
        }
        let mut bars = String::new();
        for bin in &self.bins {
            let (from, to) = (self.span.at(bin.from_ms), self.span.at(bin.to_ms));
            let mut below = 0;
            for (errors, class) in bin.errors.iter().zip(["refused", "unknown", "failed"]) {
                if *errors > 0 {
                    let (low, high) = (scale.at(below as f64), scale.at((below + errors) as f64));
                    bars.push_str(&format!(
                        "<rect class=\"bar {class}\" x=\"{from:.1}\" y=\"{high:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                        (to - from).max(1.0),
                        low - high
                    ));
                    below += errors;
                }
            }
        }
        self.add(&bars);
    }

    fn latency(&mut self) {
        let classes = ["line write", "line write p99", "line read", "line read p99"];
        let legend: Vec<(&str, &str)> = LATENCIES.into_iter().zip(classes).collect();
        self.heading("Latency, logarithmic", &legend);
        let values = || self.bins.iter().flat_map(|bin| bin.latency).flatten().filter(|value| *value > 0.0);
        let lowest = values().fold(f64::INFINITY, f64::min);
        let highest = values().fold(0.0, f64::max);
        if highest <= 0.0 {
            let scale = self.frame(60.0, 1.0, None, &[]);
            return self.nothing(scale, "nothing was answered");
        }
        let power = |value: f64| (-3..=8).rev().find(|power| 10_f64.powi(*power) <= value * 1.001).unwrap_or(-3);
        let lowest = power(lowest);
        let top = (power(highest * 0.998) + 1).max(lowest + 1);
        let marks: Vec<(f64, String)> =
            (lowest..=top).map(|power| 10_f64.powi(power)).map(|value| (value, numbers::latency(value))).collect();
        let scale = self.frame(130.0, 10_f64.powi(top), Some(lowest), &marks);
        for (at, class) in classes.into_iter().enumerate() {
            let points: Vec<Option<(f64, f64)>> = (self.bins.iter())
                .map(|bin| {
                    let middle = f64::midpoint(self.span.at(bin.from_ms), self.span.at(bin.to_ms));
                    bin.latency[at].map(|value| (middle, scale.at(value)))
                })
                .collect();
            self.line(class, &points);
        }
    }

    fn distance(&mut self) {
        let classes = ["area near-0", "area near-1", "area near-2", "area near-3"];
        let mut legend: Vec<(&str, &str)> = DISTANCES.into_iter().zip(classes).collect();
        let below = self.bins.iter().filter_map(|bin| bin.below_contract).max();
        if below.is_some() {
            legend.push(("below contract", "line below"));
        }
        let unreadable = self.bins.iter().filter_map(|bin| bin.unreadable).max().filter(|bytes| *bytes > 0);
        if unreadable.is_some() {
            legend.push(("cannot be read", "line unreadable"));
        }
        self.heading("Bytes by further losses survived", &legend);
        let highest = self.bins.iter().filter_map(|bin| bin.by_distance).map(|bytes| bytes.iter().sum::<u64>()).max();
        let Some(highest) =
            highest.map(|bytes| bytes.max(below.unwrap_or(0)).max(unreadable.unwrap_or(0))).filter(|bytes| *bytes > 0)
        else {
            let scale = self.frame(60.0, 1.0, None, &[]);
            return self.nothing(scale, "not told by the cluster");
        };
        let scale = self.linear(110.0, round_up_bytes(highest as f64), |value| {
            let text = format!("{value:.0}").parse::<u64>().map_or(String::new(), numbers::bytes);
            text.replace(".0 ", " ")
        });
        // Each stretch for which the cluster told its bytes, drawn by itself.
        let told: Vec<Bin> = self.bins.clone();
        for stretch in told.split(|bin| bin.by_distance.is_none()).filter(|stretch| !stretch.is_empty()) {
            let mut low: Vec<u64> = vec![0; stretch.len()];
            for (at, class) in classes.into_iter().enumerate() {
                let high: Vec<u64> = (stretch.iter().zip(&low))
                    .map(|(bin, low)| low + bin.by_distance.map_or(0, |bytes| bytes[at]))
                    .collect();
                if high != low {
                    self.area(class, stretch, &low, &high, scale);
                }
                low = high;
            }
        }
        let line: Vec<Option<f64>> =
            told.iter().map(|bin| bin.below_contract.map(|bytes| scale.at(bytes as f64))).collect();
        self.steps("line below", &line);
        if unreadable.is_some() {
            let line = told.iter().map(|bin| bin.unreadable.map(|bytes| scale.at(bytes as f64)));
            self.steps("line unreadable", &line.collect::<Vec<_>>());
        }
    }

    fn nodes(&mut self) {
        self.heading("Nodes that answered", &[]);
        let all = self.run.nodes.len().max(1) as f64;
        let most = self.bins.iter().filter_map(|bin| bin.nodes_answering).map(|nodes| nodes as f64).fold(all, f64::max);
        let marks = [(0.0, "0".to_owned()), (all, numbers::trimmed(all))];
        let scale = self.frame(44.0, most, None, &marks);
        let values: Vec<Option<f64>> =
            self.bins.iter().map(|bin| bin.nodes_answering.map(|nodes| scale.at(nodes as f64))).collect();
        self.steps("line nodes", &values);
    }

    /// A line that stays level over each bin and is broken where a value is absent.
    fn steps(&mut self, class: &str, values: &[Option<f64>]) {
        let mut path = String::new();
        let mut down = false;
        for (bin, y) in self.bins.iter().zip(values) {
            let Some(y) = y else {
                down = false;
                continue;
            };
            let (from, to) = (self.span.at(bin.from_ms), self.span.at(bin.to_ms));
            let begin = if down { format!("V{y:.1}") } else { format!("M{from:.1} {y:.1}") };
            path.push_str(&format!("{begin}H{to:.1}"));
            down = true;
        }
        if !path.is_empty() {
            self.add(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
    }

    /// What lies between two such lines.
    fn steps_between(&mut self, class: &str, low: &[f64], high: &[f64]) {
        let there: String = (self.bins.iter().zip(high))
            .map(|(bin, y)| format!("L{:.1} {y:.1}H{:.1}", self.span.at(bin.from_ms), self.span.at(bin.to_ms)))
            .collect();
        let back: String = (self.bins.iter().zip(low).rev())
            .map(|(bin, y)| format!("L{:.1} {y:.1}H{:.1}", self.span.at(bin.to_ms), self.span.at(bin.from_ms)))
            .collect();
        self.add(&format!("<path class=\"{class}\" d=\"M{}{back}Z\"/>", there.trim_start_matches('L')));
    }

    fn area(&mut self, class: &str, bins: &[Bin], low: &[u64], high: &[u64], scale: Scale) {
        let edge = |bytes: u64, from: u64, to: u64| {
            format!("L{:.1} {:.1}H{:.1}", self.span.at(from), scale.at(bytes as f64), self.span.at(to))
        };
        let there: String = bins.iter().zip(high).map(|(bin, it)| edge(*it, bin.from_ms, bin.to_ms)).collect();
        let back: String = bins.iter().zip(low).rev().map(|(bin, it)| edge(*it, bin.to_ms, bin.from_ms)).collect();
        let path = format!("<path class=\"{class}\" d=\"M{}{back}Z\"/>", there.trim_start_matches('L'));
        self.add(&path);
    }

    /// A line through points, broken where one is absent; a point with no neighbour is a dot.
    fn line(&mut self, class: &str, points: &[Option<(f64, f64)>]) {
        let mut path = String::new();
        for stretch in points.split(Option::is_none) {
            for (at, (x, y)) in stretch.iter().flatten().enumerate() {
                path.push_str(&format!("{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' }));
            }
            if stretch.len() == 1 {
                path.push_str("h0.01");
            }
        }
        if !path.is_empty() {
            self.add(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
    }
}

/// At most so many pixels of a name.
fn shortened(name: &str, pixels: f64) -> String {
    if name.chars().count() as f64 * LETTER <= pixels {
        return name.to_owned();
    }
    let mut kept = 0.0;
    let short: String = name
        .chars()
        .take_while(|_| {
            kept += LETTER;
            kept + LETTER <= pixels
        })
        .collect();
    format!("{short}…")
}

/// Distance of two labels of the axis of time.
fn step_ms(end_ms: u64, most: u64) -> u64 {
    const STEPS_S: [u64; 15] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400];
    let fits = |step: &u64| end_ms / (step * 1000) <= most;
    STEPS_S.into_iter().find(fits).map_or((end_ms / most.max(1)).max(1), |step| step * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_figures() {
        let rounds = [0.0, 0.65, 1.0, 13.0, 21.0, 26.0, 99.0, 100.0, 101.0].map(round_up);
        assert_eq!(rounds, [1.0, 0.8, 1.0, 20.0, 30.0, 30.0, 100.0, 100.0, 200.0]);
        let mebi = 1024.0 * 1024.0;
        assert!((round_up_bytes(310.0 * mebi) - 400.0 * mebi).abs() < 1.0);
        assert!((round_up_bytes(1010.0 * mebi) - 1024.0 * mebi).abs() < 1.0);
    }

    #[test]
    fn the_axis_of_time_has_few_labels_however_long_a_run_is() {
        for end_ms in [1000, 59_000, 300_000, 3_600_000, 86_400_000, 864_000_000] {
            for most in [5, 12] {
                let step = step_ms(end_ms, most);
                assert!((1..=most + 1).contains(&(end_ms / step)), "{end_ms} by {step}");
            }
        }
    }

    #[test]
    fn a_logarithmic_scale_gives_each_decade_the_same_height() {
        let scale = Scale { top: 0.0, bottom: 100.0, highest: 1000.0, lowest_power: Some(-1) };
        let heights = [0.1, 1.0, 10.0, 100.0, 1000.0].map(|value| scale.at(value).round());
        assert_eq!(heights, [100.0, 75.0, 50.0, 25.0, 0.0]);
        assert!((scale.at(0.0) - 100.0).abs() < 1e-9, "what is below stays inside");
    }
}
