//! Opens a plugin and makes every call into it.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::path::Path;
use std::ptr::NonNull;

use super::error::{Error, Result};
use super::platform::Backend;
use super::sys::{self, Args, Object};

const ENTRY: &str = "GetPjrtApi";

/// C API 0.57 rearranged the function table; from there on it has only grown at its end.
/// Source: `xla/pjrt/c/CHANGELOG.md` of the OpenXLA project.
const MINIMUM_MINOR: i32 = 57;

/// A loaded plugin's function table. A plugin stays loaded until the process ends: its threads and its own static
/// objects do not survive `dlclose`.
#[derive(Clone, Copy)]
pub(super) struct Api {
    /// Valid for `size` bytes, which may be fewer than [`sys::PJRT_Api`] has: hence no reference.
    table: NonNull<sys::PJRT_Api>,
    size: usize,
}

// SAFETY: the table is immutable once GetPjrtApi returned, and PJRT's functions may be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl Api {
    /// Opens the shared library at `path`, checks its version and initializes it.
    pub fn load(backend: Backend, path: &Path) -> Result<Self> {
        // SAFETY: running the library's initializers is what the user asks for by naming this plugin.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| Error::Load {
            backend,
            path: path.to_owned(),
            message: one_line(&error.to_string()),
        })?;
        type Entry = unsafe extern "C" fn() -> *const sys::PJRT_Api;
        // SAFETY: a PJRT plugin declares `const PJRT_Api* GetPjrtApi()`.
        let entry = unsafe { library.get::<Entry>(ENTRY) }
            .map(|symbol| *symbol)
            .map_err(|_| Error::MissingSymbol { path: path.to_owned(), symbol: ENTRY })?;
        std::mem::forget(library);
        // SAFETY: the function takes nothing.
        let table = NonNull::new(unsafe { entry() }.cast_mut())
            .ok_or_else(|| Error::NoTable { path: path.to_owned(), symbol: ENTRY })?;
        // SAFETY: every table starts with its size; it is valid for the rest of the process, as nothing unloads it.
        let size = unsafe { table.cast::<usize>().read() };
        if size < offset_of!(sys::PJRT_Api, PJRT_Error_Destroy) {
            return Err(Error::ShortTable { path: path.to_owned(), symbol: ENTRY, size });
        }
        let api = Self { table, size };
        let (major, minor) = api.version();
        if major != 0 || minor < MINIMUM_MINOR {
            let path = path.to_owned();
            return Err(Error::Version { backend, path, major, minor, minimum: MINIMUM_MINOR });
        }
        // SAFETY: the arguments hold no pointers. Plugins accept being initialized again.
        unsafe { api.call(sys::PluginInitialize::default()) }?;
        Ok(api)
    }

    /// Major and minor version of the C API that the plugin was built with.
    pub fn version(self) -> (i32, i32) {
        let offset = offset_of!(sys::PJRT_Api, pjrt_api_version);
        // SAFETY: the version lies there; `load` has refused a table without one.
        let version = unsafe { self.table.byte_add(offset).cast::<sys::PJRT_Api_Version>().read() };
        (version.major_version, version.minor_version)
    }

    /// Makes one call: returns `args` with its out fields filled in.
    ///
    /// # Safety
    /// Each pointer in `args` must be valid for what the C header says the function does with it.
    pub unsafe fn call<A: Args>(self, mut args: A) -> Result<A> {
        // SAFETY: by `Args` a function lies there.
        let function = unsafe { self.field::<sys::Function>(A::SLOT) }.flatten();
        let function = function.ok_or(Error::MissingFunction(A::NAME))?;
        // SAFETY: `Args` ties the function to the type of `args`; the caller vouches for the pointers.
        let error = unsafe { function((&raw mut args).cast()) };
        // SAFETY: the plugin passes ownership of the error, which has not been freed.
        unsafe { self.check(A::NAME, error) }.map(|()| args)
    }

    /// What the table has at `offset`, unless this plugin is too old to have it.
    ///
    /// # Safety
    /// [`sys::PJRT_Api`] must have a `T` at `offset`.
    unsafe fn field<T: Copy>(self, offset: usize) -> Option<T> {
        if offset + size_of::<T>() > self.size {
            return None;
        }
        // SAFETY: the field lies within the plugin's table by the check above, and is a `T` by the contract.
        Some(unsafe { self.table.byte_add(offset).cast::<T>().read() })
    }

    /// Turns a `PJRT_Error` into an [`Error`] and frees it. Null means success.
    ///
    /// # Safety
    /// `error` must be null, or an error of this plugin that the caller owns.
    pub unsafe fn check(self, call: &'static str, error: *mut sys::PJRT_Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let mut message = sys::ErrorMessage { error, ..Default::default() };
        let mut code = sys::ErrorGetCode { error, ..Default::default() };
        // SAFETY: these three functions open the table of every version. `error` is live until the destroy call, and
        // its message is copied before that.
        let message = unsafe {
            let get_message: Option<sys::ErrorFunction<sys::ErrorMessage>> =
                self.field(offset_of!(sys::PJRT_Api, PJRT_Error_Message));
            if let Some(get_message) = get_message.flatten() {
                get_message(&raw mut message);
            }
            let get_code: Option<sys::ErrorFunction<sys::ErrorGetCode, *mut sys::PJRT_Error>> =
                self.field(offset_of!(sys::PJRT_Api, PJRT_Error_GetCode));
            if let Some(get_code) = get_code.flatten() {
                get_code(&raw mut code);
            }
            let message = one_line(&string(message.message, message.message_size));
            let destroy: Option<sys::ErrorFunction<sys::ErrorDestroy>> =
                self.field(offset_of!(sys::PJRT_Api, PJRT_Error_Destroy));
            if let Some(destroy) = destroy.flatten() {
                destroy(&mut sys::ErrorDestroy { error, ..Default::default() });
            }
            message
        };
        if let Some(mismatch) = size_mismatch(&message) {
            return Err(Error::StructSize { call, message: mismatch.to_owned(), minor: self.version().1 });
        }
        Err(Error::Plugin { call, code: code_name(code.code), message })
    }
}

/// An object of the plugin that this side owns: freed once, on drop.
pub(super) struct Owned<T: Object> {
    pub api: Api,
    raw: NonNull<T>,
}

// SAFETY: PJRT's clients, devices, executables, buffers and events may be used and freed from any thread.
unsafe impl<T: Object> Send for Owned<T> {}
// SAFETY: as above; PJRT synchronizes its own objects.
unsafe impl<T: Object> Sync for Owned<T> {}

impl<T: Object> Owned<T> {
    /// Takes over an object that `call` returned.
    ///
    /// # Safety
    /// `raw` must be null or a live object of `api`'s plugin that nothing else frees.
    pub unsafe fn new(api: Api, raw: *mut T, call: &'static str) -> Result<Self> {
        let null =
            || Error::Plugin { call, code: "INTERNAL", message: "the plugin returned no object".into() };
        Ok(Self { api, raw: NonNull::new(raw).ok_or_else(null)? })
    }

    pub fn raw(&self) -> *mut T {
        self.raw.as_ptr()
    }
}

impl<T: Object> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `raw` is live and owned, and is not used after this. Freeing has no failure to act upon.
        let _ = unsafe { self.api.call(T::destroy(self.raw.as_ptr())) };
    }
}

/// Copies a string of the plugin, which need not end in a NUL byte.
///
/// # Safety
/// `data` must be null or point to `size` bytes.
pub(super) unsafe fn string(data: *const c_char, size: usize) -> String {
    // SAFETY: passed on to the caller.
    String::from_utf8_lossy(unsafe { slice(data.cast(), size) }).into_owned()
}

/// A C array as a slice; null, which C uses for an empty array, is empty.
///
/// # Safety
/// `data` must be null or point to `len` values that live and stay unchanged for `'a`.
pub(super) unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: passed on to the caller.
    unsafe { std::slice::from_raw_parts(data, len) }
}

/// A slice as the pointer that C argument structs take for bytes.
pub(super) fn bytes(data: &[u8]) -> *const c_char {
    data.as_ptr().cast()
}

/// `value` as a `user_arg`, to be taken back by [`Box::from_raw`].
pub(super) fn user_arg<T>(value: Box<T>) -> *mut c_void {
    Box::into_raw(value).cast()
}

/// Errors are one line here; plugins append stack traces and notes.
fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The part of a plugin's message that says that a struct is shorter than it must be, if the message is that.
/// Source: `ActualStructSizeIsGreaterOrEqual` in `xla/pjrt/c/pjrt_c_api_helpers.cc` of the OpenXLA project.
fn size_mismatch(message: &str) -> Option<&str> {
    let is_it = message.starts_with("Unexpected PJRT_") && message.contains(" size: expected ");
    is_it.then(|| message.split(". ").next().unwrap_or(message))
}

fn code_name(code: sys::ErrorCode) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("UNKNOWN")
}
