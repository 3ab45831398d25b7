//! Tokens that are dropped on the way: which, and where those are that are left.
//!
//! Texts of a batch leave different numbers of tokens, so that the graph counts them: no text keeps more or fewer than
//! it would alone.

use super::graph::{Graph, Value};
use super::proto::{Attribute, Type};
use crate::model::{Score, TokenSchedule};

/// What is left of a batch, `[batch, left]` each; texts are padded behind.
#[derive(Debug, Clone)]
pub struct Left {
    /// Bool: which tokens are there.
    pub mask: Value,
    pub ids: Value,
    /// Where in its text a token stands, the length of the batch for none; `None` while all are left.
    pub places: Option<Value>,
}

/// Which of the tokens of `left` stay behind a layer: their places among these, ascending, `[batch, most]`, and which of
/// those are there. `probs`: `[batch, heads, left, left]`.
pub fn kept(
    graph: &mut Graph,
    schedule: &TokenSchedule,
    bins: &[bool],
    probs: &str,
    left: &Left,
) -> [Value; 2] {
    let g = graph;
    let score = match schedule.score {
        Score::First => {
            let first = g.slice(probs, 2, 0, 1);
            g.reduce("ReduceSum", &first, &[1, 2], false)
        }
        Score::Received => {
            let mask = g.cast(&left.mask, Type::F32);
            let queries = g.unsqueeze(&mask, &[1, 3]);
            let live = g.op("Mul", &[probs, &queries]);
            g.reduce("ReduceSum", &live, &[1, 2], false)
        }
    };
    // Before all others, in the order that they had: a power of two changes no digit.
    let mut score = score;
    for &id in &schedule.protect {
        let id = g.int(id as i64);
        let factor = g.float(2.0f32.powi(100));
        let before = g.op("Mul", &[&score, &factor]);
        let these = g.op("Equal", &[&left.ids, &id]);
        score = g.op("Where", &[&these, &before, &score]);
    }
    let nothing = g.float(-1.0);
    let score = g.op("Where", &[&left.mask, &score, &nothing]);
    let all = g.side(&left.mask, 1);
    let numbers = g.count(&left.mask, 1);
    let (zero, one) = (g.int(0), g.int(1));
    let first = g.op("Equal", &[&numbers, &zero]);
    let most = g.float(f32::MAX);
    let score = g.op("Where", &[&first, &most, &score]);
    let [_, order] = g.top(&score, &all, true);

    let live = g.cast(&left.mask, Type::I64);
    let count = g.reduce("ReduceSum", &live, &[1], true);
    let others = g.op("Sub", &[&count, &one]);
    let rank = g.op("Sub", &[&numbers, &one]);
    let from_zero = g.op("Max", &[&rank, &zero]);
    let size = g.int(bins.len() as i64);
    let scaled = g.op("Mul", &[&from_zero, &size]);
    let divisor = g.op("Max", &[&others, &one]);
    let bin = g.op("Div", &[&scaled, &divisor]);
    let last = g.int(bins.len() as i64 - 1);
    let bin = g.op("Min", &[&bin, &last]);
    let on: Vec<u8> = bins.iter().map(|&on| on as u8).collect();
    let name = format!("bins_{}", g.constants.len());
    let on = g.constant(&name, Type::Bool, &[bins.len()], move || on.clone());
    let on = g.op("Gather", &[&on, &bin]);
    let least = g.int(schedule.least as i64);
    let few = g.op("Less", &[&rank, &least]); // the first token has rank −1
    let wanted = g.op("Or", &[&on, &few]);
    let there = g.op("Less", &[&rank, &others]);
    let stays = g.op("And", &[&wanted, &there]);

    let kept = g.cast(&stays, Type::I64);
    let kept = g.reduce("ReduceSum", &kept, &[1], false);
    let most = g.reduce("ReduceMax", &kept, &[0], true);
    let places = g.op("Where", &[&stays, &order, &all]);
    let [places, _] = g.top(&places, &most, false);
    let mask = g.op("Less", &[&places, &all]);
    let end = g.op("Sub", &[&all, &one]);
    let places = g.op("Min", &[&places, &end]);
    [places, mask]
}

/// Rows of `x`, `[batch, left, width]`, at `places`.
pub fn pick_rows(graph: &mut Graph, x: &str, places: &str) -> Value {
    let places = graph.unsqueeze(places, &[-1]);
    graph.with("GatherND", &[x, &places], &[("batch_dims", Attribute::Int(1))])
}

/// `left` at `places`, of which those of `mask` are there. `tokens`: length of the batch, `[1]`.
pub fn pick(graph: &mut Graph, left: &Left, places: &str, mask: Value, tokens: &str) -> Left {
    let axis = [("axis", Attribute::Int(1))];
    let ids = graph.with("GatherElements", &[&left.ids, places], &axis);
    let stand = match &left.places {
        Some(before) => graph.with("GatherElements", &[before, places], &axis),
        None => places.to_string(),
    };
    let places = Some(graph.op("Where", &[&mask, &stand, tokens]));
    Left { mask, ids, places }
}

/// `all`, `[batch, tokens + 1, width]`, with the rows of `x`, `[batch, left, width]`, at the places of `left`. The last
/// row takes what is not there.
pub fn put(graph: &mut Graph, all: &str, x: &str, left: &Left) -> Value {
    let places = match &left.places {
        Some(places) => places.clone(),
        None => {
            let numbers = graph.count(&left.mask, 1);
            let numbers = graph.unsqueeze(&numbers, &[0]);
            let shape = graph.op("Shape", &[&left.mask]);
            graph.op("Expand", &[&numbers, &shape])
        }
    };
    let places = graph.unsqueeze(&places, &[-1]);
    let shape = graph.op("Shape", &[x]);
    let places = graph.op("Expand", &[&places, &shape]);
    graph.with("ScatterElements", &[all, &places, x], &[("axis", Attribute::Int(1))])
}
