//! What the fuzz targets of a vault's formats check; shared with the ordinary tests, which replay the seeds.
//!
//! Each input is tried as it is, which checksums nearly always end, and again with all checksums made right, which
//! is what a hostile writer would send. Whatever is accepted must be exactly what the encoder writes. Sealed bytes end at
//! their tags, whatever is in them, so what is tried is not sealed.

use afterimage::format::checksum;
use afterimage::format::delta::{self, Footer, Tables};
use afterimage::format::manifest::{self, Snapshot, Step};
use afterimage::seal::GroupKeys;

/// Tries `input` as a delta blob; whether it was accepted as it is.
pub fn delta(input: &[u8]) -> bool {
    let accepted = check_delta(input);
    let mut resealed = input.to_vec();
    reseal_delta(&mut resealed);
    check_delta(&resealed);
    accepted
}

/// Tries `input` as a manifest step and as a snapshot; whether one accepted it as it is.
pub fn manifest(input: &[u8]) -> bool {
    let accepted = check_manifest(input);
    let mut resealed = input.to_vec();
    reseal_manifest(&mut resealed);
    check_manifest(&resealed);
    accepted
}

fn check_delta(bytes: &[u8]) -> bool {
    let Ok(footer) = Footer::decode(bytes, bytes.len() as u64) else { return false };
    let Ok(header) = delta::Header::decode(bytes) else { return false };
    if footer.check_identity(&footer.reference(), bytes).is_err() {
        return false;
    }
    let tables_at = usize::try_from(footer.tables_offset).expect("within the input");
    let stored = &bytes[tables_at..bytes.len() - delta::FOOTER_BYTES];
    assert_eq!(footer.encode(), bytes[bytes.len() - delta::FOOTER_BYTES..]);
    if footer.verify_tables(stored).is_err() || footer.sealed_under.is_some() {
        return false;
    }
    if footer.tables_compression != delta::Compression::None {
        return false;
    }
    let Ok(tables) = Tables::decode(stored, &header, &footer) else { return false };
    assert_eq!(tables.encode(), stored);
    assert_eq!(header.encode(), bytes[..delta::HEADER_BYTES]);
    let good = tables.chunks.iter().filter(|chunk| {
        let start = usize::try_from(chunk.offset).expect("within the input");
        chunk.verify(&bytes[start..start + chunk.stored_bytes as usize]).is_ok()
    });
    good.count() == tables.chunks.len()
}

fn check_manifest(bytes: &[u8]) -> bool {
    if let Ok((step, sum)) = Step::decode(bytes, &GroupKeys::NONE) {
        let encoded = step.encode(None);
        assert_eq!((encoded.bytes.as_slice(), encoded.checksum), (bytes, sum));
        return true;
    }
    let Ok(snapshot) = Snapshot::decode(bytes, &GroupKeys::NONE) else { return false };
    assert_eq!(snapshot.encode(None).bytes, bytes);
    true
}

/// The sum at `at` over everything from `from` up to it.
fn put_sum(bytes: &mut [u8], from: usize, at: usize) {
    let sum = checksum(&bytes[from..at]).to_le_bytes();
    bytes[at..at + sum.len()].copy_from_slice(&sum);
}

fn reseal_delta(bytes: &mut [u8]) {
    let Some(footer_at) = bytes.len().checked_sub(delta::FOOTER_BYTES) else { return };
    if footer_at < delta::HEADER_BYTES {
        return;
    }
    put_sum(bytes, 0, delta::HEADER_BYTES - 16);
    bytes.copy_within(delta::HEADER_BYTES - 16..delta::HEADER_BYTES, footer_at + 80);
    let tables_at = u64::from_le_bytes(bytes[footer_at + 24..footer_at + 32].try_into().expect("8 bytes"));
    let tables_at = usize::try_from(tables_at).unwrap_or(usize::MAX);
    if let Some(tables) = bytes.get(tables_at..footer_at) {
        let sum = checksum(tables).to_le_bytes();
        bytes[footer_at + 64..footer_at + 80].copy_from_slice(&sum);
    }
    put_sum(bytes, footer_at, footer_at + delta::FOOTER_BYTES - 16);
}

fn reseal_manifest(bytes: &mut [u8]) {
    if bytes.len() < manifest::HEADER_BYTES {
        return;
    }
    let payload_bytes = (bytes.len() - manifest::HEADER_BYTES) as u64;
    bytes[24..32].copy_from_slice(&payload_bytes.to_le_bytes());
    let sum = checksum(&bytes[manifest::HEADER_BYTES..]).to_le_bytes();
    bytes[96..112].copy_from_slice(&sum);
    put_sum(bytes, 0, manifest::HEADER_BYTES - 16);
}
