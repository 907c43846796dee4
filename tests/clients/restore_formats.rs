//! Recovery points as images of the formats that other platforms take, written by qemu-img and read back by it: sizes and
//! contents, odd sizes too, and nothing that was there is overwritten unasked.

use std::fs;

use crate::content::content;
use crate::gateway::Gateway;
use crate::tool;

/// Sizes that the formats find hard: no whole number of MiB, of clusters, or of cylinders.
const DISKS: [(&str, &str, usize); 2] = [("odd", "73400832", 73_400_832), ("small", "4608K", 4608 << 10)];

fn write(gateway: &Gateway, disk: &str, seed: u64, size: usize) {
    let file = gateway.path("content");
    let mut bytes = content(seed, size);
    // Half of it is a hole.
    bytes[size / 4..size * 3 / 4].fill(0);
    fs::write(&file, bytes).unwrap();
    let source = file.to_str().unwrap();
    tool::says("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", source, &gateway.uri(disk)]);
}

#[test]
fn every_format_holds_the_point() {
    let gateway = Gateway::start();
    gateway.protect(DISKS.map(|(disk, size, _)| (disk, size)));
    for (seed, (disk, _, size)) in (1..).zip(DISKS) {
        write(&gateway, &format!("erp/{disk}"), seed, size);
    }
    gateway.says("point create erp --label kept");
    let raw = gateway.path("raw");
    gateway.says(&format!("restore erp --point kept --to {}", raw.display()));
    for (seed, (disk, _, size)) in (10..).zip(DISKS) {
        write(&gateway, &format!("erp/{disk}"), seed, size);
    }
    for (format, extension) in [("qcow2", "qcow2"), ("vhdx", "vhdx"), ("vmdk", "vmdk"), ("vpc", "vhd")] {
        let to = gateway.path(format);
        let said = gateway.says(&format!("restore erp --point kept --to {} --format {format}", to.display()));
        for (disk, _, size) in DISKS {
            let image = to.join(format!("{disk}.{extension}"));
            let image = image.to_str().unwrap();
            assert!(said.contains(image), "{said}");
            let expected = raw.join(format!("{disk}.raw"));
            let compare = ["compare", "-f", "raw", "-F", format, expected.to_str().unwrap(), image];
            tool::says("qemu-img", compare);
            let info = tool::says("qemu-img", ["info", "--output=json", "-f", format, image]);
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"], size, "{format}");
        }
        let left = fs::read_dir(&to).unwrap().count();
        assert_eq!(left, DISKS.len(), "nothing else lies there");
    }
    let taken = gateway.path("qcow2");
    let refused =
        gateway.refuses(&format!("restore erp --point kept --to {} --format qcow2", taken.display()), 2);
    assert!(refused.contains("--yes") && refused.contains("odd.qcow2"), "{refused}");
    gateway.says(&format!("restore erp --point kept --to {} --format qcow2 --yes", taken.display()));
    assert_eq!(gateway.json("failover list").as_array().map(Vec::len), Some(0), "no test failover stays");
}
