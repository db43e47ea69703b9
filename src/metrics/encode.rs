//! Families of metrics that are put together when somebody asks.
#![forbid(unsafe_code)]

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The name, the meaning, and the unit (which is added to the name).
#[derive(Clone, Copy, Debug)]
pub struct About(pub &'static str, pub &'static str, pub Option<&'static str>);

impl About {
    /// Writes the head of a family of this type, and what `samples` makes.
    pub fn write(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        kind: MetricType,
        samples: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let About(name, help, unit) = self;
        let unit = unit.map(|unit| Unit::Other(unit.into()));
        samples(&mut encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    /// A gauge without labels.
    pub fn gauge(self, encoder: &mut DescriptorEncoder<'_>, value: f64) -> fmt::Result {
        self.write(encoder, MetricType::Gauge, |metric| {
            metric.encode_gauge(&value)
        })
    }

    /// A gauge with a value for each set of labels.
    pub fn gauges<L: EncodeLabelSet>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        self.write(encoder, MetricType::Gauge, |metric| {
            samples
                .into_iter()
                .try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
        })
    }

    /// A counter of whole things with a value for each set of labels.
    pub fn counters<L: EncodeLabelSet>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        self.write(encoder, MetricType::Counter, |metric| {
            samples.into_iter().try_for_each(|(labels, value)| {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, u64, f64>(&value, None)
            })
        })
    }

    /// A counter of seconds with a value for each set of labels.
    pub fn seconds<L: EncodeLabelSet>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        self.write(encoder, MetricType::Counter, |metric| {
            samples.into_iter().try_for_each(|(labels, value)| {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, f64, f64>(&value, None)
            })
        })
    }
}
