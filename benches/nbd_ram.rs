//! A RAM disk over NBD: the data thread without a journal, to measure the ceiling of the socket layer with.
//!
//! ```text
//! cargo run --release --example nbd_ram -- /tmp/ram.sock [THREADS [null]]
//! fio --name=w --ioengine=nbd --uri='nbd+unix:///ram?socket=/tmp/ram.sock' --rw=randwrite --bs=4k --iodepth=32
//! ```

#[allow(dead_code)]
#[path = "../tests/ram_volume/mod.rs"]
mod ram_volume;

use afterimage::block::Export;
use afterimage::capture::nbd::ExportInfo;
use afterimage::error::{Error, Result};
use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::site::{DataThreads, DataThreadsOptions, SessionLimits};
use afterimage::storage::{BackendOptions, OpenOptions, open_best};
use afterimage::units::{DiskId, GroupId};
use ram_volume::RamVolume;

const GROUP: GroupId = GroupId(1);
const SIZE_BYTES: u64 = 1 << 30;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| Error::invalid("usage: nbd_ram SOCKET [THREADS [null]]"))?;
    let threads = arguments.next().map_or(Ok(1), |count| count.parse());
    let threads = threads.map_err(|_| Error::invalid("THREADS is a number"))?;
    let keeps = arguments.next().is_none_or(|what| what != "null");
    let options = DataThreadsOptions { threads, limits: SessionLimits::default() };
    let threads = DataThreads::<RamVolume>::start(options, |_| {
        open_best(&BackendOptions::default()).map(|chosen| chosen.storage)
    })?;
    let directory = std::env::temp_dir().join(format!("nbd-ram-{}", std::process::id()));
    let home = threads.exports().place_group(GROUP, threads.count());
    threads.command(home, move |host| {
        let (runtime, later) = (host.runtime().clone(), host.later());
        let (tasks, file) = (runtime.clone(), directory.join("file"));
        tasks.spawn(async move {
            runtime.create_directory(directory).await.expect("a temporary directory");
            let file = runtime.open(file, OpenOptions::CREATE).await.expect("a temporary file");
            let mut volume = RamVolume::new(runtime, file);
            if !keeps {
                volume.discard();
            }
            later.run(move |host| host.insert(GROUP, volume));
        });
    })?;
    let export = Export::Disk(GROUP, DiskId(1));
    let info = ExportInfo { export, size: SIZE_BYTES, read_only: false, description: "memory".into() };
    threads.exports().add("ram", info)?;
    let endpoint = threads.listen(&ListenAddress::Unix(path.into()), SocketMode::Owner)?;
    println!("serving ram at {endpoint}; end it with ^C");
    loop {
        std::thread::park();
    }
}
