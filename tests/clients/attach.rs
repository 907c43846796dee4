//! What `attach` prints, used as it is: by QEMU, by the block layer of QEMU on its own, and by fio. Machines see a pause and no error
//! while the gateway is killed and started again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use crate::gateway::{Gateway, Setup};
use crate::tool;

on_each_backend!(qemu_reconnects_while_the_gateway_is_killed, a_machine_has_the_disk, fio_reads_it,);

/// Runs a line by the shell that a person would paste it into.
#[track_caller]
fn shell(line: &str) -> Output {
    tool::run("sh", ["-c", line])
}

/// The options of the block device in `-blockdev OPTIONS -device …`.
#[track_caller]
fn blockdev(line: &str) -> String {
    let words = tool::words(line);
    let [blockdev, options, device, front] = words.as_slice() else { panic!("{words:?}") };
    assert_eq!((blockdev.as_str(), device.as_str()), ("-blockdev", "-device"));
    let node = options.split(',').find_map(|option| option.strip_prefix("node-name=")).expect("a name");
    assert_eq!(front, &format!("virtio-blk-pci,drive={node}"));
    options.clone()
}

fn qemu_reconnects_while_the_gateway_is_killed(backend: &'static str) {
    let mut gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    let options = blockdev(&gateway.says("attach erp/db --for qemu"));
    outlives_a_kill(&mut gateway, &["--image-opts", &options]);
}

/// qemu-io with these arguments writes on over a kill -9 of its gateway, and sees a pause.
#[track_caller]
pub fn outlives_a_kill(gateway: &mut Gateway, arguments: &[&str]) {
    let mut qemu_io = Command::new("qemu-io")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io is missing: `tests/run` installs it as root, or says how");
    let mut asked = qemu_io.stdin.take().expect("a pipe");
    let mut told = BufReader::new(qemu_io.stdout.take().expect("a pipe"));
    let mut until = |fragment: &str| {
        let mut line = String::new();
        while !line.contains(fragment) {
            assert!(!line.contains("failed") && !line.contains("rror"), "{line}");
            line.clear();
            assert_ne!(told.read_line(&mut line).expect("a pipe"), 0, "qemu-io ended before: {fragment}");
        }
    };
    // One line at a time: it looks for another only when something comes.
    let mut ask = |line: &str| writeln!(asked, "{line}").expect("it reads");
    ask("write -P 1 0 64k");
    until("wrote 65536/65536 bytes at offset 0");
    gateway.kill();
    // It waits for somebody who answers.
    ask("write -P 2 1M 64k");
    gateway.restart();
    until("wrote 65536/65536 bytes at offset 1048576");
    ask("read -P 1 0 64k");
    until("read 65536/65536 bytes at offset 0");
    ask("read -P 2 1M 64k");
    until("read 65536/65536 bytes at offset 1048576");
    drop(asked);
    assert!(qemu_io.wait().expect("it is our child").success());
}

fn a_machine_has_the_disk(backend: &'static str) {
    let gateway = Gateway::with(&Setup { backend, tcp: true, ..Setup::default() });
    gateway.protect([("db", "64M")]);
    let qemu = gateway.says("attach erp/db --for qemu");
    let proxmox = gateway.says("attach erp/db --for proxmox");
    assert_eq!(proxmox, format!("args: {qemu}"));
    // Its monitor says what it has.
    let line = format!(
        "printf 'info block\\nquit\\n' | qemu-system-x86_64 -machine q35,accel=tcg -nodefaults -display none -S -monitor stdio {}",
        qemu.trim()
    );
    let output = shell(&format!("({line}) 2>&1; true"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("nbd+unix") && text.contains("erp/db") && text.contains("Attached to:"), "{text}");

    let libvirt = gateway.says("attach erp/db --for libvirt");
    let script = "import sys, xml.etree.ElementTree as E; d = E.fromstring(sys.argv[1]); s = d.find('source'); \
                  print(s.get('protocol'), s.get('name'), s.find('host').get('socket'), s.find('reconnect').get('delay'))";
    let told = tool::says("python3", ["-c", script, &libvirt]);
    let [protocol, export, socket, delay] =
        told.split_whitespace().collect::<Vec<_>>().try_into().expect("four");
    assert_eq!((protocol, export), ("nbd", "erp/db"));
    assert!(delay.parse::<u32>().expect("seconds") > 0);
    let options =
        format!("driver=nbd,server.type=unix,server.path={socket},export={export},reconnect-delay={delay}");
    tool::says("qemu-io", ["--image-opts", "-c", "read 0 64k", &options]);

    let json = gateway.json("attach erp/db --for qemu");
    assert_eq!((json["for"].as_str(), json["disk"].as_str()), (Some("qemu"), Some("erp/db")));
    assert_eq!(json["text"].as_str(), Some(qemu.as_str()));
    assert!(gateway.refuses("attach erp/none --for qemu", 1).contains("there is no disk erp/none"));
    assert!(
        gateway
            .refuses("attach erp/db --for qemu --at 10.0.0.1:1", 2)
            .contains("the gateway listens on unix:")
    );
    assert!(gateway.refuses("attach erp/db --for qemu --at 127.0.0.1:0", 1).contains("configure a port"));
}

fn fio_reads_it(backend: &'static str) {
    let gateway = Gateway::on(backend);
    gateway.protect([("db", "64M")]);
    tool::says("qemu-io", ["-f", "raw", "-c", "write -P 7 0 64M", &gateway.uri("erp/db")]);
    let command = gateway.says("attach erp/db --for fio");
    // Ten seconds are for people.
    let output = shell(&format!("{} --runtime=1", command.trim()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("err= 0"), "{text}");
    assert!(!text.contains("write:"), "it changes nothing: {text}");
    tool::says("qemu-io", ["-f", "raw", "-c", "read -P 7 0 64M", &gateway.uri("erp/db")]);
}
