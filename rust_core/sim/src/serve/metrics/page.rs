//! The text format: families one after the other, each with the series of all ranks.

use std::fmt::Write;

use super::Snapshot;
use crate::stats::{Histogram, Stats};

/// A page that grows.
pub(super) struct Page<'a> {
    text: String,
    model: std::borrow::Cow<'a, str>,
    ranks: Vec<Snapshot>,
}

/// Which histogram of a rank.
pub(super) type OfRank = fn(&Stats) -> &Histogram;

/// One label of a series beside its rank and its model.
type Label<'a> = Option<(&'a str, &'a str)>;

// === impl Page ===

impl<'a> Page<'a> {
    pub(super) fn new(model: &'a str, ranks: Vec<Snapshot>) -> Page<'a> {
        let model = if model.contains(['\\', '"', '\n']) {
            model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
        } else {
            model.into()
        };
        Page { text: String::with_capacity(ranks.len() << 15), model, ranks }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// A value of the process as a whole.
    pub(super) fn process(&mut self, name: &str, value: f64) {
        let help = "Start time of the process since unix epoch in seconds.";
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value:?}\n");
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: fn(&Snapshot) -> f64) {
        self.head(name, "gauge", help);
        self.each(|page, rank, of| page.sample(name, Some(rank), None, value(of)));
    }

    /// One gauge per value of a label.
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: fn(&Snapshot) -> Vec<(&'static str, f64)>,
    ) {
        self.head(name, "gauge", help);
        self.each(|page, rank, of| {
            for (word, value) in values(of) {
                page.sample(name, Some(rank), Some((label, word)), value);
            }
        });
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Fn(&Snapshot) -> u64) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        self.each(|page, rank, of| page.sample(&name, Some(rank), None, value(of) as f64));
    }

    /// One counter per value of a label.
    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: fn(&Snapshot) -> Vec<(&'static str, u64)>,
    ) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        self.each(|page, rank, of| {
            for (word, value) in values(of) {
                page.sample(&name, Some(rank), Some((label, word)), value as f64);
            }
        });
    }

    /// The same for counters that know no rank.
    pub(super) fn counters_of_all(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        for &(word, value) in values {
            self.sample(&name, None, Some((label, word)), value as f64);
        }
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, of_rank: OfRank) {
        self.head(name, "histogram", help);
        let (bucket, count, sum) =
            (format!("{name}_bucket"), format!("{name}_count"), format!("{name}_sum"));
        self.each(|page, rank, of| {
            let histogram = of_rank(&of.stats);
            for (bound, below) in histogram.cumulative() {
                let bound =
                    if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
                page.sample(&bucket, Some(rank), Some(("le", &bound)), below as f64);
            }
            page.sample(&count, Some(rank), None, histogram.count() as f64);
            page.sample(&sum, Some(rank), None, histogram.sum());
        });
    }

    /// A gauge that is always 1 and says everything in its labels.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: impl Fn(usize) -> String) {
        self.head(name, "gauge", help);
        for rank in 0..self.ranks.len() {
            let _ = writeln!(self.text, "vllm:{name}{{{}}} 1.0", labels(rank));
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
    }

    fn each(&mut self, mut write: impl FnMut(&mut Self, usize, &Snapshot)) {
        let ranks = std::mem::take(&mut self.ranks);
        ranks.iter().enumerate().for_each(|(rank, of)| write(self, rank, of));
        self.ranks = ranks;
    }

    /// One value. Labels stand in alphabetical order, as the Python client writes them.
    fn sample(&mut self, name: &str, rank: Option<usize>, label: Label<'_>, value: f64) {
        let Page { text, model, .. } = self;
        let _ = write!(text, "vllm:{name}{{");
        if let Some(rank) = rank {
            let _ = write!(text, "engine=\"{rank}\",");
        }
        let _ = match label {
            None => write!(text, "model_name=\"{model}\"}} "),
            Some((key, word)) if key < "model_name" => {
                write!(text, "{key}=\"{word}\",model_name=\"{model}\"}} ")
            }
            Some((key, word)) => write!(text, "model_name=\"{model}\",{key}=\"{word}\"}} "),
        };
        // Debug keeps the `.0` of whole numbers, as Python does.
        let _ = writeln!(text, "{value:?}");
    }
}
