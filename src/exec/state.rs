//! The arrays that one step leaves to the next.

use std::collections::HashMap;

use super::replicas::{Placed, Replicas};
use super::runtime::{Array, Element};
use super::{Error, Result};
use crate::step::{InputId, LeafId, Port, Signature};

/// Named arrays on the devices: what a step's signature calls its state, or the weights alone.
///
/// A step that fails takes the state that it was given with it: from then on, every use is an error that says so.
pub struct State {
    /// In the signature's order.
    leaves: Vec<(LeafId, Placed)>,
    /// Where each is among them.
    places: HashMap<LeafId, usize>,
    is_lost: bool,
}

impl State {
    /// The state that `signature` takes: `leaf` starts to put each leaf on the replicas, and this waits for all of them.
    ///
    /// # Errors
    /// Those of `leaf`, and of putting them there.
    pub fn start<E: From<Error>>(
        signature: &Signature,
        mut leaf: impl FnMut(&LeafId, &Port<InputId>) -> std::result::Result<Placed, E>,
    ) -> std::result::Result<Self, E> {
        let leaves = signature.leaves().map(|(id, port)| Ok((id.clone(), leaf(id, port)?)));
        let leaves = leaves.collect::<std::result::Result<Vec<_>, E>>()?;
        leaves.iter().flat_map(|(_, placed)| &placed.arrays).try_for_each(Array::wait)?;
        Ok(Self::new(leaves))
    }

    fn new(leaves: Vec<(LeafId, Placed)>) -> Self {
        let places = leaves.iter().enumerate().map(|(place, (id, _))| (id.clone(), place)).collect();
        Self { leaves, places, is_lost: false }
    }

    /// The names of its leaves.
    pub fn ids(&self) -> impl Iterator<Item = &LeafId> {
        self.leaves.iter().map(|(id, _)| id)
    }

    /// The whole of a leaf, row-major, as it is now, however it lies over the replicas. On a slice, one that is dealt out is
    /// asked for by all processes together.
    ///
    /// # Errors
    /// A state that is lost, or a failure of the step that computes it.
    ///
    /// # Panics
    /// If there is no such leaf, or it has other elements.
    pub fn to_host<T: Element>(&self, replicas: &Replicas, id: &LeafId) -> Result<Vec<T>> {
        replicas.to_host(self.get(id)?)
    }

    /// As [`to_host`](Self::to_host), of many leaves of f32: all copies are under way at once, and on a slice one process may
    /// ask for them while the others [`join`](Self::join_all). What an earlier call has
    /// returned for the same leaves may be given as `spare`: its memory is used again.
    pub fn to_host_all<'i>(
        &self,
        replicas: &Replicas,
        ids: impl Iterator<Item = &'i LeafId>,
        spare: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        let spare = spare.into_iter().chain(std::iter::repeat_with(Vec::new));
        let mut reads = ids.zip(spare).map(|(id, spare)| replicas.read(self.get(id)?, spare));
        if replicas.is_shared() {
            // What is gathered takes memory on the devices: no more than one leaf at a time. The others go through all of
            // them, and so does this process, whatever fails.
            let all = reads.map(|read| replicas.join(read?)).collect::<Vec<_>>();
            return all.into_iter().collect();
        }
        let reads = reads.by_ref().collect::<Result<Vec<_>>>()?;
        reads.into_iter().map(|read| replicas.join(read)).collect()
    }

    /// Takes part in [`to_host_all`](Self::to_host_all) of another process.
    pub fn join_all<'i>(&self, replicas: &Replicas, ids: impl Iterator<Item = &'i LeafId>) -> Result<()> {
        let all = ids.map(|id| replicas.join_gather(self.get(id)?)).collect::<Vec<_>>();
        all.into_iter().collect()
    }

    /// A leaf as one local replica has it.
    ///
    /// # Panics
    /// As [`to_host`](Self::to_host), and if there is no such replica.
    pub fn to_host_from<T: Element>(
        &self,
        replicas: &Replicas,
        id: &LeafId,
        replica: usize,
    ) -> Result<Vec<T>> {
        replicas.to_host_from(self.get(id)?, replica)
    }

    /// The weights, also as they are rounded, without the rest, which is freed.
    ///
    /// # Errors
    /// A state that is lost.
    pub fn into_weights(mut self) -> Result<Self> {
        self.check()?;
        self.leaves.retain(|(id, _)| matches!(id, LeafId::Weight(_) | LeafId::Rounded(_)));
        Ok(Self::new(self.leaves))
    }

    pub(super) fn get(&self, id: &LeafId) -> Result<&Placed> {
        self.check()?;
        Ok(self.kept(id))
    }

    /// A leaf that is not taken by a step that replaces others.
    pub(super) fn kept(&self, id: &LeafId) -> &Placed {
        let place = self.places.get(id).unwrap_or_else(|| panic!("the state has no leaf {id}"));
        &self.leaves[*place].1
    }

    fn check(&self) -> Result<()> {
        if self.is_lost { Err(Error::StateLost) } else { Ok(()) }
    }

    /// Takes out, `[local replica][leaf]`, the arrays of what is updated by a step that takes `leaves`; until
    /// [`put`](Self::put), the state is lost.
    ///
    /// # Panics
    /// If the state has other leaves, or in another order.
    pub(super) fn take<'i>(
        &mut self,
        leaves: impl Iterator<Item = &'i LeafId>,
        is_updated: &dyn Fn(&LeafId) -> bool,
        local_replicas: usize,
    ) -> Result<Vec<std::vec::IntoIter<Array>>> {
        self.check()?;
        assert!(self.ids().eq(leaves), "the state is another step's");
        self.is_lost = true;
        let mut lists =
            (0..local_replicas).map(|_| Vec::with_capacity(self.leaves.len())).collect::<Vec<_>>();
        for (_, placed) in self.leaves.iter_mut().filter(|(leaf, _)| is_updated(leaf)) {
            lists.iter_mut().zip(placed.arrays.drain(..)).for_each(|(list, array)| list.push(array));
        }
        Ok(lists.into_iter().map(Vec::into_iter).collect())
    }

    /// Puts the arrays back that a step has returned for `ids`, those that it has taken.
    pub(super) fn put<'i>(&mut self, ids: impl Iterator<Item = &'i LeafId>, lists: Vec<Vec<Array>>) {
        let mut lists = lists.into_iter().map(Vec::into_iter).collect::<Vec<_>>();
        for id in ids {
            let place =
                *self.places.get(id).unwrap_or_else(|| panic!("a step returns {id}, which it doesn't take"));
            self.leaves[place].1.arrays.extend(lists.iter_mut().filter_map(Iterator::next));
        }
        self.is_lost = false;
    }
}
