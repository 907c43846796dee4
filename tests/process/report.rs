//! Churn in `status`, and `report`: what is sampled is what was written, it outlives kill -9 and upgrades, and the plot is one file.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::tool;

const MIB: u64 = 1 << 20;

fn write(gateway: &Gateway, disk: &str, mib: u64) {
    let command = format!("write -P 1 0 {mib}M");
    tool::says("qemu-io", ["-f", "raw", "-c", &command, &gateway.uri(&format!("erp/{disk}"))]);
}

/// What a report says was written: in all, and by disk.
fn written(gateway: &Gateway) -> (u64, Vec<(String, u64)>) {
    let report = gateway.json("report erp");
    let of = |value: &Value| {
        let disks = value["disks"].as_array().expect("disks");
        let disk = |disk: &Value| {
            let name = disk["disk"].as_str().expect("a name").to_owned();
            (name, disk["written_bytes"].as_u64().expect("bytes"))
        };
        disks.iter().map(disk).collect::<Vec<_>>()
    };
    let all = report["totals"]["written_bytes"].as_u64().expect("bytes");
    let spans = report["spans"].as_array().expect("spans");
    let in_spans: u64 = spans.iter().map(|span| span["written_bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(in_spans, all, "{report:#}");
    (all, of(&report["totals"]))
}

fn disks<const N: usize>(disks: [(&str, u64); N]) -> Vec<(String, u64)> {
    disks.map(|(disk, mib)| (disk.to_owned(), mib * MIB)).to_vec()
}

#[test]
fn status_names_the_disk_and_the_hour_of_most_churn() {
    let gateway = Gateway::start();
    gateway.protect([("db", "8M"), ("log", "8M")]);
    assert_eq!(gateway.group_status()["churn"]["top_disk"], Value::Null);
    assert!(!gateway.says("status").contains("churn"), "nothing was written");
    write(&gateway, "log", 1);
    write(&gateway, "db", 2);
    gateway.says("point create erp");
    let status = gateway.group_status();
    let churn = &status["churn"];
    assert_eq!(churn["written_bytes"], 3 * MIB, "{status:#}");
    assert_eq!(churn["top_disk"], serde_json::json!({"disk": "db", "written_bytes": 2 * MIB}));
    // An hour may end meanwhile.
    assert!((2 * MIB..=3 * MIB).contains(&churn["top_hour"]["written_bytes"].as_u64().unwrap()), "{churn:#}");
    assert!(status["written_per_byte"].as_f64().unwrap() >= 1.0, "the journal has it: {status:#}");
    assert!(status["history"]["span_ms"].is_u64() && status["history"]["retain_ms"].is_u64(), "{status:#}");
    let by_disk = serde_json::json!([
        {"disk": "db", "written_bytes": 2 * MIB}, {"disk": "log", "written_bytes": MIB}
    ]);
    assert_eq!(status["written_by_disk"], by_disk);
    let text = gateway.says("status");
    assert!(
        text.contains("  churn  3.0 MiB in 24h, most to disk db: 2.0 MiB, most in the hour from"),
        "{text}"
    );
    assert!(text.contains("of 15days that the ladder keeps"), "{text}");
}

#[test]
fn samples_outlive_kill_nine_and_an_orderly_stop_loses_nothing() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "8M"), ("log", "8M")]);
    write(&gateway, "db", 1);
    // Whoever asks for a report has what was written before in the catalogue.
    assert_eq!(written(&gateway), (MIB, disks([("db", 1)])));
    gateway.kill();
    gateway.restart();
    assert_eq!(written(&gateway), (MIB, disks([("db", 1)])));
    assert_eq!(gateway.group_status()["churn"]["written_bytes"], MIB);
    assert_eq!(gateway.group_status()["totals"]["written_bytes"], 0, "counters begin anew");
    write(&gateway, "log", 3);
    gateway.terminate();
    gateway.restart();
    assert_eq!(written(&gateway), (4 * MIB, disks([("log", 3), ("db", 1)])));
    assert_eq!(gateway.group_status()["churn"]["top_disk"]["disk"], "log");
    gateway.says("group remove erp --yes");
    gateway.says("group create erp");
    assert_eq!(written(&gateway), (0, Vec::new()), "a removed group's samples go with it");
}

#[test]
fn without_the_catalogue_points_are_still_there_and_samples_begin_anew() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "8M")]);
    write(&gateway, "db", 1);
    gateway.says("point create erp");
    assert_eq!(written(&gateway).0, MIB);
    gateway.terminate();
    for entry in fs::read_dir(gateway.data()).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("catalogue.sqlite") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    gateway.restart();
    let report = gateway.json("report erp --last 1h");
    assert_eq!(report["totals"]["written_bytes"], 0, "{report:#}");
    let points = report["points"].as_array().unwrap();
    let deltas: u64 = points.iter().map(|span| span["delta_bytes"].as_u64().unwrap()).sum();
    assert!(deltas > 0, "what was stored is in the manifest: {report:#}");
}

/// How many elements of a name an XML document has; a parser that is not ours has to take it.
fn elements(file: &Path, name: &str) -> usize {
    const COUNT: &str = "import sys, xml.etree.ElementTree as tree\n\
                         print(sum(1 for element in tree.parse(sys.argv[1]).iter() if element.tag.endswith('}' + sys.argv[2])))";
    let said = tool::says("python3", ["-c", COUNT, file.to_str().unwrap(), name]);
    said.trim().parse().expect("a count")
}

#[test]
fn the_plot_is_one_svg_file_that_takes_nothing_elses_place() {
    let gateway = Gateway::start();
    gateway.protect([("db", "8M"), ("log", "8M")]);
    write(&gateway, "db", 2);
    write(&gateway, "log", 1);
    gateway.says("point create erp");
    let file = gateway.path("erp.svg");
    let line = format!("report erp --last 1h --to {}", file.display());
    let text = gateway.says(&line);
    for fragment in
        ["churn    3.0 MiB written", "db    2.0 MiB", "  points ", "  space    journal ", "\nplot  "]
    {
        assert!(text.contains(fragment), "`{fragment}` in: {text}");
    }
    assert_eq!((elements(&file, "svg"), elements(&file, "title"), elements(&file, "style")), (1, 1, 1));
    assert!(elements(&file, "rect") > 5 && elements(&file, "polyline") > 3 && elements(&file, "text") > 20);
    fs::write(&file, "mine").unwrap();
    assert!(gateway.refuses(&line, 2).contains("say so with --yes"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    gateway.says(&format!("{line} --yes"));
    assert_eq!(elements(&file, "svg"), 1);
    let said = gateway.cli("report erp").current_dir(gateway.path("")).output().unwrap();
    assert!(said.status.success() && elements(&gateway.path("erp-report.svg"), "svg") == 1);
    let absent = gateway.path("none/erp.svg");
    let refusal = gateway.refuses(&format!("report erp --to {}", absent.display()), 1);
    assert!(refusal.contains("its directory does not exist"), "{refusal}");
}

#[test]
fn json_writes_no_plot_unless_a_file_is_named_and_nothing_is_not_drawn() {
    let gateway = Gateway::start();
    gateway.says("group create erp");
    let said = gateway.cli("report erp --json").current_dir(gateway.path("")).output().unwrap();
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(said.status.success() && !gateway.path("erp-report.svg").exists());
    assert_eq!(report["group"], "erp");
    let file = gateway.path("erp.svg");
    let refusal = gateway.refuses(&format!("report erp --to {}", file.display()), 1);
    assert!(refusal.contains("nothing to draw: in the last 7days nothing was written to erp"), "{refusal}");
    assert!(!file.exists());
    assert!(gateway.refuses("report none", 1).contains("no group none"));
    let refusal = gateway.api_get("/v1/groups/erp/report?last_ms=5");
    assert_eq!(refusal["kind"], "invalid", "{refusal}");
}
