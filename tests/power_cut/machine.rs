//! A machine whose power can be cut: a guest with the gateway in it, a volume, and a log of all that is written to the
//! volume.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::guest::Guest;
use crate::initramfs::{self, Contents};
use crate::tool;

/// Where the gateway listens in the guest.
const NBD_PORT: u16 = 10809;
/// The network, and the log.
const MODULES: [&str; 5] = [
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/md/dm-mod.ko",
    "drivers/md/dm-log-writes.ko",
];

/// Boots one whose disks are the raw files `volume` and `log`; says where this machine reaches the gateway in it.
///
/// A guest has one processor, and its volume says yes to a flush at once: dm-log-writes puts a write into its log when a
/// flush that was sent after it returns. Were two flushes under way at a time, the later one could return first, and the
/// log would lack what it had promised.
#[track_caller]
pub fn boot(
    directory: &Path,
    volume: &Path,
    log: &Path,
    gateway: &Path,
    configuration: &str,
) -> (Guest, SocketAddr) {
    // What only debuggers read would fill most of the guest's memory.
    let stripped = directory.join("afterimage");
    tool::says("strip", ["-o".as_ref(), stripped.as_os_str(), gateway.as_os_str()]);
    let contents = Contents {
        functions: include_str!("functions.sh"),
        modules: &MODULES,
        programs: &[("dmsetup", initramfs::find("dmsetup")), ("afterimage", stripped)],
        files: &[("etc/afterimage.toml", configuration)],
    };
    let mut devices = Vec::new();
    for disk in [volume, log] {
        let options = format!("file={},if=virtio,format=raw,cache=unsafe", disk.display());
        devices.extend(["-drive".to_owned(), options]);
    }
    let nbd = free_port();
    let network = format!("user,model=virtio-net-pci,restrict=on,hostfwd=tcp:{nbd}-:{NBD_PORT}");
    devices.extend(["-nic".to_owned(), network]);
    (Guest::boot(directory, &contents, &devices), nbd)
}

/// An address that nobody listens on now; QEMU cannot be asked which port it chose.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}
