//! Cutting the vocabulary: the same rows out of every table of words, and the ids that config.json holds.

#[cfg(test)]
mod tests;

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

/// Keys of config.json that hold the id of a token, or a list of them.
const TOKEN_KEYS: [&str; 10] = [
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
];

impl Config {
    /// The ids of tokens that config.json names and the word table has a row for. What is beyond the table is
    /// nothing that a model can look up: some families' defaults point there.
    pub fn token_ids(&self) -> BTreeSet<u32> {
        let named = TOKEN_KEYS.iter().filter_map(|key| self.raw.get(key));
        let ids = named.flat_map(|value| match value {
            Value::Array(list) => list.iter().collect(),
            one => vec![one],
        });
        let ids = ids.filter_map(Value::as_u64).map(|id| id as usize);
        let ids = ids.chain([self.pad_id as usize]);
        ids.filter(|&id| id < self.vocab).map(|id| id as u32).collect()
    }
}

impl Model {
    /// The word table, to cut rows out of it.
    ///
    /// # Errors
    /// If it is packed.
    pub fn word_table(&self) -> Result<&Tensor> {
        match &self.embeddings.word {
            Weight::Dense(table) => Ok(table),
            packed => Err(Error::Mismatch {
                found: format!("`{}` is stored as {}", packed.name(), packed.form()),
                expected: "only rows of a dense table can be cut out".into(),
                advice: "run `vocab` before the passes that pack the word embeddings: `embed`, `binarize`, `quantize`",
            }),
        }
    }

    /// With only the words at `keep`, ascending: rows of the word table, of the masked-LM decoder and of its bias go
    /// together, and with them those of their copies that no head uses. Bytes of the rows stay as they are.
    ///
    /// # Errors
    /// If the word table is packed.
    ///
    /// # Panics
    /// If `keep` is not ascending, goes beyond the table, or lacks one of [`Config::token_ids`].
    pub fn select_words(&self, keep: &[u32]) -> Result<Model> {
        let vocab = self.config.vocab;
        assert!(keep.windows(2).all(|w| w[0] < w[1]), "ids ascend");
        assert!(keep.last().is_none_or(|&last| (last as usize) < vocab), "ids are rows");
        let mut model = self.clone();
        model.embeddings.word = Weight::Dense(rows_of(self.word_table()?, keep));
        if let Head::MaskedLm { decoder, bias, .. } = &mut model.head {
            *decoder = decoder.as_ref().map(|decoder| rows_of(decoder, keep));
            *bias = rows_of(bias, keep);
        }
        let names = &self.family.masked_lm;
        for tensor in &mut model.unused {
            let prefix = format!("{}.", names.decoder);
            let of_words = tensor.name.starts_with(&prefix) || names.bias.contains(&&*tensor.name);
            if of_words && tensor.shape.first() == Some(&vocab) {
                *tensor = rows_of(tensor, keep);
            }
        }
        let config = &mut model.config;
        config.vocab = keep.len();
        if (config.pad_id as usize) < vocab {
            config.pad_id = renumbered(keep, u64::from(config.pad_id)) as u32;
        }
        config.raw["vocab_size"] = keep.len().into();
        for key in TOKEN_KEYS {
            let Some(value) = config.raw.get_mut(key) else { continue };
            let ids = match value {
                Value::Array(list) => list.iter_mut().collect(),
                one => vec![one],
            };
            for id in ids {
                if let Some(old) = id.as_u64().filter(|&old| (old as usize) < vocab) {
                    *id = renumbered(keep, old).into();
                }
            }
        }
        Ok(model)
    }
}

fn renumbered(keep: &[u32], old: u64) -> u64 {
    let new = keep.binary_search_by_key(&old, |&id| u64::from(id));
    new.expect("every id of config.json is kept") as u64
}

/// The rows at `keep` of `[rows, …]`, byte for byte.
fn rows_of(tensor: &Tensor, keep: &[u32]) -> Tensor {
    if tensor.is_blank() {
        let shape = [&[keep.len()], &tensor.shape[1..]].concat();
        return Tensor::blank(tensor.name.clone(), tensor.dtype, &shape);
    }
    let row = tensor.bytes().len() / tensor.shape[0].max(1);
    let mut bytes = Vec::with_capacity(keep.len() * row);
    for &id in keep {
        bytes.extend_from_slice(&tensor.bytes()[id as usize * row..][..row]);
    }
    tensor.release();
    let mut shape = tensor.shape.clone();
    shape[0] = keep.len();
    Tensor::new(tensor.name.clone(), tensor.dtype, &shape, &bytes)
}
