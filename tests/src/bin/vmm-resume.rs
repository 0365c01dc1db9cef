//! `vmm-resume N`: how long guests of our VMM wait for a daemon that is back, in milliseconds, one a line.

use std::error::Error;

use tests::daemon::binary;
use tests::resume::measure;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).ok_or("usage: vmm-resume N")?.parse()?;
    for time in measure(&binary("outboard"), rounds) {
        println!("{:.3}", time.as_secs_f64() * 1e3);
    }
    Ok(())
}
