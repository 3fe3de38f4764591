//! Explores the schedules of a scenario. Of those that differ only in the order of steps that don't touch each other one is
//! taken (sleep sets), and a state that was reached before is not explored again.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use tokio::runtime::{Builder, Runtime};

use super::{
    Scenario,
    world::{Footprint, Step, Violation, World},
};

/// Schedules that are longer than this are cut there.
const MAX_DEPTH: usize = 80;

/// The extent of an exploration.
#[derive(Debug, Default)]
pub struct Explored {
    /// States, each different from all others.
    pub states: usize,
    /// Schedules that were run from the start.
    pub schedules: usize,
    /// Those of them that led to an end that was not seen before.
    pub ends: usize,
    /// Steps that were taken.
    pub steps: usize,
    /// The longest schedule.
    pub longest: usize,
    /// Whether there is no other schedule.
    pub is_complete: bool,
}

/// One choice of a schedule: what can be done, of that what is to be, and what need not be: it comes to the same as before.
struct Choice {
    steps: Vec<Step>,
    todo: Vec<(Step, Footprint)>,
    taken: usize,
    asleep: Vec<(Step, Footprint)>,
}

impl Choice {
    fn step(&self) -> (Step, Footprint) {
        self.todo[self.taken]
    }

    /// Returns what need not be done after the step that is taken.
    fn asleep_after(&self) -> Vec<(Step, Footprint)> {
        let (_, taken) = self.step();
        let done = self.todo[..self.taken].iter();
        let asleep = self.asleep.iter().chain(done);
        let apart = asleep.filter(|(_, footprint)| footprint.is_apart_from(taken));
        apart.copied().collect()
    }
}

struct Explorer<'a> {
    scenario: &'a Scenario,
    schedule: Vec<Choice>,
    /// The states that were reached, and what was not done from there.
    visited: HashMap<u64, HashSet<Step>>,
    explored: Explored,
    /// Chooses, once not all can be explored.
    random: Option<u64>,
}

/// A violation, after the steps that lead to it.
type Counterexample = (Vec<Step>, Violation);

/// Explores a scenario, by at most so many schedules: all in their order, and if there are more, as many at random. Panics
/// with the schedule of what is wrong, as people read it.
#[allow(
    clippy::print_stderr,
    reason = "how much was explored belongs to the output of the test"
)]
pub fn explore(name: &str, scenario: &Scenario, limit: usize) -> Explored {
    let times = std::env::var("MODEL_TIMES").ok();
    let limit = limit * times.and_then(|text| text.parse().ok()).unwrap_or(1);
    let started = Instant::now();
    let mut explorer = Explorer {
        scenario,
        schedule: Vec::new(),
        visited: HashMap::new(),
        explored: Explored::default(),
        random: None,
    };
    while explorer.explored.schedules < limit {
        let ran = runtime().block_on(explorer.run());
        explorer.expect(ran);
        explorer.go_back();
        if explorer.schedule.is_empty() {
            explorer.explored.is_complete = true;
            break;
        }
    }
    if !explorer.explored.is_complete {
        for seed in 0..limit {
            explorer.random = Some(u64::try_from(seed).unwrap());
            explorer.schedule.clear();
            let ran = runtime().block_on(explorer.run());
            explorer.expect(ran);
        }
    }
    let (result, seconds) = (explorer.explored, started.elapsed().as_secs_f64());
    eprintln!("{name}: {result:?} in {seconds:.1} s");
    result
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

impl Explorer<'_> {
    fn expect(&self, ran: Result<(), Counterexample>) {
        if let Err((steps, violation)) = ran {
            let story = runtime().block_on(tell(self.scenario, &steps));
            panic!("{}\nafter {:?}:\n{story}", violation.0, self.explored);
        }
    }

    /// Chooses what comes next in the last choice that has more.
    fn go_back(&mut self) {
        while let Some(last) = self.schedule.last_mut() {
            last.taken += 1;
            if last.taken < last.todo.len() {
                break;
            }
            self.schedule.pop();
        }
    }

    /// Follows the schedule, and goes on from its end until there is nothing new.
    async fn run(&mut self) -> Result<(), Counterexample> {
        self.explored.schedules += 1;
        let mut taken = Vec::new();
        let begun = World::new(self.scenario, false).await;
        let mut world = begun.map_err(|violation| (vec![], violation))?;
        for choice in &self.schedule {
            let possible = world.steps();
            assert_eq!(possible, choice.steps, "a replay differs after {taken:?}");
            let (step, _) = choice.step();
            taken.push(step);
            self.explored.steps += 1;
            let done = world.step(step).await;
            done.map_err(|violation| (taken.clone(), violation))?;
        }
        loop {
            self.explored.longest = self.explored.longest.max(taken.len());
            let choice = self.choose(&world);
            let Some(choice) = choice.filter(|_| taken.len() < MAX_DEPTH) else {
                let is_end = world.steps().is_empty() || taken.len() >= MAX_DEPTH;
                if !is_end {
                    return Ok(());
                }
                self.explored.ends += 1;
                let ended = world.end().await;
                return ended.map_err(|violation| (taken, violation));
            };
            let (step, _) = choice.step();
            self.schedule.push(choice);
            taken.push(step);
            self.explored.steps += 1;
            let done = world.step(step).await;
            done.map_err(|violation| (taken.clone(), violation))?;
        }
    }

    /// Returns what is to be done from here; `None` if that is nothing, or nothing that was not done before.
    fn choose(&mut self, world: &World<'_>) -> Option<Choice> {
        let steps = world.steps();
        let key = world.key();
        let asleep = self.schedule.last().map(Choice::asleep_after);
        let asleep = asleep.unwrap_or_default();
        let is_new = !self.visited.contains_key(&key);
        self.explored.states += usize::from(is_new);
        let with_footprints = |steps: Vec<Step>| -> Vec<(Step, Footprint)> {
            let steps = steps.into_iter();
            steps.map(|step| (step, world.footprint(step))).collect()
        };
        if let Some(random) = &mut self.random {
            self.visited.entry(key).or_default();
            // Xorshift.
            let mut next = random.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            next ^= next >> 12;
            next ^= next << 25;
            next ^= next >> 27;
            *random = next;
            let count = u64::try_from(steps.len()).unwrap();
            let at = usize::try_from((next >> 16).checked_rem(count)?).unwrap();
            return Some(Choice {
                todo: with_footprints(vec![steps[at]]),
                steps,
                taken: 0,
                asleep: vec![],
            });
        }
        let sleeping: HashSet<Step> = asleep.iter().map(|(step, _)| *step).collect();
        let todo: Vec<Step> = match self.visited.get_mut(&key) {
            None => {
                let is_awake = |step: &&Step| !sleeping.contains(*step);
                let todo = steps.iter().filter(is_awake).copied().collect();
                self.visited.insert(key, sleeping);
                todo
            }
            // What was left out then and is not to be left out now.
            Some(left_out) => {
                let is_left = |step: &&Step| left_out.contains(*step) && !sleeping.contains(*step);
                let todo: Vec<Step> = steps.iter().filter(is_left).copied().collect();
                left_out.retain(|step| sleeping.contains(step));
                todo
            }
        };
        let choice = Choice {
            todo: with_footprints(todo),
            steps,
            taken: 0,
            asleep,
        };
        (!choice.todo.is_empty()).then_some(choice)
    }
}

/// Returns what happens in a schedule, line by line.
async fn tell(scenario: &Scenario, steps: &[Step]) -> String {
    let Ok(mut world) = World::new(scenario, true).await else {
        return "it is wrong from the start".to_owned();
    };
    let mut ended = Ok(());
    for step in steps {
        ended = world.step(*step).await;
    }
    if ended.is_ok() {
        ended = world.end().await;
    }
    let mut story = world.story.take().unwrap_or_default();
    story.extend(ended.err().map(|violation| violation.0));
    story.join("\n")
}
