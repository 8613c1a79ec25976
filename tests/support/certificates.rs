//! Certificates that are made for a test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::FREE_PORT;

/// A server's certificate, and what belongs to it. Its files go with this value.
pub struct Certificates {
    /// The authority that signed it, as PEM.
    pub authority: String,
    /// A certificate that this authority signed for a client, and its key.
    #[allow(dead_code)] // Not every program has such clients.
    pub client: (String, String),
    files: PathBuf,
}

impl Certificates {
    /// For a server that is called by these names.
    pub fn of(names: &[&str]) -> Self {
        let authority = authority();
        let signed = |names: &[&str]| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).unwrap();
            // Named as its authority, it would be taken for one that signed itself.
            let name = &mut params.distinguished_name;
            name.push(DnType::CommonName, "signed");
            let certificate = params.signed_by(&key, &authority).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-distributed-lock-tls-{}-{number}", std::process::id());
        let this = Self {
            authority: authority.pem(),
            client: signed(&["worker"]),
            files: std::env::temp_dir().join(name),
        };
        std::fs::create_dir_all(&this.files).unwrap();
        let (certificate, key) = signed(names);
        for (name, text) in [
            ("certificate.pem", &certificate),
            ("key.pem", &key),
            ("authority.pem", &this.authority),
        ] {
            std::fs::write(this.files.join(name), text).unwrap();
        }
        this
    }

    /// The arguments of a server that has it, and asks a client for one, or not ("yes", "no").
    pub fn args(&self, clients_need_one: &str) -> Vec<String> {
        let file = |name: &str| self.files.join(name).display().to_string();
        [
            ("--tls-port", FREE_PORT.to_owned()),
            ("--tls-cert-file", file("certificate.pem")),
            ("--tls-key-file", file("key.pem")),
            ("--tls-ca-cert-file", file("authority.pem")),
            ("--tls-auth-clients", clients_need_one.to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

/// One that signs certificates.
pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
