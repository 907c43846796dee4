//! `key show|rotate|export|import`: the site key, as a person handles it. Nothing here knows what a key is made of.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use zeroize::Zeroizing;

use super::arguments::KeyCommand;
use super::client::Client;
use super::failure::Failure;
use super::output::{Output, complain, confirm, print};
use super::render;
use crate::control::model::{KeyImport, KeyRotation, KeyText, Keys};
use crate::error::{Error, ErrorKind};

/// A key is a few lines.
const KEY_BYTES_MAX: u64 = 4096;

/// Where a key was written.
#[derive(JsonSchema, Serialize)]
pub struct Exported {
    /// The file, which was not there before.
    file: PathBuf,
}

pub async fn run(command: KeyCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        KeyCommand::Show => {
            let keys: Keys = client.get("/v1/keys").await?;
            output.show(&keys, render::keys)
        }
        KeyCommand::Rotate { new_group_keys } => {
            let keys: Keys = client.post("/v1/keys/rotate", &KeyRotation { new_group_keys }).await?;
            complain(
                "the site key is a new one: 'key export' it to a safe place; the old one opens nothing any more\n",
            );
            output.show(&keys, render::keys)
        }
        KeyCommand::Export { file } => {
            let exported: KeyText = client.post("/v1/keys/export", &serde_json::json!({})).await?;
            let key = Zeroizing::new(exported.key);
            match file {
                Some(file) => {
                    write(&file, &key)?;
                    output.show(&Exported { file }, |Exported { file }| {
                        format!("the site key is in {}: keep it where the vault is not\n", file.display())
                    })
                }
                None => {
                    complain("whoever sees what follows can read everything that this site sealed\n");
                    print(&key)
                }
            }
        }
        KeyCommand::Import { file, consent } => {
            let mut request = KeyImport { key: read(&file)?, replace: false };
            let mut imported: Result<Keys, Failure> = client.post("/v1/keys/import", &request).await;
            if let Err(Failure::Failed(error)) = &imported
                && error.kind() == ErrorKind::AlreadyExists
            {
                confirm(consent.yes, &error.to_string()).await?;
                request.replace = true;
                imported = client.post("/v1/keys/import", &request).await;
            }
            output.show(&imported?, render::keys)
        }
    }
}

/// Writes a key to a new file; what could not be written whole goes.
fn write(file: &Path, key: &str) -> Result<(), Failure> {
    let failed = |error| Failure::Failed(Error::io("writing the key", error).at_path(file));
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let text =
                    "something has that name already, and a key takes nothing's place: name another file";
                Error::new(ErrorKind::AlreadyExists, text).at_path(file).into()
            }
            io::ErrorKind::NotFound => {
                let text = "its directory does not exist: create it, or name another file";
                Error::new(ErrorKind::NotFound, text).at_path(file).into()
            }
            _ => failed(error),
        },
    )?;
    target.write_all(key.as_bytes()).and_then(|()| target.sync_all()).map_err(|error| {
        let _ = fs::remove_file(file);
        failed(error)
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(KEY_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(KEY_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::Failed(Error::io("reading the key", error).at_path(file)))?;
    Ok(text)
}
