//! MobileBERT: layers that work in a narrow stream, and words that are made of three.

use super::encoder::{Dense, Encoder, Inputs, RunBottleneck, RunLayer, add_table_row};
use super::kernels::arena;
use super::lookup::Lookup;
use super::{Batch, Observer, Site};
use crate::Result;

impl Encoder<'_> {
    /// As [`Encoder::layer`], of one with a bottleneck.
    pub(super) fn through_bottleneck(
        &self,
        index: usize,
        (layer, neck): (&RunLayer, &RunBottleneck),
        x: Vec<f32>,
        batch: &Batch,
        observer: &mut dyn Observer,
    ) -> Vec<f32> {
        let tokens = batch.tokens();
        observer.linear_input(index, Site::Narrow, &x);
        let mut y = neck.input.forward_rows(&x, tokens);
        neck.input_norm.apply(&mut y);
        if let Some(attention) = &layer.attention {
            let shared = neck.shared.as_ref().map(|(linear, norm)| {
                let mut shared = linear.forward_rows(&x, tokens);
                norm.apply(&mut shared);
                shared
            });
            let input = shared.as_deref().unwrap_or(&y);
            observer.linear_input(index, Site::QueryKeyValue, input);
            let inputs = Inputs::new(input, tokens);
            let qkv = match &shared {
                Some(_) => {
                    observer.linear_input(index, Site::Value, &x);
                    attention.query_key_value_of(&inputs, &Inputs::new(&x, tokens))
                }
                None => attention.query_key_value_of(&inputs, &inputs),
            };
            let mut seen = |head: usize, text: usize, probs: &mut [f32]| {
                observer.attention(index, head, text, probs);
            };
            let state = self.context_of(attention, qkv, input, batch, None, &mut seen);
            observer.linear_input(index, Site::AttentionOutput, &state.context);
            drop(inputs);
            let next = attention.finish(&state.context, &y);
            arena::give_all([state.qkv, state.context, shared.unwrap_or_default()]);
            arena::give(std::mem::replace(&mut y, next));
        }
        let more = neck.more.iter().enumerate();
        let more = more.map(|(i, ffn)| (ffn, [Site::MoreUp(i), Site::MoreDown(i)]));
        let own = layer.ffn.iter().map(|ffn| (ffn, [Site::Up, Site::Down]));
        for (ffn, [up, down]) in more.chain(own) {
            if !observer.watches() {
                let next = ffn.run(&y);
                arena::give(std::mem::replace(&mut y, next));
                continue;
            }
            observer.linear_input(index, up, &y);
            let units = ffn.units(&y);
            observer.linear_input(index, down, &units);
            y = ffn.finish(&units, &y);
        }
        observer.linear_input(index, Site::Widen, &y);
        let mut out = neck.output.forward_rows(&y, tokens);
        neck.output_norm.apply_sum(&mut out, &x);
        arena::give_all([x, y]);
        out
    }

    /// What the projection makes of each word, or of the next one, itself and the one before it, `[tokens, hidden]`.
    ///
    /// Beyond the ends of a text there is nothing, or the padding that its batch says.
    ///
    /// # Errors
    /// If the table is of no floating type.
    pub(super) fn projected_words(&self, project: &Dense, batch: &Batch) -> Result<Vec<f32>> {
        let (table, width) = (&self.model.embeddings.word, self.model.config.embedding);
        let beside = |text: usize| batch.padding.get(text).copied().unwrap_or_default();
        let mut ids = batch.ids.clone();
        ids.extend(batch.padding.iter().flatten().flatten());
        ids.retain(|&id| (id as usize) < self.model.config.vocab);
        let looked_up = Lookup::of(table, &ids);
        let row = |id: Option<u32>, out: &mut [f32]| -> Result<()> {
            // Padding outside the table is no word.
            let Some(id) = id.filter(|&id| (id as usize) < self.model.config.vocab) else {
                return Ok(());
            };
            match (&self.word, &looked_up) {
                (Some(words), _) => {
                    out.copy_from_slice(&words[id as usize * width..(id as usize + 1) * width]);
                    Ok(())
                }
                (None, Some(rows)) => {
                    out.copy_from_slice(rows.row(id));
                    Ok(())
                }
                (None, None) => add_table_row(table, id as usize, out),
            }
        };
        let mut x = vec![0.0; batch.tokens() * project.input];
        for (text, span) in batch.starts.windows(2).enumerate() {
            let ids = &batch.ids[span[0]..span[1]];
            let [before, behind] = beside(text);
            let rows = x[span[0] * project.input..].chunks_exact_mut(project.input);
            for (t, out) in (0..ids.len()).zip(rows) {
                let last = t.checked_sub(1).map_or(before, |t| Some(ids[t]));
                let next = ids.get(t + 1).copied().or(behind);
                if project.input == width {
                    row(Some(ids[t]), out)?;
                    continue;
                }
                for (id, out) in [next, Some(ids[t]), last].into_iter().zip(out.chunks_mut(width)) {
                    row(id, out)?;
                }
            }
        }
        Ok(project.forward(&x))
    }
}
