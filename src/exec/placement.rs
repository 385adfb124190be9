//! Which device runs which replica.

use std::ops::Range;

/// Why replicas can't be placed, or a batch can't be given to them. Each message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("{asked} replicas: {}", expected(*.fewest, *.most))]
    Replicas {
        asked: usize,
        /// As few as leave no host without one.
        fewest: usize,
        /// The number of devices.
        most: usize,
    },
    #[error("process {process} of the slice has none of its {replicas} devices")]
    Idle { process: i32, replicas: usize },
    #[error("a batch of {batch_size} can't be split evenly over {replicas} replicas")]
    Batch { batch_size: usize, replicas: usize },
}

type Result<T> = std::result::Result<T, PlacementError>;

/// How many replicas `most` devices take.
fn expected(fewest: usize, most: usize) -> String {
    match fewest {
        1 => format!("expected 1 to {most}, the number of devices"),
        _ => format!(
            "expected {fewest} to {most}: each host that runs this needs one or more of the {most} devices"
        ),
    }
}

/// One replica on each of some devices, in an order that every process of a slice arrives at by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    device_ids: Vec<i32>,
    local: Range<usize>,
}

impl Placement {
    /// Places `replicas`, or one on each device if `None`, as `process` sees it.
    ///
    /// `devices` are the `(id, process index)` of all devices, those of other processes too, in any order. Replicas
    /// take them by process and then by id, so that those of one process are neighbours.
    ///
    /// # Errors
    /// No replica, more of them than devices, or a process that would have none: it would not take part in a step
    /// that the others wait in.
    pub fn new(devices: &[(i32, i32)], process: i32, replicas: Option<usize>) -> Result<Self> {
        let mut devices = devices.iter().map(|&(id, process)| (process, id)).collect::<Vec<_>>();
        devices.sort_unstable();
        let replicas = replicas.unwrap_or(devices.len());
        // All devices but the last process's, and one of those.
        let last = devices.last().map(|(process, _)| *process);
        let fewest = 1 + devices.iter().take_while(|(process, _)| Some(*process) != last).count();
        if !(fewest..=devices.len()).contains(&replicas) {
            return Err(PlacementError::Replicas { asked: replicas, fewest, most: devices.len() });
        }
        devices.truncate(replicas);
        let start = devices.iter().take_while(|(of, _)| *of < process).count();
        let end = devices.iter().take_while(|(of, _)| *of <= process).count();
        if start == end {
            return Err(PlacementError::Idle { process, replicas });
        }
        Ok(Self { device_ids: devices.into_iter().map(|(_, id)| id).collect(), local: start..end })
    }

    /// Number of replicas, over all processes.
    pub fn replicas(&self) -> usize {
        self.device_ids.len()
    }

    /// The rows of a batch that each replica takes.
    ///
    /// # Errors
    /// A batch that can't be split evenly.
    pub fn rows_per_replica(&self, batch_size: usize) -> Result<usize> {
        let replicas = self.replicas();
        if batch_size == 0 || !batch_size.is_multiple_of(replicas) {
            return Err(PlacementError::Batch { batch_size, replicas });
        }
        Ok(batch_size / replicas)
    }

    /// Id of each replica's device.
    pub fn device_ids(&self) -> &[i32] {
        &self.device_ids
    }

    /// The replicas that this process drives.
    pub fn local(&self) -> Range<usize> {
        self.local.clone()
    }

    /// The `replica`-th of the equal, contiguous parts of `values`.
    ///
    /// # Panics
    /// If they can't be split evenly, or there is no such replica.
    pub fn part<'v, T>(&self, values: &'v [T], replica: usize) -> &'v [T] {
        let replicas = self.replicas();
        assert!(replica < replicas, "replica {replica} of {replicas}");
        assert!(
            values.len().is_multiple_of(replicas),
            "{} values can't be split over {replicas} replicas",
            values.len()
        );
        let length = values.len() / replicas;
        &values[replica * length..(replica + 1) * length]
    }
}
