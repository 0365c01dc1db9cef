//! How fast one core enciphers blocks of 4096 bytes as features/crypt does: copied out of the guest's buffer, then
//! enciphered in place. Prints MB of a second of CPU time, to be held against `openssl speed -evp aes-256-xts -bytes 4096`.
//!
//! `cargo run --release -p outboard-blk --example crypt_speed [SECONDS]`
#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::black_box;

use outboard_blk::cipher::{KEY_BYTES, Key, Xts};
use rustix::time::{ClockId, clock_gettime};

const BLOCK_BYTES: usize = 4096;
/// Blocks between two looks at the clock.
const BATCH: u64 = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let limit: f64 = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse())?;
    let key: Vec<u8> = (0..=u8::MAX).take(KEY_BYTES).collect();
    let mut xts = Xts::new(&Key::parse(&key)?, 4096)?;
    let (guest, mut bounce) = ([7; BLOCK_BYTES], [0; BLOCK_BYTES]);
    let (begin, mut blocks) = (cpu_seconds(), 0_u64);
    while cpu_seconds() - begin < limit {
        for number in blocks..blocks + BATCH {
            bounce.copy_from_slice(black_box(&guest));
            xts.encipher(number, black_box(&mut bounce))?;
        }
        blocks += BATCH;
    }
    let bytes = blocks as f64 * BLOCK_BYTES as f64;
    println!("{:.0}", bytes / (cpu_seconds() - begin) / 1e6);
    Ok(())
}

/// Of this thread: others may run beside it, as with `openssl speed`.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
