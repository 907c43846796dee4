//! A hook that is a program: the event on its standard input, some of it in variables; bounded in time and in what it may say.
//!
//! Invariant: a program that is not done in time is killed with all that it started in its process group, also when the gateway
//! stops; what it left in the background after it ended well is its own affair.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

/// Bytes that are kept of what it says; the rest is read and dropped.
const OUTPUT_MAX: usize = 4096;
/// How long what a program left behind may hold its output open after it has ended.
const OUTPUT_END: Duration = Duration::from_secs(1);
/// How long the kernel may take to end what was killed.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// What a program gets of the gateway's own environment; the rest is nobody's business, `NOTIFY_SOCKET` least of all.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ"];

/// Kills a process group when it is dropped, unless it ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended just now.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a program; why it failed, if it did.
pub(super) async fn run(
    hook: &str,
    program: &Path,
    arguments: &[String],
    variables: &[(&'static str, String)],
    input: &[u8],
    within: Duration,
) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").process_group(0).kill_on_drop(true);
    command.env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // A NUL, which no variable can hold, would keep the program from being started.
    command.envs(variables.iter().map(|(name, value)| (name, value.replace('\0', " "))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(leader);
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all were piped") };
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let status = {
        let talking = async {
            tokio::join!(feed(stdin, input), take(stdout, &mut said), take(stderr, &mut complained))
        };
        let mut talking = std::pin::pin!(talking.map(drop).fuse());
        let Ok(status) = tokio::time::timeout(within, end(&mut child, &mut talking)).await else {
            drop(group);
            // Else it would be left for the kernel as a zombie.
            let _ = tokio::time::timeout(KILLED_WITHIN, child.wait()).await;
            let within = humantime::format_duration(within);
            return Err(format!("{} took longer than {within}, and was killed", program.display()));
        };
        group.0 = None;
        if !talking.is_terminated() {
            let _ = tokio::time::timeout(OUTPUT_END, talking).await;
        }
        status
    };
    said.append(&mut complained);
    let status = status.map_err(|error| format!("{}: {error}", program.display()))?;
    let output = crate::config::one_line(&String::from_utf8_lossy(&said));
    tracing::info!(hook, %status, output, "a hook's program has ended");
    if status.success() {
        return Ok(());
    }
    let said = if output.is_empty() { output } else { format!(": {output}") };
    Err(format!("{} ended with {status}{said}", program.display()))
}

/// Waits for a program's end while it is talked to.
async fn end(
    child: &mut Child,
    talking: &mut (impl FusedFuture<Output = ()> + Unpin),
) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            () = &mut *talking, if !talking.is_terminated() => {}
            status = child.wait() => return status,
        }
    }
}

/// Gives it its input. Who does not read it may be content with the variables.
async fn feed(mut stdin: ChildStdin, input: &[u8]) {
    let _ = stdin.write_all(input).await;
}

/// Reads to the end, and keeps the beginning.
async fn take(mut pipe: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut buffer = [0_u8; 1024];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = (OUTPUT_MAX / 2).saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn sh(script: &str, within: Duration) -> Result<(), String> {
        let arguments = ["-c".to_owned(), script.to_owned()];
        let variables = [("AFTERIMAGE_EVENT", "paused".to_owned())];
        run("page", Path::new("/bin/sh"), &arguments, &variables, b"{}", within).await
    }

    #[tokio::test]
    async fn it_gets_the_event_and_its_status_counts() {
        sh(r#"test "$(cat)" = "{}" && test "$AFTERIMAGE_EVENT" = paused"#, LONG).await.unwrap();
        let why = sh("echo no paper >&2; exit 3", LONG).await.unwrap_err();
        assert!(why.contains("exit status: 3: no paper"), "{why}");
        let why = run("page", Path::new("/nowhere/page"), &[], &[], b"", LONG).await.unwrap_err();
        assert!(why.contains("/nowhere/page"), "{why}");
    }

    #[tokio::test]
    async fn it_gets_little_of_the_environment() {
        // Of tests' environment most is cargo's. Shells set three of their own.
        let own = ["AFTERIMAGE_EVENT", "PWD", "OLDPWD", "SHLVL", "_"];
        let known = INHERITED.into_iter().chain(own).collect::<Vec<_>>().join("|");
        sh(&format!("env | grep -qEv '^({known})=' && exit 1; test -n \"$PATH\""), LONG).await.unwrap();
    }

    /// What it left in the background has its output, and is not waited for.
    #[tokio::test]
    async fn who_ended_in_time_is_not_late_for_what_it_left_behind() {
        sh("sleep 3 & exit 0", OUTPUT_END / 2).await.unwrap();
    }

    /// More than a pipe holds, either way: who waits for the other to read would wait for ever.
    #[tokio::test]
    async fn what_it_says_is_bounded_and_what_it_does_not_read_holds_up_nobody() {
        let why = sh("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", LONG).await.unwrap_err();
        assert!(why.len() < OUTPUT_MAX + 200, "{}", why.len());
        let input = vec![b'x'; 1 << 20];
        run("page", Path::new("/bin/true"), &[], &[], &input, LONG).await.unwrap();
    }

    /// The child's child holds the only end of a pipe for writing that is left once both are started.
    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = fifo.clone();
        // Opens when the child's child has; ends when that does.
        let reading = tokio::task::spawn_blocking(move || std::fs::read(reader).unwrap());
        let pid = directory.path().join("pid");
        let script =
            format!("echo $$ > {}; (echo begun; exec sleep 1000) > {} & wait", pid.display(), fifo.display());
        let why = sh(&script, Duration::from_secs(3)).await.unwrap_err();
        assert!(why.contains("took longer than 3s"), "{why}");
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "a zombie is left");
        let read = tokio::time::timeout(LONG, reading).await.expect("killed").unwrap();
        assert_eq!(read, b"begun\n");
    }
}
