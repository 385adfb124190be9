//! A thread that commits snapshots while training goes on.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::Scope;
use std::time::Duration;

use super::Result;
use crate::run::{Description, Snapshot, Tensor, Writer};

/// After so long, a wait for a commit is told.
const LATE: Duration = Duration::from_secs(15);

/// One snapshot is committed at a time; the next one waits for it, and then takes over its memory. An error is told at the
/// next call.
pub(super) struct Saver<'s> {
    snapshots: Sender<Snapshot<'s>>,
    /// Of each snapshot, how it ended, and its memory.
    ends: Receiver<(Result<()>, Tensors)>,
    is_busy: bool,
    spare: Tensors,
}

/// Weights and moments.
type Tensors = [Vec<Tensor>; 3];

impl<'s> Saver<'s> {
    /// It ends when it is dropped, and `scope` waits for that.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        writer: &'s mut Writer,
        description: &'s Description,
    ) -> Self
    where
        's: 'scope,
    {
        let (snapshots, received) = channel::<Snapshot<'s>>();
        let (ended, ends) = channel();
        scope.spawn(move || {
            for snapshot in received {
                let end = writer.commit(description, &snapshot).map_err(Into::into);
                let Snapshot { weights, moments: [first, second], .. } = snapshot;
                if ended.send((end, [weights, first, second])).is_err() {
                    return;
                }
            }
        });
        Self { snapshots, ends, is_busy: false, spare: Tensors::default() }
    }

    /// Has a snapshot committed. The one before must be: see [`wait`](Self::wait).
    pub fn save(&mut self, snapshot: Snapshot<'s>) {
        self.is_busy = self.snapshots.send(snapshot).is_ok();
    }

    /// The error of a commit that has failed since the last call.
    pub fn check(&mut self) -> Result<()> {
        if !self.is_busy {
            return Ok(());
        }
        match self.ends.try_recv() {
            Ok((end, spare)) => {
                (self.is_busy, self.spare) = (false, spare);
                end
            }
            // The thread is gone when it has panicked alone, which the scope tells.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(()),
        }
    }

    /// Waits until everything is committed; `late` is told if that takes long.
    ///
    /// # Errors
    /// That of the last commit, unless it was told.
    pub fn wait(&mut self, late: impl FnOnce()) -> Result<()> {
        if !std::mem::take(&mut self.is_busy) {
            return Ok(());
        }
        let ended = match self.ends.recv_timeout(LATE) {
            Err(RecvTimeoutError::Timeout) => {
                late();
                self.ends.recv().ok()
            }
            ended => ended.ok(),
        };
        // The thread is gone when it has panicked alone, which the scope tells.
        let Some((end, spare)) = ended else { return Ok(()) };
        self.spare = spare;
        end
    }

    /// The memory of the last snapshot that is committed, for the next.
    pub fn spare(&mut self) -> Tensors {
        std::mem::take(&mut self.spare)
    }
}
