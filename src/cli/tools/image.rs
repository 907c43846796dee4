//! A recovery point's disks as images of other formats, by `qemu-img convert` from a test failover's exports.
//!
//! Each image is written under a temporary name, compared with the point sector by sector, synced, and only then gets
//! its name: a file that is there is whole.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::{command, failed, not_started, run};
use crate::cli::failure::Failure;
use crate::control::model::{Test, TestExport};
use crate::error::{Error, ErrorKind};

/// Steps of the progress bar: qemu-img tells hundredths of a per cent.
const PROGRESS_STEPS: u64 = 10_000;

/// The format of restored disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Sparse raw files
    #[default]
    Raw,
    /// QEMU, Proxmox, OpenStack
    Qcow2,
    /// Hyper-V
    Vhdx,
    /// VMware
    Vmdk,
    /// VHD: Azure, older Hyper-V
    Vpc,
}

impl ImageFormat {
    /// What a disk's file is called.
    pub fn file_name(self, disk: &str) -> String {
        let extension = match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vpc => "vhd",
        };
        format!("{disk}.{extension}")
    }

    /// qemu-img's name for it.
    fn driver(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vpc => "vpc",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            // Without it the size is rounded to the cylinders of a disk of 1990.
            ImageFormat::Vpc => &["-o", "force_size=on"],
            _ => &[],
        }
    }
}

/// Writes the disks of a test failover to `directory`, which exists; gives the files, in order.
pub async fn restore(
    test: &Test,
    directory: &Path,
    format: ImageFormat,
    overwrite: bool,
) -> Result<Vec<PathBuf>, Failure> {
    let target = |export: &TestExport| directory.join(format.file_name(export.disk.as_str()));
    let files: Vec<PathBuf> = test.exports.iter().map(target).collect();
    if let Some(taken) = files.iter().find(|file| !overwrite && file.exists()) {
        let text = format!("{} exists", taken.display());
        return Err(Error::new(ErrorKind::AlreadyExists, text).into());
    }
    for (export, file) in test.exports.iter().zip(&files) {
        let partial = Partial::create(file)?;
        write(export, &partial.0, format).await?;
        publish(&partial.0, file)?;
    }
    sync_directory(directory)?;
    Ok(files)
}

/// An image under its temporary name, which goes with this: what there is of it is of no use to anybody.
struct Partial(PathBuf);

impl Partial {
    /// A file that nobody else may read, as a disk's content is nobody else's.
    fn create(file: &Path) -> Result<Partial, Failure> {
        let mut name = file.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let created =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        created.map_err(|error| Error::io("creating the image", error).at_path(&partial))?;
        Ok(Partial(partial))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Once it has its own name there is nothing here any more.
        let _ = fs::remove_file(&self.0);
    }
}

async fn write(export: &TestExport, file: &Path, format: ImageFormat) -> Result<(), Failure> {
    convert(export, file, format).await?;
    check_size(export, file, format).await?;
    let mut compare = vec!["compare", "-f", "raw", "-F", format.driver(), &export.uri];
    let text =
        file.to_str().ok_or_else(|| Failure::Usage(format!("{file:?} is not UTF-8: choose another name")))?;
    compare.push(text);
    run("qemu-img", compare).await.map(drop)
}

async fn convert(export: &TestExport, file: &Path, format: ImageFormat) -> Result<(), Failure> {
    let mut convert = command("qemu-img");
    convert.args(["convert", "-p", "-f", "raw", "-O", format.driver()]).args(format.options());
    convert.arg(&export.uri).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = convert.spawn().map_err(|error| not_started("qemu-img", error))?;
    let complaints = tokio::spawn(read_all(child.stderr.take().expect("a pipe")));
    let bar = ProgressBar::new(PROGRESS_STEPS).with_message(format!("writing {}", export.disk));
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {percent} %, {eta} left")
            .expect("a constant template")
            .progress_chars("=> "),
    );
    // It draws its own bar: `    (12.50/100%)`, each over the one before.
    let mut drawn = BufReader::new(child.stdout.take().expect("a pipe")).split(b'\r');
    while let Ok(Some(line)) = drawn.next_segment().await {
        bar.set_position(progress(&line).unwrap_or_else(|| bar.position()));
    }
    bar.finish_and_clear();
    let status = child.wait().await.map_err(|error| Error::io("waiting for qemu-img", error))?;
    if status.success() {
        return Ok(());
    }
    let complaints = complaints.await.unwrap_or_default();
    Err(failed("qemu-img", if complaints.trim().is_empty() { "it was ended" } else { &complaints }))
}

/// What a program writes to a pipe, read as it comes: a full pipe would stop it.
async fn read_all(mut pipe: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    // What could be read until then is what there is to tell.
    let _ = pipe.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Hundredths of a per cent.
fn progress(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.trim().strip_prefix('(')?;
    let (percent, _) = text.split_once('/')?;
    let (whole, hundredths) = percent.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + hundredths.parse::<u64>().ok()?)
}

async fn check_size(export: &TestExport, file: &Path, format: ImageFormat) -> Result<(), Failure> {
    let arguments = ["info", "--output=json", "-f", format.driver()].map(AsRef::<std::ffi::OsStr>::as_ref);
    let info = run("qemu-img", arguments.into_iter().chain([file.as_os_str()])).await?;
    let info: serde_json::Value = serde_json::from_str(&info)
        .map_err(|error| Error::new(ErrorKind::Protocol, format!("qemu-img info: {error}")))?;
    let found = info["virtual-size"].as_u64();
    if found == Some(export.size_bytes) {
        return Ok(());
    }
    let text = format!(
        "the {} image of {} has {found:?} bytes, the disk {}: this format can't hold that size; choose another",
        format.driver(),
        export.disk,
        export.size_bytes
    );
    Err(Error::new(ErrorKind::Unsupported, text).at_path(file).into())
}

fn publish(partial: &Path, file: &Path) -> Result<(), Failure> {
    let renamed =
        fs::File::open(partial).and_then(|image| image.sync_all()).and_then(|()| fs::rename(partial, file));
    renamed.map_err(|error| Error::io("finishing the image", error).at_path(file).into())
}

fn sync_directory(directory: &Path) -> Result<(), Failure> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io("syncing the directory", error).at_path(directory).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_that_qemu_img_draws_is_read() {
        assert_eq!(progress(b"    (0.00/100%)"), Some(0));
        assert_eq!(progress(b"    (12.34/100%)"), Some(1234));
        assert_eq!(progress(b"    (100.00/100%)\n"), Some(10_000));
        assert_eq!(progress(b"qemu-img: error"), None);
    }
}
