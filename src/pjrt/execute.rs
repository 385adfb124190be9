//! Running a compiled program.

use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::api::{self, Owned};
use super::buffer::Buffer;
use super::client::{Client, Device, Module};
use super::error::{Error, Result};
use super::event::Event;
use super::executable::Executable;
use super::options::CompileOptions;
use super::sys;
use crate::shape::Shape;

/// A program that was compiled for, and loaded onto, devices of a client.
pub struct LoadedExecutable {
    // Freed in this order: description, program, client.
    executable: Executable,
    raw: Owned<sys::PJRT_LoadedExecutable>,
    parameters: Vec<Shape>,
    /// Of each replica that this process runs, in replica order.
    devices: Vec<i32>,
    /// The place of each of `devices` in the plugin's own list.
    slots: Vec<usize>,
    launch_ids: LaunchIds,
    client: Client,
}

/// An argument of one replica.
pub enum Argument<'a> {
    /// Stays usable.
    Borrow(&'a Buffer),
    /// Gives its memory to the output that the program aliases to it, if there is one.
    Donate(Buffer),
}

/// A run that has been queued.
pub struct Execution {
    /// `[replica][output]`. They may be used at once: the device orders the work.
    pub outputs: Vec<Vec<Buffer>>,
    pub completion: Completion,
}

/// The end of a run on all devices. Dropping it waits as well, and loses the run's error.
#[must_use = "dropping it waits for the run and loses its error"]
pub struct Completion {
    events: Vec<Event>,
    _client: Client,
}

/// What names each launch of a program to the runtime: the hosts of a slice give the same launch the same id, so that
/// launches in different orders are told apart.
struct LaunchIds(AtomicU32);

impl LaunchIds {
    /// They start at a hash, so that two programs hardly share any; as in JAX.
    fn new(program: &Module<'_>, options: &CompileOptions) -> Self {
        let hash = Sha256::new().chain_update(options.to_bytes()).chain_update(program.code).finalize();
        Self(AtomicU32::new(u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])))
    }

    /// Never 0, which means none.
    fn next(&self) -> i32 {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => self.next(),
            id => id.cast_signed(),
        }
    }
}

impl Argument<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Self::Borrow(buffer) => buffer,
            Self::Donate(buffer) => buffer,
        }
    }
}

impl Completion {
    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_ready(&self) -> Result<bool> {
        self.events.iter().try_fold(true, |ready, event| Ok(ready && event.is_ready()?))
    }

    /// Gives the time at which the run has ended on every device, which may come a little after [`wait`](Self::wait) returns;
    /// none comes if the plugin can't tell.
    pub fn ended(&self) -> Receiver<Instant> {
        /// The last of the devices drops it.
        struct AtEnd(Sender<Instant>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                let _ = self.0.send(Instant::now());
            }
        }
        let (sender, receiver) = channel();
        let at_end = Arc::new(AtEnd(sender));
        for event in &self.events {
            let _ = event.drop_at_end(at_end.clone());
        }
        receiver
    }

    /// Blocks until the run has ended on every device; the error is that of the first one which failed.
    pub fn wait(self) -> Result<()> {
        self.events.into_iter().try_for_each(Event::wait)
    }
}

impl LoadedExecutable {
    /// `program` and `options` are what it was compiled from. Without a device assignment, replicas are in the
    /// plugin's order.
    pub(super) fn new(
        client: Client,
        raw: Owned<sys::PJRT_LoadedExecutable>,
        program: &Module<'_>,
        options: &CompileOptions,
    ) -> Result<Self> {
        let api = client.api();
        // SAFETY: the program is live; the device list lives as long as it, the description is made for this owner.
        let (devices, description) = unsafe {
            let args =
                sys::LoadedExecutableAddressableDevices { executable: raw.raw(), ..Default::default() };
            let list = api.call(args)?;
            let devices = api::slice(list.addressable_devices, list.num_addressable_devices);
            let args =
                sys::LoadedExecutableGetExecutable { loaded_executable: raw.raw(), ..Default::default() };
            let executable = api.call(args)?.executable;
            (devices, Owned::new(api, executable, "PJRT_LoadedExecutable_GetExecutable")?)
        };
        let listed = devices.iter().filter_map(|&device| client.device(device)).map(Device::id);
        let listed = listed.collect::<Vec<_>>();
        // Those of other processes are not listed.
        let slot = |id: &i32| Some((*id, listed.iter().position(|listed| listed == id)?));
        let asked = options.device_ids().unwrap_or(&listed);
        let (ids, slots): (Vec<_>, Vec<_>) = asked.iter().filter_map(slot).unzip();
        // A place left empty would be a null pointer to the plugin.
        let mut places = slots.clone();
        places.sort_unstable();
        if !places.into_iter().eq(0..devices.len()) {
            return Err(Error::DeviceAssignment { asked: asked.to_vec(), listed });
        }
        let executable = Executable::new(description)?;
        let parameters = program.parameters.to_vec();
        let launch_ids = LaunchIds::new(program, options);
        Ok(Self { executable, raw, parameters, devices: ids, slots, launch_ids, client })
    }

    /// The compiled program's description.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// The shapes that each replica's arguments must have.
    pub fn parameters(&self) -> &[Shape] {
        &self.parameters
    }

    /// Ids of the devices that this process runs the replicas on, in replica order.
    pub fn device_ids(&self) -> &[i32] {
        &self.devices
    }

    /// Runs the program and waits for its end: `[replica][argument]` to `[replica][output]`.
    pub fn execute(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Vec<Vec<Buffer>>> {
        let Execution { outputs, completion } = self.execute_async(arguments)?;
        completion.wait()?;
        Ok(outputs)
    }

    /// Queues the program, `[replica][argument]`, and returns without waiting for it.
    ///
    /// An argument keeps its memory unless every replica donates it.
    ///
    /// # Errors
    /// When the arguments do not fit the parameters, or the plugin refuses them. Failures of the run itself come
    /// from [`Completion::wait`].
    pub fn execute_async(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Execution> {
        self.check(&arguments)?;
        let borrowed: Vec<i64> = (0..self.parameters.len())
            .filter(|&index| arguments.iter().any(|list| matches!(list[index], Argument::Borrow(_))))
            .map(|index| index as i64)
            .collect();
        let lists: Vec<Vec<*mut sys::PJRT_Buffer>> = arguments
            .iter()
            .map(|list| list.iter().map(|argument| argument.buffer().raw()).collect())
            .collect();
        let (outputs, events) = self.launch(&borrowed, &lists)?;
        // The plugin holds on to what the run still needs, donated or borrowed.
        drop(arguments);
        let api = self.client.api();
        let call = "PJRT_LoadedExecutable_Execute";
        // SAFETY: the plugin has just made these events and buffers, for this owner.
        unsafe {
            let events =
                events.into_iter().map(|event| Event::new(api, event, call)).collect::<Result<_>>()?;
            let completion = Completion { events, _client: self.client.clone() };
            let own = |raw, shape: &Arc<Shape>| {
                let raw = Owned::new(api, raw, call)?;
                Ok(Buffer::new(self.client.clone(), raw, shape.clone()))
            };
            let own_list = |list: Vec<_>| {
                list.into_iter().zip(self.executable.outputs()).map(|(raw, shape)| own(raw, shape)).collect()
            };
            let outputs = outputs.into_iter().map(own_list).collect::<Result<_>>()?;
            Ok(Execution { outputs, completion })
        }
    }

    /// Makes the call; returns each replica's outputs, and their events in the plugin's order.
    fn launch(
        &self,
        borrowed: &[i64],
        lists: &[Vec<*mut sys::PJRT_Buffer>],
    ) -> Result<(Vec<Vec<*mut sys::PJRT_Buffer>>, Vec<*mut sys::PJRT_Event>)> {
        let mut outputs = vec![vec![null_mut(); self.executable.outputs().len()]; lists.len()];
        let mut events = vec![null_mut(); lists.len()];
        let mut argument_lists = vec![null(); lists.len()];
        let mut output_lists = vec![null_mut(); lists.len()];
        for ((&slot, list), outputs) in self.slots.iter().zip(lists).zip(&mut outputs) {
            argument_lists[slot] = list.as_ptr();
            output_lists[slot] = outputs.as_mut_ptr();
        }
        let mut options = sys::PJRT_ExecuteOptions {
            launch_id: self.launch_ids.next(),
            non_donatable_input_indices: borrowed.as_ptr(),
            num_non_donatable_input_indices: borrowed.len(),
            ..Default::default()
        };
        let args = sys::LoadedExecutableExecute {
            executable: self.raw.raw(),
            options: &raw mut options,
            argument_lists: argument_lists.as_ptr(),
            num_devices: lists.len(),
            num_args: self.parameters.len(),
            output_lists: output_lists.as_ptr(),
            device_complete_events: events.as_mut_ptr(),
            ..Default::default()
        };
        // SAFETY: the program and the arguments are live, and of one client, as `check` has seen; slots are those of
        // the lists, each once, as `new` has seen; each list has the length stated or asked for, and lives until the
        // call returns.
        unsafe { self.client.api().call(args) }?;
        Ok((outputs, events))
    }

    fn check(&self, arguments: &[Vec<Argument<'_>>]) -> Result<()> {
        let (expected, found) = (self.devices.len(), arguments.len());
        if expected != found {
            return Err(Error::ReplicaCount { expected, found });
        }
        for (replica, list) in arguments.iter().enumerate() {
            let (expected, found) = (self.parameters.len(), list.len());
            if expected != found {
                return Err(Error::ArgumentCount { replica, expected, found });
            }
            for (index, (argument, parameter)) in list.iter().zip(&self.parameters).enumerate() {
                let buffer = argument.buffer();
                if !self.client.is_same(buffer.client()) {
                    return Err(Error::OtherClient { index });
                }
                if buffer.shape() != parameter {
                    let (expected, found) = (parameter.clone(), buffer.shape().clone());
                    return Err(Error::ArgumentShape { index, expected, found });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::ModuleFormat;
    use super::*;

    fn first(code: &[u8], options: &CompileOptions) -> i32 {
        LaunchIds::new(&Module { format: ModuleFormat::Hlo, code, parameters: &[] }, options).next()
    }

    /// Whoever compiles the same for the same devices launches under the same ids.
    #[test]
    fn launch_ids_follow_from_program_and_options() {
        let options = CompileOptions::on_devices([1, 0]);
        assert_eq!(first(b"code", &options), first(b"code", &options.clone()));
        assert_ne!(first(b"code", &options), first(b"cod", &options));
        assert_ne!(first(b"code", &options), first(b"code", &CompileOptions::on_devices([0, 1])));
    }

    #[test]
    fn launch_ids_count_up_and_leave_out_none() {
        let ids = LaunchIds(AtomicU32::new(u32::MAX - 1));
        assert_eq!([(); 4].map(|()| ids.next()), [-2, -1, 1, 2]);
        assert_eq!(LaunchIds(AtomicU32::new(i32::MAX as u32)).next(), i32::MAX);
    }
}
