//! What is wrong with `[[hooks]]`.

use std::time::Duration;

use afterimage::config::{Configuration, HookAction};
use afterimage::control::model::Severity;

use super::{Place, refused};

const SITE: &str = "[site]\nname = \"a\"\ndata_dir = \"DATA\"\n";

#[test]
fn what_is_wrong_with_a_hook_is_said_with_key_value_and_mend() {
    let place = Place::new();
    std::fs::write(place.directory.path().join("plain"), "").unwrap();
    let page = "[[hooks]]\nname = \"page\"\nseverity = \"info\"\n";
    let cases: &[(&str, &[&str])] = &[
        ("[hooks]\nname = \"a\"\n", &["write [[hooks]], with two brackets"]),
        ("[[hooks]]\nseverity = \"info\"\n", &["hooks[0].name: missing: add `name = \"page\"`"]),
        ("[[hooks]]\nname = \"a/b\"\n", &["hooks.name = \"a/b\""]),
        (
            "[[hooks]]\nname = \"page\"\nexec = [\"/bin/true\"]\n",
            &["hooks.page.on: ", "severity = \"warning\""],
        ),
        ("PAGE", &["hooks.page.exec: it is not said what is done: add `exec = "]),
        ("PAGEcolour = 1\n", &["unknown field `colour`", "remove or rename it"]),
        ("PAGEon = []\n", &["it is not said what is done"]),
        ("PAGEexec = []\n", &["hooks.page.exec = []: no program: write for example"]),
        ("PAGEexec = [\"page\"]\n", &["hooks.page.exec = \"page\": the program's path is not absolute"]),
        ("PAGEexec = [\"ROOT/none\"]\n", &["hooks.page.exec = \"ROOT/none\": the program cannot be found"]),
        ("PAGEexec = [\"ROOT\"]\n", &["hooks.page.exec = \"ROOT\": this is no file: name a program"]),
        ("PAGEexec = [\"ROOT/plain\"]\n", &["it cannot be run", "make it executable for this user"]),
        (
            "PAGEexec = [\"/bin/true\"]\non = [\"verify_fund\"]\n",
            &["hooks.page.on = \"verify_fund\": there is no such event", "docs/events.md"],
        ),
        ("PAGEexec = [\"/bin/true\"]\non = []\n", &["hooks.page.on = []: no event would be told"]),
        (
            "PAGEexec = [\"/bin/true\"]\ntimeout = \"1h\"\n",
            &["hooks.page.timeout = \"1h\": out of range: write a duration from 100ms to 10m"],
        ),
        (
            "PAGEexec = [\"/bin/true\"]\ntimeout = \"soon\"\n",
            &["hooks.page.timeout = \"soon\"", "for example \"30s\""],
        ),
        ("PAGEexec = [\"/bin/true\"]\nretries = 101\n", &["hooks.page.retries = 101", "from 0 to 100"]),
        ("PAGEexec = [\"/bin/true\"]\nretries = \"3\"\n", &["hooks.page.retries = \"3\"", "without quotes"]),
        (
            "PAGEexec = [\"/bin/true\"]\nwebhook = \"http://a/\"\n",
            &["hooks.page.webhook = \"http://a/\": there is hooks.exec beside it"],
        ),
        (
            "PAGEwebhook = \"https://a/\"\nca = \"ROOT/none\"\n",
            &["hooks.page.ca = \"ROOT/none\": there is no such file: name one that is there"],
        ),
        (
            "PAGEwebhook = \"https://a/\"\nca = \"ROOT/plain\"\n",
            &[
                "hooks.page.ca = \"ROOT/plain\": it holds no certificate in PEM form",
                "-----BEGIN CERTIFICATE-----",
            ],
        ),
        (
            "PAGEwebhook = \"http://a/\"\nca = \"ROOT/plain\"\n",
            &[
                "hooks.page.ca = \"ROOT/plain\": the webhook beside it is no https:// address",
                "write https://",
            ],
        ),
        (
            "PAGEexec = [\"/bin/true\"]\nca = \"ROOT/plain\"\n",
            &["hooks.page.ca = \"ROOT/plain\": there is no webhook beside it"],
        ),
        (
            "PAGEwebhook = \"ftp://a/\"\n",
            &["hooks.page.webhook = \"ftp://a/\": not an http:// or https:// address"],
        ),
        (
            "PAGEwebhook = \"a.example\"\n",
            &["not an http:// or https:// address with a host: write for example \"https://chat.example"],
        ),
        ("PAGEwebhook = \"http://u:p@a/\"\n", &["a user's name or password is part of it"]),
        (
            "PAGEexec = [\"/bin/true\"]\nPAGEexec = [\"/bin/true\"]\n",
            &["hooks.name = \"page\": two hooks have this name"],
        ),
        (
            "[[hooks]]\nname = \"page\"\nseverity = \"bad\"\nexec = [\"/bin/true\"]\n",
            &["hooks.page.severity = \"bad\": not a known choice: write one of"],
        ),
    ];
    for (toml, fragments) in cases {
        refused(&place, &format!("{SITE}{}", toml.replace("PAGE", page)), fragments);
    }
}

#[test]
fn a_hook_is_what_is_written() {
    let text = format!(
        "{SITE}[[hooks]]\nname = \"page\"\non = [\"verify_found\"]\nexec = [\"/bin/echo\", \"a b\"]\n\
         [[hooks]]\nname = \"chat\"\nseverity = \"error\"\nwebhook = \"http://[::1]:81/x?y\"\ntimeout = \"10s\"\nretries = 0\n\
         [[hooks]]\nname = \"tls\"\nseverity = \"error\"\nwebhook = \"https://chat.example/\"\nca = \"/ca.pem\"\n"
    );
    let hooks =
        Configuration::parse("afterimage.toml".as_ref(), &text.replace("DATA", "/data")).unwrap().hooks;
    let [page, chat, tls] = &hooks[..] else { panic!("three: {hooks:?}") };
    assert_eq!(page.action, HookAction::Exec("/bin/echo".into(), vec!["a b".to_owned()]));
    assert_eq!((page.severity, page.timeout, page.retries), (Severity::Info, Duration::from_secs(30), 3));
    let HookAction::Webhook(address) = &chat.action else { panic!("an address") };
    assert_eq!((address.host.as_str(), address.port, address.path.as_str()), ("::1", 81, "/x?y"));
    assert_eq!((chat.severity, chat.timeout, chat.retries), (Severity::Error, Duration::from_secs(10), 0));
    assert!(chat.on.is_empty() && !address.tls);
    let HookAction::Webhook(address) = &tls.action else { panic!("an address") };
    assert_eq!((address.host.as_str(), address.port, address.tls), ("chat.example", 443, true));
    assert_eq!(address.ca.as_ref().unwrap().path, std::path::Path::new("/ca.pem"));
}
