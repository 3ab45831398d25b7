//! Every weight of a model in a fixed order, for who trains them.

use super::*;

/// One weight of a model.
#[derive(Debug)]
pub enum Place<'a> {
    /// A matrix of a linear layer, or the word table.
    Matrix(&'a mut Weight),
    /// A bias, a LayerNorm's scale or shift, a table.
    Tensor(&'a mut Tensor),
    /// One number that scales signs of inputs.
    Scale(&'a mut Tensor),
    /// Row 0 of ERNIE's task types: the only one in use.
    FirstRow(&'a mut Tensor),
}

/// Where in the encoder a weight stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The word table.
    Words,
    /// The other tables, their LayerNorm and projection; MPNet's relative positions.
    Embeddings,
    Layer(usize),
    Head,
}

impl Model {
    /// Every weight, with the part it belongs to; in the order of `Encoder::leaves_mut`.
    pub fn places_mut(&mut self) -> Vec<(Part, Place<'_>)> {
        let e = &mut self.embeddings;
        let mut places = vec![(Part::Words, Place::Matrix(&mut e.word))];
        let mut rest: Vec<Place> = Vec::new();
        rest.extend(e.position.as_mut().map(Place::Tensor));
        rest.extend(e.token_type.as_mut().map(Place::Tensor));
        rest.extend(e.task_type.as_mut().map(Place::FirstRow));
        rest.extend(norm(&mut e.norm));
        rest.extend(e.project.iter_mut().flat_map(linear));
        rest.extend(self.relative_bias.as_mut().map(Place::Tensor));
        if let Some((table, of_table)) = &mut self.distances {
            rest.push(Place::Tensor(table));
            rest.extend(of_table.iter_mut().flat_map(norm));
        }
        places.extend(rest.into_iter().map(|p| (Part::Embeddings, p)));
        for (l, layer) in self.layers.iter_mut().enumerate() {
            let mut rest: Vec<Place> = Vec::new();
            if let Some(a) = &mut layer.attention {
                for part in [&mut a.query, &mut a.key, &mut a.value, &mut a.output] {
                    rest.extend(linear(part));
                }
                rest.extend(a.of_distances.iter_mut().flatten().flat_map(linear));
                rest.extend(a.norm.iter_mut().flat_map(norm));
                rest.extend(a.binary.iter_mut().flat_map(binary_attention));
            }
            if let Some(f) = &mut layer.ffn {
                rest.extend(linear(&mut f.up));
                rest.extend(f.gate.iter_mut().flat_map(linear));
                rest.extend(linear(&mut f.down));
                rest.extend(norm(&mut f.norm));
            }
            if let Some(n) = layer.bottleneck.as_deref_mut() {
                rest.extend(linear(&mut n.input).chain(norm(&mut n.input_norm)));
                if let Some((shared, of_shared)) = &mut n.shared {
                    rest.extend(linear(shared).chain(norm(of_shared)));
                }
                for f in &mut n.more {
                    let linears = linear(&mut f.up).chain(linear(&mut f.down));
                    rest.extend(linears.chain(norm(&mut f.norm)));
                }
                rest.extend(linear(&mut n.output).chain(norm(&mut n.output_norm)));
            }
            places.extend(rest.into_iter().map(|p| (Part::Layer(l), p)));
        }
        let mut rest: Vec<Place> = Vec::new();
        rest.extend(self.final_norm.iter_mut().flat_map(norm));
        match &mut self.head {
            Head::SequenceClassification { dense, norm: n, last, out, .. } => {
                rest.extend(linear(dense));
                rest.extend(n.iter_mut().chain(last.as_deref_mut()).flat_map(norm));
                rest.extend(linear(out));
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => {
                rest.extend(linear(out));
            }
            Head::MaskedLm { dense, norm: n, decoder, bias, .. } => {
                rest.extend(linear(dense));
                rest.extend(norm(n));
                rest.extend(decoder.as_mut().map(Place::Tensor));
                rest.push(Place::Tensor(bias));
            }
            Head::Embedding { .. } => {}
            Head::Bare { pooler, norm: n } => {
                rest.extend(pooler.iter_mut().flat_map(linear));
                rest.extend(n.iter_mut().flat_map(norm));
            }
        }
        places.extend(rest.into_iter().map(|p| (Part::Head, p)));
        places
    }
}

fn linear(linear: &mut Linear) -> impl Iterator<Item = Place<'_>> {
    std::iter::once(Place::Matrix(&mut linear.weight))
        .chain(linear.bias.as_mut().map(Place::Tensor))
        .chain(linear.elastic.as_deref_mut().into_iter().flat_map(elastic))
}

fn elastic(elastic: &mut Elastic) -> [Place<'_>; 2] {
    [Place::Tensor(&mut elastic.shift), Place::Scale(&mut elastic.scale)]
}

fn binary_attention(binary: &mut BinaryAttention) -> impl Iterator<Item = Place<'_>> {
    let BinaryAttention { query, key, value, probabilities, estimators } = binary;
    let estimators = estimators.iter_mut().flat_map(Estimators::linears_mut);
    [query, key, value, probabilities]
        .into_iter()
        .map(Place::Scale)
        .chain(estimators.flat_map(linear))
}

fn norm(norm: &mut Norm) -> impl Iterator<Item = Place<'_>> {
    std::iter::once(&mut norm.weight).chain(&mut norm.bias).map(Place::Tensor)
}
