//! Latencies and the observations made of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use muster_bus::message::Observation;

/// Latencies of one kind, in milliseconds.
#[derive(Debug, Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    /// Takes them in.
    pub fn extend(&mut self, more: impl IntoIterator<Item = f64>) {
        self.0.extend(more);
        self.0.sort_by(f64::total_cmp);
    }

    /// The value that `percent` of them do not exceed (nearest rank); `None` of none.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Since then, in milliseconds, to the microsecond.
pub fn ms_since(start: Instant) -> f64 {
    ms(start.elapsed())
}

/// In milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// `part` of `whole` in percent, to two places; 0 of nothing.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    let exact = u32::try_from(part).map_or(f64::MAX, f64::from) / u32::try_from(whole).map_or(f64::MAX, f64::from);
    (exact * 10_000.0).round() / 100.0
}

/// A measurement.
pub fn observation(source: &str, name: &str, value: f64, unit: &str, samples: Option<u64>) -> Observation {
    Observation { name: name.into(), value, unit: unit.into(), samples, at_ms: None, source: source.into() }
}

/// Errors by text, each with how often: at most eight texts.
#[derive(Debug, Default)]
pub struct Errors(BTreeMap<String, u64>);

impl Errors {
    const TEXTS: usize = 8;

    /// Counts one.
    pub fn add(&mut self, text: String) {
        self.add_many(text, 1);
    }

    /// Counts as many of one text.
    pub fn add_many(&mut self, text: String, count: u64) {
        if self.0.len() < Self::TEXTS || self.0.contains_key(&text) {
            *self.0.entry(text).or_default() += count;
        } else {
            *self.0.entry("others".into()).or_default() += count;
        }
    }

    /// All of them.
    pub fn into_map(self) -> BTreeMap<String, u64> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let mut few = Latencies::default();
        assert_eq!(few.percentile(95), None);
        few.extend([3.0, 1.0, 2.0]);
        assert_eq!((few.percentile(50), few.percentile(95)), (Some(2.0), Some(3.0)));
        let mut many = Latencies::default();
        many.extend((1..=100).map(f64::from));
        assert_eq!((many.percentile(50), many.percentile(95), many.count()), (Some(50.0), Some(95.0), 100));
    }

    #[test]
    fn percent_of_nothing_is_not_a_success() {
        assert!(percent(0, 0).abs() < f64::EPSILON);
        assert!((percent(2, 3) - 66.67).abs() < 0.001);
    }

    #[test]
    fn errors_are_bounded() {
        let mut errors = Errors::default();
        (0..20).for_each(|n| errors.add(format!("error {n}")));
        let map = errors.into_map();
        assert_eq!((map.len(), map["others"]), (9, 12));
    }
}
