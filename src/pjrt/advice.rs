//! What kind of devices were taken, and what is wrong with a machine's set-up for them that is no error.

use std::ffi::c_int;
use std::path::Path;

use super::api;
use super::client::{Client, Device};
use super::platform::{self, Backend};
use super::sys;
use super::value::Value;

impl Client {
    /// One line on what is wrong, and what to do.
    pub fn advice(&self) -> Option<String> {
        match self.plugin().backend() {
            Backend::Cpu => None,
            Backend::Gpu => self.cublas_advice(),
            Backend::Tpu => platform::huge_pages_advice(Path::new("/")),
        }
    }

    /// Whether its devices have units for products of bfloat16: TPUs do, and GPUs from compute capability 8.0 (Ampere) on.
    pub fn has_bf16_units(&self) -> bool {
        match self.plugin().backend() {
            Backend::Cpu => false,
            Backend::Gpu => {
                let capabilities = self.addressable_devices().into_iter().map(compute_capability);
                capabilities.map(|capability| capability >= Some((8, 0))).reduce(|a, b| a && b) == Some(true)
            }
            Backend::Tpu => true,
        }
    }

    fn cublas_advice(&self) -> Option<String> {
        let capabilities = self.addressable_devices().into_iter().filter_map(compute_capability);
        // Where no GPU is concerned, the library isn't even opened.
        let capability = capabilities.into_iter().find(|capability| frees_twice(*capability, FAULTY.0))?;
        let version = cublas_version(self.plugin().path())?;
        let (major, minor) = version;
        frees_twice(capability, version).then(|| {
            format!(
                "cuBLAS {major}.{minor} can corrupt results on this GPU when kernels run at the same time: install 13.2 or \
                 newer, as `bert-xla plugins install gpu --cuda` does"
            )
        })
    }
}

/// The first version of cuBLAS whose kernels free Blackwell's tensor memory twice, and the first that doesn't any more.
/// Source: JAX 0.12, `jax_plugins/xla_cuda13/__init__.py`.
const FAULTY: ((i32, i32), (i32, i32)) = ((12, 8), (13, 2));

/// Of GPUs, those that have tensor memory are concerned.
fn frees_twice(compute_capability: (i32, i32), cublas: (i32, i32)) -> bool {
    (10..12).contains(&compute_capability.0) && (FAULTY.0..FAULTY.1).contains(&cublas)
}

/// Major and minor, of a text such as `10.0`.
fn version(text: &str) -> Option<(i32, i32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A GPU's compute capability, as the plugin tells it.
fn compute_capability(device: Device<'_>) -> Option<(i32, i32)> {
    let api = device.client().api();
    // SAFETY: the device is live, and so are its description and its attributes, which are copied.
    let attributes = unsafe {
        let args = sys::DeviceGetDescription { device: device.raw(), ..Default::default() };
        let device_description = api.call(args).ok()?.device_description;
        let told =
            api.call(sys::DeviceDescriptionAttributes { device_description, ..Default::default() }).ok()?;
        let attributes = api::slice(told.attributes, told.num_attributes).iter();
        attributes.filter_map(|attribute| Value::from_raw(attribute)).collect::<Vec<_>>()
    };
    attributes.into_iter().find_map(|(name, value)| match value {
        Value::String(text) if name == "compute_capability" => version(&text),
        _ => None,
    })
}

/// Major and minor version of the cuBLAS that the plugin opens: of the same CUDA as its runtime, which is open by now,
/// beside it or where the system finds it. It stays open, so that the plugin will have the same.
fn cublas_version(plugin: &Path) -> Option<(i32, i32)> {
    let (folder, name) = match platform::is_loaded("libcudart.so.13") {
        true => ("nvidia/cu13/lib", "libcublas.so.13"),
        false => ("nvidia/cublas/lib", "libcublas.so.12"),
    };
    let beside = plugin.ancestors().skip(2).take(2).map(|above| above.join(folder).join(name));
    let library = beside.chain([name.into()]).find_map(|path| {
        // SAFETY: the plugin is about to run the same library's initializers.
        unsafe { libloading::Library::new(path) }.ok()
    })?;
    type GetProperty = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
    let mut parts = [0; 2];
    {
        // SAFETY: `cublas_api.h` declares `cublasStatus_t cublasGetProperty(libraryPropertyType type, int *value)`.
        let get = unsafe { library.get::<GetProperty>("cublasGetProperty") }.ok()?;
        for (part, value) in (0..).zip(&mut parts) {
            // SAFETY: `value` is written to during the call; 0 and 1 ask for major and minor version.
            if unsafe { get(part, value) } != 0 {
                return None;
            }
        }
    }
    std::mem::forget(library);
    Some((parts[0], parts[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As JAX 0.12 warns: cuBLAS from 12.8 and before 13.2, compute capability from 10.0 and before 12.0.
    #[test]
    fn the_rule_is_jaxs() {
        for (capability, cublas, expected) in [
            ((10, 0), (12, 8), true),
            ((10, 3), (13, 1), true),
            ((11, 0), (13, 0), true),
            ((10, 0), (12, 7), false),
            ((10, 0), (13, 2), false),
            ((9, 0), (13, 0), false),
            ((12, 0), (13, 0), false),
        ] {
            assert_eq!(frees_twice(capability, cublas), expected, "{capability:?}, cuBLAS {cublas:?}");
        }
        assert_eq!((version("10.0"), version("9"), version("a.b")), (Some((10, 0)), None, None));
    }
}
