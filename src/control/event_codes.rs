//! Every event's code. docs/events.md says of each what it means and what to do; a hook's `on` names them.

/// The codes, by name.
pub const EVENT_CODES: [&str; 39] = [
    "adopted_with_loss",
    "buffers_full",
    "catalogue_rotten",
    "checkpoint_rotten",
    "clients_turned_away",
    "clock_stepped",
    "condition",
    "disk_lacking",
    "disk_latched",
    "disk_resized",
    "disk_whole",
    "events_lost",
    "history_cannot_shrink",
    "history_shrinks",
    "history_will_shrink",
    "hook_failed",
    "hook_test",
    "hook_works",
    "journal_cut",
    "journal_torn",
    "leap_excluded",
    "loss_accepted",
    "opened",
    "opening_failed",
    "paused",
    "points_in_time",
    "points_late",
    "renewed",
    "requests_failed",
    "resumed",
    "space_low",
    "sums_rotten",
    "test_unserved",
    "vault_repaired",
    "verify_done",
    "verify_found",
    "verify_mended",
    "verify_resumed",
    "withheld",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Words in quotes behind `mark`, in the files that tell events.
    fn told(text: &str, mark: &str) -> Vec<String> {
        let pieces = text.split(mark).skip(1);
        pieces.filter_map(|piece| piece.split('"').next()).map(str::to_owned).collect()
    }

    /// The text of all files below a directory.
    fn sources(directory: &Path) -> String {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| if path.is_dir() { sources(&path) } else { std::fs::read_to_string(path).unwrap() })
            .collect()
    }

    #[test]
    fn every_event_that_is_told_is_among_them_and_documented() {
        let group = include_str!("../protect/events.rs");
        let (_, codes) = group.split_once("fn code(").expect("the codes of groups' events");
        let (codes, _) = codes.split_once("\n    }\n").expect("its end");
        let mut all = told(codes, "=> \"");
        let site = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/site"));
        for severity in ["Info", "Warning", "Error"] {
            all.extend(told(&site, &format!("Severity::{severity}, \"")));
        }
        assert!(all.len() >= 24, "{all:?}");
        for code in &all {
            assert!(EVENT_CODES.contains(&code.as_str()), "`{code}` is missing");
        }
        let documents = include_str!("../../docs/events.md");
        for code in EVENT_CODES {
            assert!(documents.contains(&format!("| `{code}` |")), "docs/events.md lacks `{code}`");
        }
    }

    #[test]
    fn they_are_sorted_and_each_is_there_once() {
        assert!(EVENT_CODES.is_sorted_by(|one, next| one < next));
    }
}
