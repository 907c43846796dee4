//! An authority with a server's and a client's certificate, in files named as QEMU, libvirt and libnbd look for them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tempfile::TempDir;

/// A directory of them; each has an authority of its own, which no other trusts.
pub struct Certificates(TempDir);

impl Certificates {
    /// `ca-cert.pem`, `server-cert.pem` for localhost and its addresses, `client-cert.pem`, and the keys of these two.
    pub fn new() -> Certificates {
        let certificates = Certificates(tempfile::tempdir().unwrap());
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        certificates.write("ca-cert.pem", &authority.pem());
        let uses = [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ];
        for (name, usage) in uses {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            for address in ["127.0.0.1", "::1"] {
                params.subject_alt_names.push(SanType::IpAddress(address.parse().unwrap()));
            }
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            certificates.write(&format!("{name}-cert.pem"), &certificate.pem());
            certificates.write(&format!("{name}-key.pem"), &key.serialize_pem());
        }
        certificates
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// One of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a file there that only its owner may read.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// The table of a gateway that shows its certificate, and asks for a client's or does not.
    pub fn table(&self, asks_clients: bool) -> String {
        let file = |name| self.path(name).display().to_string();
        let ca =
            if asks_clients { format!("client_ca = {:?}\n", file("ca-cert.pem")) } else { String::new() };
        let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
        format!("[nbd.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n{ca}")
    }
}
