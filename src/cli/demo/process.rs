//! A gateway process of our own, in a directory of its own: started, asked whether it is ready, killed, stopped.
//!
//! It never outlives the value unless it is [kept](GatewayProcess::keep), nor, while it is [tied](GatewayProcess::tied), us, however we
//! end. It is in a process group of its own, so that a terminal's Ctrl-C reaches whoever owns it, who then decides.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::byte_size::ByteSize;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::place::Place;
use crate::control::model::Status;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, ErrorKind, Result};

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(5);

/// How large the journal of each group may become, and its segments.
#[derive(Clone, Copy, Debug)]
pub struct JournalSize {
    /// `[journal] size`
    pub total: ByteSize,
    /// `[journal] segment_size`
    pub segment: ByteSize,
}

/// A gateway process and its directory.
#[derive(Debug)]
pub struct GatewayProcess {
    binary: PathBuf,
    directory: PathBuf,
    child: Option<Child>,
    tied: bool,
}

impl GatewayProcess {
    /// A gateway that is not started yet; writes its configuration into `directory`.
    pub fn new(binary: &Path, directory: &Path, journal: JournalSize) -> Result<GatewayProcess> {
        let data = directory.join("data");
        fs::create_dir(&data)
            .map_err(|error| Error::io("creating a data directory", error).at_path(&data))?;
        let (binary, directory) = (binary.to_owned(), directory.to_owned());
        let gateway = GatewayProcess { binary, directory, child: None, tied: false };
        let text = format!(
            "[site]\nname = \"demo\"\ndata_dir = {data:?}\n\n[nbd]\nlisten = [{listen:?}]\n\n\
             [api]\nsocket = {api:?}\n\n[journal]\nsize = \"{total}\"\nsegment_size = \"{segment}\"\n",
            listen = format!("unix:{}", gateway.nbd_socket().display()),
            api = gateway.api_socket(),
            total = journal.total,
            segment = journal.segment,
        );
        let path = gateway.configuration();
        fs::write(&path, text).map_err(|error| Error::io("writing a configuration", error).at_path(&path))?;
        Ok(gateway)
    }

    /// The same; from its next start on it ends with the thread that started it, also if that has no time to end it.
    #[must_use]
    pub fn tied(mut self) -> GatewayProcess {
        self.tied = true;
        self
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.directory.join("afterimage.toml")
    }

    /// Where block clients connect.
    pub fn nbd_socket(&self) -> PathBuf {
        self.directory.join("nbd.sock")
    }

    /// Where the API is.
    pub fn api_socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    /// What it logs, over all of its starts.
    pub fn log(&self) -> PathBuf {
        self.directory.join("gateway.log")
    }

    /// A client of its API.
    pub fn client(&self) -> Client {
        Client::new(Place::Socket(self.api_socket()), None)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it; [`GatewayProcess::ready`] waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        assert!(self.child.is_none(), "a gateway is started once at a time");
        let log = self.log();
        let failed = |what: &str, error| Error::io(what, error).at_path(&log);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.map_err(|error| failed("opening the gateway's log", error))?;
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--config"]).arg(self.configuration());
        if self.tied {
            command.args(["--dies-with", &std::process::id().to_string()]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|error| Error::io("starting a gateway", error).at_path(&self.binary))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it answers on its API: by then it serves its disks.
    ///
    /// # Errors
    /// With the end of its log, if it ended or does not answer in half a minute.
    pub async fn ready(&mut self) -> Result<Status> {
        let clock = OsEnvironment::new();
        loop {
            match self.client().get::<Status>("/v1/status").await {
                Ok(status) => return Ok(status),
                Err(Failure::Unreachable { .. }) => {}
                Err(failure) => return Err(self.failed(&failure.to_string())),
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                return Err(self.failed(&format!("the gateway ended ({status})")));
            }
            if u128::from(clock.monotonic().0) > READY_WITHIN.as_nanos() {
                return Err(self.failed(&format!("the gateway is not ready after {READY_WITHIN:?}")));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// SIGKILL; when this returns, the process is dead.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be dead already; then the wait says so at once.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the clean end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let clock = OsEnvironment::new();
        let child = self.child.as_mut().ok_or_else(|| Error::invalid("the gateway was not started"))?;
        signal_term(child).map_err(|error| Error::io("sending SIGTERM", error))?;
        loop {
            let ended = child.try_wait().map_err(|error| Error::io("waiting for the gateway", error))?;
            if let Some(status) = ended {
                self.child = None;
                return Ok(status);
            }
            if u128::from(clock.monotonic().0) > STOP_WITHIN.as_nanos() {
                return Err(self.failed(&format!("the gateway does not stop in {STOP_WITHIN:?}")));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Starts it anew, in good order, so that it is tied to us no more.
    pub async fn untie(&mut self) -> Result<()> {
        self.stop().await?;
        self.tied = false;
        self.start()?;
        self.ready().await.map(drop)
    }

    /// Lets it live on without us.
    pub fn keep(mut self) {
        self.child = None;
    }

    fn failed(&self, what: &str) -> Error {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        Error::new(ErrorKind::Io, format!("{what}; its log ends with: {}", tail.join(" | ")))
    }
}

fn signal_term(child: &Child) -> std::io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
    kill_process(pid, Signal::TERM).map_err(Into::into)
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
