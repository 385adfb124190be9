//! What a weight is called here, in a file, and among the tensors of one.

use crate::model::ENCODER;

/// The name under which [`TensorFiles`](super::TensorFiles) keep a weight: without the encoder's prefix, which some
/// files have and others don't.
pub fn key(name: &str) -> &str {
    name.strip_prefix(ENCODER).and_then(|name| name.strip_prefix('.')).unwrap_or(name)
}

/// The name under which a file's tensor is kept; `None` for the numbers of the positions, which are no weight. The older
/// `gamma` and `beta` of a `LayerNorm` become `weight` and `bias`.
pub(super) fn normalize(name: &str) -> Option<String> {
    let bare = key(name);
    if bare == "embeddings.position_ids" {
        return None;
    }
    let renamed = [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")];
    for (old, new) in renamed {
        if let Some(stem) = bare.strip_suffix(old) {
            return Some(format!("{stem}{new}"));
        }
    }
    Some(bare.to_owned())
}

/// Whether a key is that of an encoder's weight, or of its pooler's, and not of a head of whatever kind.
pub(super) fn is_encoders(key: &str) -> bool {
    ["embeddings.", "encoder.", "pooler."].iter().any(|part| key.starts_with(part))
}
