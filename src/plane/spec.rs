//! What the data plane has to know of a disk, beside its files and its key.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::crypt::Engine;
use crate::engine::SERIAL_BYTES;
use crate::engine::throttle::Limits;
use crate::engine::trouble::OnError;
use crate::store::DirectMode;
use crate::units::SectorSize;

/// A disk as the guest will see it, and where its data is in the data file.
/// Everything was decided and checked by whoever made this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Which volume it is.
    pub uuid: Uuid,
    /// Where the data starts in the data file, in bytes.
    pub data_offset: u64,
    /// Bytes of the data, a multiple of the sector size.
    pub size: u64,
    /// The size of a data unit.
    #[serde(with = "sector_size")]
    pub sector_size: SectorSize,
    /// Added to the sector number for the tweak.
    pub iv_tweak: u64,
    /// Whether a unit whose stored bytes are all zero reads as zeroes.
    pub zero_units: bool,
    /// The cipher engine, as it was chosen for this host.
    #[serde(with = "engine")]
    pub engine: Engine,
    /// Whether the page cache of the host shall be bypassed.
    pub direct: DirectMode,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the guest may give space back.
    pub discard: bool,
    /// What the guest sees as serial number, of at most 20 bytes.
    pub serial: String,
    /// How many virtqueues are offered.
    pub queues: u16,
    /// CPUs that their threads run on, in turns. None is any.
    #[serde(default)]
    pub cpus: Vec<u16>,
    /// The most entries of each.
    pub queue_size: u16,
    /// Whether the guest finds the write cache switched on.
    pub write_cache: bool,
    /// How long an idle queue looks for work, in microseconds.
    pub poll_us: u64,
    /// What the guest may do per second.
    #[serde(default)]
    pub limits: Limits,
    /// What is done when the disk below fails.
    #[serde(default)]
    pub on_error: OnError,
    /// How long an operation is in flight before it is reported, in milliseconds.
    #[serde(default = "stuck_after_ms")]
    pub stuck_after_ms: u64,
}

/// What one of an earlier version says of it, which says nothing.
fn stuck_after_ms() -> u64 {
    30_000
}

impl Spec {
    /// The serial number as virtio-blk has it, padded with zero bytes.
    pub fn serial_bytes(&self) -> [u8; SERIAL_BYTES] {
        let mut serial = [0; SERIAL_BYTES];
        for (byte, digit) in serial.iter_mut().zip(self.serial.bytes()) {
            *byte = digit;
        }
        serial
    }

    /// How long an idle queue looks for work before it sleeps.
    pub fn poll(&self) -> Duration {
        Duration::from_micros(self.poll_us)
    }
}

mod sector_size {
    use super::*;

    pub fn serialize<S: Serializer>(size: &SectorSize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(size.bytes() as u64)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SectorSize, D::Error> {
        let bytes = u64::deserialize(from)?;
        SectorSize::from_bytes(bytes)
            .ok_or_else(|| de::Error::custom(format_args!("there is no sector size {bytes}")))
    }
}

mod engine {
    use super::*;

    pub fn serialize<S: Serializer>(engine: &Engine, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(engine.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Engine, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk of 1 MiB.
    pub fn sample() -> Spec {
        Spec {
            uuid: Uuid::from_u128(7),
            data_offset: 0,
            size: 1 << 20,
            sector_size: SectorSize::B4096,
            iv_tweak: 3,
            zero_units: true,
            engine: Engine::Portable,
            direct: DirectMode::Never,
            read_only: false,
            discard: true,
            serial: "a serial".into(),
            queues: 2,
            cpus: vec![1, 0],
            queue_size: 128,
            write_cache: true,
            poll_us: 50,
            limits: Limits::default(),
            on_error: OnError::Stop,
            stuck_after_ms: 7000,
        }
    }

    #[test]
    fn a_spec_survives_the_way_to_another_process() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), sample());
        for (from, to) in [("4096", "1024"), ("portable", "rot13")] {
            let wrong = text.replace(from, to);
            assert!(serde_json::from_str::<Spec>(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_serial_number_is_padded_and_cut() {
        assert_eq!(
            sample().serial_bytes(),
            *b"a serial\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        let spec = Spec {
            serial: "x".repeat(32),
            ..sample()
        };
        assert_eq!(spec.serial_bytes(), [b'x'; SERIAL_BYTES]);
    }
}
