//! What verifications found, and how those in the background stand, as text for people.

use std::fmt::Write;

use super::size;
use crate::control::model::{GroupVerified, RepairReport, VerifyPart, VerifyReport, VerifyStatus};
use crate::control::wire::rfc3339;
use crate::counted::counted;

pub fn verified(report: &VerifyReport) -> String {
    let mut text = format!(
        "{}: {} and {}, {}, compared with their checksums; {} of bases, with their sums: {}\n",
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

/// What a repair did, or would do: every point by name, for they are gone then.
pub fn repaired(report: &RepairReport) -> String {
    if report.faults.is_empty() {
        return format!("group {}: nothing in its vault is damaged\n", report.group);
    }
    let mut text =
        format!("group {}: {} in its vault\n", report.group, counted(report.faults.len(), "fault"));
    for fault in &report.faults {
        let _ = writeln!(text, "  {fault}");
    }
    let (goes, written) = match report.done {
        true => ("went", "were written anew with what the disks hold"),
        false => ("would go", "would be written anew with what the disks hold"),
    };
    let need = if report.points.len() == 1 { "needs" } else { "need" };
    let points = counted(report.points.len(), "recovery point");
    let _ = writeln!(text, "{points} that {need} what is lost {goes}:");
    for point in &report.points {
        let label = point.label.as_ref().map_or(String::new(), |label| format!(" ({label})"));
        let _ = writeln!(text, "  {} of {}{label}", point.id, rfc3339(point.time));
    }
    if report.renewed_bytes > 0 {
        let _ = writeln!(
            text,
            "{} that the newest of them shows of it {written}, for a sound recovery point",
            size(report.renewed_bytes)
        );
    }
    if let Some(point) = report.point {
        let _ = writeln!(text, "sound from recovery point {point} on");
    }
    let _ = writeln!(text, "{} stay", counted(report.staying, "recovery point"));
    for left in &report.left {
        let _ = writeln!(text, "damaged still: {left}");
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
