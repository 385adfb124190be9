//! Arrays on a device.

use std::ffi::c_int;
use std::sync::Arc;

use half::{bf16, f16};
#[cfg(target_os = "linux")]
use rustix::mm::{Advice, madvise};

use super::api::Owned;
use super::client::{Client, Device};
use super::error::{Error, Result};
use super::event::Event;
use super::sys;
use crate::shape::{ElementType, Shape};

/// A Rust type that is an array element's bytes as they are. `pred` has none, since not every byte is a `bool`: use
/// [`Buffer::to_bytes`] and [`Client::buffer_from_bytes`].
///
/// # Safety
/// The type must have the size of `TYPE`, no padding, and be valid for every bit pattern.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($type:ty => $element:ident),*) => {$(
        // SAFETY: a plain number of that size.
        unsafe impl Element for $type {
            const TYPE: ElementType = ElementType::$element;
        }
    )*};
}

elements! { u8 => U8, i32 => S32, i64 => S64, u32 => U32, u64 => U64, f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64 }

/// Element types and their names in the C API.
const TYPES: [(ElementType, sys::BufferType); 10] = [
    (ElementType::Pred, sys::BUFFER_TYPE_PRED),
    (ElementType::U8, sys::BUFFER_TYPE_U8),
    (ElementType::S32, sys::BUFFER_TYPE_S32),
    (ElementType::S64, sys::BUFFER_TYPE_S64),
    (ElementType::U32, sys::BUFFER_TYPE_U32),
    (ElementType::U64, sys::BUFFER_TYPE_U64),
    (ElementType::F16, sys::BUFFER_TYPE_F16),
    (ElementType::Bf16, sys::BUFFER_TYPE_BF16),
    (ElementType::F32, sys::BUFFER_TYPE_F32),
    (ElementType::F64, sys::BUFFER_TYPE_F64),
];

/// The element type that the C API calls `code`, if this program uses it.
pub(super) fn element_type(code: sys::BufferType) -> Option<ElementType> {
    TYPES.iter().find(|(_, named)| *named == code).map(|(element, _)| *element)
}

fn buffer_type(element: ElementType) -> Option<sys::BufferType> {
    TYPES.iter().find(|(named, _)| *named == element).map(|(_, code)| *code)
}

/// An array on a device. It may still be under way: uses of it wait on the device, not on the host.
pub struct Buffer {
    // Declared first, so that it is freed before its client.
    raw: Owned<sys::PJRT_Buffer>,
    shape: Arc<Shape>,
    client: Client,
}

impl Buffer {
    pub(super) fn new(client: Client, raw: Owned<sys::PJRT_Buffer>, shape: Arc<Shape>) -> Self {
        Self { raw, shape, client }
    }

    pub(super) fn upload<T: Element>(
        client: &Client,
        data: &[T],
        shape: Shape,
        device: Device<'_>,
    ) -> Result<Self> {
        // SAFETY: `data` is borrowed until the event has told that it was read.
        let (buffer, read) = unsafe { Self::start_upload(client, data, shape, device) }?;
        read.wait()?;
        Ok(buffer)
    }

    pub(super) fn upload_shared<T: Element>(
        client: &Client,
        data: Arc<Vec<T>>,
        shape: Shape,
        device: Device<'_>,
    ) -> Result<Self> {
        // SAFETY: the event holds the vector until it was read, and nobody can change what is shared.
        let (buffer, read) = unsafe { Self::start_upload(client, &data, shape, device) }?;
        read.keep(data)?;
        Ok(buffer)
    }

    /// # Safety
    /// `data` must stay alive and unchanged until the event is ready.
    unsafe fn start_upload<T: Element>(
        client: &Client,
        data: &[T],
        shape: Shape,
        device: Device<'_>,
    ) -> Result<(Self, Event)> {
        if !client.is_same(device.client()) {
            return Err(Error::OtherDevice);
        }
        let (expected, found) = (shape.size_in_bytes(), size_of_val(data));
        let Some(element_type) = buffer_type(shape.element_type).filter(|_| expected == found) else {
            return Err(Error::DataSize { shape, expected, found });
        };
        let dims: Vec<i64> = shape.dims.iter().map(|&dim| dim as i64).collect();
        let args = sys::ClientBufferFromHostBuffer {
            client: client.raw(),
            data: data.as_ptr().cast(),
            element_type,
            dims: dims.as_ptr(),
            num_dims: dims.len(),
            host_buffer_semantics: sys::IMMUTABLE_UNTIL_TRANSFER_COMPLETES,
            device: device.raw(),
            ..Default::default()
        };
        // SAFETY: client and device are live; `data` holds as many bytes as the shape, and lives as the caller says.
        let args = unsafe { client.api().call(args) }?;
        let call = "PJRT_Client_BufferFromHostBuffer";
        // SAFETY: both were just made, for this owner.
        let (read, raw) = unsafe {
            let read = Event::new(client.api(), args.done_with_host_buffer, call)?;
            (read, Owned::new(client.api(), args.buffer, call)?)
        };
        Ok((Self::new(client.clone(), raw, Arc::new(shape)), read))
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The device that holds it.
    pub fn device(&self) -> Result<Device<'_>> {
        let args = sys::BufferDevice { buffer: self.raw(), ..Default::default() };
        // SAFETY: the buffer is live.
        let device = unsafe { self.client.api().call(args) }?.device;
        self.client.device(device).ok_or(Error::OtherDevice)
    }

    /// Bytes that it takes on the device, padding included.
    pub fn size_on_device(&self) -> Result<usize> {
        let args = sys::BufferOnDeviceSizeInBytes { buffer: self.raw(), ..Default::default() };
        // SAFETY: the buffer is live.
        unsafe { self.client.api().call(args) }.map(|args| args.on_device_size_in_bytes)
    }

    /// Blocks until the array has been computed; the error, if any, is that of the computation.
    pub fn wait(&self) -> Result<()> {
        let args = sys::BufferReadyEvent { buffer: self.raw(), ..Default::default() };
        // SAFETY: the buffer is live, and the event was just made, for this owner.
        let ready = unsafe {
            let args = self.client.api().call(args)?;
            Event::new(self.client.api(), args.event, "PJRT_Buffer_ReadyEvent")
        };
        ready?.wait()
    }

    /// The elements, in row-major order. Blocks until they are computed and copied.
    pub fn to_host<T: Element>(&self) -> Result<Vec<T>> {
        self.read()?.wait()
    }

    /// The bytes of the elements, in row-major order and the machine's byte order.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.start_read(self.shape.size_in_bytes(), vec![])?.wait()
    }

    /// Starts a copy to the host without waiting for it.
    pub fn read<T: Element>(&self) -> Result<PendingRead<T>> {
        self.read_into(vec![])
    }

    /// As [`read`](Self::read), into the memory of `spare` if it is large enough: new memory, which comes a page at a time,
    /// takes longer than the copy.
    pub fn read_into<T: Element>(&self, spare: Vec<T>) -> Result<PendingRead<T>> {
        if T::TYPE != self.shape.element_type {
            return Err(Error::ElementTypeMismatch { expected: T::TYPE, found: self.shape.element_type });
        }
        self.start_read(self.shape.num_elements(), spare)
    }

    /// Starts a copy of the whole array into `len` values of `T`, which take as many bytes.
    fn start_read<T: Element>(&self, len: usize, mut data: Vec<T>) -> Result<PendingRead<T>> {
        data.clear();
        data.reserve_exact(len);
        #[cfg(target_os = "linux")]
        prefer_huge_pages(data.spare_capacity_mut());
        // Without a layout the copy would come in the device's own, which is tiled on TPU.
        // The CPU plugin 0.0.1 pays no heed: its arrays are row-major unless a program asks for another layout.
        let minor_to_major: Vec<i64> = (0..self.shape.rank() as i64).rev().collect();
        let tiled = sys::TiledLayout {
            minor_to_major: minor_to_major.as_ptr(),
            minor_to_major_size: minor_to_major.len(),
            ..Default::default()
        };
        const TILED: c_int = 0;
        let layout = sys::MemoryLayout { tiled, layout_type: TILED, ..Default::default() };
        let args = sys::BufferToHostBuffer {
            src: self.raw(),
            host_layout: &raw const layout,
            dst: data.as_mut_ptr().cast(),
            dst_size: len * size_of::<T>(),
            ..Default::default()
        };
        // SAFETY: the buffer is live, the layout lives until the call returns, and the reader below keeps `data`,
        // which has room for `dst_size` bytes, until the event is ready.
        let event = unsafe {
            let args = self.client.api().call(args)?;
            Event::new(self.client.api(), args.event, "PJRT_Buffer_ToHostBuffer")
        }?;
        Ok(PendingRead { event, data, len, _client: self.client.clone() })
    }

    pub(super) fn raw(&self) -> *mut sys::PJRT_Buffer {
        self.raw.raw()
    }
}

/// Has the system back memory that nothing was written to with pages of 2 MiB, where it can.
#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    const PAGE: usize = 4096;
    const LEAST: usize = 4 << 20;
    let bytes = size_of_val(memory);
    if bytes < LEAST {
        return;
    }
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(PAGE);
    let whole = (bytes - skipped) / PAGE * PAGE;
    // SAFETY: the range lies in `memory`, and the advice changes nothing that a program can see.
    let advised = unsafe { madvise(start.add(skipped).cast(), whole, Advice::LinuxHugepage) };
    // Without it, all is as it was.
    let _ = advised;
}

/// A copy from a device to the host that is under way. Dropping it waits for the copy to end.
#[must_use = "dropping it waits for the copy and throws it away"]
pub struct PendingRead<T> {
    // Declared before `data`: dropping an event waits for it, so that the copy has ended when `data` is freed.
    event: Event,
    data: Vec<T>,
    len: usize,
    _client: Client,
}

impl<T: Element> PendingRead<T> {
    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_ready(&self) -> Result<bool> {
        self.event.is_ready()
    }

    /// Blocks until the array has been computed and copied; returns its elements in row-major order.
    pub fn wait(self) -> Result<Vec<T>> {
        let Self { event, mut data, len, _client } = self;
        event.wait()?;
        // SAFETY: the copy has written `len` elements, for which `data` was given room.
        unsafe { data.set_len(len) };
        Ok(data)
    }
}
