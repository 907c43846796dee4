//! The Debian package: built by docs/package/build from the program under test, installed by dpkg into a root of its own (this machine's,
//! under an overlay, so that nothing of it changes), run as its unit says, removed and purged. Needs root and cargo-deb.
//!
//! There is no systemd to start it here: what it is told comes to a socket of ours, and its directories are made as the unit has them.
#![cfg(feature = "server")]

#[path = "support/tool.rs"]
#[allow(dead_code)]
mod tool;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use afterimage::config::Configuration;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing in these tests takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const UNIT: &str = "usr/lib/systemd/system/afterimage.service";
/// Of ten: what `systemd-analyze security` calls OK ends at 4.
const EXPOSURE_MAX: &str = "20";

/// The package, of the program under test.
fn build(directory: &Path) -> PathBuf {
    let package = directory.join("afterimage.deb");
    let mut command = tool::command("docs/package/build");
    command.env("AFTERIMAGE_PROGRAM", env!("CARGO_BIN_EXE_afterimage")).args(["--fast", "-o"]).arg(&package);
    let output = command.output().expect("timeout(1) is part of coreutils");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "is cargo-deb there? `tests/run packages` installs it: {errors}");
    package
}

/// This machine's files, to be changed without changing them.
struct Root {
    directory: TempDir,
    mounts: Vec<PathBuf>,
}

impl Root {
    fn new() -> Root {
        let mut root =
            Root { directory: tempfile::tempdir().expect("a temporary directory"), mounts: Vec::new() };
        let place = root.directory.path().to_owned();
        // The upper layer must not lie in the lower one.
        root.mount(&["-t", "tmpfs", "-o", "size=1g", "none"], &place);
        for name in ["upper", "work", "root"] {
            fs::create_dir(place.join(name)).expect("a directory of ours");
        }
        let layers = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", place.display());
        root.mount(&["-t", "overlay", "-o", &layers, "none"], &place.join("root"));
        root.mount(&["-t", "proc", "none"], &root.path("proc"));
        root.mount(&["--bind", "/dev"], &root.path("dev"));
        root
    }

    fn mount(&mut self, what: &[&str], place: &Path) {
        tool::says("mount", what.iter().map(AsRef::as_ref).chain([place.as_os_str()]));
        self.mounts.push(place.to_owned());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    fn mode(&self, name: &str) -> u32 {
        self.path(name)
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .permissions()
            .mode()
            & 0o7777
    }

    /// A command in it, as a user and a group, both by name.
    fn command(&self, user: &str, line: &str) -> std::process::Command {
        let mut command = tool::command("chroot");
        command.arg(format!("--userspec={user}")).arg(self.path("")).args(line.split(' '));
        command
    }

    fn runs(&self, line: &str) -> Output {
        self.command("root:root", line).output().expect("chroot(8) is part of coreutils")
    }

    #[track_caller]
    fn says(&self, line: &str) -> String {
        let output = self.runs(line);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {text}{errors}");
        text.into_owned() + &errors
    }

    #[track_caller]
    fn refuses(&self, line: &str, fragment: &str) {
        let output = self.runs(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(fragment), "{line}: `{fragment}` in: {errors}");
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for place in self.mounts.iter().rev() {
            // A test that failed may have left processes in it.
            let _ = tool::command("umount").arg("--lazy").arg(place).output();
        }
    }
}

/// The values of a key of the unit.
fn unit(root: &Root, key: &str) -> Vec<String> {
    let text = fs::read_to_string(root.path(UNIT)).expect("the unit is installed");
    let values = text.lines().filter_map(|line| line.split_once('=').filter(|(found, _)| *found == key));
    values.map(|(_, value)| value.to_owned()).collect()
}

#[track_caller]
fn only(root: &Root, key: &str) -> String {
    let [value] = unit(root, key).try_into().unwrap_or_else(|values| panic!("{key}: {values:?}"));
    value
}

/// The installed gateway, started as the unit says, and what it tells the service manager.
struct Service {
    /// timeout(1) hands signals on.
    process: Child,
    told: UnixDatagram,
}

impl Service {
    fn start(root: &Root) -> Service {
        for (name, mode) in [("State", "var/lib"), ("Runtime", "run")].map(|(kind, above)| {
            let name = only(root, &format!("{kind}Directory"));
            (format!("{above}/{name}"), only(root, &format!("{kind}DirectoryMode")))
        }) {
            let path = root.path(&name);
            fs::create_dir_all(&path).expect("a directory in the root");
            let mode = u32::from_str_radix(&mode, 8).expect("a mode");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our directory");
            root.says(&format!("chown afterimage:afterimage /{name}"));
        }
        let socket = root.path("run/told.sock");
        let told = UnixDatagram::bind(&socket).expect("a socket in the root");
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("our socket");
        told.set_read_timeout(Some(PATIENCE)).expect("a time-out above zero");
        let user = format!("{}:{}", only(root, "User"), only(root, "Group"));
        let mut command = root.command(&user, &only(root, "ExecStart"));
        let variables = unit(root, "Environment");
        command.envs(variables.iter().filter_map(|variable| variable.split_once('=')));
        // So often that a test need not wait for it.
        command.env("NOTIFY_SOCKET", "/run/told.sock").env("WATCHDOG_USEC", "90000").stderr(Stdio::null());
        Service { process: command.spawn().expect("chroot(8)"), told }
    }

    /// Waits until it has said so; everything that it said meanwhile.
    #[track_caller]
    fn until(&self, news: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let length =
                self.told.recv(&mut bytes).unwrap_or_else(|error| panic!("{news}: {error}; {heard:?}"));
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            heard.extend(text.lines().map(str::to_owned));
            if text.lines().any(|line| line == news) {
                return heard;
            }
        }
    }

    /// SIGTERM; it must say that it stops, and end well.
    #[track_caller]
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).expect("it is our child");
        self.until("STOPPING=1");
        let status = self.process.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
            let _ = self.process.wait();
        }
    }
}

#[test]
fn it_is_installed_serves_as_its_unit_says_and_goes() {
    let mut root = Root::new();
    let package = build(&root.path("root"));
    let package = format!("/root/{}", package.file_name().and_then(|name| name.to_str()).expect("a name"));
    let told = root.says(&format!("dpkg --install {package}"));
    assert!(told.contains("not started"), "{told}");
    what_was_installed(&root);
    the_unit_is_sound_and_tight(&root);
    pages_render_and_words_are_completed(&root);

    let service = Service::start(&root);
    let heard = service.until("READY=1");
    assert!(heard.iter().any(|news| news.starts_with("EXTEND_TIMEOUT_USEC=")), "{heard:?}");
    assert!(!heard.contains(&"WATCHDOG=1".to_owned()), "not before it serves: {heard:?}");
    service.until("WATCHDOG=1");
    service.until("WATCHDOG=1");
    a_disk_is_for_the_group(&root);
    assert!(service.until("WATCHDOG=1").iter().all(|news| news != "STOPPING=1"));
    people_are_told_whose_rights_are_meant(&mut root);
    service.stop();

    let told = root.says(&format!("dpkg --install {package}"));
    assert!(!told.contains("not started"), "which is for new ones: {told}");
    root.says("dpkg --remove afterimage");
    assert!(!root.path("usr/bin/afterimage").exists());
    assert!(root.path("etc/afterimage/afterimage.toml").exists(), "it may have been edited");
    let told = root.says("dpkg --purge afterimage");
    assert!(told.contains("/var/lib/afterimage stays"), "{told}");
    assert!(!root.path("etc/afterimage").exists());
    for kept in ["var/lib/afterimage/keys/site.key", "var/lib/afterimage/vault"] {
        assert!(root.path(kept).exists(), "{kept} is nobody's to remove");
    }
}

fn what_was_installed(root: &Root) {
    for (name, mode) in [
        ("usr/bin/afterimage", 0o755),
        (UNIT, 0o644),
        ("etc/afterimage/afterimage.toml", 0o644),
        ("usr/share/man/man1/afterimage.1.gz", 0o644),
        ("usr/share/man/man1/afterimage-disk-create.1.gz", 0o644),
        ("usr/share/bash-completion/completions/afterimage", 0o644),
        ("usr/share/zsh/vendor-completions/_afterimage", 0o644),
        ("usr/share/fish/vendor_completions.d/afterimage.fish", 0o644),
        ("usr/share/doc/afterimage/copyright", 0o644),
        ("usr/share/doc/afterimage/installing.md", 0o644),
    ] {
        assert_eq!(root.mode(name), mode, "{name}");
        assert_eq!(root.path(name).metadata().expect("it is there").uid(), 0, "{name}");
    }
    assert!(root.says("afterimage --version").contains(env!("CARGO_PKG_VERSION")));
    let user = root.says("getent passwd afterimage");
    assert!(user.trim().ends_with("/nologin"), "{user}");
    let wanted = "etc/systemd/system/multi-user.target.wants/afterimage.service";
    assert!(root.path(wanted).symlink_metadata().is_err(), "a person enables it");
    assert!(root.says("dpkg-query --show --showformat=${Conffiles} afterimage").contains("afterimage.toml"));
    // Of the configuration, what is not a place is the default.
    let mut installed = Configuration::load(&root.path("etc/afterimage/afterimage.toml")).expect("it parses");
    let places = "[site]\nname = \"site-a\"\ndata_dir = \"/var/lib/afterimage\"\n\
                  [nbd]\nlisten = [\"unix:/run/afterimage/nbd.sock\"]\nsocket_mode = \"0660\"\n\
                  [api]\nsocket = \"/run/afterimage/api.sock\"\n";
    installed.file = "x".into();
    assert_eq!(installed, Configuration::parse(Path::new("x"), places).expect("it parses"));
}

fn the_unit_is_sound_and_tight(root: &Root) {
    let complaints = root.says("systemd-analyze verify afterimage.service");
    assert!(!complaints.contains("afterimage.service:"), "{complaints}");
    root.says(&format!("systemd-analyze security --offline=true --threshold={EXPOSURE_MAX} /{UNIT}"));
    assert!(only(root, "Before").contains("libvirtd.service"));
}

fn pages_render_and_words_are_completed(root: &Root) {
    let pages = fs::read_dir(root.path("usr/share/man/man1")).expect("a directory");
    let names = pages.filter_map(|page| page.expect("a directory").file_name().into_string().ok());
    let mut own = names.filter(|name| name.starts_with("afterimage")).collect::<Vec<_>>();
    own.sort();
    assert!(own.len() > 40, "{own:?}");
    for name in own {
        let mut command = root.command("root:root", "man --warnings --local-file");
        let output = command
            .arg(format!("/usr/share/man/man1/{name}"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("chroot(8)");
        let (text, complaints) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && complaints.is_empty(), "{name}: {complaints}");
        assert!(text.contains("SYNOPSIS") && text.contains("EXAMPLES"), "{name}: {text}");
    }
    let completed = |words: &str| {
        let (before, last) = words.rsplit_once(' ').expect("two words");
        let count = words.split(' ').count() - 1;
        let previous = before.rsplit(' ').next().expect("one word");
        let script = format!(
            "source /usr/share/bash-completion/completions/afterimage; COMP_WORDS=({words}); COMP_CWORD={count}; \
             _afterimage afterimage '{last}' '{previous}'; echo \"${{COMPREPLY[@]}}\""
        );
        let output = root.command("root:root", "bash -c").arg(script).output().expect("chroot(8)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(completed("afterimage failo"), "failover");
    assert_eq!(completed("afterimage group res"), "resume");
    assert_eq!(completed("afterimage group resume --acc"), "--accept-loss");
    assert_eq!(completed("afterimage demo --so"), "", "which it does not take");
}

fn a_disk_is_for_the_group(root: &Root) {
    // The command line finds it without being told where.
    root.says("afterimage group create erp");
    root.says("afterimage disk create erp/db --size 16M");
    assert_eq!((root.mode("run/afterimage/nbd.sock"), root.mode("run/afterimage/api.sock")), (0o660, 0o600));
    let uri = "nbd+unix:///erp/db?socket=/run/afterimage/nbd.sock";
    let asks = |user: &str| root.command(user, &format!("nbdinfo --size {uri}")).output().expect("chroot(8)");
    assert!(asks("nobody:afterimage").status.success(), "a member may");
    assert!(!asks("nobody:nogroup").status.success(), "others may not");
    let asked = root.command("nobody:afterimage", "afterimage status").output().expect("chroot(8)");
    let refusal = String::from_utf8_lossy(&asked.stderr);
    assert!(
        !asked.status.success() && refusal.contains("by sudo"),
        "who may use disks may not remove them: {refusal}"
    );
    assert_eq!(root.mode("var/lib/afterimage"), 0o700);
    assert_eq!(root.mode("var/lib/afterimage/keys/site.key"), 0o600);
}

/// A person at the command line is root, the gateway is not, and its unit keeps most of the machine read-only.
fn people_are_told_whose_rights_are_meant(root: &mut Root) {
    root.says("afterimage point create erp");
    root.refuses("afterimage restore erp --point latest --to /root/restored", "the gateway runs as user");
    fs::write(root.path("root/secret.raw"), [1; 512]).expect("a file in the root");
    fs::set_permissions(root.path("root/secret.raw"), fs::Permissions::from_mode(0o600)).expect("our file");
    root.refuses("afterimage disk create erp/log --import /root/secret.raw", "the gateway runs as user");
    let read_only = root.path("srv");
    root.mount(&["-t", "tmpfs", "-o", "ro,mode=1777", "none"], &read_only);
    root.refuses("afterimage restore erp --point latest --to /srv/restored", "ReadWritePaths=DIR");
    root.says("afterimage restore erp --point latest --to /var/lib/afterimage/restored");
    let elsewhere = "[site]\nname = \"b\"\ndata_dir = \"/srv\"\n[api]\nsocket = \"/run/b.sock\"\n[nbd]\nlisten = [\"unix:/run/b-nbd.sock\"]\n";
    fs::write(root.path("root/b.toml"), elsewhere).expect("a file in the root");
    root.refuses("afterimage serve --config /root/b.toml", "ReadWritePaths=/srv");
}
