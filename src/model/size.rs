//! Well-known encoder sizes, for programs and timings that need no checkpoint.

use std::fmt;
use std::str::FromStr;

use super::BertConfig;

/// An encoder that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// The demo's own 2-layer model.
    Tiny,
    /// all-MiniLM-L6-v2.
    MiniLm,
    /// bert-base-multilingual-cased, the recipe's.
    MBert,
    /// bert-base-uncased.
    BertBase,
    /// bert-large-uncased.
    BertLarge,
}

impl Size {
    pub const ALL: [Self; 5] = [Self::Tiny, Self::MiniLm, Self::MBert, Self::BertBase, Self::BertLarge];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::MiniLm => "minilm",
            Self::MBert => "mbert",
            Self::BertBase => "bert-base",
            Self::BertLarge => "bert-large",
        }
    }

    pub fn config(self) -> BertConfig {
        let base = BertConfig::default();
        match self {
            Self::Tiny => BertConfig {
                vocab_size: 636,
                hidden_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                intermediate_size: 128,
                max_position_embeddings: 64,
                ..base
            },
            Self::MiniLm => {
                BertConfig { hidden_size: 384, num_hidden_layers: 6, intermediate_size: 1536, ..base }
            }
            Self::MBert => BertConfig { vocab_size: 119_547, ..base },
            Self::BertBase => base,
            Self::BertLarge => BertConfig {
                hidden_size: 1024,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                intermediate_size: 4096,
                ..base
            },
        }
    }

    /// Tokens per text that suit the size: the recipe's 140, or fewer where the model reads fewer.
    pub fn max_length(self) -> usize {
        match self {
            Self::Tiny => 24,
            Self::MiniLm => 64,
            Self::MBert | Self::BertBase | Self::BertLarge => 140,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|size| size.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is none of {names}")
        })
    }
}
