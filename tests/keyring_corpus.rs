//! The keyring fuzzer's seed inputs, checked in under `fuzz/corpus/keyring`, and replayed by the ordinary tests. After a
//! change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test keyring_corpus`.

#[path = "support/keyring_fuzz.rs"]
mod keyring_fuzz;

use std::fs;
use std::path::Path;

use afterimage::format::keyring::{Header, Keyring};
use afterimage::seal::{Generation, SiteKeyId, TAG_BYTES, WrappedKey};
use afterimage::units::{GroupId, WallNanos};
use proptest::prelude::*;

fn encoded(generations: &[u32]) -> Vec<u8> {
    let key = |&generation: &u32| WrappedKey {
        generation: Generation(generation),
        key: [generation.to_le_bytes()[0]; 32],
        tag: [9; TAG_BYTES],
    };
    let header = Header {
        number: 3,
        created: WallNanos(1_767_225_600_000_000_000),
        group: GroupId(7),
        site_key: SiteKeyId(8),
        wrapping: 1 << 100,
    };
    Keyring { header, keys: generations.iter().map(key).collect() }.encode()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut rotten = encoded(&[1, 2]);
    rotten[100] ^= 1;
    vec![("first", encoded(&[1])), ("rotated", encoded(&[1, 2, 9])), ("first_copy_rotten", rotten)]
}

#[test]
fn the_seeds_are_what_the_encoder_writes_and_all_are_accepted() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/keyring");
    for (name, bytes) in seeds() {
        let path = corpus.join(name);
        if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
            fs::create_dir_all(&corpus).expect("a directory");
            fs::write(&path, &bytes).expect("written");
        }
        assert!(fs::read(&path).expect("a seed") == bytes, "{name} is stale");
        assert!(keyring_fuzz::keyring(&bytes), "{name}");
    }
}

proptest! {
    #[test]
    fn changed_seeds_do_no_harm(
        seed in 0..3_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (_, mut bytes) = seeds().swap_remove(seed);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        keyring_fuzz::keyring(&bytes);
    }
}
