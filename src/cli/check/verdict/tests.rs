use super::*;

const AGES: Ages = Ages { warning: Duration::from_secs(120), critical: Duration::from_secs(600) };

/// As the API says it.
fn status(groups: &[serde_json::Value]) -> Status {
    serde_json::from_value(serde_json::json!({
        "site": "a", "version": "1", "started": "2026-11-21T12:00:00Z", "listen": [], "connections": 0,
        "storage": {"backend": "blocking", "backend_reason": "", "direct": true, "direct_reason": null},
        "groups": groups,
    }))
    .expect("a status")
}

fn group(name: &str, condition: &str, reason: Option<&str>) -> serde_json::Value {
    let reason = reason.map(|code| serde_json::json!({"code": code, "detail": "EIO | here", "mend": "do"}));
    serde_json::json!({
        "group": {"id": format!("{:032x}", name.len()), "name": name, "created": null, "policy": null, "disks": null},
        "state": {"condition": condition, "reason": reason, "since": "2026-11-21T12:00:00Z"},
        "lsn": null, "journal": {"used_bytes": 5, "limit_bytes": 10}, "newest_point": null, "idle": false,
        "history": {"points": 1, "oldest": null, "newest": null},
        "writes": {"writes_per_s": 0.0, "bytes_per_s": 0.0}, "connections": 0,
        "totals": {
            "writes": 0, "written_bytes": 0, "reads": 0, "journal_bytes": 0, "images_bytes": 0, "vault_bytes": 0,
            "points": 0,
        },
    })
}

fn aged(mut group: serde_json::Value, unprotected_ms: u64, waiting_ms: Option<u64>) -> serde_json::Value {
    group["unprotected_ms"] = unprotected_ms.into();
    group["writes_waiting_ms"] = waiting_ms.into();
    group
}

fn level(groups: &[serde_json::Value]) -> Level {
    Verdict::of(&status(groups), None, AGES).level
}

#[test]
fn the_table_of_conditions_and_reasons() {
    for (condition, expected) in [
        ("protected", Level::Ok),
        ("paused", Level::Warning),
        ("opening", Level::Warning),
        ("stopping", Level::Warning),
        ("degraded", Level::Warning),
        ("latched", Level::Critical),
        ("failed", Level::Critical),
    ] {
        assert_eq!(level(&[group("erp", condition, None)]), expected, "{condition}");
    }
    let warnings = [
        "journal_full",
        "maps_full",
        "points_late",
        "space_short",
        "retention_stalled",
        "requests_fail",
        "test_damaged",
        "io",
    ];
    for reason in ReasonCode::ALL {
        let word = serde_json::to_value(reason).expect("a word");
        let word = word.as_str().expect("a word");
        let expected = if warnings.contains(&word) { Level::Warning } else { Level::Critical };
        assert_eq!(level(&[group("erp", "degraded", Some(word))]), expected, "{word}");
        assert_eq!(level(&[group("erp", "latched", Some(word))]), Level::Critical, "{word}");
    }
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn the_documented_table_is_the_one_in_force() {
    let text = include_str!("../../../../docs/metrics.md");
    let (_, table) = text.split_once("| condition | reason | |\n|---|---|---|\n").expect("the table");
    let mut rows = 0;
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, conditions, reasons, expected, _] = cells[..] else { panic!("three columns: {row}") };
        for condition in quoted(conditions) {
            let any = quoted(reasons).next().is_none();
            let all = ReasonCode::ALL.map(|code| serde_json::to_value(code).expect("a word"));
            let all = all.iter().map(|word| word.as_str().expect("a word"));
            let named: Vec<&str> = if any { all.collect() } else { quoted(reasons).collect() };
            for reason in named {
                let level = level(&[group("erp", condition, Some(reason))]);
                assert_eq!(level.word(), expected, "{condition} {reason}");
                rows += 1;
            }
        }
    }
    // Every reason with every condition.
    assert_eq!(rows, ReasonCode::ALL.len() * Condition::ALL.len());
}

#[test]
fn ages_and_waiting_writes_count_whatever_the_condition_is() {
    let of = |ms, waiting| level(&[aged(group("erp", "protected", None), ms, waiting)]);
    assert_eq!((of(119_999, None), of(120_000, None)), (Level::Ok, Level::Warning));
    assert_eq!((of(599_999, None), of(600_000, None)), (Level::Warning, Level::Critical));
    assert_eq!((of(0, Some(1_000)), of(0, Some(10_000))), (Level::Warning, Level::Critical));
    // A pause that was forgotten.
    assert_eq!(level(&[aged(group("erp", "paused", None), 600_000, None)]), Level::Critical);
}

#[test]
fn the_line_names_the_worst_first_and_has_figures() {
    let good = aged(group("crm", "protected", None), 1_500, None);
    let verdict = Verdict::of(&status(std::slice::from_ref(&good)), None, AGES);
    assert_eq!(
        verdict.line(),
        "AFTERIMAGE OK - 1 group protected, points hold all but the writes of the last 1.5 s | groups=1;;;0 \
         crm_unprotected=1.5s;120;600;0 crm_journal=5B;;;0;10"
    );
    let (late, latched) =
        (group("erpx", "degraded", Some("points_late")), group("mails", "latched", Some("journal_failed")));
    let status = status(&[good, late, latched]);
    let line = Verdict::of(&status, None, AGES).line();
    let expected = "AFTERIMAGE CRITICAL - mails latched: EIO / here; erpx degraded: EIO / here (2 of 3 groups) | groups=3;;;0 ";
    assert!(line.starts_with(expected), "{line}");
    let of = |name: &str| Verdict::of(&status, Some(&name.parse().expect("a name")), AGES);
    assert_eq!(
        (of("crm").level, of("erpx").level, of("mails").level),
        (Level::Ok, Level::Warning, Level::Critical)
    );
    assert_eq!(of(&format!("{:032x}", 4)).level, Level::Warning, "by its id");
    assert_eq!(of("none").level, Level::Unknown);
    assert_eq!(of("none").line(), "AFTERIMAGE UNKNOWN - there is no group none: 'group list' shows them");
}

#[test]
fn without_groups_all_is_well() {
    let verdict = Verdict::of(&status(&[]), None, AGES);
    assert_eq!(
        (verdict.level, verdict.line().as_str()),
        (Level::Ok, "AFTERIMAGE OK - no groups | groups=0;;;0")
    );
}

/// While all of the common buffers were taken, nothing said so.
#[test]
fn clients_that_wait_for_buffers_are_a_warning_and_then_critical() {
    let told = |waited: Option<u64>| {
        let status = Status { buffers_waiting_ms: waited, ..status(&[group("erp", "protected", None)]) };
        let verdict = Verdict::of(&status, None, AGES);
        (verdict.level, verdict.text)
    };
    assert_eq!(told(None).0, Level::Ok);
    let (level, text) = told(Some(0));
    assert!(level == Level::Warning && text.contains("[nbd] buffers_total"), "{text}");
    assert!(text.contains("1 group protected"), "{text}");
    assert_eq!((told(Some(29_999)).0, told(Some(30_000)).0), (Level::Warning, Level::Critical));
}
