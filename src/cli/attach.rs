//! `attach`: what a person pastes so that QEMU, libvirt, Proxmox VE or fio uses a disk.
//!
//! Only text: nothing is attached by it. QEMU's text asks for reconnection, so that a machine sees a pause and no error while the
//! gateway is restarted or upgraded. Where the address is served by TLS, so is what is printed. What is to be pasted goes to standard output, what a person should know to standard error.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::Serialize;

use super::client::Client;
use super::failure::Failure;
use super::output::{Output, complain};
use crate::control::model::{Disk, Status, TlsStatus};
use crate::control::name::DiskPath;
use crate::error::{Error, ErrorKind};
use crate::listen::{Endpoint, ListenAddress};

/// How long QEMU holds a machine's requests back while nobody answers: for a restart with a long journal, or an upgrade.
const RECONNECT_DELAY_S: u32 = 300;
/// Digits of the disk's id in the name that QEMU has for it, which is 31 bytes long at most.
const NODE_NAME_DIGITS: usize = 16;

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consumer {
    /// Arguments of qemu-system-*
    Qemu,
    /// A <disk> for `virsh edit` or `virsh attach-device`
    Libvirt,
    /// A line of /etc/pve/qemu-server/VMID.conf
    Proxmox,
    /// A command that reads
    Fio,
}

/// What a person may choose of a place.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// One of the gateway's addresses; else its first.
    pub at: Option<&'a str>,
    /// The directory of the client's certificate, its key and the gateway's authority, where TLS needs them.
    pub credentials: &'a Path,
}

/// What `attach --json` prints.
#[derive(JsonSchema, Serialize)]
pub struct Attachment {
    /// The disk, GROUP/DISK.
    disk: String,
    /// What it is attached to.
    r#for: Consumer,
    /// The address that it is reached at.
    address: String,
    /// Its NBD URI there.
    uri: String,
    /// What is to be pasted.
    text: String,
}

/// Asks where the disk is served, and prints how to attach it.
pub async fn run(
    path: &DiskPath,
    consumer: Consumer,
    wanted: Wanted<'_>,
    client: &Client,
    output: Output,
) -> Result<(), Failure> {
    let disks: Vec<Disk> = client.get(&format!("/v1/disks?group={}", path.group)).await?;
    let missing =
        || Error::new(ErrorKind::NotFound, format!("there is no disk {path}: 'disk list' shows them"));
    let disk = disks.into_iter().find(|disk| disk.name == path.disk).ok_or_else(missing)?;
    let status: Status = client.get("/v1/status").await?;
    let address = chosen(&status.listen, wanted.at)?;
    let endpoint = Endpoint::new(address, status.tls.is_some());
    let place = Place { disk: &disk, endpoint: &endpoint, credentials: wanted.credentials };
    let text = place.text(consumer);
    if !disk.served {
        complain(&format!("note: {path} is not served now: 'disk list' says why\n"));
    }
    complain(&place.notes(consumer));
    if let Some(tls) = status.tls.filter(|_| endpoint.tls) {
        complain(&place.note_of_tls(consumer, tls));
    }
    let attachment = Attachment {
        disk: path.to_string(),
        r#for: consumer,
        address: endpoint.address.to_string(),
        uri: place.uri(),
        text,
    };
    output.show(&attachment, |attachment| attachment.text.clone())
}

/// The address that a person named, or the gateway's first.
fn chosen(listen: &[String], at: Option<&str>) -> Result<ListenAddress, Failure> {
    let text = match at {
        None => {
            listen.first().ok_or_else(|| Error::new(ErrorKind::Protocol, "the gateway listens nowhere"))?
        }
        Some(at) => listen.iter().find(|address| *address == at).ok_or_else(|| {
            Failure::Usage(format!(
                "--at `{at}`: the gateway listens on {}: write one of these",
                listen.join(", ")
            ))
        })?,
    };
    let parsed = ListenAddress::parse(text).ok().and_then(|addresses| addresses.into_iter().next());
    let address = parsed
        .ok_or_else(|| Error::new(ErrorKind::Protocol, format!("`{text}` is no address to listen on")))?;
    match address {
        ListenAddress::Tcp(tcp) if tcp.port() == 0 => {
            let text = format!(
                "{tcp} is a port of the system's choice, which the gateway's log names: configure a port"
            );
            Err(Error::invalid(text).into())
        }
        address => Ok(reachable(address)),
    }
}

/// Who listens on all addresses is reached, from here, by the loopback one.
fn reachable(address: ListenAddress) -> ListenAddress {
    match address {
        ListenAddress::Tcp(SocketAddr::V4(tcp)) if tcp.ip().is_unspecified() => {
            ListenAddress::Tcp((std::net::Ipv4Addr::LOCALHOST, tcp.port()).into())
        }
        ListenAddress::Tcp(SocketAddr::V6(tcp)) if tcp.ip().is_unspecified() => {
            ListenAddress::Tcp((std::net::Ipv6Addr::LOCALHOST, tcp.port()).into())
        }
        other => other,
    }
}

/// What fio does to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Nothing is changed.
    Reads,
    /// What is on it is overwritten.
    Writes,
}

/// A disk, and where it is served.
pub struct Place<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// One of its gateway's addresses.
    pub endpoint: &'a Endpoint,
    /// The directory of what a client needs for TLS.
    pub credentials: &'a Path,
}

impl Place<'_> {
    fn text(&self, consumer: Consumer) -> String {
        match consumer {
            Consumer::Qemu => self.qemu() + "\n",
            Consumer::Libvirt => self.libvirt(),
            Consumer::Proxmox => format!("args: {}\n", self.qemu()),
            Consumer::Fio => self.fio(Load::Reads) + "\n",
        }
    }

    /// What a person should know who pastes it.
    fn notes(&self, consumer: Consumer) -> String {
        let mut notes = match consumer {
            Consumer::Qemu => String::new(),
            Consumer::Libvirt => {
                "note: choose a <target dev> that the machine does not use; its QEMU must be allowed to connect to the socket\n"
                    .to_owned()
            }
            Consumer::Proxmox => {
                "note: Proxmox VE does not know this disk: its snapshots, backups and migrations leave it out\n".to_owned()
            }
            Consumer::Fio => "note: this reads; --rw=randwrite overwrites what is on the disk\n".to_owned(),
        };
        if let ListenAddress::Tcp(tcp) = self.endpoint.address
            && tcp.ip().is_loopback()
        {
            let _ = writeln!(notes, "note: {} is this machine only", tcp.ip());
        }
        notes
    }

    /// What must lie in the client's directory, and whose that is to say.
    fn note_of_tls(&self, consumer: Consumer, tls: TlsStatus) -> String {
        let files = if tls.client_certificates {
            "ca-cert.pem, client-cert.pem and client-key.pem"
        } else {
            "ca-cert.pem"
        };
        match consumer {
            Consumer::Libvirt => {
                format!(
                    "note: nbd_tls_x509_cert_dir in /etc/libvirt/qemu.conf names the directory of {files} (docs/tls.md)\n"
                )
            }
            // It cannot be told where: its libnbd is not allowed to follow a URI to files.
            Consumer::Fio => {
                format!(
                    "note: fio looks for {files} in ~/.pki/libnbd, or as root in /etc/pki/libnbd (docs/tls.md)\n"
                )
            }
            Consumer::Qemu | Consumer::Proxmox => {
                format!("note: {} must hold {files} (docs/tls.md)\n", self.credentials.display())
            }
        }
    }

    fn uri(&self) -> String {
        self.endpoint.nbd_uri(&self.disk.export)
    }

    /// Arguments of qemu-system-*.
    pub fn qemu(&self) -> String {
        let node = format!("afterimage-{:.NODE_NAME_DIGITS$}", self.disk.id.to_string());
        let server = match &self.endpoint.address {
            ListenAddress::Unix(path) => {
                format!("server.type=unix,server.path={}", option_value(&path.to_string_lossy()))
            }
            ListenAddress::Tcp(tcp) => {
                format!("server.type=inet,server.host={},server.port={}", tcp.ip(), tcp.port())
            }
        };
        let (object, tls) = self.qemu_tls(&node);
        let blockdev = format!(
            "driver=nbd,node-name={node},{server}{tls},export={},reconnect-delay={RECONNECT_DELAY_S},discard=unmap",
            self.disk.export
        );
        format!("{object}-blockdev {} -device virtio-blk-pci,drive={node}", shell_word(&blockdev))
    }

    /// The object that holds a disk's credentials, each its own so that several disks may be pasted, and the option that names it.
    fn qemu_tls(&self, node: &str) -> (String, String) {
        if !self.endpoint.tls {
            return (String::new(), String::new());
        }
        let directory = option_value(&self.credentials.to_string_lossy());
        let object = format!("tls-creds-x509,id={node}-tls,endpoint=client,dir={directory}");
        (format!("-object {} ", shell_word(&object)), format!(",tls-creds={node}-tls"))
    }

    /// An element of a machine's `<devices>`.
    fn libvirt(&self) -> String {
        let host = match &self.endpoint.address {
            ListenAddress::Unix(path) => {
                format!("transport='unix' socket='{}'", xml_attribute(&path.to_string_lossy()))
            }
            ListenAddress::Tcp(tcp) => format!("name='{}' port='{}'", tcp.ip(), tcp.port()),
        };
        let tls = if self.endpoint.tls { " tls='yes'" } else { "" };
        format!(
            "<disk type='network' device='disk'>\n  \
               <driver name='qemu' type='raw' cache='none' discard='unmap'/>\n  \
               <source protocol='nbd' name='{}'{tls}>\n    \
                 <host {host}/>\n    \
                 <reconnect delay='{RECONNECT_DELAY_S}'/>\n  \
               </source>\n  \
               <target dev='vdb' bus='virtio'/>\n\
             </disk>\n",
            self.disk.export
        )
    }

    /// A command.
    pub fn fio(&self, load: Load) -> String {
        let direction = match load {
            Load::Reads => "randread",
            Load::Writes => "randwrite",
        };
        format!(
            "fio --name={} --ioengine=nbd --uri={} --rw={direction} --bs=4k --iodepth=32 --time_based --runtime=10",
            self.disk.name,
            quoted(&self.uri())
        )
    }
}

/// A value in QEMU's comma-separated options.
fn option_value(text: &str) -> String {
    text.replace(',', ",,")
}

/// A word that a shell takes for one, whatever is in it; quoted only where that is needed.
fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:/=@%+".contains(&byte);
    if text.bytes().all(is_plain) { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn xml_attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DiskId;

    fn disk() -> Disk {
        Disk {
            id: DiskId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            group: "erp".parse().unwrap(),
            name: "database".parse().unwrap(),
            size_bytes: 1 << 30,
            export: "erp/database".to_owned(),
            uri: String::new(),
            served: true,
            latched: None,
        }
    }

    #[test]
    fn what_is_special_to_a_program_is_written_as_that_program_has_it() {
        let (disk, address) = (disk(), ListenAddress::Unix("/run/it's, <a> &b.sock".into()));
        let endpoint = Endpoint::new(address, true);
        let place = Place { disk: &disk, endpoint: &endpoint, credentials: Path::new("/pki") };
        let qemu = place.qemu();
        assert!(qemu.contains(r"server.path=/run/it'\''s,, <a> &b.sock,export=erp/database,"), "{qemu}");
        assert!(qemu.starts_with("-blockdev 'driver=nbd,node-name=afterimage-0123456789abcdef,"), "{qemu}");
        assert!(
            place.libvirt().contains("socket='/run/it&apos;s, &lt;a> &amp;b.sock'/>"),
            "{}",
            place.libvirt()
        );
        assert!(place.fio(Load::Reads).contains("--uri='nbd+unix:///erp/database?socket=/run/it%27s%2C%20"));
    }

    #[test]
    fn tcp_is_an_address_and_a_port() {
        let (disk, address) = (disk(), ListenAddress::parse("[::1]:10809").unwrap().remove(0));
        let endpoint = Endpoint::new(address, false);
        let place = Place { disk: &disk, endpoint: &endpoint, credentials: Path::new("/pki") };
        assert!(
            place.qemu().contains("server.type=inet,server.host=::1,server.port=10809,"),
            "{}",
            place.qemu()
        );
        assert!(place.libvirt().contains("<host name='::1' port='10809'/>"), "{}", place.libvirt());
        assert!(place.fio(Load::Writes).contains("--uri='nbd://[::1]:10809/erp/database' --rw=randwrite"));
    }

    #[test]
    fn what_is_served_by_tls_is_attached_by_tls() {
        let (disk, address) = (disk(), ListenAddress::parse("127.0.0.1:10809").unwrap().remove(0));
        let endpoint = Endpoint::new(address, true);
        let place = Place { disk: &disk, endpoint: &endpoint, credentials: Path::new("/pki/a b,c") };
        let node = "afterimage-0123456789abcdef";
        let qemu = place.qemu();
        let object =
            format!("-object 'tls-creds-x509,id={node}-tls,endpoint=client,dir=/pki/a b,,c' -blockdev ");
        assert!(qemu.starts_with(&object), "{qemu}");
        assert!(
            qemu.contains(&format!("server.port=10809,tls-creds={node}-tls,export=erp/database,")),
            "{qemu}"
        );
        assert!(place.libvirt().contains("name='erp/database' tls='yes'>"), "{}", place.libvirt());
        let uri = "--uri='nbds://127.0.0.1:10809/erp/database'";
        assert!(place.fio(Load::Reads).contains(uri), "{}", place.fio(Load::Reads));
        let certificates = |client_certificates| TlsStatus { client_certificates };
        assert!(place.note_of_tls(Consumer::Qemu, certificates(true)).contains("client-key.pem"));
        assert!(!place.note_of_tls(Consumer::Libvirt, certificates(false)).contains("client-key.pem"));
    }

    #[test]
    fn the_address_is_one_that_the_gateway_listens_on() {
        let listen = ["unix:/run/nbd.sock", "0.0.0.0:10809", "127.0.0.1:0"].map(str::to_owned);
        let at = |at| chosen(&listen, at).map(|address| address.to_string());
        assert_eq!(at(None).unwrap(), "unix:/run/nbd.sock");
        assert_eq!(at(Some("0.0.0.0:10809")).unwrap(), "127.0.0.1:10809", "which a client can connect to");
        assert!(
            at(Some("10.0.0.1:1")).unwrap_err().to_string().contains("unix:/run/nbd.sock, 0.0.0.0:10809")
        );
        assert!(at(Some("127.0.0.1:0")).unwrap_err().to_string().contains("configure a port"));
    }
}
