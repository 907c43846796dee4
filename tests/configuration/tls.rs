//! What is wrong with `[nbd.tls]`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use afterimage::config::Configuration;

use super::certificates::Certificates;
use super::{Place, SITE, refused};

#[test]
fn what_is_wrong_with_tls_is_said_with_key_value_and_mend() {
    let place = Place::new();
    let [certificates, others] = [Certificates::new(), Certificates::new()];
    let open = certificates.path("open.pem");
    fs::copy(certificates.path("server-key.pem"), &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    certificates.write("text", "nothing of the kind");
    let cases: &[(&str, &[&str])] = &[
        (
            "[nbd.tls]\n",
            &["nbd.tls.certificate: missing: add `certificate = \"/etc/afterimage/tls/server-cert.pem\"`"],
        ),
        (
            "[nbd.tls]\ncertificate = \"a\"\n",
            &["nbd.tls.key: missing: add `key = ", "to the table [nbd.tls]"],
        ),
        ("[nbd]\ntls = true\n", &["[nbd] tls = true"]),
        (
            "[nbd.tls]\ncertificate = \"\"\nkey = \"a\"\n",
            &["nbd.tls.certificate = \"\": no path: write a path"],
        ),
        ("[nbd.tls]\ncertificate = \"a\"\nkey = \"a\"\nca = \"a\"\n", &["unknown field `ca`"]),
        (
            "[nbd.tls]\ncertificate = \"CERT/none\"\nkey = \"CERT/server-key.pem\"\n",
            &["nbd.tls.certificate = \"CERT/none\": there is no such file: name one that is there"],
        ),
        (
            "[nbd.tls]\ncertificate = \"CERT/text\"\nkey = \"CERT/server-key.pem\"\n",
            &[
                "nbd.tls.certificate = \"CERT/text\": it holds no certificate in PEM form: name a file that begins",
            ],
        ),
        (
            "[nbd.tls]\ncertificate = \"CERT/server-cert.pem\"\nkey = \"CERT/open.pem\"\n",
            &[
                "nbd.tls.key = \"CERT/open.pem\": others may read the key (mode 0644): chmod 600 CERT/open.pem",
            ],
        ),
        (
            "[nbd.tls]\ncertificate = \"CERT/server-cert.pem\"\nkey = \"OTHER/server-key.pem\"\n",
            &[
                "nbd.tls.key = \"OTHER/server-key.pem\": it is not the key of the certificate beside it: name the key",
            ],
        ),
        (
            "[nbd.tls]\ncertificate = \"CERT/server-cert.pem\"\nkey = \"CERT/server-key.pem\"\nclient_ca = \"CERT/client-key.pem\"\n",
            &["nbd.tls.client_ca = \"CERT/client-key.pem\": it holds no certificate in PEM form"],
        ),
        (
            "[nbd]\nlisten = [\"0.0.0.0:10809\"]\n[nbd.tls]\ncertificate = \"CERT/server-cert.pem\"\nkey = \"CERT/server-key.pem\"\n",
            &[
                "nbd.listen = \"0.0.0.0:10809\": not a loopback address, and without nbd.tls.client_ca anybody who reaches it may read",
                "write client_ca = \"/PATH\" in [nbd.tls]",
                "allow_insecure = true",
            ],
        ),
    ];
    for (toml, fragments) in cases {
        let fill = |text: &str| {
            let text = text.replace("CERT", &certificates.directory().to_string_lossy());
            text.replace("OTHER", &others.directory().to_string_lossy())
        };
        let fragments: Vec<String> = fragments.iter().map(|fragment| fill(fragment)).collect();
        let fragments: Vec<&str> = fragments.iter().map(String::as_str).collect();
        refused(&place, &format!("{SITE}{}", fill(toml)), &fragments);
    }
}

#[test]
fn who_asks_clients_for_certificates_or_says_so_may_listen_anywhere() {
    let certificates = Certificates::new();
    for (more, asks) in [("", true), ("allow_insecure = true\n", false)] {
        let table = certificates.table(asks);
        let text = format!("{SITE}[nbd]\nlisten = [\"0.0.0.0:0\", \"unix:/run/a.sock\"]\n{more}{table}");
        let nbd =
            Configuration::parse("afterimage.toml".as_ref(), &text.replace("DATA", "/data")).unwrap().nbd;
        let tls = nbd.tls.expect("the table");
        assert_eq!(tls.certificate.path, certificates.path("server-cert.pem"));
        assert_eq!(tls.client_ca.is_some(), asks);
    }
}
