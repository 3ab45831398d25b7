//! The files of a tokenizer, with fewer tokens.

use super::pieces::{Kind, Pieces, malformed, pair, product};
use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Hands every id of a tokenizer.json outside of its vocabulary to `visit`, with the name of its place.
///
/// # Errors
/// What `visit` refuses.
pub fn each_id(
    json: &mut Value,
    visit: &mut dyn FnMut(&mut Value, &str) -> Result<()>,
) -> Result<()> {
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        visit(&mut token["id"], "added_tokens")?;
    }
    if let Some(id) = json.pointer_mut("/padding/pad_id") {
        visit(id, "padding")?;
    }
    if let Some(id) = json.pointer_mut("/model/unk_id").filter(|id| !id.is_null()) {
        visit(id, "model.unk_id")?;
    }
    match json.get_mut("post_processor") {
        Some(processor) => of_processor(processor, visit),
        None => Ok(()),
    }
}

fn of_processor(
    processor: &mut Value,
    visit: &mut dyn FnMut(&mut Value, &str) -> Result<()>,
) -> Result<()> {
    const PLACE: &str = "post_processor";
    match processor["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            for one in processor["processors"].as_array_mut().into_iter().flatten() {
                of_processor(one, visit)?;
            }
        }
        "TemplateProcessing" => {
            let tokens = processor["special_tokens"].as_object_mut();
            for token in tokens.into_iter().flat_map(|tokens| tokens.values_mut()) {
                for id in token["ids"].as_array_mut().into_iter().flatten() {
                    visit(id, PLACE)?;
                }
            }
        }
        "BertProcessing" | "RobertaProcessing" => {
            for role in ["sep", "cls"] {
                if let Some(id) = processor.get_mut(role).and_then(|pair| pair.get_mut(1)) {
                    visit(id, PLACE)?;
                }
            }
        }
        _ => {} // ByteLevel holds none
    }
    Ok(())
}

/// Ids that tokenizer.json names outside of its vocabulary: all of them stay.
///
/// # Errors
/// [`crate::Error::Malformed`] for one that is no row of the word table, which has `rows`.
pub fn named_ids(json: &mut Value, rows: usize, path: &Path) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    each_id(json, &mut |id, place| {
        ids.insert(row(id.as_u64(), rows, place, path)?);
        Ok(())
    })?;
    Ok(ids)
}

/// `id` as a row of the word table.
fn row(id: Option<u64>, rows: usize, place: &str, path: &Path) -> Result<u32> {
    let found = |id: u64| u32::try_from(id).ok().filter(|&id| (id as usize) < rows);
    id.and_then(found).ok_or_else(|| {
        let id = id.map_or("no id".into(), |id| format!("the id {id}"));
        let found = format!("{id} in `{place}`");
        malformed(path, found, &format!("a row of the word table, which has {rows}"))
    })
}

/// tokenizer.json with the tokens at `kept` alone, each under its place in that list.
///
/// # Errors
/// As [`pair`]; [`Pieces::read`] has looked at the rest.
pub fn tokenizer_json(
    mut json: Value,
    pieces: &Pieces,
    kept: &[u32],
    path: &Path,
) -> Result<Value> {
    let new = |old: u64| kept.binary_search_by_key(&old, |&id| u64::from(id)).ok();
    each_id(&mut json, &mut |id, place| {
        let renumbered = id.as_u64().and_then(new);
        *id = json!(renumbered.unwrap_or_else(|| panic!("the ids of `{place}` are kept")));
        Ok(())
    })?;
    let model = &mut json["model"];
    match &mut model["vocab"] {
        Value::Object(map) => {
            map.retain(|_, id| match id.as_u64().and_then(new) {
                Some(renumbered) => {
                    *id = json!(renumbered);
                    true
                }
                None => false,
            });
        }
        Value::Array(list) => {
            let mut id = 0;
            list.retain(|_| {
                id += 1;
                new(id - 1).is_some()
            });
        }
        _ => {}
    }
    if let Kind::Bpe { prefix, .. } = &pieces.kind {
        let left: BTreeSet<&str> =
            kept.iter().filter_map(|id| pieces.tokens.get(id)).map(String::as_str).collect();
        let mut merges = Vec::new();
        for merge in model["merges"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            let stays = match pair(&merge, path)? {
                None => true,
                Some([a, b]) => {
                    [a, b, &product(a, b, prefix)].iter().all(|token| left.contains(token))
                }
            };
            if stays {
                merges.push(merge);
            }
        }
        model["merges"] = Value::Array(merges);
    }
    Ok(json)
}

/// Ids that the JSON file `name` beside tokenizer.json gives to tokens, the key or the value of which is the id.
///
/// # Errors
/// As [`named_ids`].
pub fn side_ids(name: &str, json: &Value, rows: usize, path: &Path) -> Result<BTreeSet<u32>> {
    let ids = match name {
        "tokenizer_config.json" => {
            let tokens = json["added_tokens_decoder"].as_object();
            tokens.into_iter().flatten().map(|(id, _)| id.parse().ok()).collect()
        }
        "added_tokens.json" => {
            json.as_object().into_iter().flatten().map(|(_, id)| id.as_u64()).collect()
        }
        _ => Vec::new(),
    };
    ids.into_iter().map(|id| row(id, rows, "added tokens", path)).collect()
}

/// The JSON file `name` with new ids; `None` where nothing changes.
pub fn side_json(name: &str, mut json: Value, kept: &[u32]) -> Option<Value> {
    let before = json.clone();
    let new = |old: u64| {
        let found = kept.binary_search_by_key(&old, |&id| u64::from(id));
        found.expect("ids of added tokens are kept")
    };
    match name {
        "tokenizer_config.json" => {
            let tokens = json.get_mut("added_tokens_decoder")?.as_object_mut()?;
            let renamed = |(id, token): (String, Value)| {
                (new(id.parse().expect("ids were read")).to_string(), token)
            };
            *tokens = std::mem::take(tokens).into_iter().map(renamed).collect();
        }
        "added_tokens.json" => {
            for id in json.as_object_mut()?.values_mut() {
                *id = json!(new(id.as_u64().expect("ids were read")));
            }
        }
        _ => return None,
    }
    (json != before).then_some(json)
}

/// vocab.txt: a token a line, by its id; `None` where an id below the last has no token.
///
/// - `json`: the new tokenizer.json
pub fn vocab_txt(json: &Value) -> Option<String> {
    let mut lines: Vec<Option<&str>> = Vec::new();
    let own = json["model"]["vocab"].as_object()?.iter();
    for (token, id) in own.map(|(token, id)| (token, id.as_u64().unwrap_or(0) as usize)) {
        lines.resize(lines.len().max(id + 1), None);
        lines[id] = Some(token);
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let place = lines.get_mut(token["id"].as_u64().unwrap_or(u64::MAX) as usize);
        if let Some(place) = place {
            *place = place.or(token["content"].as_str());
        }
    }
    lines.into_iter().map(|line| line.map(|line| format!("{line}\n"))).collect()
}

/// vocab.json: the tokens of the model with their ids.
pub fn vocab_json(json: &Value) -> Option<Map<String, Value>> {
    json["model"]["vocab"].as_object().cloned()
}

/// merges.txt: a pair a line, below the line that states the version, where `before` has one.
pub fn merges_txt(json: &Value, before: &str) -> Option<String> {
    let version = before.lines().next().filter(|line| line.starts_with("#version"));
    let mut text: String = version.into_iter().map(|line| format!("{line}\n")).collect();
    for merge in json["model"]["merges"].as_array()? {
        match merge {
            Value::Array(parts) => {
                let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                text += &format!("{}\n", parts.join(" "));
            }
            line => match line.as_str()? {
                version if version.starts_with("#version") => {}
                pair => text += &format!("{pair}\n"),
            },
        }
    }
    Some(text)
}
