//! Why a journal is not opened, and what a person can do about it.

use crate::counted::counted;
use crate::error::{Error, ErrorKind};
use crate::journal::segments::{SegmentIndex, file_name};
use crate::journal::tail::Break;
use crate::units::Lsn;

/// Why a journal is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No frame, but something names records up to here.
    Gone {
        /// The floor.
        floor: Lsn,
    },
    /// A frame belongs to another group or timeline.
    Foreign {
        /// Where it stands.
        segment: SegmentIndex,
    },
    /// The segment from which records are needed is not there.
    TailMissing {
        /// One whose first header cannot be read, and that was the group's: it may be that one.
        headless: Option<SegmentIndex>,
    },
    /// The chain ends below the floor.
    BelowFloor {
        /// Where the chain ends.
        end: Lsn,
        /// What must be there.
        floor: Lsn,
        /// The damaged frame at its end, if one is found.
        broken: Option<Break>,
        /// The newest point's record.
        vaulted: Lsn,
    },
    /// The chain ends below what was written in this boot of the host.
    WrittenLost {
        /// Where the chain ends.
        end: Lsn,
        /// The damaged frame at its end.
        broken: Break,
    },
}

impl Refusal {
    /// The error that a person reads.
    pub fn error(self) -> Error {
        let text = match self {
            Refusal::Gone { floor } => format!(
                "the journal is empty, but the vault or a checkpoint knows records up to {floor}: restore the \
                 journal's directory, or move the group's away and adopt its vault"
            ),
            Refusal::Foreign { segment } => {
                format!(
                    "segment {} belongs to another group or timeline: put back this group's files",
                    segment.0
                )
            }
            Refusal::TailMissing { headless } => tail_missing(headless),
            Refusal::BelowFloor { end, floor, broken, vaulted } => below_floor(end, floor, broken, vaulted),
            Refusal::WrittenLost { end, broken } => written_lost(end, &broken),
        };
        Error::new(ErrorKind::Corrupt, text)
    }
}

fn tail_missing(headless: Option<SegmentIndex>) -> String {
    let what = match headless {
        Some(segment) => format!(
            "the oldest segment that is still needed is not found: {} at byte 0, where a header is not what was written, may be \
             it",
            file_name(segment)
        ),
        None => "the oldest segment that is still needed is missing".to_owned(),
    };
    format!("{what}: put its file back, or move the group's directory away and adopt its vault")
}

fn below_floor(end: Lsn, floor: Lsn, broken: Option<Break>, vaulted: Lsn) -> String {
    let why = broken.map_or_else(|| "it is damaged or was rolled back".to_owned(), |broken| broken.told());
    let newest = broken.map_or(floor, |broken| broken.newest.max(floor));
    format!(
        "the journal ends at record {end}, but records up to {floor} were durable: {why}; inspect it with 'afterimage journal \
         verify', restore its files, or move the group's directory away and adopt its vault, which gives up {}",
        after_vault(vaulted, newest)
    )
}

/// What an adoption of the vault would not have.
fn after_vault(vaulted: Lsn, newest: Lsn) -> String {
    match vaulted {
        vaulted if vaulted >= newest => {
            format!(
                "what was written after its newest point (record {vaulted}), of which the journal names nothing"
            )
        }
        Lsn::ZERO => format!("all that was written, for it has no point: records up to {newest}"),
        _ => format!(
            "what was written after its newest point (record {vaulted}): {}",
            records(vaulted, newest)
        ),
    }
}

/// The records behind one, up to another. They are counted within an incarnation only.
fn records(after: Lsn, newest: Lsn) -> String {
    let is_counted = after.0 / Lsn::INCARNATION_STRIDE == newest.0 / Lsn::INCARNATION_STRIDE;
    match newest.0.saturating_sub(after.0) {
        count if is_counted => format!("{}, up to {newest}", counted(count, "record")),
        _ => format!("records up to {newest}"),
    }
}

fn written_lost(end: Lsn, broken: &Break) -> String {
    format!(
        "the journal ends at record {end}, but records up to {} were written and acknowledged: {}; the host has not been started \
         anew since, so that this is no torn write: put the file back, or give up what was written after record {end} ({}) by \
         'group resume GROUP --accept-loss --yes'",
        broken.written,
        broken.told(),
        records(end, broken.newest.max(broken.written))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tail::tests::broken;

    #[test]
    fn every_refusal_says_how_to_mend_it() {
        let below = |broken| Refusal::BelowFloor { end: Lsn(1), floor: Lsn(2), broken, vaulted: Lsn(1) };
        let refusals = [
            Refusal::Gone { floor: Lsn(1) },
            Refusal::Foreign { segment: SegmentIndex(1) },
            Refusal::TailMissing { headless: None },
            Refusal::TailMissing { headless: Some(SegmentIndex(1)) },
            below(None),
            below(Some(broken())),
            Refusal::WrittenLost { end: Lsn(1), broken: broken() },
        ];
        for refusal in refusals {
            let text = refusal.error().to_string();
            assert!(text.contains("restore") || text.contains("put "), "{text}");
        }
    }

    #[test]
    fn segment_and_byte_are_named_and_what_an_adoption_gives_up() {
        let refused = |vaulted| {
            let (end, floor) = (Lsn(0x1_0000_0002), Lsn(0x1_0000_0007));
            Refusal::BelowFloor { end, floor, broken: Some(broken()), vaulted }.error().to_string()
        };
        let text = refused(Lsn(0x1_0000_0003));
        assert!(text.contains("segment-00000004 at byte 8192: the header"), "{text}");
        assert!(text.contains("5 sound frames stand behind it"), "{text}");
        assert!(text.contains("newest point (record 1:00000003): 5 records, up to 1:00000008"), "{text}");
        let text = refused(Lsn::ZERO);
        assert!(text.contains("has no point: records up to 1:00000008"), "{text}");
        let text = refused(Lsn(0x2_0000_0000));
        assert!(text.contains("of which the journal names nothing"), "{text}");
        let text = Refusal::WrittenLost { end: Lsn(0x1_0000_0002), broken: broken() }.error().to_string();
        assert!(text.contains("(6 records, up to 1:00000008)") && text.contains("--accept-loss"), "{text}");
    }
}
