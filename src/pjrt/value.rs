//! Named values: options that a client takes, properties that a program has.

use super::api;
use super::sys;

/// The value of a client option or of a property.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    String(String),
    Int64(i64),
    Int64List(Vec<i64>),
    Float(f32),
    Bool(bool),
}

impl Value {
    /// As the C struct; it borrows `name` and `self`, which must outlive its use.
    pub(super) fn to_raw(&self, name: &str) -> sys::PJRT_NamedValue {
        use sys::NamedValueUnion as Union;
        let (value_type, value, value_size) = match self {
            Self::String(text) => {
                (sys::NAMED_VALUE_STRING, Union { string: api::bytes(text.as_bytes()) }, text.len())
            }
            Self::Int64(value) => (sys::NAMED_VALUE_INT64, Union { int64: *value }, 1),
            Self::Int64List(list) => {
                (sys::NAMED_VALUE_INT64_LIST, Union { int64_list: list.as_ptr() }, list.len())
            }
            Self::Float(value) => (sys::NAMED_VALUE_FLOAT, Union { float: *value }, 1),
            Self::Bool(value) => (sys::NAMED_VALUE_BOOL, Union { bool: *value }, 1),
        };
        let name_size = name.len();
        let name = api::bytes(name.as_bytes());
        sys::PJRT_NamedValue { name, name_size, value_type, value, value_size, ..Default::default() }
    }

    /// The name and value of a C struct; `None` for a type of a later version.
    ///
    /// # Safety
    /// The pointers in `raw` must be valid for the type and sizes it states.
    pub(super) unsafe fn from_raw(raw: &sys::PJRT_NamedValue) -> Option<(String, Self)> {
        // SAFETY: `value_type` says which member of the union is set; the pointers are the caller's to vouch for.
        unsafe {
            let value = match raw.value_type {
                sys::NAMED_VALUE_STRING => Self::String(api::string(raw.value.string, raw.value_size)),
                sys::NAMED_VALUE_INT64 => Self::Int64(raw.value.int64),
                sys::NAMED_VALUE_INT64_LIST => {
                    Self::Int64List(api::slice(raw.value.int64_list, raw.value_size).to_vec())
                }
                sys::NAMED_VALUE_FLOAT => Self::Float(raw.value.float),
                sys::NAMED_VALUE_BOOL => Self::Bool(raw.value.bool),
                _ => return None,
            };
            Some((api::string(raw.name, raw.name_size), value))
        }
    }
}
