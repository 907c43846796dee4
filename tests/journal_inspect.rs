//! Journals looked at from outside: what is said of sound ones, and of every kind of damage, against what opening
//! makes of the very same bytes. The worst that an offline tool can do is to repair, or to reassure.

#[allow(dead_code)]
#[path = "support/journal_maker.rs"]
mod journal_maker;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use afterimage::format::frame::{Payload, RecordKind};
use afterimage::format::run::{Run, RunExtent, RunLayer, RunPart, RunSource};
use afterimage::journal::inspect::{Fault, SegmentSurvey, Survey, Verdict};
use afterimage::journal::recover::Decision;
use afterimage::journal::refusal::Refusal;
use afterimage::journal::runs::link_of;
use afterimage::journal::scan::Scanned;
use afterimage::units::{DiskSlot, GroupId, Lsn, SectorCount, TimelineId};
use journal_maker::{GROUP, Journal, SEGMENT_BYTES, copy, files, opening_accepts};
use tempfile::TempDir;

/// Two incarnations; the second is sealed. Everything but the seal is stated durable.
fn sealed(directory: &Path) {
    let mut journal = Journal::open(directory, GROUP);
    journal.write(0, 1, 8);
    journal.write(8, 2, 3);
    journal.zero(16, 4000);
    journal.mark("before");
    journal.sync();
    drop(journal);
    let mut journal = Journal::open(directory, GROUP);
    journal.write(0, 3, 128);
    journal.write(1, 4, 1);
    journal.sync();
    journal.seal();
}

/// Two frames that a sync covered and nothing states, behind two that are stated.
fn crashed(directory: &Path) {
    let mut journal = Journal::open(directory, GROUP);
    journal.write(0, 1, 8);
    journal.write(8, 2, 8);
    journal.sync();
    journal.write(16, 3, 8);
    journal.write(24, 4, 8);
}

/// Four segments' worth, none recycled.
fn long(directory: &Path) {
    let mut journal = Journal::open(directory, GROUP);
    for piece in 0..56 {
        journal.write(piece * 128, 1 + u8::try_from(piece).expect("small"), 128);
    }
    journal.sync();
    journal.write(0, 99, 8);
}

fn journal(make: impl FnOnce(&Path)) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join(format!("{GROUP}/journal"));
    make(&directory);
    (root, directory)
}

fn survey(path: &Path) -> Survey {
    Survey::of(path).expect("the path is readable")
}

fn faults(survey: &Survey) -> &[Fault] {
    match &survey.verdict {
        Verdict::Damaged(faults) => faults,
        other => panic!("damaged, not {other:?}"),
    }
}

fn segment(directory: &Path, index: u32) -> PathBuf {
    directory.join(format!("segment-{index:08}"))
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("writes");
}

/// Damages a copy of `directory`; gives its survey after checking that opening agrees with the verdict.
fn damaged(directory: &Path, damage: impl FnOnce(&Path)) -> (Survey, TempDir) {
    let root = tempfile::tempdir().expect("a directory");
    let copied = root.path().join("journal");
    copy(directory, &copied);
    damage(&copied);
    let survey = survey(&copied);
    let refused = opening_accepts(&copied, GROUP, Lsn::ZERO);
    let is_damaged = matches!(survey.verdict, Verdict::Damaged(_));
    // Where nothing but payloads of writes rotted, opening goes on, for whoever reads those is told.
    let is_payload = |fault: &Fault| fault.what.contains("payload of record");
    let goes_on = is_damaged && refused.is_ok() && faults(&survey).iter().any(is_payload);
    assert_eq!(
        refused.is_err(),
        is_damaged && !goes_on,
        "opening says {refused:?}, the survey {:?}",
        survey.verdict
    );
    if let Ok(accepted) = refused
        && !goes_on
    {
        let chain: usize = survey.chain().iter().map(|accepted| accepted.frames).sum();
        assert_eq!(accepted, chain, "opening takes what the survey says");
    }
    (survey, root)
}

#[test]
fn a_sound_journal_is_told_whole() {
    let (_root, directory) = journal(sealed);
    let survey = survey(&directory);
    assert_eq!(survey.verdict, Verdict::Sound);
    assert!(survey.is_closed() && !survey.in_use);
    assert_eq!(survey.owner.map(|owner| owner.group), Some(GROUP));
    let [first, second] = &survey.incarnations[..] else { panic!("{:?}", survey.incarnations) };
    assert_eq!(first.opening.map(|(_, predecessor)| predecessor), Some(None));
    assert_eq!(second.opening.map(|(_, predecessor)| predecessor), Some(Some(first.id)));
    assert!(!first.closed && second.closed);
    assert_eq!(second.frames.0, first.frames.1.next());
    let markers: Vec<_> = survey.segments.iter().flat_map(|segment| &segment.markers).collect();
    let [found] = markers[..] else { panic!("{markers:?}") };
    assert_eq!(found.marker.as_ref().map(|marker| marker.label.as_str()), Some("before"));
    assert!(survey.floor.stated > first.records.1);
}

#[test]
fn nothing_is_modified() {
    for make in [sealed, crashed, long] {
        let (_root, directory) = journal(make);
        fs::write(directory.join("segment-00000099.new"), b"unfinished").expect("written");
        flip(&segment(&directory, 0), 4096 + 20);
        let state = || {
            let times = fs::read_dir(&directory).expect("a directory").map(|entry| {
                let entry = entry.expect("an entry");
                let metadata = entry.metadata().expect("metadata");
                (
                    entry.file_name(),
                    metadata.mtime_nsec(),
                    metadata.ctime_nsec(),
                    metadata.ctime(),
                    metadata.ino(),
                )
            });
            let mut times: Vec<_> = times.collect();
            times.sort();
            let directory_changed = fs::metadata(&directory).expect("metadata").ctime_nsec();
            (times, directory_changed, files(&directory))
        };
        let before = state();
        survey(&directory);
        survey(&segment(&directory, 0));
        assert!(before == state(), "looking changes nothing");
    }
}

/// Every kind of place in every frame: what the sums cover is found at the right frame, what they do not is no fault.
#[test]
fn a_flipped_bit_is_found_where_it_is() {
    let (_root, directory) = journal(sealed);
    let sound = survey(&directory);
    let frames: Vec<_> = sound.segments[0].scan.frames.iter().map(|found| found.frame.clone()).collect();
    assert!(frames.len() > 7, "{}", frames.len());
    let mut kinds = [0; 3];
    for frame in &frames {
        let start = frame.segment_offset();
        let header = frame.header_bytes() as u64;
        // Each field of the fixed header and of the first descriptor, then zeros of the header's last page.
        let fields = [0, 7, 8, 10, 11, 12, 16, 24, 32, 48, 64, 80, 88, 96, 104, 112, 116, 120, 124];
        let descriptor = [128, 129, 130, 132, 136, 144, 148, 152];
        let mut places: Vec<u64> = fields.into_iter().chain(descriptor).chain([header - 1]).collect();
        let covered = frame.records.iter().filter(|record| record.payload.sectors > 0).flat_map(|record| {
            let range = frame.payload_range(record.payload);
            [range.start as u64, range.end as u64 - 1]
        });
        places.extend(covered);
        for place in places {
            let offset = start + place;
            let (survey, _copy) = damaged(&directory, |copy| flip(&segment(copy, 0), offset));
            let durable = frame.last_lsn() <= survey.floor.lsn();
            match &survey.verdict {
                Verdict::Damaged(faults) => {
                    assert!(faults.iter().any(|fault| fault.offset == Some(start)), "{offset}: {faults:?}");
                    kinds[0] += 1;
                }
                Verdict::TornTail(fault) => {
                    assert_eq!(fault.offset, Some(start));
                    assert!(!durable, "byte {offset} of a durable frame was called a torn tail");
                    kinds[1] += 1;
                }
                Verdict::Sound => {
                    // The magic of the very last frame: no trace of it is left.
                    assert!(place < 8 && start == frames[frames.len() - 1].segment_offset(), "{offset}");
                    kinds[2] += 1;
                }
                Verdict::NeverUsed => panic!("byte {offset}: what is said of single segments"),
            }
        }
        // Behind the last payload the area is padding that no sum covers.
        let end = frame.records.iter().map(|record| frame.payload_range(record.payload).end as u64).max();
        let padding = end.unwrap_or(header)..frame.total_bytes() as u64;
        if !padding.is_empty() {
            let (survey, _copy) = damaged(&directory, |copy| flip(&segment(copy, 0), start + padding.start));
            assert_eq!(survey.verdict, Verdict::Sound);
        }
    }
    assert!(kinds[0] > 100 && kinds[1] > 10, "{kinds:?}");
}

#[test]
fn a_torn_tail_is_no_damage_but_a_lost_durable_frame_is() {
    let (_root, directory) = journal(crashed);
    let frames: Vec<u64> = {
        let sound = survey(&directory);
        assert_eq!(sound.verdict, Verdict::Sound);
        sound.segments[0].scan.frames.iter().map(|found| found.frame.segment_offset()).collect()
    };
    let [.., durable, third, fourth] = frames[..] else { panic!("{frames:?}") };
    for torn in [third, fourth] {
        for place in [100, 4096 + 17] {
            let (survey, _copy) = damaged(&directory, |copy| flip(&segment(copy, 0), torn + place));
            let Verdict::TornTail(fault) = &survey.verdict else { panic!("{:?}", survey.verdict) };
            assert_eq!(fault.offset, Some(torn));
        }
    }
    let (survey, _copy) = damaged(&directory, |copy| flip(&segment(copy, 0), durable + 4096));
    let [fault] = faults(&survey) else { panic!("{:?}", survey.verdict) };
    assert_eq!(fault.offset, Some(durable));
    assert!(fault.what.contains("payload of record 0"), "{fault}");
}

#[test]
fn every_fault_of_a_segment_is_named() {
    let (_root, directory) = journal(sealed);
    let offsets: Vec<u64> =
        survey(&directory).segments[0].scan.frames.iter().map(|found| found.frame.segment_offset()).collect();
    let (survey, _copy) = damaged(&directory, |copy| {
        flip(&segment(copy, 0), offsets[1] + 4096);
        flip(&segment(copy, 0), offsets[2] + 4096);
    });
    let named: Vec<_> = faults(&survey).iter().filter_map(|fault| fault.offset).collect();
    assert_eq!(named, offsets[1..3]);
}

#[test]
fn a_missing_or_foreign_or_mixed_up_segment_is_found() {
    let (_root, directory) = journal(long);
    let sound = survey(&directory);
    assert_eq!(sound.verdict, Verdict::Sound);
    let chain: Vec<PathBuf> =
        sound.chain().iter().map(|accepted| sound.segments[accepted.scan].path.clone()).collect();
    assert!(chain.len() >= 4, "{chain:?}");
    for path in &chain[..chain.len() - 1] {
        let name = path.file_name().expect("a name");
        let (survey, _copy) = damaged(&directory, |copy| fs::remove_file(copy.join(name)).expect("removed"));
        assert!(faults(&survey)[0].what.contains("missing"), "{:?}", survey.verdict);
    }
    let (_other_root, other) = journal(|directory| drop(Journal::open(directory, GroupId(8))));
    let (survey, _copy) = damaged(&directory, |copy| {
        fs::copy(segment(&other, 0), segment(copy, 77)).expect("copied");
    });
    assert!(matches!(survey.decision, Some(Decision::Refuse(Refusal::Foreign { .. }))));
    let [fault] = faults(&survey) else { panic!("{:?}", survey.verdict) };
    assert!(fault.path.ends_with("segment-00000077") && fault.what.contains("another"), "{fault}");
    let (survey, _copy) = damaged(&directory, |copy| {
        fs::copy(&chain[0], copy.join(chain[1].file_name().expect("a name"))).expect("copied");
    });
    assert!(!faults(&survey).is_empty());
}

#[test]
fn cut_files_and_garbage_are_found() {
    let (_root, directory) = journal(long);
    let second = survey(&directory).chain()[1].scan;
    let second = survey(&directory).segments[second].path.clone();
    let second = Path::new(second.file_name().expect("a name"));
    for length in [0, 100, 4096, 4097, 40_960, SEGMENT_BYTES / 2, SEGMENT_BYTES - 4096] {
        let cut = |copy: &Path| {
            let file = fs::OpenOptions::new().write(true).open(copy.join(second)).expect("opens");
            file.set_len(length).expect("cut");
        };
        let root = tempfile::tempdir().expect("a directory");
        copy(&directory, root.path());
        cut(root.path());
        let survey = survey(root.path());
        // The last pages of a segment may be unused: without them nothing is lost.
        let lost = length < SEGMENT_BYTES - 65_536;
        assert_eq!(matches!(survey.verdict, Verdict::Damaged(_)), lost, "{length}: {:?}", survey.verdict);
    }
    let (survey, _copy) = damaged(&directory, |copy| {
        let garbage: Vec<u8> =
            (0..SEGMENT_BYTES).map(|at| (at.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0]).collect();
        fs::write(copy.join(second), garbage).expect("written");
    });
    assert!(faults(&survey).iter().any(|fault| fault.path.ends_with(second) && fault.offset == Some(0)));
    let (survey, _copy) = damaged(&directory, |copy| {
        let file = fs::OpenOptions::new().write(true).open(copy.join(second)).expect("opens");
        file.write_all_at(&[0; 4096], 0).expect("zeroed");
    });
    assert!(faults(&survey).iter().any(|fault| fault.path.ends_with(second) && fault.offset == Some(0)));
    let (survey, _copy) =
        damaged(&directory, |copy| fs::write(copy.join("notes.txt"), "x").expect("written"));
    assert!(faults(&survey)[0].path.ends_with("notes.txt"));
}

#[test]
fn a_single_segment_tells_about_itself() {
    let (_root, directory) = journal(long);
    let chain = survey(&directory).chain();
    for accepted in &chain {
        let path = segment(&directory, survey(&directory).segments[accepted.scan].scan.index.0);
        let one = survey(&path);
        assert_eq!(one.decision, None);
        assert_eq!(one.verdict, Verdict::Sound);
        assert_eq!(one.chain()[0].frames, accepted.frames);
    }
    // Which records were durable is stated by later segments here, so that this one alone cannot be called damaged.
    let first = segment(&directory, survey(&directory).segments[chain[0].scan].scan.index.0);
    flip(&first, 2 * 69_632 + 50);
    assert!(matches!(survey(&first).verdict, Verdict::TornTail(_)));
    assert!(!faults(&survey(&directory)).is_empty());
    let (_other_root, other) = journal(sealed);
    flip(&segment(&other, 0), 4096);
    let one = survey(&segment(&other, 0));
    assert!(faults(&one).iter().any(|fault| fault.offset == Some(0)), "{:?}", one.verdict);
    assert!(Survey::of(&directory.join("none")).is_err());
}

#[test]
fn a_file_without_a_frame_is_no_journal_whatever_else_it_holds() {
    use afterimage::error::ErrorKind;
    let (root, directory) = journal(sealed);
    let contents: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("zeros", vec![0; 8192]),
        ("garbage", vec![7; 8192]),
        ("letter", b"no journal".to_vec()),
        ("zeros-then-garbage", [vec![0; 8192], vec![7; 4096]].concat()),
    ];
    for (name, bytes) in contents {
        let path = root.path().join(name);
        fs::write(&path, bytes).expect("written");
        let error = Survey::of(&path).expect_err("no journal");
        assert_eq!((error.kind(), error.path()), (ErrorKind::Invalid, Some(&*path)), "{name}: {error}");
        assert!(error.to_string().contains("no frame stands in the file"), "{error}");
    }
    // A copy of a segment is one by what stands in it, whatever it is called, also if it is damaged or of a later format.
    let copied = root.path().join("a copy");
    fs::copy(segment(&directory, 0), &copied).expect("copied");
    assert_eq!(survey(&copied).verdict, Verdict::Sound);
    for offset in [0, 8, 100] {
        fs::copy(segment(&directory, 0), &copied).expect("copied");
        flip(&copied, offset);
        assert!(!faults(&survey(&copied)).is_empty(), "{offset}");
    }
}

#[test]
fn a_segment_that_was_never_used_holds_no_journal_and_is_no_fault() {
    let (_root, directory) = journal(sealed);
    let found = survey(&directory);
    let free = found.segments.iter().find(|segment| segment.is_never_used()).expect("one is kept ready");
    assert_eq!(survey(&free.path).verdict, Verdict::NeverUsed);
    assert_eq!(found.verdict, Verdict::Sound, "among others it is as it should be");
    // Not so once anything stands in it, or if it has a length that no segment has.
    flip(&free.path, SEGMENT_BYTES - 1);
    assert!(!faults(&survey(&free.path)).is_empty());
    fs::write(&free.path, [0; 100]).expect("written");
    assert!(!faults(&survey(&free.path)).is_empty());
}

#[test]
fn of_a_damaged_journal_it_is_said_how_far_it_is_sound() {
    let (_root, directory) = journal(long);
    let sound = survey(&directory);
    let chain = sound.chain();
    let frames = |part: usize| &sound.segments[chain[part].scan].scan.frames;
    let name = |part: usize| sound.segments[chain[part].scan].path.file_name().expect("a name").to_owned();
    let records = |survey: &Survey| survey.unbroken_records().expect("sound frames");
    let first = frames(0)[0].frame.first_lsn;
    assert_eq!(records(&sound), (first, sound.end()));
    // A frame in the middle: everything before it.
    let broken = &frames(1)[1].frame;
    let (found, _copy) =
        damaged(&directory, |copy| flip(&copy.join(name(1)), broken.segment_offset() + 4096));
    assert_eq!(records(&found), (first, Lsn(broken.first_lsn.0 - 1)));
    assert_eq!(found.unbroken.iter().map(|part| part.frames).sum::<usize>(), frames(0).len() + 1);
    assert_eq!((found.chain().len(), found.end()), (0, Lsn::ZERO), "opening takes nothing of it");
    assert_eq!(found.incarnations[0].records, records(&found));
    // The first segment: everything from the next on.
    let (found, _copy) = damaged(&directory, |copy| fs::remove_file(copy.join(name(0))).expect("removed"));
    assert_eq!(records(&found), (frames(1)[0].frame.first_lsn, sound.end()));
    // All of them.
    let (found, _copy) = damaged(&directory, |copy| {
        (0..chain.len()).for_each(|part| flip(&copy.join(name(part)), 0));
    });
    assert_eq!(found.unbroken_records(), None);
}

#[test]
fn a_directory_with_a_segments_name_is_named_and_the_rest_looked_at() {
    let (_root, directory) = journal(sealed);
    let (found, _copy) = damaged(&directory, |copy| fs::create_dir(segment(copy, 77)).expect("a directory"));
    let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
    assert!(fault.path.ends_with("segment-00000077") && fault.what.starts_with("not a segment"), "{fault}");
    assert_eq!(found.unbroken_records(), survey(&directory).unbroken_records());
}

#[test]
fn a_segment_that_cannot_be_opened_is_named_and_the_rest_looked_at() {
    use std::os::unix::fs::symlink;
    let (root, directory) = journal(sealed);
    let dangling = |copy: &Path| symlink("nowhere", segment(copy, 77)).expect("a link");
    let (found, _copy) = damaged(&directory, dangling);
    let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
    assert!(fault.path.ends_with("segment-00000077"), "{fault}");
    assert!(fault.what.starts_with("it cannot be opened") && fault.what.contains("os error 2"), "{fault}");
    assert_eq!(found.unbroken_records(), survey(&directory).unbroken_records());
    // Where none can be, nothing is known of the journal: that is no verdict.
    let lost = root.path().join("lost");
    fs::create_dir(&lost).expect("a directory");
    dangling(&lost);
    let error = Survey::of(&lost).expect_err("nothing can be read");
    assert_eq!(error.path(), Some(&*segment(&lost, 77)));
}

/// What is found where a disk gives every byte of `bad` but those in `pages` of it.
fn survey_of_a_failing_disk(path: &Path, bad: &Path, pages: std::ops::Range<u64>) -> Survey {
    let bad = fs::metadata(bad).expect("metadata").ino();
    let read_at = |file: &fs::File, bytes: &mut [u8], offset: u64| {
        let asked = offset / 4096..(offset + bytes.len() as u64).div_ceil(4096);
        let fails = asked.start < pages.end && pages.start < asked.end;
        match fails && file.metadata()?.ino() == bad {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => file.read_at(bytes, offset),
        }
    };
    Survey::of_by(path, &read_at).expect("what can be read is looked at")
}

#[test]
fn what_a_disk_does_not_give_is_named_and_the_rest_looked_at() {
    let (_root, directory) = journal(long);
    let sound = survey(&directory);
    let chain = sound.chain();
    let second = &sound.segments[chain[1].scan];
    let frame = &second.scan.frames[1].frame;
    let page = frame.segment_offset() / 4096;
    let last_of = |survey: &Survey| survey.unbroken_records().expect("sound frames").1;
    for (path, before) in
        [(&directory, Lsn(frame.first_lsn.0 - 1)), (&second.path, Lsn(frame.first_lsn.0 - 1))]
    {
        // The header of a frame: nothing else is said of its place.
        let found = survey_of_a_failing_disk(path, &second.path, page..page + 1);
        let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
        assert_eq!((&fault.path, fault.offset), (&second.path, Some(page * 4096)));
        let said = "4096 bytes cannot be read: Input/output error (os error 5)";
        assert_eq!(fault.what, said);
        assert_eq!(last_of(&found), before);
    }
    // Its payload, in the middle: nothing else is said of that either, such as that its sum does not match.
    for path in [&directory, &second.path] {
        let found = survey_of_a_failing_disk(path, &second.path, page + 3..page + 5);
        let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
        assert_eq!(fault.offset, Some((page + 3) * 4096));
        assert_eq!(found.segments.len(), if path == &directory { sound.segments.len() } else { 1 });
    }
    // All of a segment, also of one that was never used: nobody says that it is zeros.
    for bad in &sound.segments {
        for path in [&directory, &bad.path] {
            let found = survey_of_a_failing_disk(path, &bad.path, 0..SEGMENT_BYTES / 4096);
            let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
            assert_eq!((&fault.path, fault.offset), (&bad.path, Some(0)));
            assert!(fault.what.starts_with(&format!("{SEGMENT_BYTES} bytes cannot be read")), "{fault}");
        }
    }
}

#[test]
fn an_empty_directory_is_no_journal_unless_it_stands_beside_images() {
    use afterimage::error::ErrorKind;
    use afterimage::format::checkpoint::{Checkpoint, FILE_BYTES};
    use afterimage::units::{DiskId, TimelineId};
    let (root, directory) = journal(|directory| fs::create_dir_all(directory).expect("a directory"));
    fs::write(root.path().join("letter"), "no journal").expect("written");
    let said = |directory: &Path| {
        let error = Survey::of(directory).expect_err("no journal");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    };
    assert!(said(&directory).contains("holds no segment"));
    assert!(said(root.path()).contains("holds no segment"));
    assert!(said(directory.parent().expect("a group")).contains(&directory.display().to_string()));
    let images = root.path().join(format!("{GROUP}/images"));
    fs::create_dir_all(&images).expect("a directory");
    let checkpoint = Checkpoint {
        sequence: 2,
        disk: DiskId(9),
        timeline: TimelineId(1),
        destaged: Lsn(1 << 32),
        sectors: SectorCount(64),
        resizing_to: None,
        has_sums: true,
    };
    let mut bytes = vec![0; FILE_BYTES];
    checkpoint.encode(&mut bytes[..4096]);
    fs::write(images.join(format!("{}.checkpoint", DiskId(9))), bytes).expect("written");
    let survey = survey(&directory);
    assert_eq!(survey.floor.destaged, Some(Lsn(1 << 32)));
    assert_eq!(survey.decision, Some(Decision::Refuse(Refusal::Gone { floor: Lsn(1 << 32) })));
    assert_eq!(faults(&survey).len(), 1);
}

/// The other slot is used, and nothing is lost: but a bit that flipped on disk is told, wherever it did.
#[test]
fn a_flipped_bit_in_a_checkpoint_beside_a_sound_journal_is_named() {
    use afterimage::format::checkpoint::{Checkpoint, FILE_BYTES};
    use afterimage::units::{DiskId, TimelineId};
    let (root, directory) = journal(|directory| {
        let mut journal = Journal::open(directory, GROUP);
        journal.write(0, 1, 8);
        journal.seal();
    });
    let path = root.path().join(format!("{GROUP}/images/{}.checkpoint", DiskId(9)));
    fs::create_dir_all(path.parent().expect("images")).expect("a directory");
    let mut bytes = vec![0; FILE_BYTES];
    for (sequence, page) in [2, 3].into_iter().zip(bytes.chunks_mut(4096)) {
        let (disk, timeline, sectors) = (DiskId(9), TimelineId(1), SectorCount(64));
        let (destaged, resizing_to, has_sums) = (Lsn::ZERO, None, true);
        Checkpoint { sequence, disk, timeline, destaged, sectors, resizing_to, has_sums }.encode(page);
    }
    let verdict = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("written");
        survey(&directory).verdict
    };
    assert_eq!(verdict(&bytes), Verdict::Sound);
    let mut torn = bytes.clone();
    torn[4096 + 16..4096 + 90].fill(7);
    assert_eq!(verdict(&torn), Verdict::Sound, "as a power cut may leave it");
    bytes[4096 + 70] ^= 1;
    let Verdict::Damaged(faults) = verdict(&bytes) else { panic!("a bit has flipped") };
    let [fault] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!((&fault.path, fault.offset), (&path, Some(4096)));
    assert!(fault.what.contains("a bit has flipped"), "{fault}");
}

#[test]
fn a_recycled_journal_is_sound_and_its_free_segments_are_told() {
    let (_root, directory) = journal(|directory| {
        let mut journal = Journal::open(directory, GROUP);
        for round in 0..12 {
            for piece in 0..14 {
                journal.write(piece * 128, round, 128);
            }
            journal.sync();
            journal.recycle();
        }
        // The first frame of a segment that was used before: the frames of that use stand behind it.
        journal.write(0, 1, 128);
        journal.seal();
    });
    let survey = survey(&directory);
    assert_eq!(survey.verdict, Verdict::Sound);
    let chain = survey.chain();
    assert!(chain.len() < survey.segments.len());
    let left_overs = survey.segments.iter().map(|segment| segment.left_overs.len()).sum::<usize>();
    assert!(left_overs > 0);
    assert_eq!(survey.incarnations.len(), 1);
    assert_eq!(survey.incarnations[0].opening, None, "the frame that says so was recycled");
}

#[test]
fn a_journal_in_use_is_read_as_a_snapshot() {
    let root = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open(root.path(), GROUP);
    journal.write(0, 1, 8);
    let found = survey(root.path());
    assert!(found.in_use && !found.is_closed());
    assert_eq!(found.verdict, Verdict::Sound);
    assert_eq!(found.end(), journal.writer.visible());
    journal.write(8, 2, 8);
    assert_eq!(survey(root.path()).end(), journal.writer.visible());
    journal.seal();
    assert!(!survey(root.path()).in_use);
}

/// The run that a gateway would write about the first segments' frames behind the first frame: made of what the survey says,
/// and changed.
fn run_over(
    survey: &Survey,
    change: impl FnOnce(&mut Run, &mut Vec<RunExtent>, &mut Vec<Payload>),
) -> Vec<u8> {
    let segment = &survey.segments[0];
    let frames = &segment.scan.frames;
    let (first, last) = (&frames[0], &frames[frames.len() - 1]);
    let (mut extents, mut payloads) = (Vec::new(), Vec::new());
    for frame in frames[1..].iter().map(|scanned| &scanned.frame) {
        for record in &frame.records {
            let sector = frame.payload_base() + record.payload.sector;
            let RecordKind::Write { range, .. } = record.kind else { continue };
            let source = RunSource::Journal { segment: segment.scan.index.0, sector };
            extents.push(RunExtent { range, source });
            payloads.push(Payload { sector, ..record.payload });
        }
    }
    let link = |scanned: &Scanned| link_of(&scanned.frame, scanned.sum);
    let sequence = first.frame.segment;
    let layer = RunLayer {
        last: last.frame.last_lsn(),
        oldest: sequence,
        data_bytes: extents.iter().map(|extent| extent.range.bytes()).sum(),
        disks: vec![(DiskSlot(0), u32::try_from(extents.len()).expect("few"))],
        marker: None,
    };
    let mut run = Run {
        group: GROUP,
        timeline: TimelineId(1),
        begin: link(first),
        end: link(last),
        parts: vec![RunPart {
            index: segment.scan.index.0,
            sequence,
            last_lsn: last.frame.last_lsn(),
            payloads: u32::try_from(payloads.len()).expect("few"),
            seal: None,
        }],
        layers: vec![layer],
    };
    change(&mut run, &mut extents, &mut payloads);
    run.encode(extents.into_iter(), payloads.into_iter(), &[])
}

/// Opening trusts a run's sum for all but its ends, so the tool compares the rest with the frames; and whatever is wrong with a
/// run, the journal is sound.
#[test]
fn a_run_that_says_otherwise_than_the_frames_is_named_and_harms_nothing() {
    let (_root, directory) = journal(long);
    let sound = survey(&directory);
    let named = |bytes: &[u8]| {
        let path = directory.join("run-0000000000000001");
        fs::write(&path, bytes).expect("written");
        let survey = survey(&directory);
        assert_eq!(survey.verdict, sound.verdict, "a cache is no journal");
        assert_eq!(survey.runs.len(), 1);
        assert_eq!(survey.runs[0].path, path);
        survey.runs[0].fault.clone()
    };
    let untouched = run_over(&sound, |_, _, _| {});
    assert_eq!(named(&untouched), None);
    let mut flipped = untouched.clone();
    flipped[300] ^= 1;
    assert!(named(&flipped).expect("a fault").contains("its sum"));
    assert!(named(&untouched[..2048]).expect("a fault").contains("damaged"));
    type Change = fn(&mut Run, &mut Vec<RunExtent>, &mut Vec<Payload>);
    let changes: [(Change, &str); 7] = [
        (|run, _, _| run.group = GroupId(8), "another group"),
        (|run, _, _| run.end.sum ^= 1, "not the one that it ends with"),
        (|run, _, _| run.begin.sum ^= 1, "not the one that it begins behind"),
        (|run, _, _| run.parts[0].index += 1, "segment use 1 say otherwise"),
        (|_, _, payloads| payloads[1].sum ^= 1, "segment use 1 say otherwise"),
        (|_, extents, _| extents[2].range.end -= 1, "say otherwise"),
        (|run, _, _| run.layers[0].data_bytes += 512, "say otherwise"),
    ];
    for (number, (change, says)) in changes.into_iter().enumerate() {
        let fault =
            named(&run_over(&sound, change)).unwrap_or_else(|| panic!("change {number} goes unnoticed"));
        assert!(fault.contains(says), "change {number}: {fault}");
    }
}

/// Nothing in the other segments says that there was a newer one. A review found that a copy without it passed, though an index run
/// beside it told of its records.
#[test]
fn a_journal_whose_newest_segment_is_missing_is_damaged_where_a_run_tells_of_it() {
    let (_root, directory) = journal(long);
    let sound = survey(&directory);
    let [.., before, newest] = &sound.chain()[..] else { panic!("several segments") };
    let [before, newest] = [before, newest].map(|part| &sound.segments[part.scan]);
    let last_of = |segment: &SegmentSurvey| segment.scan.frames.last().expect("it is used").frame.number;
    let run = directory.join("run-0000000000000001");
    let write = |end| fs::write(&run, run_over(&sound, |run, _, _| run.end.number = end)).expect("written");
    let told = last_of(newest);
    write(last_of(before));
    fs::remove_file(&newest.path).expect("it is there");
    assert!(!matches!(survey(&directory).verdict, Verdict::Damaged(_)), "nobody tells of it");
    write(told);
    let found = survey(&directory);
    let [fault] = faults(&found) else { panic!("{:?}", found.verdict) };
    assert_eq!(fault.path, run);
    assert!(fault.what.contains(&format!("frames up to {},", told.0)), "{fault}");
    // Nothing but the run is left of what was used.
    for segment in sound.segments.iter().filter(|segment| segment.path != newest.path) {
        fs::write(&segment.path, vec![0; usize::try_from(SEGMENT_BYTES).expect("small")]).expect("written");
    }
    let found = survey(&directory);
    assert!(matches!(found.decision, Some(Decision::Fresh)), "{:?}", found.decision);
    assert_eq!(faults(&found).len(), 1);
}
