//! `soak-restart --kills N --seed S [--daemon D]`: kills daemons under load, as `cargo xtask soak restart` has it.
//!
//! The kills are dealt out to each daemon, on split and packed rings, restarted by its keeper and by a front-end that
//! connects again. What each of them gave stands on standard error; the last line on standard output is
//! `soak: ok kills=N lost=0 doubled=0 p99_ms=X` or `soak: FAILED: reason`.

use std::process::ExitCode;

use clap::Parser;
use tests::guest::format::RingKind;
use tests::random::Random;
use tests::restart::Mode;
use tests::restart::soak::{Device, Failure, Plan, Tally, run};

#[derive(Parser)]
#[command(name = "soak-restart")]
struct Options {
    /// How many kills, over all
    #[arg(long, default_value_t = 240)]
    kills: u32,
    /// What chooses their moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this daemon
    #[arg(long)]
    daemon: Option<Device>,
    /// Only this way of bringing the session back
    #[arg(long)]
    mode: Option<Mode>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match soak(&options) {
        Ok(tally) => {
            let (kills, p99) = (tally.kills(), tally.percentile_ms(99));
            println!("{tally}\nsoak: ok kills={kills} lost=0 doubled=0 p99_ms={p99:.1}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let (lost, doubled) = (failure.fault.lost(), failure.fault.doubled());
            println!("soak: FAILED: {failure} (lost={lost} doubled={doubled})");
            ExitCode::FAILURE
        }
    }
}

fn soak(options: &Options) -> Result<Tally, Failure> {
    let plans = plans(options);
    let mut all = Tally::default();
    for plan in plans {
        let tally = run(plan)?;
        eprintln!("soak: {plan}: {tally}");
        all.add(&tally);
    }
    Ok(all)
}

/// The kills dealt out to all that is asked for.
fn plans(options: &Options) -> Vec<Plan> {
    let mut random = Random::new(options.seed);
    let mut plans = Vec::new();
    for device in Device::ALL {
        for rings in [RingKind::Split, RingKind::Packed] {
            for mode in [Mode::Keeper, Mode::Reconnect] {
                plans.push(Plan { device, rings, mode, kills: 0, seed: random.next_u64() });
            }
        }
    }
    plans.retain(|plan| {
        options.daemon.is_none_or(|device| device == plan.device)
            && options.mode.is_none_or(|mode| mode == plan.mode)
    });
    let parts = u32::try_from(plans.len()).unwrap_or(1);
    for (nth, plan) in (0..).zip(&mut plans) {
        plan.kills = options.kills / parts + u32::from(nth < options.kills % parts);
    }
    plans.retain(|plan| plan.kills > 0);
    plans
}
