//! How worn a device is, where its host tells: eMMC does (virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_LIFETIME).
//!
//! In: an image. Out: what the kernel says of the device, if it is one that wears; opened in the first process like all
//! else, read by each worker when it begins. Refuses nothing: what makes no sense is not told.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, fstat, major, minor};
use rustix::io::pread;

use crate::graph::registry::{Made, Openings};
use crate::op::Lifetime;

/// What is opened for a volume: `A B`, and one number, in hexadecimal.
const LIFE_TIME: &str = "life-time";
const PRE_EOL: &str = "pre-eol";
/// More than either says.
const MOST: usize = 64;

/// Opens what tells it of this image, if there is something.
pub fn open(image: impl AsFd, openings: &mut Openings<'_>) {
    for (name, what) in [(LIFE_TIME, "life_time"), (PRE_EOL, "pre_eol_info")] {
        if let Some(file) = attribute(&image, what) {
            openings.insert(name, file);
        }
    }
}

/// What was opened says this.
pub fn read(made: &Made<'_>) -> Option<Lifetime> {
    let [life_time, pre_eol] = [LIFE_TIME, PRE_EOL].map(|what| made.take(what));
    parse(&contents(life_time?)?, &contents(pre_eol?)?)
}

fn attribute(image: impl AsFd, what: &str) -> Option<File> {
    let stat =
        fstat(image).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)?;
    let device = format!("/sys/dev/block/{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
    // That of a partition is its disk's.
    let places = ["device", "../device"].map(|place| PathBuf::from(&device).join(place).join(what));
    places.iter().find_map(|place| File::open(place).ok())
}

fn contents(file: OwnedFd) -> Option<String> {
    let mut text = [0; MOST];
    let count = pread(file, &mut text, 0).ok()?;
    Some(str::from_utf8(text.get(..count)?).ok()?.to_owned())
}

fn parse(life_time: &str, pre_eol: &str) -> Option<Lifetime> {
    let number = |word: &str| u16::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let mut types = life_time.split_ascii_whitespace().map(number);
    let (typ_a, typ_b) = (types.next()??, types.next()??);
    let pre_eol_info = number(pre_eol.trim())?;
    // §5.2.6: up to 3, and up to 11.
    let is_known = pre_eol_info <= 3 && typ_a <= 11 && typ_b <= 11;
    is_known.then_some(Lifetime { pre_eol_info, typ_a, typ_b })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_and_nonsense_is_not_told() {
        let told = |pre_eol_info, typ_a, typ_b| Some(Lifetime { pre_eol_info, typ_a, typ_b });
        assert_eq!(parse("0x01 0x0b\n", "0x03\n"), told(3, 1, 11));
        assert_eq!(parse("0x00 0x00", "0x00"), told(0, 0, 0));
        for (life_time, pre_eol) in
            [("", ""), ("0x01", "0x01"), ("0x01 0x0c", "0x01"), ("0x01 0x01", "0x04"), ("a b", "-1")]
        {
            assert_eq!(parse(life_time, pre_eol), None, "{life_time} {pre_eol}");
        }
    }
}
