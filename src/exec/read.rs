//! Arrays from the replicas back to the host, whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;

use super::replicas::{Placed, Replicas};
use super::runtime::{Argument, Array, Compiled, Element, Launch, Readback};
use super::{Error, Result};
use crate::hlo::{Graph, Program};
use crate::shape::Shape;
use crate::step::Layout;

/// What gathers the parts of arrays of these shapes: compiled when it is first needed.
pub(super) type Gathers = Mutex<HashMap<Shape, Compiled>>;

/// The copy of an array to the host that is under way: its parts, in replica order; those that were gathered are one array.
pub(super) struct Read {
    layout: Layout,
    parts: Vec<Readback>,
    /// Memory for what they make.
    spare: Vec<f32>,
}

/// The whole of an array, in the memory of `spare` where parts are put together: of what each replica has, in one array or
/// several, or of the first one where all have the same.
fn whole<T: Pod>(layout: Layout, mut parts: Vec<Vec<T>>, mut spare: Vec<T>) -> Vec<T> {
    match layout {
        Layout::Mirrored => parts.swap_remove(0),
        Layout::Sharded => parts.concat(),
        Layout::Dealt(dealt) => {
            spare.resize(dealt.elements(), T::zeroed());
            let parts = parts.iter().flat_map(|part| part.chunks_exact(dealt.part_elements()));
            parts.enumerate().for_each(|(replica, part)| dealt.collect(part, replica, &mut spare));
            spare
        }
    }
}

impl Replicas {
    /// The whole of an array, row-major.
    ///
    /// # Errors
    /// A failure of the run that computes it; a sharded array of which other processes hold a part.
    pub fn to_host<T: Element>(&self, placed: &Placed) -> Result<Vec<T>> {
        match placed.layout {
            Layout::Mirrored => self.to_host_from(placed, 0),
            Layout::Sharded if self.is_shared() => Err(Error::Elsewhere),
            Layout::Dealt(_) if self.is_shared() => {
                let gathered = self.gather_parts(placed)?;
                let parts = self.waiting("a step", || gathered.to_host())?;
                Ok(whole(placed.layout, vec![parts], vec![]))
            }
            Layout::Sharded | Layout::Dealt(_) => {
                let parts = (0..self.local_count()).map(|replica| self.to_host_from(placed, replica));
                Ok(whole(placed.layout, parts.collect::<Result<Vec<_>>>()?, vec![]))
            }
        }
    }

    /// Starts to copy the whole of an array to the host: into the memory of `spare`, if that is large enough.
    pub(super) fn read(&self, placed: &Placed, spare: Vec<f32>) -> Result<Read> {
        let layout = placed.layout;
        match layout {
            Layout::Mirrored => {
                Ok(Read { layout, parts: vec![placed.arrays[0].read(spare)?], spare: vec![] })
            }
            Layout::Sharded if self.is_shared() => Err(Error::Elsewhere),
            Layout::Dealt(_) if self.is_shared() => {
                Ok(Read { layout, parts: vec![self.gather_parts(placed)?.read(vec![])?], spare })
            }
            Layout::Sharded | Layout::Dealt(_) => {
                let parts = placed.arrays.iter().map(|array| array.read(vec![])).collect::<Result<_>>()?;
                Ok(Read { layout, parts, spare })
            }
        }
    }

    /// Waits for the parts of an array, and puts them together.
    pub(super) fn join(&self, read: Read) -> Result<Vec<f32>> {
        let parts = read.parts.into_iter().map(|part| self.waiting("a step", || part.wait()));
        Ok(whole(read.layout, parts.collect::<Result<_>>()?, read.spare))
    }

    /// Takes part when another process reads an array of which each has a part.
    pub(super) fn join_gather(&self, placed: &Placed) -> Result<()> {
        match placed.layout {
            Layout::Dealt(_) if self.is_shared() => self.gather_parts(placed).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The parts of an array that is dealt out, one after another, on a device of this process. All processes do this together.
    fn gather_parts(&self, placed: &Placed) -> Result<Array> {
        const PHASE: &str = "gathering the state";
        let shape = placed.arrays[0].shape().clone();
        let mut gathers = self.gathers.lock().unwrap_or_else(PoisonError::into_inner);
        let gather = match gathers.entry(shape.clone()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let graph = Graph::new();
                let part = graph.parameter("part", shape);
                let row = part.reshape(&[1, part.shape().num_elements()]);
                let all = Program::new("gather_parts", vec![part], vec![row.all_gather(self.count())]);
                place.insert(self.compile(&all)?)
            }
        };
        let arguments = placed.arrays.iter().map(|array| vec![Argument::Borrow(array)]).collect();
        let Launch { mut outputs, completion } = self.waiting(PHASE, || gather.launch(arguments))?;
        self.waiting(PHASE, || completion.wait())?;
        Ok(outputs.swap_remove(0).swap_remove(0))
    }

    /// An array as one local replica has it, row-major.
    ///
    /// # Panics
    /// If there is no such replica.
    pub fn to_host_from<T: Element>(&self, placed: &Placed, replica: usize) -> Result<Vec<T>> {
        self.waiting("a step", || placed.arrays[replica].to_host())
    }
}
