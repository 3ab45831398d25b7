//! The space that is searched when the user names none.

use crate::model::{Model, Task, Weight};
use crate::{Error, Result};

const HEAD: &str = "\
# What `compress search` chooses from: a recipe in which `{ choose = [...] }` stands for one of its values, the mildest
# first; `optional = true` for a step that may be left out; `one_of` for steps of which one runs.
version = 1
";

/// A space for `model`, as TOML with its reasons: the passes that apply to it, at strengths that its task takes.
///
/// # Errors
/// [`Error::Mismatch`] where nothing is left to compress.
pub fn default_space(model: &Model) -> Result<String> {
    let dense = |w: &Weight| matches!(w, Weight::Dense(_));
    let mut linears = model.layers.iter().flat_map(|l| l.linears());
    let layers = linears.all(|(_, l)| dense(&l.weight)) && !model.layers.is_empty();
    let words = dense(&model.embeddings.word);
    let task = model.config.task;
    let mut text = HEAD.to_string();
    let plain = model.family.feature.is_none();
    if layers && plain {
        // Sentence embeddings lose several times what a classifier loses (docs/results.md).
        let sparsity = match task {
            Task::Embedding | Task::Bare | Task::MaskedLm => "0.1, 0.2, 0.3, 0.4",
            _ => "0.15, 0.3, 0.45, 0.6",
        };
        text += &format!(
            "\n[[step]]\npass = \"prune\"           # first: it needs weights that are not packed\noptional = true\n\
             mode = \"text\"            # without training: a trial takes seconds\nsparsity = {{ choose = [{sparsity}] }}\n"
        );
    }
    let flops = match task {
        Task::SequenceClassification => Some("0.85, 0.7, 0.55"),
        Task::Embedding => Some("0.95, 0.9, 0.8"),
        // What says something of every token has nothing to drop.
        _ => None,
    };
    if let Some(flops) = flops.filter(|_| plain && model.tokens.is_none() && model.layers.len() > 1)
    {
        text += &format!(
            "\n[[step]]\npass = \"tokens\"\noptional = true\nmode = \"text\"\nflops = {{ choose = [{flops}] }}\n"
        );
    }
    // A tied masked-LM head multiplies by the table, and would expand codes.
    if words && task != Task::MaskedLm {
        text += "\n[[step]]\npass = \"embed\"           # the word table: as it is, in int8, or in codes\n\
                 one_of = \"words\"\noptional = true\nmethod = \"int8\"\n\
                 \n[[step]]\npass = \"embed\"\none_of = \"words\"\npreset = { choose = [\"default\", \"small\"] }\n";
    }
    if layers {
        text += "\n[[step]]\npass = \"quantize\"        # the layers: as they are, in int8, in sign planes, or each in a form of its own\n\
                 one_of = \"layers\"\noptional = true\nembeddings = \"none\"\n\
                 \n[[step]]\npass = \"binarize\"\none_of = \"layers\"\nplanes = { choose = [4, 3, 2, 1] }\n\
                 \n[[step]]\npass = \"binarize\"        # loses least for its bytes, and takes four times as long to make\n\
                 one_of = \"layers\"\nbits = { choose = [3.0, 2.0, 1.5] }\n";
    }
    if text.len() == HEAD.len() {
        return Err(Error::Mismatch {
            found: "layers and word table of the model are packed already".into(),
            expected: "a search chooses how to cut and pack them".into(),
            advice: "start from the checkpoint as it was before, or give a --space",
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::Space;
    use super::*;
    use crate::model::testing::tiny;

    #[test]
    fn spaces_fit_the_task() {
        let of = |task| {
            let text = default_space(&tiny("bert", task, 1)).expect("a space");
            Space::parse(&text).expect("it parses");
            text
        };
        let classifier = of(Task::SequenceClassification);
        for pass in ["prune", "tokens", "embed", "quantize", "binarize"] {
            assert!(classifier.contains(&format!("pass = \"{pass}\"")), "{pass}: {classifier}");
        }
        assert!(classifier.contains("bits = ") && classifier.contains("planes = "), "{classifier}");
        assert!(of(Task::Embedding).contains("choose = [0.1, 0.2"), "milder");
        let words = of(Task::MaskedLm);
        assert!(!words.contains("tokens") && !words.contains("embed\""), "{words}");
    }

    #[test]
    fn what_is_packed_is_left_alone() {
        let mut model = tiny("bert", Task::SequenceClassification, 1);
        for linear in model.layers.iter_mut().flat_map(|l| l.linears_mut()) {
            linear.weight = linear.weight.to_int8().expect("packed");
        }
        let text = default_space(&model).expect("the word table is left");
        assert!(text.contains("embed") && !text.contains("prune"), "{text}");
        model.embeddings.word = model.embeddings.word.to_int8().expect("packed");
        model.tokens = None;
        let tokens = default_space(&model).expect("tokens may be dropped");
        assert!(tokens.contains("tokens") && !tokens.contains("embed"), "{tokens}");
        model.layers.truncate(1);
        let error = default_space(&model).expect_err("nothing is left").to_string();
        assert!(error.contains("packed already"), "{error}");
    }
}
