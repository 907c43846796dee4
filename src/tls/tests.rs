//! Files that can be used, and those that cannot.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// An authority and a server's certificate, as files.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        place.write("ca.pem", &authority.pem());
        for name in ["server", "expired", "early"] {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_before = rcgen::date_time_ymd(if name == "early" { 2090 } else { 2020 }, 1, 1);
            params.not_after = rcgen::date_time_ymd(if name == "expired" { 2021 } else { 2100 }, 1, 1);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            place.write(&format!("{name}.pem"), &certificate.pem());
            place.write(&format!("{name}.key"), &key.serialize_pem());
        }
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        self.set_mode(name, 0o600);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn server(&self, certificate: &str, key: &str, ca: Option<&str>) -> Result<Arc<ServerConfig>, Unusable> {
        let ca = ca.map(|name| self.path(name));
        server(&ServerFiles {
            certificate: &self.path(certificate),
            key: &self.path(key),
            client_ca: ca.as_deref(),
        })
    }
}

#[test]
fn a_server_has_a_certificate_and_its_key() {
    let place = Place::new();
    place.server("server.pem", "server.key", None).unwrap();
    place.server("server.pem", "server.key", Some("ca.pem")).unwrap();
    // One whose group may read it is one that Debian's group ssl-cert has.
    place.set_mode("server.key", 0o640);
    place.server("server.pem", "server.key", None).unwrap();
    client(Some(&place.path("ca.pem"))).unwrap();
}

#[test]
fn what_cannot_be_used_is_said_of_the_right_file_with_its_mend() {
    use TlsFile::{Authorities, Certificate, Key};
    let place = Place::new();
    place.write("text", "nothing of the kind\n");
    place.write("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    place.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    place.write("garbage.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    place.write(
        "locked.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let key = fs::read_to_string(place.path("server.key")).unwrap();
    place.write("open.key", &key);
    place.set_mode("open.key", 0o644);
    let table: [(&str, &str, Option<&str>, TlsFile, &str); 14] = [
        ("none", "server.key", None, Certificate, "there is no such file"),
        (".", "server.key", None, Certificate, "it is a directory"),
        ("text", "server.key", None, Certificate, "no certificate in PEM form"),
        ("half.pem", "server.key", None, Certificate, "no certificate in PEM form"),
        ("garbage.pem", "server.key", None, Certificate, "its first certificate cannot be used"),
        ("server.pem", "none", None, Key, "there is no such file"),
        ("server.pem", "text", None, Key, "no private key in PEM form"),
        ("server.pem", "server.pem", None, Key, "no private key in PEM form"),
        ("server.pem", "garbage.key", None, Key, "it cannot be used"),
        ("server.pem", "locked.key", None, Key, "encrypted by a passphrase"),
        ("server.pem", "open.key", None, Key, "others may read the key (mode 0644)"),
        ("server.pem", "expired.key", None, Key, "it is not the key of the certificate beside it"),
        ("server.pem", "server.key", Some("text"), Authorities, "no certificate in PEM form"),
        ("server.pem", "server.key", Some("garbage.pem"), Authorities, "what is no authority's certificate"),
    ];
    for (certificate, key, ca, file, problem) in table {
        let unusable = place.server(certificate, key, ca).expect_err(problem);
        assert!(unusable.file == file && unusable.problem.contains(problem), "{unusable:?}");
        assert!(!unusable.mend.is_empty() && !unusable.problem.contains("AAAA"), "{unusable:?}");
    }
}

#[test]
fn a_certificate_tells_how_long_it_holds() {
    let place = Place::new();
    // 2026-01-01
    let now = WallNanos(1_767_225_600_000_000_000);
    let of = |name: &str, now| validity(&place.path(name), now).unwrap();
    assert_eq!(of("server.pem", now), Validity::Holds);
    assert_eq!(of("expired.pem", now), Validity::ExpiresAt { second: 1_609_459_200, is_past: true });
    assert_eq!(of("early.pem", now), Validity::NotYet);
    let ten_days_before = WallNanos((1_609_459_200 - 10 * 86_400) * 1_000_000_000);
    assert_eq!(
        of("expired.pem", ten_days_before),
        Validity::ExpiresAt { second: 1_609_459_200, is_past: false }
    );
    assert_eq!(of("ca.pem", now), Validity::Holds);
}
