//! `journal verify` of the index runs that a gateway really wrote: they agree with its frames; one that was damaged is named,
//! and harms nothing.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::gateway::{Gateway, Setup};
use crate::tool;

fn journal(gateway: &Gateway) -> PathBuf {
    let mut groups = fs::read_dir(gateway.data().join("groups")).unwrap();
    groups.next().expect("a group").unwrap().path().join("journal")
}

fn runs(journal: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
    let is_run = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("run-");
    names.filter(|path| is_run(path) && path.extension().is_none()).collect()
}

#[test]
fn the_runs_of_a_gateway_are_verified_and_a_damaged_one_is_named() {
    let mut gateway = Gateway::with(&Setup { journal: ("1GiB", "16MiB"), ..Setup::default() });
    gateway.protect([("db", "64M"), ("log", "64M")]);
    // Nothing is vaulted, so all of it is needed.
    gateway.says("policy set erp --interval 24h");
    for round in 1..=3 {
        for disk in ["erp/db", "erp/log"] {
            let write = format!("write -P {round} {round}M 40M");
            tool::says("qemu-io", ["-f", "raw", "-c", &write, "-c", "write -z 4M 1M", &gateway.uri(disk)]);
        }
    }
    let journal = journal(&gateway);
    gateway.until("an index run", |_| !runs(&journal).is_empty());
    gateway.kill();
    let verify = format!("journal verify {}", journal.display());
    let report = gateway.json(&verify);
    let runs = runs(&journal);
    assert_eq!(report["index_runs"], runs.len(), "{report:#}");
    assert_eq!(report["damaged_index_runs"], Value::Array(Vec::new()));
    let mut bytes = fs::read(&runs[0]).unwrap();
    bytes[1000] ^= 1;
    fs::write(&runs[0], bytes).unwrap();
    let report = gateway.json(&verify);
    let damaged = report["damaged_index_runs"].as_array().unwrap();
    assert_eq!(damaged.len(), 1, "{report:#}");
    assert_eq!(damaged[0]["path"], runs[0].to_str().unwrap());
    assert_ne!(report["verdict"], "damaged", "the journal is sound without it");
    let told = gateway.says(&verify);
    assert!(told.contains("harmless") && told.contains(runs[0].to_str().unwrap()), "{told}");
    gateway.restart();
    assert_eq!(gateway.logged("an index run is not used").len(), 1, "opening says the same");
}
