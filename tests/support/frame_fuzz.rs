//! What the fuzz target of the journal's format checks; shared with the ordinary tests, which replay the seeds.
//!
//! Each input is taken for a segment: as it is, which checksums nearly always end, and again with the checksums of
//! everything that looks like a frame made right, which is what a hostile writer would send. Whatever is accepted
//! must be exactly what the encoder writes, lie within the input, and take no more memory than the input warrants.

use afterimage::format::checkpoint::Checkpoint;
use afterimage::format::frame::{DESCRIPTOR_BYTES, FIXED_BYTES, Frame, RecordKind, UntrustedHeader};
use afterimage::format::marker::{Marker, Opening};
use afterimage::journal::recover::{Known, recover};
use afterimage::journal::scan::{Checks, SegmentScan, read_frame, scan_segment};
use afterimage::journal::segments::SegmentIndex;
use afterimage::units::PAGE_BYTES;
use xxhash_rust::xxh3::xxh3_64;

const HEADER_SUM: std::ops::Range<usize> = 16..24;

/// Tries `input` as a segment; the frames that were accepted as it is.
pub fn segment(input: &[u8]) -> usize {
    let _ = Checkpoint::newest(input);
    let accepted = check(input);
    let mut resealed = input.to_vec();
    reseal(&mut resealed);
    check(&resealed);
    accepted
}

fn check(bytes: &[u8]) -> usize {
    if !bytes.is_empty() {
        let _ = read_frame(bytes, 0);
    }
    let scan = scan_segment(SegmentIndex(0), bytes, Checks::ALL);
    let mut end = 0;
    for scanned in &scan.frames {
        let frame = &scanned.frame;
        assert_eq!(frame.segment_offset(), end, "frames stand one behind the other");
        end = scanned.end_offset();
        let start = usize::try_from(frame.segment_offset()).expect("within the input");
        let whole = &bytes[start..start + frame.total_bytes()];
        check_frame(frame, scanned.sum, whole);
    }
    check_recovery(&scan);
    scan.frames.len()
}

fn check_frame(frame: &Frame, sum: u64, whole: &[u8]) {
    assert!(frame.records.len() * DESCRIPTOR_BYTES + FIXED_BYTES <= frame.header_bytes());
    assert!(frame.records.capacity() <= 2 * frame.header_bytes() / DESCRIPTOR_BYTES, "allocation is bounded");
    let (header, payload) = whole.split_at(frame.header_bytes());
    let mut encoded = vec![0xff; header.len()];
    assert_eq!(frame.encode_header(&mut encoded), sum);
    assert_eq!(encoded, header);
    assert_eq!(frame.verify_payloads(payload), Ok(()));
    for record in &frame.records {
        let body = &whole[frame.payload_range(record.payload)];
        match record.kind {
            RecordKind::Marker => {
                if let Some(marker) = Marker::decode(body) {
                    assert_eq!(marker.encode(), body);
                }
            }
            RecordKind::Opening => {
                if let Some(opening) = Opening::decode(body) {
                    assert_eq!(opening.encode(), body);
                }
            }
            RecordKind::Write { range, .. } => assert_eq!(range.bytes(), body.len() as u64),
            RecordKind::Zero { .. } | RecordKind::Seal => assert!(body.is_empty()),
        }
    }
}

/// Deciding on what was scanned, twice the same segment too, never panics.
fn check_recovery(scan: &SegmentScan) {
    let Some(first) = scan.frames.first() else { return };
    let known = Known::of(first.frame.owner());
    let _ = recover(std::slice::from_ref(scan), known, Checks::ALL, &[]);
    let _ = recover(&[scan.clone(), scan.clone()], known, Checks::ALL, &[]);
}

/// Makes the sums of whatever looks like a frame right, payloads first.
fn reseal(bytes: &mut [u8]) {
    let mut offset = 0;
    while offset < bytes.len() {
        let page = &bytes[offset..bytes.len().min(offset + PAGE_BYTES)];
        let length = match UntrustedHeader::read(page) {
            Ok(header) if offset + header.total_bytes() <= bytes.len() => header.total_bytes(),
            _ => {
                offset += PAGE_BYTES;
                continue;
            }
        };
        let whole = &mut bytes[offset..offset + length];
        reseal_header(whole);
        if let Ok((frame, _)) = UntrustedHeader::read(whole).and_then(|header| header.parse(whole)) {
            reseal_payloads(&frame, whole);
            reseal_header(whole);
        }
        offset += length;
    }
}

fn reseal_payloads(frame: &Frame, whole: &mut [u8]) {
    for (index, record) in frame.records.iter().enumerate() {
        if record.payload.sectors > 0 {
            let sum = xxh3_64(&whole[frame.payload_range(record.payload)]);
            let at = FIXED_BYTES + (index + 1) * DESCRIPTOR_BYTES - 8;
            whole[at..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn reseal_header(whole: &mut [u8]) {
    let Ok(header) = UntrustedHeader::read(whole) else { return };
    let header = &mut whole[..header.header_bytes()];
    header[HEADER_SUM].fill(0);
    let sum = xxh3_64(header);
    header[HEADER_SUM].copy_from_slice(&sum.to_le_bytes());
}
