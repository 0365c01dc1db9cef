use std::io::{Seek, SeekFrom, Write};

use super::*;

/// The key of vectors 10 to 14 of IEEE 1619-2007, annex B.
const KEY: &str = "2718281828459045235360287471352662497757247093699959574966967627\
                   3141592653589793238462643383279502884197169399375105820974944592";

fn key() -> Key {
    Key::parse(KEY.as_bytes()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 00 to ff, and again.
fn counting(bytes: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(bytes).collect()
}

#[test]
fn the_vectors_of_ieee_1619_annex_b() {
    let mut xts = Xts::new(&key(), 512).unwrap();
    for (number, first, last) in [
        (0xff, "1c3b3a102f770386e4836c99e370cf9b", "c4f36ffda9fcea70b9c6e693e148c151"),
        (0xffff, "77a31251618a15e6b92d1d66dffe7b50", "a4f9e27b42af8100cb9d59cef9645803"),
        (0xff_ffff, "e387aaa58ba483afa7e8eb469778317e", "2263a1eef52dd6888c309f5a7d712826"),
        (0xffff_ffff, "bf53d2dade78e822a4d949a9bc6766b0", "4c82f335abb152c4a93411373aaa8220"),
        (0xff_ffff_ffff, "64497e5a831e4a932c09be3e5393376d", "d609d273ad5b0d59631c531f6a0a57b9"),
    ] {
        let mut unit = counting(512);
        xts.encipher(number, &mut unit).unwrap();
        assert_eq!((hex(&unit[..16]).as_str(), hex(&unit[496..]).as_str()), (first, last), "{number:x}");
        xts.decipher(number, &mut unit).unwrap();
        assert_eq!(unit, counting(512));
    }
}

#[test]
fn a_unit_of_4096_bytes_is_one_data_unit() {
    // By python3-cryptography, which is OpenSSL.
    let mut unit = counting(4096);
    Xts::new(&key(), 4096).unwrap().encipher(0x12_3456_789a, &mut unit).unwrap();
    assert_eq!(hex(&unit[..16]), "50ea7b0e72da7912892bcd0c7496baa4");
    assert_eq!(hex(&unit[4080..]), "0b75a0c634a926f692822eb6ee8494bb");
}

#[test]
fn many_units_are_as_each_alone_and_no_two_are_alike() {
    let mut xts = Xts::new(&key(), 512).unwrap();
    let mut together = vec![7; 8 * 512];
    xts.encipher(41, &mut together).unwrap();
    let alone: Vec<_> = (41..49)
        .flat_map(|number| {
            let mut unit = [7; 512];
            xts.encipher(number, &mut unit).unwrap();
            unit
        })
        .collect();
    assert_eq!(together, alone);
    let mut units: Vec<_> = together.chunks(512).collect();
    units.sort_unstable();
    units.dedup();
    assert_eq!(units.len(), 8);
    xts.decipher(41, &mut together).unwrap();
    assert_eq!(together, vec![7; 8 * 512]);
}

#[test]
fn other_than_whole_units_is_refused() {
    let mut xts = Xts::new(&key(), 512).unwrap();
    assert_eq!(xts.encipher(0, &mut [0; 511]), Err(CipherError));
    assert_eq!(xts.decipher(0, &mut [0; 1025]), Err(CipherError));
    assert_eq!(xts.encipher(0, &mut []), Ok(()));
    assert!(Xts::new(&key(), 0).is_err());
}

#[test]
fn keys_are_raw_or_hexadecimal() {
    let raw = counting(64);
    let same = |text: &[u8]| Key::parse(text).map(|key| *key.0 == raw[..]);
    assert_eq!(same(&raw), Ok(true));
    let digits = hex(&raw);
    for text in [digits.clone(), digits.to_uppercase(), format!("{digits}\n"), format!("{digits}\r\n")] {
        assert_eq!(same(text.as_bytes()), Ok(true), "{text:?}");
    }
    for text in
        ["", "00", &digits[1..], &format!("{digits}0"), &digits.replace("0a", "0g"), &format!(" {digits}")]
    {
        assert_eq!(same(text.as_bytes()), Err(KeyError::Form), "{text:?}");
    }
    assert_eq!(same(&digits.as_bytes()[..64]), Err(KeyError::Half));
    assert_eq!(same(&[&digits.as_bytes()[..64], b"\n"].concat()), Err(KeyError::Half));
    assert_eq!(same(&counting(32).repeat(2)), Err(KeyError::Equal));
    assert_eq!(same(hex(&counting(32)).repeat(2).as_bytes()), Err(KeyError::Equal));
}

#[test]
fn a_key_file_is_read_by_many_and_a_long_one_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(KEY.as_bytes()).unwrap();
    for _ in 0..2 {
        assert_eq!(*Key::read(&file).unwrap().0, *key().0);
    }
    file.write_all(&[b'0'; 1000]).unwrap();
    assert_eq!(Key::read(&file).unwrap_err(), KeyError::Form);
    file.set_len(0).unwrap();
    assert_eq!(Key::read(&file).unwrap_err(), KeyError::Form);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&counting(64)).unwrap();
    assert_eq!(Key::read(&file).unwrap().0[63], 63);
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert_eq!(Key::read(&pipe).unwrap_err(), KeyError::Read(Errno::SPIPE));
}

#[test]
fn nobody_sees_a_key_by_printing_it() {
    assert_eq!(format!("{:?}", key()), "Key(secret)");
}
