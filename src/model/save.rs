//! The `compress` entry of config.json: what the shapes alone do not say (docs/format.md).

use super::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Version of the `compress` entry. A reader refuses what is newer than itself.
pub const FORMAT_VERSION: u64 = 1;

/// What is left of each layer, and what is said of packed matrices.
#[derive(Debug)]
pub(super) struct Structure {
    layers: Vec<(Option<Vec<usize>>, Option<usize>)>,
    packed: BTreeMap<String, Packed>,
    pub tokens: Option<TokenSchedule>,
}

impl Structure {
    /// Reads the entry; without one, every layer is whole.
    pub fn read(config: &Config) -> Result<Structure> {
        let whole = (Some((0..config.heads).collect()), Some(config.ffn));
        let Some(entry) = config.raw.get("compress") else {
            return Ok(Structure {
                layers: vec![whole; config.layers],
                packed: BTreeMap::new(),
                tokens: None,
            });
        };
        let bad = |key: String, found: &Value, expected: String| Error::Config {
            key: format!("compress.{key}"),
            found: found.to_string(),
            expected,
            advice: "use the config.json that was written with these weights",
        };
        match entry["version"].as_u64() {
            Some(FORMAT_VERSION) => {}
            _ => {
                let expected = format!("{FORMAT_VERSION}, the version that this build reads");
                return Err(bad("version".into(), &entry["version"], expected));
            }
        }
        let empty = Vec::new();
        let list = entry["layers"].as_array().unwrap_or(&empty);
        if list.len() != config.layers {
            let found = json!(list.len());
            return Err(bad("layers".into(), &found, format!("{} entries", config.layers)));
        }
        let layer = |(i, layer): (usize, &Value)| {
            let heads = match &layer["heads"] {
                Value::Null => None,
                found => Some(head_list(found, config.heads).ok_or_else(|| {
                    let expected = format!("null or ascending numbers below {}", config.heads);
                    bad(format!("layers[{i}].heads"), found, expected)
                })?),
            };
            let units = match &layer["ffn"] {
                Value::Null => None,
                found => match found.as_u64() {
                    Some(n) if n < 1 << 24 => Some(n as usize),
                    _ => {
                        let expected = "null or a number of units".into();
                        return Err(bad(format!("layers[{i}].ffn"), found, expected));
                    }
                },
            };
            Ok((heads, units))
        };
        let layers = list.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let mut packed = BTreeMap::new();
        for (name, said) in entry["packed"].as_object().into_iter().flatten() {
            if !FORMS.map(Value::from).contains(&said["form"]) {
                let known = FORMS.map(|form| format!("\"{form}\"")).join(", ");
                let expected = format!("{known}: the forms that this build reads");
                return Err(bad(format!("packed.{name}.form"), &said["form"], expected));
            }
            let bits = &said["activations"];
            let known = bits.is_null() || bits.is_u64();
            // Signs of inputs are told by the tensors that scale them.
            let rounded = bits.as_u64().filter(|&bits| bits != 1);
            let activations = Activations::of_bits(rounded).filter(|_| known);
            let activations = activations.ok_or_else(|| {
                bad(format!("packed.{name}.activations"), bits, "null, 8, 4 or 1".into())
            })?;
            let group = said["group"].as_u64().map(|g| g as usize);
            let errors = match &said["error"] {
                Value::Null => None,
                found => Some(table_errors(found).ok_or_else(|| {
                    let expected = "null, or numbers `uniform` and `frequency`".into();
                    bad(format!("packed.{name}.error"), found, expected)
                })?),
            };
            let digits = match &said["codes"] {
                Value::Null => false,
                Value::String(codes) if codes == "digits" => true,
                found => {
                    let expected = "null, or \"digits\"".into();
                    return Err(bad(format!("packed.{name}.codes"), found, expected));
                }
            };
            packed.insert(name.clone(), Packed { group, activations, errors, digits });
        }
        let tokens = TokenSchedule::read(&entry["tokens"], config.layers)?;
        Ok(Structure { layers, packed, tokens })
    }

    /// The heads left in a layer; `None` when its attention is gone.
    pub fn heads(&self, layer: usize) -> Option<&[usize]> {
        self.layers[layer].0.as_deref()
    }

    /// The feed-forward units left in a layer; `None` when its block is gone.
    pub fn units(&self, layer: usize) -> Option<usize> {
        self.layers[layer].1
    }

    /// What is said of the packed matrix `name`.
    pub fn packed(&self, name: &str) -> Packed {
        self.packed.get(name).copied().unwrap_or_default()
    }
}

/// What tensors do not say of a packed matrix.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packed {
    /// Columns that share a scale; `None` for all of a row.
    pub group: Option<usize>,
    pub activations: Activations,
    /// Of a table.
    pub errors: Option<TableErrors>,
    /// Of a table whose codes are the digits of its ids: none are stored.
    pub digits: bool,
}

/// What `form` says of a packed matrix.
const FORMS: [&str; 5] = ["binary", "double", "int8", "subspace", "factored"];

fn table_errors(said: &Value) -> Option<TableErrors> {
    let [uniform, frequency] = ["uniform", "frequency"].map(|key| said[key].as_f64());
    Some(TableErrors { uniform: uniform?, frequency: frequency? })
}

fn head_list(found: &Value, heads: usize) -> Option<Vec<usize>> {
    let list: Option<Vec<usize>> =
        found.as_array()?.iter().map(|h| h.as_u64().map(|h| h as usize)).collect();
    list.filter(|l| l.windows(2).all(|w| w[0] < w[1]) && l.iter().all(|&h| h < heads))
}

impl Model {
    /// config.json of this model: as it was read when nothing changed, else with a `compress` entry
    /// that holds `recipe`, and with the feed-forward width where all layers share one, so that
    /// Transformers loads what it can load.
    pub fn config_json(&self, recipe: &Value) -> Value {
        let config = &self.config;
        let mut raw = config.raw.clone();
        let whole = |l: &Layer| {
            l.attention.as_ref().is_some_and(|a| a.heads.len() == config.heads)
                && l.ffn.as_ref().is_some_and(|f| f.units() == config.ffn)
        };
        let packed = self.packed();
        let narrower = config.hidden < config.pooled;
        let untouched = raw.get("compress").is_none()
            && packed.is_empty()
            && !narrower
            && self.tokens.is_none();
        if untouched && self.layers.iter().all(whole) && recipe.is_null() {
            return raw;
        }
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| {
                let heads = l.attention.as_ref().map(|a| &a.heads);
                let units = l.ffn.as_ref().map(FeedForward::units);
                json!({"heads": heads, "ffn": units})
            })
            .collect();
        raw["compress"] = json!({
            "version": FORMAT_VERSION,
            "recipe": recipe,
            "head_dim": config.head_dim,
            "layers": layers,
            "packed": packed,
        });
        if narrower {
            raw["compress"]["hidden"] = json!(config.hidden);
        }
        if let Some(tokens) = &self.tokens {
            raw["compress"]["tokens"] = tokens.to_json();
        }
        if config.shared.is_none() {
            raw[self.family.keys.layers] = json!(config.layers);
        }
        if let Some(width) = self.uniform_ffn() {
            raw[self.family.keys.ffn] = json!(width);
        }
        raw
    }

    /// As it is stored: without layers that have lost both blocks, the others renumbered. One layer stays,
    /// whatever it has.
    pub fn compacted(&self) -> Model {
        let mut model = self.clone();
        let full = |l: &Layer| l.attention.is_some() || l.ffn.is_some();
        // Layers that are run again have their places in groups.
        if self.layers.iter().all(full) || self.config.shared.is_some() {
            return model;
        }
        let prefix = self.family.layer;
        let rename = |name: &mut String, to: usize| {
            let Some(at) = name.find(prefix).map(|i| i + prefix.len()) else { return };
            let digits = name[at..].find('.').unwrap_or(0);
            name.replace_range(at..at + digits, &to.to_string());
        };
        if let Some(tokens) = &mut model.tokens {
            let cuts = tokens.layers.drain(..).zip(&model.layers);
            let mut left: Vec<_> = cuts.filter(|(_, l)| full(l)).map(|(cut, _)| cut).collect();
            left.resize(left.len().max(1), None);
            tokens.layers = left;
        }
        model.layers.retain(full);
        if model.layers.is_empty() {
            model.layers.push(Layer { attention: None, ffn: None, bottleneck: None });
        }
        model.config.layers = model.layers.len();
        for (part, place) in model.places_mut() {
            let Part::Layer(to) = part else { continue };
            match place {
                Place::Matrix(weight) => rename(weight.prefix_mut(), to),
                Place::Tensor(tensor) | Place::Scale(tensor) | Place::FirstRow(tensor) => {
                    rename(&mut tensor.name, to)
                }
            }
        }
        model
    }

    /// The feed-forward width, when it is the same in every layer that is not empty.
    pub fn uniform_ffn(&self) -> Option<usize> {
        let full = |l: &&Layer| l.attention.is_some() || l.ffn.is_some();
        let mut widths =
            self.layers.iter().filter(full).map(|l| l.ffn.as_ref().map(FeedForward::units));
        let first = widths.next()??;
        widths.all(|w| w == Some(first)).then_some(first).filter(|&w| w > 0)
    }

    /// Whether stock Transformers classes load the model and compute what it computes: the tensors, and no tokens
    /// dropped on the way.
    pub fn loads_natively(&self) -> bool {
        self.tensors_load_natively() && self.tokens.is_none()
    }

    /// Whether stock Transformers classes load the tensors: nothing packed, all heads left, one feed-forward
    /// width, no block gone but with its layer. Of a schedule of tokens they know nothing, and compute all.
    pub fn tensors_load_natively(&self) -> bool {
        let heads = |l: &Layer| {
            l.attention.as_ref().is_some_and(|a| a.heads.len() == self.config.heads)
                || l.ffn.is_none() && l.attention.is_none()
        };
        let wide = self.config.hidden == self.config.pooled;
        wide && self.packed().is_empty()
            && self.layers.iter().all(heads)
            && self.uniform_ffn().is_some()
    }

    /// Every packed matrix by name, with its parameters.
    fn packed(&self) -> Map<String, Value> {
        let said =
            |errors: TableErrors| json!({"uniform": errors.uniform, "frequency": errors.frequency});
        self.weights()
            .into_iter()
            .filter_map(|(weight, activations)| {
                let entry = match weight {
                    Weight::Dense(_) => return None,
                    Weight::Binary(b) => {
                        let group = (b.group < b.cols).then_some(b.group);
                        let rank = b.low_rank.as_ref().map(|l| l.rank);
                        json!({
                            "form": "binary", "planes": b.planes, "group": group, "rank": rank,
                            "activations": activations,
                        })
                    }
                    Weight::Double(d) => {
                        json!({"form": "double", "rank": d.rank, "activations": activations})
                    }
                    Weight::Int8(_) => json!({"form": "int8", "activations": activations}),
                    Weight::Subspace(s) => json!({
                        "form": "subspace", "slices": s.slices, "words": s.words,
                        "codes": matches!(s.codes, Codes::Digits).then_some("digits"),
                        "error": weight.table_errors().map(said),
                    }),
                    Weight::Factored(f) => json!({
                        "form": "factored", "rank": f.rank,
                        "error": weight.table_errors().map(said),
                    }),
                };
                Some((weight.name().to_string(), entry))
            })
            .collect()
    }

    /// Every matrix of the encoder and its head that can be packed, and the bits of what it multiplies; `None`: as
    /// it comes.
    fn weights(&self) -> Vec<(&Weight, Option<u32>)> {
        let mut weights = vec![(&self.embeddings.word, None)];
        let bits = |l: &Linear| if l.elastic.is_some() { Some(1) } else { l.activations.bits() };
        weights.extend(self.linears().into_iter().map(|l| (&l.weight, bits(l))));
        weights
    }
}
