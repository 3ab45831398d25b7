use super::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A variant whose answers are others as often as `drop` says.
pub(super) fn found(bytes: u64, speed: f64, drop: f64) -> Found {
    Found {
        texts: 8,
        data: 0,
        judged: 4,
        bytes,
        flops: 1000,
        flops_share: 1.0,
        speed,
        speed_by: SpeedBy::Measured,
        drop,
        drop_of: "agreement".into(),
        divergence: 2.0 * drop,
        divergence_of: "mean_kl_nats".into(),
        metrics: BTreeMap::from([("agreement".to_string(), 1.0 - drop)]),
    }
}

const SPACE: &str = "version = 1\n[[step]]\npass = \"prune\"\noptional = true\n\
    sparsity = { choose = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] }\n[[step]]\npass = \"binarize\"\none_of = \"layers\"\n\
    optional = true\nplanes = { choose = [4, 3, 2, 1] }\nrank = { choose = [0, 2, 4] }\n\
    [[step]]\npass = \"quantize\"\none_of = \"layers\"\nembeddings = \"none\"";

/// A model whose bytes and quality are known: what is cut costs little at first and much at last; packing to few planes
/// likewise; low rungs see it through noise that falls with the text.
fn truth(recipe: &Recipe, rung: usize, rungs: usize) -> Found {
    let (mut bytes, mut drop, mut speed) = (1_000_000.0, 0.0, 1.0);
    for step in &recipe.steps {
        match step.name {
            "prune" => {
                let sparsity = step.options["sparsity"].as_float().expect("a number");
                bytes *= 1.0 - sparsity;
                speed /= 1.0 - sparsity;
                drop += 0.1 * sparsity.powi(3);
            }
            "binarize" => {
                let planes = step.options["planes"].as_integer().expect("a number") as f64;
                let rank = step.options["rank"].as_integer().expect("a number") as f64;
                bytes *= (planes + 0.25 * rank) / 32.0;
                speed *= 2.0;
                drop += 0.08 / (planes + 0.3 * rank).powi(2);
            }
            _ => {
                bytes *= 0.25;
                speed *= 2.5;
                drop += 0.001;
            }
        }
    }
    let text = recipe.to_passes();
    let hash = text.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b as u64));
    let noise = (hash % 1000) as f64 / 1000.0 - 0.5;
    found(bytes as u64, speed, drop + noise * 0.004 * (rungs - 1 - rung) as f64)
}

fn settings(targets: Targets, trials: usize) -> Settings {
    Settings { targets, trials, rungs: 3, seed: 1 }
}

fn small() -> Targets {
    Targets { size: Some(90_000), drop: Some(0.02), ..Targets::default() }
}

/// Runs a search of what is known; its log besides.
fn run(settings: &Settings, known: Vec<Entry>) -> (Searched, Vec<Entry>) {
    let space = Space::parse(SPACE).expect("a space");
    let log = RefCell::new(Vec::new());
    let evaluate = &mut |recipe: &Recipe, rung| Ok((truth(recipe, rung, settings.rungs), 0.5));
    let record = &mut |entry: &Entry| {
        log.borrow_mut().push(entry.clone());
        Ok(())
    };
    let searched = search(&space, settings, &|_| None, known, evaluate, record).expect("a search");
    (searched, log.into_inner())
}

fn winner(searched: &Searched) -> Option<&str> {
    searched.winner.map(|w| &searched.trials[w].passes[..])
}

/// Every recipe of the space, and the best of them.
fn best(targets: &Targets) -> (usize, Found) {
    let space = Space::parse(SPACE).expect("a space");
    let lens = space.lens();
    let mut all: BTreeMap<String, Found> = BTreeMap::new();
    let points = lens.iter().product::<usize>();
    for mut i in 0..points {
        let point: Vec<usize> = lens.iter().map(|len| (i % len, i /= len).0).collect();
        let steps = space.steps(&point);
        let recipe = Recipe::from_steps(steps.clone(), &[]).expect("a recipe");
        all.insert(passes_of(&steps), truth(&recipe, 2, 3));
    }
    let order = |a: &&Found, b: &&Found| targets.score(a).order(&targets.score(b));
    (all.len(), all.values().min_by(order).expect("one of them").clone())
}

#[test]
fn a_search_comes_near_what_trying_everything_finds() {
    let (all, best) = best(&small());
    let (searched, log) = run(&settings(small(), 40), Vec::new());
    assert_eq!(all, 98);
    assert_eq!(searched.trials.len(), 40);
    let found = searched.top(searched.winner.expect("something meets the targets"));
    // Of recipes as close as this, the noise of the low rungs says which goes up.
    assert!(
        found.drop < best.drop + 0.0005 && small().missed(found).is_empty(),
        "{found:?} {best:?}"
    );
    // At full text few of them were made.
    let at = |rung| log.iter().filter(|e| e.rung == rung).count();
    assert_eq!(at(0), 40);
    assert!(at(1) <= 2 * 40 / ETA && at(2) <= 2 * at(1) / ETA, "{} {}", at(1), at(2));
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let (_, first) = run(&settings(small(), 20), Vec::new());
    let (_, again) = run(&settings(small(), 20), Vec::new());
    assert_eq!(first, again);
    let (_, other) = run(&Settings { seed: 2, ..settings(small(), 20) }, Vec::new());
    assert_ne!(first, other);
}

#[test]
fn a_search_that_was_stopped_arrives_where_it_would_have() {
    let (whole, log) = run(&settings(small(), 20), Vec::new());
    for kept in [0, 1, 13, log.len()] {
        let (rest, new) = run(&settings(small(), 20), log[..kept].to_vec());
        assert_eq!(winner(&rest), winner(&whole));
        assert_eq!((rest.known, rest.evaluations), (kept, log.len()));
        assert_eq!(new, log[kept..], "what was not known is the same");
    }
    // More trials go on from the log of fewer.
    let (more, new) = run(&settings(small(), 26), log.clone());
    assert!(more.known > 0 && new.len() < more.evaluations, "{}", more.known);
}

#[test]
fn the_front_is_judged_with_all_of_the_text_and_the_winner_leads_it() {
    let (searched, _) = run(&settings(small(), 40), Vec::new());
    assert_eq!(searched.front.first().copied(), searched.winner);
    let all: Vec<&Found> = searched.front.iter().map(|&i| searched.top(i)).collect();
    assert_eq!(front(&all).len(), all.len());
}

#[test]
fn targets_that_nothing_meets_have_no_winner_and_the_nearest_lead_the_front() {
    let targets = Targets { size: Some(10_000), drop: Some(0.001), ..Targets::default() };
    let (searched, _) = run(&settings(targets, 20), Vec::new());
    assert!(searched.winner.is_none());
    let missed = |i: &usize| targets.score(searched.top(*i)).miss;
    let misses: Vec<f64> = searched.front.iter().map(missed).collect();
    assert!(misses.iter().all(|m| *m > 0.0) && misses.is_sorted(), "{misses:?}");
}

#[test]
fn what_is_refused_is_logged_and_the_search_goes_on() {
    let space = Space::parse(SPACE).expect("a space");
    let settings = settings(small(), 20);
    let refuse = |recipe: &Recipe| recipe.steps.iter().any(|s| s.name == "prune");
    let mut log = Vec::new();
    let no = || Error::Mismatch { found: "a".into(), expected: "b".into(), advice: "c" };
    let evaluate = &mut |recipe: &Recipe, rung| match refuse(recipe) {
        true => Err(Error::InPass { pass: "prune", source: Box::new(no()) }),
        false => Ok((truth(recipe, rung, 3), 0.5)),
    };
    let record = &mut |entry: &Entry| {
        log.push(entry.clone());
        Ok(())
    };
    let searched =
        search(&space, &settings, &|_| None, Vec::new(), evaluate, record).expect("a search");
    assert!(winner(&searched).is_some_and(|w| !w.contains("prune")));
    let refused: Vec<_> = log.iter().filter_map(|e| e.refused.as_deref()).collect();
    assert_eq!(refused.len(), searched.refused);
    assert!(
        searched.refused > 0 && refused.iter().all(|r| *r == "pass `prune` failed: a, but b; c")
    );
    assert!(log.iter().all(|e| e.rung == 0 || e.refused.is_none()), "what is refused stays below");

    // All of them: an error that names the first.
    let evaluate = &mut |_: &Recipe, _| Err(no());
    let error = search(&space, &settings, &|_| None, Vec::new(), evaluate, &mut |_| Ok(()))
        .expect_err("none");
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("no recipe of the search space that runs"), "{error}");
    // What no other recipe would help is not swallowed.
    let evaluate = &mut |_: &Recipe, _| Err(Error::Interrupted);
    let error = search(&space, &settings, &|_| None, Vec::new(), evaluate, &mut |_| Ok(()))
        .expect_err("over");
    assert!(matches!(error, Error::Interrupted));
}

#[test]
fn a_recipe_in_an_order_that_is_refused_is_not_made() {
    let space =
        "version = 1\n[[step]]\npass = \"binarize\"\n[[step]]\npass = \"prune\"\noptional = true";
    let space = Space::parse(space).expect("a space");
    let mut log = Vec::new();
    let evaluate = &mut |recipe: &Recipe, _| Ok((truth(recipe, 0, 1), 0.5));
    let record = &mut |entry: &Entry| {
        log.push((entry.passes.clone(), entry.refused.is_some()));
        Ok(())
    };
    let settings = Settings { rungs: 1, ..settings(small(), 4) };
    search(&space, &settings, &|_| None, Vec::new(), evaluate, record).expect("a search");
    log.sort();
    assert_eq!(log, [("binarize".to_string(), false), ("binarize,prune".to_string(), true)]);
}

#[test]
fn a_space_of_one_recipe_is_searched_with_one() {
    let space = Space::parse("version = 1\n[[step]]\npass = \"quantize\"").expect("a space");
    let evaluate = &mut |recipe: &Recipe, rung| Ok((truth(recipe, rung, 3), 0.5));
    let searched =
        search(&space, &settings(small(), 9), &|_| None, Vec::new(), evaluate, &mut |_| Ok(()));
    let searched = searched.expect("a search");
    assert_eq!((searched.trials.len(), searched.evaluations), (1, 3));
}

/// What is too large by its plan, which knows bytes alone, is not tried while there is anything else.
#[test]
fn what_is_too_large_by_its_plan_is_not_made() {
    let space = Space::parse(SPACE).expect("a space");
    let settings = settings(small(), 30);
    let foresee: &Foresee = &|recipe| Some(truth(recipe, 2, 3).bytes * 9 / 10);
    let tried = RefCell::new(Vec::new());
    let evaluate = &mut |recipe: &Recipe, rung| {
        if rung == 0 {
            tried.borrow_mut().push(foresee(recipe).expect("known"));
        }
        Ok((truth(recipe, rung, 3), 0.5))
    };
    let planned = search(&space, &settings, foresee, Vec::new(), evaluate, &mut |_| Ok(()))
        .expect("a search");
    let tried = tried.into_inner();
    assert!(tried.iter().all(|&bytes| bytes <= 90_000), "{tried:?}");
    // The design is near the target first.
    let near = tried[..15].iter().filter(|&&bytes| bytes >= 63_000).count();
    assert!(near >= 8, "{near} of {tried:?}");
    let (blind, _) = run(&settings, Vec::new());
    let loss = |s: &Searched| s.winner.map_or(f64::MAX, |w| s.top(w).divergence);
    assert!(loss(&planned) <= loss(&blind), "{} and {}", loss(&planned), loss(&blind));
}

/// Where no plan is small enough, the search looks on all the same, and says what is nearest.
#[test]
fn targets_that_no_plan_meets_are_searched_for_too() {
    let space = Space::parse(SPACE).expect("a space");
    let targets = Targets { size: Some(10), ..Targets::default() };
    let foresee: &Foresee = &|recipe| Some(truth(recipe, 2, 3).bytes);
    let evaluate = &mut |recipe: &Recipe, rung| Ok((truth(recipe, rung, 3), 0.5));
    let record = &mut |_: &Entry| Ok(());
    let searched = search(&space, &settings(targets, 20), foresee, Vec::new(), evaluate, record)
        .expect("a search");
    assert!(searched.winner.is_none() && !searched.front.is_empty());
    // From the design on only what is smaller than the nearest: in the end the smallest of all.
    let bytes = |t: &Trial| t.at(2).map(|found| found.bytes);
    let least = searched.trials.iter().filter_map(bytes).min().expect("some were judged");
    assert_eq!(least, 12_500, "one plane of what is left of a cut by 0.6");
}
