//! qemu-img: images of other formats come in, points go out, and QEMU itself finds them equal.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::content::{assert_same, content, sparse_file};
use crate::gateway::Gateway;
use crate::tool;

on_each_backend!(converts_in_and_out, a_difference_is_found, a_point_is_an_image);

const SIZE_BYTES: u64 = 64 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Fills erp/db, by way of a qcow2 image, with what `original` holds.
#[track_caller]
fn convert_in(gateway: &Gateway, original: &Path) {
    let image = gateway.path("image.qcow2");
    tool::says("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", text(original), text(&image)]);
    let uri = gateway.uri("erp/db");
    // -n: the target exists; -W -m 8: out of order, eight at a time.
    let arguments = ["convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", text(&image), &uri];
    tool::says("qemu-img", arguments);
}

#[track_caller]
fn compare(left: &str, right: &str) {
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "raw", left, right]);
}

fn converts_in_and_out(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let original = gateway.path("original");
    sparse_file(&original, 1, SIZE_BYTES, 16);
    convert_in(&gateway, &original);
    let uri = gateway.uri("erp/db");
    compare(text(&original), &uri);
    let (qcow2, raw) = (gateway.path("out.qcow2"), gateway.path("out.raw"));
    tool::says("qemu-img", ["convert", "-m", "8", "-f", "raw", "-O", "qcow2", &uri, text(&qcow2)]);
    tool::says("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", text(&qcow2), text(&raw)]);
    assert_same(&original, &raw);
    assert_eq!(data_bytes(&uri), 16 * (64 << 10), "holes stay holes");
}

/// Bytes that QEMU takes for data.
fn data_bytes(uri: &str) -> u64 {
    let map: Vec<Value> =
        serde_json::from_str(&tool::says("qemu-img", ["map", "--output=json", "-f", "raw", uri]))
            .expect("qemu-img prints JSON");
    let data = map.iter().filter(|extent| extent["data"] == true);
    data.map(|extent| extent["length"].as_u64().expect("a number")).sum()
}

fn a_difference_is_found(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let original = gateway.path("original");
    fs::write(&original, content(2, 64 << 20)).unwrap();
    convert_in(&gateway, &original);
    let uri = gateway.uri("erp/db");
    compare(text(&original), &uri);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 33554432 512", &uri]);
    let told = tool::fails("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&original), &uri]);
    assert!(told.contains("33554432"), "{told}");
}

fn a_point_is_an_image(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let original = gateway.path("original");
    sparse_file(&original, 3, SIZE_BYTES, 16);
    convert_in(&gateway, &original);
    gateway.says("point create erp --label filled");
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 1 0 64M", &gateway.uri("erp/db")]);
    gateway.says("failover test erp --point filled");
    compare(text(&original), &gateway.uri("erp/db@test-1"));
    assert_eq!(data_bytes(&gateway.uri("erp/db@test-1")), 16 * (64 << 10));
}
