//! The tensors of layers, by the names and widths of their family.

use super::super::*;
use super::Reader;

/// DeBERTa's table of distances, and its LayerNorm.
pub(super) fn distances(
    reader: &mut Reader,
    family: &Family,
) -> Result<Option<(Tensor, Option<Norm>)>> {
    let (Some(names), Some(distances)) = (family.distances, reader.config.features.distances)
    else {
        return Ok(None);
    };
    let hidden = reader.config.hidden;
    let name = format!("{}{}.weight", reader.prefix, names.table);
    let table = reader.tensor(&name, &[2 * distances.span(), hidden], "position_buckets")?;
    let norm = format!("{}{}", reader.prefix, names.norm);
    let norm = match distances.norm {
        true => Some(reader.norm(&norm, hidden, family.keys.hidden)?),
        false => None,
    };
    Ok(Some((table, norm)))
}

/// Layer `index` of those that are stored.
pub(super) fn layer(reader: &mut Reader, family: &Family, index: usize) -> Result<Layer> {
    let structure = reader.structure;
    let (wide, head_dim) = (reader.config.hidden, reader.config.head_dim);
    let narrow = reader.config.features.bottleneck;
    let hidden = narrow.map_or(wide, |n| n.width);
    let values = narrow.filter(|n| n.shared).map_or(hidden, |_| wide);
    let keys = &family.keys;
    let layer = family.layer_prefix(index, reader.config.inner);
    let prefix = reader.prefix;
    let at = |name: &str| format!("{prefix}{layer}{name}");
    let names = [family.query, family.key, family.value, family.attention_output].map(at);
    let [up, down] = [family.up, family.down].map(at);
    let [attention_norm, ffn_norm] = [family.attention_norm, family.ffn_norm].map(at);

    let attention = match structure.heads(index) {
        None => None,
        Some(heads) => {
            let heads = heads.to_vec();
            let width = heads.len() * head_dim;
            let [query, key, value, output] = &names;
            let joined = family.joined_attention.map(at);
            if let Some(name) = &joined {
                reader.split(name, &[query, key, value], width, hidden)?;
            }
            let bias = reader.config.features.biases.attention;
            let name = query;
            let query = reader.linear_with(name, [width, hidden], keys.hidden, bias)?;
            let binary = match &query.elastic {
                Some(_) => Some(reader.binary_attention(name, hidden)?),
                None => None,
            };
            Some(Attention {
                query,
                key: reader.linear_with(key, [width, hidden], keys.hidden, bias)?,
                value: reader.linear_with(value, [width, values], keys.hidden, bias)?,
                output: reader.linear_with(output, [hidden, width], keys.hidden, bias)?,
                norm: match family.final_norm {
                    Some(_) if index == 0 => None,
                    _ => Some(reader.norm(&attention_norm, hidden, keys.hidden)?),
                },
                heads,
                head_dim,
                binary,
                rotary: reader.config.features.rotary.get(index).copied(),
                of_distances: of_distances(reader, family, &at, [width, hidden])?,
                joined,
            })
        }
    };
    let ffn = match structure.units(index) {
        None => None,
        Some(units) => {
            let (joined, gate) = (family.joined_ffn.map(at), family.gate.map(at));
            if let (Some(name), Some(gate)) = (&joined, &gate) {
                reader.split(name, &[&up, gate], units, hidden)?;
            }
            let bias = reader.config.features.biases.ffn;
            Some(FeedForward {
                up: reader.linear_with(&up, [units, hidden], keys.ffn, bias)?,
                gate: match gate {
                    Some(gate) => {
                        Some(reader.linear_with(&gate, [units, hidden], keys.ffn, bias)?)
                    }
                    None => None,
                },
                down: reader.linear_with(&down, [hidden, units], keys.ffn, bias)?,
                norm: reader.norm(&ffn_norm, hidden, keys.hidden)?,
                joined,
            })
        }
    };
    let bottleneck = bottleneck(reader, family, &at)?.map(Box::new);
    Ok(Layer { attention, ffn, bottleneck })
}

/// What MobileBERT's blocks stand in.
fn bottleneck(
    reader: &mut Reader,
    family: &Family,
    at: &impl Fn(&str) -> String,
) -> Result<Option<Bottleneck>> {
    let (Some(prefix), Some(narrow)) = (family.bottleneck, reader.config.features.bottleneck)
    else {
        return Ok(None);
    };
    let (hidden, width, units) = (reader.config.hidden, narrow.width, reader.config.ffn);
    let (key, keys) = ("intra_bottleneck_size", &family.keys);
    let [input, shared] = ["input", "attention"].map(|name| at(&format!("{prefix}{name}")));
    let output = at("output.bottleneck");
    let parts = |name: &str| [format!("{name}.dense"), format!("{name}.LayerNorm")];
    let mut way = |name: &str, shape: [usize; 2]| {
        let [dense, norm] = parts(name);
        Ok::<_, Error>((reader.linear(&dense, shape, key)?, reader.norm(&norm, shape[0], key)?))
    };
    let (input, input_norm) = way(&input, [width, hidden])?;
    let (output, output_norm) = way(&output, [hidden, width])?;
    let of_keys = match narrow.shared {
        true => Some(way(&shared, [width, hidden])?),
        false => None,
    };
    // Where all is made of one, the other may be stored all the same.
    reader.idle.push(shared + ".");
    let mut more = Vec::new();
    for i in 0..narrow.ffns - 1 {
        let name = |part: &str| at(&format!("ffn.{i}.{part}"));
        let [down, norm] = parts(&name("output"));
        more.push(FeedForward {
            up: reader.linear(&name("intermediate.dense"), [units, width], keys.ffn)?,
            gate: None,
            down: reader.linear(&down, [width, units], keys.ffn)?,
            norm: reader.norm(&norm, width, key)?,
            joined: None,
        });
    }
    Ok(Some(Bottleneck { input, input_norm, shared: of_keys, more, output, output_norm }))
}

/// What makes keys and queries of distances in a layer, where they have matrices of their own.
fn of_distances(
    reader: &mut Reader,
    family: &Family,
    at: &impl Fn(&str) -> String,
    shape: [usize; 2],
) -> Result<[Option<Linear>; 2]> {
    let (Some(names), Some(distances)) = (family.distances, reader.config.features.distances)
    else {
        return Ok([None, None]);
    };
    let mut own = |wanted: bool, name: &str| match wanted && !distances.shared {
        true => reader.linear(&at(name), shape, family.keys.hidden).map(Some),
        false => Ok(None),
    };
    Ok([own(distances.c2p, names.key)?, own(distances.p2c, names.query)?])
}
