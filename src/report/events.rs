//! TensorBoard's event files: records with checksums, each with a `tensorflow.Event`. Field numbers: `event.proto` and
//! `summary.proto` of the TensorBoard project; records: `lib/io/record_writer.h` of TensorFlow's.

use prost::Message;

/// What [`SessionLog::status`] is for a process that starts, or starts again.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// In seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The beginning of a file, at a time in seconds since 1970, of a process whose first step is `step`: what other files of the
/// folder tell of that and later ones doesn't count.
pub fn beginning(wall_time: f64, step: u64) -> Vec<u8> {
    // From this version on, what counts is decided by `session_log`.
    let version = Event { wall_time, file_version: Some("brain.Event:2".to_owned()), ..Event::default() };
    let session_log = Some(SessionLog { status: START });
    let start = Event { wall_time, step: step as i64, session_log, ..Event::default() };
    [record(&version), record(&start)].concat()
}

/// Numbers of a step, by name.
pub fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let value =
        |(tag, value): &(&str, f64)| Value { tag: (*tag).to_owned(), simple_value: Some(*value as f32) };
    let summary = Some(Summary { value: values.iter().map(value).collect() });
    record(&Event { wall_time, step: step as i64, summary, ..Event::default() })
}

/// Length and bytes, each with its checksum, little-endian.
fn record(event: &Event) -> Vec<u8> {
    let bytes = event.encode_to_vec();
    let length = (bytes.len() as u64).to_le_bytes();
    let parts = [&length[..], &checksum(&length), &bytes, &checksum(&bytes)];
    parts.concat()
}

/// CRC-32C, rotated and shifted so that one of bytes that hold one is no other's.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by torch 2.15.0 and tensorboard 2.21.0:
    ///
    /// ```python
    /// w = torch.utils.tensorboard.SummaryWriter("torch_events")
    /// for step, loss in [(0, 0.0), (1, 1.5), (2, -0.25), (300, math.inf)]:
    ///     w.add_scalar("loss", loss, step, walltime=1700000000.5 + step)
    /// w.add_scalar("é/ü", 3.0, 2**40, walltime=1700000000.25)
    /// w.close()
    /// ```
    const TORCH: &[u8] = include_bytes!("../../tests/fixtures/torch.tfevents");

    #[test]
    fn records_are_those_of_torch_byte_for_byte() {
        let loss = |step: u64, loss| scalars(1_700_000_000.5 + step as f64, step, &[("loss", loss)]);
        let records = [loss(0, 0.0), loss(1, 1.5), loss(2, -0.25), loss(300, f64::INFINITY)];
        let records = [records.concat(), scalars(1_700_000_000.25, 1 << 40, &[("é/ü", 3.0)])].concat();
        // The first one tells which program wrote it, too.
        let first = 12 + 0x48 + 4;
        assert_eq!(TORCH[first..], records);
        let version = b"\x1a\x0dbrain.Event:2";
        let has_version = |bytes: &[u8]| bytes.windows(version.len()).any(|window| window == version);
        assert!(has_version(&TORCH[..first]) && has_version(&beginning(1.0, 0)));
    }
}
