//! What a search chooses from: a recipe whose options may be lists, and whose steps may be left out.

use crate::recipe::{self, Recipe, passes_step};
use crate::{Error, Result};
use toml::{Table, Value};

/// Every recipe that a search may try. A point of it is one index for each axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    steps: Vec<Step>,
    axes: Vec<Axis>,
}

/// A pass with the options that all recipes give it.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    name: String,
    options: Table,
}

/// One choice.
#[derive(Debug, Clone, PartialEq)]
enum Axis {
    /// Which of these steps runs; `None`: none of them.
    Steps(Vec<Option<usize>>),
    /// The value of an option of step `step`, in the order that the space names them.
    Option { step: usize, key: String, values: Vec<Value> },
}

impl Axis {
    fn len(&self) -> usize {
        match self {
            Axis::Steps(of) => of.len(),
            Axis::Option { values, .. } => values.len(),
        }
    }
}

/// Names and options of the steps of a recipe, unchecked.
pub type Steps = Vec<(String, Table)>;

impl Space {
    /// Parses a TOML recipe in which
    ///
    /// - `option = { choose = [a, b, c] }` stands for one of these values,
    /// - `optional = true` marks a step that may be left out,
    /// - `one_of = "name"` marks steps of which one runs: all those that give the same name.
    ///
    /// # Errors
    /// [`Error::Recipe`] for what breaks this grammar, and for passes and options that there are none of. What a pass
    /// does not take shows when it is tried.
    pub fn parse(text: &str) -> Result<Space> {
        let mut space = Space { steps: Vec::new(), axes: Vec::new() };
        let mut groups: Vec<(String, usize)> = Vec::new();
        for (index, (name, mut options)) in recipe::read_toml(text)?.into_iter().enumerate() {
            let optional = match options.remove("optional") {
                None => false,
                Some(Value::Boolean(optional)) => optional,
                Some(other) => return Err(bad(&format!("optional = {other}"), "true or false")),
            };
            let group = match options.remove("one_of") {
                None => None,
                Some(Value::String(group)) => Some(group),
                Some(other) => return Err(bad(&format!("one_of = {other}"), "a name in quotes")),
            };
            let known = group.as_ref().and_then(|g| groups.iter().find(|(name, _)| name == g));
            match (known, group) {
                (Some(&(_, axis)), _) => space.joins(axis, index, optional),
                (None, Some(group)) => {
                    groups.push((group, space.axes.len()));
                    space.axes.push(Axis::Steps(vec![Some(index)]));
                    if optional {
                        space.joins(space.axes.len() - 1, index, optional);
                    }
                }
                (None, None) if optional => space.axes.push(Axis::Steps(vec![None, Some(index)])),
                (None, None) => {}
            }
            let mut fixed = Table::new();
            let mut first = Table::new();
            for (key, value) in options {
                let values = choices(&key, value)?;
                first.insert(key.clone(), values[0].clone());
                match &values[..] {
                    [value] => drop(fixed.insert(key, value.clone())),
                    _ => space.axes.push(Axis::Option { step: index, key, values }),
                }
            }
            if let Err(e @ (Error::UnknownPass { .. } | Error::UnknownOption { .. })) =
                Recipe::from_steps(vec![(name.clone(), first)], &[])
            {
                return Err(e);
            }
            space.steps.push(Step { name, options: fixed });
        }
        Ok(space)
    }

    /// Adds step `index` to those of which `axis` chooses one, or none where one of them is `optional`.
    fn joins(&mut self, axis: usize, index: usize, optional: bool) {
        let Axis::Steps(of) = &mut self.axes[axis] else {
            unreachable!("groups are axes of steps")
        };
        if optional && of[0].is_some() {
            of.insert(0, None);
        }
        if !of.contains(&Some(index)) {
            of.push(Some(index));
        }
    }

    /// Every step by itself, with each value that an option of it may have, those that are refused left out: what passes
    /// of this space need and read.
    pub fn passes(&self) -> Vec<recipe::Step> {
        let mut found = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let mut first = step.options.clone();
            let mut others = Vec::new();
            for axis in &self.axes {
                if let Axis::Option { step, key, values } = axis
                    && *step == index
                {
                    first.insert(key.clone(), values[0].clone());
                    others.extend(values[1..].iter().map(|value| (key.clone(), value.clone())));
                }
            }
            let with = |(key, value)| {
                let mut options = first.clone();
                options.insert(key, value);
                options
            };
            let all = std::iter::once(first.clone()).chain(others.into_iter().map(with));
            let recipes =
                all.map(|options| Recipe::from_steps(vec![(step.name.clone(), options)], &[]));
            found.extend(recipes.filter_map(Result::ok).flat_map(|recipe| recipe.steps));
        }
        found
    }

    /// Choices of each axis.
    pub fn lens(&self) -> Vec<usize> {
        self.axes.iter().map(Axis::len).collect()
    }

    /// The recipe at `point`, unchecked.
    ///
    /// # Panics
    /// If `point` is none of this space.
    pub fn steps(&self, point: &[usize]) -> Steps {
        assert_eq!(point.len(), self.axes.len(), "an index for each axis");
        let mut runs = vec![true; self.steps.len()];
        let mut steps: Steps =
            self.steps.iter().map(|s| (s.name.clone(), s.options.clone())).collect();
        for (axis, &at) in self.axes.iter().zip(point) {
            match axis {
                Axis::Steps(of) => {
                    for &step in of.iter().flatten() {
                        runs[step] = of[at] == Some(step);
                    }
                }
                Axis::Option { step, key, values } => {
                    steps[*step].1.insert(key.clone(), values[at].clone());
                }
            }
        }
        let mut runs = runs.into_iter();
        steps.retain(|_| runs.next().unwrap_or(false));
        steps
    }

    /// The points one choice away: the next value of an option either way, any other of the steps.
    pub fn neighbours(&self, point: &[usize]) -> Vec<Vec<usize>> {
        let mut found = Vec::new();
        for (i, (axis, &at)) in self.axes.iter().zip(point).enumerate() {
            let others: Vec<usize> = match axis {
                Axis::Steps(of) => (0..of.len()).filter(|&other| other != at).collect(),
                Axis::Option { values, .. } => {
                    (0..values.len()).filter(|other| other.abs_diff(at) == 1).collect()
                }
            };
            found.extend(others.into_iter().map(|other| {
                let mut point = point.to_vec();
                point[i] = other;
                point
            }));
        }
        found
    }

    /// As the TOML that [`Space::parse`] takes, in one form whatever it was parsed from.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("version = 1\n");
        for (index, step) in self.steps.iter().enumerate() {
            text += &format!("\n[[step]]\npass = \"{}\"\n", step.name);
            for (i, axis) in self.axes.iter().enumerate() {
                match axis {
                    Axis::Steps(of) if of.contains(&Some(index)) => {
                        if of[0].is_none() {
                            text += "optional = true\n";
                        }
                        if of.iter().flatten().count() > 1 {
                            text += &format!("one_of = \"{}\"\n", i + 1);
                        }
                    }
                    Axis::Option { step, key, values } if *step == index => {
                        let values = Value::Array(values.clone());
                        text += &format!("{key} = {{ choose = {values} }}\n");
                    }
                    _ => {}
                }
            }
            text += &step.options.to_string();
        }
        text
    }
}

/// `steps` as `--passes` takes them, whether they make a recipe or not.
pub fn passes_of(steps: &Steps) -> String {
    let steps = steps.iter().map(|(name, options)| passes_step(name, options.iter()));
    steps.collect::<Vec<_>>().join(",")
}

/// The values that an option may have.
fn choices(key: &str, value: Value) -> Result<Vec<Value>> {
    let Value::Table(mut table) = value else { return Ok(vec![value]) };
    match table.remove("choose") {
        Some(Value::Array(values)) if !values.is_empty() && table.is_empty() => Ok(values),
        _ => Err(bad(&format!("{key} = {{ … }}"), "a value, or `{ choose = [a, b, …] }`")),
    }
}

fn bad(found: &str, expected: &str) -> Error {
    Error::Recipe { found: format!("`{found}` in a search space"), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        version = 1
        [[step]]
        pass = "prune"
        optional = true
        mode = "text"
        sparsity = { choose = [0.25, 0.5] }
        [[step]]
        pass = "quantize"
        one_of = "layers"
        embeddings = "none"
        [[step]]
        pass = "binarize"
        one_of = "layers"
        planes = { choose = [4, 3, 2] }
    "#;

    fn passes(space: &Space, point: &[usize]) -> String {
        passes_of(&space.steps(point))
    }

    #[test]
    fn a_point_is_a_recipe() {
        let space = Space::parse(TEXT).expect("a space");
        assert_eq!(space.lens(), [2, 2, 2, 3]);
        assert_eq!(passes(&space, &[0, 1, 0, 2]), "quantize(embeddings=none)");
        assert_eq!(
            passes(&space, &[1, 1, 1, 2]),
            "prune(mode=text,sparsity=0.5),binarize(planes=2)"
        );
        assert_eq!(
            Space::parse(&space.to_toml()).expect("its own TOML").to_toml(),
            space.to_toml()
        );
    }

    #[test]
    fn a_step_of_several_may_be_none() {
        let text = TEXT.replace("pass = \"binarize\"", "pass = \"binarize\"\noptional = true");
        let space = Space::parse(&text).expect("a space");
        assert_eq!(space.lens(), [2, 2, 3, 3]);
        assert_eq!(passes(&space, &[0, 0, 0, 0]), "");
        assert_eq!(Space::parse(&space.to_toml()).expect("its own TOML").lens(), space.lens());
    }

    #[test]
    fn neighbours_differ_in_one_choice() {
        let space = Space::parse(TEXT).expect("a space");
        let near = space.neighbours(&[1, 0, 1, 0]);
        assert_eq!(near, [[0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1]]);
        assert_eq!(space.neighbours(&[0, 0, 0, 1]).len(), 5, "two planes and four");
    }

    #[test]
    fn its_passes_have_every_value() {
        let space = Space::parse(&TEXT.replace("[4, 3, 2]", "[4, 9, 2]")).expect("a space");
        let passes: Vec<String> = space
            .passes()
            .iter()
            .map(|s| format!("{} {:?}", s.name, s.options.get("planes")))
            .collect();
        let one = "prune None";
        assert_eq!(
            passes,
            [one, one, "quantize None", "binarize Some(Integer(4))", "binarize Some(Integer(2))"]
        );
    }

    #[test]
    fn mistakes_are_named() {
        let error = |step: &str| {
            let text = format!("version = 1\n[[step]]\n{step}");
            Space::parse(&text).expect_err("no space").to_string()
        };
        insta::assert_snapshot!(error("pass = \"pruen\""), @"no pass is named `pruen`, did you mean `prune`?; this build knows: vocab, prune, tokens, embed, binarize, quantize, distill");
        insta::assert_snapshot!(error("pass = \"quantize\"\nfrom = { choose = [1] }"), @"pass `quantize` has no option `from`, did you mean `form`?; it knows: embeddings, form, head");
        insta::assert_snapshot!(error("pass = \"quantize\"\nform = { choose = [] }"), @"cannot read the recipe: found `form = { … }` in a search space, expected a value, or `{ choose = [a, b, …] }`");
        insta::assert_snapshot!(error("pass = \"quantize\"\noptional = 1"), @"cannot read the recipe: found `optional = 1` in a search space, expected true or false");
        insta::assert_snapshot!(error("pass = \"quantize\"\none_of = 1"), @"cannot read the recipe: found `one_of = 1` in a search space, expected a name in quotes");
    }
}
