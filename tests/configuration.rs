//! What a person is told about a configuration that can't be served: one line with key, value and mend, exit status 2,
//! and nothing touched. Each case runs the real program.
#![cfg(feature = "server")]

#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "configuration/hooks.rs"]
mod hooks;
#[path = "configuration/tls.rs"]
mod tls;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use afterimage::byte_size::ByteSize;
use afterimage::config::{Configuration, LogFormat, LogLevel, StorageChoice};
use afterimage::data_directory::DataDirectory;
use afterimage::listen::{ListenAddress, SocketMode};
use afterimage::seal::SiteKey;
use tempfile::TempDir;

/// A directory with a configuration and an empty data directory.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        Place { directory }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Writes a configuration in which DATA stands for the data directory and ROOT for the one around it.
    fn configure(&self, text: &str) -> PathBuf {
        let file = self.directory.path().join("afterimage.toml");
        let text = text
            .replace("DATA", &self.data().to_string_lossy())
            .replace("ROOT", &self.directory.path().to_string_lossy());
        fs::write(&file, text).unwrap();
        file
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut files = Vec::new();
        collect(self.directory.path(), &mut files);
        files.sort();
        files
    }
}

fn collect(directory: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        files.push((entry.path(), entry.metadata().unwrap().len()));
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), files);
        }
    }
}

fn serve(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.arg("serve").arg("--config").arg(file).env_remove("AFTERIMAGE_LOG");
    command
}

/// Root may read and write anywhere: then somebody else runs the program, from where they can reach it.
fn serve_as_nobody(place: &Place, file: &Path) -> Command {
    const NOBODY: u32 = 65534;
    if fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap() != 0 {
        return serve(file);
    }
    let program = place.directory.path().join("afterimage");
    without_forks(|| fs::copy(env!("CARGO_BIN_EXE_afterimage"), &program)).unwrap();
    let mut command = Command::new(program);
    command.arg("serve").arg("--config").arg(file).uid(NOBODY).gid(NOBODY);
    command
}

/// Held while a process is forked: until its exec, a child holds every descriptor of every test of this program, and
/// with them locks, and files being written, that a test believes closed.
static FORKS: Mutex<()> = Mutex::new(());

fn without_forks<T>(work: impl FnOnce() -> T) -> T {
    let _forks = FORKS.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    without_forks(|| command.spawn()).unwrap().wait_with_output().unwrap()
}

/// The one line that it says, after the checks that hold for every refusal.
#[track_caller]
fn refusal(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    assert!(text.starts_with("error: ") && text.ends_with('\n'), "{text}");
    text
}

#[track_caller]
fn refused(place: &Place, toml: &str, fragments: &[&str]) {
    let file = place.configure(toml);
    let before = place.files();
    let text = refusal(&run(&mut serve(&file)));
    for fragment in fragments {
        let fragment = fragment
            .replace("DATA", &place.data().to_string_lossy())
            .replace("ROOT", &place.directory.path().to_string_lossy());
        assert!(text.contains(&fragment), "`{fragment}` in: {text}");
    }
    assert_eq!(place.files(), before, "nothing was touched");
}

const SITE: &str = "[site]\nname = \"a\"\ndata_dir = \"DATA\"\n";

#[test]
fn what_the_text_can_not_say_is_refused() {
    let place = Place::new();
    let cases: &[(&str, &[&str])] = &[
        ("x = [", &["afterimage.toml: line 1: x = ["]),
        ("", &["site.name: missing", "add `name = "]),
        ("[site]\nname = \"a\"\n", &["site.data_dir: missing", "add `data_dir = "]),
        (
            "[site]\nname = \"a b\"\ndata_dir = \"DATA\"\n",
            &["site.name = \"a b\": not a name: write 1 to 63"],
        ),
        (
            "[site]\nnme = \"a\"\n",
            &["line 2: [site] nme = \"a\": unknown field `nme`", "remove or rename it"],
        ),
        ("[sitee]\n", &["line 1: [sitee]: unknown field `sitee`", "expected one of `site`"]),
        (
            "[site]\nname = 1\n",
            &["line 2: [site] name = 1: invalid type: integer `1`, expected a string: write it in quotes"],
        ),
        ("site = 5\n", &["line 1: site = 5: not a table: write its name as [NAME]"]),
        (
            "[site]\nname = \"a\"\ndata_dir = \"\"\n",
            &["site.data_dir = \"\": no path: write a path, for example \"/var/lib/afterimage\""],
        ),
    ];
    for (toml, fragments) in cases {
        refused(&place, toml, fragments);
    }
    let after_site: &[(&str, &[&str])] = &[
        ("data_threads = 0\n", &["site.data_threads = 0: out of range: write a number from 1 to 64"]),
        (
            "data_threads = \"2\"\n",
            &["site.data_threads = \"2\": not a whole number: write a number from 1 to 64, without quotes"],
        ),
        (
            "data_threads = 99999999999999999999\n",
            &["site.data_threads = 99999999999999999999: out of range: write a number from 1 to 64"],
        ),
        (
            "data_threads = 9223372036854775808\n",
            &["data_threads = 9223372036854775808: out of range: write"],
        ),
        ("data_threads = [2]\n", &["site.data_threads = [2]: not a whole number"]),
        ("data_threads = { of = 2 }\n", &["site.data_threads = { of = 2 }: not a whole number"]),
        ("data_threads = true\n", &["site.data_threads = true: not a whole number"]),
        ("[nbd]\nconnections_max = 1.5\n", &["nbd.connections_max = 1.5: not a whole number"]),
        ("[nbd]\nlisten = \"unix:/x\"\n", &["expected a sequence: write a list, as in [\"unix:/PATH\"]"]),
        ("[nbd]\nlisten = [\"unix:\"]\n", &["nbd.listen = \"unix:\": no path: name a file"]),
        (
            "[api]\nsocket = \"\"\n",
            &["api.socket = \"\": no path: write a path, for example \"/run/afterimage/api.sock\""],
        ),
        ("[keys]\nsite_key = \"\"\n", &["keys.site_key = \"\": no path: write a path"]),
        (
            "[journal]\nsize = \"99999999999GiB\"\n",
            &["journal.size = \"99999999999GiB\": too large: write less"],
        ),
        (
            "[nbd]\nsocket_mode = \"0666\"\n",
            &["nbd.socket_mode = \"0666\": not a known choice: write one of \"0600\", \"0660\""],
        ),
        ("[nbd]\nlisten = []\n", &["nbd.listen = []", "name an address"]),
        ("[nbd]\nlisten = [\"/x\"]\n", &["nbd.listen = \"/x\"", "write \"unix:/PATH\""]),
        ("[nbd]\nlisten = [\"127.0.0.1:port\"]\n", &["nbd.listen = \"127.0.0.1:port\"", "write HOST:PORT"]),
        (
            "[nbd]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]\n",
            &["nbd.listen = \"127.0.0.1:1\": named twice"],
        ),
        (
            "[nbd]\nlisten = [\"0.0.0.0:10809\"]\n",
            &[
                "nbd.listen = \"0.0.0.0:10809\": not a loopback address",
                "write the table [nbd.tls]",
                "allow_insecure = true",
            ],
        ),
        ("[nbd]\nlisten = [\"[::]:10809\"]\n", &["nbd.listen = \"[::]:10809\"", "allow_insecure = true"]),
        (
            "[metrics]\nlisten = \"0.0.0.0:9469\"\n",
            &["metrics.listen = \"0.0.0.0:9469\": not a loopback address", "allow_insecure = true"],
        ),
        (
            "[metrics]\nlisten = \"unix:/run/metrics.sock\"\n",
            &["metrics.listen = \"unix:/run/metrics.sock\": a unix socket", "scrape the API's socket"],
        ),
        ("[metrics]\nlisten = \"\"\n", &["metrics.listen = \"\": not a TCP address: write HOST:PORT"]),
        ("[metrics]\nlisten = \"9469\"\n", &["metrics.listen = \"9469\": not a TCP address", "HOST:PORT"]),
        (
            "[nbd]\nlisten = [\"127.0.0.1:1\"]\n[metrics]\nlisten = \"127.0.0.1:1\"\n",
            &["metrics.listen = \"127.0.0.1:1\": nbd.listen has the same address: give each its own port"],
        ),
        ("[nbd]\nallow_insecure = \"yes\"\n", &["[nbd] allow_insecure = \"yes\"", "expected a boolean"]),
        ("[nbd]\nconnections_max = -1\n", &["nbd.connections_max = -1: out of range: write a number from 1"]),
        (
            "[api]\nconnections_max = 65537\n",
            &["api.connections_max = 65537: out of range: write a number from 1 to 65536"],
        ),
        (
            "[api]\nlisten = [\"0.0.0.0:9470\"]\n",
            &[
                "api.listen = \"0.0.0.0:9470\": not a loopback address",
                "nothing is encrypted",
                "allow_insecure = true",
            ],
        ),
        (
            "[api]\nlisten = [\"unix:/run/api.sock\"]\n",
            &["api.listen = \"unix:/run/api.sock\": a unix socket", "[api] read_only_socket"],
        ),
        ("[api]\nlisten = [\"9470\"]\n", &["api.listen = \"9470\": not a TCP address", "HOST:PORT"]),
        (
            "[nbd]\nlisten = [\"127.0.0.1:1\"]\n[api]\nlisten = [\"127.0.0.1:1\"]\n",
            &["api.listen = \"127.0.0.1:1\": nbd.listen has the same address: give each its own port"],
        ),
        (
            "[api]\nsocket = \"DATA/a.sock\"\nread_only_socket = \"DATA/a.sock\"\n",
            &[
                "api.read_only_socket = \"DATA/a.sock\"",
                "api.socket has the same socket: give each its own path",
            ],
        ),
        (
            "[api]\nread_only_socket = \"DATA/tokens.json\"\n",
            &["api.read_only_socket = \"DATA/tokens.json\": the gateway itself uses tokens.json"],
        ),
        ("[api]\nconnections_max = 0\n", &["api.connections_max = 0: out of range"]),
        ("[api]\nsocket = \"DATA/nbd.sock\"\n", &["api.socket = \"DATA/nbd.sock\"", "each its own path"]),
        ("[log]\nformat = \"xml\"\n", &["log.format = \"xml\"", "write one of \"text\", \"json\""]),
        ("[log]\nlevel = \"loud\"\n", &["log.level = \"loud\"", "\"debug\""]),
        ("[storage]\nbackend = \"aio\"\n", &["storage.backend = \"aio\"", "\"io_uring\""]),
        ("[journal]\nsize = \"4GB\"\n", &["journal.size = \"4GB\": not a size", "\"4GiB\""]),
        ("[journal]\nsize = -5\n", &["journal.size = -5: not a size"]),
        ("[memory]\nmaps = \"1K\"\n", &["memory.maps = \"1K\": too little: write at least \"1MiB\""]),
        ("[nbd]\nbuffers = \"1M\"\n", &["nbd.buffers = \"1M\": too little: write at least \"32MiB\""]),
        (
            "[nbd]\nbuffers = \"64M\"\nbuffers_total = \"63M\"\n",
            &[
                "nbd.buffers_total = \"63M\": less than nbd.buffers = \"64MiB\"",
                "write at least \"64MiB\", or make nbd.buffers smaller",
            ],
        ),
        ("[nbd]\nbuffers_total = -5\n", &["nbd.buffers_total = -5: not a size"]),
        ("[vault]\nhistory_max = 1\n", &["vault.history_max = 1: too little: write at least \"16MiB\""]),
        ("[vault]\nfree_min = \"5%\"\n", &["vault.free_min = \"5%\": not a size"]),
        ("[journal]\nsize = 1.5\n", &["[journal] size = 1.5", "expected a size such as"]),
        (
            "[journal]\nsegment_size = 1000\n",
            &["journal.segment_size = 1000", "multiple of 1MiB", "\"64MiB\""],
        ),
        (
            "[journal]\nsize = \"128M\"\n",
            &["journal.size = \"128M\"", "at least 4 segments", "at least \"256MiB\""],
        ),
    ];
    for (toml, fragments) in after_site {
        refused(&place, &format!("{SITE}{toml}"), fragments);
    }
}

/// All of history went within seconds to keep free what no file system here has.
#[test]
fn more_than_the_file_system_has_cannot_stay_free() {
    let place = Place::new();
    for table in ["vault", "images"] {
        let toml = format!("{SITE}[{table}]\nfree_min = \"10P\"\n");
        let value = format!("{table}.free_min = \"10PiB\": the file system of DATA has ");
        refused(
            &place,
            &toml,
            &[value.as_str(), " in all: write how much of it is to stay free, for example \"1G\""],
        );
    }
}

#[test]
fn a_socket_path_that_the_kernel_can_not_bind_is_refused() {
    let place = Place::new();
    let long = "x".repeat(120);
    refused(
        &place,
        &format!("{SITE}[api]\nsocket = \"/tmp/{long}\"\n"),
        &["api.socket = \"/tmp/xxx", "at most 107 bytes, this one has 125", "choose a shorter path"],
    );
    let deep = place.data().join(&long);
    fs::create_dir(&deep).unwrap();
    let toml = format!("[site]\nname = \"a\"\ndata_dir = \"{}\"\n", deep.display());
    refused(&place, &toml, &["at most 107 bytes", "choose a shorter path"]);
}

/// A review found them refused with exit status 1 and in several lines, after groups were opened.
#[test]
fn one_socket_by_two_paths_is_told() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.data(), place.directory.path().join("link")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        (
            "[nbd]\nlisten = [\"unix:DATA/a\", \"unix:DATA/../data/a\"]\n",
            &["nbd.listen = \"unix:DATA/../data/a\": named twice: remove one"],
        ),
        (
            "[nbd]\nlisten = [\"unix:DATA/a\", \"unix:ROOT/link/a\"]\n",
            &["nbd.listen = \"unix:ROOT/link/a\": named twice"],
        ),
        (
            "[api]\nsocket = \"ROOT/link/nbd.sock\"\n",
            &["api.socket = \"ROOT/link/nbd.sock\": nbd.listen has the same socket: give each its own path"],
        ),
        (
            "[api]\nsocket = \"ROOT/link/../site.key\"\n[keys]\nsite_key = \"ROOT/site.key\"\n",
            &["api.socket = \"ROOT/link/../site.key\": keys.site_key has the same path"],
        ),
    ];
    for (toml, fragments) in cases {
        refused(&place, &format!("{SITE}{toml}"), fragments);
    }
}

/// The second used to be refused by the kernel, with exit status 1, when groups were open already.
#[test]
fn an_address_that_another_one_takes_along_is_told() {
    let place = Place::new();
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let four = [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")];
    let six = [("[::]", "[::1]"), ("[::]", "127.0.0.1")];
    // Not every machine has it.
    let has_six = TcpListener::bind("[::1]:0").is_ok();
    for (first, second) in four.into_iter().chain(six.into_iter().filter(|_| has_six)) {
        let port = port();
        let listen = format!("listen = [\"{first}:{port}\", \"{second}:{port}\"]\nallow_insecure = true\n");
        let toml = format!("{SITE}[nbd]\n{listen}");
        let place_of =
            format!("nbd.listen = \"{second}:{port}\": nbd.listen = \"{first}:{port}\" takes this port");
        refused(&place, &toml, &[&place_of, "remove one of them, or give each its own port"]);
    }
    // Two addresses of which neither is the other's.
    let port = port();
    let beside =
        format!("{SITE}[nbd]\nlisten = [\"127.0.0.1:{port}\", \"127.0.0.2:{port}\", \"127.0.0.1:0\"]\n");
    Configuration::load(&place.configure(&beside)).unwrap().check().unwrap();
}

/// A review found that the lock, or the catalogue, was taken for a key's file, and written over.
#[test]
fn a_site_key_with_a_name_that_the_gateway_uses_is_told() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.data(), place.directory.path().join("link")).unwrap();
    for name in [
        "lock",
        "keys",
        "groups",
        "groups/a",
        "vault",
        "vault/site.key",
        "catalogue.sqlite",
        "catalogue.sqlite-wal",
    ] {
        let own = name.split('/').next().unwrap();
        for directory in ["DATA", "ROOT/link"] {
            let problem = format!(
                "keys.site_key = \"{directory}/{name}\": the gateway itself uses {own} in its data directory"
            );
            let toml = format!("{SITE}[keys]\nsite_key = \"{directory}/{name}\"\n");
            refused(&place, &toml, &[&problem, "choose another name, for example \"", "data/keys/site.key"]);
        }
    }
    for name in ["site.key", "keys/other.key"] {
        let toml = format!("{SITE}[keys]\nsite_key = \"DATA/{name}\"\n");
        Configuration::load(&place.configure(&toml)).unwrap().check().unwrap();
    }
}

/// A review found the gateway's own files in the way of its sockets, or sockets in the way of its files.
#[test]
fn a_socket_with_a_name_that_the_gateway_uses_is_told() {
    let place = Place::new();
    for name in ["lock", "keys", "groups", "groups/a", "vault/a", "catalogue.sqlite", "catalogue.sqlite-wal"]
    {
        let own = name.split('/').next().unwrap();
        let problem = format!("the gateway itself uses {own} in its data directory: choose another name");
        let toml = format!("{SITE}[nbd]\nlisten = [\"unix:DATA/../data/{name}\"]\n");
        refused(&place, &toml, &["nbd.listen = \"unix:DATA/../data/", &problem]);
        let toml = format!("{SITE}[api]\nsocket = \"DATA/{name}\"\n");
        refused(&place, &toml, &[&format!("api.socket = \"DATA/{name}\""), &problem]);
    }
    let toml = format!("{SITE}[api]\nsocket = \"DATA/lock.sock\"\n");
    Configuration::load(&place.configure(&toml)).unwrap().check().expect("a name of nobody's");
}

#[test]
fn a_relative_path_is_told_as_it_is_written() {
    let place = Place::new();
    let root = place.directory.path().canonicalize().unwrap();
    for (toml, shown) in [
        (
            "[site]\nname = \"a\"\ndata_dir = \"rel\"\n",
            "site.data_dir = \"rel\" (HERE/rel): directory HERE/rel",
        ),
        (
            "[site]\nname = \"a\"\ndata_dir = \"data\"\n[nbd]\nlisten = [\"unix:rel/a\"]\n",
            "nbd.listen = \"unix:rel/a\" (HERE/rel/a): directory HERE/rel",
        ),
    ] {
        let file = place.configure(toml);
        let text = refusal(&run(serve(&file).current_dir(&root)));
        let shown = shown.replace("HERE", &root.to_string_lossy());
        assert!(text.contains(&shown), "`{shown}` in: {text}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_told() {
    let place = Place::new();
    let file = place.configure(SITE);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let text = refusal(&run(&mut serve_as_nobody(&place, &file)));
    assert!(text.contains("cannot read") && text.contains("give this user permission to read it"), "{text}");
    let text = refusal(&run(&mut serve(place.directory.path())));
    assert!(text.contains("cannot read") && text.contains("name a file in it"), "{text}");
}

#[test]
fn no_such_file_is_told() {
    let text = refusal(&run(&mut serve(Path::new("/nonexistent/afterimage.toml"))));
    assert!(
        text.contains("/nonexistent/afterimage.toml: cannot read") && text.contains("--config"),
        "{text}"
    );
}

#[test]
fn a_missing_directory_is_not_created() {
    let place = Place::new();
    let toml = "[site]\nname = \"a\"\ndata_dir = \"ROOT/none\"\n";
    refused(&place, toml, &["site.data_dir = \"ROOT/none\"", "does not exist", "mkdir -p ROOT/none"]);
    let toml = "[site]\nname = \"a\"\ndata_dir = \"ROOT/afterimage.toml\"\n";
    refused(&place, toml, &["site.data_dir = \"ROOT/afterimage.toml\"", "is not a directory"]);
    let toml = format!("{SITE}[nbd]\nlisten = [\"unix:ROOT/none/nbd.sock\"]\n");
    refused(
        &place,
        &toml,
        &["nbd.listen = \"unix:ROOT/none/nbd.sock\"", "ROOT/none does not exist", "mkdir"],
    );
    let toml = format!("{SITE}[api]\nsocket = \"ROOT/none/api.sock\"\n");
    refused(&place, &toml, &["api.socket = \"ROOT/none/api.sock\"", "does not exist"]);
}

/// A review found them refused with exit status 1, after the lock file was made, and without naming the key.
#[test]
fn a_site_key_that_cannot_be_used_is_told() {
    let place = Place::new();
    let file = place.directory.path().join("site.key");
    let named = format!("{SITE}[keys]\nsite_key = \"ROOT/site.key\"\n");
    let shown = "afterimage.toml: keys.site_key = \"ROOT/site.key\": ";
    fs::write(&file, "hunter2").unwrap();
    refused(&place, &named, &[shown, "this is no site key", "'key export'"]);
    fs::write(&file, SiteKey::drawn([1, 2]).to_text().as_bytes()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&place, &named, &[shown, "others may read the site key (mode 0644)", "chmod 600 ROOT/site.key"]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&place, &named, &[shown, "it is a directory", "name a file, for example ROOT/site.key/site.key"]);
    // So is one that waits to take its place, and one at the place that it has by default.
    fs::remove_dir(&file).unwrap();
    fs::write(place.directory.path().join("site.key.next"), "hunter2").unwrap();
    refused(&place, &named, &[shown, "ROOT/site.key.next: this is no site key"]);
    fs::create_dir_all(place.data().join("keys/site.key")).unwrap();
    refused(&place, SITE, &["keys.site_key = \"DATA/keys/site.key\": it is a directory"]);
}

/// Where a volume is not mounted, no key must be made in its stead.
#[test]
fn the_directory_of_a_site_key_is_not_created() {
    let place = Place::new();
    let toml = format!("{SITE}[keys]\nsite_key = \"ROOT/none/site.key\"\n");
    refused(
        &place,
        &toml,
        &["keys.site_key = \"ROOT/none/site.key\"", "ROOT/none does not exist", "mkdir -p ROOT/none"],
    );
    let toml = format!("{SITE}[keys]\nsite_key = \"ROOT/afterimage.toml/site.key\"\n");
    refused(&place, &toml, &["keys.site_key = ", "ROOT/afterimage.toml is not a directory"]);
    // The one in the data directory is its own to make.
    Configuration::load(&place.configure(SITE)).unwrap().check().expect("it can be served");
}

#[test]
fn an_unwritable_directory_is_told() {
    let place = Place::new();
    let file = place.configure(SITE);
    fs::set_permissions(place.data(), fs::Permissions::from_mode(0o555)).unwrap();
    let text = refusal(&run(&mut serve_as_nobody(&place, &file)));
    assert!(text.contains("site.data_dir = ") && text.contains("is not writable"), "{text}");
    assert!(text.contains("give this user write permission"), "{text}");
    assert_eq!(fs::read_dir(place.data()).unwrap().count(), 0);
}

/// A review found the site key blamed, whose directory would have to be made there.
#[test]
fn a_data_directory_that_takes_no_files_is_told() {
    let place = Place::new();
    let sockets = "[nbd]\nlisten = [\"unix:ROOT/nbd.sock\"]\n[api]\nsocket = \"ROOT/api.sock\"\n";
    for directory in ["/proc", "/sys"] {
        let toml = format!("[site]\nname = \"a\"\ndata_dir = \"{directory}\"\n{sockets}");
        let shown = format!("site.data_dir = \"{directory}\": ");
        refused(
            &place,
            &toml,
            &[&shown, &format!("no file can be created in {directory}"), "name a directory"],
        );
    }
}

/// A review found them refused with exit status 1, without key and mend, after the lock file and others were made.
#[test]
fn what_stands_in_the_way_in_the_data_directory_is_told() {
    for name in ["groups", "vault", "keys"] {
        let place = Place::new();
        let shown =
            format!("site.data_dir = \"DATA\": DATA/{name} is not a directory: move DATA/{name} away");
        fs::write(place.data().join(name), "precious").unwrap();
        refused(&place, SITE, &[&shown]);
        fs::remove_file(place.data().join(name)).unwrap();
        std::os::unix::fs::symlink("nowhere", place.data().join(name)).unwrap();
        let text = refusal(&run(&mut serve(&place.configure(SITE))));
        assert!(text.contains(&format!("data/{name} is not a directory")), "{text}");
    }
}

/// Runs a program to which the kernel refuses io_uring_setup(2), as containers do, by a seccomp filter.
const WITHOUT_URING: &str = r#"
import ctypes, os, struct, sys
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP, REFUSE_EPERM, ALLOW = 425, 0x00050001, 0x7FFF0000
instructions = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, REFUSE_EPERM), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(len(instructions), ctypes.cast(code, ctypes.c_void_p))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// A review found it refused with exit status 1, without key and mend.
#[test]
fn io_uring_that_must_be_and_does_not_work_is_told() {
    let place = Place::new();
    let file = place.configure(&format!("{SITE}[storage]\nbackend = \"io_uring\"\n"));
    let before = place.files();
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_URING, env!("CARGO_BIN_EXE_afterimage"), "serve", "--config"]).arg(&file);
    let text = refusal(&run(command.env_remove("AFTERIMAGE_LOG")));
    assert!(
        text.contains("afterimage.toml: storage.backend = \"io_uring\": io_uring cannot be used"),
        "{text}"
    );
    assert!(text.contains("kernel.io_uring_disabled") && text.contains("\"auto\""), "{text}");
    assert_eq!(place.files(), before, "nothing was touched");
}

#[test]
fn sockets_in_use_are_told() {
    let place = Place::new();
    let _nbd = UnixListener::bind(place.data().join("nbd.sock")).unwrap();
    refused(&place, SITE, &["nbd.listen = \"unix:DATA/nbd.sock\": socket in use", "choose another path"]);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let toml = format!("{SITE}[nbd]\nlisten = [\"{address}\"]\n");
    refused(&place, &toml, &[&format!("nbd.listen = \"{address}\": socket in use"), "another port"]);
    let _api = UnixListener::bind(place.data().join("api.sock")).unwrap();
    let toml = format!("{SITE}[nbd]\nlisten = [\"unix:DATA/other.sock\"]\n");
    refused(&place, &toml, &["api.socket = \"DATA/api.sock\": socket in use"]);
    fs::write(place.data().join("file.sock"), "precious").unwrap();
    let toml = format!("{SITE}[nbd]\nlisten = [\"unix:DATA/file.sock\"]\n");
    refused(&place, &toml, &["nbd.listen = \"unix:DATA/file.sock\"", "not a socket", "another path"]);
    // Nobody is told to remove a directory.
    let toml = format!("{SITE}[nbd]\nlisten = [\"unix:DATA/other.sock\"]\n[api]\nsocket = \"DATA\"\n");
    let told = "api.socket = \"DATA\": a directory has this name: name a file in it, for example DATA/afterimage.sock";
    refused(&place, &toml, &[told]);
}

#[test]
fn a_data_directory_in_use_is_told() {
    let place = Place::new();
    let owner = DataDirectory::acquire(&place.data()).unwrap();
    refused(&place, SITE, &["site.data_dir = \"DATA\": data directory in use", "stop that one"]);
    let configuration = Configuration::load(&place.configure(SITE)).unwrap();
    without_forks(|| {
        drop(owner);
        configuration.check().expect("a lock file that nobody holds is no obstacle");
    });
}

#[test]
fn a_wrong_log_filter_is_told() {
    let place = Place::new();
    let file = place.configure(SITE);
    let text = refusal(&run(serve(&file).env("AFTERIMAGE_LOG", "afterimage=loud")));
    assert!(
        text.contains("AFTERIMAGE_LOG = \"afterimage=loud\"") && text.contains("for example info"),
        "{text}"
    );
}

#[test]
fn the_documented_example_is_true() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/afterimage.example.toml");
    let example = Configuration::load(&file).unwrap();
    assert_eq!(example.site.name.as_str(), "site-a");
    assert_eq!(example.site.data_dir, Path::new("/var/lib/afterimage"));
    assert_eq!(
        example.nbd.listen,
        [
            ListenAddress::Unix("/run/afterimage/nbd.sock".into()),
            ListenAddress::Tcp("127.0.0.1:10809".parse().unwrap())
        ]
    );
    // What the comments call defaults are the defaults.
    let place = Place::new();
    let mut plain = Configuration::load(&place.configure(SITE)).unwrap();
    assert_eq!(plain.nbd.listen, [ListenAddress::Unix(place.data().join("nbd.sock"))]);
    assert_eq!(plain.api.socket, place.data().join("api.sock"));
    plain.file.clone_from(&example.file);
    plain.written.clone_from(&example.written);
    plain.site = example.site.clone();
    plain.nbd.listen.clone_from(&example.nbd.listen);
    assert_eq!(
        (&plain.api.read_only_socket, plain.api.listen.as_slice()),
        (&None, &[][..]),
        "only if asked for"
    );
    assert_eq!(example.api.listen, ["127.0.0.1:9470".parse().unwrap()]);
    plain.api = example.api.clone();
    assert_eq!(plain.keys.site_key, place.data().join("keys/site.key"));
    plain.keys.site_key.clone_from(&example.keys.site_key);
    assert_eq!((plain.vault.history_max, plain.vault.free_min), (None, None), "by default there is none");
    plain.vault = example.vault;
    assert_eq!(plain.images.free_min, None);
    plain.images = example.images;
    assert_eq!(plain.metrics.listen, [], "nowhere unless asked for");
    assert_eq!(example.metrics.listen, ["127.0.0.1:9469".parse().unwrap()]);
    plain.metrics.clone_from(&example.metrics);
    assert_eq!(plain, example);
}

#[test]
fn the_values_arrive_typed() {
    let place = Place::new();
    let file = place.configure(&format!(
        "{SITE}data_threads = 3\n[nbd]\nlisten = [\"0.0.0.0:10809\"]\nallow_insecure = true\nsocket_mode = \"0660\"\nconnections_max = 7\nbuffers = \"2G\"\n\
         [api]\nconnections_max = 9\n[log]\nformat = \"json\"\nlevel = \"debug\"\n[storage]\nbackend = \"io_uring\"\n\
         [journal]\nsize = 67108864\nsegment_size = \"4M\"\n\
         [memory]\nmaps = \"20M\"\nframes = 0\nframes_total = \"1G\"\n[vault]\nhistory_max = \"1G\"\nfree_min = 0\n[images]\nfree_min = \"2G\"\n\
         [metrics]\nlisten = \"0.0.0.0:9469\"\nallow_insecure = true\n"
    ));
    let configuration = Configuration::load(&file).unwrap();
    assert_eq!(configuration.site.data_threads.get(), 3);
    assert_eq!(configuration.nbd.listen, [ListenAddress::Tcp("0.0.0.0:10809".parse().unwrap())]);
    assert_eq!(configuration.nbd.connections_max.get(), 7);
    assert_eq!(configuration.nbd.socket_mode, SocketMode::Group);
    assert_eq!(configuration.api.connections_max.get(), 9);
    // What all may hold is never less than what one may.
    let (buffers, total) = (configuration.nbd.buffers, configuration.nbd.buffers_total);
    assert_eq!((buffers, total), (ByteSize(2 << 30), ByteSize(2 << 30)));
    assert_eq!((configuration.log.format, configuration.log.level), (LogFormat::Json, LogLevel::Debug));
    assert_eq!(configuration.storage.backend, StorageChoice::Uring);
    assert_eq!(configuration.journal.size, ByteSize(64 << 20));
    assert_eq!(configuration.journal.segment_size, ByteSize(4 << 20));
    assert_eq!((configuration.memory.maps, configuration.memory.frames), (ByteSize(20 << 20), ByteSize(0)));
    assert_eq!(configuration.memory.frames_total, ByteSize(1 << 30));
    assert_eq!(configuration.metrics.listen, ["0.0.0.0:9469".parse().unwrap()]);
    assert_eq!(configuration.images.free_min, Some(ByteSize(2 << 30)));
    let vault = configuration.vault;
    assert_eq!((vault.history_max, vault.free_min), (Some(ByteSize(1 << 30)), Some(ByteSize(0))));
}
