//! When checkpoints are made between the ends of epochs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How often a checkpoint is made, beside the one at each epoch's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cadence {
    #[default]
    Epochs,
    /// Each time that this many steps are done.
    Steps(u64),
    /// Once so many minutes have gone by.
    Minutes(u64),
}

impl Cadence {
    /// Whether a checkpoint is due after `steps` steps. Steps are counted alike by all hosts of a slice.
    pub fn is_due_after(self, steps: u64) -> bool {
        matches!(self, Self::Steps(every) if steps.is_multiple_of(every))
    }

    /// Whether one is due `since` the last. Each host has a clock of its own.
    pub fn is_due_since(self, since: Duration) -> bool {
        matches!(self, Self::Minutes(minutes) if since.as_secs() >= minutes.saturating_mul(60))
    }
}

impl fmt::Display for Cadence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epochs => f.write_str("epoch"),
            Self::Steps(steps) => write!(f, "{steps}"),
            Self::Minutes(minutes) => write!(f, "{minutes}m"),
        }
    }
}

impl FromStr for Cadence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, cadence): (_, fn(u64) -> Self) = match text.strip_suffix('m') {
            Some(minutes) => (minutes, Self::Minutes),
            None => (text, Self::Steps),
        };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse::<u64>() {
            Ok(number) if is_number && number > 0 => Ok(cadence(number)),
            _ => Err("expected a number of steps, such as 500, or of minutes, such as 10m".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cadence_is_of_steps_or_of_minutes() {
        for (text, cadence) in [("500", Cadence::Steps(500)), ("10m", Cadence::Minutes(10))] {
            assert_eq!((text.parse(), cadence.to_string()), (Ok(cadence), text.to_owned()));
        }
        for text in ["", "0", "0m", "m", "-5", "+5", "1.5", "5 m", "5s", "epoch", "18446744073709551616"] {
            assert!(text.parse::<Cadence>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_checkpoint_is_due_each_time_that_so_much_is_done() {
        let due = |cadence: Cadence| (1..=12).filter(|step| cadence.is_due_after(*step)).collect::<Vec<_>>();
        assert_eq!(due(Cadence::Steps(5)), [5, 10]);
        assert_eq!((due(Cadence::Minutes(5)), due(Cadence::Epochs)), (vec![], vec![]));
        let since = |cadence: Cadence, seconds| cadence.is_due_since(Duration::from_secs(seconds));
        assert!(!since(Cadence::Minutes(5), 299) && since(Cadence::Minutes(5), 300));
        assert!(!since(Cadence::Minutes(u64::MAX), u64::MAX - 1) && !since(Cadence::Steps(1), 300));
    }
}
