//! What a GPU's client is told: how much of the memory it takes and when, and which GPUs.

use std::env;

use super::error::{Error, Result};
use super::value::Value;

/// Options of the CUDA plugin. What is `None` here, JAX's environment variable says, as JAX reads it; and else the
/// plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuOptions {
    /// Share of each GPU's memory that is taken; else `XLA_CLIENT_MEM_FRACTION` or `XLA_PYTHON_CLIENT_MEM_FRACTION`.
    pub memory_fraction: Option<f32>,
    /// Whether it is taken at the start; else `XLA_PYTHON_CLIENT_PREALLOCATE`.
    pub preallocate: Option<bool>,
    /// Which of the GPUs that the driver shows, by number from 0; else `JAX_CUDA_VISIBLE_DEVICES`.
    pub devices: Option<Vec<u32>>,
}

/// Those of the CUDA plugin.
const ALLOCATORS: [&str; 6] = ["default", "platform", "bfc", "cuda_async", "vmm", "address"];

impl GpuOptions {
    /// Named and typed as the plugin wants them. The allocator is a variable's to name alone:
    /// `XLA_PYTHON_CLIENT_ALLOCATOR`.
    ///
    /// # Errors
    /// [`Error::Variable`] for a variable that can't be read.
    pub fn values(&self) -> Result<Vec<(&'static str, Value)>> {
        self.values_in(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn values_in(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<(&'static str, Value)>> {
        let mut values = vec![];
        if let Some(allocator) = read(&variable, "XLA_PYTHON_CLIENT_ALLOCATOR", parse_allocator)? {
            values.push(("allocator", Value::String(allocator)));
        }
        let fraction = match self.memory_fraction {
            Some(fraction) => Some(fraction),
            None => memory_fraction(&variable)?,
        };
        values.extend(fraction.map(|fraction| ("memory_fraction", Value::Float(fraction))));
        let preallocate = || variable("XLA_PYTHON_CLIENT_PREALLOCATE").map(|value| is_true(&value));
        let preallocate = self.preallocate.or_else(preallocate);
        values.extend(preallocate.map(|preallocate| ("preallocate", Value::Bool(preallocate))));
        let devices = match &self.devices {
            Some(devices) => Some(devices.clone()),
            None => read(&variable, "JAX_CUDA_VISIBLE_DEVICES", parse_devices)?.flatten(),
        };
        let list = |devices: Vec<u32>| Value::Int64List(devices.into_iter().map(i64::from).collect());
        values.extend(devices.map(|devices| ("visible_devices", list(devices))));
        Ok(values)
    }
}

/// Reads a variable; the error of `parse` is what was expected.
fn read<T>(
    variable: impl Fn(&str) -> Option<String>,
    name: &'static str,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<Option<T>> {
    let Some(value) = variable(name) else { return Ok(None) };
    parse(&value).map(Some).map_err(|expected| Error::Variable { name, value, expected })
}

fn parse_allocator(text: &str) -> std::result::Result<String, String> {
    let name = text.to_lowercase();
    let is_known = ALLOCATORS.contains(&name.as_str());
    if is_known { Ok(name) } else { Err(format!("one of {}", ALLOCATORS.join(", "))) }
}

/// JAX's share of the memory, under either of its names; above 1 too, for unified memory.
fn memory_fraction(variable: impl Fn(&str) -> Option<String>) -> Result<Option<f32>> {
    const NAMES: [&str; 2] = ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"];
    if let [Some(value), Some(_)] = NAMES.map(&variable) {
        let expected = format!("no {} beside it: unset one", NAMES[1]);
        return Err(Error::Variable { name: NAMES[0], value, expected });
    }
    let parse = |text: &str| {
        let fraction = text.trim().parse::<f32>().ok().filter(|share| *share > 0.0 && share.is_finite());
        fraction.ok_or_else(|| "a share of the memory, above 0".to_owned())
    };
    let [newer, older] = NAMES.map(|name| read(&variable, name, parse));
    Ok(newer?.or(older?))
}

/// Reads a share of the memory, of a flag; the error says what is expected.
pub fn parse_fraction(text: &str) -> std::result::Result<f32, String> {
    let fraction = text.trim().parse::<f32>().ok().filter(|fraction| *fraction > 0.0 && *fraction <= 1.0);
    fraction.ok_or_else(|| "a share of the memory, above 0 and up to 1".to_owned())
}

fn is_true(text: &str) -> bool {
    !["false", "False", "0"].contains(&text)
}

/// `None` for all of them.
fn parse_devices(text: &str) -> std::result::Result<Option<Vec<u32>>, String> {
    if text == "all" {
        return Ok(None);
    }
    let devices = text.split(',').map(|device| device.trim().parse()).collect::<std::result::Result<_, _>>();
    devices.map(Some).map_err(|_| "all, or numbers of GPUs from 0 such as 0,1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(options: &GpuOptions, variables: &[(&str, &str)]) -> Result<Vec<(&'static str, Value)>> {
        options.values_in(|name| {
            variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// Names and types are those of JAX's `generate_pjrt_gpu_plugin_options` (jaxlib 0.12.0.1, `xla_client.py`).
    #[test]
    fn variables_are_read_as_jax_reads_them() {
        let none = GpuOptions::default();
        assert_eq!(values(&none, &[]).unwrap(), []);
        for (variable, value, name, expected) in [
            ("XLA_CLIENT_MEM_FRACTION", ".25", "memory_fraction", Value::Float(0.25)),
            ("XLA_CLIENT_MEM_FRACTION", "4.0", "memory_fraction", Value::Float(4.0)),
            ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5", "memory_fraction", Value::Float(0.5)),
            ("XLA_PYTHON_CLIENT_PREALLOCATE", "false", "preallocate", Value::Bool(false)),
            ("XLA_PYTHON_CLIENT_PREALLOCATE", "False", "preallocate", Value::Bool(false)),
            ("XLA_PYTHON_CLIENT_PREALLOCATE", "0", "preallocate", Value::Bool(false)),
            ("XLA_PYTHON_CLIENT_PREALLOCATE", "true", "preallocate", Value::Bool(true)),
            ("XLA_PYTHON_CLIENT_ALLOCATOR", "Platform", "allocator", Value::String("platform".into())),
            ("JAX_CUDA_VISIBLE_DEVICES", "1,3", "visible_devices", Value::Int64List(vec![1, 3])),
        ] {
            assert_eq!(
                values(&none, &[(variable, value)]).unwrap(),
                [(name, expected)],
                "{variable}={value}"
            );
        }
        assert_eq!(values(&none, &[("JAX_CUDA_VISIBLE_DEVICES", "all")]).unwrap(), []);
    }

    #[test]
    fn what_is_said_goes_before_variables() {
        let said =
            GpuOptions { memory_fraction: Some(0.75), preallocate: Some(true), devices: Some(vec![2]) };
        let variables = [
            // Not even read.
            ("XLA_CLIENT_MEM_FRACTION", "much"),
            ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5"),
            ("XLA_PYTHON_CLIENT_PREALLOCATE", "0"),
            ("JAX_CUDA_VISIBLE_DEVICES", "none"),
        ];
        let expected = [
            ("memory_fraction", Value::Float(0.75)),
            ("preallocate", Value::Bool(true)),
            ("visible_devices", Value::Int64List(vec![2])),
        ];
        assert_eq!(values(&said, &variables).unwrap(), expected);
    }

    #[test]
    fn both_names_of_the_fraction_together_are_refused() {
        let both = [("XLA_CLIENT_MEM_FRACTION", "0.5"), ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")];
        let error = values(&GpuOptions::default(), &both).unwrap_err();
        let expected =
            "XLA_CLIENT_MEM_FRACTION=0.5: expected no XLA_PYTHON_CLIENT_MEM_FRACTION beside it: unset one";
        assert_eq!(error.to_string(), expected);
        assert!(error.is_input_error());
    }

    #[test]
    fn a_flags_fraction_is_of_what_there_is() {
        assert_eq!(["0.5", "1"].map(parse_fraction), [Ok(0.5), Ok(1.0)]);
        for text in ["0", "1.01", "4.0", "inf", "NaN", "half"] {
            assert!(parse_fraction(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_that_cant_be_read_is_named() {
        for (name, value, expected) in [
            ("XLA_PYTHON_CLIENT_MEM_FRACTION", "much", "a share of the memory, above 0"),
            ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0", "a share of the memory, above 0"),
            ("XLA_CLIENT_MEM_FRACTION", "inf", "a share of the memory, above 0"),
            ("XLA_CLIENT_MEM_FRACTION", "NaN", "a share of the memory, above 0"),
            (
                "XLA_PYTHON_CLIENT_ALLOCATOR",
                "none",
                "one of default, platform, bfc, cuda_async, vmm, address",
            ),
            ("JAX_CUDA_VISIBLE_DEVICES", "0;1", "all, or numbers of GPUs from 0 such as 0,1"),
            ("JAX_CUDA_VISIBLE_DEVICES", "-1", "all, or numbers of GPUs from 0 such as 0,1"),
        ] {
            let error = values(&GpuOptions::default(), &[(name, value)]).unwrap_err();
            assert_eq!(error.to_string(), format!("{name}={value}: expected {expected}"));
            assert!(error.is_input_error());
        }
    }
}
