//! Packing with text where no gradient goes back: layer by layer, matrix by matrix, each with the inputs that what is packed
//! so far gives it. Tokens count alike, and no matrix makes up for what those before it lost.

use super::mixed::Planned;
use super::residual::Metric;
use super::{Binarize, all};
use crate::Result;
use crate::data::Calibration;
use crate::model::{Layer, Model};
use crate::pass::Context;
use crate::report::Change;
use crate::runtime::{Encoder, NoObserver, Observer, RunLayer, Site};
use crate::train::moments::Moments;
use crate::train::{sweep, update};
use std::ops::Range;

/// The inputs of one site of one layer, of all steps that run it.
struct Inputs {
    layer: usize,
    site: Site,
    x: Vec<f32>,
}

impl Observer for Inputs {
    fn linear_input(&mut self, layer: usize, site: Site, x: &[f32]) {
        if (layer, site) == (self.layer, self.site) {
            self.x.extend_from_slice(x);
        }
    }
}

impl Binarize {
    /// Every layer, once, whatever the number of steps that run it.
    ///
    /// - `plan`: what the matrices become, in their order
    pub(super) fn by_steps(
        &self,
        model: &mut Model,
        text: &Calibration,
        plan: &[Planned],
        cx: &Context,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let batches = &text.batches;
        let frozen = Model { layers: Vec::new(), ..model.clone() };
        let shell = Encoder::shell(&frozen)?;
        let mut states = all(batches.len(), |i| shell.embed(&batches[i]))?;
        let mut plan = plan.iter();
        let through =
            |layers: &[Layer], steps: &[usize], i: usize, x: &[f32], seen: &mut dyn Observer| {
                let mut x = x.to_vec();
                for &l in steps {
                    let run = RunLayer::new(&layers[l], &frozen.config)?;
                    x = shell.layer(l, &run, x, &batches[i], None, seen);
                }
                Ok(x)
            };
        for steps in spans(&model.stack()) {
            let mut layers = steps.clone();
            layers.sort_unstable();
            layers.dedup();
            for l in layers {
                for (site, range) in sites(&model.layers[l]) {
                    let width = model.layers[l].linears()[range.start].1.weight.cols();
                    let mut moments = Moments::new(width, 0);
                    let see = |i: usize| {
                        let mut inputs = Inputs { layer: l, site, x: Vec::new() };
                        through(&model.layers, &steps, i, &states[i], &mut inputs)?;
                        Ok(inputs.x)
                    };
                    sweep(batches.len(), see, |_, x| {
                        moments.add(&x, &[]);
                        Ok(())
                    })?;
                    let metric = Metric::new(moments, self.damp)?;
                    for linear in &mut model.layers[l].linears_mut()[range] {
                        let planned = plan.next().expect("a form for every matrix");
                        changes.push(self.pack(linear, *planned, Some((&metric, &[])))?);
                    }
                }
                cx.finished(&mut model.layers[l])?;
                cx.progress.step()?;
            }
            update(&mut states, |i, x| through(&model.layers, &steps, i, x, &mut NoObserver))?;
        }
        Ok(())
    }
}

/// The matrices of a layer that share an input, one after the other: where they are in [`Layer::linears`].
fn sites(layer: &Layer) -> Vec<(Site, Range<usize>)> {
    let mut sites: Vec<(Site, Range<usize>)> = Vec::new();
    for (i, (role, _)) in layer.linears().into_iter().enumerate() {
        let earlier = |role: &str| layer.linears()[..i].iter().filter(|(r, _)| *r == role).count();
        let site = match Site::of(role) {
            Site::MoreUp(_) => Site::MoreUp(earlier(role)),
            Site::MoreDown(_) => Site::MoreDown(earlier(role)),
            site => site,
        };
        match sites.last_mut() {
            Some((last, range)) if *last == site => range.end = i + 1,
            _ => sites.push((site, i..i + 1)),
        }
    }
    sites
}

/// Steps that follow each other, as few as may be, so that no layer of one span is run in another.
fn spans(stack: &[usize]) -> Vec<Vec<usize>> {
    let mut spans = Vec::new();
    let (mut from, mut end) = (0, 0);
    for (step, l) in stack.iter().enumerate() {
        end = end.max(stack.iter().rposition(|other| other == l).unwrap_or(step) + 1);
        if step + 1 == end {
            spans.push(stack[from..end].to_vec());
            from = end;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_do_not_share_layers() {
        assert_eq!(spans(&[0, 1, 2]), [vec![0], vec![1], vec![2]]);
        assert_eq!(spans(&[0, 0, 1, 1]), [vec![0, 0], vec![1, 1]]);
        assert_eq!(spans(&[0, 1, 0, 1, 2]), [vec![0, 1, 0, 1], vec![2]]);
        assert_eq!(spans(&[]), Vec::<Vec<usize>>::new());
    }
}
