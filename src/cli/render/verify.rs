//! What verifications found, and how those in the background stand, as text for people.

use std::fmt::Write;

use super::size;
use crate::control::model::{GroupVerified, VerifyPart, VerifyReport, VerifyStatus};
use crate::control::wire::rfc3339;
use crate::counted::counted;

pub fn verified(report: &VerifyReport) -> String {
    let mut text = format!(
        "{}: {} and {}, {}, compared with their checksums; {} of bases read, which have none: {}\n",
        counted(report.groups, "group"),
        counted(report.steps, "manifest step"),
        counted(report.blobs, "blob"),
        size(report.bytes),
        size(report.base_bytes),
        counted(report.faults.len(), "fault")
    );
    for fault in &report.faults {
        let _ = writeln!(text, "  {fault}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    if let (Some(oldest), Some(newest)) = (report.harmed.first(), report.harmed.last()) {
        let points = counted(report.harmed.len(), "recovery point");
        let _ = writeln!(
            text,
            "harmed: {points}, from {} to {}; `--json` names all",
            rfc3339(oldest.time),
            rfc3339(newest.time)
        );
    }
    text
}

pub fn group_verified(report: &GroupVerified) -> String {
    let faults = report.faults.len() as u64 + report.more_faults;
    let mut text = format!(
        "group {}: {} compared with its vault, {} read, {} that are not in the vault yet left out: {}\n",
        report.group,
        size(report.compared_bytes),
        size(report.read_bytes),
        size(report.newer_bytes),
        counted(faults, "fault")
    );
    for fault in &report.faults {
        let _ = writeln!(text, "  {}", fault.message);
    }
    if report.more_faults > 0 {
        let _ = writeln!(text, "  and {} more", report.more_faults);
    }
    for note in &report.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

/// How the verification in the background stands.
pub(super) fn verify_lines(verify: &VerifyStatus) -> String {
    let mut text = String::new();
    if let Some(running) = &verify.running {
        let part = match running.part {
            VerifyPart::Vault => "vault",
            VerifyPart::Disks => "disks",
        };
        let total = running.bytes_total.map_or_else(String::new, |total| format!(" of {}", size(total)));
        let held = if running.held { ", rests while the group is paused" } else { "" };
        let done = size(running.bytes_done);
        let _ = writeln!(text, "  verify  {part}, {done}{total}, since {}{held}", running.started);
    }
    if let Some(last) = &verify.last {
        let _ = writeln!(
            text,
            "  verified  {}, {} read: {}",
            last.finished,
            size(last.read_bytes),
            counted(last.faults, "fault")
        );
        if let Some(fault) = &last.first_fault {
            let _ = writeln!(text, "    {fault}");
        }
    }
    if let Some(next) = verify.next {
        let _ = writeln!(text, "  verify  next on {next}");
    }
    text
}
