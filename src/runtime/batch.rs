//! What a forward pass takes.

/// Texts one behind the other, without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[tokens]`
    pub ids: Vec<u32>,
    /// `[tokens]`: 0 for the first text of a pair, 1 for the second.
    pub type_ids: Vec<u32>,
    /// `[tokens]`: index of the token in its text; starts above 0 behind padding on the left.
    pub positions: Vec<u32>,
    /// `[texts + 1]`: text `s` is the tokens from `starts[s]` to `starts[s + 1]`.
    pub starts: Vec<usize>,
    /// `[texts]`: where each text stood in the data it came from.
    pub rows: Vec<usize>,
    /// `[texts]`: ids of the padding before and behind each text, where it was cut out of a padded row; empty where none
    /// was. MobileBERT makes the embedding of a word of its neighbours too.
    pub padding: Vec<[Option<u32>; 2]>,
}

impl Batch {
    /// Texts in this batch.
    pub fn texts(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|span| span[1] - span[0]).max().unwrap_or(0)
    }

    /// The texts `from..to`, as a batch of their own.
    pub fn part(&self, from: usize, to: usize) -> Batch {
        let tokens = self.starts[from]..self.starts[to];
        Batch {
            ids: self.ids[tokens.clone()].to_vec(),
            type_ids: self.type_ids[tokens.clone()].to_vec(),
            positions: self.positions[tokens.clone()].to_vec(),
            starts: self.starts[from..=to].iter().map(|s| s - tokens.start).collect(),
            rows: self.rows[from..to].to_vec(),
            padding: self.padding.get(from..to).map_or(Vec::new(), <[_]>::to_vec),
        }
    }

    /// The tokens at `kept`, ascending, each at the position that it had. Texts may lose all of theirs.
    pub fn select(&self, kept: &[usize]) -> Batch {
        let pick = |values: &[u32]| kept.iter().map(|&t| values[t]).collect();
        Batch {
            ids: pick(&self.ids),
            type_ids: pick(&self.type_ids),
            positions: pick(&self.positions),
            starts: self.starts.iter().map(|&s| kept.partition_point(|&t| t < s)).collect(),
            rows: self.rows.clone(),
            padding: self.padding.clone(),
        }
    }

    /// The first token of each text.
    pub fn firsts(&self) -> &[usize] {
        &self.starts[..self.texts()]
    }

    /// Appends a text of token `ids`, `row` of its data.
    ///
    /// # Panics
    /// If it has no token, or `type_ids` has another length.
    pub fn push(&mut self, ids: &[u32], type_ids: &[u32], row: usize) {
        assert!(!ids.is_empty() && ids.len() == type_ids.len(), "a text of {} tokens", ids.len());
        self.ids.extend(ids);
        self.type_ids.extend(type_ids);
        self.positions.extend(0..ids.len() as u32);
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.starts.push(self.ids.len());
        self.rows.push(row);
    }
}
