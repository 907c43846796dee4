//! Data threads that serve a volume in memory at a Unix socket, for the tests beside this.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use afterimage::block::Export;
use afterimage::capture::nbd::ExportInfo;
use afterimage::capture::nbd::client::{Client, Wishes};
use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::site::{DataThreads, DataThreadsOptions, SessionLimits};
use afterimage::storage::{BackendOptions, OpenOptions, open_best};
use afterimage::units::{DiskId, GroupId};
use tempfile::TempDir;

use crate::ram_volume::RamVolume;

pub const SIZE_BYTES: u64 = 64 << 20;
/// Nothing in these tests takes that long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Data threads with one group of two disks, listening at a Unix socket.
pub struct Gateway {
    pub threads: DataThreads<RamVolume>,
    pub home: usize,
    pub socket: PathBuf,
    pub directory: TempDir,
}

pub const GROUP: GroupId = GroupId(7);

pub fn disk(number: u128) -> Export {
    Export::Disk(GROUP, DiskId(number))
}

impl Gateway {
    pub fn start(threads: usize) -> Gateway {
        Gateway::with_limits(threads, SessionLimits::default())
    }

    pub fn with_limits(threads: usize, limits: SessionLimits) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        let open_storage = |_| open_best(&BackendOptions::default()).map(|chosen| chosen.storage);
        let threads = DataThreads::start(DataThreadsOptions { threads, limits }, open_storage).unwrap();
        let home = threads.exports().place_group(GROUP, threads.count());
        let synced = directory.path().join("synced");
        let (hosted, is_hosted) = std::sync::mpsc::channel();
        let open = move |host: &mut afterimage::site::Host<RamVolume>| {
            let (runtime, later) = (host.runtime().clone(), host.later());
            let tasks = runtime.clone();
            tasks.spawn(async move {
                let file = runtime.open(synced, OpenOptions::CREATE).await.unwrap();
                later.run(move |host| {
                    host.insert(GROUP, RamVolume::new(runtime, file));
                    hosted.send(()).unwrap();
                });
            });
        };
        threads.command(home, open).unwrap();
        is_hosted.recv_timeout(PATIENCE).unwrap();
        for number in 0..2 {
            let description = "memory".to_owned();
            let info = ExportInfo { export: disk(number), size: SIZE_BYTES, read_only: false, description };
            threads.exports().add(&name(number), info).unwrap();
        }
        let socket = directory.path().join("nbd.sock");
        threads.listen(&ListenAddress::Unix(socket.clone()), SocketMode::Owner).unwrap();
        Gateway { threads, home, socket, directory }
    }

    pub fn socket(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.socket).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A client, and a second handle on its socket.
    pub fn connect(&self, number: u128) -> (Client<UnixStream>, UnixStream) {
        let socket = self.socket();
        let handle = socket.try_clone().unwrap();
        (Client::connect(socket, Wishes::all(name(number))).unwrap(), handle)
    }

    /// A client that has asked for simple replies, as a bare socket.
    pub fn connect_simple(&self, number: u128) -> UnixStream {
        let socket = self.socket();
        let wishes = Wishes { export: name(number), structured: false, allocation: false };
        Client::connect(socket.try_clone().unwrap(), wishes).unwrap();
        socket
    }

    /// Waits until it is so: each question is a turn of each thread's loop.
    pub fn until_threads(&self, is_so: impl Fn(&DataThreads<RamVolume>) -> bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ask = || {
            runtime.block_on(self.threads.buffered_bytes());
            is_so(&self.threads)
        };
        assert!((0..1_000_000).any(|_| ask()), "it never came to be so");
    }

    /// Waits until sessions hold that many bytes.
    pub fn until_held(&self, bytes: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let is_so = || runtime.block_on(self.threads.buffered_bytes()) == bytes;
        assert!((0..1_000_000).any(|_| is_so()), "{bytes} bytes are never held");
    }

    /// What `ask` says of the volume, on its thread.
    pub fn ask<R: Send + 'static>(&self, ask: impl Fn(&mut RamVolume) -> R + Send + 'static) -> R {
        let answer = self.threads.call(self.home, move |host| ask(host.volume(GROUP).unwrap()));
        answer.unwrap().blocking_recv().unwrap()
    }

    /// Asks again until it is so: each question is a turn of the loop, so nothing is waited for by the clock.
    pub fn until(&self, is_so: impl Fn(&mut RamVolume) -> bool + Clone + Send + 'static) {
        for _ in 0..1_000_000 {
            if self.ask(is_so.clone()) {
                return;
            }
        }
        panic!("it never came to be so");
    }

    pub fn stop(self) {
        assert_eq!(self.threads.drain(PATIENCE).wait(), 0, "no session had to be cut off");
        self.threads.stop().unwrap();
        assert!(!self.socket.exists());
    }
}

pub fn name(number: u128) -> String {
    format!("group/disk{number}")
}
