//! TLS with clients of GnuTLS: libnbd's and QEMU's, with the certificates that docs/tls.md makes and others.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::attach::outlives_a_kill;
use crate::certificates::Certificates;
use crate::content::{assert_same, sparse_file};
use crate::gateway::{Gateway, Setup};
use crate::tool;

on_each_backend!(
    clients_with_certificates_copy_in_and_out,
    whoever_cannot_be_trusted_is_refused,
    what_attach_prints_outlives_a_kill,
    a_drain_ends_clients_in_good_order,
);

const SIZE_BYTES: u64 = 64 << 20;

/// A gateway with one disk that serves TLS on a TCP port of its choice.
fn gateway(backend: &'static str, certificates: &Certificates, asks_clients: bool) -> Gateway {
    let more = certificates.table(asks_clients).leak();
    let gateway = Gateway::with(&Setup { backend, tcp: true, more, ..Setup::default() });
    gateway.protect([("db", "64M")]);
    gateway
}

fn uri(gateway: &Gateway, host: &str, directory: &Path) -> String {
    let address = gateway.tcp_address();
    let port = address.rsplit_once(':').expect("a port").1;
    format!("nbds://{host}:{port}/erp/db?tls-certificates={}", directory.display())
}

/// QEMU's arguments for its credentials, and for the disk.
fn qemu(gateway: &Gateway, directory: &Path) -> [String; 4] {
    let address = gateway.tcp_address();
    let (host, port) = address.rsplit_once(':').expect("a port");
    let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", directory.display());
    let options = format!("driver=nbd,host={host},port={port},export=erp/db,tls-creds=tls");
    ["--object".to_owned(), object, "--image-opts".to_owned(), options]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn clients_with_certificates_copy_in_and_out(backend: &'static str) {
    let certificates = Certificates::new();
    let gateway = gateway(backend, &certificates, true);
    let [original, copied] = ["original", "copied"].map(|name| gateway.path(name));
    sparse_file(&original, 1, SIZE_BYTES, 64);
    for host in ["localhost", "127.0.0.1"] {
        let uri = uri(&gateway, host, certificates.directory());
        assert_eq!(tool::says("nbdinfo", ["--size", &uri]).trim(), SIZE_BYTES.to_string());
    }
    let uri = uri(&gateway, "localhost", certificates.directory());
    let listed = tool::says("nbdinfo", ["--list", &uri]);
    assert!(listed.contains("with TLS") && listed.contains("export=\"erp/db\""), "{listed}");
    tool::says("nbdcopy", [text(&original), &uri]);
    tool::says("nbdcopy", [&uri, text(&copied)]);
    assert_same(&original, &copied);
    let [object, credentials, image, options] = qemu(&gateway, certificates.directory());
    let out = gateway.path("out.qcow2");
    tool::says("qemu-img", ["convert", &object, &credentials, &image, "-O", "qcow2", &options, text(&out)]);
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", text(&original), text(&out)]);
    // By the unix socket it is the same disk, without TLS.
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&original), &gateway.uri("erp/db")]);
}

/// Client, what it knows and shows; each is told why, and the log says so.
fn whoever_cannot_be_trusted_is_refused(backend: &'static str) {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let gateway = gateway(backend, &certificates, true);
    let refused = |directory: &Path| {
        let by_libnbd = tool::fails("nbdinfo", [uri(&gateway, "localhost", directory)]);
        let by_qemu =
            tool::fails("qemu-img", [&["info".to_owned()], &qemu(&gateway, directory)[..]].concat());
        (by_libnbd, by_qemu)
    };
    // Of an authority that the client does not know.
    let (by_libnbd, by_qemu) = refused(others.directory());
    assert!(by_libnbd.contains("certificate"), "{by_libnbd}");
    assert!(by_qemu.contains("certificate"), "{by_qemu}");
    // It knows the gateway, and shows nothing.
    let only_ca = tempfile::tempdir().expect("a directory");
    fs::copy(certificates.path("ca-cert.pem"), only_ca.path().join("ca-cert.pem")).expect("a copy");
    refused(only_ca.path());
    // It knows the gateway, and shows what another authority has signed.
    let foreign = tempfile::tempdir().expect("a directory");
    fs::copy(certificates.path("ca-cert.pem"), foreign.path().join("ca-cert.pem")).expect("a copy");
    for name in ["client-cert.pem", "client-key.pem"] {
        fs::copy(others.path(name), foreign.path().join(name)).expect("a copy");
    }
    refused(foreign.path());
    for why in ["peer sent no certificates", "invalid peer certificate"] {
        let said = gateway.logged("TLS with a client failed");
        assert!(said.iter().any(|line| line.contains(why)), "{why}: {said:?}");
    }
    // By another name than its certificate has.
    let [object, credentials, image, options] = qemu(&gateway, certificates.directory());
    let elsewhere = options + ",tls-hostname=elsewhere.example";
    let by_qemu = tool::fails("qemu-img", ["info", &object, &credentials, &image, &elsewhere]);
    assert!(by_qemu.contains("elsewhere.example"), "{by_qemu}");
    // Without TLS.
    let plain = format!("nbd://{}/erp/db", gateway.tcp_address());
    let by_libnbd = tool::fails("nbdinfo", [&plain]);
    // It has no text for it.
    assert!(by_libnbd.contains("server replied with error to opt_go"), "{by_libnbd}");
    let by_qemu = tool::fails("qemu-img", ["info", "-f", "raw", &plain]);
    assert!(by_qemu.contains("TLS"), "{by_qemu}");
    tool::fails("nbdinfo", ["--list", &plain]);
    // And who may connect still can.
    tool::says("nbdinfo", [uri(&gateway, "localhost", certificates.directory())]);
}

/// A port that nobody listens on; `attach` names none that the system chose.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn what_attach_prints_outlives_a_kill(backend: &'static str) {
    let certificates = Certificates::new();
    let mut gateway = gateway(backend, &certificates, true);
    gateway.kill();
    let address = format!("127.0.0.1:{}", free_port());
    let configuration = fs::read_to_string(gateway.configuration()).expect("a file");
    fs::write(gateway.configuration(), configuration.replace("127.0.0.1:0", &address)).expect("a file");
    gateway.restart();
    let directory = certificates.directory().display();
    let attach = |consumer| {
        gateway.says(&format!("attach erp/db --for {consumer} --at {address} --tls-certificates {directory}"))
    };
    assert!(attach("libvirt").contains(" tls='yes'>"));
    assert!(attach("fio").contains(&format!("--uri='nbds://{address}/erp/db'")));
    assert_eq!(attach("proxmox"), format!("args: {}", attach("qemu")));
    let status = gateway.json("status");
    assert_eq!(status["tls"]["client_certificates"], true);
    let words = tool::words(&attach("qemu"));
    let [object, credentials, blockdev, options, ..] = words.as_slice() else { panic!("{words:?}") };
    assert_eq!((object.as_str(), blockdev.as_str()), ("-object", "-blockdev"));
    outlives_a_kill(&mut gateway, &["--object", credentials, "--image-opts", options]);
}

fn a_drain_ends_clients_in_good_order(backend: &'static str) {
    let certificates = Certificates::new();
    let mut gateway = gateway(backend, &certificates, false);
    // It asks for no certificate of a client's.
    let only_ca = tempfile::tempdir().expect("a directory");
    fs::copy(certificates.path("ca-cert.pem"), only_ca.path().join("ca-cert.pem")).expect("a copy");
    let uri = uri(&gateway, "localhost", only_ca.path());
    tool::says("nbdinfo", [&uri]);
    let original = gateway.path("original");
    sparse_file(&original, 3, SIZE_BYTES, 64);
    tool::says("nbdcopy", ["--flush", text(&original), &uri]);
    gateway.terminate();
    gateway.restart();
    tool::says("qemu-img", ["compare", "-f", "raw", "-F", "raw", text(&original), &gateway.uri("erp/db")]);
}

/// The commands of docs/tls.md make what the gateway and its clients take.
#[test]
fn the_documented_authority_works() {
    let document = include_str!("../../docs/tls.md");
    let script =
        document.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a script");
    let certificates = Certificates::new();
    let output = tool::command("sh").args(["-ec", script]).current_dir(certificates.directory()).output();
    let output = output.expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = fs::metadata(certificates.path("server-key.pem")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let gateway = gateway("auto", &certificates, true);
    tool::says("nbdinfo", [uri(&gateway, "localhost", certificates.directory())]);
    let info = [&["info".to_owned()], &qemu(&gateway, certificates.directory())[..]].concat();
    tool::says("qemu-img", info);
}
