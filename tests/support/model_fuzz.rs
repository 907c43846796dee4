//! What the fuzz target `journal_model` does with an input, and how it changes one; shared with the ordinary tests, which
//! replay the seeds and look for planted bugs among their mutants.

use afterimage::planted::Planted;
use afterimage::sim::script::{ACT_BYTES, Act, Script};
use afterimage::sim::{Failure, Options, Report};
use afterimage::storage::sim::Random;

/// Acts that are copied at a time, at most.
const COPIED_MAX: usize = 16;

/// Plays `input`.
pub fn play(input: &[u8], planted: Planted) -> Result<Report, Failure> {
    afterimage::sim::play(&Script::decode(input), &Options { planted, sink: None })
}

/// Changes the script in the first `size` bytes of `data`, act by act, as `seed` says; returns its new size.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random::new(u64::from(seed));
    let script = Script::decode(&data[..size]).encode();
    let (records, _) = script.as_chunks::<ACT_BYTES>();
    let mut records = records.to_vec();
    for _ in 0..1 + random.below(4) {
        change(&mut records, &mut random);
    }
    let bytes = records.as_flattened();
    let size = bytes.len().min(max_size);
    data[..size].copy_from_slice(&bytes[..size]);
    size
}

/// One change. The first record is the setting, which stays in its place.
fn change(records: &mut Vec<[u8; ACT_BYTES]>, random: &mut Random) {
    let byte = |random: &mut Random| random.next().to_le_bytes()[0];
    let (at, other) = (random.index(records.len()), random.index(records.len()));
    let between = at.max(1).min(records.len());
    match random.below(8) {
        0..3 => {
            let place = &mut records[at][random.index(ACT_BYTES)];
            *place = match random.below(4) {
                0 => place.wrapping_add(1),
                1 => place.wrapping_sub(1),
                _ => byte(random),
            };
        }
        3 => {
            let mut record = [0; ACT_BYTES].map(|_| byte(random));
            record[0] %= Act::KINDS;
            records.insert(between, record);
        }
        4 if at > 0 => drop(records.remove(at)),
        5 if at > 0 && other > 0 => records.swap(at, other),
        _ if other > 0 => {
            let end = records.len().min(other + 1 + random.index(COPIED_MAX));
            let copied = records[other..end].to_vec();
            records.splice(between..between, copied);
        }
        _ => {}
    }
}
