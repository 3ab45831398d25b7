//! Budgets by formula, searches that find what is better, and gates that settle.

use super::gated::Gated;
use super::*;
use crate::data::Dataset;
use crate::data::tokenizer::Encoded;
use crate::model::Task;
use crate::model::testing::*;
use crate::pass::Quiet;
use crate::train::distillation::{Distillation, Terms};
use crate::train::gates;
use crate::train::lagrangian::{Lagrangian, Warmup};
use crate::train::objective::{Moment, Objective};
use crate::train::tape::{self, Plan};
use proptest::prelude::*;

const LENGTHS: [usize; 8] = [1, 3, 5, 9, 7, 4, 12, 2];

fn budget(model: &Model, bins: usize) -> Budget<'_> {
    Budget::new(model, LENGTHS, 0, bins, Vec::new())
}

fn run(model: &Model, tokens: &Tokens, cx: &Context) -> Result<(Model, Work)> {
    let mut after = model.clone();
    let work = tokens.run(&mut after, cx)?;
    after.validate().expect("parts that fit");
    Ok((after, work))
}

/// `macs` of the paper's formula for a model of these sizes, which is not made.
fn by_formula(d: f64, f: f64, heads: f64, lengths: &[f64]) -> f64 {
    let attention = |n: f64| 4.0 * n * d * d + 2.0 * n * n * d + heads * n * n;
    let last = lengths.len() - 1;
    let layer = |l: usize| attention(lengths[l]) + 2.0 * lengths[(l + 1).min(last)] * d * f;
    (0..lengths.len()).map(layer).sum()
}

/// The notes' numbers (§11) hold for the formula, and the formula is what a model costs.
#[test]
fn the_paper_s_formula() {
    let base = |lengths: &[f64]| by_formula(768.0, 3072.0, 12.0, lengths);
    assert_eq!(base(&[128.0; 12]), 11_175_985_152.0);
    assert_eq!(base(&[64.0; 12]), 5_511_905_280.0);
    assert!((base(&[512.0; 12]) / base(&[128.0; 12]) - 4.32679).abs() < 1e-5);
    assert_eq!(by_formula(384.0, 1536.0, 12.0, &[128.0; 6]), 1_435_631_616.0);
    let left = [64.0, 64.0, 64.0, 52.0, 52.0, 33.0, 33.0, 20.0, 20.0, 14.0, 14.0, 8.0];
    assert_eq!(base(&left), 2_868_583_032.0);

    let model = tiny("bert", Task::Embedding, 400);
    let (d, f, heads) = (HIDDEN as f64, FFN as f64, HEADS as f64);
    let found = budget::paper_macs(&model, &[9, 7, 4, 4]);
    assert_eq!(found, by_formula(d, f, heads, &[9.0, 7.0, 4.0]));
    // Where every token is read, what is computed is the formula's, without the H·n² that no product is.
    let every = tiny("bert", Task::Bare, 400);
    let whole = crate::model::cost::layer_macs(&every, None, 9) as f64;
    assert_eq!(whole + 3.0 * heads * 81.0, by_formula(d, f, heads, &[9.0; 3]));
}

#[test]
fn sites_are_where_dropping_saves() {
    let sites = |task, from| {
        let model = tiny("bert", task, 401);
        Budget::new(&model, LENGTHS, from, 10, Vec::new()).sites
    };
    assert_eq!(sites(Task::SequenceClassification, 0), [0, 1]);
    assert_eq!(sites(Task::Embedding, 0), [0, 1, 2]);
    assert_eq!(sites(Task::QuestionAnswering, 1), [1]);
    let mut model = tiny("bert", Task::SequenceClassification, 401);
    model.layers[1].attention = None;
    assert_eq!(budget(&model, 10).sites, [0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn families_meet_every_budget_they_can(flops in 0.3..1.0f64, seed in 0..6u64, bins in 20..120usize) {
        let task = TASKS[seed as usize];
        let model = tiny("bert", task, 402);
        let budget = budget(&model, bins);
        for family in Family::all(budget.sites.len(), &budget.sites, LAYERS) {
            for score in [Score::First, Score::Received] {
                let Some(schedule) = family.within(&budget, flops, score) else { continue };
                let share = budget.share(&schedule);
                prop_assert!(share <= flops + 1e-12, "{}: {share} for {flops}", family.name);
                // The shares that are left never grow.
                let lengths = schedule.lengths(12);
                prop_assert!(lengths.windows(2).all(|w| w[1] <= w[0] && w[1] >= 1));
            }
        }
    }
}

/// Over texts of all lengths, what is expected is what schedules leave, rounding included.
#[test]
fn expected_shares_are_those_of_schedules() {
    for task in TASKS {
        let model = tiny("bert", task, 403);
        let budget = Budget::new(&model, 5..20, 0, 40, Vec::new());
        for (score, rate) in
            [(Score::First, 0.5_f64), (Score::Received, 0.7), (Score::Received, 1.0)]
        {
            let rates = vec![rate; budget.sites.len()];
            let shares: Vec<f64> = (1..=rates.len()).map(|i| rate.powi(i as i32)).collect();
            let expected = budget.share(&budget.schedule(score, &shares));
            let found = budget.expected(score, &rates);
            // Where nothing goes, the score still has its price in expectation.
            let allowed = if rate == 1.0 { 1e-12 } else { 0.025 };
            assert!((found - expected).abs() < allowed, "{task:?} {score:?}: {found} {expected}");
        }
    }
}

#[test]
fn nothing_dropped_is_no_distance() {
    for task in TASKS {
        let model = tiny("roberta", task, 404);
        let text = calibration(405, 3);
        let encoder = Encoder::new(&model).expect("a model that runs");
        let judge = Judge::new(&encoder, &text.batches).expect("runs");
        let budget = budget(&model, 20);
        assert_eq!(judge.len(), 24);
        let whole = judge.of(&budget.like);
        assert!(whole.loss.abs() < 1e-6 && whole.moved < 1e-6, "{task:?}: {whole:?}");
        let half = judge.of(&budget.schedule(Score::Received, &vec![0.5; budget.sites.len()]));
        assert!(half.loss > 1e-4, "{task:?}: {half:?}");
    }
}

/// A model whose first token attends to tokens by how much they matter: dropping what matters least is better than
/// dropping at random, and that is better than dropping what matters most (T7 of the notes).
#[test]
fn what_is_found_is_better_than_a_ratio_and_no_worse_than_its_family() {
    for task in [Task::SequenceClassification, Task::Embedding] {
        let model = tiny("bert", task, 406);
        let text = calibration(407, 4);
        let cx = Context { calibration: Some(&text), ..Context::new(&model) };
        let encoder = Encoder::new(&model).expect("a model that runs");
        let judge = Judge::new(&encoder, &text.batches).expect("runs");
        let lengths = text.batches.iter().flat_map(|b| b.starts.windows(2).map(|s| s[1] - s[0]));
        let budget = Budget::new(&model, lengths, 0, 100, Vec::new());
        let scores = [Score::First, Score::Received];
        let family = search::families(&budget, 0.7, &scores, &judge, &Quiet).expect("runs");
        let family = family.expect("0.7 can be reached");
        let found = search::exchange(&budget, 0.7, &family, &judge, &Quiet).expect("runs");
        assert!(found.distance.loss <= family.distance.loss, "{task:?}");
        assert!(budget.share(&found.schedule) <= 0.7);
        let ratio = Family::geometric(budget.sites.len()).within(&budget, 0.7, Score::First);
        let ratio = judge.of(&ratio.expect("0.7 can be reached"));
        assert!(found.distance.loss <= ratio.loss, "{task:?}: {:?} {ratio:?}", found.distance);

        let tokens = Tokens { flops: 0.7, mode: Mode::Text, texts: 0, ..Tokens::default() };
        let (after, work) = run(&model, &tokens, &cx).expect("runs");
        assert_eq!(after.tokens.as_ref(), Some(&found.schedule), "{task:?}");
        assert!((work.figures["net_flops"] - budget.share(&found.schedule)).abs() < 1e-12);
    }
}

#[test]
fn a_quality_budget_is_kept() {
    let model = tiny("bert", Task::SequenceClassification, 408);
    let mut text = calibration(409, 4);
    text.held_out = vec![text.batches.pop().expect("a batch")];
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let encoder = Encoder::new(&model).expect("a model that runs");
    let moved = |batches: &[Batch], schedule: &TokenSchedule| {
        Judge::new(&encoder, batches).expect("runs").of(schedule).moved
    };
    let mut before = 1.0;
    for drop in [0.04, 0.2, 0.9] {
        let tokens = Tokens { drop: Share(drop), texts: 0, ..Tokens::default() };
        let (after, work) = run(&model, &tokens, &cx).expect("runs");
        if let Some(schedule) = &after.tokens {
            assert!(
                moved(&text.batches, schedule) <= drop && moved(&text.held_out, schedule) <= drop
            );
        }
        let left = work.figures["net_flops"];
        assert!(left <= before + 1e-12, "more may be dropped, and {left} is left after {before}");
        before = left;
    }
    assert!(before < 0.8, "{before}");
}

#[test]
fn separators_rank_first_where_asked() {
    let model = tiny("bert", Task::SequenceClassification, 410);
    let mut text = calibration(411, 3);
    for batch in &mut text.batches {
        batch.starts.clone().windows(2).for_each(|s| batch.ids[s[1] - 1] = 7);
    }
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let tokens = Tokens { protect: true, ..Tokens::default() };
    let (after, _) = run(&model, &tokens, &cx).expect("runs");
    assert_eq!(after.tokens.expect("a schedule").protect, [7]);
}

#[test]
fn shares_are_written_in_per_cent_too() {
    let parse = |value: &str| -> std::result::Result<Tokens, _> {
        toml::from_str(&format!("drop = {value}"))
    };
    assert_eq!(parse("\"0.5%\"").expect("a share").drop, Share(0.005));
    assert_eq!(parse("0.02").expect("a share").drop, Share(0.02));
    assert_eq!(parse("0").expect("a share").drop, Share(0.0));
    assert!(parse("\"five\"").is_err() && parse("\"5\"").is_err());
}

#[test]
fn what_cannot_be_done_is_refused() {
    let model = tiny("bert", Task::SequenceClassification, 412);
    let text = calibration(413, 2);
    let cx = Context { calibration: Some(&text), ..Context::new(&model) };
    let error = |tokens: Tokens| run(&model, &tokens, &cx).expect_err("refused").to_string();
    insta::assert_snapshot!(error(Tokens { flops: 0.01, ..Tokens::default() }), @"dropping all tokens where that is allowed leaves 0.324 of the FLOPs, but flops=0.01 is asked for; ask for a larger share, or give a smaller `from`");
    insta::assert_snapshot!(error(Tokens { from: 2, ..Tokens::default() }), @"no layer from 2 on can drop tokens, but dropping takes attention heads, and a layer behind them that it saves; leave tokens out for this model, or give a smaller `from`");
    insta::assert_snapshot!(error(Tokens { mode: Mode::Train, ..Tokens::default() }), @r#"pass `tokens`: `mode` is "train", without text to train on, expected a file by --data, or mode=text"#);
    insta::assert_snapshot!(error(Tokens { drop: Share(0.01), ..Tokens::default() }), @"pass `tokens`: `drop` is 0.01, which is less than one of 16 texts, expected a larger share, or more texts by --calib and --calib-texts");
    insta::assert_snapshot!(error(Tokens { protect: true, ..Tokens::default() }), @"pass `tokens`: `protect` is true, and texts do not all end in the same token, expected texts with a separator at their end, or protect=false");
    insta::assert_snapshot!(error(Tokens { top: 1, ..Tokens::default() }), @"pass `tokens`: `top` is 1, expected a number from 2 to 4096");
    insta::assert_snapshot!(error(Tokens { prediction: 0.0, ..Tokens::default() }), @"pass `tokens`: `prediction` is 0, as `hidden` and `task` are, expected one above 0");
    let bare = Context::new(&model);
    let error = |tokens: Tokens| run(&model, &tokens, &bare).expect_err("refused").to_string();
    insta::assert_snapshot!(error(Tokens { mode: Mode::Text, ..Tokens::default() }), @r#"pass `tokens`: `mode` is "text", without calibration text, expected a text by --calib, or mode=ratio"#);
    insta::assert_snapshot!(error(Tokens { drop: Share(0.1), ..Tokens::default() }), @"pass `tokens`: `drop` is given without calibration text, expected a text by --calib, to see what changes");
}

/// Random texts without labels.
fn dataset(texts: usize, seed: u64) -> Dataset {
    let lengths: Vec<usize> = (0..texts).map(|i| 8 + (i * 7) % 11).collect();
    let batch = batch(seed, &lengths);
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let texts = batch.starts.windows(2).map(text).collect();
    Dataset { texts, targets: None, masker: None, source: "random texts".into() }
}

fn gated<'a>(model: &'a Model, data: &'a Dataset, budget: &'a Budget<'a>, seed: u64) -> Gated<'a> {
    let terms = Terms { prediction: 1.0, ..Terms::default() };
    let inner = Distillation::new(terms, model, model, data, &[], 1).expect("a teacher that runs");
    let draws = |n: usize, seed: u64| gaussian(n, seed);
    Gated {
        inner,
        budget,
        score: Score::Received,
        bins: (0..budget.sites.len()).map(|i| draws(budget.bins, seed + i as u64)).collect(),
        sites: draws(budget.sites.len(), seed + 9),
        lagrangian: Lagrangian { lambdas: vec![-0.5, 0.2] },
        warmup: Warmup { from: 0.4, to: 0.4, steps: 1 },
        decided: u32::MAX,
        rate: 0.1,
        least: -gates::BOUND,
        seed,
    }
}

#[test]
fn the_constraint_goes_back_to_every_logit() {
    let model = tiny("bert", Task::Embedding, 414);
    let data = dataset(4, 415);
    let budget = budget(&model, 5);
    let mut gated = gated(&model, &data, &budget, 416);
    let at = Moment::default();
    let keep = gated.keep(at).expect("gates");
    let found = gated.keep_gradients(&keep, &[], at);
    assert_eq!(found.len(), gated.parameters().len(), "a gradient for every parameter");
    let penalty = |g: &Gated| g.lagrangian.value(g.expected(0), 0.4);
    for (row, gradient) in found[..found.len() - 1].iter().enumerate() {
        for (i, &slope) in gradient.iter().enumerate() {
            let mut at = |step: f32| {
                gated.parameters()[row].1[i] += step;
                let value = penalty(&gated);
                gated.parameters()[row].1[i] -= step;
                value
            };
            let expected = (at(0.02) - at(-0.02)) / 0.04;
            let off = (slope as f64 - expected).abs();
            assert!(off < 0.01 * expected.abs() + 1e-5, "{row} {i}: {} {expected}", slope);
        }
    }
}

/// With the gates of all sites open for sure, the gradient of a bin is that of its value times the slope of the draw.
#[test]
fn the_loss_goes_back_to_bins_and_sites() {
    let model = tiny("bert", Task::Embedding, 417);
    let data = dataset(6, 418);
    let budget = budget(&model, 3);
    let mut gated = gated(&model, &data, &budget, 419);
    gated.lagrangian = Lagrangian::default();
    let run = Encoder::new(&model).expect("a model that runs");
    let texts = batch(420, &[9, 4, 7]);
    let path: Vec<_> = run.layers.iter().collect();
    let backs = |at: Moment| {
        let keep = gated.keep(at).expect("gates");
        let plan = Plan { keep: Some(&keep), ..Plan::default() };
        let mut tapes = tape::forward(&run, &path, &texts, &plan).expect("runs");
        let mut signal = crate::train::backward::Signal::new(LAYERS);
        let last = tape::hidden(&tapes, LAYERS);
        signal.add_hidden(LAYERS, gaussian(last.len(), 421), 1.0);
        let backs = crate::train::backward::backward(&run, &path, &mut tapes, &signal, &plan);
        (keep, backs)
    };
    let (mut open, mut shut) = (0, 0);
    for update in 0..40 {
        let at = Moment { update, part: 0 };
        let (keep, backs) = backs(at);
        let found = gated.keep_gradients(&keep, &backs, at);
        for (i, &layer) in budget.sites.iter().enumerate() {
            let Some(values) = keep.values[layer].as_ref() else {
                assert!(found[i].iter().all(|&g| g == 0.0), "a shut site hides its bins");
                shut += 1;
                continue;
            };
            let mut sums = vec![0.0; values.len()];
            for back in &backs {
                sums.iter_mut().zip(&back.bins[layer]).for_each(|(s, g)| *s += g);
            }
            for ((found, sum), &z) in found[i].iter().zip(sums).zip(values) {
                assert!((found - sum * gates::slope(z)).abs() < 1e-6);
                open += usize::from(*found != 0.0);
            }
        }
    }
    assert!(open > 5 && shut > 5, "{open} {shut}");
}

#[test]
fn draws_are_anew_for_every_batch() {
    let model = tiny("bert", Task::SequenceClassification, 422);
    let (data, budget) = (dataset(4, 423), budget(&model, 8));
    let gated = gated(&model, &data, &budget, 424);
    let draw = |update, part| gated.keep(Moment { update, part }).expect("gates");
    assert_eq!(draw(3, 1), draw(3, 1));
    assert!(draw(3, 1) != draw(3, 2) && draw(3, 1) != draw(4, 1));
}

/// Holes stay, sites that are shut drop nothing, and the budget is met from either side with the nearest bins.
#[test]
fn gates_settle_on_the_budget() {
    let model = tiny("bert", Task::Embedding, 425);
    let (data, budget) = (dataset(4, 426), budget(&model, 12));
    for seed in 0..20 {
        let mut gated = gated(&model, &data, &budget, 430 + seed);
        gated.sites = vec![3.0, -3.0, 3.0];
        let free = gated.settled(None);
        assert!(free.layers[1].is_none());
        let now = budget.share(&free);
        for flops in [0.9 * now, now, 1.05 * now] {
            let settled = gated.settled(Some(flops));
            assert!(
                budget.share(&settled) <= flops,
                "{seed}: {} for {flops}",
                budget.share(&settled)
            );
            assert!(settled.layers[1].is_none());
        }
    }
}

#[test]
fn a_schedule_is_learned_with_the_weights() {
    let model = tiny("bert", Task::SequenceClassification, 450);
    let data = dataset(64, 451);
    let text = calibration(452, 3);
    for start in [Start::Text, Start::Open] {
        let tokens = Tokens {
            flops: 0.7,
            start,
            steps: 300,
            mask_rate: 0.1,
            finetune: 30,
            batch: 8,
            bins: 12,
            hidden: 0.1,
            ..Tokens::default()
        };
        let cx = Context {
            calibration: Some(&text),
            data: Some(&data),
            seed: 5,
            progress: &Quiet,
            ..Context::new(&model)
        };
        let (after, work) = run(&model, &tokens, &cx).expect("gates that settle");
        let schedule = after.tokens.as_ref().expect("a schedule");
        assert!(schedule.drops() && work.figures["net_flops"] <= 0.7, "{:?}", work.figures);
        assert!((work.figures["expected_flops"] - 0.7).abs() < 0.05, "{:?}", work.figures);
        let [gates, fine] = &work.training[..] else { panic!("two loops: {:?}", work.training) };
        assert_eq!((gates.steps, fine.steps), (300, 30));
        assert!(fine.judged_best <= fine.judged_before && fine.judged_best.is_some(), "{fine:?}");
        let (again, _) = run(&model, &tokens, &cx).expect("gates that settle");
        assert_eq!((stored(&again), &again.tokens), (stored(&after), &after.tokens));
    }
}
