//! The side file fuzzer's seed inputs, checked in under `fuzz/corpus/side`, and replayed by the ordinary tests. After a
//! change: `AFTERIMAGE_WRITE_CORPUS=1 cargo test --test side_corpus`.

#[path = "support/side_fuzz.rs"]
mod side_fuzz;

use std::fs;
use std::path::Path;

use afterimage::format::side::{
    CHUNK_SECTORS_MAX, Content, Footer, Identity, SideExtent, Stood, encode_table,
};
use afterimage::units::{DiskId, GroupId, Lsn, SectorRange, TimelineId};
use proptest::prelude::*;

fn tail(extents: &[(u64, u64, Content)]) -> Vec<u8> {
    let identity = Identity {
        group: GroupId(1),
        timeline: TimelineId(2),
        disk: DiskId(3),
        number: 4,
        after: Lsn(5),
        through: Lsn(6),
    };
    let extent =
        |&(start, sectors, content)| SideExtent { range: SectorRange::new(start, start + sectors), content };
    let extents: Vec<SideExtent> = extents.iter().map(extent).collect();
    let table = encode_table(&extents);
    [table.as_slice(), &Footer::new(identity, &extents, &table).encode()].concat()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let data = Content::Data { checksum: 7 };
    let hole = Content::Zero { allocated: false };
    let kept = Content::Zero { allocated: true };
    let note = |sector| Content::Unreadable(Stood { segment: 3, sector });
    vec![
        ("empty", tail(&[])),
        ("data", tail(&[(0, 8, data), (8, CHUNK_SECTORS_MAX, data)])),
        (
            "noted",
            tail(&[(0, 8, data), (64, 8, kept), (4, 2, note(8)), (100, CHUNK_SECTORS_MAX, note(4096))]),
        ),
        ("mixed", tail(&[(3, 1, data), (4, 2, hole), (64, 1, data), (100, 1 << 20, kept)])),
    ]
}

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/side")
}

#[test]
fn the_checked_in_corpus_is_accepted_and_as_it_would_be_written() {
    if std::env::var_os("AFTERIMAGE_WRITE_CORPUS").is_some() {
        fs::create_dir_all(corpus()).unwrap();
        for (name, bytes) in seeds() {
            fs::write(corpus().join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in seeds() {
        assert_eq!(fs::read(corpus().join(name)).unwrap(), bytes, "{name}");
        assert!(side_fuzz::tail(&bytes), "{name}");
    }
}

proptest! {
    #[test]
    fn no_mutation_breaks_the_decoder(
        which in 0..3usize,
        at in any::<prop::sample::Index>(),
        with in any::<[u8; 8]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (_, mut bytes) = seeds().swap_remove(which);
        let start = at.index(bytes.len() - with.len());
        bytes[start..start + with.len()].copy_from_slice(&with);
        side_fuzz::tail(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        side_fuzz::tail(&bytes);
    }
}
