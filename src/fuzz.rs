//! Gives parsers of foreign bytes what they do not expect: files of tests/corpus, damaged in all ways. A panic is the only
//! failure; it says the bytes, made as few as it takes.
//!
//! Each parser has a test of the name `fuzz` beside it. With the other tests it takes a fixed number of inputs that are the
//! same each time; with NODE_FIXER_FUZZ_SECONDS it takes as long, from NODE_FIXER_FUZZ_SEED on (tests/fuzz).

// Its output is shown.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::cell::Cell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// As often beside the other tests.
const FEW: u64 = 1_000;
/// No longer inputs: what is long is slow, and finds no more.
const LONGEST: usize = 4096;
/// Longer than this no input may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often fewer bytes are tried.
const MOST_TRIES: usize = 3_000;

/// Runs a parser, which says whether it took the bytes, on damaged files of this folder of tests/corpus.
pub fn run(name: &str, mut parse: impl FnMut(&[u8]) -> bool) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = number("NODE_FIXER_FUZZ_SECONDS");
    let seed = number("NODE_FIXER_FUZZ_SEED").unwrap_or(1);
    let corpus = Corpus::read(name);
    let (begun, mut inputs, mut taken) = (Instant::now(), 0_u64, 0_u64);
    let over = AtomicBool::new(false);
    let current: Mutex<(Instant, Vec<u8>)> = Mutex::new((begun, Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| watch(name, &over, &current));
        let _end = Ends(&over);
        for file in &corpus.files {
            taken += u64::from(take(name, seed, file, &mut parse));
        }
        assert!(taken > 0, "{name}: no file of the corpus is taken as it is");
        while seconds.map_or(inputs < FEW, |seconds| begun.elapsed().as_secs() < seconds) {
            let input = corpus.damaged(&mut Dice::new(seed, inputs));
            *current.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), input.clone());
            taken += u64::from(take(name, seed, &input, &mut parse));
            inputs += 1;
        }
    });
    // Only if the output is shown.
    if seconds.is_some() {
        println!("fuzz {name}: seed {seed}, {inputs} inputs, {taken} of them taken");
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends the process where one input takes for ever.
fn watch(name: &str, over: &AtomicBool, current: &Mutex<(Instant, Vec<u8>)>) {
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        let current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0.elapsed() > PATIENCE {
            eprintln!("fuzz {name}: this takes longer than {PATIENCE:?}:\n{}", shown(&current.1));
            std::process::exit(1);
        }
    }
}

thread_local! {
    /// Whether panics of this thread are reported.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn take(name: &str, seed: u64, input: &[u8], parse: &mut impl FnMut(&[u8]) -> bool) -> bool {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
    let mut attempt = |bytes: &[u8]| catch_unwind(AssertUnwindSafe(|| parse(bytes)));
    if let Ok(taken) = attempt(input) {
        return taken;
    }
    // The first panic was reported.
    QUIET.set(true);
    let least = fewest(input, |bytes| attempt(bytes).is_err());
    QUIET.set(false);
    panic!("fuzz {name}, seed {seed}: a panic with these {} bytes:\n{}", least.len(), shown(&least));
}

/// Takes away parts for as long as it still fails without them.
fn fewest(input: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut least = input.to_vec();
    let (mut length, mut tries) = (least.len() / 2, 0);
    while length > 0 {
        let mut at = 0;
        while at < least.len() && tries < MOST_TRIES {
            let mut fewer = least.clone();
            fewer.drain(at..(at + length).min(least.len()));
            tries += 1;
            if fails(&fewer) {
                least = fewer;
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    least
}

fn shown(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    format!("{hex}\n{:?}", String::from_utf8_lossy(bytes))
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Dice {
        let mut dice = Dice(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one<'a>(&mut self, of: &'a [Vec<u8>]) -> &'a [u8] {
        of.get(self.below(of.len())).map_or(&[], Vec::as_slice)
    }
}

struct Corpus {
    files: Vec<Vec<u8>>,
    /// Words and numbers of the files, and values at which programs stumble.
    words: Vec<Vec<u8>>,
}

impl Corpus {
    fn read(name: &str) -> Corpus {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
        let mut paths: Vec<_> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let odd: [&[u8]; 24] = [
            b"\0",
            b"\xff\xff",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x80",
            b"\x04\x00",
            b"\x03\x00",
            b"-1",
            b"0",
            b"1e999",
            b"18446744073709551616",
            b"-9223372036854775809",
            b"99999999999999999999ns",
            b"null",
            b"[[[[[[[[",
            b"{\"\":",
            b"\\",
            b"\"",
            b"\n",
            b"\x1b[2J",
            b"\xe2\x80\xae",
            b"\xc3",
            b"*",
            b"0.0.0.0/0",
            b"::/0",
        ];
        let mut words: Vec<Vec<u8>> = odd.iter().map(|word| word.to_vec()).collect();
        for file in &files {
            let parts = file.split(|byte| !byte.is_ascii_alphanumeric() && !b"._-/:".contains(byte));
            words.extend(parts.filter(|part| (1..40).contains(&part.len())).map(<[u8]>::to_vec));
        }
        words.sort();
        words.dedup();
        Corpus { files, words }
    }

    fn damaged(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = match dice.below(50) {
            0 => (0..dice.below(200)).map(|_| dice.next() as u8).collect(),
            _ => dice.one(&self.files).to_vec(),
        };
        for _ in 0..=dice.below(6) {
            self.damage(&mut bytes, dice);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn damage(&self, bytes: &mut Vec<u8>, dice: &mut Dice) {
        let at = dice.below(bytes.len() + 1);
        let most = 1 << dice.below(8);
        let end = (at + dice.below(most)).min(bytes.len());
        match dice.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let again = bytes[at..end].to_vec();
                let to = dice.below(bytes.len() + 1);
                bytes.splice(to..to, again.repeat(1 + dice.below(3)));
            }
            5 => {
                let other = dice.one(&self.files);
                let from = dice.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            6 => {
                // A word, or a number, becomes another.
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric();
                let start = bytes[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |before| before + 1);
                let end = bytes[at..].iter().position(|byte| !is_word(byte)).map_or(bytes.len(), |after| at + after);
                bytes.splice(start..end, dice.one(&self.words).iter().copied());
            }
            7 => {
                let word = dice.one(&self.words);
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                let word = dice.one(&self.words);
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
        }
    }
}

#[test]
fn a_panic_is_reported_in_few_bytes() {
    let mut corpus = Corpus::read("ini");
    corpus.files = vec![b"[Match]\nName=eth0 eth1\n".to_vec()];
    let panics = |bytes: &[u8]| bytes.windows(2).any(|two| two == b"=e");
    assert_eq!(fewest(&corpus.files[0], panics), b"=e");
    let inputs: Vec<_> = (0..200).map(|number| corpus.damaged(&mut Dice::new(1, number))).collect();
    assert!(inputs.iter().filter(|input| !panics(input)).count() > 20);
    assert_eq!(inputs, (0..200).map(|number| corpus.damaged(&mut Dice::new(1, number))).collect::<Vec<_>>());
}
